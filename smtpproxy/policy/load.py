"""Rule files: TOML in, rules and problems out.

- Shipped files come first, then the site's, in the order given; a directory gives its `*.toml` files by name; within a
  file, order is order. Of several rules about one extension the last one holds.
- A rule of the same name in a later file takes the place of the earlier one as a whole, and stands where the later
  one stands. `mode = "off"` takes it out.
- All problems of all files are found in one go. If one of them is an error there are no rules at all: half a rule set
  is not what anybody wrote.
- What is valid but hardly meant is a warning, and coherence.py finds it.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smtpproxy.policy import coherence
from smtpproxy.policy.coherence import Entry
from smtpproxy.policy.rules import ExtensionRule, Source, Treatment
from smtpproxy.policy.toml import (
    KeyPath,
    Positions,
    Problem,
    TomlError,
    nearest,
    nearest_sizes,
    parse,
    parse_size,
    shown,
)
from smtpproxy.smtp.registry.features import FEATURE_NAMES, Feature, default_of, feature
from smtpproxy.smtp.registry.parameters import PARAMETERS
from smtpproxy.smtp.registry.rows import Argument, Default, FramingClass, Verb
from smtpproxy.smtp.registry.verbs import VERBS
from smtpproxy.smtp.replies import OwnReply, own

_KEYS = ("name", "why", "extension", "then", "mode")
_MODES = ("enforce", "off")
_WORDS = {treatment.value: treatment for treatment in (Treatment.ALLOW, Treatment.DENY, Treatment.TLS)}
_TABLES = ("limit", "answer")
_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
_RESERVED = "default"  # what the record calls the registry's own decisions
_THEN = '"allow", "deny", "allow-under-tls", { limit = … } or { answer = "…" }'
_LIMITS = {"SIZE": 'a size, e.g. "25 MiB"', "LIMITS": "a count of recipients, e.g. 100"}
_LARGEST = 10**20 - 1  # RFC 1870 §3: a size has at most 20 digits
_CLOSING = (221, 421)

Then = tuple[Treatment, int, OwnReply | None]


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the files gave: the rules in order, or the errors; the warnings in both cases."""

    rules: tuple[ExtensionRule, ...]
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """There is no error among the problems."""
        return all(problem.severity != "error" for problem in self.problems)


