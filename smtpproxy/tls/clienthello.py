"""A client's first TLS message, read before anything is decided: what it asks for, and what it is like.

RFC 8446 §4.1.2 and §5.1, RFC 6066 §3 (SNI), RFC 7301 (ALPN); JA4 as published by FoxIO for TLS over TCP. The message
may be cut into records, and the records into segments, at any octet.

- Nothing is guessed: octets are a ClientHello in full, or may become one, or can't be one. Which of these holds, and
  why, depends on the octets alone and not on how they were cut.
- `NotAHello` is the only exception, and it comes with the first octet that can't be part of a ClientHello.
- What is read here is for choosing a certificate and for the record. The handshake is OpenSSL's, with the same octets,
  and it judges them for itself: nothing here makes a hello acceptable.
"""

import re
from collections.abc import Iterable
from hashlib import sha256
from struct import unpack
from typing import NamedTuple

MAX_HELLO = 32768  # octets, record headers included; the largest in the wild (post-quantum keys, resumption) have 4,000
MAX_RECORDS = 2048  # in so many a hello of 2 KiB may come octet by octet; each costs a turn of the loop

_HANDSHAKE, _CLIENT_HELLO = 22, 1
_LARGEST_RECORD = 1 << 14  # RFC 8446 §5.1
_SERVER_NAME, _SIGNATURES, _ALPN, _VERSIONS = 0, 13, 16, 43
_OTHER_RECORDS = {20: "a change of cipher", 21: "a TLS alert", 23: "TLS application data"}
_HOST = re.compile(  # no address: what is in the last label is more than digits
    r"(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*(?!\d+\Z)[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
)
_JA4_VERSIONS = {0x0304: "13", 0x0303: "12", 0x0302: "11", 0x0301: "10", 0x0300: "s3"}


class NotAHello(Exception):  # noqa: N818 - a finding about octets, and named for it
    """The octets are no ClientHello and can't become one; `why` says what they are."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class Hello(NamedTuple):
    """What a ClientHello says, in its order, values of GREASE (RFC 8701) included except where said."""

    version: int  # legacy_version: what a client up to TLS 1.2 means
    versions: tuple[int, ...]  # supported_versions, without GREASE; () if the extension is not there
    ciphers: tuple[int, ...]
    extensions: tuple[int, ...]  # their types
    sni: str  # the host name asked for: ASCII, small letters; "" if there is none, or it is no host name
    alpn: tuple[bytes, ...]
    has_alpn: bool
    signatures: tuple[int, ...]  # signature_algorithms

    @property
    def ja4(self) -> str:
        """FoxIO's JA4: the same for two clients that are alike, whatever host they ask for."""
        ciphers = _ungreased(self.ciphers)
        extensions = _ungreased(self.extensions)
        signatures = _ungreased(self.signatures)
        version = _JA4_VERSIONS.get(max(self.versions, default=self.version), "00")
        named = "d" if _SERVER_NAME in self.extensions else "i"
        counts = f"{min(len(ciphers), 99):02}{min(len(extensions), 99):02}"
        kinds = _hexes(sorted(value for value in extensions if value not in (_SERVER_NAME, _ALPN)))
        if kinds and signatures:
            kinds += "_" + _hexes(signatures)
        return f"t{version}{named}{counts}{_ends(self.alpn)}_{_digest(_hexes(sorted(ciphers)))}_{_digest(kinds)}"


def read_hello(octets: bytes) -> Hello | None:
    """The ClientHello that `octets` begin with, or None if more octets are needed. What stands behind it is not read.

    Raises NotAHello, also for one that is longer than MAX_HELLO with its record headers.
    """
    return HelloReader().feed(octets)


