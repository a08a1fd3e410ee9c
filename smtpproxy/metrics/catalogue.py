"""Every metric: its name, its type, its labels, what it means. docs/metrics.md says the same, which a test looks at.

Names are as Prometheus has them: base units, `_total` for what only grows. A label's values come from here, from the
configuration (listeners, rules, sinks) or from the registry of verbs; never from what a peer chose, so there are only
so many series. What a peer chose and we do not know is `other`.
"""

from collections.abc import Mapping, Sequence
from enum import Enum
from itertools import product
from types import MappingProxyType
from typing import Final, NamedTuple

from smtpproxy.smtp.anomalies import ANOMALIES, CLOSES

PREFIX: Final = "smtpproxy_"
OTHER: Final = "other"

# Upper bounds of buckets, in seconds and octets; the last one of each, +Inf, is not written.
SECONDS: Final = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0),
)
LASTING: Final = (0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0, 1800.0, 3600.0, 14_400.0)
OCTETS: Final = (1e3, 1e4, 1e5, 1e6, 5e6, 1e7, 2.5e7, 5e7, 1e8)

SIDES: Final = ("client", "server")
VERSIONS: Final = ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3")
# How a transaction ended, by the `why` of its record (docs/audit.md); "": it was accepted.
OUTCOMES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "": "accepted",
        "server": "refused-by-server",
        "answer": "refused-by-rule",
        "hangup": "refused-by-rule",
        "discard": "discarded",
        "quarantine": "quarantined",
        "RSET": "reset",
        "hello": "reset",
        "another MAIL": "reset",
        "closed": "closed",
    }
)
# SASL mechanisms that are in use; what a client calls another one is its own affair.
MECHANISMS: Final = frozenset(
    (
        *("PLAIN", "LOGIN", "CRAM-MD5", "DIGEST-MD5", "SCRAM-SHA-1", "SCRAM-SHA-1-PLUS", "SCRAM-SHA-256"),
        *("SCRAM-SHA-256-PLUS", "SCRAM-SHA-512", "SCRAM-SHA-512-PLUS", "GSSAPI", "GS2-KRB5", "GSS-SPNEGO", "NTLM"),
        *("XOAUTH2", "OAUTHBEARER", "EXTERNAL", "ANONYMOUS"),
    )
)
# Result types of RFC 8460 §4.3, as they stand on record.
RESULTS: Final = frozenset(
    (
        *("certificate-host-mismatch", "certificate-expired", "certificate-not-trusted", "validation-failure"),
        *("tlsa-invalid", "dnssec-invalid", "dane-required"),
        *("sts-policy-fetch-error", "sts-policy-invalid", "sts-webpki-invalid"),
    )
)
KEPT: Final = ("kept", "full", "failed")  # what came of a mail that was to be quarantined
STATES: Final = ("starting", "serving", "draining")  # of workers


class Kind(Enum):
    """The types of Prometheus that there are here."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Family(NamedTuple):
    """One metric.

    Attributes:
        zeros: values of its labels that are told even while nothing was counted there: the rate of what was never
            seen before is only known where it was 0 before.
        bounds: of a histogram's buckets.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...]
    means: str
    zeros: Sequence[tuple[str, ...]] = ()
    bounds: tuple[float, ...] = ()


def _counter(name: str, means: str, *labels: str, zeros: Sequence[tuple[str, ...]] = ()) -> Family:
    return Family(name, Kind.COUNTER, labels, means, zeros if labels else [()])


def _gauge(name: str, means: str, *labels: str) -> Family:
    return Family(name, Kind.GAUGE, labels, means)


def _histogram(name: str, means: str, *labels: str, bounds: tuple[float, ...] = SECONDS) -> Family:
    return Family(name, Kind.HISTOGRAM, labels, means, () if labels else [()], bounds)


