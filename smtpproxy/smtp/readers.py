r"""Readers: octets → values. One for each way octets are framed.

The rules of all of them:

1. **Any cut.** The same octets give the same values however they arrive. A reader keeps what it can't decide yet.
2. **Bounded.** What a reader keeps is bounded by a number it was given, whatever a peer sends.
3. **One reading.** What a reader lets pass reads the same to a strict server, to one that ends lines at LF, to one
   that drops CRs and to one that drops NULs. That is why content is looked at on every octet, and why octets are
   replaced and never deleted: deleting a CR or a NUL can make an end of data out of `CRLF CR . CRLF`.

Content (RFC 5321 §4.1.1.4, §4.5.2) ends at CRLF . CRLF and nothing else; the end is consumed and never part of what a
reader gives. What could still become an end is kept back: the longest end of the octets at hand that begins one,
four octets at most. Two places exist only because of this: content that *begins* with its end, and the octets kept.
"""

import re
from typing import Final

from smtpproxy.smtp.errors import ProtocolError, Side
from smtpproxy.smtp.replies import Reply

END_OF_DATA: Final = b"\r\n.\r\n"

_SASL_LINE = re.compile(rb"\*|=|(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")
_BARE_CR = re.compile(rb"\r(?!\n)")
_BARE_LF = re.compile(rb"(?<!\r)\n")
_ASTRAY = re.compile(rb"\0|\r(?!\n)|(?<!\r)\n")
_BARE_LF_DOT = re.compile(rb"(?<!\r)\n\.")
_DOT_BARE_LF = re.compile(rb"\r\n\.(?=\n)")


class Content:
    """Dot-stuffed content, one mail of it.

    `take` gives the octets to pass on, still dot-stuffed; `plain` is the same without dot-stuffing, for digest, size
    and inspectors. `stray` says that CR, LF or NUL stood alone somewhere, replaced in what was given: bare LF by
    CRLF, stuffed anew so that LF . LF can't become an end; bare CR and NUL by a blank.
    """

    __slots__ = ("_begun", "_line_start", "done", "plain", "stray", "stray_at")

    def __init__(self) -> None:
        self._begun = False  # something was given already: the next octet is not at the start of the content
        self._line_start = False  # what was given last ended in a CRLF that we made of a bare LF
        self.done = False
        self.stray = False
        self.stray_at = -1  # in `plain`, of the first octet astray in what was taken last; -1: none
        self.plain: bytes = b""

    def take(self, data: bytes, start: int) -> tuple[bytes, int]:
        """Content in `data` from `start`: (octets to pass on, where the rest begins).

        The rest is what is kept back (give it again with more behind it) or, when `done`, what follows the end.
        """
        begun = self._begun
        self.stray_at = -1
        if not begun:
            head = data[start : start + 3]
            if head == b".\r\n":
                self.done = True
                self.plain = b""
                return b"", start + 3
            if head in (b".", b".\r"):
                self.plain = b""
                return b"", start
        dotted = data.find(b"\r\n.", start)
        if dotted < 0:
            end, after = self._keep_back(data, start)
        else:
            end = data.find(END_OF_DATA, dotted)
            if end < 0:
                end, after = self._keep_back(data, start)
            else:
                self.done = True
                end += 2
                after = end + 3
        if end <= start:
            self.plain = b""
            return b"", after
        self._begun = True
        body = data if start == 0 and end == len(data) else data[start:end]
        # CRLF put out of the way in one pass of equal length; what is left of CR and LF stands alone. (Counting each of
        # them costs six times as much: bytes.count of one octet stops at every hit.)
        rest = body.replace(b"\r\n", b"  ")
        if b"\n" in rest or b"\r" in rest or b"\0" in rest or self._line_start:
            return self._normalised(body, begun), after
        if (0 <= dotted < end) or (not begun and body[0] == 0x2E):
            self.plain = _unstuffed(body, begun)
        else:
            self.plain = body
        return body, after

    @staticmethod
    def _keep_back(data: bytes, start: int) -> tuple[int, int]:
        """Where to stop when no end is in sight: before what may be the beginning of one."""
        end = len(data)
        for tail in (b"\r\n.\r", b"\r\n.", b"\r\n", b"\r"):
            if data.endswith(tail, start):
                end -= len(tail)
                break
        return end, end

    def _normalised(self, body: bytes, begun: bool) -> bytes:
        """Made to hold CRLF only. What is not astray stays as it came, in any cut.

        A dot behind a newline we make is stuffed, because it begins a line only now. A line's first dot before a bare
        LF goes: it was stuffing, and would be an end of data before the CRLF we make.
        """
        plain = _unstuffed(body, begun)
        clean = _BARE_LF.sub(b"\r\n", _BARE_CR.sub(b" ", plain.replace(b"\0", b" ")))
        astray = _ASTRAY.search(plain)
        if astray is not None:
            self.stray = True
            self.stray_at = astray.start()
        self.plain = clean
        wire = _BARE_CR.sub(b" ", body.replace(b"\0", b" "))
        wire = _DOT_BARE_LF.sub(b"\r\n", wire)
        if not begun and wire.startswith(b".\n"):
            wire = wire[1:]
        wire = _BARE_LF.sub(b"\r\n", _BARE_LF_DOT.sub(b"\r\n..", wire))
        if self._line_start and wire.startswith(b"."):
            wire = b"." + wire
        self._line_start = not self.done and wire.endswith(b"\r\n")
        return wire


