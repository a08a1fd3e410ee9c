"""The metrics of whole processes: off unless said, right over workers, reloads and deaths, told by a process that is
replaced, on an address that follows the configuration; and the supervisor's side of it alone.

What is right is said by the audit of the same run, counted by somebody else (tests/metrics/watched.py).
"""

import base64
import itertools
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio

from smtpproxy.config import MetricsConfig
from smtpproxy.metrics.regions import ROOM
from smtpproxy.metrics.totals import Totals
from smtpproxy.net.control import Status
from smtpproxy.net.listening import ListenError
from smtpproxy.net.metering import RETRY, Metering
from smtpproxy.net.privileges import Identity
from tests.metrics.watched import OFF, ON, Watched, get, named, of_record, port_of, send, watched
from tests.net.fleet import NOT_RELOADED, fleet, gone, hand_over, hello, kill, quits, refuses, reload, rules, told
from tests.net.rig import End, Process, Store, until

ME = Identity(os.geteuid(), os.getegid(), tuple(os.getgroups()))


def listening(pids: list[int]) -> set[str]:
    """The addresses that these processes listen on, as proc(5) has them."""
    inodes = set()
    for pid in pids:
        for one in Path(f"/proc/{pid}/fd").iterdir():
            inodes.add(os.readlink(one))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and f"socket:[{words[9]}]" in inodes:
                found.add(words[1])
    return found


async def of_each(process: Process, workers: list[int]) -> list[End]:
    """A session of each of these workers; the others are stopped meanwhile."""
    clients = []
    for worker in workers:
        for other in workers:
            kill(other, signal.SIGCONT if other == worker else signal.SIGSTOP)
        client = await process.connect()
        await hello(client)
        clients.append(client)
    for worker in workers:
        kill(worker, signal.SIGCONT)
    return clients


# -------------------------------------------------------------------------------------------------------- off, and on


@pytest.mark.parametrize("text", ["", OFF], ids=["by default", "said"])
async def test_off_there_is_no_port_and_no_process(tmp_path: Path, text: str) -> None:
    file = tmp_path / "none.toml"
    file.write_text(text)
    async with fleet(tmp_path, "--config", str(file)) as (process, _):
        assert "metrics" not in process.said
        (worker,) = process.workers
        assert len(listening([process.pid, worker])) == 1


async def test_two_workers_count_as_one(tmp_path: Path) -> None:
    async with watched(tmp_path, workers=2) as proxy:
        one, other = await of_each(proxy.process, proxy.workers)
        await send(one)
        await send(one)
        await send(other)
        await quits(one)
        other.reset()
        scrape = await proxy.says(ended=2)
        assert scrape.of("transactions_total", outcome="accepted") == 3
        await proxy.sees(lambda scrape: scrape.of("sessions_open") == 0)
        assert scrape.of("workers", state="serving") == 2
        assert scrape.of("drops_total") == 0
        assert scrape.of("exchange_seconds_bucket", verb="END", le="+Inf") == 3
        assert 0 < scrape.of("exchange_server_seconds_sum") <= scrape.of("exchange_seconds_sum")
        assert scrape.of("turn_seconds_count") > 10
        assert 0 < scrape.of("turn_seconds_sum") < 30
        assert get(proxy.port, "/-/healthy") == (200, "ok\n")


async def test_it_has_no_privileges_and_takes_no_part(tmp_path: Path) -> None:
    """Its sockets are the one that it answers on; its standard streams are all else that it has."""
    async with watched(tmp_path) as proxy:
        await until(lambda: proxy.telling, "there is none")
        get(proxy.port)
        assert len(listening([proxy.telling])) == 1
        assert len(listening(proxy.workers)) == 1
        assert listening([proxy.telling]).isdisjoint(listening(proxy.workers))
        status = Path(f"/proc/{proxy.telling}/status").read_text()
        assert "CapEff:\t0000000000000000" in status
        assert ("Uid:\t0\t" in status) is False


# ------------------------------------------------------------------------------------------------- reloads and deaths


