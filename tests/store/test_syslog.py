"""Syslog messages read by a reader of their own (RFC 5424 §6, RFC 6587 §3.4.1), and servers that misbehave."""

import contextlib
import re
import socket
import ssl
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from smtpproxy.audit.entries import entry_of, leaf_of
from smtpproxy.store.following import Followers
from smtpproxy.store.sinks import Pace, Policy, SinkDownError
from smtpproxy.store.store import Store
from smtpproxy.store.syslog import FACILITIES, SMALLEST, Form, SyslogSink, Target, checkpoint_message, message
from tests.store.filling import Writer, lines
from tests.store.signing import checkpoint, signer

DEADLINE = 20.0
FORM = Form("gw.example")
_HEAD = re.compile(
    rb"<(?P<pri>[0-9]{1,3})>1 (?P<at>-|[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,6})?Z)"
    rb" (?P<host>[!-~]{1,255}) (?P<app>[!-~]{1,48}) (?P<proc>[!-~]{1,128}) (?P<msgid>[!-~]{1,32}) (?P<rest>.*)",
    re.DOTALL,
)
_PARAM = re.compile(rb' ([!#-<>-\\^-~]{1,32})="((?:[^"\\\]]|\\.)*)"', re.DOTALL)


class Read(NamedTuple):
    """A message, taken apart."""

    facility: int
    severity: int
    at: str
    host: str
    app: str
    procid: str
    msgid: str
    data: dict[str, str]
    msg: bytes


