r"""Playbooks: sessions as transcripts, in files `NAME.play` beside the rules `NAME.toml` they test.

A playbook is UTF-8 text of several cases. A line that begins with `#` is a comment. A case is one line `==` with its
name, facts (`..`), and steps:

    == a mail over the limit is refused at MAIL
    .. client 192.0.2.10
    .. hello
    C> MAIL FROM:<a@x.example> SIZE=99999999
    >C 552 5.3.4 Message too big
    => answer size-25m

Steps. Each line has a tag, one a hop:

    C> octets the client sends          >S what must come out to the server
    S> octets the server sends          >C what must come out to the client
    !! what the driver says             -> an effect that must come out
    C< FILE                             => what must be on record

Lines end in CRLF on the wire; `\r \n \0 \t \xNN \\` are written as in Python, and a line that ends in `\` has no CRLF.
`C> *3000 X` stands for 3,000 times X. Blanks at the end of a line count. Lines of input that follow each other under
one tag are one write; a blank line or a comment between them makes two. `C< FILE` is the content of a mail from a file
(beside the playbook): the client sends it with CRLF at line ends, dot-stuffed, and then the end of data.

After each input the outputs listed must be exactly what came out: no more, no less. `>C` and `>S` lines are compared
apart, so their order to each other does not matter. A case that ends while a command awaits the server's reply is an
error, unless it says `.. open`.

Effects: `-> dial` (the server is connected to), `-> dial HOST:PORT` (another one is: a redirect), `-> close client`,
`-> close server`, `-> abort server`, `-> shut server`, `-> prepare-tls client`, `-> start-tls client`,
`-> start-tls server`, `-> wait SECONDS` (a tarpit), `-> keep` (the mail goes to the quarantine). A wait is over at
once, and both clocks have gone on by it; what is dialled is reached at once, unless the case says it itself.

The driver says: `!! arrived` (a client connects: the first step where rules on `connect` are tested; elsewhere it goes
without saying), `!! connected` and `!! unreachable` (the server), `!! end client`, `!! end server`, `!! lost` (the
client's link broke), `!! timeout client`, `!! tls-ready`, `!! tls-failed`, `!! early`, `!! drain`, `!! stop`, and
`!! tls-done SIDE [verified] [version=TLSv1.2] [cipher=…] [sni=…] [ja4=…]`.

A reply of ours has no enhanced status code before the client was offered ENHANCEDSTATUSCODES: no EHLO, no code.

What is on record. `=>` lines stand behind the input that ended the exchange, and are about all that came on record with
that input. They stand in any order:

    => answer NAME                      it was decided so, by this rule: pass, rewrite, answer, discard, hangup,
                                        quarantine, redirect. A list of keywords may be several rules' work:
                                        => rewrite strip-etrn strip-turn
    => pass                             an exchange went through by no rule's word
    => did NAME                         a rule acted beside the deciding one: a tag, a tarpit, a rewrite before … One
                                        that acted and then decided need not be named twice
    => observed NAME ACTION             a rule in mode "observe" would have done this
    => tag LABEL                        this label was put on
    => anomaly NAME                     this anomaly is noted

A step without `=>` lines says nothing about rules. One that has any must name each rule that decided, acted or observed
there; labels and anomalies, `=> pass`, and what the record calls `default` and `posture` need not be named.

Facts stand before the first step of a session:

    .. client 192.0.2.10[:PORT]         who connects; [2001:db8::1]:PORT        (192.0.2.10:40000)
    .. server HOST[:PORT]               where it goes                            (mx.example:25)
    .. listener NAME                    by which listener                        (smtp)
    .. match NAME                       by which match block                     (none)
    .. identity NAME [MECHANISM]        it has logged in, after its EHLO         (PLAIN, if a name is given)
    .. time 2026-11-23T09:00[:00]       local time, when the case begins         (2026-01-05T10:00, a Monday)
    .. posture CLIENT SERVER            of docs/tls.md                           (mirror mirror)
    .. tls client|server|both […]       encrypted from the first octet on; in place of a posture; as with `!! tls-done`
    .. offers KEYWORD, KEYWORD …        the server's list in the prologue, beside the usual (PIPELINING, SIZE 10000000,
                                        8BITMIME, SMTPUTF8, CHUNKING, DSN, ENHANCEDSTATUSCODES); `.. offers only …`: in
                                        their place

and the prologue, which is played first and compared with nothing. The server accepts all of it; it is an error if a
rule does not, so what a rule refuses is a step. What rules do in it does not count as tested:

    .. hello [NAME]                     greeting and EHLO                        (me.example)
    .. sent [N] [FROM=<…>] [TO=<…>]     N whole mails, one if no number is said
    .. mail [FROM=<a@x.example>] [TO=<b@y.example>,<c@y.example>]        hello, MAIL, RCPT
    .. data [FROM=…] [TO=…]             hello, MAIL, RCPT, DATA: the content is next

FROM and TO may be followed by parameters: `.. mail FROM=<a@x.example> SIZE=100 TO=<b@y.example> NOTIFY=NEVER`. TO=<>
(nothing in it) stands for no RCPT, and `TO=<b@y.example>*99` for 99 of them. `.. hello`, `.. sent` and one of `.. mail`
and `.. data` may be said together, in this order.

These may stand among the steps, and `.. decide` before them:

    .. wait 3600                        so many seconds later; both clocks go on
    .. decide NAME ANSWER               what the outside answers the rule NAME from here on: abstain, pass, discard,
                                        answer REPLY, hangup [REPLY], tag LABEL, tarpit SECONDS (a python function);
                                        fails [WHY], late; kept [AS] (the quarantine). Unsaid, python functions are
                                        really called (one that is not async has no deadline here), and the quarantine
                                        keeps everything.
    .. open                             a command may be left without its reply at the end
    .. session [N]                      the session ends here and another begins, with the same clocks and counters, and
                                        the same facts unless they are said anew, but no prologue; with a number, so
                                        many of them, one after the other, each by what stands up to the next
                                        `.. session`. At the beginning of a case it is about the first.

A case is played whole, octet by octet, and cut at random twenty ways, with fresh counters each time, and each time the
records must be the same.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from smtpproxy.policy.toml import Problem
from smtpproxy.proving.facts import (
    NO_PROLOGUE,
    STEPS,
    USUAL_TIME,
    Stage,
    WrongError,
    check_step,
    moment,
    number_of,
    with_fact,
)
from smtpproxy.proving.transcript import MismatchError, Step, parse_lines

SUFFIX: Final = ".play"
_BEGINS: Final = re.compile(r"\s*==\s*(.*?)\s*")
_SAID: Final = re.compile(r"\s*\.\.\s*(\S*)\s*(.*?)\s*")

Line = tuple[int, str]


@dataclass(frozen=True, slots=True)
class Scene:
    """A session, or several of the same kind."""

    stage: Stage
    steps: tuple[Step, ...]
    times: int
    line: int


@dataclass(frozen=True, slots=True)
class Case:
    """One case: its scenes, one after the other, by one clock. `wall` is seconds since 1970 at its beginning."""

    name: str
    file: str
    line: int
    wall: float
    scenes: tuple[Scene, ...]

    @property
    def where(self) -> str:
        """`FILE:LINE`, of its name."""
        return f"{self.file}:{self.line}"


class PlaybookError(Exception):
    """A playbook that is none: everything that is wrong with it."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


