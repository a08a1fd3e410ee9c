"""Rules on subjects: `on = SUBJECT`, `when = CONDITION`, `then = ACTS`, or `python` in place of `then`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from smtpproxy.policy.actions import A_THEN, read_otherwise, read_then
from smtpproxy.policy.entrypoints import EntryPoint, resolve
from smtpproxy.policy.rules import Deed, Quarantine, Rule, Source
from smtpproxy.policy.ruletables import RuleTable
from smtpproxy.policy.subjects import SUBJECTS, Subject, subject
from smtpproxy.policy.tables import near
from smtpproxy.policy.toml import KeyPath, shown

if TYPE_CHECKING:
    from smtpproxy.policy.expr import Compiler

KEYS = ("name", "why", "on", "when", "then", "python", "otherwise", "deadline", "mode", "tags")
LONGEST_DEADLINE = 300.0  # RFC 5321 §4.5.3.2: no client waits longer
_DEADLINE = 5.0
_WITH = "it with python or quarantine"
_A_SUBJECT = 'a subject, e.g. "RCPT", "RCPT reply" or "content"'


def read_rule(table: RuleTable, compiler: "Compiler", source: Source, shipped: bool) -> Rule | None:
    """The rule; None where it is off, or where anything is wrong and the table's problems say what."""
    before = len(table.problems)
    table.unknown_keys((), table.values, KEYS)
    table.read_name()
    why = table.read_why()
    subjects = _subjects(table)
    when = table.read_when(compiler, subjects)
    then = _then(table, subjects)
    python = _python(table, subjects)
    otherwise = _otherwise(table, subjects, then, python)
    deadline = _deadline(table, then)
    mode = table.read_mode()
    tags = table.read_tags()
    if table.off or len(table.problems) > before:
        return None
    return Rule(
        table.name, why, subjects, when, then, mode, tags, otherwise, python, deadline, source=source, shipped=shipped
    )


def _subjects(table: RuleTable) -> tuple[Subject, ...]:
    if "on" not in table.values:
        return ()  # off, and names nothing but itself
    found: dict[Subject, KeyPath] = {}
    for place, name in table.strings(("on",), table.values["on"], _A_SUBJECT):
        about = subject(name)
        if about is None:
            likely = near(name, SUBJECTS) or near(name.partition(" ")[0], SUBJECTS)
            table.bad(place, f"{shown(name)} is not a subject", expected="" if likely else _A_SUBJECT, near=likely)
        elif about in found:
            table.bad(place, f"{about} stands here twice", expected="it once")
        else:
            found[about] = place
    return tuple(found)


def _then(table: RuleTable, subjects: tuple[Subject, ...]) -> tuple[Deed, ...]:
    value: Any = table.values.get("then")
    if "python" in table.values and value is not None:
        table.bad(("then",), "then and python are two things", key=True, expected="one of them")
    elif value is not None and subjects:
        return read_then(table, value, subjects) or ()
    elif value is None and "python" not in table.values and not table.off:
        table.bad((), "then is missing", expected=A_THEN)
    return ()


def _python(table: RuleTable, subjects: tuple[Subject, ...]) -> EntryPoint | None:
    if "python" not in table.values:
        return None
    text = table.string(("python",), table.values["python"], 'a function, e.g. "site_rules.greylist:judge"')
    if text is None or not subjects:
        return None
    found = resolve(text, subjects, Path(table.positions.file).parent)
    if isinstance(found, EntryPoint):
        return found
    table.bad(("python",), found.message, expected=found.expected, near=found.nearest)
    return None


def _otherwise(
    table: RuleTable, subjects: tuple[Subject, ...], then: tuple[Deed, ...], python: EntryPoint | None
) -> Deed | None:
    if "otherwise" not in table.values:
        return None
    if _asks(table, then):
        return read_otherwise(table, table.values["otherwise"], subjects) if subjects else None
    table.bad(
        ("otherwise",),
        "nobody is asked here who could fail to answer",
        key=True,
        expected="it with python or quarantine",
    )
    return None


def _deadline(table: RuleTable, then: tuple[Deed, ...]) -> float:
    if "deadline" not in table.values:
        return _DEADLINE
    if not _asks(table, then):
        table.bad(
            ("deadline",), "nobody is asked here who could be late", key=True, expected="it with python or quarantine"
        )
        return _DEADLINE
    return table.duration(("deadline",), table.values["deadline"], most=LONGEST_DEADLINE) or _DEADLINE


def _asks(table: RuleTable, then: tuple[Deed, ...]) -> bool:
    """The outside is asked, or would be were `then` right."""
    wrong = "then" in table.values and not then
    return wrong or "python" in table.values or any(isinstance(deed, Quarantine) for deed in then)
