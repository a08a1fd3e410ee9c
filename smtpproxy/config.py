"""smtpproxy.toml: every setting, its default, what it means and why that default.

- The models below are the only place that knows a setting. The errors, the nearest names and docs/configuration.md
  (which docgen.py writes) are made from them.
- `[limits]` and `[patience]` are made from the tables of `session.limits`: a number added there is a setting at once,
  and importing this module fails until it is described here.
- All mistakes are found in one go and told with line and column. What the command line says takes the place of what
  the file says, and is checked in the same way.
- Relative paths are relative to the configuration file.
"""

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError

from smtpproxy.policy.toml import (
    KeyPath,
    Positions,
    Problem,
    TomlError,
    nearest,
    nearest_sizes,
    parse,
    parse_size,
    shown,
)
from smtpproxy.session.limits import Limits, Patience

COMMAND_LINE = "command line"  # the file of a problem with an option

_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9_-]*[A-Za-z0-9])?)*\.?")
_ENDPOINT = re.compile(r"(?:\[(?P<v6>[^\[\]]*)\]|(?P<host>[^:\[\]]*))(?::(?P<port>[0-9]{1,5}))?")
_LISTENER_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")

# name: (meaning, why that default); octets are marked, because they may be written as a size
_OCTETS = "octets: "
_LIMITS: Mapping[str, tuple[str, str]] = {
    "command_line": (_OCTETS + "a command line, with its CRLF", "RFC 5321 asks for 512; this is Postfix's limit"),
    "auth_line": (_OCTETS + "base64 in an AUTH or SASL line", "RFC 4954 §4"),
    "endless_line": (_OCTETS + "a line without end, after which the session is closed", "who sends that means no mail"),
    "reply_line": (_OCTETS + "the longest reply line of the server", "RFC 5321 asks for 512; many servers say more"),
    "reply_lines": ("lines of one reply of the server", "more than any server says, and still an end"),
    "ehlo_lines": ("extensions of a server that are looked at; the rest is not told", "far more than any server has"),
    "recipients": ("recipients of one mail", "RFC 5321 asks for at least 100; this is Postfix's limit"),
    "pipelined": ("commands that may await their replies at once", "as many as a mail may have recipients"),
    "malformed": ("malformed or unknown commands before the session is closed", "Postfix's limit; people make fewer"),
    "header": (_OCTETS + "the longest header section held back to be judged", "more than twice what Postfix takes"),
    "swallow": (_OCTETS + "refused content that is read and thrown away", "a refusal is heard only behind the content"),
    "unsent": (_OCTETS + "what waits for a slow peer before the other one waits too", "it is memory, for each session"),
}
_PATIENCE: Mapping[str, tuple[str, str]] = {
    "connect": ("for one address of the server", "one that is there answers at once, and there may be more addresses"),
    "greeting": ("for the server's greeting", "RFC 5321 §4.5.3.2.1"),
    "command": ("for the server's reply to MAIL, RCPT and all else", "RFC 5321 §4.5.3.2.2 and .3"),
    "data": ("for the server's 354", "RFC 5321 §4.5.3.2.4"),
    "content": ("for the next piece of content, either way", "RFC 5321 §4.5.3.2.5"),
    "end": ("for the server's reply to the end of data", "RFC 5321 §4.5.3.2.6: a mail given up here may come twice"),
    "client": ("for the client's next command", "RFC 5321 §4.5.3.2.7"),
    "tls": ("for a whole TLS handshake", "far slower than any real one"),
    "session": ("for a whole session", "four hours: a session that is alive then is being kept open"),
    "drain": ("for what is in flight when the proxy is told to stop", "less than the 90 s systemd waits"),
    "rate": ("octets a second: content slower on the whole is given up", "a mail of 1 MiB in 35 minutes: slow enough"),
}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A host, by name or address, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_endpoint(text: str, *, port: int = 25) -> Endpoint:
    """`"host:port"`, `"[v6]:port"` or `"host"`, which then is at `port`.

    Raises:
        ValueError: it is none of these.
    """
    found = _ENDPOINT.fullmatch(text)
    if found is None:
        hint = f"; an IPv6 address stands in brackets: [{text}]" if _is_v6(text) else ""
        raise ValueError(f"{shown(text)} is not host:port{hint}")
    host = found["host"] if found["v6"] is None else found["v6"]
    if not (_is_v6(host) if found["v6"] is not None else _is_host(host)):
        raise ValueError(f"{shown(host)} is not a host" if host else f"{shown(text)} names no host")
    number = int(found["port"]) if found["port"] else port
    if number > 65_535:
        raise ValueError(f"{number} is not a port")
    return Endpoint(host, number)


