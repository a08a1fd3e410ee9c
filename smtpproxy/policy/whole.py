"""A whole mail, judged: its header section, each of its attachments, all of it.

What must never happen: rules on a mail that another reader would see otherwise (readings.py), or that is beyond what is
looked into (mime.py), and that pass it; an edit of one rule that is lost because another asked the outside.
"""

from collections.abc import Iterator
from typing import Any

from smtpproxy.policy.judging import Sheet, Trace, Trial, joined
from smtpproxy.policy.mime import Attachment, Content, MimeLimit
from smtpproxy.policy.readings import ANOMALY, WHY, ambiguous
from smtpproxy.policy.view import View
from smtpproxy.session.session import Session
from smtpproxy.session.state import Transaction
from smtpproxy.session.verdicts import PASS, Action, Question, Verdict


class Whole:
    """A whole mail, judged: its header section, each of its attachments, all of it. It goes on where it had to ask."""

    def __init__(
        self,
        header: Sheet | None,
        attachment: Sheet | None,
        content: Sheet | None,
        file: Any,
        session: Session,
        trace: Trace | None,
    ) -> None:
        transaction = mail_of(session)
        self._session = session
        self._trace = trace
        self._sheets = header, attachment, content
        self._mail = Content(file, transaction.size, transaction.digest)
        self._header = self._mail.header
        self._view = View(session, transaction=transaction, header=self._header, content=self._mail)
        self._trials = self._all()
        binary = (transaction.parameter(b"BODY") or b"").upper() == b"BINARYMIME"
        self._ambiguous = ambiguous(file, len(self._header.octets), binary=binary)
        self._limited: Verdict | None = None
        self._verdict = PASS
        self._edited = False

    def _all(self) -> Iterator[Trial]:
        header, attachment, content = self._sheets
        if header is not None:
            yield header.trial(self._view, self._trace)
        if attachment is not None:
            for one in self._found(attachment):
                self._view.attachment = one
                self._view.touch()
                yield attachment.trial(self._view, self._trace)
            self._view.attachment = None
            self._view.touch()
        if self._limited is None and content is not None:
            yield content.trial(self._view, self._trace)

    def go(self) -> Verdict:
        """Judge what has not been judged."""
        if self._ambiguous and (verdict := self._refused()) is not None:
            return verdict
        for trial in self._trials:
            if (verdict := self._tried(trial, trial.go())) is not None:
                return verdict
        return self._passed()

    def _refused(self) -> Verdict | None:
        """Nothing can be said of this mail: what that comes to; None where all rules only observe."""
        self._ambiguous = False
        verdict = PASS
        for sheet in self._sheets:
            if sheet is not None and verdict.action is Action.PASS:
                verdict = joined(verdict, sheet.failed(WHY, ANOMALY))
        if verdict.action is not Action.PASS:
            return verdict
        self._trials = iter(())
        self._verdict = verdict
        return None

    def _tried(self, trial: Trial, verdict: Verdict) -> Verdict | None:
        """What one trial came to; None: the next one."""
        self._edited |= trial.edited
        if verdict.action is Action.PASS:
            self._verdict = joined(self._verdict, verdict)
            return None
        if verdict.action is not Action.ASK:
            return joined(self._verdict, verdict)
        question: Question = verdict.value

        def resume(outcome: Any) -> Verdict:
            found = self._tried(trial, question.resume(outcome))
            return self.go() if found is None else found

        return verdict._replace(value=question._replace(resume=resume))

    def _found(self, sheet: Sheet) -> list[Attachment]:
        """The attachments. Where they are beyond what is looked into the rules on them have failed."""
        try:
            return list(self._mail.attachments)
        except MimeLimit as limit:
            self._verdict = joined(self._verdict, sheet.failed(str(limit), "mime-limit"))
            self._limited = self._verdict if self._verdict.action is not Action.PASS else None
            return []

    def _passed(self) -> Verdict:
        if self._limited is not None:
            return self._limited
        if not self._edited:
            return self._verdict
        octets = (self._view.header or self._header).octets
        return self._verdict._replace(action=Action.REWRITE, value=(len(self._header.octets), octets))


def mail_of(session: Session) -> Transaction:
    """The mail whose content is being judged."""
    incoming = session.incoming
    transaction = getattr(incoming, "transaction", None) or session.transaction
    if transaction is None:
        raise AssertionError("content without a mail")
    return transaction
