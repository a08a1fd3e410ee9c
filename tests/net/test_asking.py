"""What sessions ask of the outside: everybody is answered once and in time, and nothing of it is left behind."""

import io
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio

from smtpproxy.net import asking as module
from smtpproxy.net.asking import Asking, tidy
from smtpproxy.net.reactor import Reactor
from smtpproxy.quarantine import store as storing
from smtpproxy.quarantine.folders import Folders
from smtpproxy.quarantine.store import Bounds, NotWanted, Store
from smtpproxy.session.effects import Ask
from smtpproxy.session.session import Session
from smtpproxy.session.verdicts import (
    PASS,
    Action,
    Call,
    Depth,
    Failed,
    Keep,
    PassAll,
    Question,
    Verdict,
    Wait,
)
from smtpproxy.smtp.replies import own
from tests.net.rig import DEADLINE, Clock, End, Rig, rig, settled, until
from tests.quarantine.kept import CONTENT, EMPTY, FACTS, ONE, Wall, keep, made, record, tree

LATE = Failed("it was not answered in time")


class NoRecord:
    """A record nothing is in."""

    unsettled = False

    def settle(self) -> None:
        """As AuditLog."""

    def flush(self) -> bool:
        """As AuditLog."""
        return True


class FakeRelay:
    """A relay as far as it is asked from."""

    def __init__(self) -> None:
        self.queued = False
        self.done = False
        session: Any = Session(judge=PassAll(), record=lambda item: None, clock=lambda: 0.0)
        self.session = session
        self.session.decided = self._decided
        self.told: list[tuple[int, Any]] = []
        self.faults: list[Exception] = []
        self.written = 0

    def _decided(self, ticket: int, outcome: Any) -> None:
        self.told.append((ticket, outcome))

    def guard(self, act: Callable[[], None]) -> None:
        """As Relay's."""
        try:
            act()
        except Exception as error:
            self.faults.append(error)

    def read(self) -> None:
        """Nothing."""

    def write(self) -> None:
        """Its turn."""
        self.written += 1


class Bench:
    """Asking, in a reactor."""

    def __init__(self, store: Store | None = None, **bounds: Any) -> None:
        self.clock = Clock()
        self.reactor = Reactor(NoRecord(), self.clock)
        self.asking = Asking(self.reactor, store, **bounds)
        self.relay: Any = FakeRelay()
        self.tickets = 0

    def ask(self, about: Wait | Call | Keep, deadline: float = DEADLINE, relay: Any = None) -> int:
        """Ask; the ticket."""
        self.tickets += 1
        question = Question(about, deadline, lambda outcome: PASS)
        self.asking.ask("s-1", relay or self.relay, Ask(self.tickets, question))
        return self.tickets

    async def answer(self, about: Wait | Call | Keep, deadline: float = DEADLINE) -> Any:
        """Ask, and wait for what is told."""
        ticket = self.ask(about, deadline)
        await until(lambda: self.relay.told, "no answer")
        ((found, outcome),) = self.relay.told
        self.relay.told.clear()
        assert found == ticket
        return outcome


@asynccontextmanager
async def bench(store: Store | None = None, **bounds: int) -> AsyncIterator[Bench]:
    made_bench = Bench(store, **bounds)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made_bench.reactor.run)
            await nursery.start(made_bench.asking.run)
            yield made_bench
            nursery.cancel_scope.cancel()
        assert made_bench.asking.under_way == 0
        assert made_bench.relay.faults == []
    finally:
        made_bench.reactor.close()


def call(function: Callable[[], Any], *, asynchronous: bool = False) -> Call:
    return Call(function, asynchronous, "r")


def mail(content: bytes = CONTENT, **more: Any) -> Keep:
    return Keep("no-macros", "macros", io.BytesIO(content), {**FACTS, **more})


@pytest.fixture
def here(tmp_path: Path) -> Path:
    return tmp_path / "quarantine"


# ------------------------------------------------------------------------------------------------------------- waiting


