"""A TLS connection without I/O: every cut, every end (attacks.md B52-B55), and what is bounded."""

import ssl
from collections.abc import Iterator

import pytest

from smtpproxy.tls.channel import HANDSHAKE, RECORD, Channel, HandshakeError
from smtpproxy.tls.contexts import for_client, for_server
from smtpproxy.tls.verdict import FAILED
from tests.tls.maker import made, root

NAME = "mx.example"
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
versions = pytest.mark.parametrize("version", VERSIONS)
GOOD = made(NAME, root(), names=(NAME,))
HELLO_REQUEST = bytes(4)  # RFC 5246 §7.4.1.1: ignored while a handshake is under way, so it can be sent for ever


def _pair(version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> tuple[Channel, Channel]:
    """A client and a server before their handshake."""
    server = for_client(GOOD.pem, GOOD.key_pem)
    server.maximum_version = version
    return Channel(for_server(verify=False), server_side=False, hostname=NAME), Channel(server, server_side=True)


def _pieces(octets: bytes, size: int) -> Iterator[bytes]:
    return (octets[at : at + size] for at in range(0, len(octets), size))


def _shake(client: Channel, server: Channel, size: int = 1 << 20) -> None:
    """The handshake, in pieces; whatever comes behind it is read."""
    done = {client: client.handshake(), server: False}
    for one, other in ((client, server), (server, client)) * 4:
        for piece in _pieces(one.outgoing(), size):
            if done[other]:
                assert other.receive(piece) == b""
            else:
                done[other] = other.handshake(piece)
    assert all(done.values())


def _connected(version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> tuple[Channel, Channel]:
    pair = _pair(version)
    _shake(*pair)
    return pair


# ----------------------------------------------------------------------------------------------------- the handshake


@versions
@pytest.mark.parametrize("size", [1, 7, 1 << 20])
def test_a_handshake_cut_anywhere(version: ssl.TLSVersion, size: int) -> None:
    client, server = _pair(version)
    _shake(client, server, size)
    assert client.facts[0] == server.facts[0] == version.name.replace("_", ".")
    assert client.facts[2:] == ("smtp", False)
    assert "GCM" in server.facts[1]


def test_what_the_peer_showed() -> None:
    above = made("Between", root(), ca=True)
    leaf = made(NAME, above, names=(NAME,))
    client = Channel(for_server(verify=False), server_side=False, hostname=NAME)
    _shake(client, server := Channel(for_client(leaf.pem + above.pem, leaf.key_pem), server_side=True))
    assert client.leaf() == leaf.der
    assert client.chain() == [leaf.der, above.der]
    assert server.leaf() == b""
    assert server.chain() == []


def test_octets_behind_the_handshake_are_not_lost() -> None:
    """The client's first content comes with its last octets of handshake."""
    client, server = _pair()
    client.handshake()
    server.handshake(client.outgoing())
    client.handshake(server.outgoing())
    client.send(b"EHLO me\r\n")
    assert server.handshake(client.outgoing())
    assert server.waiting
    assert server.receive(b"") == b"EHLO me\r\n"
    assert not server.waiting


@pytest.mark.parametrize(
    ("octets", "why"),
    [
        (b"220 mx.example ESMTP\r\n", "clear text, and no TLS"),
        (b"GET / HTTP/1.1\r\n\r\n", "clear text, and no TLS"),
        (b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10" + bytes(37), "unknown protocol"),
        (bytes(100), "wrong version number"),
        (b"\x15\x03\x01\x00\x02\x02\x28", "handshake failure|unexpected|alert"),
        (b"\x16\x03\x01\xff\xff" + bytes(100), "length|too"),
    ],
)
def test_what_is_no_handshake(octets: bytes, why: str) -> None:
    for channel in _pair():
        channel.handshake()
        with pytest.raises(HandshakeError) as caught:
            channel.handshake(octets)
        assert caught.value.result == FAILED
        assert caught.value.why
        assert caught.value.refused is None
    with pytest.raises(HandshakeError, match=why):
        _pair()[1].handshake(octets)


def test_the_alert_is_there_to_be_sent() -> None:
    client, _ = _pair()
    client.handshake()
    client.outgoing()
    with pytest.raises(HandshakeError):
        client.handshake(b"\x16\x03\x03\x00\x04\x63\x00\x00\x00")  # a message that has no name
    assert client.pending
    assert client.outgoing()[:1] == b"\x15"


def test_a_certificate_that_is_refused_is_told_apart() -> None:
    bad = made(NAME, names=("other.example",))
    context = for_server(verify=False)
    context.load_verify_locations(cadata=bad.pem.decode())
    context.verify_mode = ssl.CERT_REQUIRED
    context.check_hostname = True
    client = Channel(context, server_side=False, hostname=NAME)
    with pytest.raises(HandshakeError, match="Hostname mismatch") as caught:
        _shake(client, Channel(for_client(bad.pem, bad.key_pem), server_side=True))
    assert isinstance(caught.value.refused, ssl.SSLCertVerificationError)


def test_a_handshake_without_end() -> None:
    """OpenSSL reads HelloRequests for ever; 128 KiB of them are enough."""
    record = b"\x16\x03\x03" + (16_384).to_bytes(2) + HELLO_REQUEST * 4096
    client, _ = _pair()
    client.handshake()
    fed = 0
    while fed + len(record) <= HANDSHAKE:
        assert not client.handshake(record)
        fed += len(record)
    with pytest.raises(HandshakeError, match="131072 octets"):
        client.handshake(record)


# -------------------------------------------------------------------------------------------------------- the content


@versions
@pytest.mark.parametrize("size", [1, 100, 17_000, 1 << 20])
def test_content_cut_anywhere(version: ssl.TLSVersion, size: int) -> None:
    client, server = _connected(version)
    body = bytes(range(256)) * (300 if size > 1 else 20)
    client.send(body)
    assert b"".join(server.receive(piece) for piece in _pieces(client.outgoing(), size)) == body
    assert not server.finished


def test_much_at_once_is_read_at_once() -> None:
    """Nothing may stay behind that no octet from the network would bring forth."""
    client, server = _connected()
    body = b"x" * (RECORD * 20 + 5)
    for part in (bytearray(body), memoryview(body), body):
        client.send(part)
    client.send(b"")
    assert server.receive(client.outgoing()) == body * 3


@versions
def test_close_notify_is_the_end_for_good(version: ssl.TLSVersion) -> None:
    """CVE-2026-45185: nothing behind it is read, neither in clear nor under TLS."""
    client, server = _connected(version)
    client.send(b"DATA")
    first = client.outgoing()
    assert server.receive(first + client.close()) == b"DATA"
    assert server.finished
    assert not server.truncated
    for octets in (b"MAIL FROM:<>\r\n", first, b"", bytes(100)):
        assert server.receive(octets) == b""
    assert not server.waiting
    server.ended()
    assert not server.truncated


@versions
def test_clear_octets_in_the_same_piece_as_close_notify(version: ssl.TLSVersion) -> None:
    client, server = _connected(version)
    assert server.receive(client.close() + b"MAIL FROM:<>\r\n") == b""
    assert server.finished
    assert not server.waiting
    assert server.receive(b"") == b""


def test_an_end_without_it_is_known() -> None:
    client, server = _connected()
    client.send(b"x")
    assert server.receive(client.outgoing()[:-1]) == b""
    server.ended()
    assert (server.finished, server.truncated) == (True, True)
    assert server.receive(b"x") == b""


@versions
@pytest.mark.parametrize("at", [0, 3, 5, -1])
def test_what_was_changed_on_its_way_is_refused(version: ssl.TLSVersion, at: int) -> None:
    client, server = _connected(version)
    client.send(b"RCPT TO:<b@y.example>\r\n")
    wire = bytearray(client.outgoing())
    wire[at] ^= 0xFF
    with pytest.raises(ssl.SSLError):
        server.receive(bytes(wire) + bytes(20_000))


@versions
def test_clear_octets_in_the_middle_are_refused(version: ssl.TLSVersion) -> None:
    _, server = _connected(version)
    with pytest.raises(ssl.SSLError):
        server.receive(b"MAIL FROM:<a@x.example>\r\n")


@versions
def test_what_stood_before_it_is_given_first(version: ssl.TLSVersion) -> None:
    """Whatever the pieces: the same octets come to the same."""
    client, server = _connected(version)
    client.send(b"BDAT 100 LAST\r\n")
    assert server.receive(client.outgoing() + b"MAIL FROM:<a@x.example>\r\n") == b"BDAT 100 LAST\r\n"
    for _ in range(2):
        with pytest.raises(ssl.SSLError):
            server.receive(b"")


@versions
def test_the_same_record_twice_is_refused(version: ssl.TLSVersion) -> None:
    client, server = _connected(version)
    client.send(b"NOOP\r\n")
    wire = client.outgoing()
    assert server.receive(wire) == b"NOOP\r\n"
    with pytest.raises(ssl.SSLError):
        server.receive(wire)


def test_both_may_close_and_either_may_talk_on() -> None:
    """We are told the end, and what we still owe can be sent."""
    client, server = _connected()
    server.receive(client.close())
    server.send(b"250 Ok\r\n")
    assert server.pending
    assert client.receive(server.outgoing() + server.close()) in (b"250 Ok\r\n", b"")
    assert client.finished


def test_closing_in_the_middle_of_a_handshake_says_nothing_in_clear() -> None:
    client, server = _pair()
    assert server.close() == b""
    client.handshake()
    client.outgoing()
    assert client.close()[:1] in (b"", b"\x15")


def test_an_alert_of_the_peer_is_an_error() -> None:
    _, server = _connected()
    with pytest.raises(ssl.SSLError):
        server.receive(b"\x15\x03\x03\x00\x02\x02\x28")
