"""Replays: what other rules would have done, and which rule it is owed to; what follows, and what can't be told."""

from pathlib import Path

import pytest

from smtpproxy.proving.history import Audit
from smtpproxy.proving.recorded import Exchange, Record
from smtpproxy.proving.reenacting import Player
from smtpproxy.proving.replay import Replay, Result
from smtpproxy.proving.steps import Kind
from tests.proving.audits import HELLO, QUIT, Recording, judge_of, mail, records_of, rehearsed

TWO = HELLO + mail("a@x.example", "b@y.example", "c@old.example") + mail("bad@x.example") + QUIT


def rule(name: str, on: str, then: str, when: str = "", more: str = "") -> str:
    """One rule, as a file."""
    condition = f"when = '{when}'\n" if when else ""
    return f'[[rule]]\nname = "{name}"\nwhy = "test"\non = "{on}"\n{condition}then = {then}\n{more}\n'


OLD = rule("old", "RCPT", '{ answer = "550 5.7.1 Not here" }', 'rcpt.domain == "old.example"')
BAD = rule("bad", "MAIL", '{ answer = "550 5.7.1 Not you" }', 'mail.local == "bad"')


def replayed(folder: Path, now: str, *scripts: str, then: str = "", **options: object) -> Result:
    """Sessions that are recorded with the rules `then`, and replayed with those of `now`."""
    recording = Recording(folder / "audit", judge_of(then, folder))
    for number, script in enumerate(scripts):
        recording.session(script, client=f"192.0.2.{number + 1}:4025")
    recording.close()
    rules = rehearsed(now, folder)
    return Replay(lambda connect: rules, **options).play(Audit([folder / "audit"]))  # type: ignore[arg-type]


def counts(result: Result) -> dict[str, dict[str, int]]:
    """Differences by rule and kind."""
    return {name: {kind.value: n for kind, n in one.counts.items()} for name, one in result.rules.items()}


def test_who_would_be_refused(tmp_path: Path) -> None:
    result = replayed(tmp_path, OLD + BAD, TWO, TWO)
    assert counts(result) == {"old": {"refused": 2}, "bad": {"refused": 2}}
    assert (result.sessions, result.exchanges, result.mails, result.differing) == (2, 24, 2, 4)
    (first, second) = result.rules["old"].examples[Kind.REFUSED]
    assert (first.session, first.client, first.asked) == ("4d9d6b7a53-1", "192.0.2.1:4025", "RCPT TO:<c@old.example>")
    assert (first.then, first.now) == ("250 2.1.5 Ok", "answer 550 5.7.1 Not here")
    assert second.session == "4d9d6b7a53-2"


def test_what_only_follows_is_no_difference_of_its_own(tmp_path: Path) -> None:
    """MAIL is refused: RCPT, DATA and the end of data would not have come. What comes after them would."""
    result = replayed(tmp_path, BAD, HELLO + mail("bad@x.example") + mail() + QUIT)
    assert result.rules["bad"].follows == result.follows == 3
    assert result.differing == 1
    assert result.mails == 1


def test_when_all_recipients_are_refused_there_is_no_mail(tmp_path: Path) -> None:
    result = replayed(tmp_path, OLD, HELLO + mail("a@x.example", "b@old.example", "c@old.example") + mail() + QUIT)
    assert counts(result) == {"old": {"refused": 2}}
    assert (result.rules["old"].follows, result.mails) == (2, 1)


def test_a_refused_hello_a_refused_log_in_and_a_closed_session_end_it(tmp_path: Path) -> None:
    hello = rule("hello", "EHLO", '{ answer = "550 5.7.1 No" }')
    assert replayed(tmp_path / ".", hello, HELLO + mail() + QUIT).rules["hello"].follows == 5
    hangup = rule("gone", "RCPT", '{ hangup = "421 4.7.0 Gone" }', 'rcpt.local == "b"')
    (tmp_path / "b").mkdir()
    result = replayed(tmp_path / "b", hangup, HELLO + mail() + mail() + QUIT)
    assert counts(result) == {"gone": {"refused": 1}}
    assert result.follows == 2 + 4 + 1


