"""The header section: what any reader takes for a field is found; an edit changes what it names and nothing else."""

import email
import email.policy
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpproxy.smtp.message import ADD, PREPEND, REMOVE, REPLACE, Header, is_field_name, made

MAIL = (
    b"Received: from a\r\n\tby b; Mon, 1 Jan 2024 00:00:00 +0000\r\n"
    b"Subject: =?utf-8?q?caf=C3=A9?=\r\n and more\r\n"
    b"To: a@b.example\r\n"
    b"received: second\r\n"
    b"\r\n"
)


def test_a_section() -> None:
    header = Header.parse(MAIL + b"Subject: of the body\r\n\r\n")
    assert header.octets == MAIL
    assert [field.name for field in header.fields] == [b"Received", b"Subject", b"To", b"received"]
    assert b"".join(field.raw for field in header.fields) + b"\r\n" == MAIL
    assert [field.start for field in header.fields] == [MAIL.index(field.raw) for field in header.fields]
    assert header.get(b"SUBJECT") == header.get("subject") == ["café and more"]
    assert header.get("Received") == ["from a\tby b; Mon, 1 Jan 2024 00:00:00 +0000", "second"]
    assert header.get("Cc") == header.get("ü") == []
    assert header.all("To")[0].body == b"a@b.example"
    assert header.all("To")[0].value is header.all("To")[0].value, "decoded once"
    assert header.by_name["to"] == ["a@b.example"]
    assert list(header.by_name) == ["received", "subject", "to"]
    assert repr(header.fields[2]) == r"HeaderField(b'To', b'To: a@b.example\r\n')"
    assert (header.anomalies, header.stops) == ((), ())


# octets · fields by name · anomalies · stops
ODD: dict[str, tuple[bytes, dict[str, list[str]], tuple[str, ...], tuple[int, ...]]] = {
    "no field": (b"\r\n", {}, (), ()),
    "nothing": (b"", {}, (), ()),
    "no empty line": (b"A: b\r\n", {"a": ["b"]}, (), ()),
    "no line end": (b"A: b", {"a": ["b"]}, (), ()),
    "no value": (b"A:\r\nB: \r\n\r\n", {"a": [""], "b": [""]}, (), ()),
    "a value from the next line on": (b"A:\r\n b\r\n\r\n", {"a": ["b"]}, (), ()),
    "a colon in the value": (b"A:b:c\r\n\r\n", {"a": ["b:c"]}, (), ()),
    "no colon": (b"A: b\r\nc\r\n d\r\nE: f\r\n\r\n", {"a": ["b"], "e": ["f"]}, ("header-line-malformed",), (6,)),
    "only a colon": (b": b\r\nA: c\r\n\r\n", {"a": ["c"]}, ("header-line-malformed",), (0,)),
    "an mbox line": (b"From a Mon Jan 1 00:00:00\r\nA: b\r\n\r\n", {"from a mon jan 1 00": ["00:00"], "a": ["b"]},
                     ("header-line-malformed",), (0,)),
    "the first of a kind": (b"A: b\r\nc\r\nd\r\n: e\r\nf g: h\r\nA : i\r\n: j\r\nA : k\r\n\r\n",
                            {"a": ["b", "i", "k"], "f g": ["h"]},
                            ("header-line-malformed", "header-blank-before-colon"), (6, 12, 17, 25)),
    "a blank in the name": (b"A b: c\r\n\r\n", {"a b": ["c"]}, ("header-line-malformed",), (0,)),
    "a control character in the name": (b"A\x01: c\r\n\r\n", {"a\x01": ["c"]}, ("header-line-malformed",), (0,)),
    "a name beyond ASCII": (b"A\xff: c\r\n\r\n", {"a\xff": ["c"]}, ("header-line-malformed",), (0,)),
    "a blank before the colon": (b"Subject : b\r\n\r\n", {"subject": ["b"]}, ("header-blank-before-colon",), (0,)),
    "TAB before the colon": (b"A: b\r\nSubject\t: c\r\n\r\n", {"a": ["b"], "subject": ["c"]},
                             ("header-blank-before-colon",), (6,)),
    "the first line folded": (b" A: b\r\n c\r\nD: e\r\n\r\n", {"a": ["b c"], "d": ["e"]},
                              ("header-first-line-folded",), (0,)),
    "the first line folded, no field": (b" a\r\n B: c\r\nD: e\r\n\r\n", {"b": ["c"], "d": ["e"]},
                                        ("header-first-line-folded", "header-line-malformed"), (0, 4)),
    "a folded line of nothing": (b"A: b\r\n \t\r\n c\r\n\r\n", {"a": ["b \t c"]}, ("header-blank-line",), (6,)),
    "NUL in a name": (b"Sub\0ject: b\r\n\r\n", {"subject": ["b"]}, ("header-nul",), (0,)),
    "NUL in a value": (b"A: b\0c\r\n\r\n", {"a": ["b c"]}, ("header-nul",), ()),
    "CR alone": (b"A: b\rC: d\r\n\r\n", {"a": ["b"], "c": ["d"]}, ("header-bare-newline",), ()),
    "LF alone": (b"A: b\nC: d\n e\r\n\r\n", {"a": ["b"], "c": ["d e"]}, ("header-bare-newline",), ()),
    "an empty line by LF": (b"A: b\n\nC: d\r\n\r\n", {"a": ["b"], "c": ["d"]},
                            ("header-bare-newline", "header-blank-line"), (5,)),
    "a long line": (b"A: " + b"b" * 996 + b"\r\n\r\n", {"a": ["b" * 996]}, ("header-line-too-long",), ()),
    "a line as long as may be": (b"A: " + b"b" * 995 + b"\r\n\r\n", {"a": ["b" * 995]}, (), ()),
    "twice": (b"Subject: a\r\nsubject: b\r\n\r\n", {"subject": ["a", "b"]}, ("header-repeated",), ()),
    "twice, as often as one likes": (b"Received: a\r\nReceived: b\r\n\r\n", {"received": ["a", "b"]}, (), ()),
}  # fmt: skip


