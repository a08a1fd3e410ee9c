"""The demo's mail server: a small one, honest about what it offers, and too lenient about the end of data.

It has TLS, with a certificate it made for itself when it was started, and offers AUTH in clear too, as many still do.

It takes everything, keeps it in memory and tells how it read what it was sent. Like several servers until December 2023
(CVE-2023-51764, -51765, -51766) it also ends a message at a dot behind a bare LF: `LF . LF` and `LF . CRLF`. That is
not the RFC's end of data, and it is here so that one can see what smuggling does to the server behind the proxy.
"""

import re
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass

import trio

from smtpproxy.demo.wire import Turn, What, chunk_size
from smtpproxy.tls.contexts import for_client
from smtpproxy.tls.minting import likeness_of, self_signed

NAME = "mx.demo.example"
SIZE = 52_428_800
UNKNOWN = "X-DEMO-TURBO"  # an extension nobody has described
OFFERS = (
    "PIPELINING",
    f"SIZE {SIZE}",
    "XEXCH50",
    "8BITMIME",
    f"{UNKNOWN} 9000",
    "CHUNKING",
    "STARTTLS",
    "AUTH PLAIN",
    "ENHANCEDSTATUSCODES",
)
IDLE = 300.0  # seconds
DAYS = 1  # its certificate is good for
_END = re.compile(rb"\n\.\r?\n")  # the leniency: no CR needed before the dot, nor behind it
_PATH = re.compile(rb"<([^>]*)>")
_DECLARED = re.compile(rb"(?i: SIZE=)([0-9]{1,20})")


@dataclass(frozen=True, slots=True)
class Mail:
    """A mail as the server understood it; `content` without dot-stuffing."""

    sender: str
    recipients: tuple[str, ...]
    content: bytes


