"""TLS towards the server: what its certificate must be, and whether it is.

By `verify` of the listener:

    record    every certificate is taken; the record says whether it would have passed, and why not
    verify    chain and name, by OpenSSL within the handshake; else no TLS, and no session in clear either
    dane      one of its TLSA records (RFC 7672); no records that count, no TLS
    mta-sts   while the policy is `enforce`: the name is one of its mx, and chain and name as for `verify`; while it is
              `testing`, or there is none, as for `record`

Where a session goes to wherever its client was going, only the address is known: then no name is asked for by SNI, and
`record` looks at the chain alone. That is enough for the CA to certify what the certificate says, because the client
looks for the name it meant in it; it is not enough to call the server verified.

No session is resumed on this link: Python copies it whenever it is taken out or put in, which costs what resuming saves
with TLS 1.3 and P-256, and most of it elsewhere (bench/README.md has the figures). So each server shows its
certificate, and proves its key, every time.
"""

import copy
import ssl
from collections.abc import Callable
from typing import NamedTuple

from smtpproxy.config import TLSConfig, is_address
from smtpproxy.net.trust import Knowledge, Trust
from smtpproxy.tls.channel import Channel, HandshakeError
from smtpproxy.tls.contexts import for_server, read_pair
from smtpproxy.tls.dane import check_dane
from smtpproxy.tls.mtasts import Mode
from smtpproxy.tls.verdict import HOST_MISMATCH, NOT_TRUSTED, Verdict
from smtpproxy.tls.verifying import Roots, openssl_verdict, verify_chain

_NOTHING = Knowledge()
_VERIFIED = Verdict(True)
_CHAIN_ONLY = Verdict(False, "", "the chain is valid; the name the server should have is not known")


class Attempt(NamedTuple):
    """A handshake with the server, and what is known about it."""

    channel: Channel
    strict: bool  # OpenSSL verifies
    knowledge: Knowledge


class Towards:
    """TLS towards the server of one listener, whose certificate is to be for `name`.

    Raises:
        CertificateError, OSError, ValueError: a file that is configured can't be used.
    """

    def __init__(
        self,
        config: TLSConfig,
        name: str,
        *,
        trust: Trust | None,
        keylog: str,
        wall: Callable[[], float],
    ) -> None:
        self.name = name = name.partition("%")[0]  # of a link-local address the zone is ours alone
        self.sni = "" if is_address(name) else name  # RFC 6066 §3: names only
        self._nameless = False
        self._kind = config.verify
        self._legacy = config.legacy
        self._trust = trust
        self._wall = wall
        chain = key = b""
        if config.client_certificate is not None:
            chain, key = read_pair(config.client_certificate.chain, config.client_certificate.key)

        def context(verify: bool) -> ssl.SSLContext:
            return for_server(
                verify=verify, roots=config.roots, chain=chain, key=key, legacy=config.legacy, keylog=keylog
            )

        strict = config.verify in ("verify", "mta-sts")
        self._taking = context(False)
        self._strict = context(True) if strict else None
        self._roots: Roots | None = None
        self._no_roots = ""
        try:
            self._roots = Roots.file(config.roots) if config.roots else Roots.system()
        except ValueError as error:
            if config.roots:
                raise
            self._no_roots = str(error)  # a small system: nothing verifies, and the record says why

    def for_host(self, address: str) -> "Towards":
        """The same towards a server of which only the address is known."""
        towards = copy.copy(self)
        towards.name, towards.sni, towards._nameless = address, "", True
        return towards

    def ask(self, done: Callable[[Knowledge], None]) -> None:
        """What has to be known before a handshake; `done` is called once, perhaps at once."""
        if self._trust is None:
            done(_NOTHING)
        else:
            self._trust.ask(done)

    def begin(self, knowledge: Knowledge) -> Attempt:
        """A handshake, as what is known demands it.

        Raises:
            HandshakeError: it must not even be tried.
        """
        strict = self._kind == "verify"
        if self._kind == "dane" and not knowledge.records:
            raise HandshakeError(knowledge.why, knowledge.result)
        if self._kind == "mta-sts" and knowledge.policy is not None and knowledge.policy.mode is Mode.ENFORCE:
            if not knowledge.policy.matches(self.name):
                raise HandshakeError(f"{self.name} is none of the MX hosts of the MTA-STS policy", HOST_MISMATCH)
            strict = True
        context = self._strict if strict else self._taking
        if context is None:
            raise AssertionError("no context that verifies")
        return Attempt(Channel(context, server_side=False, hostname=self.name), strict, knowledge)

    def look(self, attempt: Attempt) -> Verdict:
        """Whether the server is who it should be.

        Raises:
            HandshakeError: it is not, and has to be.
        """
        if attempt.strict:
            # The lowest level, which old versions need, is the lowest for certificates too: weak keys, weak digests.
            verdict = self._chain_and_name(attempt) if self._legacy else _VERIFIED
            if not verdict.verified:
                raise HandshakeError(verdict.why, verdict.result)
            return verdict
        knowledge = attempt.knowledge
        if self._kind == "dane":
            verdict = check_dane(knowledge.records, attempt.channel.chain(), self.name, self._wall())
            if not verdict.verified:
                raise HandshakeError(verdict.why, verdict.result)
            return verdict
        verdict = self._chain_and_name(attempt)
        if self._nameless and verdict.verified:
            return _CHAIN_ONLY
        policy = knowledge.policy
        if policy is not None and policy.mode is Mode.TESTING and not policy.matches(self.name):
            verdict = Verdict(False, HOST_MISMATCH, f"{self.name} is none of the MX hosts of the MTA-STS policy")
        return verdict

    def _chain_and_name(self, attempt: Attempt) -> Verdict:
        """By our own look."""
        if self._roots is None:
            return Verdict(False, NOT_TRUSTED, self._no_roots)
        name = "" if self._nameless else self.name
        return verify_chain(attempt.channel.chain(), name, self._roots, self._wall())

    @staticmethod
    def vouched(verdict: Verdict) -> bool:
        """The CA may certify what the server's certificate says."""
        return verdict.verified or verdict is _CHAIN_ONLY

    @staticmethod
    def refused(error: HandshakeError) -> HandshakeError:
        """Why OpenSSL did not take the server's certificate, in the words of the record."""
        if error.refused is None:
            return error
        verdict = openssl_verdict(error.refused)
        return HandshakeError(verdict.why, verdict.result)

    def policy(self, knowledge: Knowledge) -> str:
        """Why an MTA-STS policy does not count, or that an old one does."""
        if self._kind != "mta-sts" or not knowledge.why:
            return ""
        return f"{knowledge.result}: {knowledge.why}" if knowledge.result else knowledge.why

    def broken(self, knowledge: Knowledge, shown: str, leaf: bytes) -> tuple[str, ...]:
        """The promises to the client that what it is shown will break, if it looks at them."""
        broken = []
        if knowledge.records and not check_dane(knowledge.records, [leaf], self.name, self._wall()).verified:
            broken.append("dane")
        if knowledge.policy is not None and knowledge.policy.mode is Mode.ENFORCE and shown != "given":
            broken.append("mta-sts")
        return tuple(broken)
