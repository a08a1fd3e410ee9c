"""Command lines as text: what a record shows, and the secrets it never does."""

import pytest

from smtpproxy.smtp.arguments import Secret, Text
from smtpproxy.smtp.commands import Command, Malformed, describe, parse_command
from smtpproxy.smtp.registry.rows import Argument
from smtpproxy.smtp.registry.verbs import SASL, UNKNOWN, VERBS


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (b"MAIL FROM:<a@b> SIZE=10", "MAIL FROM:<a@b> SIZE=10"),
        (b"mail from: a@b ", "mail from: a@b "),  # as it came
        (b"AUTH PLAIN AGFiYwBkZWY=", "AUTH PLAIN <12 octets>"),
        (b"auth plain =", "AUTH PLAIN <1 octets>"),
        (b"Auth Plain", "AUTH PLAIN"),
        (b"AUTH c2VjcmV0", "AUTH <8 octets>"),  # base64 in the mechanism's place
        (b"MAIL FROM:<a@b> AUTH=joe@b SIZE=1", "MAIL FROM:<a@b> AUTH=<5 octets> SIZE=1"),
        (b"MAIL FROM:<a@b> auth=joe@b", "MAIL FROM:<a@b> auth=<5 octets>"),
        (b"BURL imap://a@b/c;urlauth=d LAST", "BURL <22 octets> LAST"),
        (b"WIZ open sesame", "WIZ <11 octets>"),
        (b"WIZ", "WIZ"),
        (b"FOO bar", "FOO bar"),
        (b"FOO " + b"x" * 300, "FOO " + "x" * 196 + "…"),
        (b"", ""),
        ("RCPT TO:<ü@b>".encode(), "RCPT TO:<ü@b>"),
        ("RCPT TO:<a\u0085b@c>".encode(), "RCPT TO:<a\\x85b@c>"),  # NEL
        ("RCPT TO:<a\u2028b@c>".encode(), "RCPT TO:<a\\u2028b@c>"),
        ("RCPT TO:<a\u202eb@c>".encode(), "RCPT TO:<a\\u202eb@c>"),  # from right to left
        (rb'RCPT TO:<"a\x1b"@c>', r'RCPT TO:<"a\\x1b"@c>'),  # a backslash is two, so that escapes are ours
        (b"NOOP \x1b[2J\x00", "NOOP \\x1b[2J\\x00"),
        (b"NOOP \xff", "NOOP \\xff"),
        (b"NOOP\ta", "NOOP\\ta"),
        (b"\x16\x03\x01abc", "<6 octets>"),
    ],
)
def test_describe(line: bytes, shown: str) -> None:
    assert describe(parse_command(line + b"\r\n")) == shown


def test_describe_a_sasl_line() -> None:
    assert describe(Command(SASL, Secret(b"YQ=="), Secret(b"YQ==\r\n"), b"YQ==\r\n", ())) == "<4 octets>"
    assert describe(Command(SASL, Text(b"*"), b"*\r\n", b"*\r\n", ())) == "*"


CANARY = b"c2VjcmV0Y2FuYXJ5c2VjcmV0"
SECRET_VERBS = sorted(
    word for word, verb in VERBS.items() if verb.argument in (Argument.AUTH, Argument.SECRET, Argument.URI)
)


def test_the_secret_verbs() -> None:
    assert SECRET_VERBS == [b"AUTH", b"BURL", b"WIZ", b"X-EXPS", b"XAUTH"]


# Where a canary can stand behind the verb, in ways that parse and ways that don't.
TAILS = [
    b" PLAIN %b",
    b" PLAIN =%b",
    b" PLAIN  %b",
    b" PLAIN\t%b ",
    b" PLAIN %b %b",
    b" PLAIN %b!",
    b" PLAIN \x00%b",
    b" PLAIN \xff%b",
    b" %b",
    b" %b=",
    b"\t%b",
    b"=%b",
    b":%b",
    b"%b",
    b"-%b",
    b"\x00%b",
    b"\x0b%b",
    b"\xff %b",
    b" imap://a@b/%b",
    b" imap://a@b/%b LAST",
    b" imap://a@b/%b#x",
    b"\r%b",
    b" LOGIN\n%b",
]
HEADS = [b"", b" ", b"\t ", b"\x00", b"\xff", b"\x1b[0m", b"\xef\xbb\xbf", b"."]


@pytest.mark.parametrize("verb", SECRET_VERBS)
def test_a_secret_is_never_shown(verb: bytes) -> None:
    """Well-formed or not, in any case, behind anything, or with something between its letters."""
    hidden = [verb[:2] + junk + verb[2:] for junk in (b"\x00", b"\xc2\xad", b"\x08", b" ", b"\xff")]
    for spelled in (verb, verb.lower(), verb.capitalize(), *hidden):
        for head in HEADS:
            for tail in TAILS:
                line = head + spelled + tail.replace(b"%b", CANARY) + b"\r\n"
                parsed = parse_command(line)
                for shown in (describe(parsed), str(parsed), repr(parsed), repr(list(parsed[2:]))):
                    assert CANARY.decode() not in shown, line
                    assert CANARY[:12].decode() not in shown, line


@pytest.mark.parametrize(
    "line",
    [
        b"MAIL FROM:<a@b> AUTH=%b",
        b"MAIL FROM:<a@b> auth=%b SIZE=1",
        b"MAIL FROM:<a@b>\tAUTH=%b",
        b"MAIL FROM: a@b  Auth=%b ",
        b"MAIL FROM:<a@b> AUTH=%b AUTH=%b",
        b"MAIL FROM:<a@b> AUTH=%b=",
        b"MAIL FROM:<a@b> AUTH= %b",
        b"MAIL FROM:<a@b> AUTH =%b",
        b"MAIL FROM:<a@b> AUTH=%b\x00",
        b"MAIL FROM:<a@b> AU\x00TH=%b",
        b"MAIL FROM:<a@b>AUTH=%b",
        b" MAIL FROM:<a@b> AUTH=%b",
        b"MAIL FROM:<a@b c> AUTH=%b",
        b"SOML FROM:<a@b> AUTH=%b",
        b"RCPT TO:<a@b> AUTH=%b",
        b"XMAIL FROM:<a@b> AUTH=%b",
        b"NOOP\x00AUTH PLAIN %b",
        b"RSET\nAUTH PLAIN %b",
        # a SASL dialogue that went on after AUTH was refused
        b"%b",
        b"%bMQ==",
        # POP and IMAP on the wrong port
        b"PASS %b",
        b"a1 LOGIN joe %b",
        # verbs in another script: unreadable, and so is what stands behind
        "ＡＵＴＨ PLAIN %b".encode(),
        "wız %b".encode(),
    ],
)
def test_a_secret_is_never_shown_elsewhere(line: bytes) -> None:
    parsed = parse_command(line.replace(b"%b", CANARY) + b"\r\n")
    for shown in (describe(parsed), str(parsed), repr(parsed)):
        assert CANARY.decode() not in shown
    assert CANARY.decode() not in repr(parsed[1])


def test_a_line_cut_off_is_not_shown() -> None:
    """As the session makes it of a line that is too long."""
    cut = Malformed(UNKNOWN, "line too long", "", b"AUTH PLAIN " + CANARY + b"\r\n", False)
    assert describe(cut) == "AUTH <30 octets>"


def test_what_is_no_secret_is_shown() -> None:
    """An author, a wizard and a password are none."""
    for line in (b"RCPT TO:<author@b", b"VRFY wizard", b"FOO authors", b"STATUS", b"password"):
        assert describe(parse_command(line + b"\r\n")) == line.decode()
