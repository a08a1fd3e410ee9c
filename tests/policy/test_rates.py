"""What rules count: rates and locks, across forks; and the bookkeeping of limits."""

import math
import os
import random
import warnings
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from smtpproxy.policy.fields import FIELDS, View
from smtpproxy.policy.rates import FIELD_OF, SLOTS, WAYS, Counters, exceeded, lock_key, locked, network_of, owner
from smtpproxy.policy.rules import Answer, Limit
from smtpproxy.session.session import Session
from smtpproxy.session.state import Facts
from smtpproxy.session.verdicts import PassAll
from smtpproxy.smtp.commands import Command, parse_command
from smtpproxy.smtp.replies import own

ANSWER = Answer(own("451 4.7.1 Too much"))
HOUR = 3600.0


@pytest.fixture
def counters() -> Counters:
    return Counters(1024)


def hits(
    counters: Counters, many: int, *, key: str = "k", most: int = 10, within: float = 10.0, now: float = 0.0
) -> int:
    """How many of so many are let through."""
    return sum(not counters.hit(key, most, within, now) for _ in range(many))


def forked(many: int, task: Callable[[int], int]) -> list[int]:
    """What processes of their own come to, which begin together."""
    start, go = os.pipe()
    said, say = os.pipe()
    pids = []
    for number in range(many):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # other tests may have left threads behind
            pid = os.fork()
        if pid == 0:
            try:
                os.close(go)
                os.read(start, 1)
                os.write(say, b"%d\n" % task(number))
            finally:
                os._exit(0)
        pids.append(pid)
    os.close(go)
    for pid in pids:
        os.waitpid(pid, 0)
    os.close(say)
    with os.fdopen(said) as results:
        found = [int(line) for line in results]
    os.close(start)
    return found


# ---------------------------------------------------------------------------------------------------------------- rates


@pytest.mark.parametrize("most", [1, 2, 3, 7, 10, 100, 1000, 10_000])
@pytest.mark.parametrize("within", [1.0, 10.0, HOUR, 7 * 86_400.0])
@pytest.mark.parametrize("now", [0.0, 1.1, 12_345.678, 1e7 + 0.1])
def test_so_many_at_once_and_not_one_more(most: int, within: float, now: float) -> None:
    counters = Counters(WAYS)
    assert hits(counters, most + 5, most=most, within=within, now=now) == most


def test_what_is_used_up_comes_back_bit_by_bit(counters: Counters) -> None:
    """10 in 10 seconds: one each second, behind a full burst."""
    assert hits(counters, 20) == 10
    assert [hits(counters, 3, now=now) for now in (0.5, 1.0, 1.8, 2.0, 5.0)] == [0, 1, 0, 1, 3]
    assert hits(counters, 20, now=1000.0) == 10


@pytest.mark.parametrize("seed", range(20))
def test_no_more_than_that_in_the_long_run(counters: Counters, seed: int) -> None:
    """Whatever comes when: in no stretch of time more than a window's worth and what that time gives back."""
    chance = random.Random(seed)
    now, passed = 0.0, []
    for _ in range(500):
        now += chance.choice([0.0, 0.0, 0.01, 0.3, 1.0, 4.0])
        passed += [now] * (not counters.hit("k", 10, 10.0, now))
    assert all(
        end - start + 1e-6 >= (last - first + 1) - 10 - 0.5
        for first, start in enumerate(passed)
        for last, end in enumerate(passed[first:], first)
    )
    assert len(passed) > 10


def test_what_is_over_is_not_counted(counters: Counters) -> None:
    """Else who tries again and again would be shut out for ever."""
    hits(counters, 10)
    assert hits(counters, 1000, now=0.5) == 0
    assert hits(counters, 1, now=1.0) == 1


def test_several_at_once(counters: Counters) -> None:
    assert not counters.hit("k", 1000, 10.0, 0.0, n=900)
    assert counters.hit("k", 1000, 10.0, 0.0, n=101)
    assert not counters.hit("k", 1000, 10.0, 0.0, n=100)
    assert counters.hit("other", 1000, 10.0, 0.0, n=1001)  # never, however long one waits
    assert not counters.hit("k", 1000, 10.0, 0.0, n=0)
    assert not counters.hit("k", 0, 10.0, 0.0, n=0)
    assert counters.hit("fresh", 0, 10.0, 0.0)


