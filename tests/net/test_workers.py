"""The supervisor and its workers, as processes: starting, reloading, dying, ending."""

import json
import os
import signal
import socket
from collections import Counter
from pathlib import Path

import pytest
import trio

from smtpproxy.net import control
from smtpproxy.tls.authority import create
from tests.net.fleet import (
    NOT_RELOADED,
    by_rules,
    fleet,
    gone,
    hand_over,
    hello,
    kill,
    quits,
    refuses,
    reload,
    rules,
    serving,
    sessions_of,
    to_content,
    told,
)
from tests.net.rig import DEADLINE, Process, Store, until

# ------------------------------------------------------------------------------------------------- starting


async def test_there_are_as_many_workers_as_are_asked_for(tmp_path: Path) -> None:
    for count in (1, 3):
        async with fleet(tmp_path, workers=count) as (process, _store):
            assert len(process.workers) == count
            assert len(os.listdir(f"/proc/{process.pid}/task")) == 1  # who forks has no threads
            client = await process.connect()
            await hello(client)
            await quits(client)
            process.signal(signal.SIGTERM)
            assert await process.code() == 0


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--listen", "192.0.2.1:2525"], 3, "smtpproxy: can't listen on 192.0.2.1:2525: Cannot assign"),
        (["--listen", "no-such-host.invalid:2525"], 3, "smtpproxy: can't listen on no-such-host.invalid:2525: "),
        (["--listen", "a" * 64 + ".example:2525"], 3, "the name is not a host's"),
        (["--user", "no-such-user"], 2, "--user: there is no user"),
    ],
)
def test_what_can_not_be_had_is_said_once_with_its_exit_code(
    tmp_path: Path, options: list[str], code: int, words: str
) -> None:
    process = Process(25, tmp_path / "audit", *options, workers=2)
    try:
        assert process.process.wait(20) == code
        assert process.said.count(words) == 1
        assert "Traceback" not in process.said
        assert "listening" not in process.said
    finally:
        process.close()


def test_an_address_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        process = Process(25, tmp_path / "audit", "--listen", where)
        try:
            assert process.process.wait(20) == 3
            assert f"smtpproxy: can't listen on {where}: Address already in use (`ss " in process.said
        finally:
            process.close()


def test_an_audit_that_can_not_be_opened(tmp_path: Path) -> None:
    process = Process(25, tmp_path / "missing" / "audit")
    try:
        assert process.process.wait(20) == 3
        assert "can't be opened: No such file" in process.said
    finally:
        process.close()


def test_what_a_worker_can_not_have_is_said_once_for_all(tmp_path: Path) -> None:
    settings = tmp_path / "smtpproxy.toml"
    settings.write_text(_a_bad_key_log(tmp_path))
    process = Process(25, tmp_path / "audit", "--config", str(settings), workers=3)
    try:
        assert process.process.wait(20) == 2
        assert process.said.count("can't be written: No such file") == 1
        assert "Traceback" not in process.said
        assert "listening" not in process.said
    finally:
        process.close()


def _a_bad_key_log(folder: Path) -> str:
    """Settings that look right; but each worker opens that file, and none can."""
    if not (folder / "keys").is_symlink():
        (folder / "keys").symlink_to("missing/keys")
    user = '[process]\nuser = "nobody"\n' if os.getuid() == 0 else ""
    return f'[tls]\nkeylog = "keys"\n{user}'


@pytest.mark.skipif(os.getuid() != 0, reason="takes root")
async def test_workers_become_the_user_they_are_to_be_and_the_supervisor_does_not(tmp_path: Path) -> None:
    async with fleet(tmp_path, "--user", "nobody", workers=2) as (process, _store):
        import pwd

        uid = pwd.getpwnam("nobody").pw_uid
        status = [Path(f"/proc/{pid}/status").read_text() for pid in (process.pid, *process.workers)]
        assert ["\t".join(4 * [str(uid)]) in one for one in status] == [False, True, True]
        assert ["CapPrm:\t0000000000000000" in one for one in status] == [False, True, True]
        client = await process.connect()
        await hello(client)
        await quits(client)
        (victim, _) = process.workers
        kill(victim)  # the next one is forked by root, and has everything that it needs
        await process.hears("a worker died")
        await serving(process, 2)
        process.signal(signal.SIGTERM)
        assert await process.code() == 0


