"""What of a record is proved: its entry, the leaf of the tree.

A line of the record is a flat JSON object. What is about persons, and what peers wrote, stands at its end, behind a
salt:

    {"v":1,"at":"…","kind":"exchange","verb":"RCPT","salt":"q2Xv…","asked":"RCPT TO:<a@b.example>","got":"250 Ok"}
    └─────────────────── public ───────────────────┘└───────────────────────── personal ─────────────────────────┘

The entry is the same object with a commitment in place of what is personal:

    {"v":1,"at":"…","kind":"exchange","verb":"RCPT","personal":"2jmj7l5rSw0yVb_vlWAYkK_YBwk…"}

That is base64url (RFC 4648 §5, without padding) of the SHA-256 of the octets from `"salt"` to before the last brace. A
line without salt is its own entry, and so is one whose last octet is no brace. The leaf is SHA-256(0x00 || entry), as
RFC 9162 §2.1 has it. So what is personal can be taken away later and the tree stays as it was; without the salt, nobody
can find out by trying what it was.

What must never happen: two readings of one line. `,"salt":"` is in no string of a JSON object, because a quote within
a string has a backslash before it; and the proxy has one key of that name.
"""

import os
from base64 import urlsafe_b64encode
from binascii import b2a_base64
from collections.abc import Callable
from hashlib import sha256
from typing import Final

SALT: Final = b',"salt":"'
SALT_OCTETS: Final = 16
_URL_SAFE: Final = bytes.maketrans(b"+/", b"-_")
_SALTS: Final = 64  # made at once: asking the system for chance costs more than cutting it up


def entry_of(line: bytes) -> bytes:
    """The entry of a line (without line end): what is proved of it. Of an erased one it is the line itself."""
    at = line.find(SALT)
    if at < 0 or line[-1:] != b"}":  # what is committed to ends before the brace, so that has to be one
        return line
    commitment = b2a_base64(sha256(line[at + 1 : -1]).digest(), newline=False)[:43].translate(_URL_SAFE)
    return b'%b,"personal":"%b"}' % (line[:at], commitment)


def leaf_of(line: bytes) -> bytes:
    """The leaf hash of a line (RFC 9162 §2.1.1), 32 octets."""
    return sha256(b"\0" + entry_of(line)).digest()


def is_erasable(line: bytes) -> bool:
    """Whether there is something personal left in it."""
    return SALT in line


def salts() -> Callable[[], str]:
    """Fresh salts, one a call: 22 characters of base64url. A process that was forked must make its own."""
    kept: list[str] = []

    def salt() -> str:
        if not kept:
            chance = os.urandom(SALT_OCTETS * _SALTS)
            kept.extend(
                urlsafe_b64encode(chance[at : at + SALT_OCTETS])[:22].decode()
                for at in range(0, len(chance), SALT_OCTETS)
            )
        return kept.pop()

    return salt
