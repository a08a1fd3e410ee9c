"""BDAT that can't be read, or only with a leniency: E01–E35 of the catalogue of attacks.

What follows such a line is content of unknown length, so nothing but the end of the session is safe.
"""

import pytest

from smtpproxy.smtp.arguments import ArgumentError, Chunk, parse_argument
from smtpproxy.smtp.commands import Malformed, parse_command
from smtpproxy.smtp.registry.rows import Argument
from smtpproxy.smtp.registry.verbs import VERBS

# E01–E31: everything but plain ASCII digits and an optional LAST
BAD_CHUNKS = [
    (b"", "none"),
    (b" ", "blank"),
    (b"LAST", "only LAST"),
    (b"-1", "minus"),
    (b"+5", "plus"),
    (b"-0", "minus nought"),
    (b"0x5", "hexadecimal"),
    (b"5h", "hexadecimal, trailing"),
    (b"0o5", "octal"),
    (b"0b1", "binary"),
    (b"5.0", "fraction"),
    (b"5e0", "exponent"),
    (b"1_0", "underscore"),
    (b"1,000", "comma"),
    (b"1'000", "apostrophe"),
    (b"five", "word"),
    (b"{5}", "IMAP literal"),
    (b"<5>", "brackets"),
    (b"5;ext", "HTTP chunk extension"),
    (b"SIZE=5", "parameter"),
    ("５".encode(), "fullwidth"),
    ("٥".encode(), "Arabic"),
    ("५".encode(), "Devanagari"),
    ("⁵".encode(), "superscript"),
    ("𝟓".encode(), "mathematical"),
    (b"2147483648", "more than 31 bits"),
    (b"4294967301", "5 in 32 bits"),
    (b"18446744073709551621", "5 in 64 bits"),
    (b"9" * 20, "20 digits"),
    (b"0" * 20 + b"5", "21 digits"),
    (b"9" * 5000, "5,000 digits"),
    (b"5LAST", "LAST glued"),
    (b"5 LASTX", "junk behind LAST"),
    (b"5 LAST LAST", "LAST twice"),
    (b"5 LAST 5", "number behind LAST"),
    (b"LAST 5", "order"),
    (b"5 5", "two numbers"),
    (b"5 FIRST", "another word"),
    (b"5\x00", "NUL"),
    (b"5\x0bLAST", "VT"),
    (b"5\x0cLAST", "FF"),
    (b"5\xa0LAST", "NBSP, Latin-1"),
    ("5\u00a0LAST".encode(), "NBSP, UTF-8"),
    ("5\u2003LAST".encode(), "EM SPACE"),
    (b"5\rLAST", "CR"),
    (b"5\n", "LF"),
    ("5 LAſT".encode(), "long s"),
    (b"5 L\xc3\x84ST", "umlaut"),
]


@pytest.mark.parametrize(("text", "what"), BAD_CHUNKS, ids=[what for _, what in BAD_CHUNKS])
def test_e01_e31_bad_chunks(text: bytes, what: str) -> None:
    with pytest.raises(ArgumentError):
        parse_argument(Argument.CHUNK, text)


# E32–E35: read, and sent on in one form only
@pytest.mark.parametrize("text", [b"05", b"00000000000000000005", b" 5", b"5 ", b"5\t", b"\t5", b"0005 \t"])
def test_e32_e35_lenient_chunks(text: bytes) -> None:
    assert parse_argument(Argument.CHUNK, text)[:2] == (Chunk(5, False), b"5")


@pytest.mark.parametrize("text", [b"5 last", b"5 Last", b"5  LAST", b"5\tLAST", b"05 lAST ", b" 5 LAST"])
def test_e32_e35_lenient_last_chunks(text: bytes) -> None:
    assert parse_argument(Argument.CHUNK, text)[:2] == (Chunk(5, True), b"5 LAST")


@pytest.mark.parametrize(("text", "what"), BAD_CHUNKS, ids=[what for _, what in BAD_CHUNKS])
@pytest.mark.parametrize("verb", [b"BDAT ", b"bdat\t", b"\tBdat "])
def test_e01_e31_a_chunk_of_unknown_length_is_fatal(verb: bytes, text: bytes, what: str) -> None:
    parsed = parse_command(verb + text + b"\r\n")
    assert isinstance(parsed, Malformed)
    assert parsed.fatal
    assert parsed.verb is VERBS[b"BDAT"]
