"""An MTA-STS policy by HTTPS, on sockets: what is taken, and everything a server may do instead (RFC 8461 §3.3)."""

import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme

from smtpproxy.net import fetching
from smtpproxy.net.fetching import MAX_ANSWER, FetchingError, fetch, prepare
from smtpproxy.tls.mtasts import MAX_POLICY
from smtpproxy.tls.verdict import STS_FETCH, STS_WEBPKI
from tests.net.authority_rig import DEADLINE, POLICY, POLICY_HOST, PolicyServer, http, running
from tests.net.rig import dead_address

CA = trustme.CA()
NOW = datetime.now(UTC)


@pytest.fixture
def roots(tmp_path: Path) -> Path:
    file = tmp_path / "roots.pem"
    CA.cert_pem.write_to_path(file)
    return file


@pytest.fixture
async def server() -> AsyncIterator[PolicyServer]:
    made = PolicyServer(CA)
    with trio.fail_after(DEADLINE):
        async with running(made):
            yield made


async def fetched(server: PolicyServer, roots: Path | None, *addresses: str) -> bytes:
    """The policy."""
    return await fetch(addresses or ("127.0.0.1",), server.port, POLICY_HOST, prepare(roots))


async def test_a_policy(server: PolicyServer, roots: Path) -> None:
    assert await fetched(server, roots) == POLICY
    request = server.requests[0].split(b"\r\n")
    assert request[0] == b"GET /.well-known/mta-sts.txt HTTP/1.1"
    assert b"Host: mta-sts.example.com" in request


@pytest.mark.parametrize(
    "answer",
    [
        http(POLICY, b"200 OK", b"Text/Plain; charset=utf-8"),
        http(POLICY, b"200 OK", b"text/plain", b"Content-Encoding: identity"),
        b"HTTP/1.1 103 Early Hints\r\n\r\n" * 3 + http(POLICY),
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"%x\r\n%s\r\n0\r\n\r\n" % (len(POLICY), POLICY),
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n" + POLICY,
        b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\n" + POLICY,
    ],
)
async def test_forms_of_an_answer(server: PolicyServer, roots: Path, answer: bytes) -> None:
    server.answer = answer
    assert await fetched(server, roots) == POLICY


async def test_as_large_as_a_policy_may_be(server: PolicyServer, roots: Path) -> None:
    server.answer = http(b"x" * MAX_POLICY)
    assert len(await fetched(server, roots)) == MAX_POLICY


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (http(POLICY, b"301 Moved", b"text/plain", b"Location: https://evil.example/"), "HTTP 301, and redirects are"),
        (http(POLICY, b"302 Found", b"text/plain", b"Location: /policy.txt"), "HTTP 302"),
        (http(POLICY, b"404 Not Found"), "HTTP 404"),
        (http(POLICY, b"500 No"), "HTTP 500"),
        (b"HTTP/1.1 204 Nothing\r\n\r\n", "HTTP 204"),
        (http(POLICY, b"206 Partial Content"), "HTTP 206"),
        (http(POLICY, b"200 OK", b"text/html"), "not text/plain but 'text/html'"),
        (http(POLICY, b"200 OK", b"text/plainish"), "not text/plain"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "not text/plain but ''"),
        (http(POLICY, b"200 OK", b"text/plain", b"Content-Encoding: gzip"), "compressed"),
        (http(b"x" * (MAX_POLICY + 1)), "more than 65536 octets"),
        (b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n" + b"x" * (MAX_POLICY + 1), "more than 65536 octets"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n"
            + b"1;%s\r\nx\r\n" % (b"e" * 4000) * (MAX_ANSWER // 4000 + 1),
            "an answer of more than",
        ),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 50, "no end of interim answers"),
        (b"HTTP/1.1 101 Switching\r\n\r\n" + POLICY, POLICY_HOST),
        (b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 100\r\n\r\nversion", POLICY_HOST),
        (
            b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
            POLICY_HOST,
        ),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 40_000 + b"\r\n\r\n", POLICY_HOST),
        (b"220 mx.example ESMTP\r\n", POLICY_HOST),
        (b"\x00\xff\r\n\r\n", POLICY_HOST),
        (b"HTTP/1.1 200 OK\r\nContent-Ty", POLICY_HOST),
        (b"", POLICY_HOST),
    ],
)
async def test_answers_that_are_no_policy(server: PolicyServer, roots: Path, answer: bytes, why: str) -> None:
    server.answer = answer
    with pytest.raises(FetchingError) as raised:
        await fetched(server, roots)
    assert why in str(raised.value)
    assert str(raised.value).startswith(f"{POLICY_HOST}: ")
    assert str(raised.value).isprintable()
    assert raised.value.result == STS_FETCH


