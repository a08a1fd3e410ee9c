"""The pieces of the grammar: what each takes, what it must not, and that no input makes it slow."""

import re
from time import thread_time

import pytest

from smtpproxy.smtp import abnf

# piece, octets, whether the piece takes them in full
CASES: list[tuple[str, bytes, bool]] = [
    # UTF8-non-ascii: the ends of every range, and what lies just outside
    ("UTF8_NON_ASCII", b"\xc2\x80", True),  # U+0080, the first of two octets
    ("UTF8_NON_ASCII", b"\xdf\xbf", True),  # U+07FF, the last
    ("UTF8_NON_ASCII", b"\xe0\xa0\x80", True),  # U+0800, the first of three
    ("UTF8_NON_ASCII", b"\xed\x9f\xbf", True),  # U+D7FF, the last before the surrogates
    ("UTF8_NON_ASCII", b"\xee\x80\x80", True),  # U+E000, the first behind them
    ("UTF8_NON_ASCII", b"\xef\xbf\xbf", True),  # U+FFFF
    ("UTF8_NON_ASCII", b"\xf0\x90\x80\x80", True),  # U+10000, the first of four
    ("UTF8_NON_ASCII", b"\xf4\x8f\xbf\xbf", True),  # U+10FFFF, the last
    ("UTF8_NON_ASCII", b"\xc0\x80", False),  # NUL in two octets
    ("UTF8_NON_ASCII", b"\xc1\xbf", False),  # overlong DEL
    ("UTF8_NON_ASCII", b"\xe0\x80\xaf", False),  # overlong slash
    ("UTF8_NON_ASCII", b"\xe0\x9f\xbf", False),  # overlong U+07FF
    ("UTF8_NON_ASCII", b"\xed\xa0\x80", False),  # a surrogate
    ("UTF8_NON_ASCII", b"\xed\xbf\xbf", False),  # the last of them
    ("UTF8_NON_ASCII", b"\xf0\x80\x80\x8a", False),  # LF in four octets
    ("UTF8_NON_ASCII", b"\xf0\x8f\xbf\xbf", False),  # overlong U+FFFF
    ("UTF8_NON_ASCII", b"\xf4\x90\x80\x80", False),  # U+110000
    ("UTF8_NON_ASCII", b"\xf5\x80\x80\x80", False),  # beyond every plane
    ("UTF8_NON_ASCII", b"\x80", False),  # a tail alone
    ("UTF8_NON_ASCII", b"\xc3", False),  # a head alone
    ("UTF8_NON_ASCII", b"\xe4", False),  # Latin-1
    ("UTF8_NON_ASCII", b"a", False),  # ASCII
    # Dot-string
    ("DOT_STRING", b"a", True),
    ("DOT_STRING", b"a.b.c", True),
    ("DOT_STRING", b"!#$%&'*+-/=?^_`{|}~", True),  # every special of atext
    ("DOT_STRING", "jürgen".encode(), True),
    ("DOT_STRING", b"", False),
    ("DOT_STRING", b".a", False),
    ("DOT_STRING", b"a.", False),
    ("DOT_STRING", b"a..b", False),
    ("DOT_STRING", b"a b", False),
    ("DOT_STRING", b"a@b", False),
    ("DOT_STRING", b"a\n", False),  # a final LF, that `$` would not see
    # Quoted-string
    ("QUOTED_STRING", b'""', True),  # empty, and legal
    ("QUOTED_STRING", b'"a b"', True),
    ("QUOTED_STRING", rb'"a\"b"', True),
    ("QUOTED_STRING", rb'"a\\"', True),
    ("QUOTED_STRING", b'"@<>,;:"', True),
    ("QUOTED_STRING", b'"', False),
    ("QUOTED_STRING", rb'"a\"', False),  # the quote is quoted
    ("QUOTED_STRING", b'"a"b"', False),
    ("QUOTED_STRING", b'"a\tb"', False),  # HT is no qtextSMTP
    ("QUOTED_STRING", b'"a\r\nb"', False),
    ("QUOTED_STRING", b'"\\\n"', False),
    # Domain
    ("DOMAIN", b"a", True),
    ("DOMAIN", b"b.example", True),
    ("DOMAIN", b"xn--bcher-kva.example", True),  # two hyphens side by side
    ("DOMAIN", b"1.2.3.4", True),  # only digits, and in the grammar
    ("DOMAIN", "bücher.example".encode(), True),
    ("DOMAIN", "例え.テスト".encode(), True),
    ("DOMAIN", b"", False),
    ("DOMAIN", b"-a", False),
    ("DOMAIN", b"a-", False),
    ("DOMAIN", b"a-.b", False),
    ("DOMAIN", b"a.-b", False),
    ("DOMAIN", b"a..b", False),
    ("DOMAIN", b"a.", False),
    ("DOMAIN", b".a", False),
    ("DOMAIN", b"a_b", False),
    ("DOMAIN", b"b\xfccher", False),  # Latin-1
    ("DOMAIN_ASCII", "bücher.example".encode(), False),  # U-labels have no place in EHLO (RFC 6531 §3.7.1)
    # address-literal: IPv4
    ("ADDRESS_LITERAL", b"[192.0.2.1]", True),
    ("ADDRESS_LITERAL", b"[255.255.255.255]", True),
    ("ADDRESS_LITERAL", b"[0.0.0.0]", True),
    ("ADDRESS_LITERAL", b"[192.0.2.256]", False),
    ("ADDRESS_LITERAL", b"[192.0.2]", False),
    ("ADDRESS_LITERAL", b"[192.0.2.1.1]", False),
    ("ADDRESS_LITERAL", b"[192.0.2.1", False),
    ("ADDRESS_LITERAL", b"192.0.2.1]", False),
    ("ADDRESS_LITERAL", b"[]", False),
    ("ADDRESS_LITERAL", b"[ 192.0.2.1]", False),
    ("ADDRESS_LITERAL", "[192.0.2.１]".encode(), False),  # a fullwidth digit
    # address-literal: IPv6
    ("ADDRESS_LITERAL", b"[IPv6:2001:db8:1:2:3:4:5:6]", True),  # IPv6-full
    ("ADDRESS_LITERAL", b"[ipv6:2001:DB8::1]", True),  # IPv6-comp, in any case
    ("ADDRESS_LITERAL", b"[IPv6:::]", True),
    ("ADDRESS_LITERAL", b"[IPv6:::1]", True),
    ("ADDRESS_LITERAL", b"[IPv6:1::]", True),
    ("ADDRESS_LITERAL", b"[IPv6:1:2:3:4:5:6::]", True),  # six groups
    ("ADDRESS_LITERAL", b"[IPv6:::1:2:3:4:5:6]", True),
    ("ADDRESS_LITERAL", b"[IPv6:1:2:3::4:5:6]", True),
    ("ADDRESS_LITERAL", b"[IPv6:1:2:3:4:5:6:192.0.2.1]", True),  # IPv6v4-full
    ("ADDRESS_LITERAL", b"[IPv6:::ffff:192.0.2.1]", True),  # IPv6v4-comp
    ("ADDRESS_LITERAL", b"[IPv6:::192.0.2.1]", True),
    ("ADDRESS_LITERAL", b"[IPv6:1:2:3:4::192.0.2.1]", True),
    ("ADDRESS_LITERAL", b"[IPv6:1:2:3:4:5:6:7]", False),  # seven groups
    ("ADDRESS_LITERAL", b"[IPv6:1:2:3:4:5:6:7:8:9]", False),  # nine
    ("ADDRESS_LITERAL", b"[IPv6:1:2:3:4:5:6:7::]", False),  # "::" for one group is not in RFC 5321
    ("ADDRESS_LITERAL", b"[IPv6:1::2::3]", False),  # "::" twice
    ("ADDRESS_LITERAL", b"[IPv6:12345::]", False),  # five digits
    ("ADDRESS_LITERAL", b"[IPv6:g::]", False),
    ("ADDRESS_LITERAL", b"[IPv6:]", False),
    ("ADDRESS_LITERAL", b"[IPv6:::1%eth0]", False),  # a zone
    ("ADDRESS_LITERAL", b"[IPv6:1:2:3:4:5::192.0.2.1]", False),  # five groups beside "::" and IPv4
    ("ADDRESS_LITERAL", b"[2001:db8::1]", True),  # no IPv6: "2001" has the letters of a Standardized-tag
    ("ADDRESS_LITERAL", b"[x:any~thing!]", True),  # General-address-literal
    ("ADDRESS_LITERAL", b"[x-1:a]", True),
    ("ADDRESS_LITERAL", b"[x-:a]", False),
    ("ADDRESS_LITERAL", b"[x:]", False),
    ("ADDRESS_LITERAL", b"[x:a b]", False),
    ("ADDRESS_LITERAL", b"[x:a]b]", False),
    # A-d-l
    ("SOURCE_ROUTE", b"@a", True),
    ("SOURCE_ROUTE", b"@a.example,@b.example", True),
    ("SOURCE_ROUTE", b"@a,b", False),
    ("SOURCE_ROUTE", b"@a,", False),
    ("SOURCE_ROUTE", b"@a, @b", False),
    # esmtp-param
    ("ESMTP_PARAM", b"SIZE=10", True),
    ("ESMTP_PARAM", b"8BITMIME", True),
    ("ESMTP_PARAM", b"AUTH=<>", True),
    ("ESMTP_PARAM", "X=ü".encode(), True),
    ("ESMTP_PARAM", b"X=", False),
    ("ESMTP_PARAM", b"=X", False),
    ("ESMTP_PARAM", b"-X=1", False),
    ("ESMTP_PARAM", b"X=a=b", False),
    ("ESMTP_PARAM", b"X=a b", False),
    ("ESMTP_PARAM", b"X_Y=1", False),
    # xtext
    ("XTEXT", b"", True),
    ("XTEXT", b"a+3Db", True),
    ("XTEXT", b"a+3db", False),  # its digits are capitals
    ("XTEXT", b"a+", False),
    ("XTEXT", b"a=b", False),
    ("XTEXT", b"a b", False),
    # base64
    ("BASE64", b"YQ==", True),
    ("BASE64", b"YWI=", True),
    ("BASE64", b"YWJj", True),
    ("BASE64", b"YWJjYQ==", True),
    ("BASE64", b"", False),
    ("BASE64", b"YQ", False),  # without its padding
    ("BASE64", b"YQ=", False),
    ("BASE64", b"YQ===", False),
    ("BASE64", b"YQ==YQ==", False),  # padding in the middle
    ("BASE64", b"YW_j", False),  # the other alphabet
    ("BASE64", b"====", False),
    # numbers
    ("NUMBER", b"0", True),
    ("NUMBER", b"10", True),
    ("NUMBER", b"9" * 20, True),
    ("NUMBER", b"9" * 21, False),
    ("NUMBER", b"00", False),
    ("NUMBER", b"+1", False),
    ("NUMBER", b"-1", False),
    ("NUMBER", b"1_0", False),
    ("NUMBER", b"0x1", False),
    ("NUMBER", "１".encode(), False),
    ("NUMBER", "٣".encode(), False),  # an Arabic digit
    # ETRN, ATRN, BURL
    ("NODE", b"example.com", True),
    ("NODE", b"@example.com", True),
    ("NODE", b"#queue-1!", True),
    ("NODE", b"@#x", False),
    ("NODE", b"#", False),
    ("DOMAINS", b"a.example,b.example", True),
    ("DOMAINS", b"a.example,", False),
    ("DOMAINS", b"a.example b.example", False),
    ("ABSOLUTE_URI", b"imap://harry@host/x;urlauth=y:internal:0a", True),
    ("ABSOLUTE_URI", b"imap://host/%41", True),
    ("ABSOLUTE_URI", b"a+b:!$&'()*+,;=:@/?[]-._~", True),  # every character but those of names and "%"
    ("ABSOLUTE_URI", b"imap://host/%4", False),
    ("ABSOLUTE_URI", b"imap://host/#x", False),  # a fragment
    ("ABSOLUTE_URI", b"//host/x", False),  # no scheme
    # text
    ("TEXT", b"a b ~", True),
    ("TEXT", "ü ".encode(), True),
    ("TEXT", b"a\tb", False),
    ("TEXT", b"a\x00b", False),
    ("TEXT", b"a\x7fb", False),
    ("TEXT", b"a\n", False),
]


