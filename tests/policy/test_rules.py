"""Rules as values: what one holds, and that it stays as it was read."""

from dataclasses import FrozenInstanceError, replace

import pytest

from smtpproxy.policy.rules import ExtensionRule, Source, Treatment
from smtpproxy.smtp.registry.features import Feature, feature
from smtpproxy.smtp.replies import own


def about(name: str) -> Feature:
    found = feature(name)
    assert found is not None
    return found


def test_the_treatments_are_a_closed_set() -> None:
    """Their values are the words of rule files."""
    assert [treatment.value for treatment in Treatment] == ["allow", "deny", "allow-under-tls", "limit"]
    assert {Treatment("deny"): 1} == {Treatment.DENY: 1}


def test_a_source_is_told_as_editors_read_it() -> None:
    assert str(Source("rules/site.toml", 12)) == "rules/site.toml:12"


def test_what_a_rule_need_not_say() -> None:
    """No limit, the registry's refusal, and made in code."""
    rule = ExtensionRule("no-dsn", "private", about("DSN"), Treatment.DENY)
    assert (rule.limit, rule.reply, rule.source) == (0, None, Source("", 0))


def test_a_rule_is_a_value() -> None:
    """Sessions keep the rules they began with: nothing of one can change under them."""
    rule = ExtensionRule("x", "y", about("VRFY"), Treatment.DENY, reply=own("252 2.5.0 Perhaps"), source=Source("f", 1))
    same = replace(rule)
    assert same == rule
    assert hash(same) == hash(rule)
    assert replace(rule, treatment=Treatment.ALLOW) != rule
    with pytest.raises(FrozenInstanceError):
        rule.treatment = Treatment.ALLOW  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        rule.source.line = 2  # type: ignore[misc]


def test_a_rule_is_about_all_places_of_its_name() -> None:
    """Which those are is the registry's to say."""
    rule = ExtensionRule("x", "y", about("chunking"), Treatment.DENY)
    assert rule.feature.keywords == {b"CHUNKING"}
    assert rule.feature.verbs == {b"BDAT"}
    assert ExtensionRule("x", "y", about("DSN"), Treatment.DENY).feature.rcpt_parameters == {b"NOTIFY", b"ORCPT"}
