"""What is hardly meant in rules on subjects: each warning in its place, and silence where a rule could be meant."""

import re
from pathlib import Path

import pytest

from smtpproxy.policy.load import Loaded, load_rules, set_names


def load(tmp_path: Path, text: str, *more: str, shipped: bool = False) -> Loaded:
    (tmp_path / "1.toml").write_text(text)
    return load_rules([*map(Path, more), tmp_path / "1.toml"], shipped=shipped)


def rule(name: str, on: str, then: str, when: str = "", more: str = "") -> str:
    condition = f"when = '{when}'\n" if when else ""
    return f'[[rule]]\nname = "{name}"\nwhy = "y"\non = {on}\n{condition}then = {then}\n{more}\n'


def warned(loaded: Loaded) -> list[str]:
    assert loaded.ok, loaded.problems
    return [re.sub(r"[^\s(]*1\.toml", "1.toml", str(problem)) for problem in loaded.problems]


OFTEN = 'rate(client.address, 5, "1m")'
NO = '{ answer = "550 5.7.1 No" }'


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        # never asked
        (rule("a", '"RCPT"', NO, "false"), '1.toml:5:8: warning: rule 1 "a": never holds: it is always false'),
        (rule("a", '"RCPT"', NO, "1 > 2"), 'never holds: it is always false (expected mode = "off")'),
        (
            rule("a", '"EXPN"', NO),
            (
                '1.toml:4:6: warning: rule 1 "a": never asked: EXPN is denied by default (expected a rule with'
                ' extension = "EXPN" and then = "allow")'
            ),
        ),
        (rule("a", '["EXPN", "VRFY reply"]', '"hangup"'), "EXPN is denied by default and VRFY is denied by default"),
        # behind one that always decides
        (
            rule("a", '"RCPT"', NO) + rule("b", '"RCPT"', '{ tag = "x" }', "client.tls"),
            (
                '1.toml:10:6: warning: rule 2 "b": never asked: rule a (1.toml:1) always decides first (expected it'
                " before that one, or not at all)"
            ),
        ),
        (rule("a", '"RCPT"', NO, "true") + rule("b", '"RCPT"', '"hangup"', "client.tls"), "rule a (1.toml:1) always"),
        (rule("a", '"any command"', NO) + rule("b", '["MAIL", "RCPT"]', '"hangup"', "client.tls"), "never asked"),
        (
            rule("a", '"MAIL"', NO)
            + rule("b", '"SOML"', '"pass"', "client.tls")
            + '[[rule]]\nname = "e"\nwhy = "y"\nextension = "SOML"\nthen = "allow"\n',
            "never asked: rule a",
        ),
        (
            rule("a", '"HELP"', NO) + rule("b", '"HELP reply"', "{ tarpit = 1 }"),
            "never asked: rule a (1.toml:1) always answers HELP here",
        ),
        (
            rule("a", '"RCPT"', NO, "client.tls") + rule("b", '"RCPT"', "{ tarpit = 1 }", "client.tls"),
            '1.toml:11:6: warning: rule 2 "b": never asked: rule a (1.toml:1) has the same condition and decides first',
        ),
        (
            rule("a", '["RCPT", "MAIL"]', '[{ tag = "x" }, "hangup"]', "client.tls")
            + rule("b", '"RCPT"', NO, "client.tls"),
            "has the same condition and decides first",
        ),
        # contradictions
        (
            rule("a", '"RCPT"', NO, "client.tls") + rule("b", '"RCPT"', '"pass"', "client.tls"),
            (
                '1.toml:13:8: warning: rule 2 "b": contradicts rule a (1.toml:1): that one is tried first and says'
                ' answer "550 5.7.1 No" (expected one of them)'
            ),
        ),
        (
            rule("a", '"RCPT"', '"pass"') + rule("b", '"RCPT"', '{ hangup = "421 4.7.0 Go" }'),
            "contradicts rule a (1.toml:1): that one is tried first and says pass",
        ),
        (
            rule("a", '"connect"', '{ redirect = "a:1" }') + rule("b", '"connect"', '{ redirect = "b:1" }'),
            "says redirect to a:1",
        ),
        # observed
        (
            rule("a", '"RCPT"', NO, "client.tls", 'mode = "observe"') + rule("b", '"RCPT"', NO, "client.tls"),
            '1.toml:7:8: warning: rule 1 "a": observes what rule b (1.toml:8) enforces already (expected one of them)',
        ),
        # cost
        (
            rule("a", '"content"', NO, 'mail.domain == "x.example"'),
            (
                '1.toml:4:6: warning: rule 1 "a": on = "content" holds back all of each mail, and mail.domain can be'
                ' asked sooner (expected on = "MAIL")'
            ),
        ),
        (
            rule("a", '"content"', NO, "client.tls && mail.count > 5"),
            'client.tls and mail.count can be asked sooner (expected on = "DATA")',
        ),
        (
            rule("a", '"content"', NO, '"x" in header["x-y"]'),
            'header can be asked sooner (expected on = "header")',
        ),
        (
            rule("a", '"content"', NO, 'mail.address == "a@b.example" || content.longest_line > 998'),
            (
                '1.toml:5:8: warning: rule 1 "a": on = "content" holds back all of each mail, also of those that'
                " mail.address would leave out (expected what is about mail.address by itself: (…)"
                " && (…), or two rules)"
            ),
        ),
        (
            rule("a", '"attachment"', NO, "size(client.hello + attachment.name) > 9"),
            'on = "attachment" holds back all of each mail, also of those that client.hello would leave out',
        ),
        # names that lead nowhere
        (
            rule("a", '"RCPT"', NO, '"spammy" in session.tags') + rule("b", '"MAIL"', '{ tag = "spam" }'),
            '1.toml:5:8: warning: rule 1 "a": no rule in force gives the label "spammy" (nearest: spam)',
        ),
        (
            rule("a", '"RCPT"', NO, 'locked("b", client.address)')
            + rule("b", '"MAIL"', "{ limit = { commands = 9, within = 9 } }"),
            (
                '1.toml:5:8: warning: rule 1 "a": the limit of rule b has no lock: it locks nobody (expected e.g. lock'
                ' = "1h")'
            ),
        ),
        (
            rule("a", '"RCPT"', NO, 'locked("b", client.address)')
            + rule("b", '"MAIL"', "{ limit = { commands = 9, within = 9, lock = 9 } }", more='mode = "off"'),
            "rule b is not in force: it locks nobody",
        ),
        (
            '[lists.old]\nkind = "words"\nentries = ["a"]\n',
            "1.toml:1:1: warning: list old: no rule in force looks anything up in it",
        ),
        (
            '[[rule]]\nname = "a"\nwhy = "y"\nextension = "ETRN"\nwhen = "false"\nthen = "allow"\n',
            '1.toml:5:8: warning: rule 1 "a": never holds: it is always false',
        ),
    ],
)
def test_what_is_hardly_meant_is_a_warning(tmp_path: Path, text: str, warning: str) -> None:
    loaded = load(tmp_path, text)
    (only,) = warned(loaded)
    assert warning in only
    assert loaded.problems[0].severity == "warning"