def read_playbook(path: Path) -> tuple[Case, ...]:
    """The cases of a playbook.

    Raises:
        PlaybookError: it can't be read, or some of its lines are not those of a playbook.
    """
    file = str(path)
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise PlaybookError((Problem(file, 0, 0, "", f"can't be read: {error.strerror}"),)) from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise PlaybookError((Problem(file, line, 1, "", "not UTF-8"),)) from None
    problems: list[Problem] = []
    cases: list[Case] = []
    names: dict[str, int] = {}
    for name, lines in _split(file, text, problems):
        reader = _Reader(path, lines, problems)
        case = reader.case(name)
        if name in names:
            reader.bad(lines[0], f"a case of this name begins in line {names[name]} already", "a name of its own")
        names.setdefault(name, case.line)
        cases.append(case)
    if not cases and not problems:
        problems.append(Problem(file, 0, 0, "", "has no case", expected="a line that begins with =="))
    if problems:
        raise PlaybookError(tuple(problems))
    return tuple(cases)


def _split(file: str, text: str, problems: list[Problem]) -> Iterator[tuple[str, list[Line]]]:
    """Each case's name and lines, that of its name included."""
    name: str | None = None
    lines: list[Line] = []
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r")
        begins = _BEGINS.fullmatch(line)
        if begins is not None:
            if name is not None:
                yield name, lines
            name, lines = begins[1], [(number, line)]
            if not name:
                problems.append(Problem(file, number, 1, "", "a case without a name", text=line))
        elif name is not None:
            lines.append((number, line))
        elif line.strip() and not line.strip().startswith("#"):
            expected = "a line that begins with =="
            problems.append(Problem(file, number, 1, "", "stands before the first case", expected, text=line))
    if name is not None:
        yield name, lines