class HelloReader:
    """Reads a ClientHello as it comes: each octet is looked at once, in however many pieces a client sends it.

    Attributes:
        octets: all that came, with what stands behind the hello.
    """

    def __init__(self) -> None:
        self.octets = bytearray()
        self._message = bytearray()  # what stood in records so far
        self._at = 0  # octets looked at
        self._number = 0  # records begun
        self._left = 0  # octets of the last one that are still to come

    def feed(self, octets: bytes) -> Hello | None:
        """More octets; as `read_hello` of all there are."""
        self.octets += octets
        message = self._take()
        if message is not None:
            return _hello(message)
        if len(self.octets) > MAX_HELLO:
            raise NotAHello(f"no end of the ClientHello within {MAX_HELLO} octets")
        return None

    def _take(self) -> bytes | None:
        """The body of the handshake message, out of its records. Each octet counts before those behind it do."""
        end = min(len(self.octets), MAX_HELLO)
        while True:
            if not self._left:
                header = bytes(self.octets[self._at : min(self._at + 5, end)])
                if self._number == MAX_RECORDS and header:
                    raise NotAHello(f"a ClientHello in more than {MAX_RECORDS} records")
                _check_record(header, first=self._number == 0)
                if len(header) < 5:
                    return None
                self._at += 5
                self._number += 1
                self._left = int.from_bytes(header[3:])
            piece = self.octets[self._at : min(self._at + self._left, end)]
            self._message += piece
            self._at += len(piece)
            self._left -= len(piece)
            needed = _length(self._message)
            if needed and len(self._message) >= needed:
                return bytes(self._message[4:needed])
            if self._left:
                return None


def _check_record(header: bytes, *, first: bool) -> None:
    """Whether what is there of a record's header (RFC 8446 §5.1) can be that of a part of a ClientHello."""
    if header and header[0] != _HANDSHAKE:
        raise NotAHello(f"{_what(header[0])} instead of {'a' if first else 'the rest of a'} ClientHello")
    if len(header) > 1 and header[1] != 3:
        raise NotAHello(f"a record of TLS version {header[1]}")
    if (len(header) > 3 and header[3] << 8 > _LARGEST_RECORD) or int.from_bytes(header[3:5]) > _LARGEST_RECORD:
        raise NotAHello("a TLS record that is too large")
    if len(header) == 5 and header.endswith(b"\0\0"):
        raise NotAHello("an empty TLS record")


def _what(octet: int) -> str:
    if octet in _OTHER_RECORDS:
        return _OTHER_RECORDS[octet]
    if 0x20 <= octet < 0x7F or octet in b"\t\r\n":
        return "clear text"
    return "SSL 2.0 or no TLS at all" if octet & 0x80 else f"octet 0x{octet:02x}"


def _length(message: bytearray) -> int:
    """Octets of the whole message with its header, 0 if not known yet."""
    if message and message[0] != _CLIENT_HELLO:
        raise NotAHello(f"handshake message {message[0]} instead of a ClientHello")
    if len(message) < 4:
        if len(message) > 1 and message[1]:
            raise NotAHello(f"a ClientHello of more than {MAX_HELLO} octets")
        return 0
    length = 4 + int.from_bytes(message[1:4])
    if length + 5 > MAX_HELLO:
        raise NotAHello(f"a ClientHello of more than {MAX_HELLO} octets")
    return length


# ------------------------------------------------------------------------------------------------- the message


class _Fields:
    """Takes fields off a vector of octets from its start; `what` is said if they do not fit."""

    def __init__(self, octets: bytes, what: str) -> None:
        self.octets = octets
        self._at = 0
        self._what = what

    def take(self, count: int) -> bytes:
        field = self.octets[self._at : self._at + count]
        self._at += count
        if len(field) < count:
            raise NotAHello(f"{self._what} that is cut off")
        return field

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size))

    def vector(self, size: int) -> bytes:
        """Octets with their count, in `size` octets, before them."""
        return self.take(self.number(size))

    def numbers(self, size: int) -> tuple[int, ...]:
        """A vector of one or more numbers of two octets."""
        octets = self.vector(size)
        if not octets or len(octets) % 2:
            raise NotAHello(f"{self._what} with an empty list or half a number")
        return unpack(f">{len(octets) // 2}H", octets)

    @property
    def more(self) -> bool:
        return self._at < len(self.octets)

    def end(self) -> None:
        if self.more:
            raise NotAHello(f"{self._what} with octets behind its end")