@pytest.mark.parametrize(
    "text",
    [
        rule("a", '["EXPN", "NOOP"]', NO),  # NOOP may come
        rule("a", '"EXPN"', NO) + '[[rule]]\nname = "e"\nwhy = "y"\nextension = "EXPN"\nthen = "allow"\n',
        rule("a", '"EXPN"', NO)
        + '[[rule]]\nname = "e"\nwhy = "y"\nextension = "EXPN"\nwhen = "client.tls"\nthen = "allow"\n',
        rule("a", '"AUTH"', NO),  # allowed under TLS
        rule("a", '"RCPT"', '{ tag = "x" }') + rule("b", '"RCPT"', NO),  # a tag decides nothing
        rule("a", '"RCPT"', "{ limit = { recipients = 9 } }") + rule("b", '"RCPT"', NO),  # nor does a limit, always
        rule("a", '"RCPT"', NO, more='mode = "observe"') + rule("b", '"RCPT"', '"pass"'),
        rule("a", '"DATA"', NO) + rule("b", '"any command"', '"hangup"'),  # the wider one is second
        rule("a", '"RCPT"', NO) + rule("b", '["RCPT", "MAIL"]', '"hangup"'),  # asked on MAIL
        rule("a", '"any command"', NO) + rule("b", '"MALFORMED"', '"hangup"'),
        rule("a", '"RCPT"', '"pass"') + rule("b", '"RCPT reply"', "{ tarpit = 1 }"),  # let through, so replied to
        rule("a", '"RCPT"', NO, OFTEN) + rule("b", '"RCPT"', NO, OFTEN),  # each counts for itself
        rule("a", '"content"', NO, 'mail.domain == "x.example" && content.longest_line > 998'),  # only that domain's
        rule("a", '"content"', NO, "content.longest_line > 998"),  # about all mails
        rule("a", '"content"', '{ quarantine = "accept" }', 'mail.domain == "x.example"'),  # nowhere else
        rule("a", '"content"', "{ limit = { octets = 9 } }", 'mail.domain == "x.example"'),
        rule("a", '"attachment"', NO, 'mail.domain == "x.example"'),  # if it has any
        rule("a", '"content"', '"pass"', 'mail.domain == "x.example"') + rule("b", '"content"', NO, "client.tls"),
        rule("a", '"RCPT"', NO, '"x" in session.tags') + rule("b", '"MAIL"', '{ tag = ["y", "x"] }'),
        rule("a", '"RCPT"', NO, 'locked("b", client.address)')
        + rule("b", '"MAIL"', "{ limit = { commands = 9, within = 9, lock = 9 } }"),
    ],
)
def test_what_could_be_meant_is_none(tmp_path: Path, text: str) -> None:
    assert warned(load(tmp_path, text)) == []


