"""The parameter registry: every row is whole, and its expression takes good values and refuses bad ones."""

import re

import pytest

from smtpproxy.smtp.registry.parameters import PARAMETERS
from smtpproxy.smtp.registry.rows import Parameter
from tests.smtp.test_registry import is_sentence

# keyword: a value it takes (None: none), and values it must not take.
VALUES: dict[str, tuple[tuple[str | None, ...], tuple[str, ...]]] = {
    "SIZE": (("0", "5000", "9" * 20), ("", "-1", "+1", "1k", "9" * 21, "1 ", "1\n", "٣")),
    "BODY": (("7BIT", "8bitmime", "BinaryMIME"), ("8BIT", "7BIT,8BITMIME", "")),
    "SMTPUTF8": ((None,), ("x",)),
    "AUTH": (("<>", "e+3Dmc2@example.com", "a" * 500), ("", "a=b", "a+3d", "a+3", "a b", "a" * 501, "é")),
    "RET": (("FULL", "hdrs"), ("NONE", "FULL,HDRS")),
    "ENVID": (("QQ314159", "a+2Bb", "e" * 100), ("", "a+2b", "e" * 101, "a b")),
    "NOTIFY": (
        ("NEVER", "SUCCESS", "success,Failure,DELAY"),
        ("NEVER,DELAY", "SUCCESS,", "ALWAYS", "SUCCESS, DELAY", ""),
    ),
    "ORCPT": (
        (
            "rfc822;Bob@Example.COM",
            "rfc822;a+2Bb@example.com",
            "utf-8;jos\\x{E9}@example.com",
            "utf-8;josé@example.com",
        ),
        (
            "Bob@example.com",
            "rfc822;",
            "rfc822;a+2b@example.com",
            ";a",
            "rfc822;" + "a" * 494,
            "rfc822;josé@example.com",
        ),
    ),
    "BY": (("120;R", "+5;n", "-125;NT", "0;N", "000000001;RT"), ("0;R", "-5;R", "5", "5;X", "1234567890;N", "5;T")),
    "SOLICIT": (
        ("net.example:ADV", "org.example:ADV:ADLT,net.example:ADV"),
        ("", "9net:ADV", "a,,b", "a b", "a" * 1001),
    ),
    "MTRK": (("c2Vj+/9", "c2Vj:86400"), ("", "c2Vj:", "c2Vj:1234567890", "c2V=", "a b")),
    "SUBMITTER": (("almond@example.com",), ("", "a b", "a" * 501)),
    "HOLDFOR": (("0", "86400"), ("", "-1", "1234567890", "1h")),
    "HOLDUNTIL": (
        ("2026-11-22T17:00:00Z", "2026-11-22t17:00:00.5z"),
        ("2026-13-22T17:00:00Z", "2026-11-22T17:00:00", "2026-11-22T17:00:00+01:00", "tomorrow"),
    ),
    "CONPERM": ((None,), ("x",)),
    "CONNEG": ((None,), ("x",)),
    "TRANSID": (("<12345@client.example>",), ("12345@client.example", "<12345>", "<a@b", "<" + "a" * 80 + "@b>")),
    "MT-PRIORITY": (("0", "9", "-9"), ("10", "+1", "-0", "")),
    "RRVS": (
        ("2014-04-03T23:01:00Z", "2014-04-03T23:01:00+02:00;C", "2014-04-03T23:01:00Z;r"),
        ("2014-04-03", "2014-04-03T23:01:00", "2014-04-03T25:01:00Z", "2014-04-03T23:01:00Z;X"),
    ),
    "REQUIRETLS": ((None,), ("yes",)),
    "PRDR": ((None,), ("x",)),
    "XVERP": ((None, "+=", "-="), ("a", "ab", "+", "+=+")),
    "ALT-ADDRESS": (("jose@example.com", "a+2Bb@example.com"), ("", "a=b", "a+2b", "a" * 461 + "b")),
    "XORAR": (("x500:/o/cn",), ("", "a b", "a=b", "a" * 256)),
    "XRDST": (("opaque",), ("", "a b", "a=b", "a" * 256)),
    "XMESSAGECONTEXT": (("ADRC-2.1.0.0,EPROP-1.2.0.0",), ("", "a b", "a=b")),
    "XOORG": (("contoso.example",), ("", "a b", "a=b")),
    "XORIGFROM": (("a@example.com",), ("", "a b", "a=b")),
    "XSYSPROBEID": (("0c7c",), ("", "a b", "a=b")),
    "XMSGID": (("0c7c",), ("", "a b", "a=b")),
    "XATTRDIRECT": (("Originating",), ("", "a b", "a=b")),
    "XATTRORGID": (("xorgid:0c7c",), ("", "a b", "a=b")),
    "XSHADOW": (("0c7c",), ("", "a b", "a=b")),
}

PARAMETER_ROWS = {row.keyword: row for row in PARAMETERS.values()}


def name_of(row: Parameter) -> str:
    return row.keyword


@pytest.mark.parametrize("row", PARAMETER_ROWS.values(), ids=name_of)
def test_parameter_row_is_whole(row: Parameter) -> None:
    assert set(row.on) <= {"MAIL", "RCPT"}
    assert row.on
    assert is_sentence(row.what), row.what
    assert not row.risk or row.risk.endswith("."), row.risk
    assert row.reference
    assert row.extensions
    assert re.match(rf"{re.escape(row.keyword)}(?:=| \[|$)", row.syntax)
    assert ("=" in row.syntax) == bool(row.value)
    assert row.increment > 0
    assert r"\d" not in row.value
    assert r"\w" not in row.value


def test_every_parameter_has_examples() -> None:
    assert set(VALUES) == set(PARAMETER_ROWS)


@pytest.mark.parametrize("keyword", VALUES)
def test_values_of_a_parameter(keyword: str) -> None:
    row = PARAMETER_ROWS[keyword]
    good, bad = VALUES[keyword]
    assert (None in good) == (row.optional_value or not row.value)
    if not row.value:
        return
    value = re.compile(row.value.encode("ascii"), re.IGNORECASE)
    assert value.groups == 0
    for example in good:
        assert example is None or value.fullmatch(example.encode()), example
    for example in bad:
        assert not value.fullmatch(example.encode()), example


def test_secret_parameters() -> None:
    assert {keyword for keyword, row in PARAMETER_ROWS.items() if row.secret} == {"AUTH"}


def test_an_increment_holds_the_longest_good_example() -> None:
    for keyword, (good, _) in VALUES.items():
        if keyword == "AUTH":  # RFC 4954 gives 500 octets to the name and the value together
            continue
        longest = max(len(f" {keyword}={example}".encode()) if example else len(f" {keyword}") for example in good)
        assert PARAMETER_ROWS[keyword].increment >= longest, keyword