def _hello(message: bytes) -> Hello:
    """RFC 8446 §4.1.2, which is RFC 5246 §7.4.1.2 too."""
    fields = _Fields(message, "a ClientHello")
    version = fields.number(2)
    if version >> 8 != 3:
        raise NotAHello(f"a ClientHello of version 0x{version:04x}")
    fields.take(32)  # random
    if len(fields.vector(1)) > 32:
        raise NotAHello("a ClientHello with a session ID that is too long")
    ciphers = fields.numbers(2)
    if not fields.vector(1):
        raise NotAHello("a ClientHello without a compression method")
    extensions: dict[int, bytes] = {}
    if fields.more:  # none at all up to TLS 1.2
        listed = _Fields(fields.vector(2), "a list of extensions")
        fields.end()
        while listed.more:
            kind = listed.number(2)
            if kind in extensions:  # RFC 8446 §4.2: which of the two would hold?
                raise NotAHello(f"a ClientHello with extension {kind} twice")
            extensions[kind] = listed.vector(2)
    return Hello(
        version,
        _ungreased(_numbers(extensions, _VERSIONS, 1, "supported_versions")),
        ciphers,
        tuple(extensions),
        _host_name(extensions),
        _protocols(extensions),
        _ALPN in extensions,
        _numbers(extensions, _SIGNATURES, 2, "signature_algorithms"),
    )


def _numbers(extensions: dict[int, bytes], kind: int, size: int, name: str) -> tuple[int, ...]:
    """An extension that is one list of numbers; () if it is not there."""
    if kind not in extensions:
        return ()
    fields = _Fields(extensions[kind], f"an extension {name}")
    numbers = fields.numbers(size)
    fields.end()
    return numbers


def _host_name(extensions: dict[int, bytes]) -> str:
    """RFC 6066 §3: the one name of type host_name."""
    if _SERVER_NAME not in extensions:
        return ""
    fields = _Fields(extensions[_SERVER_NAME], "an extension server_name")
    names = _Fields(fields.vector(2), "an extension server_name")
    fields.end()
    kind, name = names.number(1), names.vector(2)
    names.end()
    text = name.decode("latin-1").lower()  # what is not ASCII fits no host name
    return text if kind == 0 and len(text) <= 253 and _HOST.fullmatch(text) else ""


def _protocols(extensions: dict[int, bytes]) -> tuple[bytes, ...]:
    """RFC 7301 §3.1: one or more names, none of them empty."""
    if _ALPN not in extensions:
        return ()
    fields = _Fields(extensions[_ALPN], "an extension ALPN")
    names = _Fields(fields.vector(2), "an extension ALPN")
    fields.end()
    protocols = [names.vector(1)]
    while names.more:
        protocols.append(names.vector(1))
    if b"" in protocols:
        raise NotAHello("an extension ALPN with an empty name")
    return tuple(protocols)


# ------------------------------------------------------------------------------------------------- JA4


def _ungreased(values: Iterable[int]) -> tuple[int, ...]:
    """Without the values that clients make up so that servers stay tolerant (RFC 8701): 0x0a0a, 0x1a1a … 0xfafa."""
    return tuple(value for value in values if value & 0x0F0F != 0x0A0A or value >> 8 != value & 0xFF)


def _hexes(values: Iterable[int]) -> str:
    return ",".join(f"{value:04x}" for value in values)


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:12] if text else "0" * 12


def _ends(protocols: tuple[bytes, ...]) -> str:
    """First and last character of the first name of ALPN; of its octets in hexadecimal if one of them is odd."""
    if not protocols:
        return "00"
    first = protocols[0]
    ends = first[:1] + first[-1:]
    return ends.decode() if ends.isalnum() else first[:1].hex()[0] + first[-1:].hex()[1]
