"""What a mail holds: its header section and its attachments, those in archives and in mails within it too.

Mail readers differ, and who wants to get something past a filter writes what the filter reads in one way and the reader
in another. So no one reading is chosen: where two are known, both are walked, and what any of them finds is given
(RFC 2045, 2046; and what is written otherwise). An attachment that only some would see is in the list; one with two
names is in it twice.

What must never happen: an attachment that a common reader shows and this does not; an exception other than MimeLimit;
more than linear time. Whoever catches MimeLimit refuses the mail, for it was not read to its end.
"""

import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any, Final, NamedTuple

from smtpproxy.policy import archives, kinds, names, transfer
from smtpproxy.policy.mimelimits import Bounds, Budget, MimeLimit
from smtpproxy.smtp import encodedwords
from smtpproxy.smtp.message import Header

__all__ = ["BOUNDS", "Attachment", "Bounds", "Content", "MimeLimit"]

BOUNDS: Final = Bounds()
_EMPTY_LINE: Final = re.compile(rb"\A\r?\n|\n\r?\n")
_STRICT_END: Final = re.compile(rb"\A\r\n|\r\n\r\n")
_DASHES: Final = re.compile(rb"^--([^\r\n]{1,200})", re.MULTILINE)
_PART_BEGINS: Final = re.compile(rb"(?i)content-[a-z-]{1,40}[ \t]*:")
_MAILS: Final = frozenset({"message/rfc822", "message/global", "message/news"})
_ELSEWHERE: Final = frozenset({"message/partial", "message/external-body"})  # the rest is somewhere else
_BODIES: Final = frozenset({"text/plain", "text/html", "text", "text/enriched", ""})  # shown, not attached
_SHOWN: Final = frozenset({"", "text/plain", "text/html", "text/xml", kinds.MAIL, "text/calendar", "application/pgp"})
# What an office document or a program of Java is made of; other files in it are as good as in any archive.
_OWN: Final = re.compile(
    r"xml|rels|vml|png|jpe?g|gif|[ew]mf|tiff?|bmp|svg|bin|fntdata|odttf|ttf|thmx|class|mf|sf|rsa|rdf|xsd|txt|json|css"
    r"|properties|psmdcp"
).fullmatch
_OFFICE: Final = (
    ("word/", "application/vnd.openxmlformats-officedocument.wordprocessingml.document", "word"),
    ("xl/", "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet", "excel"),
    ("ppt/", "application/vnd.openxmlformats-officedocument.presentationml.presentation", "powerpoint"),
)


class Attachment(NamedTuple):
    """One attachment, as one reader sees it.

    Attributes:
        name: the file's name, decoded; "" if it has none.
        type: the type it is declared to be, in small letters; "" in an archive.
        detected: the type its octets show; "" if they show none.
        size: octets, decoded; of what is in an archive, as the archive says.
        path: its name behind those of what it lies in: `invoice.zip>doc.exe`. What has no name has its type there.
        depth: in how many archives and mails within the mail it lies.
        encrypted: what it holds can't be read without a key.
        unreadable: it holds files, and not all of them could be read: another kind of archive, or a broken one.
        macros: an office document with a program in it.
    """

    name: str
    type: str
    detected: str
    size: int
    path: str
    depth: int = 0
    encrypted: bool = False
    unreadable: bool = False
    macros: bool = False

    @property
    def nested(self) -> bool:
        """It lies in an archive or in a mail within the mail."""
        return self.depth > 0

    @property
    def extension(self) -> str:
        """What stands behind the last dot of the name, in small letters (`names.extensions`)."""
        return names.extension(self.name)

    @property
    def extensions(self) -> tuple[str, ...]:
        """The last and those before it: ("pdf", "exe")."""
        return names.extensions(self.name)


