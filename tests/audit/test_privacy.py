"""Addresses that must not be read: in no form that commands and replies have them."""

import stat
import time
from pathlib import Path as FilePath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpproxy.audit.keys import KeyFileError
from smtpproxy.audit.privacy import Addresses, Key, Pseudonyms, Seen, create, load, rotate
from smtpproxy.smtp.values import Path

KEY = Key("k1", b"k" * 32)
PSEUDONYMS = Pseudonyms([KEY])


def _seen(mode: str = "pseudonym") -> Seen:
    return Addresses(PSEUDONYMS if mode == "pseudonym" else None).session()


def test_a_pseudonym_is_an_address_by_shape_and_the_same_each_time() -> None:
    one = _seen().path(Path(b"alice", b"Example.org"))
    assert one == _seen().path(Path(b"alice", b"example.ORG"))
    local, at, domain = one.partition("@")
    assert local.startswith("~k1.")
    assert at
    assert domain.startswith("~k1.")
    assert one != _seen().path(Path(b"bob", b"example.org"))
    assert domain == _seen().path(Path(b"bob", b"example.org")).partition("@")[2]


def test_domain_only() -> None:
    assert _seen("domain-only").path(Path(b"alice", b"example.org")) == "~@example.org"
    assert _seen("domain-only").text("550 <alice@example.org>: no") == "550 <~@example.org>: no"


def test_the_null_path_stays_and_postmaster_does_not() -> None:
    assert _seen().path(Path(b"", b"")) == ""
    assert _seen().path(Path(b"postmaster", b"")).startswith("~k1.")


# What is asked and told about alice, as servers write it.
TEXTS = [
    "MAIL FROM:<alice@example.org> SIZE=1000 BODY=8BITMIME",
    "MAIL FROM:<> AUTH=alice@example.org",
    "MAIL FROM:<bob@x.example> AUTH=alice+40example.org",
    'RCPT TO:<"alice"@example.org>',
    'RCPT TO:<"al>x alice \\" y"@example.org>',
    "RCPT TO:<@relay.example:alice@example.org>",
    "RCPT TO:<alice@[192.0.2.1]>",
    "RCPT TO:<alice@[IPv6:2001:db8::1]>",
    "RCPT TO:<alice@example.org> NOTIFY=FAILURE ORCPT=rfc822;alice+40example.org",
    "RCPT TO:<alice@example.org> ORCPT=utf-8;alice@example.org",
    "RCPT TO:<alice>",
    "RCPT TO: alice@example.org",
    "VRFY alice",
    "EXPN alice-list",
    "XCLIENT NAME=x.example LOGIN=alice@example.org",
    "XCLIENT LOGIN=alice",
    "550 5.1.1 <alice@example.org>: Recipient address rejected: User unknown in local recipient table",
    "550-Verification failed for <alice@example.org>",
    "550 alice@example.org... User unknown",
    "550 5.1.1 The email account alice@example.org does not exist.",
    "550 5.7.1 See https://x.example/bounce?address=alice%40example.org&x=1",
    "451 4.7.1 Greylisted, see http://x.example/?r=alice=40example.org",
    "252 2.0.0 alice@example.org",
    "250 2.1.5 Alice <alice@example.org>",
    "SRS0=hash=tt=x.example=alice@example.org",
    "prvs=1234=alice@example.org",
    "alice@例え.example",
    "(alice@example.org), [alice@example.org]; alice@example.org:",
]


@pytest.mark.parametrize("mode", ["pseudonym", "domain-only"])
@pytest.mark.parametrize("text", TEXTS)
def test_the_local_part_is_nowhere(text: str, mode: str) -> None:
    assert "alice" not in _seen(mode).text(text).lower().replace("alice-list" if "EXPN" in text else "\0", "")
    assert "alice" not in _seen(mode).text(text.upper()).lower()


@pytest.mark.parametrize(
    "text", ["550 alice unknown", "550 5.1.1 ALICE: no such user", "553 sorry, (alice)", "250 alice"]
)
def test_what_the_session_called_somebody_is_found_alone(text: str) -> None:
    seen = _seen()
    seen.text("RCPT TO:<Alice@example.org>")
    assert "alice" not in seen.text(text).lower()
    assert _seen().text(text) == text