def test_asking_counts_nothing(counters: Counters) -> None:
    assert not any(counters.over("k", 2, 10.0, 0.0) for _ in range(10))
    assert hits(counters, 2, most=2) == 2
    assert counters.over("k", 2, 10.0, 0.0)
    assert not counters.over("k", 2, 10.0, 5.0)
    assert not counters.over("k", 2, 10.0, 0.0, n=0)


def test_keys_do_not_know_of_each_other(counters: Counters) -> None:
    for key in ("a", "b", "", "\0", "ä", "\udc80", "a" * 10_000):
        assert hits(counters, 5, key=key, most=3) == 3


@pytest.mark.parametrize("within", [0.0, -1.0, math.nan])
def test_a_window_without_length_is_a_mistake(counters: Counters, within: float) -> None:
    with pytest.raises(ValueError, match="a window of"):
        counters.hit("k", 10, within, 0.0)
    with pytest.raises(ValueError, match="a window of"):
        counters.over("k", 10, within, 0.0)


def test_a_limit_that_was_made_smaller_is_met_within_its_own_window(counters: Counters) -> None:
    """A time further ahead than a window can't be, and is taken for a full one."""
    hits(counters, 100, most=100, within=HOUR)
    assert counters.over("k", 10, 10.0, 0.0)
    assert hits(counters, 5, within=10.0, now=0.0) == 0
    assert hits(counters, 5, within=10.0, now=3.0) == 3


def test_the_clock_of_one_worker_may_be_behind_that_of_another(counters: Counters) -> None:
    """By a turn of its loop."""
    hits(counters, 4, now=5.01)
    assert hits(counters, 20, now=5.0) == 6
    assert hits(counters, 20, now=5.01) == 0


# ---------------------------------------------------------------------------------------------------------------- locks


def test_a_lock_ends(counters: Counters) -> None:
    assert not counters.locked("k", 0.0)
    counters.lock("k", 10.0)
    assert [counters.locked("k", now) for now in (0.0, 9.9, 10.0, 11.0)] == [True, True, False, False]
    assert not counters.locked("other", 0.0)
    assert not counters.over("k", 1, 10.0, 0.0)  # it counts nothing
    counters.lock("k", 5.0)  # what is said last holds
    assert not counters.locked("k", 6.0)


def test_counting_moves_no_lock_out() -> None:
    """A flood of new keys makes room for itself among the counts alone."""
    counters = Counters(64)
    counters.lock("locked", HOUR)
    for number in range(5000):
        counters.hit(str(number), 2, HOUR, 0.0)
    assert counters.locked("locked", 1.0)


# --------------------------------------------------------------------------------------------------------------- memory


def test_memory_is_bounded_and_who_has_used_up_most_is_kept() -> None:
    """Who floods with new keys makes the newest of them forgotten, not what he has used up himself."""
    counters = Counters(1024)
    hits(counters, 10, key="flooder", within=HOUR)
    for number in range(20_000):
        counters.hit(f"new {number}", 10, HOUR, 0.0)
    assert hits(counters, 1, key="flooder", within=HOUR) == 0


def test_a_thousand_keys_are_counted_beside_each_other() -> None:
    counters = Counters(8192)
    assert [hits(counters, 3, key=str(number), most=2) for number in range(1000)] == [2] * 1000


def test_places_that_are_over_are_taken_again() -> None:
    counters = Counters(WAYS)
    for now in range(100):
        for way in range(WAYS):
            assert not counters.hit(f"{now} {way}", 1, 1.0, float(now))
        assert all(counters.over(f"{now} {way}", 1, 1.0, float(now)) for way in range(WAYS))


def test_at_least_one_bucket() -> None:
    with pytest.raises(ValueError, match="7 slots are less than 8"):
        Counters(WAYS - 1)
    assert SLOTS % WAYS == 0


