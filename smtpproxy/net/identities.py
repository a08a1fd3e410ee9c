"""What a listener shows to its clients: a certificate that was given, or one made after the server's own.

- Given ones are chosen by the name the client asks for (SNI) and looked at again once a second: what changed on disk is
  used for the next session, and what can't be used is told in the log while the old one stays in force.
- Where none was given one is made: like the server's, with a key of its own, by the CA if the server was verified, else
  self-signed. A client that verifies then fails as it would without the proxy; never is a certificate that did not
  verify made into one that does (attacks.md H2, H11).
- Making one takes a while, so it is made once: whoever asks meanwhile waits for the same one (single flight), and it is
  kept, with its context, for as long as it is good. How many are kept is bounded; the one not asked for longest goes.
"""

import os
import ssl
from collections import OrderedDict
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import NamedTuple

import structlog

from smtpproxy.config import CertificateConfig
from smtpproxy.net.signing import Signer
from smtpproxy.tls.certificates import facts, sections
from smtpproxy.tls.contexts import CertificateError, for_client, read_pair
from smtpproxy.tls.minting import Leaf, Likeness, likeness, likeness_of, self_signed
from smtpproxy.tls.verifying import fits

log = structlog.get_logger()

KEPT = 1000  # made certificates of a listener
GOOD = 12 * 3600.0  # seconds a made one is used; it is valid for longer
DAYS = 30  # a self-signed one is valid at most


class Pair(NamedTuple):
    """A certificate (DER), its names, and the context that shows it."""

    leaf: bytes
    names: tuple[str, ...]
    context: ssl.SSLContext


class Identity(NamedTuple):
    """What a client will be shown."""

    choose: Callable[[str], Pair]  # by the name it asks for
    shown: str  # "given", "minted" or "self-signed"


Done = Callable[[Identity | str], None]  # the identity, or why there is none


class Given:
    """Certificates from files.

    Raises:
        CertificateError: one of them can't be used.
    """

    def __init__(self, certificates: Sequence[CertificateConfig], *, legacy: bool, keylog: str) -> None:
        self._certificates = tuple(certificates)
        self._legacy = legacy
        self._keylog = keylog
        self._seen = self._told = self._look()
        self._pairs = self._load()

    def _load(self) -> list[Pair]:
        pairs = []
        for entry in self._certificates:
            chain, key = read_pair(entry.chain, entry.key)
            leaf = first_certificate(chain)
            context = for_client(chain, key, legacy=self._legacy, keylog=self._keylog)
            pairs.append(Pair(leaf, tuple(name.lower() for name in facts(leaf).names), context))
        return pairs

    def _look(self) -> list[object]:
        """What tells whether a file is another one than before."""
        found: list[object] = []
        for path in (path for entry in self._certificates for path in (entry.chain, entry.key) if path):
            try:
                status = os.stat(path)
                found.append((status.st_ino, status.st_mtime_ns, status.st_size))
            except OSError as error:
                found.append(error.errno)
        return found

    def check(self) -> None:
        """Read them again if they changed; what can't be used leaves the old ones in force, and is tried again."""
        seen = self._look()
        if seen == self._seen:
            return
        try:
            self._pairs = self._load()
        except CertificateError as error:
            if seen != self._told:  # once is enough
                log.error("a certificate was not reloaded: the one in force stays", why=str(error))
            self._told = seen
        else:
            self._seen = self._told = seen
            log.info("certificates reloaded", files=len(self._pairs))

    def described(self) -> list[str]:
        """Each, by its names and the end of its time."""
        return [f"{', '.join(pair.names) or 'no name'} until {facts(pair.leaf).not_after}" for pair in self._pairs]

    def identity(self) -> Identity:
        """What is in force now."""
        pairs = self._pairs

        def choose(name: str) -> Pair:
            for pair in pairs:
                if name and any(fits(name, one) for one in pair.names):
                    return pair
            return pairs[0]

        return Identity(choose, "given")


