"""The catalogue of anomalies: every name the code uses is in it, and every name in it is used.

The code is read by ast. A name is used where its string stands outside the catalogue; that it is a name at all is seen
from its place: an argument, keyword or tuple that carries anomalies.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import smtpproxy
from smtpproxy.smtp import leniencies
from smtpproxy.smtp.anomalies import ANOMALIES, CLOSES, NOTED

ROOT = Path(smtpproxy.__file__).parent
CATALOGUE = ROOT / "smtp" / "anomalies.py"
NAME = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")

# Functions whose arguments name an anomaly, and the place of that argument.
CARRIERS = {
    "ProtocolError": 1,
    "_violation": 0,
    "client_violated": 0,
    "refuse": 1,
    "tell_unasked": 2,
    "lose_server": 2,
    "_count_malformed": 1,
    "_answer_malformed": 3,
}


def trees() -> Iterator[tuple[str, ast.Module]]:
    """Every module of the floors, but the catalogue. (The demo and the command line only read records.)"""
    for path in sorted(ROOT.glob("*/*.py")):
        if path != CATALOGUE and path.parent.name in ("smtp", "session", "policy", "audit", "net", "tls"):
            yield str(path.relative_to(ROOT)), ast.parse(path.read_text())


def strings(node: ast.AST) -> Iterator[str]:
    """Every string constant at or below a node."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Constant) and isinstance(inner.value, str):
            yield inner.value


def used() -> set[str]:
    """Names of the catalogue that stand anywhere in the code."""
    return {text for _, tree in trees() for text in strings(tree) if text in ANOMALIES}


def named() -> Iterator[tuple[str, str]]:
    """(where, name) of each string that stands where an anomaly is named."""
    for where, tree in trees():
        for node in ast.walk(tree):
            subjects: list[ast.AST] = []
            if isinstance(node, ast.Call):
                called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                place = CARRIERS.get(called.lstrip("_"), CARRIERS.get(called))
                if place is not None and len(node.args) > place:
                    argument = node.args[place]
                    if isinstance(argument, ast.Constant):
                        subjects.append(argument)
                subjects += [keyword.value for keyword in node.keywords if keyword.arg in ("anomaly", "anomalies")]
            elif isinstance(node, ast.AugAssign | ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = {t.attr if isinstance(t, ast.Attribute) else getattr(t, "id", "") for t in targets}
                if names & {"anomalies", "odd", "anomaly"} and node.value is not None:
                    subjects.append(node.value)
            for subject in subjects:
                line = getattr(node, "lineno", 0)
                yield from ((f"{where}:{line}", text) for text in strings(subject) if NAME.fullmatch(text))


def test_every_name_used_is_in_the_catalogue() -> None:
    """Zeek's and Suricata's rule: every anomaly has a stable name that a reader of records can look up."""
    assert {(where, name) for where, name in named() if name not in ANOMALIES} == set()
    assert {name for _, name in named()}, "the search itself finds something"


def test_every_leniency_is_in_the_catalogue() -> None:
    """The names of leniencies.py stand in records as anomalies."""
    assert sorted(leniencies.NAMES - set(ANOMALIES)) == []


def test_every_name_in_the_catalogue_is_used() -> None:
    """What no code can record is not promised."""
    assert sorted(set(ANOMALIES) - used()) == []


@pytest.mark.parametrize("name", ANOMALIES)
def test_a_name_and_its_sentence(name: str) -> None:
    """Names are words with hyphens; sentences begin with a capital and end with a period."""
    assert NAME.fullmatch(name)
    sentence = ANOMALIES[name]
    assert sentence.endswith(".")
    assert not sentence.endswith("..")
    assert sentence[0].isupper()
    assert sentence.isprintable()


def test_a_name_stands_once() -> None:
    """What closes a session is not also merely noted; and no key is written twice."""
    assert not set(CLOSES) & set(NOTED)
    keys = [
        key.value
        for node in ast.walk(ast.parse(CATALOGUE.read_text()))
        if isinstance(node, ast.Dict)
        for key in node.keys
        if isinstance(key, ast.Constant)
    ]
    assert len(keys) == len(set(keys)) == len(ANOMALIES)
