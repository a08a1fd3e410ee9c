"""A case on its stage: sessions as its facts say, with the prologue behind them; played in every cutting.

What a case shows of rules is what comes on record with its steps. In a prologue nothing is compared, so what rules do
there is no proof of anything; that a rule refuses a part of it is an error.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from smtpproxy.audit.lines import rendered
from smtpproxy.proving import driving, outcomes
from smtpproxy.proving.driving import TLS, Clock, Outputs, Outside
from smtpproxy.proving.facts import Envelope, Stage, decision_of, seconds_of
from smtpproxy.proving.playbook import Case, Scene
from smtpproxy.proving.transcript import Cut, MismatchError, Step, cuttings
from smtpproxy.session.postures import MIRROR, ClientTLS, Posture, ServerTLS
from smtpproxy.session.records import AuditRecord, Kind
from smtpproxy.session.session import Session
from smtpproxy.session.state import Facts, Peer, TLSInfo
from smtpproxy.session.verdicts import Judge
from smtpproxy.smtp.commands import Command
from smtpproxy.smtp.errors import Side
from smtpproxy.smtp.registry.rows import Verb
from smtpproxy.smtp.replies import Reply, multiline

Fired = dict[str, set[str]]  # rules by name, and how each showed itself
Owner = Callable[[bytes, Session], str]  # the rule that lets a verb or a keyword through, or ""

APART: Final = 4e7  # seconds between two playings, over a year: nothing counted in the one counts in the next
_CONTENT: Final = b"Subject: hello\r\n\r\nHello.\r\n.\r\n"
_REPLIES: Final[Mapping[str, bytes]] = {"DATA": b"354 Go ahead\r\n", "QUIT": b"221 2.0.0 Bye\r\n"}
_TURNS: Final = 1000  # replies to one input of a prologue; there are a few


class Performer:
    """Plays cases by one judge. `lets` tells which rule lets a verb or keyword through."""

    def __init__(self, judge: Judge, lets: Owner = lambda name, session: "") -> None:
        self._judge = judge
        self._lets = lets
        self._start = APART

    def play(self, case: Case) -> Fired:
        """Play a case in every cutting; which rules showed themselves in its steps.

        Raises:
            MismatchError: something else came out, or two cuttings gave different records.
        """
        first: _Playing | None = None
        for how, cut in cuttings([step for scene in case.scenes for step in scene.steps]):
            playing = _Playing(self._judge, self._lets, case, cut, how, self._start)
            try:
                playing.play()
            finally:
                self._start = playing.clock.now + APART
            if first is None:
                first = playing
            elif playing.records != first.records:
                pair = zip([*first.records, {}], [*playing.records, {}], strict=False)
                one, other = next((a, b) for a, b in pair if a != b)
                raise MismatchError(f"{case.where}: other records when {how}:\n- {one}\n+ {other}")
        return first.fired if first is not None else {}


class _Playing:
    """One playing of a case."""

    def __init__(self, judge: Judge, lets: Owner, case: Case, cut: Cut, how: str, start: float) -> None:
        self._judge = judge
        self._lets = lets
        self._case = case
        self._cut = cut
        self._how = how
        self.clock = Clock(start)
        self._start = start
        self.records: list[dict[str, Any]] = []
        self.fired: Fired = {}
        self._heard = 0  # records that were there when the step began
        self._session: Session | None = None  # the one whose steps are played

    def play(self) -> None:
        """All of its scenes, one after the other."""
        scenes = [scene for scene in self._case.scenes for _ in range(scene.times)]
        outside = Outside(self.clock, dials=True)
        for number, scene in enumerate(scenes, 1):
            session = self._made(scene.stage)
            self._scene(session, scene, outside)
            if number < len(scenes):
                session.client_lost()
                Outputs(outside).collect(session)

    def _made(self, stage: Stage) -> Session:
        """A session as its facts say."""
        facts = Facts(
            stage.listener,
            stage.match,
            stage.client,
            stage.client_port,
            stage.server,
            stage.server_port,
            lambda: self._case.wall + self.clock.now - self._start,
        )
        return Session(
            judge=self._judge,
            record=self._record,
            clock=self.clock,
            client=Peer(Side.CLIENT, _address(stage.client, stage.client_port)),
            server=Peer(Side.SERVER, _address(stage.server, stage.server_port)),
            posture=_posture(stage),
            facts=facts,
        )

    def _scene(self, session: Session, scene: Scene, outside: Outside) -> None:
        stage = scene.stage
        inside: Callable[[Side], TLSInfo] | None = (lambda side: stage.tls.get(side, TLS)) if stage.tls else None
        steps = list(scene.steps)
        while steps and steps[0].tag == ".." and steps[0].words.startswith("decide"):
            self._turn(steps.pop(0), outside)
        said = {step.words.partition(" ")[0] for step in steps if step.tag == "!!"}
        if steps and steps[0].tag == "!!" and steps[0].words == "arrived":
            outside.dials = not said & {"connected", "unreachable"}
        elif not said & {"connected", "unreachable"}:
            outside.dials = True
            self._arrive(session, scene, outside, inside)
        if stage.prologue.hello:
            _Prologue(session, stage, outside, inside, self.records, f"{self._case.file}:{scene.line}").play()
        elif stage.identity:
            _log_in(session, stage)
        self._heard = len(self.records)
        if steps:
            turn: Callable[[Step], bool] = lambda step: self._turn(step, outside)  # noqa: E731
            self._session = session
            driving.run(session, steps, self._cut, self._how, outside, inside=inside, turn=turn, told=self._told)
            self._session = None

    def _arrive(
        self, session: Session, scene: Scene, outside: Outside, inside: Callable[[Side], TLSInfo] | None
    ) -> None:
        """The client connects and so does the proxy, without a word about it."""
        if session.begin():
            session.connected()
        out = Outputs(outside, inside)
        out.collect(session)
        if session.closed or out.client:
            where = f"{self._case.file}:{scene.line}"
            raise MismatchError(f"{where}: the client was refused as it connected: begin the steps with !! arrived")

    def _turn(self, step: Step, outside: Outside) -> bool:
        """A `..` among the steps."""
        word, _, said = step.words.partition(" ")
        if word == "wait":
            self.clock.now += seconds_of(said)
        elif word == "decide":
            name, answer = decision_of(said)
            outside.answers[name] = answer
        else:
            return False
        return True

    def _told(self, step: Step, differs: bool) -> str:
        """What is wrong with what the step put on record."""
        before, new, self._heard = self.records[: self._heard], self.records[self._heard :], len(self.records)
        for name, how in outcomes.fired(new):
            self.fired.setdefault(name, set()).add(how)
        wrong = outcomes.wrong(step.told, new)
        return "\n".join(filter(None, (wrong, outcomes.hint(new, before)))) if wrong or differs else ""

    def _record(self, item: AuditRecord) -> None:
        line = rendered(item)
        if "seconds" in line:
            line["seconds"] = round(line["seconds"], 2)  # clocks of two playings are far apart
        self.records.append(line)
        if item.kind is Kind.EXCHANGE and self._session is not None:
            self._note_let(item.exchange, self._session)

    def _note_let(self, exchange: Any, session: Session) -> None:
        """Rules that let something through are not on record; that it went through shows them."""
        names: list[bytes] = []
        told = exchange.told
        if type(exchange.asked) is Command and exchange.sent is exchange.asked:
            names.append(exchange.verb.name.encode())
        if exchange.verb.name in ("EHLO", "LHLO") and isinstance(told, Reply) and told.digit == 2:
            names += [line.replace(b"=", b" ").split(b" ")[0].upper() for line in told.lines[1:]]
        for name in names:
            if rule := self._lets(name, session):
                self.fired.setdefault(rule, set()).add(outcomes.LET)


class _Prologue:
    """What is played before the first step; the server accepts everything."""

    def __init__(
        self,
        session: Session,
        stage: Stage,
        outside: Outside,
        inside: Callable[[Side], TLSInfo] | None,
        records: list[dict[str, Any]],
        where: str,
    ) -> None:
        self._session = session
        self._stage = stage
        self._outside = outside
        self._inside = inside
        self._records = records
        self._where = where

    def play(self) -> None:
        """All of it.

        Raises:
            MismatchError: something of it was refused.
        """
        prologue = self._stage.prologue
        self._say(b"")
        self._say(b"EHLO %s\r\n" % prologue.hello.encode())
        if self._stage.identity:
            _log_in(self._session, self._stage)
        for envelope in prologue.sent:
            self._mail(envelope)
            self._say(b"DATA\r\n")
            self._say(_CONTENT)
        if prologue.mail is not None:
            self._mail(prologue.mail)
        if prologue.data:
            self._say(b"DATA\r\n")

    def _mail(self, envelope: Envelope) -> None:
        self._say(f"MAIL FROM:{envelope.sender}{envelope.mail}\r\n".encode())
        for recipient in envelope.recipients:
            self._say(f"RCPT TO:{recipient}{envelope.rcpt}\r\n".encode())

    def _say(self, octets: bytes) -> None:
        """The client says it, and the server answers what reaches it."""
        session = self._session
        heard = len(self._records)
        if octets:
            session.client_sent(octets)
        self._collect()
        for _ in range(_TURNS):
            awaited = session.ledger.awaited
            if session.closed or awaited is None:
                break
            session.server_sent(self._reply(awaited.verb))
            self._collect()
        for record in self._records[heard:]:
            told = record.get("told", record.get("got")) or ""
            if record["kind"] == "exchange" and record["asked"] is not None and told[:1] in ("4", "5"):
                by = f" by {record['rule']}" if record.get("rule") else ""
                raise MismatchError(f"{self._where}: in the prologue {record['asked']} was answered {told}{by}")
        if session.closed:
            raise MismatchError(f"{self._where}: the prologue ended the session at {octets.decode().strip() or '220'}")

    def _collect(self) -> None:
        Outputs(self._outside, self._inside).collect(self._session)

    def _reply(self, verb: Verb) -> bytes:
        if verb.name == "GREETING":
            return b"220 %s ESMTP\r\n" % self._stage.server.encode()
        if verb.name in ("EHLO", "LHLO"):
            return multiline(250, [self._stage.server.encode(), *(offer.encode() for offer in self._stage.offers)]).raw
        return _REPLIES.get(verb.name, b"250 2.0.0 Ok\r\n")


def _log_in(session: Session, stage: Stage) -> None:
    session.identity = stage.identity
    session.mechanism = stage.mechanism.encode()
    session.authenticated = True


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _posture(stage: Stage) -> Posture:
    """The one said; or one by which the links that are encrypted are so before the greeting."""
    if stage.posture is not None:
        return stage.posture
    if not stage.tls:
        return MIRROR
    if Side.CLIENT not in stage.tls:
        return Posture(ClientTLS.MIRROR, ServerTLS.IMPLICIT)
    return Posture(ClientTLS.IMPLICIT, ServerTLS.IMPLICIT if Side.SERVER in stage.tls else ServerTLS.NEVER)