def _is_host(text: str) -> bool:
    """A name, or an IPv4 address: what ends in a number is one or is nothing (RFC 1123 §2.1)."""
    if text.rpartition(".")[2].isdigit():
        try:
            ipaddress.IPv4Address(text)
        except ValueError:
            return False
    return _HOST.fullmatch(text) is not None


def _is_v6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


# ----------------------------------------------------------------------------------------------------- value types


def _wrong(message: str, expected: str, near: Sequence[str] = ()) -> PydanticCustomError:
    context = {"message": message, "expected": expected, "nearest": tuple(near)}
    return PydanticCustomError("smtpproxy", "{message}", context)


def _listen(value: object) -> Endpoint:
    try:
        return parse_endpoint(_string(value, '"0.0.0.0:25"'))
    except ValueError as error:
        raise _wrong(str(error), 'e.g. "127.0.0.1:2525", "[::]:25" for all, "localhost:0" for any free port') from None


def _server(value: object) -> Endpoint:
    try:
        endpoint = parse_endpoint(_string(value, '"mx.example:25"'))
    except ValueError as error:
        raise _wrong(str(error), 'e.g. "mx.example:25", "192.0.2.1", "[2001:db8::1]:2525"') from None
    if not endpoint.port:
        raise _wrong("a server is not at port 0", 'e.g. "mx.example:25"')
    return endpoint


def _string(value: object, expected: str) -> str:
    if not isinstance(value, str):
        raise _wrong(f"{shown(value)} is not a string", f"e.g. {expected}")
    return value


def _octets(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return parse_size(value)
    except ValueError as error:
        raise _wrong(str(error), 'a size, e.g. "25 MiB"', nearest_sizes(value)) from None


def _listener_name(value: str) -> str:
    if not _LISTENER_NAME.fullmatch(value):
        raise _wrong(f"{shown(value)} is not a name", 'a name such as "inbound": a-z, 0-9 and -')
    return value


def _different(listeners: tuple["ListenerConfig", ...]) -> tuple["ListenerConfig", ...]:
    names = [listener.name for listener in listeners]
    for name in names:
        if names.count(name) > 1:
            raise _wrong(f"two listeners are called {shown(name)}", "a name of its own for each")
    return listeners


ListenEndpoint = Annotated[Endpoint, BeforeValidator(_listen)]
ServerEndpoint = Annotated[Endpoint, BeforeValidator(_server)]
_Positive = Annotated[int, Field(gt=0, le=2**62)]
_Octets = Annotated[int, BeforeValidator(_octets), Field(gt=0, le=2**62)]
_Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _setting(default: Any, meaning: str, why: str) -> Any:
    """A setting: its default (`...`: it must be said), what it means, why that default."""
    return Field(default, description=meaning, json_schema_extra={"why": why})


def _table(name: str, base: type[BaseModel], source: type, described: Mapping[str, tuple[str, str]]) -> type[BaseModel]:
    """The settings of a dataclass of `session.limits`."""
    settings: dict[str, Any] = {}
    for number in fields(source):
        meaning, why = described[number.name]
        kind: Any = _Seconds if number.type in (float, "float") else _Positive
        if meaning.startswith(_OCTETS):
            kind, meaning = _Octets, f"octets of {meaning.removeprefix(_OCTETS)}"
        settings[number.name] = kind, _setting(number.default, meaning, why)
    return create_model(name, __base__=base, __doc__=base.__doc__, **settings)


# ---------------------------------------------------------------------------------------------------------- models


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=False)


