"""`smtpproxy audit search`, `tail` and `stats`, and the page about them."""

import csv
import io
import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from smtpproxy import audit_asking_cli, audit_options, audit_show_cli
from smtpproxy.audit.entries import entry_of
from smtpproxy.inquiry.counting import NAMES
from smtpproxy.inquiry.filters import OPTIONS
from smtpproxy.store.store import DATABASE, Store
from tests.inquiry.mails import of_the_page, varied
from tests.store.filling import Writer

PAGE = (Path(__file__).parents[1] / "docs" / "audit-asking.md").read_text("utf-8")
NOW = datetime(2026, 11, 24, 10, 0, tzinfo=UTC).timestamp()
COMMANDS = [*audit_asking_cli.COMMANDS, *audit_show_cli.COMMANDS]
GROUP = click.Group(commands={str(command.name): command for command in COMMANDS})
PROGRAM = """import signal
from tests.test_audit_asking_cli import GROUP
signal.signal(signal.SIGINT, signal.default_int_handler)  # who runs the tests may ignore it
GROUP(prog_name='smtpproxy audit')"""
DEADLINE = 30.0


def run(*words: str, **environment: str) -> Result:
    return CliRunner().invoke(GROUP, words, prog_name="smtpproxy audit", env={"COLUMNS": "80", **environment})


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("audit") / "store"
    varied(directory).close()
    return directory


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The store that the page is about, and the configuration that names it."""
    of_the_page(tmp_path / "store")
    (tmp_path / "smtpproxy.toml").write_text('[audit]\nstore = "store"\n')
    monkeypatch.setattr(audit_options, "CONFIG", str(tmp_path / "smtpproxy.toml"))
    monkeypatch.setattr("smtpproxy.audit_asking_cli.time.time", lambda: NOW)
    return tmp_path / "store"


# ------------------------------------------------------------------------------------------------------------ the page


def test_the_examples_of_the_page_are_so(page: Path) -> None:
    """Octet for octet."""
    blocks = re.findall(r"```console\n\$ smtpproxy audit ([^\n]*)\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 8
    for words, shown in blocks:
        result = run(*shlex.split(words))
        assert (result.exit_code, result.output) == (0, shown), words


def test_the_other_commands_of_the_page_work(page: Path) -> None:
    """And find something."""
    commands = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
    assert len(commands) == 12
    for command in commands:
        words = shlex.split(command.removeprefix("smtpproxy audit ").partition(" > ")[0].partition(" | ")[0])
        result = run(*words)
        assert (result.exit_code, result.stderr) == (0, ""), command
        assert result.stdout.count("\n") > ("--csv" in words), command


def test_the_page_has_every_option_and_everything_to_count_by() -> None:
    table = re.findall(r"^\| (`--.*?) \|", PAGE, re.MULTILINE)
    assert {name for row in table for name in re.findall(r"--([a-z-]+)", row)} == {*OPTIONS, "since", "until"}
    counted = re.search(r"^`--by` counts by (.*?)\.", PAGE, re.DOTALL | re.MULTILINE)
    assert counted is not None
    assert re.findall(r"`([a-z-]+)`", counted[1]) == list(NAMES)


def test_the_page_has_every_key(filled: Path) -> None:
    heads = run("search", "--store", str(filled), "--csv").stdout.partition("\n")[0].split(",")
    rows = re.findall(r"^\| (`[a-z0-9_`, ]+) \|", PAGE[PAGE.index("| key |") :], re.MULTILINE)
    assert sorted(name for row in rows for name in re.findall(r"`(\w+)`", row)) == sorted(heads)


# ---------------------------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("name", ["search", "tail", "stats"])
def test_every_help_has_examples_that_are_right_and_exit_codes(name: str, page: Path) -> None:
    text = run(name, "--help").stdout
    examples = re.findall(r"^    smtpproxy audit (.*)$", text, re.MULTILINE)
    assert len(examples) >= 4
    for example in examples:
        words = [word for word in shlex.split(example.partition(" > ")[0].partition(" | ")[0]) if word != "--follow"]
        assert words[0] == name
        assert run(*words).exit_code == 0, example
    assert re.findall(r"^    (\d)  ", text, re.MULTILINE) == ["0", "2", "3"]


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["search", "--json", "--csv"], "Say --json or --csv, not both."),
        (["stats", "--json", "--csv"], "Say --json or --csv, not both."),
        (["search", "--client", "x"], "--client: 'x' is no address and no network"),
        (["tail", "--verdict", "anser"], "--verdict: there is no verdict 'anser'; did you mean answer?"),
        (["stats", "--anomaly", "ods-hello"], "--anomaly: there is no anomaly 'ods-hello'; did you mean odd-hello?"),
        (["search", "--since", "1h", "--until", "2h"], "there is no time between them"),
        (["search", "--limit", "-1"], "-1 is not in the range"),
        (["stats", "--by", "moon"], "'moon' is not one of"),
    ],
)
def test_what_makes_no_sense_ends_with_2(filled: Path, words: list[str], why: str) -> None:
    result = run(*words, "--store", str(filled))
    assert (result.exit_code, result.stdout) == (2, "")
    assert why in result.stderr


@pytest.mark.parametrize("name", ["search", "tail", "stats"])
def test_a_store_that_can_not_be_read_ends_with_3(name: str, tmp_path: Path) -> None:
    result = run(name, "--store", str(tmp_path))
    assert (result.exit_code, result.stdout) == (3, "")
    assert f"smtpproxy: there is no store in {tmp_path}" in result.stderr
    (tmp_path / DATABASE).write_bytes(b"x" * 4096)
    assert run(name, "--store", str(tmp_path)).exit_code == 3


def test_a_name_that_does_not_occur_is_said_and_nothing_found(filled: Path) -> None:
    result = run("tail", "--store", str(filled), "--tag", "od")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "smtpproxy: --tag: there is no tag 'od' in this record; did you mean odd?\n"


# -------------------------------------------------------------------------------------------------------------- search


def searched(store: Path, *words: str) -> list[dict[str, object]]:
    result = run("search", "--store", str(store), "--json", *words)
    assert (result.exit_code, result.stderr) == (0, "")
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_all_formats_have_the_same(filled: Path) -> None:
    objects = searched(filled, "--limit", "0")
    table = run("search", "--store", str(filled), "--limit", "0").stdout.splitlines()
    rows = list(csv.DictReader(io.StringIO(run("search", "--store", str(filled), "--limit", "0", "--csv").stdout)))
    assert len(objects) == len(table) - 1 == len(rows) > 200
    for one, line, row in zip(objects, table[1:], rows, strict=True):
        assert str(one["session"]) in line
        assert row["session"] == one["session"]
        assert row["number"] == str(one["number"])
        recipients = one.get("rcpt", [])
        assert isinstance(recipients, list)
        assert row["rcpt"].split() == recipients


def test_how_many_and_which_end(filled: Path) -> None:
    everything = searched(filled, "--limit", "0")
    assert searched(filled) == everything[:100]
    assert searched(filled, "--limit", "3", "--oldest-first") == everything[::-1][:3]
    result = run("search", "--store", str(filled), "--limit", "3")
    assert result.stderr == "smtpproxy: there may be more than these 3: --limit 0 shows all\n"


def test_nothing_found_is_nothing_said(filled: Path) -> None:
    for words in ((), ("--json",)):
        result = run("search", "--store", str(filled), "--client", "203.0.113.99", *words)
        assert (result.exit_code, result.output) == (0, "")
    result = run("search", "--store", str(filled), "--client", "203.0.113.99", "--csv")
    assert (result.exit_code, result.output.count("\n")) == (0, 1)


EVIL = "=1+1\x1b[31m\u009b\u202e\r\n\x07@evil.example"


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    """What peers chose to say, everywhere."""
    (tmp_path / "store").mkdir()
    store = Store(tmp_path / "store", create=True)
    writer = Writer()
    refused = (f"x{EVIL}",)
    session = writer.session(
        EVIL, (EVIL,), refused=refused, identity=EVIL, message_id=EVIL, server=EVIL, rule=EVIL, anomaly=EVIL
    )
    store.append(list(session))
    store.append([writer.line(f"0123456789-1{EVIL}", "violation", {"anomaly": EVIL}, {"why": EVIL})])
    store.append([writer.line("", EVIL, {EVIL: EVIL})])
    store.close()
    return tmp_path / "store"


@pytest.mark.parametrize(
    "words",
    [
        "search", "search --csv", "search --json", "tail", "tail --json", "tail --records", "tail --records --json",
        "stats", "stats --by sender", "stats --by domain --csv", "stats --by rule --json",
        "stats --by recipient --ascii",
    ],
)  # fmt: skip
def test_what_peers_chose_is_printable(evil: Path, words: str) -> None:
    result = run(*words.split(), "--store", str(evil))
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.count("\n") >= 1
    assert [c for c in result.stdout if not c.isprintable() and c != "\n"] == []
    if words == "search --csv":
        (row,) = csv.DictReader(io.StringIO(result.stdout))
        assert row["mail"].startswith("'=1+1?[31m???")
        assert row["rcpt"].startswith("'=")
        assert row["number"].isdigit()


# ---------------------------------------------------------------------------------------------------------------- tail


def test_the_last_lines(filled: Path) -> None:
    whole = run("tail", "--store", str(filled), "-n", "100000").stdout.splitlines()
    assert run("tail", "--store", str(filled), "-n", "7").stdout.splitlines() == whole[-7:]
    assert run("tail", "--store", str(filled)).stdout.splitlines() == whole[-20:]
    assert run("tail", "--store", str(filled), "-n", "0").output == ""
    assert any(line.endswith("FOO: 502 no (answer; rule default)") for line in whole)
    assert any(line.endswith("tls-failed of the client: bad") for line in whole)
    watched = "RCPT TO:<o@x.example>: 450 4.2.1 Later (rule watching would have said answer)"
    assert any(line.endswith(watched) for line in whole)


def test_every_record_as_it_is(filled: Path) -> None:
    found = [
        json.loads(line) for line in run("tail", "--store", str(filled), "--records", "--json").stdout.splitlines()
    ]
    assert [one["number"] for one in found] == list(range(found[0]["number"], found[0]["number"] + 20))
    assert found[-1]["kind"] == "link-close"
    text = run("tail", "--store", str(filled), "--records", "--session", "0123456789-1", "-n", "9999").stdout
    assert "link-connect: listener in, server 198.51.100.25:25, client " in text
    assert '"salt"' not in text


class Program:
    """A command as a process of its own, its output in a file."""

    def __init__(self, output: Path, *words: str, terminal: int | None = None) -> None:
        self.output = output
        with output.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, *words], stdout=terminal or file, stderr=subprocess.PIPE
            )

    def shows(self, number: int) -> list[str]:
        """Its lines, once there are so many."""
        deadline = time.monotonic() + DEADLINE
        while len(lines := self.output.read_text().splitlines()) < number:
            assert time.monotonic() < deadline, lines
            assert self.process.poll() is None
            time.sleep(0.01)
        return lines

    def ends(self) -> tuple[int, bytes]:
        _, said = self.process.communicate(timeout=DEADLINE)
        return self.process.returncode, said


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    (tmp_path / "store").mkdir()
    made = Store(tmp_path / "store", create=True)
    yield made
    made.close()


def test_following_shows_what_comes_and_ends_quietly(store: Store, tmp_path: Path) -> None:
    """Through a restart of who writes, as well."""
    writer = Writer()
    store.append(list(writer.session(client="192.0.2.1")))
    words = ("--store", str(tmp_path / "store"), "--client", "192.0.2.0/24")
    program = Program(tmp_path / "shown", "tail", *words, "--follow")
    try:
        assert "192.0.2.1" in program.shows(1)[0]
        store.append([*writer.session(client="10.0.0.1"), *writer.session(client="192.0.2.2")])
        assert "192.0.2.2" in program.shows(2)[1]
        store.close()
        other = Store(tmp_path / "store")
        other.append(list(writer.session(client="192.0.2.3")))
        other.close()
        assert "192.0.2.3" in program.shows(3)[2]
        program.process.send_signal(signal.SIGINT)
        assert program.ends() == (0, b"")
    finally:
        program.process.kill()
        program.process.wait()


def test_who_has_seen_enough_goes(filled: Path) -> None:
    """`| head`: the pipe is closed at the other end."""
    for words in (["search", "--limit", "0"], ["tail", "-n", "100000"], ["stats", "--by", "sender", "--limit", "0"]):
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *words, "--store", str(filled)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
        process.stderr.close()
        assert process.wait(DEADLINE) == 0


# --------------------------------------------------------------------------------------------------------------- stats


def test_counts_in_every_format(filled: Path) -> None:
    objects = [
        json.loads(one) for one in run("stats", "--store", str(filled), "--by", "tls", "--json").stdout.splitlines()
    ]
    rows = list(csv.DictReader(io.StringIO(run("stats", "--store", str(filled), "--by", "tls", "--csv").stdout)))
    lines = run("stats", "--store", str(filled), "--by", "tls").stdout.splitlines()
    assert {one["name"] for one in objects} == {"TLSv1.3", "TLSv1.2", "(none)"}
    assert [{**one, "mails": str(one["mails"])} for one in objects] == rows
    assert [line.split()[:2] for line in lines] == [[row["name"], row["mails"]] for row in rows]
    assert lines[0].endswith("██")
    assert len(lines[0]) == 80


def test_so_many_names(filled: Path) -> None:
    result = run("stats", "--store", str(filled), "--by", "domain", "--limit", "3")
    assert result.stdout.count("\n") == 3
    assert re.fullmatch(r"smtpproxy: \d+ more: --limit 0 shows all\n", result.stderr)
    everything = run("stats", "--store", str(filled), "--by", "domain", "--limit", "0")
    assert everything.stdout.count("\n") > 40
    assert everything.stderr == ""


def test_a_page_of_everything(filled: Path) -> None:
    result = run("stats", "--store", str(filled), "--ascii")
    assert re.findall(r"^[A-Z]+$", result.stdout, re.MULTILINE) == [
        "OUTCOME", "VERDICT", "RULE", "ANOMALY", "REPLY", "TLS", "DOMAIN", "DAY",
    ]  # fmt: skip
    number = len(searched(filled, "--limit", "0"))
    assert result.stdout.startswith(f"{number} mails and sessions without any\n")
    assert result.stdout.isascii()
    empty = run("stats", "--store", str(filled), "--client", "203.0.113.99")
    assert (empty.exit_code, empty.stdout) == (0, "0 mails and sessions without any\n")


def test_bars_are_of_what_the_terminal_has(filled: Path) -> None:
    for encoding, sign in (("ascii", "#"), ("utf-8", "█")):
        result = subprocess.run(
            [sys.executable, "-c", PROGRAM, "stats", "--by", "tls", "--store", str(filled)],
            capture_output=True,
            env={**os.environ, "PYTHONIOENCODING": encoding},
            timeout=DEADLINE,
        )
        assert (result.returncode, result.stderr) == (0, b"")
        assert sign in result.stdout.decode(encoding)


def test_what_the_terminal_has_not_is_no_reason_to_stop(tmp_path: Path, store: Store) -> None:
    store.append(list(Writer().session("иван@example.org")))
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, "search", "--store", str(tmp_path / "store")],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
        timeout=DEADLINE,
    )
    assert b"<????@example.org>" in result.stdout


# -------------------------------------------------------------------------------------------------------------- colour


def on_a_terminal(*words: str, **environment: str) -> str:
    ours, theirs = pty.openpty()
    code = f"import os\nos.environ.pop('NO_COLOR', None)\nos.environ.update({environment!r})\n{PROGRAM}"
    process = subprocess.Popen([sys.executable, "-c", code, *words], stdout=theirs)
    os.close(theirs)
    shown = b""
    try:
        while some := os.read(ours, 65_536):
            shown += some
    except OSError:  # nobody has the other end any more
        pass
    os.close(ours)
    assert process.wait(DEADLINE) == 0
    return shown.decode()


def test_colour_is_for_terminals_where_nobody_minds(filled: Path) -> None:
    words = ("search", "--outcome", "server", "--limit", "2", "--store", str(filled))
    assert on_a_terminal(*words).count("\x1b[31m") == 2
    assert "\x1b" not in on_a_terminal(*words, NO_COLOR="1")
    assert "\x1b" not in run(*words).stdout
    assert "\x1b[33m" in on_a_terminal("tail", "-n", "2", "--verdict", "rewrite", "--store", str(filled))
    assert "\x1b" not in on_a_terminal("tail", "-n", "2", "--verdict", "rewrite", "--json", "--store", str(filled))


# ----------------------------------------------------------------------------------------------------- what can't be


@pytest.mark.parametrize(
    "words",
    [
        *(
            (*command, number)
            for command in (("search", "--limit"), ("tail", "-n"), ("stats", "--by", "sender", "--limit"))
            for number in (str(10**20), str(10**30), str(2**63), "9" * 5000, "-1", "x")
        ),
        *(
            ("search", f"--{name}={value}")
            for name, value in (
                ("size", "9" * 5000),
                ("size", ">" + "9" * 5000),
                ("size", "²"),
                ("size", "٣"),
                ("reply", "4٥٠"),
                ("since", "0000-01-01"),
                ("since", "99999-01-01"),
                ("since", "9" * 5000 + "d"),
                ("since", "nan"),
                ("until", "9999-12-31"),
                ("client", "::/" + "9" * 5000),
                ("sender", "\udcff"),
                ("session", "a*b*c*d"),
            )
        ),
        ("search", "--since", "2026-11-24", "--until", "2026-11-23"),
    ],
    ids=lambda words: " ".join(words)[:40].encode("ascii", "backslashreplace").decode(),
)
def test_what_makes_no_sense_is_said_so(filled: Path, words: tuple[str, ...]) -> None:
    done = run(*words, "--store", str(filled))
    assert (done.exit_code, done.stdout) == (2, "")
    assert isinstance(done.exception, SystemExit)
    assert "Error: " in done.stderr.splitlines()[-1]
    assert "sys.set_int_max_str_digits" not in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("search", "--limit", "0"),
        ("search", "--limit", str(10**9)),
        ("tail", "-n", str(10**9)),
        ("search", "--size", f"<{10**30}"),
        ("search", "--size", f">{10**30}"),
        ("search", "--since", "0001-01-01T00:00:00+23:59"),
        ("search", "--until", "9999-12-31T23:59:59-23:59"),
        ("search", "--sender", "*@\U0010ffff"),
        ("search", "--session", "\U0010ffff*"),
    ],
    ids=" ".join,
)
def test_what_is_at_the_edge_makes_sense(filled: Path, words: tuple[str, ...]) -> None:
    assert run(*words, "--store", str(filled)).exit_code == 0


def test_names_that_were_perhaps_meant_are_printable(tmp_path: Path) -> None:
    directory = tmp_path / "store"
    directory.mkdir()
    store = Store(directory, create=True)
    store.append(list(Writer().session(rule="no-macros\x9b31m\u202e")))
    store.close()
    done = run("search", "--store", str(directory), "--rule", "no-macros")
    assert "did you mean no-macros?31m??" in done.stderr
    assert all(c.isprintable() for line in done.stderr.splitlines() for c in line)


def test_what_was_erased_is_said_so(tmp_path: Path) -> None:
    """It is not taken for a null reverse-path, nor for somebody without a name."""
    directory = tmp_path / "store"
    directory.mkdir()
    store = Store(directory, create=True)
    writer = Writer()
    some = list(writer.session("ann@example.org", ("bob@example.net", "carl@example.net")))
    store.append([entry_of(line) if b"ann@" in line or b"192.0.2.1:" in line else line for line in some])
    store.append([entry_of(line) if b"bob@" in line else line for line in writer.session("")])
    store.close()
    where = ("--store", str(directory))
    lines = run("search", "--oldest-first", *where).stdout.splitlines()[1:]
    assert lines[0].split()[3] == "(erased)"
    assert "(erased)" in lines[0].split("1,000")[1]
    assert "<>" not in lines[0]
    said = run("tail", *where).stdout.splitlines()
    assert "(erased)" in said[0]
    assert "<>" not in said[0]
    found = [json.loads(line) for line in run("search", "--oldest-first", "--json", *where).stdout.splitlines()]
    assert {"client", "sender"} <= set(found[0]["erased"])
    assert not {"client", "mail"} & set(found[0])
    assert "" not in found[0].get("rcpt", [])
    assert list(csv.DictReader(io.StringIO(run("search", "--csv", *where).stdout)))[1]["erased"].startswith("client")
