"""Mails one after the other, and what formats make of them: by the published schemas."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from smtpproxy.audit.entries import entry_of
from smtpproxy.inquiry import ecs, exporting, ocsf
from smtpproxy.inquiry.exporting import Mail, mails, records
from smtpproxy.inquiry.searching import Search
from smtpproxy.store.reading import Reader, open_reader
from smtpproxy.store.store import Store
from tests.inquiry.mails import asked, varied
from tests.inquiry.published import flat, wrong_as_ecs, wrong_as_ocsf
from tests.store.filling import Writer


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    directory = tmp_path_factory.mktemp("export") / "store"
    varied(directory).close()
    found = open_reader(str(directory))
    yield found
    found.close()


def of(tmp_path: Path, *lines: bytes) -> list[Mail]:
    """What a store with these lines has."""
    store = Store(tmp_path, create=True)
    store.append(list(lines))
    store.close()
    opened = open_reader(str(tmp_path))
    found = list(mails(opened, asked()))
    opened.close()
    return found


# ------------------------------------------------------------------------------------------------ which, in what order


@pytest.mark.parametrize("stretch", [1, 7, 100, 20_000])
def test_all_of_them_in_order(reader: Reader, monkeypatch: pytest.MonkeyPatch, stretch: int) -> None:
    monkeypatch.setattr(exporting, "STRETCH", stretch)
    found = [mail.found for mail in mails(reader, asked())]
    assert [one.id for one in found] == sorted(one.id for one in found)
    assert sorted(found) == sorted(Search(reader, asked()).newest())
    assert len(found) > 150


@pytest.mark.parametrize("words", [{"rule": "no-macros"}, {"recipient": "*@host1.example"}, {"anomaly": "odd-hello"}])
def test_those_that_pass(reader: Reader, words: dict[str, str]) -> None:
    found = {mail.found.id for mail in mails(reader, asked(**words))}
    assert found == {one.id for one in Search(reader, asked(**words)).newest()}
    assert found


def test_marks(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the index, each with its mail, whatever the stretch."""
    expected: dict[int, set[tuple[str, str]]] = {}
    for mail, what, name in reader.rows("SELECT mail, what, name FROM mark WHERE mail > 0"):
        if what in ("rule", "observed", "anomaly", "tag"):
            expected.setdefault(mail, set()).add((what, name))
    for stretch in (50, 20_000):
        monkeypatch.setattr(exporting, "STRETCH", stretch)
        found = {
            mail.found.id: {(what, name) for what, names in mail.marks.items() for name in names}
            for mail in mails(reader, asked())
            if mail.marks
        }
        assert found == expected
    assert len(expected) > 10


def test_the_records_themselves(reader: Reader) -> None:
    assert list(records(reader, asked())) == [line for _, line in reader.lines()]


def test_the_records_of_a_time(reader: Reader) -> None:
    since, until = "2026-11-16T10:00:00.500Z", "2026-11-16T10:00:01Z"
    found = list(records(reader, asked(since, until)))
    expected = [line for _, line in reader.lines() if since[:-1] <= json.loads(line)["at"] < until[:-1]]
    assert found == expected
    assert 100 < len(found) < 1000


def test_the_records_of_sessions(reader: Reader) -> None:
    """All of each session that has such a mail, once."""
    found = [json.loads(line) for line in records(reader, asked(rule="no-macros"))]
    names = {one.session for one in Search(reader, asked(rule="no-macros")).newest()}
    assert {record["session"] for record in found} == names
    everything = [json.loads(line) for _, line in reader.lines()]
    assert len(found) == sum(record["session"] in names for record in everything)


# ------------------------------------------------------------------------------------------------------ by the schemas


def test_every_mail_is_as_the_schemas_want_it(reader: Reader) -> None:
    kinds = set()
    for mail in mails(reader, asked()):
        assert wrong_as_ecs(ecs.document(mail)) == []
        event = ocsf.event(mail)
        kinds.add((mail.found.outcome, event is None))
        assert event is None or wrong_as_ocsf(event) == []
    assert {("accepted", False), ("refused", False), ("none", True)} <= kinds


