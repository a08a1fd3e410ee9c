"""The fields of a session: peers, links, commands and replies, counts, the time of day."""

import time
from collections.abc import Callable
from typing import Any, Final

from smtpproxy.policy import view as of
from smtpproxy.policy.view import View
from smtpproxy.policy.vocabulary import Field, Known, Type
from smtpproxy.session.state import Phase

_B, _I, _S, _L = Type.BOOL, Type.INT, Type.STRING, Type.STRINGS


def _tls(side: str, name: str) -> Callable[[View], Any]:
    """What is known of one link; "" in clear."""

    def get(view: View) -> Any:
        info = getattr(view.session, side).tls
        if info is None:
            return ""
        return getattr(info, name)

    return get


def _now(form: str) -> Callable[[View], str]:
    return lambda view: time.strftime(form, view.clock)


SESSION: Final[tuple[Field, ...]] = (
    Field(
        "listener",
        _S,
        Known.ALWAYS,
        'listener == "submission"',
        "The name of the listener the client came to.",
        lambda view: view.session.facts.listener,
    ),
    Field(
        "match",
        _S,
        Known.ALWAYS,
        'match == "branch"',
        'The name of the `[[match]]` block that holds; "" if none.',
        lambda view: view.session.facts.match,
    ),
    Field(
        "client.address",
        _S,
        Known.ALWAYS,
        'in_network(client.address, "10.0.0.0/8")',
        "The client's IP address.",
        lambda view: view.session.facts.client,
    ),
    Field(
        "client.port",
        _I,
        Known.ALWAYS,
        "client.port < 1024",
        "The port the client connected from.",
        lambda view: view.session.facts.client_port,
    ),
    Field(
        "server.address",
        _S,
        Known.ALWAYS,
        'server.address == "mx.example"',
        "The server the session is for: an address, or the name in the configuration.",
        lambda view: view.session.facts.server,
    ),
    Field(
        "server.port",
        _I,
        Known.ALWAYS,
        "server.port == 587",
        "The server's port.",
        lambda view: view.session.facts.server_port,
    ),
    Field(
        "client.hello",
        _S,
        Known.HELLO,
        'glob(client.hello, "*.dynamic.example")',
        'How the client names itself: in the hello being decided, else in the last one accepted; "" before that.',
        of.hello,
    ),
    Field(
        "client.esmtp",
        _B,
        Known.HELLO,
        "!client.esmtp",
        "The client's last accepted hello was EHLO or LHLO.",
        lambda view: view.session.client.esmtp,
    ),
    Field(
        "client.identity",
        _S,
        Known.HELLO,
        'client.identity != ""',
        'The user name the client logged in with; "" if it has not, or if the mechanism does not tell.',
        lambda view: view.session.identity,
    ),
    Field(
        "client.authenticated",
        _B,
        Known.HELLO,
        "!client.authenticated",
        "The client has logged in.",
        lambda view: view.session.authenticated,
    ),
    Field(
        "client.mechanism",
        _S,
        Known.HELLO,
        'client.mechanism in ["PLAIN", "LOGIN"]',
        'The mechanism of the last AUTH, in capitals; "" if there was none.',
        lambda view: of.text(view.session.mechanism),
    ),
    Field(
        "client.tls",
        _B,
        Known.TLS,
        "!client.tls",
        "The client's link is encrypted.",
        lambda view: view.session.client.tls is not None,
    ),
    Field(
        "client.tls_version",
        _S,
        Known.TLS,
        'client.tls_version == "TLSv1.2"',
        'The version of TLS on the client\'s link, such as "TLSv1.3"; "" in clear.',
        _tls("client", "version"),
    ),
    Field(
        "client.tls_cipher",
        _S,
        Known.TLS,
        'client.tls_cipher.contains("CBC")',
        'The cipher suite on the client\'s link; "" in clear.',
        _tls("client", "cipher"),
    ),
    Field(
        "client.tls_name",
        _S,
        Known.TLS,
        'client.tls_name == "mail.example"',
        'The name the client asked for in its TLS handshake (SNI); "" if none.',
        _tls("client", "sni"),
    ),
    Field(
        "client.ja4",
        _S,
        Known.TLS,
        'in_list("known-bots", client.ja4)',
        'The JA4 fingerprint of the client\'s TLS handshake; "" in clear.',
        _tls("client", "ja4"),
    ),
    Field(
        "server.tls",
        _B,
        Known.TLS,
        "client.tls && !server.tls",
        "The server's link is encrypted.",
        lambda view: view.session.server.tls is not None,
    ),
    Field(
        "server.tls_version",
        _S,
        Known.TLS,
        'server.tls_version == "TLSv1.3"',
        'The version of TLS on the server\'s link; "" in clear.',
        _tls("server", "version"),
    ),
    Field(
        "server.tls_cipher",
        _S,
        Known.TLS,
        'server.tls_cipher.startsWith("TLS_AES")',
        'The cipher suite on the server\'s link; "" in clear.',
        _tls("server", "cipher"),
    ),
    Field(
        "server.tls_verified",
        _B,
        Known.TLS,
        "server.tls && !server.tls_verified",
        "The server's certificate was verified, in the way the configuration asks for.",
        lambda view: view.session.server.tls is not None and view.session.server.tls.verified,
    ),
    Field(
        "server.capabilities",
        _L,
        Known.HELLO,
        '!("STARTTLS" in server.capabilities)',
        "The keywords the server offers, in capitals; none before EHLO.",
        lambda view: [of.text(offer.keyword) for offer in view.listed.offers],
    ),
    Field(
        "command.verb",
        _S,
        Known.COMMAND,
        'command.verb in ["VRFY", "EXPN"]',
        "The verb in capitals; of one that is not known, the word itself. Of other replies GREETING, SASL or END.",
        of.verb,
    ),
    Field(
        "command.argument",
        _S,
        Known.COMMAND,
        'command.argument.startsWith("-")',
        "What stands behind the verb, as it came; a secret is shown by its length.",
        of.argument,
    ),
    Field(
        "command.length",
        _I,
        Known.COMMAND,
        "command.length > 512",
        "Octets of the command line, with its CRLF.",
        of.length,
    ),
    Field(
        "command.anomalies",
        _L,
        Known.COMMAND,
        '"bare-path" in command.anomalies',
        "What was odd about the command, by the names of docs/anomalies.md.",
        of.anomalies,
    ),
    Field("reply.code", _I, Known.REPLY, "reply.code >= 500", "The reply code.", lambda view: view.said.code),
    Field(
        "reply.enhanced",
        _S,
        Known.REPLY,
        'reply.enhanced.startsWith("5.7.")',
        'The enhanced status code of the reply; "" if it has none.',
        lambda view: of.text(view.said.enhanced),
    ),
    Field(
        "reply.text",
        _S,
        Known.REPLY,
        'reply.text.contains("Postfix")',
        "The text of the reply, with its enhanced status code; lines with one space between them.",
        lambda view: view.said.text,
    ),
    Field(
        "reply.lines",
        _L,
        Known.REPLY,
        "size(reply.lines) > 50",
        "The text of each line of the reply.",
        lambda view: [of.text(line) for line in view.said.lines],
    ),
    Field(
        "reply.longest",
        _I,
        Known.REPLY,
        "reply.longest > 510",
        "Octets of the longest line of the reply, without its CRLF (RFC 5321 §4.5.3.1.5 allows 510).",
        lambda view: max(map(len, view.said.lines)) + 4,
    ),
    Field(
        "reply.keywords",
        _L,
        Known.LIST,
        '"CHUNKING" in reply.keywords',
        "The keywords this reply offers, in capitals.",
        lambda view: [of.text(offer.keyword) for offer in view.listed.offers],
    ),
    Field(
        "session.commands",
        _I,
        Known.ALWAYS,
        "session.commands > 100",
        "Commands of this session so far.",
        lambda view: view.session.commands,
    ),
    Field(
        "session.mails",
        _I,
        Known.ALWAYS,
        "session.mails > 20",
        "Mails begun in this session so far, the one under way with them.",
        lambda view: view.session.transactions,
    ),
    Field(
        "session.accepted",
        _I,
        Known.ALWAYS,
        "session.accepted == 0",
        "Mails the server accepted in this session.",
        lambda view: view.session.accepted,
    ),
    Field(
        "session.rejected",
        _I,
        Known.ALWAYS,
        "session.rejected >= 10",
        "Recipients refused in this session.",
        lambda view: view.session.rejected,
    ),
    Field(
        "session.malformed",
        _I,
        Known.ALWAYS,
        "session.malformed > 3",
        "Lines of this session that were no command, or an unknown one.",
        lambda view: view.session.malformed,
    ),
    Field(
        "session.phase",
        _S,
        Known.ALWAYS,
        'session.phase == "ready"',
        "Where the conversation is: " + ", ".join(phase.value for phase in Phase) + ".",
        lambda view: view.session.phase.value,
    ),
    Field(
        "session.tags",
        _L,
        Known.ALWAYS,
        '"suspicious" in session.tags',
        "The labels that rules gave this session, and the mail under way.",
        of.tags,
    ),
    Field(
        "now.hour",
        _I,
        Known.ALWAYS,
        "now.hour >= 19",
        "The hour, 0 to 23, where this machine is.",
        lambda view: view.clock.tm_hour,
    ),
    Field("now.minute", _I, Known.ALWAYS, "now.minute < 5", "The minute, 0 to 59.", lambda view: view.clock.tm_min),
    Field(
        "now.weekday",
        _I,
        Known.ALWAYS,
        "now.weekday >= 6",
        "The day of the week, from 1, Monday, to 7, Sunday.",
        lambda view: view.clock.tm_wday + 1,
    ),
    Field(
        "now.date", _S, Known.ALWAYS, 'now.date >= "2030-01-01"', 'The date, such as "2030-01-31".', _now("%Y-%m-%d")
    ),
    Field("now.time", _S, Known.ALWAYS, 'now.time < "07:30"', 'The time of day, such as "07:30".', _now("%H:%M")),
)
