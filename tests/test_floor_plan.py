"""The house stands as docs/architecture.md draws it: which way imports go, what a floor may know, where its tests are.

Every import counts: those in functions, those under TYPE_CHECKING and those by `import_module("...")` too. Where a
test here is in the way of something sensible, change the table it reads, and the drawing.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
PACKAGE = REPO / "smtpproxy"

# Who may import whom, beside its own kind. A name stands for everything under it; "" is everything.
ARROWS: dict[str, tuple[str, ...]] = {
    "__init__": (),
    "smtp": (),
    "session": ("smtp",),
    "policy": ("smtp", "session"),
    "audit": ("smtp", "session"),
    "quarantine": ("smtp",),
    "tls": ("smtp",),
    "config": ("session.limits", "session.postures", "policy.toml"),
    "store": ("columns", "audit"),
    "metrics": ("smtp", "session"),
    "inquiry": ("columns", "smtp.anomalies", "policy.toml", "audit", "store"),
    "net": ("smtp", "session", "policy", "audit", "quarantine", "tls", "config", "store", "metrics"),
    "gateway": ("config", "net.privileges"),
    "gateway_cli": ("config", "gateway"),
    "columns": (),
    "audit_options": ("columns", "store"),
    "audit_key_cli": ("audit", "store", "audit_options"),
    "privacy_cli": ("audit", "audit_options"),
    "audit_proof_cli": ("columns", "audit", "store", "audit_options"),
    "audit_asking_cli": ("store", "inquiry", "audit_options", "columns"),
    "audit_show_cli": ("store", "inquiry", "audit_options"),
    "audit_export_cli": ("store", "inquiry", "audit_options", "columns", "audit_asking_cli"),
    "audit_cli": (
        *("audit_asking_cli", "audit_export_cli", "audit_key_cli", "audit_proof_cli", "audit_show_cli"),
        "privacy_cli",
    ),
    "quarantine_cli": ("quarantine", "columns", "config", "policy.toml"),
    "status_cli": ("columns", "config", "policy.toml", "net"),
    "proving": ("columns", "smtp", "session", "policy", "audit"),
    "rehearse_cli": ("columns", "config", "smtp", "session", "policy", "proving"),
    "rules_cli": ("columns", "config", "smtp", "policy", "proving", "rehearse_cli"),
    "explain": ("smtp", "policy"),
    "explain_rules": ("policy", "explain"),
    "explain_cli": ("explain", "explain_rules"),
    "docgen": ("smtp", "policy", "explain", "explain_rules", "config"),
    "demo": ("",),
    "ca_cli": ("tls",),
    "cli": ("",),
    "__main__": ("cli",),
}

# The two lowest floors have the standard library without what pyproject.toml bans, there with a reason for each.
PURE = ("smtp", "session")
BANNED = frozenset(
    tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ruff"]["lint"]["flake8-tidy-imports"][
        "banned-api"
    ]
)
_FILES_AND_CLOCK = frozenset({"os", "pathlib", "tempfile", "datetime", "time"})
FORBIDDEN: dict[str, frozenset[str]] = {
    **dict.fromkeys(PURE, BANNED),
    "policy": BANNED - _FILES_AND_CLOCK - {"importlib"},  # reads rule files, and functions that they name
    "audit": BANNED - _FILES_AND_CLOCK - {"select"},  # writes its file, says when, asks a pipe whether it has room
    "quarantine": BANNED - _FILES_AND_CLOCK - {"select", "ssl"},  # keeps mails; the command line sends them on
    "tls": BANNED - _FILES_AND_CLOCK - {"ssl", "secrets"},  # contexts, keys and serial numbers; no connection
}
EVERYWHERE = frozenset({"asyncio", "logging"})
SLEEPS = {"audit.journal": "who begins to write one waits for another one who begins"}

# Floors whose modules each have a test file of their name, tests/<floor>/test_<module>.py; a package inside a floor
# may have one for all of it. The others, and where they are tested instead:
TESTED_FLOORS = (
    *("smtp", "session", "policy", "audit", "store", "metrics", "inquiry", "tls", "net", "gateway", "quarantine"),
    "proving",
)
COVERED_BY: dict[str, tuple[str, str]] = {
    "smtp/errors.py": ("smtp/test_readers.py", "the one exception, raised by every reader"),
    "policy/archives.py": ("policy/test_mime.py", "attachments that hold others"),
    "policy/kinds.py": ("policy/test_mime.py", "what attachments are by their octets"),
    "policy/mimelimits.py": ("policy/test_mime.py", "how far a mail is looked into"),
    "policy/names.py": ("policy/test_mime.py", "what attachments are called"),
    "policy/transfer.py": ("policy/test_mime.py", "how attachments are encoded"),
    "policy/cel.py": ("policy/test_expr.py", "what evaluates conditions"),
    "policy/functions.py": ("policy/test_expr.py", "what conditions call"),
    "policy/mailfields.py": ("policy/test_fields.py", "the fields of a mail"),
    "policy/membership.py": ("policy/test_lists.py", "what is in a list"),
    "policy/reading.py": ("policy/test_mistakes.py", "what is wrong with what conditions name"),
    "policy/sessionfields.py": ("policy/test_fields.py", "the fields of a session"),
    "policy/slots.py": ("policy/test_expr.py", "what conditions are evaluated with"),
    "policy/tokens.py": ("policy/test_mistakes.py", "the words of a condition and their places"),
    "policy/view.py": ("policy/test_fields.py", "what fields are of"),
    "policy/vocabulary.py": ("policy/test_fields.py", "what a field is"),
    "proving/assuming.py": ("proving/test_reenacting.py", "sessions of every kind come out as they were"),
    "proving/recorded.py": ("proving/test_history.py", "what is read back"),
    "proving/rehearsed.py": ("proving/test_replay.py", "what a rule set says of mails nobody has"),
    "proving/showing.py": ("test_rehearse_cli.py", "what is printed"),
    "proving/steps.py": ("proving/test_replay.py", "each kind of difference"),
    "policy/whole.py": ("policy/test_judging.py", "mails with files, edits and questions"),
    "policy/subjects.py": ("policy/test_table.py", "each cell of the table"),
    "policy/treatments.py": ("policy/test_judge.py", "what each name is treated as"),
    "net/patience.py": ("net/test_relay.py", "who is waited for, by the driver's clock"),
    "policy/answers.py": ("policy/test_actions.py", "which reply may be told where"),
    "policy/rewrites.py": ("policy/test_actions.py", "what commands, replies and header sections are made into"),
    "policy/entries.py": ("policy/test_load.py", "what is off or replaced, in the list of rules"),
    "policy/extensions.py": ("policy/test_load.py", "rules on extensions, as they are read"),
    "policy/ruletables.py": ("policy/test_load.py", "what rules of both kinds have"),
    "policy/tables.py": ("policy/test_onsubjects.py", "mistakes, and that they are told all at once"),
    "policy/coherence.py": ("policy/test_load.py", "its warnings come with what is loaded"),
    "quarantine/errors.py": ("quarantine/test_store.py", "what the store raises"),
    "quarantine/folders.py": ("quarantine/test_store.py", "the store's directories"),
    "store/errors.py": ("store/test_store.py", "the one exception, raised by whoever has a store"),
    "store/owning.py": ("net/test_recording.py", "one recorder at a time"),
    "store/sinks.py": ("store/test_following.py", "what sinks and followers have in common"),
    "store/postgres_rows.py": ("store/test_postgres.py", "rows as they come to stand in the database"),
    "inquiry/ecs.py": ("inquiry/test_exporting.py", "by the published schema"),
    "inquiry/ocsf.py": ("inquiry/test_exporting.py", "by the published schema"),
    "inquiry/parquet.py": ("test_audit_export_cli.py", "every column of every mail, read by DuckDB"),
    "inquiry/wording.py": ("test_audit_asking_cli.py", "what is printed"),
    "metrics/exposing.py": ("net/test_metering.py", "scrapes of a running proxy, held against its record"),
    "metrics/meter.py": ("net/test_metering.py", "the same: what is counted, by another account"),
    "metrics/serving.py": ("net/test_metering.py", "who asks, and how"),
    "net/picture.py": ("net/test_metering.py", "workers and listeners, as metrics and status tell them"),
    "net/setup.py": ("net/test_reading.py", "what a reading comes to"),
    "proving/facts.py": ("proving/test_playbook.py", "what a playbook says of a session"),
    "proving/outcomes.py": ("proving/test_playbook.py", "what a playbook says of the record"),
    "proving/staging.py": ("proving/test_playbook.py", "how a playbook is played"),
    "tls/verdict.py": ("tls/test_verifying.py", "what a look at a certificate came to"),
    "session/chunks.py": ("session/test_bdat.py", "what BDAT does to a session"),
    "session/effects.py": ("session/test_closing.py", "what the driver is asked for, to close above all"),
    "session/outcomes.py": ("session/test_replies.py", "what a server's reply does to a session"),
    "session/reading.py": ("session/test_commands.py", "how a client's lines become commands"),
    "session/records.py": ("session/test_replies.py", "plain values, one made of each reply told"),
    "session/securing.py": ("session/test_starttls.py", "both sides of STARTTLS"),
    "session/session.py": ("session/test_invariants.py", "what holds for any conversation"),
    "gateway/machine.py": ("gateway/test_doctor.py", "a gateway in namespaces, asked for all of it"),
    "gateway/ruleset.py": ("gateway/test_doctor.py", "rules that are loaded there, ours and others"),
    "gateway/scene.py": ("gateway/test_doctor.py", "what its checks have in common"),
    "gateway/way.py": ("gateway/test_doctor.py", "each check, with what it looks for taken away"),
}

# Lines of a file. More for tests: transcripts are long and flat, read one at a time, and nothing in them is nested.
LONGEST = {"smtpproxy": 450, "tests": 900}
LONGER: dict[str, str] = {  # file: why it is one piece
    "tests/net/test_relay.py": "the cases of one subject, looked for in one place",
    "tests/session/test_content.py": "the cases of one subject, looked for in one place",
}


def _files(*folders: str) -> list[Path]:
    return sorted(file for folder in folders for file in (REPO / folder).rglob("*.py"))


def _name(file: Path) -> str:
    """smtpproxy/smtp/registry/rows.py → smtp.registry.rows; a package is called by its folder."""
    return ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


MODULES = {_name(file): file for file in _files("smtpproxy")}


def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def _report(check: Callable[[str, ast.Module], Iterator[str]]) -> list[str]:
    """What a check says of every module."""
    return [f"{file.relative_to(REPO)}:{said}" for name, file in MODULES.items() for said in check(name, _tree(file))]


def _imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that is imported anywhere in the module."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=module, names=names):
                yield from ((node.lineno, f"{module}.{alias.name}") for alias in names)
            case ast.Call(
                func=ast.Attribute(attr="import_module") | ast.Name(id="import_module" | "__import__"), args=[first, *_]
            ):
                yield node.lineno, str(first.value) if isinstance(first, ast.Constant) else "(an expression)"


def _under(name: str, roof: str) -> bool:
    return roof in ("", name) or name.startswith(roof + ".")


def wrong_arrows(name: str, tree: ast.Module) -> Iterator[str]:
    """The imports of our own modules that the plan does not have."""
    home = name.split(".")[0]
    may = (home, *ARROWS.get(home, ()))
    for line, target in _imports(tree):
        root, _, inside = target.partition(".")
        if root != PACKAGE.name:
            continue
        while inside not in MODULES and inside:  # a name in a module, perhaps in the package itself: the version
            inside = inside.rpartition(".")[0]
        if inside and not any(_under(inside, roof) for roof in may):
            yield f"{line}: {home} may not import {inside} (only {', '.join(ARROWS.get(home, ())) or 'itself'})"


def wrong_knowledge(name: str, tree: ast.Module) -> Iterator[str]:
    """What a floor imports from outside and must not know."""
    home = name.split(".")[0]
    for line, target in _imports(tree):
        root = target.split(".")[0]
        if root in FORBIDDEN.get(home, frozenset()) | EVERYWHERE:
            yield f"{line}: {home} may not import {root}"
        elif home in PURE and root not in {PACKAGE.name, *sys.stdlib_module_names}:
            yield f"{line}: {home} may not import {root}: it needs nothing but the standard library"
        elif home in FORBIDDEN and target == "time.sleep" and name not in SLEEPS:
            yield f"{line}: {home} may not sleep"
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="time"), attr="sleep") if home in FORBIDDEN and name not in SLEEPS:
                yield f"{node.lineno}: {home} may not sleep"


def side_effects(_name: str, tree: ast.Module) -> Iterator[str]:
    """Statements that do something when the module is imported."""
    for node in tree.body:
        match node:
            case ast.Import() | ast.ImportFrom() | ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                pass
            case ast.Assign() | ast.AnnAssign() | ast.Expr(value=ast.Constant(value=str())):
                pass
            case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Compare(left=ast.Name(id="__name__"))):
                pass
            case _:
                yield f"{node.lineno}: a module only defines things: {ast.unparse(node).splitlines()[0]}"


def _none(problems: Iterable[str]) -> None:
    """Fails with all of them, a line each."""
    if said := "\n".join(problems):
        pytest.fail(said, pytrace=False)


def _problems(check: Callable[[str, ast.Module], Iterator[str]], name: str, source: str) -> int:
    return len(list(check(name, ast.parse(source))))


@pytest.mark.parametrize(
    ("check", "module", "source", "wrong"),
    [
        (wrong_arrows, "smtp.verbs", "from smtpproxy.smtp.values import Path", 0),
        (wrong_arrows, "smtp.verbs", "import smtpproxy.session.session", 1),
        (wrong_arrows, "smtp.verbs", "def f():\n    from smtpproxy.session import state", 1),
        (wrong_arrows, "session.ledger", "if TYPE_CHECKING:\n    from smtpproxy.policy.judge import Judge", 1),
        (wrong_arrows, "session.ledger", "from smtpproxy import config, net", 2),
        (
            wrong_arrows,
            "session.ledger",
            "from importlib import import_module\nimport_module('smtpproxy.net.relay')",
            1,
        ),
        (wrong_arrows, "session.ledger", "from smtpproxy import __version__", 0),
        (wrong_arrows, "audit.lines", "from smtpproxy.policy.rules import Source", 1),
        (wrong_arrows, "policy.load", "from smtpproxy.audit import log", 1),
        (wrong_arrows, "policy.load", "from smtpproxy.session.verdicts import PASS", 0),
        (wrong_arrows, "config", "from smtpproxy.policy.toml import Problem", 0),
        (wrong_arrows, "config", "from smtpproxy.policy.judge import Judge", 1),
        (wrong_arrows, "net.relay", "from smtpproxy.cli import main", 1),
        (wrong_arrows, "unheard_of", "from smtpproxy.smtp import values", 1),
        (wrong_knowledge, "smtp.verbs", "import re, enum", 0),
        (wrong_knowledge, "smtp.verbs", "import os.path", 1),
        (wrong_knowledge, "session.state", "def f():\n    from time import monotonic", 1),
        (wrong_knowledge, "session.state", "import msgspec", 1),
        (wrong_knowledge, "audit.log", "import os, msgspec, time", 0),
        (wrong_knowledge, "audit.log", "import time\ntime.sleep(1)", 1),
        (wrong_knowledge, "policy.load", "from time import sleep", 1),
        (wrong_knowledge, "policy.load", "import trio", 1),
        (wrong_knowledge, "net.relay", "import trio, socket, asyncio", 1),
        (side_effects, "any", "'text'\nimport re\nA = 1\nB: int = 2\ndef f(): print()\nclass C: pass", 0),
        (side_effects, "any", "if TYPE_CHECKING:\n    import re\nif __name__ == '__main__':\n    main()", 0),
        (side_effects, "any", "print()\nfor a in b: c[a] = d\ntry: import x\nexcept E: pass\nif a: b = c\n", 4),
    ],
)
def test_the_checks_see_what_they_look_for(
    check: Callable[[str, ast.Module], Iterator[str]], module: str, source: str, wrong: int
) -> None:
    assert _problems(check, module, source) == wrong


def test_no_arrow_goes_up() -> None:
    _none(_report(wrong_arrows))


def test_everything_has_its_place() -> None:
    """A folder or module that the plan does not have yet: say in ARROWS what it may import."""
    assert {name.split(".")[0] or "__init__" for name in MODULES} <= set(ARROWS)


def test_no_floor_knows_too_much() -> None:
    assert {"trio", "socket", "ssl", "time", "os", "random", "select", "threading", "subprocess", "structlog"} <= BANNED
    assert BANNED >= EVERYWHERE
    _none(_report(wrong_knowledge))


@pytest.mark.parametrize(("module", "hears"), [("smtp/x.py", True), ("session/x.py", True), ("net/x.py", False)])
def test_ruff_says_the_same_at_once(module: str, hears: bool) -> None:
    """In an editor the ban is heard when the line is written, and only where it holds."""
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format=concise", "--stdin-filename"]
    source = '"""Text."""\n\nimport trio\n\nprint(trio)\n'
    said = subprocess.run(
        [*command, f"smtpproxy/{module}", "-"], input=source, cwd=REPO, capture_output=True, text=True
    )
    assert ("TID251 `trio` is banned: no I/O below the top floor" in said.stdout) is hears, said.stdout + said.stderr


def test_importing_a_module_does_nothing() -> None:
    _none(_report(side_effects))


def test_every_module_has_its_tests() -> None:
    missing = []
    for file in _files(*(f"smtpproxy/{floor}" for floor in TESTED_FLOORS)):
        module = file.relative_to(PACKAGE)
        floor, *inside = module.with_suffix("").parts
        named = {f"{floor}/test_{'_'.join(inside[: length + 1])}.py" for length in range(len(inside))}
        elsewhere, _why = COVERED_BY.get(module.as_posix(), ("", ""))
        if file.name != "__init__.py" and not any((REPO / "tests" / test).is_file() for test in {*named, elsewhere}):
            missing.append(f"smtpproxy/{module}: no {' or '.join(sorted(named))}")
    _none(missing)
    assert not [name for name in COVERED_BY if not (PACKAGE / name).is_file()], "COVERED_BY names what is gone"


def test_no_file_is_too_long() -> None:
    """What wants to be longer is two things. LONGER lists what really is one."""
    lengths = {
        file.relative_to(REPO).as_posix(): len(file.read_text(encoding="utf-8").splitlines())
        for file in _files("smtpproxy", "tests")
    }
    most = {name: LONGEST[name.partition("/")[0]] for name in lengths}
    long = {name: length for name, length in lengths.items() if length > most[name]}
    _none(f"{name}: {length} lines, more than {most[name]}" for name, length in long.items() if name not in LONGER)
    _none(f"{name}: is short again, take it out of LONGER" for name in LONGER if name not in long)


def test_every_file_says_what_it_is() -> None:
    files = _files("smtpproxy", "tests")
    _none(f"{file.relative_to(REPO)}: no docstring" for file in files if not ast.get_docstring(_tree(file)))


def test_the_commands_of_the_readme_are_there() -> None:
    readme = (REPO / "README.md").read_text(encoding="utf-8")
    commands = set(re.findall(r"^\s*(?:\$ )?\./(\S+)", readme, re.MULTILINE))
    assert {"demo", "test"} <= commands
    assert not [command for command in {*commands, ".ci/run"} if not os.access(REPO / command, os.X_OK)]


def _committed() -> list[Path]:
    """What is in the repository or about to be; in an unpacked release, everything that is not hidden."""
    git = ["git", "-c", "safe.directory=*", "-C", str(REPO), "ls-files", "-z", "-co", "--exclude-standard"]
    if (REPO / ".git").exists() and shutil.which("git"):
        names = subprocess.run(git, check=True, capture_output=True, text=True).stdout.split("\0")
        return [REPO / name for name in names if name and (REPO / name).is_file()]
    hidden = re.compile(r"/(?:\.(?!ci/)|__pycache__/|dist/|build/)")
    return [file for file in REPO.rglob("*") if file.is_file() and not hidden.search(f"/{file.relative_to(REPO)}")]


def test_no_machine_and_no_registry_is_named() -> None:
    """The repository works wherever it is cloned, and says nothing of where it was written."""
    place = re.compile(
        rb"(?<![\w.~}-])/(?:work|root|home)/[\w.$-]"
        rb"|pypi\.org|files\.pythonhosted|deb\.debian\.org|registry\.npmjs|registry-1\.docker"
    )
    named = [
        f"{file.relative_to(REPO)}:{number}: {line.decode(errors='replace').strip()}"
        for file in _committed()
        if file != Path(__file__).resolve()
        for number, line in enumerate(file.read_bytes().splitlines(), 1)
        if place.search(line)
    ]
    _none(named)