def read(octets: bytes) -> Read:
    """By the grammar of RFC 5424 §6, written from it."""
    found = _HEAD.fullmatch(octets)
    assert found is not None, octets[:200]
    pri = int(found["pri"])
    assert pri < 192
    rest = found["rest"]
    assert rest.startswith(b"[smtpproxy@32473")
    at, data = len(b"[smtpproxy@32473"), {}
    while param := _PARAM.match(rest, at):
        assert param[1].decode() not in data
        data[param[1].decode()] = re.sub(rb"\\(.)", rb"\1", param[2]).decode()
        at = param.end()
    assert rest[at : at + 2] == b"] ", rest[at : at + 40]
    stamp, host, app, procid, msgid = (found[name].decode() for name in ("at", "host", "app", "proc", "msgid"))
    return Read(pri // 8, pri % 8, stamp, host, app, procid, msgid, data, rest[at + 2 :])


def framed(messages: list[bytes]) -> bytes:
    """As they go over a stream."""
    return b"".join(b"%d %b" % (len(one), one) for one in messages)


def frames(octets: bytes) -> list[bytes]:
    """Octet counting."""
    found = []
    while octets:
        length, _, octets = octets.partition(b" ")
        assert length.isdigit()
        assert not length.startswith(b"0")
        assert len(octets) >= int(length)
        found.append(octets[: int(length)])
        octets = octets[int(length) :]
    return found


# ------------------------------------------------------------------------------------------------------------ messages


def test_every_record_is_a_message() -> None:
    for number, line in enumerate(lines(60)):
        found = read(message(number, line, FORM))
        assert found.msg == line
        assert found.data == {"n": str(number), "leaf": leaf_of(line).hex()}
        assert (found.facility, found.host, found.app) == (FACILITIES["mail"], "gw.example", "smtpproxy")
        assert f'"session":"{found.procid}"'.encode() in line
        assert f'"kind":"{found.msgid}"'.encode() in line
        assert f'"at":"{found.at}"'.encode() in line


@pytest.mark.parametrize(("name", "number"), [("kern", 0), ("mail", 2), ("audit", 13), ("local0", 16), ("local7", 23)])
def test_facilities(name: str, number: int) -> None:
    line = Writer().line("s-1", "worker-died", {"worker": "x"})
    found = read(message(1, line, Form("h", FACILITIES[name])))
    assert (found.facility, found.severity) == (number, 3)


def test_what_is_too_long_goes_as_its_entry() -> None:
    writer = Writer()
    line = writer.line("s-1", "exchange", {"verb": "NOOP"}, {"asked": "x" * 5000})
    found = read(message(1, line, Form("h", longest=2048)))
    assert found.msg == entry_of(line)
    assert found.data == {"n": "1", "leaf": leaf_of(line).hex(), "octets": str(len(line)), "as": "entry"}
    assert sha256(b"\0" + found.msg).hexdigest() == found.data["leaf"]


def test_what_is_longer_still_is_cut_off() -> None:
    """At a character; and it says that it is."""
    line = Writer().line("s-1", "note", {"why": "ä" * 5000})
    for longest in range(SMALLEST, SMALLEST + 4):
        octets = message(1, line, Form("h", longest=longest))
        found = read(octets)
        assert longest - 1 <= len(octets) <= longest
        assert line.startswith(found.msg)
        assert found.msg.decode()
        assert (found.data["octets"], found.data["as"]) == (str(len(line)), "beginning")


def test_without_what_is_about_persons() -> None:
    line = Writer().line("s-1", "exchange", {"verb": "MAIL"}, {"asked": "MAIL FROM:<ann@x.example>"})
    found = read(message(1, line, Form("h", personal=False)))
    assert found.msg == entry_of(line)
    assert b"ann" not in found.msg
    assert found.data["as"] == "entry"


def test_a_byte_order_mark() -> None:
    line = Writer().line("s-1", "note", {})
    assert read(message(1, line, Form("h", bom=True))).msg == b"\xef\xbb\xbf" + line


@pytest.mark.parametrize("host", ["", "a b", "ä", "x" * 256, 'a"]'])
def test_names_that_are_none(host: str) -> None:
    line = Writer().line("s 1", "k" * 33, {})
    found = read(message(1, line, Form(host)))
    assert found.host == (host if host == 'a"]' else "-")
    assert (found.procid, found.msgid) == ("-", "-")


@given(st.binary(max_size=300))
def test_any_line_makes_one_message(line: bytes) -> None:
    """Nothing that a line holds can end the message, or be taken for another."""
    one, two = message(1, line, FORM), message(2, line, FORM)
    assert frames(b"".join(b"%d %b" % (len(each), each) for each in (one, two))) == [one, two]
    assert read(one).msg == line


def test_a_checkpoint(tmp_path: Path) -> None:
    found = read(checkpoint_message(17, "origin\n17\nroot\n\n— x y\n", "2026-11-24T10:00:00Z", FORM))
    assert (found.msgid, found.procid, found.severity, found.data) == ("audit-checkpoint", "-", 5, {"size": "17"})
    assert found.msg.decode() == "origin\n17\nroot\n\n— x y\n"


# ------------------------------------------------------------------------------------------------------------- servers


class Server:
    """Takes connections, one after the other, and keeps what each was sent."""

    def __init__(self, context: ssl.SSLContext | None = None, *, after: int = 1 << 60, reads: bool = True) -> None:
        self._sock = socket.create_server(("127.0.0.1", 0))
        self.port = self._sock.getsockname()[1]
        self._context, self._after, self._reads = context, after, reads
        self.received: list[bytes] = []
        self.errors: list[str] = []
        self._open: list[socket.socket] = []
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                link, _ = self._sock.accept()
            except OSError:
                return
            self._open.append(link)
            try:
                link.settimeout(DEADLINE)
                if self._context is not None:
                    link = self._context.wrap_socket(link, server_side=True)
                    self._open.append(link)
                self._take(link)
            except OSError as error:
                self.errors.append(str(error))

    def _take(self, link: socket.socket) -> None:
        with self._changed:
            self.received.append(b"")
            self._changed.notify_all()
        while self._reads:
            octets = link.recv(65536)
            with self._changed:
                self.received[-1] += octets
                self._changed.notify_all()
            if not octets:
                return
            if len(self.received[-1]) >= self._after:
                self._after = 1 << 60
                link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                link.close()
                return

    def wait(self, what: Any) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: what(self.received), DEADLINE), self.errors

    def close(self) -> None:
        self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        for link in self._open:
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)
            link.close()
        self._thread.join(DEADLINE)


@contextlib.contextmanager
def server(context: ssl.SSLContext | None = None, **more: Any) -> Iterator[Server]:
    made = Server(context, **more)
    try:
        yield made
    finally:
        made.close()


def sink_to(port: int, context: ssl.SSLContext | None = None, patience: float = 5.0) -> SyslogSink:
    return SyslogSink("s", Target("127.0.0.1", port, context=context), FORM, patience=patience)


BATCH = list(enumerate(lines(30)))
WHOLE = [message(number, line, FORM) for number, line in BATCH]


def test_over_tcp() -> None:
    with server() as there:
        sink = sink_to(there.port)
        sink.send(BATCH)
        sink.send(BATCH[:3])
        there.wait(lambda received: received[:1] == [framed(WHOLE + WHOLE[:3])])
        sink.close()
        assert len(there.received) == 1  # one connection


def certificates(host: str = "127.0.0.1") -> tuple[ssl.SSLContext, ssl.SSLContext, trustme.CA]:
    ca = trustme.CA()
    there, here = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    ca.issue_cert(host).configure_cert(there)
    ca.configure_trust(here)
    return there, here, ca


