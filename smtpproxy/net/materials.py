"""What a running proxy needs for TLS, made from its configuration: contexts, certificates, and what resolvers are asked
for. Who signs certificates is given: the signing process is not this process's (signingprocess.py).

All of it is made before the first connection is accepted, so that what can't work is said at once, in one line and with
the name of the file. Most of that has been told before (looking.py), and this holds where it was not.
"""

import os
import stat
from collections.abc import Callable

import structlog
import trio

from smtpproxy.config import Config, ListenerConfig
from smtpproxy.net.handshakes import ListenerTLS
from smtpproxy.net.identities import Given, Made
from smtpproxy.net.privileges import Identity
from smtpproxy.net.reactor import Reactor
from smtpproxy.net.signing import Signer
from smtpproxy.net.towards import Towards
from smtpproxy.net.trust import Resolver, Trust, TrustError
from smtpproxy.session.postures import ServerTLS
from smtpproxy.tls.contexts import CertificateError

log = structlog.get_logger()

KEYLOG_WARNING = "the keys of all TLS sessions are written to a file: who has it can read everything"


class MaterialError(Exception):
    """What is configured for TLS can't work; the text says what."""


class Materials:
    """TLS for all listeners of a proxy.

    Attributes:
        signer: who has the CA sign; None: nothing is to be signed.
    """

    def __init__(self, config: Config, reactor: Reactor, wall: Callable[[], float], signer: Signer | None) -> None:
        self._config = config
        self._reactor = reactor
        self._wall = wall
        self._trusts: list[Trust] = []
        self._listeners: list[ListenerTLS] = []
        self._keylog = config.tls.keylog
        self._keylog_file = -1
        self.signer = signer

    async def start(self) -> None:
        """What is opened once, before anybody is accepted.

        Raises:
            MaterialError: the key log can't be written.
        """
        if self._keylog:
            log.warning(KEYLOG_WARNING, file=self._keylog)
            try:
                # OpenSSL opens it by name for each context, and would make it anew, for all to read, once it is moved.
                self._keylog_file = _private(self._keylog)
                self._keylog = f"/proc/self/fd/{self._keylog_file}"
            except OSError as error:
                raise MaterialError(f"the key log {self._keylog} can't be written: {error.strerror}") from error

    def give_to(self, identity: Identity) -> None:
        """This process is about to become somebody else, who goes on writing what was opened."""
        if self._keylog_file >= 0 and os.fstat(self._keylog_file).st_uid != identity.uid:
            os.fchown(self._keylog_file, identity.uid, identity.gid)

    def listener(self, entry: ListenerConfig) -> ListenerTLS:
        """TLS of one listener.

        Raises:
            MaterialError: a file can't be used, or what is asked for can't be had.
        """
        tls = entry.tls
        entry.posture()  # may take a while the first time: this machine's name is looked up
        trust = None
        try:
            if tls.verify in ("dane", "mta-sts"):
                dns = self._config.dns
                port = entry.server.port if entry.server is not None else entry.intercept.ports[0]
                servers = tuple((server.host, server.port) for server in dns.servers)
                trust = Trust(tls.verify, entry.server_name, port, tls.policy_domain, Resolver(servers, dns.trusted))
                self._trusts.append(trust)
            towards = Towards(tls, entry.server_name, trust=trust, keylog=self._keylog, wall=self._wall)
            identities: Given | Made
            if tls.certificates:
                identities = Given(tls.certificates, legacy=tls.legacy, keylog=self._keylog)
            else:
                identities = Made(
                    self.signer,
                    entry.server_name,
                    trusted=tls.server is ServerTLS.NEVER,
                    legacy=tls.legacy,
                    keylog=self._keylog,
                    wall=self._wall,
                    vouched=tls.verify != "dane",
                )
        except (CertificateError, TrustError, ValueError, OSError) as error:
            raise MaterialError(f"listener {entry.name}: {error}") from error
        made = ListenerTLS(towards, identities, keylog=bool(self._keylog), name=entry.name)
        self._tell(entry, identities)
        self._listeners.append(made)
        return made

    def _tell(self, entry: ListenerConfig, identities: Given | Made) -> None:
        """What TLS is on this listener, for who looks at the log of a start."""
        tls = entry.tls
        if isinstance(identities, Given):
            shows = "; ".join(identities.described())
        else:
            shows = "minted like the server's, self-signed where it does not verify" if self.signer else "self-signed"
        log.info(
            "TLS", listener=entry.name, client=tls.client.value, server=tls.server.value, verify=tls.verify, shows=shows
        )
        if tls.legacy:
            log.warning("TLS 1.0 and 1.1 and their ciphers are taken on both links", listener=entry.name)

    async def run(self) -> None:
        """Keep fresh what is known from resolvers."""
        async with trio.open_nursery() as nursery:
            for trust in self._trusts:
                nursery.start_soon(trust.run)

    def check(self) -> None:
        """Called about once a second."""
        if self.signer is not None:
            self.signer.check()
        for listener in self._listeners:
            listener.check(self._reactor.now)

    def close(self) -> None:
        """Let go of what was opened; who still waits for a certificate is told."""
        if self.signer is not None:
            self.signer.close()
        if self._keylog_file >= 0:
            os.close(self._keylog_file)
            self._keylog_file = -1


def _private(path: str) -> int:
    """A file only its owner can read, new or not, opened. What is no file (a terminal) is left as it is."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.fchmod(descriptor, 0o600)
    return descriptor
