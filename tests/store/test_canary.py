"""No secret is on any record (I8), as the disk has it: AUTH in every form, SASL lines, URLAUTH tokens of BURL.

A real gateway, with everything on that writes: the store, JSON lines beside it, full transcripts, the operational log,
metrics. Clients log in through it in clear (a rule lets them), or try to, and then every octet it wrote is looked
through for the secret, for its base64 (in each of its three alignments), and for parts of either.
"""

import base64
import contextlib
import re
import secrets
import socket
import string
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import pytest

from smtpproxy.store.reading import open_reader
from tests.metrics.watched import ON, TOLD, get
from tests.store.gateway import DEADLINE, Gateway, folder, until

PART = 8  # octets that are taken for no coincidence
RULES = """
[[rule]]
name = "all-of-it"
why = "A transcript has more octets than the record: no secret may be among them."
on = "connect"
then = { record = "full" }
"""
LET_THROUGH = """
[[rule]]
name = "auth-in-clear"
why = "So that secrets get to the server."
extension = "AUTH"
then = "allow"

[[rule]]
name = "burl"
why = "So that tokens get to the server."
extension = "BURL"
then = "allow"
"""
GOODBYE = "QUIT"
HANGUP = "(hangup)"  # the client goes without a word, in the middle of what it says


def b64(text: str) -> str:
    """As SASL lines are."""
    return base64.b64encode(text.encode()).decode()


def mechanisms(secret: str) -> dict[str, list[str]]:
    """What clients say behind EHLO. One line at a time, each behind the reply to the one before; with `|` at its end it
    is pipelined with the next; with `>` before it it is said only behind a 334."""
    plain, bearer = b64(f"\0user\0{secret}"), b64(f"user=user\x01auth=Bearer {secret}\x01\x01")
    user, password = b64("user"), b64(secret)
    urlauth = f"imap://user@imap.example/INBOX;uid=20;expire=2030-01-01T00:00:00Z;urlauth=submit+user:internal:{secret}"
    mail = ["MAIL FROM:<a@client.example>", "RCPT TO:<b@server.example>"]
    return {
        "PLAIN": [f"AUTH PLAIN {plain}"],
        "PLAIN, continued": ["AUTH PLAIN", f">{plain}"],
        "PLAIN, in lower case": [f"auth plain {plain}"],
        "PLAIN, blanks": [f"AUTH  PLAIN   {plain} "],
        "PLAIN, tabs": [f"AUTH\tPLAIN\t{plain}"],
        "LOGIN": ["AUTH LOGIN", f">{user}", f">{password}"],
        "LOGIN, user at once": [f"AUTH LOGIN {user}", f">{password}"],
        "XOAUTH2": [f"AUTH XOAUTH2 {bearer}"],
        "XOAUTH2, continued": ["AUTH XOAUTH2", f">{bearer}"],
        "XOAUTH2, refused with a challenge": [f"AUTH XOAUTH2 {b64('no')}", f">{password}"],
        "a mechanism nobody offers": [f"AUTH X-OTHER {password}"],
        "cancelled": ["AUTH LOGIN", f">{user}", ">*"],
        "cancelled late": ["AUTH XOAUTH2", f">{bearer}", ">*"],
        "cancelled with more": ["AUTH PLAIN", f">* {password}"],
        "wrong base64": [f"AUTH PLAIN !{secret}!"],
        "wrong base64, continued": ["AUTH PLAIN", f">!{secret}!"],
        "no base64 at all": ["AUTH LOGIN", f">{user}", f">{secret}"],
        "base64 too short": ["AUTH LOGIN", f">{user}", f">{password[:-1]}"],
        "base64 in two words": ["AUTH PLAIN", f">{plain[:8]} {plain[8:]}"],
        "an argument too many": [f"AUTH PLAIN {plain} {password}"],
        "no mechanism": [f"AUTH {plain}"],
        "no blank": [f"AUTHPLAIN {plain}"],
        "pipelined": ["NOOP|", f"AUTH PLAIN {plain}|", "NOOP"],
        "within a mail": [*mail, f"AUTH PLAIN {plain}", "RSET"],
        "twice": [f"AUTH PLAIN {plain}", f"AUTH PLAIN {plain}"],
        "a dialogue that is taken for another": ["AUTH LOGIN", f">AUTH PLAIN {plain}", f">{password}"],
        "a dialogue that waits for nothing": ["AUTH LOGIN|", f"{user}|", password],
        "a verb nobody knows": [f"PASS {secret}"],
        "a long one": ["AUTH PLAIN", ">" + b64("\0user\0" + secret * 200)],
        "one that is too long": ["AUTH PLAIN", ">" + b64("\0user\0" + secret * 900)],
        "gone in the middle of a line": ["AUTH PLAIN", f">{plain[:-4]}{HANGUP}"],
        "gone in the middle of the command": [f"AUTH PLAIN {plain}" + HANGUP],
        "gone before the reply": ["AUTH LOGIN", f">{user}", f">{password}|{HANGUP}"],
        "AUTH= of MAIL": [f"MAIL FROM:<a@client.example> AUTH={secret}"],
        "BURL": [*mail, f"BURL {urlauth} LAST"],
        "BURL, not the last": [*mail, f"BURL {urlauth}", "RSET"],
        "BURL without a mail": [f"BURL {urlauth} LAST"],
        "BURL, malformed": [*mail, f"BURL {urlauth} FIRST LAST", f"BURL  <{urlauth}>"],
        "BURL, a password": [*mail, f"BURL imap://user:{secret}@imap.example/INBOX;uid=20 LAST"],
    }


