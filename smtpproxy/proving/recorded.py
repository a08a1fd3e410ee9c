"""The records of an audit as values, as they are read back (docs/audit.md has every key).

A key that is not known is passed over: a later version may have more of them. What counts as one is `VERSION`.
"""

from datetime import datetime
from typing import Annotated, Any, Final

import msgspec

VERSION: Final = 1  # of the format that is read here
_AS_BEFORE: Final = "\0"  # in a hop: it is what the hop before it was


class _Record(msgspec.Struct, tag_field="kind", kw_only=True, gc=False):
    """What every record has."""

    at: Annotated[datetime, msgspec.Meta(tz=True)]
    session: str
    v: int = VERSION


class Observation(msgspec.Struct, frozen=True, gc=False):
    """What a rule that only observes would have done."""

    rule: str
    action: str = ""
    told: str = ""


class Connect(_Record, tag="link-connect", kw_only=True, gc=False):
    """A client connected. `refused`: it was turned away; `ruleset`: digest of the rules that were in force."""

    listener: str = ""
    client: str = ""
    local: str = ""
    server: str = ""
    destination: str = ""
    match: str = ""
    unseen: bool = False
    refused: str = ""
    ruleset: str = ""


class Exchange(_Record, tag="exchange", kw_only=True, gc=False):
    """An exchange, its four hops as text: `sent` and `told` are filled in where they stand for asked and got."""

    verb: str = ""
    asked: str | None = None
    sent: str | None = _AS_BEFORE
    got: str | None = None
    told: str | None = _AS_BEFORE
    got_before: tuple[str, ...] = ()
    action: str = "pass"
    rule: str = ""
    rules: tuple[str, ...] = ()
    observed: tuple[Observation, ...] = ()
    tags: tuple[str, ...] = ()
    anomalies: tuple[str, ...] = ()
    octets: int = 0
    tx: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.sent == _AS_BEFORE:
            self.sent = self.asked
        if self.told == _AS_BEFORE:
            self.told = self.got

    @property
    def answer(self) -> str:
        """What the client was told; "" for nothing."""
        return self.told or ""

    @property
    def code(self) -> int:
        """The code the client was told; 0 where it was told nothing."""
        return code_of(self.answer)

    @property
    def refused(self) -> bool:
        """It was told 4yz or 5yz."""
        return self.code >= 400

    @property
    def refused_by_server(self) -> bool:
        """The server was asked, and would not."""
        return self.sent is not None and code_of(self.got or "") >= 400

    @property
    def deciders(self) -> tuple[str, ...]:
        """The rules that decided; the list of an EHLO may have several."""
        return tuple(name for name in self.rule.split() if name not in ("default", "posture"))


class TLS(_Record, tag="link-tls", kw_only=True, gc=False):
    """A link was encrypted: both as they are now, None while in clear."""

    client: dict[str, Any] | None = None
    server: dict[str, Any] | None = None
    passthrough: bool = False


class Auth(_Record, tag="link-auth", kw_only=True, gc=False):
    """A log-in was decided."""

    mechanism: str = ""
    accepted: bool = False
    reply: int = 0
    identity: str = ""


class Begin(_Record, tag="tx-begin", kw_only=True, gc=False):
    """The server accepted MAIL."""

    tx: int = 0
    mail: str = ""


class Commit(_Record, tag="tx-commit", kw_only=True, gc=False):
    """The server accepted a mail."""

    tx: int = 0
    mail: str = ""
    rcpt: tuple[str, ...] = ()
    rcpt_refused: tuple[str, ...] = ()
    octets: int = 0
    sha256: str = ""
    reply: str = ""


class Refused(_Record, tag="tx-refused", kw_only=True, gc=False):
    """A transaction came to nothing."""

    tx: int = 0
    mail: str = ""
    rcpt: tuple[str, ...] = ()
    rcpt_refused: tuple[str, ...] = ()
    octets: int = 0
    sha256: str = ""
    reply: str = ""
    why: str = ""


class Violation(_Record, tag="violation", kw_only=True, gc=False):
    """A peer broke the protocol."""

    anomaly: str = ""
    side: str = ""
    why: str = ""


class Note(_Record, tag="note", kw_only=True, gc=False):
    """Anything else; `subject`: what rules did where no exchange shows it, on a link just encrypted above all."""

    anomaly: str = ""
    side: str = ""
    why: str = ""
    subject: str = ""
    action: str = "pass"
    rule: str = ""
    rules: tuple[str, ...] = ()
    observed: tuple[Observation, ...] = ()
    tags: tuple[str, ...] = ()

    @property
    def deciders(self) -> tuple[str, ...]:
        """The rule that decided."""
        return (self.rule,) if self.rule else ()


class Close(_Record, tag="link-close", kw_only=True, gc=False):
    """The session is over."""

    seconds: float = 0.0
    commands: int = 0
    transactions: int = 0
    inspected: bool = True


Record = Connect | Exchange | TLS | Auth | Begin | Commit | Refused | Violation | Note | Close


def code_of(reply: str) -> int:
    """The code of a reply as the record has it; 0 for none."""
    return int(reply[:3]) if reply[:3].isdecimal() else 0
