"""smtpproxy.toml and the command line, read, checked and put together.

- All mistakes are found in one go and told with line and column. What the command line says takes the place of what
  the file says, and is checked in the same way.
- Relative paths are relative to the configuration file.
- What the settings name and is not there is told in the same way, once the settings themselves are right. So are
  settings that have no effect: those are warnings, which keep nothing from starting.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from smtpproxy.config.idle import idle
from smtpproxy.config.paths import missing
from smtpproxy.config.tables import TABLES, Config, keys_of
from smtpproxy.config.together import together
from smtpproxy.config.values import Mistake
from smtpproxy.policy.toml import KeyPath, Positions, Problem, TomlError, nearest, parse, shown

COMMAND_LINE = "command line"  # the file of a problem with an option


class ConfigError(Exception):
    """The configuration is wrong; `problems` says all that is."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)


class Override(NamedTuple):
    """What an option puts in place of what the file says; `*` in the path is every element of a list."""

    path: KeyPath
    value: Any
    option: str


def load_config(
    path: Path | None,
    overrides: Sequence[Override] = (),
    *,
    listeners: bool = True,
    look: Callable[[Config], Iterable[Mistake]] = missing,
    warn: Callable[[Problem], object] = lambda problem: None,
) -> Config:
    """The configuration of the file and the command line.

    `listeners`: there must be one. `look` says what is wrong with the files that are named, here whether they are
    there at all; whoever can read them gives a function that says more. `warn` is told what is valid and hardly meant,
    where there is no error.

    Raises:
        ConfigError: with every problem of both.
    """
    data: dict[str, Any] = {}
    positions: Positions | None = None
    if path is not None:
        try:
            data, positions = parse(path)
        except TomlError as error:
            raise ConfigError([error.problem]) from None
        _resolve(data, path.parent)
    said = {place: override.option for override in overrides for place in _put(data, override.path, override.value)}
    try:
        config = Config.model_validate(data)
    except ValidationError as errors:
        details = errors.errors(include_url=False)
        raise _error(problem for e in details for problem in _problems(e, data, said, positions)) from None
    found: list[Problem] = []
    for looked in (together, look):
        found += [_together((), mistake, data, said, positions) for mistake in looked(config)]
        if any(problem.severity == "error" for problem in found):
            raise _error(found)
    found += [_together((), mistake, data, said, positions) for mistake in idle(config)]
    if any(problem.severity == "error" for problem in found):
        raise _error(found)
    if listeners and not config.listeners:
        expected = "--listen and --server, or a [[listener]] in a configuration file"
        file = str(path) if path else COMMAND_LINE
        raise ConfigError([Problem(file, 0, 0, "", "nothing to listen on", expected)])
    for problem in _in_order(found):
        warn(problem)
    return config


def _error(problems: Iterable[Problem]) -> ConfigError:
    return ConfigError(_in_order(problems))


def _in_order(problems: Iterable[Problem]) -> list[Problem]:
    """All of them, each once, in the order of the file."""
    return sorted(dict.fromkeys(problems), key=lambda problem: (problem.line, problem.column))


def _resolve(data: dict[str, Any], base: Path) -> None:
    """Paths of the file are relative to it; what stands for no path (`-`, nothing) stays."""
    for path, model in TABLES.items():
        for key, field in keys_of(model).items():
            if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("path"):
                here = base.absolute() if field.json_schema_extra.get("absolute") else base
                for table in _tables(data, path):
                    value = table.get(key)
                    if isinstance(field.default, tuple):
                        if isinstance(value, list):
                            table[key] = [_joined(here, one) if _is_path(one) else one for one in value]
                    elif isinstance(value, str) and value not in ("", field.default):
                        table[key] = _joined(here, value)


def _is_path(value: object) -> bool:
    """Rules that come with smtpproxy are named, and stand where it is installed."""
    return isinstance(value, str) and not value.startswith("set:")


