"""Under load: each transaction that the server's own log has is in the store exactly once, with the same outcome, reply
and digest, and nothing else is. A few seconds; `--soak` makes it a minute, SMTPPROXY_SOAK so many seconds.
"""

import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.peers import PeerUnavailable, unavailable
from tests.peers.process import find
from tests.store.gateway import Gateway, Server, folder, the_same

SESSIONS = 20


def source(port: int, seconds: float) -> int:
    """smtp-source, 20 sessions at once, for so long; how many mails it was told to send."""
    try:
        program = find("smtp-source")
    except PeerUnavailable as error:
        unavailable(error)
    mails, rounds, end = 0, 0, time.monotonic() + seconds
    while time.monotonic() < end:
        kept = ["-d"] if rounds % 2 else []  # several mails to a session, or one
        length = str((100, 1500, 40_000)[rounds % 3])
        argv = [program, "-A", *kept, "-s", str(SESSIONS), "-m", "200", "-r", "2", "-l", length, "-N"]
        argv += ["-f", f"round{rounds}@client.example", "-t", "user@server.example", f"inet:127.0.0.1:{port}"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        mails += 200
        rounds += 1
    return mails


def _seconds(config: pytest.Config) -> float:
    long = 60.0 if config.getoption("--soak", default=False) else 0.0
    return float(os.environ.get("SMTPPROXY_SOAK", "0")) or long or 6.0


@pytest.mark.peers
def test_a_busy_time(pytestconfig: pytest.Config) -> None:
    """Two workers, 20 sessions, some refusals of every kind; lines in a file beside."""
    with folder() as base, Server(bad=17) as server:
        with Gateway(base, server.port, beside=True) as gateway:
            sent = source(gateway.port, _seconds(pytestconfig))
            assert gateway.stop() == 0
            said = gateway.said
            beside = gateway.file.read_bytes().splitlines()
        account = gateway.account()
        assert len(server.log) > sent // 2, "hardly any mail got through"
        assert {one.accepted for one in server.log} == {True, False}
        assert server.refused_rcpt
        assert server.refused_data
        the_same(account, server)
        account.sound()
        assert account.waiting == 0, "the journal was not taken over"
        assert set(account.sessions.values()) == {"closed"}
        assert sorted(beside) == sorted(line for line in account.raw if b'"session":""' not in line)
        assert "error" not in said.lower()


def test_what_is_refused_is_not_taken_for_accepted(tmp_path: Path) -> None:
    """The comparison can fail: a server whose log lacks one mail, or says something else, does not fit."""
    with folder() as base, Server() as server:
        with Gateway(base, server.port, workers=1) as gateway:
            source(gateway.port, 0.1)
            assert gateway.stop() == 0
        account = gateway.account()
        the_same(account, server)
        taken = server.log.pop()
        with pytest.raises(AssertionError):
            the_same(account, server)
        server.log.append(taken._replace(sha256="0" * 64))
        with pytest.raises(AssertionError):
            the_same(account, server)
