"""Rules on subjects, tried: order, what adds up, who observes, what fails; and rules about extensions by session."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smtpproxy.policy.judge import Judge
from smtpproxy.policy.judging import Tried, joined
from smtpproxy.policy.load import load_rules
from smtpproxy.policy.rates import Counters
from smtpproxy.session.state import Facts
from smtpproxy.session.verdicts import PASS, Action, Effects, Failed, Observed, Verdict
from smtpproxy.smtp.errors import Side
from tests.session.test_asking import EHLO, GREETING, Talk

Make = Callable[..., Judge]
FACTS = Facts("inbound", client="192.0.2.7", client_port=4025, server="mx.example", server_port=25)


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A judge by rules as they are written; `why` is added."""

    def made(*rules: str, lists: str = "", shipped: bool = False) -> Judge:
        file = tmp_path / "rules.toml"
        texts = [f'[[rule]]\nwhy = "To see."\n{rule}\n' for rule in rules]
        file.write_text("\n".join([lists, *texts]), encoding="utf-8")
        counters = Counters()
        loaded = load_rules([file], shipped=shipped, counters=counters)
        assert loaded.ok, "\n".join(problem.show() for problem in loaded.problems)
        return Judge(loaded.rules, counters=counters, digest=loaded.digest)

    return made


def rule(name: str, on: str, then: str, when: str = "", more: str = "") -> str:
    condition = f"when = '''{when}'''\n" if when else ""
    return f'name = "{name}"\non = "{on}"\n{condition}then = {then}\n{more}'


def begun(judge: Judge, **options: Any) -> Talk:
    return Talk(judge, facts=FACTS, **options).begin()


MAIL = b"MAIL FROM:<a@x.example>\r\n"
RCPT = b"RCPT TO:<b@y.example>\r\n"
NO = '{ answer = "550 5.7.1 No" }'


# ---------------------------------------------------------------------------------------------------------------- order


def test_the_first_that_decides_ends_it(make: Make) -> None:
    talk = begun(make(rule("one", "MAIL", '"pass"'), rule("two", "MAIL", NO)))
    assert talk.client(MAIL) == (b"", MAIL)
    talk.server(b"250 Ok\r\n")
    assert talk.exchange("MAIL")["rule"] == "one"


def test_what_does_not_decide_adds_up(make: Make) -> None:
    talk = begun(
        make(
            rule("one", "MAIL", '{ tag = "seen" }'),
            rule("two", "MAIL", '{ rewrite = { address = "c@z.example" } }', '"seen" in session.tags'),
            rule("three", "MAIL", '{ tag = "rewritten" }', 'mail.domain == "z.example"'),
            rule("four", "MAIL", '{ rewrite = { address = "{mail.local}@last.example" } }'),
        )
    )
    assert talk.client(MAIL)[1] == b"MAIL FROM:<c@last.example>\r\n"
    talk.server(b"250 Ok\r\n")
    record = talk.exchange("MAIL")
    assert record["tags"] == ["seen", "rewritten"]
    assert record["rule"] == "four"
    assert record["rules"] == ["one", "two", "three"]


def test_a_verb_is_met_in_every_spelling(make: Make) -> None:
    judge = make(rule("one", "MAIL", NO))
    for verb in ("MAIL", "SOML", "EMAL", "ESAM"):
        assert verb in judge.commands
    assert "NOOP" not in judge.commands  # nobody is asked about it


def test_any_command_is_every_one_but_what_is_none(make: Make) -> None:
    talk = begun(make(rule("one", "any command", '{ tag = "seen" }')))
    talk.client(b"NOOP\r\n")
    talk.server(b"250 Ok\r\n")
    assert talk.exchange("NOOP")["rules"] == ["one"]
    assert talk.client(b"XFOO\r\n")[0].startswith(b"5")
    assert talk.exchange("UNKNOWN")["sent"] is None


def test_an_unknown_verb_passes_by_a_rules_word_alone(make: Make) -> None:
    talk = begun(make(rule("one", "UNKNOWN", '"pass"', 'command.verb == "XFOO"')))
    assert talk.client(b"XFOO bar\r\n")[1] == b"XFOO bar\r\n"
    talk.server(b"250 Ok\r\n")
    assert talk.client(b"XBAR\r\n")[1] == b""


def test_a_line_that_is_no_command_may_be_answered(make: Make) -> None:
    talk = begun(make(rule("one", "MALFORMED", '{ answer = "501 5.5.2 Speak clearly" }')))
    assert talk.client(b"MAIL\r\n") == (b"501 5.5.2 Speak clearly\r\n", b"")
    assert "malformed-command" in talk.exchange("MAIL")["anomalies"]


