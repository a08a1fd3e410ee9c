"""Replies: what a server says (RFC 5321 §4.2), and the replies smtpproxy itself may give.

A reply is kept as the octets it came in (`raw`, complete lines with CRLF) and its code; everything else is derived on
demand, because most replies are passed on byte for byte and nobody asks. Codes are kept as they are: what counts for
the proxy is the first digit (§4.2.1), so that an odd but legal code never costs a session its place.

Our own replies are `OwnReply`: one text in two forms, with and without the enhanced status code (RFC 2034 §4: a server
that offered ENHANCEDSTATUSCODES gives them in every reply, one that did not gives none). A reply text is never built
from what a peer said: no CR, no LF and no octet of a stranger can get into it.
"""

import re
from functools import lru_cache
from typing import NamedTuple

_ENHANCED = re.compile(rb"[245]\.[0-9]{1,3}\.[0-9]{1,3}(?= |\r)")
_OWN = re.compile(r"([2-5][0-9]{2}) (?:([245]\.[0-9]{1,3}\.[0-9]{1,3}) )?([ -~]+)")


class Reply(NamedTuple):
    """One reply. `raw` holds whole lines with CRLF; `odd` names what is not as it should be (anomaly names)."""

    code: int
    raw: bytes
    odd: tuple[str, ...] = ()

    @property
    def lines(self) -> list[bytes]:
        """The text of each line, without code, separator and CRLF."""
        return [line[4:] for line in self.raw[:-2].split(b"\r\n")]

    @property
    def enhanced(self) -> bytes:
        """The enhanced status code of the first line (RFC 3463), or b""."""
        found = _ENHANCED.match(self.raw, 4)
        return found.group() if found else b""

    @property
    def text(self) -> str:
        """All lines for people, one space between them; odd octets escaped."""
        return " ".join(line.decode("utf-8", "backslashreplace") for line in self.lines)

    @property
    def digit(self) -> int:
        """The first digit: 2 success, 3 go on, 4 not now, 5 no (§4.2.1)."""
        return self.code // 100

    def __str__(self) -> str:
        return f"{self.code:03d} {self.text}".rstrip()


def multiline(code: int, lines: list[bytes]) -> Reply:
    """A reply of these line texts (§4.2.1); at least one."""
    digits = b"%03d" % code
    last = len(lines) - 1
    raw = b"".join(digits + (b" " if i == last else b"-") + line + b"\r\n" for i, line in enumerate(lines))
    return Reply(code, raw)


class OwnReply(NamedTuple):
    """A reply of ours, in both forms; `plain` is for clients that were not offered ENHANCEDSTATUSCODES."""

    full: Reply
    plain: Reply

    def form(self, enhanced: bool) -> Reply:
        """The form for a client that was (`enhanced`) or was not offered ENHANCEDSTATUSCODES."""
        return self.full if enhanced else self.plain


@lru_cache(maxsize=512)
def own(text: str) -> OwnReply:
    """Our own reply from `"550 5.7.1 Not here"`; the enhanced code is optional and must agree with the code.

    Raises:
        ValueError: not one line of printable ASCII, not a legal code, or the two codes disagree (RFC 3463 §2).
    """
    found = _OWN.fullmatch(text)
    if found is None:
        raise ValueError(f"not a reply: {text!r} (expected e.g. '550 5.7.1 Not here': code, enhanced code, text)")
    code, enhanced, words = found.groups()
    if len(text) > 510:
        raise ValueError("a reply line holds at most 510 characters (RFC 5321 §4.5.3.1.5)")
    if enhanced and enhanced[0] != code[0]:
        raise ValueError(f"{code} and {enhanced} disagree: both begin with the same class digit (RFC 3463 §2)")
    full = Reply(int(code), f"{text}\r\n".encode())
    plain = Reply(int(code), f"{code} {words}\r\n".encode())
    return OwnReply(full, plain)