def awkward() -> dict[str, list[bytes]]:
    """Sessions that are not like most."""
    writer = Writer()

    def session(**more: Any) -> list[bytes]:
        return list(writer.session(**more))

    name = writer.new_session()
    cut = [writer.line(name, "link-connect", {"listener": "in", "server": "mx"}, {"client": "[::1]:5"})]
    cut += [
        writer.exchange(name, "MAIL", "MAIL FROM:<>", "550 No", code=550, tx=1, mail="", action="answer", sent=None)
    ]
    return {
        "a null reverse-path": session(sender=""),
        "one that was refused": session(sender="", outcome="refused"),
        "of a session that goes on": cut,
        "erased": [entry_of(line) for line in session(tls="TLSv1.3", identity="ann", message_id="<1@x>")],
        "IPv6": session(client="2001:db8::1", server="[2001:db8::25]:587"),
        "of a server by its name": session(server="mx.example:25"),
        "no mail": session(mails=0),
        "addresses as nobody has them": session(sender='"a b"@x.example', recipients=("postmaster", "~k1.abc@~k1.def")),
        "texts as nobody writes them": session(message_id="<\x00\x1b\u202e>", identity="\ud7ff" * 500),
    }


@pytest.mark.parametrize("which", awkward())
def test_awkward_ones(tmp_path: Path, which: str) -> None:
    (mail,) = of(tmp_path, *awkward()[which])
    assert wrong_as_ecs(ecs.document(mail)) == []
    event = ocsf.event(mail)
    assert (event is None) == (which == "no mail")
    assert event is None or wrong_as_ocsf(event) == []
    json.dumps([event, ecs.document(mail)])


def test_nobody_is_made_up(tmp_path: Path) -> None:
    (mail,) = of(tmp_path, *awkward()["erased"])
    assert mail.found.sender is None
    document = dict(flat(ecs.document(mail)))
    assert not any(field.startswith(("email.from", "email.to", "user", "related.user")) for field in document)
    event = ocsf.event(mail)
    assert event is not None
    assert event["email"]["from"] == ocsf.NOBODY
    assert "from" not in event


def test_the_check_itself_finds_something(reader: Reader) -> None:
    """What is checked by would be of no use otherwise."""
    mail = next(one for one in mails(reader, asked()) if exporting.is_mail(one))
    whole, event = ecs.document(mail), ocsf.event(mail)
    assert event is not None
    assert wrong_as_ecs({**whole, "@timestamp": "2026-11-24"})
    for broken in (
        {**whole, "sender": "x"},
        {**whole, "ecs": {}},
        {**whole, "tags": "x"},
        {**whole, "source": {"ip": "x"}},
    ):
        assert wrong_as_ecs(broken)
    assert wrong_as_ecs({**whole, "event": {**whole["event"], "category": ["mail"]}})
    for name in ("activity_id", "metadata", "email", "time", "type_uid", "direction_id"):
        assert wrong_as_ocsf({key: value for key, value in event.items() if key != name}), name
    for broken in (
        {**event, "mail": 1},
        {**event, "email": {"size": 3}},
        {**event, "severity_id": 7},
        {**event, "to": "x"},
    ):
        assert wrong_as_ocsf(broken)


# ------------------------------------------------------------------------------------------------------------- details


def test_what_stands_where(reader: Reader) -> None:
    """One mail, field by field, by hand."""
    (mail,) = (one for one in mails(reader, asked(message_id="one@example.org")))
    document = dict(flat(ecs.document(mail)))
    found = mail.found
    expected = {
        "event.outcome": "success",
        "event.type": ["info", "allowed"],
        "event.code": "250",
        "email.from.address": ["Ann@sub.Example.ORG"],
        "email.to.address": ["bob@example.org", "carl@deep.sub.example.org"],
        "email.message_id": "one@example.org",
        "source.ip": "2001:db8::7",
        "network.type": "ipv6",
        "destination.port": 25,
        "tls.version": "1.3",
        "user.name": "ann",
        "smtpproxy.octets": 3_000_000,
        "smtpproxy.session": found.session,
    }
    assert {key: document[key] for key in expected if key != "email.from.address"} == {
        key: value for key, value in expected.items() if key != "email.from.address"
    }
    assert document["email.from.address"][0].lower() == "ann@sub.example.org"
    event = ocsf.event(mail)
    assert event is not None
    assert event["time"] == round(found.at * 1000)
    assert event["email"]["message_uid"] == "one@example.org"
    assert event["dst_endpoint"] == {"ip": "198.51.100.25", "port": 25}
    assert event["metadata"]["sequence"] == found.id
    assert (event["status_id"], event["action_id"], event["disposition"]) == (1, 1, "Allowed")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mx.example:25", ("mx.example", 25)),
        ("mx.example", ("mx.example", None)),
        ("192.0.2.1:2525", ("192.0.2.1", 2525)),
        ("[2001:db8::1]:25", ("2001:db8::1", 25)),
        ("[2001:db8::1]", ("2001:db8::1", None)),
        ("2001:db8::1", ("2001:db8::1", None)),
        ("", ("", None)),
    ],
)
def test_hosts_and_ports(text: str, expected: tuple[str, int | None]) -> None:
    assert exporting.host_and_port(text) == expected