def test_nobody_can_know_what_meets() -> None:
    """The same keys fall into other buckets in other memories."""
    places = {tuple(Counters(1024)._place(str(n), b"rate", 0, 128)[0] for n in range(10)) for _ in range(20)}
    assert len(places) == 20


# ---------------------------------------------------------------------------------------------------------- all workers


def test_workers_count_together() -> None:
    """One after the other: not one more than the limit."""
    counters = Counters(1024)
    passed = [forked(1, lambda _: hits(counters, 4))[0] for _ in range(4)]
    assert passed == [4, 4, 2, 0]
    assert hits(counters, 1) == 0


def test_workers_lock_together() -> None:
    counters = Counters(1024)

    def lock(_: int) -> int:
        counters.lock("k", 10.0)
        return 0

    forked(1, lock)
    assert counters.locked("k", 5.0)


def test_workers_at_once_let_hardly_more_through() -> None:
    """No locks: what they lose is the price of never waiting, and bounded. Here they do nothing but count one key."""
    counters, most = Counters(1024), 20_000
    passed = sum(forked(4, lambda _: hits(counters, most, most=most, within=1e6)))
    assert most <= passed <= 2 * most


def test_workers_at_once_do_not_disturb_each_other() -> None:
    """Keys of their own in the same memory are counted exactly, but where two new ones meet in one place."""
    counters = Counters(65_536)
    passed = forked(4, lambda number: sum(hits(counters, 6, key=f"{number} {k}", most=5) for k in range(1000)))
    assert all(5000 <= many <= 5010 for many in passed)


# --------------------------------------------------------------------------------------------------------------- limits


class World:
    """Sessions with a clock."""

    def __init__(self) -> None:
        self.now = 100.0
        self.counters = Counters(1024)

    def session(self, client: str = "192.0.2.1", identity: str = "") -> Session:
        session = Session(
            judge=PassAll(), record=lambda record: None, clock=lambda: self.now, facts=Facts(client=client)
        )
        session.identity = identity
        session.authenticated = bool(identity)
        return session

    def over(self, limit: Limit, session: Session, line: bytes = b"NOOP", **seen: Any) -> bool:
        """One more, of this command."""
        return exceeded(limit, "guard", View(session, command=command(line), **seen), self.counters)

    def passed(self, limit: Limit, sessions: Iterator[Session] | list[Session], line: bytes = b"NOOP") -> int:
        """How many of these are let through."""
        return sum(not self.over(limit, session, line) for session in sessions)


@pytest.fixture
def world() -> World:
    return World()


def command(line: bytes) -> Command:
    found = parse_command(line + b"\r\n")
    assert isinstance(found, Command), found
    return found


def limit(per: str, most: int = 3, *, within: float = HOUR, lock: float = 0.0, what: str = "commands") -> Limit:
    return Limit(what, most, per, within, lock, ANSWER)


MAILS = [b"MAIL FROM:<" + path + b">" for path in (b"a@x.example", b"A@X.example", b"b@x.example", b"")]
RCPTS = [b"RCPT TO:<" + path + b">" for path in (b"a@x.example", b"A@X.example", b"b@x.example", b"Postmaster")]


@pytest.mark.parametrize(
    ("per", "lines", "owners"),
    [
        ("sender", MAILS, ["a@x.example", "a@x.example", "b@x.example", ""]),
        ("sender-domain", MAILS, ["x.example", "x.example", "x.example", ""]),
        ("recipient", RCPTS, ["a@x.example", "a@x.example", "b@x.example", "postmaster"]),
        ("recipient-domain", RCPTS, ["x.example", "x.example", "x.example", ""]),
    ],
)
def test_whose_it_is_by_the_envelope(world: World, per: str, lines: list[bytes], owners: list[str]) -> None:
    """However it is written; the null reverse-path, and an address without a domain, are somebody too."""
    views = [View(world.session(), command=command(line)) for line in lines]
    assert [owner(per, view).casefold() for view in views] == owners
    for line, name in zip(lines, owners, strict=True):
        world.counters = Counters(1024)
        assert world.passed(limit(per), [world.session() for _ in range(5)], line) == 3
        others = [other for other, whose in zip(lines, owners, strict=True) if whose != name]
        same = [other for other, whose in zip(lines, owners, strict=True) if whose == name]
        assert not any(world.over(limit(per), world.session(), other) for other in others)
        assert all(world.over(limit(per), world.session(), other) for other in same)


