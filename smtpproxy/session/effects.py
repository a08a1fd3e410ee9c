"""Effects: what the session wants done, beyond octets. The driver carries them out in order; what is done to a link,
after the octets that stood before it have been sent."""

from dataclasses import dataclass

from smtpproxy.session.verdicts import Question
from smtpproxy.smtp.errors import Side


@dataclass(frozen=True, slots=True)
class PrepareTLS:
    """Have a certificate ready to show to this side; then `tls_ready` or `tls_failed`."""

    side: Side


@dataclass(frozen=True, slots=True)
class StartTLS:
    """Begin a handshake on this side's link; then `tls_done` or `tls_failed`."""

    side: Side


@dataclass(frozen=True, slots=True)
class Shut:
    """Send what is to be sent, then tell this side that nothing more will come; it may go on to speak."""

    side: Side


@dataclass(frozen=True, slots=True)
class Close:
    """Send what is to be sent, then close this side's link in order."""

    side: Side


@dataclass(frozen=True, slots=True)
class Abort:
    """Drop what is unsent and close this side's link at once: what was begun there must not look finished."""

    side: Side


@dataclass(frozen=True, slots=True)
class Dial:
    """Connect to the server: to another one than was meant, if a host and a port are given; then `connected`."""

    host: str = ""
    port: int = 0


@dataclass(frozen=True, slots=True)
class Ask:
    """Answer a question; then `decided(ticket, answer)`, or `Failed` when its deadline has passed."""

    ticket: int
    question: Question


Effect = PrepareTLS | StartTLS | Shut | Close | Abort | Dial | Ask