def test_a_connection_that_would_be_refused(tmp_path: Path) -> None:
    connect = rule("net", "connect", '{ answer = "554 5.7.1 No" }', 'in_network(client.address, "192.0.2.0/31")')
    result = replayed(tmp_path, connect, HELLO + QUIT, HELLO + QUIT)
    assert counts(result) == {"net": {"refused": 1}}
    assert result.rules["net"].examples[Kind.REFUSED][0].asked == "(connect)"
    assert result.follows == 2


def test_who_would_be_let_through(tmp_path: Path) -> None:
    """What the server would have said is not known, and that is said."""
    script = HELLO + "C> MAIL FROM:<bad@x.example>\n" + mail() + QUIT
    result = replayed(tmp_path, "", script, then=BAD)
    assert counts(result) == {"bad": {"passed": 1}}
    assert (result.rules["bad"].unknown, result.follows) == (1, 0)
    (example,) = result.rules["bad"].examples[Kind.PASSED]
    assert (example.then, example.now) == ("answer 550 5.7.1 Not you", "250 Ok")


def test_another_refusal_is_a_change(tmp_path: Path) -> None:
    script = HELLO + "C> MAIL FROM:<bad@x.example>\n" + QUIT
    other = BAD.replace("Not you", "Go away").replace('"bad"\nwhy', '"worse"\nwhy')
    assert counts(replayed(tmp_path, other, script, then=BAD)) == {"worse": {"changed": 1}}


def test_what_would_be_rewritten_or_swallowed(tmp_path: Path) -> None:
    rewrite = rule(
        "to", "RCPT", '{ rewrite = { address = "{rcpt.local}@new.example" } }', 'rcpt.domain == "old.example"'
    )
    discard = rule("junk", "MAIL", '"discard"', 'mail.local == "bad"')
    result = replayed(tmp_path, rewrite + discard, TWO)
    assert counts(result) == {"to": {"changed": 1}, "junk": {"taken": 1}}
    (example,) = result.rules["to"].examples[Kind.CHANGED]
    assert example.now == "rewrite to RCPT TO:<c@new.example> 250 2.1.5 Ok"
    assert result.differing == 2


def test_what_would_be_kept_in_the_quarantine(tmp_path: Path) -> None:
    """Nothing is kept, and nobody asked."""
    keep = rule("keep", "content", '{ quarantine = "accept" }', "content.size > 50")
    result = replayed(tmp_path, keep, HELLO + mail() + mail(lines=9) + QUIT)
    assert counts(result) == {"keep": {"taken": 1}}


def test_size_and_digest_are_those_on_record(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "first")
    recording.session(HELLO + mail(lines=3) + QUIT)
    digest = next(one for one in records_of(tmp_path / "first") if type(one).__name__ == "Commit").sha256  # type: ignore[union-attr]
    exact = rule("exact", "content", '{ answer = "550 5.7.1 No" }', f'content.digest == "{digest}"')
    big = rule("big", "content", '{ answer = "552 5.3.4 Big" }', "content.size > 1000")
    after = rule("after", "END reply", '{ rewrite = { text = "queued" } }', "mail.size == 29")
    scripts = HELLO + mail(lines=3) + mail(lines=100) + mail(lines=1) + QUIT
    result = replayed(tmp_path, exact + big + after, scripts)
    assert counts(result) == {"exact": {"refused": 1}, "big": {"refused": 1}, "after": {"changed": 1}}
    assert all(one.untold == 0 for one in result.rules.values())


