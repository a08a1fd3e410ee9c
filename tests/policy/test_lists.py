"""Lists: what they are read from, what is in them, and what is wrong with a file of them."""

from pathlib import Path
from typing import Any

import pytest

from smtpproxy.policy.lists import EntryError, List, list_of, load_list, network, read_lists
from smtpproxy.policy.membership import Kind, index_of, number_of
from smtpproxy.policy.toml import Problem, TomlError, parse

KINDS = '"domains", "addresses", "networks", "digests", "words"'
A_NETWORK = 'expected an address or a network, e.g. "192.0.2.0/24"; nearest: 10.0.0.0/8'


def inside(kind: str, entries: list[str], value: str) -> bool:
    """Whether a value is in a list of these."""
    made = list_of("the-list", kind, entries)
    index = index_of(made.kind)
    index.add("another", list_of("another", kind, []).entries)
    index.add(made.name, made.entries)
    return "the-list" in index.find(value)


@pytest.mark.parametrize(
    ("value", "there"),
    [
        ("spam.example", True),
        ("SPAM.Example", True),
        ("a.b.spam.example", True),
        ("spam.example.", True),
        ("news@spam.example", True),
        ("notspam.example", False),
        ("example", False),
        ("spam.example.net", False),
        ("", False),
        (".", False),
        ("bücher.example", True),
    ],
)
def test_a_domain_stands_for_all_below_it(value: str, there: bool) -> None:
    assert inside("domains", ["spam.EXAMPLE", "Bücher.example"], value) is there


@pytest.mark.parametrize(
    ("value", "there"),
    [
        ("boss@y.example", True),
        ("Boss@Y.Example", True),
        ("anybody@z.example", True),
        ("anybody@sub.z.example", False),
        ("other@y.example", False),
        ("postmaster", True),
        ("z.example", False),
        ("", False),
    ],
)
def test_an_address_or_all_of_a_domain(value: str, there: bool) -> None:
    assert inside("addresses", ["boss@y.example", "@z.example", "Postmaster"], value) is there


@pytest.mark.parametrize(
    ("value", "there"),
    [
        ("10.1.2.3", True),
        ("11.0.0.1", False),
        ("192.0.2.1", True),
        ("192.0.2.2", False),
        ("2001:db8::5", True),
        ("2001:db9::5", False),
        ("::ffff:10.0.0.1", True),
        ("fe80::1%eth0", True),
        ("0.0.0.0", False),
        ("mail.example", False),
        ("[10.0.0.1]", False),
        ("", False),
        ("1" * 5000, False),
    ],
)
def test_an_address_of_a_network(value: str, there: bool) -> None:
    assert inside("networks", ["10.0.0.0/8", "192.0.2.1", "2001:db8::/32", "fe80::/10"], value) is there


def test_a_network_may_be_the_whole_world() -> None:
    assert inside("networks", ["0.0.0.0/0"], "203.0.113.9")
    assert not inside("networks", ["0.0.0.0/0"], "2001:db8::1")
    assert inside("networks", ["::/0"], "2001:db8::1")


def test_digests_and_words() -> None:
    assert inside("digests", ["AB" * 32], "ab" * 32)
    assert not inside("digests", ["AB" * 32], "ac" * 32)
    assert inside("words", ["Application/ZIP", "two words"], "application/zip")
    assert inside("words", ["STRASSE"], "straße")
    assert not inside("words", ["two words"], "two")


def test_one_index_says_of_all_lists_which_a_value_is_in() -> None:
    index = index_of(Kind.DOMAINS)
    for name, entries in (("a", ["x.example"]), ("b", ["x.example", "y.example"]), ("c", ["example"])):
        index.add(name, list_of(name, "domains", entries).entries)
    assert set(index.find("x.example")) == {"a", "b", "c"}
    assert set(index.find("y.example")) == {"b", "c"}
    assert index.find("example.net") == ()
    networks = index_of(Kind.NETWORKS)
    networks.add("wide", list_of("wide", "networks", ["10.0.0.0/8"]).entries)
    networks.add("narrow", list_of("narrow", "networks", ["10.1.0.0/16", "10.0.0.0/8"]).entries)
    assert sorted(networks.find("10.1.2.3")) == ["narrow", "narrow", "wide"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("192.0.2.0/24", (4, 24, 0xC00002)),
        ("192.0.2.1", (4, 32, 0xC0000201)),
        ("0.0.0.0/0", (4, 0, 0)),
        ("::ffff:10.0.0.0/104", (4, 8, 10)),
        ("2001:db8::/32", (6, 32, 0x20010DB8)),
    ],
)
def test_a_network(text: str, expected: tuple[int, int, int]) -> None:
    assert network(text) == expected


