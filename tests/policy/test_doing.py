"""What rules make of commands, replies, lists: parsed again, or not made at all."""

from typing import Any

import pytest

from smtpproxy.policy.doing import reply_of, retold, rewritten
from smtpproxy.policy.fields import View
from smtpproxy.policy.rules import Answer, RewriteCommand, RewriteReply
from smtpproxy.policy.subjects import SUBJECTS, subject
from smtpproxy.policy.templates import Template
from smtpproxy.session.session import Session
from smtpproxy.session.verdicts import PassAll
from smtpproxy.smtp.commands import Command, parse_command
from smtpproxy.smtp.replies import OwnReply, Reply, own


def view(command: Command | None = None, reply: Reply | None = None) -> View:
    session = Session(judge=PassAll(), record=lambda record: None, clock=lambda: 0.0)
    return View(session, command=command, reply=reply)


def command(line: bytes) -> Command:
    made = parse_command(line + b"\r\n")
    assert isinstance(made, Command)
    return made


def text(words: str, on: str = "RCPT") -> Template:
    about = subject(on)
    assert about is not None
    made = Template.parse(words, [about])
    assert isinstance(made, Template), made
    return made


@pytest.mark.parametrize(
    ("line", "rewrite", "sent"),
    [
        (b"RCPT TO:<a@x.example>", {"address": "{rcpt.local}@y.example"}, b"RCPT TO:<a@y.example>"),
        (b'RCPT TO:<"a b"@x.example>', {"address": "c@y.example"}, b"RCPT TO:<c@y.example>"),
        # What a peer wrote into a local-part stays in it: no path ends there, and no other address begins.
        (
            b'RCPT TO:<"x@evil.example> A="@old.example>',
            {"address": "{rcpt.local}@y.example"},
            b'RCPT TO:<"x@evil.example> A="@y.example>',
        ),
        (
            b'RCPT TO:<"x@evil.example> A="@old.example>',
            {"address": "{rcpt.address}"},
            b'RCPT TO:<"x@evil.example> A="@old.example>',
        ),
        (b'RCPT TO:<"a\\"b"@x.example>', {"address": "{rcpt.address}"}, b'RCPT TO:<"a\\"b"@x.example>'),
        (b"RCPT TO:<a@x.example>", {"address": "postmaster"}, b"RCPT TO:<postmaster>"),
        (b"RCPT TO:<a@x.example> NOTIFY=NEVER", {"remove": (b"NOTIFY",)}, b"RCPT TO:<a@x.example>"),
        (
            b"RCPT TO:<a@x.example> NOTIFY=NEVER",
            {"set": ((b"NOTIFY", "DELAY"), (b"ORCPT", "rfc822;a@x.example"))},
            b"RCPT TO:<a@x.example> NOTIFY=DELAY ORCPT=rfc822;a@x.example",
        ),
        (b"MAIL FROM:<a@x.example>", {"address": ""}, b"MAIL FROM:<>"),
        (b"SOML FROM:<a@x.example>", {"address": "b@x.example"}, b"SOML FROM:<b@x.example>"),
        (b"EHLO inside.lan", {"argument": "mx.example"}, b"EHLO mx.example"),
        (b"NOOP hello", {"argument": ""}, b"NOOP"),
        (b"NOOP hello", {}, b"NOOP hello"),
    ],
)
def test_a_command_is_rewritten(line: bytes, rewrite: dict[str, Any], sent: bytes) -> None:
    asked = command(line)
    on = "RCPT" if asked.verb.name == "RCPT" else "NOOP"
    parts: dict[str, Any] = {
        key: text(value, on)
        if isinstance(value, str)
        else tuple((k, text(v, on)) for k, v in value)
        if key == "set"
        else value
        for key, value in rewrite.items()
    }
    made = rewritten(asked, RewriteCommand(**parts), view(asked))
    assert made.verb is asked.verb
    assert made.wire == sent + b"\r\n"


