"""The vocabulary: each field with its type, its example and its subjects; and what it is of a session."""

import io
import time
from types import SimpleNamespace
from typing import Any

import pytest

from smtpproxy.policy.expr import Compiler, Condition
from smtpproxy.policy.fields import EXTENSION, FIELDS, Field, Known, Type, View, fields_of, is_map, known_at
from smtpproxy.policy.lists import list_of
from smtpproxy.policy.mime import Attachment
from smtpproxy.policy.subjects import SUBJECTS, Group, Subject
from smtpproxy.session.ledger import Exchange
from smtpproxy.session.state import Phase, Recipient
from smtpproxy.smtp.commands import Malformed, parse_command
from smtpproxy.smtp.errors import Side
from smtpproxy.smtp.message import Header
from smtpproxy.smtp.registry.verbs import END, GREETING
from smtpproxy.smtp.replies import Reply, own
from smtpproxy.smtp.values import Parameter, Path, Secret
from tests.policy.views import TLS, a_mail, a_session, about, about_header, about_reply

KIND: dict[Type, type] = {Type.BOOL: bool, Type.INT: int, Type.STRING: str, Type.STRINGS: list, Type.MAP: dict}
EHLO = b"250-mx.example at your service\r\n250-size 1000\r\n250-AUTH PLAIN\r\n250 CHUNKING\r\n"


def get(name: str, view: View) -> Any:
    """A field's value, which is of its type."""
    value = FIELDS[name].get(view)
    assert isinstance(value, KIND.get(FIELDS[name].type, dict))
    return value


def a_content(octets: bytes = b"Subject: x\r\n\r\nhello\r\n", *attachments: Any) -> Any:
    return SimpleNamespace(
        file=io.BytesIO(octets),
        size=len(octets),
        digest="ab" * 32,
        header=Header.parse(octets),
        attachments=attachments,
    )


def an_attachment(name: str, size: int = 7) -> Attachment:
    return Attachment(
        name, "application/pdf", "application/x-dosexec", size, f"a.zip>{name}", depth=1, encrypted=True, macros=True
    )


@pytest.mark.parametrize("field", FIELDS.values(), ids=FIELDS)
def test_a_field_says_what_it_is(field: Field) -> None:
    assert field.sentence.endswith(".")
    assert field.name in field.example
    assert field.name == field.name.lower()
    assert is_map(field) == field.type.value.startswith("map")


@pytest.mark.parametrize("field", FIELDS.values(), ids=FIELDS)
def test_its_example_is_a_condition_where_it_is_known(field: Field) -> None:
    lists = {
        name: list_of(name, "words", ["x"]) for name in ("our-domains", "known-bots", "bad-content", "bad-extensions")
    }
    for subject in [one for one in SUBJECTS.values() if field.name in fields_of(one)][:3]:
        found = Compiler(lists).condition(field.example, [subject])
        if isinstance(found, list):  # it names another field, that is known later
            assert all("is not known at" in one.message for one in found), found
        else:
            assert field.name in found.fields
    assert any(
        isinstance(Compiler(lists).condition(field.example, [one]), Condition)
        for one in SUBJECTS.values()
        if field.name in fields_of(one)
    )


@pytest.mark.parametrize("field", FIELDS.values(), ids=FIELDS)
def test_it_is_of_its_type_also_where_nothing_is_known(field: Field) -> None:
    get(field.name, View(a_session()))


def test_a_subject_has_the_fields_that_mean_something_there() -> None:
    assert "client.address" in fields_of(SUBJECTS["connect"])
    assert "client.hello" not in fields_of(SUBJECTS["connect"])
    assert "client.tls" in fields_of(SUBJECTS["tls"])
    assert "client.tls" not in fields_of(SUBJECTS["connect"])
    assert "client.hello" not in fields_of(SUBJECTS["GREETING reply"])
    for name in ("mail.address", "command.verb"):
        assert name in fields_of(SUBJECTS["MAIL"])
        assert name in fields_of(SUBJECTS["EMAL"])
        assert name in fields_of(SUBJECTS["RCPT reply"])
    assert "mail.address" not in fields_of(SUBJECTS["any command"])
    assert "mail.address" not in fields_of(SUBJECTS["NOOP"])
    assert "mail.count" not in fields_of(SUBJECTS["MAIL"])
    assert "mail.count" in fields_of(SUBJECTS["DATA"])
    assert "rcpt.domain" not in fields_of(SUBJECTS["DATA"])
    assert "reply.code" in fields_of(SUBJECTS["any reply"])
    assert "reply.keywords" in fields_of(SUBJECTS["LHLO reply"])
    assert "reply.keywords" not in fields_of(SUBJECTS["MAIL reply"])
    assert "mail.size" in fields_of(SUBJECTS["END reply"])
    assert "mail.size" not in fields_of(SUBJECTS["header"])
    assert "header" in fields_of(SUBJECTS["content"])
    assert "attachment.name" not in fields_of(SUBJECTS["content"])
    assert "tls.side" in fields_of(SUBJECTS["tls"])
    assert "transaction.accepted" in fields_of(SUBJECTS["transaction"])


