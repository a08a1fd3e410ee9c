"""A mail as a server stored it, and the three ways in which the servers here store mails.

`Mail.content` is what is on the disk. `Mail.wire` is what the server must have received for that: without the
trace fields that it put on top, and with CRLF for the line end that it stores. Nothing else is tidied up.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TRACE = frozenset(
    b"return-path received delivered-to x-original-to envelope-to delivery-date"
    b" x-client-addr x-client-proto x-helo-args x-mail-args x-rcpt-args".split()
)
FIELD = re.compile(rb"([!-9;-~]+):[^\n]*\n(?:[ \t][^\n]*\n)*")
SECURELY = re.compile(r"(?i)\bE?SMTPSA?\b|\bUTF8SMTPSA?\b|version=TLS")
ADDRESS = re.compile(r"<([^<>]*)>")


@dataclass(frozen=True)
class Mail:
    sender: str
    recipients: tuple[str, ...]
    content: bytes
    newline: bytes = b"\n"

    @property
    def wire(self) -> bytes:
        return strip_trace(self.content).replace(self.newline, b"\r\n")

    @property
    def encrypted(self) -> bool:
        """Whether the server says that it came by TLS: in the first trace field that says how a mail came."""
        ways = (value for name, value, _ in fields_on_top(self.content) if name in ("received", "x-client-proto"))
        return SECURELY.search(next(ways, "")) is not None


def fields_on_top(content: bytes) -> Iterator[tuple[str, str, int]]:
    """The trace fields that `content` begins with: name in lower case, value, offset of the end."""
    position = 0
    while (field := FIELD.match(content, position)) and field[1].lower() in TRACE:
        position = field.end()
        yield field[1].decode().lower(), field[0].partition(b":")[2].decode("latin-1").strip(), position


def strip_trace(content: bytes) -> bytes:
    """`content` without the run of trace fields at its beginning; one further down is the sender's own."""
    ends = [end for _, _, end in fields_on_top(content)]
    return content[ends[-1] if ends else 0 :]


def read_fields(path: Path) -> Mail:
    """A file whose envelope is in trace fields: the maildirs of Postfix and Exim."""
    content = path.read_bytes()
    sender, recipients = "", list[str]()
    for name, value, _ in fields_on_top(content):
        if name in ("return-path", "x-mail-args"):
            sender = plain(value)
        elif name in ("x-original-to", "envelope-to", "x-rcpt-args"):
            recipients.append(plain(value))
    return Mail(sender, tuple(recipients), content)


def read_dump(path: Path) -> Mail:
    """A dump of smtp-sink, which puts one empty line after each mail."""
    mail = read_fields(path)
    return Mail(mail.sender, mail.recipients, mail.content.removesuffix(b"\n"))


def read_piped(path: Path) -> Mail:
    """What `PIPE` writes: a line with the sender, a line with the recipients, the content."""
    sender, recipients, content = path.read_bytes().split(b"\n", 2)
    return Mail(sender.decode(), tuple(recipients.decode().split()), content)


def plain(value: str) -> str:
    bracketed = ADDRESS.search(value)
    return bracketed[1] if bracketed else value


PIPE = """#!/bin/sh
# deliver SENDER RECIPIENT...: stores the mail on standard input, complete or not at all.
umask 022
store={store}
sender=$1
shift
file=$(mktemp "$store/tmp/XXXXXXXXXX") || exit 75
{{ printf '%s\\n%s\\n' "$sender" "$*" && cat; }} >"$file" || exit 75
chmod 644 "$file" && mv "$file" "$store/new/" || exit 75
"""


def make_store(directory: Path, owner: int) -> Path:
    """An empty maildir that belongs to `owner`."""
    for folder in (directory, directory / "tmp", directory / "new", directory / "cur"):
        folder.mkdir()
        folder.chmod(0o755)
        if os.geteuid() == 0:
            os.chown(folder, owner, owner)
    return directory
