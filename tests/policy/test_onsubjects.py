"""Rules on subjects as they are loaded: what a file says, and each mistake as it is told, at once and in its place."""

import re
from pathlib import Path

import pytest

from smtpproxy.policy import rules
from smtpproxy.policy.load import Loaded, load_rules
from smtpproxy.policy.rules import ExtensionRule, Mode, Rule
from smtpproxy.policy.subjects import SUBJECTS
from smtpproxy.smtp.replies import own

HEAD = '[[rule]]\nname = "x"\nwhy = "y"\n'


def load(tmp_path: Path, text: str) -> Loaded:
    (tmp_path / "1.toml").write_text(text)
    return load_rules([tmp_path], shipped=False)


def told(loaded: Loaded) -> str:
    """All problems in full, without the directory."""
    return "\n".join(re.sub(r"^.*?1\.toml", "1.toml", problem.show()) for problem in loaded.problems) + "\n"


def test_a_rule_has_all_that_its_file_says(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        """\
[lists.sold]
kind = "domains"
entries = ["old.example"]

[[rule]]
name = "sold-domains"
why = "Sold."
tags = ["domains", "2026"]
mode = "observe"
on = ["rcpt", "RCPT reply"]
when = 'in_list("sold", rcpt.domain) && !client.tls'
then = [{ tag = "sold" }, "hangup"]

[[rule]]
name = "held"
why = "Looked at."
on = "content"
then = { quarantine = "accept" }
otherwise = { answer = "451 4.7.1 Later" }
deadline = "500ms"

[[rule]]
name = "plain-etrn"
why = "Not for everybody."
extension = "ETRN"
when = 'in_network(client.address, "192.0.2.0/24")'
mode = "observe"
tags = ["old"]
then = "allow"
""",
    )
    assert loaded.problems == ()
    about, sold, held = loaded.rules
    assert isinstance(sold, Rule)
    assert (sold.name, sold.why, sold.tags, sold.mode) == ("sold-domains", "Sold.", ("domains", "2026"), Mode.OBSERVE)
    assert sold.subjects == (SUBJECTS["RCPT"], SUBJECTS["RCPT reply"])
    assert sold.when is not None
    assert sold.when.fields == {"rcpt.domain", "client.tls"}
    assert sold.then == (rules.Tag(("sold",)), rules.Hangup())
    assert (sold.otherwise, sold.python, sold.deadline, sold.shipped) == (None, None, 5.0, False)
    assert str(sold.source) == f"{tmp_path}/1.toml:5"
    assert isinstance(held, Rule)
    assert (held.otherwise, held.deadline) == (rules.Answer(own("451 4.7.1 Later")), 0.5)
    assert isinstance(about, ExtensionRule)
    assert about.when is not None
    assert (about.mode, about.tags) == (Mode.OBSERVE, ("old",))
    assert len(loaded.lists["sold"]) == 1


def test_a_function_decides_in_place_of_acts(tmp_path: Path) -> None:
    (tmp_path / "python").mkdir(mode=0o755)
    module = tmp_path / "python" / "site_checks.py"
    module.write_text("def recipient(rcpt_domain: str):\n    return None\n")
    module.chmod(0o644)
    loaded = load(tmp_path, HEAD + 'on = "RCPT"\npython = "site_checks:recipient"\notherwise = "pass"\ndeadline = 1\n')
    assert loaded.problems == ()
    (made,) = loaded.rules
    assert isinstance(made, Rule)
    assert made.python is not None
    assert (made.python.fields, made.then, made.otherwise, made.deadline) == (
        ("rcpt.domain",),
        (),
        rules.Pass(),
        1.0,
    )
    module.write_text("def recipient(rcpt_domain: str):\n    return []\n")
    assert load_rules([tmp_path], shipped=False).digest != loaded.digest


