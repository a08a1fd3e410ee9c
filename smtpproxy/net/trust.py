"""What a server's certificate must fit, asked of the network: TLSA records (DANE), or an MTA-STS policy.

One `Trust` belongs to one listener. Its task keeps what is known fresh; a session asks, and is called back: at once if
what is known still holds, else as soon as it is known anew, and in any case within 20 seconds. However many sessions
wait, one question is under way.

- DANE has no fallback: who configures it wants it. Records that are not there, not vouched for by DNSSEC, bogus or not
  to be had are all the same: a result and the reason, and the caller refuses TLS.
- DNSSEC is the resolver's work, and no resolver is asked about TLSA whose word does not count (resolving.py).
- MTA-STS keeps the policy it has until that expires, whatever the DNS and the policy's server say or don't
  (RFC 8461 §5.1). The TXT record is looked at every five minutes, and the policy fetched again when its id is another
  one, and once a day. A policy is known to this process only: it ends with it.
- Every answer is hostile: it has a deadline and a bound, and ends in `Knowledge` whatever it is.
"""

import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import structlog
import trio

from smtpproxy.net.fetching import FetchingError, fetch, prepare
from smtpproxy.net.resolving import Names, Resolver, ResolvingError, domain_name
from smtpproxy.tls.dane import TLSA, usable
from smtpproxy.tls.mtasts import Policy, Wrong, parse_policy, parse_txt
from smtpproxy.tls.verdict import DANE_REQUIRED, DNSSEC_INVALID, FAILED, STS_FETCH, STS_INVALID, TLSA_INVALID

__all__ = ["Kind", "Knowledge", "Resolver", "Trust", "TrustError"]

log = structlog.get_logger()

# Seconds.
PATIENCE = 20.0  # a session waits for an answer
SHORTEST, LONGEST = 1.0, 3600.0  # TLSA records are kept, whatever their TTL says
MISSING = 300.0  # at most, that there are none that count
AGAIN = 10.0  # after a resolver failed
CHECK = 300.0  # between two looks at the TXT record, and after the policy could not be fetched (RFC 8461 §3.3)
REFETCH = 86_400.0  # after which a policy is fetched again though its id is the same

Kind = Literal["dane", "mta-sts"]


class Knowledge(NamedTuple):
    """What is known: records, or a policy, or neither and why; `result` is a result type of RFC 8460 §4.3.

    No policy and no `result`: the domain has no MTA-STS.
    """

    records: tuple[TLSA, ...] = ()
    policy: Policy | None = None
    result: str = ""
    why: str = ""


class TrustError(Exception):
    """What is configured can't work; the text says why, and what to do."""


class _Learnt(NamedTuple):
    """Knowledge, how long it may be given, and when to look again; in seconds from now."""

    knowledge: Knowledge
    holds: float
    look_again: float


class _Kept(NamedTuple):
    """A policy that was fetched; times by the clock of `Trust`."""

    id: str
    policy: Policy
    fetched: float
    expires: float