# ----------------------------------------------------------------------------------------------------------- observing


def test_who_observes_does_nothing_and_says_what_it_would_have_done(make: Make) -> None:
    observe = 'mode = "observe"'
    talk = begun(
        make(
            rule("one", "MAIL", NO, "", observe),
            rule("two", "MAIL", '[{ tag = "x" }, { tarpit = "5s" }]', "", observe),
            rule("three", "MAIL", '{ limit = { messages = 1, per = "client", within = "1h" } }', "", observe),
            rule("four", "MAIL", '{ hangup = "421 4.7.0 Go" }', "", observe),
        )
    )
    for number in (1, 2):
        assert talk.client(MAIL) == (b"", MAIL)
        talk.server(b"250 Ok\r\n")
        seen = {one["rule"]: one for one in talk.exchange("MAIL")["observed"]}
        assert seen["one"] == {"rule": "one", "action": "answer", "told": "550 5.7.1 No"}
        assert seen["two"] == {"rule": "two", "action": "tag tarpit"}
        assert seen["four"] == {"rule": "four", "action": "hangup", "told": "421 4.7.0 Go"}
        assert ("three" in seen) is (number == 2)
        talk.client(b"RSET\r\n")
        talk.server(b"250 Ok\r\n")
    assert "tags" not in talk.exchange("MAIL")


def test_who_observes_locks_nobody(make: Make) -> None:
    limit = '{ limit = { messages = 1, per = "client", within = "1h", lock = "1h", answer = "451 4.7.1 No" } }'
    talk = begun(
        make(
            rule("watch", "MAIL", limit, "", 'mode = "observe"'),
            rule("locked", "MAIL", NO, 'locked("watch", client.address)'),
        )
    )
    for _ in range(3):
        assert talk.client(MAIL) == (b"", MAIL)
        talk.server(b"250 Ok\r\n")
        talk.client(b"RSET\r\n")
        talk.server(b"250 Ok\r\n")


@pytest.mark.parametrize("mode", ["observe", "enforce"])
def test_what_is_beyond_the_bounds_refuses_by_the_rules_that_are_enforced(make: Make, mode: str) -> None:
    talk = begun(make(rule("files", "attachment", NO, 'attachment.extension == "exe"', f'mode = "{mode}"')))
    talk.client(MAIL + RCPT)
    talk.server(b"250 Ok\r\n250 Ok\r\n")
    talk.client(b"DATA\r\n")
    deep = b"".join(b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (n, n) for n in range(300))
    sent = talk.client(deep + b".\r\n")[1]
    if mode == "observe":
        assert sent == b"DATA\r\n"
        talk.server(b"354 Go\r\n")
        talk.server(b"250 Ok\r\n")
        assert talk.exchange("END")["observed"][0]["action"] == "failed"
    else:
        assert talk.server(b"250 Reset\r\n")[0].startswith(b"451 4.3.0 ")
        assert talk.exchange("END")["rule"] == "files"
        assert talk.exchange("END")["anomalies"] == ["rule-failed", "mime-limit"]


def test_a_loop_that_would_take_seconds_fails(make: Make) -> None:
    when = 'header["X-A"].exists(a, header["X-B"].exists(b, a.contains(b)))'
    talk = begun(make(rule("slow", "header", NO, when)))
    talk.client(MAIL + RCPT)
    talk.server(b"250 Ok\r\n250 Ok\r\n")
    talk.client(b"DATA\r\n")
    talk.client(b"X-A: " + b"ab" * 60_000 + b"\r\n" + b"X-B: ac\r\n" * 9_000 + b"\r\n.\r\n")
    assert talk.server(b"250 Reset\r\n")[0].startswith(b"451 4.3.0 ")


# ------------------------------------------------------------------------------------------------------------- failing


@pytest.mark.parametrize(
    ("on", "octets", "told"),
    [
        ("MAIL", MAIL, b"451 4.3.0 "),
        ("MAIL reply", MAIL, b"421 4.3.0 "),
    ],
)
def test_a_rule_that_fails_refuses(make: Make, on: str, octets: bytes, told: bytes) -> None:
    talk = begun(make(rule("bad", on, '"pass"', "1 / size(mail.parameters) == 1")))
    said = talk.client(octets)[0]
    said += talk.server(b"250 Ok\r\n")[0] if not said else b""
    assert said.startswith(told)
    assert talk.exchange("MAIL")["rule"] == "bad"
    assert "rule-failed" in talk.exchange("MAIL")["anomalies"]


