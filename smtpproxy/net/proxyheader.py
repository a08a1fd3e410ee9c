"""The PROXY protocol, versions 1 and 2: what a load balancer says of a client before the client's first octet.

HAProxy's proxy-protocol.txt, with the TLVs registered up to 2026. Read from a balancer that is believed about the
client's address, so whoever can write one can be anybody; written to a server that believes us.

- Sans-IO. Nothing is guessed: octets are a header in full, or may become one, or can't be one. Which of these holds,
  and why, depends on the octets alone and not on how they were cut.
- `HeaderError` is the only exception, and comes with the octet that decides. No octet of the peer's is in its text.
- What stands behind the header is not looked at: it is the client's.
- Bounded: no more than LONGEST octets are a header, whatever length it claims.

Of a connection that is the balancer's own (LOCAL, UNKNOWN) the addresses on the socket hold: none are taken from here.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import sha256
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, NamedTuple

from smtpproxy.net.machine import printable

LONGEST = 2048  # octets of a header; beyond that only somebody who wants memory
LINE = 107  # octets of version 1's line with its CRLF, the worst case of the specification

# Octets of a header that we send. It has to be there at one read of the server's: Exim has a buffer of 232 octets for
# it, Postfix looks at the first 536 (one segment anywhere) and no further.
SENT = 232

# Types of TLV, and of those within SSL.
ALPN, AUTHORITY, CRC32C, NOOP, UNIQUE_ID, SSL, NETNS = 0x01, 0x02, 0x03, 0x04, 0x05, 0x20, 0x30
SSL_VERSION, SSL_CN, SSL_CIPHER, SSL_SIG_ALG, SSL_KEY_ALG = 0x21, 0x22, 0x23, 0x24, 0x25
SSL_GROUP, SSL_SIG_SCHEME, SSL_CLIENT_CERT = 0x26, 0x27, 0x28

SHOWN = 256  # characters of a value in the record
SHOWN_TLVS = 16  # of one level

Address = tuple[str, int]
TLV = tuple[int, bytes]

_WORD = b"PROXY "
_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_FIXED = 16  # octets of version 2 before its addresses
_LOCAL, _PROXY = 0, 1
_UNSPEC, _TCP4, _TCP6 = 0x00, 0x11, 0x21
_SIZES = {_UNSPEC: 0, _TCP4: 12, 0x12: 12, _TCP6: 36, 0x22: 36, 0x31: 216, 0x32: 216}  # of the addresses

# What may come once: of two, which would hold? And how many octets it has, where that is not for the sender to say.
_ONCE = frozenset({ALPN, AUTHORITY, CRC32C, UNIQUE_ID, SSL, NETNS, *range(SSL_VERSION, SSL_CLIENT_CERT + 1)})
_LENGTHS = {CRC32C: (4, 4), UNIQUE_ID: (0, 128), SSL: (5, 0xFFFF)}
_PASSED_ON = frozenset({ALPN, AUTHORITY, UNIQUE_ID, SSL})


class HeaderError(ValueError):
    """The octets are no PROXY header and can't become one; `why` says what is wrong with them."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class ProxyHeader(NamedTuple):
    """What a header says. IPv4 addresses in IPv6 clothes (::ffff:192.0.2.1) are IPv4."""

    version: int
    local: bool  # the balancer's own connection, or one it knows nothing of: there are no addresses
    client: Address | None
    destination: Address | None
    tlvs: tuple[TLV, ...]  # all of version 2, in their order
    length: int  # octets it takes; the client's begin behind them


def parse(octets: bytes) -> ProxyHeader | None:
    """The header that `octets` begin with, or None if more octets are needed. What stands behind it is not read.

    Raises:
        HeaderError: they can't become one.
    """
    octets = bytes(octets[:LONGEST])
    begins, read = (_WORD, _version_1) if octets[:1] == _WORD[:1] else (_SIGNATURE, _version_2)
    if not octets.startswith(begins[: len(octets)]):
        raise HeaderError("it begins otherwise")
    return read(octets)


