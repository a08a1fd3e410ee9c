"""An export from PostgreSQL is that of the stores that were brought there: of one gateway, or of all of them."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner

from smtpproxy.audit_cli import audit
from smtpproxy.inquiry import ecs, exporting, ocsf
from smtpproxy.inquiry.exporting import mails, records
from smtpproxy.store.reading import Reader, open_reader
from tests.inquiry.mails import asked
from tests.inquiry.published import wrong_as_ecs, wrong_as_ocsf
from tests.store.pg_rig import Cluster
from tests.store.pg_stores import brought, stocked

NAMES = ("mx1.example.org", "mx2.example.org")
QUESTIONS = (
    asked(),
    asked("2026-11-16T10:00:00.300", "2026-11-16T10:00:01"),
    asked("2026-11-16T10:00:00.500"),
    asked(None, "2026-11-16T10:00:00.300"),
    asked("2026-11-17"),
    asked(rule="no-macros"),
    asked(tls="none", outcome="accepted"),
)


class Both(NamedTuple):
    """Stores in directories, and all of them in a database."""

    here: tuple[Path, ...]
    there: str


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    place = tmp_path_factory.mktemp("export")
    directories = tuple(place / name for name in NAMES)
    with Cluster() as cluster:
        where = cluster.database()
        for seed, (name, directory) in enumerate(zip(NAMES, directories, strict=True)):
            directory.mkdir()
            stocked(directory, 60, origin=name, seed=seed).close()
            brought(directory, where)
        yield Both(directories, where)


def one(both: Both, which: int) -> tuple[str, str]:
    """The two places where a gateway's store is."""
    return str(both.here[which]), f"{both.there}&gateway={NAMES[which]}"


def made(reader: Reader, which: int) -> list[Any]:
    """What the formats make of all mails, but for what the database numbers in its own way."""
    return [(ecs.document(mail), ocsf.event(mail)) for mail in mails(reader, QUESTIONS[which])]


@pytest.mark.parametrize("which", range(len(QUESTIONS)))
@pytest.mark.parametrize("gateway", [0, 1])
def test_of_one_gateway(both: Both, which: int, gateway: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "PAGE", 7)
    monkeypatch.setattr(exporting, "STRETCH", 50)
    here, there = one(both, gateway)
    with contextlib.closing(open_reader(here)) as first, contextlib.closing(open_reader(there)) as second:
        assert made(second, which) == made(first, which)
        assert list(records(second, QUESTIONS[which])) == list(records(first, QUESTIONS[which]))


def test_of_all_gateways(both: Both) -> None:
    """Each mail once, by what its own gateway is called."""
    numbers = []
    for directory in both.here:
        with contextlib.closing(open_reader(str(directory))) as reader:
            numbers += [exporting.unique(mail) for mail in mails(reader, asked())]
    with contextlib.closing(open_reader(both.there)) as reader:
        found = list(mails(reader, asked()))
    assert sorted(exporting.unique(mail) for mail in found) == sorted(numbers)
    assert [wrong for mail in found for wrong in wrong_as_ecs(ecs.document(mail))] == []
    assert [wrong for mail in found for wrong in wrong_as_ocsf(ocsf.event(mail))] == []
    assert {ecs.document(mail)["observer"]["name"] for mail in found} == set(NAMES)


def test_records_of_all_gateways_need_a_filter(both: Both) -> None:
    """By sessions they can be had, whichever gateway's; all in a row they are a gateway's."""
    with contextlib.closing(open_reader(both.there)) as reader:
        rules = [json.loads(line) for line in records(reader, asked(rule="no-macros"))]
    alone = 0
    for directory in both.here:
        with contextlib.closing(open_reader(str(directory))) as reader:
            alone += len(list(records(reader, asked(rule="no-macros"))))
    assert len(rules) == alone > 0
    failed = CliRunner().invoke(audit, ["export", "--store", both.there])
    assert failed.exit_code == 3
    assert "?gateway=NAME" in failed.stderr
