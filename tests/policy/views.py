"""What tests of rules look at: sessions in which something was said already."""

from collections.abc import Callable, Sequence
from typing import Any

from smtpproxy.policy.expr import Compiler, Condition, ConditionSet
from smtpproxy.policy.fields import View
from smtpproxy.policy.lists import List
from smtpproxy.policy.rates import Counters
from smtpproxy.policy.subjects import SUBJECTS
from smtpproxy.session.ledger import Exchange
from smtpproxy.session.session import Session
from smtpproxy.session.state import Facts, Recipient, TLSInfo, Transaction
from smtpproxy.session.verdicts import PassAll
from smtpproxy.smtp.commands import parse_command
from smtpproxy.smtp.message import Header
from smtpproxy.smtp.registry.rows import Verb
from smtpproxy.smtp.registry.verbs import VERBS
from smtpproxy.smtp.replies import Reply
from smtpproxy.smtp.values import Parameter, Path

TLS = TLSInfo(
    "TLSv1.3", "TLS_AES_256_GCM_SHA384", sni="mx.example", verified=True, ja4="t13d1516h2_8daaf6152771_e5627efa2ab1"
)
FACTS = Facts("submission", "branch", "192.0.2.7", 40123, "mx.example", 587, lambda: 1_700_000_000.0)


def a_session(*, clock: Callable[[], float] = lambda: 100.0, facts: Facts = FACTS, tls: bool = False) -> Session:
    """A session that has a hello and no mail."""
    session = Session(judge=PassAll(), record=lambda record: None, clock=clock, facts=facts)
    session.client.hello = b"client.example"
    session.client.esmtp = True
    if tls:
        session.client.tls = session.server.tls = TLS
    return session


def a_mail(
    session: Session, sender: bytes = b"a@X.example", *recipients: bytes, parameters: tuple[Parameter, ...] = ()
) -> Transaction:
    """The mail under way in it."""
    session.transactions += 1
    mail = session.transaction = Transaction(session.transactions, path(sender), parameters)
    mail.recipients = [Recipient(path(one), ()) for one in recipients]
    return mail


def path(address: bytes) -> Path:
    """`local@domain`."""
    local, _, domain = address.rpartition(b"@")
    return Path(local, domain)


def about(line: str, session: Session | None = None) -> View:
    """A command being decided, within a mail unless it says otherwise."""
    if session is None:
        session = a_session()
        a_mail(session)
    return View(session, command=parse_command(f"{line}\r\n".encode()), transaction=session.transaction)


def about_reply(raw: bytes, line: str = "NOOP", session: Session | None = None) -> View:
    """A reply being decided: to a command, or to what is none (END)."""
    session = session or a_session()
    asked: Any = parse_command(f"{line}\r\n".encode()) if line else VERBS[b"DATA"]
    exchange = Exchange(asked if isinstance(asked, Verb) else asked.verb, asked, 0.0)
    reply = Reply(int(raw[:3]), raw)
    exchange.got = reply
    return View(session, reply=reply, exchange=exchange)


def about_header(*lines: str, session: Session | None = None) -> View:
    """A header section being decided."""
    if session is None:
        session = a_session()
        a_mail(session)
    octets = "".join(f"{line}\r\n" for line in (*lines, "")).encode()
    return View(session, transaction=session.transaction, header=Header.parse(octets))


def compiled(source: str, subject: str = "RCPT", *lists: List, compiler: Compiler | None = None) -> Condition:
    """A condition that must be right."""
    compiler = compiler or Compiler({one.name: one for one in lists}, Counters(1024), ["too-many"])
    found = compiler.condition(source, [SUBJECTS[subject]])
    assert isinstance(found, Condition), found
    return found


def holds(source: str, view: View, subject: str = "RCPT", *lists: List) -> bool:
    """Whether a condition holds."""
    return matching([compiled(source, subject, *lists)], view, subject) == [0]


def matching(conditions: Sequence[Condition | None], view: View, subject: str = "RCPT") -> list[int]:
    """Which conditions hold."""
    return list(ConditionSet(conditions, SUBJECTS[subject]).matching(view))
