"""The script: what the client of the demo says, and what everybody must have made of it.

Each act talks, takes the records and shows what crossed the wires. Nothing is shown because the script says so; the
script only checks that what is shown is what the act's title teaches, and `NotAsTaughtError` is raised where it isn't.
"""

import hashlib
from typing import TYPE_CHECKING

import trio

from smtpproxy.demo import server as demo_server
from smtpproxy.demo.tell import direct
from smtpproxy.demo.wire import Seen, Talk, text

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
        self._stream = stream

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
                self.seen.received(received)
        replies = told[before:]
        got = " ".join(text(reply[:3]) for reply in replies)
        expect(got == codes, f"the client sent {text(octets[:60])!r} and was told {got!r}, not {codes!r}")
        return replies


async def play(stage: "Stage") -> None:
    """All acts, in one session through the proxy and one that goes round it."""
    stream = await trio.open_tcp_stream("127.0.0.1", stage.port)
    async with stream:
        client = Client(stream)
        with trio.fail_after(PATIENCE):
            while not stage.server.conversations:  # noqa: ASYNC110 - bounded, and only here
                await trio.sleep(0.001)
        talk = stage.follow(client.seen)
        await ehlo(stage, client, talk)
        await pipelining(stage, client, talk)
        await refusals(stage, client, talk)
        await size(stage, client, talk)
        await bdat(stage, client, talk)
        await smuggling(stage, client, talk)
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


async def goodbye(stage: "Stage", client: Client, talk: Talk) -> None:
    """Act 7."""
    stage.act("QUIT: both links end in order")
    await client.say(b"QUIT\r\n", "221")
    with trio.fail_after(PATIENCE):
        while not talk.closed:
            stage.read_record()
            await trio.sleep(0.001)
    stage.show(talk)
