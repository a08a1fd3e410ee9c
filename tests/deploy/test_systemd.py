"""deploy/systemd: the units are right by systemd's own word, as well protected as deploy/README.md says, and the proxy
runs in them as they are."""

import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.rig import CONFIG, DEPLOY, LOG, PROGRAM, REPO, Systemd, shipped, systemd
from tests.peers import unavailable

DROP_INS = sorted(path.name for path in (DEPLOY / "systemd" / "drop-ins").iterdir())
SOCKETS = sorted(path.name for path in (DEPLOY / "systemd").glob("*.socket"))
README = (DEPLOY / "README.md").read_text(encoding="utf-8")
SCORES = dict(re.findall(r"^\| (none|[a-z]+\.conf) \|.*\| ([\d.]+) \|$", README, re.M))
CONTROL = '[process]\ncontrol = "/run/smtpproxy/control"\nworkers = 2\n'
INBOUND = f"""
[[listener]]
name = "inbound"
listen = "127.0.0.1:25"
server = "127.0.0.1:2525"
[audit]
file = "/var/log/smtpproxy/audit.jsonl"
{CONTROL}
"""
NET_BIND_SERVICE, NET_RAW = 1 << 10, 1 << 13


# ----------------------------------------------------------------------------------------------------- as they are read


def _analyze(folder: Path, *command: str) -> str:
    if shutil.which("systemd-analyze") is None:
        unavailable("systemd-analyze is missing")
    done = subprocess.run(
        ["systemd-analyze", *command], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def _copy(folder: Path, *drop_ins: str, change: tuple[str, str] = ("", "")) -> Path:
    """The units in a folder of their own, with these drop-ins, and with a program that is there."""
    for name in ("smtpproxy.service", *SOCKETS):
        text = shipped(name).replace(PROGRAM, sys.executable).replace(*change)
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "smtpproxy.service.d").mkdir()
    for name in drop_ins:
        (folder / "smtpproxy.service.d" / name).write_text(shipped(f"drop-ins/{name}"), encoding="utf-8")
    return folder


@pytest.mark.parametrize("drop_in", ["", *DROP_INS])
@pytest.mark.parametrize("unit", ["smtpproxy.service", *SOCKETS])
def test_systemd_has_nothing_to_say_against_a_unit(unit: str, drop_in: str, tmp_path: Path) -> None:
    _copy(tmp_path, *filter(None, [drop_in]))
    assert _analyze(tmp_path, "verify", "--man=no", f"./{unit}") == ""


def test_systemd_would_have_something_to_say(tmp_path: Path) -> None:
    """The test above can fail."""
    _copy(tmp_path, change=("ProtectClock=", "ProtectClocks="))
    assert "ProtectClocks" in _analyze(tmp_path, "verify", "--man=no", "./smtpproxy.service")


def test_every_drop_in_has_its_score_in_the_readme() -> None:
    assert sorted(SCORES) == sorted(["none", *DROP_INS])


@pytest.mark.parametrize("drop_in", ["none", *DROP_INS])
def test_a_unit_is_as_well_protected_as_the_readme_says(drop_in: str, tmp_path: Path) -> None:
    """No worse. Which directives count, and for how much, is the systemd version's to say: the readme names one."""
    _copy(tmp_path, *([] if drop_in == "none" else [drop_in]))
    said = _analyze(tmp_path, "security", "--offline=yes", "--no-pager", "./smtpproxy.service")
    found = re.search(r"Overall exposure level for smtpproxy\.service: ([\d.]+)", said)
    assert found is not None
    assert float(found[1]) <= float(SCORES[drop_in])


def test_descriptors_and_patience_of_the_unit_suffice_for_the_defaults() -> None:
    """docs/sizing.md has the rule for descriptors; a stop that takes as long as it may is no failure."""
    from smtpproxy.config import load_config

    config = load_config(DEPLOY / "smtpproxy.toml")
    said = dict(re.findall(r"^(LimitNOFILE|TimeoutStopSec)=(\d+)$", shipped("smtpproxy.service"), re.M))
    assert int(said["LimitNOFILE"]) >= 3 * config.connections + 1000
    assert int(said["TimeoutStopSec"]) > config.patience_table().drain + 10


# ---------------------------------------------------------------------------------------------------------- as they run


@pytest.fixture
def host() -> Iterator[Systemd]:
    with systemd() as found:
        yield found


def _start(host: Systemd, *drop_ins: str, config: str = INBOUND, more: str = "") -> None:
    host.write(CONFIG, config)
    host.units(*drop_ins, more=more)
    host.run("systemctl", "start", "smtpproxy")


def _main(host: Systemd) -> int:
    return int(host.show("MainPID")["MainPID"])