@pytest.mark.parametrize("case", ODD)
def test_what_is_odd(case: str) -> None:
    octets, fields, anomalies, stops = ODD[case]
    header = Header.parse(octets)
    assert header.by_name == fields
    assert header.anomalies == anomalies
    assert header.stops == stops
    assert header.octets == octets


# octets · edits · what becomes of them
EDITS: dict[str, tuple[bytes, list[tuple[str, bytes, bytes]], bytes]] = {
    "nothing": (MAIL, [], MAIL),
    "prepend": (b"A: b\r\n\r\n", [(PREPEND, b"X", b"y"), (PREPEND, b"Z", b"")], b"Z:\r\nX: y\r\nA: b\r\n\r\n"),
    "add": (b"A: b\r\n\r\n", [(ADD, b"X", b"y"), (ADD, b"A", b"c")], b"A: b\r\nX: y\r\nA: c\r\n\r\n"),
    "replace": (
        b"S: 1\r\nA: b\r\n c\r\ns : 2\r\nD: e\r\n\r\n",
        [(REPLACE, b"S", b"y")],
        b"S: y\r\nA: b\r\n c\r\nD: e\r\n\r\n",
    ),
    "replace what is not there": (b"A: b\r\n\r\n", [(REPLACE, b"S", b"y")], b"A: b\r\nS: y\r\n\r\n"),
    "replace what was added": (b"\r\n", [(ADD, b"S", b"x"), (REPLACE, b"S", b"y")], b"S: y\r\n\r\n"),
    "remove": (
        b"Received: a\r\n b\r\nA: b\r\nRECEIVED : c\r\nRec\0eived: d\r\nE: f\r\n\r\n",
        [(REMOVE, b"received", b"")],
        b"A: b\r\nE: f\r\n\r\n",
    ),
    "remove the last": (b"A: b\r\n\r\n", [(REMOVE, b"A", b"")], b"\r\n"),
    "no section": (b"", [(ADD, b"A", b"b")], b"A: b\r\n\r\n"),
    "no empty line": (b"A: b\r\n", [(ADD, b"C", b"d")], b"A: b\r\nC: d\r\n\r\n"),
    "no line end": (b"A: b", [(ADD, b"C", b"d")], b"A: b\r\nC: d\r\n\r\n"),
    # what is added is seen by a reader that stops early
    "before a line that is none": (
        b"A: b\r\nc\r\nS: d\r\n\r\n",
        [(ADD, b"X", b"y"), (REPLACE, b"S", b"z")],
        b"A: b\r\nX: y\r\nS: z\r\nc\r\n\r\n",
    ),
    "before a folded line of nothing": (
        b"A: b\r\n \r\n c\r\n\r\n",
        [(ADD, b"X", b"y")],
        b"X: y\r\nA: b\r\n \r\n c\r\n\r\n",
    ),
    "a folded first line continues nothing of ours": (
        b" a\r\nB: c\r\n\r\n",
        [(PREPEND, b"X", b"y")],
        b" a\r\nX: y\r\nB: c\r\n\r\n",
    ),
    "a folded first line that reads as a field": (b" A: b\r\nC: d\r\n\r\n", [(REMOVE, b"A", b"")], b"C: d\r\n\r\n"),
    # no CR, LF or NUL alone comes out
    "line ends": (b"A: b\rC: d\nE: f\r\n\r\n", [(REMOVE, b"C", b"")], b"A: b\r\nE: f\r\n\r\n"),
    "an empty line by LF would end it": (b"A: b\n\nC: d\r\n\r\n", [], b"A: b\r\nC: d\r\n\r\n"),
    "NUL": (b"A: b\0\r\n\r\n", [], b"A: b?\r\n\r\n"),
    "a value with line ends": (b"\r\n", [(ADD, b"A", b"b\r\nC: d\0\n.\r\n")], b"A: b??C: d??.??\r\n\r\n"),
}