def test_who_observes_and_fails_says_so_and_the_next_is_tried(make: Make) -> None:
    talk = begun(
        make(
            rule("bad", "MAIL", NO, "1 / size(mail.parameters) == 1", 'mode = "observe"'),
            rule("good", "MAIL", '{ tag = "seen" }'),
        )
    )
    assert talk.client(MAIL) == (b"", MAIL)
    talk.server(b"250 Ok\r\n")
    record = talk.exchange("MAIL")
    assert record["observed"][0]["action"] == "failed"
    assert record["tags"] == ["seen"]


def test_what_a_rewrite_makes_is_parsed_again(make: Make) -> None:
    talk = begun(make(rule("bad", "RCPT", '{ rewrite = { address = "{rcpt.local}@{rcpt.local} {rcpt.local}" } }')))
    talk.client(MAIL)
    talk.server(b"250 Ok\r\n")
    assert talk.client(RCPT)[0].startswith(b"451 4.3.0 ")
    assert talk.exchange("RCPT")["rule"] == "bad"


# -------------------------------------------------------------------------------------------------------------- asking


def test_a_tarpit_goes_on_where_it_was(make: Make) -> None:
    judge = make(rule("slow", "MAIL", '[{ tarpit = "2s" }, { tag = "waited" }]'), rule("no", "MAIL", NO))
    talk = begun(judge)
    assert talk.client(MAIL) == (b"", b"")
    (ask,) = talk.asked()
    assert ask.question.about.seconds == 2.0  # type: ignore[union-attr]
    assert talk.answer()[0] == b"550 5.7.1 No\r\n"
    record = talk.exchange("MAIL")
    assert (record["rule"], record["rules"], record["tags"]) == ("no", ["slow"], ["waited"])


def whole(make: Make, otherwise: str = "") -> Talk:
    judge = make(rule("keep", "content", '{ quarantine = "accept" }', 'mail.domain == "x.example"', otherwise))
    talk = begun(judge)
    talk.client(MAIL + RCPT)
    talk.server(b"250 Ok\r\n250 Ok\r\n")
    talk.client(b"DATA\r\n")
    talk.client(b"Subject: a\r\n\r\ntext\r\n.\r\n")
    return talk


@pytest.mark.parametrize(
    ("otherwise", "told", "action"),
    [
        ("", b"451 4.3.0 ", "answer"),
        ('otherwise = "discard"', b"250 ", "discard"),
        ('otherwise = { answer = "450 4.7.0 Later" }', b"450 4.7.0 Later", "answer"),
    ],
)
def test_what_can_not_be_kept_is_what_the_rule_says(make: Make, otherwise: str, told: bytes, action: str) -> None:
    talk = whole(make, otherwise)
    said = talk.answer(Failed("the disk is full"))[0] + talk.server(b"250 Reset\r\n")[0]
    assert said.startswith(told)
    assert talk.exchange("END")["action"] == action
    assert talk.exchange("END")["rule"] == "keep"


def test_what_is_kept_is_not_sent_on(make: Make) -> None:
    talk = whole(make)
    (ask,) = talk.asked()
    keep: Any = ask.question.about
    assert keep.content.read() == b"Subject: a\r\n\r\ntext\r\n"
    assert talk.answer("name")[1] == b"RSET\r\n"
    assert talk.server(b"250 Reset\r\n")[0].startswith(b"250 ")
    assert talk.exchange("END")["action"] == "quarantine"


def test_content_is_held_back_for_rules_that_could_hold_alone(make: Make) -> None:
    judge = make(rule("keep", "content", '{ quarantine = "accept" }', 'mail.domain == "o.example" && content.size > 1'))
    talk = begun(judge)
    talk.client(MAIL + RCPT)
    talk.server(b"250 Ok\r\n250 Ok\r\n")
    assert talk.client(b"DATA\r\n")[1] == b"DATA\r\n"


# --------------------------------------------------------------------------------------- about extensions, sometimes


ETRN = 'name = "etrn"\nextension = "ETRN"\nthen = "allow"\n'
LIST = b"250-mx.example\r\n250-ETRN\r\n250-CHUNKING\r\n250 ENHANCEDSTATUSCODES\r\n"


def offered(judge: Judge, hello: bytes = b"me.example") -> Talk:
    talk = Talk(judge, facts=FACTS)
    talk.server(GREETING)
    talk.client(b"EHLO " + hello + b"\r\n")
    talk.told = talk.server(LIST)[0]  # type: ignore[attr-defined]
    return talk