def test_a_limit_of_size_is_kept_to_without_the_mail(tmp_path: Path) -> None:
    """And the session goes on: in truth it would have ended there, and the client come again."""
    limit = '[[rule]]\nname = "size"\nwhy = "test"\nextension = "SIZE"\nthen = { limit = 500 }\n'
    result = replayed(tmp_path, limit, HELLO + mail(lines=100) + mail() + QUIT)
    assert counts(result) == {"size": {"changed": 1, "refused": 1}}
    assert result.follows == 0
    assert result.rules["size"].examples[Kind.REFUSED][0].asked == "(end of data)"


def test_an_extension_that_is_not_told_is_not_used(tmp_path: Path) -> None:
    """A client that is not told of DSN does not ask for it; one not told of CHUNKING says DATA."""
    deny = "".join(
        f'[[rule]]\nname = "no-{name.lower()}"\nwhy = "test"\nextension = "{name}"\nthen = "deny"\n'
        for name in ("DSN", "CHUNKING")
    )
    chunks = """
        C> MAIL FROM:<a@x.example> RET=HDRS
        S> 250 Ok
        C> RCPT TO:<b@y.example> NOTIFY=NEVER
        S> 250 Ok
        C> BDAT 3
        C> x
        S> 250 Ok
        C> BDAT 3 LAST
        C> y
        S> 250 Ok
    """
    result = replayed(tmp_path, deny, HELLO + chunks + QUIT)
    assert counts(result) == {"no-dsn": {"changed": 1}, "no-chunking": {"changed": 1}}
    assert result.mails == 1
    assert result.differing == 1


def test_what_is_in_a_mail_is_not_guessed(tmp_path: Path) -> None:
    """Counted where the rest of the condition could hold."""
    subject = rule("subject", "header", '"discard"', 'mail.domain == "z.example" && header["Subject"] == ["x"]')
    types = rule("types", "attachment", '{ answer = "550 no" }', 'attachment.extension == "exe"')
    edit = rule("trace", "header", '{ header = { remove = ["X-Mailer"] } }', 'mail.domain == "x.example"')
    result = replayed(tmp_path, subject + types + edit, HELLO + mail() + mail("a@z.example") + QUIT)
    assert {name: one.untold for name, one in result.rules.items()} == {"subject": 1, "types": 2, "trace": 0}
    assert counts(result)["trace"] == {"changed": 1}
    assert (counts(result)["subject"], result.differing) == ({}, 1)


def test_functions_are_not_called(tmp_path: Path) -> None:
    called = '[[rule]]\nname = "f"\nwhy = "test"\non = "RCPT"\npython = "tests.proving.audits:never"\n'
    result = replayed(tmp_path, called, HELLO + mail() + QUIT)
    assert (result.rules["f"].called, counts(result)["f"], result.differing) == (1, {}, 0)


def test_rules_that_observe_or_act_beside(tmp_path: Path) -> None:
    watching = BAD + 'mode = "observe"\n'
    beside = rule("tagged", "MAIL", '[{ tag = "x" }, { tarpit = "1s" }]')
    result = replayed(tmp_path, watching + beside, TWO)
    assert counts(result) == {"bad": {"observed": 1}, "tagged": {"beside": 2}}
    assert result.differing == 0
    (tmp_path / "b").mkdir()
    assert counts(replayed(tmp_path / "b", watching, TWO, then=watching)) == {}


def test_rates_count_over_all_sessions_by_the_time_of_the_record(tmp_path: Path) -> None:
    """Two sessions beside each other, then a pause longer than the rate's."""
    rates = rule("rate", "MAIL", '{ limit = { messages = 3, per = "all", within = "1m", answer = "451 later" } }')
    result = replayed(tmp_path, rates, HELLO + mail() * 2, HELLO + mail() * 2, HELLO + "!! 120\n" + mail())
    assert counts(result) == {"rate": {"refused": 1}}
    assert result.rules["rate"].examples[Kind.REFUSED][0].session == "4d9d6b7a53-2"


