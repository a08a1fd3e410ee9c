"""A worker's side of the signing process (net/signer.py): asks, waits, tells.

Everything is by callbacks in the reactor's thread, and nothing blocks: the socket is watched like a peer's, time is
looked at by `check`, which is called about once a second. Whoever asks is always answered, exactly once: with a `Leaf`,
or with a text that says why not.

- A leaf's key is made here and stays here; the signer is told its public part.
- The socket is older than this worker and than the signer, and outlives both (net/signingprocess.py). While no signer
  is there, questions wait in it; nobody waits for longer than `PATIENCE`.
- What was answered to this worker's predecessor may still be in it: numbers begin at random, and an answer to a number
  that nobody waits for is ignored, counted and told in the log.

What must never happen: the CA's private key, or its passphrase, in this process.
"""

import secrets
import socket
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import msgspec
import structlog

from smtpproxy.net.reactor import Reactor
from smtpproxy.net.signer import LARGEST, Answer, Request
from smtpproxy.tls.minting import KeyPair, Leaf, Likeness, checked

log = structlog.get_logger()

PATIENCE = 10.0  # seconds for an answer
MOST_ASKED = 2000  # that wait for an answer
HEARD = 256  # answers taken in one turn

Done = Callable[[Leaf | str], None]


class _Asked(NamedTuple):
    pair: KeyPair
    done: Done
    until: float  # monotonic


class Signer:
    """The signing process, as a worker knows it.

    Attributes:
        certificate: the CA's (PEM); it goes along with what was signed.
        ignored: answers that were none, or that nobody waited for.
    """

    def __init__(self, reactor: Reactor, sock: socket.socket, certificate: bytes) -> None:
        """`sock` is this worker's end, and does not block; it is its owner who closes it."""
        self.certificate = certificate
        self.ignored = 0
        self._reactor = reactor
        self._socket = sock
        self._asked: dict[int, _Asked] = {}  # the oldest first
        self._unsent: deque[tuple[int, bytes]] = deque()
        self._number = secrets.randbits(62)
        self._over = ""  # why nothing can be asked any more
        self._unsaid = 0  # of those ignored: not told in the log yet
        self._odd = ""  # what the last of them said
        reactor.watch_level(sock.fileno(), self)

    def mint(self, like: Likeness, done: Done) -> None:
        """Have a certificate of this likeness made. `done` is called once: with it, or with why not.

        Where it is refused at once, that is before this returns.
        """
        if self._over:
            self._tell(done, self._over)
            return
        if len(self._asked) >= MOST_ASKED:
            self._tell(done, f"{MOST_ASKED} certificates are waited for already")
            return
        pair = KeyPair()
        self._number += 1
        try:
            checked(like)
            request = msgspec.msgpack.encode(Request(self._number, *like, spki=pair.spki))
        except Exception as error:  # whatever a caller takes for a likeness
            self._tell(done, str(error))
            return
        self._asked[self._number] = _Asked(pair, done, self._reactor.now + PATIENCE)
        self._unsent.append((self._number, request))
        self._send()

    def event(self, fd: int, mask: int) -> None:
        """The signer has said something."""
        self._hear(HEARD)
        self._send()

    def check(self) -> None:
        """Called about once a second: who waited too long is told."""
        self._hear(MOST_ASKED)  # while the record can't be written no event is, and that is not the signer's fault
        self._send()
        late = [number for number, asked in self._asked.items() if self._reactor.now >= asked.until]
        if late:
            log.error("the signing process does not answer", told=len(late))
        for number in late:
            asked = self._asked.pop(number, None)  # none: somebody who was told has closed this
            if asked is not None:
                self._tell(asked.done, f"the signing process did not answer within {PATIENCE:.0f} s")
        if self._unsaid:
            log.warning("ignored what the signing process said", why=self._odd[:200], since_last=self._unsaid)
            self._unsaid = 0

    def close(self) -> None:
        """Ask no more. Who still waits is told; so is who asks after this."""
        self._end("the proxy is ending")

    def _end(self, why: str) -> None:
        if self._over:
            return
        self._over = why
        self._reactor.forget(self._socket.fileno())
        self._unsent.clear()
        asked, self._asked = self._asked, {}
        for waiting in asked.values():
            self._tell(waiting.done, why)

    def _lost(self, why: str) -> None:
        log.error("the signing process is lost", why=why, waiting=len(self._asked))
        self._end(f"the signing process is lost: {why}")

    def _send(self) -> None:
        """What was not asked yet. Where there is no room the rest goes when something was answered, or by and by."""
        while self._unsent:
            number, request = self._unsent[0]
            try:
                if number in self._asked:  # else nobody waits for it any more
                    self._socket.send(request, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return
            except OSError as error:
                self._lost(error.strerror or str(error))
                return
            self._unsent.popleft()

    def _hear(self, most: int) -> None:
        """What it has said. The socket is reported as long as there is something, so not all need be taken now."""
        for _ in range(most):
            if self._over:  # by what somebody did who was told
                return
            try:
                datagram = self._socket.recv(LARGEST + 1)
            except BlockingIOError:
                return
            except OSError:  # ended with something unread
                datagram = b""
            if not datagram:  # the supervisor is gone, and the signer with it
                self._lost("its socket is closed")
                return
            try:
                self._answered(msgspec.msgpack.decode(datagram, type=Answer))
            except (msgspec.MsgspecError, ValueError) as error:  # the second: text that is no UTF-8
                self._ignore(f"not an answer: {error}")

    def _answered(self, answer: Answer) -> None:
        asked = self._asked.pop(answer.number, None)
        if asked is None:
            self._ignore(answer.why or "nobody waits for that")
            return
        if answer.why:
            self._tell(asked.done, answer.why)
            return
        try:
            leaf = asked.pair.leaf(answer.der, self.certificate)
        except ValueError as error:
            self._tell(asked.done, str(error))
            return
        self._tell(asked.done, leaf)

    def _ignore(self, why: str) -> None:
        self.ignored += 1
        self._unsaid += 1
        self._odd = why

    @staticmethod
    def _tell(done: Done, what: Leaf | str) -> None:
        try:
            done(what)
        except Exception as error:  # our own bug: the others are told all the same
            log.error("a minted certificate could not be used", exc_info=error)
