"""Rules tested by playbooks: what each case came to, which rules no case shows, and both as JUnit's XML.

A rule is tested when a case's steps show it at work: it decided, acted beside the deciding one, or said in mode
"observe" what it would have done. A rule that lets an extension or a verb through, of which the record says nothing, is
tested when a case's steps have something go through by it.
"""

import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple
from xml.etree import ElementTree

from smtpproxy.policy.judge import Judge
from smtpproxy.policy.load import Loaded, shipped_rules
from smtpproxy.policy.rates import Counters
from smtpproxy.policy.rules import AnyRule, ExtensionRule, Treatment
from smtpproxy.policy.toml import Problem
from smtpproxy.proving.playbook import SUFFIX, Case, PlaybookError, read_playbook
from smtpproxy.proving.staging import Fired, Performer
from smtpproxy.proving.transcript import MismatchError
from smtpproxy.session.session import Session

SET: Final = "set:"
_NO_XML: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Given(NamedTuple):
    """What a command line names: files of rules and playbooks."""

    rules: tuple[Path, ...]
    playbooks: tuple[Path, ...]


class Result(NamedTuple):
    """What a case came to: `wrong` is "" if all came as it should. `seconds`: it took."""

    case: Case
    wrong: str
    seconds: float
    fired: Fired


class Covered(NamedTuple):
    """A rule, and the cases that show it: each with how it showed itself. None of them: it has no test."""

    rule: AnyRule
    cases: tuple[tuple[Case, tuple[str, ...]], ...]


def gather(paths: Iterable[str]) -> Given:
    """Rule files and playbooks by the names of either, or of directories: a playbook belongs to the rules beside it."""
    rules: list[Path] = []
    playbooks: list[Path] = []
    for name in paths:
        path = Path(name)
        if name.startswith(SET):
            rules.append(path)
            playbooks += _there(shipped_rules() / "sets" / f"{name.removeprefix(SET)}{SUFFIX}")
        elif path.is_dir():
            rules += _visible(path, ".toml")
            playbooks += _visible(path, SUFFIX)
        elif path.suffix == SUFFIX:
            rules += _there(path.with_suffix(".toml"))
            playbooks.append(path)
        else:
            rules.append(path)  # whether it is there is seen when it is loaded
            playbooks += _there(path.with_suffix(SUFFIX))
    return Given(tuple(dict.fromkeys(rules)), tuple(dict.fromkeys(playbooks)))


def _there(path: Path) -> list[Path]:
    return [path] if path.is_file() else []


def _visible(folder: Path, suffix: str) -> list[Path]:
    return sorted(file for file in folder.glob(f"*{suffix}") if not file.name.startswith("."))


def cases_of(playbooks: Iterable[Path]) -> tuple[tuple[Case, ...], tuple[Problem, ...]]:
    """The cases of all playbooks, and everything that is wrong with any."""
    cases: list[Case] = []
    problems: list[Problem] = []
    for path in playbooks:
        try:
            cases += read_playbook(path)
        except PlaybookError as error:
            problems += error.problems
    return tuple(cases), tuple(problems)


def run(cases: Iterable[Case], rules: Sequence[AnyRule], counters: Counters) -> Iterator[Result]:
    """Play the cases by these rules, loaded with these counters."""
    judge = Judge(rules, counters=counters)
    through = {rule.name for rule in rules if isinstance(rule, ExtensionRule) and rule.treatment is not Treatment.DENY}

    def lets(name: bytes, session: Session) -> str:
        owner = judge.owner(name, session)
        return owner if owner in through else ""

    performer = Performer(judge, lets)
    for case in cases:
        begun = time.perf_counter()
        wrong, fired = "", Fired()
        try:
            fired = performer.play(case)
        except MismatchError as error:
            wrong = str(error)
        yield Result(case, wrong, time.perf_counter() - begun, fired)


def rules_from(loaded: Loaded, paths: Iterable[Path]) -> tuple[AnyRule, ...]:
    """Those of the rules that come from these files, directories or sets."""
    files: set[Path] = set()
    for path in paths:
        if str(path).startswith(SET):
            files.add((shipped_rules() / "sets" / f"{str(path).removeprefix(SET)}.toml").resolve())
        elif path.is_dir():
            files |= {file.resolve() for file in path.glob("*.toml")}
        else:
            files.add(path.resolve())
    return tuple(rule for rule in loaded.rules if Path(rule.source.file).resolve() in files)


def coverage(rules: Iterable[AnyRule], results: Iterable[Result]) -> tuple[Covered, ...]:
    """Which cases that passed show which rule."""
    shows: dict[str, list[tuple[Case, tuple[str, ...]]]] = {}
    for result in results:
        for name, how in result.fired.items():
            shows.setdefault(name, []).append((result.case, tuple(sorted(how))))
    return tuple(Covered(rule, tuple(shows.get(rule.name, ()))) for rule in rules)


def junit(results: Sequence[Result], untested: Sequence[AnyRule] = ()) -> bytes:
    """JUnit's XML: a testsuite a playbook; rules without a test, where they are failures, are a testsuite too."""
    root = ElementTree.Element("testsuites", name="smtpproxy rules")
    suites: dict[str, list[Result]] = {}
    for result in results:
        suites.setdefault(result.case.file, []).append(result)
    for file, ones in suites.items():
        suite = _suite(root, file, len(ones), sum(bool(one.wrong) for one in ones), sum(one.seconds for one in ones))
        for one in ones:
            facts = {"file": file, "line": str(one.case.line), "time": f"{one.seconds:.3f}"}
            case = _element(suite, "testcase", {"classname": Path(file).stem, "name": one.case.name, **facts})
            if one.wrong:
                _failure(case, one.wrong)
    if untested:
        suite = _suite(root, "rules without a test", len(untested), len(untested), 0.0)
        for rule in untested:
            place = {"file": rule.source.file, "line": str(rule.source.line), "time": "0.000"}
            case = _element(suite, "testcase", {"classname": "rules", "name": rule.name, **place})
            _failure(case, f"{rule.source}: no case of a playbook shows rule {rule.name}")
    root.set("tests", str(len(results) + len(untested)))
    root.set("failures", str(sum(bool(one.wrong) for one in results) + len(untested)))
    root.set("time", f"{sum(one.seconds for one in results):.3f}")
    ElementTree.indent(root)
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def _suite(root: ElementTree.Element, name: str, tests: int, failures: int, seconds: float) -> ElementTree.Element:
    numbers = {"tests": str(tests), "failures": str(failures), "errors": "0", "skipped": "0"}
    return _element(root, "testsuite", {"name": name, **numbers, "time": f"{seconds:.3f}"})


def _failure(case: ElementTree.Element, text: str) -> None:
    failure = _element(case, "failure", {"message": text.partition("\n")[0], "type": "MismatchError"})
    failure.text = _NO_XML.sub("?", text)


def _element(parent: ElementTree.Element, tag: str, attributes: Mapping[str, str]) -> ElementTree.Element:
    return ElementTree.SubElement(parent, tag, {key: _NO_XML.sub("?", value) for key, value in attributes.items()})
