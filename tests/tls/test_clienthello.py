"""ClientHellos: real ones and made ones, in any cut; what is none; JA4."""

import ssl
import struct
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from smtpproxy.tls.clienthello import MAX_HELLO, MAX_RECORDS, Hello, HelloReader, NotAHello, read_hello

CIPHERS = (0x1301, 0x1302, 0xC02B)
SNI, SIGNATURES, ALPN, VERSIONS = 0, 13, 16, 43


def vector(size: int, octets: bytes) -> bytes:
    """Octets with their count before them."""
    return len(octets).to_bytes(size) + octets


def numbers(size: int, values: Iterable[int]) -> bytes:
    return vector(size, b"".join(struct.pack("!H", value) for value in values))


def server_name(name: bytes, kind: int = 0) -> bytes:
    return vector(2, bytes([kind]) + vector(2, name))


def protocols(*names: bytes) -> bytes:
    return vector(2, b"".join(vector(1, name) for name in names))


def body(
    extensions: Sequence[tuple[int, bytes]] | None = (),
    *,
    ciphers: Iterable[int] = CIPHERS,
    version: int = 0x0303,
    session: bytes = b"",
    compression: bytes = b"\0",
) -> bytes:
    """The message without its header; None: no list of extensions at all."""
    octets = struct.pack("!H", version) + bytes(32) + vector(1, session) + numbers(2, ciphers) + vector(1, compression)
    if extensions is None:
        return octets
    return octets + vector(2, b"".join(struct.pack("!H", kind) + vector(2, data) for kind, data in extensions))


def records(message: bytes, size: int = 1 << 14, version: int = 0x0301) -> bytes:
    """A handshake message in records of at most `size` octets."""
    parts = [message[at : at + size] for at in range(0, len(message), size)]
    return b"".join(struct.pack("!BH", 22, version) + vector(2, part) for part in parts)


def wire(message: bytes, size: int = 1 << 14) -> bytes:
    return records(b"\1" + vector(3, message), size)