# --------------------------------------------------------------------------------------------------- ending


async def test_a_mail_in_flight_is_finished_then_421(tmp_path: Path) -> None:
    async with fleet(tmp_path, workers=2) as (process, store):
        clients = [await process.connect() for _ in range(4)]
        for client in clients:
            await hello(client)
            await to_content(client)
            await client.send(b"x\r\n")
        process.signal(signal.SIGTERM)
        await until(lambda: refuses(process.port), "it still accepts")
        for client in clients:
            await client.send(b".\r\n")
            assert (await client.reply()).startswith(b"250")
            assert (await client.rest()).startswith(b"421")
            client.close()
        assert await process.code() == 0
        assert store.mails == [b"x\r\n"] * 4


async def test_a_signal_right_behind_the_listening_line_is_not_missed(tmp_path: Path) -> None:
    async with fleet(tmp_path) as (process, _store):
        process.signal(signal.SIGTERM)
        assert await process.code() == 0


async def test_a_second_signal_stops_at_once_with_1(tmp_path: Path) -> None:
    """Ctrl-C reaches the whole group of processes, and what it means is the supervisor's to say."""
    async with fleet(tmp_path, workers=2) as (process, store):
        clients = [await process.connect() for _ in range(4)]
        for client in clients:
            await hello(client)
            await to_content(client)
            await client.send(b"half a mail")
        os.killpg(process.pid, signal.SIGINT)
        await process.hears("draining; a second signal stops at once .*sessions=4")
        await until(lambda: refuses(process.port), "it still accepts")
        assert process.process.poll() is None
        os.killpg(process.pid, signal.SIGINT)
        assert await process.code(3) == 1
        for client in clients:
            assert await client.ending() in ("end", "reset")
            client.close()
        await until(lambda: len(store.halves) == 4, "the server still waits")
        assert store.mails == []
        assert "Traceback" not in process.said
        kinds = [line["kind"] for line in process.lines()]
        assert kinds.count("link-close") == kinds.count("link-connect") >= 4


async def test_a_service_manager_tells_all_processes(tmp_path: Path) -> None:
    async with fleet(tmp_path, workers=2) as (process, _store):
        client = await process.connect()
        await hello(client)
        os.killpg(process.pid, signal.SIGTERM)
        assert (await client.rest()).startswith(b"421")
        client.close()
        assert await process.code() == 0
        assert "a worker died" not in process.said


async def test_when_the_supervisor_is_killed_its_workers_end_and_nothing_is_held(tmp_path: Path) -> None:
    async with fleet(tmp_path, workers=2) as (process, store):
        sending = await process.connect()
        await hello(sending)
        await to_content(sending)
        workers = process.workers
        process.process.kill()
        await until(lambda: refuses(process.port), "somebody still listens")
        await sending.send(b"x\r\n.\r\n")
        assert (await sending.reply()).startswith(b"250")
        assert (await sending.rest()).startswith(b"421")
        sending.close()
        await until(lambda: all(map(gone, workers)), "a worker is left")
        assert store.mails == [b"x\r\n"]


# ---------------------------------------------------------------------------------------------------- dying


