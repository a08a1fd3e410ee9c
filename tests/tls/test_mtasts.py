"""MTA-STS as values: what the TXT record and the policy may look like, and which hosts a policy names (RFC 8461)."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from smtpproxy.tls.mtasts import MAX_AGE, MAX_HOSTS, MAX_POLICY, Mode, Policy, Wrong, parse_policy, parse_txt

# RFC 8461 §3.1 and §3.2, as they stand there.
RECORD = b"v=STSv1; id=20160831085700Z;"
TEXT = (
    b"version: STSv1\r\nmode: enforce\r\n"
    b"mx: mail.example.com\r\nmx: *.example.net\r\nmx: backupmx.example.com\r\nmax_age: 604800\r\n"
)
ENOUGH = b"version: STSv1\nmode: testing\nmx: a.example\nmax_age: 86400\n"


# ------------------------------------------------------------------------------------------------- the TXT record


@pytest.mark.parametrize(
    ("record", "found"),
    [
        (RECORD, "20160831085700Z"),
        (b"v=STSv1;id=1", "1"),
        (b"v=STSv1 ;\tid=1 ; ", "1"),
        (b"v=STSv1; new-field=a:b,c; id=1; n.2_x=!;", "1"),
        (b"v=STSv1; id=1; id=2", "1"),
        (b"v=STSv1; id=" + b"a" * 32, "a" * 32),
    ],
)
def test_a_record_is_read(record: bytes, found: str) -> None:
    assert parse_txt([record]) == found


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (b"v=STSv1;", "no id"),
        (b"v=STSv1; name=x", "no id"),
        (b"v=STSv1; id=", "a field that is none: 'id='"),
        (b"v=STSv1; id=" + b"a" * 33, "id is 'aaa"),
        (b"v=STSv1; id=2016-08-31", "id is '2016-08-31'"),
        (b"v=STSv1; ID=1", "no id"),
        (b"v=STSv1;; id=1", "a field that is none: ''"),
        (b"v=STSv1; id=1; a b", "a field that is none: 'a b'"),
        (b"v=STSv1; id=1; a=b=c", "a field that is none"),
        (b"v=STSv1; id=1\n", "a field that is none: 'id=1\\n'"),
        (b"v=STSv1; id=1; \xff=1", "a field that is none: '\\xff=1'"),
        (b"v=STSv1; id=1; " + b"n" * 33 + b"=1", "a field that is none"),
    ],
)
def test_a_record_that_is_not_in_the_grammar_is_none(record: bytes, why: str) -> None:
    wrong = parse_txt([record])
    assert isinstance(wrong, Wrong)
    assert why in wrong.why
    assert not wrong.absent


@pytest.mark.parametrize("records", [[], [b"v=spf1 -all", b"V=STSv1; id=1", b"v=STSv10; id=1", b" v=STSv1; id=1", b""]])
def test_other_records_at_the_name_are_passed_over(records: list[bytes]) -> None:
    assert parse_txt(records) == Wrong("no MTA-STS record", absent=True)
    assert parse_txt([*records, RECORD]) == "20160831085700Z"


def test_two_records_are_none() -> None:
    """§3.1: if there is not exactly one, there is no policy."""
    wrong = parse_txt([RECORD, b"v=STSv1; id=2"])
    assert wrong == Wrong("2 MTA-STS records where there is to be one")


# ------------------------------------------------------------------------------------------------- the policy


def test_the_policy_of_the_rfc() -> None:
    hosts = ("mail.example.com", "*.example.net", "backupmx.example.com")
    assert parse_policy(TEXT) == Policy(Mode.ENFORCE, hosts, 604_800)


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        (ENOUGH, Policy(Mode.TESTING, ("a.example",), 86_400)),
        (ENOUGH.rstrip(), Policy(Mode.TESTING, ("a.example",), 86_400)),
        (ENOUGH.replace(b": ", b":"), Policy(Mode.TESTING, ("a.example",), 86_400)),
        (ENOUGH.replace(b"\n", b" \t\r\n"), Policy(Mode.TESTING, ("a.example",), 86_400)),
        (ENOUGH.replace(b": ", b": \t "), Policy(Mode.TESTING, ("a.example",), 86_400)),
        (ENOUGH + b"new.field: any \xc3\xa9 text; of = it\nempty:\n", Policy(Mode.TESTING, ("a.example",), 86_400)),
        (ENOUGH + b"mode: none\nmax_age: 1\nversion: STSv2\n", Policy(Mode.TESTING, ("a.example",), 86_400)),
        (ENOUGH + b"mx: A.Example\nmx: B.EXAMPLE\n", Policy(Mode.TESTING, ("a.example", "b.example"), 86_400)),
        (ENOUGH + b"\n\r\n", Policy(Mode.TESTING, ("a.example",), 86_400)),
        (b"max_age: 0\nmode: none\nversion: STSv1", Policy(Mode.NONE, (), 0)),
        (b"max_age: 9999999999\nmode: none\nversion: STSv1", Policy(Mode.NONE, (), MAX_AGE)),
    ],
)
def test_a_policy_is_read(text: bytes, policy: Policy) -> None:
    """Whichever line ends; blanks behind a line; fields unknown or there twice; blank lines; an age above the most."""
    assert parse_policy(text) == policy


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "no version"),
        (ENOUGH.replace(b"version: STSv1\n", b""), "no version"),
        (ENOUGH.replace(b"STSv1", b"STSv2"), "version is 'STSv2'"),
        (ENOUGH.replace(b"mode: testing\n", b""), "no mode"),
        (ENOUGH.replace(b"testing", b"Enforce"), "mode is 'Enforce'"),
        (ENOUGH.replace(b"mx: a.example\n", b""), "no mx"),
        (ENOUGH.replace(b"max_age: 86400\n", b""), "no max_age"),
        (ENOUGH.replace(b"86400", b"-1"), "max_age is '-1'"),
        (ENOUGH.replace(b"86400", b"12345678901"), "max_age is"),
        (ENOUGH.replace(b"86400", "٣".encode()), "max_age is"),
        (ENOUGH.replace(b"a.example", b"a..example"), "an mx that is none: 'a..example'"),
        (ENOUGH.replace(b"a.example", b"*.*.example"), "an mx that is none"),
        (ENOUGH.replace(b"a.example", b"mx*.example"), "an mx that is none"),
        (ENOUGH.replace(b"a.example", b"*"), "an mx that is none"),
        (ENOUGH.replace(b"a.example", b"*."), "an mx that is none"),
        (ENOUGH.replace(b"a.example", b""), "an mx that is none: ''"),
        (ENOUGH.replace(b"a.example", b"m\xc3\xbcller.example"), "an mx that is none"),
        (ENOUGH.replace(b"a.example", b"-a.example"), "an mx that is none"),
        (ENOUGH.replace(b"a.example", b".".join([b"a" * 50] * 6)), "an mx that is none"),
        (ENOUGH + b"no colon here\n", "a line that is none: 'no colon here'"),
        (ENOUGH + b" mode: none\n", "a line that is none"),
        (ENOUGH + b"x: a\rmode: none\n", "a line that is none"),
        (ENOUGH + b"x: \x00\n", "a line that is none"),
        (ENOUGH + b"<html>" + b"x" * 100, "a line that is none: '<html>" + "x" * 34 + "'…"),
        (ENOUGH.replace(b"\n", b"\r"), "a line that is none"),
        (b"\xef\xbb\xbf" + ENOUGH, "a line that is none"),
        (ENOUGH + b"x" * MAX_POLICY, "more than 65536 octets"),
        (ENOUGH + b"".join(b"mx: a%d.example\n" % i for i in range(MAX_HOSTS)), "more than 1000 mx"),
    ],
)
def test_a_policy_that_is_not_in_the_grammar_is_none(text: bytes, why: str) -> None:
    wrong = parse_policy(text)
    assert isinstance(wrong, Wrong)
    assert why in wrong.why
    assert wrong.why.isprintable()


@given(st.binary(max_size=200) | st.binary(max_size=60).map(lambda octets: ENOUGH + octets))
@example(b"\n" * 1000)
def test_whatever_the_octets_nothing_is_raised(octets: bytes) -> None:
    assert isinstance(parse_policy(octets), Policy | Wrong)
    assert isinstance(parse_txt([octets]), str | Wrong)
    assert isinstance(parse_txt([b"v=STSv1;" + octets]), str | Wrong)


# ------------------------------------------------------------------------------------------------- hosts


@pytest.mark.parametrize(
    ("host", "matches"),
    [
        ("mail.example.com", True),
        ("MAIL.Example.COM", True),
        ("mail.example.com.", True),
        ("a.example.net", True),
        ("A.EXAMPLE.NET.", True),
        ("example.net", False),
        ("a.b.example.net", False),
        (".example.net", False),
        ("mail.example.com.evil.example", False),
        ("evilmail.example.com", False),
        ("example.com", False),
        ("192.0.2.1", False),
        ("net", False),
        ("", False),
        (".", False),
    ],
)
def test_the_asterisk_is_one_whole_label(host: str, matches: bool) -> None:
    policy = parse_policy(TEXT)
    assert isinstance(policy, Policy)
    assert policy.matches(host) is matches