def openssl(name: str | None = "mx.example", alpn: Sequence[str] = (), version: ssl.TLSVersion | None = None) -> bytes:
    """What OpenSSL begins a handshake with."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    if alpn:
        context.set_alpn_protocols(list(alpn))
    if version is not None:
        context.maximum_version = version
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


FULL = wire(
    body(
        [
            (0x1A1A, b""),
            (SNI, server_name(b"MX.Example")),
            (SIGNATURES, numbers(2, (0x0403, 0x0804))),
            (ALPN, protocols(b"smtp", b"h2")),
            (VERSIONS, numbers(1, (0x2A2A, 0x0304, 0x0303))),
            (0xFF01, b"\0"),
        ],
        ciphers=(0x3A3A, *CIPHERS),
        session=bytes(32),
    )
)


def outcome(octets: bytes) -> Hello | str | None:
    try:
        return read_hello(octets)
    except NotAHello as error:
        return error.why


def test_everything_in_it_is_read() -> None:
    assert read_hello(FULL) == Hello(
        version=0x0303,
        versions=(0x0304, 0x0303),
        ciphers=(0x3A3A, *CIPHERS),
        extensions=(0x1A1A, SNI, SIGNATURES, ALPN, VERSIONS, 0xFF01),
        sni="mx.example",
        alpn=(b"smtp", b"h2"),
        has_alpn=True,
        signatures=(0x0403, 0x0804),
    )


def test_without_extensions() -> None:
    """TLS 1.0 clients have none (RFC 5246 §7.4.1.2)."""
    for extensions in (None, ()):
        hello = read_hello(wire(body(extensions, version=0x0301)))
        assert hello == Hello(0x0301, (), CIPHERS, (), "", (), False, ())
        assert hello is not None
        assert hello.ja4.startswith("t10i030000_")
        assert hello.ja4.endswith("_000000000000")


@pytest.mark.parametrize(
    ("arguments", "starts"),
    [
        ({"alpn": ("smtp",)}, "t13d"),
        ({"name": None}, "t13i"),
        ({"version": ssl.TLSVersion.TLSv1_2}, "t12d"),
    ],
)
def test_a_real_client(arguments: dict[str, Any], starts: str) -> None:
    octets = openssl(**arguments)
    hello = read_hello(octets)
    assert hello is not None
    assert hello.sni == ("" if arguments.get("name", "") is None else "mx.example")
    assert hello.alpn == ((b"smtp",) if "alpn" in arguments else ())
    assert hello.has_alpn is ("alpn" in arguments)
    assert hello.ja4.startswith(starts)
    assert hello.ja4[8:10] == ("sp" if "alpn" in arguments else "00")
    assert SIGNATURES in hello.extensions
    assert 0x0403 in hello.signatures
    assert ((VERSIONS in hello.extensions), max(hello.versions, default=0)) in ((True, 0x0304), (False, 0))


def test_two_hellos_of_one_client_have_one_ja4() -> None:
    first, second = openssl("one.example"), openssl("two.example")
    assert first != second
    one, two = read_hello(first), read_hello(second)
    assert one is not None
    assert two is not None
    assert one.ja4 == two.ja4


# ------------------------------------------------------------------------------------------------- cuts


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 40, 100, 1 << 14])
def test_records_may_be_cut_anywhere(size: int) -> None:
    message = body([(SNI, server_name(b"mx.example")), (ALPN, protocols(b"smtp"))])
    assert read_hello(wire(message, size)) == read_hello(wire(message))


def settles(octets: bytes) -> int:
    """How many octets it takes to know the outcome. Before it is None, and from there on it stays as it is."""
    outcomes = [outcome(octets[:length]) for length in range(len(octets) + 1)]
    first = next((length for length, known in enumerate(outcomes) if known is not None), len(outcomes))
    assert outcomes[first:] == outcomes[-1:] * (len(outcomes) - first)
    return first


@given(st.binary(max_size=40), st.integers(0, len(FULL)), st.lists(st.integers(1, 60), max_size=10))
def test_the_reader_comes_to_the_same(noise: bytes, at: int, sizes: list[int]) -> None:
    """Whatever it is, and in whatever pieces: the same hello, or the same reason."""
    octets = FULL[:at] + noise + FULL[at:]

    def outcome(pieces: Iterable[bytes]) -> Hello | str | None:
        reader = HelloReader()
        try:
            for piece in pieces:
                hello = reader.feed(piece)
                if hello is not None:
                    return hello
        except NotAHello as error:
            return error.why
        return None

    def pieces() -> Iterable[bytes]:
        begin = 0
        for size in [*sizes, len(octets)]:
            yield octets[begin : begin + size]
            begin += size

    whole = outcome([octets])
    assert outcome(pieces()) == whole
    assert outcome(octets[index : index + 1] for index in range(len(octets))) == whole


def test_segments_may_be_cut_anywhere() -> None:
    """A hello is there with its last octet, whatever stands behind it."""
    for octets in (FULL, wire(body(), 3)):
        assert settles(octets + b"\x16\x03\x01RSET\r\n") == len(octets)


@given(
    st.integers(0, len(FULL) - 1),
    st.binary(max_size=8),
    st.integers(1, 300),
)
@example(5, b"\x02", 20)  # a ServerHello
@example(0, b"\x80\x2e\x01", 20)
def test_the_cut_never_changes_the_outcome(at: int, instead: bytes, size: int) -> None:
    """I6, for octets that are nearly a ClientHello: refused with one octet and one reason, however they come."""
    changed = FULL[:at] + instead + FULL[at + len(instead) :]
    settles(changed)
    settles(records(changed[5:], size))


@given(st.binary(max_size=600))
def test_any_octets_at_all(octets: bytes) -> None:
    """Nothing but NotAHello is raised, whatever the octets."""
    outcome(octets)
    outcome(b"\x16\x03\x01" + octets)
    outcome(records(b"\1" + vector(3, octets)))
    outcome(wire(body(None)[:-2] + octets))


@given(st.lists(st.tuples(st.sampled_from((SNI, SIGNATURES, ALPN, VERSIONS, 99)), st.binary(max_size=40)), max_size=4))
def test_any_extensions(extensions: list[tuple[int, bytes]]) -> None:
    found = outcome(wire(body(extensions)))
    assert found is not None
    if isinstance(found, Hello):
        assert found.extensions == tuple(kind for kind, _ in extensions)
        assert len(found.ja4) == 36


# ------------------------------------------------------------------------------------------------- what is none

NONE: dict[str, tuple[bytes, int, str]] = {  # octets · how many of them decide · why
    "SMTP": (b"EHLO client.example\r\n", 1, "clear text instead of a ClientHello"),
    "HTTP": (b"POST / HTTP/1.1\r\n", 1, "clear text instead of a ClientHello"),
    "a line end": (b"\r\n", 1, "clear text instead of a ClientHello"),
    "SSL 2.0": (b"\x80\x2e\x01\x03\x01\x00\x15", 1, "SSL 2.0 or no TLS at all instead of a ClientHello"),
    "NUL": (b"\0", 1, "octet 0x00 instead of a ClientHello"),
    "an alert": (b"\x15\x03\x01\0\x02\x01\0", 1, "a TLS alert instead of a ClientHello"),
    "data": (b"\x17\x03\x03\0\x02ab", 1, "TLS application data instead of a ClientHello"),
    "DTLS": (b"\x16\xfe\xff\0\0", 2, "a record of TLS version 254"),
    "an empty record": (b"\x16\x03\x01\0\0", 5, "an empty TLS record"),
    "a large record": (b"\x16\x03\x01\x40\x01\x01", 5, "a TLS record that is too large"),
    "a larger record": (b"\x16\x03\x01\x41\x00\x01", 4, "a TLS record that is too large"),
    "a ServerHello": (b"\x16\x03\x01\0\x30\x02", 6, "handshake message 2 instead of a ClientHello"),
    "16 MiB": (b"\x16\x03\x01\x40\0\x01\xff\xff\xff", 7, f"a ClientHello of more than {MAX_HELLO} octets"),
    "32 KiB": (b"\x16\x03\x01\x40\0\x01\0\x7f\xf8", 9, f"a ClientHello of more than {MAX_HELLO} octets"),
    "another record within": (
        FULL[:3] + vector(2, FULL[5:20]) + b"\x15\x03\x01",
        21,
        "a TLS alert instead of the rest of a ClientHello",
    ),
    "clear text within": (
        FULL[:3] + vector(2, FULL[5:20]) + b"RSET\r\n",
        21,
        "clear text instead of the rest of a ClientHello",
    ),
}


def test_the_reason_is_the_text_of_the_exception() -> None:
    with pytest.raises(NotAHello, match="clear text instead of a ClientHello") as caught:
        read_hello(b"EHLO")
    assert caught.value.why == str(caught.value)


@pytest.mark.parametrize("name", NONE)
def test_it_is_refused_with_the_first_octet_that_does_not_fit(name: str) -> None:
    octets, deciding, why = NONE[name]
    assert outcome(octets) == why
    assert settles(octets + bytes(10)) == deciding


def bad(extension: int, data: bytes) -> bytes:
    return body([(extension, data)])


MALFORMED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "a ClientHello that is cut off"),
    "cut in the random": (body()[:20], "a ClientHello that is cut off"),
    "version 2": (body(version=0x0002), "a ClientHello of version 0x0002"),
    "a long session ID": (body(session=bytes(33)), "a ClientHello with a session ID that is too long"),
    "no cipher": (body(ciphers=()), "a ClientHello with an empty list or half a number"),
    "half a cipher": (
        body(None).replace(numbers(2, CIPHERS), vector(2, b"\x13\x01\x13")),
        "a ClientHello with an empty list or half a number",
    ),
    "no compression": (body(compression=b""), "a ClientHello without a compression method"),
    "octets behind it": (body() + b"\0", "a ClientHello with octets behind its end"),
    "an extension cut off": (body(None) + vector(2, b"\0\x10\0\x09\0"), "a list of extensions that is cut off"),
    "one twice": (body([(99, b""), (99, b"")]), "a ClientHello with extension 99 twice"),
    "SNI empty": (bad(SNI, b""), "an extension server_name that is cut off"),
    "SNI without a name": (bad(SNI, vector(2, b"")), "an extension server_name that is cut off"),
    "SNI with two names": (
        bad(SNI, vector(2, server_name(b"a.example")[2:] + server_name(b"b.example")[2:])),
        "an extension server_name with octets behind its end",
    ),
    "SNI and more": (bad(SNI, server_name(b"a.example") + b"x"), "an extension server_name with octets behind its end"),
    "ALPN without a name": (bad(ALPN, vector(2, b"")), "an extension ALPN that is cut off"),
    "ALPN with an empty name": (bad(ALPN, protocols(b"h2", b"")), "an extension ALPN with an empty name"),
    "ALPN cut off": (bad(ALPN, vector(2, b"\x05smtp")), "an extension ALPN that is cut off"),
    "ALPN and more": (bad(ALPN, protocols(b"smtp") + b"x"), "an extension ALPN with octets behind its end"),
    "no versions": (bad(VERSIONS, b"\0"), "an extension supported_versions with an empty list or half a number"),
    "half a version": (
        bad(VERSIONS, b"\x01\x03"),
        "an extension supported_versions with an empty list or half a number",
    ),
    "versions and more": (
        bad(VERSIONS, b"\x02\x03\x04x"),
        "an extension supported_versions with octets behind its end",
    ),
    "signatures cut off": (bad(SIGNATURES, b"\0\x04\x04\x03"), "an extension signature_algorithms that is cut off"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_hello(name: str) -> None:
    message, why = MALFORMED[name]
    assert outcome(wire(message)) == why
    assert settles(wire(message, 30)) == len(wire(message, 30))


@pytest.mark.parametrize(
    ("name", "read"),
    [
        (b"mx.example", "mx.example"),
        (b"MX.EXAMPLE", "mx.example"),
        (b"localhost", "localhost"),
        (b"xn--mnchen-3ya.example", "xn--mnchen-3ya.example"),
        (b"_dane.mx_1.example", "_dane.mx_1.example"),
        (b"1.example", "1.example"),
        (b"a" * 63 + b".example", "a" * 63 + ".example"),
        (b"", ""),
        (b"a" * 64 + b".example", ""),
        (b"a." * 127, ""),
        (b"a." * 126 + b"b", "a." * 126 + "b"),
        (b"a." * 127 + b"b", ""),
        (b"mx.example.", ""),
        (b"mx..example", ""),
        (b".example", ""),
        (b"-mx.example", ""),
        (b"mx.example\n", ""),
        (b"mx.example\0.evil.example", ""),
        (b"mx example", ""),
        (b"*.example", ""),
        (b"192.0.2.1", ""),
        (b"[192.0.2.1]", ""),
        (b"2001:db8::1", ""),
        ("münchen.example".encode(), ""),
        ("mx.exampl\u212a".encode(), ""),  # KELVIN SIGN, whose small letter is k
        (b"\xff\xfe", ""),
        (b"../../etc/passwd", ""),
    ],
)
def test_the_host_name(name: bytes, read: str) -> None:
    """It is used to choose files and certificates: a host name in ASCII, or none."""
    hello = read_hello(wire(body([(SNI, server_name(name))])))
    assert hello is not None
    assert hello.sni == read
    assert hello.ja4[3] == "d", "the extension is there"


def test_a_name_of_another_type_is_no_host_name() -> None:
    hello = read_hello(wire(body([(SNI, server_name(b"mx.example", kind=1))])))
    assert hello is not None
    assert hello.sni == ""


# ------------------------------------------------------------------------------------------------- bounds


def test_the_largest_hello() -> None:
    rest = 4 + len(body([(21, b"")])) + 2 * 5  # its header and those of two records
    octets = wire(body([(21, bytes(MAX_HELLO - rest))]))
    assert len(octets) == MAX_HELLO
    assert read_hello(octets) is not None
    assert read_hello(octets[:-1]) is None
    longer = wire(body([(21, bytes(MAX_HELLO))]))
    assert outcome(longer) == outcome(longer[:9]) == f"a ClientHello of more than {MAX_HELLO} octets"


def test_record_headers_count() -> None:
    """What is waited for is bounded, also where it is mostly headers."""
    octets = wire(body([(21, bytes(30000))]), 40)
    assert read_hello(octets[:MAX_HELLO]) is None
    assert outcome(octets) == outcome(octets[: MAX_HELLO + 1]) == f"no end of the ClientHello within {MAX_HELLO} octets"


def test_records_are_bounded() -> None:
    octets = wire(body([(21, bytes(MAX_RECORDS))]), 1)
    assert read_hello(octets[: MAX_RECORDS * 6]) is None
    assert outcome(octets[: MAX_RECORDS * 6 + 1]) == f"a ClientHello in more than {MAX_RECORDS} records"


def test_each_octet_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Octet by octet it costs no more than at once: read anew each time, one client would hold up all for a minute."""
    headers = []

    def counted(header: bytes, *, first: bool) -> None:
        headers.append(header)

    monkeypatch.setattr("smtpproxy.tls.clienthello._check_record", counted)
    message = b"\1" + vector(3, body([(0xFFFE, bytes(12_000))]))
    octets = records(message[:2000], 1) + records(message[2000:])
    reader = HelloReader()
    for octet in octets[:-1]:
        assert reader.feed(bytes([octet])) is None
    assert reader.feed(octets[-1:]) == read_hello(octets)
    assert len(headers) < 8 * 2002
    assert bytes(reader.octets) == octets