@pytest.mark.parametrize(
    ("per", "same", "other"),
    [
        ("client", "192.0.2.1", "192.0.2.2"),
        ("network", "192.0.2.254", "192.0.3.1"),
        ("all", "2001:db8::1", None),
    ],
)
def test_whose_it_is_by_the_client(world: World, per: str, same: str, other: str | None) -> None:
    assert world.passed(limit(per), [world.session() for _ in range(5)]) == 3
    assert world.over(limit(per), world.session(same))
    if other is not None:
        assert not world.over(limit(per), world.session(other))


def test_whose_it_is_by_the_log_in(world: World) -> None:
    """All who have not logged in are one."""
    assert world.passed(limit("identity"), [world.session(identity="bob") for _ in range(5)]) == 3
    assert world.over(limit("identity"), world.session(identity="Bob"))
    assert not world.over(limit("identity"), world.session(identity="eve"))
    assert world.passed(limit("identity"), [world.session(f"192.0.2.{n}") for n in range(5)]) == 3


def test_every_per_has_its_field_and_none_else(world: World) -> None:
    assert set(FIELD_OF.values()) - {""} <= set(FIELDS)
    with pytest.raises(KeyError):
        owner("nobody", View(world.session()))


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.77", "192.0.2.0/24"),
        ("2001:db8:0:1:2:3:4:5", "2001:db8:0:1::/64"),
        ("2001:DB8:0:1::", "2001:db8:0:1::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:192.0.2.77", "192.0.2.0/24"),
        ("192.0.2.0/24", "192.0.2.0/24"),
        ("", ""),
        ("mx.example", "mx.example"),
    ],
)
def test_networks(address: str, network: str) -> None:
    assert network_of(address) == network


def test_a_limit_gives_back_with_time(world: World) -> None:
    assert world.passed(limit("client", within=3.0), [world.session() for _ in range(5)]) == 3
    world.now += 1.0
    assert world.passed(limit("client", within=3.0), [world.session() for _ in range(5)]) == 1


def test_rules_count_for_themselves(world: World) -> None:
    session = world.session()
    assert world.passed(limit("client"), [session] * 5) == 3
    view = View(session, command=command(b"NOOP"))
    assert not exceeded(limit("client"), "another", view, world.counters)


# ------------------------------------------------------------------------------------------------- within a session


def test_within_no_time_is_within_the_session(world: World) -> None:
    one, other = world.session(), world.session()
    assert world.passed(limit("session", within=0), [one] * 5) == 3
    world.now += 1e6
    assert world.over(limit("session", within=0), one)
    assert world.passed(limit("session", within=0), [other] * 5) == 3
    assert one.counts == other.counts == {"guard\0": 3}


def test_a_session_has_rates_of_its_own(world: World) -> None:
    """As those of all, and the shared memory is not asked."""
    one, other = world.session(), world.session()
    counted = limit("session", within=3.0)
    for session in (one, other):
        assert world.passed(counted, [session] * 5) == 3
    world.now += 1.0
    assert world.passed(counted, [one] * 5) == 1
    world.now += 100.0
    assert world.passed(counted, [one] * 5) == 3
    assert list(one.counts) == ["guard\0"]


def test_a_session_counts_as_all_together_do(world: World) -> None:
    chance = random.Random(1)
    session = world.session()
    for _ in range(500):
        world.now += chance.choice([0.0, 0.01, 0.3, 1.0, 4.0])
        alone = world.over(limit("session", 10, within=10.0), session)
        assert alone is world.counters.hit("the same", 10, 10.0, world.now)


def content(size: int) -> Any:
    """A content of so many octets, as far as it is looked at here."""
    return SimpleNamespace(size=size)


