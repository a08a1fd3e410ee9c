"""A server that says what a test wants, and keeps what it is told."""

import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

DEFAULT = {
    b"EHLO": b"250-mx.example\r\n250-SIZE 1000000\r\n250-8BITMIME\r\n250 DSN\r\n",
    b"MAIL": b"250 2.1.0 Ok\r\n",
    b"RCPT": b"250 2.1.5 Ok\r\n",
    b"DATA": b"354 Go\r\n",
    b".": b"250 2.0.0 queued as 1\r\n",
    b"BDAT": b"250 2.0.0 queued as 2\r\n",
    b"QUIT": b"221 Bye\r\n",
}


class Talking:
    """One connection at a time. `lines` are the commands, `contents` what came between 354 and the end, with its dots.

    A reply that is b"" ends the connection in its place.
    """

    def __init__(self, replies: Mapping[bytes, bytes] | None = None) -> None:
        self.replies = {**DEFAULT, **(replies or {})}
        self.lines: list[bytes] = []
        self.contents: list[bytes] = []
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.socket.getsockname()[1]
        self.thread = threading.Thread(target=self._serve, daemon=True)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as file:
                connection.settimeout(20)
                connection.sendall(b"220 mx.example\r\n")
                try:
                    self._talk(connection, file)
                except OSError:
                    continue

    def _talk(self, connection: socket.socket, file: Iterator[bytes]) -> None:
        for line in file:
            self.lines.append(line.rstrip(b"\r\n"))
            verb = line.split()[0].upper()
            reply = self.replies.get(verb, b"502 5.5.1 No\r\n")
            if verb == b"BDAT":
                self.contents.append(file.read(int(line.split()[1])))  # type: ignore[attr-defined]
            if not reply:
                return
            connection.sendall(reply)
            if reply.startswith(b"354"):
                content = b""
                for piece in file:
                    if piece == b".\r\n":
                        break
                    content += piece
                else:
                    return
                self.contents.append(content)
                if not self.replies[b"."]:
                    return
                connection.sendall(self.replies[b"."])


@contextmanager
def talking(replies: Mapping[bytes, bytes] | None = None) -> Iterator[Talking]:
    """It runs."""
    server = Talking(replies)
    server.thread.start()
    try:
        yield server
    finally:
        server.socket.shutdown(socket.SHUT_RDWR)
        server.socket.close()
        server.thread.join(20)