def test_all_mistakes_of_a_file_are_told_at_once(tmp_path: Path) -> None:
    """A misspelt name, a wrong type, a wrong subject, a bad expression, network and list, a function out of reach."""
    text = """\
[lists.partners]
kind = "networks"
entries = ["192.0.2.0/24", "10.1.2.3/8"]

[[rule]]
name = "a"
why = "a misspelt field, in a text and in a condition; a misspelt list"
on = "RCPT"
when = 'rcpt.domian == "x.example" && in_list("partner", client.address)'
then = { answer = "550 5.7.1 {rcpt.addres} is gone" }

[[rule]]
name = "b"
why = "types, and a subject that has no such field"
on = "MAIL"
when = '''
mail.declared_size > "25 MiB"
  || rcpt.local == "root"
'''
then = "pas"

[[rule]]
name = "c"
why = "expressions"
on = ["RCTP", "header"]
when = 'matches(client.hello, "(unclosed")'
then = { tarpit = "5 sec" }

[[rule]]
name = "d"
why = "functions"
on = "RCPT"
when = 'in_network(client.address, "10.0.0.0/33")'
python = "no_such_module:judge"
"""
    loaded = load(tmp_path, text)
    assert loaded.rules == ()
    assert told(loaded) == (
        """\
1.toml:3:28: list "partners": entries: "10.1.2.3/8" is not a network: bits are set behind its prefix (expected an \
address or a network, e.g. "192.0.2.0/24"; nearest: 10.0.0.0/8)
  3 | entries = ["192.0.2.0/24", "10.1.2.3/8"]
    |                            ^
1.toml:9:9: rule 1 "a": when: no field "rcpt.domian" (nearest: rcpt.domain, rcpt.local)
  9 | when = 'rcpt.domian == "x.example" && in_list("partner", client.address)'
    |         ^
1.toml:9:47: rule 1 "a": when: no list "partner" (nearest: partners)
  9 | when = 'rcpt.domian == "x.example" && in_list("partner", client.address)'
    |                                               ^
1.toml:10:31: rule 1 "a": then.answer: no field "rcpt.addres" here (nearest: rcpt.address, client.address, \
rcpt.parameters)
  10 | then = { answer = "550 5.7.1 {rcpt.addres} is gone" }
     |                               ^
1.toml:17:20: rule 2 "b": when: > takes two of the same type, not int and string
  17 | mail.declared_size > "25 MiB"
     |                    ^
1.toml:18:6: rule 2 "b": when: rcpt.local is not known at MAIL, only at RCPT and RCPT reply
  18 |   || rcpt.local == "root"
     |      ^
1.toml:20:8: rule 2 "b": then: "pas" is not something to do (expected "pass", "discard", "hangup", or a table such as \
{ answer = "550 5.7.1 Not here" }; nearest: pass)
  20 | then = "pas"
     |        ^
1.toml:25:7: rule 3 "c": on.0: "RCTP" is not a subject (nearest: RCPT, X-ERCP, X-DRCP)
  25 | on = ["RCTP", "header"]
     |       ^
1.toml:26:31: rule 3 "c": when: not a regular expression: missing ): (unclosed
  26 | when = 'matches(client.hello, "(unclosed")'
     |                               ^
1.toml:27:19: rule 3 "c": then.tarpit: "5 sec" is not a duration (expected a duration, e.g. "5s", "10m", "1h" or \
"7d"; nearest: 5s)
  27 | then = { tarpit = "5 sec" }
     |                   ^
1.toml:33:36: rule 4 "d": when: "10.0.0.0/33" is not a network
  33 | when = 'in_network(client.address, "10.0.0.0/33")'
     |                                    ^
1.toml:34:10: rule 4 "d": python: no module no_such_module (expected python/no_such_module.py beside the rule file, \
or a module that is installed)
  34 | python = "no_such_module:judge"
     |          ^
"""
    )


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ('on = "RCPT to"\nthen = "pass"', '4:6: rule 1 "x": on: "RCPT to" is not a subject (nearest: RCPT)'),
        (
            'on = "xyzzy"\nthen = "pass"',
            '4:6: rule 1 "x": on: "xyzzy" is not a subject (expected a subject, e.g. "RCPT", "RCPT reply"',
        ),
        ('on = []\nthen = "pass"', '4:6: rule 1 "x": on: is empty (expected a subject, e.g. "RCPT",'),
        ('on = 3\nthen = "pass"', '4:6: rule 1 "x": on: 3 is not a string (expected a subject, e.g. "RCPT",'),
        ('on = ["RCPT", "rcpt"]\nthen = "pass"', '4:15: rule 1 "x": on.1: RCPT stands here twice (expected it once)'),
        ('on = "RCPT"', '1:1: rule 1 "x": then is missing (expected "pass", "discard", "hangup", or a table such as'),
        ('then = "pass"', '1:1: rule 1 "x": on is missing (expected on = "RCPT" or another subject, or extension ='),
        (
            'on = "RCPT"\nextension = "DSN"\nthen = "pass"',
            '5:1: rule 1 "x": a rule is on subjects or about an extension (expected on or extension)',
        ),
        (
            'on = "RCPT"\nthen = "pass"\nlimit = 3',
            '6:1: rule 1 "x": unknown key "limit" (expected name, why, on, when, then, python, otherwise,',
        ),
        (
            'on = "RCPT"\nthen = "pass"\nwhen = ""',
            '6:8: rule 1 "x": when: is empty (expected a condition, e.g. \'client',
        ),
        ('on = "RCPT"\nthen = "pass"\nwhen = true', '6:8: rule 1 "x": when: true is not a string'),
        (
            'on = "RCPT"\nthen = "pass"\nwhen = "mail.count"',
            '6:9: rule 1 "x": when: a condition is true or false, and this is a number',
        ),
        (
            'on = "RCPT"\nthen = "pass"\nwhen = \'locked("x", client.address)\'',
            '6:16: rule 1 "x": when: no rule "x" that has a limit',
        ),
        (
            'on = "RCPT"\nthen = "pass"\ntags = ["A b"]',
            '6:9: rule 1 "x": tags.0: "A b" is not a label (expected a label such as "suspicious": a-z, 0-9 and',
        ),
        (
            'extension = "DSN"\nthen = "deny"\nwhen = \'rcpt.domain == "x"\'',
            '6:9: rule 1 "x": when: rcpt.domain is not known at rules about extensions, only at RCPT and RCPT reply',
        ),
        ('on = "RCPT"\npython = "ab"', '5:10: rule 1 "x": python: "ab" does not name a function (expected a function,'),
    ],
)
def test_mistakes(tmp_path: Path, lines: str, problem: str) -> None:
    loaded = load(tmp_path, f"{HEAD}{lines}\n")
    assert loaded.rules == ()
    assert told(loaded).startswith(f"1.toml:{problem}")
    assert len(loaded.problems) == 1


