"""PROXY headers: good ones and hostile ones, in any cut; what is sent; what the record shows of one."""

import json
import socket
from collections.abc import Callable
from hashlib import sha256
from ipaddress import IPv6Address, ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpproxy.net.proxyheader import (
    ALPN,
    AUTHORITY,
    CRC32C,
    NETNS,
    NOOP,
    SENT,
    SHOWN,
    SSL,
    SSL_CIPHER,
    SSL_CLIENT_CERT,
    SSL_CN,
    SSL_KEY_ALG,
    SSL_SIG_ALG,
    SSL_VERSION,
    TLV,
    UNIQUE_ID,
    HeaderError,
    ProxyHeader,
    crc32c,
    encode,
    parse,
    passed_on,
    shown,
    ssl_tlv,
    tls_tlvs,
)
from tests.net.proxy_headers import (
    BEHIND,
    BLOCK,
    CERTIFICATE,
    CLIENT,
    CLIENT_6,
    DESTINATION,
    DESTINATION_6,
    GOOD,
    HOSTILE,
    LOCAL,
    PROXY,
    SUMMED,
    TCP4,
    TCP6,
    binary,
    header,
    line,
    ssl_value,
    tlv,
)


@pytest.mark.parametrize("name", GOOD)
def test_a_good_header_in_any_cut(name: str) -> None:
    octets, expected = GOOD[name]
    expected = expected._replace(length=len(octets))
    assert [parse(octets[:end]) for end in range(len(octets))] == [None] * len(octets)
    assert [parse(octets + behind) for behind in BEHIND] == [expected] * len(BEHIND)


def why(octets: bytes) -> str | None:
    """Why it can't become a header; None if it can, or is one."""
    try:
        parse(octets)
    except HeaderError as error:
        return error.why
    return None


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_header_in_any_cut(name: str) -> None:
    """Undecided up to the octet that decides, and the same verdict from there on."""
    sofar, rest, reason = HOSTILE[name]
    assert [parse(sofar[:end]) for end in range(len(sofar) + 1)] == [None] * (len(sofar) + 1)
    last = min(len(rest), 200)
    verdicts = {why(sofar + rest[:end]) for end in [*range(1, last + 1), len(rest)]}
    assert len(verdicts) == 1
    assert reason in str(verdicts.pop())


@pytest.mark.parametrize("kind", [bytearray, memoryview])
def test_octets_of_any_kind(kind: Callable[[bytes], Any]) -> None:
    octets, expected = GOOD["v2 with all TLVs"]
    found = parse(kind(octets))
    assert found == expected._replace(length=len(octets))
    assert all(type(value) is bytes for _, value in found.tlvs)


# ------------------------------------------------------------------------------------------------- any octets

HOSTS_4 = st.ip_addresses(v=4).map(str)
HOSTS_6 = st.ip_addresses(v=6)
PORTS = st.integers(0, 0xFFFF)
KINDS = st.sampled_from([ALPN, AUTHORITY, NOOP, UNIQUE_ID, SSL, NETNS, 0x21, 0xEA, 0xF8])
INNER = st.tuples(st.sampled_from([*range(SSL_VERSION, SSL_CLIENT_CERT + 1), 0x40]), st.binary(max_size=9))
SSL_VALUES = st.lists(INNER, max_size=4, unique_by=lambda found: found[0]).map(
    lambda inner: ssl_value(*(tlv(kind, value) for kind, value in inner))
)
TLVS = st.lists(
    KINDS.flatmap(lambda kind: st.tuples(st.just(kind), SSL_VALUES if kind == SSL else st.binary(max_size=20))),
    max_size=6,
    unique_by=lambda found: found[0],
).map(tuple)


def mangled(octets: bytes, at: int, put: bytes, drop: int) -> bytes:
    at %= len(octets) + 1
    return octets[:at] + put + octets[at + drop :]