def test_what_a_function_gives_nobody_knows(tmp_path: Path) -> None:
    (tmp_path / "python").mkdir(mode=0o755)
    module = tmp_path / "python" / "site_tags.py"
    module.write_text("def judge():\n    return None\n")
    module.chmod(0o644)
    function = '[[rule]]\nname = "f"\nwhy = "y"\non = "MAIL"\npython = "site_tags:judge"\n'
    assert warned(load(tmp_path, rule("a", '"RCPT"', NO, '"x" in session.tags') + function)) == []


def test_the_shipped_rules_are_not_warned_about(tmp_path: Path) -> None:
    """They are as they are; who chose a set may be told that it does nothing for him."""
    everything = rule("a", '"any command"', '"pass"')
    assert warned(load(tmp_path, everything, shipped=True)) == []
    loaded = load(tmp_path, everything, "set:outbound-guard", shipped=True)
    assert loaded.problems
    assert {problem.severity for problem in loaded.problems} == {"warning"}
    assert all("outbound-guard.toml" in problem.file for problem in loaded.problems)


def test_a_list_in_place_of_a_shipped_one_is_used(tmp_path: Path) -> None:
    mine = '[lists.attachment-exempt]\nkind = "networks"\nentries = ["192.0.2.0/24"]\n'
    assert warned(load(tmp_path, mine, "set:attachments", shipped=True)) == []
    assert warned(load(tmp_path, mine, shipped=True)) != []


def test_every_shipped_set_is_quiet_by_itself() -> None:
    assert set_names()
    for name in set_names():
        assert load_rules([Path(f"set:{name}")]).problems == (), name


def test_who_stands_before_is_told_to_the_list_of_rules(tmp_path: Path) -> None:
    loaded = load(tmp_path, rule("a", '"RCPT"', NO) + rule("b", '"RCPT"', '{ tag = "x" }') + rule("c", '"MAIL"', NO))
    assert [(one.name, one.shadowed) for one in loaded.listed] == [("a", ""), ("b", "a"), ("c", "")]
    etrn = '[[rule]]\nname = "{}"\nwhy = "y"\nextension = "ETRN"\n{}then = "allow"\n'
    maybe = etrn.format("maybe", "when = 'client.tls'\n")
    shipped = load(tmp_path, maybe, shipped=True)
    assert {one.name: one.shadowed for one in shipped.listed if one.shadowed} == {}
    surely = load(tmp_path, maybe + etrn.format("surely", ""), shipped=True)
    assert {one.name: one.shadowed for one in surely.listed if one.shadowed} == {
        "strip-etrn": "surely",
        "maybe": "surely",
    }
