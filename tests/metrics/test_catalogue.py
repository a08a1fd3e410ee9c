"""Names by the conventions, and a page that says the same."""

import re
from pathlib import Path

import pytest

from smtpproxy.metrics.catalogue import FAMILIES, PREFIX, Family, Kind

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
UNITS = ("_seconds", "_bytes", "_records", "_info", "_workers", "_full", "_failing", "_open")


@pytest.mark.parametrize("family", FAMILIES, ids=[family.name for family in FAMILIES])
def test_names(family: Family) -> None:
    """prometheus.io/docs/practices/naming: base units, `_total` for what only grows."""
    assert re.fullmatch(r"[a-z][a-z_]*", family.name)
    assert (family.kind is Kind.COUNTER) == family.name.endswith("_total")
    assert family.kind is Kind.COUNTER or family.name.endswith(UNITS) or family.name == "workers"
    assert all(re.fullmatch(r"[a-z]+", label) for label in family.labels)
    assert all(len(values) == len(family.labels) for values in family.zeros)
    assert list(family.bounds) == sorted(set(family.bounds))
    assert bool(family.bounds) == (family.kind is Kind.HISTOGRAM)
    assert family.means.endswith((".", "0: never."))


def test_each_once() -> None:
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)


def test_the_page_has_them_all() -> None:
    told = re.findall(r"^\| `([a-z_]+)` \| (\w+) \| (.*?) \| (.*) \|$", PAGE, re.MULTILINE)
    expected = [
        (PREFIX + family.name, family.kind.value, ", ".join(f"`{label}`" for label in family.labels), family.means)
        for family in FAMILIES
    ]
    assert told == expected
