"""The settings of TLS: `[listener.tls]`, `[tls]`, `[ca]` and `[dns]`, and which of them do not go together.

A pair that promises what can't be kept is an error, not a surprise: a server that is to be verified on a link that is
never encrypted, a name that is needed and is not there. What is said and merely not used at the moment (certificates
while the client's TLS is refused) is a warning (config/idle), so that one setting can be changed for a try.
"""

import ipaddress
import socket
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Annotated, Final, Literal

from pydantic import Field

from smtpproxy.config.values import (
    Endpoint,
    FilePath,
    FilePathOrNone,
    Hello,
    HostName,
    HostOrAddress,
    Mistake,
    Positive,
    ResolverEndpoint,
    Table,
    is_address,
    is_hello,
    setting,
)
from smtpproxy.session.postures import ClientTLS, Posture, ServerTLS

Verify = Literal["record", "verify", "dane", "mta-sts"]


class CertificateConfig(Table):
    """A certificate, `{ chain = FILE, key = FILE }`: PEM files."""

    chain: FilePath = setting(
        ..., "the certificate, and behind it those of the CAs between it and its root", "must be said", path=True
    )
    key: FilePathOrNone = setting(
        "",
        "its private key, without passphrase. Empty: in the file of the chain",
        "one file is the simplest",
        path=True,
    )


class TLSConfig(Table):
    """`[listener.tls]`, behind its `[[listener]]`: what TLS is to be on both links of it."""

    client: Annotated[ClientTLS, Field(strict=False)] = setting(
        ClientTLS.MIRROR,
        "the client's link. `mirror`: STARTTLS is offered where the server's link is or can be encrypted; `offer`:"
        " always; `require`: always, and 530 is the answer before it; `implicit`: TLS from the first octet (port 465);"
        " `refuse`: never offered; `passthrough`: TLS is between the two peers, and from the server's 220 on the proxy"
        " is blind, which the record says",
        "the client gets what it would get without the proxy",
    )
    server: Annotated[ServerTLS, Field(strict=False)] = setting(
        ServerTLS.MIRROR,
        "the server's link. `mirror`: encrypted when the client's is; `upgrade`: before the client hears the greeting,"
        " where the server offers STARTTLS; `require`: the same, or no session; `implicit`: TLS from the first octet"
        " (port 465); `never`: in clear, and the client's TLS ends here",
        "the server gets what it would get without the proxy",
    )
    certificates: Annotated[tuple[CertificateConfig, ...], Field(strict=False)] = setting(
        (),
        "what is shown to clients: certificates of which one is chosen by the name the client asks for (SNI); the first"
        " where none fits. Read again when the files change",
        "without any, one like the server's own is made: signed by the CA of `[ca]`, or self-signed",
    )
    verify: Verify = setting(
        "record",
        "what the server's certificate must be. `record`: anything, and the record says whether it would have failed;"
        " `verify`: valid, by its chain and name; `dane`: by its TLSA records (RFC 7672; needs `smtpproxy[dane]`);"
        " `mta-sts`: by the policy of `policy_domain` (RFC 8461; needs `smtpproxy[mta-sts]`). It holds where the link"
        ' is encrypted; `server = "require"` sees to it that it is',
        "mail servers take any certificate of each other, and many have none that is valid",
    )
    server_name: HostOrAddress = setting(
        "",
        "the name the server's certificate must be for, and that it is asked for (SNI). Empty: the host of `server`, or"
        " the address the client was going to; say it where it is to be a name and that is an address",
        "it is the name the server is known by here",
    )
    roots: FilePathOrNone = setting(
        "",
        "a PEM file of the CAs that may vouch for the server, in place of the system's. Empty: the system's",
        "the system's are kept current",
        path=True,
    )
    policy_domain: HostName = setting(
        "",
        'the recipients\' domain, whose policy counts; must be said for `verify = "mta-sts"`',
        "the certificate is looked at before there is a recipient",
    )
    client_certificate: CertificateConfig | None = setting(
        None, "a certificate that is shown to the server if it asks for one", "few servers ask"
    )
    legacy: bool = setting(
        False,
        "TLS 1.0 and 1.1 and ciphers of their time too, on both links of this listener",
        "RFC 8996 and RFC 9325 §3.1.1; true is for devices that can't do better",
    )
    hello: Hello = setting(
        "",
        "what an EHLO of our own says, where the server's link is encrypted before the client has spoken. Empty: the"
        " full name of this machine, or its address if it has none",
        "RFC 5321 §4.1.1.1",
    )

    @property
    def makes_certificates(self) -> bool:
        """Clients are shown TLS, and no certificate is given for it: one is made, by the CA if there is one."""
        return not self.certificates and self.client not in (ClientTLS.REFUSE, ClientTLS.PASSTHROUGH)

    @property
    def never_encrypted(self) -> bool:
        """The server's link stays in clear, whatever the peers do."""
        refused = self.client is ClientTLS.REFUSE and self.server is ServerTLS.MIRROR
        return self.server is ServerTLS.NEVER or refused

    @property
    def says_hello(self) -> bool:
        """There may be an EHLO of our own."""
        demanded = self.client is ClientTLS.IMPLICIT and self.server is ServerTLS.MIRROR
        return demanded or self.server in (ServerTLS.UPGRADE, ServerTLS.REQUIRE)

    def posture(self, *, says_hello: bool = False) -> Posture:
        """The posture of a session, which has an EHLO of our own for another reason than TLS if `says_hello`. May ask
        the resolver for this machine's name, once and if it is needed."""
        if self.hello:
            hello = self.hello
        elif says_hello or self.says_hello:
            hello = machine_hello()
        else:  # no EHLO of our own
            return Posture(self.client, self.server)
        return Posture(self.client, self.server, hello.encode("ascii"))