async def test_a_worker_that_dies_is_replaced_and_the_others_serve_on(tmp_path: Path) -> None:
    async with fleet(tmp_path, workers=2) as (process, store):
        victim, other = process.workers
        cut, kept = [await sessions_of(process, worker, 8) for worker in (victim, other)]
        for client in (*cut, *kept):
            await to_content(client)
        kill(victim)
        await process.hears(rf"a worker died .*again_in=0.0 how='killed by SIGKILL' in_a_row=1 .*pid={victim}")
        assert other in await serving(process, 2)
        for client in cut:
            assert await client.ending() in ("end", "reset")
        for client in kept:
            await client.send(b"x\r\n.\r\n")
            assert (await client.reply()).startswith(b"250 2.0.0 queued")
            await quits(client)
        assert store.mails == [b"x\r\n"] * 8  # nothing of those that were cut
        assert "sessions=8" in process.said
        for _ in range(20):
            client = await process.connect()
            await hello(client)
            await quits(client)
        assert all(line for line in process.lines())


async def test_deaths_in_a_row_make_it_wait_and_say_so(tmp_path: Path) -> None:
    async with fleet(tmp_path) as (process, _store):
        behind = 0
        for wait in ("0.0", "0.5", "1.0"):
            (victim,) = await serving(process, 1)
            kill(victim, signal.SIGSEGV)
            found = await process.hears(rf"a worker died .*again_in={wait} how='killed by SIGSEGV'", behind=behind)
            behind = found.end()
        waiting = await process.connect()  # nobody is refused: it waits until there is somebody
        await hello(waiting)
        await quits(waiting)


async def test_a_worker_that_ends_of_its_own_is_replaced(tmp_path: Path) -> None:
    """SIGTERM to one worker, by whoever. Not at once: it may be that all of them are being told so."""
    async with fleet(tmp_path, workers=2) as (process, _store):
        victim, other = process.workers
        kill(victim, signal.SIGTERM)
        await process.hears(rf"a worker has ended, and not by order .*again_in=0.5 .*pid={victim}")
        assert other in await serving(process, 2)


# ------------------------------------------------------------------------------------------------- reloading


async def test_new_sessions_are_judged_by_new_rules_and_running_ones_by_the_old(tmp_path: Path) -> None:
    file = rules(tmp_path, 1)
    async with fleet(tmp_path, "--rules", str(file), workers=2) as (process, _store):
        first = await process.connect()
        await hello(first)
        for number in (2, 3):
            rules(tmp_path, number)
            before = process.workers
            await reload(process)
            for _ in range(6):
                client = await process.connect()
                await hello(client)
                assert await by_rules(client) == number
                await quits(client)
            assert await by_rules(first) == 1
            await until(lambda old=before: len(process.workers) == 3, "idle workers of before are there")  # type: ignore[misc]
        await quits(first)
        await serving(process, 2)  # the last session of the first generation was the last of its worker


@pytest.mark.parametrize("how", ["rules", "configuration", "worker"])
async def test_what_is_wrong_leaves_everything_as_it_was(tmp_path: Path, how: str) -> None:
    settings, file = tmp_path / "smtpproxy.toml", rules(tmp_path, 1)
    settings.write_text("")
    async with fleet(tmp_path, "--config", str(settings), "--rules", str(file), workers=2) as (process, _store):
        workers = process.workers
        client = await process.connect()
        await hello(client)
        rules(tmp_path, 2)
        if how == "rules":
            file.write_text('[[rule]]\nname = "x"\n')
        elif how == "configuration":
            settings.write_text("[limits]\nrecipient = 3\n")
        else:
            settings.write_text(_a_bad_key_log(tmp_path))
        await reload(process, NOT_RELOADED)
        words = {
            "rules": "rules.toml:1",
            "configuration": 'unknown key "recipient"',
            "worker": "key log .* can't be written: No such file",
        }
        await process.hears(words[how])
        await serving(process, 2)
        assert process.workers == workers
        for one in (client, await process.connect()):
            if one is not client:
                await hello(one)
            assert await by_rules(one) == 1
            await quits(one)
        settings.write_text("")
        rules(tmp_path, 3)
        await reload(process)  # and once it is right, it is done
        client = await process.connect()
        await hello(client)
        assert await by_rules(client) == 3
        await quits(client)


