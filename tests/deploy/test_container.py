"""deploy/container: there is no engine here, so the Dockerfile is read, and done by hand as far as it goes."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from smtpproxy.cli import cli
from smtpproxy.config import load_config
from tests.deploy.dockerfile import Instruction, excluded, instructions
from tests.deploy.rig import DEPLOY, REPO

HERE = DEPLOY / "container"
DOCKERFILE = instructions((HERE / "Dockerfile").read_text(encoding="utf-8"))
IGNORE = (HERE / "Dockerfile.dockerignore").read_text(encoding="utf-8")
PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
KNOWN = {
    "FROM", "WORKDIR", "RUN", "COPY", "ENV", "USER", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT", "CMD",
}  # fmt: skip


def _all(name: str) -> list[Instruction]:
    return [one for one in DOCKERFILE if one.name == name]


def _one(name: str) -> Instruction:
    """Of the last stage, where it counts."""
    stage = DOCKERFILE[max(at for at, one in enumerate(DOCKERFILE) if one.name == "FROM") :]
    (found,) = [one for one in stage if one.name == name]
    return found


def _copied() -> list[Path]:
    """What is copied out of the source, file by file, relative to it."""
    sources = [Path(word) for one in _all("COPY") if "from" not in one.options for word in one.rest.split()[:-1]]
    files = [
        file for source in sources for file in ([source] if (REPO / source).is_file() else (REPO / source).rglob("*"))
    ]
    relative = [file.relative_to(REPO) if file.is_absolute() else file for file in files]
    return [file for file in relative if (REPO / file).is_file() and not excluded(IGNORE, file)]


def test_it_has_only_instructions_that_there_are() -> None:
    assert {one.name for one in DOCKERFILE} <= KNOWN
    assert DOCKERFILE[0].name == "FROM"


def test_its_images_are_named_by_a_version_that_smtpproxy_runs_on() -> None:
    """And no place is named where they come from. Slim Debian is glibc, which the locked wheels are for."""
    names = {one.rest.partition(" AS ")[0] for one in _all("FROM")}
    assert len(names) == 1, "what is built must run on what it was built on"
    found = re.fullmatch(r"python:(3\.\d+)-slim-bookworm", names.pop())
    assert found is not None
    assert f"Programming Language :: Python :: {found[1]}" in PROJECT["classifiers"]


def test_what_it_copies_is_there_and_gets_into_the_build() -> None:
    for one in _all("COPY"):
        *sources, _ = one.rest.split()
        if "from" in one.options:
            assert any(stage.rest.endswith(f" AS {one.options['from']}") for stage in _all("FROM"))
            continue
        for source in sources:
            assert (REPO / source).exists(), source
            assert not excluded(IGNORE, Path(source.rstrip("/"))), source


@pytest.mark.parametrize("path", [".git/config", ".venv/bin/python", "tests/x.py", "smtpproxy/__pycache__/cli.pyc"])
def test_nothing_else_gets_into_the_build(path: str) -> None:
    assert excluded(IGNORE, Path(path))


def test_it_is_installed_as_everywhere_else() -> None:
    """By .ci/venv's own options: each package by its hash, as a wheel, and smtpproxy without a look elsewhere."""
    script = (REPO / ".ci" / "venv").read_text(encoding="utf-8")
    installs = [shlex.split(line) for line in re.findall(r"^pip_install (.*)$", script, re.M)]
    locked, own = [{word for word in words if word.startswith("--")} - {"--editable"} for words in installs]
    pips = [one.words for one in _all("RUN") if "pip" in one.rest.split('", "')]
    locks = [words[words.index("--requirement") + 1] for words in pips if "--requirement" in words]
    assert sorted(locks) == ["requirements-build.lock", "requirements.lock"]
    for words in pips:
        assert (locked if "--requirement" in words else own - {"--no-build-isolation"}) <= set(words), words
        assert "--no-cache-dir" in words
    assert own <= {word for words in pips if "wheel" in words for word in words}