class Content:
    """The content of one mail, looked into when something of it is asked for, and once.

    Attributes:
        size: octets.
        digest: SHA-256, in hexadecimal.
    """

    def __init__(self, file: Any, size: int, digest: str, bounds: Bounds = BOUNDS) -> None:
        """`file` is a readable, seekable binary file; where it stands is as it was after everything here."""
        self.file = file
        self._bounds = bounds
        self.size = size
        self.digest = digest

    def _read(self, most: int) -> bytes:
        stood = self.file.tell()
        self.file.seek(0)
        octets: bytes = self.file.read(most)
        self.file.seek(stood)
        return octets

    @cached_property
    def header(self) -> Header:
        """The header section.

        Raises:
            MimeLimit: it is longer than is looked at.
        """
        octets = self._read(self._bounds.header)
        if len(octets) == self._bounds.header < self.size and _STRICT_END.search(octets) is None:
            raise MimeLimit("header")
        return Header.parse(octets)

    @cached_property
    def attachments(self) -> list[Attachment]:
        """All attachments, in the order they stand in; those an archive or a mail holds are behind it.

        Raises:
            MimeLimit: there is more than is looked into.
        """
        if self.size > self._bounds.content:
            raise MimeLimit("content")
        return attachments(self._read(self._bounds.content + 1), self._bounds)


def attachments(octets: bytes, bounds: Bounds = BOUNDS) -> list[Attachment]:
    """The attachments of a mail.

    Raises:
        MimeLimit: there is more than is looked into.
    """
    walk = _Walk(Budget(bounds, len(octets)), octets)
    walk.entity(octets, "text/plain", _Place("", 0, 0, 0))
    return [attachment for _, attachment in walk.found]


class _Place(NamedTuple):
    """Where something lies."""

    path: str
    depth: int  # in archives and mails
    level: int  # in anything
    start: int  # where in that; the same in all readings of it

    def inside(self, name: str) -> "_Place":
        """In something of this name."""
        return _Place(self.of(name), self.depth + 1, self.level + 1, self.start)

    def behind(self, octets: int) -> "_Place":
        """In a part of what is here that begins so far behind its start."""
        return _Place(self.path, self.depth, self.level + 1, self.start + octets)

    def of(self, name: str) -> str:
        """The path of something here."""
        return f"{self.path}>{name}" if self.path else name