async def test_reloads_asked_for_while_one_is_under_way_are_done_once(tmp_path: Path) -> None:
    file = rules(tmp_path, 1)
    async with fleet(tmp_path, "--rules", str(file), workers=2) as (process, _store):
        for number in range(2, 30):
            rules(tmp_path, number)
            process.signal(signal.SIGHUP)

        async def rules_of_a_new_session() -> int:
            client = await process.connect()
            await hello(client)
            number = await by_rules(client)
            await quits(client)
            return number

        with trio.fail_after(DEADLINE):
            while await rules_of_a_new_session() != 29:
                pass
        await serving(process, 2)
        assert 1 <= process.said.count("reloaded: new") < 10


async def test_listeners_come_and_go_with_a_reload(tmp_path: Path) -> None:
    store = Store()
    settings = tmp_path / "smtpproxy.toml"

    def listeners(**where: str) -> None:
        each = '[[listener]]\nname = "{}"\nlisten = "{}"\nserver = "127.0.0.1:{}"\n'
        settings.write_text("".join(each.format(name, listen, store.port) for name, listen in where.items()))

    listeners(kept="127.0.0.1:0", leaving="localhost:0")
    command = ["--config", str(settings)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.run)
        process = Process(store.port, tmp_path / "audit", *command, workers=2, listen="")
        try:
            kept = int((await process.hears(r"listening on 127\.0\.0\.1:(\d+) .*\n.*listening"))[1])
            leaving = int((await process.hears(r"listening.*\n.*listening on 127\.0\.0\.1:(\d+) "))[1])
            process.port = leaving
            client = await process.connect()
            await hello(client)
            listeners(renamed="127.0.0.1:0", new="127.0.0.2:0")
            behind = len(process.said)
            await reload(process)
            new = int((await process.hears(r"listening on 127\.0\.0\.2:(\d+) ", behind=behind))[1])
            assert process.said.count("listening", behind) == 1  # the other one was known
            await until(lambda: refuses(leaving), "it still accepts")
            assert (await told(client, b"NOOP\r\n")).startswith(b"250")
            await quits(client)
            process.port = kept
            client = await process.connect()
            await hello(client)
            await quits(client)
            client = await process.connect("127.0.0.2", new)
            await hello(client)
            await quits(client)
            await until(lambda: sum(line["kind"] == "link-close" for line in process.lines()) == 3, "not all ended")
            names = [line["listener"] for line in process.lines() if line["kind"] == "link-connect"]
            assert names == ["leaving", "renamed", "new"]
        finally:
            process.close()
        nursery.cancel_scope.cancel()
    store.close()


async def test_an_audit_that_was_moved_away_is_opened_anew(tmp_path: Path) -> None:
    """logrotate(8). Sessions that run go on where they began."""
    async with fleet(tmp_path, workers=2) as (process, _store):
        old = await process.connect()
        await hello(old)
        process.audit.rename(tmp_path / "audit.1")
        await reload(process)
        new = await process.connect()
        await hello(new)
        await quits(old)
        await quits(new)
        for file in (tmp_path / "audit.1", process.audit):
            await until(lambda one=file: b"link-close" in one.read_bytes(), "no end on record")  # type: ignore[misc]
            kinds = [json.loads(line)["kind"] for line in file.read_bytes().splitlines()]
            assert kinds.count("link-connect") == kinds.count("link-close") == 1


async def test_another_number_of_workers_comes_with_a_reload(tmp_path: Path) -> None:
    settings = tmp_path / "smtpproxy.toml"
    settings.write_text("[process]\nworkers = 1\n")
    async with fleet(tmp_path, "--config", str(settings), workers=0) as (process, _store):
        await serving(process, 1)
        settings.write_text("[process]\nworkers = 3\n")
        await reload(process)
        await serving(process, 3)