ANY = st.one_of(
    st.binary(max_size=80),
    st.binary(max_size=120).map(lambda rest: b"PROXY " + rest),
    st.text("0123456789abcdefF:. \r\n%x", max_size=110).map(lambda rest: b"PROXY TCP4 " + rest.encode()),
    st.text("0123456789abcdefF:. \r\n%x", max_size=110).map(lambda rest: b"PROXY TCP6 " + rest.encode()),
    st.builds(
        lambda behind, family, command, length: binary(behind, family, command, length),
        st.binary(max_size=60),
        st.sampled_from([0, TCP4, TCP6, 0x31, 0x55]),
        st.sampled_from([PROXY, LOCAL]),
        st.integers(0, 80),
    ),
    st.builds(
        mangled,
        st.sampled_from([octets for octets, _ in GOOD.values()]),
        st.integers(0, 200),
        st.binary(max_size=3),
        st.integers(0, 3),
    ),
)


@given(ANY, st.data())
def test_the_verdict_does_not_depend_on_the_cut(octets: bytes, data: st.DataObject) -> None:
    """Nothing but HeaderError comes out; what was decided by fewer octets is decided the same by more."""

    def verdict(octets: bytes) -> ProxyHeader | str | None:
        try:
            return parse(octets)
        except HeaderError as error:
            return error.why

    whole = verdict(octets)
    first = verdict(octets[: data.draw(st.integers(0, len(octets)))])
    assert first in (None, whole)
    if isinstance(whole, ProxyHeader):
        assert verdict(octets[: whole.length - 1]) is None
        assert verdict(octets[: whole.length]) == whole
        json.dumps(shown(whole))


@given(st.text("0127afF:.", max_size=24), st.sampled_from([4, 6]))
def test_an_address_is_what_inet_pton_takes(text: str, version: int) -> None:
    """And the beginning of one is kept for as long as something could follow that makes it one."""

    def known(text: str) -> bool:
        try:
            socket.inet_pton(socket.AF_INET if version == 4 else socket.AF_INET6, text)
        except OSError:
            return False
        return True

    begun = f"PROXY TCP{version} {text}".encode()
    other = b" 1.1.1.1 1 1\r\n" if version == 4 else b" ::1 1 1\r\n"
    found = None if why(begun + other) else parse(begun + other)
    assert (found is not None) is known(text)
    if found is not None and found.client is not None:
        assert ip_address(found.client[0]) in (ip_address(text), getattr(ip_address(text), "ipv4_mapped", None))
    rests = ["", "0", ":", "::", "::0", ".0", "0.0", ".0.0", "0.0.0", ".0.0.0", "0.0.0.0", ":0", ":0:0:0:0:0:0:0"]
    assert (why(begun) is None) is any(known(text + rest) for rest in rests)


@given(HOSTS_6, st.integers(0, 60), st.booleans())
def test_a_cut_address_is_waited_for(host: IPv6Address, cut: int, short: bool) -> None:
    octets = f"PROXY TCP6 {host if short else host.exploded} ::1 1 1\r\n".encode()
    assert why(octets[:cut]) is None


def crc_by_division(octets: bytes) -> int:
    """Bit by bit, as a polynomial: nothing of the table's."""
    remainder = 0xFFFFFFFF
    for octet in octets:
        for bit in range(8):
            first = (remainder ^ octet >> bit) & 1
            remainder = remainder >> 1 ^ (0x82F63B78 if first else 0)
    return remainder ^ 0xFFFFFFFF


@pytest.mark.parametrize(
    ("octets", "known"),
    [  # RFC 3720, B.4, where they are written least significant octet first; and the check value of the catalogues
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
        (b"123456789", 0xE3069283),
        (b"", 0),
    ],
)
def test_the_checksum_is_castagnolis(octets: bytes, known: int) -> None:
    assert crc32c(octets) == known


@given(st.binary(max_size=100))
def test_the_checksum_by_table_is_that_by_division(octets: bytes) -> None:
    assert crc32c(octets) == crc_by_division(octets)


