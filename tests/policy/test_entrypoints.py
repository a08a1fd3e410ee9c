"""Functions of Python's that decide: found, checked, given what they take, and read."""

import os
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from smtpproxy.policy import rules
from smtpproxy.policy.entrypoints import FOLDER, EntryPoint, Fault, resolve
from smtpproxy.policy.fields import FIELDS, View, fields_of
from smtpproxy.policy.subjects import SUBJECTS
from smtpproxy.session.session import Session
from smtpproxy.session.state import Facts
from smtpproxy.session.verdicts import PassAll
from smtpproxy.smtp.commands import Command, parse_command
from smtpproxy.smtp.replies import own

HEAD = "from smtpproxy.policy.entrypoints import *\n"
GOOD = f"{HEAD}def check(rcpt_domain: str):\n    return PASS\n"


class Site:
    """A folder of rules."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "rules"
        (self.folder / FOLDER).mkdir(parents=True, mode=0o755)
        self.folder.chmod(0o755)
        (self.folder / FOLDER).chmod(0o755)

    def file(self, text: str, name: str = "site") -> Path:
        """A module beside the rules."""
        path = self.folder / FOLDER / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o644)
        return path

    def found(self, name: str = "site:check", *subjects: str) -> EntryPoint | Fault:
        """What comes of it."""
        return resolve(name, [SUBJECTS[subject] for subject in subjects or ("RCPT",)], self.folder)

    def entry(self, text: str, *subjects: str) -> EntryPoint:
        """The function `check` of such a file."""
        self.file(text)
        found = self.found("site:check", *subjects)
        assert isinstance(found, EntryPoint), found
        return found

    def fault(self, name: str = "site:check", *subjects: str) -> Fault:
        """What is wrong."""
        found = self.found(name, *subjects)
        assert isinstance(found, Fault), found
        return found


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def view(line: bytes = b"RCPT TO:<bob@Y.example> NOTIFY=NEVER", **facts: Any) -> View:
    session = Session(judge=PassAll(), record=lambda record: None, clock=lambda: 0.0, facts=Facts(**facts))
    command = parse_command(line + b"\r\n")
    assert isinstance(command, Command)
    return View(session, command=command)


# ---------------------------------------------------------------------------------------------------- what is given


def test_a_function_is_given_the_fields_it_takes(site: Site) -> None:
    entry = site.entry(
        "def check(rcpt_address: str, *, client_address, mail_count: int, rcpt_parameters: dict[str, str],"
        " session_tags: list[str], facts, client_tls: bool):\n"
        "    return [rcpt_address, client_address, mail_count, rcpt_parameters, session_tags, facts, client_tls]\n"
    )
    assert entry.name == "site:check"
    assert (entry.asynchronous, entry.facts) == (False, True)
    names = ("rcpt.address", "client.address", "mail.count", "rcpt.parameters", "session.tags", "client.tls")
    assert entry.fields == names
    seen = view(client="192.0.2.1", listener="mx")
    expected = ["bob@y.example", "192.0.2.1", 0, {"NOTIFY": "NEVER"}, [], seen.session.facts, False]
    assert entry.call(seen)() == expected


def test_every_field_can_be_taken_by_one_name(site: Site) -> None:
    """No two are the same once a dot is an underscore, none is a word of Python's, and each has its type."""
    names = [name.replace(".", "_") for name in FIELDS]
    assert len({*names, "facts"}) == len(names) + 1
    for name, subject in SUBJECTS.items():
        if name not in ("RCPT", "EHLO reply", "content", "attachment", "tls", "transaction", "connect"):
            continue
        known = [field.replace(".", "_") for field in fields_of(subject)]
        entry = site.entry(f"def check({', '.join(known)}): ...\n", name)
        assert entry.fields == tuple(fields_of(subject))


