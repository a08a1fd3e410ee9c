"""How a server is told who the client is: by the address the link comes from, or in one of the ways of `announce`.

    proxy-v1, proxy-v2   a header before the first octet of the session, for a server that expects one
    xclient, xforward    commands, for a server that offers them (session/announcing.py)

What a load balancer said of the client's TLS, of its protocol and of the name it asked for goes on in a header of
version 2; where the client's TLS ends here before the server is connected to, what is known of that does.
"""

from collections.abc import Callable

from smtpproxy.config import ListenerConfig
from smtpproxy.net.origin import Origin
from smtpproxy.net.proxyheader import encode, passed_on, tls_tlvs
from smtpproxy.session.announcing import SILENT, Announce, Announcement
from smtpproxy.session.postures import ClientTLS, ServerTLS
from smtpproxy.session.state import TLSInfo

_KINDS = {"xclient": Announce.XCLIENT, "xforward": Announce.XFORWARD}
_VERSIONS = {"proxy-v1": 1, "proxy-v2": 2}


def announcement_of(entry: ListenerConfig, origin: Origin) -> Announcement:
    """What the session tells by commands."""
    kind = _KINDS.get(entry.announce)
    return SILENT if kind is None else Announcement(kind, *origin.client, *origin.aim)


def foreword_of(entry: ListenerConfig, origin: Origin) -> Callable[[TLSInfo | None], bytes] | None:
    """What goes before the session."""
    version = _VERSIONS.get(entry.announce)
    if version is None:
        return None

    def foreword(tls: TLSInfo | None) -> bytes:
        """The header, given what is known of the client's TLS."""
        said = passed_on(origin.header) if origin.header is not None else ()
        known = tls_tlvs(tls.version, tls.cipher, tls.sni) if tls is not None else ()
        return encode(version, origin.client, origin.aim, (*known, *said))

    return foreword


def client_first(entry: ListenerConfig) -> bool:
    """The client's TLS, which is implicit, can be had before the server is spoken to: what it is shown does not depend
    on the server's certificate."""
    independent = bool(entry.tls.certificates) or entry.tls.server is ServerTLS.NEVER
    return entry.announce == "proxy-v2" and entry.tls.client is ClientTLS.IMPLICIT and independent