class Server:
    """It offers all of it, takes some passwords, and keeps what it was told."""

    def __init__(self) -> None:
        self.got = bytearray()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])
        self._threads: list[threading.Thread] = []
        threading.Thread(target=self._run, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                link, _ = self._socket.accept()
                threading.Thread(target=self._serve, args=(link,), daemon=True).start()

    def _serve(self, link: socket.socket) -> None:
        offers = ("PIPELINING", "CHUNKING", "BURL imap", "ENHANCEDSTATUSCODES", "AUTH PLAIN LOGIN XOAUTH2")
        dialogue = 0  # challenges still to come
        with contextlib.suppress(OSError), link, link.makefile("rb") as file:
            link.sendall(b"220 server.example\r\n")
            while line := file.readline():
                self.got += line
                words = line.decode("latin-1").split()
                verb = words[0].upper() if words else ""
                if dialogue:
                    dialogue = 0 if words == ["*"] else dialogue - 1
                    reply = "334 UGFzc3dvcmQ6" if dialogue else "535 5.7.8 No" if len(line) % 2 else "235 2.7.0 Yes"
                elif verb == "AUTH":
                    dialogue = {"LOGIN": 2, "XOAUTH2": 2}.get(words[1].upper(), 1) - (len(words) > 2)
                    reply = "334 " if dialogue else "235 2.7.0 Yes"
                elif verb == "EHLO":
                    reply = "".join(f"250-{word}\r\n" for word in ("server.example", *offers)) + "250 AUTH=LOGIN PLAIN"
                elif verb == "QUIT":
                    reply = "221 2.0.0 Bye"
                else:
                    reply = "250 2.0.0 Ok"
                link.sendall(reply.encode() + b"\r\n")


def talk(port: int, lines: Sequence[str]) -> None:
    """One session; it goes on for as long as it is answered."""
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE) as link, link.makefile("rb") as file:

        def reply() -> bytes:
            while (line := file.readline())[3:4] == b"-":
                pass
            return line

        with contextlib.suppress(ConnectionError):
            last = reply()
            waiting = 0
            for line in ("EHLO client.example", *lines, GOODBYE):
                if line.startswith(">") and not last.startswith(b"334"):
                    continue
                line = line.removeprefix(">")
                if line.endswith(HANGUP):
                    said, pipelined, _ = line.removesuffix(HANGUP).partition("|")
                    link.sendall(said.encode() + (b"\r\n" if pipelined else b""))
                    return
                link.sendall(line.removesuffix("|").encode() + b"\r\n")
                waiting += 1
                while waiting and not line.endswith("|"):
                    waiting -= 1
                    last = reply()
                    if not last:
                        return