class Trust:
    """Keeps what is known about one server (dane) or one domain (mta-sts)."""

    def __init__(
        self,
        kind: Kind,
        host: str,
        port: int,
        domain: str,
        resolver: Resolver,
        *,
        clock: Callable[[], float] = time.monotonic,
        https_port: int = 443,
        roots: Path | str | None = None,
    ) -> None:
        """`host` and `port` are the server's, for dane; `domain` is the recipients', for mta-sts.

        `clock` is in seconds; `roots` a PEM file for the policy's server, None for the system's.

        Raises:
            TrustError: it can't work: a library is missing, a name is none, roots can't be read.
        """
        self._kind = kind
        self._clock = clock
        try:
            self._source: _Records | _Policies = (
                _Records(host, port, resolver)
                if kind == "dane"
                else _Policies(domain, resolver, clock=clock, port=https_port, roots=roots)
            )
        except ImportError as error:
            raise TrustError(f'verify = "{kind}" needs more: pip install "smtpproxy[{kind}]" ({error})') from error
        except (OSError, ValueError) as error:
            raise TrustError(f'verify = "{kind}": {error}') from error
        self._known = Knowledge()
        self._holds_until = self._look_again = float("-inf")
        self._waiting: deque[tuple[float, Callable[[Knowledge], None]]] = deque()  # until when, who
        self._asked = trio.Event()
        self._over = False

    def ask(self, done: Callable[[Knowledge], None]) -> None:
        """Calls `done` once with what is known: before this returns, or from the task of `run`."""
        if self._over:
            done(Knowledge(result=self._source.lost, why="the proxy stops"))
        elif self._clock() < self._holds_until:
            done(self._known)
        else:
            self._waiting.append((self._clock() + PATIENCE, done))
            self._asked.set()

    async def run(self) -> None:
        """Keeps it fresh until cancelled; who still waits then is told so."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._lose_patience)
                while True:
                    await self._refresh()
                    self._tell(self._known)
                    await trio.sleep(max(0.0, self._look_again - self._clock()))
        finally:
            self._over = True
            self._tell(Knowledge(result=self._source.lost, why="the proxy stops"))

    def _tell(self, knowledge: Knowledge, until: float = float("inf")) -> None:
        """Calls those who wait until then at the latest."""
        while self._waiting and self._waiting[0][0] <= until:
            _, done = self._waiting.popleft()
            try:
                done(knowledge)
            except Exception as error:  # our own bug: one session's, not the next one's
                log.error("a session failed", exc_info=error)

    async def _lose_patience(self) -> None:
        """Tells those who have waited too long; the question goes on."""
        while True:
            if not self._waiting:
                self._asked = trio.Event()
                await self._asked.wait()
            elif (left := self._waiting[0][0] - self._clock()) > 0:
                await trio.sleep(left)
            else:
                late = Knowledge(result=self._source.lost, why=f"no answer within {PATIENCE:.0f} seconds")
                self._tell(late, self._clock())

    async def _refresh(self) -> None:
        try:
            learnt = await self._source.learn()
        except Exception as error:  # our own bug: no trust comes of it, and it is asked again
            log.error("what the server's certificate must fit is not known", of=self._source.subject, exc_info=error)
            learnt = _Learnt(Knowledge(result=FAILED, why=f"internal error: {type(error).__name__}"), AGAIN, AGAIN)
        before, self._known = self._known, learnt.knowledge
        now = self._clock()
        self._holds_until, self._look_again = now + learnt.holds, now + learnt.look_again
        if self._known.why and (self._known.result, self._known.why) != (before.result, before.why):
            log.warning(
                "what the server's certificate must fit is not known",
                of=self._source.subject,
                result=self._known.result,
                why=self._known.why,
            )


class _Records:
    """The TLSA records of a server (RFC 7672 §2.2)."""

    lost = DNSSEC_INVALID  # the result when nothing could be learnt

    def __init__(self, host: str, port: int, resolver: Resolver) -> None:
        self._names = Names(resolver, vouching=True)
        self._name = domain_name(host, f"_{port}", "_tcp")
        self.subject = f"_{port}._tcp.{host}"

    async def learn(self) -> _Learnt:
        """Asks once."""
        try:
            answer = await self._names.ask(self._name, "TLSA")
        except ResolvingError as error:
            return _Learnt(Knowledge(result=DNSSEC_INVALID, why=str(error)), AGAIN, AGAIN)
        found = tuple(TLSA(data.usage, data.selector, data.mtype, bytes(data.cert)) for data in answer.records)
        records = usable(found)
        keep = min(max(answer.ttl, SHORTEST), LONGEST)
        if not found:
            knowledge = Knowledge(result=DANE_REQUIRED, why=f"there is no TLSA record at {self.subject}")
        elif not answer.secure:
            knowledge = Knowledge(result=DANE_REQUIRED, why=f"the TLSA records at {self.subject} are not signed")
        elif not records:
            knowledge = Knowledge(result=TLSA_INVALID, why=f"no TLSA record at {self.subject} is usable")
        else:
            return _Learnt(Knowledge(records), keep, keep)
        return _Learnt(knowledge, min(keep, MISSING), min(keep, MISSING))


class _Policies:
    """The MTA-STS policy of a domain (RFC 8461 §3, §5.1)."""

    lost = STS_FETCH

    def __init__(
        self, domain: str, resolver: Resolver, *, clock: Callable[[], float], port: int, roots: Path | str | None
    ) -> None:
        self._names = Names(resolver)
        self._name = domain_name(domain, "_mta-sts")
        self._server = domain_name(domain, "mta-sts")
        self._host = self._server.to_text(omit_final_dot=True)
        self._context = prepare(roots)
        self._port = port
        self._clock = clock
        self._kept: _Kept | None = None
        self.subject = domain

    async def learn(self) -> _Learnt:
        """Looks at what the domain publishes now; what it published holds where that can't be had."""
        again = CHECK
        try:
            knowledge = await self._live()
        except ResolvingError as error:
            knowledge, again = Knowledge(result=STS_FETCH, why=str(error)), AGAIN
        except FetchingError as error:
            knowledge = Knowledge(result=error.result, why=str(error))
        now = self._clock()
        if self._kept is None or self._kept.expires <= now:
            self._kept = None
            return _Learnt(knowledge, again, again)
        left = self._kept.expires - now
        return _Learnt(knowledge._replace(policy=self._kept.policy, result=""), left, min(left, again))

    async def _live(self) -> Knowledge:
        """What is wrong with what is published; the policy is kept if nothing is."""
        answer = await self._names.ask(self._name, "TXT")
        found = parse_txt(b"".join(data.strings) for data in answer.records)
        if isinstance(found, Wrong):
            return Knowledge(result="" if found.absent else STS_INVALID, why=f"{self.subject}: {found.why}")
        kept = self._kept
        if kept is not None and kept.id == found and self._clock() < min(kept.fetched + REFETCH, kept.expires):
            return Knowledge()
        try:
            addresses = await self._names.addresses(self._server)
        except ResolvingError as error:
            raise FetchingError(str(error)) from error
        octets = await fetch(addresses, self._port, self._host, self._context)
        policy = parse_policy(octets)
        if isinstance(policy, Wrong):
            return Knowledge(result=STS_INVALID, why=f"{self.subject}: {policy.why}")
        now = self._clock()
        # One that expires before the next look would be fetched for each session.
        self._kept = _Kept(found, policy, now, now + max(policy.max_age, CHECK))
        return Knowledge()