@pytest.mark.parametrize(
    ("line", "rewrite"),
    [
        (b"RCPT TO:<a@x.example>", {"address": "a@b c.example"}),
        (b"RCPT TO:<a@x.example>", {"address": "a@b.example> NOTIFY=NEVER"}),
        (b"RCPT TO:<a@x.example>", {"address": ""}),
        (b"EHLO x.example", {"argument": "two words"}),
        (b"EHLO x.example", {"argument": ""}),
    ],
)
def test_what_the_grammar_does_not_have_is_not_made(line: bytes, rewrite: dict[str, str]) -> None:
    asked = command(line)
    on = "RCPT" if asked.verb.name == "RCPT" else "EHLO"
    parts: dict[str, Any] = {key: text(value, on) for key, value in rewrite.items()}
    with pytest.raises(ValueError, match="argument"):
        rewritten(asked, RewriteCommand(**parts), view(asked))


def test_what_a_peer_said_ends_no_line() -> None:
    asked = command(b"RCPT TO:<a@x.example>")
    made = reply_of(Answer(text=text("550 5.1.1 {rcpt.address} is not here")), view(asked))
    assert made.full.raw == b"550 5.1.1 a@x.example is not here\r\n"
    assert reply_of(Answer(own("550 No")), view(asked)) is own("550 No")


@pytest.mark.parametrize(
    ("raw", "rewrite", "told"),
    [
        (b"550 5.1.1 No such user\r\n", {"text": "No"}, b"550 5.1.1 No\r\n"),
        (b"550 No such user\r\n", {"text": "No"}, b"550 No\r\n"),
        (b"550-5.1.1 No\r\n550 5.1.1 such user\r\n", {"text": "No"}, b"550 5.1.1 No\r\n"),
    ],
)
def test_a_reply_is_told_in_other_words(raw: bytes, rewrite: dict[str, str], told: bytes) -> None:
    reply = Reply(int(raw[:3]), raw)
    parts: dict[str, Any] = {key: text(value, "RCPT reply") for key, value in rewrite.items()}
    made = retold(reply, RewriteReply(**parts), view(reply=reply), listing=False)
    assert isinstance(made, Reply)
    assert made.raw == told


def test_another_reply_is_one_of_the_same_kind() -> None:
    reply = Reply(550, b"550 5.1.1 No such user\r\n")
    made = retold(reply, RewriteReply(reply=Answer(own("554 5.7.1 No"))), view(reply=reply), listing=False)
    assert isinstance(made, OwnReply)
    with pytest.raises(ValueError, match="450 in place of 550"):
        retold(reply, RewriteReply(reply=Answer(own("450 4.7.1 Later"))), view(reply=reply), listing=False)


@pytest.mark.parametrize(
    ("rewrite", "lines"),
    [
        ({"remove": (b"DSN",)}, [b"mx", b"SIZE 5", b"HELP"]),
        ({"set": ((b"SIZE", "3"), (b"XNEW", ""))}, [b"mx", b"DSN", b"HELP", b"SIZE 3", b"XNEW"]),
        ({"text": "proxy"}, [b"proxy", b"SIZE 5", b"DSN", b"HELP"]),
    ],
)
def test_a_list_is_told_otherwise(rewrite: dict[str, Any], lines: list[bytes]) -> None:
    reply = Reply(250, b"250-mx\r\n250-SIZE 5\r\n250-DSN\r\n250 HELP\r\n")
    on = "EHLO reply"
    parts: dict[str, Any] = {
        key: text(value, on)
        if isinstance(value, str)
        else tuple((k, text(v, on)) for k, v in value)
        if key == "set"
        else value
        for key, value in rewrite.items()
    }
    made = retold(reply, RewriteReply(**parts), view(reply=reply), listing=True)
    assert isinstance(made, Reply)
    assert made.lines == lines


def test_every_subject_has_a_name_that_leads_to_it() -> None:
    assert all(subject(name.lower()) is about for name, about in SUBJECTS.items())
    assert subject("nothing") is None
