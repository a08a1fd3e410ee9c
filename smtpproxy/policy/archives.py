"""Archives: the names of what is in them, and what can be taken out to be looked into, within bounds.

zip and tar are read by hand, because what an archive's reader finds depends on where it looks: a zip's members are
listed at its end and named again before each, and two archives can stand one behind the other. All of them are given.
gzip, bzip2 and xz hold one file. Of other archives nothing is known but that they are some: they are *closed*.
Nothing is written anywhere; what is taken out is counted as it is made, whatever the archive says of its size.
"""

import bz2
import lzma
import struct
import zlib
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from smtpproxy.policy import kinds
from smtpproxy.policy.mimelimits import Budget, MimeLimit
from smtpproxy.smtp import encodedwords

_CENTRAL: Final = struct.Struct("<4s6H3L5H2L")
_LOCAL: Final = struct.Struct("<4s5H3L2H")
_END: Final = struct.Struct("<4s4H2LH")
_HEAD: Final = 4096  # octets of a member that are unpacked to say what it is
_NAME: Final = 4096
_PIECE: Final = 262_144


class Member(NamedTuple):
    """A file in an archive."""

    name: str
    size: int  # as the archive says
    detected: str
    encrypted: bool
    unpack: Callable[[], bytes] | None = None  # raises MimeLimit; None where that can't be done


class Archive(NamedTuple):
    """What was found. `closed`: there is more than could be read."""

    members: list[Member]
    closed: bool = False


def members(data: bytes, kind: str, name: str, budget: Budget) -> Archive:
    """What is in an archive of this kind; of what is none, nothing.

    Raises:
        MimeLimit: there is more in it than is looked into.
    """
    if kind == kinds.TAR:
        return _tar(data, budget)
    if kind in _MAKERS:
        return _packed(data, kind, name, budget)
    if kind == kinds.ZIP or _ends_as_zip(data):  # a picture, a program or a PDF can be a zip too
        found = _zip(data, budget)
        return found if found.members or kind == kinds.ZIP else Archive([])
    return Archive([], closed=kind in kinds.CLOSED)


# ----------------------------------------------------------------------------------------------------------------- zip


def _ends_as_zip(data: bytes) -> bool:
    return data.rfind(b"PK\x05\x06", max(0, len(data) - 66_000)) >= 0


class _Entry(NamedTuple):
    name: bytes
    flags: int
    method: int
    packed: int
    size: int
    start: int  # of the local header


def _zip(data: bytes, budget: Budget) -> Archive:
    entries, shift = _central(data, budget)
    found: list[Member] = []
    listed: list[tuple[int, int]] = []  # what is inside a listed member is that member's
    said = 0
    for entry in entries:
        at = entry.start + shift
        local = _local(data, at)
        if local is not None:
            named, body = local
            listed.append((at, body + entry.packed))
            if named.name and named.name != entry.name:
                budget.member()
                found.append(_member(data, named._replace(packed=entry.packed, size=entry.size), body, budget))
        else:
            body = -1
        found.append(_member(data, entry, body, budget))
        said += entry.size
    hidden = _hidden(data, sorted(listed), budget)
    found += hidden
    said += sum(member.size for member in hidden)
    if said > budget.bounds.declared and said > budget.bounds.ratio * len(data):
        raise MimeLimit("ratio")
    return Archive(found, closed=not found and b"PK\x01\x02" in data)


