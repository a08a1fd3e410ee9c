"""Rule files: TOML in, rules and problems out.

- Shipped files come first, then the sets the site chose (`set:NAME`, in rules/sets/), wherever they are named, then its
  own files, in the order given; a directory gives its `*.toml` files by name. Within a file, order is order.
- Of several rules about one extension the last one holds. Rules on subjects are tried the other way round: the site's
  first, then those of the sets, then the shipped ones, and the first that decides ends it.
- A rule of the same name in a later file takes the place of the earlier one as a whole, and stands where the later
  one stands. `mode = "off"` takes it out. A list of the same name takes the earlier one's place.
- All problems of all files are found in one go. If one of them is an error there are no rules at all: half a rule set
  is not what anybody wrote.
- What is valid but hardly meant is a warning; coherence.py and lint.py find it.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from smtpproxy.policy import coherence, extensions, lint, onsubjects
from smtpproxy.policy.entries import SET, SHIPPED, SITE, Entry, Listed, listed
from smtpproxy.policy.entrypoints import FOLDER
from smtpproxy.policy.expr import Compiler
from smtpproxy.policy.extensions import read_extension
from smtpproxy.policy.lists import List, list_of, read_lists
from smtpproxy.policy.membership import Kind
from smtpproxy.policy.onsubjects import read_rule
from smtpproxy.policy.rates import Counters
from smtpproxy.policy.rules import AnyRule, ExtensionRule, Rule, Source
from smtpproxy.policy.ruletables import RuleTable
from smtpproxy.policy.tables import either
from smtpproxy.policy.toml import Positions, Problem, TomlError, nearest, parse, shown

_KEYS = ("rule", "lists")
_KINDS = frozenset(kind.value for kind in Kind)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the files gave: the rules in the order they are asked, or the errors; the warnings in both cases.

    Attributes:
        lists: by name.
        digest: of what all files say, comments and layout left out: 16 hexadecimal digits. The same rules have the
            same one on any machine.
        listed: every rule of every file, those too that are off or replaced.
    """

    rules: tuple[AnyRule, ...]
    problems: tuple[Problem, ...]
    lists: Mapping[str, List]
    digest: str = ""
    listed: tuple[Listed, ...] = ()

    @property
    def ok(self) -> bool:
        """There is no error among the problems."""
        return all(problem.severity != "error" for problem in self.problems)


@dataclass(frozen=True, slots=True, eq=False)
class _File:
    path: Path
    origin: str
    data: dict[str, Any]
    positions: Positions
    problems: list[Problem] = field(default_factory=list)