def test_a_handshake_that_rules_refuse(tmp_path: Path) -> None:
    script = """
        S> 220 mx.example
        C> EHLO me.example
        S> 250-mx.example
        S> 250 STARTTLS
        C> STARTTLS
        S> 220 Go
        C> EHLO me.example
        S> 250 mx.example
    """
    weak = rule("weak", "tls", '{ answer = "554 5.7.0 No" }', 'tls.side == "client" && client.tls_version == "TLSv1.3"')
    result = replayed(tmp_path, weak, script + mail() + QUIT)
    assert counts(result) == {"weak": {"refused": 1}}
    assert result.follows == 6
    (tmp_path / "b").mkdir()
    recorded = script.rpartition("S>")[0] + QUIT
    assert counts(replayed(tmp_path / "b", "", recorded, then=weak)) == {"weak": {"passed": 1}}


def test_a_threshold(tmp_path: Path) -> None:
    result = replayed(tmp_path, BAD, TWO)
    assert (result.differing, result.exchanges) == (1, 12)
    assert result.beyond(0, percent=False)
    assert not result.beyond(1, percent=False)
    assert result.beyond(8, percent=True)
    assert not result.beyond(9, percent=True)


def test_no_more_sessions_are_under_way_than_there_may_be(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "a")
    for _ in range(4):
        recording.session(HELLO + mail(), close=False)
    rules = rehearsed(BAD, tmp_path)
    result = Replay(lambda connect: rules, most=2).play(Audit([tmp_path / "a"]))
    assert (result.sessions, result.left, result.exchanges) == (4, 2, 24)


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "a")
    recording.session(HELLO + "C> *5000 X\n" + QUIT)
    lines = (tmp_path / "a").read_text().splitlines(keepends=True)
    more = [line.replace('53-1"', '53-9"') for line in lines[1:]]
    for key in ('"unseen":true', '"refused":"too many"'):
        more.append(lines[0].replace('53-1"', f'53-{len(more)}"').replace('"listener"', f'{key},"listener"'))
    (tmp_path / "b").write_text("".join([*lines, *more]))
    rules = rehearsed("", tmp_path)
    result = Replay(lambda connect: rules).play(Audit([tmp_path / "b"]))
    assert (result.headless, result.unseen, result.turned_away, result.unread) == (1, 1, 1, 1)
    assert result.rules == {}


def test_each_session_has_its_own_rules_and_they_may_be_others_than_then(tmp_path: Path) -> None:
    rules = rehearsed(BAD, tmp_path)
    recording = Recording(tmp_path / "a", judge_of(OLD, tmp_path))
    recording.session(HELLO + QUIT)
    result = Replay(lambda connect: rules).play(Audit([tmp_path / "a"]))
    assert result.other_rules == 1


def test_one_session_does_not_end_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug of ours, or a record nobody wrote: it is told, and the others are played."""
    recording = Recording(tmp_path / "a")
    recording.session(HELLO + "C> NOOP\nS> 250 odd\n" + QUIT)
    recording.session(TWO)
    rules = rehearsed(BAD, tmp_path)
    feed = Player.feed

    def failing(self: Player, record: Record) -> None:
        if isinstance(record, Exchange) and record.got == "250 odd":
            raise ValueError(record)
        feed(self, record)

    monkeypatch.setattr(Player, "feed", failing)
    result = Replay(lambda connect: rules).play(Audit([tmp_path / "a"]))
    assert (result.failed, result.sessions, counts(result)) == (1, 2, {"bad": {"refused": 1}})


def test_how_far_it_is_is_told(tmp_path: Path) -> None:
    told: list[int] = []
    recording = Recording(tmp_path / "a")
    recording.session(HELLO + mail() * 500)
    rules = rehearsed("", tmp_path)
    Replay(lambda connect: rules).play(Audit([tmp_path / "a"]), lambda: told.append(1))
    assert len(told) == 3