def _capabilities(host: Systemd, pid: int) -> int:
    """Effective, as a mask; what could be had in another way is no more than that."""
    said = host.process(pid)
    effective, bounds = int(said["CapEff"], 16), int(said["CapBnd"], 16)
    assert int(said["CapPrm"], 16) == effective
    assert said["NoNewPrivs"] == "1"
    assert said["Seccomp"] == "2"
    assert bounds & (NET_BIND_SERVICE | NET_RAW) == bounds
    return effective


def _says(client: socket.socket, line: bytes, *, answer: bytes) -> None:
    if line:
        client.sendall(line)
    said = b""
    while not re.search(rb"(?m)^\d{3} .*\r\n\Z", said):
        octets = client.recv(4096)
        assert octets, f"closed after {said!r}"
        said += octets
    assert said.startswith(answer), said


def _begins_a_mail(client: socket.socket) -> None:
    _says(client, b"", answer=b"220")
    for line in (b"EHLO me.example", b"MAIL FROM:<a@x.example>", b"RCPT TO:<b@y.example>"):
        _says(client, line + b"\r\n", answer=b"250")
    _says(client, b"DATA\r\n", answer=b"354")


def test_it_runs_as_it_is(host: Systemd) -> None:
    """Ready when systemd believes so, with a status line, as a user of its own, with nothing the workers don't need."""
    host.server()
    _start(host)
    with host.connect(25) as client:
        _says(client, b"", answer=b"220")
        _says(client, b"EHLO me.example\r\n", answer=b"250")
        host.until(lambda: "2 workers, 1 session" in host.show("StatusText")["StatusText"])
        _says(client, b"QUIT\r\n", answer=b"221")
    assert '"verb":"QUIT"' in host.read("/var/log/smtpproxy/audit.jsonl")
    assert _capabilities(host, _main(host)) == NET_BIND_SERVICE
    status = host.status()
    assert len(status["workers"]) == 2
    for worker in status["workers"]:
        assert _capabilities(host, worker["pid"]) == 0
        assert host.process(worker["pid"])["Uid"].split()[0] == host.show("UID")["UID"] != "0"
    host.run(PROGRAM, "status", "--config", CONFIG, "--check")
    host.run("systemctl", "stop", "smtpproxy")
    assert host.show("Result", "ExecMainStatus") == {"Result": "success", "ExecMainStatus": "0"}
    host.run(PROGRAM, "status", "--config", CONFIG, "--check", fails=True)


def test_the_signing_process_runs_in_it(host: Systemd) -> None:
    """With a CA that the same unit made: keys, cffi and ctypes under MemoryDenyWriteExecute and the filter of calls."""
    host.units()
    unit = shipped("smtpproxy.service").replace(f"serve --config {CONFIG}", "ca init --directory /var/lib/smtpproxy/ca")
    host.write("/run/units/ca.service", unit + "[Service]\nType=oneshot\nUser=smtpproxy\nRestart=no\n")
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "start", "ca")
    _start(host, config=INBOUND + '[ca]\ndirectory = "/var/lib/smtpproxy/ca"\n')
    processes = host.run("cat", "/sys/fs/cgroup/system.slice/smtpproxy.service/cgroup.procs").split()
    commands = {pid: host.run("cat", f"/proc/{pid}/cmdline") for pid in processes}
    (signer,) = [int(pid) for pid, command in commands.items() if "smtpproxy.net.signer" in command]
    assert _capabilities(host, signer) == 0


def test_a_reload_is_all_or_nothing_and_systemctl_says_so(host: Systemd) -> None:
    _start(host)
    record = "/var/log/smtpproxy/audit.jsonl"
    host.run("mv", record, f"{record}.1")
    host.run("systemctl", "reload", "smtpproxy")
    host.until(lambda: host.status().get("generation") == 2)
    assert host.run("cat", record) == "", "opened anew: what was moved away can be kept"
    host.write(CONFIG, INBOUND.replace("server", "sever"))
    host.run("systemctl", "reload", "smtpproxy", fails=True)
    host.run("systemctl", "kill", "--kill-whom=main", "--signal=HUP", "smtpproxy")
    host.until(lambda: "not reloaded" in host.read(LOG))
    assert host.status()["generation"] == 2
    assert host.show("ActiveState") == {"ActiveState": "active"}