async def test_a_wait_is_as_long_as_it_is(autojump_clock: trio.testing.MockClock) -> None:
    """In a reactor that is turned by hand: the kernel knows nothing of such a clock."""
    found = Bench()
    async with trio.open_nursery() as nursery:
        await nursery.start(found.asking.run)
        before = trio.current_time()
        found.ask(Wait(7.5), deadline=1)
        found.ask(Wait(0.5))
        await trio.sleep(1)
        await found.reactor.turn([])
        assert found.relay.told == [(2, None)]
        await trio.sleep(6.6)
        await found.reactor.turn([])
        assert found.relay.told == [(2, None), (1, None)]
        assert trio.current_time() - before == pytest.approx(7.6)
        nursery.cancel_scope.cancel()
    found.reactor.close()


async def test_any_number_may_wait(autojump_clock: trio.testing.MockClock) -> None:
    found = Bench(most=1)
    async with trio.open_nursery() as nursery:
        await nursery.start(found.asking.run)
        for _ in range(2000):
            found.ask(Wait(5))
        await trio.sleep(6)
        await found.reactor.turn([])
        assert [outcome for _, outcome in found.relay.told] == [None] * 2000
        nursery.cancel_scope.cancel()
    found.reactor.close()


# --------------------------------------------------------------------------------------------------------------- calls


async def test_a_function_is_called_in_a_thread() -> None:
    async with bench() as found:
        assert await found.answer(call(threading.get_ident)) != threading.get_ident()
        assert await found.answer(call(lambda: None)) is None


async def test_an_async_function_is_called_here() -> None:
    async def function() -> int:
        await trio.sleep(0)
        return threading.get_ident()

    async with bench() as found:
        assert await found.answer(call(function, asynchronous=True)) == threading.get_ident()


async def test_the_session_is_told_in_a_turn_and_its_relay_sends_in_a_later_one() -> None:
    async with bench() as found:
        written: list[int] = []
        found.relay.session.decided = lambda ticket, outcome: written.append(found.relay.written)
        found.ask(call(lambda: 1))
        assert found.relay.told == written == []
        await until(lambda: found.relay.written, "its turn does not come")
        assert written == [0]


class Odd(Exception):  # noqa: N818
    """What functions raise."""


def raising(error: BaseException) -> Callable[[], Any]:
    def function() -> Any:
        raise error

    return function


def raising_later(error: BaseException) -> Callable[[], Any]:
    async def function() -> Any:
        await trio.sleep(0)
        raise error

    return function


async def _in_a_nursery() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(raising_later(SystemExit("3")))
        await trio.sleep_forever()


@pytest.mark.parametrize(
    ("function", "asynchronous", "why"),
    [
        (raising(Odd("no\nsuch\x1b thing")), False, "Odd: no such  thing"),
        (raising_later(Odd("x" * 9999)), True, "Odd: " + "x" * 295),
        (raising(SystemExit(3)), False, "SystemExit: 3"),
        (raising_later(SystemExit(3)), True, "SystemExit: 3"),
        (_in_a_nursery, True, "BaseExceptionGroup: Exceptions from Trio nursery (1 sub-exception)"),
        (lambda: 1 / 0, False, "ZeroDivisionError: division by zero"),
    ],
)
async def test_a_function_that_fails_ends_nothing(function: Any, asynchronous: bool, why: str) -> None:
    async with bench() as found:
        with structlog.testing.capture_logs() as said:
            assert await found.answer(call(function, asynchronous=asynchronous)) == Failed(why)
        (line,) = said
        assert (line["rule"], line["session"], line["why"]) == ("r", "s-1", why)
        assert isinstance(line["exc_info"], BaseException)
        assert await found.answer(call(lambda: "well")) == "well"


async def test_what_fails_again_and_again_does_not_fill_the_log() -> None:
    async with bench() as found:
        with structlog.testing.capture_logs() as said:
            for _ in range(5):
                await found.answer(call(raising(Odd("x"))))
            assert len(said) == 1
            found.clock.ahead += 61
            found.reactor.tick()
            found.asking.check()
        assert said[1]["times"] == 4


async def test_an_async_function_is_cancelled_at_its_deadline() -> None:
    ended: list[str] = []

    async def function() -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.append("cancelled")

    async with bench() as found:
        assert await found.answer(call(function, asynchronous=True), 0.01) == LATE
        assert ended == ["cancelled"]
        assert found.asking.under_way == 0


