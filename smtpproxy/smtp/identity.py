"""Who logs in: the user name in what a client says in a SASL exchange (RFC 4954 §4).

What must never happen: a password, a token or a digest in what is given; an exception for what a stranger wrote. Where
the message is not exactly what its mechanism says, there is no name: a field taken for another may be the password.
"""

import binascii
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

_LONGEST: Final = 512  # characters of a name that are given
_CONTROLS: Final = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029]")
_PLAIN: Final = re.compile(rb"[^\0]*\0([^\0]+)\0[^\0]+").fullmatch  # RFC 4616 §2
_CRAM: Final = re.compile(rb"(.+) [0-9A-Fa-f]{32}", re.DOTALL).fullmatch  # RFC 2195 §2
_USER: Final = re.compile(rb"user=([^\x01]+)\x01auth=").match  # XOAUTH2, which has no RFC
_FLAG: Final = rb"(?:[ny]|p=[A-Za-z0-9.-]+),"  # the beginning of a GS2 header (RFC 5801 §4)
_NAME: Final = rb"((?:[^,=]|=2C|=3D)+)"  # saslname
_GS2: Final = re.compile(_FLAG + rb"a=" + _NAME + rb",\x01").match  # RFC 7628 §3.1
_SCRAM: Final = re.compile(_FLAG + rb"(?:a=[^,]+)?,(?:m=[^,]*,)?n=" + _NAME + rb",r=").match  # RFC 5802 §7
_QUOTED: Final = rb'"((?:[^"\\]|\\.)*+)"'
_DIGEST: Final = re.compile(  # RFC 2831 §2.1.2: directives in any order
    rb'(?:[ \t]*+[A-Za-z-]++=(?:"(?:[^"\\]|\\.)*+"|[^,"]*+)[ \t]*+,)*?[ \t]*+username=' + _QUOTED, re.DOTALL
).match


def identity(mechanism: bytes, responses: Sequence[bytes]) -> str:
    """The user name (authentication identity) of PLAIN, LOGIN, XOAUTH2, OAUTHBEARER, CRAM-MD5, DIGEST-MD5, SCRAM-*.

    Args:
        mechanism: in any case.
        responses: what the client said, in base64 without CRLF, secret or not: the initial response of AUTH if it had
            one, then each line.

    Gives "" for another mechanism and where no name is to be had. Control characters and what is not UTF-8 are written
    as escapes (`\\xfc`), so that two names are never one. Never raises.
    """
    name = mechanism.upper()
    read = _READERS.get(b"SCRAM-" if name.startswith(b"SCRAM-") else name)
    if read is None or not responses:
        return ""
    try:
        first = binascii.a2b_base64(bytes(responses[0]), strict_mode=True)
    except binascii.Error:
        return ""  # `=` and `*` too
    text = read(first).decode("utf-8", "backslashreplace")
    return _CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", text[:_LONGEST])


def _plain(octets: bytes) -> bytes:
    found = _PLAIN(octets)
    return found[1] if found else b""


def _login(octets: bytes) -> bytes:
    """The first line is the name, the second the password."""
    return octets


def _cram(octets: bytes) -> bytes:
    found = _CRAM(octets)
    return found[1] if found else b""


def _xoauth2(octets: bytes) -> bytes:
    found = _USER(octets)
    return found[1] if found else b""


def _oauthbearer(octets: bytes) -> bytes:
    found = _GS2(octets)
    return _saslname(found[1]) if found else b""


def _scram(octets: bytes) -> bytes:
    found = _SCRAM(octets)
    return _saslname(found[1]) if found else b""


def _digest(octets: bytes) -> bytes:
    found = _DIGEST(octets)
    return re.sub(rb"\\(.)", rb"\1", found[1], flags=re.DOTALL) if found else b""


def _saslname(name: bytes) -> bytes:
    """A comma and an equals sign are spelt in a name (RFC 5802 §5.1)."""
    return name.replace(b"=2C", b",").replace(b"=3D", b"=")


_READERS: Final[Mapping[bytes, Callable[[bytes], bytes]]] = MappingProxyType(
    {
        b"PLAIN": _plain,
        b"LOGIN": _login,
        b"CRAM-MD5": _cram,
        b"DIGEST-MD5": _digest,
        b"XOAUTH2": _xoauth2,
        b"OAUTHBEARER": _oauthbearer,
        b"SCRAM-": _scram,
    }
)