@pytest.mark.parametrize("case", EDITS)
def test_edits(case: str) -> None:
    octets, edits, became = EDITS[case]
    assert Header.parse(octets).edited(edits) == became


@pytest.mark.parametrize("name", [b"", b"A:", b"A B", b"\xff", b"A\r\n", b"A" * 71])
def test_a_name_that_is_none(name: bytes) -> None:
    assert not is_field_name(name)
    with pytest.raises(ValueError, match="no header field name"):
        Header.parse(b"").edited([(ADD, name, b"x")])


def test_an_edit_that_is_none() -> None:
    with pytest.raises(ValueError, match="no edit"):
        Header.parse(b"").edited([("burn", b"A", b"x")])


# value · with encoded words · with UTF-8
MADE: dict[str, tuple[str, bytes, bytes]] = {
    "plain": ("y", b"X: y\r\n", b"X: y\r\n"),
    "not ASCII": ("ü", b"X: =?utf-8?b?w7w=?=\r\n", "X: ü\r\n".encode()),
    "78": ("a" * 75, b"X: " + b"a" * 75 + b"\r\n", b"X: " + b"a" * 75 + b"\r\n"),
    "79": ("a" * 70 + " bcdef", b"X: " + b"a" * 70 + b"\r\n bcdef\r\n", b"X: " + b"a" * 70 + b"\r\n bcdef\r\n"),
    "a long word stays whole": ("a" * 100 + " b", b"X: " + b"a" * 100 + b"\r\n b\r\n",
                                b"X: " + b"a" * 100 + b"\r\n b\r\n"),
    "no line is of blanks": ("a" + " " * 5000 + "b", b"X: a b\r\n", b"X: a b\r\n"),
    "blanks go with the word": ("a" * 75 + "  b", b"X: " + b"a" * 75 + b"\r\n  b\r\n",
                                b"X: " + b"a" * 75 + b"\r\n  b\r\n"),
    "no blank to fold at": ('"a"' * 400, b'X: ' + b'"a"' * 331 + b'\r\n ' + b'"a"' * 69 + b"\r\n",
                            b'X: ' + b'"a"' * 331 + b'\r\n ' + b'"a"' * 69 + b"\r\n"),
}  # fmt: skip


@pytest.mark.parametrize("case", MADE)
def test_a_field_we_make(case: str) -> None:
    value, coded, plain = MADE[case]
    assert made(b"X", value.encode()) == coded
    assert made(b"X", value.encode(), utf8=True) == plain
    assert Header.parse(b"\r\n").edited([(ADD, b"X", value.encode())], utf8=True) == plain + b"\r\n"


@given(st.text(st.characters(exclude_categories=["Cs"])), st.booleans())
def test_a_field_we_make_is_one_field_to_anyone(value: str, utf8: bool) -> None:
    octets = made(b"X-Y", value.encode(), utf8=utf8)
    lines = octets.split(b"\r\n")
    assert lines.pop() == b""
    assert not any(set(line) & set(b"\r\n\0") or not line.strip(b" \t") or len(line) > 998 for line in lines)
    assert all(line[:1] in (b" ", b"\t") for line in lines[1:])
    assert utf8 or octets.isascii()
    assert [field.raw for field in Header.parse(octets).fields] == [octets]
    theirs = email.message_from_bytes(octets + b"\r\n.", policy=email.policy.compat32)
    assert (theirs.keys(), theirs.get_payload()) == (["X-Y"], ".")


LINES = [
    b"A: b", b"Subject: x", b"Subject : y", b"Received: z", b" folded", b"\tfolded: x", b" ", b"junk", b": none", b"\0",
    b"Subj\0ect: n", b"", b"From a b", b"\xff: x", b"C: =?utf-8?q?a?=", b"A: " + b"x" * 1000,
]  # fmt: skip
ENDS = [b"\r\n"] * 6 + [b"\n", b"\r", b""]
SECTIONS = st.lists(st.tuples(st.sampled_from(LINES), st.sampled_from(ENDS)), max_size=10).map(
    lambda lines: b"".join(line + end for line, end in lines)
)
ONE_EDIT = st.tuples(
    st.sampled_from([PREPEND, ADD, REPLACE, REMOVE]),
    st.sampled_from([b"Subject", b"received", b"A", b"X-New"]),
    st.sampled_from([b"", b"v", b"v\r\nEvil: x", "ü" * 50, b"a b " * 40]).map(
        lambda v: v.encode() if isinstance(v, str) else v
    ),
)