# ------------------------------------------------------------------------------------------------- JA4


# The example of FoxIO's description: its lists, and its three parts.
EXAMPLE_CIPHERS = "1301,1302,1303,c02b,c02f,c02c,c030,cca9,cca8,c013,c014,009c,009d,002f,0035"
EXAMPLE_EXTENSIONS = "001b,0000,0033,0010,4469,0017,002d,000d,0005,0023,0012,002b,ff01,000b,000a,0015"
EXAMPLE_SIGNATURES = "0403,0804,0401,0503,0805,0501,0806,0601"


def codes(text: str) -> tuple[int, ...]:
    return tuple(int(code, 16) for code in text.split(","))


def example_hello(**changes: Any) -> Hello:
    hello = Hello(
        0x0303,
        (0x0304, 0x0303),
        codes(EXAMPLE_CIPHERS),
        codes(EXAMPLE_EXTENSIONS),
        "mx.example",
        (b"h2", b"http/1.1"),
        True,
        codes(EXAMPLE_SIGNATURES),
    )
    return hello._replace(**changes)


def test_ja4_of_the_published_example() -> None:
    assert example_hello().ja4 == "t13d1516h2_8daaf6152771_e5627efa2ab1"
    assert example_hello(signatures=()).ja4 == "t13d1516h2_8daaf6152771_6d807ffa2a79"