class _Reader:
    """Reads one case; what is wrong goes into `problems`."""

    def __init__(self, path: Path, lines: list[Line], problems: list[Problem]) -> None:
        self._path = path
        self._file = str(path)
        self._lines = lines
        self._problems = problems
        self._stage = Stage()
        self._wall = moment(USUAL_TIME)
        self._scenes: list[Scene] = []

    def bad(self, line: Line, message: str, expected: str = "", near: tuple[str, ...] = ()) -> None:
        """Put a mistake on the list."""
        number, text = line
        column = len(text) - len(text.lstrip()) + 1
        self._problems.append(Problem(self._file, number, column, "", message, expected, near, text=text))

    def case(self, name: str) -> Case:
        """The case, as far as its lines can be read."""
        first, *rest = self._lines
        begins, times, steps = first[0], 1, list[Line]()
        for line in rest:
            said = _SAID.fullmatch(line[1])
            try:
                if said is not None and said[1] == "session":
                    if steps or self._scenes or self._stage.prologue != NO_PROLOGUE:
                        self._end_scene(begins, times, steps)
                    begins, times, steps = line[0], number_of(said[2] or "1"), []
                elif said is None or said[1] in STEPS:
                    if said is not None:
                        check_step(said[1], said[2])
                    steps.append(line)
                elif any(map(_is_step, steps)):
                    with_fact(Stage(), said[1], said[2])
                    raise WrongError(f'".. {said[1]}" stands before the first step of a session')
                else:
                    self._fact(said[1], said[2])
            except WrongError as error:
                self.bad(line, str(error), error.expected, error.near)
            except ValueError as error:
                self.bad(line, str(error))
        self._end_scene(begins, times, steps)
        return Case(name, self._file, first[0], self._wall, tuple(self._scenes))

    def _end_scene(self, begins: int, times: int, lines: list[Line]) -> None:
        steps: list[Step] = []
        try:
            steps = parse_lines(lines, f"{self._file}:{{}}:", utf8=True, folder=self._path.parent)
        except MismatchError as error:
            self._problems.append(_problem_of(self._file, str(error), lines))
        self._scenes.append(Scene(self._stage, tuple(steps), times, begins))
        self._stage = replace(self._stage, prologue=NO_PROLOGUE)

    def _fact(self, name: str, said: str) -> None:
        if name == "time":
            if self._scenes:
                raise WrongError("the time is said at the beginning of a case", ".. wait SECONDS")
            self._wall = moment(said)
            return
        self._stage = with_fact(self._stage, name, said)


def _is_step(line: Line) -> bool:
    said = _SAID.fullmatch(line[1])
    return said[1] == "wait" if said is not None else bool(line[1].strip()) and not line[1].strip().startswith("#")


def _problem_of(file: str, message: str, lines: list[Line]) -> Problem:
    """A mistake that was found with its place in front."""
    place, _, said = message.removeprefix(f"{file}:").partition(":")
    texts = dict(lines)
    number = int(place) if place.isdigit() else 0
    return Problem(file, number, 1, "", said.strip(), text=texts.get(number, ""))