# What workers count. A worker that dies leaves what it had counted; what it counted since it last said so, a second
# at most, is lost from here (never from the record).
COUNTED: Final = (
    _counter(
        "sessions_total", "Connections of clients, those included that were refused or passed unseen.", "listener"
    ),
    _counter("sessions_refused_total", "Connections that were turned away before anything was asked.", "listener"),
    _counter("sessions_unseen_total", "Connections whose octets pass unseen, by the configuration.", "listener"),
    _histogram("session_duration_seconds", "How long sessions were, once they are over.", bounds=LASTING),
    _counter(
        "link_bytes_total",
        "Octets received from, and sent to, each side, as they were on the wire. Counted when a session is over.",
        *("side", "direction"),
        zeros=list(product(SIDES, ("received", "sent"))),
    ),
    _counter("transactions_begun_total", "Mail transactions that a server accepted MAIL of."),
    _counter(
        "transactions_total",
        "Mail transactions that have ended, by outcome: accepted by the server, or how they came to nothing.",
        "outcome",
        zeros=[(outcome,) for outcome in dict.fromkeys(OUTCOMES.values())],
    ),
    _histogram("message_size_bytes", "Content of mails that servers accepted.", bounds=OCTETS),
    _counter(
        "exchanges_total",
        "Commands and their replies: the verb, what became of the command, the first digit of the reply that was told"
        " (`none`: none was).",
        *("verb", "action", "reply"),
    ),
    _counter("verdicts_total", "Decisions, by the rule that decided and what it decided.", "rule", "action"),
    _counter("rule_acts_total", "What rules did beside deciding.", "rule"),
    _counter("observed_total", "What rules that only observe would have done.", "rule", "action"),
    _counter(
        "anomalies_total",
        "Exchanges and notes on record that name this anomaly.",
        "anomaly",
        zeros=[(name,) for name in ANOMALIES],
    ),
    _counter(
        "violations_total",
        "Violations on record, each the end of a session. What it is about is often among the anomalies of an exchange"
        " as well: the two are not to be added up.",
        *("anomaly", "side"),
        zeros=list(product(CLOSES, SIDES)),
    ),
    _histogram("exchange_seconds", "From a command asked to its reply told.", "verb"),
    _histogram("exchange_server_seconds", "Of that, what the server took to answer what it was sent.", "verb"),
    _histogram(
        "exchange_own_seconds",
        "Of that, the rest: behind earlier commands, content held back, questions of rules. Not the work: see turns.",
        "verb",
    ),
    _histogram(
        "turn_seconds",
        "Turns of workers, in which all that has come is read, decided, recorded and sent on. What passes takes one on"
        " its way there and one on its way back.",
    ),
    _counter(
        "tls_links_total",
        "Links that were encrypted: `verified` is `yes`, `no`, or `unasked` where no certificate was looked at.",
        *("side", "version", "verified"),
    ),
    _histogram("tls_handshake_seconds", "Handshakes that succeeded.", "side"),
    _counter("tls_passthrough_total", "STARTTLS that peers did between themselves, unseen."),
    _counter(
        "tls_failures_total",
        "Handshakes that failed; `result` by RFC 8460 §4.3 where the server's certificate was the reason, else `none`.",
        *("side", "result"),
        zeros=[(side, "none") for side in SIDES],
    ),
    _counter(
        "auth_total",
        "Log-ins that a server decided.",
        *("mechanism", "outcome"),
        zeros=list(product(("PLAIN", "LOGIN", OTHER), ("accepted", "refused"))),
    ),
    _counter(
        "quarantine_total",
        "Mails that rules wanted kept: `kept`, or refused because there was no room (`full`) or it `failed`.",
        "outcome",
        zeros=[(outcome,) for outcome in KEPT],
    ),
    _counter("audit_records_total", "Records that sessions made."),
)

# What workers have now; what a worker had goes with it.
HAD: Final = (_gauge("audit_blocked_workers", "Workers that can't write their record: mail waits until they can."),)

# What the supervisor knows.
SUPERVISED: Final = (
    _gauge("build_info", "Always 1.", "version", "python"),
    _gauge("generation_info", "Always 1: which reading of the configuration serves.", "generation", "ruleset"),
    _gauge("start_time_seconds", "When the supervisor was started, in seconds since 1970."),
    _gauge("config_loaded_time_seconds", "When the configuration in force was read, in seconds since 1970."),
    _gauge("sessions_open", "Sessions that there are now."),
    _gauge("workers", "Worker processes, by what they do.", "state"),
    _counter("worker_deaths_total", "Workers that died while they served, and were replaced."),
)

# What the recorder knows: all of it only where there is a store, but for what can't be lost without one either.
RECORDED: Final = (
    _gauge("audit_journal_bytes", "The journal on the disk, what the store has already included."),
    _gauge("audit_pending_bytes", "Of the journal, what the store has still to take."),
    _gauge("audit_store_lag_seconds", "How old the oldest record is that the store has still to take; 0: none."),
    _gauge("audit_store_records", "Records in the store's tree, those pruned or erased included."),
    _gauge("audit_store_bytes", "The store on the disk."),
    _gauge("audit_full", "1 while there is no room for the record of further mails, else 0."),
    _counter("audit_checkpoints_total", "Checkpoints that were made."),
    _gauge("audit_checkpoint_time_seconds", "When the last one was made, in seconds since 1970; 0: never."),
    _gauge("audit_checkpoint_lag_records", "Records that no checkpoint covers yet."),
    _gauge("audit_sink_lag_records", "Records that this sink has still to take.", "sink"),
    _gauge("audit_sink_lag_seconds", "How old the oldest of these is; 0: there is none.", "sink"),
    _gauge("audit_sink_failing", "1 while the last try to give it something failed, else 0.", "sink"),
    _counter(
        "drops_total",
        "Records that were lost. It is 0: what can't be written is waited for. Counted are gaps in the numbers that"
        " workers give their records, as the recorder sees them.",
    ),
)

FAMILIES: Final = (*COUNTED, *HAD, *SUPERVISED, *RECORDED)
BY_NAME: Final[Mapping[str, Family]] = MappingProxyType({family.name: family for family in FAMILIES})
