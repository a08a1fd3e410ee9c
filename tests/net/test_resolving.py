"""Questions to the DNS, on sockets: who is asked, what counts as an answer, and whose word DNSSEC has."""

import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest
import trio

from smtpproxy.net import resolving
from smtpproxy.net.resolving import Answer, Names, Resolver, ResolvingError, domain_name
from tests.net.authority_rig import DEADLINE, HOST, TLSA_NAME, TXT_NAME, Authority, running

NAME = domain_name(HOST, "_25", "_tcp")
RECORD = "3 1 1 " + "ab" * 32
OTHER = "3 1 1 " + "cd" * 32


@pytest.fixture
async def authority() -> AsyncIterator[Authority]:
    made = Authority()
    made.put(TLSA_NAME, "TLSA", RECORD)
    with trio.fail_after(DEADLINE):
        async with running(made):
            yield made


def dead_port() -> int:
    """Where nobody is: the kernel's choice, given back."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


async def asked(resolver: Resolver, kind: str = "TLSA", *, vouching: bool = True) -> Answer:
    """One question."""
    return await Names(resolver, vouching=vouching).ask(NAME, kind)


async def test_an_answer(authority: Authority) -> None:
    answer = await asked(authority.resolver)
    assert [str(record) for record in answer.records] == [RECORD]
    assert answer.ttl == 300
    assert answer.secure
    assert authority.asked == [("udp", TLSA_NAME, "TLSA")]
    query = authority.queries[0]
    assert query.flags & dns.flags.AD
    assert query.ednsflags & dns.flags.DO


async def test_no_such_name_and_no_such_record_are_answers(authority: Authority) -> None:
    assert (await asked(authority.resolver, "TXT")).records == ()
    authority.records.clear()
    assert (await asked(authority.resolver)).records == ()


async def test_an_alias_is_followed_within_the_answer(authority: Authority) -> None:
    authority.records.clear()
    authority.put(TLSA_NAME, "CNAME", "tlsa.example.net")
    authority.put("tlsa.example.net", "TLSA", OTHER)
    assert [str(record) for record in (await asked(authority.resolver)).records] == [OTHER]


async def test_aliases_in_a_circle_are_no_answer(authority: Authority) -> None:
    def circle(query: dns.message.Message) -> bytes:
        response = dns.message.make_response(query)
        for name, to in ((TLSA_NAME, "a.example"), ("a.example", TLSA_NAME)):
            response.answer.append(dns.rrset.from_text(f"{name}.", 60, "IN", "CNAME", f"{to}."))
        return response.to_wire()

    authority.answer = circle
    with pytest.raises(ResolvingError):
        await asked(authority.resolver)


async def test_what_does_not_fit_a_datagram_comes_by_tcp(authority: Authority) -> None:
    authority.cut = True
    authority.put(TLSA_NAME, "TLSA", *(f"3 1 1 {number:064x}" for number in range(500)))
    assert len((await asked(authority.resolver)).records) == 500
    assert [by for by, _, _ in authority.asked] == ["udp", "tcp"]


async def test_not_secure_without_the_resolvers_word(authority: Authority) -> None:
    authority.ad = False
    answer = await asked(authority.resolver)
    assert answer.records
    assert not answer.secure


@pytest.mark.parametrize("rcode", [dns.rcode.SERVFAIL, dns.rcode.REFUSED, dns.rcode.FORMERR, dns.rcode.NOTIMP])
async def test_an_error_is_no_answer(authority: Authority, rcode: dns.rcode.Rcode) -> None:
    authority.rcode = rcode
    with pytest.raises(ResolvingError) as raised:
        await asked(authority.resolver)
    assert str(raised.value).endswith(f"127.0.0.1:{authority.port} says {rcode.name}")
    assert TLSA_NAME in str(raised.value)
    assert len(authority.asked) == 1


async def test_a_bogus_answer_is_called_so_where_the_resolver_does(authority: Authority) -> None:
    """RFC 8914: by its code; the text is not repeated."""
    authority.rcode = dns.rcode.SERVFAIL
    authority.extended = dns.edns.EDECode.DNSSEC_BOGUS
    with pytest.raises(ResolvingError) as raised:
        await asked(authority.resolver)
    assert str(raised.value).endswith("says SERVFAIL (DNSSEC_BOGUS)")


async def test_datagrams_that_are_no_answer_are_passed_over(authority: Authority) -> None:
    """What somebody sends who guesses: other ids, other names, not DNS at all."""

    def noise(query: bytes) -> list[bytes]:
        forged = dns.message.make_response(dns.message.from_wire(query))
        forged.answer.append(dns.rrset.from_text(f"{TLSA_NAME}.", 60, "IN", "TLSA", OTHER))
        forged.id ^= 1
        other = dns.message.make_response(dns.message.make_query("other.example", "TLSA", id=forged.id ^ 1))
        return [b"", b"\x00", query, query[:20], forged.to_wire(), other.to_wire(), b"\xff" * 1000]

    authority.noise = noise
    assert [str(record) for record in (await asked(authority.resolver)).records] == [RECORD]


@pytest.mark.parametrize("answer", [b"", b"\x00\x00\x00", b"\xff" * 500])
async def test_garbage_by_tcp_is_no_answer(
    authority: Authority, answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = dns.message.Message.to_wire

    def garbage(query: dns.message.Message) -> bytes:
        response = dns.message.make_response(query)
        response.flags |= dns.flags.TC
        return cut(response) if authority.asked[-1][0] == "udp" else answer

    authority.answer = garbage
    with pytest.raises(ResolvingError):
        await asked(authority.resolver)
    assert {by for by, _, _ in authority.asked} == {"udp", "tcp"}


async def test_a_silent_resolver_is_asked_twice_by_tcp_then(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolving, "ANSWER", 0.05)
    authority.silent = True
    with pytest.raises(ResolvingError, match="did not answer"):
        await asked(authority.resolver)
    assert [by for by, _, _ in authority.asked] == ["udp", "tcp"]
    authority.speak()


async def test_all_resolvers_together_have_their_time(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolving, "QUESTION", 0.05)
    authority.silent = True
    with pytest.raises(ResolvingError, match="no answer"):
        await asked(authority.resolver)
    authority.speak()


async def test_the_next_resolver_is_asked(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolving, "ANSWER", 0.05)
    servers = (("127.0.0.1", dead_port()), *authority.resolver.servers)
    assert (await asked(Resolver(servers))).secure
    broken = Authority()
    broken.rcode = dns.rcode.SERVFAIL
    async with running(broken):
        assert (await asked(Resolver(broken.resolver.servers + authority.resolver.servers))).secure


async def test_a_resolver_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolving, "ANSWER", 0.05)
    with pytest.raises(ResolvingError, match="did not answer"):
        await asked(Resolver((("127.0.0.1", dead_port()),)))


# ------------------------------------------------------------------------------------------------- whose word counts


async def test_a_resolver_elsewhere_is_not_asked_where_dnssec_counts() -> None:
    """Whoever is on the way could set the bit."""
    with pytest.raises(ResolvingError) as raised:
        await asked(Resolver((("192.0.2.1", 53), ("2001:db8::1", 53))))
    assert "192.0.2.1:53, [2001:db8::1]:53" in str(raised.value)
    assert "trusted = true" in str(raised.value)


async def test_only_resolvers_that_count_are_asked(authority: Authority) -> None:
    assert (await asked(Resolver((("192.0.2.1", 53), *authority.resolver.servers)))).secure


@pytest.mark.parametrize(
    ("address", "trusted", "believed"),
    [
        ("127.0.0.1", False, True),
        ("127.0.0.53", False, True),
        ("::1", False, True),
        ("192.0.2.1", False, False),
        ("10.0.0.1", False, False),
        ("fe80::1%lo", False, False),
        ("192.0.2.1", True, True),
    ],
)
def test_whose_word_counts(address: str, trusted: bool, believed: bool) -> None:
    names = Names(Resolver(((address, 53),), trusted), vouching=True)
    assert names._believed((address, 53)) is believed


async def test_a_resolver_elsewhere_is_asked_where_dnssec_does_not_count(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its AD bit is nothing."""
    monkeypatch.setattr(Names, "_believed", lambda *_: False)
    answer = await asked(authority.resolver, vouching=False)
    assert answer.records
    assert not answer.secure