@pytest.mark.parametrize(("piece", "octets", "taken"), CASES)
def test_pieces(piece: str, octets: bytes, taken: bool) -> None:
    assert (re.fullmatch(getattr(abnf, piece), octets) is not None) is taken


def test_utf8_is_what_python_decodes() -> None:
    """Every sequence of one and two octets, and every edge of three and four, as the strict decoder has it."""
    matches = re.compile(abnf.UTF8_NON_ASCII).fullmatch
    edges = [0x00, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC1, 0xC2, 0xDF, 0xE0, 0xE1, 0xEC, 0xED, 0xEE, 0xEF]
    edges += [0xF0, 0xF1, 0xF3, 0xF4, 0xF5, 0xFF]
    candidates = [bytes([a]) for a in range(256)] + [bytes([a, b]) for a in range(256) for b in range(256)]
    candidates += [bytes([a, b, c]) for a in edges for b in edges for c in edges]
    candidates += [bytes([a, b, c, d]) for a in edges for b in edges for c in edges for d in edges]
    for octets in candidates:
        try:
            one = len(octets.decode("utf-8")) == 1 and octets[0] > 0x7F
        except UnicodeDecodeError:
            one = False
        assert (matches(octets) is not None) is one, octets


PIECES = [name for name in dir(abnf) if name.isupper()]

