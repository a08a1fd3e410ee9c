"""Places in TOML files: every key and value where an editor would show it, and problems that point there."""

from pathlib import Path

import pytest

from smtpproxy.policy.toml import (
    KeyPath,
    Place,
    Positions,
    Problem,
    TomlError,
    nearest,
    nearest_durations,
    nearest_sizes,
    parse,
    parse_duration,
    parse_size,
    shown,
)

TEXT = """\
# a comment
rules = ["a",
  # another
  'b']
[limits]
recipients = 10
"quoted \\u0041" . inner = 3
[[rule]]
name = "é" # x
then = { "é" = 1, limit = "25 MiB", a.b = 2 }
[[rule]]
\tname = "y"
[rule.sub]
q = \"\"\"
more\"\"\"
[[rule.deep]]
z = 1
[[rule.deep]]
z = 2
arr = [ { a = 1 }, 2 ]
[[rule]]
name = "z"
"""

# path, place of the key, place of the value
PLACES: tuple[tuple[KeyPath, tuple[int, int], tuple[int, int]], ...] = (
    (("rules",), (2, 1), (2, 9)),
    (("rules", 0), (2, 10), (2, 10)),
    (("rules", 1), (4, 3), (4, 3)),  # the comment before it is no element
    (("limits",), (5, 2), (5, 1)),
    (("limits", "recipients"), (6, 1), (6, 14)),
    (("limits", "quoted A"), (7, 1), (7, 1)),  # escapes are read as TOML reads them
    (("limits", "quoted A", "inner"), (7, 19), (7, 27)),
    (("rule", 0), (8, 3), (8, 1)),
    (("rule", 0, "name"), (9, 1), (9, 8)),
    (("rule", 0, "then"), (10, 1), (10, 8)),
    (("rule", 0, "then", "é"), (10, 10), (10, 16)),
    (("rule", 0, "then", "limit"), (10, 19), (10, 27)),  # columns are characters, not octets
    (("rule", 0, "then", "a", "b"), (10, 39), (10, 43)),
    (("rule", 1), (11, 3), (11, 1)),
    (("rule", 1, "name"), (12, 2), (12, 9)),
    (("rule", 1, "sub", "q"), (14, 1), (14, 5)),
    (("rule", 1, "deep", 0, "z"), (17, 1), (17, 5)),
    (("rule", 1, "deep", 1, "z"), (19, 1), (19, 5)),
    (("rule", 1, "deep", 1, "arr", 0, "a"), (20, 11), (20, 15)),
    (("rule", 1, "deep", 1, "arr", 1), (20, 20), (20, 20)),
    (("rule", 2, "name"), (22, 1), (22, 8)),
    # what is not there: what surrounds it
    (("rule", 2, "why"), (21, 3), (21, 1)),
    (("rule", 2, "then", "limit"), (21, 3), (21, 1)),
    (("nothing",), (1, 1), (1, 1)),
)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize(("path", "key", "value"), PLACES, ids=[".".join(map(str, row[0])) for row in PLACES])
def test_places(tmp_path: Path, path: KeyPath, key: tuple[int, int], value: tuple[int, int], newline: str) -> None:
    file = tmp_path / "x.toml"
    file.write_bytes(TEXT.replace("\n", newline).encode())
    data, positions = parse(file)
    assert data["rule"][0]["then"]["limit"] == "25 MiB"
    assert positions.key(path) == key
    assert positions.value(path) == value


def test_a_problem_points_at_the_value_or_the_key() -> None:
    positions = Positions("rules/site.toml", 'x = 1\n\tthen = { limit = "25 Mb" }\r\n')
    problem = positions.problem(
        ("then", "limit"), "is not a size", where="then.limit", expected="a size", nearest=["25 MB", "25 MiB"]
    )
    told = "rules/site.toml:2:19: then.limit: is not a size (expected a size; nearest: 25 MB, 25 MiB)"
    assert str(problem) == told
    assert problem.show() == f'{told}\n  2 |  then = {{ limit = "25 Mb" }}\n    |                   ^'
    problem = positions.problem(("then", "limit"), "unknown", where="", key=True, severity="warning")
    assert str(problem) == "rules/site.toml:2:11: warning: unknown"
    assert problem.as_json() == {
        "file": "rules/site.toml",
        "line": 2,
        "column": 11,
        "where": "",
        "message": "unknown",
        "expected": "",
        "nearest": (),
        "severity": "warning",
    }


def test_a_long_line_is_shown_around_the_caret() -> None:
    problem = Positions("f", f'a = "{"x" * 300}"; b = 1').problem(("a",), "m", where="")
    assert len(problem.show().splitlines()[1]) <= 110
    late = Problem("f", 1, 250, "", "m", text="." * 249 + "!" + "." * 100)
    _, line, caret = late.show().splitlines()
    assert line[caret.index("^")] == "!"


def test_a_problem_of_a_whole_file_has_no_place() -> None:
    assert (
        str(Problem("f", 0, 0, "", "no such file"))
        == Problem("f", 0, 0, "", "no such file").show()
        == "f: no such file"
    )


