"""Rules tested by playbooks: which files belong together, what is covered, and JUnit's XML."""

from pathlib import Path
from xml.etree import ElementTree

import pytest

from smtpproxy.policy.load import load_rules, shipped_rules
from smtpproxy.policy.rates import Counters
from smtpproxy.proving import testing
from smtpproxy.proving.testing import Covered, Given, Result, cases_of, coverage, gather, junit, rules_from, run

RULES = """
[[rule]]
name = "no-vrfy"
why = "Nobody here is asked after."
extension = "VRFY"
then = { answer = "252 2.5.0 Cannot say" }

[[rule]]
name = "etrn-here"
why = "The branch office fetches its mail with it."
extension = "ETRN"
then = "allow"

[[rule]]
name = "no-help"
why = "Tells what software runs here."
extension = "HELP"
then = "deny"
"""
PLAYBOOK = """
== VRFY is answered here
.. hello
C> VRFY ann
>C 252 2.5.0 Cannot say
=> answer no-vrfy

== ETRN goes through
.. offers ETRN
.. hello
C> ETRN b.example
>S ETRN b.example
S> 250 2.0.0 Queuing started
>C 250 2.0.0 Queuing started
"""
WRONG = "\n== VRFY is told\n.. hello\nC> VRFY ann\n>C 250 2.5.0 ann\\x01\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "site.toml").write_text(RULES)
    (tmp_path / "site.play").write_text(PLAYBOOK)
    (tmp_path / "more.toml").write_text("")
    (tmp_path / ".hidden.play").write_text("nothing")
    return tmp_path


def results_of(folder: Path) -> list[Result]:
    cases, problems = cases_of(gather([str(folder)]).playbooks)
    assert problems == ()
    return list(run(cases, load_rules([folder / "site.toml"]).rules, Counters()))


def covered_by(folder: Path) -> tuple[Covered, ...]:
    loaded = load_rules([folder / "site.toml"])
    return coverage(rules_from(loaded, [folder / "site.toml"]), results_of(folder))


def test_a_playbook_belongs_to_the_rules_beside_it(folder: Path) -> None:
    more, rules, playbook = (folder / name for name in ("more.toml", "site.toml", "site.play"))
    assert gather([str(folder)]) == Given((more, rules), (playbook,))
    assert gather([str(rules)]) == gather([str(playbook)]) == Given((rules,), (playbook,))
    assert gather([str(more), str(playbook), str(rules)]) == Given((more, rules), (playbook,))
    assert gather([str(more)]) == Given((more,), ())
    rules.unlink()
    assert gather([str(playbook)]) == Given((), (playbook,))


def test_a_set_has_its_playbook_beside_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "sets").mkdir()
    monkeypatch.setattr(testing, "shipped_rules", lambda: tmp_path)
    assert gather(["set:size"]) == Given((Path("set:size"),), ())
    (tmp_path / "sets" / "size.play").write_text("")
    assert gather(["set:size"]) == Given((Path("set:size"),), (tmp_path / "sets" / "size.play",))


def test_what_is_wrong_with_any_playbook_is_told(folder: Path) -> None:
    (folder / "a.play").write_text("hello")
    (folder / "b.play").write_text("")
    cases, problems = cases_of(gather([str(folder)]).playbooks)
    assert [case.name for case in cases] == ["VRFY is answered here", "ETRN goes through"]
    assert [Path(problem.file).name for problem in problems] == ["a.play", "b.play"]


def test_rules_that_no_case_shows_have_no_test(folder: Path) -> None:
    assert [result.wrong for result in results_of(folder)] == ["", ""]
    vrfy, etrn, no_help = covered_by(folder)
    assert [(case.name, how) for case, how in vrfy.cases] == [("VRFY is answered here", ("decided",))]
    assert [(case.name, how) for case, how in etrn.cases] == [("ETRN goes through", ("let through",))]
    assert (no_help.rule.name, no_help.cases) == ("no-help", ())


def test_a_case_that_fails_shows_nothing(folder: Path) -> None:
    (folder / "site.play").write_text(WRONG)
    (result,) = results_of(folder)
    assert result.wrong.startswith(f"{folder}/site.play:4: C> b'VRFY ann\\r\\n' (whole):\n- >C b'250")
    assert [one.cases for one in covered_by(folder)] == [(), (), ()]


def test_rules_that_are_tested_are_those_named(folder: Path) -> None:
    loaded = load_rules([folder])
    assert [rule.name for rule in rules_from(loaded, [folder])] == ["no-vrfy", "etrn-here", "no-help"]
    assert rules_from(loaded, [folder / "more.toml"]) == ()
    assert len(rules_from(loaded, [shipped_rules()])) > 50


def test_junit(folder: Path) -> None:
    (folder / "site.play").write_text(PLAYBOOK + WRONG)
    untested = [one.rule for one in covered_by(folder) if not one.cases]
    root = ElementTree.fromstring(junit(results_of(folder), untested))
    assert (root.tag, root.get("tests"), root.get("failures")) == ("testsuites", "4", "2")
    suite, rules = root
    assert (suite.get("name"), suite.get("tests"), suite.get("failures")) == (f"{folder}/site.play", "3", "1")
    assert [case.get("name") for case in suite] == ["VRFY is answered here", "ETRN goes through", "VRFY is told"]
    assert {case.get("classname") for case in suite} == {"site"}
    assert [len(case) for case in suite] == [0, 0, 1]
    assert (suite[2].get("line"), suite[2][0].get("message")) == (
        "16",
        f"{folder}/site.play:18: C> b'VRFY ann\\r\\n' (whole):",
    )
    assert "- >C" in str(suite[2][0].text)
    assert [case.get("name") for case in rules] == ["no-help"]
    assert float(str(root.get("time"))) > 0


def test_what_is_no_xml_is_not_written(folder: Path) -> None:
    (result,) = [one for one in results_of(folder) if "VRFY" in one.case.name]
    wrong = result._replace(wrong="\0 \x1b[1m <&> \ud800")
    (text,) = [one.text for one in ElementTree.fromstring(junit([wrong])).iter("failure")]
    assert text == "? ?[1m <&> ?"


def test_nothing_was_played() -> None:
    assert ElementTree.fromstring(junit([])).get("tests") == "0"
