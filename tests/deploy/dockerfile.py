"""A Dockerfile, as far as ours goes: instructions of one line or more, in exec form."""

import json
import re
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple


class Instruction(NamedTuple):
    """`NAME [--option=value …] the rest`."""

    name: str
    options: Mapping[str, str]
    rest: str

    @property
    def words(self) -> list[str]:
        """The rest, in exec form.

        Raises:
            ValueError: it is in shell form.
        """
        found: list[str] = json.loads(self.rest)
        return found


def instructions(text: str) -> list[Instruction]:
    """Those of a Dockerfile, in its order."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    found = []
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if line.strip():
            name, _, rest = line.strip().partition(" ")
            options = re.match(r"(\s*--[a-z-]+=\S+)*", rest)
            assert options is not None
            pairs = [option[2:].partition("=") for option in options[0].split()]
            found.append(Instruction(name, {key: value for key, _, value in pairs}, rest[options.end() :].strip()))
    return found


def excluded(ignore: str, path: Path) -> bool:
    """Whether a path, relative to the context, stays out of it: the last line that fits it or a folder of it counts."""
    out = False
    for line in filter(None, (line.strip() for line in ignore.splitlines() if not line.startswith("#"))):
        pattern = line.lstrip("!").removeprefix("**/")
        anywhere = "**/" in line
        here = path.parts if anywhere else [str(folder) for folder in (path, *path.parents) if folder != Path()]
        if any(fnmatch(part, pattern) for part in here):
            out = not line.startswith("!")
    return out