# ------------------------------------------------------------------------------------------------- version 1


def _version_1(octets: bytes) -> ProxyHeader | None:
    """One line of ASCII. Everything before a CR counts before what stands behind it."""
    line, cr, behind = octets[:LINE].partition(b"\r")
    fits = len(line) <= LINE - 2
    found = _line(line[len(_WORD) : LINE - 2], whole=bool(cr) and fits)
    if not fits:
        raise HeaderError(f"no end of the line within {LINE} octets")
    if behind[:1] not in (b"", b"\n"):
        raise HeaderError("a CR without LF")
    if not behind or found is None:
        return None
    client, destination = found
    return ProxyHeader(1, client is None, client, destination, (), len(line) + 2)


def _line(text: bytes, *, whole: bool) -> tuple[Address | None, Address | None] | None:
    """Both addresses out of what stands behind PROXY; None of something that is not `whole` and right so far."""
    family, *fields = text.split(b" ")
    done = whole or bool(fields)
    if not (family in _FAMILIES if done else any(name.startswith(family) for name in _FAMILIES)):
        raise HeaderError("a family other than TCP4, TCP6 and UNKNOWN")
    kind = _FAMILIES.get(family)
    if kind is None:  # UNKNOWN, or too few letters to tell
        if not _PRINTABLE(text):
            raise HeaderError("an octet that is no printable ASCII")
        return (None, None) if whole else None
    found = [
        read(field, kind, whole or place < len(fields) - 1)
        for place, (field, read) in enumerate(zip(fields, (_address, _address, _port, _port), strict=False))
    ]
    if len(fields) > 4:
        raise HeaderError("more than addresses and ports")
    if not whole:
        return None
    if len(fields) < 4:
        raise HeaderError("addresses or ports are missing")
    client, destination, client_port, destination_port = found
    return (str(client), int(client_port)), (str(destination), int(destination_port))


def _address(field: bytes, kind: type[IPv4Address] | type[IPv6Address], whole: bool) -> str:
    """An address, written canonically; of one that is not `whole` it is only sure that it can become one."""
    if _ADDRESS(field):  # no zone, no mask, no digits of other scripts
        text = field.decode("ascii")
        for rest in ("",) if whole else _rests(text, kind):
            try:
                return _plain(kind(text + rest))
            except ValueError:
                continue
    raise HeaderError(f"an address that is not IPv{kind(0).version}")


def _rests(text: str, kind: type[IPv4Address] | type[IPv6Address]) -> Iterator[str]:
    """What could stand behind the beginning of an address: if none of these makes it one, nothing does."""
    if kind is IPv6Address:
        yield from ("", ":", "::", "0")
    if kind is IPv4Address or "." in text:
        last = text.rpartition(":")[2]
        yield ("0" if last[-1:] in ("", ".") else "") + ".0" * (3 - last.count("."))


def _port(field: bytes, _kind: object, whole: bool) -> str:
    if (field or whole) and (not _NUMBER(field) or int(field) > 0xFFFF):
        raise HeaderError("a port that is none")
    return field.decode("ascii")


def _plain(address: IPv4Address | IPv6Address) -> str:
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)


_FAMILIES: Mapping[bytes, type[IPv4Address] | type[IPv6Address] | None] = {
    b"TCP4": IPv4Address,
    b"TCP6": IPv6Address,
    b"UNKNOWN": None,
}
_PRINTABLE = re.compile(rb"[ -~]*").fullmatch
_ADDRESS = re.compile(rb"[0-9A-Fa-f:.]*").fullmatch
_NUMBER = re.compile(rb"0|[1-9][0-9]{0,4}").fullmatch


# ------------------------------------------------------------------------------------------------- version 2