def _central(data: bytes, budget: Budget) -> tuple[list[_Entry], int]:
    """The members listed at the end, and how far the archive stands behind where it thinks it begins."""
    end = data.rfind(b"PK\x05\x06")
    if end < 0 or end + _END.size > len(data):
        return [], 0
    _, _, _, _, _, size, offset, _ = _END.unpack_from(data, end)
    start = end - size if end >= size and data[end - size : end - size + 4] == b"PK\x01\x02" else offset
    if start >= len(data) or data[start : start + 4] != b"PK\x01\x02":
        start = data.find(b"PK\x01\x02")  # zip64, or broken
        if start < 0:
            return [], 0
    shift = start - offset if offset != 0xFFFFFFFF else 0
    entries = []
    while start + _CENTRAL.size <= len(data) and data[start : start + 4] == b"PK\x01\x02":
        budget.member()
        row: tuple[Any, ...] = _CENTRAL.unpack_from(data, start)
        flags, method, packed, full, length, extra, comment, place = *row[3:5], *row[8:13], row[16]
        name = data[start + 46 : start + 46 + length]
        entries.append(_Entry(name, flags, method, packed, full, place))
        start += 46 + length + extra + comment
    return entries, shift


def _local(data: bytes, at: int) -> tuple[_Entry, int] | None:
    """The header before a member, and where the member begins."""
    if at < 0 or data[at : at + 4] != b"PK\x03\x04" or at + _LOCAL.size > len(data):
        return None
    _, _, flags, method, _, _, _, packed, full, length, extra = _LOCAL.unpack_from(data, at)
    return _Entry(data[at + 30 : at + 30 + length], flags, method, packed, full, at), at + 30 + length + extra


def _hidden(data: bytes, listed: list[tuple[int, int]], budget: Budget) -> list[Member]:
    """Members that are not listed: what a reader from the start finds, or one that looks for another list."""
    found = []
    at = data.find(b"PK\x03\x04")
    index = 0
    while at >= 0:
        while index < len(listed) and listed[index][1] <= at:
            index += 1
        if index < len(listed) and listed[index][0] <= at:
            at = data.find(b"PK\x03\x04", max(listed[index][1], at + 4))
            continue
        local = _local(data, at)
        following = at + 4
        if local is not None and 0 < len(local[0].name) <= _NAME and local[0].method <= 99:
            budget.member()
            found.append(_member(data, *local, budget))
            following = max(following, min(len(data), local[1]))
        at = data.find(b"PK\x03\x04", following)
    return found


def _member(data: bytes, entry: _Entry, body: int, budget: Budget) -> Member:
    name = entry.name.split(b"\0")[0] if entry.flags & 0x800 else entry.name
    text = encodedwords.text(name[:_NAME], "" if _is_utf8(name) else "cp437")
    encrypted = bool(entry.flags & 1) or entry.method == 99
    if encrypted or body < 0 or entry.method not in (0, 8):
        return Member(text, entry.size, "", encrypted)
    packed = entry.packed or len(data) - body  # not known beforehand
    if entry.method == 0:
        head = data[body : body + min(packed, _HEAD)]
    else:
        head = _inflated(data, body, min(packed, _HEAD), _HEAD)
    budget.work(_HEAD)

    def unpack() -> bytes:
        if entry.method == 0:
            octets = data[body : body + packed]
        else:
            budget.work(min(packed, len(data)))
            octets = _inflated(data, body, packed, budget.unpacked + 1)
        budget.unpack(len(octets))
        return octets

    return Member(text, entry.size, kinds.detect(head), encrypted=False, unpack=unpack)


def _is_utf8(octets: bytes) -> bool:
    try:
        octets.decode()
    except UnicodeDecodeError:
        return False
    return True


def _inflated(data: bytes, start: int, packed: int, most: int) -> bytes:
    """Raw deflate, as far as it goes, `most` octets at most."""
    machine = zlib.decompressobj(-15)
    try:
        return machine.decompress(data[start : start + packed], most)
    except zlib.error:
        return b""


# ----------------------------------------------------------------------------------------------------------------- tar


