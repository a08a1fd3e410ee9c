"""`smtpproxy demo`, run as a user runs it: its exit code says that what happened is what it teaches.

So these tests look at what a user sees: every act's key lines, the three forms (wide, narrow, in colour), --keep with a
client of the test's own. That it can fail is shown too.
"""

import os
import pty
import re
import select
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from smtpproxy.demo import script
from smtpproxy.demo.server import OFFERS, Conversation
from smtpproxy.demo.show import Screen, Strip, columns, cut
from smtpproxy.demo.tell import lines
from smtpproxy.demo.wire import Seen, Talk, What, text, unflat

RUN = [
    sys.executable,
    "-c",
    "import sys; from smtpproxy.cli import cli; cli(['demo', *['--keep'] * ('k' in sys.argv)])",
]
ESCAPE = "\x1b"
SECONDS = 20.0

# What each act must show, with the blanks between columns taken as one.
LINES = [
    # EHLO
    "250-SIZE 1048576 │ ✎ shown smaller by size-1m: Larger",
    "✂ stripped by strip-xexch50: A │ 250-XEXCH50",
    "✂ stripped: no rule and no registry │ 250-X-DEMO-TURBO 9000",
    # pipelining
    "│ EXPN staff │ ✗ refused by strip-expn: Gives away",
    "502 5.5.1 Command not implemented │ ◀── our reply, in its turn",
    "└ DATA │ ─▶ │ DATA",
    # a stripped verb, and a rule that answers
    "XEXCH50 1075 2 │ ✗ refused by strip-xexch50: A",
    "HELP │ ◆ answered here by help-from-us: The",
    # SIZE
    "MAIL FROM:<ann@client.example> SIZE=30000000 │ ✗ refused by size-1m: Larger files",
    "BDAT 1100080 LAST │ ✗ refused by size-1m: Larger files │ RSET",
    "552 5.3.4 Message too big │ ◀── our reply │ 250 2.0.0 Forgotten",
    "NOOP │ ─▶ │ NOOP",
    # BDAT
    "│ BDAT 68 │ ─▶ │ BDAT 68",
    "│ BDAT 178 LAST │ ─▶ │ BDAT 178 LAST",
    "250 2.0.0 Kept as mail 2 │ ◀─ │ 250 2.0.0 Kept as mail 2",
    # smuggling, without and with the proxy
    ". │ ⚠ read as the end of mail 1 │ .",
    "MAIL FROM:<smuggled@evil.example> │ ⚠ read as a command │ MAIL FROM:<smuggled@evil.example>",
    "One mail sent, two at the server; the second from smuggled@evil.example.",
    "Have a good day␊ │ ✎ LF alone becomes CRLF │ Have a good day",
    ". │ ✎ its dot is doubled, for it is text │ ..",
    "One mail sent, one at the server: the commands in it are lines of its text.",
    # STARTTLS
    "✂ stripped by auth-under-tls: │ 250-AUTH PLAIN",
    "STARTTLS │ ─▶ │ STARTTLS",
    "│ not told yet │ 220 2.0.0 Ready for TLS",
    "│ ⇄ first the handshake with the server │ TLSv1.3 TLS_AES_256_GCM_SHA384",
    "│ CN=mx.demo.example",
    "│ not verified: self-signed",
    "220 2.0.0 Ready for TLS │ ◀── and now it is told",
    "TLSv1.3 TLS_AES_256_GCM_SHA384 │ ⇄ then the handshake with the client.",
    "shown: self-signed │",
    "│ ✂ stripped by strip-xexch50 │ 250-XEXCH50",
    "250-AUTH PLAIN │ + offered only now by auth-under-tls: │ 250-AUTH PLAIN",
    # inside TLS
    "AUTH PLAIN <20 octets> │ ─▶ │ AUTH PLAIN <20 octets>",
    "250 2.0.0 Kept as mail 4 │ ◀─ │ 250 2.0.0 Kept as mail 4",
    # injection
    "STARTTLS │ ─▶ │ STARTTLS",
    "│ its reply stays here │ 220 2.0.0 Ready for TLS",
    "MAIL FROM:<inject@evil.example> │ ⚠ Octets of the client behind",
    "Both connections are closed; the server never saw the injected command.",
    # QUIT and the summary
    "221 2.0.0 Bye │ ◀─ │ 221 2.0.0 Bye",
    "commands 29; the record agrees with both wires on every one",
    "stripped XEXCH50, X-DEMO-TURBO, AUTH",
    "violations octets-behind-starttls",
    "mails 4 sent through the proxy, 4 at the server; 1 sent without it, 2 at the server",
    "Try it with a client of your own: smtpproxy demo --keep",
]


