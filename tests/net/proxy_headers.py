"""PROXY headers for tests: how one is made, good ones with what they say, hostile ones with the octet that decides."""

import socket
from ipaddress import IPv6Address

from smtpproxy.net.proxyheader import (
    ALPN,
    AUTHORITY,
    CRC32C,
    LINE,
    LONGEST,
    NETNS,
    NOOP,
    SSL,
    SSL_CN,
    SSL_VERSION,
    TLV,
    UNIQUE_ID,
    Address,
    ProxyHeader,
    crc32c,
)

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
BEHIND = (b"", b"EHLO client.example\r\n", b"\0", b"PROXY TCP4 ", SIGNATURE)

CLIENT, DESTINATION = ("192.0.2.1", 4321), ("198.51.100.7", 25)
CLIENT_6, DESTINATION_6 = ("2001:db8::1", 4321), ("2001:db8::7", 25)
BLOCK = socket.inet_aton("192.0.2.1") + socket.inet_aton("198.51.100.7") + b"\x10\xe1\0\x19"
BLOCK_6 = b"".join(socket.inet_pton(socket.AF_INET6, host) for host, _ in (CLIENT_6, DESTINATION_6)) + b"\x10\xe1\0\x19"
TCP4, TCP6, PROXY, LOCAL = 0x11, 0x21, 0x21, 0x20


def tlv(kind: int, value: bytes = b"") -> bytes:
    return bytes([kind]) + len(value).to_bytes(2) + value


def ssl_value(*inner: bytes, client: int = 1, verify: int = 0) -> bytes:
    return bytes([client]) + verify.to_bytes(4) + b"".join(inner)


def binary(behind: bytes = BLOCK, family: int = TCP4, command: int = PROXY, length: int | None = None) -> bytes:
    size = len(behind) if length is None else length
    return SIGNATURE + bytes([command, family]) + size.to_bytes(2) + behind


def with_sum(*before: bytes, after: bytes = b"", wrong: int = 0, length: int = 4) -> bytes:
    """A header whose checksum is right, but for the bits in `wrong`; with `length` of it."""
    empty = binary(BLOCK + b"".join(before) + tlv(CRC32C, bytes(length)) + after)
    at = len(empty) - len(after) - length
    return empty[:at] + (crc32c(empty) ^ wrong).to_bytes(4)[:length] + empty[at + length :]


def header(
    client: Address | None, destination: Address | None = None, *tlvs: TLV, version: int = 2, length: int = 0
) -> ProxyHeader:
    return ProxyHeader(version, client is None, client, destination, tlvs, length)


def line(client: Address | None, destination: Address | None = None) -> ProxyHeader:
    return header(client, destination, version=1)


MAPPED = ("::ffff:192.0.2.1", "::ffff:c000:201", "::FFFF:C000:0201", "0:0:0:0:0:ffff:192.0.2.1")
CERTIFICATE = ssl_value(tlv(SSL_VERSION, b"TLSv1.3"), tlv(SSL_CN, b"client.example"), client=7)
SUMMED = with_sum(tlv(AUTHORITY, b"mx.example"), after=tlv(NOOP, b"123"))