def shipped_rules() -> Path:
    """The directory of the rule files that come with smtpproxy: in the package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "rules"
    return inside if inside.is_dir() else package.parent / "rules"


def load_rules(paths: Sequence[Path], *, shipped: bool = True) -> Loaded:
    """The rules of the files and directories `paths`, on top of the shipped ones."""
    problems: list[Problem] = []
    entries: list[Entry] = []
    ours = _files([shipped_rules()], problems) if shipped else []
    for file in dict.fromkeys((*ours, *_files(paths, problems))):
        entries += _read(file, file in ours, problems)
    if problems:
        return Loaded((), tuple(problems))
    last = {entry.name: entry for entry in entries}
    rules = tuple(entry.rule for entry in entries if entry.rule is not None and last[entry.name] is entry)
    return Loaded(rules, tuple(coherence.warnings(entries)))


def _files(paths: Iterable[Path], problems: list[Problem]) -> list[Path]:
    """The files of `paths`, those of a directory by name. What an editor leaves behind (`.x.toml`) is none."""
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            files += sorted(file for file in path.glob("*.toml") if not file.name.startswith("."))
        elif path.exists():
            files.append(path)
        else:
            problems.append(Problem(str(path), 0, 0, "", "no such file or directory"))
    return files


# ------------------------------------------------------------------------------------------------------- one file


def _read(file: Path, shipped: bool, problems: list[Problem]) -> list[Entry]:
    try:
        data, positions = parse(file)
    except TomlError as error:
        problems.append(error.problem)
        return []
    found: list[Problem] = []
    for key in data.keys() - {"rule"}:
        near = nearest(key, ["rule"])
        found.append(
            positions.problem(
                (key,), f"unknown key {shown(key)}", where="", key=True, expected="[[rule]]", nearest=near
            )
        )
    tables = data.get("rule", [])
    if not isinstance(tables, list):
        found.append(positions.problem(("rule",), "rules are a list", where="", expected="[[rule]]"))
        tables = []
    entries: list[Entry] = []
    names: dict[str, int] = {}
    for index, table in enumerate(tables):
        if not isinstance(table, dict):
            found.append(
                positions.problem(("rule", index), f"{shown(table)} is not a rule", where="", expected="[[rule]]")
            )
            continue
        reader = _Reader(positions, ("rule", index), table, found)
        entry = reader.entry(shipped)
        name = reader.name
        if name and name in names:
            line = positions.value(("rule", names[name])).line
            reader.bad(
                ("name",), f"{shown(name)} is the name of the rule in line {line} already", expected="a name of its own"
            )
        names.setdefault(name, index)
        entries += [entry] if entry else []
    problems += sorted(found, key=lambda problem: (problem.line, problem.column))
    return entries


class _Reader:
    """Reads one `[[rule]]`; what is wrong goes into `problems`."""

    def __init__(self, positions: Positions, path: KeyPath, table: dict[str, Any], problems: list[Problem]) -> None:
        self._positions = positions
        self._path = path
        self._table = table
        self._problems = problems
        name = table.get("name")
        self.name = name if isinstance(name, str) else ""

    def bad(
        self, path: KeyPath, message: str, *, key: bool = False, expected: str = "", near: Sequence[str] = ()
    ) -> None:
        """Put an error about the value at `path` of the rule, or about its key, on the list."""
        where = _where(self._path, self.name)
        if path and not key:
            where += f": {'.'.join(map(str, path))}"
        self._problems.append(
            self._positions.problem(
                (*self._path, *path), message, where=where, key=key, expected=expected, nearest=near
            )
        )

    def entry(self, shipped: bool) -> Entry | None:
        """The rule, or None if anything about it is wrong."""
        before = len(self._problems)
        for key in self._table.keys() - set(_KEYS):
            self._unknown((key,), _KEYS)
        off = self._table.get("mode") == "off"
        self._check_name()
        why = self._text("why", 'a sentence that says why, e.g. "nobody here needs it"')
        about = self._feature(off)
        then = self._then(about, off)
        mode = self._table.get("mode", "enforce")
        if mode not in _MODES:
            self.bad(("mode",), f"{shown(mode)} is not a mode", expected='"enforce" or "off"', near=_near(mode, _MODES))
        if len(self._problems) > before:
            return None
        rule = None
        if not off and about is not None and then is not None:
            source = Source(self._positions.file, self._positions.value(self._path).line)
            rule = ExtensionRule(self.name, why, about, *then, source)
        return Entry(self.name, rule, shipped, self._positions, self._path, _where(self._path, self.name))

    def _unknown(self, path: KeyPath, known: Sequence[str]) -> None:
        near = nearest(str(path[-1]), known)
        expected = "" if near else " or ".join((", ".join(known[:-1]), known[-1]))
        self.bad(path, f"unknown key {shown('.'.join(map(str, path)))}", key=True, expected=expected, near=near)

    def _text(self, key: str, expected: str) -> str:
        value = self._table.get(key)
        if value is None:
            self.bad((), f"{key} is missing", expected=expected)
        elif not isinstance(value, str):
            self.bad((key,), f"{shown(value)} is not a string", expected=expected)
        elif not value.strip():
            self.bad((key,), "is empty", expected=expected)
        else:
            return value
        return ""

    def _check_name(self) -> None:
        expected = 'a name such as "size-25m": a-z, 0-9 and -'
        name = self._text("name", expected)
        if name and not _NAME.fullmatch(name):
            near = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
            self.bad(("name",), f"{shown(name)} is not a name", expected=expected, near=[near] if near else [])
        elif name == _RESERVED:
            self.bad(("name",), f"{shown(name)} is what the record calls decisions without a rule", expected=expected)

    def _feature(self, off: bool) -> Feature | None:
        if off and "extension" not in self._table:
            return None
        name = self._text("extension", 'the name of an extension or verb, e.g. "XEXCH50"')
        if not name:
            return None
        about = feature(name)
        if about is None:
            self.bad(
                ("extension",), f"{shown(name)} is not a name that smtpproxy knows", near=_near(name, FEATURE_NAMES)
            )
        elif not about.keywords and not about.verbs:
            self.bad(
                ("extension",),
                f"{about.name} is a parameter, and parameters go with their extension",
                expected=" or ".join(f'"{name}"' for name in _extensions_of(about)),
            )
            return None
        return about

    def _then(self, about: Feature | None, off: bool) -> Then | None:
        value = self._table.get("then")
        if value is None:
            if not off:
                self.bad((), "then is missing", expected=_THEN)
            return None
        if isinstance(value, dict):
            return self._then_table(value, about)
        treatment = _WORDS.get(value) if isinstance(value, str) else None
        if treatment is None:
            self.bad(("then",), f"{shown(value)} is not something to do", expected=_THEN, near=_near(value, _WORDS))
            return None
        if about is not None and treatment is Treatment.TLS and default_of(about) is Default.TERMINATE:
            self.bad(("then",), f"{about.name} under TLS is nothing: it begins it", expected='"allow" or "deny"')
        return treatment, 0, None

    def _then_table(self, table: dict[str, Any], about: Feature | None) -> Then | None:
        for key in table.keys() - set(_TABLES):
            self._unknown(("then", key), _TABLES)
        if "limit" in table and "answer" in table:
            self.bad(("then",), "limit and answer are two things", expected="one of them")
        elif "limit" in table:
            return self._limit(table["limit"], about)
        elif "answer" in table:
            return self._answer(table["answer"], about)
        elif not table:
            self.bad(("then",), "is empty", expected=_THEN)
        return None

    def _limit(self, value: object, about: Feature | None) -> Then | None:
        path = ("then", "limit")
        if about is None:
            return None
        expected = _LIMITS.get(about.name)
        if expected is None:
            self.bad(path, f"{about.name} has no number to limit", key=True, expected=" or ".join(_LIMITS))
            return None
        number = 0
        if isinstance(value, int) and not isinstance(value, bool):
            number = value
        elif about.name == "SIZE" and isinstance(value, str):
            try:
                number = parse_size(value)
            except ValueError as error:
                self.bad(path, str(error), expected=expected, near=nearest_sizes(value))
                return None
        if not 0 < number <= _LARGEST:
            self.bad(path, f"{shown(value)} is not a limit", expected=expected)
        return Treatment.LIMIT, number, None

    def _answer(self, value: object, about: Feature | None) -> Then | None:
        path = ("then", "answer")
        if about is not None and not about.verbs:
            self.bad(path, f"{about.name} has no verb to answer", key=True, expected='then = "deny"')
        expected = 'a reply, e.g. "550 5.7.1 Not here"'
        if not isinstance(value, str):
            self.bad(path, f"{shown(value)} is not a string", expected=expected)
            return None
        try:
            reply = own(value)
        except ValueError as error:
            self.bad(path, str(error).partition(" (expected")[0], expected=expected)
            return None
        code = reply.full.code
        why_not = ""
        if code in _CLOSING:
            why_not = f"{code} says that the connection is closed, and it would not be"
        elif code // 100 == 3:
            why_not = f"{code} asks for more, and nobody would take it"
        elif code // 100 == 2 and about is not None:
            names = ", ".join(sorted(verb.decode() for verb in about.verbs if not _answerable(VERBS[verb])))
            why_not = f"{code} to {names} promises what only the server can do" if names else ""
        if why_not:
            self.bad(path, why_not, expected="a refusal, 4yz or 5yz")
        return Treatment.DENY, 0, reply


def _answerable(verb: Verb) -> bool:
    """Success may be told here without the server: the verb begins, takes and resets nothing."""
    return (
        verb.framing in (FramingClass.LINE, FramingClass.NOISE)
        and verb.argument not in (Argument.RCPT, Argument.URI)  # a recipient, content from elsewhere
        and not (verb.transaction or verb.holds or verb.name == "RSET")
    )


def _extensions_of(parameter: Feature) -> list[str]:
    key = parameter.name.encode()
    rows = [PARAMETERS[verb, key] for verb in (b"MAIL", b"RCPT") if (verb, key) in PARAMETERS]
    return sorted({extension for row in rows for extension in row.extensions})


def _near(value: object, words: Iterable[str]) -> list[str]:
    return nearest(value, words) if isinstance(value, str) else []


def _where(path: KeyPath, name: str) -> str:
    return f"rule {int(path[1]) + 1}" + (f" {shown(name)}" if name else "")
