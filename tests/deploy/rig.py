"""A systemd of its own, on a root of its own: units are started as they are shipped, and this machine stays as it is.

It is process 1 of new namespaces (pid, mount, network, cgroup and the rest) on an overlay of this machine's root whose
upper layer is memory: what it writes is gone with it. It knows the units it is given and empty targets, and nothing
else; smtpproxy is where the units expect it, made of this source and of what is installed for the tests.
"""

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from tests.peers import unavailable

REPO = Path(__file__).resolve().parents[2]
DEPLOY = REPO / "deploy"
CONFIG = "/etc/smtpproxy/smtpproxy.toml"
PROGRAM = "/opt/smtpproxy/bin/smtpproxy"
LOG = "/run/smtpproxy.log"
PYTHON = f"/opt/python/{Path(sys.executable).resolve().relative_to(sys.base_prefix)}"
PATIENCE = 30.0  # seconds for anything; far longer than what is waited for ever takes

_CLONE_NEWNET = 0x40000000
_TARGETS = ("basic", "multi-user", "network-online", "nss-lookup", "shutdown", "sockets", "sysinit", "umount")

# Run as process 1 of the namespaces; $1 is an empty directory, $2 the source, $3 where packages are, $4 Python's
# prefix, the rest targets. All three are seen in /opt, whoever may reach where they really are: services are not root.
_PREPARE = """
set -eu
umask 022
place=$1 source=$2 packages=$3 python=$4
shift 4
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs "$place"
mkdir "$place/upper" "$place/work" "$place/root"
mount -t overlay -o "lowerdir=/,upperdir=$place/upper,workdir=$place/work" overlay "$place/root"
cd "$place/root"
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount --rbind /dev dev
for where in run tmp opt; do mount -t tmpfs -o mode=755 tmpfs "$where"; done
chmod 1777 tmp
mkdir -p opt/source opt/packages opt/python run/lock run/units etc/smtpproxy
mount --bind "$source" opt/source
mount --bind "$packages" opt/packages
mount --bind "$python" opt/python
# Where Python is built with its library apart, that is found by the linker; of the same name, Debian's is another one.
if ls opt/python/lib/libpython3.*.so.* >/dev/null 2>&1; then
    echo /opt/python/lib >etc/ld.so.conf.d/000-python.conf
    ldconfig -r .
fi
for target; do printf '[Unit]\\nDefaultDependencies=no\\n' >"run/units/$target.target"; done
ip link set lo up
pivot_root . .
umount -l .
# As systemd makes it where it is not in a container: what its children mount for a service comes to be seen.
mount --make-rshared /
export container=test SYSTEMD_UNIT_PATH=/etc/systemd/system:/run/units SYSTEMD_LOG_TARGET=console
exec /lib/systemd/systemd --system --unit=sysinit.target --show-status=0
"""
_INSTALL = """
set -eu
umask 022
"$1" -m venv --without-pip "/opt/smtpproxy-$2"
printf '%s\\n/opt/packages\\n' "$3" >"$(echo "/opt/smtpproxy-$2"/lib/python3*/site-packages)/here.pth"
printf '#!/opt/smtpproxy-%s/bin/python\\nfrom smtpproxy.cli import main\\nmain()\\n' "$2" \
    >"/opt/smtpproxy-$2/bin/smtpproxy"
chmod 755 "/opt/smtpproxy-$2/bin/smtpproxy"
"""
_SERVER = """
[Unit]
DefaultDependencies=no
[Service]
Type=exec
ExecStart=/opt/smtpproxy/bin/python -m aiosmtpd -n -l 127.0.0.1:2525 -c aiosmtpd.handlers.Sink
"""


class NoSystemd(Exception):  # noqa: N818 (no error: a test without it is skipped)
    """It cannot be started here."""