def test_values_are_those_of_the_moment_it_was_asked(site: Site) -> None:
    """It may run later, in another thread, and may do with them what it likes."""
    entry = site.entry(
        "def check(session_tags: list[str]):\n    session_tags.append('mine')\n    return session_tags\n"
    )
    seen = view()
    seen.session.tags["before"] = None
    call, again = entry.call(seen), entry.call(seen)
    seen.session.tags["behind"] = None
    seen.touch()
    del seen.session
    assert call() == again() == ["before", "mine"]


async def test_an_asynchronous_function_is_awaited_under_trio(site: Site) -> None:
    entry = site.entry(
        f"{HEAD}import trio\nasync def check(rcpt_local: str):\n"
        "    await trio.lowlevel.checkpoint()\n    return Answer(f'550 5.1.1 No {rcpt_local}')\n"
    )
    assert entry.asynchronous
    returned = await entry.call(view())()
    assert entry.deeds(returned, SUBJECTS["RCPT"]) == (rules.Answer(own("550 5.1.1 No bob")),)


async def test_another_function_is_called_in_a_thread(site: Site) -> None:
    entry = site.entry("import threading\ndef check():\n    return threading.get_ident()\n")
    assert not entry.asynchronous
    assert await trio.to_thread.run_sync(entry.call(view())) != threading.get_ident()


def test_what_is_returned_is_read_as_a_rule_is(site: Site) -> None:
    entry = site.entry(GOOD)
    assert entry.deeds(entry.call(view())(), SUBJECTS["RCPT"]) == (rules.Pass(),)
    with pytest.raises(TypeError, match="site:check returned None"):
        entry.deeds(None, SUBJECTS["RCPT"])


@pytest.mark.parametrize(
    "text",
    [
        "class Check:\n    def __call__(self, rcpt_domain: str): ...\ncheck = Check()\n",
        "class Check:\n    def method(self, rcpt_domain: str): ...\ncheck = Check().method\n",
        "def called(self, rcpt_domain: str): ...\nfrom functools import partial\ncheck = partial(called, None)\n",
        "check = lambda rcpt_domain: None\n",
    ],
)
def test_whatever_can_be_called_is_a_function(site: Site, text: str) -> None:
    entry = site.entry(text)
    assert entry.fields == ("rcpt.domain",)
    assert not entry.asynchronous
    assert site.entry(text.replace("def ", "async def ")).asynchronous is ("def " in text)


# ----------------------------------------------------------------------------------------------------- what is wrong


@pytest.mark.parametrize(
    "name", ["site", "site:", ":check", "site.check", "site:a.b", "../x:y", "site:check()", "a b:c", "a..b:c"]
)
def test_what_names_no_function(site: Site, name: str) -> None:
    assert "does not name a function" in site.fault(name).message
    assert "site_checks:recipient" in site.fault(name).expected


