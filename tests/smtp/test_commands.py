"""Command lines: what is a command, what is forwarded, and what no input can do; C01–C52 of the catalogue."""

import re
from time import thread_time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smtpproxy.smtp import abnf
from smtpproxy.smtp.arguments import (
    MAX_CHUNK,
    MAX_DOMAIN,
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
    parse_argument,
)
from smtpproxy.smtp.commands import Command, Malformed, compose, describe, parse_command
from smtpproxy.smtp.registry.parameters import PARAMETERS
from smtpproxy.smtp.registry.rows import Argument, Verb
from smtpproxy.smtp.registry.verbs import UNKNOWN, VERBS


def command(line: bytes) -> Command:
    parsed = parse_command(line)
    assert isinstance(parsed, Command), parsed
    return parsed


def malformed(line: bytes) -> Malformed:
    parsed = parse_command(line)
    assert isinstance(parsed, Malformed), parsed
    return parsed


# --- commands -------------------------------------------------------------------------------------------------------

# What is forwarded as it came: the line, its verb
STRICT = [
    (b"EHLO mail.example.com", b"EHLO"),
    (b"ehlo mail.example.com", b"EHLO"),  # C01–C12: in any case
    (b"eHlO mail.example.com", b"EHLO"),
    (b"MAIL FROM:<a@b.example> SIZE=10 BODY=8BITMIME", b"MAIL"),
    (b"mail from:<a@b.example>", b"MAIL"),
    (b"RCPT TO:<a@b.example>", b"RCPT"),
    (b"RCPT TO:<Postmaster>", b"RCPT"),
    (b"DATA", b"DATA"),
    (b"data", b"DATA"),
    (b"RSET", b"RSET"),
    (b"QUIT", b"QUIT"),
    (b"NOOP", b"NOOP"),
    (b"NOOP are you there", b"NOOP"),
    (b"HELP AUTH", b"HELP"),
    (b"BDAT 10 LAST", b"BDAT"),
    (b"STARTTLS", b"STARTTLS"),
    (b"AUTH PLAIN AGEAYg==", b"AUTH"),
    (b"X-EXPS GSSAPI", b"X-EXPS"),
    (b"XEXCH50 1024 2", b"XEXCH50"),
    (b"X-EXCH50 1024 2", b"X-EXCH50"),
]


@pytest.mark.parametrize(("line", "verb"), STRICT)
def test_strict_commands_go_as_they_came(line: bytes, verb: bytes) -> None:
    line += b"\r\n"
    parsed = command(line)
    assert parsed.verb is VERBS[verb]
    assert parsed.line == line
    assert parsed.wire is parsed.line
    assert parsed.leniencies == ()


def test_the_same_octets_not_a_copy() -> None:
    line = b"RCPT TO:<a@b.example>\r\n"
    assert command(line).wire is line


# The line, what is forwarded, the leniencies
LENIENT = [
    (b"DATA ", b"DATA", ("trailing-blank",)),
    (b"data\t", b"DATA", ("trailing-blank",)),
    (b"QUIT  \t ", b"QUIT", ("trailing-blank",)),
    (b"NOOP ", b"NOOP", ("trailing-blank",)),
    (b"mail\tFROM:<a@b>", b"MAIL FROM:<a@b>", ("odd-separator",)),
    (b"MAIL  FROM:<a@b>", b"MAIL FROM:<a@b>", ("odd-separator",)),
    (b"MAIL\t\tFROM:<a@b>", b"MAIL FROM:<a@b>", ("odd-separator",)),
    (b"MAIL FROM: <a@b>", b"MAIL FROM:<a@b>", ("blank-after-colon",)),
    (b"rcpt to:a@b", b"RCPT TO:<a@b>", ("bare-path",)),
    (b"ehlo my_host", b"ehlo my_host", ("odd-hello",)),  # nothing to undo: as it came
    (b"ehlo\tmy_host", b"EHLO my_host", ("odd-separator", "odd-hello")),
    (b"rcpt to:<a..b@c>", b"rcpt to:<a..b@c>", ("odd-local-part",)),
    (b"rcpt to:<a@b_c>", b"rcpt to:<a@b_c>", ("odd-domain",)),
    (b"bdat 05 last", b"BDAT 5 LAST", ("odd-case", "leading-zeros")),
    (b"bdat\t5", b"BDAT 5", ("odd-separator",)),
    (b"auth  plain  YQ==", b"AUTH plain YQ==", ("odd-separator",)),
    (b"foo\tbar", b"FOO bar", ("odd-separator",)),
]


