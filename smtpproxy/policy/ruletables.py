"""What rules of both kinds have: a name, a reason, labels, a mode and a condition."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from smtpproxy.policy.actions import read_labels
from smtpproxy.policy.rules import Mode
from smtpproxy.policy.subjects import Subject
from smtpproxy.policy.tables import Table, near
from smtpproxy.policy.toml import KeyPath, Place, shown

if TYPE_CHECKING:
    from smtpproxy.policy.expr import Compiler, Condition

OFF = "off"
_MODES = ("enforce", "observe", OFF)
_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
_RESERVED = "default"  # what the record calls the registry's own decisions


class RuleTable(Table):
    """One `[[rule]]`."""

    @property
    def name(self) -> str:
        """Its name, as far as it has one."""
        name = self.values.get("name")
        return name if isinstance(name, str) else ""

    @property
    def off(self) -> bool:
        """It takes a rule out, or is not to hold itself."""
        return bool(self.values.get("mode") == OFF)

    def read_name(self) -> None:
        """Tell what is wrong with the name."""
        expected = 'a name such as "size-25m": a-z, 0-9 and -'
        name = self.text("name", expected)
        if name and not _NAME.fullmatch(name):
            meant = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
            self.bad(("name",), f"{shown(name)} is not a name", expected=expected, near=[meant] if meant else [])
        elif name == _RESERVED:
            self.bad(("name",), f"{shown(name)} is what the record calls decisions without a rule", expected=expected)

    def read_why(self) -> str:
        """The reason, which must be there."""
        return self.text("why", 'a sentence that says why, e.g. "nobody here needs it"')

    def read_mode(self) -> Mode:
        """The mode; of a rule that is off, any."""
        mode = self.values.get("mode", "enforce")
        if mode not in _MODES:
            self.bad(
                ("mode",),
                f"{shown(mode)} is not a mode",
                expected='"enforce", "observe" or "off"',
                near=near(mode, _MODES),
            )
        return Mode.OBSERVE if mode == Mode.OBSERVE.value else Mode.ENFORCE

    def read_tags(self) -> tuple[str, ...]:
        """Labels of the rule."""
        return (read_labels(self, ("tags",), self.values["tags"]) or ()) if "tags" in self.values else ()

    def read_when(self, compiler: "Compiler", subjects: Sequence[Subject]) -> "Condition | None":
        """The condition, which may be missing, or be wrong."""
        if "when" not in self.values:
            return None
        path: KeyPath = ("when",)
        source = self.string(path, self.values["when"], "a condition, e.g. 'client.tls'")
        if source is None or not subjects:
            return None
        found = compiler.condition(source, subjects)
        if not isinstance(found, list):
            return found
        for mistake in found:
            place = Place(mistake.line, mistake.column)
            self.bad(path, mistake.message, near=mistake.nearest, inside=place)
        return None
