"""The fields of a mail: envelope, header section, attachments, content, end."""

from collections.abc import Callable
from typing import Any, Final

from smtpproxy.policy import view as of
from smtpproxy.policy.view import View
from smtpproxy.policy.vocabulary import Field, Known, Type

_B, _I, _S, _L = Type.BOOL, Type.INT, Type.STRING, Type.STRINGS


def _domains(view: View) -> list[str]:
    return list(dict.fromkeys(of.domain(path) for path in view.recipients))


def _attachments(name: str) -> Callable[[View], list[str]]:
    def get(view: View) -> list[str]:
        return [] if view.content is None else [getattr(one, name) for one in view.content.attachments]

    return get


def _attachment(name: str, empty: Any) -> Callable[[View], Any]:
    return lambda view: empty if view.attachment is None else getattr(view.attachment, name)


def _size(view: View) -> int:
    if view.content is not None:
        return view.content.size
    return view.mail.size if view.mail is not None else 0


def _digest(view: View) -> str:
    if view.content is not None:
        return view.content.digest
    return view.mail.digest if view.mail is not None else ""


def _longest_in_header(view: View) -> int:
    return 0 if view.section is None else max(map(len, view.section.octets.split(b"\r\n")))


def _longest_in_content(view: View) -> int:
    if view.content is None:
        return 0
    return view.kept("longest", lambda _: of.longest_line(view.content.file) if view.content is not None else 0)


def _header_names(view: View) -> list[str]:
    return [] if view.section is None else [of.text(field.key) for field in view.section.fields]


def _outcome(view: View) -> str:
    return "" if view.mail is None or view.mail.outcome is None else str(view.mail.outcome)


