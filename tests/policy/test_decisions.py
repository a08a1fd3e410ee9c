"""What functions of Python's may decide: the acts of rule files, read as those are."""

from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from smtpproxy.policy import rules
from smtpproxy.policy.decisions import (
    ABSTAIN,
    PASS,
    Abstain,
    Answer,
    Discard,
    EditHeader,
    Hangup,
    Pass,
    Quarantine,
    Record,
    Redirect,
    Rewrite,
    Tag,
    Tarpit,
    deeds,
)
from smtpproxy.policy.subjects import SUBJECTS
from smtpproxy.smtp.replies import own


def read(returned: Any, subject: str = "RCPT") -> tuple[rules.Deed, ...]:
    return deeds("site:check", returned, SUBJECTS[subject])


def told(deed: rules.Deed) -> str:
    """The reply of an act."""
    answer = deed if isinstance(deed, rules.Answer) else getattr(deed, "answer", None)
    assert isinstance(answer, rules.Answer)
    assert answer.reply is not None
    return str(answer.reply.full)


@pytest.mark.parametrize(
    ("returned", "subject", "deed"),
    [
        (PASS, "RCPT", rules.Pass()),
        (Pass(), "connect", rules.Pass()),
        (Answer("550 5.1.1 No such user"), "RCPT", rules.Answer(own("550 5.1.1 No such user"))),
        (Answer("554 Not you"), "connect", rules.Answer(own("554 Not you"))),
        (Discard(), "content", rules.Discard()),
        (Hangup(), "RCPT", rules.Hangup()),
        (Hangup("421 4.7.0 Not you"), "RCPT", rules.Hangup(rules.Answer(own("421 4.7.0 Not you")))),
        (Tarpit(2.5), "RCPT", rules.Tarpit(2.5)),
        (Redirect("mx2.example"), "connect", rules.Redirect("mx2.example", 25)),
        (Redirect("2001:db8::1", 2525), "connect", rules.Redirect("2001:db8::1", 2525)),
        (Tag("known", "liked"), "RCPT", rules.Tag(("known", "liked"))),
        (Record(), "RCPT", rules.Record()),
    ],
)
def test_a_decision_is_an_act(returned: Any, subject: str, deed: rules.Deed) -> None:
    assert read(returned, subject) == (deed,)


@pytest.mark.parametrize(
    ("text", "reply"), [("accept", "250 "), ("refuse", "550 "), ("554 5.7.1 Kept", "554 5.7.1 Kept")]
)
def test_a_mail_is_kept(text: str, reply: str) -> None:
    (deed,) = read(Quarantine(text), "content")
    assert told(deed).startswith(reply)
    assert read(Quarantine(), "content") == read(Quarantine("accept"), "content")


def test_a_command_is_rewritten() -> None:
    (deed,) = read(Rewrite(address="b@y.example", set={"NOTIFY": "NEVER"}, remove=["ORCPT"]))
    assert isinstance(deed, rules.RewriteCommand)
    assert deed.address is not None
    assert deed.address.constant == "b@y.example"
    assert [(key, text.constant) for key, text in deed.set] == [(b"NOTIFY", "NEVER")]
    assert deed.remove == (b"ORCPT",)


def test_a_reply_is_rewritten() -> None:
    (deed,) = read(Rewrite(text="Ready"), "EHLO reply")
    assert isinstance(deed, rules.RewriteReply)
    assert deed.text is not None
    assert deed.text.constant == "Ready"
    (deed,) = read(Rewrite(reply="550 5.1.1 Unknown"), "RCPT reply")
    assert isinstance(deed, rules.RewriteReply)
    assert deed.reply is not None
    assert told(deed.reply) == "550 5.1.1 Unknown"


def test_a_header_section_is_edited() -> None:
    edits = EditHeader({"X-One": "1"}, {"X-Two": ["2", "two"]}, {"Subject": "{no field}"}, ["X-Mailer"])
    (deed,) = read(edits, "content")
    assert isinstance(deed, rules.EditHeader)
    assert [(how, name, value.constant if value else None) for how, name, value in deed.edits] == [
        ("prepend", b"X-One", "1"),
        ("add", b"X-Two", "2"),
        ("add", b"X-Two", "two"),
        ("replace", b"Subject", "{no field}"),
        ("remove", b"X-Mailer", None),
    ]


def test_several_are_done_in_their_order() -> None:
    for many in ([Tag("odd"), Answer("550 5.7.1 No")], (Tag("odd"), Answer("550 5.7.1 No"))):
        assert read(many) == (rules.Tag(("odd",)), rules.Answer(own("550 5.7.1 No")))


def test_who_abstains_does_nothing() -> None:
    """The next rule is tried."""
    assert read(ABSTAIN) == read(Abstain()) == read([ABSTAIN]) == ()
    assert read([Tag("seen"), ABSTAIN]) == (rules.Tag(("seen",)),)


