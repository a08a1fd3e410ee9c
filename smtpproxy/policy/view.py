"""What a condition looks at: a session, and what of it is being decided.

What must never happen here: a secret in a value (commands are shown by `describe`, parameters by `Secret.decode`, which
both hide it), or text that is no text: octets beyond UTF-8 are written as escapes, so every string can be handed on.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

from smtpproxy.session.state import Recipient
from smtpproxy.smtp.capabilities import Capabilities
from smtpproxy.smtp.commands import Command, Malformed, describe
from smtpproxy.smtp.registry.rows import Verb
from smtpproxy.smtp.registry.verbs import UNKNOWN
from smtpproxy.smtp.replies import OwnReply, Reply
from smtpproxy.smtp.values import Hello, Mail, Parameter, Path, Rcpt

if TYPE_CHECKING:
    from smtpproxy.policy.mime import Attachment, Content
    from smtpproxy.session.ledger import Exchange
    from smtpproxy.session.session import Session
    from smtpproxy.session.state import Transaction
    from smtpproxy.smtp.errors import Side
    from smtpproxy.smtp.message import Header

T = TypeVar("T")
_NULL: Final = Path(b"", b"")
_LARGEST: Final = 2**63 - 1  # an int of CEL
_MISSING: Final = object()
_PIECE: Final = 65_536  # octets read at a time


class View:
    """A session as conditions see it at one moment, and what is being decided then.

    Values are worked out when they are first asked for, and kept until `touch`. A view is for one moment only: who
    decides about the next command makes another one.

    Attributes:
        command: on a command: the Command or Malformed being decided; a rewritten one once a rule rewrote it.
        reply: on a reply: what the server said, or what a rule made of it.
        exchange: on a reply: the exchange it belongs to.
        transaction: the mail under way; that of the exchange or of the session where none is given.
        recipient: on RCPT: the Recipient, where there is one already.
        header, attachment, content: what of the mail is being decided. The header section of `content` where none is
            given.
        side: on tls: whose link has been encrypted.
        accepted: on transaction: whether the server accepted the mail.
        version: grows with each `touch`.
    """

    __slots__ = (
        "_kept",
        "accepted",
        "attachment",
        "command",
        "content",
        "exchange",
        "header",
        "recipient",
        "reply",
        "session",
        "side",
        "transaction",
        "version",
    )

    def __init__(
        self,
        session: "Session",
        *,
        command: Command | Malformed | None = None,
        reply: "Reply | OwnReply | None" = None,
        exchange: "Exchange | None" = None,
        transaction: "Transaction | None" = None,
        recipient: Recipient | None = None,
        header: "Header | None" = None,
        attachment: "Attachment | None" = None,
        content: "Content | None" = None,
        side: "Side | None" = None,
        accepted: bool | None = None,
    ) -> None:
        self.session = session
        self.command = command
        self.reply = reply
        self.exchange = exchange
        self.transaction = transaction
        self.recipient = recipient
        self.header = header
        self.attachment = attachment
        self.content = content
        self.side = side
        self.accepted = accepted
        self.version = 0
        self._kept: dict[Any, Any] = {}

    def touch(self) -> None:
        """A rule changed something this shows: what was worked out is forgotten."""
        self.version += 1
        self._kept.clear()

    def kept(self, key: Any, make: Callable[["View"], T]) -> T:
        """What `make` gives, worked out once."""
        found = self._kept.get(key, _MISSING)
        if found is _MISSING:
            found = self._kept[key] = make(self)
        return found  # type: ignore[no-any-return]

    # ----------------------------------------------------------------------------------------- what it is a view of

    @property
    def asked(self) -> Command | Malformed | Verb | None:
        """The command being decided, or the one whose reply is."""
        if self.command is not None:
            return self.command
        asked: Command | Malformed | Verb | None = self.exchange.asked if self.exchange is not None else None
        return asked

    @property
    def mail(self) -> "Transaction | None":
        """The transaction."""
        if self.transaction is not None:
            return self.transaction
        if self.exchange is not None and self.exchange.transaction is not None:
            return self.exchange.transaction
        return self.session.transaction

    @property
    def envelope(self) -> tuple[Path, tuple[Parameter, ...]]:
        """Reverse-path and parameters of the mail; on MAIL those being asked for."""
        asked = self.command
        if isinstance(asked, Command) and type(asked.argument) is Mail:
            return asked.argument
        mail = self.mail
        return (_NULL, ()) if mail is None else (mail.reverse_path, mail.parameters)

    @property
    def forward(self) -> tuple[Path, tuple[Parameter, ...]]:
        """Forward-path and parameters of the recipient being decided."""
        asked = self.command
        if isinstance(asked, Command) and type(asked.argument) is Rcpt:
            return asked.argument
        recipient = self.current
        if recipient is not None:
            return recipient.path, recipient.parameters
        asked_for = self.asked
        if isinstance(asked_for, Command) and type(asked_for.argument) is Rcpt:
            return asked_for.argument
        return _NULL, ()

    @property
    def current(self) -> Recipient | None:
        """The recipient being decided, once the mail has it."""
        if self.recipient is not None:
            return self.recipient
        subject = self.exchange.subject if self.exchange is not None else None
        return subject if isinstance(subject, Recipient) else None

    @property
    def recipients(self) -> list[Path]:
        """The mail's recipients but for the one being decided and those refused, in the order asked."""
        mail = self.mail
        if mail is None:
            return []
        current = self.current
        return [one.path for one in mail.recipients if one.accepted is not False and one is not current]

    @property
    def section(self) -> "Header | None":
        """The header section."""
        if self.header is None and self.content is not None:
            return self.content.header
        return self.header

    @property
    def said(self) -> Reply:
        """The reply being decided."""
        reply = self.reply
        if reply is None and self.exchange is not None:
            reply = self.exchange.got
        if reply is None:
            return _NOTHING
        return reply.full if isinstance(reply, OwnReply) else reply

    @property
    def listed(self) -> Capabilities:
        """What the server offers; on the reply to a hello, what that reply offers."""
        asked = self.asked
        if self.exchange is not None and isinstance(asked, Command) and type(asked.argument) is Hello:
            return self.kept("listed", lambda view: Capabilities.from_reply(view.said))
        return self.session.server.capabilities

    @property
    def clock(self) -> time.struct_time:
        """The time of day where this machine is."""
        return self.kept("clock", lambda view: time.localtime(view.session.facts.wall()))


