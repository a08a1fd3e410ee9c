"""The pages about rules, and the rules that are shipped: every example loads, and every playbook is played.

On a page, rules and lists stand in ```toml blocks, each as a file of its own, in order; what is played in a ```play
block are those before it. A ```text block that begins with `# lists/NAME` is the file of a list.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from smtpproxy.policy.load import Loaded, load_rules
from smtpproxy.policy.rates import Counters
from smtpproxy.proving import testing

ROOT = Path(__file__).resolve().parents[1]
APART = ("rules-python.md", "rules-testing.md")  # tests/rules/ has tests of these pages
PAGES = (
    "docs/rules.md",
    *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("rules-*.md")) if path.name not in APART),
)
SETS = [path.stem for path in sorted((ROOT / "rules" / "sets").glob("*.toml"))]
EXAMPLES = [path for path in sorted((ROOT / "deploy" / "rules-examples").iterdir()) if path.is_dir()]
_BLOCK = re.compile(r"^([ ]*)```(toml|play|text)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
_USES = re.compile(r'(?<=in_list\(")[a-z0-9-]+')


class Block(NamedTuple):
    """One fenced block of a page."""

    page: str
    number: int
    kind: str
    text: str


def _blocks(page: str) -> list[Block]:
    text = (ROOT / page).read_text(encoding="utf-8")
    found = [
        (kind, re.sub(f"^{indent}", "", block, flags=re.MULTILINE)) for indent, kind, block in _BLOCK.findall(text)
    ]
    return [Block(page, number, kind, block) for number, (kind, block) in enumerate(found, 1)]


BLOCKS = {page: _blocks(page) for page in PAGES}


def _is_rules(block: Block) -> bool:
    return block.kind == "toml" and ("[[rule]]" in block.text or "[lists." in block.text)


def _load(blocks: list[Block], folder: Path, counters: Counters | None = None) -> Loaded:
    """The rules of these blocks, each a file; the sets behind them, whose lists they may ask."""
    files = []
    for block in blocks:
        if block.kind == "text" and (named := re.match(r"# (lists/[\w.-]+)\n", block.text)):
            (folder / named[1]).parent.mkdir(exist_ok=True)
            (folder / named[1]).write_text(block.text, encoding="utf-8")
        elif _is_rules(block):
            files.append(folder / f"{block.number:02}.toml")
            files[-1].write_text(block.text, encoding="utf-8")
    asked = {name for block in blocks if _is_rules(block) for name in _USES.findall(block.text)}
    sets = [Path(f"set:{name}") for name in SETS if any(f"[lists.{one}]" in _of_set(name) for one in asked)]
    return load_rules([*sets, *files], counters=counters)


def _of_set(name: str) -> str:
    return (ROOT / "rules" / "sets" / f"{name}.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_rules_of_the_page_load(page: str, tmp_path: Path) -> None:
    loaded = _load(BLOCKS[page], tmp_path)
    assert [str(problem) for problem in loaded.problems if problem.severity == "error"] == []


def _plays() -> Iterator[tuple[Block, list[Block]]]:
    for blocks in BLOCKS.values():
        for at, block in enumerate(blocks):
            if block.kind == "play":
                yield block, blocks[:at] + [later for later in blocks[at:] if later.kind == "text"]


@pytest.mark.parametrize(
    ("play", "before"), [pytest.param(*one, id=f"{one[0].page}-{one[0].number}") for one in _plays()]
)
def test_what_the_page_plays_is_so(play: Block, before: list[Block], tmp_path: Path) -> None:
    (tmp_path / "page.play").write_text(play.text, encoding="utf-8")
    cases, problems = testing.cases_of([tmp_path / "page.play"])
    assert problems == ()
    counters = Counters()
    loaded = _load(before, tmp_path, counters)
    assert [str(problem) for problem in loaded.problems if problem.severity == "error"] == []
    assert [result.wrong for result in testing.run(cases, loaded.rules, counters) if result.wrong] == []


def test_pages_have_examples() -> None:
    """The tests above have something to look at."""
    assert len([block for blocks in BLOCKS.values() for block in blocks if _is_rules(block)]) > 15
    assert len(list(_plays())) > 10


def _proven(paths: list[str]) -> tuple[list[str], list[str], list[str]]:
    """Warnings, what went wrong in the cases, and the rules that no case shows."""
    given = testing.gather(paths)
    cases, problems = testing.cases_of(given.playbooks)
    assert cases
    assert problems == ()
    counters = Counters()
    loaded = load_rules(given.rules, counters=counters)
    results = list(testing.run(cases, loaded.rules, counters))
    covered = testing.coverage(testing.rules_from(loaded, given.rules), results)
    return (
        [str(problem) for problem in loaded.problems],
        [result.wrong for result in results if result.wrong],
        [one.rule.name for one in covered if not one.cases],
    )


@pytest.mark.parametrize("name", SETS)
def test_every_rule_of_a_set_is_shown_at_work(name: str) -> None:
    assert _proven([f"set:{name}"]) == ([], [], [])


@pytest.mark.parametrize("folder", EXAMPLES, ids=lambda path: path.name)
def test_every_rule_of_an_example_is_shown_at_work(folder: Path) -> None:
    assert _proven([str(folder)]) == ([], [], [])


def test_every_rule_of_the_baseline_is_shown_at_work() -> None:
    assert _proven([str(ROOT / "rules" / "10-baseline.toml")])[1:] == ([], [])


def test_no_other_verb_goes_round_a_rule_on_mail() -> None:
    """SEND, EMAL and the others, in any case: wherever they are let through, a rule on MAIL is about them."""
    _, wrong, _ = _proven([str(ROOT / "tests" / "rules" / "aliases.toml")])
    assert wrong == []


@pytest.mark.parametrize("name", SETS)
def test_every_set_is_on_its_page(name: str) -> None:
    page = (ROOT / "docs" / "rules-sets.md").read_text(encoding="utf-8")
    assert f"\n## {name}\n" in page
    assert f"[{name}](#{name})" in page


@pytest.mark.parametrize("name", SETS)
def test_rules_of_a_set_have_labels_and_names_of_their_own(name: str) -> None:
    """So that a site can list them, and no two sets take each other's places."""
    theirs = testing.rules_from(load_rules([Path(f"set:{name}")]), [Path(f"set:{name}")])
    others = {
        rule.name
        for other in SETS
        if other != name
        for rule in testing.rules_from(load_rules([Path(f"set:{other}")]), [Path(f"set:{other}")])
    }
    assert all(rule.tags for rule in theirs)
    assert {rule.name for rule in theirs} & others == set()
