"""Mails for a store, and what its directory looks like."""

import io
import json
from pathlib import Path
from typing import Any

from smtpproxy.quarantine.folders import Folders
from smtpproxy.quarantine.store import Bounds, Store

CONTENT = b"Subject: hello\r\nFrom: a@x.example\r\n\r\none\r\n.two\r\n..three\r\n"
FACTS: dict[str, Any] = {
    "session": "4d9d6b7a53-1",
    "server": "127.0.0.1:25",
    "mail": "a@x.example",
    "rcpt": ["b@y.example", "c@y.example"],
    "parameters": {},
    "rcpt_parameters": {},
    "rule": "no-macros",
    "why": "macros",
    "told": "250 2.0.0 Ok",
}
NOW = 1_763_892_900.5  # 2025-11-23T10:15:00.5Z


class Wall:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        """Seconds since 1970."""
        return self.now


def made(path: Path, *, octets: int = 10**6, mails: int = 100, wall: Wall | None = None) -> Store:
    """A store in a new directory, or in one that is there."""
    return Store(Folders(path, make=True), bounds=Bounds(octets, mails), wall=wall or Wall())


def keep(store: Store, content: bytes = CONTENT, **more: Any) -> str:
    """Keep a mail."""
    return store.keep(io.BytesIO(content), {**FACTS, **more})


def tree(path: Path) -> dict[str, list[str]]:
    """The files of mails: for each of the directories what kinds there are."""
    return {name: sorted(file.suffix for file in (path / name).iterdir()) for name in ("tmp", "new", "released")}


def record(path: Path, name: str, state: str = "new") -> dict[str, Any]:
    """What is in the file of a mail's record."""
    found: dict[str, Any] = json.loads((path / state / f"{name}.json").read_bytes())
    return found


EMPTY = {"tmp": list[str](), "new": list[str](), "released": list[str]()}
ONE = {**EMPTY, "new": [".eml", ".json"]}
RELEASED_ONE = {**EMPTY, "released": [".eml", ".json"]}
