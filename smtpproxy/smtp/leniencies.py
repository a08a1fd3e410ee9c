"""The named leniencies: ways of writing an argument that no RFC has and real clients use.

`canonical` undoes what is wrong about blanks, brackets, zeros and case, and says by name what it undid. It decides
nothing: what it gives back still has to match a grammar in `arguments.py`, or the argument is refused. The names are
stable, because they stand in records and in rules; `anomalies.py` says of each what it means.
"""

import re

from smtpproxy.smtp.registry.rows import Argument

# Undone here.
BLANK_AFTER_COLON = "blank-after-colon"
BARE_PATH = "bare-path"
ODD_SEPARATOR = "odd-separator"  # HT, or more than one blank
TRAILING_BLANK = "trailing-blank"
LEADING_ZEROS = "leading-zeros"
ODD_CASE = "odd-case"  # LAST in small letters

# Let through as they came, by the loose grammars of `arguments.py`.
ODD_HELLO = "odd-hello"
ODD_LOCAL_PART = "odd-local-part"
ODD_DOMAIN = "odd-domain"

NAMES = frozenset(
    {
        BLANK_AFTER_COLON,
        BARE_PATH,
        ODD_SEPARATOR,
        TRAILING_BLANK,
        ODD_HELLO,
        ODD_LOCAL_PART,
        ODD_DOMAIN,
        LEADING_ZEROS,
        ODD_CASE,
    }
)

# A path by its brackets and quotes alone, or a mailbox without either; then words, then blanks.
_PATH = rb'(<(?:[^"<> \t]++|"(?:[^"\\]++|\\.)*")*>|[^"<>\\ \t@:,]++@[^"<>\\ \t@,]++)'
_WORDS = rb"((?:[ \t]++[^ \t]++)*)([ \t]*+)"
_ENVELOPE = {
    Argument.MAIL: re.compile(rb"([ \t]*+)((?i:FROM):)([ \t]*+)" + _PATH + _WORDS, re.DOTALL).fullmatch,
    Argument.RCPT: re.compile(rb"([ \t]*+)((?i:TO):)([ \t]*+)" + _PATH + _WORDS, re.DOTALL).fullmatch,
}
_NUMBER = re.compile(rb"[0-9]{1,20}").fullmatch
_WORD = re.compile(rb"[^ \t]++").findall

_FREE = frozenset({Argument.TEXT, Argument.STRING, Argument.SECRET})
_ENDS_IN_LAST = frozenset({Argument.CHUNK, Argument.URI})
_COUNTS = frozenset({Argument.CHUNK, Argument.COUNTED})


def canonical(kind: Argument, text: bytes) -> tuple[bytes, tuple[str, ...]]:
    """The argument without what may be undone, and the names of that; unchanged and none where nothing may."""
    if kind in _ENVELOPE:
        return _envelope(kind, text)
    body = text.rstrip(b" \t")
    names = [TRAILING_BLANK] if body != text else []
    if kind in _FREE:
        plain = body.lstrip(b" \t").replace(b"\t", b" ")
    else:
        plain = b" ".join(_WORD(body))
    if plain != body:
        names.append(ODD_SEPARATOR)
    if kind in _ENDS_IN_LAST and plain[-5:] != b" LAST" and plain[-5:].upper() == b" LAST":
        plain = plain[:-5] + b" LAST"
        names.append(ODD_CASE)
    if kind in _COUNTS:
        counted = b" ".join([_without_zeros(word) for word in plain.split(b" ")])
        if counted != plain:
            plain = counted
            names.append(LEADING_ZEROS)
    return plain, tuple(names)


def _without_zeros(word: bytes) -> bytes:
    """A number of 20 digits at most, without the zeros before it; anything else as it is."""
    return word.lstrip(b"0") or b"0" if _NUMBER(word) else word


def _envelope(kind: Argument, text: bytes) -> tuple[bytes, tuple[str, ...]]:
    if not (match := _ENVELOPE[kind](text)):
        return text, ()
    before, label, gap, path, words, after = match.groups()
    names = []
    if gap:
        names.append(BLANK_AFTER_COLON)
    if not path.startswith(b"<"):
        names.append(BARE_PATH)
        path = b"<" + path + b">"
    items = b"".join([b" " + word for word in _WORD(words)])
    if before or items != words:
        names.append(ODD_SEPARATOR)
    if after:
        names.append(TRAILING_BLANK)
    return (label.upper() + path + items if names else text), tuple(names)
