"""The proxies that are measured: what each needs, its private configuration, its command in the foreground.

A peer is given an empty directory of its own, a free port to listen on, and the server's port. It must stay in the
foreground and in the process session it is started in: that is how it is measured and ended.
"""

import importlib.util
import os
import pwd
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

HOST = "127.0.0.1"
PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/local/sbin"
LARGEST = 50 << 20  # octets of a mail, where a peer wants to be told


class Place(NamedTuple):
    """Where a peer runs."""

    directory: Path
    port: int
    server: int


class Peer(NamedTuple):
    """One proxy. Without a command it is none: the client talks to the server itself."""

    name: str
    command: Callable[[Place], list[str]] | None
    missing: Callable[[], str]  # why it can't run here; "" if it can
    idle: int = 500  # W5: sessions it holds at once as it is configured
    audit: str = ""  # the record it keeps, in its directory; looked at after a run


def find(program: str) -> str | None:
    """The path of an installed program; Debian keeps servers where not every user looks."""
    return shutil.which(program, path=PATH)


def _needs(*programs: str, root: bool = False) -> Callable[[], str]:
    def missing() -> str:
        for program in programs:
            if find(program) is None:
                return f"{program} is not installed"
        return "it needs root" if root and os.geteuid() != 0 else ""

    return missing


# ------------------------------------------------------------------------------------------------------------ smtpproxy


def _smtpproxy(at: Place, workers: int = 1) -> list[str]:
    """As a user would: the shipped rules, the record in a file. One worker: others have one process or thread, too."""
    options = ["--listen", f"{HOST}:{at.port}", "--server", f"{HOST}:{at.server}", f"--workers={workers}"]
    return [sys.executable, "-m", "smtpproxy", "serve", *options, "--audit", str(at.directory / "audit.jsonl")]


def _smtpproxy_two(at: Place) -> list[str]:
    return _smtpproxy(at, 2)


# -------------------------------------------------------------------------------------------------------------- HAProxy

HAPROXY = """\
global
    maxconn 4000
    nbthread 1
defaults
    mode tcp
    timeout connect 5s
    timeout client 5m
    timeout server 5m
listen smtp
    bind {host}:{port} backlog 1000
    server sink {host}:{server}
"""


def _haproxy(at: Place) -> list[str]:
    """Octets from here to there, nothing understood: what forwarding alone costs in C."""
    config = at.directory / "haproxy.cfg"
    config.write_text(HAPROXY.format(host=HOST, port=at.port, server=at.server))
    return [find("haproxy") or "", "-db", "-f", str(config)]


# -------------------------------------------------------------------------------------------------------------- Postfix

MAIN = """\
compatibility_level = 3.6
queue_directory = {directory}/queue
data_directory = {directory}/data
maillog_file = {directory}/maillog
maillog_file_prefixes = {directory}
myhostname = postfix.bench.example
mydestination = bench.example
mynetworks = 127.0.0.0/8
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
local_recipient_maps =
alias_maps =
alias_database =
smtpd_peername_lookup = no
smtpd_relay_restrictions = permit_mynetworks, reject
smtpd_recipient_restrictions =
smtpd_client_connection_count_limit = 0
message_size_limit = {largest}
default_process_limit = 150
"""
MASTER = """\
{host}:{port} inet n - n - - smtpd -o smtpd_proxy_filter={host}:{server}
pickup   unix n - n 60  1 pickup
cleanup  unix n - n -   0 cleanup
qmgr     unix n - n 300 1 qmgr
rewrite  unix - - n -   - trivial-rewrite
bounce   unix - - n -   0 bounce
defer    unix - - n -   0 bounce
proxymap unix - - n -   - proxymap
anvil    unix - - n -   1 anvil
postlog  unix-dgram n - n - 1 postlogd
"""
QUEUES = (
    *("active", "bounce", "corrupt", "defer", "deferred", "flush", "hold"),
    *("incoming", "maildrop", "pid", "private", "public", "saved", "trace"),
)


def _postfix(at: Place) -> list[str]:
    """A before-queue proxy (SMTPD_PROXY_README): every command understood, the mail streamed, nothing queued.

    master is started itself: `postfix start-fg` would put it into a process session of its own.
    """
    values = {**at._asdict(), "host": HOST, "largest": LARGEST}
    entry = pwd.getpwnam("postfix")
    config, data = at.directory / "config", at.directory / "data"
    config.mkdir()
    (config / "main.cf").write_text(MAIN.format(**values))
    (config / "master.cf").write_text(MASTER.format(**values))
    data.mkdir()
    os.chown(data, entry.pw_uid, entry.pw_gid)
    for name in QUEUES:
        queue = at.directory / "queue" / name
        queue.mkdir(parents=True)
        if name != "pid":
            os.chown(queue, entry.pw_uid, entry.pw_gid)
    return ["/usr/lib/postfix/sbin/master", "-c", str(config), "-d"]


# ------------------------------------------------------------------------------------------------------------- aiosmtpd


def _aiosmtpd(at: Place) -> list[str]:
    return [sys.executable, __file__, str(at.port), str(at.server)]


def _aiosmtpd_missing() -> str:
    return "" if importlib.util.find_spec("aiosmtpd") else "aiosmtpd is not installed beside this Python"


def serve_aiosmtpd(port: int, server: int) -> None:
    """aiosmtpd's own Proxy handler: the mail is held whole, then sent on by smtplib."""
    from aiosmtpd.controller import Controller
    from aiosmtpd.handlers import Proxy

    controller: Any = Controller(Proxy(HOST, server), hostname=HOST, port=port, data_size_limit=LARGEST)
    controller.start()
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    controller.stop()


PEERS = {
    peer.name: peer
    for peer in (
        Peer("direct", None, _needs()),
        Peer("smtpproxy", _smtpproxy, _needs(), audit="audit.jsonl"),
        Peer("smtpproxy-2", _smtpproxy_two, _needs(), audit="audit.jsonl"),
        Peer("haproxy", _haproxy, _needs("haproxy")),
        Peer("postfix", _postfix, _needs("postfix", root=True), idle=100),  # a process each
        Peer("aiosmtpd", _aiosmtpd, _aiosmtpd_missing),
    )
}

if __name__ == "__main__":
    serve_aiosmtpd(*map(int, sys.argv[1:3]))
