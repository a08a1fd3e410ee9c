"""What a server's certificate must fit: valid, missing, wrong, expired, bogus, unreachable, for DANE and for MTA-STS.

DNS and HTTPS are real, on the loopback. Where time passes, it is a clock that stands still until the test moves it.
"""

import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import pytest
import structlog
import trio
import trio.testing
import trustme

from smtpproxy.net import resolving
from smtpproxy.net.resolving import Resolver
from smtpproxy.net.trust import AGAIN, CHECK, LONGEST, MISSING, PATIENCE, REFETCH, Knowledge, Trust, TrustError
from smtpproxy.tls.dane import TLSA
from smtpproxy.tls.mtasts import Mode, Policy
from smtpproxy.tls.verdict import (
    DANE_REQUIRED,
    DNSSEC_INVALID,
    FAILED,
    STS_FETCH,
    STS_INVALID,
    STS_WEBPKI,
    TLSA_INVALID,
)
from tests.net.authority_rig import (
    DEADLINE,
    DOMAIN,
    HOST,
    POLICY,
    POLICY_HOST,
    TLSA_NAME,
    TXT_NAME,
    Authority,
    PolicyServer,
    ask,
    http,
    known,
    running,
)

CA = trustme.CA()
RECORD = "3 1 1 " + "ab" * 32
ONE = TLSA(3, 1, 1, b"\xab" * 32)
OTHER = "3 1 1 " + "cd" * 32
UNUSABLE = "1 1 1 " + "ab" * 32
LIVE = Policy(Mode.ENFORCE, ("mx.example.com", "*.example.net"), 86_400)


@pytest.fixture
async def authority() -> AsyncIterator[Authority]:
    """Who knows of both: a server's TLSA record, a domain's policy."""
    made = Authority()
    made.put(TLSA_NAME, "TLSA", RECORD)
    made.put(TXT_NAME, "TXT", '"v=STSv1; id=1;"')
    made.put(POLICY_HOST, "A", "127.0.0.1")
    async with running(made):
        yield made


@pytest.fixture
async def server() -> AsyncIterator[PolicyServer]:
    made = PolicyServer(CA)
    async with running(made):
        yield made


@pytest.fixture
def sts(authority: Authority, server: PolicyServer, tmp_path: Path) -> Trust:
    """Trust in the domain's policy."""
    CA.cert_pem.write_to_path(tmp_path / "roots.pem")
    return Trust(
        "mta-sts",
        HOST,
        25,
        DOMAIN,
        authority.resolver,
        clock=trio.current_time,
        https_port=server.port,
        roots=tmp_path / "roots.pem",
    )


@pytest.fixture
def dane(authority: Authority) -> Trust:
    """Trust in the server's TLSA records."""
    return Trust("dane", HOST, 25, "", authority.resolver, clock=trio.current_time)


async def learnt(trust: Trust) -> Knowledge:
    """What it comes to know first."""
    with trio.fail_after(DEADLINE):
        async with running(trust):
            return await known(trust)


# ------------------------------------------------------------------------------------------------- DANE


async def test_dane_valid(dane: Trust, authority: Authority) -> None:
    assert await learnt(dane) == Knowledge((ONE,))
    assert authority.asked == [("udp", TLSA_NAME, "TLSA")]


async def test_dane_usable_records_only(dane: Trust, authority: Authority) -> None:
    authority.put(TLSA_NAME, "TLSA", UNUSABLE, RECORD)
    assert await learnt(dane) == Knowledge((ONE,))


def _bogus(authority: Authority) -> None:
    authority.rcode = dns.rcode.SERVFAIL
    authority.extended = dns.edns.EDECode.DNSSEC_BOGUS


def _unsigned(authority: Authority) -> None:
    authority.ad = False


def _no_name(authority: Authority) -> None:
    authority.records.clear()


def _no_record(authority: Authority) -> None:
    authority.put(TLSA_NAME, "TXT", '"x"')
    del authority.records[TLSA_NAME, "TLSA"]


def _unusable(authority: Authority) -> None:
    authority.put(TLSA_NAME, "TLSA", UNUSABLE, "3 9 1 " + "ab" * 32, "3 0 0 abcd")


def _silent(authority: Authority) -> None:
    authority.silent = True


def _broken(authority: Authority) -> None:
    def cut(query: dns.message.Message) -> bytes:
        response = dns.message.make_response(query)
        response.flags |= dns.flags.TC
        return response.to_wire() if authority.asked[-1][0] == "udp" else b"\x00" * 11

    authority.answer = cut


