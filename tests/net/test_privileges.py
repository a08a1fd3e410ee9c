"""Giving up privileges, in processes of its own that really do; and what can't be had after that."""

import grp
import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from smtpproxy.config import Config
from smtpproxy.net.privileges import (
    CAP_NET_ADMIN,
    CAP_NET_BIND_SERVICE,
    CAP_NET_RAW,
    CAP_SETGID,
    CAP_SETUID,
    PrivilegeError,
    capabilities,
    has,
    name,
    needed,
    resolve,
)
from tests.peers import unavailable

NOBODY = 65_534
RAW = 1 << CAP_NET_RAW

# Tells, as JSON, what became of a process: what it tried, and what /proc/self/status says of it.
_LOOK = """
import contextlib, json, os, socket, sys
from smtpproxy.net import privileges
from smtpproxy.net.privileges import *

def status():
    words = (line.split(":", 1) for line in open("/proc/self/status"))
    return {name: value.split() for name, value in words}

def outcome(action):
    try:
        action()
    except (OSError, PrivilegeError) as error:
        return f"{type(error).__name__}: {error}"
    return "done"

def transparent(family, level, option):
    with socket.socket(family) as sock:
        sock.setsockopt(level, option, 1)

tried = {}
def attempt(name, action):
    tried[name] = outcome(action)
"""
_TELL = "\nprint(json.dumps([tried, status()]))\n"
_TRANSPARENT = """
attempt("v4", lambda: transparent(socket.AF_INET, socket.SOL_IP, socket.IP_TRANSPARENT))
attempt("v6", lambda: transparent(socket.AF_INET6, socket.IPPROTO_IPV6, 75))
"""


class Became:
    """What became of it."""

    def __init__(self, tried: dict[str, str], status: dict[str, list[str]]) -> None:
        self.tried = tried
        self.ids = (set(map(int, status["Uid"])), set(map(int, status["Gid"])), set(map(int, status["Groups"])))
        self.no_new_privileges = status["NoNewPrivs"] == ["1"]
        self._status = status

    def set(self, name: str) -> int:
        """A set of capabilities: Inh, Prm, Eff, Bnd, Amb."""
        return int(self._status[f"Cap{name}"][0], 16)


