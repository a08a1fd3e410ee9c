"""`explain`: every name is told in full, in text and JSON alike; an unknown one brings the names most like it."""

import json

import pytest

from smtpproxy.explain import PSEUDO_VERBS, UnknownName, explain, explain_json, names
from smtpproxy.smtp.registry.extensions import EXTENSIONS
from smtpproxy.smtp.registry.parameters import PARAMETERS
from smtpproxy.smtp.registry.replycodes import REPLY_CODES
from smtpproxy.smtp.registry.verbs import VERBS

ALL = [name for name, _ in names()]


def parts_of(name: str) -> dict[str, dict[str, object]]:
    parts = explain_json(name)["parts"]
    assert isinstance(parts, list)
    return {part["kind"]: part for part in parts}


def one_line(text: str) -> str:
    return " ".join(text.split())


def test_every_name_of_every_registry_is_listed() -> None:
    expected = {name.decode() for name in (*VERBS, *EXTENSIONS, *(keyword for _, keyword in PARAMETERS))}
    expected |= {f"{code:03d}" for code in REPLY_CODES} | set(PSEUDO_VERBS)
    assert set(ALL) == expected
    assert len(ALL) == len(expected)
    assert dict(names())["AUTH"] == "verb, keyword, MAIL parameter"
    assert dict(names())["050"] == "reply code"
    assert dict(names())["SASL"] == "pseudo-verb"


@pytest.mark.parametrize("name", ALL)
def test_every_name_is_explained(name: str) -> None:
    text = explain(name)
    assert text.startswith(f"{name} (")
    assert text.endswith("\n")
    assert explain(name.lower()) == text
    assert max(map(len, text.splitlines())) <= 100
    assert all(part["what"] and part["reference"] for part in parts_of(name).values())


@pytest.mark.parametrize("name", ALL)
def test_json_has_the_same_facts(name: str) -> None:
    told = explain_json(name)
    assert told["name"] == name
    assert json.loads(json.dumps(told)) == told
    text = explain(name)
    blocks = text.rstrip("\n").split("\n\n")
    parts = parts_of(name)
    assert len(blocks) == len(parts)
    for block, (kind, part) in zip(blocks, parts.items(), strict=True):
        head, *lines = block.splitlines()
        assert head == f"{name} ({kind})"
        labels = [line[2:18].strip().lower().replace(" ", "_") for line in lines if line[2] != " "]
        assert labels == [label for label in part if label != "kind"]
        for fact in part.values():
            if isinstance(fact, str):
                assert one_line(fact) in one_line(block)
            elif isinstance(fact, bool):
                assert ("yes: " if fact else "no: ") in block
            elif isinstance(fact, list):
                assert ", ".join(fact) in one_line(block)
            elif isinstance(fact, dict):
                assert all(one_line(f"{key} -> {value}") in one_line(block) for key, value in fact.items())
            else:
                assert f"{fact}: " in block


def test_a_name_that_is_several_things_tells_each() -> None:
    assert list(parts_of("auth")) == ["verb", "keyword", "MAIL parameter"]
    assert list(parts_of("Alt-Address")) == ["MAIL parameter", "RCPT parameter"]
    assert list(parts_of("xshadow")) == ["verb", "keyword", "MAIL parameter"]


def test_a_verb_is_told_in_full() -> None:
    verb = parts_of("x-exch50")["verb"]
    assert verb["framing_class"] == "go-octets"
    assert verb["holds"] is True
    assert verb["pipelining"] == "stop"
    assert verb["default"] == "deny"
    assert verb["belongs_to"] == ["XEXCH50"]
    assert verb["refused_with"] == "502 5.5.1 Command not implemented"
    assert verb["reply_leads_to"] == {
        "354": "exactly as many octets as announced, after the server's go-ahead",
        "any other": "command lines",
    }


def test_replies_that_are_violations_are_told() -> None:
    assert "any 3yz" in str(parts_of("NOOP")["verb"]["reply_leads_to"])
    assert "any 2yz" in str(parts_of("DATA")["verb"]["reply_leads_to"])
    assert parts_of("BDAT")["verb"]["reply_leads_to"] == {"any": "command lines behind the chunk, whatever the reply"}


def test_what_is_never_recorded_is_told() -> None:
    assert parts_of("AUTH")["verb"]["recorded"] is False
    assert parts_of("AUTH")["MAIL parameter"]["recorded"] is False
    assert parts_of("BURL")["verb"]["recorded"] is False
    assert "recorded" not in parts_of("MAIL")["verb"]


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("MAIL FROM:", "MAIL"),
        ("mail from:<a@b.example> SIZE=1", "MAIL"),
        ("RCPT TO:", "RCPT"),
        ("AUTH=LOGIN", "AUTH"),
        (" size=1000 ", "SIZE"),
        ("250 OK", "250"),
    ],
)
def test_a_name_may_be_written_as_it_stands_in_a_line(written: str, name: str) -> None:
    assert explain_json(written)["name"] == name


@pytest.mark.parametrize(
    ("code", "word"), [("299", "success"), ("399", "more to come"), ("499", "for now"), ("599", "for good")]
)
def test_a_reply_code_outside_the_table_is_told_by_its_first_digit(code: str, word: str) -> None:
    assert int(code) not in REPLY_CODES
    assert f"first digit     {code[0]}: " in explain(code)
    assert word in explain(code)


@pytest.mark.parametrize("code", ["000", "199", "600", "999"])
def test_three_digits_that_are_no_reply_code(code: str) -> None:
    assert "not a reply code of SMTP" in one_line(explain(code))


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("STARTLS", "STARTTLS"), ("xexch5", "XEXCH50"), ("PIPELINNING", "PIPELINING"), ("ERHLO", "EHLO")],
)
def test_an_unknown_name_brings_the_names_most_like_it(wrong: str, right: str) -> None:
    with pytest.raises(UnknownName) as caught:
        explain(wrong)
    assert caught.value.name == wrong
    assert caught.value.nearest[0] == right
    assert wrong in str(caught.value)


@pytest.mark.parametrize("name", ["", "   ", "ｅｈｌｏ", "qqqqqqqqqqqq", "25", "2500"])
def test_a_name_like_no_other_is_unknown(name: str) -> None:
    with pytest.raises(UnknownName):
        explain_json(name)