class _Walk:
    def __init__(self, budget: Budget, octets: bytes) -> None:
        self._budget = budget
        self.found: dict[tuple[int, Attachment], None] = {}
        self._seen: set[tuple[object, ...]] = set()

    # ------------------------------------------------------------------------------------------------------- body parts

    def entity(self, octets: bytes, default: str, place: _Place) -> None:
        """A mail or a body part: header section, empty line, body."""
        self._budget.part(place.level)
        self._budget.work(len(octets))
        header, bodies = self._readings(octets)
        types = names.values(header, "content-type") or [names.Value(default, {})]
        codings = transfer.encodings([field.body for field in header.all("content-transfer-encoding")])
        dispositions = names.values(header, "content-disposition")
        if len(bodies) * len(codings) * len(types) > self._budget.bounds.readings:
            raise MimeLimit("readings")
        whole = False
        for declared in types:
            if declared.first.startswith("multipart") or "boundary" in declared.parameters:
                kind = "message/rfc822" if declared.first == "multipart/digest" else "text/plain"
                for body in bodies:
                    for coding in dict.fromkeys((transfer.PLAIN, *codings)):
                        for plain in self._undone(octets[body:], coding):
                            whole |= self._multipart(plain, declared, kind, place._replace(start=place.start + body))
        called = names.file_names(dispositions, types)
        if whole and not called:
            types = [declared for declared in types if not declared.first.startswith("multipart")]
        attached = any(disposition.first == "attachment" for disposition in dispositions)
        for declared in types:
            for body in bodies:
                for coding in codings:
                    for plain in self._undone(octets[body:], coding):
                        self._leaf(plain, declared.first, called, place, attached=attached)

    def _undone(self, octets: bytes, coding: str) -> list[bytes]:
        self._budget.work(len(octets))
        readings = transfer.undone(octets, coding)
        if coding != transfer.PLAIN:
            self._budget.unpack(sum(map(len, readings)))
        return readings

    def _readings(self, octets: bytes) -> tuple[Header, list[int]]:
        """The header section, and everywhere a reader might take the body to begin."""
        most = self._budget.bounds.header
        head = octets[: most + 4]
        end = _EMPTY_LINE.search(head)
        strict = _STRICT_END.search(head)
        if end is None:
            if len(octets) > most:
                raise MimeLimit("header")
            header = Header.parse(octets)
            return header, list(dict.fromkeys((len(octets), *header.stops)))
        ends = [end.end()]
        if strict is not None and strict.end() != end.end() and b"\r\n" in head[: end.end() - 1]:
            ends.append(strict.end())  # line ends of both kinds: an empty line to some
        header = Header.parse(head[: max(ends)])
        return header, list(dict.fromkeys((*ends, *header.stops)))

    def _multipart(self, octets: bytes, declared: names.Value, default: str, place: _Place) -> bool:
        """Walk its parts; whether there are any."""
        boundaries: dict[bytes, None] = {}
        for value in declared.parameters.get("boundary", ()):
            boundaries[encodedwords.decoded(value).encode().rstrip() if b"=?" in value else value.rstrip()] = None
            boundaries[value.rstrip()] = None
        if len(boundaries) > self._budget.bounds.readings:
            raise MimeLimit("readings")
        parts = [self._parts(octets, boundary, default, place) for boundary in boundaries if boundary]
        if not any(parts) and declared.first.startswith("multipart"):
            guess = _DASHES.search(
                octets[: self._budget.bounds.header]
            )  # as readers do that are asked to show it anyhow
            parts = [guess is not None and self._parts(octets, guess[1].rstrip(), default, place)]
        return any(parts)

    def _parts(self, octets: bytes, boundary: bytes, default: str, place: _Place) -> bool:
        exact: list[tuple[int, int, bool]] = []
        every: list[tuple[int, int, bool]] = []
        self._budget.work(len(octets))
        for found in self._delimiters(octets, b"--" + boundary):
            every.append(found[:3])
            if found[3]:
                exact.append(found[:3])
            if len(every) > 2 * self._budget.bounds.parts:
                raise MimeLimit("parts")
        for cuts in (exact, every) if exact != every else (exact,):  # some readers compare only the beginning
            if not cuts:
                continue
            ends = [cut[0] for cut in cuts[1:]] + [len(octets)]
            for (_, begin, closes), end in zip(cuts, ends, strict=True):
                if closes and not _PART_BEGINS.match(octets, begin):
                    continue  # what stands behind the last part
                part = octets[begin:end]
                part = part.removesuffix(b"\n").removesuffix(b"\r") if end < len(octets) else part
                self.entity(part, default, place.behind(begin))
        return bool(every)

    @staticmethod
    def _delimiters(octets: bytes, dashed: bytes) -> Iterator[tuple[int, int, bool, bool]]:
        """Start, end, whether it closes, whether it is exactly one, of each line that begins like a delimiter."""
        at = octets.find(dashed)
        while at >= 0:
            following = at + len(dashed)
            if at == 0 or octets[at - 1] in b"\r\n":
                end = octets.find(b"\n", following, following + 1000) + 1 or min(len(octets), following + 1000)
                rest = octets[following:end].rstrip(b" \t\r\n")
                yield at, end, rest == b"--", rest in (b"", b"--")
                following = end
            at = octets.find(dashed, following)

    # ------------------------------------------------------------------------------------------------------ attachments

    def _leaf(self, octets: bytes, declared: str, called: list[str], place: _Place, *, attached: bool) -> None:
        detected = kinds.detect(octets)
        body = declared in _BODIES or declared.startswith("multipart")
        shown = body and not called and not attached and detected in _SHOWN
        if declared in _MAILS:
            self._add(called, declared, kinds.MAIL, octets, place)
            self.entity(octets, "text/plain", place.inside(called[0] if called else declared))
        elif not shown:
            self.examine(octets, declared, detected, called or [""], place)
        if detected.startswith("text/") or detected in ("", kinds.MAIL):
            self._budget.work(len(octets))
            for number, (name, plain) in enumerate(transfer.uuencoded(octets)):
                self._budget.part(place.level)
                self._budget.unpack(len(plain))
                said = names.tidy(encodedwords.decoded(name))
                self.examine(plain, "", kinds.detect(plain), [said], place._replace(start=place.start + number))

    def examine(self, octets: bytes, declared: str, detected: str, called: list[str], place: _Place) -> None:
        """A file: what it is, and what it holds."""
        if self._twice(octets, declared, called, place):
            return
        self._budget.deep(place.level)
        self._budget.work(len(octets))
        archive = archives.members(octets, detected, called[0], self._budget)
        encrypted = macros = False
        inside: Iterable[archives.Member] = archive.members
        if detected == kinds.ZIP:
            detected, macros, inside = _document(archive.members)
            encrypted = any(member.encrypted for member in archive.members)
        elif detected.startswith(("application/vnd.ms-", "application/msword", kinds.OLE)):
            encrypted, macros = kinds.ole_encrypted(octets), kinds.ole_macros(octets)
        elif detected == kinds.PDF:
            encrypted = b"/Encrypt" in octets
        unreadable = archive.closed or declared in _ELSEWHERE
        for name in called:
            path = place.of(name or declared or "?")
            self._keep(
                Attachment(name, declared, detected, len(octets), path, place.depth, encrypted, unreadable, macros),
                place,
            )
        where = place.inside(called[0] or declared or "?")
        for member in inside:
            self._inside(member, where)
        if detected == kinds.MAIL and any(names.extension(name) in ("eml", "mht", "mhtml") for name in called):
            self.entity(octets, "text/plain", where)

    def _inside(self, member: archives.Member, place: _Place) -> None:
        self._budget.deep(place.level)
        name = names.tidy(member.name)
        if member.unpack is not None and _holds(member.detected, name):
            octets = member.unpack()
            self.examine(octets, "", kinds.detect(octets), [name], place)
            return
        closed = member.detected in kinds.CLOSED or (member.unpack is None and not member.encrypted)
        path = place.of(name or "?")
        attachment = Attachment(name, "", member.detected, member.size, path, place.depth, member.encrypted, closed)
        self._keep(attachment, place)

    def _add(self, called: list[str], declared: str, detected: str, octets: bytes, place: _Place) -> None:
        for name in called or [""]:
            self._keep(
                Attachment(name, declared, detected, len(octets), place.of(name or declared), place.depth), place
            )

    def _keep(self, attachment: Attachment, place: _Place) -> None:
        self.found[place.start, attachment] = None

    def _twice(self, octets: bytes, declared: str, called: list[str], place: _Place) -> bool:
        """The same file at the same place in another reading."""
        key = (place, declared, hash(octets), len(octets), *called)
        if key in self._seen:
            return True
        self._seen.add(key)
        return False