@pytest.mark.parametrize(("network", "may"), [("192.0.2.0/24", True), ("198.51.100.0/24", False)])
def test_an_extension_is_for_some_clients(make: Make, network: str, may: bool) -> None:
    talk = offered(make(ETRN + f"when = 'in_network(client.address, \"{network}\")'"))
    assert (b"ETRN" in talk.told) is may  # type: ignore[attr-defined]
    assert (talk.client(b"ETRN x.example\r\n")[1] == b"ETRN x.example\r\n") is may


def test_which_holds_is_found_out_at_each_hello(make: Make) -> None:
    judge = make(ETRN + "when = 'client.hello == \"branch.example\"'")
    talk = offered(judge, b"branch.example")
    assert b"ETRN" in talk.told  # type: ignore[attr-defined]
    talk.client(b"EHLO other.example\r\n")
    assert b"ETRN" not in talk.server(LIST)[0]
    assert talk.client(b"ETRN x.example\r\n")[1] == b""


def test_a_size_is_for_some_clients(make: Make) -> None:
    judge = make(
        'name = "small"\nextension = "SIZE"\nthen = { limit = 1000 }\n'
        "when = 'in_network(client.address, \"192.0.2.0/24\")'"
    )
    talk = Talk(judge, facts=FACTS)
    talk.server(GREETING)
    talk.client(b"EHLO me.example\r\n")
    assert b"SIZE 1000" in talk.server(b"250-mx.example\r\n250 SIZE 5000\r\n")[0]
    assert talk.client(b"MAIL FROM:<a@x.example> SIZE=2000\r\n")[0].startswith(b"552 ")
    assert judge.max_size(talk.session) == 1000
    assert judge.owner(b"SIZE", talk.session) == "small"
    assert judge.max_size(Talk(judge, facts=FACTS._replace(client="198.51.100.1")).session) == 0


def test_an_extension_that_would_be_denied_is_on_record(make: Make) -> None:
    judge = make('name = "no-bdat"\nextension = "CHUNKING"\nthen = "deny"\nmode = "observe"')
    talk = offered(judge)
    assert b"CHUNKING" in talk.told  # type: ignore[attr-defined]
    assert talk.exchange("EHLO")["observed"] == [{"rule": "no-bdat", "action": "deny"}]
    talk.client(MAIL + RCPT)
    talk.server(b"250 Ok\r\n250 Ok\r\n")
    talk.client(b"BDAT 2 LAST\r\n\r\n")
    talk.server(b"250 Ok\r\n")
    assert talk.exchange("BDAT")["observed"][0]["rule"] == "no-bdat"
    assert talk.exchange("BDAT")["got"] == "250 Ok"


def test_later_rules_see_the_list_that_is_left(make: Make) -> None:
    judge = make(
        'name = "no-bdat"\nextension = "CHUNKING"\nthen = "deny"',
        rule("mask", "EHLO reply", '{ rewrite = { text = "proxy.example", set = { SIZE = "1000" } } }'),
    )
    talk = offered(judge)
    assert talk.told.splitlines() == [b"250-proxy.example", b"250-ENHANCEDSTATUSCODES", b"250 SIZE 1000"]  # type: ignore[attr-defined]
    record = talk.exchange("EHLO")
    assert record["rule"] == "mask"
    assert "no-bdat" in record["rules"]


# ------------------------------------------------------------------------------------------------------------- looking


def test_every_rule_that_is_tried_can_be_seen(make: Make) -> None:
    judge = make(
        rule("one", "MAIL", NO, 'mail.domain == "other.example"'),
        rule("two", "MAIL", '"pass"'),
        rule("three", "MAIL", NO),
    )
    seen: list[Tried] = []
    judge.trace = seen.append
    begun(judge).client(MAIL)
    assert [(one.subject, one.rule, one.held, one.deed) for one in seen] == [
        ("MAIL", "one", False, ""),
        ("MAIL", "two", True, "pass"),
    ]
    assert dict(seen[0].values) == {"mail.domain": "x.example"}


def test_two_verdicts_about_the_same_are_one() -> None:
    first = Verdict(Action.REWRITE, b"x", "a b", ("odd",), Effects(tags=("t",)))
    then = Verdict(Action.PASS, None, "c", ("more",), Effects(observed=(Observed("o", "answer"),)))
    made = joined(first, then)
    assert (made.action, made.value, made.rule, made.anomalies) == (Action.REWRITE, b"x", "c", ("odd", "more"))
    assert made.effects == Effects(("a", "b"), (Observed("o", "answer"),), ("t",))
    assert joined(PASS, then) is then
    assert joined(first, PASS).rule == "a b"