GOOD: dict[str, tuple[bytes, ProxyHeader]] = {
    "TCP4": (b"PROXY TCP4 192.0.2.1 198.51.100.7 4321 25\r\n", line(CLIENT, DESTINATION)),
    "TCP4, lowest": (b"PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n", line(("0.0.0.0", 0), ("0.0.0.0", 0))),
    "TCP4, highest": (
        b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
        line(("255.255.255.255", 65535), ("255.255.255.255", 65535)),
    ),
    "TCP6": (b"PROXY TCP6 2001:db8::1 2001:db8::7 4321 25\r\n", line(CLIENT_6, DESTINATION_6)),
    "TCP6, capitals": (b"PROXY TCP6 2001:DB8::1 2001:0DB8:0::07 4321 25\r\n", line(CLIENT_6, DESTINATION_6)),
    "TCP6, shortest": (b"PROXY TCP6 :: ::1 1 2\r\n", line(("::", 1), ("::1", 2))),
    "TCP6, longest": (
        b"PROXY TCP6 " + b" ".join([b":".join([b"ffff"] * 8)] * 2) + b" 65535 65535\r\n",
        line((":".join(["ffff"] * 8), 65535), (":".join(["ffff"] * 8), 65535)),
    ),
    **{
        f"TCP6, {text}": (f"PROXY TCP6 {text} 2001:db8::7 4321 25\r\n".encode(), line(CLIENT, DESTINATION_6))
        for text in MAPPED
    },
    "UNKNOWN": (b"PROXY UNKNOWN\r\n", line(None)),
    "UNKNOWN with a blank": (b"PROXY UNKNOWN \r\n", line(None)),
    "UNKNOWN with addresses": (b"PROXY UNKNOWN 192.0.2.1 198.51.100.7 4321 25\r\n", line(None)),
    "UNKNOWN with anything": (b"PROXY UNKNOWN ~/, %s  TCP4 9999\r\n", line(None)),
    "UNKNOWN, longest": (b"PROXY UNKNOWN".ljust(LINE - 2, b" ") + b"\r\n", line(None)),
    "v2 TCP4": (binary(), header(CLIENT, DESTINATION)),
    "v2 TCP6": (binary(BLOCK_6, TCP6), header(CLIENT_6, DESTINATION_6)),
    "v2 TCP6, mapped": (
        binary(b"".join(IPv6Address(f"::ffff:{host}").packed for host, _ in (CLIENT, DESTINATION)) + BLOCK[8:], TCP6),
        header(CLIENT, DESTINATION),
    ),
    "v2 UNSPEC": (binary(b"", 0), header(None)),
    "v2 UNSPEC with a TLV": (binary(tlv(UNIQUE_ID, b"7"), 0), header(None, None, (UNIQUE_ID, b"7"))),
    "v2 LOCAL": (binary(b"", 0, LOCAL), header(None)),
    "v2 LOCAL with a TLV": (binary(tlv(AUTHORITY, b"x"), 0, LOCAL), header(None, None, (AUTHORITY, b"x"))),
    "v2 LOCAL with addresses": (binary(BLOCK, TCP4, LOCAL), header(None)),
    "v2 LOCAL with both": (binary(BLOCK + tlv(ALPN, b"x"), TCP4, LOCAL), header(None, None, (ALPN, b"x"))),
    "v2 LOCAL, UNIX": (binary(bytes(216) + tlv(0xEA, b"x"), 0x31, LOCAL), header(None, None, (0xEA, b"x"))),
    "v2 LOCAL, half an address": (binary(BLOCK[:7], TCP4, LOCAL), header(None)),
    "v2 LOCAL of an unknown family": (binary(b"whatever", 0x77, LOCAL), header(None)),
    "v2 with all TLVs": (
        binary(
            BLOCK
            + tlv(ALPN, b"smtp")
            + tlv(AUTHORITY, b"mx.example")
            + tlv(NOOP)
            + tlv(UNIQUE_ID, bytes(128))
            + tlv(SSL, CERTIFICATE)
            + tlv(NETNS, b"blue")
            + tlv(NOOP, b"\xff")
            + tlv(0xEA, b"\x01vpce")
            + tlv(0xEA, b"\x01vpce")
        ),
        header(
            CLIENT,
            DESTINATION,
            (ALPN, b"smtp"),
            (AUTHORITY, b"mx.example"),
            (NOOP, b""),
            (UNIQUE_ID, bytes(128)),
            (SSL, CERTIFICATE),
            (NETNS, b"blue"),
            (NOOP, b"\xff"),
            (0xEA, b"\x01vpce"),
            (0xEA, b"\x01vpce"),
        ),
    ),
    "v2 with a checksum": (
        SUMMED,
        header(CLIENT, DESTINATION, (AUTHORITY, b"mx.example"), (CRC32C, SUMMED[-10:-6]), (NOOP, b"123")),
    ),
    "v2 with SSL that says nothing": (
        binary(BLOCK + tlv(SSL, bytes(5))),
        header(CLIENT, DESTINATION, (SSL, bytes(5))),
    ),
    "v2, longest": (
        binary(BLOCK + tlv(0xE0, bytes(LONGEST - 16 - 12 - 3))),
        header(CLIENT, DESTINATION, (0xE0, bytes(LONGEST - 16 - 12 - 3))),
    ),
}