def test_what_a_peer_said_ends_no_line_and_fills_nothing_in() -> None:
    """A reply is printable ASCII of one line, and braces are braces."""
    peer = "a\r\n250 ok\0\x1b[1m ü {client.address} {{"
    (deed,) = read(Answer(f"550 5.1.1 No {peer}"))
    assert told(deed) == "550 5.1.1 No a??250 ok??[1m ? {client.address} {{"
    (deed,) = read(Answer("550 5.1.1 " + "x" * 1000))
    assert isinstance(deed, rules.Answer)
    assert deed.reply is not None
    assert len(deed.reply.full.raw) == 512


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        (None, "site:check returned None: not a decision such as PASS"),
        (True, "returned True: not a decision"),
        ("550 5.1.1 No", "returned '550 5.1.1 No': not a decision"),
        ({"answer": "550 5.1.1 No"}, "not a decision"),
        (Answer, "not a decision"),
        (rules.Pass(), "not a decision"),
        ([PASS, None], "returned None: not a decision"),
        ((PASS for _ in range(1)), "not a decision"),
        (Answer(550), "550 is not a string"),  # type: ignore[arg-type]
        (Answer(b"550 No"), "b'550 No' is not a string"),  # type: ignore[arg-type]
        (Rewrite(address=7), "7 is not a string"),  # type: ignore[arg-type]
        (Rewrite(set=["NOTIFY"]), "no attribute 'items'"),  # type: ignore[arg-type]
        (EditHeader(add={"X": None}), "None is not a string"),  # type: ignore[dict-item]
        (EditHeader(remove=7), "not iterable"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_decision_is_refused(returned: Any, says: str) -> None:
    """Fail closed: whoever forgets to return something has not let anything through."""
    with pytest.raises(TypeError) as error:
        read(returned, "content")
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("returned", "subject", "says"),
    [
        ([], "RCPT", "returned []: is empty"),
        (Answer("250 2.1.5 Ok"), "RCPT", "promises what only the server can do (expected a refusal"),
        (Answer("354 Go"), "DATA", "354 asks for more"),
        (Answer("421 4.7.0 No"), "RCPT", "421 says that the connection is closed"),
        (Answer("550 4.1.1 No"), "RCPT", "disagree"),
        (Answer("no"), "RCPT", "not a reply"),
        (Answer(""), "RCPT", "not a reply"),
        (Answer("550 5.1.1 No"), "RCPT reply", "answer makes no sense on RCPT reply"),
        (Discard(), "VRFY", "discard makes no sense on VRFY"),
        (Hangup("250 Ok"), "RCPT", "250"),
        (Tarpit(0), "RCPT", "no time at all"),
        (Tarpit(1e9), "RCPT", "too long"),
        (Tarpit(float("nan")), "RCPT", "not a duration"),
        (Redirect("mx2.example"), "RCPT", "redirect makes no sense on RCPT"),
        (Redirect("not a host"), "connect", "is not host:port"),
        (Redirect("mx2.example", 0), "connect", "0 is not a port"),
        (Rewrite(), "RCPT", "is empty"),
        (Rewrite(address="a b"), "RCPT", "is not an address that RCPT could have"),
        (Rewrite(address="a@b>\r\nDATA"), "RCPT", "is not an address that RCPT could have"),
        (Rewrite(set={"NOTIFYY": "NEVER"}), "RCPT", "no parameter"),
        (Rewrite(reply="250 Ok", text="x"), "RCPT reply", "reply takes the place of everything else"),
        (EditHeader(), "content", "is empty"),
        (EditHeader(add={"X:": "1"}), "content", "is not the name of a header field"),
        (EditHeader(add={"X": "1\r\nY: 2"}), "content", "can't stand in a header field"),
        (Quarantine("250 Ok"), "RCPT", "quarantine makes no sense"),
        (Quarantine("x"), "content", "not a reply"),
        (Tag(), "RCPT", "is empty"),
        (Tag("Not A Label"), "RCPT", "is not a label"),
        (Tag(7), "RCPT", "7 is not"),  # type: ignore[arg-type]
        ([Answer("550 5.1.1 No"), Tag("late")], "RCPT", "nothing behind it would be done"),
    ],
)
def test_what_makes_no_sense_is_refused(returned: Any, subject: str, says: str) -> None:
    """By the reader of rule files: a function can do nothing that a rule could not."""
    with pytest.raises(ValueError) as error:
        read(returned, subject)
    assert says in str(error.value)
    assert str(error.value).startswith("site:check returned ")


def test_messages_are_short_and_printable() -> None:
    with pytest.raises(TypeError) as error:
        read("x\n\x1bü" * 1000)
    assert str(error.value).isascii() or "…" in str(error.value)
    assert len(str(error.value)) < 200
    assert "\n" not in str(error.value)


def test_decisions_are_values() -> None:
    assert Tag("a") == Tag("a") != Tag("b")
    assert Pass() == PASS
    with pytest.raises(FrozenInstanceError):
        Answer("550 No").text = "250 Ok"  # type: ignore[misc]