def test_the_installing_leads_to_a_service_that_runs(host: Systemd) -> None:
    """docs/operations.md, "Install", as it stands there, but for what pip does; then as "First rule" has it."""
    page = (REPO / "docs" / "operations.md").read_text(encoding="utf-8")
    steps, start, rule = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)[:3]
    configuration, site = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)[:2]
    mine = "\n".join(line for line in steps.splitlines() if not re.search(r"pip|-m venv|ln -s", line))
    assert len(mine.splitlines()) > 4
    paths = "cd /opt/source; PATH=/opt/smtpproxy/bin:$PATH"
    host.run("sh", "-euc", f"{paths}\n{mine}")
    host.run(PROGRAM, "check", "--config", CONFIG)
    host.write(CONFIG, configuration)
    host.run("sh", "-euc", f"{paths}\n{start}")
    assert host.show("ActiveState", "UnitFileState") == {"ActiveState": "active", "UnitFileState": "enabled"}
    assert len(host.status()["listeners"]) == 2
    host.write("/etc/smtpproxy/rules/site.toml", site)
    host.run("sh", "-euc", f"{paths}\n{rule.splitlines()[0]}")
    host.until(lambda: host.status().get("generation") == 2)


def test_a_hand_over_runs_what_the_link_points_to_and_cuts_nobody(host: Systemd) -> None:
    """docs/operations.md, "Upgrade, roll back", as it stands there."""
    host.server()
    host.run("mkdir", "/opt/newer")
    host.run("cp", "-r", "/opt/source/smtpproxy", "/opt/source/rules", "/opt/newer/")
    host.write("/opt/newer/smtpproxy/__init__.py", '__version__ = "99.0"\n')
    host.install("99.0", "/opt/newer")
    _start(host)
    first = _main(host)
    page = (REPO / "docs" / "operations.md").read_text(encoding="utf-8")
    (steps,) = re.findall(r"```sh\n([^`]*--signal=USR2[^`]*)```", page)
    with host.connect(25) as client:
        _says(client, b"", answer=b"220")
        _says(client, b"EHLO me.example\r\n", answer=b"250")
        told = host.run("sh", "-euc", f"PATH=/opt/smtpproxy/bin:$PATH version=99.0\n{steps}")
        host.until(lambda: host.status().get("version") == "99.0" and _main(host) != first)
        assert "smtpproxy" in told
        host.until(lambda: host.show("ActiveState", "SubState") == {"ActiveState": "active", "SubState": "running"})
        with host.connect(25) as other:
            _says(other, b"", answer=b"220")
            _says(client, b"NOOP\r\n", answer=b"250")
        host.run("sh", "-euc", f"PATH=/opt/smtpproxy/bin:$PATH version=1\n{steps}")
        host.until(lambda: host.status().get("version") not in (None, "99.0"))
        _says(client, b"QUIT\r\n", answer=b"221")
    host.until(lambda: host.process(_main(host))["PPid"] == "1")
    host.run("systemctl", "stop", "smtpproxy")
    assert host.show("Result", "NRestarts") == {"Result": "success", "NRestarts": "0"}


def test_after_a_hand_over_it_is_stopped_in_order_and_started_again_as_before(host: Systemd) -> None:
    """The main process is no child of systemd's then. A stop waits for what is in flight, in both that run; nobody was
    told of a mail what is not so."""
    host.server()
    _start(host)
    first = _main(host)
    with host.connect(25) as old:
        _begins_a_mail(old)
        host.run("systemctl", "kill", "--kill-whom=main", "--signal=USR2", "smtpproxy")
        host.until(lambda: _main(host) != first)
        with host.connect(25) as new:
            _begins_a_mail(new)
            host.run("systemctl", "stop", "--no-block", "smtpproxy")
            host.until(lambda: host.read(LOG).count("draining") == 2)
            for client in (old, new):
                _says(client, b"Subject: x\r\n\r\nx\r\n.\r\n", answer=b"250")
    host.until(lambda: host.show("ActiveState", "Result") == {"ActiveState": "inactive", "Result": "success"})

    host.run("systemctl", "start", "smtpproxy")
    first = _main(host)
    host.run("systemctl", "kill", "--kill-whom=main", "--signal=USR2", "smtpproxy")
    host.until(lambda: _main(host) not in (first, 0))
    host.run("kill", "-KILL", str(_main(host)))
    host.until(lambda: host.show("ActiveState", "NRestarts") == {"ActiveState": "active", "NRestarts": "1"})


def test_who_connects_while_it_is_started_again_waits_and_is_served(host: Systemd) -> None:
    """The supervisor is killed: systemd has the listening sockets meanwhile."""
    host.server()
    _start(host)
    host.run("kill", "-KILL", str(_main(host)))
    host.until(
        lambda: host.show("ActiveState")["ActiveState"] != "active" or host.show("NRestarts")["NRestarts"] == "1"
    )
    with host.connect(25) as client:
        _says(client, b"", answer=b"220")
    assert host.show("NRestarts") == {"NRestarts": "1"}


def test_a_supervisor_that_hangs_is_started_again(host: Systemd) -> None:
    _start(host, more="WatchdogSec=2\n")
    host.run("kill", "-STOP", str(_main(host)))
    host.until(lambda: host.show("NRestarts", "ActiveState") == {"NRestarts": "1", "ActiveState": "active"})
    assert host.status()["workers"]