class Made:
    """Certificates made after the servers' own."""

    def __init__(
        self,
        signer: Signer | None,
        host: str,
        *,
        trusted: bool,
        legacy: bool,
        keylog: str,
        wall: Callable[[], float],
        vouched: bool = True,
    ) -> None:
        """What is certified, and by whom.

        Args:
            signer: the CA's; None: there is none.
            host: the server's name; certified where the server shows nothing.
            trusted: by the CA, where the server shows nothing; else self-signed.
            legacy, keylog: as in `for_client`.
            wall: the time of day, Unix seconds.
            vouched: who verified is all that the names of its certificate say, because a CA that is trusted has looked
                at them. DANE vouches for `host` alone: the server's own DNS says what its certificate is.
        """
        self._signer = signer
        self._host = host.partition("%")[0]  # the zone of a link-local address is ours alone
        self._trusted = trusted
        self._vouched = vouched
        self._legacy = legacy
        self._keylog = keylog
        self._wall = wall
        self._kept: OrderedDict[tuple[bytes, bool, str], tuple[Identity, float]] = OrderedDict()
        self._waiting: dict[tuple[bytes, bool, str], list[Done]] = {}

    def prepare(self, leaf: bytes, verified: bool, done: Done, host: str = "") -> None:
        """Have one like `leaf` (DER; b"": the server showed none); `done` is called once, perhaps at once. `host` is
        the server where each session may have another."""
        host = host or self._host
        by_ca = self._signer is not None and (verified if leaf else self._trusted)
        key = sha256(leaf).digest(), by_ca, host
        found = self._kept.get(key)
        if found is not None:
            if self._wall() < found[1]:
                self._kept.move_to_end(key)
                done(found[0])
                return
            del self._kept[key]
        waiting = self._waiting.get(key)
        if waiting is not None:
            waiting.append(done)
            return
        like, by_ca = self._like(leaf, by_ca, host)
        if self._signer is None or not by_ca:
            done(self._keep(key, like, self_signed(like, self._wall(), DAYS), "self-signed"))
            return
        self._waiting[key] = [done]
        self._signer.mint(like, lambda made: self._minted(key, like, made))

    def _like(self, leaf: bytes, by_ca: bool, host: str) -> tuple[Likeness, bool]:
        """What is made; one that can't be read is never the CA's to vouch for."""
        if leaf:
            try:
                like = likeness(leaf)
                if by_ca and not self._vouched:
                    like = like._replace(names=likeness_of(host, self._wall()).names)
                # DANE verifies without a name and beyond the time; the CA signs neither.
                return like, by_ca and bool(like.names) and self._wall() < like.not_after
            except ValueError as error:
                log.warning("the server's certificate can't be mirrored", server=host, why=str(error))
                by_ca = False
        return likeness_of(host, self._wall()), by_ca

    def _minted(self, key: tuple[bytes, bool, str], like: Likeness, made: Leaf | str) -> None:
        waiting = self._waiting.pop(key)
        if isinstance(made, str):
            answer: Identity | str = f"no certificate from the CA: {made}"
        else:
            answer = self._keep(key, like, made, "minted")
        for done in waiting:
            done(answer)

    def _keep(self, key: tuple[bytes, bool, str], like: Likeness, made: Leaf, shown: str) -> Identity | str:
        try:
            context = for_client(made.chain, made.key, legacy=self._legacy, keylog=self._keylog)
            pair = Pair(first_certificate(made.chain), like.names, context)
        except CertificateError as error:
            return f"what was made can't be used: {error}"
        identity = Identity(lambda _: pair, shown)
        now = self._wall()
        # One whose time is over (the server's is) is made again every minute: it is none that is asked for often.
        self._kept[key] = identity, max(min(now + GOOD, like.not_after - 60.0), now + 60.0)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return identity


def first_certificate(chain: bytes) -> bytes:
    """The first certificate of a PEM file, as DER.

    Raises:
        CertificateError: there is none.
    """
    first = next(iter(sections(chain)), b"")
    if not first:
        raise CertificateError("no certificate in PEM form")
    return first