async def test_a_policy_that_is_cut_off_is_none(server: PolicyServer, roots: Path) -> None:
    """Without a length only close_notify says that it is whole."""
    server.answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n" + POLICY
    server.ragged = True
    with pytest.raises(FetchingError):
        await fetched(server, roots)


# ------------------------------------------------------------------------------------------------- whose server it is


async def test_certificates_that_are_not_good(server: PolicyServer, roots: Path) -> None:
    """Expired, for another name, for the name in the subject only, of nobody's CA: nothing is asked."""
    bad: list[tuple[trustme.CA, tuple[str, ...], dict[str, Any]]] = [
        (CA, (POLICY_HOST,), {"not_before": NOW - timedelta(9), "not_after": NOW - timedelta(2)}),
        (CA, ("example.com",), {}),
        (CA, ("*.mta-sts.example.com",), {}),
        (CA, ("other.example",), {"common_name": POLICY_HOST}),
        (trustme.CA(), (POLICY_HOST,), {}),
    ]
    for authority, names, more in bad:
        server.show(authority, *names, **more)
        with pytest.raises(FetchingError) as raised:
            await fetched(server, roots)
        assert raised.value.result == STS_WEBPKI
        assert "its certificate is not good" in str(raised.value)
    assert not server.requests
    server.show(CA, "*.example.com")
    assert await fetched(server, roots) == POLICY


async def test_the_systems_roots_do_not_know_a_ca_of_ours(server: PolicyServer) -> None:
    with pytest.raises(FetchingError) as raised:
        await fetched(server, None)
    assert raised.value.result == STS_WEBPKI


async def test_roots_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        prepare(tmp_path / "none.pem")
    (tmp_path / "empty.pem").write_text("nothing\n")
    with pytest.raises(OSError):
        prepare(tmp_path / "empty.pem")


def test_without_the_library_it_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h11", None)
    with pytest.raises(ImportError):
        prepare(None)


# ------------------------------------------------------------------------------------------------- nobody, or silence


async def test_the_next_address_is_tried(server: PolicyServer, roots: Path) -> None:
    assert await fetched(server, roots, "127.0.0.9", "127.0.0.1") == POLICY


async def test_nobody_there(roots: Path) -> None:
    _, (host, port) = dead_address()
    with pytest.raises(FetchingError, match=r"can't be reached: .*refused") as raised:
        await fetch([host], port, POLICY_HOST, prepare(roots))
    assert raised.value.result == STS_FETCH
    with pytest.raises(FetchingError, match="no address"):
        await fetch([], port, POLICY_HOST, prepare(roots))


async def test_an_address_that_does_not_answer(
    server: PolicyServer, roots: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One attempt must not use up the time of all."""
    connect = trio.open_tcp_stream

    async def slow(host: str, port: int) -> trio.SocketStream:
        if host == "192.0.2.1":
            await trio.sleep_forever()
        return await connect(host, port)

    monkeypatch.setattr(trio, "open_tcp_stream", slow)
    monkeypatch.setattr(fetching, "CONNECT", 0.05)
    with pytest.raises(FetchingError, match=r"192\.0\.2\.1 does not answer"):
        await fetched(server, roots, "192.0.2.1")
    monkeypatch.setattr(fetching, "CONNECT", 0.5)
    assert await fetched(server, roots, "192.0.2.1", "127.0.0.1") == POLICY


async def test_a_server_that_says_nothing(server: PolicyServer, roots: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "FETCH", 0.1)
    server.held = True
    with pytest.raises(FetchingError, match="no policy within"):
        await fetched(server, roots)
    server.release()


async def test_a_server_that_does_not_speak_tls(roots: Path) -> None:
    async def clear(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.send_all(http(POLICY))
            while await stream.receive_some():
                pass

    with trio.fail_after(DEADLINE):
        async with trio.open_nursery() as nursery:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, clear, listeners)
            port = listeners[0].socket.getsockname()[1]
            with pytest.raises(FetchingError) as raised:
                await fetch(["127.0.0.1"], port, POLICY_HOST, prepare(roots))
            assert raised.value.result == STS_FETCH
            nursery.cancel_scope.cancel()