def test_smtpproxy_can_be_built_of_what_is_copied(tmp_path: Path) -> None:
    """Its own command, in a folder that has what is copied and nothing else; and the wheel has everything."""
    for file in _copied():
        target = tmp_path / "src" / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPO / file, target)
    (words,) = [one.words for one in _all("RUN") if "wheel" in one.words]
    own = {"/opt/build/bin/python": sys.executable, "/opt/wheel": str(tmp_path / "wheel")}
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_", "COV_"))}
    done = subprocess.run(
        [own.get(word, word) for word in words],
        cwd=tmp_path / "src", env=clean, capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (tmp_path / "wheel").iterdir()
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {path.relative_to(REPO).as_posix() for path in (REPO / "smtpproxy").rglob("*.py")} <= names
    assert {f"smtpproxy/rules/{path.name}" for path in (REPO / "rules").glob("*.toml")} <= names


def test_it_needs_no_shell_and_no_root() -> None:
    for name in ("RUN", "ENTRYPOINT", "CMD"):
        assert all(one.words for one in _all(name))
    user, _, group = _one("USER").rest.partition(":")
    assert int(user) > 0
    assert int(group) > 0
    made = {one.words[0]: one.words for one in _all("RUN")}
    assert made["useradd"][made["useradd"].index("--uid") + 1] == user
    assert {words[words.index("--gid") + 1] for words in (made["useradd"], made["groupadd"])} == {group}
    assert DOCKERFILE.index(_one("USER")) > max(DOCKERFILE.index(one) for one in _all("RUN"))


def _commands() -> list[list[str]]:
    """What the image runs of smtpproxy."""
    (program,) = _one("ENTRYPOINT").words
    health = _one("HEALTHCHECK").rest.removeprefix("CMD ")
    asked = json.loads(health)
    assert asked[0] == program
    return [_one("CMD").words, asked[1:]]


@pytest.mark.parametrize("words", _commands(), ids=lambda words: words[0])
def test_what_it_runs_are_commands_with_options_they_have(words: list[str]) -> None:
    result = CliRunner().invoke(cli, [words[0], "--help"])
    assert result.exit_code == 0, result.output
    assert all(word in result.output for word in words if word.startswith("--"))


def test_its_configuration_fits_it() -> None:
    """It is right; it listens where the image says, and is asked where the health check asks."""
    result = CliRunner().invoke(cli, ["check", "--config", str(HERE / "smtpproxy.toml")])
    assert (result.exit_code, result.stderr) == (0, "")
    config = load_config(HERE / "smtpproxy.toml")
    assert {str(listener.listen.port) for listener in config.listeners} == {_one("EXPOSE").rest}
    assert config.process.control in _commands()[1]
    assert _one("STOPSIGNAL").rest == "SIGTERM"
    assert config.audit.file == "-"


def test_the_compose_file_gives_it_what_it_needs_and_no_more() -> None:
    said = yaml.safe_load((HERE / "compose.yaml").read_text(encoding="utf-8"))
    (service,) = said["services"].values()
    assert (HERE / service["build"]["context"]).resolve() == REPO
    assert (REPO / service["build"]["dockerfile"]).samefile(HERE / "Dockerfile")
    assert [port.split(":")[1] for port in service["ports"]] == [_one("EXPOSE").rest]
    for volume in service["volumes"]:
        source, target, mode = volume.split(":")
        assert (HERE / source).exists()
        assert target in _commands()[0]
        assert mode == "ro"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert [tmpfs.partition(":")[0] for tmpfs in service["tmpfs"]] == ["/run/smtpproxy", "/tmp"]
    config = load_config(HERE / "smtpproxy.toml")
    assert int(service["stop_grace_period"].removesuffix("s")) > config.patience_table().drain + 10
    assert service["ulimits"]["nofile"] >= 3 * config.connections + 1000
