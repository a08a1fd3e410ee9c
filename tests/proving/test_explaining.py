"""A session, explained: the rules that were tried at each command, what they saw, and which decided."""

from pathlib import Path

from smtpproxy.proving.explaining import Explained, explain, values_shown
from smtpproxy.proving.history import Audit, sessions
from tests.proving.audits import HELLO, QUIT, Recording, judge_of, mail, rehearsed

RULES = """
[[rule]]
name = "local"
why = "test"
on = "RCPT"
when = 'in_network(client.address, "10.0.0.0/8")'
then = "pass"

[[rule]]
name = "old"
why = "test"
on = "RCPT"
when = 'rcpt.domain == "old.example" && !client.tls'
then = { answer = "550 5.7.1 Not here" }

[[rule]]
name = "never-come-to"
why = "test"
on = "RCPT"
then = { answer = "550 5.7.1 No" }
mode = "observe"

[[rule]]
name = "subject"
why = "test"
on = "header"
when = 'header["Subject"] == ["x"]'
then = "discard"
"""
HELD = mail("a@x.example", reply="354 Go\nS> 250 Ok").replace("S> 354 Go\n", "", 1)
SCRIPT = HELLO + "C> MAIL FROM:<a@x.example>\nS> 250 Ok\nC> RCPT TO:<c@old.example>\nC> RSET\nS> 250 Ok\n" + HELD + QUIT


def explained(folder: Path, now: str, script: str = SCRIPT, then: str = RULES) -> Explained:
    """A session recorded by some rules, explained by others."""
    recording = Recording(folder / "a", judge_of(then, folder))
    recording.session(script)
    (session,) = sessions(Audit([folder / "a"]))
    return explain(session, rehearsed(now, folder))


def test_each_rule_that_was_tried_is_shown_with_what_it_saw(tmp_path: Path) -> None:
    found = explained(tmp_path, RULES)
    (refused,) = [one for one in found.shown if one.asked == "RCPT TO:<c@old.example>"]
    assert (refused.then, refused.then_rule) == ("answer 550 5.7.1 Not here", "old")
    assert (refused.now, refused.now_rule, refused.same) == (refused.then, "old", True)
    local, old = refused.tried
    assert (local.subject, local.rule, local.held) == ("RCPT", "local", False)
    assert dict(local.values) == {"client.address": "192.0.2.1"}
    assert (old.rule, old.held, old.deed) == ("old", True, "answer")
    assert dict(old.values) == {"rcpt.domain": "old.example", "client.tls": False}


def test_what_was_not_decided_was_tried_to_the_end(tmp_path: Path) -> None:
    found = explained(tmp_path, RULES)
    (passed,) = [one for one in found.shown if one.asked == "RCPT TO:<b@y.example>"]
    assert [(tried.rule, tried.held) for tried in passed.tried] == [
        ("local", False),
        ("old", False),
        ("never-come-to", True),
    ]
    assert next(one for one in found.shown if one.asked == "EHLO me.example").tried == ()


def test_rules_that_read_the_mail_are_named_and_not_guessed(tmp_path: Path) -> None:
    found = explained(tmp_path, RULES)
    assert [(one.asked, one.untold) for one in found.shown if one.untold] == [("(end of data)", ("subject",))]


def test_whether_the_rules_are_those_of_then(tmp_path: Path) -> None:
    assert explained(tmp_path, RULES).same_rules
    (tmp_path / "b").mkdir()
    found = explained(tmp_path / "b", RULES.replace("old.example", "older.example"))
    assert found.same_rules is False
    (changed,) = [one for one in found.shown if not one.same]
    assert (changed.then, changed.now) == ("answer 550 5.7.1 Not here", "250 Ok")
    (tmp_path / "c").mkdir()
    recording = Recording(tmp_path / "c" / "a")
    recording.session(HELLO + QUIT, close=False)
    (session,) = sessions(Audit([tmp_path / "c" / "a"]))
    found = explain(session, rehearsed(RULES, tmp_path))
    assert (found.same_rules, found.over) == (None, False)


def test_what_would_not_come_about_is_shown_as_that(tmp_path: Path) -> None:
    now = '[[rule]]\nname = "all"\nwhy = "test"\non = "MAIL"\nthen = { answer = "550 5.7.1 No" }\n'
    found = explained(tmp_path, now, HELLO + mail() + QUIT, "")
    assert [(one.asked, one.follows) for one in found.shown if one.follows] == [
        ("RCPT TO:<b@y.example>", "all"),
        ("DATA", "all"),
        ("(end of data)", "all"),
    ]


def test_a_session_no_rule_saw(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "a")
    recording.session(HELLO)
    text = (tmp_path / "a").read_text().splitlines(keepends=True)[0]
    (tmp_path / "b").write_text(text.replace('"listener"', '"refused":"too many","listener"'))
    (session,) = sessions(Audit([tmp_path / "b"]))
    assert explain(session, rehearsed(RULES, tmp_path)).shown == []


def test_the_rules_are_left_as_they_were(tmp_path: Path) -> None:
    rules = rehearsed(RULES, tmp_path)
    recording = Recording(tmp_path / "a")
    recording.session(HELLO + QUIT)
    (session,) = sessions(Audit([tmp_path / "a"]))
    explain(session, rules)
    assert rules.judge.trace is None


def test_values_are_written_as_a_condition_would() -> None:
    shown = values_shown({"a.b": 'x"y', "c": True, "d": 3, "e": ["x"], "f": "x" * 200})
    assert shown.startswith('a.b = "x\\"y"  c = true  d = 3  e = ["x"]  f = "xxx')
    assert shown.endswith("…")
