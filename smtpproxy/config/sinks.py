"""The sinks of the record: `[audit.postgres]`, `[[audit.syslog]]`, `[[audit.otel]]`. They follow the store."""

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Final, Literal
from urllib.parse import parse_qsl, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field

from smtpproxy.config.tls import CertificateConfig
from smtpproxy.config.values import (
    Endpoint,
    FilePathOrNone,
    HostOrAddress,
    ListenerName,
    Mistake,
    Octets,
    Seconds,
    SocketPath,
    Table,
    parse_endpoint,
    setting,
    wrong,
)
from smtpproxy.policy.toml import shown

# fmt: off
Facility = Literal[
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp", "ntp",
    "audit", "alert", "clock", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7",
]
# fmt: on
POSTGRES: Final = "postgresql"  # what its sink is called
_SYSLOG_TLS: Final = 6514  # RFC 5425 §4.1
_NO_TLS: Final = "it is about TLS, and there is none"
_DATABASE: Final = re.compile(r"postgres(?:ql)?://")


def _syslog_server(value: object) -> Endpoint | None:
    expected = 'e.g. "logs.example:6514", "[2001:db8::1]:6514"; "" for none'
    if not isinstance(value, str):
        raise wrong(f"{shown(value)} is not a string", expected)
    if not value:
        return None
    try:
        endpoint = parse_endpoint(value, port=_SYSLOG_TLS)
    except ValueError as error:
        raise wrong(str(error), expected) from None
    if not endpoint.port:
        raise wrong("a server is not at port 0", expected)
    return endpoint


def _url(value: str) -> str:
    expected = 'e.g. "https://collector.example:4318"'
    try:
        parts = urlsplit(value)
        right = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number, a bracket that is not closed
        right = False
    if not right or not value.isprintable():
        raise wrong(f"{shown(value)} is not the address of a collector", expected)
    if parts.username is not None or parts.query or parts.fragment:
        raise wrong("there is more in it than where the collector is", f"{expected}; secrets are for `headers_file`")
    return value


def _database(value: str) -> str:
    if not value:
        return value
    expected = 'e.g. "postgresql://smtpproxy@db.example/audit?sslmode=verify-full&passfile=/etc/smtpproxy/pgpass"'
    try:
        parts = urlsplit(value)
        password = parts.password is not None or any(key == "password" for key, _ in parse_qsl(parts.query))
    except ValueError:
        parts, password = urlsplit(""), False
    if not _DATABASE.match(value) or not parts.scheme or not value.isprintable():
        raise wrong("it is not the address of a PostgreSQL database", expected)  # not shown: it may have a password
    if password:
        raise wrong(
            "there is a password in it, and this is no place for one", f"passfile=FILE in its place, {expected}"
        )
    return value


WhenDown = Literal["keep", "skip"]


class _SinkTable(Table):
    """What all have that are owed the record."""

    when_down: WhenDown = setting(
        "keep",
        "while it is down: `keep` what it has not had, for as long as it takes (the store is not pruned beyond that);"
        " `skip` it, after `skip_after`, which the record says",
        "nothing is lost",
    )
    skip_after: Seconds = setting(3600.0, 'seconds it is waited for, with when_down = "skip"', "a restart is shorter")


class _StreamTable(_SinkTable):
    """What those have besides that are sent the lines."""

    name: ListenerName = setting(..., "what the record and the metrics call it", "must be said")
    history: bool = setting(
        False, "it is sent, too, what the store had before it was said", "who joins wants what happens from now on"
    )
    personal: bool = setting(
        True,
        "lines are sent as they are in the store; false: without what is about persons, which stays in the store",
        "who looks after mail has to find it",
    )
    roots: FilePathOrNone = setting(
        "", "a PEM file of the CAs that may vouch for its certificate. Empty: the system's", "as for mail", path=True
    )
    client_certificate: CertificateConfig | None = setting(None, "shown to it if it asks for one", "many don't ask")