_NOTHING: Final = Reply(0, b"000 \r\n")


# --------------------------------------------------------------------------------------------------- values as texts


def text(octets: bytes) -> str:
    """Octets of a peer as text; what is no UTF-8 is an escape."""
    return octets.decode("utf-8", "backslashreplace")


def number(value: int) -> int:
    """A count that fits an int of CEL: a larger one is the largest there is."""
    return min(value, _LARGEST)


def address(path: Path) -> str:
    """The address as on the wire, without brackets; the domain in small letters, because case means nothing there."""
    return text(path._replace(domain=path.domain.lower()).encode()[1:-1])


def domain(path: Path) -> str:
    """The domain in small letters."""
    return text(path.domain).lower()


def parameters(given: tuple[Parameter, ...]) -> dict[str, str]:
    """Values by keyword in capitals; "" where one stands without a value. The first of two: servers refuse both."""
    found: dict[str, str] = {}
    for keyword, value in given:
        found.setdefault(text(keyword), "" if value is None else value.decode("utf-8", "backslashreplace"))
    return found


def declared_size(given: tuple[Parameter, ...]) -> int:
    """The octets that SIZE= says (RFC 1870); 0 if it is not there."""
    value = parameters(given).get("SIZE", "")
    return number(int(value)) if value.isdecimal() and value.isascii() else 0


def hello(view: View) -> str:
    """How the client names itself: in the hello being decided, else in the last one that was accepted."""
    asked = view.asked
    if isinstance(asked, Command) and type(asked.argument) is Hello:
        return text(asked.argument.domain)
    return text(view.session.client.hello)


def verb(view: View) -> str:
    """The verb being decided in capitals; of one that is not known, the word as far as it may be shown."""
    asked = view.asked
    if asked is None:
        return view.exchange.verb.name if view.exchange is not None else ""
    if isinstance(asked, Verb):
        return asked.name
    if asked.verb is UNKNOWN:
        return next(iter(_shown(view).split()), "").upper()
    return asked.verb.name


def argument(view: View) -> str:
    """What stands behind the verb, secrets hidden."""
    return _shown(view).partition(" ")[2].strip(" ")


def length(view: View) -> int:
    """Octets of the command line with its CRLF; 0 where there is none."""
    asked = view.asked
    return len(asked.line) if isinstance(asked, Command | Malformed) else 0


def anomalies(view: View) -> list[str]:
    """What was odd about the command, by name."""
    asked = view.asked
    names: list[str] = list(asked.leniencies) if isinstance(asked, Command) else []
    if isinstance(asked, Malformed):
        names.append("malformed-command")
    if view.exchange is not None:
        names += view.exchange.anomalies
    return list(dict.fromkeys(names))


def tags(view: View) -> list[str]:
    """The labels rules gave the session, and the mail."""
    mail = view.mail
    return list(view.session.tags if mail is None else {**view.session.tags, **mail.tags})


def entries(view: View) -> dict[str, list[str]]:
    """All header fields by name in small letters."""
    section = view.section
    return {} if section is None else section.by_name


def entry(view: View, name: str) -> list[str]:
    """All values of the header fields of this name, decoded."""
    section = view.section
    return [] if section is None else section.get(name)


def longest_line(file: Any) -> int:
    """Octets of the longest line, without its CRLF. Reads the file from its beginning, and leaves it where it was."""
    place = file.tell()
    file.seek(0)
    longest = line = 0
    while piece := file.read(_PIECE):
        first, *more = piece.split(b"\n")
        line += len(first)
        for one in more:
            longest = max(longest, line - 1)  # the CR
            line = len(one)
    file.seek(place)
    return max(longest, line)


def _shown(view: View) -> str:
    asked = view.asked
    return view.kept("shown", lambda _: describe(asked)) if isinstance(asked, Command | Malformed) else ""