HOSTILE: dict[str, tuple[bytes, bytes, str]] = {
    # What may still become a header; the octet that decides and what stands behind it; why.
    "clear text": (b"", b"EHLO client.example\r\n", "begins otherwise"),
    "TLS": (b"", b"\x16\x03\x01\x02\0\x01", "begins otherwise"),
    "a blank before it": (b"", b" PROXY UNKNOWN\r\n", "begins otherwise"),
    "small letters": (b"", b"proxy UNKNOWN\r\n", "begins otherwise"),
    "an empty line and text": (b"\r\n", b"EHLO client.example\r\n", "begins otherwise"),
    "POST": (b"P", b"OST / HTTP/1.1\r\n", "begins otherwise"),
    "no blank": (b"PROXY", b"\tTCP4 ", "begins otherwise"),
    "no more than PROXY": (b"PROXY", b"\r\n", "begins otherwise"),
    "two blanks before the family": (b"PROXY ", b" TCP4 192.0.2.1 198.51.100.7 4321 25\r\n", "family"),
    "a family in small letters": (b"PROXY ", b"tcp4 192.0.2.1 198.51.100.7 4321 25\r\n", "family"),
    "UDP": (b"PROXY U", b"DP4 192.0.2.1 198.51.100.7 4321 25\r\n", "family"),
    "TCP5": (b"PROXY TCP", b"5 ", "family"),
    "TCP": (b"PROXY TCP", b" ", "family"),
    "TCP44": (b"PROXY TCP4", b"4 192.0.2.1 ", "family"),
    "no family": (b"PROXY ", b"\r\n", "family"),
    "UNKNOWNS": (b"PROXY UNKNOWN", b"S\r\n", "family"),
    "UNKNOWN in part": (b"PROXY UNKNOW", b"\r\n", "family"),
    "UNKNOWN behind two blanks": (b"PROXY ", b" UNKNOWN\r\n", "family"),
    "UNKNOWN with a bare LF": (b"PROXY UNKNOWN", b"\n", "family"),
    "UNKNOWN with a bare LF further on": (b"PROXY UNKNOWN x", b"\nEHLO x\r\n", "ASCII"),
    "UNKNOWN with a bare CR": (b"PROXY UNKNOWN\r", b"EHLO x\r\n", "CR without LF"),
    "UNKNOWN with two CR": (b"PROXY UNKNOWN\r", b"\r\n", "CR without LF"),
    "UNKNOWN with NUL": (b"PROXY UNKNOWN ", b"\0\r\n", "ASCII"),
    "UNKNOWN with octets above ASCII": (b"PROXY UNKNOWN x", b"\xe9\r\n", "ASCII"),
    "UNKNOWN, one too long": (b"PROXY UNKNOWN".ljust(LINE - 2, b" "), b" \r\n", "107"),
    "UNKNOWN without an end": (b"PROXY UNKNOWN".ljust(LINE - 2, b"x")[:13] + b" " * 92, b" " * 4000, "107"),
    "no addresses": (b"PROXY TCP4", b"\r\n", "missing"),
    "one address": (b"PROXY TCP4 192.0.2.1", b"\r\n", "missing"),
    "no ports": (b"PROXY TCP4 192.0.2.1 198.51.100.7", b"\r\n", "missing"),
    "one port": (b"PROXY TCP4 192.0.2.1 198.51.100.7 4321", b"\r\n", "missing"),
    "no last port": (b"PROXY TCP4 192.0.2.1 198.51.100.7 4321 ", b"\r\n", "port"),
    "a blank at the end": (b"PROXY TCP4 192.0.2.1 198.51.100.7 4321 25", b" \r\n", "more than"),
    "a fifth field": (b"PROXY TCP4 192.0.2.1 198.51.100.7 4321 25", b" 7\r\n", "more than"),
    "two blanks before an address": (b"PROXY TCP4 ", b" 192.0.2.1 198.51.100.7 4321 25\r\n", "not IPv4"),
    "two blanks before the other": (b"PROXY TCP4 192.0.2.1 ", b" 198.51.100.7 4321 25\r\n", "not IPv4"),
    "two blanks before a port": (b"PROXY TCP4 192.0.2.1 198.51.100.7 ", b" 4321 25\r\n", "port"),
    "a tab": (b"PROXY TCP4 192.0.2.1", b"\t198.51.100.7 4321 25\r\n", "not IPv4"),
    "NUL": (b"PROXY TCP4 192.0.2.1", b"\0 198.51.100.7 4321 25\r\n", "not IPv4"),
    "a bare LF": (b"PROXY TCP4 192.0.2.1 198.51.100.7 4321 25", b"\nEHLO x\r\n", "port"),
    "a bare CR": (b"PROXY TCP4 192.0.2.1 198.51.100.7 4321 25\r", b"EHLO x\r\n", "CR without LF"),
    "256": (b"PROXY TCP4 25", b"6.0.2.1 198.51.100.7 4321 25\r\n", "not IPv4"),
    "a leading zero": (b"PROXY TCP4 192.0", b"2.2.1 198.51.100.7 4321 25\r\n", "not IPv4"),
    "an octal address": (b"PROXY TCP4 0", b"300.0.2.1 198.51.100.7 4321 25\r\n", "not IPv4"),
    "three numbers": (b"PROXY TCP4 192.0.2", b" 198.51.100.7 4321 25\r\n", "not IPv4"),
    "five numbers": (b"PROXY TCP4 192.0.2.1", b".1 198.51.100.7 4321 25\r\n", "not IPv4"),
    "two dots": (b"PROXY TCP4 192.", b".2.1 198.51.100.7 4321 25\r\n", "not IPv4"),
    "a mask": (b"PROXY TCP4 192.0.2.1", b"/24 198.51.100.7 4321 25\r\n", "not IPv4"),
    "hexadecimal": (b"PROXY TCP4 0", b"xc0.0.2.1 198.51.100.7 4321 25\r\n", "not IPv4"),
    "a sign": (b"PROXY TCP4 ", b"+1.0.2.1 198.51.100.7 4321 25\r\n", "not IPv4"),
    "a name": (b"PROXY TCP4 ", b"localhost 198.51.100.7 4321 25\r\n", "not IPv4"),
    "digits that are not ASCII": (b"PROXY TCP4 ", "١.0.2.1 198.51.100.7 4321 25\r\n".encode(), "not IPv4"),
    "IPv6 in TCP4": (b"PROXY TCP4 200", b"1:db8::1 198.51.100.7 4321 25\r\n", "not IPv4"),
    "IPv6 in the other of TCP4": (b"PROXY TCP4 192.0.2.1 200", b"1:db8::1 4321 25\r\n", "not IPv4"),
    "IPv4 in TCP6": (b"PROXY TCP6 192", b".0.2.1 2001:db8::1 4321 25\r\n", "not IPv6"),
    "a zone": (b"PROXY TCP6 fe80::1", b"%eth0 2001:db8::1 4321 25\r\n", "not IPv6"),
    "brackets": (b"PROXY TCP6 ", b"[2001:db8::1] 2001:db8::1 4321 25\r\n", "not IPv6"),
    "five digits": (b"PROXY TCP6 2001", b"0:db8::1 2001:db8::1 4321 25\r\n", "not IPv6"),
    "three colons": (b"PROXY TCP6 2001::", b": 2001:db8::1 4321 25\r\n", "not IPv6"),
    "two gaps": (b"PROXY TCP6 2001::1:", b":1 2001:db8::1 4321 25\r\n", "not IPv6"),
    "a colon at the end": (b"PROXY TCP6 2001::1:", b" 2001:db8::1 4321 25\r\n", "not IPv6"),
    "a colon before it": (b"PROXY TCP6 :", b"1::2 2001:db8::1 4321 25\r\n", "not IPv6"),
    "seven groups": (b"PROXY TCP6 1:2:3:4:5:6:7", b" 2001:db8::1 4321 25\r\n", "not IPv6"),
    "nine groups": (b"PROXY TCP6 1:2:3:4:5:6:7:8", b":9 2001:db8::1 4321 25\r\n", "not IPv6"),
    "eight groups and a gap": (b"PROXY TCP6 1::3:4:5:6:7:8", b":9 2001:db8::1 4321 25\r\n", "not IPv6"),
    "a wrong IPv4 within IPv6": (b"PROXY TCP6 ::ffff:192.0.2.25", b"6 2001:db8::1 4321 25\r\n", "not IPv6"),
    "half an IPv4 within IPv6": (b"PROXY TCP6 ::ffff:192.0.2", b" 2001:db8::1 4321 25\r\n", "not IPv6"),
    "IPv4 before a group": (b"PROXY TCP6 ::192.0.2.1", b":ffff 2001:db8::1 4321 25\r\n", "not IPv6"),
    "a port above 65535": (b"PROXY TCP4 192.0.2.1 198.51.100.7 6553", b"6 25\r\n", "port"),
    "a port of six digits": (b"PROXY TCP4 192.0.2.1 198.51.100.7 10000", b"0 25\r\n", "port"),
    "a port with a leading zero": (b"PROXY TCP4 192.0.2.1 198.51.100.7 4321 0", b"25\r\n", "port"),
    "a negative port": (b"PROXY TCP4 192.0.2.1 198.51.100.7 ", b"-1 25\r\n", "port"),
    "a name of a port": (b"PROXY TCP4 192.0.2.1 198.51.100.7 4321 ", b"smtp\r\n", "port"),
    "a last port above 65535": (b"PROXY TCP4 192.0.2.1 198.51.100.7 4321 6553", b"6\r\n", "port"),
    "v2, a signature that breaks off": (SIGNATURE[:11], b"\r\x21\x11\0\x0c" + BLOCK, "begins otherwise"),
    "v2, version 1": (SIGNATURE, b"\x11\x11\0\x0c" + BLOCK, "version"),
    "v2, version 3": (SIGNATURE, b"\x31\x11\0\x0c" + BLOCK, "version"),
    "v2, command 2": (SIGNATURE, b"\x22\x11\0\x0c" + BLOCK, "command"),
    "v2, command 15": (SIGNATURE, b"\x2f\x11\0\x0c" + BLOCK, "command"),
    "v2, UDP": (SIGNATURE + b"\x21", b"\x12\0\x0c" + BLOCK, "family"),
    "v2, UDP over IPv6": (SIGNATURE + b"\x21", b"\x22\0\x24" + BLOCK_6, "family"),
    "v2, UNIX": (SIGNATURE + b"\x21", b"\x31\0\xd8" + bytes(216), "family"),
    "v2, TCP over nothing": (SIGNATURE + b"\x21", b"\x01\0\x0c" + BLOCK, "family"),
    "v2, IPv4 without TCP": (SIGNATURE + b"\x21", b"\x10\0\x0c" + BLOCK, "family"),
    "v2, no such family": (SIGNATURE + b"\x21", b"\x41\0\x0c" + BLOCK, "family"),
    "v2, nothing where IPv4 should be": (SIGNATURE + b"\x21\x11\0", b"\0EHLO", "too short"),
    "v2, too short for IPv4": (SIGNATURE + b"\x21\x11\0", b"\x0b" + BLOCK, "too short"),
    "v2, nothing where IPv6 should be": (SIGNATURE + b"\x21\x21\0", b"\0EHLO", "too short"),
    "v2, too short for IPv6": (SIGNATURE + b"\x21\x21\0", b"\x23" + BLOCK_6, "too short"),
    "v2, one too long": (SIGNATURE + b"\x21\x11\x07", b"\xf1" + bytes(4000), "2048"),
    "v2, far too long": (SIGNATURE + b"\x21\x11", b"\xff\xff" + bytes(4000), "2048"),
    "v2, LOCAL that is too long": (SIGNATURE + b"\x20\0", b"\x08\0" + bytes(4000), "2048"),
    "v2, one octet behind the addresses": (SIGNATURE + b"\x21\x11\0", b"\x0d" + BLOCK + b"\0", "behind the last"),
    "v2, two octets behind the addresses": (SIGNATURE + b"\x21\x11\0", b"\x0e" + BLOCK + b"\4\0", "behind the last"),
    "v2, octets behind the last TLV": (
        binary(BLOCK + b"\4\0", length=12 + 3 + 1 + 2),
        b"\x01x\4\0",
        "behind the last",
    ),
    "v2, a TLV that overruns": (binary(BLOCK + b"\xea\0", length=12 + 3 + 5), b"\x06" + b"abcdef", "length"),
    "v2, a TLV that overruns by far": (binary(BLOCK + b"\xea", length=12 + 3 + 5), b"\xff\xff" + bytes(9), "length"),
    "v2, a later TLV that overruns": (
        binary(BLOCK + tlv(NOOP, b"xy") + b"\xea\0", length=12 + 5 + 3),
        b"\1z",
        "length",
    ),
    "v2, LOCAL with a TLV that overruns": (binary(b"\xea\0", 0, LOCAL, length=3), b"\1z", "length"),
    "v2, UNSPEC with addresses": (binary(BLOCK[:6], 0, length=12), BLOCK[6:], "length"),
    "v2, a checksum of three octets": (binary(BLOCK + b"\3\0", length=12 + 3 + 6), b"\3" + bytes(6), "length"),
    "v2, a checksum of five octets": (binary(BLOCK + b"\3\0", length=12 + 3 + 6), b"\5" + bytes(6), "length"),
    "v2, a checksum of 260 octets": (binary(BLOCK + b"\3", length=12 + 3 + 300), b"\1\4" + bytes(300), "length"),
    "v2, a checksum without room": (binary(BLOCK, length=12 + 3 + 3), b"\3\0\4" + bytes(3), "length"),
    "v2, a wrong checksum": (with_sum(wrong=1)[:-1], with_sum(wrong=1)[-1:], "checksum"),
    "v2, a wrong checksum in the midst": (
        with_sum(wrong=1 << 31, after=tlv(NOOP, b"xyz"))[:-1],
        with_sum(wrong=1 << 31, after=tlv(NOOP, b"xyz"))[-1:],
        "checksum",
    ),
    "v2, two checksums": (
        binary(BLOCK + tlv(CRC32C, bytes(4)), length=12 + 7 + 7),
        tlv(CRC32C, bytes(4)),
        "0x03 twice",
    ),
    **{
        f"v2, two of {kind:#04x}": (
            binary(BLOCK + tlv(kind, bytes(5)) + tlv(0xEA), length=12 + 8 + 3 + 8),
            tlv(kind, bytes(5)),
            f"0x{kind:02x} twice",
        )
        for kind in (ALPN, AUTHORITY, UNIQUE_ID, SSL, NETNS)
    },
    "v2, a unique ID that is too long": (binary(BLOCK + b"\5\0", length=300), b"\x81" + bytes(300), "length"),
    "v2, SSL of four octets": (binary(BLOCK + b"\x20\0", length=12 + 3 + 6), b"\4" + bytes(6), "length"),
    "v2, SSL without room": (binary(BLOCK, length=12 + 3 + 4), b"\x20\0\4" + bytes(6), "length"),
    "v2, octets at the end of SSL": (
        binary(BLOCK + b"\x20\0", length=12 + 3 + 7 + 20),
        b"\x07\1" + bytes(100),
        "behind the last",
    ),
    "v2, an inner TLV that overruns SSL": (
        binary(BLOCK + b"\x20\0\x09" + ssl_value(b"\x21\0"), length=12 + 3 + 9 + 20),
        b"\2ab" + tlv(NOOP, bytes(17)),
        "0x21 of a length",
    ),
    "v2, an inner TLV that overruns all": (
        binary(BLOCK + b"\x20\0\x09" + ssl_value(b"\x21"), length=12 + 3 + 9),
        b"\xff\xffa",
        "0x21 of a length",
    ),
    "v2, two versions of TLS": (
        binary(BLOCK + b"\x20\0\x0d" + ssl_value(tlv(0x21, b"ab")), length=12 + 3 + 13),
        b"\x21\0\0",
        "0x21 twice",
    ),
}