async def test_a_reload_goes_on_counting_on_the_same_port(tmp_path: Path) -> None:
    """The session that outlives it is counted, too, by a worker of the old generation."""
    rules(tmp_path, 1)
    async with watched(tmp_path, "--rules", str(tmp_path / "rules.toml"), workers=2) as proxy:
        await proxy.mail()
        before = await proxy.says(ended=1)
        client = await proxy.process.connect()
        await hello(client)
        telling = proxy.telling
        rules(tmp_path, 2)
        await reload(proxy.process)
        await send(client)
        await proxy.mail()
        await told(client, b"VRFY x\r\n")
        await quits(client)
        after = await proxy.says(ended=3)
        assert proxy.telling == telling
        assert after.of("transactions_total", outcome="accepted") == 3
        assert after.of("verdicts_total", rule="vrfy") == 1
        await proxy.sees(lambda scrape: scrape.of("generation_info", generation="2") == 1)
        loaded = before.of("config_loaded_time_seconds")
        await proxy.sees(lambda scrape: scrape.of("config_loaded_time_seconds") > loaded)


async def test_a_worker_that_is_killed_leaves_what_it_had_counted(tmp_path: Path) -> None:
    async with watched(tmp_path, workers=2) as proxy:
        one, other = await of_each(proxy.process, workers := proxy.workers)
        await send(one)
        await send(other)
        before = await proxy.says(ended=0)
        kill(workers[0])
        await proxy.process.hears("a worker died")
        assert await one.ending() in ("end", "reset")
        lowest: dict[Any, float] = dict(before)
        with trio.fail_after(20):
            while True:  # at no moment do counters go back
                scrape = proxy.scrape()
                for series, value in lowest.items():
                    if series[0].endswith(("_total", "_count", "_sum", "_bucket")):
                        assert scrape[series] >= value, series
                lowest = dict(scrape)
                if scrape.of("worker_deaths_total") == 1 and scrape.of("workers", state="serving") == 2:
                    break
        await send(other)
        await quits(other)
        await proxy.mail()
        after = await proxy.says(ended=2)
        assert after.of("transactions_total", outcome="accepted") == 4
        assert after.of("sessions_total") == 3
        await proxy.sees(lambda scrape: scrape.of("sessions_open") == 0)


async def test_workers_that_end_in_order_leave_their_last_second(tmp_path: Path) -> None:
    """A drained generation goes as soon as its last session does, well before it would publish again."""
    async with watched(tmp_path) as proxy:
        for _ in range(3):
            await proxy.mail()
            await reload(proxy.process)
        scrape = await proxy.says(ended=3)
        assert scrape.of("transactions_total", outcome="accepted") == 3


async def test_the_process_that_tells_is_replaced(tmp_path: Path) -> None:
    async with watched(tmp_path) as proxy:
        await proxy.mail()
        await proxy.says(ended=1)
        before = proxy.telling
        kill(before)
        await until(lambda: proxy.telling not in (0, before), "it is not replaced")
        scrape = await proxy.says(ended=1)
        assert scrape.of("transactions_total", outcome="accepted") == 1
        assert "the process that tells the metrics is lost" in proxy.process.said
        assert scrape.of("worker_deaths_total") == 0


async def test_mail_goes_on_while_it_hangs(tmp_path: Path) -> None:
    async with watched(tmp_path) as proxy:
        await until(lambda: proxy.telling, "there is none")
        kill(proxy.telling, signal.SIGSTOP)
        await proxy.mail()
        await reload(proxy.process)
        await proxy.mail()
        kill(proxy.telling, signal.SIGCONT)
        await proxy.says(ended=2)


async def test_it_ends_with_its_supervisor(tmp_path: Path) -> None:
    async with watched(tmp_path) as proxy:
        await until(lambda: proxy.telling, "there is none")
        telling = proxy.telling
        os.kill(proxy.process.pid, signal.SIGKILL)
        await until(lambda: gone(telling), "it goes on alone")


