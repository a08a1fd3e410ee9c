"""What rules count, in all workers together: rates of anything that has a name, and locks that end by themselves.

One shared memory, made by the supervisor before it first reads rules and forks: workers inherit it, and so do those of
every later generation, so a reload forgets nothing. (A hand-over does: another program begins with another memory.)

A rate is kept as one time, by the generic cell rate algorithm (ITU-T I.371): from when on nothing of it is used up any
more. Each hit of n moves it n/most of the window further, and is over if it would come to stand more than a window
ahead. So `most` are let through at once and one more each within/most seconds: no more than `most` for each window in
the long run, and in the first window behind a full burst up to twice as many. What is over is not counted, so who
tries again and again is not shut out for ever; for that there are locks. A lock is a time, too: its end.

How it errs:

- A key is 64 bits of a keyed hash in the one bucket that other bits of it choose, and nobody outside knows the hash's
  key. That two keys are taken for one is as likely as guessing, and can't be brought about.
- Memory is bounded. A bucket has 8 places; a ninth key takes the place of the one that would be forgotten the soonest,
  which is the one that has counted the least of its window. It is the flood of new keys that makes room for itself.
  Locks have buckets of their own, where counting moves nobody out.
- There are no locks between processes, so that none waits for another that was stopped or killed. Two that count the
  same key may count one hit for two if both are in the middle of the one line that adds it, and one that is preempted
  there takes back what others counted meanwhile. Two processes that do nothing but count the same key let a tenth more
  through than they should; at one hit in 100 us, which is a fast client, it is some in a thousand.
- A time that can't be (a limit was changed, two new keys met in one place) counts as a window that is full: it is over
  within one window at the latest.

What must never happen: that anything here waits; that somebody outside can choose what meets in a bucket.
"""

import mmap
import os
from collections.abc import Mapping
from functools import lru_cache
from hashlib import blake2b
from ipaddress import ip_address, ip_network
from struct import Struct
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from smtpproxy.policy.fields import FIELDS

if TYPE_CHECKING:
    from smtpproxy.policy.fields import View
    from smtpproxy.policy.rules import Limit

SLOTS: Final = 2**20  # keys that are counted at a time: 16 MiB, of which those pages exist that were written to
WAYS: Final = 8  # places of a bucket
_BUCKET: Final = Struct(f"={WAYS}Q{WAYS}d")  # the keys, and up to when each is kept
_WORDS: Final = 2 * WAYS
_LOCKED: Final = 8  # one bucket for locks for so many for counts
_DIGEST: Final = Struct("=QQ")  # which bucket, and which key
_NANO: Final = 1_000_000_000
_LOCK: Final = "lock\0"
_ROUNDING: Final = 1 / 8  # of a step
_IMPOSSIBLE: Final = 5 / 4  # windows ahead; a step is a whole window at most, so an eighth of one is possible
_V4, _V6 = 24, 64  # bits of a network that are taken for one client's


