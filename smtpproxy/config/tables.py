"""smtpproxy.toml: every setting, its default, what it means and why that default; those of TLS are in `tls`.

- The models, here and there, are the only place that knows a setting. The errors, the nearest names and
  docs/configuration.md (which docgen.py writes) are made from them.
- `[limits]` and `[patience]` are made from the tables of `session.limits`: a number added there is a setting at once,
  and importing this module fails until it is described here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Self

from pydantic import AfterValidator, BaseModel, Field, ValidationInfo, create_model, model_validator
from pydantic.fields import FieldInfo

from smtpproxy.config.audit import Addresses, AuditConfig
from smtpproxy.config.cpus import usable_cpus
from smtpproxy.config.inline import (
    MOST_WORKERS,
    Announce,
    GatewayConfig,
    InterceptConfig,
    MatchConfig,
    Mode,
    Networks,
    ProcessConfig,
    Source,
)
from smtpproxy.config.metrics import MetricsConfig
from smtpproxy.config.sinks import OTelConfig, PostgresConfig, SyslogConfig
from smtpproxy.config.tls import (
    AllTLSConfig,
    CAConfig,
    CertificateConfig,
    DNSConfig,
    TLSConfig,
    listener_mistakes,
)
from smtpproxy.config.values import (
    Endpoint,
    FilePathOrNone,
    ListenEndpoint,
    ListenerName,
    Octets,
    Positive,
    Seconds,
    ServerEndpoint,
    Table,
    setting,
    wrong,
    wrong_missing,
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


def _server_is_said(server: Endpoint | None, info: ValidationInfo) -> Endpoint | None:
    """Told with what else is wrong with the listener, so it can't wait until all of that is known to be right."""
    if server is None and info.data.get("mode") == "forward":
        raise wrong_missing("server", 'the server behind it; or mode = "redirect" or "tproxy", which know where to go')
    return server


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
    mode: Mode = setting(
        "forward",
        "how clients come to it. `forward`: it is the server they know; `redirect`: the gateway's NAT leads them here;"
        " `tproxy`: the gateway takes up what goes through it, and no address changes. `smtpproxy nft` prints what the"
        " gateway needs for either",
        "it needs nothing of the gateway",
    )
    server: Annotated[ServerEndpoint | None, Field(validate_default=True), AfterValidator(_server_is_said)] = setting(
        None,
        "the server behind it; without a port it is 25. Must be said with mode `forward`. With the others everything"
        " goes there; not said, each connection goes where its client was going",
        "with mode `forward` there is no other, with the others it is where mail would go without the proxy",
    )
    source: Source | None = setting(
        None,
        "the address the server sees. `own`: one of this machine; `client`: the client's, with any mode, if the"
        " server's answers come back through this machine. It takes a privilege (CAP_NET_RAW), and routes as"
        " `smtpproxy nft` prints them. Not said: `client` with mode `tproxy`, else `own`",
        "it is what the mode is for",
    )
    reach: Networks = setting(
        (),
        "where clients may be led if `server` is not said: to these networks, and nowhere else. Empty: everywhere but"
        " to this machine itself and to loopback, link-local, multicast and broadcast addresses, which must be named"
        " here to be reached",
        "a gateway leads clients to others, not to itself",
    )
    proxy_from: Networks = setting(
        (),
        "networks of load balancers, of whom a PROXY header (version 1 or 2) is required: it says who the client is",
        "who may say so can pretend to be anybody",
    )
    proxy_only: bool = setting(
        True,
        "with `proxy_from`: who is in none of those networks is refused. False: such a one is a client like any other,"
        " and a header of it is refused",
        "behind a load balancer nobody else has a reason to come",
    )
    announce: Announce = setting(
        "none",
        "how the server is told of the client. `proxy-v1`, `proxy-v2`: a PROXY header before all else, which the server"
        " must expect; `xclient`, `xforward`: by that command, where the server offers it",
        "few servers expect it of anybody",
    )
    newlines: Literal["normalise", "refuse"] = setting(
        "normalise",
        "CR or LF alone in content: made CRLF, or refused with 550. Letting them pass is how mail is smuggled",
        "old devices send them and mean no harm; as CRLF they can do none",
    )
    addresses: Addresses = setting(
        "clear",
        "mail addresses in the record: as they are, as `pseudonym`s that the key of `[audit] pseudonym_key` can tell,"
        " or with their domain alone",
        "who looks after mail has to find it",
    )
    tls: TLSConfig = TLSConfig()
    intercept: InterceptConfig = InterceptConfig()

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        wrong_together(listener_mistakes(self.tls, self.server))
        return self

    @property
    def server_name(self) -> str:
        """The name or address the server's certificate must be for; a name without dot at its end (RFC 6066 §3). Empty
        where neither is known before a client comes."""
        return (self.tls.server_name or (self.server.host if self.server else "")).rstrip(".").lower()

    @property
    def keeps_client(self) -> bool:
        """The server sees the client's own address."""
        return self.source == "client" or (self.source is None and self.mode == "tproxy")

    def posture(self) -> Posture:
        """What TLS is to be on its links. May ask the resolver for this machine's name, once and if it is needed."""
        return self.tls.posture(says_hello=self.says_hello)

    @property
    def says_hello(self) -> bool:
        """There may be an EHLO of our own."""
        return self.announce == "xclient" or self.tls.says_hello


