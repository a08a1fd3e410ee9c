"""Sending a mail on by SMTP, as it was kept: the same octets, the same envelope, nothing added.

All recipients or none: a mail that went to some of them would go to those twice with the next try. Whatever the server
needs to know of the content (8BITMIME, SMTPUTF8, BINARYMIME) it is told, or does not get it.

What must never happen: a mail taken for sent of which the server did not say 250; content that ends for the server
where it does not end (RFC 5321 §2.3.8: CR and LF only together); what came encrypted sent in clear without being asked.
"""

import contextlib
import io
import re
import smtplib
import ssl
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO, Final, Literal, NamedTuple

Encryption = Literal["offered", "verify", "never"]
TIMEOUT: Final = 60.0  # seconds for a reply
AT_END: Final = 600.0  # seconds for the one to the end of data (RFC 5321 §4.5.3.2.6)
IMPLICIT_TLS: Final = 465  # the port (RFC 8314 §3.3)
_PIECE = 65_536
_STRAY = re.compile(rb"\r(?!\n)|(?<!\r)\n")
# Parameters that are passed on, and the keywords by which a server offers them; all others are about the old session.
_OF_MAIL = {
    "BODY": "",  # by its value
    "SMTPUTF8": "SMTPUTF8",
    "RET": "DSN",
    "ENVID": "DSN",
    "REQUIRETLS": "REQUIRETLS",
    "MT-PRIORITY": "MT-PRIORITY",
}
_OF_RCPT = {"NOTIFY": "DSN", "ORCPT": "DSN"}


class NotSent(Exception):  # noqa: N818 - what came of it
    """The server did not take it; the text says why. `unsure`: it may have, and its reply was lost."""

    def __init__(self, why: str, *, unsure: bool = False) -> None:
        super().__init__("".join(c if c.isprintable() else " " for c in why))
        self.unsure = unsure


class Envelope(NamedTuple):
    """Addresses without angle brackets; parameters by keyword, with "" for no value."""

    reverse_path: str
    recipients: Sequence[str]
    parameters: Mapping[str, str]
    of_recipients: Mapping[str, Mapping[str, str]]


class Sent(NamedTuple):
    """The server's reply to the end of data; which parameters it was not told, because it does not know them."""

    reply: str
    left_out: Sequence[str]


class _Content(NamedTuple):
    size: int
    eight_bit: bool
    stray: bool  # CR or LF alone


def send(
    host: str,
    port: int,
    content: BinaryIO,
    envelope: Envelope,
    *,
    encryption: Encryption = "offered",
    encrypted_before: bool = False,
) -> Sent:
    """Send a mail; what the server said.

    Args:
        content: at its start; seekable.
        encryption: `offered`: STARTTLS where it is offered, with any certificate; `verify`: in any case, with one that
            is valid for `host`; `never`. At port 465 TLS is from the first octet.
        encrypted_before: the server's link was, when the mail came: `offered` then is not enough.

    Raises:
        NotSent: it was not taken.
    """
    facts = _look_at(content)
    if facts.stray and envelope.parameters.get("BODY", "").upper() != "BINARYMIME":
        raise NotSent("its content has a CR or LF alone, which no server may be sent")
    smtp: smtplib.SMTP | None = None
    at_end = False
    try:
        smtp = _connected(host, port, encryption)
        _secure(smtp, port, encryption, encrypted_before)
        left_out = _tell_envelope(smtp, envelope, facts)
        if envelope.parameters.get("BODY", "").upper() == "BINARYMIME":
            last = _send_but_last(smtp, _chunk(content, facts.size))
        else:
            _expect(smtp.docmd("DATA"), 354, "DATA")
            last = _send_but_last(smtp, _stuffed(content))
        at_end = True
        smtp.send(last)
        _patient(smtp, AT_END)
        reply = _expect(smtp.getreply(), 250, "the end of data")
    except NotSent:
        raise
    except (OSError, smtplib.SMTPException, ValueError) as error:
        what = f"{host}:{port}: {str(error) or type(error).__name__}"
        if at_end:
            what = f"its reply to the end of data was lost, and it may have taken the mail: {what}"
        raise NotSent(what, unsure=at_end) from error
    else:
        with contextlib.suppress(OSError, smtplib.SMTPException):  # it has the mail, whatever it says now
            _patient(smtp, TIMEOUT)
            smtp.docmd("QUIT")
        return Sent(reply, left_out)
    finally:
        if smtp is not None:
            smtp.close()


def _look_at(content: BinaryIO) -> _Content:
    """What must be known of it before a server hears of it."""
    size, eight_bit, stray, last = 0, False, False, b""
    while piece := content.read(_PIECE):
        size += len(piece)
        eight_bit = eight_bit or not piece.isascii()
        piece = last + piece
        last = piece[-1:] if piece[-1:] == b"\r" else b""
        found = _STRAY.search(piece, 0, len(piece) - len(last))
        stray = stray or found is not None
    content.seek(0)
    return _Content(size, eight_bit, stray or bool(last))