class PostgresConfig(_SinkTable):
    """`[audit.postgres]`: a PostgreSQL database that gets all of the store, and may be the same for many gateways.
    docs/audit-postgres.md is about it."""

    address: Annotated[str, AfterValidator(_database)] = setting(
        "",
        "where it is: postgresql://user@host:port/database, with libpq's parameters (sslmode, sslrootcert, passfile …)."
        " It takes the extra `smtpproxy[postgres]`. Empty: there is none",
        "one gateway needs none",
    )


class SyslogConfig(_StreamTable):
    """One `[[audit.syslog]]`: a syslog server (RFC 5424), by TLS (RFC 5425). docs/audit-sinks.md is about it."""

    server: Annotated[Endpoint | None, BeforeValidator(_syslog_server)] = setting(
        None, "`host:port`; without a port it is 6514. This or `socket` must be said", "there is no usual one"
    )
    socket: SocketPath = setting("", 'a socket of this machine, e.g. "/dev/log"', "as `server`")
    tls: bool = setting(True, "false: in clear, by TCP (RFC 6587 §3.4.1)", "records are nobody else's business")
    server_name: HostOrAddress = setting(
        "", "the name its certificate must be for. Empty: the host of `server`", "it is the name it is known by"
    )
    facility: Facility = setting("mail", "RFC 5424 §6.2.1", "it is about mail")
    longest: Annotated[Octets, Field(ge=1024)] = setting(
        8192,
        "octets of a message; a longer line is sent without what is about persons, or cut off",
        "rsyslog's default",
    )
    checkpoints: bool = setting(
        True, "checkpoints are sent too", "one that is kept elsewhere proves what was before it"
    )


class OTelConfig(_StreamTable):
    """One `[[audit.otel]]`: an OpenTelemetry collector, by OTLP over HTTP. It takes the extra `smtpproxy[otel]`.
    docs/audit-sinks.md is about it."""

    endpoint: Annotated[str, AfterValidator(_url)] = setting(
        ..., "https://host:port or http://host:port; /v1/logs and /v1/traces are put behind it", "must be said"
    )
    headers_file: FilePathOrNone = setting(
        "",
        "a file of headers for each request, `Name: value` a line, such as a token. Empty: none",
        "secrets are not for the configuration",
        path=True,
    )
    timeout: Seconds = setting(10.0, "seconds for a request", "OTLP's default")
    compress: bool = setting(True, "requests are compressed", "lines are alike")
    logs: bool = setting(True, "a log record for each record", "it is the record")
    traces: bool = setting(False, "a span for each session and each transaction", "who has no traces has no use for it")


def mistakes(postgres: PostgresConfig, syslog: Sequence[SyslogConfig], otel: Sequence[OTelConfig]) -> Iterator[Mistake]:
    """What does not go together; places are within `[audit]`."""
    names: set[str] = {POSTGRES}
    for kind, tables in (("syslog", syslog), ("otel", otel)):
        for index, one in enumerate(tables):
            if one.name in names:
                yield Mistake(
                    (kind, index, "name"), f"two sinks are called {shown(one.name)}", "a name of its own for each"
                )
            names.add(one.name)
    for index, server in enumerate(syslog):
        if bool(server.server) == bool(server.socket):
            said = "both are said" if server.socket else "neither is said"
            yield Mistake(("syslog", index), f"`server` or `socket`: {said}", "one of them")
        if not server.tls or server.socket:
            for key in ("roots", "server_name", "client_certificate"):
                if getattr(server, key):
                    yield Mistake(
                        ("syslog", index, key), "it is about TLS, and there is none", "`server`, with tls = true"
                    )
    for index, collector in enumerate(otel):
        if not collector.logs and not collector.traces:
            yield Mistake(("otel", index), "neither logs nor traces are sent", "logs = true, or traces = true, or both")
        if not collector.endpoint.startswith("https:"):
            for key in ("roots", "client_certificate"):
                if getattr(collector, key):
                    yield Mistake(
                        ("otel", index, key), "it is about TLS, and there is none", "an endpoint with https://"
                    )
