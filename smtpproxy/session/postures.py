"""What an administrator wants of TLS on each link of a listener; the session and the driver keep to it.

docs/tls.md has the table of what each pair means.
"""

from enum import Enum
from typing import NamedTuple


class ClientTLS(Enum):
    """What the client's link is to be."""

    MIRROR = "mirror"  # STARTTLS is offered where the server's link is, or can be, encrypted
    OFFER = "offer"  # always offered: also for servers that have no TLS
    REQUIRE = "require"  # always offered, and 530 before it
    IMPLICIT = "implicit"  # encrypted from the first octet (RFC 8314 §3)
    REFUSE = "refuse"  # never offered
    PASSTHROUGH = "passthrough"  # between the two peers: opaque from the server's 220 on

    __hash__ = object.__hash__


class ServerTLS(Enum):
    """What the server's link is to be."""

    MIRROR = "mirror"  # encrypted when the client's is
    UPGRADE = "upgrade"  # encrypted before the client hears the greeting, where the server offers it
    REQUIRE = "require"  # the same, or no session
    IMPLICIT = "implicit"  # encrypted from the first octet
    NEVER = "never"  # never encrypted: the client's TLS ends here

    __hash__ = object.__hash__


class Posture(NamedTuple):
    """Both sides, and the name our own EHLO says (before STARTTLS on the server's link; it is forgotten with it)."""

    client: ClientTLS = ClientTLS.MIRROR
    server: ServerTLS = ServerTLS.MIRROR
    hello: bytes = b"localhost.localdomain"


MIRROR = Posture()
