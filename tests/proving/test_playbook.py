"""Playbooks: what is read from one, and what a case proves when it is played."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from smtpproxy.proving.outcomes import LET
from smtpproxy.proving.playbook import Case, PlaybookError, read_playbook
from smtpproxy.proving.staging import Fired, Performer
from smtpproxy.proving.transcript import MismatchError
from smtpproxy.session.postures import ClientTLS, Posture, ServerTLS
from smtpproxy.session.session import Session
from smtpproxy.session.verdicts import (
    PASS,
    Action,
    Call,
    CommandRule,
    Effects,
    Failed,
    Keep,
    Observed,
    PassAll,
    Question,
    Verdict,
    Wait,
)
from smtpproxy.smtp.commands import Command
from smtpproxy.smtp.errors import Side
from smtpproxy.smtp.replies import own

PASSED = """
    C> NOOP
    >S NOOP
    S> 250 2.0.0 Ok
    >C 250 2.0.0 Ok
"""


class Rules(PassAll):
    """What is given, by verb: a verdict, or a function that gives it."""

    def __init__(self, connect: Any = None, **commands: Any) -> None:
        self.connect = connect
        self.commands: Mapping[str, CommandRule] = {verb: self._rule(given) for verb, given in commands.items()}

    @staticmethod
    def _rule(given: Any) -> CommandRule:
        return given if callable(given) else lambda command, session: given


def answers(reply: str, rule: str = "no", **effects: Any) -> Verdict:
    return Verdict(Action.ANSWER, own(reply), rule, effects=Effects(**effects) if effects else None)


REFUSED = answers("550 5.7.1 No")


def cases(folder: Path, text: str) -> tuple[Case, ...]:
    file = folder / "x.play"
    file.write_text(text, encoding="utf-8")
    return read_playbook(file)


def play(folder: Path, text: str, rules: PassAll | None = None) -> Fired:
    """One case, whose lines these are."""
    (case,) = cases(folder, f"== it\n{text}")
    return Performer(rules or PassAll()).play(case)


# -------------------------------------------------------------------------------------------------------- what is read


def test_cases_their_facts_and_steps(tmp_path: Path) -> None:
    first, second = cases(
        tmp_path,
        """
# for people
== a case
.. client 192.0.2.7:999
.. server [2001:db8::1]:26
.. listener in
.. match lab
.. identity ann LOGIN
.. posture require never
.. offers XEXCH50, AUTH PLAIN LOGIN
.. time 2026-11-23T09:00
.. sent 2 FROM=<> TO=<c@z.example>
.. mail FROM=<x@x.example> SIZE=12 RET=HDRS TO=<b@y.example>,<c@y.example>*2 NOTIFY=NEVER
C> NOOP

