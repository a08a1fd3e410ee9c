"""What was recorded, as octets again: commands, replies, handshakes.

A record is text for people, and three things are not in it. Secrets: so many octets stand in their place. Where the
lines of a reply ended: the list in a reply to EHLO is taken apart by the registry, of all other replies nobody asks.
What was too long to be shown: there is no going back from that, and it is said (None), not guessed.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

from smtpproxy.session.state import HELLOS, TLSInfo
from smtpproxy.smtp.commands import Malformed, describe, parse_command
from smtpproxy.smtp.registry.extensions import EXTENSIONS
from smtpproxy.smtp.replies import multiline

_SECRET = re.compile(r"<(\d+) octets>")
_ESCAPE = re.compile(rb"\\(\\|[tnr]|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})")
_SHORT: Final = {b"\\": b"\\", b"t": b"\t", b"n": b"\n", b"r": b"\r"}
_UNREADABLE: Final = frozenset(
    {"malformed-command", "bare-cr-in-command", "line-too-long", "foreign-protocol", "chunk-size-unknown"}
)
_LONGEST: Final = 1 << 16  # octets of a secret that are made up
_LINE: Final = 2000  # octets of a line of a reply
_MECHANISMS: Final = frozenset({b"AUTH", b"X-EXPS"})  # what may stand behind these is anybody's to name
_CODE = re.compile(r"([2-5]\d\d)(?: (.*))?", re.DOTALL).fullmatch


@lru_cache(maxsize=4096)
def command_octets(asked: str, anomalies: tuple[str, ...] = ()) -> bytes | None:
    """The line that was recorded as this; None where it can't be known.

    Args:
        asked: as `describe` wrote it.
        anomalies: of its exchange: a line that nobody could parse must be none again.
    """
    malformed = not _UNREADABLE.isdisjoint(anomalies)
    for filler in ("A", "aA"):
        text = _SECRET.sub(lambda found, filler=filler: _made_up(int(found[1]), filler), asked)  # type: ignore[misc]
        line = _unescaped(text.encode()) + b"\r\n"
        if b"\n" in line[:-2] or len(line) > _LONGEST:
            return None
        command = parse_command(line)
        if (type(command) is Malformed) is malformed and describe(command) == asked:
            return line
        if text == asked:
            break
    return None


def sasl_octets(asked: str) -> bytes:
    """A line of a SASL exchange: `*` is one, all else a secret of which the length is known."""
    found = _SECRET.fullmatch(asked)
    return (_made_up(int(found[1]), "A") if found else "*").encode() + b"\r\n"


def _made_up(count: int, filler: str) -> str:
    """So many octets that could be base64."""
    count = min(count, _LONGEST)
    return "=" if count == 1 else (filler * count)[:count]


def _unescaped(text: bytes) -> bytes:
    if b"\\" not in text:
        return text

    def octets(found: re.Match[bytes]) -> bytes:
        code = found[1]
        short = _SHORT.get(code)
        if short is not None:
            return short
        number = int(code[1:], 16)
        return bytes([number]) if code.startswith(b"x") else chr(number).encode("utf-8", "surrogatepass")

    return _ESCAPE.sub(octets, text)


@lru_cache(maxsize=4096)
def reply_octets(text: str, verb: str = "", told: str = "") -> bytes:
    """A reply that was recorded as this; b"" where it is none.

    Args:
        text: code and text, the lines of it joined by blanks.
        verb: that it answers.
        told: what the client was told of it; of use where it is a list.
    """
    found = _CODE(text)
    if found is None:
        return b""
    words = (found[2] or "").encode()
    listed = verb in HELLOS and verb != "HELO" and found[1].startswith("2")
    lines = hello_lines(words, told[4:].encode()) if listed else _short(words)
    return multiline(int(found[1]), lines).raw


def _short(words: bytes) -> list[bytes]:
    """In lines that are not too long, parted where a blank is."""
    lines: list[bytes] = []
    while len(words) > _LINE:
        at = words.rfind(b" ", 0, _LINE)
        if at <= 0:
            return [*lines, words[:_LINE]]
        lines.append(words[:at])
        words = words[at + 1 :]
    return [*lines, words]


def hello_lines(words: bytes, told: bytes = b"") -> list[bytes]:
    """The lines of a list: a known keyword begins one, so does what its keyword has no place for.

    What the client was told helps with what nobody knows: a word that it was not told was a line, and was taken out.
    """
    kept = frozenset(told.split(b" ")) if told else None
    lines: list[list[bytes]] = [[]]
    keyword = b""
    for word in words.split(b" "):
        name = word.partition(b"=")[0]
        gone = kept is not None and word not in kept
        if not lines[0]:
            begins = False
        elif name.upper() in EXTENSIONS:  # small letters in the greeting are words, most often
            begins = bool(keyword) or gone or name.isupper() or not name.isalpha()
        elif keyword:
            begins = not _parameter(keyword, word) or (
                gone and keyword in _MECHANISMS and kept is not None and lines[-1][0] in kept
            )
        else:
            begins = gone
        if begins:
            lines.append([])
            keyword = name.upper()
        lines[-1].append(word)
    return [b" ".join(line) for line in lines]


def _parameter(keyword: bytes, word: bytes) -> bool:
    """The word may stand behind this keyword."""
    row = EXTENSIONS.get(keyword)
    if keyword == b"SIZE":
        return word.isdigit()
    return row is not None and bool(row.syntax)


def tls_info(shown: Mapping[str, Any] | None) -> TLSInfo | None:
    """An encrypted link as the record shows it; None for one in clear."""
    if shown is None:
        return None
    facts = {name: value for name, value in shown.items() if name in TLSInfo._fields}
    certificate = facts.get("certificate")
    if isinstance(certificate, dict):
        facts["certificate"] = tuple(certificate.items())
    facts["broken"] = tuple(facts.get("broken", ()))
    return TLSInfo(**{"version": "", "cipher": "", **facts})