class ListenerConfig(_Model):
    """One `[[listener]]`: an address to listen on, and the server behind it."""

    name: Annotated[str, AfterValidator(_listener_name)] = _setting(..., "what the record calls it", "must be said")
    listen: ListenEndpoint = _setting(
        ..., "where clients connect: `host:port`, `[v6]:port`; port 0 is any free one", "must be said"
    )
    server: ServerEndpoint = _setting(..., "the server behind it; without a port it is 25", "must be said")
    newlines: Literal["normalise", "refuse"] = _setting(
        "normalise",
        "CR or LF alone in content: made CRLF, or refused with 550. Letting them pass is how mail is smuggled",
        "old devices send them and mean no harm; as CRLF they can do none",
    )


class LimitsConfig(_Model):
    """`[limits]`: what one session, one client and the whole proxy are bounded by. None can be switched off."""

    connections: _Positive = _setting(
        10_000, "sessions at once in all; each takes two file descriptors", "a bound; set it to what your server takes"
    )
    connections_per_client: _Positive = _setting(
        100, "sessions at once of one client address", "twice Postfix's limit; a client alone can't take all the places"
    )


class PatienceConfig(_Model):
    """`[patience]`: seconds a peer is waited for."""


class AuditConfig(_Model):
    """`[audit]`: the record of everything that was asked, sent, got and told."""

    file: str = _setting("-", "a file, or `-` for standard output", "a service manager or container collects it there")


class LogConfig(_Model):
    """`[log]`: what the proxy says about itself, on standard error."""

    level: Literal["debug", "info", "warning", "error"] = _setting("info", "the least that is said", "starts and stops")
    format: Literal["text", "json"] = _setting("text", "lines for people, or one JSON object a line", "people read it")


if TYPE_CHECKING:
    _AllLimits = LimitsConfig
    _AllPatience = PatienceConfig
else:
    _AllLimits = _table("LimitsConfig", LimitsConfig, Limits, _LIMITS)
    _AllPatience = _table("PatienceConfig", PatienceConfig, Patience, _PATIENCE)


class Config(_Model):
    """The whole of smtpproxy.toml."""

    listeners: Annotated[tuple[ListenerConfig, ...], Field(strict=False), AfterValidator(_different)] = Field(
        default=(), alias="listener"
    )
    rules: Annotated[tuple[str, ...], Field(strict=False)] = _setting(
        (), "rule files, and directories of them, in order", "nothing is read that is not named"
    )
    shipped_rules: bool = _setting(
        True, "the rules that come with smtpproxy stand before those", "they say why each default is as it is"
    )
    limits: _AllLimits = _AllLimits()
    patience: _AllPatience = _AllPatience()
    audit: AuditConfig = AuditConfig()
    log: LogConfig = LogConfig()

    @property
    def connections(self) -> int:
        """Sessions at once in all."""
        return self.limits.connections

    @property
    def connections_per_client(self) -> int:
        """Sessions at once of one client address."""
        return self.limits.connections_per_client

    @property
    def rule_paths(self) -> tuple[Path, ...]:
        """The rule files and directories."""
        return tuple(map(Path, self.rules))

    def limits_table(self) -> Limits:
        """The numbers a session is bounded by."""
        return Limits(**{number.name: getattr(self.limits, number.name) for number in fields(Limits)})

    def patience_table(self) -> Patience:
        """How long a session waits."""
        return Patience(**{number.name: getattr(self.patience, number.name) for number in fields(Patience)})


# --------------------------------------------------------------------------------------------------------- loading


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


