"""Texts with fields in them: what is filled in, and that nothing a peer said ends a line."""

import pytest

from smtpproxy.policy.subjects import SUBJECTS
from smtpproxy.policy.templates import Template, TemplateMistake, fill_reply, vocabulary
from smtpproxy.smtp.values import Parameter
from tests.policy.views import a_mail, a_session, about, about_header


def template(text: str, *subjects: str) -> Template:
    made = Template.parse(text, [SUBJECTS[name] for name in subjects or ("RCPT",)])
    assert isinstance(made, Template), made
    return made


def mistakes(text: str, *subjects: str) -> list[TemplateMistake]:
    made = Template.parse(text, [SUBJECTS[name] for name in subjects or ("RCPT",)])
    assert isinstance(made, list)
    return made


def test_a_text_without_fields_is_the_same_always() -> None:
    plain = template("550 Not here")
    assert (plain.constant, plain.fields) == ("550 Not here", frozenset())
    assert plain.fill(about("RCPT TO:<b@y.example>")) == "550 Not here"


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("{rcpt.address} at {rcpt.domain}", "b@y.example at y.example"),
        ("{ rcpt.domain }", "y.example"),
        ("{{rcpt.domain}", "{rcpt.domain}"),
        ("{{{rcpt.domain}}", "{y.example}"),
        ("a } b", "a } b"),
        ("{client.port}/{client.tls}/{session.malformed}", "40123/false/0"),
        ("{mail.recipients}", "c@z.example, d@z.example"),
        ("{mail.parameters.ret}|{mail.parameters.RET}|{mail.parameters.envid}", "HDRS|HDRS|"),
    ],
)
def test_fields_are_filled_in(text: str, filled: str) -> None:
    session = a_session()
    a_mail(session, b"a@x.example", b"c@z.example", b"d@z.example", parameters=(Parameter(b"RET", b"HDRS"),))
    assert template(text).fill(about("RCPT TO:<b@y.example>", session)) == filled


def test_an_entry_of_a_map_may_have_a_hyphen_and_several_values() -> None:
    view = about_header("List-Id: <a.b>", "X-One: 1", "X-One: 2")
    assert template("{header.List-Id} {header.x-one} {header.none}", "header").fill(view) == "<a.b> 1, 2 "


def test_what_is_wrong_with_a_text_is_told_with_its_place() -> None:
    assert mistakes("550 {rcpt.domian} {client.adress") == [
        TemplateMistake(6, 'no field "rcpt.domian" here', "", ("rcpt.domain", "rcpt.local")),
        TemplateMistake(19, "{ without }", "{{ for a brace"),
    ]
    assert mistakes("{}") == [TemplateMistake(2, 'no field "" here', "", ())]
    assert mistakes("{mail.parameters}")[0].message == "mail.parameters has entries, and one is to be named"
    assert mistakes("{rcpt.domain}", "RCPT", "MAIL")[0].message == 'no field "rcpt.domain" here: MAIL has none'
    assert mistakes("{rcpt.domain}", "connect", "MAIL")[0].message == 'no field "rcpt.domain" here'


def test_the_vocabulary_of_several_subjects_is_what_all_of_them_have() -> None:
    both = vocabulary([SUBJECTS["RCPT"], SUBJECTS["header"]])
    assert "mail.address" in both
    assert "rcpt.address" not in both
    assert "header" not in both


def test_nothing_that_is_filled_in_ends_a_line() -> None:
    view = about_header("Subject: =?utf-8?q?a=0D=0ARCPT_TO:<x>=00=C2=85?=")
    filled = template("[{header.subject}]", "header").fill(view)
    assert not any(ord(character) < 32 or ord(character) in range(127, 160) for character in filled)
    assert filled.startswith("[a")
    reply = fill_reply(template("550 5.7.1 {header.subject}", "header"), view)
    assert reply.full.raw.count(b"\r\n") == 1
    assert reply.full.raw.isascii()


def test_a_reply_is_printable_and_one_line_long() -> None:
    view = about_header(f"Subject: {'ü' * 300} {'x' * 900}")
    reply = fill_reply(template("550 5.7.1 {header.subject}", "header"), view)
    assert reply.full.raw.startswith(b"550 5.7.1 ????")
    assert len(reply.full.raw) == 512
    assert reply.plain.raw.startswith(b"550 ????")


@pytest.mark.parametrize(
    ("subject", "told"),
    [("2.0.0 fine", b"550 ? 2.0.0 fine\r\n"), ("5.7.1 no", b"550 5.7.1 no\r\n"), ("", b"550 ?\r\n")],
)
def test_a_field_in_place_of_the_enhanced_code_can_not_break_the_reply(subject: str, told: bytes) -> None:
    reply = fill_reply(template("550 {header.subject}", "header"), about_header(f"Subject: {subject}"))
    assert reply.full.raw == told