def test_then_and_python_are_two_things(tmp_path: Path) -> None:
    loaded = load(tmp_path, HEAD + 'on = "RCPT"\nthen = "pass"\npython = "no_such_module:x"\n')
    assert [(problem.line, problem.message) for problem in loaded.problems] == [
        (5, "then and python are two things"),
        (6, "no module no_such_module"),
    ]


@pytest.mark.parametrize(
    ("when", "line", "column"),
    [
        ("'mail.null && rcpt.domian == \"x\"'", 6, 22),
        ("'''mail.null && rcpt.domian == 'x\\'''''", 6, 24),
        ("'''\n  mail.null &&\n    rcpt.domian == \"x\"\n'''", 8, 5),
        ('"mail.null\\t&& rcpt.domian == \\"x\\""', 6, 23),
        ("\"mail.null\\u0020\\U00000020&& rcpt.domian == 'x'\"", 6, 37),
        ('"""mail.null \\\n     && rcpt.domian == \'x\'"""', 7, 9),
        ("\"mail.null &&\\n  rcpt.domian == 'x'\"", 6, 25),
    ],
)
def test_the_place_in_a_condition_is_a_place_in_the_file(tmp_path: Path, when: str, line: int, column: int) -> None:
    loaded = load(tmp_path, f'{HEAD}on = "RCPT"\nthen = "pass"\nwhen = {when}\n')
    problem = next(problem for problem in loaded.problems if "rcpt.domian" in problem.message)
    assert (problem.line, problem.column) == (line, column)
    _, shown, caret = problem.show().splitlines()
    assert shown[caret.index("^") :].startswith("rcpt.domian")


def test_a_list_that_is_wrong_is_told_once(tmp_path: Path) -> None:
    """And not again at each rule that names it."""
    rule = HEAD + 'on = "RCPT"\nwhen = \'in_list("a", client.address)\'\nthen = "pass"\n'
    (problem,) = load(tmp_path, f'[lists.a]\nkind = "network"\nfile = "none.txt"\n{rule}').problems
    assert told(Loaded((), (problem,), {})).startswith('1.toml:2:8: list "a": kind: "network" is not a kind of list')
    (problem,) = load(tmp_path, f'[lists.a]\nkind = "networks"\nfile = "none.txt"\n{rule}').problems
    assert problem.line == 3
    assert "none.txt can't be read: No such file or directory" in problem.message


def test_what_is_wrong_in_the_file_of_a_list_is_told_there(tmp_path: Path) -> None:
    (tmp_path / "nets.txt").write_text("192.0.2.0/24\n\n  10.0.0.0/40  # ours\n")
    rule = HEAD + 'on = "RCPT"\nwhen = \'in_list("a", client.address)\'\nthen = "pass"\n'
    (problem,) = load(tmp_path, f'[lists.a]\nkind = "networks"\nfile = "nets.txt"\n{rule}').problems
    assert problem.show() == (
        f'{tmp_path}/nets.txt:3:3: list a: "10.0.0.0/40" is not a network (expected an address or a network, e.g.'
        ' "192.0.2.0/24")\n  3 |   10.0.0.0/40  # ours\n    |   ^'
    )