# ------------------------------------------------------------------------------------------------- settings


async def test_the_systems_resolvers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read at each question: they change while the proxy runs."""
    file = tmp_path / "resolv.conf"
    monkeypatch.setattr(resolving, "RESOLV_CONF", str(file))
    names = Names(Resolver())
    with pytest.raises(ResolvingError, match="the system's resolver is not known"):
        await names.ask(NAME, "TXT")
    file.write_text("nameserver 127.0.0.53\nnameserver ::1\noptions trust-ad\n")
    assert names._servers() == [("127.0.0.53", 53), ("::1", 53)]
    file.write_text("nameserver 192.0.2.1\n")
    with pytest.raises(ResolvingError, match=r"no resolver's DNSSEC counts: 192\.0\.2\.1:53"):
        await Names(Resolver(), vouching=True).ask(NAME, "TLSA")


def test_a_resolver_by_name_is_an_error() -> None:
    """Who would look it up?"""
    with pytest.raises(ValueError, match="localhost"):
        Names(Resolver((("localhost", 53),)))


@pytest.mark.parametrize("text", ["", ".", "a..b", "a" * 64 + ".example", ".".join(["a" * 60] * 5), "192.0.2.1", "::1"])
def test_what_is_no_domain_name(text: str) -> None:
    with pytest.raises(ValueError):
        domain_name(text, "_25", "_tcp")


def test_domain_names() -> None:
    assert domain_name("mx.example.", "_25", "_tcp").to_text() == "_25._tcp.mx.example."
    assert domain_name("münchen.example").to_text() == "xn--mnchen-3ya.example."


def test_without_the_library_it_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dns.asyncquery", None)
    with pytest.raises(ImportError):
        Names(Resolver())


async def test_addresses(authority: Authority) -> None:
    authority.put(HOST, "A", "192.0.2.1", "192.0.2.2")
    names = Names(authority.resolver)
    assert sorted(await names.addresses(domain_name(HOST))) == ["192.0.2.1", "192.0.2.2"]
    authority.put(HOST, "AAAA", "2001:db8::1")
    assert (await names.addresses(domain_name(HOST)))[0] == "2001:db8::1"
    with pytest.raises(ResolvingError, match="has no address"):
        await names.addresses(domain_name("nobody.example"))


async def test_one_family_of_addresses_is_enough(authority: Authority) -> None:
    """There are servers of names that fail when asked for the other."""
    authority.put(HOST, "A", "192.0.2.1")
    authority.failing = ("AAAA",)
    names = Names(authority.resolver)
    assert await names.addresses(domain_name(HOST)) == ["192.0.2.1"]
    authority.failing = ("AAAA", "A")
    with pytest.raises(ResolvingError, match="SERVFAIL"):
        await names.addresses(domain_name(HOST))


async def test_strings_of_a_record_come_as_octets(authority: Authority) -> None:
    authority.put(TXT_NAME, "TXT", '"v=STSv1; " "id=1;"', '"other"')
    answer = await Names(authority.resolver).ask(domain_name(TXT_NAME), "TXT")
    assert sorted(b"".join(record.strings) for record in answer.records) == [b"other", b"v=STSv1; id=1;"]