@pytest.mark.parametrize("text", ["10.0.0.1/8", "10.0.0.0/33", "256.0.0.1", "010.0.0.1", "1.2.3", "::1/64", "", "a/8"])
def test_what_is_no_network(text: str) -> None:
    with pytest.raises(EntryError):
        network(text)


@pytest.mark.parametrize("text", ["300.1.1.1", "x" * 100, "1.2.3.4.5", "\N{ARABIC-INDIC DIGIT ONE}.2.3.4"])
def test_what_is_no_address(text: str) -> None:
    assert number_of(text) == (0, 0)


def test_a_list_made_in_code_says_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="kind"):
        list_of("a", "hosts", [])
    with pytest.raises(ValueError, match="not a domain"):
        list_of("a", "domains", ["a b"])
    assert repr(list_of("a", "words", ["x", "X"])) == "List('a', words, 1 entries)"


# ------------------------------------------------------------------------------------------------------------ files


def load(tmp_path: Path, text: str | bytes, kind: Kind = Kind.DOMAINS) -> Any:
    file = tmp_path / "list.txt"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_list("blocked", kind, file)


def test_a_file_has_one_entry_a_line(tmp_path: Path) -> None:
    made = load(
        tmp_path, "\ufeff# of today\n\nspam.example\r\n  junk.example\t# seen twice\n#end.example\n\tother.example"
    )
    assert made.entries == {"spam.example", "junk.example", "other.example"}
    assert len(made) == 3


def test_a_hash_within_a_word_is_no_comment(tmp_path: Path) -> None:
    assert load(tmp_path, "a#b@y.example #c\n", Kind.ADDRESSES).entries == {"a#b@y.example"}


def test_an_empty_file_is_an_empty_list(tmp_path: Path) -> None:
    assert load(tmp_path, "").entries == frozenset()


def told(problems: Any) -> list[str]:
    """What is told, without the folder."""
    assert isinstance(problems, list)
    return [problem.show().replace(str(Path(problem.file).parent), "") for problem in problems]


def test_all_wrong_entries_are_told_with_their_places(tmp_path: Path) -> None:
    first, second, third = told(load(tmp_path, "ok.example\n  *.spam.example # all\nhttp://x.example/y\na b\n"))
    said = "is not a domain (expected a domain, e.g. example.com"
    assert first == (
        f'/list.txt:2:3: list blocked: "*.spam.example" {said}; nearest: spam.example)\n'
        "  2 |   *.spam.example # all\n"
        "    |   ^"
    )
    assert second.startswith(f'/list.txt:3:1: list blocked: "http://x.example/y" {said}; nearest: x.example)\n')
    assert third == f'/list.txt:4:1: list blocked: "a b" {said})\n  4 | a b\n    | ^'


@pytest.mark.parametrize(
    ("kind", "entry", "nearest"),
    [
        (Kind.DOMAINS, "a@x.example", ("x.example",)),
        (Kind.DOMAINS, "x.example.", ("x.example",)),
        (Kind.DOMAINS, "x..example", ()),
        (Kind.DOMAINS, "y" * 64 + ".example", ()),
        (Kind.ADDRESSES, "Ann <a@x.example>", ("a@x.example",)),
        (Kind.ADDRESSES, "mailto:a@x.example", ()),
        (Kind.ADDRESSES, "a@", ()),
        (Kind.NETWORKS, "10.0.0.1/8", ("10.0.0.0/8",)),
        (Kind.NETWORKS, "10.0.0.0-10.0.0.255", ()),
        (Kind.DIGESTS, "abcd", ()),
        (Kind.DIGESTS, "xy" * 32, ()),
    ],
)
def test_what_was_perhaps_meant(tmp_path: Path, kind: Kind, entry: str, nearest: tuple[str, ...]) -> None:
    found = load(tmp_path, f"{entry}\n", kind)
    if entry.startswith("mailto"):  # may be a local part
        assert isinstance(found, List)
        return
    assert [(one.line, one.column, one.nearest) for one in found] == [(1, 1, nearest)]


def test_a_file_of_another_kind_is_not_told_line_by_line(tmp_path: Path) -> None:
    found = load(tmp_path, "10.0.0.0/8 x\n" * 1000, Kind.NETWORKS)
    assert len(found) == 21
    assert found[-1].message == "980 entries more are wrong"


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    assert told(load(tmp_path, b"ok.example\nb\xfccher.example\n")) == [
        "/list.txt:2:2: list blocked: not UTF-8 (expected a file in UTF-8)"
    ]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    found = load_list("a", Kind.WORDS, tmp_path / "none.txt")
    assert isinstance(found, list)
    assert found[0].message == "can't be read: No such file or directory"