class AllTLSConfig(Table):
    """`[tls]`: TLS of all listeners."""

    keylog: FilePathOrNone = setting(
        "",
        "a file the keys of all sessions are written to (SSLKEYLOGFILE, as Wireshark reads it). Who has it can read"
        " everything, passwords too: a warning is printed, and each record says so",
        "it takes back what TLS gives; for a look at a fault",
        path=True,
    )


class CAConfig(Table):
    """`[ca]`: the CA that signs what is shown to clients where no certificate is given."""

    directory: FilePathOrNone = setting(
        "",
        "where `smtpproxy ca init` put it. Empty: there is none, and a certificate like the server's is self-signed",
        "a client that verifies must have been told to trust it",
        path=True,
    )
    passphrase_file: FilePathOrNone = setting(
        "",
        "a file that has the passphrase of its key in the first line. Empty: the key has none",
        "only its owner can read the key's file",
        path=True,
    )
    days: Annotated[int, Field(gt=0, le=825)] = setting(
        30,
        "days a certificate is valid at most; never longer than the server's",
        "it is made anew whenever that is due",
    )
    rate: Positive = setting(100, "certificates made a second, on the whole", "one is made for each server, and kept")
    burst: Positive = setting(1000, "certificates made at once, before `rate` holds", "as many servers at a start")


class DNSConfig(Table):
    """`[dns]`: the resolver asked for TLSA records and MTA-STS policies."""

    servers: Annotated[tuple[ResolverEndpoint, ...], Field(strict=False)] = setting(
        (), "`address:port`; without a port it is 53. Empty: the system's", "this machine knows its own"
    )
    trusted: bool = setting(
        False,
        "its word that an answer is secure (DNSSEC, the AD flag) counts, wherever it is. False: only if it is on this"
        " machine (a loopback address)",
        "anybody on the way to it could say so too (RFC 7672 §2.2)",
    )


# ------------------------------------------------------------------------------------------------ what goes together


def _quoted(name: str, value: str) -> str:
    return f'{name} = "{value}"'


