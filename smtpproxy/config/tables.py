"""smtpproxy.toml: every setting, its default, what it means and why that default; those of TLS are in `tls`.

- The models, here and there, are the only place that knows a setting. The errors, the nearest names and
  docs/configuration.md (which docgen.py writes) are made from them.
- `[limits]` and `[patience]` are made from the tables of `session.limits`: a number added there is a setting at once,
  and importing this module fails until it is described here.
"""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, Field, create_model, model_validator
from pydantic.fields import FieldInfo

from smtpproxy.config.tls import (
    AllTLSConfig,
    CAConfig,
    CertificateConfig,
    DNSConfig,
    TLSConfig,
    ca_mistakes,
    listener_mistakes,
    resolver_mistakes,
)
from smtpproxy.config.values import (
    ListenEndpoint,
    ListenerName,
    Mistake,
    Octets,
    Positive,
    Seconds,
    ServerEndpoint,
    Table,
    setting,
    wrong,
    wrong_together,
)
from smtpproxy.policy.toml import shown
from smtpproxy.session.limits import Limits, Patience
from smtpproxy.session.postures import Posture

# name: (meaning, why that default); octets are marked, because they may be written as a size
OCTETS = "octets: "
_LIMITS: Mapping[str, tuple[str, str]] = {
    "command_line": (OCTETS + "a command line, with its CRLF", "RFC 5321 asks for 512; this is Postfix's limit"),
    "auth_line": (OCTETS + "base64 in an AUTH or SASL line", "RFC 4954 §4"),
    "endless_line": (OCTETS + "a line without end, after which the session is closed", "who sends that means no mail"),
    "reply_line": (OCTETS + "the longest reply line of the server", "RFC 5321 asks for 512; many servers say more"),
    "reply_lines": ("lines of one reply of the server", "more than any server says, and still an end"),
    "ehlo_lines": ("extensions of a server that are looked at; the rest is not told", "far more than any server has"),
    "recipients": ("recipients of one mail", "RFC 5321 asks for at least 100; this is Postfix's limit"),
    "pipelined": ("commands that may await their replies at once", "as many as a mail may have recipients"),
    "malformed": ("malformed or unknown commands before the session is closed", "Postfix's limit; people make fewer"),
    "header": (OCTETS + "the longest header section held back to be judged", "more than twice what Postfix takes"),
    "swallow": (OCTETS + "refused content that is read and thrown away", "a refusal is heard only behind the content"),
    "unsent": (OCTETS + "what waits for a slow peer before the other one waits too", "it is memory, for each session"),
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


def _different(listeners: tuple["ListenerConfig", ...]) -> tuple["ListenerConfig", ...]:
    names = [listener.name for listener in listeners]
    for name in names:
        if names.count(name) > 1:
            raise wrong(f"two listeners are called {shown(name)}", "a name of its own for each")
    return listeners


def _table(name: str, base: type[BaseModel], source: type, described: Mapping[str, tuple[str, str]]) -> type[BaseModel]:
    """The settings of a dataclass of `session.limits`."""
    settings: dict[str, Any] = {}
    for number in fields(source):
        meaning, why = described[number.name]
        kind: Any = Seconds if number.type in (float, "float") else Positive
        if meaning.startswith(OCTETS):
            kind, meaning = Octets, f"octets of {meaning.removeprefix(OCTETS)}"
        settings[number.name] = kind, setting(number.default, meaning, why)
    return create_model(name, __base__=base, __doc__=base.__doc__, **settings)


class ListenerConfig(Table):
    """One `[[listener]]`: an address to listen on, and the server behind it."""

    name: ListenerName = setting(..., "what the record calls it", "must be said")
    listen: ListenEndpoint = setting(
        ..., "where clients connect: `host:port`, `[v6]:port`; port 0 is any free one", "must be said"
    )
    server: ServerEndpoint = setting(..., "the server behind it; without a port it is 25", "must be said")
    newlines: Literal["normalise", "refuse"] = setting(
        "normalise",
        "CR or LF alone in content: made CRLF, or refused with 550. Letting them pass is how mail is smuggled",
        "old devices send them and mean no harm; as CRLF they can do none",
    )
    tls: TLSConfig = TLSConfig()

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        wrong_together(listener_mistakes(self.tls, self.server))
        return self

    @property
    def server_name(self) -> str:
        """The name or address the server's certificate must be for; a name without dot at its end (RFC 6066 §3)."""
        return (self.tls.server_name or self.server.host).rstrip(".").lower()

    def posture(self) -> Posture:
        """What TLS is to be on its links. May ask the resolver for this machine's name, once and if it is needed."""
        return self.tls.posture()


class LimitsConfig(Table):
    """`[limits]`: what one session, one client and the whole proxy are bounded by. None can be switched off."""

    connections: Positive = setting(
        10_000, "sessions at once in all; each takes two file descriptors", "a bound; set it to what your server takes"
    )
    connections_per_client: Positive = setting(
        100, "sessions at once of one client address", "twice Postfix's limit; a client alone can't take all the places"
    )


class PatienceConfig(Table):
    """`[patience]`: seconds a peer is waited for."""


class AuditConfig(Table):
    """`[audit]`: the record of everything that was asked, sent, got and told."""

    file: str = setting(
        "-", "a file, or `-` for standard output", "a service manager or container collects it there", path=True
    )


class LogConfig(Table):
    """`[log]`: what the proxy says about itself, on standard error."""

    level: Literal["debug", "info", "warning", "error"] = setting("info", "the least that is said", "starts and stops")
    format: Literal["text", "json"] = setting("text", "lines for people, or one JSON object a line", "people read it")


if TYPE_CHECKING:
    _AllLimits = LimitsConfig
    _AllPatience = PatienceConfig
else:
    _AllLimits = _table("LimitsConfig", LimitsConfig, Limits, _LIMITS)
    _AllPatience = _table("PatienceConfig", PatienceConfig, Patience, _PATIENCE)


class Config(Table):
    """The whole of smtpproxy.toml."""

    listeners: Annotated[tuple[ListenerConfig, ...], Field(strict=False), AfterValidator(_different)] = Field(
        default=(), alias="listener"
    )
    rules: Annotated[tuple[str, ...], Field(strict=False)] = setting(
        (), "rule files, and directories of them, in order", "nothing is read that is not named", path=True
    )
    shipped_rules: bool = setting(
        True, "the rules that come with smtpproxy stand before those", "they say why each default is as it is"
    )
    tls: AllTLSConfig = AllTLSConfig()
    ca: CAConfig = CAConfig()
    dns: DNSConfig = DNSConfig()
    limits: _AllLimits = _AllLimits()
    patience: _AllPatience = _AllPatience()
    audit: AuditConfig = AuditConfig()
    log: LogConfig = LogConfig()

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        mistakes = [Mistake(("ca", *mistake.place), *mistake[1:]) for mistake in ca_mistakes(self.ca)]
        if any(listener.tls.verify == "dane" for listener in self.listeners):
            mistakes += resolver_mistakes(self.dns)
        wrong_together(mistakes)
        return self

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


TABLES: Mapping[tuple[str, ...], type[BaseModel]] = {
    (): Config,
    ("listener",): ListenerConfig,
    ("listener", "tls"): TLSConfig,
    ("listener", "tls", "certificates"): CertificateConfig,
    ("listener", "tls", "client_certificate"): CertificateConfig,
    ("tls",): AllTLSConfig,
    ("ca",): CAConfig,
    ("dns",): DNSConfig,
    ("limits",): _AllLimits,
    ("patience",): _AllPatience,
    ("audit",): AuditConfig,
    ("log",): LogConfig,
}


def keys_of(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The keys of a table, as the file spells them."""
    return {field.alias or name: field for name, field in model.model_fields.items()}
