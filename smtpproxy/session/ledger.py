"""The ledger: every command that awaits its reply, in the order it was asked.

An exchange has four slots, one for each hop of a command and its reply: `asked` (client → us), `sent` (us → server),
`got` (server → us), `told` (us → client). Which of them are filled says all there is to know:

    asked  sent   told preset   meaning
    X      X      –             forwarded; told is what was got, or that rewritten
    X      –      R             answered here
    –      Y      –             our own command; its reply is swallowed
    X      Y      R             asked one thing, sent another: got is awaited, then R is told
    X      –      –             undecided yet: the exchange waits in its place

Replies leave from the head only. A reply of the server belongs to the first exchange that is owed one, because it
answers in the order sent, and what was sent is the ledger's order.
"""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from smtpproxy.session.state import Transaction
from smtpproxy.session.verdicts import Effects
from smtpproxy.smtp.commands import Command, Malformed
from smtpproxy.smtp.registry.rows import Verb
from smtpproxy.smtp.replies import Reply


class Exchange:
    """One command and its reply."""

    __slots__ = (
        "action",
        "after",
        "anomalies",
        "asked",
        "asked_at",
        "before",
        "closes",
        "conclude",
        "content",
        "due",
        "effects",
        "got",
        "got_at",
        "kept",
        "lost",
        "noise",
        "octets",
        "replies_before",
        "rule",
        "sent",
        "sent_at",
        "subject",
        "told",
        "transaction",
        "untold",
        "verb",
        "waiting",
    )

    def __init__(self, verb: Verb, asked: Command | Malformed | Verb | None, asked_at: float) -> None:
        self.verb = verb
        self.asked: Any = asked
        self.sent: Any = None  # a Command, or a Verb for what is no command (greeting, end of data)
        self.got: Reply | None = None
        self.told: Any = None  # an OwnReply until it is told, then the Reply that was
        self.action = "pass"
        self.rule = ""
        self.anomalies: tuple[str, ...] = ()
        self.transaction: Transaction | None = None
        self.asked_at = self.sent_at = asked_at
        self.got_at = 0.0  # 0: the server has said nothing to it
        self.octets = 0  # of content or chunk
        self.due = 1  # replies the server still owes (LMTP and PRDR: more than one)
        self.closes = False  # both links are closed when it is told
        self.after: Callable[[Exchange], None] | None = None  # called when it is concluded and on record
        self.conclude: Callable[[Exchange], None] | None = None  # asked once it stands at the head, undecided
        self.noise = b""
        self.kept = False  # its reply is in, and something else comes first: a greeting behind TLS
        self.lost = False  # the server will not reply any more
        self.replies_before: tuple[Reply, ...] = ()  # told already, where one command gets several
        self.untold = b""  # of these, what could not be told before what stands before it
        self.before: Any = None  # transaction and content before it, should the server not do what was asked
        self.subject: Any = None  # what its reply is about: a Recipient, a Depth, an Incoming
        self.content = b""  # the beginning of the mail that ends with it, for a transcript
        self.effects: Effects | None = None  # what rules did beside deciding
        self.waiting = False  # it is in its place, and what becomes of it is asked of the outside

    @property
    def owed(self) -> bool:
        """The server has still to reply."""
        return self.sent is not None and self.got is None and not self.lost

    @property
    def waited(self) -> float | None:
        """Seconds the server took for its (last) reply to what it was sent; None where there is none."""
        return self.got_at - self.sent_at if self.got_at else None

    @property
    def last_chunk(self) -> bool:
        """It ends a mail by BDAT LAST."""
        return self.verb.name == "BDAT" and isinstance(self.asked, Command) and bool(self.asked.argument.last)


class Ledger:
    """The exchanges in order. Iterates from the head."""

    __slots__ = ("exchanges",)

    def __init__(self) -> None:
        self.exchanges: deque[Exchange] = deque()

    def __len__(self) -> int:
        return len(self.exchanges)

    def __iter__(self) -> Iterator[Exchange]:
        return iter(self.exchanges)

    @property
    def head(self) -> Exchange | None:
        """The oldest exchange."""
        return self.exchanges[0] if self.exchanges else None

    @property
    def awaited(self) -> Exchange | None:
        """The exchange the server's next reply belongs to."""
        for exchange in self.exchanges:
            if exchange.owed:
                return exchange
        return None
