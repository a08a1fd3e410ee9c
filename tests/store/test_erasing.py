"""Erasing one person's fields: gone from every octet, and the proof is whole."""

from pathlib import Path
from typing import Any

import pytest

from smtpproxy.store.erasing import erase, names, pattern_of
from smtpproxy.store.store import Store
from tests.store.filling import Writer
from tests.store.signing import ORIGIN, checkpoint, signer, verified

KEY = signer()
ALICE = "alice@example.org"


def _store(directory: Path) -> Store:
    """Mails from, to and not about Alice; each in a session of its own."""
    store = Store(directory, create=True)
    writer = Writer()
    with store.changing():
        store.keep("origin", ORIGIN)
        store.keep("vkey", KEY.vkey)
    for number in range(60):
        sender = ALICE if number % 3 == 0 else "malice@example.org"
        recipients = (("Alice@EXAMPLE.org",) if number % 3 == 1 else ()) + ("bob@example.net",)
        identity = ALICE if number % 3 == 0 else ""
        lines = writer.session(
            sender,
            recipients,
            identity=identity,
            client=f"192.0.2.{1 + number % 2}",
            message_id=f"<{number}@x.example>",
        )
        store.append(list(lines))
    checkpoint(store, KEY)
    return store


def _octets(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file())


def _erase(store: Store, **who: Any) -> tuple[int, bool]:
    return erase(store, pattern_of(**who), why="asked for", **who)


def test_gone_from_every_octet_and_the_proof_is_whole(tmp_path: Path) -> None:
    store = _store(tmp_path)
    records, gone = _erase(store, address=ALICE)
    store.close()
    assert gone
    assert records > 100
    octets = _octets(tmp_path).lower()
    assert octets.count(b"alice@example.org") == octets.count(b"malice@example.org") > 0
    assert b"org.example@alice" not in octets
    report = verified(tmp_path, vkey=KEY.vkey)
    assert not report.findings
    assert f"what is personal was erased from {records} records" in report.notes


def test_others_are_still_there(tmp_path: Path) -> None:
    store = _store(tmp_path)
    before = store.connection.execute("SELECT count(*) FROM recipient WHERE address = 'net.example@bob'").fetchone()
    _erase(store, address=ALICE)
    assert (
        store.connection.execute("SELECT count(*) FROM recipient WHERE address = 'net.example@bob'").fetchone()
        == before
    )
    lines = [line for _, line in store.lines(0)]
    assert sum(b"RCPT TO:<bob@example.net>" in line for line in lines) == 60
    assert store.connection.execute("SELECT count(*) FROM mail WHERE sender IS NULL").fetchone() == (20,)
    store.close()


def test_a_client(tmp_path: Path) -> None:
    store = _store(tmp_path)
    _erase(store, client="192.0.2.1")
    store.close()
    octets = _octets(tmp_path)
    assert b"192.0.2.1:" not in octets
    assert b"192.0.2.2:" in octets
    assert b"4c0000201" not in octets
    assert not verified(tmp_path, vkey=KEY.vkey).findings


def test_a_login(tmp_path: Path) -> None:
    store = Store(tmp_path, create=True)
    store.append([*Writer().session(identity="ann", mails=0), *Writer("bb" * 5).session(identity="anna", mails=0)])
    assert _erase(store, identity="ann")[0] == 1
    assert store.connection.execute("SELECT identity FROM session ORDER BY id").fetchall() == [(None,), ("anna",)]
    store.close()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (b'"asked":"RCPT TO:<alice@example.org>"', True),
        (b'"asked":"RCPT TO:<ALICE@Example.ORG> ORCPT=rfc822;alice@example.org"', True),
        (b'"got":"550 alice@example.org: no such user"', True),
        (b'"got":"550 no mail for alice@example.org."', True),
        (b'"got":"550 see https://x.example/?a=alice%40example.org"', True),
        (b'"asked":"RCPT TO:<b@x> ORCPT=rfc822;alice+40example.org"', True),
        (b'"transcript":{"client":"To: b@x,\\r\\n\\talice@example.org"}', True),
        (b'"got":"550-no\\nalice@example.org"', True),
        (b'"got":"550 \\u0009alice@example.org"', True),
        (b'"asked":"RCPT TO:<\\"alice\\"@example.org>"', True),
        (b'"asked":"RCPT TO:<malice@example.org>"', False),
        (b'"asked":"RCPT TO:<\\u006dalice@example.org>"', False),
        (b'"asked":"RCPT TO:<alice@example.org.uk>"', False),
        (b'"asked":"RCPT TO:<alice@example.organic>"', False),
        (b'"asked":"RCPT TO:<x+alice@example.org>"', False),
    ],
)
def test_what_names_somebody(text: bytes, named: bool) -> None:
    assert names(pattern_of(address=ALICE), b'{"v":1,"salt":"x",%b}' % text) is named