async def test_one_that_fails_while_it_is_cancelled_ends_nothing() -> None:
    async def function() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            try:
                await trio.sleep_forever()
            finally:
                raise Odd("on the way out")

    async with bench() as found:
        outcome = await found.answer(call(function, asynchronous=True), 0.01)
        assert isinstance(outcome, Failed)
        assert await found.answer(call(lambda: 2)) == 2


async def test_a_thread_beyond_its_deadline_is_left_alone_and_counts() -> None:
    go = threading.Event()
    async with bench(calling=1) as found:
        try:
            assert await found.answer(call(lambda: go.wait(30)), 0.01) == LATE
            assert found.asking.under_way == 0
            assert await found.answer(call(lambda: 1), 0.01) == LATE  # no thread is free
        finally:
            go.set()
        await until(lambda: not found.asking._calling.borrowed_tokens, "the thread does not end")
        assert await found.answer(call(lambda: 2)) == 2
        assert found.relay.told == []


async def test_there_are_not_more_threads_than_may_be() -> None:
    running, most, lock = [0], [0], threading.Lock()

    def function() -> None:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.005)
        with lock:
            running[0] -= 1

    async with bench(calling=3) as found:
        for _ in range(30):
            found.ask(call(function))
        await until(lambda: len(found.relay.told) == 30, "not all are answered")
        assert most[0] == 3


async def test_too_many_are_refused_at_once_and_not_in_the_middle_of_asking() -> None:
    async with bench(most=2) as found:
        for _ in range(3):
            found.ask(call(trio.sleep_forever, asynchronous=True), 0.5)
        assert found.relay.told == []
        await until(lambda: found.relay.told, "no answer")
        assert found.relay.told == [(3, Failed("too many questions under way"))]
        found.ask(Wait(0.001))
        await until(lambda: len(found.relay.told) == 4, "no answer")
        assert found.relay.told[1:] == [(4, None), (1, LATE), (2, LATE)] or len(found.relay.told) == 4
        found.relay.told.clear()
        assert await found.answer(call(lambda: 5)) == 5


# ---------------------------------------------------------------------------------------------------- who is over


async def test_a_session_that_is_over_is_not_told_and_its_questions_go() -> None:
    ended: list[str] = []

    async def function() -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.append("cancelled")

    async with bench() as found:
        found.ask(call(function, asynchronous=True), 1000)
        found.ask(Wait(1000))
        await settled()
        found.relay.done = True
        found.asking.check()
        await until(lambda: not found.asking.under_way, "questions are left")
        await settled()
        assert (found.relay.told, ended) == ([], ["cancelled"])


async def test_a_session_that_fails_by_an_answer_fails_alone() -> None:
    async with bench() as found:
        other: Any = FakeRelay()
        other.session.decided = lambda ticket, outcome: 1 / 0
        found.ask(call(lambda: 1), relay=other)
        assert await found.answer(call(lambda: 2)) == 2
        await until(lambda: other.faults, "no fault")
        assert isinstance(other.faults[0], ZeroDivisionError)


async def test_when_the_worker_ends_nothing_is_left() -> None:
    go = threading.Event()
    cancelled: list[int] = []

    async def function() -> None:
        try:
            await trio.sleep_forever()
        finally:
            cancelled.append(1)

    async with bench() as found:
        found.ask(call(function, asynchronous=True))
        found.ask(call(lambda: go.wait(30)))
        found.ask(Wait(1000))
        await settled()
    go.set()
    assert cancelled == [1]
    assert found.relay.told == []


async def test_who_asks_when_it_has_ended_is_told() -> None:
    found = Bench()
    found.ask(Wait(1))
    await found.reactor.turn([])
    assert found.relay.told == [(1, Failed("the proxy is stopping"))]
    found.reactor.close()


# ------------------------------------------------------------------------------------------------------------- keeping


async def test_a_mail_is_kept(here: Path) -> None:
    async with bench(made(here)) as found:
        about = mail()
        about.content.read(3)  # a rule looked at it
        name = await found.answer(about)
        assert (here / "new" / f"{name}.eml").read_bytes() == CONTENT
        kept = record(here, name)
        assert (kept["session"], kept["rule"], kept["why"]) == (FACTS["session"], "no-macros", "macros")


