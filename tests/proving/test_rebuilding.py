"""Octets from a record: what can be had back is what it was, and what can't is said."""

import pytest

from smtpproxy.proving.rebuilding import command_octets, hello_lines, reply_octets, sasl_octets, tls_info
from smtpproxy.session.state import TLSInfo
from smtpproxy.smtp.commands import Command, describe, parse_command


@pytest.mark.parametrize(
    "line",
    [
        b"EHLO me.example\r\n",
        b"MAIL FROM:<a@x.example> SIZE=1000 BODY=8BITMIME\r\n",
        b'RCPT TO:<"a b\\\\"@y.example>\r\n',
        "MAIL FROM:<grüße@x.example> SMTPUTF8\r\n".encode(),
        b"noop  x\r\n",
        b"VRFY a\tb\r\n",
        b"XYZZY a\xff\r\n",
        b"BDAT 86 LAST\r\n",
    ],
)
def test_a_command_comes_back_octet_for_octet(line: bytes) -> None:
    command = parse_command(line)
    anomalies = () if isinstance(command, Command) else ("malformed-command",)
    assert command_octets(describe(command), anomalies) == line


@pytest.mark.parametrize(
    "line",
    [
        b"AUTH PLAIN AGFiYwBkZWZnaGkx\r\n",
        b"AUTH XOAUTH2 =\r\n",
        b"AUTH c2VjcmV0c2VjcmV0\r\n",
        b"MAIL FROM:<a@x.example> TRANSID=<12345@x.example>\r\n",
    ],
)
def test_in_place_of_a_secret_stand_as_many_octets(line: bytes) -> None:
    """None of them is what was said; the record shows the same of both."""
    command = parse_command(line)
    made = command_octets(describe(command))
    assert made is not None
    assert len(made) == len(line)
    assert describe(parse_command(made)) == describe(command)


def test_what_was_too_long_to_be_shown_does_not_come_back() -> None:
    """Its beginning alone would be another command."""
    assert command_octets("MAIL FROM:<a@x.example>", ("line-too-long",)) is None
    assert command_octets("MAIL FROM:", ()) is None
    assert command_octets("AUTH PLAIN <99999999 octets>") is None
    assert command_octets("NOOP a\\nQUIT", ("malformed-command",)) is None


def test_sasl_lines() -> None:
    assert sasl_octets("*") == b"*\r\n"
    assert sasl_octets("<8 octets>") == b"AAAAAAAA\r\n"
    assert sasl_octets("<0 octets>") == b"\r\n"
    assert sasl_octets("<1 octets>") == b"=\r\n"


@pytest.mark.parametrize(
    ("words", "told", "lines"),
    [
        (b"mx Hello me PIPELINING SIZE 1000 DSN", b"", [b"mx Hello me", b"PIPELINING", b"SIZE 1000", b"DSN"]),
        (
            b"mx SIZE AUTH PLAIN LOGIN AUTH=PLAIN HELP",
            b"",
            [b"mx", b"SIZE", b"AUTH PLAIN LOGIN", b"AUTH=PLAIN", b"HELP"],
        ),
        (b"mx at your help DSN", b"mx at your help DSN", [b"mx at your help", b"DSN"]),
        (b"mx 8bitmime dsn", b"mx dsn", [b"mx", b"8bitmime", b"dsn"]),
        (b"mx XFOO DSN", b"mx DSN", [b"mx", b"XFOO", b"DSN"]),
        (b"mx AUTH PLAIN XFOO", b"mx AUTH PLAIN", [b"mx", b"AUTH PLAIN", b"XFOO"]),
        (b"mx AUTH PLAIN LOGIN", b"mx", [b"mx", b"AUTH PLAIN LOGIN"]),
        (b"mx DSN OK", b"mx DSN", [b"mx", b"DSN", b"OK"]),
        (b"mx", b"mx", [b"mx"]),
    ],
)
def test_a_list_is_taken_apart_by_the_registry(words: bytes, told: bytes, lines: list[bytes]) -> None:
    assert hello_lines(words, told) == lines


def test_replies() -> None:
    assert reply_octets("250 Ok") == b"250 Ok\r\n"
    assert reply_octets("250") == b"250 \r\n"
    assert reply_octets("250 mx DSN", "HELO") == b"250 mx DSN\r\n"
    assert reply_octets("250 mx DSN", "EHLO") == b"250-mx\r\n250 DSN\r\n"
    assert reply_octets("500 mx DSN", "EHLO") == b"500 mx DSN\r\n"
    assert reply_octets("") == reply_octets("no reply") == b""
    long = reply_octets("214 " + "help " * 1000)
    assert max(map(len, long.splitlines())) < 2010
    assert b" ".join(line[4:] for line in long.splitlines()) == b"help " * 1000
    assert len(reply_octets("214 " + "x" * 9000)) < 2010


def test_handshakes() -> None:
    assert tls_info(None) is None
    shown = {"version": "TLSv1.3", "cipher": "C", "certificate": {"subject": "mx"}, "verified": True, "later": 1}
    assert tls_info(shown) == TLSInfo("TLSv1.3", "C", verified=True, certificate=(("subject", "mx"),))
    assert tls_info({"version": "TLSv1.3", "broken": ["dane"]}) == TLSInfo("TLSv1.3", "", broken=("dane",))