def _holds(detected: str, name: str) -> bool:
    """It may hold other files: it is taken out and looked into."""
    return (
        detected in (kinds.ZIP, kinds.TAR, kinds.GZIP, kinds.BZIP2, kinds.XZ, kinds.PDF, kinds.MAIL)
        or detected.startswith(("application/vnd.ms-", "application/msword", kinds.OLE))
        or names.extension(name) in ("zip", "jar", "docx", "docm", "xlsx", "xlsm", "pptx", "pptm", "tar")
    )


def _document(members: list[archives.Member]) -> tuple[str, bool, list[archives.Member]]:
    """What a zip is if it is more than one: its type, whether it has macros, and what in it is not its own."""
    inside = {member.name.lstrip("/").lower() for member in members}
    macros = any(name.endswith(("vbaproject.bin", "vbadata.xml")) for name in inside)
    kind = kinds.ZIP
    if "[content_types].xml" in inside:
        for folder, office, program in _OFFICE:
            if any(name.startswith(folder) for name in inside):
                kind = f"application/vnd.ms-{program}.{office.rpartition('.')[2]}.macroenabled.12" if macros else office
    elif "androidmanifest.xml" in inside:
        kind = "application/vnd.android.package-archive"
    elif "meta-inf/manifest.mf" in inside:
        kind = "application/java-archive"
    elif "mimetype" in inside and "content.xml" in inside:
        kind = "application/vnd.oasis.opendocument"
    if kind == kinds.ZIP:
        return kind, macros, members
    return kind, macros, [member for member in members if not _own(member)]


def _own(member: archives.Member) -> bool:
    name = member.name.lower()
    if member.detected in kinds.EXECUTABLE - {"application/java-vm"} or member.encrypted:
        return False
    return name.endswith("/") or name == "mimetype" or _OWN(names.extension(name)) is not None
