"""Values back to octets, and a secret that never prints."""

import ast
import copy
import json
import pickle
import traceback

import pytest

from smtpproxy.smtp.values import (
    NOTHING,
    Attributes,
    Auth,
    Chunk,
    Counted,
    Domains,
    Hello,
    Hidden,
    Mail,
    Node,
    Parameter,
    Path,
    Rcpt,
    Secret,
    Text,
    Uri,
    Value,
    unquoted,
)

ENCODED: list[tuple[Value | Path | Parameter, bytes]] = [
    (NOTHING, b""),
    (Path(b"", b""), b"<>"),
    (Path(b"Postmaster", b""), b"<Postmaster>"),
    (Path(b"a.b", b"c.example"), b"<a.b@c.example>"),
    (Path(b"a b", b"c"), b'<"a b"@c>'),  # quoted, because it must be
    (Path(b"a..b", b"c"), b'<"a..b"@c>'),  # the strict form of an odd local-part
    (Path(b"", b"c"), b'<""@c>'),  # an empty local-part is not the null reverse-path
    (Path(b'a"\\b', b"c"), rb'<"a\"\\b"@c>'),
    (Path("ü".encode(), b"c"), "<ü@c>".encode()),
    (Parameter(b"SIZE", b"10"), b"SIZE=10"),
    (Parameter(b"SMTPUTF8", None), b"SMTPUTF8"),
    (Hello(b"[192.0.2.1]"), b"[192.0.2.1]"),
    (Mail(Path(b"", b""), (Parameter(b"SIZE", b"1"), Parameter(b"PRDR", None))), b"FROM:<> SIZE=1 PRDR"),
    (Rcpt(Path(b"a", b"b"), ()), b"TO:<a@b>"),
    (Chunk(5, False), b"5"),
    (Chunk(0, True), b"0 LAST"),
    (Auth(b"PLAIN", None), b"PLAIN"),
    (Auth(b"PLAIN", Secret(b"=")), b"PLAIN ="),
    (Text(b"a b"), b"a b"),
    (Counted(12, 2), b"12 2"),
    (Attributes(((b"NAME", b"a"), (b"ADDR", b""))), b"NAME=a ADDR="),
    (Node(b"#q"), b"#q"),
    (Domains(()), b""),
    (Domains((b"a", b"b")), b"a,b"),
    (Uri(Secret(b"imap:x"), False), b"imap:x"),
    (Uri(Secret(b"imap:x"), True), b"imap:x LAST"),
    (Hidden(Secret(b"x")), b"x"),
]


@pytest.mark.parametrize(("value", "octets"), ENCODED)
def test_encode(value: Value | Path | Parameter, octets: bytes) -> None:
    encoded = value.encode()
    assert encoded == octets
    assert type(encoded) is bytes  # what goes to the wire is no longer a Secret


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (b'""', b""),
        (b'"a"', b"a"),
        (rb'"\a"', b"a"),  # a backslash before a letter means nothing
        (rb'"a\\\"b"', b'a\\"b'),
        (rb'"\\a"', b"\\a"),  # the first backslash quotes the second, not the letter
    ],
)
def test_unquoted(written: bytes, meant: bytes) -> None:
    assert unquoted(written) == meant


CANARY = b"correct-horse"
SHOWN = "<13 octets>"


def in_a_traceback(secret: Secret) -> str:
    try:
        raise ValueError(secret)
    except ValueError as error:
        return "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())


# Every way a careless line of code might turn a value into text.
WAYS = [
    repr,
    str,
    ascii,
    lambda s: f"{s}",
    lambda s: f"{s!r}",
    lambda s: f"{s!s}",
    lambda s: f"{s!a}",
    lambda s: f"{s:>40}",
    lambda s: "%s %r %a" % (s, s, s),  # noqa: UP031  # this very way is tried
    lambda s: "{} {!r}".format(s, s),  # noqa: UP032  # this very way is tried
    lambda s: s.decode(),
    lambda s: s.decode("latin-1", "backslashreplace"),
    lambda s: s.hex(),
    lambda s: s.hex(":"),
    lambda s: str([s]) + str({"k": s}) + str({s}) + str((s,)),
    lambda s: repr(Auth(b"PLAIN", s)),
    lambda s: repr(Hidden(s)),
    lambda s: repr(Uri(s, True)),
    lambda s: repr(Mail(Path(b"a", b"b"), (Parameter(b"AUTH", s),))),
    lambda s: json.dumps({"secret": s}, default=str),
    lambda s: repr(copy.copy(s)) + repr(copy.deepcopy([s])),
    in_a_traceback,
]


@pytest.mark.parametrize("way", WAYS)
def test_a_secret_never_prints(way) -> None:  # type: ignore[no-untyped-def]
    shown = way(Secret(CANARY))
    assert SHOWN in shown
    assert "horse" not in shown
    assert CANARY.hex() not in shown.replace(":", "")


def test_format_pads_what_is_shown() -> None:
    assert f"{Secret(CANARY):>15}" == "    " + SHOWN


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_secret_is_not_pickled(protocol: int) -> None:
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(Auth(b"PLAIN", Secret(CANARY)), protocol)


def test_a_secret_is_still_its_octets() -> None:
    secret = Secret(CANARY)
    assert secret == CANARY
    assert secret.reveal() == CANARY
    assert type(secret.reveal()) is bytes
    assert b"%b" % secret == CANARY  # what goes to the wire
    assert bytearray(b"AUTH ") + secret == b"AUTH " + CANARY
    assert not Secret(b"")
    with pytest.raises((ValueError, SyntaxError)):
        ast.literal_eval(repr(secret))  # what is shown can't be read back
