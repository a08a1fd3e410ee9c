"""What stands in `then` and `otherwise`: what every act is read into, and each mistake as it is told."""

from pathlib import Path

import pytest

from smtpproxy.policy import rules
from smtpproxy.policy.actions import allowed, places
from smtpproxy.policy.load import load_rules
from smtpproxy.policy.rules import Answer, Deed, FieldEdit, Rule
from smtpproxy.policy.subjects import SUBJECTS, TABLE, Act
from smtpproxy.policy.templates import Template
from smtpproxy.smtp.replies import DISCARDED, TOO_BIG, TOO_MANY_RECIPIENTS, own

HEAD = '[[rule]]\nname = "x"\nwhy = "y"\n'


def text(words: str, on: str = "RCPT") -> Template:
    made = Template.parse(words, [SUBJECTS[on]])
    assert isinstance(made, Template)
    return made


def answer(words: str) -> Answer:
    return Answer(own(words))


def deeds(tmp_path: Path, on: str, then: str, more: str = "") -> tuple[Deed, ...]:
    (tmp_path / "1.toml").write_text(f"{HEAD}on = {on}\nthen = {then}\n{more}")
    loaded = load_rules([tmp_path], shipped=False)
    assert loaded.ok, loaded.problems
    (only,) = loaded.rules
    assert isinstance(only, Rule)
    return only.then