MAIL: Final[tuple[Field, ...]] = (
    Field(
        "mail.address",
        _S,
        Known.MAIL,
        'mail.address == "boss@example.com"',
        'The reverse-path without its brackets, the domain in small letters; "" for the null reverse-path.',
        lambda view: of.address(view.envelope[0]),
    ),
    Field(
        "mail.local",
        _S,
        Known.MAIL,
        'mail.local.startsWith("bounce")',
        "The local part of the reverse-path.",
        lambda view: of.text(view.envelope[0].local),
    ),
    Field(
        "mail.domain",
        _S,
        Known.MAIL,
        'in_list("our-domains", mail.domain)',
        'The domain of the reverse-path, in small letters; "" for the null reverse-path.',
        lambda view: of.domain(view.envelope[0]),
    ),
    Field(
        "mail.null",
        _B,
        Known.MAIL,
        "mail.null",
        "The reverse-path is the null one, as of notifications (RFC 5321 §4.5.5).",
        lambda view: not any(view.envelope[0]),
    ),
    Field(
        "mail.parameters",
        Type.MAP,
        Known.MAIL,
        'mail.parameters["BODY"] == "BINARYMIME"',
        'The parameters of MAIL by keyword, in any case; "" for one without a value, and for one that is not there'
        ' (`"RET" in mail.parameters` tells).',
        lambda view: of.parameters(view.envelope[1]),
        lambda view, key: of.parameters(view.envelope[1]).get(key, ""),
        str.upper,
    ),
    Field(
        "mail.declared_size",
        _I,
        Known.MAIL,
        "mail.declared_size > 10485760",
        "The octets that SIZE= says; 0 if it is not there.",
        lambda view: of.declared_size(view.envelope[1]),
    ),
    Field(
        "mail.utf8",
        _B,
        Known.MAIL,
        "mail.utf8",
        "MAIL has the parameter SMTPUTF8.",
        lambda view: "SMTPUTF8" in of.parameters(view.envelope[1]),
    ),
    Field(
        "mail.number",
        _I,
        Known.MAIL,
        "mail.number > 1",
        "Which mail of the session it is, from 1.",
        lambda view: view.session.transactions if view.mail is None else view.mail.number,
    ),
    Field(
        "mail.recipients",
        _L,
        Known.RECIPIENTS,
        'mail.recipients.exists(r, domain(r) == "example.com")',
        "The addresses of the recipients so far, without the one being decided and those refused.",
        lambda view: [of.address(path) for path in view.recipients],
    ),
    Field(
        "mail.domains",
        _L,
        Known.RECIPIENTS,
        "size(mail.domains) > 10",
        "The domains of those recipients, each once, in small letters.",
        _domains,
    ),
    Field(
        "mail.count",
        _I,
        Known.RECIPIENTS,
        "mail.count >= 100",
        "How many recipients there are so far, without the one being decided and those refused.",
        lambda view: len(view.recipients),
    ),
    Field(
        "rcpt.address",
        _S,
        Known.RCPT,
        'rcpt.address == "all@example.com"',
        "The forward-path being decided without its brackets, the domain in small letters.",
        lambda view: of.address(view.forward[0]),
    ),
    Field(
        "rcpt.local",
        _S,
        Known.RCPT,
        'rcpt.local.contains("%")',
        "The local part of the forward-path being decided.",
        lambda view: of.text(view.forward[0].local),
    ),
    Field(
        "rcpt.domain",
        _S,
        Known.RCPT,
        'rcpt.domain == "old.example"',
        'The domain of the forward-path being decided, in small letters; "" for `<Postmaster>`.',
        lambda view: of.domain(view.forward[0]),
    ),
    Field(
        "rcpt.parameters",
        Type.MAP,
        Known.RCPT,
        '"NOTIFY" in rcpt.parameters',
        'The parameters of RCPT by keyword, in any case; "" as with `mail.parameters`.',
        lambda view: of.parameters(view.forward[1]),
        lambda view, key: of.parameters(view.forward[1]).get(key, ""),
        str.upper,
    ),
    Field(
        "mail.size",
        _I,
        Known.SIZE,
        "mail.size > 1048576",
        "Octets of the content, without dot-stuffing.",
        lambda view: of.number(_size(view)),
    ),
    Field(
        "mail.digest",
        _S,
        Known.SIZE,
        'in_list("bad-content", mail.digest)',
        "The SHA-256 of the content, hexadecimal.",
        _digest,
    ),
    Field(
        "header",
        Type.LISTS,
        Known.HEADER,
        'header["Subject"].exists(s, s.contains("invoice"))',
        "All values of a header field, decoded, by its name in any case; none if it is not there.",
        of.entries,
        of.entry,
    ),
    Field(
        "header.names",
        _L,
        Known.HEADER,
        'header.names.filter(n, n == "received").size() > 50',
        "The names of all header fields in their order, in small letters.",
        _header_names,
    ),
    Field(
        "header.count",
        _I,
        Known.HEADER,
        "header.count > 200",
        "How many header fields there are.",
        lambda view: 0 if view.section is None else len(view.section.fields),
    ),
    Field(
        "header.size",
        _I,
        Known.HEADER,
        "header.size > 65536",
        "Octets of the header section, with its empty line.",
        lambda view: 0 if view.section is None else len(view.section.octets),
    ),
    Field(
        "header.longest_line",
        _I,
        Known.HEADER,
        "header.longest_line > 998",
        "Octets of the longest line of the header section, without its CRLF (RFC 5322 §2.1.1).",
        _longest_in_header,
    ),
    Field(
        "header.anomalies",
        _L,
        Known.HEADER,
        "size(header.anomalies) > 0",
        "What was odd about the header section, by the names of docs/anomalies.md.",
        lambda view: [] if view.section is None else list(view.section.anomalies),
    ),
    Field(
        "attachment.name",
        _S,
        Known.ATTACHMENT,
        'glob(attachment.name, "*.pdf.exe")',
        "The file name of the attachment, decoded.",
        _attachment("name", ""),
    ),
    Field(
        "attachment.extension",
        _S,
        Known.ATTACHMENT,
        'in_list("bad-extensions", attachment.extension)',
        "What stands behind the last dot of the name of the attachment, in small letters.",
        _attachment("extension", ""),
    ),
    Field(
        "attachment.type",
        _S,
        Known.ATTACHMENT,
        'attachment.type == "application/zip"',
        "The type the attachment is declared to be, in small letters.",
        _attachment("type", ""),
    ),
    Field(
        "attachment.detected",
        _S,
        Known.ATTACHMENT,
        'attachment.detected == "application/x-dosexec"',
        'The type the first octets of the attachment show; "" if they show none.',
        _attachment("detected", ""),
    ),
    Field(
        "attachment.size",
        _I,
        Known.ATTACHMENT,
        "attachment.size > 5242880",
        "Octets of the attachment, decoded.",
        _attachment("size", 0),
    ),
    Field(
        "attachment.path",
        _S,
        Known.ATTACHMENT,
        'attachment.path.contains(">")',
        "The name of the attachment behind those of the archives and mails it lies in: `container>name`.",
        _attachment("path", ""),
    ),
    Field(
        "attachment.nested",
        _B,
        Known.ATTACHMENT,
        "attachment.nested",
        "The attachment lies in an archive or in a mail within the mail.",
        _attachment("nested", empty=False),
    ),
    Field(
        "attachment.encrypted",
        _B,
        Known.ATTACHMENT,
        "attachment.encrypted",
        "The attachment is encrypted, and nothing can be said of what it holds.",
        _attachment("encrypted", empty=False),
    ),
    Field(
        "attachment.extensions",
        _L,
        Known.ATTACHMENT,
        'attachment.extensions == ["pdf", "exe"]',
        "The extensions of the name of the attachment, the last one last, in small letters.",
        lambda view: [] if view.attachment is None else list(view.attachment.extensions),
    ),
    Field(
        "attachment.unreadable",
        _B,
        Known.ATTACHMENT,
        "attachment.unreadable",
        "The attachment holds files, and not all of them could be read.",
        _attachment("unreadable", empty=False),
    ),
    Field(
        "attachment.macros",
        _B,
        Known.ATTACHMENT,
        "attachment.macros",
        "The attachment is an office document with a program in it.",
        _attachment("macros", empty=False),
    ),
    Field(
        "attachments.names",
        _L,
        Known.CONTENT,
        'attachments.names.exists(n, glob(n, "*invoice*"))',
        "The names of all attachments.",
        _attachments("name"),
    ),
    Field(
        "attachments.extensions",
        _L,
        Known.CONTENT,
        '"exe" in attachments.extensions',
        "The extensions of all attachments.",
        _attachments("extension"),
    ),
    Field(
        "attachments.types",
        _L,
        Known.CONTENT,
        '"text/calendar" in attachments.types',
        "The types all attachments are declared to be.",
        _attachments("type"),
    ),
    Field(
        "attachments.detected",
        _L,
        Known.CONTENT,
        '"application/x-dosexec" in attachments.detected',
        "The types the first octets of all attachments show.",
        _attachments("detected"),
    ),
    Field(
        "attachments.count",
        _I,
        Known.CONTENT,
        "attachments.count > 20",
        "How many attachments there are, nested ones with them.",
        lambda view: 0 if view.content is None else len(view.content.attachments),
    ),
    Field(
        "content.size",
        _I,
        Known.CONTENT,
        "content.size > 26214400",
        "The same as `mail.size`.",
        lambda view: of.number(_size(view)),
    ),
    Field(
        "content.digest",
        _S,
        Known.CONTENT,
        'in_list("bad-content", content.digest)',
        "The same as `mail.digest`.",
        _digest,
    ),
    Field(
        "content.longest_line",
        _I,
        Known.CONTENT,
        "content.longest_line > 998",
        "Octets of the longest line of the content, without its CRLF (RFC 5322 §2.1.1).",
        _longest_in_content,
    ),
    Field(
        "tls.side",
        _S,
        Known.SIDE,
        'tls.side == "client"',
        'Whose link has been encrypted: "client" or "server".',
        lambda view: "" if view.side is None else view.side.value,
    ),
    Field(
        "transaction.accepted",
        _B,
        Known.TRANSACTION,
        "!transaction.accepted",
        "The server accepted the mail.",
        lambda view: bool(view.accepted),
    ),
    Field(
        "transaction.reply",
        _S,
        Known.TRANSACTION,
        'transaction.reply.startsWith("451")',
        'What the client was told at the end of the mail; "" if it came to none.',
        _outcome,
    ),
)