def test_octets_within_no_time_are_those_of_one_mail(world: World) -> None:
    session = world.session()
    counted = limit("session", 1000, within=0, what="octets")
    assert [world.over(counted, session, content=content(size)) for size in (1000, 1001, 1000, 0)] == [
        False,
        True,
        False,
        False,
    ]
    assert session.counts == {}


def test_octets_within_some_time_add_up(world: World) -> None:
    counted = limit("client", 1000, what="octets")
    sizes = [600, 500, 400, 1, 0]
    assert [world.over(counted, world.session(), content=content(n)) for n in sizes] == [
        False,
        True,
        False,
        True,
        False,
    ]


# ---------------------------------------------------------------------------------------------------------------- locks


def test_once_exceeded_it_stays_exceeded_until_the_lock_ends(world: World) -> None:
    counted = limit("client", within=3.0, lock=60.0)
    assert world.passed(counted, [world.session() for _ in range(4)]) == 3
    world.now += 59.0  # long since there would be room again
    assert world.passed(counted, [world.session() for _ in range(4)]) == 0
    assert not world.over(counted, world.session("192.0.2.2"))
    world.now += 1.0
    assert world.passed(counted, [world.session() for _ in range(4)]) == 3


def test_a_lock_is_not_drawn_out_by_who_goes_on(world: World) -> None:
    counted = limit("client", within=3.0, lock=60.0)
    world.passed(counted, [world.session() for _ in range(4)])
    for _ in range(60):
        assert world.over(counted, world.session())
        world.now += 1.0
    assert not world.over(counted, world.session())


@pytest.mark.parametrize("within", [0.0, 3.0])
def test_a_session_locks_itself(world: World, within: float) -> None:
    one, other = world.session(), world.session()
    counted = limit("session", within=within, lock=60.0)
    assert world.passed(counted, [one] * 4) == 3
    world.now += 59.0
    assert world.over(counted, one)
    assert not world.over(counted, other)
    world.now += 1.0
    assert world.over(counted, one) is (within == 0.0)  # that count gives nothing back


@pytest.mark.parametrize(
    ("per", "line", "locks", "free"),
    [
        ("client", b"NOOP", ["192.0.2.1"], ["192.0.2.2", "", "192.0.2.0/24"]),
        ("network", b"NOOP", ["192.0.2.1", "192.0.2.200", "192.0.2.0/24"], ["192.0.3.1", ""]),
        ("sender", b"MAIL FROM:<a@X.example>", ["a@x.example", "A@x.EXAMPLE"], ["x.example", "b@x.example", ""]),
        ("sender-domain", b"MAIL FROM:<a@X.example>", ["x.example", "X.EXAMPLE"], ["a@x.example", ""]),
        ("recipient", b"RCPT TO:<a@X.example>", ["a@x.example"], [""]),
        ("recipient-domain", b"RCPT TO:<a@X.example>", ["x.example"], [""]),
        ("identity", b"NOOP", ["bob", "BOB"], ["eve", ""]),
        ("all", b"NOOP", [""], ["192.0.2.1"]),
    ],
)
def test_conditions_are_told_who_is_locked(
    world: World, per: str, line: bytes, locks: list[str], free: list[str]
) -> None:
    counted = limit(per, lock=60.0)

    def who_is(values: list[str]) -> set[bool]:
        return {locked(world.counters, "guard", value, world.now) for value in values}

    assert who_is(locks + free) == {False}
    assert world.passed(counted, [world.session(identity="bob") for _ in range(4)], line) == 3
    assert (who_is(locks), who_is(free)) == ({True}, {False})
    assert not locked(world.counters, "another", locks[0], world.now)
    world.now += 60.0
    assert who_is(locks) == {False}


def test_a_limit_without_a_lock_locks_nobody(world: World) -> None:
    assert world.passed(limit("client"), [world.session() for _ in range(5)]) == 3
    assert not locked(world.counters, "guard", "192.0.2.1", world.now)
    assert not world.counters.locked(lock_key("guard", "192.0.2.1"), world.now)
