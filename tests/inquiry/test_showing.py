"""A session of the record, for people."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from smtpproxy.audit.entries import entry_of
from smtpproxy.inquiry.fourcolumns import Columns
from smtpproxy.inquiry.showing import find, nearest, of_message, shown
from smtpproxy.store.reading import open_reader
from smtpproxy.store.store import Store
from tests.inquiry.mails import of_the_page
from tests.store.filling import Writer


def told(*lines: bytes, full: bool = False, width: int = 150) -> list[str]:
    """As it is printed, without colour."""
    found = shown(list(enumerate(lines)), Columns(width, whole=full), full=full)
    return ["".join(text for text, _ in pieces) for pieces in found]


def colours(*lines: bytes) -> dict[str, str]:
    """Colours by the texts that have them."""
    pieces = (piece for line in shown(list(enumerate(lines)), Columns(150)) for piece in line)
    return {text.strip(): colour for text, colour in pieces if colour and text.strip()}


@pytest.fixture
def writer() -> Writer:
    return Writer()


def connected(writer: Writer, **more: Any) -> bytes:
    personal = {"client": "192.0.2.1:40000", "local": "192.0.2.25:25"}
    return writer.line("s-1", "link-connect", {"listener": "in", "server": "mx:25", **more}, personal)


def one(writer: Writer, **more: Any) -> str:
    """An exchange, and what is said below it."""
    lines = told(connected(writer), writer.exchange("s-1", "RCPT", "RCPT TO:<a@b.example>", "250 Ok", **more))
    at = next(number for number, line in enumerate(lines) if "RCPT TO" in line)
    return "\n".join(line.strip() for line in lines[at:])


def test_a_whole_session(writer: Writer) -> None:
    lines = writer.session(
        tls="TLSv1.3", identity="ann", message_id="<1@x>", refused=("c@example.net",), rule="big-ones"
    )
    found = "\n".join(told(*lines))
    for said in (
        "0123456789-1  2026-11-16 10:00:00 UTC, 0.015 s\n",
        "records      0 to 15\n",
        "client       192.0.2.1:40000, called itself client.example.org, logged in as ann (PLAIN)\n",
        "server       198.51.100.25:25\n",
        "client's TLS TLSv1.3 TLS_AES_256_GCM_SHA384\n",
        "server's TLS TLSv1.3 TLS_AES_256_GCM_SHA384, verified\n",
        "TIME  ASKED ",
        "    0.001  (connect) ",
        "AUTH PLAIN <20 octets>",
        "AUTH PLAIN accepted: ann\n",
        "rewrite: by rule big-ones\n",
        "mail 1 from <alice@example.org> to <bob@example.net>, refused <c@example.net>: accepted, 250, 1,000 octets, ",
        "Message-ID <1@x>\n",
    ):
        assert said in found, said
    assert found.endswith("    0.015  closed")


def test_the_four_hops(writer: Writer) -> None:
    """The same, something else, nothing; a command of ours."""
    assert re.search(r"RCPT TO:<a@b.example>  =     250 Ok  =$", one(writer), re.MULTILINE)
    assert re.search(
        r"<a@b.example>  RCPT TO:<c>  250 Ok  550 No$", one(writer, sent="RCPT TO:<c>", told="550 No"), re.M
    )
    assert "(nothing)" in one(writer, sent=None, told="502 No", code=502)
    ours = writer.line("s-1", "exchange", {"verb": "EHLO", "action": "pass"}, {"asked": None, "sent": "EHLO us", "got": "250 mx", "told": None})  # fmt: skip  # noqa: E501 - a record is a line
    assert re.search(r"0\.001 +EHLO us  250 mx  \(nothing\)$", "\n".join(told(connected(writer), ours)), re.MULTILINE)


def test_what_stands_below(writer: Writer) -> None:
    assert "answer: by default" in one(writer, rule="default", action="answer")
    assert "answer: by rule no-macros" in one(writer, rule="no-macros", action="answer")
    assert "rules that acted: a, b" in one(writer, rules=["a", "b"])
    assert "tags: odd" in one(writer, tags=["odd"])
    assert "anomalies: bare-lf, odd-hello" in one(writer, anomalies=["bare-lf", "odd-hello"])
    seen = [{"rule": "watching", "action": "answer", "told": "550 No"}]
    assert "observing, rule watching would have said answer: 550 No" in one(writer, observed=seen)
    assert "got before: 353 yes" in one(writer, got_before=["353 yes"])
    assert "before the reply: 050 busy" in one(writer, noise="050 busy")
    assert "12,345 octets" in one(writer, octets=12_345)


def test_the_time_it_took(writer: Writer) -> None:
    slow = writer.line("s-1", "exchange", {"verb": "END", "action": "pass", "seconds": 12.34, "waited": 11.0}, {"asked": "(end of data)", "got": "250 Ok"})  # fmt: skip  # noqa: E501 - a record is a line
    assert "took 12.3 s, the server 11.0 s of it" in "\n".join(told(connected(writer), slow))


def test_transcripts(writer: Writer) -> None:
    """Only where all is to be shown; sealed ones stay sealed."""
    content = {"asked_octets": "DATA", "content": "Subject: x\r\n\x1b[2J\r\nhello\r\n"}
    line = writer.line(
        "s-1", "exchange", {"verb": "END"}, {"asked": "(end of data)", "got": "250 Ok", "transcript": content}
    )
    assert "Subject" not in "\n".join(told(connected(writer), line))
    found = "\n".join(told(connected(writer), line, full=True))
    assert "content: Subject: x\n           content: ?[2J\n           content: hello\n" in found
    sealed = writer.line(
        "s-1", "exchange", {"verb": "END"}, {"asked": "", "got": "250", "transcript": {"sealed": "abc"}}
    )
    assert "transcript: sealed; `smtpproxy audit unseal` opens it" in "\n".join(
        told(connected(writer), sealed, full=True)
    )


def test_mails_that_came_to_nothing(writer: Writer) -> None:
    line = writer.line(
        "s-1", "tx-refused", {"tx": 2, "why": "RSET", "sha256": "ab" * 32}, {"mail": "", "rcpt": ["a@b.example"]}
    )
    assert "mail 2 from <> to <a@b.example>: came to nothing (RSET)" in "\n".join(told(connected(writer), line))
    assert "sha256 abab" in "\n".join(told(connected(writer), line, full=True))
    each = writer.line("s-1", "tx-commit", {"tx": 1, "code": 250}, {"mail": "", "each": [["a@b.example", "250 Ok"]]})
    assert "           <a@b.example>: 250 Ok" in told(connected(writer), each)


def test_links(writer: Writer) -> None:
    """What a connection may be, beside an ordinary one."""
    found = "\n".join(told(connected(writer, match="printers", unseen=True, refused="too many", ruleset="abc")))
    for said in (
        "listener     in, match printers",
        "octets passed uninspected",
        "refused      too many",
        "rules        abc",
    ):
        assert said in found
    assert "no end of it is on record" in found
    assert "TLS          neither link was encrypted" in found
    unseen = writer.line("s-1", "link-tls", {"passthrough": True})
    assert "TLS          between the two peers, unseen" in "\n".join(told(connected(writer), unseen))


def test_tls(writer: Writer) -> None:
    server = {
        "version": "TLSv1.2", "cipher": "X", "sni": "mx", "resumed": True, "verified": False,
        "result": "certificate-expired", "why": "it ended", "certificate": {"subject": "CN=mx"}, "broken": ["dane"],
    }  # fmt: skip
    line = writer.line("s-1", "link-tls", {}, {"client": None, "server": server})
    found = "\n".join(told(connected(writer), line))
    assert "client's TLS in clear\n" in found
    assert (
        "server's TLS TLSv1.2 X, asked for mx, resumed, not verified (certificate-expired, it ended), its certificate"
        " is CN=mx, broken: dane\n"
    ) in found


def test_what_else_there_is(writer: Writer) -> None:
    note = writer.line("s-1", "note", {"anomaly": "tls-failed", "side": "client", "result": "x"}, {"why": "bad"})
    wrong = writer.line("s-1", "violation", {"anomaly": "bare-lf", "side": "server"}, {"why": "\x1b[31m"})
    new = writer.line("s-1", "of-tomorrow", {"answer": 42})
    found = "\n".join(told(connected(writer), note, wrong, new))
    assert "tls-failed of the client: bad; result x" in found
    assert "bare-lf of the server: ?[31m" in found
    assert "of-tomorrow; answer 42" in found
    close = writer.line("s-1", "link-close", {"octets_from_client": 1200, "octets_to_client": 7, "inspected": False})
    assert told(close)[-1].endswith("closed; octets: 1,200 from client, 7 to client, not inspected to its end")


def test_erased(writer: Writer) -> None:
    """What is public stays, and it is said that the rest is gone."""
    lines = [entry_of(line) for line in writer.session(identity="ann", tls="TLSv1.3")]
    found = "\n".join(told(*lines))
    assert "client       (erased), logged in as (erased) (PLAIN)" in found
    assert "client's TLS (erased)" in found
    assert re.search(r"MAIL \(erased\) +250 \(erased\)$", found, re.MULTILINE)
    assert "mail 1 from (erased): accepted, 250, 1,000 octets" in found
    assert "alice" not in found


@pytest.mark.parametrize(
    "line", [b"no json", b'{"kind":7}', b"[]", b"\xff\xfe", b'{"at":"x","kind":"exchange"}', b"{}"]
)
def test_lines_that_are_none(writer: Writer, line: bytes) -> None:
    """Somebody tampered with them: they are shown as far as they can be."""
    assert told(connected(writer), line, connected(writer))
    assert told(line)


def test_whatever_a_record_holds(writer: Writer) -> None:
    """Values of other types than they should be, and hostile texts, in every key there is."""
    values: tuple[Any, ...] = (None, 3, -1.5, "\x1b]0;x\x07\u202e", [], [1, [2]], {}, {"sealed": 3}, True)
    whole = list(writer.session(tls="TLSv1.3", identity="ann", message_id="<1@x>", refused=("c@x.example",)))
    for line in whole:
        record = msgspec.json.decode(line)
        for key in record:
            for value in values:
                odd = msgspec.json.encode({**record, key: value})
                for text in told(*whole[:1], odd, full=True):
                    assert text.isprintable(), (key, value)


def test_colours(writer: Writer) -> None:
    refused = writer.exchange("s-1", "RCPT", "RCPT TO:<a@b>", "550 No", code=550)
    answered = writer.exchange(
        "s-1", "FOO", "FOO", "", code=502, sent=None, told="502 No", rule="default", action="answer"
    )
    found = colours(connected(writer), refused, answered)
    assert (found["550 No"], found["502 No"], found["(nothing)"]) == ("red", "red", "yellow")
    assert found["answer: by default"] == "yellow"


# ------------------------------------------------------------------------------------------------------------ finding


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Any]:
    of_the_page(tmp_path / "store")
    reader = open_reader(str(tmp_path / "store"))
    yield reader
    reader.close()


def test_names_and_beginnings_of_them(page: Any) -> None:
    assert [name for _, name in find(page, "4d9d6b028f-1")] == ["4d9d6b028f-1"]
    assert [name for _, name in find(page, "4d9d6b028f")] == ["4d9d6b028f-1"]
    assert len(find(page, "4d9d6b02")) == 6
    assert find(page, "") == find(page, "nobody") == find(page, "4d9d6b028f-1x") == []
    assert "4d9d6b028f-1" in nearest(page, "4d9d6b028e-1")
    assert nearest(page, "zzz") == []


def test_a_whole_name_is_no_beginning(tmp_path: Path) -> None:
    writer = Writer()
    store = Store(tmp_path, create=True)
    for _ in range(20):
        store.append(list(writer.session()))
    store.close()
    reader = open_reader(str(tmp_path))
    assert [name for _, name in find(reader, "0123456789-1")] == ["0123456789-1"]
    assert len(find(reader, "0123456789")) == 11
    reader.close()


def test_by_message_id(page: Any) -> None:
    for text in ("<4711@partner.example>", "4711@partner.example"):
        assert [name for _, name in of_message(page, text)] == ["4d9d6b0000-1"]
    assert of_message(page, "4712@partner.example") == []