@pytest.mark.parametrize(
    ("on", "then", "deed"),
    [
        ("RCPT", '"pass"', rules.Pass()),
        ("RCPT", '"discard"', rules.Discard()),
        ("SOML", '"discard"', rules.Discard()),
        ("RCPT", '"hangup"', rules.Hangup()),
        ("RCPT", '{ answer = "550 5.7.1 Not here" }', answer("550 5.7.1 Not here")),
        ("RCPT", '{ answer = "550 {{rcpt.domain}" }', answer("550 {rcpt.domain}")),
        ("RCPT", '{ answer = "550 {rcpt.domain}" }', Answer(None, text("550 {rcpt.domain}"))),
        ("NOOP", '{ answer = "250 2.0.0 Ok" }', answer("250 2.0.0 Ok")),
        ("connect", '{ answer = "421 4.7.0 Not you" }', answer("421 4.7.0 Not you")),
        ("connect", '{ hangup = "554 5.7.1 Not you" }', rules.Hangup(answer("554 5.7.1 Not you"))),
        ("QUIT", '{ hangup = "221 2.0.0 Bye" }', rules.Hangup(answer("221 2.0.0 Bye"))),
        ("QUIT reply", '{ hangup = "221 2.0.0 Bye" }', rules.Hangup(answer("221 2.0.0 Bye"))),
        ("RCPT", '{ tarpit = "1500ms" }', rules.Tarpit(1.5)),
        ("RCPT", "{ tarpit = 2.5 }", rules.Tarpit(2.5)),
        ("RCPT", '{ tarpit = "5m" }', rules.Tarpit(300)),
        ("connect", '{ redirect = "mx2.example:2525" }', rules.Redirect("mx2.example", 2525)),
        ("connect", '{ redirect = "192.0.2.1:25" }', rules.Redirect("192.0.2.1", 25)),
        ("connect", '{ redirect = "[2001:db8::1]:25" }', rules.Redirect("2001:db8::1", 25)),
        ("MAIL", '{ tag = ["a", "b-1", "a"] }', rules.Tag(("a", "b-1"))),
        ("MAIL", '{ record = "full" }', rules.Record()),
        ("content", '{ quarantine = "accept" }', rules.Quarantine(Answer(DISCARDED))),
        ("header", '{ quarantine = { answer = "250 2.0.0 Held" } }', rules.Quarantine(answer("250 2.0.0 Held"))),
        ("MAIL", '{ rewrite = { address = "" } }', rules.RewriteCommand(text(""))),
        (
            "RCPT",
            '{ rewrite = { address = "{rcpt.local}@new.example", set = { notify = "NEVER" }, remove = "ORCPT" } }',
            rules.RewriteCommand(text("{rcpt.local}@new.example"), None, ((b"NOTIFY", text("NEVER")),), (b"ORCPT",)),
        ),
        (
            "MAIL",
            "{ rewrite = { set = { SIZE = 100, SMTPUTF8 = '' } } }",
            rules.RewriteCommand(set=((b"SIZE", text("100")), (b"SMTPUTF8", text("")))),
        ),
        ("EHLO", '{ rewrite = { argument = "me.example" } }', rules.RewriteCommand(argument=text("me.example"))),
        ("UNKNOWN", '{ rewrite = { argument = "me" } }', rules.RewriteCommand(argument=text("me"))),
        ("RCPT reply", '{ rewrite = { text = "No" } }', rules.RewriteReply(text("No"))),
        ("RCPT reply", '{ rewrite = { reply = "450 4.2.0 No" } }', rules.RewriteReply(reply=answer("450 4.2.0 No"))),
        ("QUIT reply", '{ rewrite = { reply = "221 Bye" } }', rules.RewriteReply(reply=answer("221 Bye"))),
        (
            "EHLO reply",
            '{ rewrite = { text = "mx", set = { SIZE = "1000", AUTH = "PLAIN" }, remove = ["dsn"] } }',
            rules.RewriteReply(text("mx"), None, ((b"SIZE", text("1000")), (b"AUTH", text("PLAIN"))), (b"DSN",)),
        ),
        (
            "header",
            (
                '{ header = { remove = ["X-A", "X-B"], add = { X-C = ["1", "2"] }, replace = { Subject = "[!]'
                ' {header.subject}" } } }'
            ),
            rules.EditHeader(
                (
                    FieldEdit("remove", b"X-A"),
                    FieldEdit("remove", b"X-B"),
                    FieldEdit("add", b"X-C", text("1")),
                    FieldEdit("add", b"X-C", text("2")),
                    FieldEdit("replace", b"Subject", text("[!] {header.subject}", "header")),
                )
            ),
        ),
        (
            "RCPT",
            (
                '{ limit = { recipients = 9, per = "network", within = "1h", lock = "1d", answer = "451 4.7.1'
                ' {rcpt.domain}" } }'
            ),
            rules.Limit("recipients", 9, "network", 3600, 86400, Answer(None, text("451 4.7.1 {rcpt.domain}"))),
        ),
        (
            "RCPT",
            "{ limit = { recipients = 9 } }",
            rules.Limit("recipients", 9, "session", 0, 0, Answer(TOO_MANY_RECIPIENTS)),
        ),
        ("content", '{ limit = { octets = "1 kB" } }', rules.Limit("octets", 1000, "session", 0, 0, Answer(TOO_BIG))),
    ],
)
def test_acts(tmp_path: Path, on: str, then: str, deed: Deed) -> None:
    assert deeds(tmp_path, f'"{on}"', then) == (deed,)


def test_several_are_tried_in_order(tmp_path: Path) -> None:
    made = deeds(tmp_path, '"RCPT"', '[{ tag = "a" }, { tarpit = "1s" }, { limit = { recipients = 5 } }, "pass"]')
    assert [type(deed) for deed in made] == [rules.Tag, rules.Tarpit, rules.Limit, rules.Pass]


def test_the_default_of_a_limit_is_the_client_within_a_time(tmp_path: Path) -> None:
    (made,) = deeds(tmp_path, '"connect"', '{ limit = { connections = 5, within = "1m" } }')
    assert isinstance(made, rules.Limit)
    assert (made.per, made.within) == ("client", 60)
    assert made.answer.reply is not None
    assert made.answer.reply.full.code == 421