class Variant(NamedTuple):
    """A listener by its place in the configuration, a block (None: none), and what the two come to."""

    listener: int
    match: int | None
    entry: ListenerConfig


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


class QuarantineConfig(Table):
    """`[quarantine]`: where mails are kept that rules hold back. docs/quarantine.md is about it."""

    directory: FilePathOrNone = setting(
        "",
        "the directory; it is made if its parent is there. It must belong to who the workers are. Empty: none, and a"
        " rule that would keep a mail is an error",
        "mails are kept nowhere that was not said",
        path=True,
    )
    size: Octets = setting(
        2**30, "octets of all that is kept; a mail that no longer fits is refused with 451", "a bound; disks are larger"
    )
    mails: Positive = setting(
        10_000, "mails that are kept; one more is refused with 451", "as many as people may still look through"
    )
    days: Annotated[int, Field(ge=0, le=36_500)] = setting(
        0,
        "days after which a mail is erased, released or not, once an hour. 0: only `smtpproxy quarantine` erases",
        "nothing is erased that nobody said",
    )


class LogConfig(Table):
    """`[log]`: what the proxy says about itself, on standard error."""

    level: Literal["debug", "info", "warning", "error"] = setting("info", "the least that is said", "starts and stops")
    format: Literal["text", "json"] = setting(
        "text",
        "lines for people, or one JSON object a line; mistakes of the configuration, and where it listens, are"
        " told in words all the same",
        "people read it",
    )


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
        (),
        "rule files, directories of them, and `set:NAME` for sets that come with smtpproxy; in order",
        "nothing is read that is not named",
        path=True,
    )
    shipped_rules: bool = setting(
        True, "the rules that come with smtpproxy stand before those", "they say why each default is as it is"
    )
    matches: Annotated[tuple[MatchConfig, ...], Field(strict=False)] = Field(default=(), alias="match")
    process: ProcessConfig = ProcessConfig()
    gateway: GatewayConfig = GatewayConfig()
    tls: AllTLSConfig = AllTLSConfig()
    ca: CAConfig = CAConfig()
    dns: DNSConfig = DNSConfig()
    limits: _AllLimits = _AllLimits()
    patience: _AllPatience = _AllPatience()
    audit: AuditConfig = AuditConfig()
    quarantine: QuarantineConfig = QuarantineConfig()
    metrics: MetricsConfig = MetricsConfig()
    log: LogConfig = LogConfig()

    def effective(self, listener: ListenerConfig, match: MatchConfig) -> ListenerConfig:
        """The listener as it is for what the block matches: what the block says stands in place of what the listener
        says. The name of a server's certificate is that server's: another server, another name."""
        said = {} if match.tls is None else {key: getattr(match.tls, key) for key in match.tls.model_fields_set}
        if match.server is not None:
            said = {"server_name": "", **said}
        tls = listener.tls.model_copy(update=said)
        return listener.model_copy(update={"tls": tls, "server": match.server or listener.server})

    def variants(self) -> Iterator[Variant]:
        """Every listener as it is, and as it is for each block that applies to it and looks at what passes."""
        for index, listener in enumerate(self.listeners):
            yield Variant(index, None, listener)
            for number, match in enumerate(self.matches):
                if not match.unseen and (not match.listeners or listener.name in match.listeners):
                    yield Variant(index, number, self.effective(listener, match))

    @property
    def worker_count(self) -> int:
        """Processes that serve."""
        return self.process.workers or min(usable_cpus(), MOST_WORKERS)

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
    ("listener", "intercept"): InterceptConfig,
    ("match",): MatchConfig,
    ("match", "tls"): TLSConfig,
    ("match", "tls", "certificates"): CertificateConfig,
    ("match", "tls", "client_certificate"): CertificateConfig,
    ("process",): ProcessConfig,
    ("gateway",): GatewayConfig,
    ("tls",): AllTLSConfig,
    ("ca",): CAConfig,
    ("dns",): DNSConfig,
    ("limits",): _AllLimits,
    ("patience",): _AllPatience,
    ("audit",): AuditConfig,
    ("audit", "postgres"): PostgresConfig,
    ("audit", "syslog"): SyslogConfig,
    ("audit", "syslog", "client_certificate"): CertificateConfig,
    ("audit", "otel"): OTelConfig,
    ("audit", "otel", "client_certificate"): CertificateConfig,
    ("quarantine",): QuarantineConfig,
    ("metrics",): MetricsConfig,
    ("log",): LogConfig,
}


def keys_of(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The keys of a table, as the file spells them."""
    return {field.alias or name: field for name, field in model.model_fields.items()}