def listener_mistakes(tls: TLSConfig, server: Endpoint | None) -> Iterator[Mistake]:
    """What of a listener's TLS can't be meant; places are within the listener. `server`: None where each connection
    goes where its client was going."""
    verify = _quoted("verify", tls.verify)
    if tls.client is ClientTLS.PASSTHROUGH and tls.server is not ServerTLS.MIRROR:
        yield Mistake(
            ("tls", "server"),
            f'{_quoted("server", tls.server.value)} does not go with client = "passthrough": TLS is the peers\' own',
            'server = "mirror"',
        )
    elif tls.client is ClientTLS.MIRROR and tls.server is ServerTLS.NEVER:
        yield Mistake(
            ("tls", "server"),
            'server = "never" does not go with client = "mirror": nothing would ever be encrypted',
            'client = "offer" or "require" for TLS that ends here, client = "refuse" for none',
        )
    if tls.verify == "record":
        return
    if tls.client is ClientTLS.PASSTHROUGH:
        yield Mistake(
            ("tls", "verify"),
            f'{verify} does not go with client = "passthrough": the proxy does not see the certificate',
            'verify = "record"',
        )
    elif tls.never_encrypted:
        yield Mistake(
            ("tls", "verify"),
            f"{verify} can't be kept: the server's link is never encrypted",
            'server = "require", or verify = "record"',
        )
    if tls.verify == "mta-sts" and not tls.policy_domain:
        yield Mistake(("tls", "verify"), f"{verify} needs policy_domain", "the recipients' domain in policy_domain")
    name = tls.server_name or (server.host if server else "")
    if not name:
        yield Mistake(
            ("tls", "verify"),
            f"{verify} needs the server's name, and where a client is going is known by its address alone",
            "the name in server_name, or server; a [[match]] for each server, where there are several",
        )
    elif tls.verify in ("dane", "mta-sts") and is_address(name):
        yield Mistake(
            ("tls", "server_name") if tls.server_name else ("tls", "verify"),
            f"{verify} needs the server's name, and {name} is an address",
            "its name in server_name",
        )


def resolver_mistakes(dns: DNSConfig) -> Iterator[Mistake]:
    """What DANE can't do with the resolvers; places are within the whole."""
    if dns.servers and not dns.trusted and not any(_is_loopback(server) for server in dns.servers):
        yield Mistake(
            ("dns", "servers"),
            'a listener has verify = "dane", and the word of none of these counts: TLS would always be refused',
            "a validating resolver on this machine, or trusted = true",
        )


def ca_mistakes(ca: CAConfig) -> Iterator[Mistake]:
    """What is said of a CA that is not there; places are within `[ca]`."""
    if ca.passphrase_file and not ca.directory:
        yield Mistake(("passphrase_file",), "a passphrase, and no CA it could be for", "its directory in directory")


def _is_loopback(server: Endpoint) -> bool:
    return ipaddress.ip_address(server.host).is_loopback


# ----------------------------------------------------------------------------------------------------- our own EHLO

_ELSEWHERE: Final = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))  # RFC 5737, RFC 3849
_NO_NAME: Final = ("localhost", "localdomain", "arpa")  # last labels of what is called so and is nobody's name


def hello_of(name: str, address: str) -> str:
    """What EHLO says of a machine that is called so: a full name, or the literal of its address."""
    name = name.rstrip(".").lower()
    if "." in name and name.rpartition(".")[2] not in _NO_NAME and is_hello(name):
        return name
    return f"[IPv6:{address}]" if ":" in address else f"[{address}]"


@lru_cache(maxsize=1)
def machine_hello() -> str:
    """What EHLO says of this machine. Asks the resolver, which may take seconds where that does not answer."""
    return hello_of(socket.getfqdn(), machine_address())


def machine_address(towards: Sequence[tuple[socket.AddressFamily, str]] = _ELSEWHERE) -> str:
    """The address this machine has on the way there. Nothing is sent: UDP's connect only looks for the route."""
    for family, elsewhere in towards:
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((elsewhere, 9))
                return str(probe.getsockname()[0]).partition("%")[0]  # a link-local one has its interface behind it
        except OSError:
            pass  # no route there, or no such family here
    return "127.0.0.1"