async def test_it_tells_to_the_end_of_a_drain(tmp_path: Path) -> None:
    """SIGTERM reaches it as it reaches all of a service's processes."""
    async with watched(tmp_path) as proxy:
        client = await proxy.process.connect()
        await hello(client)
        await client.send(b"MAIL FROM:<a@x.example>\r\n")
        await client.reply()
        await until(lambda: proxy.telling, "there is none")
        kill(proxy.telling, signal.SIGTERM)
        proxy.process.signal(signal.SIGTERM)
        await proxy.process.hears("draining")
        await proxy.sees(lambda scrape: scrape.of("workers", state="draining") == 1)
        assert get(proxy.port, "/-/healthy")[0] == 503
        client.reset()
        assert await proxy.process.code() == 0
        assert refuses(proxy.port)


# --------------------------------------------------------------------------------------------------------- the address


async def test_an_address_follows_the_configuration(tmp_path: Path) -> None:
    async with watched(tmp_path) as proxy:
        await proxy.mail()
        await proxy.says(ended=1)
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        proxy.file.write_text(f'[metrics]\nlisten = "127.0.0.1:{port}"\n')
        await reload(proxy.process)
        assert refuses(proxy.port)
        proxy.port = port
        await proxy.mail()
        await proxy.says(ended=2)
        proxy.file.write_text(OFF)
        await reload(proxy.process)
        assert refuses(port)
        assert proxy.telling == 0
        await proxy.mail()
        behind = len(proxy.process.said)
        proxy.file.write_text(ON)
        await reload(proxy.process)
        proxy.port = port_of(proxy.process.said, behind)
        await proxy.mail()
        scrape = await proxy.sees(lambda scrape: scrape.of("transactions_total", outcome="accepted") == 3)
        assert scrape.of("sessions_total") == 3, "what was not counted while it was off is not made up for"


async def test_an_address_that_is_taken_keeps_what_is_in_force(tmp_path: Path) -> None:
    async with watched(tmp_path) as proxy:
        with socket.create_server(("127.0.0.1", 0)) as other:
            proxy.file.write_text(f'[metrics]\nlisten = "127.0.0.1:{other.getsockname()[1]}"\n')
            await reload(proxy.process, NOT_RELOADED)
        assert "for metrics: Address already in use" in proxy.process.said
        await proxy.mail()
        await proxy.says(ended=1)


async def test_an_address_that_is_taken_at_the_start_is_an_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        file = tmp_path / "taken.toml"
        file.write_text(f'[metrics]\nlisten = "127.0.0.1:{other.getsockname()[1]}"\n')
        process = Process(9, tmp_path / "audit", "--config", str(file))
        try:
            assert await process.code() == 3
        finally:
            process.close()
        assert "for metrics: Address already in use" in process.said


async def test_a_hand_over_takes_the_address_along(tmp_path: Path) -> None:
    """What the old one counted goes with it, as at a restart; Prometheus knows what to make of that."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    async with watched(tmp_path, text=f'[metrics]\nlisten = "127.0.0.1:{port}"\n') as proxy:
        await proxy.mail()
        await proxy.says(ended=1)
        before = await hand_over(proxy.process)
        await proxy.mail()
        with trio.fail_after(20):
            while get(port)[0] != 200 or proxy.scrape().of("transactions_total", outcome="accepted") != 1:
                await trio.sleep(0.05)
        assert proxy.process.pid != before


# ------------------------------------------------------------------------------------------------------------- secrets


class Strict(Store):
    """Knows nobody's password."""


async def test_a_secret_is_never_told(tmp_path: Path) -> None:
    """Nor is anything else that a peer chose: addresses, names, mechanisms, verbs."""
    canary = "Canary-7f3a"
    secret = base64.b64encode(f"\0{canary}\0{canary}".encode())
    async with watched(tmp_path) as proxy:
        client = await proxy.process.connect()
        assert (await client.reply()).startswith(b"220")
        for line in (
            b"EHLO " + canary.encode() + b".example",
            b"AUTH PLAIN " + secret,
            b"AUTH X-" + canary.encode() + b" " + secret,
            b"MAIL FROM:<" + canary.encode() + b"@x.example>",
            b"RCPT TO:<" + canary.encode() + b"@y.example>",
            b"X" + canary.encode() + b" " + canary.encode(),
        ):
            await told(client, line + b"\r\n")
        await quits(client)
        await proxy.says(ended=1)
        for accept in ("", "application/openmetrics-text; version=1.0.0"):
            text = get(proxy.port, accept=accept)[1].lower()
            assert "smtpproxy_exchanges_total" in text
            assert canary.lower() not in text
            assert secret.decode().lower() not in text
            assert "127.0.0.1" not in text


