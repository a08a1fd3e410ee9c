"""Every number a session is bounded by, in one table, and how long each peer is waited for.

The defaults are the minima of RFC 5321 §4.5.3.1 and the timeouts of §4.5.3.2 where it has them, else what well-tried
servers use. Each is a setting of smtpproxy.toml under `[limits]` or `[patience]`; `None` nowhere means "unlimited".
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Octets, lines and counts of one session."""

    command_line: int = 2048  # octets with CRLF; RFC 5321 §4.5.3.1.4 asks for 512, extensions add
    auth_line: int = 12_288  # octets of base64 in an AUTH or SASL line; RFC 4954 §4
    endless_line: int = 1_048_576  # octets without LF after which the session is closed
    reply_line: int = 4096  # octets with CRLF; §4.5.3.1.5 asks for 512
    reply_lines: int = 1000  # lines of one reply
    ehlo_lines: int = 200  # keywords of an EHLO reply that are looked at; the rest is stripped
    recipients: int = 1000  # accepted for judging in one transaction; §4.5.3.1.8 asks for 100
    pipelined: int = 1000  # commands that may await their reply at once
    malformed: int = 20  # malformed or unknown commands before the session is closed
    header: int = 262_144  # octets of a header section that is held back to be judged
    swallow: int = 268_435_456  # octets of refused content that are read and thrown away
    unsent: int = 262_144  # octets that may wait for a peer to take them before the other is no longer read


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds. RFC 5321 §4.5.3.2 unless said otherwise."""

    connect: float = 30.0  # one address of the server
    greeting: float = 300.0  # §4.5.3.2.1
    command: float = 300.0  # the server's reply to MAIL, RCPT and all else: §4.5.3.2.2, .3
    data: float = 120.0  # the server's 354: §4.5.3.2.4
    content: float = 180.0  # the next piece of content, either way: §4.5.3.2.5
    end: float = 600.0  # the server's reply to the end of data: §4.5.3.2.6
    client: float = 300.0  # the client's next command: §4.5.3.2.7
    tls: float = 60.0  # a whole handshake
    session: float = 14_400.0  # a whole session
    drain: float = 30.0  # what is in flight, when the proxy is told to stop
    rate: float = 500.0  # octets a second: content slower than this on the whole is given up


LIMITS = Limits()
PATIENCE = Patience()
