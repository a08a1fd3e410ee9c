"""Reports: what rules did, and what those that observe would have changed."""

from pathlib import Path

import pytest

from smtpproxy.proving import report as module
from smtpproxy.proving.history import Audit
from smtpproxy.proving.report import Report, Some, report
from tests.proving.audits import HELLO, QUIT, Recording, judge_of, mail

RULES = """
[[rule]]
name = "old"
why = "test"
mode = "observe"
on = "RCPT"
when = 'rcpt.domain == "old.example"'
then = { answer = "550 5.7.1 Not here" }

[[rule]]
name = "bad"
why = "test"
on = "RCPT"
when = 'rcpt.local == "bad"'
then = { answer = "550 5.7.1 Not them" }

[[rule]]
name = "tagged"
why = "test"
on = "MAIL"
then = { tag = "seen" }

[[rule]]
name = "no-dsn"
why = "test"
extension = "DSN"
then = "deny"
"""
REFUSED = """
    C> MAIL FROM:<c@x.example>
    S> 250 Ok
    C> RCPT TO:<a@old.example>
    S> 550 5.1.1 no such user
    C> RCPT TO:<bad@old.example>
    C> RSET
    S> 250 Ok
"""


@pytest.fixture
def found(tmp_path: Path) -> Report:
    recording = Recording(tmp_path / "a", judge_of(RULES, tmp_path))
    recording.session(HELLO + mail("a@x.example", "c@old.example") + mail("b@x.example", "d@old.example") + QUIT)
    recording.session(HELLO + REFUSED + QUIT, client="192.0.2.2:7")
    return report(Audit([tmp_path / "a"]), examples=2)


def test_what_rules_did_is_counted_by_what_they_did(found: Report) -> None:
    assert (found.sessions, found.exchanges) == (2, 18)
    assert dict(found.rules["bad"].enforced) == {"answer": 1}
    assert dict(found.rules["no-dsn"].enforced) == {"rewrite": 2}
    assert dict(found.rules["tagged"].enforced) == {"beside": 3}
    assert set(found.rules) == {"old", "bad", "tagged", "no-dsn"}


def test_what_would_have_been_done_stands_beside_what_was(found: Report) -> None:
    """Of four, the server refused one and another rule one: enforcing it would change two."""
    old = found.rules["old"]
    assert dict(old.observed) == {"answer": 4}
    assert (old.by_server, old.by_rules, old.would_change) == (1, 1, 2)
    assert not old.enforced


def test_clients_and_senders_are_told_apart(found: Report) -> None:
    old, bad = found.rules["old"], found.rules["bad"]
    assert (str(old.clients), str(old.senders)) == ("2", "3")
    assert (len(bad.clients), len(bad.senders)) == (1, 1)
    assert old.first is not None
    assert old.last is not None
    assert old.first < old.last


def test_examples_say_who_and_what(found: Report) -> None:
    first, second = found.rules["old"].examples
    assert (first.client, first.sender, first.asked) == ("192.0.2.1:4025", "a@x.example", "RCPT TO:<c@old.example>")
    assert (first.told, first.would) == ("250 2.1.5 Ok", "answer 550 5.7.1 Not here")
    assert second.sender == "b@x.example"


def test_of_a_session_that_began_before_some_things_are_not_known(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "a", judge_of(RULES, tmp_path))
    recording.session(HELLO + mail("a@x.example", "bad@y.example".replace("bad", "b")) + REFUSED)
    lines = (tmp_path / "a").read_text().splitlines(keepends=True)
    (tmp_path / "b").write_text("".join(lines[1:]))
    (example,) = report(Audit([tmp_path / "b"])).rules["bad"].examples
    assert (example.client, example.sender) == ("", "")


def test_what_rules_said_of_a_handshake(tmp_path: Path) -> None:
    text = '{"at":"2026-11-16T10:00:00Z","session":"s-1","kind":"note","subject":"tls","side":"client",%s}\n'
    lines = ('"rule":"weak","action":"hangup"', '"observed":[{"rule":"soft","action":"answer","told":"554 no"}]')
    (tmp_path / "a").write_text("".join(text % line for line in lines))
    found = report(Audit([tmp_path / "a"]))
    assert dict(found.rules["weak"].enforced) == {"hangup": 1}
    assert found.rules["soft"].examples[0][4:] == ("tls client", "", "answer 554 no")


def test_names_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_NAMES", 2)
    some = Some()
    for name in "aabbacc":
        some.add(name)
    assert (len(some), str(some)) == (2, "2+")