async def test_without_a_quarantine_nothing_is() -> None:
    async with bench() as found:
        assert await found.answer(mail()) == Failed("no quarantine is configured")


async def test_a_full_one_is_told_to_the_session_and_once_in_the_log(here: Path) -> None:
    store = made(here, mails=1)
    keep(store)
    async with bench(store) as found:
        with structlog.testing.capture_logs() as said:
            for _ in range(3):
                assert await found.answer(mail()) == Failed("the quarantine is full: `mails` is 1")
        assert [(line["event"], line["rule"]) for line in said] == [("a mail could not be kept", "no-macros")]
    assert tree(here) == ONE


class Slow(io.BytesIO):
    """A content whose reading waits for a word."""

    def __init__(self) -> None:
        super().__init__(bytes(3 * storing.PIECE))
        self.go = threading.Event()
        self.reading = threading.Event()
        self.busy = False

    def read(self, size: int | None = -1) -> bytes:
        """A piece."""
        self.busy = True
        self.reading.set()
        assert self.go.wait(30)
        self.busy = False
        return super().read(size)


async def test_a_mail_that_is_not_kept_in_time_is_not_kept(here: Path) -> None:
    """And the answer comes when nobody reads the content any more."""
    async with bench(made(here)) as found:
        content = Slow()
        found.ask(Keep("r", "", content, FACTS), 0.02)
        await until(content.reading.is_set, "it is not read")
        await trio.sleep(0.05)
        assert found.relay.told == []
        content.go.set()
        await until(lambda: found.relay.told, "no answer")
        assert not content.busy
        assert found.relay.told == [(1, Failed("the mail was not kept in time"))]
    assert tree(here) == EMPTY