def test_no_bit_under_a_checksum_can_be_changed() -> None:
    """Of addresses and values; without its type the checksum would not be one."""
    places = [*range(16, 28), *range(31, 41), *range(44, 48), *range(51, len(SUMMED))]
    for at in places:
        for bit in range(8):
            changed = SUMMED[:at] + bytes([SUMMED[at] ^ 1 << bit]) + SUMMED[at + 1 :]
            assert why(changed) == "a wrong checksum"


# ------------------------------------------------------------------------------------------------- sent


def without_sum(header: ProxyHeader | None) -> tuple[TLV, ...]:
    assert header is not None
    return tuple(found for found in header.tlvs if found[0] != CRC32C)


def plain(host: object) -> str:
    return str(getattr(host, "ipv4_mapped", None) or host)


@given(
    st.sampled_from([1, 2]),
    st.one_of(HOSTS_4, HOSTS_6),
    st.one_of(HOSTS_4, HOSTS_6),
    PORTS,
    PORTS,
    TLVS,
)
def test_what_is_sent_is_understood(
    version: int, client: object, destination: object, port: int, other_port: int, tlvs: tuple[TLV, ...]
) -> None:
    """Addresses of two families too."""
    octets = encode(version, (str(client), port), (str(destination), other_port), tlvs)
    found = parse(octets + b"EHLO")
    assert found is not None
    assert (found.client, found.destination) == ((plain(client), port), (plain(destination), other_port))
    assert (found.version, found.local, found.length) == (version, False, len(octets))
    assert without_sum(found) == (tlvs if version == 2 else ())
    assert {kind for kind, _ in found.tlvs} >= ({CRC32C} if version == 2 else set())