def test_over_tls() -> None:
    theirs, ours, _ = certificates()
    with server(theirs) as there:
        sink = sink_to(there.port, ours)
        sink.send(BATCH)
        there.wait(lambda received: received[:1] == [framed(WHOLE)])
        sink.close()


def test_a_certificate_that_is_for_another() -> None:
    theirs, ours, _ = certificates("198.51.100.1")
    with server(theirs) as there:
        sink = sink_to(there.port, ours)
        with pytest.raises(SinkDownError, match=r"its certificate is not trusted: .*not valid for '127.0.0.1'"):
            sink.send(BATCH)
        assert there.received == []


def test_a_server_that_wants_a_certificate_of_ours() -> None:
    """TLS 1.3 tells only after the handshake: nothing counts as sent before that."""
    theirs, ours, ca = certificates()
    theirs.verify_mode = ssl.CERT_REQUIRED
    ca.configure_trust(theirs)
    with server(theirs) as there:
        sink = sink_to(there.port, ours)
        with pytest.raises(SinkDownError, match="TLS: "):
            sink.send(BATCH)
        ca.issue_cert("proxy.example").configure_cert(ours)
        sink.send(BATCH)
        there.wait(lambda received: received[-1:] == [framed(WHOLE)])
        sink.close()


def test_nobody_is_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    with pytest.raises(SinkDownError, match=f"syslog 127.0.0.1:{port}: connection refused"):
        sink_to(port).send(BATCH)


def test_a_server_that_takes_nothing() -> None:
    """It is not waited for for ever."""
    with server(reads=False) as there:
        sink = sink_to(there.port, patience=0.3)
        many = [(number, b"x" * 8000) for number in range(2000)]
        begun = time.monotonic()
        with pytest.raises(SinkDownError, match=r"timed out|it does not take what it is sent"):
            sink.send(many)
        assert time.monotonic() - begun < DEADLINE


def test_a_connection_that_breaks_in_the_middle_of_a_batch() -> None:
    """The batch is sent again, on a new one: nothing is left out, and no half message stands before a whole one."""
    with server(after=3000) as there:
        sink = sink_to(there.port)
        with pytest.raises(SinkDownError):
            sink.send(BATCH * 200)
        sink.send(BATCH)
        there.wait(lambda received: len(received) == 2 and received[1:] == [framed(WHOLE)])
        sink.close()


def test_a_server_that_was_started_anew_between_two_batches() -> None:
    """What went to the old connection does not count, and is sent again."""
    with server() as there:
        sink = sink_to(there.port)
        sink.send(BATCH[:5])
        there.wait(lambda received: received[:1] == [framed(WHOLE[:5])])
        for link in list(there._open):
            link.shutdown(socket.SHUT_RDWR)
        try:
            sink.send(BATCH[5:])
        except SinkDownError:  # the end of the old one was seen only behind what was written
            sink.send(BATCH[5:])
        there.wait(lambda received: len(received) == 2 and received[1:] == [framed(WHOLE[5:])])
        sink.close()


def test_a_local_socket(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as there:
        there.bind(str(tmp_path / "log"))
        there.settimeout(DEADLINE)
        sink = SyslogSink("s", Target(path=str(tmp_path / "log")), FORM)
        sink.send(BATCH[:3])
        assert [there.recv(65536) for _ in range(3)] == WHOLE[:3]
        sink.close()
    with pytest.raises(SinkDownError, match="log: connection refused"):
        sink.send(BATCH[:1])


def test_it_follows_a_store(tmp_path: Path) -> None:
    """With checkpoints; and who reads them can prove what he was sent."""
    store = Store(tmp_path, create=True)
    writer = Writer()
    with server() as there:
        followers = Followers(
            store, [(sink_to(there.port), Policy(history=True))], lambda name, why: None, pace=Pace(idle=0.01)
        )
        for _ in range(3):
            store.append(list(lines(5, writer=writer)))
            checkpoint(store, signer())
            followers.write(at_once=True)
        there.wait(lambda received: received and f'size="{store.size}"'.encode() in received[0])
        assert followers.stop() == []
        found = [read(octets) for octets in frames(there.received[0])]
    told = [one for one in found if one.msgid != "audit-checkpoint"]
    assert [(int(one.data["n"]), one.msg) for one in told] == list(store.lines(0))
    last = next(one for one in reversed(found) if one.msgid == "audit-checkpoint")
    assert b64encode(store.frontier.root()) in last.msg
    store.close()