def test_rules_about_extensions_know_the_session_and_no_mail() -> None:
    known = fields_of(EXTENSION)
    assert {"client.address", "client.hello", "client.tls", "now.hour", "session.tags"} <= set(known)
    assert not {"mail.address", "command.verb", "reply.code", "header"} & set(known)


@pytest.mark.parametrize("known", Known)
def test_every_place_has_fields_and_subjects(known: Known) -> None:
    assert any(field.known is known for field in FIELDS.values())
    assert any(known_at(known, subject) for subject in SUBJECTS.values())


# -------------------------------------------------------------------------------------------------------- a session


def test_who_and_where() -> None:
    view = View(a_session())
    assert get("listener", view) == "submission"
    assert get("match", view) == "branch"
    assert (get("client.address", view), get("client.port", view)) == ("192.0.2.7", 40123)
    assert (get("server.address", view), get("server.port", view)) == ("mx.example", 587)


def test_links() -> None:
    clear, encrypted = View(a_session()), View(a_session(tls=True))
    for side in ("client", "server"):
        assert get(f"{side}.tls", encrypted)
        assert not get(f"{side}.tls", clear)
        assert get(f"{side}.tls_version", encrypted) == "TLSv1.3"
        assert get(f"{side}.tls_version", clear) == get(f"{side}.tls_cipher", clear) == ""
        assert get(f"{side}.tls_cipher", encrypted) == "TLS_AES_256_GCM_SHA384"
    assert get("client.ja4", encrypted) == TLS.ja4
    assert get("client.tls_name", encrypted) == "mx.example"
    assert get("server.tls_verified", encrypted)
    assert not get("server.tls_verified", clear)
    assert get("tls.side", View(a_session(), side=Side.SERVER)) == "server"


def test_the_hello_being_decided_is_the_one_that_counts() -> None:
    session = a_session()
    assert get("client.hello", View(session)) == "client.example"
    assert get("client.hello", about("EHLO New.example", session)) == "New.example"
    assert get("client.hello", about_reply(EHLO, "HELO new.example", session)) == "new.example"
    assert get("client.esmtp", View(session))


def test_what_the_server_offers() -> None:
    view = about_reply(EHLO, "EHLO me.example")
    assert get("reply.keywords", view) == ["SIZE", "AUTH", "CHUNKING"]
    assert get("server.capabilities", view) == ["SIZE", "AUTH", "CHUNKING"]
    assert get("server.capabilities", View(a_session())) == []


def test_who_logged_in() -> None:
    session = a_session()
    session.identity, session.mechanism, session.authenticated = "alice", b"PLAIN", True
    view = View(session)
    assert get("client.identity", view) == "alice"
    assert get("client.mechanism", view) == "PLAIN"
    assert get("client.authenticated", view)


def test_counts() -> None:
    session = a_session()
    session.commands, session.accepted, session.rejected, session.malformed = 9, 2, 3, 4
    a_mail(session)
    view = View(session)
    counts = {name: get(f"session.{name}", view) for name in ("commands", "mails", "accepted", "rejected", "malformed")}
    assert counts == {"commands": 9, "mails": 1, "accepted": 2, "rejected": 3, "malformed": 4}
    session.phase = Phase.READY
    assert get("session.phase", view) == "ready"


def test_labels_of_the_session_and_of_the_mail_are_one_list() -> None:
    session = a_session()
    session.tags["a"] = None
    assert get("session.tags", View(session)) == ["a"]
    a_mail(session).tags.update({"b": None, "a": None})
    assert get("session.tags", View(session)) == ["a", "b"]


def test_the_time_of_day_is_where_the_machine_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    try:
        view = View(a_session())  # 2023-11-14 22:13:20, a Tuesday
        assert get("now.date", view) == "2023-11-14"
        assert get("now.time", view) == "22:13"
        assert (get("now.hour", view), get("now.minute", view), get("now.weekday", view)) == (22, 13, 2)
    finally:
        monkeypatch.undo()
        time.tzset()


# ------------------------------------------------------------------------------------------------ commands, replies