@pytest.mark.parametrize(
    ("octets", "line", "column", "message"),
    [
        (b"a = \n", 1, 5, "not TOML: Invalid value"),
        (b"a = 1\r\na = 2\r\n", 2, 6, "not TOML: Cannot overwrite a value"),
        (b"a = [1,\n 2\n", 2, 3, "not TOML: Unclosed array"),
        (b"a = [1,\n 2", 2, 3, "not TOML: Unclosed array"),
        (b"[", 1, 2, "not TOML: "),
        (b"ok = 1\nb = 'caf\xe9'\n", 2, 9, "not TOML: not UTF-8"),
        (b"\xef\xbb\xbfa = 1\n", 1, 1, "not TOML: a byte order mark"),
        (b"a = " + b"9" * 5000, 0, 0, "not TOML: "),  # Python refuses to read such a number
        (b"a = " + b"[" * 100_000, 0, 0, "nested too deeply"),
    ],
)
def test_what_is_not_toml_is_one_problem(tmp_path: Path, octets: bytes, line: int, column: int, message: str) -> None:
    file = tmp_path / "x.toml"
    file.write_bytes(octets)
    with pytest.raises(TomlError) as caught:
        parse(file)
    problem = caught.value.problem
    assert (problem.file, problem.line, problem.column) == (str(file), line, column)
    assert problem.message.startswith(message)
    assert problem.severity == "error"


def test_what_cannot_be_read_is_one_problem(tmp_path: Path) -> None:
    with pytest.raises(TomlError, match=r"x\.toml: can't be read: No such file"):
        parse(tmp_path / "x.toml")
    with pytest.raises(TomlError, match="can't be read: Is a directory"):
        parse(tmp_path)


def test_keys_may_be_dotted_without_end(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text(".".join("a" * 2000) + " = 1")
    _, positions = parse(file)
    assert positions.key(("a",) * 2000) == (1, 3999)


@pytest.mark.parametrize(
    ("size", "octets"),
    [
        ("25 MiB", 25 * 1024**2),
        ("25MiB", 25 * 1024**2),
        ("10MB", 10_000_000),
        ("64 KiB", 65_536),
        ("64 kB", 64_000),
        ("2 GiB", 2 * 1024**3),
        ("1 GB", 10**9),
        ("1000000", 1_000_000),
        (1_000_000, 1_000_000),
    ],
)
def test_sizes(size: str | int, octets: int) -> None:
    assert parse_size(size) == octets


@pytest.mark.parametrize(
    "size", ["", "MiB", "25 Mb", "25 mib", "25  MiB", " 25 MiB", "-1", "1.5 GiB", "1_000", "9" * 21, "٣"]
)
def test_no_sizes(size: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(size)


def test_nearest_names_in_any_case() -> None:
    assert nearest("xech50", ["XEXCH50", "AUTH"]) == ["XEXCH50"]
    assert nearest("", ["XEXCH50"]) == []
    assert nearest_sizes("25 Mb") == nearest_sizes("25mib") == ["25 MB", "25 MiB"]
    assert nearest_sizes("25 KB") == ["25 kB", "25 KiB"]
    assert nearest_sizes("much") == nearest_sizes("25 lots") == []


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        (3, "3"),
        (10**40, "a number of more than 30 digits"),
        ([1], "an array"),
        ({}, "a table"),
        ('a"\\b', '"a\\"\\\\b"'),
        ("\x1b[31m\n\u202e", '"\\x1b[31m\\n\\u202e"'),  # nothing that a terminal would act on
        ("x" * 70, f'"{"x" * 60}…"'),
    ],
)
def test_wrong_values_are_shown_short_and_safe(value: object, text: str) -> None:
    assert shown(value) == text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a = 'abc def'", "abc def"),
        ("a = ''", ""),
        ('x = 1 # é\na = "a\\tb\\u0041\\U0001F600\\"c\\\\é"', 'a\tbA😀"c\\é'),
        ("a = '''\nfirst\n  second 'one' X'''", "first\n  second 'one' X"),
        ("a = '''no newline first\r\nthen one'''", "no newline first\nthen one"),
        ('a = """x\\\n   yX\n \\   \n\n  z ""q"""', 'xyX\n z ""q'),
        ('a = [1, { b = "\\n\\nabX" }]', "\n\nabX"),
    ],
)
def test_every_character_of_a_string_has_its_place(tmp_path: Path, text: str, value: str) -> None:
    """In all four kinds of strings: the place is that of the character, or of the escape that stands for it."""
    file = tmp_path / "a.toml"
    file.write_bytes(f"{text}\n".encode())
    data, positions = parse(file)
    path: KeyPath = ("a",) if isinstance(data["a"], str) else ("a", 1, "b")
    found = data["a"] if isinstance(data["a"], str) else data["a"][1]["b"]
    assert found == value
    lines = text.split("\n")
    last = positions.value(path)
    for index, character in enumerate(value):
        before = value[:index]
        place = positions.inside(path, Place(before.count("\n") + 1, index - before.rfind("\n")))
        shown_there = (lines[place.line - 1] + "\n")[place.column - 1 :]
        assert shown_there[0] in (character, "\\", "\r"), (index, character)
        assert place > last
        last = place


def test_a_place_in_what_is_no_string_is_its_own(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("a = 12345\n")
    assert parse(file)[1].inside(("a",), Place(1, 3)) == (1, 5)


@pytest.mark.parametrize(
    ("duration", "seconds"),
    [
        ("500ms", 0.5),
        ("5s", 5),
        ("5 s", 5),
        ("10m", 600),
        ("1h", 3600),
        ("7d", 604_800),
        (3, 3),
        (0.25, 0.25),
        ("0s", 0),
    ],
)
def test_durations(duration: str | float, seconds: float) -> None:
    assert parse_duration(duration) == seconds


@pytest.mark.parametrize(
    "duration", ["", "5", "s", "5 sec", "-5s", "1.5h", "1h30m", -1, float("nan"), float("inf"), "٣s"]
)
def test_no_durations(duration: str | float) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(duration)


def test_nearest_durations() -> None:
    assert nearest_durations("5 sec") == ["5s"]
    assert nearest_durations("10 Min") == ["10ms", "10m"]
    assert nearest_durations("10") == ["10s"]
    assert nearest_durations("soon") == nearest_durations("3 years") == []