# ------------------------------------------------------------------------------------------------------ rule files


def read(tmp_path: Path, text: str) -> tuple[dict[str, List], list[Problem]]:
    """The lists of a rule file."""
    file = tmp_path / "rules.toml"
    file.write_text(text)
    data, positions = parse(file)
    problems: list[Problem] = []
    return read_lists(data.get("lists", {}), positions, problems), problems


def test_the_lists_of_a_rule_file(tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "spam.txt").write_text("spam.example\n")
    lists, problems = read(
        tmp_path,
        """\
[lists.spam]
kind = "domains"
file = "lists/spam.txt"
why = "Never good."

[lists.office]
kind = "networks"
entries = ["192.0.2.0/24", "2001:db8::1"]

[lists.nobody]
kind = "words"
entries = []
""",
    )
    assert problems == []
    assert lists["spam"].entries == {"spam.example"}
    assert (lists["spam"].why, lists["spam"].source.line) == ("Never good.", 1)
    assert lists["spam"].file == tmp_path / "lists" / "spam.txt"
    assert (len(lists["office"]), lists["office"].kind, lists["office"].file) == (2, Kind.NETWORKS, None)
    assert len(lists["nobody"]) == 0


@pytest.mark.parametrize(
    ("text", "line", "column", "said"),
    [
        ("lists = 3", 1, 9, "lists have names (expected [lists.NAME])"),
        ("[lists]\na = 3", 2, 5, 'list "a": 3 is not a list (expected [lists.NAME])'),
        ('[lists.A]\nkind = "words"\nentries = []', 1, 8, '"A" is not a name (expected letters a-z, digits and -)'),
        (
            '[lists.a]\nkind = "domain"\nentries = []',
            2,
            8,
            f'list "a": kind: "domain" is not a kind of list (expected {KINDS}; nearest: domains)',
        ),
        (
            "[lists.a]\nentries = []",
            1,
            1,
            f'list "a": kind is missing (expected {KINDS})',
        ),
        ('[lists.a]\nkind = "words"', 1, 1, 'list "a": there are no entries (expected file, or entries)'),
        (
            '[lists.a]\nkind = "words"\nfile = "x"\nentries = []',
            1,
            1,
            'list "a": file and entries are both there (expected file, or entries)',
        ),
        (
            '[lists.a]\nkind = "words"\nentrys = []\nentries = []',
            3,
            1,
            'list "a": unknown key "entrys" (nearest: entries)',
        ),
        (
            '[lists.a]\nkind = "networks"\nentries = ["10.0.0.0/8", "10.0.0.1/8"]',
            3,
            26,
            f'list "a": entries: "10.0.0.1/8" is not a network: bits are set behind its prefix ({A_NETWORK})',
        ),
        ('[lists.a]\nkind = "words"\nentries = [3]', 3, 12, 'list "a": entries: 3 is not a string (expected a string)'),
        (
            '[lists.a]\nkind = "words"\nentries = "x"',
            3,
            11,
            'list "a": entries: "x" is not an array (expected entries = ["…", "…"])',
        ),
        (
            '[lists.a]\nkind = "words"\nfile = ""',
            3,
            8,
            'list "a": file: "" is not a file (expected a path, relative to this file)',
        ),
        (
            '[lists.a]\nkind = "words"\nwhy = 3\nentries = []',
            3,
            7,
            'list "a": why: 3 is not a string (expected a sentence)',
        ),
    ],
)
def test_what_is_wrong_with_a_list(tmp_path: Path, text: str, line: int, column: int, said: str) -> None:
    lists, problems = read(tmp_path, text + "\n")
    assert lists == {}
    assert [str(problem) for problem in problems] == [f"{tmp_path}/rules.toml:{line}:{column}: {said}"]


def test_a_file_that_is_not_there_is_told_where_it_is_named(tmp_path: Path) -> None:
    _, problems = read(tmp_path, '[lists.a]\nkind = "words"\nfile = "none.txt"\n')
    assert [(one.file, one.line, one.column) for one in problems] == [(str(tmp_path / "rules.toml"), 3, 8)]
    assert "none.txt can't be read" in problems[0].message


def test_wrong_entries_are_told_in_their_own_file(tmp_path: Path) -> None:
    (tmp_path / "d.txt").write_text("a b\n")
    _, problems = read(tmp_path, '[lists.a]\nkind = "domains"\nfile = "d.txt"\n')
    assert [(one.file, one.line, one.column) for one in problems] == [(str(tmp_path / "d.txt"), 1, 1)]


def test_a_file_that_is_no_toml_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(TomlError):
        read(tmp_path, "[lists\n")
