"""The handshakes of one session: what the relay does about `PrepareTLS` and `StartTLS`.

An effect waits until what stood before it on that side has been sent; then it is carried out, at once or as answers
come (from a peer, the signing process, a resolver); then the session is told, once. Rules:

- The session is told in the relay's reading, never while it sends: what follows from it is on record first.
- A ClientHello is read, in full and by ourselves, before OpenSSL sees it: it says which certificate is asked for, its
  JA4 is recorded, and who speaks another protocol (ALPN) is told so and goes no further.
- A link that is being encrypted is read by nobody else, and what has come on it in clear is TLS or the end of it.
"""

import contextlib
import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from smtpproxy.net.identities import Done, Given, Identity, Made, Pair
from smtpproxy.net.securelink import SecureLink
from smtpproxy.net.towards import Attempt, Towards
from smtpproxy.net.troubles import Troubles
from smtpproxy.net.trust import Knowledge
from smtpproxy.session.effects import PrepareTLS, StartTLS
from smtpproxy.session.state import TLSInfo
from smtpproxy.smtp.errors import Side
from smtpproxy.tls.certificates import facts
from smtpproxy.tls.channel import Channel, HandshakeError
from smtpproxy.tls.clienthello import Hello, HelloReader, NotAHello
from smtpproxy.tls.contexts import ALPN
from smtpproxy.tls.verdict import Verdict

if TYPE_CHECKING:
    from smtpproxy.net.relay import Relay

_ALERT_NO_PROTOCOL = bytes((21, 3, 3, 0, 2, 2, 120))  # fatal, no_application_protocol (RFC 7301 §3.2)
_READ = 16_384
_NO_VERDICT = Verdict(False)
_T = TypeVar("_T")


class ListenerTLS:
    """What the sessions of one listener share: never more than one listener's."""

    def __init__(self, towards: Towards, identities: Given | Made, *, keylog: bool, name: str = "") -> None:
        self.towards = towards
        self.troubles = Troubles("TLS failed", listener=name)
        self.keylog = keylog
        self._identities = identities
        self._host = ""  # of the server, where each session may have another

    def for_host(self, address: str) -> "ListenerTLS":
        """The same towards a server of which only the address is known."""
        made = copy.copy(self)
        made.towards, made._host = self.towards.for_host(address), address
        return made

    def identify(self, leaf: bytes, vouched: bool, done: Done) -> None:
        """Have what a client is to be shown, whose server showed `leaf`; `done` is called once, perhaps at once."""
        if isinstance(self._identities, Given):
            done(self._identities.identity())
        else:
            self._identities.prepare(leaf, vouched, done, self._host)

    def check(self, now: float) -> None:
        """Called about once a second; `now` is monotonic, in seconds."""
        self.troubles.check(now)
        if isinstance(self._identities, Given):
            self._identities.check()


