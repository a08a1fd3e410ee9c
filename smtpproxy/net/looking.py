"""What can be seen to be wrong before anything is started: `smtpproxy check` tells it, and `serve` before it listens.

Files are read and nobody is asked. The CA's key is not opened: its mode is looked at, and whether the passphrase fits
is seen by the signing process alone. What would keep the proxy from starting is an error; what only keeps it from
doing what was hardly meant otherwise is a warning.
"""

import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path

from cryptography import x509

from smtpproxy.config import CertificateConfig, Config, Mistake, TLSConfig, exposed, missing
from smtpproxy.net.identities import first_certificate
from smtpproxy.policy.rules import AnyRule, ExtensionRule, Quarantine, Rule, Treatment
from smtpproxy.policy.toml import KeyPath, Problem, shown
from smtpproxy.session.postures import ClientTLS
from smtpproxy.tls.authority import AuthorityError, certificate
from smtpproxy.tls.certificates import moment, names_of, read
from smtpproxy.tls.contexts import CertificateError, read_pair
from smtpproxy.tls.verifying import Roots

SOON = timedelta(days=14)  # a certificate that ends within that should be on its way
_LIBRARIES = {"dane": ("dns",), "mta-sts": ("dns", "h11")}  # as in pyproject.toml


def look(config: Config) -> Iterator[Mistake]:
    """What is wrong with what the configuration names: libraries and files."""
    for place, tls in _tables(config):
        verify = tls.verify
        if lacking := [name for name in _LIBRARIES.get(verify, ()) if find_spec(name) is None]:
            yield Mistake(
                (*place, "verify"),
                f'verify = "{verify}" needs more, and {" and ".join(lacking)} can\'t be imported',
                f'`pip install "smtpproxy[{verify}]"`',
            )
    for place, library, extra in _wanted(config):
        if find_spec(library) is None:
            yield Mistake(place, f"needs more, and {library} can't be imported", f'`pip install "smtpproxy[{extra}]"`')
    found = list(missing(config))
    yield from found
    if found:  # what is not there can't be read
        return
    now = datetime.fromtimestamp(time.time(), UTC)
    pairs = list(_of_listeners(config, now))
    useless = {mistake.place for mistake in pairs if mistake.severity == "error"}
    open_to_others = [mistake for mistake in exposed(config) if mistake.place[:-1] not in useless]
    for mistake in (*pairs, *open_to_others, *_of_ca(config, now)):
        # Where nothing is to be signed the signing process is not started, and a CA that can't be used harms nobody.
        idle = mistake.place[0] == "ca" and not any(
            variant.entry.tls.makes_certificates for variant in config.variants()
        )
        yield mistake._replace(severity="warning") if idle else mistake


def _wanted(config: Config) -> Iterator[tuple[KeyPath, str, str]]:
    """Settings that need a library, and the extra that brings it."""
    if config.metrics.listen is not None:
        yield ("metrics", "listen"), "prometheus_client", "metrics"
    if config.audit.postgres.address:
        yield ("audit", "postgres", "address"), "psycopg", "postgres"
    for index in range(len(config.audit.otel)):
        yield ("audit", "otel", index), "opentelemetry", "otel"


def _tables(config: Config) -> Iterator[tuple[KeyPath, TLSConfig]]:
    """Every table about a listener's TLS, and its place."""
    for index, listener in enumerate(config.listeners):
        yield ("listener", index, "tls"), listener.tls
    for index, match in enumerate(config.matches):
        if match.tls is not None:
            yield ("match", index, "tls"), match.tls