@pytest.mark.parametrize(
    ("text", "subjects", "message", "near"),
    [
        (GOOD.replace("check", "chekc"), ("RCPT",), "no check in site", ("chekc",)),
        ("check = 7\n", ("RCPT",), "site:check is an int, and can't be called", ()),
        ("class check: ...\n", ("RCPT",), "is a class", ()),
        ("def check():\n    yield\n", ("RCPT",), "yields", ()),
        ("async def check():\n    yield\n", ("RCPT",), "yields", ()),
        ("def check(rcpt_domian: str): ...\n", ("RCPT",), "takes rcpt_domian, which is no field", ("rcpt_domain",)),
        ("def check(fact): ...\n", ("RCPT",), "which is no field", ("facts",)),
        ("def check(rcpt_domain: str, db='x'): ...\n", ("RCPT",), "takes db, which is no field", ()),
        ("def check(rcpt_domain: str): ...\n", ("MAIL",), "rcpt.domain is not known on MAIL", ()),
        ("def check(rcpt_domain): ...\n", ("RCPT", "MAIL", "DATA"), "rcpt.domain is not known on MAIL or DATA", ()),
        ("def check(content_size: str): ...\n", ("content",), "content_size of site:check is str", ()),
        ("def check(mail_count: bool): ...\n", ("RCPT",), "is bool, and mail.count is int", ()),
        ("def check(client_tls: int): ...\n", ("RCPT",), "is int, and client.tls is bool", ()),
        ("def check(rcpt_domain: str | None): ...\n", ("RCPT",), "is str | None, and rcpt.domain is str", ()),
        ("def check(session_tags: str): ...\n", ("RCPT",), "session.tags is list[str]", ()),
        ("def check(header: dict[str, str]): ...\n", ("content",), "header is dict[str, list[str]]", ()),
        ("def check(rcpt_parameters: 'Nothing'): ...\n", ("RCPT",), "can't be read: NameError", ()),
        ("def check(facts: dict): ...\n", ("RCPT",), "facts of site:check is dict", ()),
        ("def check(*fields): ...\n", ("RCPT",), "takes *fields, and arguments are given by name", ()),
        ("def check(**fields): ...\n", ("RCPT",), "takes **fields, and arguments are given by name", ()),
        ("def check(rcpt_domain, /): ...\n", ("RCPT",), "arguments are given by name", ()),
        ("check = print\n", ("RCPT",), "arguments are given by name", ()),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_function_is_told_when_rules_are_loaded(
    site: Site, text: str, subjects: tuple[str, ...], message: str, near: tuple[str, ...]
) -> None:
    site.file(text)
    found = site.fault("site:check", *subjects)
    assert message in found.message
    assert found.nearest[: len(near)] == near


@pytest.mark.parametrize(
    "hint", ["list[str]", "Sequence[str]", "Collection[str]", "Iterable[str]", "list", "Any", "object"]
)
def test_a_type_may_be_said_more_loosely(site: Site, hint: str) -> None:
    head = "from collections.abc import *\nfrom typing import Any\n"
    assert site.entry(f"{head}def check(session_tags: {hint}): ...\n").fields == ("session.tags",)
    future = "from __future__ import annotations\n"
    assert site.entry(f"{future}{head}def check(session_tags: {hint}): ...\n").fields == ("session.tags",)


def test_a_module_that_is_not_there(site: Site) -> None:
    site.file(GOOD, "site_checks")
    found = site.fault("site_check:check")
    assert found.message == "no module site_check"
    assert found.nearest[0] == "site_checks"
    assert "python/site_check.py beside the rule file" in found.expected
    assert site.fault("smtpproxy.polcy:check").nearest[0] == "smtpproxy.policy"
    assert site.fault("nothing.at.all:check").message == "no module nothing.at.all"
    alone = resolve("nothing_at_all:check", [SUBJECTS["RCPT"]])
    assert alone == Fault("no module nothing_at_all", "a module that is installed")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = 1\nimport nothing_at_all\n", "site.py:2: ModuleNotFoundError: No module named 'nothing_at_all'"),
        ("def check(:\n", "site.py:1: SyntaxError: "),
        ("\n\nopen('/nowhere/at/all')\n", "site.py:3: FileNotFoundError: "),
        ("raise SystemExit(3)\n", "site.py:1: SystemExit: 3"),
        ("x = '\0'\n", "site.py"),
    ],
)
def test_a_module_that_can_not_be_imported(site: Site, text: str, says: str) -> None:
    site.file(text)
    found = site.fault()
    assert found.message.startswith("site can't be imported: ")
    assert says in found.message