# What makes careless expressions try everything: long runs that nearly match, and then don't.
HOSTILE = [
    b"a" * 2000,
    b"a." * 1000,
    b"a-" * 1000,
    b"-" * 2000,
    b"." * 2000,
    b"1" * 2000,
    b"1:" * 1000,
    b"[IPv6:" + b"1:" * 1000,
    b"[" + b"1." * 1000,
    b"[" + b"a-" * 1000,
    b"[x:" + b"a" * 1996,
    b"@a," * 666,
    b'"' + b"\\" * 1999,
    b'"' + b"a" * 1999,
    b'"' * 2000,
    "ü".encode() * 1000,
    "ü".encode() * 999 + b"\xc3",
    b"\xf0" * 2000,
    b"a+" * 1000,
    b"+41" * 666,
    b"A" * 1999,
    b"A=" * 1000,
    b"A" * 1998 + b"==",
    b"a:" + b"%4" * 999,
    b"#" * 2000,
    b" " * 2000,
]


def seconds(pattern: re.Pattern[bytes], octets: bytes) -> float:
    """Of the processor's time, the least of three: another process's work isn't ours."""
    took = []
    for _ in range(3):
        began = thread_time()
        pattern.fullmatch(octets)
        took.append(thread_time() - began)
    return min(took)


@pytest.mark.parametrize("piece", PIECES)
def test_no_input_is_slow(piece: str) -> None:
    pattern = re.compile(getattr(abnf, piece))
    for octets in HOSTILE:
        for tail in (b"", b"\x00", b"!", b"\xff"):
            assert seconds(pattern, octets + tail) < 0.010, (octets[:20], tail)


@pytest.mark.parametrize("piece", PIECES)
def test_pieces_can_be_put_together(piece: str) -> None:
    """No capturing group, no anchor that would see a final LF as the end, no possessive group."""
    pattern: bytes = getattr(abnf, piece)
    assert re.compile(pattern).groups == 0
    bones = re.sub(rb"\[[^\]]*\]", b"x", re.sub(rb"\\.", b"x", pattern))  # without escapes and classes
    assert b"$" not in bones
    assert not re.search(rb"\)[*+?]\+", bones)  # wrong in Python 3.11.2 where the group repeats something itself