@pytest.mark.parametrize(
    ("line", "verb", "argument"),
    [
        ("mail FROM:<a@b.example> SIZE=1", "MAIL", "FROM:<a@b.example> SIZE=1"),
        ("NOOP", "NOOP", ""),
        ("frobnicate a b", "FROBNICATE", "a b"),
        ("AUTH PLAIN AGFsaWNlAHNlc2FtZQ==", "AUTH", "PLAIN <20 octets>"),
        ("AGFsaWNlAHNlc2FtZQ==", "<20", "octets>"),
        ("MAIL FORM:<a@b.example>", "MAIL", "FORM:<a@b.example>"),
    ],
)
def test_a_command_and_no_secret(line: str, verb: str, argument: str) -> None:
    view = about(line)
    assert get("command.verb", view) == verb
    assert get("command.argument", view) == argument
    assert get("command.length", view) == len(line) + 2


def test_what_was_odd_about_it() -> None:
    assert get("command.anomalies", about("RCPT TO: <b@y.example>")) == ["blank-after-colon"]
    view = about("MAIL FORM:<a@b.example>")
    assert isinstance(view.command, Malformed)
    assert get("command.anomalies", view) == ["malformed-command"]
    view = about_reply(b"250 Ok\r\n", "RCPT TO: <b@y.example>")
    assert view.exchange is not None
    view.exchange.anomalies = ("blank-after-colon", "early-talk")
    assert get("command.anomalies", view) == ["blank-after-colon", "early-talk"]


def test_a_reply() -> None:
    view = about_reply(b"550-5.7.1 No\r\n550 5.7.1 such\xff user\r\n", "RCPT TO:<b@y.example>")
    assert get("reply.code", view) == 550
    assert get("reply.enhanced", view) == "5.7.1"
    assert get("reply.text", view) == "5.7.1 No 5.7.1 such\\xff user"
    assert get("reply.lines", view) == ["5.7.1 No", "5.7.1 such\\xff user"]
    assert get("reply.longest", view) == len("550 5.7.1 such? user")
    assert get("command.verb", view) == "RCPT"
    view.reply = own("250 2.0.0 Rewritten")
    assert get("reply.text", view) == "2.0.0 Rewritten"


@pytest.mark.parametrize("verb", [GREETING, END])
def test_a_reply_to_no_command(verb: Any) -> None:
    exchange = Exchange(verb, verb, 0.0)
    exchange.got = Reply(220, b"220 mx.example\r\n")
    view = View(a_session(), exchange=exchange)
    assert get("command.verb", view) == verb.name
    assert get("command.argument", view) == ""
    assert get("reply.code", view) == 220


# ---------------------------------------------------------------------------------------------------------- mails


def test_the_envelope_being_asked_for() -> None:
    view = about("MAIL FROM:<Ann.O@Sub.Example.COM> SIZE=123 BODY=8BITMIME SMTPUTF8")
    assert get("mail.address", view) == "Ann.O@sub.example.com"
    assert (get("mail.local", view), get("mail.domain", view)) == ("Ann.O", "sub.example.com")
    assert get("mail.parameters", view) == {"SIZE": "123", "BODY": "8BITMIME", "SMTPUTF8": ""}
    assert get("mail.declared_size", view) == 123
    assert get("mail.utf8", view)
    assert not get("mail.null", view)
    entry = FIELDS["mail.parameters"].entry
    assert entry is not None
    assert (entry(view, "BODY"), entry(view, "RET")) == ("8BITMIME", "")


def test_the_null_reverse_path() -> None:
    view = about("MAIL FROM:<>")
    assert get("mail.null", view)
    assert get("mail.address", view) == get("mail.domain", view) == ""


def test_a_size_that_no_int_holds() -> None:
    assert get("mail.declared_size", about("MAIL FROM:<a@b.example> SIZE=99999999999999999999")) == 2**63 - 1


def test_an_address_says_the_same_however_it_is_written() -> None:
    for written in ("<b@Y.example>", '<"b"@y.example>', "<@relay.example:b@y.EXAMPLE>"):
        assert get("rcpt.address", about(f"RCPT TO:{written}")) == "b@y.example"
    assert get("rcpt.address", about('RCPT TO:<"b c"@y.example>')) == '"b c"@y.example'
    assert get("rcpt.domain", about("RCPT TO:<Postmaster>")) == ""
    assert get("rcpt.local", about("RCPT TO:<Postmaster>")) == "Postmaster"


def test_the_envelope_so_far() -> None:
    session = a_session()
    a_mail(session, b"a@X.example", parameters=(Parameter(b"RET", b"HDRS"), Parameter(b"AUTH", Secret(b"hush"))))
    view = about("RCPT TO:<b@y.example> NOTIFY=NEVER", session)
    assert get("mail.address", view) == "a@x.example"
    assert get("mail.parameters", view) == {"RET": "HDRS", "AUTH": "<4 octets>"}
    assert get("rcpt.parameters", view) == {"NOTIFY": "NEVER"}
    assert get("mail.number", view) == 1