@pytest.mark.parametrize(("line", "wire", "names"), LENIENT)
def test_lenient_commands_go_in_one_form(line: bytes, wire: bytes, names: tuple[str, ...]) -> None:
    parsed = command(line + b"\r\n")
    assert parsed.line == line + b"\r\n"
    assert parsed.wire == wire + b"\r\n"
    assert parsed.leniencies == names
    if parsed.wire == parsed.line:
        assert parsed.wire is parsed.line
    again = command(bytes(parsed.wire))
    assert again.wire == parsed.wire
    assert again.argument == parsed.argument


# Lines with a verb nobody knows: commands, that the session refuses
@pytest.mark.parametrize(
    ("line", "word", "text"),
    [
        (b"FOO", b"FOO", b""),
        (b"foo bar", b"FOO", b"bar"),
        (b"X", b"X", b""),  # C01–C12: one letter
        (b"A" * 300, b"A" * 300, b""),  # 300 letters
        (b"550 5.1.1 no such user", b"550", b"5.1.1 no such user"),
        (b"8BITMIME", b"8BITMIME", b""),  # a keyword sent as a verb
        (b"GREETING", b"GREETING", b""),  # pseudo-verbs are not verbs
        (b"SASL x", b"SASL", b"x"),
        (b"END", b"END", b""),
        (b"UNKNOWN", b"UNKNOWN", b""),
        ("FOO ü".encode(), b"FOO", "ü".encode()),
    ],
)
def test_unknown_verbs(line: bytes, word: bytes, text: bytes) -> None:
    parsed = command(line + b"\r\n")
    assert parsed.verb is UNKNOWN
    assert parsed.word == word
    assert parsed.argument == Text(text)


# --- no commands ----------------------------------------------------------------------------------------------------