class Conversation:
    """One client of the server. `turns` is what it was asked, in its own reading, and what it replied.

    `secured` is set when the handshake of TLS is done, and `tls` has its version and cipher. Without a `context` there
    is no TLS.
    """

    def __init__(
        self, stream: trio.abc.Stream, changed: Callable[[], None], context: ssl.SSLContext | None = None
    ) -> None:
        self.turns: list[Turn] = []
        self.mails: list[Mail] = []
        self.secured = trio.Event()
        self.tls: tuple[str, str] = ("", "")
        self._context = context
        self._challenged = False  # by 334: what comes next is no command
        self._stream = stream
        self._changed = changed
        self._buffer = b""
        self._sender: str | None = None
        self._recipients: list[str] = []
        self._chunks = b""

    async def run(self) -> None:
        """Serve until QUIT, the end of the link or too long a silence."""
        await self._reply(Turn(What.GREETING), f"220 {NAME} ESMTP smtpproxy demo")
        while (line := await self._until(re.compile(b"\n"))) is not None:
            turn = Turn(What.COMMAND, line)
            if turn.verb == b"BDAT":
                chunk = await self._exactly(chunk_size(turn.line))
                if chunk is None:
                    return
                turn.chunk = chunk
            await self._reply(turn, *self._answer(turn))
            if turn.verb == b"QUIT":
                return
            if turn.verb == b"STARTTLS" and turn.reply.startswith(b"220"):
                await self._secure()
            if turn.reply.startswith(b"354"):
                going_on = await (self._content() if turn.verb == b"DATA" else self._block(turn))
                if not going_on:
                    return

    # ------------------------------------------------------------------------------------------------ what is asked

    def _answer(self, turn: Turn) -> tuple[str, ...]:
        verb, line = turn.verb, turn.line
        if self._challenged:
            self._challenged = False
            return ("235 2.7.0 Welcome",)
        if verb == b"EHLO":
            self._forget()
            words = (NAME, *(word for word in OFFERS if word != "STARTTLS" or self._can_secure))
            return tuple(f"250{'-' if n < len(words) else ' '}{word}" for n, word in enumerate(words, 1))
        if verb == b"MAIL":
            return self._mail(line)
        if verb in (b"RCPT", b"DATA", b"BDAT", b"XEXCH50"):
            return self._in_transaction(turn)
        if verb in (b"RSET", b"HELO"):
            self._forget()
            return (f"250 {NAME}",) if verb == b"HELO" else ("250 2.0.0 Forgotten",)
        if verb == b"AUTH" and line.upper().startswith(b"AUTH PLAIN"):
            self._challenged = len(line.split()) == 2
            return ("334 ",) if self._challenged else ("235 2.7.0 Welcome",)
        if verb == b"STARTTLS" and self._can_secure:
            return ("220 2.0.0 Ready for TLS",)
        return {
            b"NOOP": ("250 2.0.0 Still here",),
            b"HELP": ("214 2.0.0 smtpproxy demo server 1.0 on Python",),
            b"VRFY": ("252 2.5.0 Send it and see",),
            b"EXPN": ("250-2.1.5 <ann@demo.example>", "250 2.1.5 <bob@demo.example>"),
            b"QUIT": ("221 2.0.0 Bye",),
        }.get(verb, ("500 5.5.1 What?",))

    def _mail(self, line: bytes) -> tuple[str, ...]:
        declared = _DECLARED.search(line)
        if declared and int(declared[1]) > SIZE:
            return ("552 5.3.4 Too big for me",)
        path = _PATH.search(line)
        if path is None or self._sender is not None:
            return ("501 5.5.2 MAIL FROM:<path>, and once",)
        self._sender = path[1].decode("utf-8", "backslashreplace")
        return ("250 2.1.0 Sender noted",)

    def _in_transaction(self, turn: Turn) -> tuple[str, ...]:
        if self._sender is None:
            return ("503 5.5.1 MAIL first",)
        if turn.verb == b"RCPT":
            path = _PATH.search(turn.line)
            if path is None:
                return ("501 5.5.2 RCPT TO:<path>",)
            self._recipients.append(path[1].decode("utf-8", "backslashreplace"))
            return ("250 2.1.5 Recipient noted",)
        if not self._recipients:
            return ("503 5.5.1 RCPT first",)
        if turn.verb == b"DATA":
            return ("354 Go ahead",)
        if turn.verb == b"XEXCH50":
            return ("354 Send binary data",)
        self._chunks += turn.chunk
        if turn.line.upper().endswith(b" LAST"):
            return (self._keep(self._chunks),)
        return (f"250 2.0.0 {len(turn.chunk)} octets received",)

    async def _content(self) -> bool:
        """Content up to what this server takes for its end."""
        self._buffer = b"\n" + self._buffer  # a dot at the very start stands at the start of a line too
        octets = await self._until(_END)
        if octets is None:
            return False
        wire = octets[1:]
        body = re.sub(rb"\.\r?\n\Z", b"", wire)
        plain = re.sub(rb"(?m)^\.", b"", body)
        await self._reply(Turn(What.CONTENT, wire), self._keep(plain))
        return True

    async def _block(self, asked: Turn) -> bool:
        """XEXCH50's octets, which nobody looks at."""
        octets = await self._exactly(chunk_size(asked.line))
        if octets is None:
            return False
        await self._reply(Turn(What.CONTENT, octets), "250 2.0.0 Whatever that was")
        return True

    def _keep(self, content: bytes) -> str:
        self.mails.append(Mail(self._sender or "", tuple(self._recipients), content))
        self._forget()
        return f"250 2.0.0 Kept as mail {len(self.mails)}"

    def _forget(self) -> None:
        self._sender = None
        self._recipients = []
        self._chunks = b""

    # --------------------------------------------------------------------------------------------------- the socket

    @property
    def _can_secure(self) -> bool:
        return self._context is not None and not self.secured.is_set()

    async def _secure(self) -> None:
        """The handshake. What was said before it is forgotten, and what came behind STARTTLS with it."""
        if self._context is None:
            raise AssertionError("TLS without a certificate")
        self._forget()
        self._buffer = b""
        stream = trio.SSLStream(self._stream, self._context, server_side=True, https_compatible=True)
        await stream.do_handshake()
        self._stream = stream
        self.tls = stream.version(), stream.cipher()[0]
        self.secured.set()

    async def _reply(self, turn: Turn, *lines: str) -> None:
        turn.reply = "".join(f"{line}\r\n" for line in lines).encode()
        self.turns.append(turn)
        self._changed()
        await self._stream.send_all(turn.reply)

    async def _more(self) -> bool:
        with trio.move_on_after(IDLE):
            octets = await self._stream.receive_some(65_536)
            self._buffer += octets
            return bool(octets)
        return False

    async def _until(self, end: re.Pattern[bytes]) -> bytes | None:
        while (found := end.search(self._buffer)) is None:
            if not await self._more():
                return None
        octets, self._buffer = self._buffer[: found.end()], self._buffer[found.end() :]
        return octets

    async def _exactly(self, size: int) -> bytes | None:
        while len(self._buffer) < size:
            if not await self._more():
                return None
        octets, self._buffer = self._buffer[:size], self._buffer[size:]
        return octets


class Server:
    """All of its conversations, in the order they began. `changed` is called whenever it has replied."""

    def __init__(self) -> None:
        leaf = self_signed(likeness_of(NAME, time.time()), time.time(), DAYS)
        self.certificate = ssl.PEM_cert_to_DER_cert(leaf.chain.decode())
        self._context = for_client(leaf.chain, leaf.key)
        self.conversations: list[Conversation] = []
        self.changed: Callable[[], None] = lambda: None
        self.port = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve on a port of the kernel's choice."""
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        task_status.started()
        await trio.serve_listeners(self._serve, listeners)

    async def _serve(self, stream: trio.SocketStream) -> None:
        conversation = Conversation(stream, lambda: self.changed(), self._context)
        self.conversations.append(conversation)
        try:
            await conversation.run()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client went away
        finally:
            await trio.aclose_forcefully(stream)
