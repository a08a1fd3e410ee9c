r"""Transcripts: a session as lines, read into steps; and the ways to cut what is sent.

Each line has a tag, one a hop:

    C> octets the client sends          >S what must come out to the server
    S> octets the server sends          >C what must come out to the client
    -> an effect that must come out     !! what the driver says then

Lines end in CRLF on the wire; `\r \n \0 \t \xNN \\` are written as in Python, and a line that ends in `\` has no CRLF.
`C> *3000 X` stands for 3,000 times X. Lines of input that follow each other under one tag are one write. Playbooks
(playbook.py) have two tags more: `=>` for what must be on record, and `C<` for content from a file.
"""

import difflib
import random
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

Cut = Callable[[bytes], Iterator[bytes]]

_LINE: Final = re.compile(r"\s*(C>|S>|>C|>S|->|!!|\.\.|=>|C<) ?(.*)")
_ESCAPE: Final = re.compile(r"(\\(?:r|n|t|0|\\|x[0-9a-fA-F]{2}))")
_KINDS: Final = {"r": b"\r", "n": b"\n", "t": b"\t", "0": b"\0", "\\": b"\\"}
_SHOWN: Final = 80  # octets of an input that a message repeats
_SINGLE: Final = 20_000  # octets of the longest input of a transcript that is fed octet by octet
_OFTEN: Final = 200_000  # and of one that is cut at random twenty times


class MismatchError(AssertionError):
    """The transcript as it should have been and as it was."""


@dataclass
class Step:
    """One input and what it must bring. `where` is what a message begins with; `told` what must be on record."""

    tag: str
    octets: bytes = b""
    words: str = ""
    client: bytes = b""
    server: bytes = b""
    effects: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    line: int = 0
    where: str = ""

    def __str__(self) -> str:
        return f"{self.where} {self.tag} {self.words or repr(self.octets[:_SHOWN])}"


def octets_of(text: str, *, utf8: bool = False) -> bytes:
    """One line as it is on the wire. Characters up to U+00FF stand for one octet, unless it is to be UTF-8."""
    end = b"\r\n"
    if text.endswith("\\") and not text.endswith("\\\\"):
        text, end = text[:-1], b""
    repeat = re.match(r"\*(\d+) (.*)", text)
    if repeat:
        text = repeat[2] * int(repeat[1])
    pieces = _ESCAPE.split(text)
    plain = [piece.encode() if utf8 else b"".join(map(_octets, piece)) for piece in pieces[::2]]
    escaped = [_KINDS.get(piece[1]) or bytes((int(piece[2:], 16),)) for piece in pieces[1::2]]
    return b"".join(a + b for a, b in zip(plain, [*escaped, b""], strict=True)) + end


def _octets(character: str) -> bytes:
    return character.encode("latin-1") if ord(character) < 256 else character.encode()


def content_of(octets: bytes) -> bytes:
    """The content of a mail as a client sends it: lines end in CRLF, dots are stuffed, then comes the end of data."""
    lines = octets.replace(b"\r\n", b"\n").removesuffix(b"\n").split(b"\n") if octets else []
    return b"".join((b"." if line.startswith(b".") else b"") + line + b"\r\n" for line in lines) + b".\r\n"


def parse(script: str) -> list[Step]:
    """The steps of a transcript.

    Raises:
        MismatchError: a line has no tag, or an output stands before any input.
    """
    return parse_lines(enumerate(script.splitlines(), 1), "line {},")


def parse_lines(
    lines: Iterable[tuple[int, str]], where: str, *, utf8: bool = False, folder: Path | None = None
) -> list[Step]:
    """The steps of numbered lines; `folder` is where files of content are, and a tag more for playbooks.

    Raises:
        MismatchError: a line has no tag, an output stands before any input, or a file can't be read.
    """
    steps: list[Step] = []
    previous = ""
    for number, line in lines:
        if not line.strip() or line.strip().startswith("#"):
            if not line.strip() or folder is not None:
                previous = ""
            continue
        found = _LINE.fullmatch(line)
        at = where.format(number)
        if found is None or (folder is None and found[1] in ("=>", "C<")):
            raise MismatchError(
                f"{at.rstrip(',:')}: no line of a transcript, which begins with a tag: {line.strip()!r}"
            )
        tag, text = found.groups()
        if tag in ("C>", "S>"):
            if tag == previous:
                steps[-1].octets += octets_of(text, utf8=utf8)
            else:
                steps.append(Step(tag, octets_of(text, utf8=utf8), line=number, where=at))
        elif tag == "C<":
            steps.append(Step("C>", _file(Path(folder or "", text.strip()), at), line=number, where=at))
        elif tag in ("!!", ".."):
            steps.append(Step(tag, words=text.strip(), line=number, where=at))
        elif not steps or (steps[-1].tag == ".." and folder is not None):
            raise MismatchError(f"{at} {tag} an output before any input")
        elif tag == "->":
            steps[-1].effects.append(text.strip())
        elif tag == "=>":
            steps[-1].told.append(" ".join(text.split()))
        elif tag == ">C":
            steps[-1].client += octets_of(text, utf8=utf8)
        else:
            steps[-1].server += octets_of(text, utf8=utf8)
        previous = tag
    return steps


def _file(path: Path, at: str) -> bytes:
    try:
        return content_of(path.read_bytes())
    except OSError as error:
        raise MismatchError(f"{at} {path} can't be read: {error.strerror}") from None


def whole(octets: bytes) -> Iterator[bytes]:
    """In one piece."""
    yield octets


def single(octets: bytes) -> Iterator[bytes]:
    """Octet by octet."""
    for i in range(len(octets)):
        yield octets[i : i + 1]


def at_random(seed: int) -> Cut:
    """In pieces of sizes that this seed gives."""
    source = random.Random(seed)  # noqa: S311 - the same pieces each time

    def cut(octets: bytes) -> Iterator[bytes]:
        at = 0
        while at < len(octets):
            size = source.choice((1, 2, 3, 5, 8, 21, 89, 1000, 65536))
            yield octets[at : at + size]
            at += size

    return cut


def cuttings(steps: Iterable[Step]) -> Iterator[tuple[str, Cut]]:
    """Every way a transcript is cut. Long ones are not fed octet by octet."""
    longest = max((len(step.octets) for step in steps), default=0)
    yield "whole", whole
    if longest <= _SINGLE:
        yield "octet by octet", single
    for seed in range(20 if longest <= _OFTEN else 3):
        yield f"cut at random, seed {seed}", at_random(seed)


def difference(wanted: Iterable[str], got: Iterable[str]) -> str:
    """Lines that should be and are: `-` is missing, `+` is too much."""
    return "\n".join(line.rstrip("\n") for line in difflib.ndiff(list(wanted), list(got)))


def shown(client: bytes, server: bytes, effects: Iterable[str]) -> list[str]:
    """Outputs as lines, for a difference."""
    lines = [f">S {line!r}" for line in server.splitlines(keepends=True)]
    lines += [f">C {line!r}" for line in client.splitlines(keepends=True)]
    return lines + [f"-> {effect}" for effect in effects]
