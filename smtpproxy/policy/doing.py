"""Acts, done: the replies, commands, lists and header sections that rules make of what they are given.

Whatever is made is parsed again by the shared grammar before it goes anywhere: a command that the grammar does not
have, a reply that is none, a header section with a stray octet is an error (ValueError), and the rule has failed.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from smtpproxy.policy.rules import Answer, FieldEdit, RewriteCommand, RewriteReply
from smtpproxy.policy.templates import Template, fill_reply
from smtpproxy.smtp.capabilities import Capabilities
from smtpproxy.smtp.commands import Command, compose, parse_command
from smtpproxy.smtp.registry.rows import Argument
from smtpproxy.smtp.replies import OwnReply, Reply, multiline
from smtpproxy.smtp.values import Mail, Parameter, Path, Rcpt

if TYPE_CHECKING:
    from smtpproxy.policy.fields import View

_ESCAPED = re.compile(rb"\\(.)", re.DOTALL)
_ENVELOPE = {Argument.MAIL: Mail, Argument.RCPT: Rcpt}


def reply_of(answer: Answer, view: "View") -> OwnReply:
    """The reply that is told."""
    if answer.reply is not None:
        return answer.reply
    if answer.text is None:
        raise AssertionError("an answer without words")
    return fill_reply(answer.text, view)


def rewritten(command: Command, rewrite: RewriteCommand, view: "View") -> Command:
    """The command as it is to be sent.

    Raises:
        ValueError: what the texts make is nothing the grammar has.
    """
    verb = command.verb
    kind = _ENVELOPE.get(verb.argument)
    if kind is None:
        if rewrite.argument is None:
            return command
        return _read(command, b"%s %s" % (verb.name.encode(), rewrite.argument.fill(view).encode()))
    path, parameters = command.argument
    if rewrite.address is not None:
        path = _path(rewrite.address.fill(view).encode())
    kept = {p.keyword: p for p in parameters if p.keyword not in rewrite.remove}
    for keyword, value in rewrite.set:
        text = value.fill(view).encode()
        kept[keyword] = Parameter(keyword, text or None)
    return compose(verb, kind(path, tuple(kept.values())))  # type: ignore[arg-type]  # Mail or Rcpt


def _path(address: bytes) -> Path:
    """An address as a path. What stands before the last @ is the local-part, whatever is in it: it is quoted where it
    has to be, so nothing a peer wrote into it can end the path (RFC 5321 §4.1.2)."""
    local, at, domain = address.rpartition(b"@")
    if not at:
        return Path(domain, b"")
    if len(local) > 1 and local.startswith(b'"') and local.endswith(b'"'):
        local = _ESCAPED.sub(rb"\1", local[1:-1])
    return Path(local, domain)


def _read(command: Command, line: bytes) -> Command:
    """What a line of ours says: it must be the same verb, and strict."""
    made = parse_command(line.rstrip(b" ") + b"\r\n")
    if not isinstance(made, Command) or made.verb is not command.verb or made.leniencies:
        raise ValueError(f"not an argument of {command.verb.name}")
    return made


def retold(reply: Reply, rewrite: RewriteReply, view: "View", *, listing: bool) -> Reply | OwnReply:
    """The reply as it is to be told.

    Args:
        reply: the server's, or what rules before made of it.
        rewrite: what is to be done with it.
        view: for what is filled in.
        listing: it is a list of extensions.

    Raises:
        ValueError: the texts make no reply, or one of another kind than the server's.
    """
    if rewrite.reply is not None:
        made = reply_of(rewrite.reply, view)
        if made.full.digit != reply.digit:
            raise ValueError(f"{made.full.code} in place of {reply.code}")
        return made
    lines = list(reply.lines)
    if rewrite.text is not None:
        text = _words(rewrite.text, view)
        if listing:
            lines[0] = text
        else:
            enhanced = reply.enhanced
            lines = [b"%s %s" % (enhanced, text) if enhanced else text]
    made_reply = multiline(reply.code, lines)
    return _relisted(made_reply, rewrite, view) if listing and (rewrite.set or rewrite.remove) else made_reply


def _relisted(reply: Reply, rewrite: RewriteReply, view: "View") -> Reply:
    """A list with keywords taken out, changed and added."""
    offered = Capabilities.from_reply(reply)
    lines = {keyword: _line(keyword, text, view) for keyword, text in rewrite.set}
    gone = {*rewrite.remove, *lines}
    kept = [offer.line for offer in offered.offers if offer.keyword not in gone]
    return multiline(reply.code, [offered.greeting, *kept, *lines.values()])


def _line(keyword: bytes, text: Template, view: "View") -> bytes:
    parameters = _words(text, view)
    return b"%s %s" % (keyword, parameters) if parameters else keyword


def _words(text: Template, view: "View") -> bytes:
    """Printable ASCII, no longer than a line may be."""
    return "".join(c if " " <= c <= "~" else "?" for c in text.fill(view))[:450].encode()


def edits_of(edits: Sequence[FieldEdit], view: "View") -> list[tuple[str, bytes, bytes]]:
    """Edits of a header section, filled in."""
    return [(how, name, b"" if value is None else value.fill(view).encode()) for how, name, value in edits]