def _malformed(authority: Authority) -> None:
    """A digest of two octets: the library refuses the whole answer."""

    def answer(query: dns.message.Message) -> bytes:
        response = dns.message.make_response(query)
        response.flags |= dns.flags.AD
        data = dns.rdata.GenericRdata(dns.rdataclass.IN, dns.rdatatype.TLSA, b"\x03\x01\x01\xab\xcd")
        response.answer.append(dns.rrset.from_rdata(f"{TLSA_NAME}.", 300, data))
        return response.to_wire()

    authority.answer = answer


@pytest.mark.parametrize(
    ("change", "result", "why"),
    [
        (_no_name, DANE_REQUIRED, f"there is no TLSA record at {TLSA_NAME}"),
        (_no_record, DANE_REQUIRED, f"there is no TLSA record at {TLSA_NAME}"),
        (_unsigned, DANE_REQUIRED, f"the TLSA records at {TLSA_NAME} are not signed"),
        (_unusable, TLSA_INVALID, f"no TLSA record at {TLSA_NAME} is usable"),
        (_bogus, DNSSEC_INVALID, "SERVFAIL (DNSSEC_BOGUS)"),
        (_silent, DNSSEC_INVALID, "did not answer"),
        (_broken, DNSSEC_INVALID, "did not answer"),
        (_malformed, DNSSEC_INVALID, "length inconsistent with matching type"),
    ],
)
async def test_dane_not_to_be_had(
    dane: Trust,
    authority: Authority,
    change: Callable[[Authority], None],
    result: str,
    why: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Missing, unsigned, bogus, unreachable, wrong: no records, and a name for it. There is nothing to fall back on."""
    monkeypatch.setattr(resolving, "ANSWER", 0.05)
    change(authority)
    with structlog.testing.capture_logs() as log:
        knowledge = await learnt(dane)
    assert (knowledge.records, knowledge.policy, knowledge.result) == ((), None, result)
    assert why in knowledge.why
    assert [(line["log_level"], line["result"]) for line in log] == [("warning", result)]
    authority.speak()


async def test_dane_with_a_resolver_whose_word_does_not_count() -> None:
    knowledge = await learnt(Trust("dane", HOST, 25, "", Resolver((("192.0.2.1", 53),))))
    assert knowledge.result == DNSSEC_INVALID
    assert "no resolver's DNSSEC counts" in knowledge.why


async def test_dane_at_another_port(authority: Authority) -> None:
    authority.put(f"_465._tcp.{HOST}", "TLSA", OTHER)
    knowledge = await learnt(Trust("dane", HOST, 465, "", authority.resolver))
    assert knowledge.records == (TLSA(3, 1, 1, b"\xcd" * 32),)


# ------------------------------------------------------------------------------------------------- asking and time


async def test_known_at_once_until_the_ttl_ends(
    dane: Trust, authority: Authority, mock_clock: trio.testing.MockClock
) -> None:
    async with running(dane):
        assert (await known(dane)).records == (ONE,)
        mock_clock.jump(299)
        assert ask(dane) == [Knowledge((ONE,))]
        authority.silent = True
        mock_clock.jump(2)
        await authority.questions(2)
        assert ask(dane) == []
        authority.put(TLSA_NAME, "TLSA", OTHER)
        authority.speak()
        assert (await known(dane)).records == (TLSA(3, 1, 1, b"\xcd" * 32),)
    assert len(authority.asked) == 2


async def test_records_do_not_outlive_their_ttl(
    dane: Trust, authority: Authority, mock_clock: trio.testing.MockClock
) -> None:
    """A resolver that fails then is a failure: who changed a key at fault must be able to take it back."""
    async with running(dane):
        assert (await known(dane)).records == (ONE,)
        _bogus(authority)
        mock_clock.jump(301)
        await authority.questions(2)
        knowledge = await known(dane)
        assert (knowledge.records, knowledge.result) == ((), DNSSEC_INVALID)
        authority.rcode = dns.rcode.NOERROR
        authority.extended = None
        mock_clock.jump(AGAIN)
        await authority.questions(3)
        assert (await known(dane)).records == (ONE,)


@pytest.mark.parametrize(
    ("ttl", "there", "keep"),
    [
        (0, True, 1.0),
        (60, True, 60.0),
        (2**31 - 1, True, LONGEST),
        (0, False, 1.0),
        (60, False, 60.0),
        (2**31 - 1, False, MISSING),
    ],
)
async def test_how_long_an_answer_is_kept(
    dane: Trust, authority: Authority, mock_clock: trio.testing.MockClock, ttl: int, there: bool, keep: float
) -> None:
    """Not for ever and not for no time, whatever the TTL; that there is nothing, for less."""
    authority.ttl = ttl
    if not there:
        authority.records.clear()
    async with running(dane):
        first = await known(dane)
        mock_clock.jump(keep - 0.5)
        assert ask(dane) == [first]
        assert len(authority.asked) == 1
        mock_clock.jump(0.5)
        await authority.questions(2)


async def test_many_who_wait_make_one_question(dane: Trust, authority: Authority) -> None:
    authority.silent = True
    with trio.fail_after(DEADLINE):
        async with running(dane):
            await authority.questions(1)
            told: list[Knowledge] = []
            for _ in range(100):
                dane.ask(told.append)
            assert told == []
            authority.speak()
            await known(dane)
            assert told == [Knowledge((ONE,))] * 100
    assert len(authority.asked) == 1


async def test_who_waits_too_long_is_told_so(
    dane: Trust, authority: Authority, mock_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each from when it asked; who has more time may still get the answer."""
    monkeypatch.setattr(resolving, "ANSWER", 100.0)
    monkeypatch.setattr(resolving, "QUESTION", 100.0)
    authority.silent = True
    async with running(dane) as nursery:
        await authority.questions(1)
        results: list[Knowledge] = []

        async def wait() -> None:
            results.append(await known(dane))

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(PATIENCE / 2)
        later = ask(dane)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(PATIENCE / 2)
        await trio.testing.wait_all_tasks_blocked()
        assert [(one.result, one.why) for one in results] == [(DNSSEC_INVALID, "no answer within 20 seconds")]
        assert later == []
        authority.speak()
        assert (await known(dane)).records == (ONE,)
        assert later == [Knowledge((ONE,))]
        assert len(results) == 1


async def test_who_asks_before_it_runs_is_told_when_it_does(dane: Trust) -> None:
    early = ask(dane)
    assert early == []
    assert await learnt(dane) == Knowledge((ONE,))
    assert early == [Knowledge((ONE,))]


async def test_who_asks_when_it_stops_is_told_so(dane: Trust, sts: Trust, authority: Authority) -> None:
    authority.silent = True
    with trio.fail_after(DEADLINE):
        async with running(dane, sts):
            await authority.questions(2)
            waiting = [ask(dane), ask(sts)]
    waiting += [ask(dane), ask(sts)]
    assert [[one.result for one in told] for told in waiting] == [[DNSSEC_INVALID], [STS_FETCH]] * 2
    assert all(told[0].why == "the proxy stops" for told in waiting)


async def test_a_session_that_fails_is_no_matter_of_the_next(dane: Trust) -> None:
    def fail(_: Knowledge) -> None:
        raise RuntimeError("a bug of ours")

    dane.ask(fail)
    with structlog.testing.capture_logs() as log:
        assert await learnt(dane) == Knowledge((ONE,))
    assert [line["log_level"] for line in log] == ["error"]


async def test_a_bug_of_ours_gives_no_trust(dane: Trust, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr("smtpproxy.net.trust.usable", fail)
    with structlog.testing.capture_logs() as log:
        knowledge = await learnt(dane)
    assert knowledge == Knowledge(result=FAILED, why="internal error: RuntimeError")
    assert log[0]["log_level"] == "error"


async def test_the_log_says_once_what_stays_so(
    dane: Trust, authority: Authority, mock_clock: trio.testing.MockClock
) -> None:
    _bogus(authority)
    with structlog.testing.capture_logs() as log:
        async with running(dane):
            for count in range(1, 4):
                await authority.questions(count)
                await known(dane)
                mock_clock.jump(AGAIN)
    assert len([line for line in log if line["log_level"] == "warning"]) == 1


# ------------------------------------------------------------------------------------------------- MTA-STS


async def test_sts_valid(sts: Trust, authority: Authority, server: PolicyServer) -> None:
    knowledge = await learnt(sts)
    assert knowledge == Knowledge(policy=LIVE)
    assert knowledge.policy is not None
    assert knowledge.policy.matches(HOST)
    assert {kind for _, _, kind in authority.asked} == {"TXT", "A", "AAAA"}
    assert len(server.requests) == 1


@pytest.mark.parametrize("mode", list(Mode))
async def test_sts_modes(sts: Trust, server: PolicyServer, mode: Mode) -> None:
    server.answer = http(POLICY.replace(b"enforce", mode.value.encode()))
    knowledge = await learnt(sts)
    assert knowledge.policy is not None
    assert knowledge.policy.mode is mode


async def test_sts_needs_no_dnssec(sts: Trust, authority: Authority) -> None:
    authority.ad = False
    assert (await learnt(sts)).policy == LIVE


@pytest.mark.parametrize("records", [(), ('"v=spf1 -all"',)])
async def test_sts_without_a_record(
    sts: Trust, authority: Authority, server: PolicyServer, records: tuple[str, ...]
) -> None:
    """The domain has no MTA-STS: no policy, and nothing has failed."""
    authority.records.pop((TXT_NAME, "TXT"))
    if records:
        authority.put(TXT_NAME, "TXT", *records)
    assert await learnt(sts) == Knowledge(why="example.com: no MTA-STS record")
    assert not server.requests


@pytest.mark.parametrize(
    ("records", "why"),
    [(('"v=STSv1; id=1"', '"v=STSv1; id=2"'), "2 MTA-STS records"), (('"v=STSv1; id=not-one"',), "id is 'not-one'")],
)
async def test_sts_with_a_wrong_record(
    sts: Trust, authority: Authority, server: PolicyServer, records: tuple[str, ...], why: str
) -> None:
    authority.put(TXT_NAME, "TXT", *records)
    knowledge = await learnt(sts)
    assert (knowledge.policy, knowledge.result) == (None, STS_INVALID)
    assert why in knowledge.why
    assert not server.requests


async def test_sts_with_a_wrong_policy(sts: Trust, server: PolicyServer) -> None:
    server.answer = http(POLICY.replace(b"enforce", b"perhaps"))
    knowledge = await learnt(sts)
    assert knowledge == Knowledge(result=STS_INVALID, why="example.com: the policy's mode is 'perhaps'")


async def test_sts_with_a_certificate_for_another_name(sts: Trust, server: PolicyServer) -> None:
    server.show(CA, "www.example.com")
    knowledge = await learnt(sts)
    assert (knowledge.policy, knowledge.result) == (None, STS_WEBPKI)


async def test_sts_with_a_redirect(sts: Trust, server: PolicyServer) -> None:
    server.answer = http(b"", b"301 Moved", b"text/plain", b"Location: https://mta-sts.example.com/policy.txt")
    knowledge = await learnt(sts)
    assert (knowledge.policy, knowledge.result) == (None, STS_FETCH)
    assert len(server.requests) == 1


async def test_sts_where_the_dns_fails(sts: Trust, authority: Authority) -> None:
    _bogus(authority)
    knowledge = await learnt(sts)
    assert (knowledge.policy, knowledge.result) == (None, STS_FETCH)
    assert "SERVFAIL" in knowledge.why


async def test_sts_where_the_policys_server_has_no_address(sts: Trust, authority: Authority) -> None:
    del authority.records[POLICY_HOST, "A"]
    knowledge = await learnt(sts)
    assert (knowledge.policy, knowledge.result) == (None, STS_FETCH)
    assert "has no address" in knowledge.why


async def test_sts_where_nobody_is_at_the_address(sts: Trust, authority: Authority) -> None:
    authority.put(POLICY_HOST, "A", "127.0.0.9")
    knowledge = await learnt(sts)
    assert (knowledge.policy, knowledge.result) == (None, STS_FETCH)
    assert "can't be reached" in knowledge.why


async def test_sts_looks_at_the_id_and_fetches_when_it_is_another(
    sts: Trust, authority: Authority, server: PolicyServer, mock_clock: trio.testing.MockClock
) -> None:
    async with running(sts):
        assert (await known(sts)).policy == LIVE
        looked = _looks(authority)
        mock_clock.jump(CHECK)
        assert ask(sts) == [Knowledge(policy=LIVE)]  # it holds while the id is looked at
        await authority.questions(len(authority.asked) + 1)
        assert _looks(authority) == looked + 1
        await trio.testing.wait_all_tasks_blocked()
        assert len(server.requests) == 1
        authority.put(TXT_NAME, "TXT", '"v=STSv1; id=2"')
        server.answer = http(POLICY.replace(b"enforce", b"testing"))
        mock_clock.jump(CHECK)
        await server.fetches(2)
        assert await _until(sts, lambda told: told.policy != LIVE) == Knowledge(policy=LIVE._replace(mode=Mode.TESTING))


async def test_sts_keeps_a_policy_until_it_expires(
    sts: Trust, authority: Authority, server: PolicyServer, mock_clock: trio.testing.MockClock
) -> None:
    """RFC 8461 §5.1: a record that vanished or a server that fails must not open what the policy closed."""
    async with running(sts):
        assert (await known(sts)).policy == LIVE
        del authority.records[TXT_NAME, "TXT"]
        mock_clock.jump(CHECK)
        kept = await _until(sts, lambda told: told.why != "")
        assert kept == Knowledge(policy=LIVE, why="example.com: no MTA-STS record")
        authority.put(TXT_NAME, "TXT", '"v=STSv1; id=2"')
        server.answer = http(b"", b"500 Out of order")
        mock_clock.jump(CHECK)
        kept = await _until(sts, lambda told: "HTTP 500" in told.why)
        assert (kept.policy, kept.result) == (LIVE, "")
        _bogus(authority)
        mock_clock.jump(CHECK)
        kept = await _until(sts, lambda told: "SERVFAIL" in told.why)
        assert (kept.policy, kept.result) == (LIVE, "")
        mock_clock.jump(LIVE.max_age)
        gone = await known(sts)
        assert (gone.policy, gone.result) == (None, STS_FETCH)


async def test_sts_fetches_once_a_day_though_the_id_is_the_same(
    sts: Trust, server: PolicyServer, mock_clock: trio.testing.MockClock
) -> None:
    """So that it does not expire (RFC 8461 §3.3)."""
    server.answer = http(POLICY.replace(b"86400", b"604800"))
    async with running(sts):
        await known(sts)
        mock_clock.jump(REFETCH - 1)
        mock_clock.jump(2)
        await server.fetches(2)


async def test_sts_a_policy_of_no_age_is_good_until_the_next_look(
    sts: Trust, server: PolicyServer, mock_clock: trio.testing.MockClock
) -> None:
    """Else each session would fetch it."""
    server.answer = http(POLICY.replace(b"86400", b"0"))
    async with running(sts):
        policy = (await known(sts)).policy
        assert policy == LIVE._replace(max_age=0)
        mock_clock.jump(CHECK - 1)
        assert ask(sts) == [Knowledge(policy=policy)]
        assert len(server.requests) == 1
        mock_clock.jump(1)
        await server.fetches(2)


async def test_sts_a_policy_that_can_not_be_fetched_is_tried_again_in_five_minutes(
    sts: Trust, authority: Authority, server: PolicyServer, mock_clock: trio.testing.MockClock
) -> None:
    server.answer = http(b"", b"503 Later")
    async with running(sts):
        failed = await known(sts)
        assert failed.result == STS_FETCH
        mock_clock.jump(CHECK - 1)
        assert ask(sts) == [failed]
        assert len(server.requests) == 1
        server.answer = http(POLICY)
        mock_clock.jump(1)
        assert (await known(sts)).policy == LIVE
        assert len(server.requests) == 2


async def test_sts_a_slow_server_keeps_no_session_waiting(
    sts: Trust, server: PolicyServer, mock_clock: trio.testing.MockClock
) -> None:
    """Sixty seconds are the server's; a session has twenty."""
    server.held = True
    async with running(sts):
        await server.fetches(1)
        waiting = ask(sts)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(PATIENCE)
        await trio.testing.wait_all_tasks_blocked()
        assert waiting == [Knowledge(result=STS_FETCH, why="no answer within 20 seconds")]
        server.release()
        assert (await known(sts)).policy == LIVE


def _looks(authority: Authority) -> int:
    return len([kind for _, _, kind in authority.asked if kind == "TXT"])


async def _until(trust: Trust, so: Callable[[Knowledge], bool]) -> Knowledge:
    """What it says once it says so: while a look is under way, the old holds."""
    while True:
        knowledge = await known(trust)
        if so(knowledge):
            return knowledge
        await trio.lowlevel.checkpoint()


# ------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "", "a..b"])
def test_dane_needs_a_name(host: str) -> None:
    with pytest.raises(TrustError, match='verify = "dane": '):
        Trust("dane", host, 25, "", Resolver())


@pytest.mark.parametrize("domain", ["", "192.0.2.1", "a..b"])
def test_sts_needs_a_domain(domain: str) -> None:
    with pytest.raises(TrustError, match='verify = "mta-sts": '):
        Trust("mta-sts", HOST, 25, domain, Resolver())


def test_roots_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(TrustError, match="No such file"):
        Trust("mta-sts", HOST, 25, DOMAIN, Resolver(), roots=tmp_path / "none.pem")


def test_a_resolver_by_name() -> None:
    with pytest.raises(TrustError, match="resolver"):
        Trust("dane", HOST, 25, "", Resolver((("resolver.example", 53),)))


@pytest.mark.parametrize(
    ("kind", "library"), [("dane", "dns.asyncquery"), ("mta-sts", "dns.asyncquery"), ("mta-sts", "h11")]
)
def test_an_extra_that_is_missing_is_named(kind: Any, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(TrustError) as raised:
        Trust(kind, HOST, 25, DOMAIN, Resolver())
    assert f'pip install "smtpproxy[{kind}]"' in str(raised.value)
