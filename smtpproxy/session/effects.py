"""Effects: what the session wants done to a link, beyond octets. The driver carries them out in order, each after the
octets that stood before it have been sent."""

from typing import NamedTuple

from smtpproxy.smtp.errors import Side


class StartTLS(NamedTuple):
    """Begin a handshake on this side's link; then `tls_done` or `tls_failed`."""

    side: Side


class Close(NamedTuple):
    """Send what is to be sent, then close this side's link in order."""

    side: Side


class Abort(NamedTuple):
    """Drop what is unsent and close this side's link at once: what was begun there must not look finished."""

    side: Side


Effect = StartTLS | Close | Abort
