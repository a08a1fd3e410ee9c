"""`explain field`, `subject`, `act`, `function`: each name is told from the table it stands in."""

import json

import pytest

from smtpproxy.explain import UnknownName
from smtpproxy.explain_cli import KINDS as SAID
from smtpproxy.explain_rules import KINDS, explain, explain_json, names
from smtpproxy.policy.fields import FIELDS
from smtpproxy.policy.functions import FUNCTIONS
from smtpproxy.policy.subjects import SUBJECTS, TABLE, Act

ALL = [(kind, name) for kind in KINDS for name, _ in names(kind)]


def part(kind: str, name: str) -> dict[str, object]:
    parts = explain_json(kind, name)["parts"]
    assert isinstance(parts, list)
    assert len(parts) == 1
    found: dict[str, object] = parts[0]
    return found


def test_every_name_is_listed() -> None:
    assert tuple(KINDS) == SAID
    assert [name for name, _ in names("field")] == list(FIELDS)
    assert [name for name, _ in names("function")] == list(FUNCTIONS)
    assert [name for name, _ in names("subject")] == list(SUBJECTS)
    assert [name for name, _ in names("act")] == [act.value for act in Act]
    assert all(what for kind in KINDS for _, what in names(kind))


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_every_name_is_explained(kind: str, name: str) -> None:
    text = explain(kind, name)
    assert text.startswith(f"{name} ({kind})\n")
    assert explain(kind, name.upper()) == text
    assert max(map(len, text.splitlines())) <= 100
    told = explain_json(kind, name)
    assert told["name"] == name
    assert json.loads(json.dumps(told)) == told
    assert part(kind, name)["what"]


def test_a_field_in_full() -> None:
    assert part("field", "rcpt.domain") == {
        "kind": "field",
        "what": FIELDS["rcpt.domain"].sentence,
        "type": "string",
        "known_at": "RCPT and RCPT reply",
        "example": FIELDS["rcpt.domain"].example,
    }
    assert part("field", "header")["entry"] == 'header["Name"]'


def test_a_subject_has_its_acts_and_its_fields() -> None:
    told = part("subject", "rcpt reply")
    assert told["written"] == 'on = "RCPT reply"'
    assert told["acts"] == {act.value: words for act, words in TABLE[SUBJECTS["RCPT reply"].group].items()}
    assert isinstance(told["fields"], list)
    assert {"rcpt.domain", "reply.code"} <= set(told["fields"])
    assert told.get("about") is None
    assert "EMAL" in str(part("subject", "MAIL")["about"])


def test_an_act_says_how_it_is_written_and_where() -> None:
    assert str(part("act", "answer")["written"]).startswith('{ answer = "550 5.7.1 Not here" }')
    assert part("act", "pass")["written"] == 'then = "pass"'
    assert part("act", "answer")["decides"] is True
    assert part("act", "tag")["decides"] is False
    assert part("act", "limit")["decides"] is False
    assert list(part("act", "redirect")["what"]) == ["connect"]  # type: ignore[call-overload]


def test_a_function_says_whose_it_is() -> None:
    assert part("function", "rate")["of"] == "smtpproxy"
    assert part("function", "exists")["of"] == "CEL"
    assert part("function", "in_list")["called"] == 'in_list("name", value)'


@pytest.mark.parametrize(
    ("kind", "wrong", "right"),
    [
        ("field", "rcpt.domian", "rcpt.domain"),
        ("subject", "RCPT replies", "RCPT reply"),
        ("act", "tarpitt", "tarpit"),
        ("function", "inlist", "in_list"),
    ],
)
def test_an_unknown_name_brings_the_names_most_like_it(kind: str, wrong: str, right: str) -> None:
    with pytest.raises(UnknownName) as caught:
        explain(kind, wrong)
    assert caught.value.nearest[0] == right
    assert f"not {'an' if kind == 'act' else 'a'} {kind} that smtpproxy knows" in str(caught.value)
