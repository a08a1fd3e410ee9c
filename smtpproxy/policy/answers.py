"""Answers in rule files: which reply may be told where.

3yz asks for more, and nobody would take it. 221 and 421 say that the connection is closed, so they belong to a hangup,
and to what is told in place of the greeting. Success (2yz) may be told here only where it promises nothing that only
the server can keep (RFC 5321 §4.2.5, §6.1).
"""

from collections.abc import Sequence
from enum import Enum

from smtpproxy.policy.rules import Answer
from smtpproxy.policy.subjects import Group, Subject
from smtpproxy.policy.tables import Table
from smtpproxy.policy.toml import KeyPath, shown
from smtpproxy.smtp.registry.rows import Argument, FramingClass, Verb
from smtpproxy.smtp.registry.verbs import VERBS
from smtpproxy.smtp.replies import own

A_REPLY = 'a reply, e.g. "550 5.7.1 Not here"'
A_REFUSAL = "a refusal, 4yz or 5yz"
_CLOSING = (221, 421)


class Use(Enum):
    """What an answer is for."""

    ANSWER = "answer"
    HANGUP = "hangup"
    LIMIT = "limit"
    QUARANTINE = "quarantine"
    REPLY = "reply"  # in place of the server's

    __hash__ = object.__hash__


def answerable(verb: Verb) -> bool:
    """Success may be told here without the server: the verb begins, takes and resets nothing."""
    return (
        verb.framing in (FramingClass.LINE, FramingClass.NOISE)
        and verb.argument not in (Argument.RCPT, Argument.URI)  # a recipient, content from elsewhere
        and not (verb.transaction or verb.holds or verb.name == "RSET")
    )


def why_not(code: int, promising: Sequence[str] = (), *, closes: bool = False) -> str:
    """Why a reply with this code may not be told, or "".

    Args:
        promising: of whom success would be a promise.
        closes: the connection is closed afterwards.
    """
    if code in _CLOSING and not closes:
        return f"{code} says that the connection is closed, and it would not be"
    if code // 100 == 3:
        return f"{code} asks for more, and nobody would take it"
    if code // 100 == 2 and promising:
        return f"{code} to {', '.join(promising)} promises what only the server can do"
    return ""


def read_answer(
    table: Table, path: KeyPath, value: object, subjects: Sequence[Subject], use: Use = Use.ANSWER
) -> Answer | None:
    """The answer at `path`, or None if it is wrong."""
    if not isinstance(value, str):
        table.bad(path, f"{shown(value)} is not a string", expected=A_REPLY)
        return None
    template = table.template(path, value, subjects)
    if template is None:
        return None
    try:
        reply = own(template.sample())
    except ValueError as error:
        said = str(error).partition(" (expected")[0]
        table.bad(
            path, said if template.constant or "disagree" in said else f"not a reply: {value!r}", expected=A_REPLY
        )
        return None
    code = reply.full.code
    wrong = why_not(code, _promising(code, subjects, use), closes=_closes(code, subjects, use))
    if wrong:
        table.bad(path, wrong, expected=A_REFUSAL)
        return None
    return Answer(reply) if template.constant is not None else Answer(None, template)


def _closes(code: int, subjects: Sequence[Subject], use: Use) -> bool:
    """The connection is closed when this has been told."""
    if use is Use.HANGUP:
        return True
    if use is Use.REPLY:  # the server's own, in other words
        return code == 221 and all(subject.verb == "QUIT" for subject in subjects)
    return all(subject.group is Group.CONNECT for subject in subjects)


def _promising(code: int, subjects: Sequence[Subject], use: Use) -> list[str]:
    """Of whom success told here would be a promise."""
    if use in (Use.QUARANTINE, Use.REPLY):  # the mail is kept here; the server has said so itself
        return []
    found: dict[str, None] = {}
    for subject in subjects:
        verbs = [VERBS[name.encode()] for name in subject.verbs if name.encode() in VERBS]
        if code == 221 and subject.verb == "QUIT" and use is Use.HANGUP:
            continue
        if subject.group is not Group.COMMAND or not verbs or use is Use.LIMIT:
            found[str(subject)] = None
        else:
            found.update(dict.fromkeys(verb.name for verb in verbs if not answerable(verb)))
    return sorted(found)
