"""Questions to the DNS: the resolvers in turn, UDP then TCP, every answer with its deadline.

Whoever is between us and the resolver can say what it likes, and the answer is parsed by a library: whatever goes
wrong ends as `ResolvingError`, with the reason. The AD bit is DNSSEC's word, and the resolver's: it counts only from
one on the loopback, or where the administrator trusts the way (RFC 6840 §5.8, RFC 7672 §2.2).

dnspython is an extra: it is imported where `Names` is made.
"""

import ipaddress
from typing import TYPE_CHECKING, Any, NamedTuple

import trio

if TYPE_CHECKING:
    import dns.message
    import dns.name

# Seconds.
ANSWER = 3.0  # a resolver has for one answer; one that gives none is asked once more, by TCP
QUESTION = 15.0  # all of them have together
PAYLOAD = 1232  # octets of an answer by UDP, which no path cuts into fragments
RESOLV_CONF = "/etc/resolv.conf"
_DNS_PORT = 53


class Resolver(NamedTuple):
    """Who is asked: address and port. None: the system's. `trusted`: AD counts though the way is not the loopback."""

    servers: tuple[tuple[str, int], ...] = ()
    trusted: bool = False


class Answer(NamedTuple):
    """The records (dnspython's, none where there are none), how many seconds that holds, whether DNSSEC vouches."""

    records: tuple[Any, ...]
    ttl: float
    secure: bool


class ResolvingError(Exception):
    """There is no answer; the text says why."""


class Names:
    """Asks. `vouching`: only resolvers whose AD counts."""

    def __init__(self, resolver: Resolver, *, vouching: bool = False) -> None:
        """Takes the settings.

        Raises:
            ImportError: dnspython is not installed.
            ValueError: a server that is no address.
        """
        import dns.asyncquery  # noqa: F401 - said now if it is missing, not at the first question

        for host, _ in resolver.servers:
            ipaddress.ip_address(host)
        self._resolver = resolver
        self._vouching = vouching

    async def ask(self, name: "dns.name.Name", kind: str) -> Answer:
        """The records of a name; none is an answer too.

        Raises:
            ResolvingError: no resolver answers, or only with errors: SERVFAIL is what a bogus signature looks like.
        """
        why = ""
        with trio.move_on_after(QUESTION):
            again = self._servers()
            for tcp in (False, True):
                servers, again = again, []
                for server in servers:
                    try:
                        return await self._ask_one(server, name, kind, tcp=tcp)
                    except ResolvingError as error:
                        why = str(error)
                    except Exception as error:  # also what a library makes of an answer nobody foresaw
                        why = f"{_printable(server)} did not answer: {_reason(error)}"
                        again.append(server)
        raise ResolvingError(f"{kind} of {name.to_text(omit_final_dot=True)}: {why or 'no answer'}")

    async def addresses(self, name: "dns.name.Name") -> list[str]:
        """The addresses of a name, IPv6 first. One family is enough; ResolvingError if there is none."""
        found: list[str] = []
        why = f"{name.to_text(omit_final_dot=True)} has no address"
        for kind in ("AAAA", "A"):
            try:
                found += [record.address for record in (await self.ask(name, kind)).records]
            except ResolvingError as error:
                why = str(error)
        if not found:
            raise ResolvingError(why)
        return found

    def _servers(self) -> list[tuple[str, int]]:
        """Whom to ask; read anew each time, as the system's may change."""
        servers = list(self._resolver.servers) or _of_the_system()
        if not self._vouching:
            return servers
        able = [server for server in servers if self._believed(server)]
        if not able:
            raise ResolvingError(
                f"no resolver's DNSSEC counts: {', '.join(map(_printable, servers)) or 'there is none'} is not on this"
                " machine; run a validating one here, or set trusted = true in [dns]"
            )
        return able

    def _believed(self, server: tuple[str, int]) -> bool:
        return self._resolver.trusted or ipaddress.ip_address(server[0]).is_loopback

    async def _ask_one(self, server: tuple[str, int], name: "dns.name.Name", kind: str, *, tcp: bool) -> Answer:
        import dns.asyncbackend
        import dns.asyncquery
        import dns.flags
        import dns.message
        import dns.rcode

        query = dns.message.make_query(name, kind, want_dnssec=True, payload=PAYLOAD, flags=dns.flags.RD | dns.flags.AD)
        host, port = server
        backend = dns.asyncbackend.get_backend("trio")
        if tcp:
            response = await dns.asyncquery.tcp(query, host, ANSWER, port, backend=backend)
        else:  # datagrams that are no answer to this question are anybody's, and passed over
            response, _ = await dns.asyncquery.udp_with_fallback(
                query, host, ANSWER, port, ignore_unexpected=True, ignore_errors=True, backend=backend
            )
        if response.rcode() not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
            code = dns.rcode.to_text(response.rcode())
            raise ResolvingError(f"{_printable(server)} says {code}{_extended(response)}")
        if not isinstance(response, dns.message.QueryMessage):
            raise ResolvingError(f"{_printable(server)} does not answer a question")
        chain = response.resolve_chaining()
        secure = bool(response.flags & dns.flags.AD) and self._believed(server)
        return Answer(tuple(chain.answer or ()), float(chain.minimum_ttl), secure)


def domain_name(text: str, *below: str) -> "dns.name.Name":
    """A name as the DNS has it, with labels in front. ValueError for what is none, an address among them."""
    import dns.exception
    import dns.name

    try:
        ipaddress.ip_address(text)
    except ValueError:
        pass
    else:
        raise ValueError(f"{text} is an address, not a name")
    try:
        name = dns.name.from_text(text)
        if name != dns.name.root:
            return dns.name.Name([label.encode("ascii") for label in below]).concatenate(name)
    except (dns.exception.DNSException, UnicodeError) as error:
        raise ValueError(f"{text!r} is no domain name: {_reason(error)}") from error
    raise ValueError("there is no domain name")


def _of_the_system() -> list[tuple[str, int]]:
    import dns.resolver

    try:
        found = dns.resolver.Resolver(RESOLV_CONF).nameservers
    except (dns.resolver.NoResolverConfiguration, OSError, ValueError) as error:
        raise ResolvingError(f"the system's resolver is not known: {_reason(error)}") from error
    return [(server, _DNS_PORT) for server in found if isinstance(server, str)]


def _extended(response: "dns.message.Message") -> str:
    """What else it says of the error, by code (RFC 8914): DNSSEC_BOGUS and the like."""
    import dns.edns

    codes = [option.code.name for option in response.options if isinstance(option, dns.edns.EDEOption)]
    return f" ({', '.join(codes[:4])})" if codes else ""


def _printable(server: tuple[str, int]) -> str:
    host, port = server
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _reason(error: Exception) -> str:
    """In a line. The text may hold what a peer sent."""
    return ascii(str(error) or type(error).__name__)[1:-1][:200]