def _tar(data: bytes, budget: Budget) -> Archive:
    found: list[Member] = []
    longer = ""  # a name that did not fit, told before the member
    at = 0
    while at + 512 <= len(data):
        block = data[at : at + 512]
        at += 512
        if not block.strip(b"\0"):
            continue
        budget.member()
        size = _number(block[124:136])
        if size is None:
            return Archive(found, closed=True)
        body = data[at : at + size] if size <= len(data) else data[at:]
        flag = block[156:157]
        at += -(-size // 512) * 512
        if flag == b"L":
            longer = encodedwords.text(body.split(b"\0")[0][:_NAME])
        elif flag == b"x":
            longer = _pax_path(body[:65_536]) or longer
        elif flag not in (b"g", b"K"):
            name = block[:100].split(b"\0")[0]
            if block[257:262] == b"ustar" and block[345]:
                name = block[345:500].split(b"\0")[0] + b"/" + name
            if flag in (b"0", b"\0", b"7", b"S"):
                found.append(_tarred(longer or encodedwords.text(name), size, body, budget))
            longer = ""
    return Archive(found)


def _tarred(name: str, size: int, body: bytes, budget: Budget) -> Member:
    def unpack() -> bytes:
        budget.unpack(len(body))
        return body

    return Member(name, size, kinds.detect(body), encrypted=False, unpack=unpack)


def _number(field: bytes) -> int | None:
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    digits = field.strip(b" \0")
    try:
        return int(digits or b"0", 8) if b"_" not in digits and b"-" not in digits else None
    except ValueError:
        return None


def _pax_path(body: bytes) -> str:
    """`30 path=…` of an extended header (POSIX.1-2001)."""
    path = b""
    for line in body.split(b"\n"):
        _, found, value = line.partition(b" path=")
        path = value if found else path
    return encodedwords.text(path[:_NAME])


# -------------------------------------------------------------------------------------------------------- one file each

_MAKERS: Final[dict[str, tuple[Callable[[], Any], type[Exception], tuple[str, ...]]]] = {
    kinds.GZIP: (lambda: zlib.decompressobj(31), zlib.error, ("gz", "tgz", "z", "svgz")),
    kinds.BZIP2: (bz2.BZ2Decompressor, OSError, ("bz2", "tbz2", "tbz", "bz")),
    kinds.XZ: (lambda: lzma.LZMADecompressor(memlimit=134_217_728), lzma.LZMAError, ("xz", "txz")),
}


def _packed(data: bytes, kind: str, name: str, budget: Budget) -> Archive:
    """The one file in it, unpacked at once: only so is known what it is."""
    pieces: list[bytes] = []
    whole = _unpack(data, kind, budget, pieces)
    octets = b"".join(pieces)
    inner = _inner(data, kind, name)
    budget.member()
    return Archive(
        [Member(inner, len(octets), kinds.detect(octets), encrypted=False, unpack=lambda: octets)], closed=not whole
    )


def _unpack(data: bytes, kind: str, budget: Budget, pieces: list[bytes]) -> bool:
    """Whether it could be unpacked to its end."""
    make, error, _ = _MAKERS[kind]
    machine = make()
    feed = data
    total = 0
    while True:
        try:
            piece = machine.decompress(feed, _PIECE)
        except (error, EOFError):
            return False
        budget.unpack(len(piece))
        total += len(piece)
        if total > budget.bounds.declared and total > budget.bounds.ratio * len(data):
            raise MimeLimit("ratio")
        pieces.append(piece)
        if machine.eof:
            feed = machine.unused_data
            if not feed.startswith(data[:3]):  # another one may follow
                return True
            budget.work(len(feed))
            machine = make()
        elif kind == kinds.GZIP:
            feed = machine.unconsumed_tail
            if not feed and not piece:
                return False
        else:
            feed = b""
            if machine.needs_input:
                return False


def _inner(data: bytes, kind: str, name: str) -> str:
    """The name of what is inside: as gzip says, or that of the archive without its ending."""
    if kind == kinds.GZIP and data[3:4] and data[3] & 0x08 and not data[3] & 0x04:
        said = data[10 : 10 + _NAME].split(b"\0")[0]
        if said:
            return encodedwords.text(said)
    stem, _, ending = name.rpartition(".")
    if not stem or ending.lower() not in _MAKERS[kind][2]:
        return name
    return stem + ".tar" if ending.lower() in ("tgz", "tbz2", "tbz", "txz") else stem
