"""Entries and leaves, checked by what docs say of them and not by the code that makes them."""

import base64
import hashlib
import json
import os
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as some

from smtpproxy.audit.entries import SALT, entry_of, is_erasable, leaf_of, salts

LINE = (
    b'{"v":1,"kind":"exchange","verb":"RCPT",'
    b'"salt":"q2XvAAAAAAAAAAAAAAAAAA","asked":"RCPT TO:<a@b.example>","got":"250 Ok"}'
)


def _commitment(personal: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(personal).digest()).rstrip(b"=").decode()


def test_an_entry_has_a_commitment_in_place_of_what_is_personal() -> None:
    personal = b'"salt":"q2XvAAAAAAAAAAAAAAAAAA","asked":"RCPT TO:<a@b.example>","got":"250 Ok"'
    assert json.loads(entry_of(LINE)) == {
        "v": 1, "kind": "exchange", "verb": "RCPT", "personal": _commitment(personal),
    }  # fmt: skip
    assert entry_of(LINE) == b'{"v":1,"kind":"exchange","verb":"RCPT","personal":"%b"}' % _commitment(personal).encode()


def test_a_line_without_salt_is_its_own_entry() -> None:
    line = b'{"v":1,"kind":"link-close"}'
    assert entry_of(line) == line
    assert not is_erasable(line)
    assert leaf_of(line) == hashlib.sha256(b"\0" + line).digest()


def test_an_erased_line_has_the_same_leaf() -> None:
    assert is_erasable(LINE)
    erased = entry_of(LINE)
    assert not is_erasable(erased)
    assert entry_of(erased) == erased
    assert leaf_of(erased) == leaf_of(LINE)


@pytest.mark.parametrize(
    "other",
    [
        LINE.replace(b"a@b", b"c@b"),
        LINE.replace(b"q2Xv", b"q2Xw"),
        LINE.replace(b'"v":1', b'"v":2'),
        LINE.replace(b"250 Ok", b"250 ok"),
        LINE[:-1] + b',"more":1}',
        LINE.replace(b',"salt":"q2XvAAAAAAAAAAAAAAAAAA"', b""),
        LINE.replace(b'"verb"', b'"verb" '),
    ],
    ids=["personal", "salt", "public", "the last octet", "a key more", "no salt", "a blank"],
)
def test_any_other_octet_is_another_leaf(other: bytes) -> None:
    assert leaf_of(other) != leaf_of(LINE)


HOSTILE = (
    ',"salt":"',
    '","salt":"',
    '\\","salt":"',
    '"}',
    '\\u0022,"salt":"',
    ',"personal":"',
    "\\",
    "\n",
    "\x00",
    "é",
)


@given(
    public=some.dictionaries(
        some.text(max_size=6).filter(lambda key: key not in ("salt", "personal")),
        some.one_of(
            some.text(), some.sampled_from(HOSTILE), some.integers(0, 9), some.lists(some.sampled_from(HOSTILE))
        ),
        min_size=1,
    ),
    personal=some.dictionaries(
        some.sampled_from(("asked", "got", "told", "mail")),
        some.one_of(some.text(), some.sampled_from(HOSTILE)),
        min_size=1,
    ),
    salt=some.text("abcXYZ019-_", min_size=22, max_size=22),
)
def test_no_text_is_taken_for_the_salt(public: dict[str, Any], personal: dict[str, Any], salt: str) -> None:
    """Two readings of one line there must not be: whatever the strings are, the one salt is found."""
    head, behind = msgspec.json.encode(public), msgspec.json.encode({"salt": salt, **personal})
    line = head[:-1] + b"," + behind[1:]
    assert json.loads(line) == {**public, "salt": salt, **personal}
    assert line.count(SALT) == 1
    assert json.loads(entry_of(line)) == {**public, "personal": _commitment(behind[1:-1])}
    assert json.loads(entry_of(head)) == public
    assert not is_erasable(head)


def test_a_salt_as_first_key_is_none() -> None:
    """The proxy never writes it so: `v` is always first. It must not be an entry that is no JSON either."""
    line = b'{"salt":"AAAAAAAAAAAAAAAAAAAAAA","asked":"x"}'
    assert entry_of(line) == line


def test_salts_are_fresh_and_of_the_right_size() -> None:
    salt = salts()
    made = [salt() for _ in range(1000)]
    assert len(set(made)) == 1000
    assert all(len(base64.urlsafe_b64decode(each + "==")) == 16 for each in made)
    assert all(not set(each) - set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_") for each in made)


def test_all_of_a_salt_is_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each octet of what the system gave is in one salt, and none is used twice."""
    given_out = bytes(range(256)) * 4
    monkeypatch.setattr(os, "urandom", lambda count: given_out[:count])
    salt = salts()
    octets = b"".join(base64.urlsafe_b64decode(salt() + "==") for _ in range(64))
    assert sorted(octets) == sorted(given_out)