class Systemd:
    """One of it.

    Attributes:
        pid: its process, as this machine numbers it.
    """

    def __init__(self) -> None:
        self.pid = 0
        self._ends = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as ends:
            self._start(ends)
            self._ends = ends.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.close()

    def _start(self, ends: contextlib.ExitStack) -> None:
        if os.geteuid() != 0:
            raise NoSystemd("namespaces need root")
        if lacking := [name for name in ("unshare", "nsenter", "ip", "systemctl") if shutil.which(name) is None]:
            raise NoSystemd(f"{lacking[0]} is missing")
        place = Path(tempfile.mkdtemp(prefix="smtpproxy-systemd-"))
        ends.callback(place.rmdir)
        cgroup = _cgroup(place.name)
        ends.callback(_remove, cgroup)
        said = ends.enter_context(tempfile.TemporaryFile("w+"))  # noqa: SIM115 - closed with the rest
        process = subprocess.Popen(
            ["sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"', str(cgroup),
             "unshare", "--mount", "--pid", "--fork", "--kill-child", "--uts", "--ipc", "--net", "--cgroup",
             "sh", "-c", _PREPARE, "sh", str(place), str(REPO), sysconfig.get_path("purelib"),
             sys.base_prefix, *_TARGETS],
            stdin=subprocess.DEVNULL, stdout=said, stderr=said,
        )  # fmt: skip
        ends.callback(self._end, process)

        def running() -> bool:
            if process.poll() is not None:
                said.seek(0)
                raise NoSystemd(f"systemd cannot be started here: {said.read()[-2000:]}")
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            if not children:
                return False
            self.pid = int(children[0])
            return self.run("systemctl", "is-system-running", fails=None).strip() == "running"

        until(running)
        self.install("1", "/opt/source")
        self.point_to("1")

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        # With process 1 all of its namespace end, and it is not gone before they are.
        if self.pid and process.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()

    def until(self, true: Callable[[], bool]) -> None:
        """Look again and again until it is so; the log if it never was."""
        try:
            until(true)
        except TimeoutError as error:
            raise AssertionError(
                f"{error}\n{self.run('systemctl', 'status', 'smtpproxy', fails=None)}\n{self.read(LOG)}"
            ) from None

    def run(self, *command: str, fails: bool | None = False) -> str:
        """What a command prints, run on its root.

        Args:
            command: the program and its arguments.
            fails: whether it is to; None if that is all the same.
        """
        done = subprocess.run(
            ["nsenter", f"--target={self.pid}", "--all", "--root", "--wd", "--", *command],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip
        if fails is not None and (done.returncode != 0) is not fails:
            raise AssertionError(f"{command}: exit code {done.returncode}\n{done.stdout}\n{self.read(LOG)}")
        return done.stdout

    def install(self, version: str, source: str) -> None:
        """A version beside others, of this source on its root."""
        self.run("sh", "-c", _INSTALL, "sh", PYTHON, version, source)

    def point_to(self, version: str) -> None:
        """What /opt/smtpproxy is from now on."""
        self.run("ln", "-sfnT", f"/opt/smtpproxy-{version}", "/opt/smtpproxy")

    def units(self, *drop_ins: str, more: str = "") -> None:
        """The service as it is shipped, with these drop-ins; and one of the test's, which says where the log goes."""
        self.write("/etc/systemd/system/smtpproxy.service", shipped("smtpproxy.service"))
        for name in drop_ins:
            self.write(f"/etc/systemd/system/smtpproxy.service.d/{name}", shipped(f"drop-ins/{name}"))
        log = f"StandardOutput=append:{LOG}\nStandardError=append:{LOG}\n"
        self.write("/etc/systemd/system/smtpproxy.service.d/zz-test.conf", f"[Service]\n{log}{more}")
        self.run("systemctl", "daemon-reload")

    def server(self) -> None:
        """An SMTP server at 127.0.0.1:2525."""
        self.write("/run/units/server.service", _SERVER)
        self.run("systemctl", "daemon-reload")
        self.run("systemctl", "start", "server")

        def there() -> bool:
            with contextlib.suppress(ConnectionRefusedError), self.connect(2525):
                return True
            return False

        until(there)

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """A file on its root."""
        file = self._at(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        file.chmod(mode)

    def read(self, path: str) -> str:
        """A file on its root, "" where there is none."""
        file = self._at(path)
        return file.read_text(encoding="utf-8") if file.exists() else ""

    def _at(self, path: str) -> Path:
        return Path(f"/proc/{self.pid}/root{path}")

    def show(self, *properties: str, unit: str = "smtpproxy.service") -> Mapping[str, str]:
        """What it says of a unit."""
        lines = self.run("systemctl", "show", unit, *(f"--property={name}" for name in properties)).splitlines()
        return dict(line.split("=", 1) for line in lines)

    def status(self) -> dict[str, Any]:
        """What the proxy says of itself; nothing while nobody answers."""
        said = self.run(PROGRAM, "status", "--config", CONFIG, "--json", fails=None)
        try:
            found: dict[str, Any] = json.loads(said)
        except ValueError:
            return {}
        return found

    def process(self, pid: int) -> Mapping[str, str]:
        """/proc/PID/status of a process, by its number there."""
        return dict(
            line.split(":\t", 1) for line in self.run("cat", f"/proc/{pid}/status").splitlines() if ":\t" in line
        )

    def connect(self, port: int, host: str = "127.0.0.1") -> socket.socket:
        """A connection made in its network.

        Raises:
            OSError: there is none.
        """
        made: list[socket.socket | OSError] = []

        def there() -> None:
            libc = ctypes.CDLL(None, use_errno=True)
            with open(f"/proc/{self.pid}/ns/net") as network:
                if libc.setns(network.fileno(), _CLONE_NEWNET) != 0:
                    made.append(OSError(ctypes.get_errno(), "setns"))
                    return
            try:
                made.append(socket.create_connection((host, port), timeout=PATIENCE))
            except OSError as error:
                made.append(error)

        thread = threading.Thread(target=there)  # a namespace is a thread's
        thread.start()
        thread.join()
        (found,) = made
        if isinstance(found, OSError):
            raise found
        return found


def shipped(name: str) -> str:
    """A file of deploy/systemd/."""
    return (DEPLOY / "systemd" / name).read_text(encoding="utf-8")


@contextlib.contextmanager
def systemd() -> Iterator[Systemd]:
    """One that runs; where there can't be one the test is skipped (in CI it fails)."""
    with contextlib.ExitStack() as ends:
        try:
            host = ends.enter_context(Systemd())
        except NoSystemd as error:
            unavailable(error)
        yield host


def until(true: Callable[[], bool]) -> None:
    """Look again and again until it is so.

    Raises:
        TimeoutError: it never was.
    """
    deadline = time.monotonic() + PATIENCE
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {PATIENCE} s: {true}")
        time.sleep(0.02)


def _cgroup(name: str) -> Path:
    """A cgroup of its own below the root of the second hierarchy, wherever that is mounted."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            group = Path(where) / name
            group.mkdir()
            return group
    raise NoSystemd("there is no cgroup2")


def _remove(cgroup: Path) -> None:
    for below, _, _ in os.walk(cgroup, topdown=False):
        os.rmdir(below)