def test_words_that_only_begin_so_are_left() -> None:
    seen = _seen()
    seen.path(Path(b"post", b"example.org"))
    assert seen.text("postfix and compost") == "postfix and compost"


def test_short_ones_are_not_looked_for_alone() -> None:
    seen = _seen()
    seen.path(Path(b"ok", b"example.org"))
    assert seen.text("250 2.0.0 Ok") == "250 2.0.0 Ok"


def test_what_is_done_twice_is_as_done_once() -> None:
    seen = _seen()
    once = seen.text("RCPT TO:<alice@example.org> ORCPT=rfc822;alice@example.org")
    assert seen.text(once) == once


@pytest.mark.parametrize("text", ["250 2.1.0 Ok", "EHLO client.example.org", "QUIT", "DATA", "250 mx.example SIZE 40"])
def test_what_names_nobody_is_left(text: str) -> None:
    assert _seen().text(text) == text


def test_logins_and_message_ids() -> None:
    assert "ann" not in _seen().identity("ann")
    assert "ann" not in _seen().identity("ann@example.org")
    assert "alice" not in _seen().message_id("<alice.1@pc.example.org>")
    assert _seen("domain-only").message_id("<alice.1@pc.example.org>") == "<~@pc.example.org>"
    assert _seen().message_id("<nothing>").startswith("<~k1.")


@given(
    st.text("abcdefghijklmnopqrstuvwxyz0123456789.+-_'/&é", min_size=3, max_size=20).filter(
        lambda text: text.strip(".") == text and len(set(text)) > 3 and not text.isdigit()
    ),
    st.sampled_from(["MAIL FROM:<{}@example.org>", "550 <{}@example.org> no", "{}@example.org", '"{}"@example.org x']),
)
def test_no_local_part_gets_through(local: str, form: str) -> None:
    out = _seen("domain-only").text(form.format(local)).lower()
    if local.lower() not in form.format("").lower():
        assert local.lower() not in out


@pytest.mark.parametrize(
    "text", ["a" * 100_000, '"' * 100_000, "<" * 100_000, "a@" * 50_000, "%40" * 30_000, "=40" * 30_000]
)
def test_time_is_linear(text: str) -> None:
    begin = time.process_time()
    _seen().text(text)
    assert time.process_time() - begin < 2


def test_many_addresses_are_not_remembered_for_ever() -> None:
    seen = _seen()
    for number in range(10_000):
        seen.path(Path(b"user%d" % number, b"example.org"))
    assert seen.text("550 user9999 unknown") == "550 user9999 unknown"
    assert seen.text("550 user1 unknown") != "550 user1 unknown"


def test_keys(tmp_path: FilePath) -> None:
    path = tmp_path / "key"
    create(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    (key,) = load(path)
    assert rotate(path) == "k2"
    first, second = load(path)
    assert first == key
    assert second.octets != key.octets
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    pseudonyms = Pseudonyms([first, second])
    shown = Addresses(pseudonyms).session().path(Path(b"alice", b"example.org"))
    assert pseudonyms.of("alice@example.org")["k2"] == shown
    assert pseudonyms.of("alice@example.org")["k1"].startswith("~k1.")
    assert pseudonyms.of("postmaster")["k1"].startswith("~k1.")
    with pytest.raises(KeyFileError, match="already"):
        create(path)
    assert b"k" * 5 not in repr(KEY).encode()


@pytest.mark.parametrize(
    ("text", "why"), [("nonsense", "a line is"), ("# nothing\n\n", "has no key"), ("k1 AAAA", "a line is")]
)
def test_key_files_that_are_none(tmp_path: FilePath, text: str, why: str) -> None:
    path = tmp_path / "key"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(KeyFileError, match=why):
        load(path)


def test_a_key_that_others_can_read(tmp_path: FilePath) -> None:
    path = tmp_path / "key"
    create(path)
    path.chmod(0o644)
    with pytest.raises(KeyFileError, match="open to others"):
        load(path)


def test_a_key_that_can_not_be_written(tmp_path: FilePath) -> None:
    with pytest.raises(KeyFileError, match="can't be written"):
        create(tmp_path / "no" / "key")