def shipped_rules() -> Path:
    """The directory of the rule files that come with smtpproxy: in the package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "rules"
    return inside if inside.is_dir() else package.parent / "rules"


def load_rules(
    paths: Sequence[Path],
    *,
    block: Sequence[Path] = (),
    shipped: bool = True,
    counters: Counters | None = None,
) -> Loaded:
    """The rules of the files, directories and sets `paths`, on top of the shipped ones.

    Args:
        paths: what the site chose, in order.
        block: what it chose beside them for some sessions; in doubt it is that which holds.
        shipped: whether the shipped rules stand below it.
        counters: what the conditions count in.
    """
    problems: list[Problem] = []
    files = list(_parsed(_chosen([*paths, *block], shipped, problems), problems))
    lists: dict[str, List] = {}
    for file in files:
        lists |= _lists(file)
    compiler = Compiler(lists, counters if counters is not None else Counters(), _limits(files))
    entries = [entry for file in files for entry in _read(file, compiler)]
    for file in files:
        problems += sorted(file.problems, key=lambda problem: (problem.line, problem.column))
    if problems:
        return Loaded((), tuple(problems), {})
    last = {entry.name: entry for entry in entries}
    first = frozenset(map(str, _chosen(block, False, [])))
    held = _order([entry for entry in entries if entry.rule is not None and last[entry.name] is entry], first)
    rules = tuple(entry.rule for entry in held if entry.rule is not None)
    places = {name: file.positions for file in files if file.origin == SITE for name in file.data.get("lists", ())}
    functions = any(isinstance(rule, Rule) and rule.python is not None for rule in rules)
    found = lint.look(held, lists, places, functions)
    warnings = (*coherence.warnings(entries), *found.problems)
    return Loaded(rules, warnings, lists, _digest(files, lists, rules), listed(entries, rules, found.shadowed))


def _order(held: Sequence[Entry], first: frozenset[str]) -> list[Entry]:
    """Rules about extensions as they stand; those on subjects the block's first, then the site's, then shipped ones."""
    nearer = {SITE: 0, SHIPPED: 2}
    about = [entry for entry in held if isinstance(entry.rule, ExtensionRule)]
    others = [entry for entry in held if not isinstance(entry.rule, ExtensionRule)]

    def distance(entry: Entry) -> int:
        return -1 if entry.positions.file in first else nearer.get(entry.origin, 1)

    return about + sorted(others, key=distance)  # stable


# ---------------------------------------------------------------------------------------------------------- the files


def set_names() -> list[str]:
    """The sets of rules that come with smtpproxy and hold only where they are named."""
    return sorted(file.stem for file in (shipped_rules() / "sets").glob("*.toml"))


def _chosen(paths: Sequence[Path], shipped: bool, problems: list[Problem]) -> dict[Path, str]:
    """Every file once, with where it comes from, in the order they are read."""
    found = dict.fromkeys(_files([shipped_rules()], problems), SHIPPED) if shipped else {}
    for name in (str(path) for path in paths if str(path).startswith(SET)):
        bare = name.removeprefix(SET)
        if bare in set_names():
            found.setdefault(shipped_rules() / "sets" / f"{bare}.toml", name)
        else:
            near = [f"{SET}{one}" for one in nearest(bare, set_names())]
            expected = "" if near else either([f"{SET}{one}" for one in set_names()] or [f"{SET}NAME"])
            problems.append(Problem(name, 0, 0, "", "there is no such set of rules", expected, tuple(near)))
    for file in _files([path for path in paths if not str(path).startswith(SET)], problems):
        found.setdefault(file, SITE)
    return found


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


def _parsed(files: Mapping[Path, str], problems: list[Problem]) -> Iterator[_File]:
    for path, origin in files.items():
        try:
            yield _File(path, origin, *parse(path))
        except TomlError as error:
            problems.append(error.problem)


def _limits(files: Iterable[_File]) -> set[str]:
    """The names of the rules that have a limit, whether they are in force or not: a set may ask for a limit of its own
    that the site has switched off."""
    found: set[str] = set()
    for file in files:
        for table in _tables(file):
            then = table.get("then") if isinstance(table, dict) else None
            if any(isinstance(one, dict) and "limit" in one for one in (then if isinstance(then, list) else [then])):
                found.add(str(table.get("name", "")))
    return found


def _tables(file: _File) -> list[Any]:
    tables = file.data.get("rule", [])
    return tables if isinstance(tables, list) else []


def _digest(files: Iterable[_File], lists: Mapping[str, List], rules: Iterable[AnyRule]) -> str:
    """Of what was read, whatever the files are called."""
    made = sha256()
    for file in files:
        made.update(json.dumps([file.origin, file.data], sort_keys=True, default=str).encode() + b"\n")
    for name in sorted(lists):
        made.update(f"\0{name}\0".encode())
        made.update("\n".join(sorted(map(str, lists[name].entries))).encode("utf-8", "surrogatepass"))
    for rule in rules:
        if isinstance(rule, Rule) and rule.python is not None:
            module = rule.python.name.partition(":")[0].replace(".", "/")
            code = Path(rule.source.file).parent / FOLDER / f"{module}.py"
            made.update(code.read_bytes() if code.is_file() else b"")  # what is installed has its version
    return made.hexdigest()[:16]


# ------------------------------------------------------------------------------------------------------- one file


def _lists(file: _File) -> dict[str, List]:
    """The lists of one file. One that is wrong is known all the same, so that this is said once, and not again at each
    rule that names it."""
    tables = file.data.get("lists")
    if tables is None:
        return {}
    found = read_lists(tables, file.positions, file.problems)
    for name, table in tables.items() if isinstance(tables, dict) else ():
        kind = table.get("kind") if isinstance(table, dict) else None
        if name not in found:
            found[name] = list_of(name, kind if kind in _KINDS else "words", ())
    return found


def _read(file: _File, compiler: Compiler) -> list[Entry]:
    """The rules of one file that are right in themselves."""
    positions, found = file.positions, file.problems
    for key in file.data.keys() - set(_KEYS):
        near = nearest(key, _KEYS)
        found.append(
            positions.problem(
                (key,),
                f"unknown key {shown(key)}",
                where="",
                key=True,
                expected="[[rule]] or [lists.NAME]",
                nearest=near,
            )
        )
    if not isinstance(file.data.get("rule", []), list):
        found.append(positions.problem(("rule",), "rules are a list", where="", expected="[[rule]]"))
    entries: list[Entry] = []
    names: dict[str, int] = {}
    for index, values in enumerate(_tables(file)):
        path = ("rule", index)
        if not isinstance(values, dict):
            found.append(positions.problem(path, f"{shown(values)} is not a rule", where="", expected="[[rule]]"))
            continue
        name = values.get("name")
        where = f"rule {index + 1}" + (f" {shown(name)}" if isinstance(name, str) and name else "")
        table = RuleTable(positions, path, values, found, where)
        entry = _entry(table, file, compiler)
        if table.name and table.name in names:
            line = positions.value(("rule", names[table.name])).line
            table.bad(
                ("name",),
                f"{shown(table.name)} is the name of the rule in line {line} already",
                expected="a name of its own",
            )
        names.setdefault(table.name, index)
        entries += [entry] if entry else []
    return entries


def _entry(table: RuleTable, file: _File, compiler: Compiler) -> Entry | None:
    """The rule, or None if anything about it is wrong."""
    before = len(table.problems)
    source = Source(table.positions.file, table.positions.value(table.path).line)
    rule: AnyRule | None
    if "on" in table.values and "extension" in table.values:
        table.bad(("extension",), "a rule is on subjects or about an extension", key=True, expected="on or extension")
        rule = None
    elif "on" in table.values:
        rule = read_rule(table, compiler, source, file.origin != SITE)
    elif "extension" in table.values:
        rule = read_extension(table, compiler, source)
    else:
        rule = None
        _read_bare(table)
    if len(table.problems) > before:
        return None
    mode = str(table.values.get("mode", "enforce"))
    why = str(table.values.get("why", ""))
    bare = not table.values.keys() & {"on", "extension"}
    return Entry(table.name, rule, file.origin, table.positions, table.path, table.where, why, mode, bare)


def _read_bare(table: RuleTable) -> None:
    """A rule that is off and says no more than its name; else one that does not say what it is about."""
    table.unknown_keys((), table.values, tuple(dict.fromkeys((*onsubjects.KEYS, *extensions.KEYS))))
    table.read_name()
    table.read_why()
    table.read_mode()
    table.read_tags()
    if not table.off:
        table.bad((), "on is missing", expected='on = "RCPT" or another subject, or extension = "XEXCH50"')