def test_a_configuration_that_is_wrong_is_not_tried_again(host: Systemd) -> None:
    host.write(CONFIG, "listen = 1\n")
    host.units()
    host.run("systemctl", "start", "smtpproxy", fails=True)
    host.until(lambda: host.show("ActiveState")["ActiveState"] == "failed")
    assert host.show("ExecMainStatus", "NRestarts") == {"ExecMainStatus": "2", "NRestarts": "0"}


def test_with_socket_units_it_has_no_capability_and_starts_with_the_first_client(host: Systemd) -> None:
    """Both families, each listener by its name; who connects while it is started again waits."""
    submission = '[[listener]]\nname = "submission"\nlisten = "0.0.0.0:587"\nserver = "127.0.0.1:2525"\n'
    host.server()
    host.write(CONFIG, INBOUND.replace('127.0.0.1:25"', '0.0.0.0:25"') + submission)
    host.units("activated.conf")
    for name in SOCKETS:
        host.write(f"/etc/systemd/system/{name}", shipped(name))
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "start", *SOCKETS)
    assert host.show("ActiveState") == {"ActiveState": "inactive"}
    for port, address in ((25, "127.0.0.1"), (25, "::1"), (587, "127.0.0.1"), (587, "::1")):
        with host.connect(port, address) as client:
            _says(client, b"", answer=b"220")
    assert int(host.process(_main(host))["CapEff"], 16) == 0
    bound = {listener["name"]: sorted(listener["addresses"]) for listener in host.status()["listeners"]}
    assert bound == {"inbound": ["0.0.0.0:25", "[::]:25"], "submission": ["0.0.0.0:587", "[::]:587"]}
    host.run("systemctl", "restart", "smtpproxy")
    with host.connect(25) as client:
        _says(client, b"", answer=b"220")


@pytest.mark.parametrize("mode", ["redirect", "tproxy"])
def test_in_the_path_workers_have_what_the_mode_needs(mode: str, host: Systemd) -> None:
    config = f'[[listener]]\nname = "in"\nlisten = "0.0.0.0:25"\nmode = "{mode}"\n'
    config += f'[[listener]]\nname = "in-v6"\nlisten = "[::]:25"\nmode = "{mode}"\n{CONTROL}'
    _start(host, f"{mode}.conf", config=config)
    needed = NET_RAW if mode == "tproxy" else 0
    assert _capabilities(host, _main(host)) == NET_BIND_SERVICE | needed
    workers = host.status()["workers"]
    assert [_capabilities(host, worker["pid"]) for worker in workers] == [needed, needed]


def test_keys_that_only_root_can_read_are_handed_in(host: Systemd) -> None:
    """And nobody has anything to say against how they are."""
    host.run(PROGRAM, "ca", "init", "--directory", "/etc/smtpproxy/made")
    host.run("sh", "-c", "cd /etc/smtpproxy && mv made/ca.key mx.key && mv made/ca.crt mx.pem && echo x >ca.passphrase")
    host.run("chmod", "600", "/etc/smtpproxy/mx.key", "/etc/smtpproxy/ca.passphrase")
    (line,) = re.findall(r"^#   (certificates = .*)$", shipped("drop-ins/credentials.conf"), re.M)
    _start(host, "credentials.conf", config=f"{INBOUND}[listener.tls]\n{line}\n")
    assert "open to others" not in host.read(LOG)


def test_what_the_uninstalling_removes_is_there_to_be_removed(host: Systemd) -> None:
    """docs/operations.md, "Uninstall", as it stands there: nothing of it is left."""
    page = (REPO / "docs" / "operations.md").read_text(encoding="utf-8")
    (steps,) = re.findall(r"```sh\n(systemctl disable[^`]*)```", page)
    host.write("/etc/systemd/system/smtpproxy.socket", shipped("smtpproxy.socket"))
    for unit in ("watchdog/smtpproxy-watchdog.service", "nftables/smtpproxy-rules.service"):
        host.write(f"/etc/systemd/system/{Path(unit).name}", (REPO / "deploy" / unit).read_text(encoding="utf-8"))
    _start(host, "tproxy.conf")
    host.run("systemctl", "enable", "smtpproxy-watchdog", "smtpproxy-rules")
    host.run("systemctl", "enable", "smtpproxy.service", "smtpproxy.socket")
    host.run("sh", "-euc", steps)
    left = host.run("sh", "-c", "ls -d /opt/smtpproxy* /etc/smtpproxy* /var/*/private/smtpproxy", fails=None)
    assert "cannot access '/opt/smtpproxy" in left
    assert not re.search(r"^/", left, re.M)
    assert host.run("sh", "-c", "ls -R /etc/systemd/system | grep smtpproxy", fails=True) == ""
