"""`rewrite` and `header` in rule files: what a command, a reply or a header section is made into.

What must never happen: that a rewritten line is read otherwise by the server than here. So an argument can be rewritten
only where it does not say how the next octets are framed, a text that is the same always is tried against the grammar
now (another one when it is filled), and only the server can offer an extension that changes framing.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from smtpproxy.policy.answers import Use, read_answer
from smtpproxy.policy.rules import EditHeader, FieldEdit, RewriteCommand, RewriteReply
from smtpproxy.policy.subjects import Group, Subject
from smtpproxy.policy.tables import Table, either, near
from smtpproxy.policy.templates import Template
from smtpproxy.policy.toml import KeyPath, shown
from smtpproxy.smtp.commands import Command, parse_command
from smtpproxy.smtp.registry.extensions import EXTENSIONS
from smtpproxy.smtp.registry.parameters import PARAMETERS
from smtpproxy.smtp.registry.rows import Argument, FramingClass, Parameter
from smtpproxy.smtp.registry.verbs import VERBS

Rewrite = RewriteCommand | RewriteReply
_Settings = tuple[tuple[bytes, Template], ...]

_COMMAND_KEYS = ("address", "argument", "set", "remove")
_REPLY_KEYS = ("text", "reply", "set", "remove")
_HOWS = ("prepend", "add", "replace", "remove")
_FREE = frozenset(  # arguments that say nothing about framing, and are no secret
    {Argument.HELLO, Argument.STRING, Argument.TEXT, Argument.NODE, Argument.DOMAINS, Argument.ATTRIBUTES}
)
_LISTS = ("EHLO", "LHLO")
_OFFERABLE = frozenset({FramingClass.LINE, FramingClass.SASL, FramingClass.NOISE})
_FIELD_NAME = re.compile(r"[!-9;-~]{1,76}")  # RFC 5322 §2.2; a name of 77 would leave no room on its line
_ONE_LINE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*")
_REPLY_TEXT = re.compile(r"[ -~]+")
_OFFERED = re.compile(r"(?:[!-~]+(?: [!-~]+)*)?")  # RFC 5321 §4.1.1.1: ehlo-param
_ANY_VALUE = re.compile(r"[!-<>-~]*")  # RFC 5321 §4.1.2: esmtp-value


def read_rewrite(table: Table, path: KeyPath, value: object, subjects: Sequence[Subject]) -> Rewrite | None:
    """What stands behind `rewrite`, by the kind of the subjects; None if anything is wrong."""
    groups = {subject.group for subject in subjects}
    if len(groups) > 1:
        table.bad(path, "rewrite means two things, of a command and of a reply", key=True, expected="a rule for each")
        return None
    if not isinstance(value, dict):
        table.bad(path, f"{shown(value)} is not a table", expected='e.g. { rewrite = { set = { RET = "HDRS" } } }')
        return None
    if Group.REPLY in groups:
        return _rewrite_reply(table, path, value, subjects)
    return _rewrite_command(table, path, value, subjects)


# ----------------------------------------------------------------------------------------------------------- commands


def _rewrite_command(
    table: Table, path: KeyPath, value: Mapping[str, Any], subjects: Sequence[Subject]
) -> RewriteCommand | None:
    before = len(table.problems)
    table.unknown_keys(path, value, _COMMAND_KEYS)
    _keys_fit(table, path, value, subjects, _command_keys, _COMMAND_KEYS)
    address = argument = None
    set_: _Settings = ()
    remove: tuple[bytes, ...] = ()
    if len(table.problems) == before:
        if "address" in value:
            address = _line(table, (*path, "address"), value["address"], subjects, 'an address, e.g. "a@b.example"')
        if "argument" in value:
            argument = _line(table, (*path, "argument"), value["argument"], subjects, "an argument of this verb")
        known = _parameters(subjects)
        if "set" in value:
            set_ = _set_parameters(table, (*path, "set"), value["set"], subjects, known)
        if "remove" in value:
            remove = _removed(table, (*path, "remove"), value["remove"], known, set_)
    return None if len(table.problems) > before else RewriteCommand(address, argument, set_, remove)


def _command_keys(subject: Subject) -> tuple[str, ...]:
    """The keys that make sense on a command."""
    if subject.verb == "UNKNOWN":
        return ("argument",)
    kinds = {VERBS[name.encode()].argument for name in subject.verbs if name.encode() in VERBS}
    if kinds and kinds <= {Argument.MAIL, Argument.RCPT}:
        return ("address", "set", "remove")
    return ("argument",) if kinds and kinds <= _FREE else ()


def _keys_fit(
    table: Table,
    path: KeyPath,
    value: Mapping[str, Any],
    subjects: Sequence[Subject],
    keys_of: Any,
    known: Sequence[str],
) -> None:
    if not value:
        table.bad(path, "is empty", expected=either(known))
    for key in value:
        if key in known and (without := [subject for subject in subjects if key not in keys_of(subject)]):
            may = keys_of(without[0])
            table.bad(
                (*path, key),
                f"{key} of {without[0]} can't be rewritten",
                key=True,
                expected=either(may) if may else "another act",
            )


def _line(table: Table, path: KeyPath, value: object, subjects: Sequence[Subject], expected: str) -> Template | None:
    """An address or an argument. What is the same always is tried against the grammar of each verb."""
    if not isinstance(value, str):
        table.bad(path, f"{shown(value)} is not a string", expected=expected)
        return None
    template = table.template(path, value, subjects)
    if template is None or template.constant is None:
        return template
    for name in dict.fromkeys(name for subject in subjects for name in subject.verbs):
        verb = VERBS.get(name.encode())
        if verb is not None and not _fits(verb.name, verb.argument, template.constant):
            what = "an address that" if path[-1] == "address" else "an argument that"
            table.bad(path, f"{shown(value)} is not {what} {verb.name} could have", expected=expected)
            return None
    return template


def _fits(verb: str, argument: Argument, text: str) -> bool:
    before = {Argument.MAIL: "FROM:<", Argument.RCPT: "TO:<"}.get(argument)
    line = f"{verb} {text}" if before is None else f"{verb} {before}{text}>"
    if not _ONE_LINE.fullmatch(line):
        return False
    command = parse_command(f"{line}\r\n".encode())
    strict = isinstance(command, Command) and command.verb.name == verb and not command.leniencies
    return strict and (before is None or not command.argument.parameters)  # type: ignore[union-attr]


def _parameters(subjects: Sequence[Subject]) -> dict[str, Parameter]:
    """The parameters that a command of every one of these subjects may have."""
    found: dict[str, Parameter] | None = None
    for subject in subjects:
        kinds = {VERBS[name.encode()].argument for name in subject.verbs if name.encode() in VERBS}
        verb = b"RCPT" if kinds == {Argument.RCPT} else b"MAIL"
        rows = {key.decode(): row for (on, key), row in PARAMETERS.items() if on == verb}
        found = rows if found is None else {key: row for key, row in found.items() if key in rows}
    return found or {}


def _set_parameters(
    table: Table, path: KeyPath, value: object, subjects: Sequence[Subject], known: Mapping[str, Parameter]
) -> _Settings:
    found: list[tuple[bytes, Template]] = []
    for key, here, template in _settings(table, path, value, subjects, known, "parameter"):
        row = known[key]
        if template.constant is not None and not _valued(row, template.constant):
            table.bad(here, f"{shown(template.text)} is not a value of {key}", expected=row.syntax)
        elif len(template.sample("")) and not _ANY_VALUE.fullmatch(template.sample("")):
            table.bad(here, f"{shown(template.text)} is not a value", expected=row.syntax)
        else:
            found.append((key.encode(), template))
    return tuple(found)


def _valued(row: Parameter, text: str) -> bool:
    if not text:
        return row.optional_value or not row.value
    return bool(row.value) and re.fullmatch(row.value, text, re.IGNORECASE) is not None


def _settings(
    table: Table,
    path: KeyPath,
    value: object,
    subjects: Sequence[Subject],
    known: Mapping[str, Any],
    what: str,
) -> list[tuple[str, KeyPath, Template]]:
    """`set = { KEYWORD = "value" }`: keyword in capitals, place, value."""
    found: list[tuple[str, KeyPath, Template]] = []
    if not isinstance(value, dict) or not value:
        table.bad(
            path, "is empty" if value == {} else f"{shown(value)} is not a table", expected='{ KEYWORD = "value" }'
        )
        return found
    for name, text in value.items():
        here = (*path, name)
        if name.upper() not in known:
            table.bad(here, f"no {what} {shown(name)} here", key=True, near=near(name, known))
        elif isinstance(text, bool) or not isinstance(text, (str, int)):
            table.bad(here, f"{shown(text)} is not a string", expected='a string; "" for no value')
        elif (template := table.template(here, str(text), subjects)) is not None:
            found.append((name.upper(), here, template))
    return found


def _removed(
    table: Table, path: KeyPath, value: object, known: Mapping[str, Any], set_: _Settings
) -> tuple[bytes, ...]:
    found: list[bytes] = []
    for here, name in table.strings(path, value, "an array of keywords"):
        keyword = name.upper().encode()
        if name.upper() not in known:
            table.bad(here, f"no such name as {shown(name)} here", near=near(name, known))
        elif any(keyword == other for other, _ in set_):
            table.bad(here, f"{name.upper()} is set and removed", expected="one of them")
        else:
            found.append(keyword)
    return tuple(found)


# ------------------------------------------------------------------------------------------------------------ replies


def _rewrite_reply(
    table: Table, path: KeyPath, value: Mapping[str, Any], subjects: Sequence[Subject]
) -> RewriteReply | None:
    before = len(table.problems)
    table.unknown_keys(path, value, _REPLY_KEYS)
    _keys_fit(table, path, value, subjects, _reply_keys, _REPLY_KEYS)
    if "reply" in value and len(value) > 1:
        table.bad(path, "reply takes the place of everything else", expected="nothing beside it")
    text = reply = None
    set_: _Settings = ()
    remove: tuple[bytes, ...] = ()
    if len(table.problems) == before:
        if "text" in value:
            text = _reply_text(table, (*path, "text"), value["text"], subjects)
        if "reply" in value:
            reply = read_answer(table, (*path, "reply"), value["reply"], subjects, Use.REPLY)
        known = {name.decode(): row for name, row in EXTENSIONS.items()}
        if "set" in value:
            set_ = _set_keywords(table, (*path, "set"), value["set"], subjects, known)
        if "remove" in value:
            remove = _removed(table, (*path, "remove"), value["remove"], known, set_)
    return None if len(table.problems) > before else RewriteReply(text, reply, set_, remove)


def _reply_keys(subject: Subject) -> tuple[str, ...]:
    return _REPLY_KEYS if subject.verb in _LISTS else ("text", "reply")


def _reply_text(table: Table, path: KeyPath, value: object, subjects: Sequence[Subject]) -> Template | None:
    expected = "a text without reply code"
    text = table.string(path, value, expected)
    template = None if text is None else table.template(path, text, subjects)
    if template is not None and not _REPLY_TEXT.fullmatch(template.sample()):
        table.bad(path, f"{shown(text)} is not one line of printable ASCII", expected=expected)
        return None
    return template


def _set_keywords(
    table: Table, path: KeyPath, value: object, subjects: Sequence[Subject], known: Mapping[str, Any]
) -> _Settings:
    found: list[tuple[bytes, Template]] = []
    for key, here, template in _settings(table, path, value, subjects, known, "extension"):
        if known[key].framing not in _OFFERABLE:
            table.bad(
                here,
                f"{key} changes what the octets mean: only the server can offer it",
                key=True,
                expected=f'extension = "{key}" and then = "allow"',
            )
        elif not _OFFERED.fullmatch(template.sample()):
            table.bad(
                here, f"{shown(template.text)} is not printable ASCII with single blanks", expected=known[key].syntax
            )
        else:
            found.append((key.encode(), template))
    return tuple(found)


# ------------------------------------------------------------------------------------------------------------- header


def read_header(table: Table, path: KeyPath, value: object, subjects: Sequence[Subject]) -> EditHeader | None:
    """What stands behind `header`: the edits of a header section, in the order they are written."""
    if not isinstance(value, dict) or not value:
        table.bad(
            path,
            "is empty" if value == {} else f"{shown(value)} is not a table",
            expected='e.g. { header = { remove = ["X-Mailer"] } }',
        )
        return None
    before = len(table.problems)
    table.unknown_keys(path, value, _HOWS)
    edits: list[FieldEdit] = []
    for how, what in value.items():
        here = (*path, how)
        if how == "remove":
            names = table.strings(here, what, "an array of field names")
            edits += [FieldEdit(how, name.encode()) for place, name in names if _named(table, place, name)]
        elif how in _HOWS and isinstance(what, dict) and what:
            edits += [edit for name, texts in what.items() for edit in _fields(table, here, how, name, texts, subjects)]
        elif how in _HOWS:
            said = "is empty" if what == {} else f"{shown(what)} is not a table"
            table.bad(here, said, expected='{ Name = "value" }')
    return None if len(table.problems) > before else EditHeader(tuple(edits))


def _fields(
    table: Table, path: KeyPath, how: str, name: str, texts: object, subjects: Sequence[Subject]
) -> list[FieldEdit]:
    """One name and its value, or its values."""
    if not _named(table, (*path, name), name, key=True):
        return []
    found: list[FieldEdit] = []
    for place, text in table.strings((*path, name), texts, "a string, or an array of them"):
        template = table.template(place, text, subjects)
        if template is None:
            continue
        if not _ONE_LINE.fullmatch(template.sample()):
            table.bad(place, "CR, LF and other controls can't stand in a header field", expected="one line")
        else:
            found.append(FieldEdit(how, name.encode(), template))
    return found


def _named(table: Table, path: KeyPath, name: str, *, key: bool = False) -> bool:
    if _FIELD_NAME.fullmatch(name):
        return True
    table.bad(
        path, f"{shown(name)} is not the name of a header field", key=key, expected="printable ASCII without a colon"
    )
    return False