def look_at_rules(config: Config, rules: Iterable[AnyRule], match: str = "") -> Iterator[Problem]:
    """What is wrong with rules and configuration together: a mail that is to be kept, and nowhere to keep it; and what
    is hardly meant: a client that must say STARTTLS and must not. The rules are those of a match block, or those for
    all who have no block with rules of its own."""
    rules = tuple(rules)
    if config.listeners and not config.quarantine.directory:  # rules that are looked at alone may be for any proxy
        for one in rules:
            if isinstance(one, Rule) and any(isinstance(deed, Quarantine) for deed in (*one.then, one.otherwise)):
                yield Problem(
                    one.source.file,
                    one.source.line,
                    1,
                    f"rule {shown(one.name)}",
                    "keeps mails in the quarantine, and the configuration has none",
                    'directory = "/var/lib/smtpproxy/quarantine" under [quarantine] in smtpproxy.toml',
                )
    about = [rule for rule in rules if isinstance(rule, ExtensionRule) and b"STARTTLS" in rule.feature.verbs]
    if not about or about[-1].treatment is not Treatment.DENY:
        return
    rule = about[-1]
    told: set[str] = set()
    for variant in config.variants():
        block = None if variant.match is None else config.matches[variant.match]
        theirs = block.name if block is not None and block.rules else ""
        listener = variant.entry
        if theirs == match and listener.tls.client is ClientTLS.REQUIRE and listener.name not in told:
            told.add(listener.name)
            yield Problem(
                rule.source.file,
                rule.source.line,
                1,
                f"rule {shown(rule.name)}",
                f'refuses STARTTLS, and listener {shown(listener.name)} has client = "require": no mail gets through',
                'client = "refuse" there, or no such rule',
                severity="warning",
            )


def _of_listeners(config: Config, now: datetime) -> Iterator[Mistake]:
    """Certificates and roots."""
    for here, tls in _tables(config):
        for number, pair in enumerate(tls.certificates):
            yield from _of_pair(pair, (*here, "certificates", number), now, for_clients=True)
        if tls.client_certificate is not None:
            yield from _of_pair(tls.client_certificate, (*here, "client_certificate"), now, for_clients=False)
        if tls.roots:
            try:
                Roots.file(tls.roots)
            except ValueError as error:
                yield Mistake((*here, "roots"), str(error), "a file of PEM certificates")


def _of_pair(pair: CertificateConfig, place: KeyPath, now: datetime, *, for_clients: bool) -> Iterator[Mistake]:
    """A given certificate and its key. One that is out of date is used all the same: no certificate is no better."""
    try:
        chain, _ = read_pair(pair.chain, pair.key)
        found = read(first_certificate(chain))
        names = names_of(found) if for_clients else None
    except CertificateError as error:
        yield Mistake(place, str(error), "a PEM certificate and its key, without passphrase")
        return
    except ValueError as error:  # OpenSSL took it, and the library of verdicts does not
        yield Mistake(place, f"{pair.chain}: {error}", severity="warning")
        return
    if why := _time(found, now):
        yield Mistake((*place, "chain"), f"{pair.chain} {why}", severity="warning")
    if names == ([], []):
        yield Mistake(
            (*place, "chain"),
            f"{pair.chain} has no name in subjectAltName: no client that verifies takes it, and SNI never chooses it",
            severity="warning",
        )


def _of_ca(config: Config, now: datetime) -> Iterator[Mistake]:
    """The certificate of the CA. The signing process refuses one that is out of date."""
    directory, place = config.ca.directory, ("ca", "directory")
    if not directory:
        return
    try:
        found = certificate(Path(directory))
    except AuthorityError as error:
        yield Mistake(place, str(error), "what `smtpproxy ca init` makes")
        return
    if why := _time(found, now):
        usable = found.not_valid_before_utc <= now < found.not_valid_after_utc
        yield Mistake(
            place,
            f"the certificate of the CA in {directory} {why}",
            "a new CA by `smtpproxy ca init`, in another directory" if now + SOON > found.not_valid_after_utc else "",
            "warning" if usable else "error",
        )


def _time(found: x509.Certificate, now: datetime) -> str:
    """What is wrong with its time, or ""."""
    if now < found.not_valid_before_utc:
        return f"is not valid before {moment(found.not_valid_before_utc)}"
    if now >= found.not_valid_after_utc:
        return f"expired at {moment(found.not_valid_after_utc)}"
    if now + SOON >= found.not_valid_after_utc:
        return f"ends at {moment(found.not_valid_after_utc)}, within {SOON.days} days"
    return ""