# The line, the verb it is taken for, the first digits of the reply, whether it is fatal
MALFORMED: list[tuple[bytes, bytes | None, str, bool]] = [
    # C01–C12: empty, blank, leading blanks, other blanks, arguments where none belong
    (b"", None, "500 5.5.2", False),
    (b" ", None, "500 5.5.2", False),
    (b" \t ", None, "500 5.5.2", False),
    (b" NOOP", b"NOOP", "500 5.5.2", False),
    (b"\tMAIL FROM:<a@b>", b"MAIL", "500 5.5.2", False),
    (b" FOO", None, "500 5.5.2", False),
    (b"MAIL\x0bFROM:<a@b>", b"MAIL", "500 5.5.2", False),  # VT is no separator
    (b"MAIL\x0cFROM:<a@b>", b"MAIL", "500 5.5.2", False),
    (b"MAIL\xa0FROM:<a@b>", b"MAIL", "500 5.5.2", False),  # NBSP isn't either
    ("MAIL\u2003FROM:<a@b>".encode(), b"MAIL", "500 5.5.2", False),
    (b"DATA now", b"DATA", "501 5.5.4", False),
    (b"QUIT QUIT", b"QUIT", "501 5.5.4", False),
    (b"STARTTLS please", b"STARTTLS", "501 5.5.4", False),
    (b"RSET\tx", b"RSET", "501 5.5.4", False),
    (b"EHLO", b"EHLO", "501 5.5.4", False),
    (b"HELO ", b"HELO", "501 5.5.4", False),
    (b"MAIL", b"MAIL", "501 5.5.4", False),
    (b"RCPT", b"RCPT", "501 5.5.4", False),
    (b"VRFY", b"VRFY", "501 5.5.4", False),
    (b"AUTH", b"AUTH", "501 5.5.4", False),
    (b"MAILFROM:<a@b>", None, "500 5.5.2", False),
    (b"MAIL:FROM:<a@b>", b"MAIL", "500 5.5.2", False),
    # C13–C24: 8-bit verbs, verbs of other scripts, NUL, escapes
    (b"\xff\xfe", None, "500 5.5.2", False),
    (b"MA\xffIL FROM:<a@b>", b"MAIL", "500 5.5.2", False),
    ("ＭＡＩＬ FROM:<a@b>".encode(), None, "500 5.5.2", False),  # fullwidth
    ("MAıL FROM:<a@b>".encode(), None, "500 5.5.2", False),  # "ı".upper() is "I"
    ("RſET".encode(), None, "500 5.5.2", False),  # "ſ".upper() is "S"
    ("QUİT".encode(), None, "500 5.5.2", False),
    ("MA\u200bIL FROM:<a@b>".encode(), b"MAIL", "500 5.5.2", False),  # a blank of no width
    (b"MA\x00IL FROM:<a@b>", b"MAIL", "500 5.5.2", False),
    (b"\x00MAIL FROM:<a@b>", b"MAIL", "500 5.5.2", False),
    (b"QUIT\x00", b"QUIT", "500 5.5.2", False),
    (b"NOOP\x00MAIL FROM:<a@b>", b"NOOP", "500 5.5.2", False),  # a tail behind NUL
    (b"NOOP \x00MAIL FROM:<a@b>", b"NOOP", "501 5.5.4", False),
    (b"NOOP \x1b[2J", b"NOOP", "501 5.5.4", False),
    (b"FOO \x1b[2J", None, "500 5.5.2", False),
    (b"NOOX\x08P", None, "500 5.5.2", False),
    (b"NOOP \x7f", b"NOOP", "501 5.5.4", False),
    (b"NOOP \xff", b"NOOP", "501 5.5.4", False),
    (b"FOO \xff", None, "500 5.5.2", False),
    (b"MAIL FROM:<\xe4@b>", b"MAIL", "501 5.1.7", False),  # Latin-1
    # C25–C30: what the reader would have to have let through
    (b"NOOP\rQUIT", b"NOOP", "500 5.5.2", False),
    (b"NOOP a\rQUIT", b"NOOP", "501 5.5.4", False),
    (b"NOOP a\nQUIT", b"NOOP", "501 5.5.4", False),
    (b"RSET\nQUIT", b"RSET", "500 5.5.2", False),
    (b"RSET\r", b"RSET", "500 5.5.2", False),  # CRCRLF
    (b"MAIL FROM:<a@b>\n", b"MAIL", "501 5.5.4", False),
    # C39–C52: other protocols
    (b"GET / HTTP/1.1", None, "521 5.5.1", True),
    (b"post /x HTTP/1.1", None, "521 5.5.1", True),
    (b"CONNECT a:25 HTTP/1.1", None, "521 5.5.1", True),
    (b"OPTIONS * HTTP/1.1", None, "521 5.5.1", True),
    (b"GET", None, "521 5.5.1", True),
    (b" GET / HTTP/1.1", None, "521 5.5.1", True),
    (b"GET\t/ HTTP/1.1", None, "521 5.5.1", True),
    (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 25", None, "521 5.5.1", True),
    (b"Host: a.example", None, "500 5.5.2", False),
    (b"SIZE=5", None, "500 5.5.2", False),
    (b"\x16\x03\x01\x02", None, "500 5.5.2", False),  # a TLS handshake
    (b"XCLIENT NAME", b"XCLIENT", "501 5.5.4", False),
    (b"TURN now", b"TURN", "501 5.5.4", False),
    (b"SOML <a@b>", b"SOML", "501 5.5.4", False),
    # E01–E31: a chunk behind which nothing can be read
    (b"BDAT", b"BDAT", "521 5.5.4", True),
    (b"bdat x", b"BDAT", "521 5.5.4", True),
    (b" BDAT 5", b"BDAT", "521 5.5.4", True),
    (b"BDAT5", b"BDAT", "521 5.5.4", True),
    (b"BDAT-5", b"BDAT", "521 5.5.4", True),
    (b"BDAT:5", b"BDAT", "521 5.5.4", True),
    (b"BD\x00AT 5", b"BDAT", "521 5.5.4", True),
    (b"BDAT\x005", b"BDAT", "521 5.5.4", True),
    (b"BDAT\xa05", b"BDAT", "521 5.5.4", True),
    ("BDAT５".encode(), b"BDAT", "521 5.5.4", True),
    (b"BDAT 5\x00", b"BDAT", "521 5.5.4", True),
]


@pytest.mark.parametrize(("line", "verb", "reply", "fatal"), MALFORMED)
def test_malformed(line: bytes, verb: bytes | None, reply: str, fatal: bool) -> None:
    parsed = malformed(line + b"\r\n")
    assert parsed.verb is (UNKNOWN if verb is None else VERBS[verb])
    assert parsed.reply.startswith(reply)
    assert parsed.fatal is fatal
    assert parsed.line == line + b"\r\n"
    assert parsed.why.isprintable()


@pytest.mark.parametrize("verb", list(VERBS))
def test_a_verb_is_not_lost_behind_a_blank(verb: bytes) -> None:
    for before in (b" ", b"\t", b"  \t"):
        for after in (b"", b" x", b"\tx"):
            assert malformed(before + verb + after + b"\r\n").verb is VERBS[verb]


@pytest.mark.parametrize("verb", list(VERBS))
def test_case_is_for_letters_of_ascii_only(verb: bytes) -> None:
    """Whatever Python's str thinks of case, a verb is matched by its octets."""
    name = verb.decode()
    for plain, odd in (("I", "ı"), ("S", "ſ"), ("I", "İ"), ("K", "\u212a"), ("SS", "ß"), ("ST", "ﬆ")):
        if plain in name:
            line = name.replace(plain, odd, 1).encode() + b"\r\n"
            assert not isinstance(parse_command(line), Command)


# --- every verb there and back --------------------------------------------------------------------------------------


def pieces(*patterns: bytes) -> st.SearchStrategy[bytes]:
    return st.from_regex(re.compile(b"".join(patterns)), fullmatch=True)


TEXTS = st.one_of(
    st.just(b""),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=40)
    .map(lambda text: text.strip(" ").encode())
    .filter(lambda text: not text.startswith(b"=")),
)
LOCALS = st.one_of(
    pieces(abnf.DOT_STRING),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=20).map(str.encode),
).filter(lambda local: len(local) <= 60)
DOMAINS = st.one_of(
    pieces(abnf.DOMAIN_ASCII),
    pieces(abnf.DOMAIN),
    pieces(rb"\[", abnf.IPV4, rb"\]"),
    pieces(rb"\[", abnf.IPV6, rb"\]"),
).filter(lambda domain: len(domain) <= 100)
MAILBOXES = st.builds(Path, LOCALS, DOMAINS)
_IS_ITEM = re.compile(rb"(?:[!-~]|" + abnf.UTF8_NON_ASCII + rb")+")


