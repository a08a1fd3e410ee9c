"""The registry of reply codes: what a code means and which commands it answers.

`REPLY_CODES` maps the number to its row (`050` is 50). The table informs and never decides: a code that isn't in it is
taken by its first digit, as RFC 5321 §4.3.2 asks, because closed lists of codes break mail. What a reply does to the
framing stands in the verb's `then`, not here.
"""

from collections.abc import Mapping
from types import MappingProxyType

from smtpproxy.smtp.registry.rows import ReplyCode

_ROWS: tuple[ReplyCode, ...] = (
    ReplyCode(
        50,
        "A line of verbose output.",
        "after Sendmail's VERB, before any reply",
        "Sendmail",
        "Not a reply: it must not be counted as one.",
    ),
    ReplyCode(
        200,
        "Success, outside the standard.",
        "Z-IDENT, Z-DEBUG, Z-REPORT, DEBUG, WIZ, X-LINK2STATE",
        "ZMailer, Microsoft Exchange; in no RFC",
    ),
    ReplyCode(211, "The state of the system, or help about it.", "HELP", "RFC 5321 §4.2.3", "Often multi-line."),
    ReplyCode(214, "Help for people.", "HELP", "RFC 5321 §4.2.3", "Often multi-line."),
    ReplyCode(
        220,
        "The service is ready.",
        "the greeting, STARTTLS, X-ANONYMOUSTLS, XCLIENT",
        "RFC 5321 §4.2.3, RFC 3207 §4, Postfix XCLIENT_README",
        "It greets, tells the client to begin TLS, or begins the session anew: the command it answers decides.",
    ),
    ReplyCode(221, "The server closes the connection.", "QUIT", "RFC 5321 §4.2.3"),
    ReplyCode(235, "The client has proved who it is.", "AUTH, X-EXPS, XAUTH and their base64 lines", "RFC 4954 §6"),
    ReplyCode(
        250,
        "Done.",
        "EHLO, HELO, LHLO, MAIL, RCPT, end of data, BDAT, RSET, VRFY, EXPN, NOOP, ETRN and most others",
        "RFC 5321 §4.2.3",
        "To TURN and ATRN it means that client and server change places.",
    ),
    ReplyCode(251, "The recipient is elsewhere; the server forwards.", "RCPT, VRFY, ETRN", "RFC 5321 §3.4, §4.2.3"),
    ReplyCode(
        252,
        "The mailbox can't be verified, but the server will try to deliver.",
        "VRFY, EXPN, ETRN",
        "RFC 5321 §3.5.3, RFC 1985 §5",
        "What the proxy answers to VRFY by default; to ETRN it means that delivery of queued mail has begun.",
    ),
    ReplyCode(253, "Delivery has begun of so many queued messages.", "ETRN", "RFC 1985 §5"),
    ReplyCode(
        334,
        "The client is to send one more base64 line.",
        "AUTH, X-EXPS, XAUTH and their base64 lines",
        "RFC 4954 §4",
        "Anywhere else it is a violation.",
    ),
    ReplyCode(
        353,
        "Replies for each recipient follow, and one for the message.",
        "end of data with PRDR",
        "draft-hall-prdr, Exim",
        "A violation where PRDR was not asked for.",
    ),
    ReplyCode(
        354,
        "The client is to send the content, or the octets announced.",
        "DATA, XEXCH50",
        "RFC 5321 §4.2.3, Microsoft Exchange 2000/2003",
        "Content up to CRLF . CRLF, or a counted block: the command it answers decides.",
    ),
    ReplyCode(
        355,
        "The content goes on at the octet named in the text.",
        "MAIL with TRANSID",
        "RFC 1845",
        "A violation where CHECKPOINT was not let through.",
    ),
    ReplyCode(
        421,
        "The service is closing the connection.",
        "the greeting, any command, and unasked between commands",
        "RFC 5321 §3.8, §4.2.3",
        "The one code that may come without having been asked for.",
    ),
    ReplyCode(432, "The user must first change the password.", "AUTH", "RFC 4954 §6"),
    ReplyCode(450, "The mailbox is not available now.", "MAIL, RCPT, end of data, ATRN", "RFC 5321 §4.2.3"),
    ReplyCode(
        451,
        "An error in processing; later it may work.",
        "MAIL, RCPT, DATA, BDAT, end of data, ATRN",
        "RFC 5321 §4.2.3",
    ),
    ReplyCode(
        452,
        "Not enough storage, or too many recipients.",
        "MAIL, RCPT, DATA, BDAT, end of data",
        "RFC 5321 §4.2.3, §4.5.3.1.10",
    ),
    ReplyCode(453, "There is no mail for the domains named.", "ATRN", "RFC 2645 §5.2.1"),
    ReplyCode(
        454,
        "TLS is not available now, or authentication failed for a passing reason.",
        "STARTTLS, X-ANONYMOUSTLS, AUTH, X-EXPS",
        "RFC 3207 §4, RFC 4954 §6",
        "What the proxy answers to STARTTLS where it can't end TLS.",
    ),
    ReplyCode(455, "The parameters can't be honoured now.", "MAIL, RCPT", "RFC 5321 §4.2.3"),
    ReplyCode(458, "Messages for the node can't be queued.", "ETRN, TURNME", "RFC 1985 §5"),
    ReplyCode(459, "The node is not allowed to ask.", "ETRN, TURNME", "RFC 1985 §5"),
    ReplyCode(
        500,
        "The line was not understood, or was too long.",
        "any command",
        "RFC 5321 §4.2.3",
        "What the proxy answers to a verb that is not in the registry.",
    ),
    ReplyCode(501, "An error in the argument.", "any command; AUTH given up with *", "RFC 5321 §4.2.3, RFC 4954 §4"),
    ReplyCode(
        502,
        "The command is not implemented.",
        "any command",
        "RFC 5321 §4.2.3, §4.2.4",
        "What the proxy answers to a verb it refuses, unless the verb's row says otherwise.",
    ),
    ReplyCode(503, "The command comes at the wrong time.", "any command", "RFC 5321 §4.2.3"),
    ReplyCode(
        504,
        "A parameter or mechanism is not implemented.",
        "EHLO, VRFY, HELP, AUTH, XEXCH50",
        "RFC 5321 §4.2.3, RFC 4954 §4",
    ),
    ReplyCode(
        521,
        "The host takes no mail at all.",
        "the greeting, any command but QUIT",
        "RFC 7504 §3",
        "As a greeting it is told instead of 220.",
    ),
    ReplyCode(
        530,
        "The client must first prove who it is, or begin TLS.",
        "MAIL, RCPT, ETRN, ATRN, AUTH",
        "RFC 4954 §6, RFC 3207 §4",
    ),
    ReplyCode(534, "The mechanism is too weak for this user.", "AUTH", "RFC 4954 §6"),
    ReplyCode(535, "The credentials are wrong.", "AUTH, X-EXPS, XAUTH and their base64 lines", "RFC 4954 §6"),
    ReplyCode(
        538,
        "The mechanism needs an encrypted link.",
        "AUTH",
        "RFC 4954 §6 (as history)",
        "What the proxy answers to AUTH in clear.",
    ),
    ReplyCode(
        541,
        "A device on the way refused the message.",
        "DATA, end of data",
        "Palo Alto Networks",
        "Not the server's own reply, but put in by a firewall.",
    ),
    ReplyCode(
        550,
        "Refused: the mailbox does not exist, or a policy says no.",
        "EHLO, HELO, MAIL, RCPT, VRFY, EXPN, DATA, end of data, XCLIENT, XFORWARD",
        "RFC 5321 §4.2.3",
    ),
    ReplyCode(
        551, "The recipient is elsewhere, and the server does not forward.", "RCPT, VRFY", "RFC 5321 §3.4, §4.2.3"
    ),
    ReplyCode(
        552,
        "Too large, or the mailbox is full.",
        "MAIL, RCPT, DATA, BDAT, BURL, end of data",
        "RFC 5321 §4.2.3, RFC 1870 §6",
        "Older servers say it for too many recipients, where 452 is meant.",
    ),
    ReplyCode(
        553,
        "The name of the mailbox is not allowed, or ambiguous.",
        "MAIL, RCPT, VRFY",
        "RFC 5321 §4.2.3",
        "May be multi-line to VRFY.",
    ),
    ReplyCode(
        554,
        "The transaction failed; as a greeting, there is no mail service here.",
        "the greeting, DATA, BDAT, BURL, end of data, WELLKNOWN",
        "RFC 5321 §3.1, §4.2.3",
        "After it as a greeting the client may only say QUIT.",
    ),
    ReplyCode(555, "The parameters are not recognized or not implemented.", "MAIL, RCPT", "RFC 5321 §4.1.1.11, §4.2.3"),
    ReplyCode(556, "The recipient's domain takes no mail.", "RCPT", "RFC 7504 §4"),
)

REPLY_CODES: Mapping[int, ReplyCode] = MappingProxyType({row.code: row for row in _ROWS})
