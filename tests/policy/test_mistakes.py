"""What is wrong with a condition: place, words, and what was perhaps meant."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpproxy.policy.expr import Compiler, Mistake
from smtpproxy.policy.fields import EXTENSION
from smtpproxy.policy.lists import list_of
from smtpproxy.policy.subjects import SUBJECTS
from smtpproxy.policy.tokens import Kind, tokens, value

LISTS = {
    "blocked-domains": list_of("blocked-domains", "domains", ["spam.example"]),
    "office": list_of("office", "networks", ["192.0.2.0/24"]),
}


def mistakes(source: str, *subjects: str) -> list[Mistake]:
    """What is wrong with it."""
    on = [SUBJECTS[name] for name in subjects or ("RCPT",)]
    found = Compiler(LISTS, limits=["too-many"]).condition(source, on)
    return found if isinstance(found, list) else []


NAMES = [
    ('rcpt.domian == "x"', 1, 'no field "rcpt.domian"', "rcpt.domain"),
    ('true && rcpt.domian.startsWith("x")', 9, 'no field "rcpt.domian"', "rcpt.domain"),
    ("rcpt == 3", 1, "rcpt alone is no field", "rcpt.address"),
    ("mail.nul", 1, 'no field "mail.nul"', "mail.null"),
    ("client.tls == True", 15, 'no field "True"', "true"),
    ('"é" == client.helo', 8, 'no field "client.helo"', "client.hello"),
    ("reply.code == 550", 1, "reply.code is not known at RCPT, only at every reply", ""),
    (
        'header["Subject"].exists(s, s == "x")',
        1,
        "header is not known at RCPT, only at header, attachment and content",
        "",
    ),
    ('mail.parameters.SIZE == "3"', 17, 'no field "mail.parameters.SIZE"; an entry is mail.parameters["SIZE"]', ""),
    ('isin("a", rcpt.domain)', 1, 'no function "isin"', ""),
    ('rcpt.domain.startswith("a")', 13, 'no function "startswith"', "startsWith"),
    ('in_list("a")', 1, 'in_list is called so: in_list("name", value)', ""),
    ("mail.recipients.exists(mail, true)", 24, "mail is the name of fields: call it another name", ""),
    ("if == 1", 1, "if is a word of CEL's own", ""),
    ("_0 == 1", 1, 'no field "_0"', ""),
    ('_rate("a", "b", 1, 1.0)', 1, 'no function "_rate"', "rate"),
]
TYPES = [
    ('client.tls == "x"', 12, "== takes two of the same type, not bool and string", ""),
    ("mail.count > 1.5", 12, "> takes two of the same type, not int and double", ""),
    (
        'mail.recipients == "a@y.example"',
        17,
        "== takes two of the same type, not list(string) and string: say …exists(x, x == …)",
        "",
    ),
    ("!mail.count", 1, "! takes bool, not int", ""),
    ("mail.count && client.tls", 12, "&& takes bool, not int and bool", ""),
    ("mail.count ? true : false", 12, "? : takes bool, not int", ""),
    ('client.tls ? 1 : "a"', 12, "both branches of ? : are of one type, not int and string", ""),
    ('"a" in rcpt.domain', 5, "in takes a value and a list of such, not string and string", ""),
    ("rcpt.domain[1] == 2", 12, "string has no entry under int", ""),
    ("rcpt.domain.size", 12, "string has no part size", ""),
    ("rcpt.domain.exists(x, x == 1)", 5, "string has no entries: it is no list and no map", ""),
    ("domain(3)", 1, "domain does not take int: it is called so: domain(address)", ""),
    ("-client.tls", 1, "- does not take bool", ""),
    ("rcpt.domain", 1, "a condition is true or false, and this is a string", ""),
    ("mail.count", 1, "a condition is true or false, and this is a number", ""),
    ("mail.recipients", 1, "a condition is true or false, and this is a list", ""),
    ("mail.parameters", 1, "a condition is true or false, and this is a map", ""),
    ("dyn(client.tls)", 1, "a condition is true or false, and this is something else", ""),
    ("1 / 0 == 1", 1, "it always fails: divide by zero", ""),
    ("99999999999999999999 == mail.count", 1, "a number beyond 64 bits", ""),
]
LITERALS = [
    ('in_list("bloked-domains", rcpt.domain)', 9, 'no list "bloked-domains"', "blocked-domains"),
    ("in_list(rcpt.local, rcpt.domain)", 9, "the name of a list is written out, in quotes", ""),
    (
        'in_network(client.address, "10.0.0.1/8")',
        28,
        '"10.0.0.1/8" is not a network: bits are set behind its prefix',
        "10.0.0.0/8",
    ),
    ('in_network(client.address, ["10.0.0.0/8", "10.0.0.0/33"])', 43, '"10.0.0.0/33" is not a network', ""),
    ('in_network(client.address, "offic")', 28, '"offic" is not a network', "office"),
    (
        'in_network(client.address, "blocked-domains")',
        28,
        "the list blocked-domains is of domains, not of networks",
        "",
    ),
    (
        "in_network(client.address, client.hello)",
        28,
        "networks are written out, in quotes, or a list of them is named",
        "",
    ),
    ('matches(rcpt.domain, "(bad")', 22, "not a regular expression: missing ): (bad", ""),
    ('rcpt.domain.matches("a{1001}")', 21, "not a regular expression: invalid repetition size: {1001}", ""),
    ('lower(rcpt.local).matches("(?=a)")', 27, "not a regular expression: invalid perl operator: (?=", ""),
    ("matches(rcpt.domain, rcpt.local)", 22, "a pattern is written out, in quotes", ""),
    ("glob(rcpt.domain, rcpt.local)", 19, "a pattern is written out, in quotes", ""),
    ('rate(client.address, 3, "1 hour")', 25, '"1 hour" is not a duration', "1h"),
    ('rate(client.address, 3, "0s")', 25, '"0s" is no time at all', ""),
    ("rate(client.address, 3, rcpt.domain)", 25, 'a window is written out, in quotes, e.g. "1h"', ""),
    ('locked("to-many", client.address)', 8, 'no rule "to-many" that has a limit', "too-many"),
    ("locked(rcpt.domain, client.address)", 8, "the name of a rule is written out, in quotes", ""),
]
SYNTAX = [
    ("", 1, "it ends where more is expected", ""),
    ("mail.count >", 13, "it ends where more is expected", ""),
    ("(client.tls", 12, ") is missing here", ""),
    ("client.tls)", 11, '")" is not expected here', ""),
    ('rcpt.domain = "x"', 13, "= is no operator", "=="),
    ("client.tls and mail.utf8", 12, "and is no operator", "&&"),
    ("client.tls OR mail.utf8", 12, "OR is no operator", "||"),
    ("not client.tls", 1, "not is no operator", "!"),
    ("client.tls | mail.utf8", 12, "| is no operator", "||"),
    ("client.tls & mail.utf8", 12, "& is no operator", "&&"),
    ("mail.count <> 3", 12, "<> is no operator", "!="),
    ("mail.count > 10MB", 14, "a number has no unit: 10MB", ""),
    ('rcpt.domain == "x', 16, "a string that does not end", ""),
    (
        r'matches(rcpt.local, "\d")',
        21,
        'no such escape in a string; in a raw one, r"…", a backslash stands for itself',
        "",
    ),
    ("client.tls §", 12, '"§" is not expected here', ""),
    ("true)) || ((true", 5, '")" is not expected here', ""),
    ("(" * 40 + "client.tls" + ")" * 40, 1, "nested more than 32 deep", ""),
    ("(" * 31 + "client.tls" + ")" * 31, 1, "nested more than 32 deep", ""),
]


@pytest.mark.parametrize(("source", "column", "message", "near"), [*NAMES, *TYPES, *LITERALS, *SYNTAX])
def test_a_mistake(source: str, column: int, message: str, near: str) -> None:
    found = mistakes(source)
    assert [(one.line, one.column, one.message) for one in found] == [(1, column, message)]
    if near:
        assert found[0].nearest[0] == near


def test_all_mistakes_are_told_in_their_order() -> None:
    source = 'rcpt.domian == "x" ||\n  in_list("none", mail.domain) ||\n  foo(client.tls) || mail.count > "3"'
    assert [(one.line, one.column, one.message) for one in mistakes(source)] == [
        (1, 1, 'no field "rcpt.domian"'),
        (2, 11, 'no list "none"'),
        (3, 3, 'no function "foo"'),
        (3, 33, "> takes two of the same type, not int and string"),
    ]


def test_a_condition_is_checked_for_each_subject() -> None:
    assert mistakes("rcpt.domain != mail.domain", "RCPT", "RCPT reply") == []
    assert [one.message for one in mistakes('rcpt.domain == "x"', "RCPT", "MAIL", "any command")] == [
        "rcpt.domain is not known at MAIL, only at RCPT and RCPT reply",
        "rcpt.domain is not known at any command, only at RCPT and RCPT reply",
    ]


def test_what_rules_about_extensions_may_not_ask() -> None:
    found = Compiler({}).condition("mail.null || client.tls", [EXTENSION])
    assert isinstance(found, list)
    assert found[0].message.startswith("mail.null is not known at rules about extensions, only at MAIL")


@given(st.text(alphabet="abc.()[]\"'\\rx0 1+=|&!\n,{}ü#/", max_size=40))
def test_any_text_is_a_condition_or_a_mistake_within_it(source: str) -> None:
    for one in mistakes(source):
        lines = source.split("\n")
        assert 1 <= one.line <= len(lines)
        assert 1 <= one.column <= len(lines[one.line - 1]) + 1
        assert "<input>" not in one.message
        assert "\n" not in one.message


@given(st.text(max_size=60))
def test_words_are_where_they_stand(source: str) -> None:
    behind = 0
    for word in tokens(source):
        assert source[word.start : word.end] == word.text
        assert word.start >= behind
        behind = word.end


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ('"a"', "a"),
        ("'a\"b'", 'a"b'),
        (r'"\n\t\\\"\x41\u00e9\U0001F600\101\?"', '\n\t\\"Aé😀A?'),
        (r'r"\d+"', r"\d+"),
        ("R'\\'", "\\"),
        ('"""a\n"b"""', 'a\n"b'),
        ('b"a"', None),
        (r'"\q"', None),
    ],
)
def test_what_a_string_stands_for(written: str, meant: str | None) -> None:
    (word,) = tokens(written)
    assert word.kind is Kind.STRING
    assert value(word) == meant