def chosen() -> str:
    """A secret, of letters and digits: what verbs with odd blanks and wrong base64 are made of it stays what it is."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(32))


def shapes(secret: str) -> dict[bytes, str]:
    """Every part of the secret, and of its base64, that is long enough; what each of them is part of."""
    found: dict[bytes, str] = {}
    for name, text in {
        "the secret": secret,
        "the secret backwards": secret[::-1],
        "its hexadecimal digits": secret.encode().hex(),
        **{f"its base64, {skip} octets in": b64("\0" * skip + secret)[4 if skip else 0 : -4] for skip in range(3)},
        "base64 of its base64": b64(b64(secret))[:-4],
    }.items():
        for at in range(len(text) - PART + 1):
            found[text[at : at + PART].encode().lower()] = name
    return found


def search(secret: str, octets: bytes, where: str) -> Iterator[str]:
    """Where it is, if it is."""
    lowered = octets.lower()
    for part, name in shapes(secret).items():
        at = lowered.find(part)
        if at >= 0:
            yield f"{where} has a part of {name}: {octets[max(at - 60, 0) : at + 40]!r}"


class Watched:
    """A gateway that writes everywhere, and all that it wrote, at any time."""

    def __init__(self, base: Path, server: Server, rules: str) -> None:
        (base / "more.toml").write_text(RULES + rules)
        top = f'rules = ["{base / "more.toml"}"]'
        self.gateway = Gateway(base, server.port, beside=True, tables=ON + '[log]\nlevel = "debug"\n', top=top)
        self.written: dict[str, bytes] = {}

    def __enter__(self) -> Self:
        self.gateway.__enter__()
        self._metrics = int(self.gateway.hears(TOLD)[2])
        return self

    def __exit__(self, *_: object) -> None:
        self.gateway.__exit__()

    def look(self) -> None:
        """Keep what is there now: segments and write-ahead logs come and go."""
        gateway = self.gateway
        for path in (*gateway.directory.rglob("*"), gateway.file, gateway.stderr):
            with contextlib.suppress(FileNotFoundError):
                if path.is_file():
                    self.written[path.name] = self.written.get(path.name, b"") + path.read_bytes()
        status, text = get(self._metrics)
        assert status == 200
        self.written["metrics"] = self.written.get("metrics", b"") + text.encode()

    def found(self, secret: str) -> list[str]:
        """Where the secret is."""
        return [place for where, octets in self.written.items() for place in search(secret, octets, where)]


@pytest.mark.parametrize("rules", [LET_THROUGH, ""], ids=["let through", "shipped rules"])
def test_no_secret_is_anywhere(rules: str) -> None:
    """Whatever becomes of the line: passed, refused, cancelled, malformed, cut off."""
    secret = chosen()
    with folder() as base, Server() as server, Watched(base, server, rules) as watched:
        gateway = watched.gateway
        for lines in mechanisms(secret).values():
            talk(gateway.port, lines)
        watched.look()
        until(lambda: len(gateway.account().of("link-close")) == len(mechanisms(secret)), "sessions go on")
        watched.look()
        assert gateway.stop() == 0
        for path in (*gateway.directory.rglob("*"), gateway.file, gateway.stderr):
            if path.is_file():
                watched.written[f"{path.name} at the end"] = path.read_bytes()
        assert {"audit.db at the end", "audit.jsonl at the end", "metrics"} <= watched.written.keys()
        lines_found = b"".join(octets for name, octets in watched.written.items() if name.startswith("0"))
        assert b'"verb":"SASL"' in lines_found or not rules, "the journal was not seen"
        assert watched.found(secret) == []
        got = bytes(server.got)
        passed = [secret, b64(secret), b64(f"\0user\0{secret}")]
        assert [part.encode() in got for part in passed] == [bool(rules)] * 3, "it did not go by the gateway"
        reader = open_reader(str(gateway.directory))
        try:
            identities = {row[0] for row in reader.rows("SELECT identity FROM session WHERE identity IS NOT NULL")}
        finally:
            reader.close()
        assert identities == ({"user"} if rules else set())
        account = gateway.account()
        account.sound()
        assert any("transcript" in line for line in account.lines), "there are no transcripts to look through"


@pytest.mark.parametrize("planted", ["{secret}", "{base64}", "XYZ{part}"])
def test_what_is_no_secret_is_found(planted: str) -> None:
    """The search can fail: said in a NOOP, it is in the store, its journal and the file, in each of these shapes."""
    secret = chosen()
    text = planted.format(secret=secret, base64=b64(f"\0user\0{secret}"), part=secret[9 : 9 + PART])
    with folder() as base, Server() as server, Watched(base, server, LET_THROUGH) as watched:
        talk(watched.gateway.port, [f"NOOP {text}"])
        until(lambda: watched.gateway.account().of("link-close"), "the session goes on")
        watched.look()
        places = {re.split(" has ", place)[0] for place in watched.found(secret)}
    assert {"audit.jsonl", "00000001.jsonl"} <= places
    assert places & {"audit.db", "audit.db-wal"}
