"""What a rule is, once loaded.

The first kind of rule is about an extension: one name of the registry, one treatment, and it holds in every place the
name shows: the EHLO reply in every spelling, the verbs, the parameters of MAIL and RCPT. Which places those are is the
registry's to say, not the rule's.
"""

from dataclasses import dataclass
from enum import Enum

from smtpproxy.smtp.registry.features import Feature
from smtpproxy.smtp.replies import OwnReply


class Treatment(Enum):
    """What is done with an extension."""

    ALLOW = "allow"
    DENY = "deny"
    TLS = "allow-under-tls"
    LIMIT = "limit"

    __hash__ = object.__hash__


@dataclass(frozen=True, slots=True)
class Source:
    """Where a rule stands: for errors, and for the record."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class ExtensionRule:
    """`extension = NAME`, `then = TREATMENT`. `limit` is in octets for SIZE, a count for LIMITS."""

    name: str
    why: str
    feature: Feature
    treatment: Treatment
    limit: int = 0
    reply: OwnReply | None = None  # what a refused verb is answered with; the registry's refusal if None
    source: Source = Source("", 0)