def parameter_of(verb: bytes, keyword: bytes) -> st.SearchStrategy[Parameter]:
    """The parameter of one row, with a value its own expression makes."""
    row = PARAMETERS[verb, keyword]
    none = st.just(Parameter(keyword, None))
    if not row.value:
        return none
    wrap = Secret if row.secret else bytes
    some = (
        st.from_regex(re.compile(row.value.encode("ascii"), re.IGNORECASE), fullmatch=True)
        .filter(lambda value: _IS_ITEM.fullmatch(value) is not None)
        .map(lambda value: Parameter(keyword, wrap(value)))
    )
    return none | some if row.optional_value else some


def parameters_of(verb: bytes) -> st.SearchStrategy[tuple[Parameter, ...]]:
    known = st.one_of([parameter_of(verb, keyword) for on, keyword in PARAMETERS if on == verb])
    unknown = st.builds(Parameter, st.just(b"X-NEVERHEARD"), st.none() | pieces(abnf.ESMTP_VALUE))
    return st.lists(known | unknown, max_size=4, unique_by=lambda parameter: parameter.keyword).map(tuple)


VALUES: dict[Argument, st.SearchStrategy[Value]] = {
    Argument.NONE: st.just(NOTHING),
    Argument.HELLO: (pieces(abnf.DOMAIN_ASCII) | pieces(abnf.ADDRESS_LITERAL))
    .filter(lambda domain: len(domain) <= MAX_DOMAIN)
    .map(Hello),
    Argument.MAIL: st.builds(Mail, MAILBOXES | st.just(Path(b"", b"")), parameters_of(b"MAIL")),
    Argument.RCPT: st.builds(Rcpt, MAILBOXES | st.just(Path(b"Postmaster", b"")), parameters_of(b"RCPT")),
    Argument.STRING: TEXTS.filter(bool).map(Text),
    Argument.TEXT: TEXTS.map(Text),
    Argument.CHUNK: st.builds(Chunk, st.integers(0, MAX_CHUNK), st.booleans()),
    Argument.AUTH: st.builds(
        Auth,
        pieces(abnf.SASL_MECHANISM).map(bytes.upper),
        st.none() | (pieces(abnf.BASE64) | st.just(b"=")).map(Secret),
    ),
    Argument.NODE: pieces(abnf.NODE).map(Node),
    Argument.DOMAINS: st.lists(pieces(abnf.DOMAIN_ASCII), max_size=4).map(lambda names: Domains(tuple(names))),
    Argument.URI: st.builds(Uri, pieces(abnf.ABSOLUTE_URI).map(Secret), st.booleans()),
    Argument.COUNTED: st.builds(Counted, st.integers(0, MAX_CHUNK), st.integers(0, 10**20 - 1)),
    Argument.ATTRIBUTES: st.lists(
        st.tuples(pieces(abnf.ESMTP_KEYWORD).map(bytes.upper), pieces(abnf.XTEXT)), min_size=1, max_size=4
    ).map(lambda pairs: Attributes(tuple(pairs))),
    Argument.SECRET: TEXTS.map(lambda text: Hidden(Secret(text))),
}


def test_every_argument_has_a_strategy() -> None:
    assert set(VALUES) == set(Argument)