# The replies smtpproxy itself gives, by name. (A verb's refusal is in its registry row.)
CANNOT_REACH = own("421 4.4.1 Cannot reach the mail server, try again later")
SERVER_LOST = own("421 4.4.2 Connection to the mail server lost, try again later")
CONTENT_LOST = own("451 4.4.2 Connection to the mail server lost, try again later")
SERVER_SILENT = own("421 4.4.2 The mail server does not answer, try again later")
SERVER_BROKEN = own("421 4.3.0 The mail server broke the protocol, try again later")
CONTENT_BROKEN = own("451 4.3.0 The mail server broke the protocol, try again later")
IDLE = own("421 4.4.2 Idle for too long, closing")
TOO_SLOW = own("421 4.4.2 Too slow, closing")
SESSION_TOO_LONG = own("421 4.4.2 Session open for too long, closing")
SHUTTING_DOWN = own("421 4.3.2 Service shutting down, try again later")
TOO_MANY_SESSIONS = own("421 4.3.2 Too many connections, try again later")
LOOP = own("421 4.4.6 The connection would come back here, closing")
NO_ACCESS = own("421 4.7.1 No access, closing")
NOT_INTRODUCED = own("421 4.3.5 The mail server can't be told of this connection, try again later")
NO_HEADER = own("421 4.3.5 A PROXY header was expected, closing")
OVER = own("421 4.4.2 The session to the mail server is over, try again later")
INTERNAL = own("421 4.3.0 Internal error, try again later")
BYE = own("221 2.0.0 Bye")
BARE_LF = own("521 5.5.2 Lines end with CR LF, closing")
BARE_CR = own("500 5.5.2 CR without LF in a command")
LINE_TOO_LONG = own("500 5.5.2 Line too long")
LINE_ENDLESS = own("521 5.5.2 Line too long, closing")
TOO_MANY_ERRORS = own("421 4.7.0 Too many errors, closing")
SASL_SYNTAX = own("501 5.5.2 Not a base64 line")
NOT_NEGOTIATED = own("555 5.5.4 Parameter not offered here")
UNKNOWN_PARAMETER = own("555 5.5.4 Parameter not recognised")
VERB_NOT_OFFERED = own("502 5.5.1 Command not offered here")
NEEDS_SMTPUTF8 = own("553 5.6.7 Address needs SMTPUTF8")
RECORD_FULL = own("451 4.3.1 Insufficient system storage, try again later")
TOO_MANY_RECIPIENTS = own("452 4.5.3 Too many recipients")
NO_RECIPIENTS = own("554 5.5.1 No valid recipients")
NO_TRANSACTION = own("503 5.5.1 Need MAIL and RCPT first")
GO_AHEAD = own("354 Start mail input; end with <CRLF>.<CRLF>")
CHUNK_HELD = own("250 2.0.0 Octets received")
DISCARDED = own("250 2.0.0 Ok")
TOO_BIG = own("552 5.3.4 Message too big")
TOO_BIG_TO_SWALLOW = own("421 4.7.0 Too much refused content, closing")
MIXED = own("503 5.5.1 BDAT was begun")
HEADER_TOO_BIG = own("552 5.3.4 Header section too big")
STRAY_NEWLINE = own("550 5.6.0 CR or LF alone, or NUL, in the content")
TLS_NOT_AVAILABLE = own("454 4.7.0 TLS not available")
TLS_GO_AHEAD = own("220 2.0.0 Ready to start TLS")
TLS_FIRST = own("530 5.7.0 STARTTLS comes first here")
TLS_AFTER_AUTH = own("503 5.5.1 STARTTLS comes before AUTH")
TLS_TO_SERVER_FAILED = own("421 4.7.0 TLS to the mail server not available, try again later")
HELLO_FIRST = own("503 5.5.1 EHLO comes first")
RULE_FAILED = own("451 4.3.0 Policy could not be decided, try again later")
RULE_FAILED_CLOSING = own("421 4.3.0 Policy could not be decided, try again later")
RULE_HANGUP = own("421 4.7.0 Not accepted by local policy, closing")