def environment(folder: Path, columns: int, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TERM", "LINES")}
    return {**kept, "TMPDIR": str(folder), "COLUMNS": str(columns), "TERM": "xterm", "PYTHONUTF8": "1", **more}


def run(folder: Path, width: int) -> str:
    done = subprocess.run(
        RUN, env=environment(folder, width), capture_output=True, text=True, timeout=SECONDS, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    assert ESCAPE not in done.stdout
    assert max(map(columns, done.stdout.splitlines())) <= width
    return done.stdout


def squeezed(words: str) -> str:
    """With blanks and arrows of one length, so that a line of three columns can be looked for."""
    return re.sub(r" +", " ", re.sub("─+▶", "─▶", re.sub("◀─+ │", "◀─ │", words)))


def test_three_columns(tmp_path: Path) -> None:
    began = time.monotonic()
    said = run(tmp_path, 140)
    assert time.monotonic() - began < 15.0  # 1 s on an idle machine; it must not wait for anything
    seen = squeezed(said)
    assert [line for line in LINES if line not in seen] == []
    assert re.findall(r"━━ (\d+) · (\w+)", said) == [
        ("1", "EHLO"),
        ("2", "Pipelining"),
        ("3", "A"),
        ("4", "SIZE"),
        ("5", "BDAT"),
        ("6", "Smuggling"),
        ("7", "STARTTLS"),
        ("8", "Inside"),
        ("9", "Injection"),
        ("10", "QUIT"),
    ]


def test_the_audit_stays_and_two_of_its_lines_are_shown(tmp_path: Path) -> None:
    said = run(tmp_path, 160)
    (record,) = tmp_path.iterdir()  # and nothing else
    assert re.fullmatch(r"smtpproxy-demo-.*\.jsonl", record.name)
    lines = record.read_text(encoding="utf-8").splitlines()
    assert f"{record} ({len(lines)} lines)" in said
    joined = said.replace("\n  ", "")
    assert [kind for kind in ('"asked":"EXPN staff"', '"kind":"tx-commit"') if kind not in joined] == []


@pytest.mark.parametrize("width", [100, 120])
def test_other_widths(tmp_path: Path, width: int) -> None:
    assert "┼" in run(tmp_path, width)


def test_a_terminal_without_arrows_gets_ascii(tmp_path: Path) -> None:
    done = subprocess.run(RUN, env=environment(tmp_path, 140, PYTHONIOENCODING="ascii"), capture_output=True)
    assert done.returncode == 0
    said = re.sub(r"-+>", "->", re.sub(r" +", " ", done.stdout.decode("ascii")))
    assert "| EXPN staff | x refused by strip-expn: Gives away" in said
    assert "NOOP | -> | NOOP" in said
    assert "?" not in said


@pytest.mark.parametrize("width", [40, 80, 99])
def test_a_narrow_terminal_gets_lines_with_arrows(tmp_path: Path, width: int) -> None:
    said = run(tmp_path, width)
    assert "┼" not in said
    for line in (" C→S  EHLO client.example\n", "  ←S  250-XEXCH50\n", " C→   │ EXPN staff\n", "  →S  RSET\n"):
        assert line in said
    assert re.search(r"^   P  ✗ refused by strip-expn:", said, re.MULTILINE)


@pytest.mark.parametrize(("more", "colours"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)])
def test_colours_on_a_terminal(tmp_path: Path, more: dict[str, str], colours: bool) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(RUN, env=environment(tmp_path, 140, **more), stdout=theirs, stdin=theirs) as process:
        os.close(theirs)
        said = b""
        until = time.monotonic() + SECONDS
        while time.monotonic() < until and select.select([ours], [], [], SECONDS)[0]:
            try:
                octets = os.read(ours, 65_536)
            except OSError:  # Linux: the other side is closed
                break
            said += octets
        os.close(ours)
        assert process.wait(SECONDS) == 0
    seen = said.decode()
    assert (ESCAPE in seen) is colours
    plain = squeezed(re.sub(r"\x1b\[[0-9;]*m", "", seen))
    assert ESCAPE not in plain
    assert [line for line in LINES if line not in plain] == []
    if colours:
        assert re.search(r"\x1b\[1;31m✗ refused", seen)
        assert seen.count(ESCAPE) % 2 == 0  # each one is taken back


def test_a_reader_that_goes_away_is_no_traceback(tmp_path: Path) -> None:
    with subprocess.Popen(
        RUN, env=environment(tmp_path, 100), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(SECONDS) in (0, 1)
        assert "Traceback" not in process.stderr.read()


# ------------------------------------------------------------------------------------------------------------- --keep


class Kept:
    """A demo with --keep: its port, and what it has shown."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        self.process = process
        self._out = process.stdout.fileno()
        self.said = ""
        self.until("Ctrl-C ends it")
        found = re.search(r"smtpproxy demo: talk to 127\.0\.0\.1:(\d+) \(e\.g\. swaks --server ", self.said)
        assert found, self.said
        self.port = int(found[1])

    def until(self, words: str) -> None:
        end = time.monotonic() + SECONDS
        while words not in squeezed(self.said):
            assert time.monotonic() < end, self.said
            if select.select([self._out], [], [], 0.5)[0]:
                octets = os.read(self._out, 65_536)
                assert octets, self.said
                self.said += octets.decode()


@contextmanager
def kept(folder: Path) -> Iterator[Kept]:
    process = subprocess.Popen([*RUN, "k"], env=environment(folder, 140), stdout=subprocess.PIPE)
    try:
        yield Kept(process)
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def told(sock: socket.socket, octets: bytes, replies: int) -> bytes:
    """Send, and read so many replies."""
    sock.sendall(octets)
    got = b""
    while len(re.findall(rb"(?m)^\d{3} .*\r$", got)) < replies:
        piece = sock.recv(65_536)
        assert piece, got
        got += piece
    return got


def test_keep_shows_the_users_own_conversation_and_ends_in_order(tmp_path: Path) -> None:
    with kept(tmp_path) as demo:
        with socket.create_connection(("127.0.0.1", demo.port), SECONDS) as client:
            told(client, b"", 1)
            assert b"XEXCH50" not in told(client, b"EHLO me.example\r\n", 1)
            demo.until("EHLO me.example │ ─▶ │ EHLO me.example")  # live
            assert told(client, b"VRFY a\r\nNOOP\r\n", 2).startswith(b"252 ")
            told(client, b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n", 3)
            told(client, b"Subject: \x1b[31m\r\n\r\nx\n.\nend\r\n.\r\n", 1)
            told(client, b"AUTH PLAIN AHNlY3JldABzZWNyZXQ=\r\nQUIT\r\n", 2)
        demo.until("conversation 1 is over")
        with socket.create_connection(("127.0.0.1", demo.port), SECONDS) as client:
            told(client, b"HELO only-lf\n", 2)
        demo.until("HELO only-lf␊ │ ⚠ The client ended a command line")
        with socket.create_connection(("127.0.0.1", demo.port), SECONDS) as client:
            told(client, b"HELO idle\r\n", 2)
            began = time.monotonic()
            demo.process.send_signal(signal.SIGINT)
            assert told(client, b"", 1).startswith(b"421 Service")
            assert client.recv(1) == b""
        assert demo.process.wait(SECONDS) == 0
        assert time.monotonic() - began < 8.0
        demo.until("smtpproxy demo: ended in order")
    seen = squeezed(demo.said)
    assert ESCAPE not in seen
    assert "Subject: \\x1b[31m" in seen
    assert "x␊ │ ✎ LF alone becomes CRLF │ x" in seen
    assert ".␊ │ ✎ LF alone becomes CRLF and its dot" in seen
    assert "AUTH PLAIN <20 octets>" in seen
    assert "AHNl" not in seen
    assert "421 Service shutting down, try again later │ ◀── our reply" in seen


def test_keep_shows_a_conversation_that_goes_under_tls(tmp_path: Path) -> None:
    """The tap can't read it any more: what the client says is taken from the record."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with kept(tmp_path) as demo:
        with socket.create_connection(("127.0.0.1", demo.port), SECONDS) as client:
            told(client, b"EHLO me.example\r\n", 2)
            assert told(client, b"STARTTLS\r\n", 1).startswith(b"220 ")
            with context.wrap_socket(client, server_hostname="mx.demo.example") as inside:
                assert b"AUTH PLAIN" in told(inside, b"EHLO inside.example\r\n", 1)
                assert told(inside, b"AUTH PLAIN\r\n", 1).startswith(b"334 ")
                assert told(inside, b"AHNlY3JldABzZWNyZXQ=\r\n", 1).startswith(b"235 ")
                demo.until("inside.example │ ─▶ │ EHLO inside.example")  # live
                told(inside, b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n", 3)
                told(inside, b"Subject: x\r\n\r\nx\n.\nend\r\n.\r\n", 1)
                told(inside, b"EXPN staff\r\nQUIT\r\n", 2)
        demo.until("conversation 1 is over")
        with socket.create_connection(("127.0.0.1", demo.port), SECONDS) as client:
            told(client, b"EHLO me.example\r\n", 2)
            client.sendall(b"STARTTLS\r\nMAIL FROM:<inject@evil.example>\r\n")
            assert client.recv(1) == b""
        demo.until("conversation 2 is over")
        with socket.create_connection(("127.0.0.1", demo.port), SECONDS) as client:
            told(client, b"EHLO me.example\r\n", 2)
            told(client, b"STARTTLS\r\n", 1)
            client.sendall(b"NOOP\r\n")  # not a ClientHello
            assert client.recv(1) == b""
        demo.until("conversation 3 is over")
        with socket.create_connection(("127.0.0.1", demo.port), SECONDS) as client:
            told(client, b"EHLO me.example\r\n", 2)
            told(client, b"STARTTLS\r\n", 1)
            with context.wrap_socket(client, server_hostname="mx.demo.example") as inside:
                told(inside, b"EHLO idle.example\r\n", 1)
                demo.process.send_signal(signal.SIGINT)
                assert told(inside, b"", 1).startswith(b"421 ")
        assert demo.process.wait(SECONDS) == 0
        demo.until("smtpproxy demo: ended in order")
    seen = squeezed(demo.said.partition("your conversation 1")[2])
    for line in (
        "250-AUTH PLAIN │ + offered only now by auth-under-tls: │ 250-AUTH PLAIN",
        "250-SIZE 1048576 │ ✎ shown smaller by size-1m │ 250-SIZE 52428800",
        "AUTH PLAIN │ ─▶ │ AUTH PLAIN",
        "<20 octets> │ ─▶ │ <20 octets>",
        "… 25 octets │ │ Subject: x",
        "│ ✎ CR or LF alone, or NUL, in the",
        "EXPN staff │ ✗ refused by strip-expn:",
        "502 5.5.1 Command not implemented │ ◀── our reply",
        "MAIL FROM:<inject@evil.example> │ ⚠ Octets of the client behind",
        "⚠ A TLS handshake failed; nothing was",
        "(no",
        "421 4.3.2",
    ):
        assert line in seen
    assert "AHNl" not in seen


def test_keep_bears_clients_that_break_off(tmp_path: Path) -> None:
    with kept(tmp_path) as demo:
        client = socket.create_connection(("127.0.0.1", demo.port), SECONDS)
        told(client, b"EHLO a\r\n", 2)
        told(client, b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n", 3)
        client.sendall(b"Subject: half a ma")
        client.close()
        demo.until("conversation 1 is over")
        client = socket.create_connection(("127.0.0.1", demo.port), SECONDS)
        told(client, b"EHLO a\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n", 5)
        told(client, b"y" * 1_200_000 + b"\r\n.\r\n", 1)
        client.close()
        demo.until("conversation 2 is over")
        demo.process.send_signal(signal.SIGTERM)
        assert demo.process.wait(SECONDS) == 0
    seen = squeezed(demo.said.partition("your conversation 1")[2])
    assert "⚠ The client's link ended in the" in seen
    assert "│ ✗ refused by size-1m: Larger files" in seen
    assert "✓ on record" not in seen


# ---------------------------------------------------------------------------------------------------- that it can fail


@pytest.mark.parametrize(
    ("offers", "why"),
    [
        (("PIPELINING", "SIZE 52428800"), "XEXCH50 is stripped"),
        (tuple(word for word in OFFERS if word != "STARTTLS"), r"the client sent 'STARTTLS.*' and was told '502'"),
        (tuple(word for word in OFFERS if word != "AUTH PLAIN"), "AUTH is offered inside TLS only"),
    ],
)
def test_it_fails_when_something_else_happens(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    offers: tuple[str, ...],
    why: str,
) -> None:
    from smtpproxy.demo import run_demo

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("smtpproxy.demo.server.OFFERS", offers)
    assert run_demo(colour=False) == 1
    assert re.search(f"what happened is not what it teaches: {why}", capfd.readouterr().err)


def test_a_record_that_says_something_else_is_found() -> None:
    client = Seen()
    client.received(b"220 hi\r\n")
    client.sent(b"NOOP\r\n")
    client.received(b"250 ok\r\n")
    talk = Talk(client, [])
    greeting = {"kind": "exchange", "verb": "GREETING", "asked": "(connect)", "sent": None, "told": "220 hi"}
    talk.record({**greeting, "action": "pass"})
    noop = {"kind": "exchange", "verb": "NOOP", "asked": "NOOP", "sent": None, "told": "250 fine", "action": "pass"}
    talk.record(noop)
    assert [row.disagreement() for row in talk.take()] == ["", "told '250 fine' on record, '250 ok' on the wire"]


# ---------------------------------------------------------------------------------------------------------- the pieces


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_a_client_is_read_strictly_in_any_cut(size: int) -> None:
    seen = Seen()
    seen.received(b"220-a\r\n220 b\r\n")
    said = b"BDAT 4\r\n\r\n.\rNOOP\r\nDATA\r\n"
    for at in range(0, len(said), size):
        seen.sent(said[at : at + size])
    content = b".\n.\r\nx\r\n..\r\n\n.\r\n.\r\n"
    seen.sent(content + b"QUIT\r\n")  # behind DATA: not read before its reply
    assert [turn.verb for turn in seen.turns] == [b"", b"BDAT", b"NOOP", b"DATA"]
    seen.received(b"250 ok\r\n250 ok\r\n354 go\r\n")
    assert (seen.turns[1].chunk, seen.turns[4].octets) == (b"\r\n.\r", content)
    assert [turn.what for turn in seen.turns[4:]] == [What.CONTENT, What.COMMAND]
    seen.received(b"250 ok\r\n221 bye\r\n421 more\r\n")
    assert [turn.reply[:3] for turn in seen.turns] == [b"220", b"250", b"250", b"354", b"250", b"221"]
    assert seen.told[-1] == b"421 more\r\n"


@pytest.mark.parametrize(("end", "mails"), [(b"\n.\n", 2), (b"\n.\r\n", 2), (b"\r\n.\r\n", 2), (b"\r.\r\n", 1)])
async def test_the_server_is_as_lenient_as_it_says(end: bytes, mails: int) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    server = Conversation(theirs, lambda: None)
    envelope = b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n"
    with trio.fail_after(SECONDS):
        await ours.send_all(envelope + b"one" + end + envelope + b"..two\r\n.\r\nQUIT\r\n")
        await server.run()
    assert len(server.mails) == mails
    assert server.mails[-1].content.endswith(b".two\r\n")


def test_lines_show_what_is_no_line_end_and_nothing_a_terminal_obeys() -> None:
    assert lines(b"a\r\nb\nc\rd") == [("a", 3), ("b␊", 2), ("c␍", 2), ("d", 1)]
    assert lines(b"\r\n") == [("", 2)]
    assert lines(b"") == []
    assert text("é\x1b\x9b\u202e".encode() + b"\xff\0") == "é\\x1b\\x9b\\x202e\\xff\\x00"


@pytest.mark.parametrize(
    ("told", "lines"),
    [
        ("250 mx SIZE 9 HELP", [b"250-mx", b"250-SIZE 9", b"250 HELP"]),
        ("250 mx SIZE 5 HELP", [b"250-mx", b"250-SIZE 5", b"250 HELP"]),
        ("250 mx HELP", [b"250-mx", b"250 HELP"]),
        ("250 mx", [b"250 mx"]),
        ("250 something else", [b"250 something else"]),
        ("", [b""]),
    ],
)
def test_a_list_on_record_gets_its_lines_back(told: str, lines: list[bytes]) -> None:
    assert unflat(told, b"250-mx\r\n250-SIZE 9\r\n250 HELP\r\n").split(b"\r\n")[: len(lines)] == lines
    assert unflat("502 no", b"") == b"502 no\r\n"


def test_wide_characters_and_long_lines_are_cut_by_columns() -> None:
    assert cut("日本語", 6) == "日本語"
    assert cut("日本語だ", 6) == "日本…"
    assert cut("x" * 2_000_000, 4) == "xxx…"
    said: list[str] = []
    Screen(said.append, 100, colour=False).strips([Strip("日本語" * 30, "é" * 90, "why " * 20)])
    assert {columns(line.rstrip("\n")) <= 100 for line in said} == {True}


def test_expect_says_what_was_expected() -> None:
    with pytest.raises(script.NotAsTaughtError, match=r"^two mails$"):
        script.expect(False, "two mails")


@pytest.mark.parametrize("width", [-3, 0, 1, 2, 5])
@pytest.mark.timeout(10)
def test_a_line_is_cut_to_any_width(width: int) -> None:
    """However little room there is, it ends: and never takes more than there is."""
    for line in ("", "x", "a long line of text", "全角文字"):
        assert columns(cut(line, width)) <= max(width, 0)