def _version_2(octets: bytes) -> ProxyHeader | None:
    """Binary. Fields are judged in their order, each as soon as it is there."""
    command, family = octets[12:13], octets[13:14]
    if command and command[0] >> 4 != 2:
        raise HeaderError("a binary header of another version than 2")
    if command and command[0] & 15 not in (_LOCAL, _PROXY):
        raise HeaderError("a command other than LOCAL and PROXY")
    local = command == b"\x20"
    if family and not local and family[0] not in (_UNSPEC, _TCP4, _TCP6):
        raise HeaderError("a family other than TCP over IPv4 and IPv6")
    end = _FIXED + int.from_bytes(octets[14:_FIXED].ljust(2, b"\0"))
    if end > LONGEST:
        raise HeaderError(f"a header of more than {LONGEST} octets")
    if len(octets) < _FIXED:
        return None
    begin = _FIXED + _SIZES.get(family[0], LONGEST)
    if begin > end:
        if not local:
            raise HeaderError("a header that is too short for its addresses")
        begin = end  # whatever that is, it is to be skipped
    tlvs = _tlvs(octets, begin, end)
    if len(octets) < end:
        return None
    _check_sum(octets[:end], tlvs)
    client, destination = (None, None) if local else _addresses(octets[_FIXED:begin])
    said = tuple((kind, octets[start:stop]) for kind, start, stop in tlvs)
    return ProxyHeader(2, client is None, client, destination, said, end)


def _addresses(block: bytes) -> tuple[Address | None, Address | None]:
    """Client and destination; none of AF_UNSPEC, where it is as with UNKNOWN in version 1."""
    if not block:
        return None, None
    size = (len(block) - 4) // 2
    first, second = (ip_address(block[at : at + size]) for at in (0, size))
    return (_plain(first), int.from_bytes(block[-4:-2])), (_plain(second), int.from_bytes(block[-2:]))


def _tlvs(octets: bytes, begin: int, end: int) -> list[tuple[int, int, int]]:
    """Type, begin and end of value of the TLVs in octets[begin:end], as far as they are there; right so far."""
    found = []
    for kind, start, stop in _walk(octets, begin, end):
        if kind == SSL:
            for _ in _walk(octets, start + 5, stop):
                pass  # it looks at them
        found.append((kind, start, stop))
    return found