# ------------------------------------------------------------------------------------------- the supervisor's side


@pytest.fixture
def metering() -> Any:
    """Closed at the end."""
    made = Metering(4)
    yield made
    made.close()


def config(listen: str = "127.0.0.1:0") -> MetricsConfig:
    """With metrics."""
    return MetricsConfig.model_validate({"listen": listen})


STATUS = Status("1", 1, 0.0, 1)


def test_a_fault_of_ours_ends_nothing(metering: Metering) -> None:
    metering.open(config(), ME, patient=False)
    metering.switch()

    def broken() -> Status:
        raise ZeroDivisionError

    with structlog.testing.capture_logs() as said:
        metering.check(1.0, broken)
        metering.check(1.5, broken)
    assert [line["event"] for line in said] == ["looking after the metrics failed"]


def test_what_a_dead_worker_wrote_is_added_once(metering: Metering) -> None:
    metering.open(config(), ME, patient=False)
    metering.switch()
    for _ in range(2):
        meter = metering.meter(config(), 0)
        assert meter is not None
        meter.kept("full")
        meter.publish()
        metering.fold(0)
        metering.fold(0)
    assert metering._gone.counters["quarantine_total", "full"] == 2


def test_what_makes_no_sense_is_not_counted(metering: Metering) -> None:
    """A worker that was taken over writes what it likes into its region."""
    metering.open(config(), ME, patient=False)
    regions = metering._regions
    assert regions is not None
    evil = Totals(ROOM)
    evil.counters["sessions_total",] = -1
    with structlog.testing.capture_logs() as said:
        for octets in (b"\xff" * 100, b"\x93\x90\x90\x91\xc0", evil.octets()):
            regions.write(0, octets)
            metering.fold(0)
            assert regions.read(0) == b""
    assert [line["log_level"] for line in said] == ["error"] * 3
    assert not metering._gone.counters


def test_where_it_is_off_nothing_is_counted(metering: Metering) -> None:
    metering.open(config(), ME, patient=False)
    assert metering.meter(MetricsConfig(), 0) is None
    assert metering.meter(config(), 0) is not None


def test_an_address_that_a_predecessor_has_is_waited_for(metering: Metering) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        there = config(f"127.0.0.1:{other.getsockname()[1]}")
        with pytest.raises(ListenError, match="for metrics"):
            metering.open(there, ME, patient=False)
        metering.open(there, ME, patient=True)
        metering.switch()
        metering.check(time.monotonic(), lambda: STATUS)
        assert metering._door is None
    metering.check(time.monotonic(), lambda: STATUS)
    assert metering._door is not None


async def test_one_that_dies_at_once_is_replaced_more_and_more_seldom(
    metering: Metering, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, born = 1000.0, []

    def fork(*_: object) -> int:
        born.append(now)
        return os.posix_spawn("/bin/false", ["false"], {})

    monkeypatch.setattr("smtpproxy.net.forking.fork", fork)
    metering.open(config(), ME, patient=False)
    metering.switch()
    with structlog.testing.capture_logs():
        while len(born) < 10:
            metering.check(now, lambda: STATUS)
            if metering._pid:
                os.waitid(os.P_PID, metering._pid, os.WEXITED | os.WNOWAIT)
            now += 0.25
    pauses = [later - earlier for earlier, later in itertools.pairwise(born)]
    assert pauses == sorted(pauses)
    assert pauses[0] < 1.5
    assert RETRY <= pauses[-1] < RETRY + 1


def test_names_of_processes_are_read() -> None:
    assert named(os.getpid())
    assert not named(2**30)


def test_the_audit_is_counted_by_its_own_words() -> None:
    line = {"kind": "exchange", "verb": "NOOP", "action": "pass", "asked": "NOOP", "code": 250, "anomalies": ["x"]}
    count = of_record([line])
    assert count["exchanges_total", "NOOP", "pass", "2"] == 1
    assert count["anomalies_total", "x"] == 1
    assert isinstance(Watched, type)
