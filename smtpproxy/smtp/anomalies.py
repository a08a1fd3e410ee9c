"""The catalogue of anomalies: what a peer did that a well-behaved one does not do, by stable name.

A name never changes its meaning and is never reused; docs/anomalies.md is generated from here. `CLOSES` are
violations: the session ends there. The others are noted on the record of the exchange they belong to.
"""

from types import MappingProxyType
from typing import Final

CLOSES: Final = MappingProxyType(
    {
        # the client's lines and framing
        "bare-lf-in-command": "The client ended a command line with LF alone: the same octets have two readings.",
        "endless-line": "The client sent a line far beyond every limit without ending it.",
        "chunk-size-unknown": "BDAT without a plain octet count: where the next command begins can't be known.",
        "foreign-protocol": "The client speaks another protocol (HTTP or a PROXY header) on the SMTP port.",
        "tls-broken": "What came on a link under TLS is no TLS, or was changed on its way.",
        "tls-refused": "A rule does not want a link that is encrypted like this.",
        "octets-behind-starttls": "Octets of the client behind STARTTLS, before the handshake (CVE-2011-0411).",
        "octets-behind-220": "Octets of the server behind its 220 to STARTTLS, before the handshake (CVE-2021-38371).",
        "too-many-errors": "The client sent more malformed commands than the limit allows.",
        "too-slow": "The peer sends content more slowly than the minimum rate.",
        "idle": "The peer said nothing for longer than its patience allows (RFC 5321 §4.5.3.2).",
        "session-too-long": "The session lasted longer than the limit.",
        "swallow-limit": "The client went on sending refused content beyond the limit of what is swallowed.",
        # the server's replies
        "reply-malformed": "The server's line is not a reply (RFC 5321 §4.2).",
        "reply-code-out-of-range": "The server's reply code does not begin with 2, 3, 4 or 5.",
        "reply-codes-differ": "One multi-line reply of the server carries different codes.",
        "reply-bare-lf": "The server ended a line with LF alone.",
        "reply-bare-cr": "The server's reply holds CR inside a line.",
        "reply-nul": "The server's reply holds a NUL octet.",
        "reply-line-too-long": "The server's reply line is longer than the limit.",
        "reply-too-many-lines": "The server's reply has more lines than the limit.",
        "reply-unsolicited": "The server gave a reply nobody asked for.",
        "reply-impossible": "The server's reply makes no sense to the command it answers.",
        "reply-before-end": "The server acknowledged content before its end was sent.",
        "greeting-malformed": "What the server opened with is no SMTP greeting.",
    }
)

NOTED: Final = MappingProxyType(
    {
        # how a command was written
        "blank-after-colon": "A blank between FROM: or TO: and the path; taken out before the line was sent on.",
        "bare-path": "A path without angle brackets; they were put around it.",
        "odd-separator": "TAB or several blanks where one blank belongs; one blank was sent on.",
        "trailing-blank": "Blanks at the end of the command line; taken off.",
        "leading-zeros": "A BDAT octet count with leading zeros; sent on without.",
        "odd-case": "A word that must be in capitals or small letters was written otherwise; sent on as it must be.",
        "odd-hello": "The hello name is neither a domain nor an address literal.",
        "odd-local-part": "The local-part has dots where the grammar has none.",
        "odd-domain": "The domain has characters the grammar does not allow.",
        "malformed-command": "The command line did not match its grammar; it was answered here.",
        "unknown-verb": "A verb that is not in the registry.",
        "bare-cr-in-command": "CR without LF inside a command line; the line was refused.",
        "line-too-long": "A command line longer than the limit; it was refused.",
        "unknown-parameter": "A MAIL or RCPT parameter that is not in the registry.",
        "parameter-not-offered": "A parameter of an extension the client was not offered.",
        "verb-not-offered": "A verb of an extension the client was not offered.",
        "sasl-malformed": "A SASL line that is neither base64 nor *; the exchange was cancelled.",
        "non-ascii-without-smtputf8": "An address beyond ASCII without the SMTPUTF8 parameter.",
        "record-full": 'No room for the record of a mail (`on_full = "refuse"`); MAIL was answered 451.',
        "too-many-recipients": "More recipients in one transaction than the limit allows.",
        # order
        "early-talk": "The client talked before the greeting.",
        "pipelined-behind-hold": "Octets of the client behind a command that must end its group (RFC 2920 §3.1).",
        "out-of-order": "The server accepted a command that the session's state does not allow.",
        # content
        "stray-newline-normalised": "CR or LF alone, or NUL, in the content; replaced before it was sent on.",
        "stray-newline-refused": "CR or LF alone, or NUL, in the content; the mail was refused.",
        "over-size": "The content is larger than the limit.",
        "mime-limit": "The parts of the content are beyond what is looked into; rules on them failed.",
        "header-too-big": "The header section is larger than the limit.",
        "header-line-malformed": "A header line that is no field; some readers take it to end the section.",
        "header-blank-before-colon": "A blank between a header field's name and its colon; read as that field.",
        "header-first-line-folded": "The header section begins with a line that continues another.",
        "header-blank-line": "A header line of nothing but blanks; some readers take it to end the section.",
        "header-bare-newline": "CR or LF alone in the header section; taken to end a line.",
        "header-nul": "NUL in the header section; some readers read over it, some stop there.",
        "header-line-too-long": "A header line of more than 998 octets (RFC 5322 §2.1.1).",
        "header-repeated": "A header field that stands once at most (RFC 5322 §3.6) stands twice.",
        "early-refusal": "The server refused the content before its end.",
        # replies
        "reply-control": "Control octets in the server's reply; replaced before it was told.",
        "reply-no-text": "A reply line with nothing behind the code.",
        "unanswered": "The session ended before the reply to this was told, or known.",
        "unknown-reply-code": "A reply code that is not in the registry; taken by its first digit.",
        "helo-multiline": "The server answered HELO with several lines; one was told.",
        "ehlo-line-malformed": "A line of the EHLO reply that is no keyword; stripped.",
        "ehlo-keyword-repeated": "A keyword stands more than once in the EHLO reply; one was told.",
        "keyword-stripped": "An extension was taken out of the EHLO reply.",
        "verbose-noise": "Lines with code 0yz before a reply, as VERB asks for.",
        # links
        "server-unreachable": "No address of the server could be reached.",
        "server-lost": "The server's link ended while a reply was owed or content was on its way.",
        "client-lost": "The client's link ended in the middle of content or a chunk.",
        "unacknowledged": "The server accepted the mail; the client was gone before it could be told.",
        "tls-truncated": "A link under TLS ended without close_notify where something was under way; taken for broken.",
        "requiretls-intercepted": "REQUIRETLS was asked for through a certificate of ours: TLS is opened here.",
        "tls-failed": "A TLS handshake failed; nothing was said in clear text in its place.",
        "announce-not-offered": "The server does not offer what was to tell it of the client, XCLIENT or XFORWARD.",
        "announce-refused": "The server refused XCLIENT (told in the greeting's place) or XFORWARD (the mail went on).",
        "passed-unseen": "The configuration exempts this session: octets pass unseen, both ways, from the first one.",
        "shutting-down": "The proxy is being stopped; the client was told 421.",
        "internal-error": "A fault of smtpproxy itself ended the session; the log has the traceback.",
        "inspection-ended": "An administrator allowed a command that ends inspection; from here octets pass unseen.",
        "rule-failed": "A rule failed while it was being decided; the command was answered 451.",
    }
)

ANOMALIES: Final = MappingProxyType({**CLOSES, **NOTED})