== another
.. client 2001:db8::7
.. tls both version=TLSv1.2 verified
.. tls client version=TLSv1.3
.. offers only DSN
.. data
C> a
""",
    )
    stage = first.scenes[0].stage
    assert (first.name, first.line, first.where) == ("a case", 3, f"{tmp_path}/x.play:3")
    assert (stage.client, stage.client_port, stage.server, stage.server_port) == ("192.0.2.7", 999, "2001:db8::1", 26)
    assert (stage.listener, stage.match, stage.identity, stage.mechanism) == ("in", "lab", "ann", "LOGIN")
    assert stage.posture == Posture(ClientTLS.REQUIRE, ServerTLS.NEVER)
    assert stage.offers[-3:] == ("ENHANCEDSTATUSCODES", "XEXCH50", "AUTH PLAIN LOGIN")
    assert datetime.fromtimestamp(first.wall).isoformat() == "2026-11-23T09:00:00"  # noqa: DTZ006 - local time is meant
    assert [(one.sender, one.recipients) for one in stage.prologue.sent] == [("<>", ("<c@z.example>",))] * 2
    assert stage.prologue.mail is not None
    assert (stage.prologue.mail.mail, stage.prologue.mail.rcpt) == (" SIZE=12 RET=HDRS", " NOTIFY=NEVER")
    assert stage.prologue.mail.recipients == ("<b@y.example>", "<c@y.example>", "<c@y.example>")
    assert [step.octets for step in first.scenes[0].steps] == [b"NOOP\r\n"]
    stage = second.scenes[0].stage
    assert (stage.client, stage.offers, stage.prologue.data) == ("2001:db8::7", ("DSN",), True)
    assert [stage.tls[side].version for side in (Side.CLIENT, Side.SERVER)] == ["TLSv1.3", "TLSv1.2"]
    assert stage.tls[Side.SERVER].verified
    assert datetime.fromtimestamp(second.wall).isoweekday() == 1  # noqa: DTZ006


def test_sessions_of_a_case(tmp_path: Path) -> None:
    first, third = ".. session 3\n.. client 192.0.2.1\n.. hello\n", ".. session 2\n.. client 192.0.2.2\n.. hello b\n"
    (case,) = cases(tmp_path, f"== a\n{first}.. session\nC> A\n{third}")
    assert [
        (scene.times, scene.stage.client, scene.stage.prologue.hello, len(scene.steps), scene.line)
        for scene in case.scenes
    ] == [(3, "192.0.2.1", "me.example", 0, 2), (1, "192.0.2.1", "", 1, 5), (2, "192.0.2.2", "b", 0, 7)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("C> A\n", "x.play:1:1: stands before the first case"),
        ("# nothing\n", "x.play: has no case"),
        ("==\nC> A", "x.play:1:1: a case without a name"),
        ("== a\n== a", "x.play:2:1: a case of this name begins in line 1 already"),
        ("== a\nNOOP", "x.play:2:1: no line of a transcript, which begins with a tag: 'NOOP'"),
        ("== a\n=> pass", "x.play:2:1: => an output before any input"),
        ("== a\n.. clint 192.0.2.1", "x.play:2:1: .*clint.* is unknown .nearest: client"),
        ("== a\n.. qqq", "x.play:2:1: .*unknown .expected a fact"),
        ("== a\nC> A\n.. client 192.0.2.1", "x.play:3:1: .*stands before the first step"),
        ("== a\nC> A\n.. clint 192.0.2.1", "x.play:3:1: .*clint.* is unknown"),
        ("== a\n.. wait 1\n.. hello", "x.play:3:1: .*stands before the first step"),
        ("== a\n.. client 1 2", "x.play:2:1: '1 2' is no place"),
        ("== a\n.. time noon", "x.play:2:1: 'noon' is no time"),
        ("== a\n.. hello\n.. session\n.. time 2026-01-01", "x.play:4:1: the time is said at the beginning"),
        ("== a\n.. posture require", "x.play:2:1: 'require' is no posture"),
        ("== a\n.. tls all", "x.play:2:1: 'all' is no link"),
        ("== a\n.. tls both colour=red", "x.play:2:1: 'colour=red' says nothing about TLS"),
        ("== a\n.. mail FROM=a@x", "x.play:2:1: 'a@x' is no path"),
        ("== a\n.. mail TO=<a>,b", "x.play:2:1: 'b' is no path"),
        ("== a\n.. mail !", "x.play:2:1: '!' is no envelope"),
        ("== a\n.. mail\n.. data", "x.play:3:1: a mail is begun already"),
        ("== a\n.. sent 0", "x.play:2:1: '0' is no number"),
        ("== a\n.. session x", "x.play:2:1: 'x' is no number"),
        ("== a\n.. wait soon", "x.play:2:1: 'soon' is no time to wait"),
        ("== a\n.. wait -1", "x.play:2:1: '-1' is no time to wait"),
        ("== a\n.. decide a maybe", "x.play:2:1: 'a maybe' decides nothing"),
        ("== a\n.. decide a answer hello", "x.play:2:1: not a reply"),
        ("== a\nC< none.eml", "x.play:2:1: .*can't be read: No such file"),
    ],
)
def test_what_is_wrong_with_a_playbook(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(PlaybookError, match=said):
        cases(tmp_path, text)


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(PlaybookError) as caught:
        cases(tmp_path, "== a\n.. qqq\nhello\n== b\n.. wait x\n")
    assert [problem.line for problem in caught.value.problems] == [2, 3, 5]
    assert "1 | .. qqq" not in caught.value.problems[0].show()
    assert "2 | .. qqq" in caught.value.problems[0].show()


def test_files_that_are_no_text(tmp_path: Path) -> None:
    with pytest.raises(PlaybookError, match="can't be read: No such file"):
        read_playbook(tmp_path / "none.play")
    (tmp_path / "x.play").write_bytes(b"== a\n\xff\n")
    with pytest.raises(PlaybookError, match=r"x\.play:2:1: not UTF-8"):
        read_playbook(tmp_path / "x.play")


# -------------------------------------------------------------------------------------------------- prologue, and stage


def test_the_prologue_goes_as_far_as_it_says(tmp_path: Path) -> None:
    seen: list[str] = []

    class Sees(PassAll):
        def ended(self, exchange: Any, accepted: bool, session: Session) -> Verdict:  # type: ignore[override]
            seen.append(f"{session.transactions} {accepted}")
            return PASS

    play(tmp_path, ".. hello you.example\n" + PASSED)
    play(
        tmp_path,
        ".. sent 2\n.. data TO=<b@y.example>*3\nC> a\nC> .\n>S a\n>S .\nS> 250 2.0.0 Ok\n>C 250 2.0.0 Ok\n",
        Sees(),
    )
    assert seen[:3] == ["1 True", "2 True", "3 True"]


def test_a_prologue_that_is_refused_says_by_whom(tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match=r"x\.play:1: in the prologue RCPT .* was answered 550 .* by no"):
        play(tmp_path, ".. mail\nC> a\n", Rules(RCPT=REFUSED))


def test_a_prologue_that_ends_the_session(tmp_path: Path) -> None:
    hangup = Verdict(Action.HANGUP, own("221 2.0.0 Go"), "no")
    with pytest.raises(MismatchError, match=r"x\.play:1: the prologue ended the session at EHLO"):
        play(tmp_path, ".. mail\nC> a\n", Rules(EHLO=hangup))


def test_what_rules_do_in_a_prologue_is_no_proof(tmp_path: Path) -> None:
    tagged = Verdict(Action.PASS, effects=Effects(rules=("tags",), tags=("late",)))
    assert play(tmp_path, ".. mail\nC> NOOP\n>S NOOP\n.. open\n", Rules(MAIL=tagged)) == {}
    assert play(
        tmp_path,
        ".. hello\nC> MAIL FROM:<a@x.example>\n>S MAIL FROM:<a@x.example>\nS> 250 x\n>C 250 x\n=> did tags\n",
        Rules(MAIL=tagged),
    ) == {"tags": {"acted"}}


def test_facts_reach_the_rules(tmp_path: Path) -> None:
    facts: list[Any] = []

    def rule(command: Command, session: Session) -> Verdict:
        told, client = session.facts, session.client
        facts.append((*told[:6], client.address, session.identity, session.mechanism, client.tls, told.wall()))
        return PASS

    play(
        tmp_path,
        ".. client 2001:db8::7\n.. server mx.z.example:26\n.. listener in\n.. match lab\n.. identity ann\n"
        f".. tls client\n.. time 2026-11-23T09:00\n.. hello\n.. wait 60\n{PASSED}",
        Rules(NOOP=rule),
    )
    *first, tls, wall = facts[0]
    assert first[:6] == ["in", "lab", "2001:db8::7", 40000, "mx.z.example", 26]
    assert first[6:] == ["[2001:db8::7]:40000", "ann", b"PLAIN"]
    assert tls.version == "TLSv1.3"
    assert {at for *_, at in facts} == {wall}
    assert datetime.fromtimestamp(wall).isoformat() == "2026-11-23T09:01:00"  # noqa: DTZ006


@pytest.mark.parametrize(("which", "client", "server"), [("client", 1, 0), ("server", 0, 1), ("both", 1, 1)])
def test_links_are_encrypted_from_the_first_octet(which: str, client: int, server: int, tmp_path: Path) -> None:
    seen: set[tuple[bool, bool]] = set()

    def rule(command: Command, session: Session) -> Verdict:
        seen.add((session.client.tls is not None, session.server.tls is not None))
        return PASS

    play(tmp_path, f".. tls {which}\n.. hello\n{PASSED}", Rules(NOOP=rule))
    assert seen == {(bool(client), bool(server))}


def test_a_client_that_connects(tmp_path: Path) -> None:
    rules = Rules(connect=lambda session: REFUSED)
    assert play(tmp_path, "!! arrived\n>C 550 No\n-> close client\n=> answer no\n", rules)
    with pytest.raises(MismatchError, match=r"x\.play:1: the client was refused as it connected: .*!! arrived"):
        play(tmp_path, "S> 220 mx.example\n", rules)


def test_a_client_is_led_elsewhere(tmp_path: Path) -> None:
    rules = Rules(connect=lambda session: Verdict(Action.REDIRECT, ("mx2.example", 26), "away"))
    greeting = "S> 220 mx.example\n>C 220 mx.example\n=> redirect away\n"
    assert play(tmp_path, f"!! arrived\n-> dial mx2.example:26\n{greeting}", rules) == {"away": {"decided"}}
    assert play(tmp_path, f"!! arrived\n-> dial mx2.example:26\n!! connected\n{greeting}", rules)
    assert play(tmp_path, "!! arrived\n-> dial\nS> 220 mx.example\n>C 220 mx.example\n") == {}


def test_content_from_a_file_and_in_utf8(tmp_path: Path) -> None:
    (tmp_path / "mail.eml").write_bytes(b"Subject: hello\n\n.dot\n")
    end = "S> 250 2.0.0 Ok\n>C 250 2.0.0 Ok\n"
    play(tmp_path, f".. data\nC< mail.eml\n>S Subject: hello\n>S\n>S ..dot\n>S .\n{end}")
    play(tmp_path, f".. data\nC> Subject: é\nC>\nC> .\n>S Subject: é\n>S\n>S .\n{end}")


def test_sessions_share_a_clock_and_what_the_judge_remembers(tmp_path: Path) -> None:
    seen: list[tuple[float, int]] = []

    def rule(command: Command, session: Session) -> Verdict:
        seen.append((session.clock(), session.facts.client_port))
        return PASS

    text = ".. session 2\n.. client 192.0.2.1:1\n.. hello\n.. wait 10\n.. session\n.. client 192.0.2.1:2\n.. hello\n"
    play(tmp_path, text + PASSED, Rules(EHLO=rule))
    (a, one), (b, again), (c, two) = seen[:3]
    assert (one, again, two) == (1, 1, 2)
    assert (b - a, c - b) == (10, 10)
    assert seen[3][0] > c + 3e7  # nothing that was counted in one playing counts in the next


def test_what_was_counted_in_a_case_that_failed_does_not_count_in_the_next(tmp_path: Path) -> None:
    seen: list[float] = []

    def rule(command: Command, session: Session) -> Verdict:
        seen.append(session.clock())
        return REFUSED

    performer = Performer(Rules(NOOP=rule))
    (case,) = cases(tmp_path, "== it\n.. hello\nC> NOOP\n>C 250 Ok\n")
    for _ in range(2):
        with pytest.raises(MismatchError):
            performer.play(case)
    assert seen[1] - seen[0] > 3e7


def test_a_command_without_its_reply(tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match="the transcript is unfinished: NOOP awaits its reply"):
        play(tmp_path, ".. hello\nC> NOOP\n>S NOOP\n")
    play(tmp_path, ".. hello\nC> NOOP\n>S NOOP\n.. open\n")


# ---------------------------------------------------------------------------------------------- differences and record


def test_a_difference_names_file_and_line(tmp_path: Path) -> None:
    with pytest.raises(MismatchError) as caught:
        play(tmp_path, ".. hello\nC> NOOP\n>C 550 5.7.1 Never\n", Rules(NOOP=REFUSED))
    where, *lines = str(caught.value).splitlines()
    assert where == f"{tmp_path}/x.play:3: C> b'NOOP\\r\\n' (whole):"
    assert lines[0] == r"- >C b'550 5.7.1 Never\r\n'"
    assert r"+ >C b'550 5.7.1 No\r\n'" in lines


def test_two_cuttings_that_differ(tmp_path: Path) -> None:
    turns = iter(range(100))
    rules = Rules(NOOP=lambda command, session: Verdict(Action.ANSWER, own("250 x"), f"r{min(next(turns), 1)}"))
    with pytest.raises(MismatchError, match=r"x\.play:1: other records when octet by octet:\n- .*'r0'.*\n\+ .*'r1'"):
        play(tmp_path, ".. hello\nC> NOOP\n>C 250 x\n", rules)


FULL = answers("550 5.7.1 No", rules=("tags", "slow"), observed=(Observed("sees", "discard"),), tags=("a", "b"))


@pytest.mark.parametrize(
    ("told", "wrong"),
    [
        ("", ""),
        ("answer no; did tags; did slow; observed sees discard", ""),
        ("did slow; observed sees; tag b; answer no; did tags; anomaly odd", ""),
        ("answer no", "+ => did slow"),
        ("answer no; did tags; did slow", "+ => observed sees discard"),
        ("answer other; did tags; did slow; observed sees", "- => answer other"),
        ("pass no; did tags; did slow; observed sees", "- => pass no"),
        ("answer no; did tags; did slow; observed sees answer", "- => observed sees answer"),
        ("answer no; did tags; did slow; observed sees; tag c", "- => tag c"),
        ("answer no; did tags; did slow; observed sees; anomaly c", "- => anomaly c"),
        ("answer no; did tags; did slow; observed sees; did more", "- => did more"),
        ("pass", "- => pass"),
    ],
)
def test_what_must_be_on_record(told: str, wrong: str, tmp_path: Path) -> None:
    lines = "".join(f"=> {one}\n" for one in told.split("; ") if one)
    rules = Rules(NOOP=FULL._replace(anomalies=("odd",)))
    text = f".. hello\nC> NOOP\n>C 550 5.7.1 No\n{lines}"
    if wrong:
        with pytest.raises(MismatchError) as caught:
            play(tmp_path, text, rules)
        assert wrong in str(caught.value).splitlines()
    else:
        assert play(tmp_path, text, rules) == {
            "no": {"decided"},
            "tags": {"acted"},
            "slow": {"acted"},
            "sees": {"observed"},
        }


def test_a_rule_that_acts_and_decides_is_named_once(tmp_path: Path) -> None:
    rules = Rules(NOOP=answers("550 5.7.1 No", rules=("no",), tags=("a",)))
    for told in ("=> answer no", "=> answer no\n=> did no"):
        assert play(tmp_path, f".. hello\nC> NOOP\n>C 550 5.7.1 No\n{told}\n", rules) == {"no": {"acted", "decided"}}


def test_no_rule_has_a_word_in_it(tmp_path: Path) -> None:
    play(tmp_path, f".. hello\n{PASSED}=> pass\n")
    with pytest.raises(MismatchError, match=r"- => answer no\n  on record: pass"):
        play(tmp_path, f".. hello\n{PASSED}=> answer no\n")
    play(tmp_path, ".. hello\nC> HELLO WORLD\n>C 500 5.5.1 Command unrecognized\n=> answer\n=> anomaly unknown-verb\n")


def test_a_list_is_several_rules_work(tmp_path: Path) -> None:
    rules = Rules(NOOP=answers("250 x", "b default a"))
    for told in ("answer a b", "answer b a", "answer b a default"):
        assert play(tmp_path, f".. hello\nC> NOOP\n>C 250 x\n=> {told}\n", rules).keys() == {"a", "b"}
    play(tmp_path, ".. hello\nC> NOOP\n>C 250 x\n=> answer default\n", Rules(NOOP=answers("250 x", "default")))
    play(tmp_path, ".. hello\nC> NOOP\n>C 250 x\n=> answer\n", Rules(NOOP=answers("250 x", "default")))


def test_what_is_let_through_shows_the_rule_that_lets_it(tmp_path: Path) -> None:
    (case,) = cases(tmp_path, f"== it\n.. hello\n{PASSED}")
    assert Performer(PassAll(), lambda name, session: {b"NOOP": "allow-noop"}.get(name, "")).play(case) == {
        "allow-noop": {LET}
    }
    script = "S> 220 a\n>C 220 a\nC> EHLO me\n>S EHLO me\nS> 250-a\nS> 250 DSN\n>C 250-a\n>C 250 DSN\n"
    (case,) = cases(tmp_path, f"== it\n{script}")
    shows = Performer(PassAll(), lambda name, session: f"allow-{name.decode()}").play(case)
    assert shows.keys() == {"allow-EHLO", "allow-DSN"}


# ------------------------------------------------------------------------------------------------------- the outside


def asks(about: Any, deadline: float = 5.0) -> Verdict:
    def resume(answer: Any) -> Verdict:
        said = answer.why if isinstance(answer, Failed) else str(answer)
        return answers(f"550 5.7.1 {said}", "asks")

    return Verdict(Action.ASK, Question(about, deadline, resume))


def test_a_wait_is_over_at_once(tmp_path: Path) -> None:
    text = ".. hello\nC> NOOP\n-> wait 2.5\n>C 550 5.7.1 None\n=> answer asks\n"
    assert play(tmp_path, text, Rules(NOOP=asks(Wait(2.5)))) == {"asks": {"decided"}}


def test_functions_are_really_called(tmp_path: Path) -> None:
    async def late() -> str:
        return "async"

    async def never() -> None:
        import trio

        await trio.sleep_forever()

    def fails() -> None:
        raise KeyError("x")

    given = ((lambda: "sync", False, "sync"), (late, True, "async"), (fails, False, "KeyError"))
    for function, asynchronous, said in (*given, (never, True, "no answer in time")):
        rules = Rules(NOOP=asks(Call(function, asynchronous, "asks"), 0.01))
        play(tmp_path, f".. hello\nC> NOOP\n>C 550 5.7.1 {said}\n=> answer asks\n", rules)


def test_the_quarantine_keeps_everything(tmp_path: Path) -> None:
    rules = Rules(NOOP=asks(Keep("asks", "", None, {})))
    play(tmp_path, ".. hello\nC> NOOP\n-> keep\n>C 550 5.7.1 kept-1\n", rules)
    play(tmp_path, ".. decide asks fails full\n.. hello\nC> NOOP\n-> keep\n>C 550 5.7.1 full\n", rules)
    play(tmp_path, ".. hello\n.. decide asks kept here\nC> NOOP\n-> keep\n>C 550 5.7.1 here\n", rules)
    play(tmp_path, ".. hello\n.. decide asks late\nC> NOOP\n-> keep\n>C 550 5.7.1 no answer in time\n", rules)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("!! sing", "x.play:2: the driver can't say 'sing': expected arrived"),
        ("!! tls-done nobody", "x.play:2: the driver can't say"),
        ("!! decided", "x.play:2: the driver can't say 'decided': nothing was asked"),
    ],
)
def test_what_no_driver_says(line: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match=said):
        play(tmp_path, f"{line}\n")