@pytest.mark.parametrize("act", list(Act))
@pytest.mark.parametrize(
    "on", ["connect", "tls", "RCPT", "RCPT reply", "header", "attachment", "content", "transaction"]
)
def test_the_table_alone_says_what_makes_sense_where(tmp_path: Path, on: str, act: Act) -> None:
    """And what makes no sense is told with all the places where it does."""
    whats = {"connect": "connections", "RCPT reply": "replies", "content": "octets", "transaction": "messages"}
    written = {
        Act.ANSWER: '{ answer = "550 No" }',
        Act.REWRITE: '{ rewrite = { remove = ["NOTIFY"] } }' if on == "RCPT" else '{ rewrite = { text = "x" } }',
        Act.HEADER: '{ header = { remove = ["X"] } }',
        Act.TARPIT: "{ tarpit = 1 }",
        Act.REDIRECT: '{ redirect = "a:1" }',
        Act.LIMIT: f"{{ limit = {{ {whats.get(on, 'commands')} = 1, within = 1, lock = 1 }} }}",
        Act.QUARANTINE: '{ quarantine = "refuse" }',
        Act.TAG: '{ tag = "x" }',
        Act.RECORD: '{ record = "full" }',
    }.get(act, f'"{act.value}"')
    (tmp_path / "1.toml").write_text(f'{HEAD}on = "{on}"\nthen = {written}\n')
    loaded = load_rules([tmp_path], shipped=False)
    subject = SUBJECTS[on]
    assert allowed(act, subject) is (act in TABLE[subject.group])
    if allowed(act, subject):
        assert loaded.ok, loaded.problems
    else:
        (problem,) = loaded.problems
        assert problem.message == f"{act.value} makes no sense on {on}"
        assert all(place in problem.expected for place in places(act))
        assert on not in places(act)


# ---------------------------------------------------------------------------------------------------------- mistakes