def _joined(base: Path, value: str) -> str:
    """A path without `..` in it. What stands behind the last one stays as it is written: a link may be made to lead
    elsewhere while the proxy runs, as those to renewed certificates are."""
    parts = (base / value).parts
    if ".." not in parts or "\0" in value:
        return str(base / value)
    last = len(parts) - parts[::-1].index("..")
    return str(Path(os.path.realpath(Path(*parts[:last])), *parts[last:]))


def _tables(data: Any, path: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The tables that stand at a path of names, in lists too, as far as there are any."""
    if isinstance(data, list):
        for element in data:
            yield from _tables(element, path)
    elif isinstance(data, dict):
        if path:
            yield from _tables(data.get(path[0]), path[1:])
        else:
            yield data


def _put(table: Any, path: KeyPath, value: object) -> list[KeyPath]:
    """Put a value into the data; the places where it now stands. Where the file is wrong on the way, that is told."""
    step, *rest = path
    if step == "*":
        elements = enumerate(table) if isinstance(table, list) else ()
        return [(index, *place) for index, element in elements for place in _put(element, tuple(rest), value)]
    if not isinstance(table, dict):
        return []
    if rest:
        return [(step, *place) for place in _put(table.setdefault(step, {}), tuple(rest), value)]
    table[step] = value
    return [path]


def _option(path: KeyPath, said: Mapping[KeyPath, str]) -> str:
    """The option that said what stands at `path`, or ""."""
    while path and path not in said:
        path = path[:-1]
    return said.get(path, "")


def _problems(
    error: ErrorDetails, data: Mapping[str, Any], said: Mapping[KeyPath, str], positions: Positions | None
) -> Iterator[Problem]:
    """What pydantic found, in our words and at its place."""
    path: KeyPath = error["loc"]
    if error["type"] == "smtpproxy_together":
        yield from (_together(path, mistake, data, said, positions) for mistake in error["ctx"]["mistakes"])
        return
    key = error["type"] == "extra_forbidden"
    message, expected, near = _words(error)
    option = _option(path, said)
    if option or positions is None:
        yield Problem(COMMAND_LINE, 0, 0, option, message, expected, tuple(near))
        return
    lacks = error["type"] in ("missing", "smtpproxy_missing")
    about = path[:-1] if key or lacks else path
    place = path[:-1] if lacks else path
    yield positions.problem(place, message, where=_where(about, data), key=key, expected=expected, nearest=near)


def _together(
    table: KeyPath,
    mistake: Mistake,
    data: Mapping[str, Any],
    said: Mapping[KeyPath, str],
    positions: Positions | None,
) -> Problem:
    """A mistake that was seen from elsewhere, at the place it names in that table."""
    path = (*table, *mistake.place)
    option = _option(path, said)
    if option or positions is None:
        place = Problem(COMMAND_LINE, 0, 0, option, mistake.message)
    else:
        place = positions.problem(path, mistake.message, where=_where(path, data))
    return replace(place, expected=mistake.expected, nearest=mistake.nearest, severity=mistake.severity)


def _words(error: ErrorDetails) -> tuple[str, str, Sequence[str]]:
    """Message, what was expected, nearest names."""
    *table, last = error["loc"]
    kind, context, value = error["type"], error.get("ctx", {}), error["input"]
    known = TABLES.get(tuple(step for step in table if isinstance(step, str)))
    if kind in ("smtpproxy", "smtpproxy_missing"):
        return context["message"], context["expected"], context["nearest"]
    if kind == "extra_forbidden":
        message = f"unknown key {shown(str(last))}"
        if at_home := _at_home(str(last), table):
            return f"{message} here: it belongs into {at_home}", "", ()
        near = nearest(str(last), keys_of(known)) if known else []
        return message, "" if near else ", ".join(keys_of(known) if known else ()), near
    if kind == "missing":
        field = keys_of(known)[str(last)] if known else None
        return f"{last} is missing", (field.description or "") if field else "", ()
    if kind in ("literal_error", "enum"):
        words = re.findall(r"'([^']*)'", context["expected"])
        near = nearest(value, words) if isinstance(value, str) else []
        return f"{shown(value)} is not one of its values", " or ".join(f'"{word}"' for word in words), near
    if kind == "greater_than":
        return f"{shown(value)} is too small", f"more than {context['gt']}", ()
    if kind == "greater_than_equal":
        return f"{shown(value)} is too small", f"at least {context['ge']}", ()
    if kind == "less_than_equal":
        return f"{shown(value)} is too large", f"at most {context['le']}", ()
    if kind in _EXPECTED:
        return f"{shown(value)} is not {_EXPECTED[kind]}", _form(error["loc"]), ()
    return f"{shown(value)}: {error['msg']}", "", ()


def _at_home(key: str, table: Sequence[str | int]) -> str:
    """The tables that know a key which this one does not; those of the same last name before all others."""
    homes = [path for path, model in TABLES.items() if key in keys_of(model)]
    last = next((step for step in reversed(table) if isinstance(step, str)), "")
    homes = [path for path in homes if last and path[-1:] == (last,)] or homes
    return " or ".join(_header(path or (key,)) for path in homes)


def _header(path: tuple[str, ...]) -> str:
    """A table as it is written: `[ca]`, `[[listener]]`; what is none is a key at the top."""
    if path in _LISTS:
        return f"[[{path[0]}]]"
    return f"[{'.'.join(path)}]" if path in TABLES else "the top of the file"


def _form(path: KeyPath) -> str:
    """How a table or an array is written."""
    names = tuple(step for step in path if isinstance(step, str))
    form = _FORMS.get(names, "")
    if path and isinstance(path[-1], int):  # an element
        return form[1:-1]
    return form or (_header(names) if names in TABLES else "")


_LISTS = (("listener",), ("match",))
_NETWORKS, _PORTS = '["192.0.2.0/24"]', "[25]"
_FORMS = {
    ("rules",): '["rules/site.toml"]',
    ("listener",): "[[listener]]",
    ("listener", "reach"): _NETWORKS,
    ("listener", "proxy_from"): _NETWORKS,
    ("listener", "tls"): '[listener.tls] behind its [[listener]], or tls = { client = "require" }',
    ("listener", "tls", "certificates"): '[{ chain = "mx.pem" }]',
    ("listener", "tls", "client_certificate"): '{ chain = "ours.pem" }',
    ("listener", "intercept"): "[listener.intercept] behind its [[listener]], or intercept = { ports = [25] }",
    ("listener", "intercept", "ports"): _PORTS,
    ("listener", "intercept", "clients"): _NETWORKS,
    ("listener", "intercept", "servers"): _NETWORKS,
    ("listener", "intercept", "interfaces"): '["eth0"]',
    ("match",): "[[match]]",
    ("match", "listeners"): '["inbound"]',
    ("match", "clients"): _NETWORKS,
    ("match", "servers"): _NETWORKS,
    ("match", "ports"): _PORTS,
    ("match", "rules"): '["rules/site.toml"]',
    ("match", "tls"): '[match.tls] behind its [[match]], or tls = { client = "require" }',
    ("match", "tls", "certificates"): '[{ chain = "mx.pem" }]',
    ("match", "tls", "client_certificate"): '{ chain = "ours.pem" }',
    ("dns", "servers"): '["127.0.0.1"]',
}


_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "a string",
    "bool_type": "true or false",
    "tuple_type": "an array",
    "model_type": "a table",
}


def _where(path: KeyPath, data: Any) -> str:
    """`limits.recipients`, or `listener 2 "inbound": tls.certificates 1: chain`."""
    heads: list[str] = []
    names: list[str] = []
    for step in path:
        data = _inside(data, step)
        if isinstance(step, str):
            names.append(step)
            continue
        name = _inside(data, "name")
        heads.append(f"{'.'.join(names)} {step + 1}" + (f" {shown(name)}" if isinstance(name, str) else ""))
        names = []
    return ": ".join((*heads, ".".join(names)) if names else heads)


def _inside(data: Any, step: str | int) -> Any:
    """What stands there, if anything does."""
    if isinstance(step, str):
        return data.get(step) if isinstance(data, dict) else None
    return data[step] if isinstance(data, list) and step < len(data) else None