async def test_one_that_is_kept_just_so_is_said_to_be(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its deadline passes when it is in its place already: what is said is what is so."""
    store = made(here)
    done, go = threading.Event(), threading.Event()
    real = Store.keep

    def keeps(self: Store, content: Any, facts: Any, **more: Any) -> str:
        name = real(self, content, facts, **more)
        done.set()
        assert go.wait(30)
        return name

    monkeypatch.setattr(Store, "keep", keeps)
    async with bench(store) as found:
        found.ask(mail(), 1.0)
        await until(done.is_set, "it is not kept")
        await trio.sleep(1.05)
        go.set()
        await until(lambda: found.relay.told, "no answer")
        ((_, name),) = found.relay.told
        assert [one.name for one in store.mails()] == [name]


@pytest.mark.parametrize("how", ["over", "ended"])
async def test_a_mail_whose_session_is_over_is_not_kept(here: Path, how: str) -> None:
    content = Slow()
    async with bench(made(here)) as found:
        found.ask(Keep("r", "", content, FACTS), 1000)
        await until(content.reading.is_set, "it is not read")
        with structlog.testing.capture_logs() as said:
            if how == "over":
                found.relay.done = True
                found.asking.check()
                content.go.set()
                content.close()  # as the listener does with the contents of a session
                await until(lambda: not found.asking.under_way, "it goes on")
            else:
                threading.Timer(0.05, content.go.set).start()
    assert (found.relay.told, said) == ([], [])
    assert tree(here) == EMPTY


async def test_a_content_that_fails_is_no_reason_to_end(here: Path) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(5, "Input/output error")

    async with bench(made(here)) as found:
        why = "the quarantine can't be written: Input/output error"
        assert await found.answer(Keep("r", "", Broken(), FACTS)) == Failed(why)
        assert await found.answer(Keep("r", "", None, FACTS)) == Failed(
            "AttributeError: 'NoneType' object has no attribute 'seek'"
        )


async def test_functions_that_hang_do_not_hold_up_mails(here: Path) -> None:
    go = threading.Event()
    async with bench(made(here), calling=1) as found:
        found.ask(call(lambda: go.wait(30)))
        try:
            found.ask(mail())
            await until(lambda: found.relay.told, "no answer")
        finally:
            go.set()


# -------------------------------------------------------------------------------------------------------------- tidying


async def test_what_is_old_is_erased_and_that_is_said(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wall = Wall()
    store = made(here, wall=wall)
    keep(store)
    wall.now += 3 * 86_400
    name = keep(store)
    (here / "new" / "20251123T101500Z-0123456789ab.eml").write_bytes(b"left by a crash")
    monkeypatch.setattr(module, "TIDY", 0.001)
    with structlog.testing.capture_logs() as said:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tidy, store, 0)
            await until(lambda: said, "nothing is said")
            nursery.cancel_scope.cancel()
        assert len(list(store.mails())) == 2
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tidy, store, 2)
            await until(lambda: len(said) > 1, "nothing is said")
            await settled()
            nursery.cancel_scope.cancel()
    assert [(line["erased"], line["left_over"]) for line in said] == [(0, 1), (1, 0)]
    assert [one.name for one in store.mails()] == [name]


async def test_a_quarantine_that_can_not_be_looked_after_is_said(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = made(here)
    monkeypatch.setattr(Store, "sweep", partial(_fails))
    with structlog.testing.capture_logs() as said:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tidy, store, 2)
            await until(lambda: said, "nothing is said")
            nursery.cancel_scope.cancel()
    assert said[0]["why"] == "no"


def _fails(*_: Any) -> int:
    raise NotWanted("no")


# ------------------------------------------------------------------------------------------------- in front of a server


class Asks(PassAll):
    """Everything but the content passes; of that a question is asked."""

    def __init__(self, about: Callable[[Any], Wait | Call | Keep]) -> None:
        self._about = about

    def depth(self, transaction: Any, session: Session) -> Depth:
        """All of it."""
        return Depth.WHOLE

    def content(self, content: Any, session: Session) -> Verdict:  # type: ignore[override]
        """The question."""

        def resume(outcome: Any) -> Verdict:
            if isinstance(outcome, Failed):
                return Verdict(Action.ANSWER, own("451 4.3.0 Later"), "r")
            return Verdict(Action.QUARANTINE, own("250 2.0.0 Kept"), "r")

        return Verdict(Action.ASK, Question(self._about(content), DEADLINE, resume), "r")


@asynccontextmanager
async def asking_rig(
    folder: Path, about: Callable[[Any], Wait | Call | Keep], store: Store | None = None
) -> AsyncIterator[tuple[Rig, End, End]]:
    async with rig(folder, judge=Asks(about), store=store) as running:
        client, server = await running.both()
        await client.hello(server)
        await client.mail(server)
        await client.send(b"DATA\r\n")
        assert (await client.reply()).startswith(b"354")
        yield running, client, server


async def test_a_mail_is_kept_with_all_that_is_known_of_it(tmp_path: Path, here: Path) -> None:
    store = Store(Folders(here, make=True), bounds=Bounds(10**6, 10))
    async with asking_rig(tmp_path, lambda content: Keep("r", "because", content, {"told": "250"}), store) as found:
        running, client, server = found
        await client.send(b"Subject: x\r\n\r\n..y\r\n.\r\n")
        await server.expect(b"RSET\r\n")
        assert len(list(store.mails())) == 1  # before anybody is told
        await server.send(b"250 Ok\r\n")
        assert await client.reply() == b"250 Kept\r\n"
        (one,) = store.mails()
        with store.content(one) as file:
            assert file.read() == b"Subject: x\r\n\r\n.y\r\n"
        (connect,) = running.records("link-connect")
        said = {key: value for key, value in one.record.items() if key not in ("v", "name", "at", "sha256")}
        assert said == {
            "session": connect["session"],
            "listener": "smtp",
            "client": client.name,
            "server": f"127.0.0.1:{running.server.port}",
            "address": f"127.0.0.1:{running.server.port}",
            "hello": "me.example",
            "tx": 1,
            "mail": "a@x.example",
            "rcpt": ["b@y.example"],
            "parameters": {},
            "rcpt_parameters": {},
            "rule": "r",
            "why": "because",
            "told": "250",
            "octets": 18,
        }


async def test_a_client_that_goes_while_it_is_asked_leaves_nothing(tmp_path: Path) -> None:
    async with asking_rig(tmp_path, lambda content: Wait(1000)) as (running, client, server):
        await client.send(b"x\r\n.\r\n")
        await until(lambda: running.asking.under_way, "nothing is asked")
        client.reset()
        server.close()
        await running.over()
        running.wait(1)
        await until(lambda: not running.asking.under_way, "it is still asked")