# on, then with ▲ before each place that is told, what is told
MISTAKES: list[tuple[str, ...]] = [
    (
        '"RCPT"',
        '▲"deny"',
        'then: "deny" is not something to do (expected { answer = "550 5.7.1 Not here" })',
    ),
    (
        '"RCPT"',
        '▲"discrd"',
        (
            'then: "discrd" is not something to do (expected "pass", "discard", "hangup", or a table such as {'
            ' answer = "550 5.7.1 Not here" }; nearest: discard)'
        ),
    ),
    (
        '"RCPT"',
        "▲3",
        (
            'then: 3 is not something to do (expected "pass", "discard", "hangup", or a table such as { answer ='
            ' "550 5.7.1 Not here" })'
        ),
    ),
    (
        '"RCPT"',
        "▲{}",
        'then: is empty (expected "pass", "discard", "hangup", or a table such as { answer = "550 5.7.1 Not here" })',
    ),
    (
        '"RCPT"',
        "▲[]",
        'then: is empty (expected "pass", "discard", "hangup", or a table such as { answer = "550 5.7.1 Not here" })',
    ),
    (
        '"RCPT"',
        '{ ▲anser = "550 x" }',
        'unknown key "then.anser" (nearest: answer)',
    ),
    (
        '"RCPT"',
        '▲{ answer = "550 5.7.1 x", tag = "y" }',
        "then: answer and tag are 2 things (expected [{ answer = … }, { tag = … }], in their order)",
    ),
    (
        '"RCPT"',
        '[▲"pass", { tag = "y" }]',
        "then.0: pass decides, and nothing behind it would be done (expected it to stand last)",
    ),
    (
        '"RCPT"',
        '{ answer = ▲"250 Ok" }',
        "then.answer: 250 to RCPT promises what only the server can do (expected a refusal, 4yz or 5yz)",
    ),
    (
        '"RCPT"',
        '{ answer = ▲"354 Ok" }',
        "then.answer: 354 asks for more, and nobody would take it (expected a refusal, 4yz or 5yz)",
    ),
    (
        '"RCPT"',
        '{ answer = ▲"421 4.7.0 Bye" }',
        "then.answer: 421 says that the connection is closed, and it would not be (expected a refusal, 4yz or 5yz)",
    ),
    (
        '"connect"',
        '{ answer = ▲"220 Hi" }',
        "then.answer: 220 to connect promises what only the server can do (expected a refusal, 4yz or 5yz)",
    ),
    (
        '["QUIT", "RCPT"]',
        '{ hangup = ▲"221 2.0.0 Bye" }',
        "then.hangup: 221 to RCPT promises what only the server can do (expected a refusal, 4yz or 5yz)",
    ),
    (
        '"any command"',
        '{ answer = ▲"250 Ok" }',
        "then.answer: 250 to any command promises what only the server can do (expected a refusal, 4yz or 5yz)",
    ),
    (
        '"content"',
        '{ answer = ▲"250 Ok" }',
        "then.answer: 250 to content promises what only the server can do (expected a refusal, 4yz or 5yz)",
    ),
    (
        '"RCPT"',
        '{ answer = "550 5.7.1 {▲rcpt.domian}" }',
        'then.answer: no field "rcpt.domian" here (nearest: rcpt.domain, rcpt.local)',
    ),
    (
        '"RCPT"',
        '{ answer = ▲"550 2.0.0 {rcpt.domain}" }',
        (
            "then.answer: 550 and 2.0.0 disagree: both begin with the same class digit (RFC 3463 §2) (expected a"
            ' reply, e.g. "550 5.7.1 Not here")'
        ),
    ),
    (
        '"RCPT"',
        '{ answer = ▲"{rcpt.domain} no" }',
        "then.answer: not a reply: '{rcpt.domain} no' (expected a reply, e.g. \"550 5.7.1 Not here\")",
    ),
    (
        '"RCPT reply"',
        '{ ▲answer = "550 5.7.1 no" }',
        "answer makes no sense on RCPT reply (expected it on connect, tls, a command, header, attachment or content)",
    ),
    (
        '"VRFY"',
        '▲"discard"',
        "then: discard makes no sense on VRFY (expected it on MAIL, RCPT, DATA, BDAT, header, attachment or content)",
    ),
    (
        '["RCPT", "header", "any command"]',
        '▲"discard"',
        (
            "then: discard makes no sense on any command (expected it on MAIL, RCPT, DATA, BDAT, header,"
            " attachment or content)"
        ),
    ),
    (
        '"MAIL"',
        '{ ▲redirect = "a:25" }',
        "redirect makes no sense on MAIL (expected it on connect)",
    ),
    (
        '"connect"',
        '{ redirect = ▲"mx.example" }',
        (
            'then.redirect: "mx.example" is not host:port (expected host:port, e.g. "mx2.example:25" or'
            ' "[2001:db8::1]:25"; nearest: mx.example:25)'
        ),
    ),
    (
        '"connect"',
        '{ redirect = ▲"mx.example:99999" }',
        'then.redirect: 99999 is not a port (expected host:port, e.g. "mx2.example:25" or "[2001:db8::1]:25")',
    ),
    (
        '"connect"',
        '{ redirect = ▲"2001:db8::1:25" }',
        (
            'then.redirect: "2001:db8::1:25" is not host:port (expected host:port, e.g. "mx2.example:25" or'
            ' "[2001:db8::1]:25")'
        ),
    ),
    (
        '"connect"',
        '{ tarpit = ▲"10 minutes" }',
        (
            'then.tarpit: "10 minutes" is not a duration (expected a duration, e.g. "5s", "10m", "1h" or "7d";'
            " nearest: 10ms, 10m)"
        ),
    ),
    (
        '"connect"',
        '{ tarpit = ▲"10m" }',
        'then.tarpit: "10m" is too long (expected at most 300 seconds)',
    ),
    (
        '"connect"',
        "{ tarpit = ▲0 }",
        'then.tarpit: 0 is no time at all (expected a duration, e.g. "5s", "10m", "1h" or "7d")',
    ),
    (
        '"connect"',
        "{ tarpit = ▲true }",
        'then.tarpit: true is not a duration (expected a duration, e.g. "5s", "10m", "1h" or "7d")',
    ),
    (
        '"connect"',
        "{ record = ▲true }",
        'then.record: true is not what to record (expected "full")',
    ),
    (
        '"connect"',
        '{ tag = ▲"Bad one" }',
        'then.tag: "Bad one" is not a label (expected a label such as "suspicious": a-z, 0-9 and -; nearest: bad-one)',
    ),
    (
        '"connect"',
        '{ tag = ["a", ▲1, ▲""] }',
        'then.tag.1: 1 is not a string (expected a label such as "suspicious": a-z, 0-9 and -)',
        'then.tag.2: is empty (expected a label such as "suspicious": a-z, 0-9 and -)',
    ),
    (
        '"content"',
        '{ quarantine = ▲"acept" }',
        (
            'then.quarantine: "acept" is not what to tell (expected "accept", "refuse" or { answer = "550 5.7.1'
            ' Not here" }; nearest: accept)'
        ),
    ),
    (
        '"RCPT"',
        '{ ▲quarantine = "accept" }',
        "quarantine makes no sense on RCPT (expected it on header, attachment or content)",
    ),
    (
        '"RCPT"',
        '{ rewrite = { address = ▲"" } }',
        'then.rewrite.address: "" is not an address that RCPT could have (expected an address, e.g. "a@b.example")',
    ),
    (
        '"RCPT"',
        '{ rewrite = { address = ▲"a@b> SIZE=1 <c" } }',
        (
            'then.rewrite.address: "a@b> SIZE=1 <c" is not an address that RCPT could have (expected an address,'
            ' e.g. "a@b.example")'
        ),
    ),
    (
        '"RCPT"',
        '{ rewrite = { ▲argument = "x" } }',
        "argument of RCPT can't be rewritten (expected address, set or remove)",
    ),
    (
        '"EHLO"',
        '{ rewrite = { ▲address = "x" } }',
        "address of EHLO can't be rewritten (expected argument)",
    ),
    (
        '"EHLO"',
        '{ rewrite = { argument = ▲"me example" } }',
        (
            'then.rewrite.argument: "me example" is not an argument that EHLO could have (expected an argument'
            " of this verb)"
        ),
    ),
    (
        '"BDAT"',
        '{ rewrite = { ▲argument = "1 LAST" } }',
        "argument of BDAT can't be rewritten (expected another act)",
    ),
    (
        '"any command"',
        '{ rewrite = { ▲argument = "1 LAST" } }',
        "argument of any command can't be rewritten (expected another act)",
    ),
    (
        '"MAIL"',
        '{ rewrite = { set = { RET = "HDRS", ▲SIZES = "1" } } }',
        'no parameter "SIZES" here (nearest: SIZE)',
    ),
    (
        '"MAIL"',
        '{ rewrite = { set = { RET = ▲"ALL" } } }',
        'then.rewrite.set.RET: "ALL" is not a value of RET (expected RET=("FULL" / "HDRS"))',
    ),
    (
        '"MAIL"',
        '{ rewrite = { set = { SIZE = 100 }, remove = [▲"SIZE"] } }',
        "then.rewrite.remove.0: SIZE is set and removed (expected one of them)",
    ),
    (
        '"RCPT"',
        '{ rewrite = { remove = [▲"NOTIFI"] } }',
        'then.rewrite.remove.0: no such name as "NOTIFI" here (nearest: NOTIFY)',
    ),
    (
        '"MAIL"',
        "{ rewrite = ▲{ } }",
        "then.rewrite: is empty (expected address, argument, set or remove)",
    ),
    (
        '"MAIL"',
        '{ rewrite = ▲"x" }',
        'then.rewrite: "x" is not a table (expected e.g. { rewrite = { set = { RET = "HDRS" } } })',
    ),
    (
        '["RCPT", "RCPT reply"]',
        '{ ▲rewrite = { text = "x" } }',
        "rewrite means two things, of a command and of a reply (expected a rule for each)",
    ),
    (
        '"RCPT reply"',
        '{ rewrite = ▲{ text = "No", reply = "550 x" } }',
        "then.rewrite: reply takes the place of everything else (expected nothing beside it)",
    ),
    (
        '"RCPT reply"',
        '{ rewrite = { reply = ▲"421 x" } }',
        (
            "then.rewrite.reply: 421 says that the connection is closed, and it would not be (expected a"
            " refusal, 4yz or 5yz)"
        ),
    ),
    (
        '"RCPT reply"',
        '{ rewrite = { ▲set = { SIZE = "1" } } }',
        "set of RCPT reply can't be rewritten (expected text or reply)",
    ),
    (
        '"EHLO reply"',
        '{ rewrite = { set = { SIZE = "1", ▲CHUNKING = "", ▲FOO = "" }, remove = [▲"DSM"] } }',
        (
            "CHUNKING changes what the octets mean: only the server can offer it (expected extension ="
            ' "CHUNKING" and then = "allow")'
        ),
        'no extension "FOO" here',
        'then.rewrite.remove.0: no such name as "DSM" here (nearest: DSN)',
    ),
    (
        '"header"',
        (
            '{ header = { prepend = { Received = "from x" }, add = { ▲"X A" = "b", X-B = ["a", "b"] }, remove ='
            ' ["X-Mailer"] } }'
        ),
        '"X A" is not the name of a header field (expected printable ASCII without a colon)',
    ),
    (
        '"header"',
        '{ header = { ▲replacee = { Subject = "ab" } } }',
        'unknown key "then.header.replacee" (nearest: replace)',
    ),
    (
        '"header"',
        "{ header = { remove = ▲[] } }",
        "then.header.remove: is empty (expected an array of field names)",
    ),
    (
        '"RCPT"',
        '{ limit = ▲{ recipients = 100, per = "client" } }',
        'then.limit: within is missing (expected a duration, e.g. within = "1h", or per = "session")',
    ),
    (
        '"RCPT"',
        '{ limit = { recipients = ▲0, per = ▲"cleint", within = ▲"1x", answer = ▲"250 Ok" } }',
        "then.limit.recipients: 0 is not a limit (expected a count of recipients, e.g. 100)",
        (
            'then.limit.per: "cleint" is nobody to count for (expected session, client, network, sender,'
            " sender-domain, recipient, recipient-domain, identity or all; nearest: client)"
        ),
        'then.limit.within: "1x" is not a duration (expected a duration, e.g. "5s", "10m", "1h" or "7d")',
        "then.limit.answer: 250 to RCPT promises what only the server can do (expected a refusal, 4yz or 5yz)",
    ),
    (
        '"RCPT"',
        "{ limit = ▲{ recipients = 1, commands = 2 } }",
        (
            "then.limit: recipients and commands are 2 limits (expected one of connections, commands, messages,"
            " recipients, replies, octets)"
        ),
    ),
    (
        '"RCPT"',
        '{ limit = ▲{ per = "client" } }',
        (
            "then.limit: does not say what is counted (expected one of connections, commands, messages,"
            " recipients, replies, octets)"
        ),
    ),
    (
        '"MAIL"',
        "{ limit = { ▲recipients = 1 } }",
        "recipients are not counted on MAIL (expected a limit of them on RCPT)",
    ),
    (
        '"MAIL"',
        '{ limit = { messages = 1, per = ▲"recipient", within = 60 } }',
        (
            "then.limit.per: MAIL has no recipient (expected session, client, network, sender, sender-domain,"
            " identity or all)"
        ),
    ),
    (
        '"connect"',
        "{ limit = ▲{ connections = 5 } }",
        'then.limit: within is missing (expected a duration, e.g. within = "1m")',
    ),
    (
        '"connect"',
        '{ limit = { connections = 5, within = "1m", per = ▲"session" } }',
        'then.limit.per: a session has one connection (expected "client", "network" or "all")',
    ),
    (
        '"RCPT reply"',
        '{ limit = ▲{ replies = 5, within = "1m" } }',
        'then.limit: lock is missing: the limit would do nothing (expected e.g. lock = "1h", and locked(…) in another)',
    ),
    (
        '"RCPT reply"',
        '{ limit = { replies = 5, within = "1m", lock = "1h", ▲answer = "550 x" } }',
        "nothing is answered on RCPT reply (expected lock)",
    ),
    (
        '"content"',
        '{ limit = { octets = ▲"25 Mb" } }',
        'then.limit.octets: "25 Mb" is not a size (expected a size, e.g. "25 MiB"; nearest: 25 MB, 25 MiB)',
    ),
    (
        '"RCPT"',
        '[{ limit = { recipients = 5 } }, ▲{ limit = { recipients = 500, within = "1h" } }]',
        "then.1: a rule has one limit, and its name is the limit's (expected a rule for each)",
    ),
    (
        '"transaction"',
        '▲"pass"',
        (
            "then: pass makes no sense on transaction (expected it on connect, tls, a command, a reply, header,"
            " attachment or content)"
        ),
    ),
    (
        '"RCPT"',
        '{ answer = ▲"550 5.7.1 a\\r\\n250 b" }',
        "then.answer: not a reply: '550 5.7.1 a\\r\\n250 b' (expected a reply, e.g. \"550 5.7.1 Not here\")",
    ),
    (
        '"GREETING reply"',
        '{ rewrite = { text = ▲"mx\\nx" } }',
        'then.rewrite.text: "mx\\nx" is not one line of printable ASCII (expected a text without reply code)',
    ),
    (
        '"header"',
        '{ header = { replace = { Subject = ▲"a\\nb" } } }',
        "then.header.replace.Subject: CR, LF and other controls can't stand in a header field (expected one line)",
    ),
    (
        '"RCPT"',
        '▲"quarantine"',
        'then: "quarantine" is not something to do (expected { quarantine = "accept" } or { quarantine = "refuse" })',
    ),
    (
        '"attachment"',
        '{ ▲tarpit = "1s" }',
        "tarpit makes no sense on attachment (expected it on connect, a command, a reply, header or content)",
    ),
    (
        '"attachment"',
        '{ ▲header = { remove = ["X"] } }',
        "header makes no sense on attachment (expected it on header or content)",
    ),
    (
        '"header"',
        '{ header = ▲"X" }',
        'then.header: "X" is not a table (expected e.g. { header = { remove = ["X-Mailer"] } })',
    ),
    (
        '"header"',
        '{ header = { add = ▲"X" } }',
        'then.header.add: "X" is not a table (expected { Name = "value" })',
    ),
    (
        '"header"',
        '{ header = { remove = [▲"X:"] } }',
        'then.header.remove.0: "X:" is not the name of a header field (expected printable ASCII without a colon)',
    ),
    (
        '"connect"',
        "{ redirect = ▲25 }",
        'then.redirect: 25 is not a string (expected host:port, e.g. "mx2.example:25" or "[2001:db8::1]:25")',
    ),
    (
        '"connect"',
        '{ redirect = ▲"1.2.3:25" }',
        'then.redirect: "1.2.3:25" is not host:port (expected host:port, e.g. "mx2.example:25" or "[2001:db8::1]:25")',
    ),
    (
        '"EHLO reply"',
        '{ rewrite = { set = { SIZE = ▲"1  2" } } }',
        'then.rewrite.set.SIZE: "1  2" is not printable ASCII with single blanks (expected [SP largest-size])',
    ),
    (
        '"EHLO reply"',
        "{ rewrite = { set = { SIZE = ▲true } } }",
        'then.rewrite.set.SIZE: true is not a string (expected a string; "" for no value)',
    ),
    (
        '"EHLO reply"',
        "{ rewrite = { set = ▲[] } }",
        'then.rewrite.set: an array is not a table (expected { KEYWORD = "value" })',
    ),
    (
        '"RCPT"',
        "{ limit = ▲5 }",
        'then.limit: 5 is not a table (expected e.g. { limit = { recipients = 100, per = "client", within = "1h" } })',
    ),
    (
        '"content"',
        "{ limit = { octets = ▲true } }",
        'then.limit.octets: true is not a limit (expected a size, e.g. "25 MiB")',
    ),
    (
        '"MAIL"',
        "{ rewrite = { address = ▲5 } }",
        'then.rewrite.address: 5 is not a string (expected an address, e.g. "a@b.example")',
    ),
    (
        '"MAIL"',
        '{ rewrite = { address = "{▲rcpt.local}" } }',
        'then.rewrite.address: no field "rcpt.local" here (nearest: mail.local)',
    ),
    (
        '["RCPT", "RCPT reply"]',
        '{ tarpit = ▲"{x}" }',
        'then.tarpit: "{x}" is not a duration (expected a duration, e.g. "5s", "10m", "1h" or "7d")',
    ),
]