def test_the_recipients_before_this_one() -> None:
    session = a_session()
    mail = a_mail(session, b"a@x.example", b"b@Y.example", b"c@y.example", b"d@z.example")
    mail.recipients[0].accepted = True
    mail.recipients[2].accepted = False
    view = about("RCPT TO:<e@w.example>", session)
    assert get("mail.recipients", view) == ["b@y.example", "c@y.example"]
    assert get("mail.domains", view) == ["y.example"]
    assert get("mail.count", view) == 2


def test_the_recipient_whose_reply_it_is_is_not_before_itself() -> None:
    session = a_session()
    mail = a_mail(session, b"a@x.example", b"b@y.example")
    this = Recipient(Path(b"c", b"Z.example"), (Parameter(b"ORCPT", b"rfc822;c@z.example"),))
    mail.recipients.append(this)
    view = about_reply(b"250 Ok\r\n", "RCPT TO:<c@z.example>", session)
    assert view.exchange is not None
    view.exchange.subject = this
    assert get("rcpt.address", view) == "c@z.example"
    assert get("rcpt.parameters", view) == {"ORCPT": "rfc822;c@z.example"}
    assert get("mail.recipients", view) == ["b@y.example"]
    assert get("rcpt.domain", View(session, recipient=this)) == "z.example"


def test_the_header_section() -> None:
    view = about_header("Received: a", "SUBJECT: =?utf-8?q?caf=C3=A9?=", "received: b")
    assert get("header", view) == {"received": ["a", "b"], "subject": ["café"]}
    assert get("header.names", view) == ["received", "subject", "received"]
    assert (get("header.count", view), get("header.anomalies", view)) == (3, [])
    entry = FIELDS["header"].entry
    assert entry is not None
    assert (entry(view, "received"), entry(view, "x-none")) == (["a", "b"], [])
    octets = b"Received: a\r\nSUBJECT: =?utf-8?q?caf=C3=A9?=\r\nreceived: b\r\n\r\n"
    assert get("header.size", view) == len(octets)
    assert get("header.longest_line", view) == len("SUBJECT: =?utf-8?q?caf=C3=A9?=")


def test_the_content() -> None:
    view = View(a_session(), content=a_content(b"Subject: x\r\n\r\n" + b"y" * 70_000 + b"\r\nz\r\n"))
    assert get("mail.size", view) == get("content.size", view) == 70_019
    assert get("mail.digest", view) == get("content.digest", view) == "ab" * 32
    assert get("content.longest_line", view) == 70_000
    assert view.content is not None
    assert view.content.file.tell() == 0
    assert get("header", view) == {"subject": ["x"]}


def test_attachments() -> None:
    content = a_content(b"\r\n", an_attachment("a.pdf"), an_attachment("b.exe", size=9))
    view = View(a_session(), content=content, attachment=content.attachments[1])
    assert get("attachments.names", view) == ["a.pdf", "b.exe"]
    assert get("attachments.extensions", view) == ["pdf", "exe"]
    assert get("attachments.types", view) == ["application/pdf"] * 2
    assert get("attachments.detected", view) == ["application/x-dosexec"] * 2
    assert get("attachments.count", view) == 2
    assert get("attachment.name", view) == "b.exe"
    assert get("attachment.path", view) == "a.zip>b.exe"
    assert get("attachment.size", view) == 9
    assert get("attachment.encrypted", view)
    assert get("attachment.nested", view)
    assert get("attachment.macros", view)
    assert not get("attachment.unreadable", view)
    assert get("attachment.extensions", view) == ["exe"]


def test_the_end_of_a_mail() -> None:
    session = a_session()
    mail = a_mail(session)
    mail.size, mail.digest, mail.outcome = 12, "cd" * 32, Reply(451, b"451 4.3.0 Later\r\n")
    view = View(session, transaction=mail, accepted=False)
    assert not get("transaction.accepted", view)
    assert get("transaction.reply", view) == "451 4.3.0 Later"
    assert (get("mail.size", view), get("mail.digest", view)) == (12, "cd" * 32)


def test_what_was_kept_is_forgotten_when_it_is_touched() -> None:
    view = about("RCPT TO:<b@y.example>")
    assert view.kept("x", lambda _: 1) == 1
    assert view.kept("x", lambda _: 2) == 1
    view.touch()
    assert view.kept("x", lambda _: 2) == 2
    assert view.version == 1
    view.command = parse_command(b"RCPT TO:<c@z.example>\r\n")
    assert get("rcpt.domain", view) == "z.example"


def test_a_group_that_has_no_verbs_has_its_own_fields() -> None:
    groups = {group: set(fields_of(Subject(group))) for group in (Group.HEADER, Group.CONTENT, Group.ATTACHMENT)}
    assert groups[Group.HEADER] < groups[Group.CONTENT] < groups[Group.ATTACHMENT]
