"""What a session knows: both peers, the transaction, the phase, and what a client has to wait for.

The phase is what people read: rules test it, the record names it. It never decides framing (that is `Verb.then`) and
never forbids the client anything: the server keeps its own order and answers its own 503. It moves by one table,
applied in reply order; a command that a server accepted where the table has no row for it is noted as out of order and
leaves the phase as it was.
"""

from collections.abc import Callable
from enum import Enum
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from smtpproxy.smtp import replies as say
from smtpproxy.smtp.capabilities import NO_CAPABILITIES, Capabilities
from smtpproxy.smtp.errors import Side
from smtpproxy.smtp.replies import OwnReply, Reply
from smtpproxy.smtp.values import Parameter, Path


class TLSInfo(NamedTuple):
    """One encrypted link."""

    version: str
    cipher: str
    sni: str = ""
    alpn: str = ""
    resumed: bool = False
    seconds: float = 0.0  # the handshake took
    verified: bool = False  # the peer is known to be who it should be
    result: str = ""  # why it is not: a result type of RFC 8460 §4.3
    why: str = ""  # and in words
    certificate: tuple[tuple[str, Any], ...] = ()  # the peer's: subject, issuer, names, sha256, not_before, not_after
    shown: str = ""  # the one it was shown: "given", "minted" (by the CA) or "self-signed"
    shown_sha256: str = ""  # its fingerprint, hex
    ja4: str = ""  # of its ClientHello
    broken: tuple[str, ...] = ()  # promises of others that this interception breaks: "dane", "mta-sts", "requiretls"
    policy: str = ""  # why an MTA-STS policy does not count, or that an old one does
    keylog: bool = False  # its keys were written to a file


class Facts(NamedTuple):
    """How a session came about: what rules may ask of it beside what was said. `wall` gives seconds since 1970."""

    listener: str = ""
    match: str = ""
    client: str = ""  # address
    client_port: int = 0
    server: str = ""  # name or address it is meant for
    server_port: int = 0
    wall: Callable[[], float] = float  # 0.0: nobody said what time it is
    full: Callable[[], bool] = bool  # there is no room for the record of a mail; False: nobody said so


NO_FACTS: Final = Facts()


class Peer:
    """One end: the client's, or the server's.

    `capabilities` of the server is what it offered; of the client, what it was told.
    """

    __slots__ = ("address", "capabilities", "esmtp", "hello", "lmtp", "side", "tls")

    def __init__(self, side: Side, address: str = "") -> None:
        self.side = side
        self.address = address
        self.tls: TLSInfo | None = None
        self.forget()

    def forget(self) -> None:
        """Nothing said before a TLS handshake counts after it (RFC 3207 §4.2)."""
        self.hello = b""
        self.esmtp = False
        self.lmtp = False
        self.capabilities: Capabilities = NO_CAPABILITIES


class Recipient:
    """One RCPT of a transaction. `accepted` is None until the server has replied."""

    __slots__ = ("accepted", "parameters", "path")

    def __init__(self, path: Path, parameters: tuple[Parameter, ...]) -> None:
        self.path = path
        self.parameters = parameters
        self.accepted: bool | None = None


class Transaction:
    """One mail transaction (RFC 5321 §3.3), as asked so far.

    `size` and `digest` are of the content without dot-stuffing, as it was sent on; `outcome` is the reply to its end.
    """

    __slots__ = (
        "begun",
        "digest",
        "discarded",
        "message_id",
        "number",
        "outcome",
        "parameters",
        "recipients",
        "reverse_path",
        "size",
        "tags",
    )

    def __init__(self, number: int, reverse_path: Path, parameters: tuple[Parameter, ...]) -> None:
        self.number = number
        self.reverse_path = reverse_path
        self.parameters = parameters
        self.recipients: list[Recipient] = []
        self.begun = False  # the server accepted MAIL
        self.size = 0
        self.digest = ""
        self.message_id = b""  # of the mail as it came; b"" if its header section has none
        self.outcome: Reply | None = None
        self.tags: dict[str, None] = {}  # labels that rules gave it, in order
        self.discarded = ""  # the rule by whose word its content is swallowed

    @property
    def accepted(self) -> int:
        """Recipients the server accepted."""
        return sum(1 for recipient in self.recipients if recipient.accepted)

    def parameter(self, keyword: bytes) -> bytes | None:
        """The value of a MAIL parameter; b"" if it stands without one, None if it is not there."""
        for parameter in self.parameters:
            if parameter.keyword == keyword:
                return parameter.value or b""
        return None


class Phase(Enum):
    """Where the conversation is (RFC 5321 §3, §4.1.4)."""

    CONNECTED = "connected"
    GREETED = "greeted"
    READY = "ready"
    MAIL = "mail"
    RCPT = "rcpt"
    CONTENT = "content"
    AUTH = "auth"
    SECURING = "securing"
    CLOSED = "closed"

    __hash__ = object.__hash__