@pytest.mark.parametrize("verb", VERBS.values(), ids=lambda verb: verb.name)
@settings(max_examples=40)
@given(data=st.data())
def test_there_and_back(verb: Verb, data: st.DataObject) -> None:
    """What a value is written as is strict, and is read as that value; the verb in any case."""
    value = data.draw(VALUES[verb.argument])
    composed = compose(verb, value)
    assert composed.argument == value
    assert composed.leniencies == ()
    assert composed.wire is composed.line
    line = bytes(composed.line)
    word = verb.name.encode()
    assert command(word.lower() + line[len(word) :]).argument == value
    assert describe(composed).isprintable()
    assert str(composed) == describe(composed)


@settings(max_examples=2000)
@given(
    st.sampled_from([*VERBS, b"FOO", b""]),
    st.lists(
        st.sampled_from(
            [b" ", b"\t", b"  ", b"FROM:", b"TO:", b"<a@b>", b"a@b", b"<>", b"SIZE=1", b"AUTH=x", b"X", b"5", b"LAST"]
        )
        | st.binary(max_size=3),
        max_size=8,
    ),
    st.sampled_from([b"", b" ", b"\t", b"\x00"]),
)
def test_garbage(verb: bytes, rest: list[bytes], before: bytes) -> None:
    """Anything is a command or malformed; what may be forwarded is one clean line that is read as itself."""
    line = before + verb + b"".join(rest) + b"\r\n"
    parsed = parse_command(line)
    assert parsed.line == line
    assert describe(parsed).isprintable()
    if isinstance(parsed, Malformed):
        assert re.fullmatch(r"5[0-9]{2} 5\.[0-9]\.[0-9] [ -~]+", parsed.reply)
        return
    wire = bytes(parsed.wire)
    assert re.fullmatch(rb"[A-Za-z0-9][A-Za-z0-9-]*+(?: [!-~\x80-\xff][ -~\x80-\xff]*+)?\r\n", wire)
    assert not wire.endswith(b" \r\n")
    wire.decode("utf-8")
    again = command(wire)
    assert (again.verb, again.argument, again.wire) == (parsed.verb, parsed.argument, parsed.wire)
    assert parsed.leniencies or parsed.wire is parsed.line


@given(st.binary(max_size=60))
def test_any_octets(octets: bytes) -> None:
    assert describe(parse_command(octets + b"\r\n")).isprintable()


def test_compose_refuses_what_the_grammar_does_not_have() -> None:
    for verb, value in (
        (b"RCPT", Rcpt(Path(b"a\r\nRSET", b"b"), ())),  # a rule's value can't smuggle a command
        (b"RCPT", Rcpt(Path(b"a", b"b>\r\nRSET\r\n"), ())),
        (b"RCPT", Rcpt(Path(b"a", b"b> SIZE=1"), ())),
        (b"RCPT", Rcpt(Path(b"", b""), ())),
        (b"MAIL", Rcpt(Path(b"a", b"b"), ())),  # another verb's
        (b"MAIL", Mail(Path(b"a", b""), ())),
        (b"MAIL", Mail(Path(b"a", b"b"), (Parameter(b"SIZE", b"x"),))),
        (b"NOOP", Text(b" a ")),
        (b"NOOP", Text(b"a\nb")),
        (b"BDAT", Chunk(-1, False)),
        (b"AUTH", Auth(b"PLAIN", Secret(b"secret"))),
    ):
        with pytest.raises(ValueError) as caught:
            compose(VERBS[verb], value)
        assert "b'secret'" not in str(caught.value)


def test_parse_argument_agrees_with_parse_command() -> None:
    for line, verb in STRICT:
        assert parse_argument(VERBS[verb].argument, line[len(verb) + 1 :])[0] == command(line + b"\r\n").argument


# --- speed ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", [*VERBS, b"FOO", b""])
def test_no_line_is_slow(verb: bytes) -> None:
    """2,000 octets of anything, parsed and described, in 10 ms; the worst is far below."""
    runs = [
        b"a",
        b"A",
        b"Aa1",
        b" ",
        b"\t",
        b"AUTH",
        b"A ",
        b"A\x00",
        b"<",
        b'"',
        b"\\",
        b"@",
        b".",
        b"\xff",
        b"\xc3\xbc",
    ]
    for run in [*runs, b"=", b"0", b" X=1", b"a@", b"X-", b"W I"]:
        for head in (b" ", b"", b" FROM:<", b" TO:", b" FROM:<a@b> "):
            line = (verb + head + run * 2000)[:2000] + b"\r\n"
            took = []
            for _ in range(3):
                began = thread_time()
                describe(parse_command(line))
                took.append(thread_time() - began)
            assert min(took) < 0.010, line[:40]