@given(SECTIONS | st.binary(max_size=60))
def test_any_octets(octets: bytes) -> None:
    header = Header.parse(octets)
    at = 0
    for field in header.fields:
        assert field.start >= at, "fields do not overlap"
        assert octets[field.start :].startswith(field.raw)
        at = field.start + len(field.raw)
        field.value.encode()
    assert octets.startswith(header.octets)
    assert list(header.stops) == sorted(header.stops)
    assert Header.parse(header.octets).by_name == header.by_name


@given(SECTIONS, st.lists(ONE_EDIT, max_size=4))
def test_any_edit(octets: bytes, edits: list[tuple[str, bytes, bytes]]) -> None:
    header = Header.parse(octets)
    became = header.edited(edits)
    assert became.endswith(b"\r\n")
    assert not set(became.replace(b"\r\n", b"")) & set(b"\r\n\0")
    again = Header.parse(became)
    assert again.octets == became, "there is one empty line, at the end"
    assert "evil" not in again.by_name
    assert again.edited([]) == became
    if edits and not header.stops:
        how, name, _ = edits[-1]
        count = len(again.all(name))
        assert count == {REMOVE: 0, REPLACE: 1}.get(how, count)
        named = {name.lower() for _, name, _ in edits}
        kept = [field for field in header.fields if field.key not in named]
        clean = [field.raw for field in kept if not {*b"\r\n\0"} & {*field.raw.replace(b"\r\n", b"")}]
        clean = [raw for raw in clean if raw.endswith(b"\r\n")]
        if len(clean) == len(kept):
            assert [field.raw for field in again.fields if field.key not in named] == clean


@given(SECTIONS, st.sampled_from([b"Subject", b"Received", b"A"]))
def test_what_is_removed_is_gone_for_anyone(octets: bytes, name: bytes) -> None:
    """Python's reader stops where it sees no field, and takes a bare CR for a line end."""
    became = Header.parse(octets).edited([(REMOVE, name, b"")])
    assert Header.parse(became).get(name) == []
    assert email.message_from_bytes(became).get_all(name.decode()) is None


@given(SECTIONS)
def test_what_is_added_is_seen_by_anyone(octets: bytes) -> None:
    became = Header.parse(octets).edited([(ADD, b"X-Ours", b"y"), (PREPEND, b"X-First", b"z")])
    theirs = email.message_from_bytes(became)
    if octets.lstrip(b"\r\n")[:1] not in (b" ", b"\t"):
        assert theirs.get_all("X-Ours") == ["y"]
        assert theirs.get_all("X-First") == ["z"]
        assert became.startswith(b"X-First: z\r\n")
    assert Header.parse(became).get("X-Ours") == ["y"]


@given(
    st.dictionaries(st.from_regex(r"\A[A-Za-z][A-Za-z-]{0,8}\Z"), st.from_regex(r"\A[!-~]+([ ][!-~]+)*\Z"), max_size=6)
)
def test_well_formed_sections_are_read_as_python_reads_them(fields: dict[str, str]) -> None:
    octets = b"".join(f"{name}: {value}\r\n".encode() for name, value in fields.items() if "=?" not in value) + b"\r\n"
    theirs = email.message_from_bytes(octets)
    assert [(f.name.decode(), f.value) for f in Header.parse(octets).fields] == theirs.items()


@pytest.mark.parametrize(
    ("piece", "size"),
    [
        *(
            (piece, 1_048_576)
            for piece in (b"\r\n ", b":", b"a", b"=?a?q?b?= ", b"=?", b"\0", b" ", b"\xff", b'"', b"\\")
        ),
        *((piece, 262_144) for piece in (b"a: b\r\n", b" \r\n", b"\r", b"\n", b"a\r\n", b"b :\r\n")),  # what is held
    ],
)
def test_a_mebibyte_takes_bounded_time(piece: bytes, size: int) -> None:
    octets = b"A: " + (piece * (size // len(piece) + 1))[:size] + b"\r\n\r\n"
    began = time.process_time()
    header = Header.parse(octets)
    assert header.by_name
    header.edited([(ADD, b"X", b"y"), (REMOVE, b"a", b""), (PREPEND, b"B", octets)])
    assert time.process_time() - began < 8