def _connected(host: str, port: int, encryption: Encryption) -> smtplib.SMTP:
    if port == IMPLICIT_TLS:
        return smtplib.SMTP_SSL(host, port, timeout=TIMEOUT, context=_context(encryption))
    return smtplib.SMTP(host, port, timeout=TIMEOUT)


def _context(encryption: Encryption) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if encryption != "verify":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _secure(smtp: smtplib.SMTP, port: int, encryption: Encryption, encrypted_before: bool) -> None:
    """EHLO, and STARTTLS as it is wanted; never on in clear behind one that failed (RFC 3207 §4.1)."""
    smtp.command_encoding = "utf-8"
    smtp.ehlo_or_helo_if_needed()
    if encryption == "never" or port == IMPLICIT_TLS:
        return
    if smtp.has_extn("STARTTLS"):
        smtp.starttls(context=_context(encryption))
        smtp.ehlo_or_helo_if_needed()
    elif encryption == "verify":
        raise NotSent("the server offers no STARTTLS")
    elif encrypted_before:
        raise NotSent("the server offers no STARTTLS now, and its link was encrypted when the mail came")


def _tell_envelope(smtp: smtplib.SMTP, envelope: Envelope, content: _Content) -> Sequence[str]:
    """MAIL and RCPT; what of their parameters had to be left out."""
    body = envelope.parameters.get("BODY", "").upper()
    keywords = {**_OF_MAIL, "BODY": body}
    needed = {"BODY": body == "BINARYMIME" or (body == "8BITMIME" and content.eight_bit), "REQUIRETLS": True}
    addresses = (envelope.reverse_path, *envelope.recipients)
    needed["SMTPUTF8"] = not all(map(str.isascii, addresses)) or content.eight_bit
    parameters, left_out = [], []
    if smtp.has_extn("SIZE"):
        parameters.append(f"SIZE={content.size}")
    wanted = dict(envelope.parameters)
    if not all(map(str.isascii, addresses)):
        wanted.setdefault("SMTPUTF8", "")
    for keyword, value in wanted.items():
        offered = bool(keywords.get(keyword)) and smtp.has_extn(keywords[keyword])
        if keyword == "BODY" and body == "7BIT":
            continue
        if keyword == "BODY" and body == "BINARYMIME":
            offered = offered and smtp.has_extn("CHUNKING")
        if offered:
            parameters.append(_written(keyword, value))
        elif needed.get(keyword):
            raise NotSent(f"the server does not offer {keywords[keyword] or keyword}, which this mail needs")
        elif keyword not in ("SIZE", "AUTH"):
            left_out.append(keyword)
    command = " ".join((f"FROM:<{envelope.reverse_path}>", *parameters))
    _expect(smtp.docmd("MAIL", command), 250, "MAIL")
    for recipient in envelope.recipients:
        parameters = []
        for keyword, value in envelope.of_recipients.get(recipient, {}).items():
            if keyword in _OF_RCPT and smtp.has_extn(_OF_RCPT[keyword]):
                parameters.append(_written(keyword, value))
            else:
                left_out.append(keyword)
        command = " ".join((f"TO:<{recipient}>", *parameters))
        _expect(smtp.docmd("RCPT", command), (250, 251), f"RCPT TO:<{recipient}>")
    return list(dict.fromkeys(left_out))


def _written(keyword: str, value: str) -> str:
    return f"{keyword}={value}" if value else keyword


def _expect(reply: tuple[int, bytes], wanted: int | tuple[int, ...], what: str) -> str:
    code, text = reply
    said = f"{code} {text.decode('utf-8', 'backslashreplace')}"
    if code not in (wanted if isinstance(wanted, tuple) else (wanted,)):
        raise NotSent(f"the server said to {what}: {said}")
    return "".join(c if c.isprintable() else " " for c in said)


def _stuffed(content: BinaryIO) -> Iterator[bytes]:
    """With transparency (RFC 5321 §4.5.2), and the end."""
    pieces = io.BytesIO()
    last = b"\r\n"
    for line in content:
        pieces.write(b"." + line if line.startswith(b".") else line)
        last = line
        if pieces.tell() >= _PIECE:
            yield pieces.getvalue()
            pieces = io.BytesIO()
    yield pieces.getvalue() + (b".\r\n" if last.endswith(b"\r\n") else b"\r\n.\r\n")


def _chunk(content: BinaryIO, size: int) -> Iterator[bytes]:
    """As one chunk (RFC 3030 §2)."""
    yield f"BDAT {size} LAST\r\n".encode()
    while piece := content.read(_PIECE):
        yield piece


def _send_but_last(smtp: smtplib.SMTP, pieces: Iterator[bytes]) -> bytes:
    """All but the last, with which the server has the mail, whether we hear of it or not."""
    last = next(pieces)
    for piece in pieces:
        smtp.send(last)
        last = piece
    return last


def _patient(smtp: smtplib.SMTP, seconds: float) -> None:
    if smtp.sock is not None:
        smtp.sock.settimeout(seconds)
