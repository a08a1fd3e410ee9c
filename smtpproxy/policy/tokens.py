"""The words of a CEL expression, with their places: enough to see which names and literals stand in it.

CEL itself parses and checks; here only what can be told from the words is looked at. What is no word of CEL is one
token of kind OTHER, and CEL says what is wrong with it.
"""

import re
from collections.abc import Sequence
from enum import Enum
from itertools import pairwise
from typing import Final, NamedTuple


class Kind(Enum):
    """What a token is."""

    STRING = "string"
    NUMBER = "number"
    NAME = "name"
    MARK = "mark"
    OTHER = "other"

    __hash__ = object.__hash__


class Token(NamedTuple):
    """One word. `start` and `end` are offsets in the source."""

    kind: Kind
    text: str
    start: int
    end: int


_WORD: Final = re.compile(
    r"""(?P<blank>(?:\s+|//[^\n]*)+)
    |(?P<string>(?:[rR][bB]?|[bB][rR]?)?(?:\"{3}|'{3}|"|'))
    |(?P<number>0[xX][0-9a-fA-F]+[uU]?|(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?[uU]?)
    |(?P<name>[A-Za-z_][A-Za-z0-9_]*)
    |(?P<mark>&&|\|\||[=!<>]=|[-+*/%?:.,()\[\]{}<>!])
    |(?P<other>.)""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE: Final = re.compile(
    r"\\(?:[xX]([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-3][0-7]{2})|(.))", re.DOTALL
)
_SINGLE: Final = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


def tokens(source: str) -> list[Token]:
    """The words of `source` in order, without blanks and comments."""
    found: list[Token] = []
    position = 0
    while position < len(source):
        word = _WORD.match(source, position)
        if word is None:
            raise AssertionError("a character that is nothing")
        kind, end = word.lastgroup, word.end()
        if kind == "string":
            end = _string_end(source, word.group(), end)
            found.append(Token(Kind.STRING if end > 0 else Kind.OTHER, source[position : abs(end)], position, abs(end)))
            end = abs(end)
        elif kind != "blank":
            found.append(Token(Kind(kind), word.group(), position, end))
        position = end
    return found


def _string_end(source: str, opening: str, position: int) -> int:
    """Where the string ends that begins before `position`; the negative of where it breaks off."""
    quote = opening.lstrip("rRbB")
    raw = "r" in opening.lower()
    while position < len(source):
        if source.startswith(quote, position):
            return position + len(quote)
        character = source[position]
        if character in "\r\n" and len(quote) == 1:
            return -position
        position += 2 if character == "\\" and not raw else 1
    return -len(source)


def value(token: Token) -> str | None:
    """What a STRING token stands for; None if it is one of bytes, or has an escape that does not exist."""
    text = token.text
    body = text.lstrip("rRbB")
    prefix = text[: len(text) - len(body)].lower()
    quotes = 3 if body[:3] in ('"""', "'''") else 1
    if "b" in prefix:
        return None
    body = body[quotes:-quotes]
    if prefix:
        return body
    try:
        return _ESCAPE.sub(_unescaped, body)
    except ValueError:
        return None


def _unescaped(found: re.Match[str]) -> str:
    for group, base in ((1, 16), (2, 16), (3, 16), (4, 8)):
        if found[group]:
            return chr(int(found[group], base))
    character = found[5]
    if character in _SINGLE:
        return _SINGLE[character]
    if character in "\\?\"'`":
        return character
    raise ValueError(character)


def quoted(text: str) -> str:
    """A CEL string for this text."""
    return "".join(('"', *(c if " " <= c <= "~" and c not in '"\\' else f"\\U{ord(c):08x}" for c in text), '"'))


def readable(name: str) -> str:
    """A name of ours as CEL can read it, as long as it was: `null` is a word of its own there, even behind a dot."""
    return name.replace(".null", ".nul_")


def ours(said: str) -> str:
    """A message of CEL's with the names as they were."""
    return said.replace(".nul_", ".null")


def readable_source(source: str, words: Sequence[Token]) -> str:
    """A source with its names so."""
    for before, word in pairwise(words):
        if word.text == "null" and before.text == ".":
            source = f"{source[: word.start]}nul_{source[word.end :]}"
    return source


def place(source: str, offset: int) -> tuple[int, int]:
    """Line and column of an offset, both from 1."""
    return source.count("\n", 0, offset) + 1, offset - (source.rfind("\n", 0, offset) + 1) + 1


def offset(source: str, line: int, column: int) -> int:
    """The offset of a line and column; the nearest there is."""
    position = 0
    for _ in range(line - 1):
        position = source.find("\n", position) + 1
        if position == 0:
            return len(source)
    return max(0, min(position + column - 1, len(source)))


def dotted(words: Sequence[Token], first: int) -> int:
    """Behind the last token of the dotted name that begins at `first`: `a.b.c`."""
    last = first + 1
    while last + 1 < len(words) and words[last].text == "." and words[last + 1].kind is Kind.NAME:
        last += 2
    return last


def arguments(words: Sequence[Token], opening: int) -> list[tuple[int, int]] | None:
    """First and behind-last token of each argument of the call whose bracket stands at `opening`; None if it is not
    closed. The closing bracket stands behind the last one, or at `opening` + 1 if there is none."""
    depth, begin = 0, opening + 1
    found: list[tuple[int, int]] = []
    for index in range(opening, len(words)):
        if words[index].kind is not Kind.MARK:
            continue
        mark = words[index].text
        if mark in "([{":
            depth += 1
        elif mark in ")]}":
            depth -= 1
            if depth == 0:
                return [*found, (begin, index)] if index > begin or found else []
        elif mark == "," and depth == 1:
            found.append((begin, index))
            begin = index + 1
    return None
