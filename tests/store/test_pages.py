"""What docs/audit-postgres.md and docs/audit-privacy.md tell one to type, typed: by a shell, in their order."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

from smtpproxy.audit.lines import PERSONAL
from smtpproxy.audit.sealing import sealer
from smtpproxy.store.postgres import PostgresSink
from smtpproxy.store.reading import open_reader
from smtpproxy.store.store import Store
from tests.store.filling import Writer
from tests.store.pg_rig import Cluster, _programs
from tests.store.signing import ORIGIN, signed, verified

ROOT = Path(__file__).resolve().parents[2]


def _commands(page: str) -> list[str]:
    """Its blocks of shell, a command each line."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    blocks: list[str] = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def _typed(command: str, directory: Path, **environment: str) -> str:
    """What a shell makes of it, with our own program as `smtpproxy`; what it prints."""
    program = f'smtpproxy() {{ {shlex.quote(sys.executable)} -m smtpproxy "$@"; }}'
    done = subprocess.run(
        ["/bin/bash", "-o", "pipefail", "-c", f"{program}\n{command}"],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        input="y\n",
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


def test_postgres(server: Cluster, tmp_path: Path) -> None:
    """createuser and createdb are Debian's; `db.example` is the server of the tests."""
    commands = _commands("audit-postgres.md")
    here = {"PGHOST": str(server.directory), "PGPORT": str(server.port), "PGUSER": "owner"}
    here["PATH"] = f"{_programs()}:{os.environ['PATH']}"
    address = f"{quote(str(server.directory), safe='')}:{server.port}"
    made = False
    told = {}
    for command in commands:
        words = shlex.split(command)
        if not made and words[0] not in ("createdb",) and words[:2] != ["createuser", "smtpproxy"]:
            _follow(f"postgresql://smtpproxy@{address}/audit", tmp_path / "store")
            made = True
        name = " ".join(words[:3]) if words[0] == "smtpproxy" else words[0]
        told[name] = _typed(command.replace("db.example", address), tmp_path, **here)
    assert list(told) == [
        "createuser",
        "createdb",
        "psql",
        "smtpproxy audit search",
        "smtpproxy audit stats",
        "smtpproxy audit prune",
    ]
    assert "alice@example.org" in told["smtpproxy audit search"]
    assert "no-macros" in told["smtpproxy audit stats"]
    assert f"{ORIGIN}: " in told["smtpproxy audit prune"]


def _follow(where: str, directory: Path) -> None:
    """As a gateway does, with a mail to Ann among others."""
    signed(directory, 20)
    store = Store(directory)
    store.append(list(Writer("bb" * 5).session("alice@example.org", ("ann@example.org",))))
    sink = PostgresSink(where, directory)
    sink.send(list(store.lines(0)))
    sink.close()
    store.close()


def test_privacy(tmp_path: Path) -> None:
    """Keys of pseudonyms and of an auditor; what is sealed is opened; somebody is forgotten."""
    directory = tmp_path / "store"
    signed(directory, 20)
    (tmp_path / "smtpproxy.toml").write_text(f'[audit]\nstore = "{directory}"\n')
    told = []
    for command in _commands("audit-privacy.md"):
        text = command.replace("/etc/smtpproxy/", "")
        words = shlex.split(text.partition("|")[0])
        if words[2] in ("export", "erase"):
            text = text.replace(f"audit {words[2]}", f"audit {words[2]} --config smtpproxy.toml", 1)
        if words[2] == "export":
            _keep_sealed(directory, tmp_path / "auditor.key.pub")
        told.append((" ".join(words[2:4]), _typed(text, tmp_path)))
    assert [name for name, _ in told] == [
        "pseudonym-key init",
        "identify --key",
        "pseudonym-key rotate",
        "auditor-key init",
        "export --format",
        "erase --address",
        "erase --address",
    ]
    assert told[1][1].startswith("alice@example.org\tk1\t~k1.")
    opened = [json.loads(line) for line in told[4][1].splitlines() if "transcript" in line]
    assert [one["transcript"] for one in opened] == [{"content": "To: ann@example.org"}]
    reader = open_reader(str(directory))
    left = b"".join(line for _, line in reader.lines(0))
    reader.close()
    assert b"alice@example.org" not in left
    assert left.count(b'"kind":"tx-commit"') > 10
    assert not verified(directory).findings


def _keep_sealed(directory: Path, key: Path) -> None:
    """A record with a transcript."""
    assert "transcript" in PERSONAL
    sealed = sealer(key)(b'{"content":"To: ann@example.org"}', b"cc-1:1")
    line = {"v": 1, "at": "2026-01-05T09:30:00Z", "seq": 1, "session": "cc-1", "kind": "exchange", "salt": "A" * 22}
    store = Store(directory)
    store.append([json.dumps(line | {"transcript": {"sealed": sealed}}, separators=(",", ":")).encode()])
    store.close()