def become(script: str, *command: str) -> Became:
    """Run it in a process of its own, perhaps started by another program."""
    done = subprocess.run(
        [*command, sys.executable, "-c", _LOOK + script + _TELL], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return Became(*json.loads(done.stdout))


def _need_root() -> None:
    if os.geteuid() or not {CAP_SETUID, CAP_SETGID, CAP_NET_RAW} <= capabilities().effective:
        unavailable("giving up privileges takes root")


def _setpriv(*options: str) -> list[str]:
    """Nobody, as a service manager starts it."""
    _need_root()
    program = shutil.which("setpriv")
    if program is None:
        unavailable("setpriv is not there")
    return [program, "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups", *options]


# ---------------------------------------------------------------------------------------------------------- from root


def test_nothing_is_left_and_root_is_out_of_reach(tmp_path: Path) -> None:
    _need_root()
    secret = tmp_path / "secret"
    secret.write_text("of root")
    secret.chmod(0o600)
    became = become(f"""
with open({str(secret)!r}): pass
drop({NOBODY}, {NOBODY}, (), frozenset())
attempt("setuid", lambda: os.setuid(0))
attempt("setresuid", lambda: os.setresuid(-1, 0, -1))
attempt("setgid", lambda: os.setgid(0))
attempt("setgroups", lambda: os.setgroups([0]))
attempt("file", lambda: open({str(secret)!r}).close())
attempt("chroot", lambda: os.chroot("/"))
attempt("port 25", lambda: socket.create_server(("127.0.0.1", 25)).close())
{_TRANSPARENT}
""")
    assert [outcome.partition(" ")[0] for outcome in became.tried.values()] == ["PermissionError:"] * 9, became.tried
    assert became.ids == ({NOBODY}, {NOBODY}, set())
    assert [became.set(name) for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")] == [0, 0, 0, 0, 0]
    assert became.no_new_privileges


def test_groups_are_those_that_were_asked_for() -> None:
    _need_root()
    became = become(f"drop({NOBODY}, 4242, (4242, 4243), frozenset())")
    assert became.ids == ({NOBODY}, {4242}, {4242, 4243})


def test_what_a_worker_needs_is_kept_and_nothing_else() -> None:
    """The client's own address as ours takes CAP_NET_RAW."""
    _need_root()
    became = become(f"drop({NOBODY}, {NOBODY}, (), frozenset({{CAP_NET_RAW}}))" + _TRANSPARENT)
    assert became.tried == {"v4": "done", "v6": "done"}
    assert [became.set(name) for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")] == [0, RAW, RAW, 0, 0]
    became = become("attempt('drop', lambda: drop(*resolve(''), frozenset({CAP_NET_RAW})))" + _TRANSPARENT)
    assert became.tried == {"drop": "done", "v4": "done", "v6": "done"}


def test_another_program_gets_nothing_of_it() -> None:
    """Not even for root: no user was named, and the process stays root without root's capabilities."""
    _need_root()
    became = become("""
import subprocess
drop(*resolve(""), frozenset({CAP_NET_RAW}))
tried["child"] = subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True).stdout
""")
    assert became.ids == ({0}, {os.getegid()}, set(os.getgroups()))
    child = dict(line.split(":\t") for line in became.tried["child"].splitlines() if line.startswith("Cap"))
    assert {name: int(value, 16) for name, value in child.items()} == dict.fromkeys(child, 0)
    assert len(child) == 5


def test_a_way_back_that_is_left_is_an_error() -> None:
    """CAP_SETUID is one."""
    _need_root()
    became = become(f"attempt('drop', lambda: drop({NOBODY}, {NOBODY}, (), frozenset({{CAP_SETUID}})))")
    assert became.tried == {"drop": "PrivilegeError: privileges were not given up: root can be regained"}


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        ("privileges._become = lambda *ids: None", "user or groups are not what they should be"),
        ("privileges._set_capabilities = lambda keep: None", "capabilities are not what they should be"),
        ("privileges._forget_bounds = lambda: None", "new privileges can be gained"),
        (
            "ask = privileges._prctl; privileges._prctl = lambda option, value=0: option == 38 or ask(option, value)",
            "new privileges can be gained",
        ),
    ],
)
def test_what_did_not_happen_is_seen(broken: str, why: str) -> None:
    _need_root()
    became = become(f"{broken}\nattempt('drop', lambda: drop({NOBODY}, {NOBODY}, (), frozenset()))")
    assert became.tried == {"drop": f"PrivilegeError: privileges were not given up: {why}"}


def test_what_the_system_refuses_is_told() -> None:
    _need_root()
    became = become(f"""
privileges._PR_SET_NO_NEW_PRIVS = 9999  # an old kernel
attempt("drop", lambda: drop({NOBODY}, {NOBODY}, (), frozenset()))
""")
    assert became.tried == {"drop": "PrivilegeError: privileges can't be given up: Invalid argument"}


def test_with_threads_it_is_refused() -> None:
    """They would keep what they have."""
    became = become("""
import threading
event = threading.Event()
thread = threading.Thread(target=event.wait)
thread.start()
attempt("drop", lambda: drop(*resolve("")))
event.set()
thread.join()
""")
    assert became.tried == {"drop": "PrivilegeError: privileges can't be given up when there are threads already"}
    assert not became.no_new_privileges


# ------------------------------------------------------------------------------------------------- from somebody else


def test_who_is_nobody_already_stays_it() -> None:
    """No user is named, under a service manager that has set one: there is only the way back to be closed."""
    became = become("drop(*resolve(''), frozenset())", *_setpriv())
    assert became.ids == ({NOBODY}, {NOBODY}, set())
    assert [became.set(name) for name in ("Inh", "Prm", "Eff", "Amb")] == [0, 0, 0, 0]
    assert became.no_new_privileges


def test_what_a_service_manager_gave_is_cut_down_to_what_is_needed() -> None:
    """AmbientCapabilities=: ports below 1024 are open by now."""
    given = "+net_raw,+net_bind_service"
    manager = _setpriv("--inh-caps", given, "--ambient-caps", given)
    before = become("tried['has'] = str([has(CAP_NET_RAW), has(CAP_NET_BIND_SERVICE), has(CAP_NET_ADMIN)])", *manager)
    assert before.tried == {"has": "[True, True, False]"}
    assert before.set("Amb") == RAW | 1 << CAP_NET_BIND_SERVICE
    became = become("drop(*resolve(''), frozenset({CAP_NET_RAW}))" + _TRANSPARENT, *manager)
    assert became.tried == {"v4": "done", "v6": "done"}
    assert [became.set(name) for name in ("Inh", "Prm", "Eff", "Amb")] == [0, RAW, RAW, 0]
    became = become("drop(*resolve(''), frozenset())" + _TRANSPARENT, *manager)
    assert [outcome.partition(" ")[0] for outcome in became.tried.values()] == ["PermissionError:"] * 2
    assert [became.set(name) for name in ("Inh", "Prm", "Eff", "Amb")] == [0, 0, 0, 0]


def test_nobody_cannot_become_somebody_else_and_is_told_how() -> None:
    became = become("attempt('drop', lambda: drop(1, 1, (), frozenset()))", *_setpriv())
    (said,) = became.tried.values()
    assert said.startswith(f"PrivilegeError: user {NOBODY} can't become user 1 with group 1: start as root, or ")
    assert "User=" in said


def test_naming_who_one_is_already_changes_nothing() -> None:
    """The unit and the configuration name the same user, and the unit gives it a group more (SupplementaryGroups=)."""
    manager = [*_setpriv()[:-1], "--groups", "4242"]
    became = become(f"drop(*resolve('{NOBODY}'), frozenset())", *manager)
    assert became.ids == ({NOBODY}, {NOBODY}, {4242})
    assert became.no_new_privileges


def test_what_is_needed_and_not_there_is_named() -> None:
    became = become("attempt('drop', lambda: drop(*resolve(''), frozenset({CAP_NET_RAW, 40})))", *_setpriv())
    (said,) = became.tried.values()
    assert said == (
        "PrivilegeError: CAP_NET_RAW, capability 40 is needed and not there: start as root, or have the service manager"
        " give it (AmbientCapabilities=CAP_NET_RAW capability 40)"
    )
    assert not became.no_new_privileges  # nothing was begun


# ------------------------------------------------------------------------------------------------------------ who, what


def test_no_user_is_who_we_are() -> None:
    assert resolve("") == (os.geteuid(), os.getegid(), tuple(sorted(os.getgroups())))
    assert resolve("", "12").gid == 12


def test_a_user_by_name_or_number_with_its_groups() -> None:
    entry = pwd.getpwuid(NOBODY)
    groups = tuple(sorted(os.getgrouplist(entry.pw_name, entry.pw_gid)))
    assert resolve(entry.pw_name) == resolve(str(NOBODY)) == (NOBODY, entry.pw_gid, groups)
    group = grp.getgrgid(1)
    assert resolve(entry.pw_name, group.gr_name) == resolve(entry.pw_name, "1")
    assert resolve(entry.pw_name, "1")[:2] == (NOBODY, 1)
    assert 1 in resolve(entry.pw_name, "1").groups


def test_supplementary_groups_come_along(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that its group may read."""
    monkeypatch.setattr(os, "getgrouplist", lambda name, gid: [gid, 7, 5])
    assert resolve(str(NOBODY), "3").groups == (3, 5, 7)


def test_a_number_that_no_file_knows_needs_a_group() -> None:
    """As containers have them."""
    assert resolve("123456", "654321") == (123456, 654321, (654321,))
    with pytest.raises(PrivilegeError, match="there is no user '123456': say its group as well"):
        resolve("123456")


@pytest.mark.parametrize(
    ("user", "group", "said"),
    [
        ("nowhere-man", "", "there is no user 'nowhere-man': make it: `useradd --system --user-group nowhere-man`"),
        ("nowhere-man", "1", "there is no user 'nowhere-man'"),
        ("", "no-group", "there is no group 'no-group': make it: `groupadd --system no-group`"),
        ("9" * 30, "", "there is no user '999"),
    ],
)
def test_who_is_not_there_is_told(user: str, group: str, said: str) -> None:
    with pytest.raises(PrivilegeError) as raised:
        resolve(user, group)
    assert str(raised.value).startswith(said)


@pytest.mark.parametrize(
    ("listeners", "capability"),
    [
        ([{"server": "192.0.2.1"}], set()),
        ([{"server": "192.0.2.1"}, {"mode": "redirect"}], set()),
        ([{"server": "192.0.2.1"}, {"mode": "tproxy"}], {CAP_NET_RAW}),
        ([{"mode": "tproxy", "source": "own"}], set()),
        ([{"mode": "redirect", "source": "client"}], {CAP_NET_RAW}),
    ],
)
def test_what_a_worker_needs(listeners: list[dict[str, Any]], capability: set[int]) -> None:
    entries = [{"name": f"l{at}", "listen": "127.0.0.1:0", **entry} for at, entry in enumerate(listeners)]
    assert needed(Config.model_validate({"listener": entries})) == capability


def test_what_we_have_is_what_the_kernel_says() -> None:
    status = dict(line.split(":\t") for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    for found, line in zip(capabilities(), ("CapEff", "CapPrm", "CapInh"), strict=True):
        assert sum(1 << capability for capability in found) == int(status[line], 16)
    assert has(CAP_NET_ADMIN) == bool(int(status["CapEff"], 16) >> CAP_NET_ADMIN & 1)


def test_capabilities_have_names() -> None:
    assert [name(CAP_NET_RAW), name(62)] == ["CAP_NET_RAW", "capability 62"]
    assert socket.IP_TRANSPARENT == 19
