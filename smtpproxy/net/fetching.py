"""An MTA-STS policy by HTTPS (RFC 8461 §3.3): one GET to one place, and nothing that leads elsewhere.

The server must show a certificate for its name that the roots vouch for. No redirect is followed, no answer but 200
counts, and the content must be text/plain: elsewhere on such a host, others may write. Octets and interim answers are
bounded, and so is the time. Whatever goes wrong ends as `FetchingError`, with the reason and its result type.

h11 is an extra: it is imported where it is used, and by `prepare` to say in time that it is missing.
"""

import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from smtpproxy.tls.mtasts import MAX_POLICY
from smtpproxy.tls.verdict import STS_FETCH, STS_WEBPKI

if TYPE_CHECKING:
    import h11

FETCH = 60.0  # seconds for all of it
CONNECT = 10.0  # seconds for each address
MAX_ANSWER = 2 * MAX_POLICY  # octets with all that is around the policy
MAX_INTERIM = 10  # 1xx answers before the one that counts
TARGET = b"/.well-known/mta-sts.txt"
_READ = 16_384


class FetchingError(Exception):
    """There is no policy; the text says why, `result` is a result type of RFC 8460 §4.3."""

    def __init__(self, why: str, result: str = STS_FETCH) -> None:
        super().__init__(why)
        self.result = result


def prepare(roots: Path | str | None) -> ssl.SSLContext:
    """What the policy's server is verified with: the roots of a PEM file, the system's if None.

    Raises:
        ImportError: h11 is not installed.
        OSError: the roots can't be read (ssl.SSLError, too, is one).
    """
    import h11  # noqa: F401 - said now if it is missing, not in the night

    context = ssl.create_default_context(cafile=roots or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF  # else a policy that is cut off looks whole
    context.hostname_checks_common_name = False  # RFC 8461 §3.3: names are in the SAN
    context.set_alpn_protocols(["http/1.1"])
    return context


async def fetch(addresses: Sequence[str], port: int, host: str, context: ssl.SSLContext) -> bytes:
    """The policy's octets from the first address that can be reached.

    Raises:
        FetchingError: it can't be had.
    """
    with trio.move_on_after(FETCH):
        return await _fetch(addresses, port, host, context)
    raise FetchingError(f"{host}: no policy within {FETCH:.0f} seconds")


async def _fetch(addresses: Sequence[str], port: int, host: str, context: ssl.SSLContext) -> bytes:
    try:
        stream = await _connect(addresses, port)
        try:
            secured = trio.SSLStream(stream, context, server_hostname=host)
            await secured.do_handshake()
            return await _get(secured, host)
        finally:
            await trio.aclose_forcefully(stream)
    except FetchingError as error:
        raise FetchingError(f"{host}: {error}", error.result) from error
    except Exception as error:
        cause = _first(error)
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise FetchingError(f"{host}: its certificate is not good: {_reason(cause)}", STS_WEBPKI) from error
        raise FetchingError(f"{host}: {_reason(cause)}") from error


async def _connect(addresses: Sequence[str], port: int) -> trio.SocketStream:
    why = "no address"
    for address in addresses:
        with trio.move_on_after(CONNECT):
            try:
                return await trio.open_tcp_stream(address, port)
            except OSError as error:
                why = f"{address}: {_reason(_first(error))}"
                continue
        why = f"{address} does not answer"
    raise FetchingError(f"can't be reached: {why}")


async def _get(stream: "trio.SSLStream[trio.SocketStream]", host: str) -> bytes:
    import h11

    http = h11.Connection(h11.CLIENT)
    headers = [("Host", host), ("Accept", "text/plain"), ("User-Agent", "smtpproxy"), ("Connection", "close")]
    request = http.send(h11.Request(method=b"GET", target=TARGET, headers=headers))
    await stream.send_all((request or b"") + (http.send(h11.EndOfMessage()) or b""))
    policy = b""
    received = interim = 0
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            octets = await stream.receive_some(_READ)
            received += len(octets)
            if received > MAX_ANSWER:
                raise FetchingError(f"an answer of more than {MAX_ANSWER} octets")
            http.receive_data(bytes(octets))
        elif isinstance(event, h11.InformationalResponse):
            interim += 1
            if interim > MAX_INTERIM:
                raise FetchingError("no end of interim answers")
        elif isinstance(event, h11.Response):
            _check(event)
        elif isinstance(event, h11.Data):
            policy += bytes(event.data)
            if len(policy) > MAX_POLICY:
                raise FetchingError(f"a policy of more than {MAX_POLICY} octets")
        elif isinstance(event, h11.EndOfMessage):
            return policy
        else:
            raise FetchingError("the connection ended without an answer")


def _check(response: "h11.Response") -> None:
    """Only 200, only text/plain, and that as it is."""
    if response.status_code != 200:
        moved = ", and redirects are not followed" if 300 <= response.status_code < 400 else ""
        raise FetchingError(f"HTTP {response.status_code}{moved}")
    fields = {bytes(name): bytes(value) for name, value in response.headers}
    kind = fields.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if kind != b"text/plain":
        raise FetchingError(f"the policy is not text/plain but {ascii(kind.decode('latin-1'))[:60]}")
    if fields.get(b"content-encoding", b"identity").lower() != b"identity":
        raise FetchingError("the policy is compressed")


def _first(error: BaseException) -> BaseException:
    """What is inside: trio wraps the errors of a connection, and the attempts to make one."""
    while True:
        if isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        elif error.__cause__ is not None:
            error = error.__cause__
        else:
            return error


def _reason(error: BaseException) -> str:
    """In a line. The text may hold what a peer sent."""
    return ascii(str(error) or type(error).__name__)[1:-1][:200]