class Counters:
    """The memory. What is forked after this was made shares it."""

    def __init__(self, slots: int = SLOTS) -> None:
        """`slots` is how many keys are counted at a time.

        Raises:
            ValueError: less than one bucket of them.
            OSError: the system has not as much memory.
        """
        self._buckets = slots // WAYS
        if self._buckets < 1:
            raise ValueError(f"{slots} slots are less than {WAYS}")
        self._of_locks = -(-self._buckets // _LOCKED)
        self._key = os.urandom(32)
        self._memory = mmap.mmap(-1, (self._buckets + self._of_locks) * _BUCKET.size)
        whole = memoryview(self._memory)
        self._keys, self._times = whole.cast("Q"), whole.cast("d")  # the same octets, as numbers and as times

    def hit(self, key: str, most: int, within: float, now: float, n: int = 1) -> bool:
        """Count `n` more of `key`; True if they are over what is let through, and then they are not counted.

        Args:
            key: whatever is counted. The same key with another window would be counted wrongly: put it in the key.
            most: how many are let through.
            within: seconds.
            now: seconds, by the session's clock.
            n: how many there are.

        Raises:
            ValueError: the window has no length.
        """
        bucket, fingerprint = self._place(key, b"rate", 0, self._buckets)
        at, there, until = self._look(bucket, fingerprint, now)
        if until - now > _IMPOSSIBLE * within:
            until = self._times[at] = now + within
        further = _further(until - now, most, within, n)
        if further is None:
            return True
        if there:
            # Read once more: two processes that both count lose a hit only if both are in the middle of this line.
            self._times[at] = max(self._times[at], now) + further
        else:
            self._times[at] = now + further
            self._keys[at - WAYS] = fingerprint
        return False

    def over(self, key: str, most: int, within: float, now: float, n: int = 1) -> bool:
        """Whether `hit` would say so; nothing is counted.

        Raises:
            ValueError: the window has no length.
        """
        until = self._look(*self._place(key, b"rate", 0, self._buckets), now)[2]
        return _further(min(until - now, within), most, within, n) is None

    def lock(self, key: str, until: float) -> None:
        """Lock `key` up to this time, by the session's clock, in place of what was said before."""
        bucket, fingerprint = self._place(key, b"lock", self._buckets, self._of_locks)
        at = self._look(bucket, fingerprint, until)[0]
        self._times[at] = until
        self._keys[at - WAYS] = fingerprint

    def locked(self, key: str, now: float) -> bool:
        """Whether it is."""
        return self._look(*self._place(key, b"lock", self._buckets, self._of_locks), now)[2] > now

    def _place(self, key: str, kind: bytes, first: int, buckets: int) -> tuple[int, int]:
        digest = blake2b(key.encode("utf-8", "surrogatepass"), key=self._key, digest_size=16, person=kind).digest()
        bucket, fingerprint = _DIGEST.unpack(digest)
        return first + bucket % buckets, fingerprint

    def _look(self, bucket: int, fingerprint: int, now: float) -> tuple[int, bool, float]:
        """Where the time of a key is, or may be put; whether it is there; up to when it is kept, `now` if no longer."""
        found = _BUCKET.unpack_from(self._memory, bucket * _BUCKET.size)
        first, times = bucket * _WORDS + WAYS, found[WAYS:]
        if fingerprint in found[:WAYS]:
            way = found.index(fingerprint)
            return first + way, True, max(times[way], now)
        return first + times.index(min(times)), False, now


def _further(ahead: float, most: int, within: float, n: int) -> float | None:
    """How much further `n` more move the time of what is so far ahead; None: they are over.

    Raises:
        ValueError: the window has no length.
    """
    if not within > 0:
        raise ValueError(f"a window of {within} seconds")
    if n > most:
        return None
    if n <= 0:
        return 0.0
    step = within / most
    # The rest of a step is for what rounding comes to. It is used once: what is ahead stays ahead.
    return n * step if ahead + n * step <= within + step * _ROUNDING else None


# ---------------------------------------------------------------------------------------------------- acts that limit


def exceeded(limit: "Limit", rule: str, view: "View", counters: Counters) -> bool:
    """Count what this is about, under the rule's name; True if it is one too many, and then it is not counted.

    - Whose it is stands in the key (`owner`); all who have none (no sender, not logged in) are counted as one.
    - What is counted for each session, or within 0 seconds, is counted in the session; octets within 0 seconds are
      those of one mail, and nobody counts.
    - Where the limit locks, all is one too many until the lock ends.

    Args:
        limit: the act.
        rule: its rule's name; a rule has one limit.
        view: what the rule is asked about.
        counters: those of all workers.
    """
    session = view.session
    now = session.clock()
    alone = limit.per == "session"
    who = lock_key(rule, owner(limit.per, view))
    if limit.lock and (session.counts.get(_LOCK + who, 0) > now * _NANO if alone else counters.locked(who, now)):
        return True
    n = _how_many(limit.what, view)
    if limit.within <= 0:
        over = n > limit.most if limit.what == "octets" else _over_in_all(session.counts, limit, who, n)
    elif alone:
        over = _over_in_time(session.counts, limit, who, now, n)
    else:
        over = counters.hit(f"{limit.within}\0{who}", limit.most, limit.within, now, n)
    if over and limit.lock:
        until = now + limit.lock
        if alone:
            session.counts[_LOCK + who] = int(until * _NANO)
        else:
            counters.lock(who, until)
    return over


def lock_key(rule: str, value: str) -> str:
    """The key under which the limit of a rule locks somebody, in whatever letters he is written: a limit that spelling
    goes round is none."""
    return f"{rule}\0{value.casefold()}"


def locked(counters: Counters, rule: str, value: str, now: float) -> bool:
    """Whether the limit of this rule has locked somebody; for the function `locked` of conditions.

    Args:
        counters: those of all workers.
        rule: the name of the rule with the limit.
        value: who: an address, a mail address, a domain, an identity, as the limit's `per` is; "" for "all". An IP
            address also asks for the network it is in. What a session has locked for itself is not asked.
        now: seconds, by the session's clock.
    """
    if counters.locked(lock_key(rule, value), now):
        return True
    network = network_of(value)
    return network != value and counters.locked(lock_key(rule, network), now)


def owner(per: str, view: "View") -> str:
    """Whose it is; "" for "session" and "all", and where there is nobody: the null reverse-path, a client that has not
    logged in.

    Raises:
        KeyError: no such `per`.
    """
    field = FIELD_OF[per]
    value = str(FIELDS[field].get(view)) if field else ""
    return network_of(value) if per == "network" else value


@lru_cache(maxsize=4096)
def network_of(address: str) -> str:
    """The network that is taken for one client's: /24 of IPv4, /64 of IPv6 (RFC 6177 §2: nobody is given less). An IPv4
    address in an IPv6 one counts as itself; what is no address stays as it is."""
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if found.version == 6 and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    return str(ip_network((found, _V4 if found.version == 4 else _V6), strict=False))


# The field that says whose it is, for each `per`.
FIELD_OF: Final[Mapping[str, str]] = MappingProxyType(
    {
        "session": "",
        "client": "client.address",
        "network": "client.address",
        "sender": "mail.address",
        "sender-domain": "mail.domain",
        "recipient": "rcpt.address",
        "recipient-domain": "rcpt.domain",
        "identity": "client.identity",
        "all": "",
    }
)


def _how_many(what: str, view: "View") -> int:
    """How many more there are."""
    return int(FIELDS["content.size"].get(view)) if what == "octets" else 1


def _over_in_all(counts: dict[str, int], limit: "Limit", key: str, n: int) -> bool:
    """As `Counters.hit`, for ever."""
    if (after := counts.get(key, 0) + n) > limit.most:
        return True
    counts[key] = after
    return False


def _over_in_time(counts: dict[str, int], limit: "Limit", key: str, now: float, n: int) -> bool:
    """As `Counters.hit`; times are kept in nanoseconds."""
    until = max(counts.get(key, 0) / _NANO, now)
    further = _further(until - now, limit.most, limit.within, n)
    if further is None:
        return True
    counts[key] = int((until + further) * _NANO)
    return False
