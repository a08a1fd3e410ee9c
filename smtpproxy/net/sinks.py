"""The sinks of the record, as they are configured: what of them is read once, before the process becomes who it is to
be, and how each is made from it.

Secrets and keys are files that only root may read, perhaps; what comes of them is kept. A library is imported only
where there is something to be sent with it.
"""

import re
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from smtpproxy.config.audit import AuditConfig
from smtpproxy.config.sinks import OTelConfig, SyslogConfig
from smtpproxy.config.tls import CertificateConfig
from smtpproxy.store.errors import StoreError
from smtpproxy.store.sinks import Policy, Sink

_HEADER: Final = re.compile(r"(?P<name>[!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*(?P<value>[!-~][ -~\t]*)")  # RFC 9110 §5
LONGEST_HEADERS: Final = 65_536  # octets of a file of headers


class SinkError(Exception):
    """What is configured for a sink can't work; the text says why."""


class Planned(NamedTuple):
    """How a sink is made, each time the store is taken up, and what it is owed."""

    make: Callable[[], Sink]
    policy: Policy


def plan(audit: AuditConfig, origin: str, hostname: str) -> list[Planned]:
    """All that are configured.

    Args:
        origin: what checkpoints call this gateway's log.
        hostname: this machine's.

    Raises:
        SinkError: one can't be.
    """
    directory = Path(audit.store)
    planned = [_syslog(one, hostname) for one in audit.syslog]
    planned += [_otel(one, directory, origin, hostname) for one in audit.otel]
    if audit.postgres.address:
        planned.append(_postgres(audit, directory))
    return planned


def _syslog(config: SyslogConfig, hostname: str) -> Planned:
    from smtpproxy.store.syslog import FACILITIES, Form, SyslogSink, Target

    form = Form(hostname, FACILITIES[config.facility], config.longest, config.personal)
    if config.server is None:
        target = Target(path=config.socket)
    else:
        context = _context(config.roots, config.client_certificate, config.name) if config.tls else None
        target = Target(config.server.host, config.server.port, context=context, server_name=config.server_name)
    policy = Policy(config.when_down, config.skip_after, config.history)
    return Planned(lambda: SyslogSink(config.name, target, form, checkpoints=config.checkpoints), policy)


def _otel(config: OTelConfig, directory: Path, origin: str, hostname: str) -> Planned:
    try:
        from smtpproxy.store.otel import Collector, OTelSink
    except ImportError as error:
        raise SinkError(_lacking(f"sink {config.name}", error, "otel")) from None
    secured = config.endpoint.startswith("https:")
    collector = Collector(
        config.endpoint,
        origin,
        hostname,
        headers=read_headers(config.headers_file),
        context=_context(config.roots, config.client_certificate, config.name) if secured else None,
        timeout=config.timeout,
        compress=config.compress,
        personal=config.personal,
        logs=config.logs,
        traces=config.traces,
    )
    policy = Policy(config.when_down, config.skip_after, config.history)
    return Planned(lambda: OTelSink(config.name, collector, directory), policy)


def _postgres(audit: AuditConfig, directory: Path) -> Planned:
    try:
        from smtpproxy.store.postgres import PostgresSink
        from smtpproxy.store.postgres_link import Where
    except ImportError as error:
        raise SinkError(_lacking("[audit.postgres]", error, "postgres")) from None
    try:
        Where(audit.postgres.address)
    except StoreError as error:
        raise SinkError(f"[audit.postgres] address: {error}") from None
    policy = Policy(audit.postgres.when_down, audit.postgres.skip_after)
    return Planned(lambda: PostgresSink(audit.postgres.address, directory), policy)


def _lacking(what: str, error: ImportError, extra: str) -> str:
    return f'{what} needs more, and {error.name} can\'t be imported: `pip install "smtpproxy[{extra}]"`'


def _context(roots: str, own: CertificateConfig | None, name: str) -> ssl.SSLContext:
    """What a server is verified with, and what it is shown."""
    try:
        context = ssl.create_default_context(cafile=roots or None)
        if own is not None:
            context.load_cert_chain(own.chain, own.key or None, password="")  # else it is asked for at a terminal
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise SinkError(f"sink {name}: its certificates can't be used: {error}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def read_headers(path: str) -> dict[str, str]:
    """The headers of a file, `Name: value` a line; empty lines and those with `#` before them are none.

    Raises:
        SinkError: it can't be read, or is not that; nothing of what is in it is told.
    """
    if not path:
        return {}
    try:
        with open(path, "rb") as file:
            octets = file.read(LONGEST_HEADERS + 1)
    except OSError as error:
        raise SinkError(f"the headers {path} can't be read: {error.strerror}") from error
    if len(octets) > LONGEST_HEADERS:
        raise SinkError(f"the headers {path} are more than {LONGEST_HEADERS} octets")
    headers = {}
    for number, line in enumerate(octets.decode("latin-1").split("\n"), 1):
        text = line.strip()
        if text and not text.startswith("#"):
            found = _HEADER.fullmatch(text)
            if found is None:
                raise SinkError(f"{path}:{number}: this is no header; expected e.g. Authorization: Bearer …")
            headers[found["name"]] = found["value"]
    return headers