def test_an_installed_module_that_can_not_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_one.py").write_text("import nothing_at_all\n")
    (tmp_path / "broken_two.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name, says in (("broken_one", "No module named 'nothing_at_all'"), ("broken_two", "ZeroDivisionError")):
        found = resolve(f"{name}:check", [SUBJECTS["RCPT"]])
        assert isinstance(found, Fault)
        assert f"{name} can't be imported: " in found.message
        assert says in found.message


# ------------------------------------------------------------------------------------------------ where modules are


def test_an_installed_module_is_found(tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "installed_checks"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "rcpt.py").write_text(GOOD)
    monkeypatch.syspath_prepend(tmp_path)
    assert isinstance(site.found("installed_checks.rcpt:check"), EntryPoint)
    assert isinstance(resolve("installed_checks.rcpt:check", [SUBJECTS["RCPT"]]), EntryPoint)
    assert site.fault("installed_checks.rcpd:check").nearest[0] == "installed_checks.rcpt"


def test_a_file_beside_the_rules_comes_first_and_is_nobody_elses(site: Site) -> None:
    """`email` is a module of Python's, and stays it for all others; nothing is added where modules are looked for."""
    before, paths = set(sys.modules), list(sys.path)
    site.file(f"import email.message\n{GOOD}", "email")
    found = site.found("email:check")
    assert isinstance(found, EntryPoint)
    assert found.function.__module__ == "smtpproxy_python.email"
    assert sys.path == paths
    assert not [name for name in set(sys.modules) - before if "smtpproxy_python" in name]
    assert not list((site.folder / FOLDER).rglob("*.pyc"))


def test_a_file_may_lie_deeper(site: Site) -> None:
    site.file(GOOD, "checks/rcpt")
    (site.folder / FOLDER / "checks").chmod(0o755)
    assert isinstance(site.found("checks.rcpt:check"), EntryPoint)


def test_a_file_is_read_each_time(site: Site) -> None:
    """A reload takes up what was changed, and who runs by the old one goes on with that."""
    head = "from dataclasses import dataclass\n@dataclass\nclass Kept:\n"
    text = head + "    x: 'int' = {}\ndef check():\n    return Kept().x\n"
    old = site.entry(text.format(1))
    new = site.entry(text.format(2))
    assert (old.call(view())(), new.call(view())()) == (1, 2)


# ------------------------------------------------------------------------------------------------------ who wrote it


@pytest.mark.parametrize("mode", [0o020, 0o002])
@pytest.mark.parametrize("what", ["file", "folder", "rules"])
def test_what_others_can_write_is_not_run(site: Site, what: str, mode: int) -> None:
    """They would decide about mail, with the proxy's rights."""
    file = site.file("raise SystemExit('it was run')\n")
    exposed = {"file": file, "folder": file.parent, "rules": site.folder}[what]
    exposed.chmod(exposed.stat().st_mode | mode)
    found = site.fault()
    assert found.message == f"{exposed} can be written to by others than its owner"
    assert "chmod go-w" in found.expected


def test_what_belongs_to_a_stranger_is_not_run(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    file = site.file("raise SystemExit('it was run')\n")
    if os.geteuid() == 0:
        os.chown(file, 12_345, 12_345)
    else:
        monkeypatch.setattr("os.geteuid", lambda: 12_345)
    assert "belongs to user" in site.fault().message


def test_a_link_is_as_good_as_both_its_ends(site: Site, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir(mode=0o755)
    file = there / "site.py"
    file.write_text(GOOD)
    file.chmod(0o644)
    (site.folder / FOLDER / "site.py").symlink_to(file)
    assert isinstance(site.found(), EntryPoint)
    there.chmod(0o777)
    assert site.fault().message == f"{there} can be written to by others than its owner"
    there.chmod(0o1777)  # where nobody can replace what is another's
    assert isinstance(site.found(), EntryPoint)
    there.chmod(0o755)
    (site.folder / FOLDER).chmod(0o777)
    assert "can be written to" in site.fault().message


def test_a_file_system_that_nobody_can_write_to(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """As volumes of configuration are in Kubernetes, with mode 0777."""
    site.file(GOOD)
    (site.folder / FOLDER).chmod(0o777)
    really = os.statvfs

    class ReadOnly:
        f_flag = os.ST_RDONLY

    fake: Callable[[Any], Any] = partial(lambda path: ReadOnly() if Path(path).name == FOLDER else really(path))
    monkeypatch.setattr("os.statvfs", fake)
    assert isinstance(site.found(), EntryPoint)


def test_what_can_not_be_read(site: Site) -> None:
    (site.folder / FOLDER / "site.py").mkdir()
    assert "can't be imported" in site.fault().message