def test_the_greeting_is_met(make: Make) -> None:
    talk = Talk(make(rule("mask", "GREETING reply", '{ rewrite = { text = "mx.example ESMTP" } }')), facts=FACTS)
    assert talk.server(b"220 mx.example Exim 4.96 ready\r\n")[0] == b"220 mx.example ESMTP\r\n"
    talk.client(b"EHLO me.example\r\n")
    talk.server(EHLO)
    assert talk.exchange("GREETING")["rule"] == "mask"


def test_each_file_of_a_mail_is_looked_at_for_itself_and_an_edit_before_is_kept(make: Make) -> None:
    judge = make(
        rule("stamp", "header", '{ header = { add = { X-Seen = "yes" } } }'),
        rule("exe", "attachment", NO, 'attachment.extension == "exe"'),
        rule("all", "content", '{ tag = "seen" }'),
    )
    parts = b"--b\r\nContent-Disposition: attachment; filename=%s\r\n\r\nx\r\n"
    head = b"Content-Type: multipart/mixed; boundary=b\r\n\r\n"
    for names, refused in (((b"a.txt", b"b.exe"), True), ((b"a.txt", b"b.txt"), False)):
        talk = begun(judge)
        talk.client(MAIL + RCPT)
        talk.server(b"250 Ok\r\n250 Ok\r\n")
        talk.client(b"DATA\r\n")
        sent = talk.client(head + b"".join(parts % name for name in names) + b"--b--\r\n.\r\n")[1]
        if refused:
            assert talk.server(b"250 Reset\r\n")[0] == b"550 5.7.1 No\r\n"
        else:
            assert sent == b"DATA\r\n"
            assert b"X-Seen: yes\r\n" in talk.server(b"354 Go\r\n")[1]


def test_a_list_that_was_filtered_stays_so_while_a_rule_asks(make: Make) -> None:
    judge = make(
        'name = "no-bdat"\nextension = "CHUNKING"\nthen = "deny"', rule("slow", "EHLO reply", '{ tarpit = "1s" }')
    )
    talk = Talk(judge, facts=FACTS)
    talk.server(GREETING)
    talk.client(b"EHLO me.example\r\n")
    assert talk.server(EHLO)[0] == b""
    told = talk.answer()[0]
    assert told.startswith(b"250-")
    assert b"CHUNKING" not in told


def test_what_held_for_a_hello_is_forgotten_with_it(make: Make) -> None:
    judge = make(ETRN + "when = 'client.hello == \"branch.example\"'")
    talk = offered(judge, b"branch.example")
    talk.client(b"EHLO other.example\r\n")
    talk.server(b"501 No\r\n")  # the hello before it still counts
    assert talk.client(b"ETRN x.example\r\n")[1] == b"ETRN x.example\r\n"
    talk.server(b"250 Ok\r\n")
    talk.client(b"HELO other.example\r\n")
    talk.server(b"250 mx.example\r\n")
    assert talk.client(b"ETRN x.example\r\n")[1] == b""


def test_a_link_on_which_a_rule_fails_is_closed(make: Make) -> None:
    judge = make(rule("bad", "tls", '"pass"', "1 / size(client.tls_version) == 1"), NOTHING)
    verdict = judge.tls(Side.CLIENT, Talk(judge, facts=FACTS).session) if judge.tls else None
    assert verdict is not None
    assert verdict.action is Action.HANGUP


NOTHING = rule("nothing", "NOOP", '"pass"')


@pytest.mark.parametrize("on", ["header", "attachment", "content"])
@pytest.mark.parametrize("octets", [b"A: b\n\nX: c\r\n\r\n", b"\nA: b\r\n\r\n"])
def test_chunks_that_can_be_read_in_two_ways_are_refused(make: Make, on: str, octets: bytes) -> None:
    """BDAT carries what DATA can't; a rule can't say what the next reader sees."""
    for mode, refused in (("enforce", True), ("observe", False)):
        talk = begun(make(rule("see", on, '{ tag = "seen" }', "", f'mode = "{mode}"')))
        talk.client(MAIL + RCPT)
        talk.server(b"250 Ok\r\n250 Ok\r\n")
        sent = talk.client(b"BDAT %d LAST\r\n" % len(octets) + octets)[1]
        assert sent.endswith(b"RSET\r\n" if refused else octets)
        said = talk.server(b"250 Ok\r\n")[0]
        assert said.startswith(b"451 4.3.0 " if refused else b"250 Ok")
        assert talk.exchange("BDAT").get("rule") == ("see" if refused else None)