class Handshakes:
    """Both handshakes of one session."""

    def __init__(self, relay: "Relay", tls: ListenerTLS) -> None:
        self._relay = relay
        self._tls = tls
        self._pending: PrepareTLS | StartTLS | None = None
        self._outcome: Callable[[], None] | None = None  # to be acted on in the next reading
        self._asked = 0  # answers to an older question count no more
        self._going = False
        self._link: SecureLink | None = None  # whose handshake is under way
        self._hello: Hello | None = None
        self._reader: HelloReader | None = None  # of a ClientHello, while it is awaited
        self._attempt: Attempt | None = None
        self._knowledge = Knowledge()
        self._vouched = False  # the CA may certify what the server shows
        self._identity: Identity | None = None
        self._pair: Pair | None = None  # of it: the one the client asked for
        self._began = 0.0

    # -------------------------------------------------------------------------------------------- what is asked for

    def carry_out(self, effect: PrepareTLS | StartTLS) -> None:
        """The session wants this."""
        self._pending = effect
        self._outcome = self._link = self._reader = None
        self._asked += 1  # nothing that was asked for an older effect counts any more

    def go(self) -> None:
        """Called when the relay has sent what it could."""
        self._going = True
        self._go()
        self._going = False

    def _go(self) -> None:
        effect = self._pending
        relay = self._relay
        if effect is None:
            return
        if isinstance(effect, PrepareTLS):
            self._pending = None
            server = relay.server
            leaf = server.leaf if isinstance(server, SecureLink) else b""
            self._tls.identify(leaf, self._vouched, self._answer(self._identified))
            return
        link = relay.client if effect.side is Side.CLIENT else relay.server
        if link is None:
            raise AssertionError("no link to encrypt")
        if link.unsent or (relay.session.to_client if effect.side is Side.CLIENT else relay.session.to_server):
            return
        self._pending = None
        self._began = relay.reactor.now
        if effect.side is Side.SERVER:
            self._tls.towards.ask(self._answer(self._known))
        else:
            self._reader = HelloReader()
            link.readable = True  # it may be there already
            self._later(self._greet)

    def _answer(self, act: Callable[[_T], None]) -> Callable[[_T], None]:
        """A callback that acts in the relay's next reading, if it is still wanted then."""
        number = self._asked

        def answered(value: _T) -> None:
            if number == self._asked and not self._relay.done:
                self._later(lambda: act(value))
                if not self._going:  # it came later, perhaps outside a turn
                    self._relay.reactor.wake()

        return answered

    def _later(self, act: Callable[[], None]) -> None:
        self._outcome = act
        self._relay.reactor.ready(self._relay)

    # ------------------------------------------------------------------------------------------------ what happens

    def advance(self) -> None:
        """Called whenever the relay reads, while a link is being encrypted."""
        outcome, self._outcome = self._outcome, None
        if outcome is not None:
            outcome()
        elif self._reader is not None and self._relay.client.readable:
            self._greet()
        elif self._link is not None and self._link.readable:
            self._go_on(self._link)

    def _fail(self, why: str, result: str = "") -> None:
        self._link = self._reader = None
        relay = self._relay
        side = relay.session.securing.side if relay.session.securing is not None else Side.CLIENT
        self._tls.troubles.add(why, relay.reactor.now, side=side.value, server=relay.session.server.address)
        relay.session.tls_failed(why, result, self._what_is_known(side))

    def _what_is_known(self, side: Side) -> TLSInfo:
        """Of a peer whose handshake failed: enough to see which one it was, and at what it looked."""
        if side is Side.CLIENT:
            shown = self._identity.shown if self._identity is not None and self._pair is not None else ""
            sha256 = facts(self._pair.leaf).sha256 if self._pair is not None else ""
            sni, ja4 = (self._hello.sni, self._hello.ja4) if self._hello is not None else ("", "")
            return TLSInfo("", "", sni, shown=shown, shown_sha256=sha256, ja4=ja4)
        leaf = self._relay.server.leaf if isinstance(self._relay.server, SecureLink) else b""
        certificate = tuple(facts(leaf)._asdict().items()) if leaf else ()
        return TLSInfo(
            "", "", self._tls.towards.sni, certificate=certificate, policy=self._tls.towards.policy(self._knowledge)
        )

    def _go_on(self, link: SecureLink, octets: bytes = b"") -> None:
        try:
            if not link.handshake(self._relay.reactor.now, octets):
                return
            self._link = None
            if link is self._relay.client:
                self._client_done(link)
            else:
                self._server_done(link)
        except HandshakeError as error:
            error = Towards.refused(error)
            self._fail(error.why, error.result)
        except EOFError:
            self._fail("the peer ended the connection within the handshake")
        except OSError as error:
            self._fail(f"the link broke within the handshake: {error.strerror or error}")

    # --------------------------------------------------------------------------------------------------- the server

    def _known(self, knowledge: Knowledge) -> None:
        """What has to be known of the server is."""
        relay = self._relay
        self._knowledge = knowledge
        try:
            self._attempt = self._tls.towards.begin(knowledge)
        except HandshakeError as error:
            self._fail(error.why, error.result)
            return
        if relay.server is None:
            raise AssertionError("no link to encrypt")
        self._began = relay.reactor.now  # resolvers have their own time
        relay.server = self._link = SecureLink(relay.server, self._attempt.channel)
        self._go_on(self._link)

    def _server_done(self, link: SecureLink) -> None:
        if self._attempt is None:
            raise AssertionError("a handshake nobody began")
        link.leaf = link.channel.leaf()
        verdict = self._tls.towards.look(self._attempt)
        self._vouched = self._tls.towards.vouched(verdict)
        self._relay.session.tls_done(
            Side.SERVER,
            self._info(link.channel, verdict)._replace(
                sni=self._tls.towards.sni,
                certificate=tuple(facts(link.leaf)._asdict().items()),
                policy=self._tls.towards.policy(self._knowledge),
            ),
        )

    def _info(self, channel: Channel, verdict: Verdict) -> TLSInfo:
        version, cipher, alpn, resumed = channel.facts
        seconds = round(self._relay.reactor.tick() - self._began, 6)
        return TLSInfo(version, cipher, "", alpn, resumed, seconds, *verdict, keylog=self._tls.keylog)

    # --------------------------------------------------------------------------------------------------- the client

    def _identified(self, identity: Identity | str) -> None:
        if isinstance(identity, str):
            self._fail(identity)
        else:
            self._identity = identity
            self._relay.session.tls_ready(early=self._relay.client.readable and self._relay.client.talked())

    def _greet(self) -> None:
        """The ClientHello."""
        relay, reader = self._relay, self._reader
        if reader is None or self._identity is None:
            raise AssertionError("nobody waits for a ClientHello")
        try:
            hello = None
            while hello is None:
                data = relay.client.socket.recv(_READ)
                if not data:
                    self._fail("the peer ended the connection within the handshake")
                    return
                hello = reader.feed(data)
        except BlockingIOError:
            relay.client.readable = False
            return
        except NotAHello as error:
            self._fail(f"no handshake: {error.why}")
            return
        except OSError as error:
            self._fail(f"the link broke within the handshake: {error.strerror or error}")
            return
        self._reader = None
        self._hello = hello
        if hello.has_alpn and ALPN.encode() not in hello.alpn:
            with contextlib.suppress(OSError):
                relay.client.socket.send(_ALERT_NO_PROTOCOL)
            self._fail("the client speaks another protocol: ALPN has no smtp in it")
            return
        self._pair = self._identity.choose(hello.sni)
        channel = Channel(self._pair.context, server_side=True)
        relay.client = self._link = SecureLink(relay.client, channel)
        self._go_on(self._link, bytes(reader.octets))

    def _client_done(self, link: SecureLink) -> None:
        hello, identity, pair = self._hello, self._identity, self._pair
        if hello is None or identity is None or pair is None:
            raise AssertionError("a handshake nobody began")
        self._relay.session.tls_done(
            Side.CLIENT,
            self._info(link.channel, _NO_VERDICT)._replace(
                sni=hello.sni,
                ja4=hello.ja4,
                shown=identity.shown,
                shown_sha256=facts(pair.leaf).sha256,
                broken=self._tls.towards.broken(self._knowledge, identity.shown, pair.leaf),
            ),
        )
