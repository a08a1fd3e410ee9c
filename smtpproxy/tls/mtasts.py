"""MTA-STS (RFC 8461) as values: the TXT record, the policy, and which hosts it lets mail go to.

Octets in, values out; who asks the DNS and fetches the policy is net/trust.py. Both texts are somebody else's: what the
grammar does not have in full is `Wrong`, with the reason, and nothing is raised. What RFC 8461 wants kept: fields
nobody knows are passed over, of a field that is there twice the first one holds, `mx` excepted (§3.2).

Taken although the grammar does not have it: blank lines, which editors leave at the end of the file; and a max_age
above the year that is allowed, which counts as that year. Refused there, either would leave mail without a policy.
"""

import re
from collections.abc import Iterable
from enum import Enum
from typing import NamedTuple

MAX_POLICY = 65_536  # octets (§3.3)
MAX_AGE = 31_557_600  # seconds: a year (§3.2)
MAX_HOSTS = 1000  # mx lines

_NAME = rb"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}"
_ID = re.compile(rb"[A-Za-z0-9]{1,32}")
_VERSION = re.compile(rb"v=STSv1[ \t]*;")
_FIELD = re.compile(rb"(%s)=([\x21-\x3a\x3c\x3e-\x7e]+)" % _NAME)
_LINE = re.compile(rb"(%s):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)" % _NAME)
_LABEL = rb"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST = re.compile(rb"(?:\*\.)?%s(?:\.%s)*" % (_LABEL, _LABEL))
_AGE = re.compile(rb"[0-9]{1,10}")


class Mode(Enum):
    """What a sender does where the policy is not kept (§5)."""

    ENFORCE = "enforce"  # no mail to such a host
    TESTING = "testing"  # mail goes, the failure is reported
    NONE = "none"  # as if there were no policy

    __hash__ = object.__hash__


class Wrong(NamedTuple):
    """Why there is no value. `absent`: there is nothing, not even something broken."""

    why: str
    absent: bool = False


class Policy(NamedTuple):
    """A policy; `max_age` in seconds from when it was fetched."""

    mode: Mode
    mx: tuple[str, ...]  # lower case; "*." stands for one label
    max_age: int

    def matches(self, host: str) -> bool:
        """Whether mail for the domain may go to `host` (§4.1): the asterisk is the whole left-most label, and one."""
        host = host.removesuffix(".").lower()
        first, _, rest = host.partition(".")
        return host in self.mx or bool(first and rest and f"*.{rest}" in self.mx)


def parse_txt(records: Iterable[bytes]) -> str | Wrong:
    """The id in the TXT records at _mta-sts (§3.1). The strings of a record are joined already."""
    ours = [record for record in records if _VERSION.match(record)]
    if not ours:
        return Wrong("no MTA-STS record", absent=True)
    if len(ours) > 1:
        return Wrong(f"{len(ours)} MTA-STS records where there is to be one")
    fields = [field.strip(b" \t") for field in ours[0].split(b";")]
    if not fields[-1]:
        fields.pop()
    found: dict[bytes, bytes] = {}
    for field in fields[1:]:
        match = _FIELD.fullmatch(field)
        if match is None:
            return Wrong(f"the MTA-STS record has a field that is none: {_shown(field)}")
        found.setdefault(match[1], match[2])
    if not _ID.fullmatch(found.get(b"id", b"")):
        return Wrong(
            f"the MTA-STS record's id is {_shown(found[b'id'])}" if b"id" in found else "the MTA-STS record has no id"
        )
    return found[b"id"].decode("ascii")


def parse_policy(octets: bytes) -> Policy | Wrong:
    """The policy in the body that was fetched (§3.2)."""
    if len(octets) > MAX_POLICY:
        return Wrong(f"the policy has more than {MAX_POLICY} octets")
    values: dict[bytes, bytes] = {}
    hosts: dict[str, None] = {}
    for line in octets.split(b"\n"):
        line = line.removesuffix(b"\r").rstrip(b" \t")
        if not line:
            continue
        found = _LINE.fullmatch(line)
        if found is None:
            return Wrong(f"the policy has a line that is none: {_shown(line)}")
        if found[1] != b"mx":
            values.setdefault(found[1], found[2])
        elif not _HOST.fullmatch(found[2]) or len(found[2]) > 255:
            return Wrong(f"the policy has an mx that is none: {_shown(found[2])}")
        else:
            hosts[found[2].decode("ascii").lower()] = None
    return _policy(values, tuple(hosts))


def _policy(values: dict[bytes, bytes], hosts: tuple[str, ...]) -> Policy | Wrong:
    missing = [name for name in (b"version", b"mode", b"max_age") if name not in values]
    if missing:
        return Wrong(f"the policy has no {missing[0].decode()}")
    if values[b"version"] != b"STSv1":
        return Wrong(f"the policy's version is {_shown(values[b'version'])}")
    modes = {mode.value.encode(): mode for mode in Mode}
    mode = modes.get(values[b"mode"])
    if mode is None:
        return Wrong(f"the policy's mode is {_shown(values[b'mode'])}")
    if not _AGE.fullmatch(values[b"max_age"]):
        return Wrong(f"the policy's max_age is {_shown(values[b'max_age'])}")
    if not hosts and mode is not Mode.NONE:
        return Wrong("the policy has no mx")
    if len(hosts) > MAX_HOSTS:
        return Wrong(f"the policy has more than {MAX_HOSTS} mx")
    return Policy(mode, hosts, min(int(values[b"max_age"]), MAX_AGE))


def _shown(octets: bytes) -> str:
    """Somebody else's octets for a text: printable, and not many."""
    return ascii(octets[:40].decode("latin-1")) + ("…" if len(octets) > 40 else "")