# --------------------------------------------------------------------------------------------------- signing


async def test_a_signing_process_lives_as_long_as_the_generation_that_it_signs_for(tmp_path: Path) -> None:
    create(tmp_path / "ca", "Test", 100)
    async with fleet(tmp_path, "--ca", str(tmp_path / "ca"), workers=2) as (process, _store):
        (first,) = process.signers
        client = await process.connect()
        await hello(client)
        await reload(process)
        assert len(process.signers) == 2
        (second,) = set(process.signers) - {first}
        await quits(client)
        await until(lambda: process.signers == [second], "the old one signs for nobody")
        kill(second)
        await process.hears("the signing process is back")
        (third,) = process.signers
        old = await hand_over(process)
        await until(lambda: gone(old) and gone(third), "the old ones are left")
        (last,) = process.signers
        os.kill(process.pid, signal.SIGKILL)
        await until(lambda: gone(last), "it signs for nobody")


async def test_a_ca_that_can_not_be_read_again_leaves_everything_as_it_was(tmp_path: Path) -> None:
    create(tmp_path / "ca", "Test", 100)
    async with fleet(tmp_path, "--ca", str(tmp_path / "ca"), workers=2) as (process, _store):
        before = process.workers, process.signers
        (tmp_path / "ca" / "ca.key").write_text("nothing")
        (tmp_path / "ca" / "ca.key").chmod(0o600)
        await reload(process, NOT_RELOADED)
        await until(lambda: (process.workers, process.signers) == before, "something is left of it")
        client = await process.connect()
        await hello(client)
        await quits(client)


# ---------------------------------------------------------------------------------------------------- status


async def test_the_control_socket_tells_how_it_goes(tmp_path: Path) -> None:
    settings, path = tmp_path / "smtpproxy.toml", tmp_path / "control"
    settings.write_text(f'[process]\ncontrol = "{path}"\n')
    async with fleet(tmp_path, "--config", str(settings), workers=2) as (process, _store):
        client = await process.connect()
        await hello(client)
        status = control.ask(str(path))
        assert (status["pid"], status["state"], status["generation"]) == (process.pid, "serving", 1)
        assert sorted(worker["pid"] for worker in status["workers"]) == sorted(process.workers)
        assert {worker["state"] for worker in status["workers"]} == {"serving"}
        assert status["sessions"] == sum(worker["sessions"] for worker in status["workers"]) == 1
        assert status["listeners"][0]["addresses"] == [f"127.0.0.1:{process.port}"]
        await reload(process)
        status = control.ask(str(path))
        assert status["generation"] == 2
        assert Counter(worker["state"] for worker in status["workers"])["serving"] == 2
        assert sum(worker["sessions"] for worker in status["workers"] if worker["state"] == "draining") == 1
        settings.write_text("")
        await reload(process)
        assert not path.exists()
        await quits(client)


# ---------------------------------------------------------------------------------------------------- spread


async def test_connections_are_spread_over_the_workers(tmp_path: Path) -> None:
    """Not evenly, for whoever is awake first takes them; but nobody has them all, and nobody none."""
    settings, path = tmp_path / "smtpproxy.toml", tmp_path / "control"
    settings.write_text(f'[process]\ncontrol = "{path}"\n')
    async with fleet(tmp_path, "--config", str(settings), workers=2) as (process, _store):

        async def one() -> None:
            client = await process.connect()
            await hello(client)
            await quits(client)

        def accepted() -> list[int]:
            return [worker["accepted"] for worker in control.ask(str(path))["workers"]]

        rounds = 0
        while min(accepted()) < 10:
            rounds += 1
            assert rounds < 50, accepted()
            async with trio.open_nursery() as nursery:
                for _ in range(10):
                    nursery.start_soon(one)
        assert len(accepted()) == 2
        assert sum(accepted()) == rounds * 10
