"""A server that keeps to RFC 5321 and 3030 and nothing else: it counts the mails that were completed at it."""


class StrictServer:
    """Octets in, replies out. A mail is complete only at CRLF . CRLF or at the last octet of BDAT LAST."""

    def __init__(self, offers: tuple[bytes, ...] = (b"PIPELINING", b"CHUNKING")) -> None:
        self.mails: list[bytes] = []
        self.commands: list[bytes] = []
        self._offers = offers
        self._buffer = b""
        self._content: bytes | None = None  # within DATA
        self._chunk = 0  # octets still to come of this chunk
        self._last = False
        self._chunked = b""
        self._recipients = 0
        self._mail = False

    def greet(self) -> bytes:
        """What it opens with."""
        return b"220 strict\r\n"

    def feed(self, octets: bytes) -> bytes:
        """Octets from the proxy; what is replied."""
        self._buffer += octets
        replies = b""
        while True:
            reply = self._step()
            if reply is None:
                return replies
            replies += reply

    def _step(self) -> bytes | None:
        if self._content is not None:
            body = b"\r\n" + self._buffer
            end = body.find(b"\r\n.\r\n")
            if end < 0:
                return None
            self.mails.append(body[2 : end + 2])
            self._buffer = body[end + 5 :]
            self._content = None
            self._forget()
            return b"250 queued\r\n"
        if self._chunk:
            piece, self._buffer = self._buffer[: self._chunk], self._buffer[self._chunk :]
            self._chunked += piece
            self._chunk -= len(piece)
            return None if self._chunk else self._chunk_over()
        line, found, rest = self._buffer.partition(b"\r\n")
        if not found:
            return None
        self._buffer = rest
        self.commands.append(line)
        return self._command(line)

    def _forget(self) -> None:
        self._recipients, self._mail, self._chunked, self._last = 0, False, b"", False

    def _chunk_over(self) -> bytes:
        if not self._last:
            return b"250 chunk\r\n"
        self.mails.append(self._chunked)
        self._forget()
        return b"250 queued\r\n"

    def _command(self, line: bytes) -> bytes:
        verb = line.split(b" ")[0].upper()
        if verb == b"EHLO":
            self._forget()
            lines = [b"strict", *self._offers]
            return b"".join(
                b"250%c%s\r\n" % (b" "[0] if i == len(lines) - 1 else b"-"[0], x) for i, x in enumerate(lines)
            )
        if verb == b"MAIL":
            if self._mail:
                return b"503 nested\r\n"
            self._mail = True
            return b"250 sender\r\n"
        if verb == b"RCPT":
            if not self._mail:
                return b"503 first MAIL\r\n"
            self._recipients += 1
            return b"250 recipient\r\n"
        if verb == b"DATA":
            if not self._recipients or self._chunked:
                return b"503 first RCPT\r\n"
            self._content = b""
            return b"354 go\r\n"
        if verb == b"BDAT":
            words = line.split(b" ")
            if len(words) < 2 or not words[1].isdigit():  # seen only where inspection has ended
                return b"501 count\r\n"
            self._chunk, self._last = int(words[1]), len(words) > 2
            return b"" if self._chunk else self._chunk_over()
        if verb == b"RSET":
            self._forget()
            return b"250 reset\r\n"
        if verb == b"QUIT":
            return b"221 bye\r\n"
        return b"250 fine\r\n" if verb == b"NOOP" else b"500 what\r\n"