WRITTEN: dict[str, tuple[bytes, tuple[Any, ...]]] = {
    "IPv4": (b"PROXY TCP4 192.0.2.1 198.51.100.7 4321 25\r\n", (CLIENT, DESTINATION)),
    "IPv6": (b"PROXY TCP6 2001:db8::1 2001:db8::7 4321 25\r\n", (CLIENT_6, DESTINATION_6)),
    "from IPv4 to IPv6": (b"PROXY TCP6 ::ffff:192.0.2.1 2001:db8::7 4321 25\r\n", (CLIENT, DESTINATION_6)),
    "from IPv6 to IPv4": (b"PROXY TCP6 2001:db8::1 ::ffff:198.51.100.7 4321 25\r\n", (CLIENT_6, DESTINATION)),
    "of a socket for both": (
        b"PROXY TCP4 192.0.2.1 198.51.100.7 4321 25\r\n",
        (("::ffff:192.0.2.1", 4321), ("::ffff:198.51.100.7", 25)),
    ),
    "of one link": (b"PROXY TCP6 fe80::1 fe80::2 4321 25\r\n", (("fe80::1%eth0", 4321), ("fe80::2%eth0", 25))),
    "of our own": (b"PROXY UNKNOWN\r\n", (None, None)),
    "of our own, wherever to": (b"PROXY UNKNOWN\r\n", (None, DESTINATION)),
    "with TLVs": (b"PROXY TCP4 192.0.2.1 198.51.100.7 4321 25\r\n", (CLIENT, DESTINATION, [(ALPN, b"x")])),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_version_1_as_it_is_written(name: str) -> None:
    octets, said = WRITTEN[name]
    assert encode(1, *said) == octets


def test_version_2_as_it_is_written() -> None:
    octets = encode(2, CLIENT, DESTINATION, [(AUTHORITY, b"mx.example")])
    behind = BLOCK + tlv(CRC32C, bytes(4)) + tlv(AUTHORITY, b"mx.example")
    checksum = crc_by_division(binary(behind)).to_bytes(4)
    assert octets == binary(behind).replace(tlv(CRC32C, bytes(4)), tlv(CRC32C, checksum))
    assert encode(2, None, None)[:19] == binary(tlv(CRC32C, bytes(4)), 0, LOCAL)[:19]
    assert parse(encode(2, None, DESTINATION)) == ProxyHeader(
        2, True, None, None, ((3, encode(2, None, None)[-4:]),), 23
    )


def test_what_does_not_fit_is_left_out() -> None:
    """A server takes no more at once; what matters less gives way, what fits behind it does not."""
    room = SENT - 16 - 36 - 7
    long, short = (AUTHORITY, bytes(room - 10)), (UNIQUE_ID, b"1234")
    assert without_sum(parse(encode(2, CLIENT_6, DESTINATION_6, [long, short]))) == (long, short)
    assert len(encode(2, CLIENT_6, DESTINATION_6, [long, short])) == SENT
    longer = (AUTHORITY, bytes(room - 2))
    assert without_sum(parse(encode(2, CLIENT_6, DESTINATION_6, [longer, short]))) == (short,)
    assert without_sum(parse(encode(2, CLIENT_6, DESTINATION_6, [(0xEA, bytes(70000)), short]))) == (short,)


def test_what_may_come_once_comes_once() -> None:
    """The first counts, even where it does not fit; a checksum is made anew."""
    first, second, own = (AUTHORITY, b"first"), (AUTHORITY, b"second"), (0xEA, b"x")
    sent = parse(encode(2, CLIENT, DESTINATION, [(CRC32C, b"1234"), first, own, second, own]))
    assert without_sum(sent) == (first, own, own)
    assert without_sum(parse(encode(2, CLIENT, DESTINATION, [(AUTHORITY, bytes(SENT)), second]))) == ()


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ((3, CLIENT, DESTINATION), "version 3"),
        ((0, None, None), "version 0"),
        ((1, CLIENT, None), "destination"),
        ((2, ("mx.example", 25), DESTINATION), "mx.example"),
        ((1, CLIENT, ("", 25)), "''"),
        ((1, ("192.0.2.1", 65536), DESTINATION), "port"),
        ((2, CLIENT, ("192.0.2.1", -1)), "port"),
    ],
)
def test_what_can_not_be_sent(said: tuple[Any, ...], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        encode(*said)


def test_what_is_passed_on() -> None:
    octets, _ = GOOD["v2 with all TLVs"]
    found = parse(octets)
    assert found is not None
    kept = ((ALPN, b"smtp"), (AUTHORITY, b"mx.example"), (UNIQUE_ID, bytes(128)), (SSL, CERTIFICATE))
    assert passed_on(found) == kept
    assert passed_on(found._replace(local=True)) == ()
    summed = parse(SUMMED)
    assert summed is not None
    assert passed_on(summed) == ((AUTHORITY, b"mx.example"),)


def test_tls_of_our_own() -> None:
    """Flag: it is TLS; `verify` other than 0, as no certificate was verified."""
    value = b"\x01\0\0\0\x01" + tlv(SSL_VERSION, b"TLSv1.3") + tlv(SSL_CIPHER, b"TLS_AES_256_GCM_SHA384")
    assert ssl_tlv("TLSv1.3", "TLS_AES_256_GCM_SHA384") == (SSL, value)
    assert tls_tlvs("TLSv1.3", "TLS_AES_256_GCM_SHA384") == ((SSL, value),)
    named = tls_tlvs("TLSv1.3", "TLS_AES_256_GCM_SHA384", "mx.example", "smtp")
    assert named == ((SSL, value), (AUTHORITY, b"mx.example"), (ALPN, b"smtp"))
    assert without_sum(parse(encode(2, CLIENT_6, DESTINATION_6, named))) == named


# ------------------------------------------------------------------------------------------------- shown


def test_what_the_record_shows() -> None:
    inner = [
        tlv(SSL_VERSION, b"TLSv1.3"),
        tlv(SSL_CN, "Jürgen\n".encode()),
        tlv(SSL_CIPHER, b"TLS_AES_256_GCM_SHA384"),
        tlv(SSL_SIG_ALG, b"RSA-SHA256"),
        tlv(SSL_KEY_ALG, b"RSA2048"),
        tlv(0x26, b"x25519"),
        tlv(0x27, b"rsa_pss_rsae_sha256"),
        tlv(SSL_CLIENT_CERT, b"DER"),
        tlv(0x29, b"\xff"),
    ]
    found = parse(
        binary(
            BLOCK
            + tlv(NOOP, b"x")
            + tlv(ALPN, b"smtp")
            + tlv(AUTHORITY, b"mx.example")
            + tlv(UNIQUE_ID, b"\0\\\x1b1")
            + tlv(SSL, ssl_value(*inner, client=11, verify=18))
            + tlv(NETNS, b"blue")
            + tlv(0xEA, b"\x01a")
            + tlv(0xEA)
        )
    )
    assert found is not None
    assert shown(found) == {
        "version": 2,
        "client": "192.0.2.1:4321",
        "destination": "198.51.100.7:25",
        "alpn": "smtp",
        "authority": "mx.example",
        "unique-id": r"\x00\\\x1b1",
        "ssl": {
            "client": ["tls", "certificate", "bit-3"],
            "verify": 18,
            "version": "TLSv1.3",
            "cn": r"Jürgen\n",
            "cipher": "TLS_AES_256_GCM_SHA384",
            "sig-alg": "RSA-SHA256",
            "key-alg": "RSA2048",
            "group": "x25519",
            "sig-scheme": "rsa_pss_rsae_sha256",
            "certificate-sha256": sha256(b"DER").hexdigest(),
            "others": ["0x29 ff"],
        },
        "netns": "blue",
        "others": ["0xea 0161", "0xea "],
    }
    assert shown(line(CLIENT_6, DESTINATION_6)) == {
        "version": 1,
        "client": "[2001:db8::1]:4321",
        "destination": "[2001:db8::7]:25",
    }
    assert shown(line(None)) == {"version": 1, "local": True}
    assert shown(header(None, None, (ALPN, b"a"), (ALPN, b"b"))) == {
        "version": 2,
        "local": True,
        "alpn": "a",
        "others": ["0x01 62"],
    }


def test_no_more_is_shown_than_anybody_reads() -> None:
    inner = ssl_value(*(tlv(0x40 + number) for number in range(20)))
    tlvs = [(AUTHORITY, b"a" * 300), (UNIQUE_ID, b"a" * SHOWN), (0xEA, bytes(200)), (SSL, inner)]
    found = shown(header(CLIENT, DESTINATION, *tlvs, *[(0xE0, b"x")] * 20, (CRC32C, bytes(4))))
    assert found["authority"] == "a" * (SHOWN - 1) + "…"
    assert found["unique-id"] == "a" * SHOWN
    assert found["others"] == ["0xea " + "0" * (SHOWN - 1) + "…", *["0xe0 78"] * 12]
    assert found["more"] == 8
    assert len(found["ssl"]["others"]) == 16
    assert found["ssl"]["more"] == 4


def texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for one in value.values() for text in texts(one)]
    if isinstance(value, list):
        return [text for one in value for text in texts(one)]
    return [value] if isinstance(value, str) else []


@given(st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=400)), max_size=40))
def test_whatever_a_header_holds_can_be_shown(tlvs: list[TLV]) -> None:
    """Also one that was not parsed."""
    found = shown(header(CLIENT, DESTINATION, *tlvs))
    assert all(text.isprintable() and len(text) <= SHOWN + 5 for text in texts(found))
    assert len(texts(found)) <= 40
    json.dumps(found)


@pytest.mark.parametrize("value", [b"", b"\x01", b"\x01\0\0\0\0\x21", ssl_value(b"\x21\0\x09x")])
def test_tls_that_nobody_parsed(value: bytes) -> None:
    found = shown(header(CLIENT, DESTINATION, (SSL, value)))["ssl"]
    assert found == {"client": ["tls"] * bool(value), "verify": 0} or found == value.hex()