# Verbs that mean the same to a session, whatever they are to a server.
HELLOS = ("EHLO", "HELO", "LHLO")
MAILS = ("MAIL", "SEND", "SOML", "SAML", "EMAL", "ESND", "ESOM", "ESAM")
AUTHS = ("AUTH", "X-EXPS", "XAUTH")
SECURERS = ("STARTTLS", "X-ANONYMOUSTLS")


class Gate(NamedTuple):
    """What a client may say for the time being, and what all else is answered."""

    open_to: frozenset[str]
    reply: OwnReply


_ALWAYS: Final = frozenset({*HELLOS, "NOOP", "RSET", "QUIT"})
TLS_FIRST: Final = Gate(_ALWAYS | set(SECURERS), say.TLS_FIRST)  # RFC 3207 §4
HELLO_FIRST: Final = Gate(_ALWAYS, say.HELLO_FIRST)  # the server knows a hello, and it is not this client's
ONLY_QUIT: Final = frozenset({"QUIT"})
REFUSED: Final = Gate(ONLY_QUIT, say.own("503 5.5.1 The mail server refused this session"))  # RFC 5321 §3.1

_OPEN = (Phase.GREETED, Phase.READY, Phase.MAIL, Phase.RCPT, Phase.CONTENT)


def _table() -> dict[tuple[Phase, str, int], Phase]:
    table = {
        (Phase.CONNECTED, "GREETING", 2): Phase.GREETED,
        (Phase.MAIL, "RCPT", 2): Phase.RCPT,
        (Phase.RCPT, "RCPT", 2): Phase.RCPT,
        (Phase.RCPT, "DATA", 3): Phase.CONTENT,
        (Phase.MAIL, "DATA", 3): Phase.CONTENT,  # a server may say 354 with no recipient left (RFC 5321 §3.3)
        (Phase.RCPT, "BDAT", 2): Phase.CONTENT,
        (Phase.CONTENT, "BDAT", 2): Phase.CONTENT,
        (Phase.CONTENT, "BDAT LAST", 2): Phase.READY,
        (Phase.RCPT, "BDAT LAST", 2): Phase.READY,
        (Phase.CONTENT, "BURL", 2): Phase.CONTENT,
        (Phase.RCPT, "BURL", 2): Phase.CONTENT,
        (Phase.RCPT, "XEXCH50", 3): Phase.RCPT,
        (Phase.AUTH, "SASL", 3): Phase.AUTH,
    }
    for digit in (2, 3, 4, 5):
        table[Phase.CONTENT, "END", digit] = Phase.READY
        if digit in (4, 5, 2):
            table[Phase.AUTH, "SASL", digit] = Phase.READY
    for digit in (4, 5):
        table[Phase.CONTENT, "BDAT LAST", digit] = Phase.READY
        table[Phase.RCPT, "BDAT LAST", digit] = Phase.READY
    for verb in MAILS:
        table[Phase.GREETED, verb, 2] = table[Phase.READY, verb, 2] = Phase.MAIL
    for phase in (Phase.GREETED, Phase.READY):
        for verb in AUTHS:
            table[phase, verb, 3] = Phase.AUTH
            table[phase, verb, 2] = Phase.READY
        for verb in SECURERS:
            table[phase, verb, 2] = Phase.SECURING
        table[phase, "XCLIENT", 2] = Phase.GREETED
    for phase in _OPEN:
        for verb in HELLOS:
            table[phase, verb, 2] = Phase.READY
        table[phase, "RSET", 2] = phase if phase is Phase.GREETED else Phase.READY
    for phase in Phase:
        table[phase, "QUIT", 2] = Phase.CLOSED
    return table


TRANSITIONS: Final = MappingProxyType(_table())

# Verbs whose success moves the phase: where the table has no row for one of these, the server accepted what it should
# not have. Every other verb, and every refusal, leaves the phase as it was.
MOVING: Final = frozenset(
    (verb, digit)
    for verb, digits in {
        **dict.fromkeys(HELLOS, (2,)),
        **dict.fromkeys(MAILS, (2,)),
        **dict.fromkeys(AUTHS, (2, 3)),
        **dict.fromkeys(SECURERS, (2,)),
        "RCPT": (2,),
        "DATA": (3,),
        "BDAT": (2,),
        "BDAT LAST": (2,),
        "BURL": (2,),
        "END": (2,),
        "XCLIENT": (2,),
        "XEXCH50": (3,),
    }.items()
    for digit in digits
)


def next_phase(phase: Phase, verb: str, code: int) -> tuple[Phase, bool]:
    """The phase after `verb` was answered with `code`, and whether that was in order.

    A refused greeting (554, RFC 5321 §3.1) leaves the session connected: only QUIT makes sense; 421 closes anywhere.
    """
    if code == 421:
        return Phase.CLOSED, True
    digit = code // 100
    found = TRANSITIONS.get((phase, verb, digit))
    if found is not None:
        return found, True
    return phase, (verb, digit) not in MOVING