def load_config(path: Path | None, overrides: Sequence[Override] = (), *, listeners: bool = True) -> Config:
    """The configuration of the file and the command line; `listeners`: there must be one.

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
        found = dict.fromkeys(_problem(e, data, said, positions) for e in errors.errors(include_url=False))
        raise ConfigError(sorted(found, key=lambda problem: (problem.line, problem.column))) from None
    if listeners and not config.listeners:
        expected = "--listen and --server, or a [[listener]] in a configuration file"
        file = str(path) if path else COMMAND_LINE
        raise ConfigError([Problem(file, 0, 0, "", "nothing to listen on", expected)])
    return config


def _resolve(data: dict[str, Any], base: Path) -> None:
    """Paths of the file are relative to it."""
    rules, audit = data.get("rules"), data.get("audit")
    if isinstance(rules, list):
        data["rules"] = [str(base / rule) if isinstance(rule, str) else rule for rule in rules]
    if isinstance(audit, dict) and isinstance(file := audit.get("file"), str) and file != "-":
        audit["file"] = str(base / file)


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


def _problem(
    error: ErrorDetails, data: Mapping[str, Any], said: Mapping[KeyPath, str], positions: Positions | None
) -> Problem:
    """What pydantic found, in our words and at its place."""
    path: KeyPath = error["loc"]
    key = error["type"] == "extra_forbidden"
    message, expected, near = _words(error)
    option = _option(path, said)
    if option or positions is None:
        return Problem(COMMAND_LINE, 0, 0, option, message, expected, tuple(near))
    about = path[:-1] if key or error["type"] == "missing" else path
    place = path[:-1] if error["type"] == "missing" else path
    return positions.problem(place, message, where=_where(about, data), key=key, expected=expected, nearest=near)


def _words(error: ErrorDetails) -> tuple[str, str, Sequence[str]]:
    """Message, what was expected, nearest names."""
    *table, last = error["loc"]
    kind, context, value = error["type"], error.get("ctx", {}), error["input"]
    known = TABLES.get(tuple(step for step in table if isinstance(step, str)))
    if kind == "smtpproxy":
        return context["message"], context["expected"], context["nearest"]
    if kind == "extra_forbidden":
        near = nearest(str(last), keys_of(known)) if known else []
        return f"unknown key {shown(str(last))}", "" if near else ", ".join(keys_of(known) if known else ()), near
    if kind == "missing":
        field = keys_of(known)[str(last)] if known else None
        return f"{last} is missing", (field.description or "") if field else "", ()
    if kind == "literal_error":
        words = re.findall(r"'([^']*)'", context["expected"])
        near = nearest(value, words) if isinstance(value, str) else []
        return f"{shown(value)} is not one of its values", " or ".join(f'"{word}"' for word in words), near
    if kind == "greater_than":
        return f"{shown(value)} is too small", f"more than {context['gt']}", ()
    if kind == "less_than_equal":
        return f"{shown(value)} is too large", f"at most {context['le']}", ()
    if kind in _EXPECTED:
        return f"{shown(value)} is not {_EXPECTED[kind]}", "", ()
    return f"{shown(value)}: {error['msg']}", "", ()


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


def _where(path: KeyPath, data: Mapping[str, Any]) -> str:
    """`limits.recipients`, or `listener 2 "inbound": server`."""
    if len(path) > 1 and isinstance(path[1], int):
        table = data[str(path[0])][path[1]]
        name = table.get("name") if isinstance(table, dict) else None
        head = f"{path[0]} {path[1] + 1}" + (f" {shown(name)}" if isinstance(name, str) else "")
        return ": ".join((head, *map(str, path[2:])))
    return ".".join(map(str, path))


TABLES: Mapping[tuple[str, ...], type[BaseModel]] = {
    (): Config,
    ("listener",): ListenerConfig,
    ("limits",): _AllLimits,
    ("patience",): _AllPatience,
    ("audit",): AuditConfig,
    ("log",): LogConfig,
}


def keys_of(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The keys of a table, as the file spells them."""
    return {field.alias or name: field for name, field in model.model_fields.items()}