@pytest.mark.parametrize("case", MISTAKES, ids=lambda case: f"{case[0]} {case[1]}"[:60])
def test_mistakes(tmp_path: Path, case: tuple[str, ...]) -> None:
    """Each is told in full: file, line, column, where and what, and the line with a caret."""
    on, marked, *messages = case
    line = f"then = {marked.replace('▲', '')}"
    columns = [len(before.replace("▲", "")) for before in _befores(f"then = {marked}")]
    file = tmp_path / "1.toml"
    file.write_text(f"{HEAD}on = {on}\n{line}\n")
    loaded = load_rules([tmp_path], shipped=False)
    assert loaded.rules == ()
    assert [str(problem) for problem in loaded.problems] == [
        f'{file}:5:{column + 1}: rule 1 "x": {message}' for column, message in zip(columns, messages, strict=True)
    ]
    for problem, column in zip(loaded.problems, columns, strict=True):
        _, shown, caret = problem.show().splitlines()
        if len(line) <= 100:
            assert (shown, caret) == (f"  5 | {line}", f"    | {' ' * column}^")
        else:
            assert shown[caret.index("^")] == line[column]


def _befores(marked: str) -> list[str]:
    parts = marked.split("▲")
    return ["".join(parts[:count]) for count in range(1, len(parts))]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ('otherwise = "pass"', ""),
        ('otherwise = { answer = "451 4.7.1 Later" }', ""),
        ('otherwise = "hangup"\ndeadline = "2s"', ""),
        (
            'otherwise = "tag"',
            '6:13: rule 1 "x": otherwise: "tag" is not something to do (expected { tag = "a-label" })',
        ),
        (
            'otherwise = { tag = "x" }',
            '6:15: rule 1 "x": tag is nothing to fall back on (expected "pass", "discard", "hangup" or { answer = ',
        ),
        (
            "otherwise = 3",
            '6:13: rule 1 "x": otherwise: 3 is nothing to fall back on (expected "pass", "discard", "hangup" or {',
        ),
        ('otherwise = { answer = "250 Ok" }', "promises what only the server can do"),
        ('deadline = "0s"', '6:12: rule 1 "x": deadline: "0s" is no time at all'),
        ('deadline = "1h"', '6:12: rule 1 "x": deadline: "1h" is too long (expected at most 300 seconds)'),
        ('deadline = "1 hour"', 'deadline: "1 hour" is not a duration'),
    ],
)
def test_what_is_done_where_no_answer_comes(tmp_path: Path, more: str, told: str) -> None:
    (tmp_path / "1.toml").write_text(f'{HEAD}on = "content"\nthen = {{ quarantine = "accept" }}\n{more}\n')
    loaded = load_rules([tmp_path], shipped=False)
    if told:
        (problem,) = loaded.problems
        assert told in str(problem)
    else:
        (only,) = loaded.rules
        assert isinstance(only, Rule)
        assert only.otherwise is not None
        assert loaded.ok


@pytest.mark.parametrize("key", ["otherwise", "deadline"])
def test_where_nobody_is_asked_nobody_is_late(tmp_path: Path, key: str) -> None:
    (tmp_path / "1.toml").write_text(f'{HEAD}on = "RCPT"\nthen = "pass"\n{key} = "1s"\n')
    (problem,) = load_rules([tmp_path], shipped=False).problems
    assert "nobody is asked here" in problem.message
    assert problem.expected == "it with python or quarantine"