def _unstuffed(body: bytes, begun: bool) -> bytes:
    plain = body.replace(b"\r\n.", b"\r\n")
    return plain[1:] if not begun and plain.startswith(b".") else plain


def stuffed(plain: bytes) -> bytes:
    """Content with a dot more before each dot that begins a line (RFC 5321 §4.5.2); `plain` is whole content."""
    body = plain.replace(b"\r\n.", b"\r\n..")
    return b"." + body if body.startswith(b".") else body


def is_sasl_line(line: bytes) -> bool:
    """A line of a SASL exchange, without CRLF: base64 (RFC 4648 §4; nothing is an empty response), `=` or `*`."""
    return _SASL_LINE.fullmatch(line) is not None


class ReplyReader:
    """Replies of a server (RFC 5321 §4.2.1), multi-line ones whole.

    A reply line is three digits, then nothing, or a blank or hyphen and text, then CRLF. CR, LF and NUL inside, codes
    that differ within a reply, and codes that do not begin with 2 to 5 are violations. Other control octets are
    replaced, so that no terminal and no log can be written to by a server. With `noise`, lines of code 0yz are given
    as replies of their own (VERB's `050`).
    """

    __slots__ = ("_code", "_data", "_ends", "_kept", "_lines", "_max_line", "_max_lines", "_scanned", "noise")

    _plain = re.compile(rb"[2-5][0-9][0-9] [\t -~\x80-\xff]*\r\n").fullmatch
    _line = re.compile(rb"([0-9]{3})(?:([ -])([^\r\n\0]*))?\r\n")
    _control = re.compile(rb"[\x01-\x08\x0b\x0c\x0e-\x1f\x7f]")

    def __init__(self, max_line: int, max_lines: int) -> None:
        self._max_line = max_line
        self._max_lines = max_lines
        self._kept = b""  # an unfinished reply: whole lines, then at most one unfinished line
        self._scanned = 0  # how much of it is whole lines
        self._lines = 0
        self._code = b""
        self._data = b""  # what was fed last, and where in it each reply ended
        self._ends: list[int] = []
        self.noise = False

    @property
    def pending(self) -> bool:
        """An unfinished reply is kept."""
        return bool(self._kept)

    def rest(self, index: int) -> bytes:
        """The octets behind the reply of this index in what was fed last."""
        return self._data[self._ends[index] :] if self._ends else b""

    def feed(self, octets: bytes) -> "list[Reply]":
        """The replies completed by these octets.

        Raises:
            ProtocolError: what the server says is no reply; nothing can be read from it any more.
        """
        replies, broken = self.feed_until_broken(octets)
        if broken is not None:
            raise broken
        return replies

    def feed_until_broken(self, octets: bytes) -> "tuple[list[Reply], ProtocolError | None]":
        """As `feed`, but what was complete before the violation is given beside it."""
        if not self._kept and self._plain(octets) and len(octets) <= self._max_line:
            self._ends.clear()
            return [Reply(int(octets[:3]), octets)], None  # one whole line: nearly every reply there is
        data = self._data = self._kept + octets if self._kept else octets
        self._ends.clear()
        start = 0
        position = self._scanned
        replies: list[Reply] = []
        match = self._line.match
        size = len(data)
        while position < size:
            found = match(data, position)
            if found is None:
                if (
                    data.find(b"\n", position) >= 0
                    or size - position > self._max_line
                    or data.find(b"\0", position) >= 0
                ):
                    return replies, self._broken(data, position)
                break
            code, separator, text = found.groups()
            end = found.end()
            if end - position > self._max_line:
                return replies, self._broken(data, position)
            if code[0] not in b"2345" and not (self.noise and code[0] == 0x30):
                return replies, _violation("reply-code-out-of-range", found.group())
            if self._lines and code != self._code:
                return replies, _violation("reply-codes-differ", found.group())
            self._lines += 1
            position = end
            if separator == b"-":
                if self._lines >= self._max_lines:
                    return replies, _violation("reply-too-many-lines", found.group())
                self._code = code
                continue
            raw = data if start == 0 and end == size else data[start:end]
            odd: tuple[str, ...] = ()
            if self._control.search(raw):
                raw = self._control.sub(b"?", raw)
                odd = ("reply-control",)
            if text is None:
                odd = (*odd, "reply-no-text")
            replies.append(Reply(int(code), raw, odd))
            self._lines = 0
            self._ends.append(position)
            start = position
        self._kept = data[start:] if start < size else b""
        self._scanned = position - start
        return replies, None

    def _broken(self, data: bytes, position: int) -> ProtocolError:
        """Name what is wrong with the line at `position`; what is looked at does not depend on the cut."""
        line = data[position : position + self._max_line + 1]
        end = line.find(b"\n")
        nul = line.find(b"\0")
        if nul >= 0 and (end < 0 or nul < end):
            return _violation("reply-nul", line[: nul + 1])
        if end < 0 or end >= self._max_line:
            return _violation("reply-line-too-long", line)
        line = line[: end + 1]
        if not line.endswith(b"\r\n"):
            return _violation("reply-bare-lf", line)
        return _violation("reply-bare-cr" if b"\r" in line[:-2] else "reply-malformed", line)


def _violation(anomaly: str, line: bytes) -> ProtocolError:
    return ProtocolError(Side.SERVER, anomaly, repr(line[:80])[1:])
