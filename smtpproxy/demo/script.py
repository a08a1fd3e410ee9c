"""The script: what the client of the demo says, and what everybody must have made of it.

Each act talks, takes the records and shows what crossed the wires. Nothing is shown because the script says so; the
script only checks that what is shown is what the act's title teaches, and `NotAsTaughtError` is raised where it isn't.
"""

import hashlib
import ssl
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from smtpproxy.demo import server as demo_server
from smtpproxy.demo.tell import direct
from smtpproxy.demo.wire import Seen, Talk, text
from smtpproxy.tls.certificates import facts

if TYPE_CHECKING:
    from smtpproxy.demo import Stage

PATIENCE = 5.0  # seconds for any reply
ME = "client.example"
MAIL = b"MAIL FROM:<ann@client.example>\r\n"
RCPT = b"RCPT TO:<you@demo.example>\r\n"
HEADER = b"From: ann@client.example\r\nTo: you@demo.example\r\n"
LETTER = HEADER + b"Subject: Hello\r\n\r\nHello,\r\nthis mail came by DATA.\r\nAnn\r\n.\r\n"
REPORT = HEADER + b"Subject: Figures\r\n\r\n"
FIGURES = (
    b"".join(b"%d;%d;%d\r\n" % (n, n * n, n * n * n) for n in range(1, 15)) + b".\r\nThe dot above ends nothing.\r\n"
)
BIG = HEADER + b"Subject: Holiday photographs\r\n\r\n" + b"A picture says more than a thousand words.\r\n" * 25_000
SMUGGLING = (
    HEADER + b"Subject: Greetings\r\n\r\nHave a good day\n.\r\n"
    b"MAIL FROM:<smuggled@evil.example>\r\nRCPT TO:<you@demo.example>\r\nDATA\r\n"
    b"From: boss@demo.example\r\nSubject: Pay this today\r\n\r\nhttp://evil.example/\r\n.\r\n"
)
LOG_IN = b"AUTH PLAIN " + b64encode(b"\0ann\0opensesame") + b"\r\n"
INJECTED = b"MAIL FROM:<inject@evil.example>\r\n"


class NotAsTaughtError(Exception):
    """What happened is not what the demo teaches."""


def expect(met: bool, what: str) -> None:
    """Raise unless `met`.

    Raises:
        NotAsTaughtError: it isn't.
    """
    if not met:
        raise NotAsTaughtError(what)