def test_ja4_does_not_see_grease_nor_order() -> None:
    hello = example_hello()
    greased = hello._replace(
        ciphers=(0x0A0A, *reversed(hello.ciphers)),
        extensions=(0xFAFA, *reversed(hello.extensions), 0x3A3A),
        signatures=(0x1A1A, *hello.signatures),
    )
    assert greased.ja4 == hello.ja4
    other = hello._replace(ciphers=(0x0A1A, 0x0A0B, *hello.ciphers))  # neither is one of GREASE's
    assert other.ja4.startswith("t13d1716h2_")


@pytest.mark.parametrize(
    ("changes", "start"),
    [
        ({"versions": ()}, "t12d1516h2_"),
        ({"versions": (), "version": 0x0302}, "t11d1516h2_"),
        ({"versions": (), "version": 0x0301}, "t10d1516h2_"),
        ({"versions": (), "version": 0x0300}, "ts3d1516h2_"),
        ({"versions": (0x0399,)}, "t00d1516h2_"),
        ({"versions": (0x0301, 0x0303)}, "t12d1516h2_"),
        ({"extensions": (0x10,)}, "t13i1501h2_"),
        ({"ciphers": tuple(range(1000, 1200))}, "t13d9916h2_"),
        ({"ciphers": ()}, "t13d0016h2_000000000000_"),
        ({"alpn": ()}, "t13d151600_"),
        ({"alpn": (b"smtp",)}, "t13d1516sp_"),
        ({"alpn": (b"h",)}, "t13d1516hh_"),
        ({"alpn": (b"\xab",)}, "t13d1516ab_"),
        ({"alpn": (b"\xab\xcd",)}, "t13d1516ad_"),
        ({"alpn": (b"0\xab",)}, "t13d15163b_"),
        ({"alpn": (b"01\xab\xcd",)}, "t13d15163d_"),
        ({"alpn": (b"0\xab\xcd1",)}, "t13d151601_"),
    ],
)
def test_the_parts_of_ja4(changes: dict[str, Any], start: str) -> None:
    assert example_hello(**changes).ja4.startswith(start)


def test_ja4_without_other_extensions() -> None:
    assert example_hello(extensions=(SNI, ALPN)).ja4.endswith("_000000000000")
