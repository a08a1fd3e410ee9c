"""What is handed out: the wheel, what is in it, that it works where it is installed, and the lock files."""

import os
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import smtpproxy

REPO = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))


def _run(*command: str | Path, cwd: Path, fails: bool = False) -> str:
    """What a command prints, run without the settings of this machine or this test run."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_", "COV_"))}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=clean,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert (done.returncode != 0) is fails, f"{command}: exit code {done.returncode}\n{done.stdout}"
    return done.stdout


def _build(folder: Path) -> Path:
    _run(sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder, cwd=REPO)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _build(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel in it and no way to the source; what smtpproxy needs is looked up in this one."""
    home = tmp_path_factory.mktemp("installed")
    venv.create(home, with_pip=True)
    _run(home / "bin" / "pip", "--isolated", "install", "--no-index", "--no-deps", wheel, cwd=home)
    (packages,) = home.glob("lib/python3*/site-packages")
    here = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (packages / "needs.pth").write_text("\n".join(here) + "\n", encoding="utf-8")
    return home


def test_the_wheel_has_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    assert {Path(name).parts[0] for name in names} == {
        "smtpproxy",
        f"smtpproxy-{smtpproxy.__version__}.dist-info",
    }
    rules = {f"smtpproxy/{path.relative_to(REPO).as_posix()}" for path in (REPO / "rules").rglob("*") if path.is_file()}
    assert {Path(name).suffix for name in rules} >= {".toml", ".play"}
    assert any(name.startswith("smtpproxy/rules/sets/") for name in rules)
    assert {name for name in names if name.startswith("smtpproxy/rules/")} == rules
    assert "smtpproxy/py.typed" in names
    sources = {path.relative_to(REPO).as_posix() for path in (REPO / "smtpproxy").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == sources
    assert not [name for name in names if "/tests/" in name or "/test_" in name or name.endswith((".pyc", ".lock"))]


def test_the_same_source_gives_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    again = _build(tmp_path)
    assert (again.name, again.read_bytes()) == (wheel.name, wheel.read_bytes())


def test_it_works_where_it_is_installed(installed: Path, tmp_path: Path) -> None:
    command = installed / "bin" / "smtpproxy"
    where = _run(installed / "bin" / "python", "-c", "import smtpproxy; print(smtpproxy.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(installed)
    assert smtpproxy.__version__ in _run(command, "--version", cwd=tmp_path)
    shipped = re.search(r"(\d+) rules", _run(command, "check", cwd=tmp_path))
    assert shipped is not None
    assert int(shipped[1]) > 0, "the shipped rules were not found"
    assert "XEXCH50" in _run(command, "explain", "XEXCH50", cwd=tmp_path)
    _run(command, "explain", "NO-SUCH-NAME", cwd=tmp_path, fails=True)


def test_the_demo_works_where_it_is_installed(installed: Path, tmp_path: Path) -> None:
    _run(installed / "bin" / "smtpproxy", "demo", cwd=tmp_path)


def _needs() -> dict[str, list[Requirement]]:
    """Lock file → what pyproject.toml wants it to hold."""
    project, build = PROJECT["project"], PROJECT["build-system"]["requires"]
    extras = project["optional-dependencies"]
    return {
        "requirements.lock": [Requirement(line) for line in project["dependencies"]],
        "requirements-build.lock": [Requirement(line) for line in build],
        "requirements-test.lock": [
            Requirement(line) for line in (*project["dependencies"], *extras["test"], *extras["lint"], *build)
        ],
    }


def _pins(lock: str) -> dict[str, str]:
    """Package → version, of a lock file in which each has its hashes and nothing else is said."""
    text = (REPO / lock).read_text(encoding="utf-8")
    entries = re.findall(
        r"^([\w.\[\]-]+)==([\w.+!]+)(?: ; [^\\\n]+)?((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", text, re.M
    )
    assert len(entries) == len(re.findall(r"^[^#\s]", text, re.M)), f"{lock}: what is not a pinned version with hashes?"
    return {canonicalize_name(name.partition("[")[0]): version for name, version, _hashes in entries}


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-build.lock", "requirements-test.lock"])
def test_a_lock_has_what_the_project_needs(lock: str) -> None:
    """And agrees with the largest of them, with which it shares an environment. `.ci/lock` makes them anew."""
    pins = _pins(lock)
    for need in _needs()[lock]:
        pinned = pins.get(canonicalize_name(need.name))
        assert pinned is not None, f"{lock}: no {need.name}; run .ci/lock"
        assert pinned in need.specifier, f"{lock}: {need.name} {pinned} is not {need.specifier}; run .ci/lock"
    assert pins.items() <= _pins("requirements-test.lock").items()


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-build.lock", "requirements-test.lock"])
def test_a_lock_says_how_it_was_made_and_names_no_place(lock: str) -> None:
    _, made_by, *lines = (REPO / lock).read_text(encoding="utf-8").splitlines()
    assert made_by.split() == ["#", ".ci/lock"]
    said = "\n".join(line for line in lines if not line.startswith("    --hash=sha256:"))
    assert not re.search("https?:|file:|@|--|/", said)