@pytest.mark.parametrize(
    ("client", "text", "named"),
    [
        ("192.0.2.7", b'"client":"192.0.2.7:40112"', True),
        ("192.0.2.7", b'"got":"250 mx.example.org Hello cl [192.0.2.7]"', True),
        ("192.0.2.7", b'"asked":"EHLO [192.0.2.7]"', True),
        ("192.0.2.7", b'"got":"550 192.0.2.7."', True),
        ("192.0.2.7", b'"client":"192.0.2.70:40112"', False),
        ("192.0.2.7", b'"client":"1.192.0.2.7"', False),
        ("192.0.2.7", b'"got":"250 192.0.2.7.1"', False),
        ("2001:DB8::7", b'"client":"[2001:db8::7]:40112"', True),
        ("2001:db8:0::7", b'"asked":"EHLO [IPv6:2001:db8::7]"', True),
        ("2001:db8::7", b'"client":"[2001:db8::71]:40112"', False),
        ("2001:db8::7", b'"client":"[1:2001:db8::7]:40112"', False),
    ],
)
def test_what_names_a_client(client: str, text: bytes, named: bool) -> None:
    assert names(pattern_of(client=client), b'{"v":1,"salt":"x",%b}' % text) is named


def test_quotes_and_beyond_ascii() -> None:
    before = b'{"v":1,"salt":"x","asked":"RCPT TO:'
    assert names(pattern_of(address='"a b"@x.example'), before + b'<\\"a b\\"@x.example>"}')
    assert names(pattern_of(address="jürgen@x.example"), before + '<jürgen@x.example>"}'.encode())


def test_nobody_is_named() -> None:
    with pytest.raises(ValueError, match="nobody"):
        pattern_of()


def test_a_range_and_a_dry_run(tmp_path: Path) -> None:
    store = _store(tmp_path)
    size = store.size
    pattern = pattern_of(address=ALICE)
    everything = erase(store, pattern, dry_run=True).records
    part = erase(store, pattern, start=100, stop=200, dry_run=True).records
    assert 0 < part < everything
    assert store.size == size
    assert erase(store, pattern, start=100, stop=200).records == part
    assert erase(store, pattern, dry_run=True).records == everything - part
    store.close()
    assert not verified(tmp_path, vkey=KEY.vkey).findings


def test_a_reader_keeps_the_log_from_being_emptied(tmp_path: Path) -> None:
    from smtpproxy.store.reading import open_reader

    store = _store(tmp_path)
    reader = open_reader(str(tmp_path))
    rows = reader.rows("SELECT first FROM block")
    next(rows)
    assert not _erase(store, address=ALICE)[1]
    list(rows)
    reader.close()
    assert _erase(store, address=ALICE) == (0, True)
    store.close()


def test_a_session_that_goes_on_does_not_bring_it_back(tmp_path: Path) -> None:
    """The one who records knows of it in memory; somebody else erases meanwhile."""
    recorder = Store(tmp_path, create=True)
    lines = list(Writer().session("bob@example.net", identity=ALICE, client="203.0.113.9"))
    begun = next(at for at, line in enumerate(lines) if b'"verb":"MAIL"' in line)
    recorder.append(lines[:begun])
    eraser = Store(tmp_path, indexes=False)
    _erase(eraser, address=ALICE, client="203.0.113.9")
    eraser.close()
    recorder.append(lines[begun:])
    kept = recorder.connection.execute("SELECT client, identity FROM mail").fetchall()
    assert kept
    assert set(kept) == {(None, None)}
    assert recorder.connection.execute("SELECT identity FROM session").fetchall() == [(None,)]
    assert recorder.connection.execute("SELECT how FROM session").fetchall() == [("closed",)]
    recorder.close()
    assert b"alice@example.org" not in b"".join(path.read_bytes() for path in tmp_path.glob("audit.db*"))