class Client:
    """A client whose socket is listened in on."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.seen = Seen()
        self.tls: tuple[str, str] = ("", "")  # version and cipher
        self._stream: trio.abc.Stream = stream

    async def say(self, octets: bytes, codes: str) -> list[bytes]:
        """Send this in one segment, and await as many replies as there are codes.

        Raises:
            NotAsTaughtError: other replies came, or none in time.
        """
        told = self.seen.told
        before = len(told)
        wanted = codes.split()
        if octets:
            self.seen.sent(octets)
        with trio.move_on_after(PATIENCE):
            if octets:
                await self._stream.send_all(octets)
            while len(told) - before < len(wanted):
                received = await self._stream.receive_some(65_536)
                if not received:
                    break
                self.seen.received(bytes(received))
        replies = told[before:]
        got = " ".join(text(reply[:3]) for reply in replies)
        expect(got == codes, f"the client sent {text(octets[:60])!r} and was told {got!r}, not {codes!r}")
        return replies

    async def secure(self) -> bytes:
        """The handshake of TLS; what the client is shown (DER). It takes any certificate, as mail servers mostly do.

        Raises:
            NotAsTaughtError: it failed.
        """
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        stream = trio.SSLStream(self._stream, context, server_hostname=demo_server.NAME, https_compatible=True)
        try:
            with trio.fail_after(PATIENCE):
                await stream.do_handshake()
        except trio.BrokenResourceError as error:
            raise NotAsTaughtError(f"the handshake succeeds: {error.__cause__}") from error
        self._stream = stream
        self.tls = stream.version(), stream.cipher()[0]
        return bytes(stream.getpeercert(binary_form=True) or b"")

    async def cut_off(self) -> bool:
        """The other side has closed the connection, without a word."""
        with trio.fail_after(PATIENCE):
            return not await self._stream.receive_some(1)


@asynccontextmanager
async def connected(stage: "Stage") -> AsyncIterator[tuple[Client, Talk]]:
    """A client of the proxy, and its conversation."""
    stage.read_record()  # what is new from here on is of this one
    before = len(stage.server.conversations)
    async with await trio.open_tcp_stream("127.0.0.1", stage.port) as stream:
        client = Client(stream)
        with trio.fail_after(PATIENCE):
            while len(stage.server.conversations) == before:  # noqa: ASYNC110 - bounded, and only here
                await trio.sleep(0.001)
        yield client, stage.follow(client.seen)


async def play(stage: "Stage") -> None:
    """All acts, in two sessions through the proxy and one that goes round it."""
    async with connected(stage) as (client, talk):
        await ehlo(stage, client, talk)
        await pipelining(stage, client, talk)
        await refusals(stage, client, talk)
        await size(stage, client, talk)
        await bdat(stage, client, talk)
        await smuggling(stage, client, talk)
        await starttls(stage, client, talk)
        await inside(stage, client, talk)
        await injection(stage)
        await goodbye(stage, client, talk)


async def ehlo(stage: "Stage", client: Client, talk: Talk) -> None:
    """Act 1."""
    stage.act(
        "EHLO: what the proxy can't answer for is not offered",
        "The server's list reaches the client line by line: known extensions as they are, numbers no larger than the "
        "rules allow, and no extension that would carry octets past inspection.",
    )
    await client.say(b"", "220")
    await client.say(f"EHLO {ME}\r\n".encode(), "250")
    stage.show(talk)
    told, got = client.seen.turns[1].reply, talk.server[1].reply
    for word in (b"XEXCH50", demo_server.UNKNOWN.encode()):
        expect(word in got and word not in told, f"{text(word)} is stripped")
    expect(b"SIZE 52428800" in got and b"SIZE 1048576\r" in told, "SIZE is shown smaller")


async def pipelining(stage: "Stage", client: Client, talk: Talk) -> None:
    """Act 2."""
    stage.act(
        "Pipelining: our refusal stands in its turn, between the server's replies",
        "Four commands in one segment. EXPN never gets to the server, and each reply still belongs to its command.",
    )
    await client.say(MAIL + b"EXPN staff\r\n" + RCPT + b"DATA\r\n", "250 502 250 354")
    await client.say(LETTER, "250")
    stage.show(talk)
    expect([turn.verb for turn in talk.server[2:5]] == [b"MAIL", b"RCPT", b"DATA"], "the server never saw EXPN")
    stage.delivered(talk, 1, sha256=hashlib.sha256(LETTER.removesuffix(b".\r\n")).hexdigest())


async def refusals(stage: "Stage", client: Client, talk: Talk) -> None:
    """Act 3."""
    asked = len(talk.server)
    stage.act(
        "A verb that was stripped is refused when it is tried all the same",
        "One rule holds wherever the name shows: in the EHLO reply, as a verb, as a parameter. And a rule may answer "
        "in the server's place.",
    )
    await client.say(b"XEXCH50 1075 2\r\n", "502")
    await client.say(b"HELP\r\n", "214")
    stage.show(talk)
    expect(len(talk.server) == asked, "the server was asked neither")


async def size(stage: "Stage", client: Client, talk: Talk) -> None:
    """Act 4."""
    stage.act(
        "SIZE: too big is refused at MAIL if declared, by counting if not",
        "The second mail says nothing of its size and announces its octets only at BDAT. It is refused, and the "
        "session lives on.",
    )
    await client.say(MAIL.replace(b"\r\n", b" SIZE=30000000\r\n"), "552")
    await client.say(MAIL + RCPT, "250 250")
    await client.say(b"BDAT %d LAST\r\n" % len(BIG) + BIG, "552")
    await client.say(b"NOOP\r\n", "250")
    stage.show(talk)
    expect([turn.verb for turn in talk.server[-2:]] == [b"RSET", b"NOOP"], "the server saw RSET in place of BDAT")
    stage.delivered(talk, 1)


async def bdat(stage: "Stage", client: Client, talk: Talk) -> None:
    """Act 5."""
    stage.act(
        "BDAT: octets are counted, not searched, so a dot in them ends nothing",
        "A whole mail in one segment: the envelope, and two chunks with their octets.",
    )
    first, last = b"BDAT %d\r\n" % len(REPORT) + REPORT, b"BDAT %d LAST\r\n" % len(FIGURES) + FIGURES
    await client.say(MAIL + RCPT + first + last, "250 250 250 250")
    stage.show(talk)
    stage.delivered(talk, 2, sha256=hashlib.sha256(REPORT + FIGURES).hexdigest())


async def smuggling(stage: "Stage", client: Client, talk: Talk) -> None:
    """Act 6: the same octets twice, round the proxy and through it."""
    stage.act(
        "Smuggling: one reader's line of a mail is another reader's end of it",
        "The content holds LF . CRLF (␊ is an LF without its CR), then commands. For a client that keeps to the RFC "
        "all of it is one mail. This server, like several until 2023 (CVE-2023-51764), takes that for an end of data.",
        head=False,
    )
    stage.screen.line()
    stage.screen.sentence("First straight to the server, without the proxy", "bold")
    stage.screen.head(ME, demo_server.NAME, "no proxy")
    async with await trio.open_tcp_stream("127.0.0.1", stage.server.port) as stream:
        other = Client(stream)
        await other.say(b"", "220")
        await other.say(f"EHLO {ME}\r\n".encode(), "250")
        await other.say(MAIL + RCPT + b"DATA\r\n", "250 250 354")
        replies = await other.say(SMUGGLING, "250 250 250 354 250")
        await other.say(b"QUIT\r\n", "221")
    alone = stage.server.conversations[1]
    read = alone.turns[5:10]  # the content, and all that the server read into it
    expect(b"".join(turn.octets for turn in read) == SMUGGLING, "the server was sent the same octets")
    stage.screen.strips(direct(read, replies))
    senders = [mail.sender for mail in alone.mails]
    expect(senders == ["ann@client.example", "smuggled@evil.example"], f"the server alone has two mails: {senders}")
    stage.screen.sentence(f"One mail sent, two at the server; the second from {senders[1]}.", "no")

    stage.screen.line()
    stage.screen.sentence("The same octets through the proxy", "bold")
    stage.screen.head(ME, demo_server.NAME)
    await client.say(MAIL + RCPT + b"DATA\r\n", "250 250 354")
    await client.say(SMUGGLING, "250")
    stage.show(talk, fold=False)
    stage.delivered(talk, 3)
    mail = stage.server.conversations[0].mails[-1]
    expect(b"\r\n.\r\nMAIL FROM:<smuggled@evil.example>\r\n" in mail.content, "the smuggled commands are content")
    stage.screen.sentence("One mail sent, one at the server: the commands in it are lines of its text.", "yes")


async def starttls(stage: "Stage", client: Client, talk: Talk) -> None:
    """Act 7."""
    stage.act(
        "STARTTLS: two handshakes, the server's first, and then everything anew",
        "The client hears 220 only when the server's link is encrypted, so a failure there is a 454 and never clear "
        "text. What was said before is forgotten, and the list asked for again is the one from inside TLS.",
    )
    conversation = stage.server.conversations[0]
    await client.say(b"STARTTLS\r\n", "220")
    with trio.fail_after(PATIENCE):
        await conversation.secured.wait()  # and of the client's handshake not an octet was sent yet
    certificate = await client.secure()
    await client.say(f"EHLO {ME}\r\n".encode(), "250")
    stage.show(talk)
    (record,) = (record for row in talk.rows for record in row.after if record["kind"] == "link-tls")
    wires = {"client": client.tls, "server": conversation.tls}
    for leg, tls in wires.items():
        expect((record[leg]["version"], record[leg]["cipher"]) == tls, f"the {leg}'s link is {tls} on record too")
    own, shown = facts(stage.server.certificate), facts(certificate)
    expect(record["server"]["certificate"]["sha256"] == own.sha256, "the server's certificate is on record")
    expect(shown.sha256 != own.sha256 and shown.names == own.names, "the client is shown another one, for its names")
    expect(not record["server"]["verified"] and shown.subject == shown.issuer, "it is self-signed like the server's")
    told, got = client.seen.turns[-1].reply, talk.server[-1].reply
    expect(b"AUTH PLAIN\r" in told and b"AUTH" not in client.seen.turns[1].reply, "AUTH is offered inside TLS only")
    expect(b"STARTTLS" not in told + got, "STARTTLS is not offered twice")


async def inside(stage: "Stage", client: Client, talk: Talk) -> None:
    """Act 8."""
    asked = len(talk.server)
    stage.act(
        "Inside TLS: the same rules, the same record",
        "A log-in, of which only the length is shown and recorded, and then the octets of act 2 once more.",
    )
    await client.say(LOG_IN, "235")
    await client.say(MAIL + b"EXPN staff\r\n" + RCPT + b"DATA\r\n", "250 502 250 354")
    await client.say(LETTER, "250")
    stage.show(talk)
    verbs = [turn.verb for turn in talk.server[asked : asked + 4]]
    expect(verbs == [b"AUTH", b"MAIL", b"RCPT", b"DATA"], f"the server never saw EXPN: {verbs}")
    stage.delivered(talk, 4, sha256=hashlib.sha256(LETTER.removesuffix(b".\r\n")).hexdigest())


async def injection(stage: "Stage") -> None:
    """Act 9: another client."""
    stage.act(
        "Injection: what came in clear never acts inside TLS",
        "Somebody between client and proxy has glued a command to STARTTLS, to have it read as if it had come "
        "encrypted. Many a server fell for that. A new connection; its greeting and EHLO were those of act 1.",
    )
    async with connected(stage) as (client, talk):
        await client.say(b"", "220")
        await client.say(f"EHLO {ME}\r\n".encode(), "250")
        stage.show(talk, silent=True)
        await client.say(b"STARTTLS\r\n" + INJECTED, "")
        expect(await client.cut_off(), "the client is told nothing more")
    await over(stage, talk)
    stage.show(talk)
    kinds = [record["kind"] for row in talk.rows for record in (row.record, *row.after)]
    expect("violation" in kinds, "there is a violation on record")
    expect(talk.server[-1].verb == b"STARTTLS", "the server never saw MAIL")
    stage.screen.sentence("Both connections are closed; the server never saw the injected command.", "yes")


async def over(stage: "Stage", talk: Talk) -> None:
    """The proxy has closed this conversation."""
    with trio.fail_after(PATIENCE):
        while not talk.closed:
            stage.read_record()
            await trio.sleep(0.001)


async def goodbye(stage: "Stage", client: Client, talk: Talk) -> None:
    """Act 10."""
    stage.act("QUIT: both links end in order")
    await client.say(b"QUIT\r\n", "221")
    await over(stage, talk)
    stage.show(talk)