def _walk(octets: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """TLVs of one level, while their heads are there. A length is judged by as many of its octets as there are."""
    seen = set[int]()
    while at < end:
        if end - at < 3:
            raise HeaderError("octets behind the last TLV")
        if at >= len(octets):
            return
        kind, length = octets[at], octets[at + 1 : at + 3]
        if kind in seen & _ONCE:
            raise HeaderError(f"TLV 0x{kind:02x} twice")
        seen.add(kind)
        least, most = int.from_bytes(length.ljust(2, b"\0")), int.from_bytes(length.ljust(2, b"\xff"))
        lowest, highest = _LENGTHS.get(kind, (0, 0xFFFF))
        highest = min(highest, end - at - 3)
        if least > highest or most < lowest or lowest > highest:
            raise HeaderError(f"TLV 0x{kind:02x} of a length that it can't have")
        if len(length) < 2:
            return
        yield kind, at + 3, at + 3 + least
        at += 3 + least


def _check_sum(header: bytes, tlvs: Iterable[tuple[int, int, int]]) -> None:
    for kind, start, stop in tlvs:
        if kind == CRC32C and crc32c(header[:start] + bytes(4) + header[stop:]) != int.from_bytes(header[start:stop]):
            raise HeaderError("a wrong checksum")


def crc32c(octets: bytes) -> int:
    """The checksum of RFC 9260 (SCTP), appendix A: Castagnoli's polynomial."""
    remainder = 0xFFFFFFFF
    for octet in octets:
        remainder = remainder >> 8 ^ _CRC32C[(remainder ^ octet) & 0xFF]
    return remainder ^ 0xFFFFFFFF


def _table() -> tuple[int, ...]:
    """What eight steps of the division make of each octet."""
    table = []
    for remainder in range(256):
        for _ in range(8):
            remainder = remainder >> 1 ^ (0x82F63B78 if remainder & 1 else 0)
        table.append(remainder)
    return tuple(table)


_CRC32C = _table()


# ------------------------------------------------------------------------------------------------- sent


def encode(version: int, client: Address | None, destination: Address | None, tlvs: Iterable[TLV] = ()) -> bytes:
    """A header of SENT octets at most, with a checksum in version 2. It has to leave in one piece, before all else.

    Without a client, one that says that the connection is our own. Zones of link-local addresses are left out, and
    IPv4 addresses stay IPv4 unless the other one is IPv6. `tlvs`, none of which version 1 can say: what matters most
    first; what does not fit is left out, and so is what may come once and comes again.

    Raises:
        ValueError: there is no such version, address or port, or only one of both addresses.
    """
    if version not in (1, 2):
        raise ValueError(f"no version {version} of the PROXY protocol")
    hosts: tuple[IPv4Address | IPv6Address, ...] = ()
    ports: tuple[int, ...] = ()
    if client is not None:
        if destination is None:
            raise ValueError("a client's address without the destination's")
        hosts = _alike(_ip(client[0]), _ip(destination[0]))
        ports = client[1], destination[1]
        if not all(0 <= port <= 0xFFFF for port in ports):
            raise ValueError("a port that is none")
    return _encode_1(hosts, ports) if version == 1 else _encode_2(hosts, ports, tlvs)


def _encode_1(hosts: tuple[IPv4Address | IPv6Address, ...], ports: tuple[int, ...]) -> bytes:
    words = [f"TCP{hosts[0].version}", *map(_written, hosts), *map(str, ports)] if hosts else ["UNKNOWN"]
    return _WORD + " ".join(words).encode("ascii") + b"\r\n"


def _encode_2(hosts: tuple[IPv4Address | IPv6Address, ...], ports: tuple[int, ...], tlvs: Iterable[TLV]) -> bytes:
    command, family = (_PROXY, _TCP4 if hosts[0].version == 4 else _TCP6) if hosts else (_LOCAL, _UNSPEC)
    block = b"".join([*(host.packed for host in hosts), *(port.to_bytes(2) for port in ports)])
    behind, seen = b"", {CRC32C}
    room = SENT - _FIXED - len(block) - len(_tlv(CRC32C, bytes(4)))
    for kind, value in tlvs:
        if not (kind in seen & _ONCE or 3 + len(value) > room - len(behind)):
            behind += _tlv(kind, value)
        seen.add(kind)
    size = len(block) + len(_tlv(CRC32C, bytes(4))) + len(behind)
    head = _SIGNATURE + bytes([0x20 | command, family]) + size.to_bytes(2) + block
    checksum = crc32c(head + _tlv(CRC32C, bytes(4)) + behind)
    return head + _tlv(CRC32C, checksum.to_bytes(4)) + behind


def _ip(host: str) -> IPv4Address | IPv6Address:
    """Without zone, and IPv4 as itself."""
    return ip_address(_plain(ip_address(ip_address(host).packed)))


def _alike(*hosts: IPv4Address | IPv6Address) -> tuple[IPv4Address | IPv6Address, ...]:
    """All of one version: a header has but one family."""
    if len({host.version for host in hosts}) == 1:
        return hosts
    return tuple(IPv6Address(bytes(10) + b"\xff\xff" + host.packed) if host.version == 4 else host for host in hosts)


def _written(host: IPv4Address | IPv6Address) -> str:
    """As inet_ntop does: what is IPv4 within IPv6 is then known as such by servers that look at the text."""
    plain = _plain(host)
    return plain if ip_address(plain) == host else f"::ffff:{plain}"


def _tlv(kind: int, value: bytes) -> bytes:
    return bytes([kind]) + len(value).to_bytes(2) + value


def passed_on(header: ProxyHeader) -> tuple[TLV, ...]:
    """What a server is told as we were: of the client, and not of the header or of the balancer's own connection."""
    return () if header.local else tuple(tlv for tlv in header.tlvs if tlv[0] in _PASSED_ON)


def tls_tlvs(version: str, cipher: str, sni: str = "", alpn: str = "") -> tuple[TLV, ...]:
    """The same of TLS that the client has with us."""
    named = ((AUTHORITY, sni), (ALPN, alpn))
    return ssl_tlv(version, cipher), *[(kind, name.encode()) for kind, name in named if name]


def ssl_tlv(version: str, cipher: str) -> TLV:
    """TLS of a client that showed no certificate: none is ever asked for. Names as OpenSSL has them."""
    inner = _tlv(SSL_VERSION, version.encode()) + _tlv(SSL_CIPHER, cipher.encode())
    return SSL, b"\x01" + (1).to_bytes(4) + inner  # verify is 0 for a certificate that was verified, and only then


# ------------------------------------------------------------------------------------------------- shown


def shown(header: ProxyHeader) -> dict[str, Any]:
    """A header for the record: printable and bounded whatever it holds; what it says of itself is left out."""
    fields: dict[str, Any] = {"version": header.version}
    if header.local:
        fields["local"] = True
    for key, address in (("client", header.client), ("destination", header.destination)):
        if address is not None:
            fields[key] = printable(address)
    return fields | _named([tlv for tlv in header.tlvs if tlv[0] not in (CRC32C, NOOP)], _NAMES)


def _named(tlvs: list[TLV], names: Mapping[int, tuple[str, Callable[[bytes], Any]]]) -> dict[str, Any]:
    """TLVs by name; those without one, and a second one of a name, as hexadecimal octets in a list."""
    fields: dict[str, Any] = {}
    others = []
    for kind, value in tlvs[:SHOWN_TLVS]:
        name, show = names.get(kind, ("", _hex))
        if name and name not in fields:
            fields[name] = show(value)
        else:
            others.append(f"0x{kind:02x} {_hex(value)}")
    if others:
        fields["others"] = others
    if len(tlvs) > SHOWN_TLVS:
        fields["more"] = len(tlvs) - SHOWN_TLVS
    return fields


def _text(value: bytes) -> str:
    r"""What isn't printable UTF-8 becomes `\x1b`, and a backslash two."""
    text = value.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")
    return _cut("".join([c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text]))


def _hex(value: bytes) -> str:
    return _cut(value.hex())


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def _ssl(value: bytes) -> dict[str, Any] | str:
    try:
        tlvs = [(kind, value[start:stop]) for kind, start, stop in _walk(value, 5, len(value))]
    except HeaderError:  # of a header that nobody parsed
        return _hex(value)
    fields = {
        "client": [name for bit, name in enumerate(_CLIENT) if value[:1] and value[0] >> bit & 1],
        "verify": int.from_bytes(value[1:5]),
    }
    return fields | _named(tlvs, _SSL_NAMES)


_CLIENT = ("tls", "certificate", "certificate-in-session", *(f"bit-{bit}" for bit in range(3, 8)))
_NAMES: Mapping[int, tuple[str, Callable[[bytes], Any]]] = {
    ALPN: ("alpn", _text),
    AUTHORITY: ("authority", _text),
    UNIQUE_ID: ("unique-id", _text),
    SSL: ("ssl", _ssl),
    NETNS: ("netns", _text),
}
_SSL_NAMES: Mapping[int, tuple[str, Callable[[bytes], Any]]] = {
    SSL_VERSION: ("version", _text),
    SSL_CN: ("cn", _text),
    SSL_CIPHER: ("cipher", _text),
    SSL_SIG_ALG: ("sig-alg", _text),
    SSL_KEY_ALG: ("key-alg", _text),
    SSL_GROUP: ("group", _text),
    SSL_SIG_SCHEME: ("sig-scheme", _text),
    SSL_CLIENT_CERT: ("certificate-sha256", lambda der: sha256(der).hexdigest()),
}
