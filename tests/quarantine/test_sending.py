"""Sending a mail on: octet for octet, all recipients or none, and sent only if the server says so."""

import io
import ssl
from collections.abc import Mapping
from typing import Any

import pytest

from smtpproxy.quarantine import sending
from smtpproxy.quarantine.sending import Envelope, NotSent, Sent, send
from tests.peers.conftest import Servers
from tests.peers.servers import Server
from tests.quarantine.kept import CONTENT
from tests.quarantine.talking import Talking, talking

EIGHT = CONTENT + "Grüße\r\n".encode()
LIST = b"250-mx.example\r\n250-%s\r\n250 HELP\r\n"


def envelope(
    parameters: Mapping[str, str] | None = None,
    of_recipients: Mapping[str, Mapping[str, str]] | None = None,
    *,
    sender: str = "a@x.example",
    to: tuple[str, ...] = ("b@y.example", "c@y.example"),
) -> Envelope:
    return Envelope(sender, to, parameters or {}, of_recipients or {})


def sent(server: Talking, content: bytes = CONTENT, given: Envelope | None = None, **more: Any) -> Sent:
    return send("127.0.0.1", server.port, io.BytesIO(content), given or envelope(), **more)


def test_a_mail_is_sent_as_it_is() -> None:
    with talking() as server:
        assert sent(server) == Sent("250 2.0.0 queued as 1", [])
    assert server.lines[1:] == [
        b"MAIL FROM:<a@x.example> SIZE=%d" % len(CONTENT),
        b"RCPT TO:<b@y.example>",
        b"RCPT TO:<c@y.example>",
        b"DATA",
        b"QUIT",
    ]
    assert server.contents == [b"Subject: hello\r\nFrom: a@x.example\r\n\r\none\r\n..two\r\n...three\r\n"]


@pytest.mark.parametrize("content", [b"", b".\r\n", b".", b"x", b"x\r\n." * 40_000, b"a" * 200_000 + b"\r\n"])
def test_any_content_ends_where_it_ends(content: bytes) -> None:
    with talking() as server:
        sent(server, content)
    (got,) = server.contents
    lines = [line.removeprefix(b".") for line in got.split(b"\r\n")]
    assert b"\r\n".join(lines) == content + (b"" if content.endswith(b"\r\n") or not content else b"\r\n")


def test_the_null_reverse_path() -> None:
    with talking() as server:
        sent(server, given=envelope(sender=""))
    assert server.lines[1].startswith(b"MAIL FROM:<> ")


def test_parameters_are_told_to_a_server_that_knows_them() -> None:
    parameters = {"BODY": "8BITMIME", "SIZE": "9", "RET": "HDRS", "ENVID": "1", "MT-PRIORITY": "3", "AUTH": "<>"}
    of_recipients = {"b@y.example": {"NOTIFY": "NEVER", "ORCPT": "rfc822;b@y.example", "RRVS": "2020"}}
    with talking() as server:
        found = sent(server, EIGHT, envelope(parameters, of_recipients))
    assert found.left_out == ["MT-PRIORITY", "RRVS"]
    assert server.lines[1] == b"MAIL FROM:<a@x.example> SIZE=%d BODY=8BITMIME RET=HDRS ENVID=1" % len(EIGHT)
    assert server.lines[2] == b"RCPT TO:<b@y.example> NOTIFY=NEVER ORCPT=rfc822;b@y.example"
    assert server.lines[3] == b"RCPT TO:<c@y.example>"


@pytest.mark.parametrize(
    ("offered", "content", "given", "why"),
    [
        (b"HELP", EIGHT, envelope({"BODY": "8BITMIME"}), "8BITMIME"),
        (b"8BITMIME", EIGHT, envelope({"SMTPUTF8": ""}), "SMTPUTF8"),
        (b"8BITMIME", CONTENT, envelope(to=("jörg@y.example",)), "SMTPUTF8"),
        (b"8BITMIME", CONTENT, envelope({"REQUIRETLS": ""}), "REQUIRETLS"),
        (b"BINARYMIME", b"\r\0\n", envelope({"BODY": "BINARYMIME"}), "BINARYMIME"),
        (b"CHUNKING", b"\r\0\n", envelope({"BODY": "BINARYMIME"}), "BINARYMIME"),
    ],
)
def test_what_a_mail_needs_must_be_offered(offered: bytes, content: bytes, given: Envelope, why: str) -> None:
    with talking({b"EHLO": LIST % offered}) as server:
        with pytest.raises(NotSent, match=f"the server does not offer {why}, which this mail needs"):
            sent(server, content, given)
        assert [line.split()[0] for line in server.lines] == [b"ehlo"]


@pytest.mark.parametrize("parameters", [{"BODY": "8BITMIME"}, {"SMTPUTF8": ""}, {"BODY": "7BIT"}])
def test_what_ascii_does_not_need_is_left_out(parameters: dict[str, str]) -> None:
    with talking({b"EHLO": LIST % b"HELP"}) as server:
        found = sent(server, given=envelope(parameters))
    assert server.lines[1] == b"MAIL FROM:<a@x.example>"
    assert found.left_out == [key for key, value in parameters.items() if value != "7BIT"]


def test_utf8_addresses() -> None:
    given = envelope({"SMTPUTF8": ""}, sender="grün@x.example", to=("jörg@y.example",))
    with talking({b"EHLO": LIST % b"SMTPUTF8"}) as server:
        sent(server, EIGHT, given)
    assert server.lines[1:3] == [
        "MAIL FROM:<grün@x.example> SMTPUTF8".encode(),
        "RCPT TO:<jörg@y.example>".encode(),
    ]


def test_binary_content_goes_as_a_chunk() -> None:
    content = b"\r\n\0\r\n.\r\n\n" * 10_000
    with talking({b"EHLO": b"250-mx\r\n250-BINARYMIME\r\n250 CHUNKING\r\n"}) as server:
        assert sent(server, content, envelope({"BODY": "BINARYMIME"})).reply == "250 2.0.0 queued as 2"
    assert server.contents == [content]
    assert b"BDAT %d LAST" % len(content) in server.lines


@pytest.mark.parametrize("content", [b"a\nb\r\n", b"\n", b"a\rb\r\n", b"a\r", b"a" * 65_535 + b"\r" + b"b\r\n"])
def test_a_stray_newline_is_not_sent(content: bytes) -> None:
    """It would be an end of data to some server."""
    with pytest.raises(NotSent, match="CR or LF alone"):
        send("127.0.0.1", 1, io.BytesIO(content), envelope())


def test_a_newline_in_two_pieces_is_none_astray() -> None:
    with talking() as server:
        sent(server, b"a" * 65_535 + b"\r\n" + b"b\r\n")
    assert len(server.contents) == 1


@pytest.mark.parametrize(
    ("verb", "reply", "why"),
    [
        (b"MAIL", b"452 4.3.1 Later\r\n", "the server said to MAIL: 452 4.3.1 Later"),
        (b"RCPT", b"550 5.1.1 Who?\r\n", "the server said to RCPT TO:<b@y.example>: 550 5.1.1 Who?"),
        (b"RCPT", b"550 \x1b[31m\r\n", r"RCPT TO:<b@y.example>: 550  \[31m"),
        (b"DATA", b"554 5.5.1 No\r\n", "the server said to DATA: 554 5.5.1 No"),
        (b".", b"554-5.7.1 spam\r\n554 5.7.1 more\r\n", "the end of data: 554 5.7.1 spam 5.7.1 more"),
        (b"MAIL", b"", "Connection unexpectedly closed"),
        (b"DATA", b"", "Connection unexpectedly closed"),
    ],
)
def test_what_the_server_does_not_take_is_not_sent(verb: bytes, reply: bytes, why: str) -> None:
    with talking({verb: reply}) as server, pytest.raises(NotSent, match=why) as caught:
        sent(server)
    assert not caught.value.unsure
    assert str(caught.value).isprintable()


def test_one_recipient_that_is_refused_is_the_end_of_it() -> None:
    with talking({b"DATA": b"354 Go\r\n"}) as server:
        talk = server._talk

        def refuses(connection: Any, file: Any) -> None:
            server.replies[b"RCPT"] = b"250 Ok\r\n"
            talk(connection, _after(file, b"RCPT TO:<b", server))

        server._talk = refuses  # type: ignore[method-assign]
        with pytest.raises(NotSent, match=r"RCPT TO:<c@y.example>: 550 no"):
            sent(server)
    assert server.contents == []
    assert b"DATA" not in server.lines


def _after(file: Any, begin: bytes, server: Talking) -> Any:
    for line in file:
        yield line
        if line.startswith(begin):
            server.replies[b"RCPT"] = b"550 no\r\n"


@pytest.mark.parametrize("verb", [b".", b"BDAT"])
def test_a_reply_that_is_lost_at_the_end_is_told(verb: bytes) -> None:
    parameters = {"BODY": "BINARYMIME"} if verb == b"BDAT" else {}
    replies = {verb: b"", b"EHLO": b"250-mx\r\n250-BINARYMIME\r\n250 CHUNKING\r\n"}
    with talking(replies) as server, pytest.raises(NotSent, match="it may have taken the mail") as caught:
        sent(server, given=envelope(parameters))
    assert caught.value.unsure


@pytest.mark.parametrize("reply", [b"", b"500 what\r\n"])
def test_what_is_said_to_quit_changes_nothing(reply: bytes) -> None:
    with talking({b"QUIT": reply}) as server:
        assert sent(server).reply == "250 2.0.0 queued as 1"


def test_nobody_listens() -> None:
    with talking() as server:
        pass
    with pytest.raises(NotSent, match=f"127.0.0.1:{server.port}: .*Connection refused"):
        sent(server)


@pytest.mark.parametrize("address", ["b@y.example>\r\nRCPT TO:<x@y.example", "b\n@y.example", "\udcff@y.example"])
def test_no_address_can_say_more_than_one(address: str) -> None:
    with talking({b"EHLO": LIST % b"SMTPUTF8"}) as server, pytest.raises(NotSent):
        sent(server, given=envelope(to=(address,)))
    assert not any(b"RCPT" in line for line in server.lines)


# ---------------------------------------------------------------------------------------------------------------- TLS


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ({"encryption": "verify"}, "the server offers no STARTTLS"),
        ({"encrypted_before": True}, "offers no STARTTLS now, and its link was encrypted when the mail came"),
    ],
)
def test_in_clear_only_where_that_is_right(how: dict[str, Any], why: str) -> None:
    with talking() as server:
        with pytest.raises(NotSent, match=why):
            sent(server, **how)
        assert not any(b"MAIL" in line for line in server.lines)
        sent(server, encryption="never", encrypted_before=True)


def test_starttls_that_fails_is_no_reason_to_go_on_in_clear() -> None:
    replies = {b"EHLO": b"250-mx\r\n250 STARTTLS\r\n", b"STARTTLS": b"454 4.7.0 Not now\r\n"}
    with talking(replies) as server, pytest.raises(NotSent, match="454"):
        sent(server)
    assert not any(b"MAIL" in line for line in server.lines)


# --------------------------------------------------------------------------------------------------------- real servers


@pytest.fixture(scope="session")
def servers() -> Any:
    """As in tests/peers."""
    from contextlib import ExitStack

    with ExitStack() as stack:
        yield Servers(stack)


def _arrives(server: Server, to: str, given: Envelope, content: bytes = EIGHT, **more: Any) -> None:
    given = given._replace(recipients=[to])
    assert send(server.host, server.port, io.BytesIO(content), given, **more).reply.startswith("250 ")
    (mail,) = server.wait_for(1, 20, to)
    assert mail.wire == content
    assert (mail.sender, list(mail.recipients)) == (given.reverse_path, [to])


@pytest.mark.peers
@pytest.mark.parametrize("name", ["aiosmtpd", "postfix"])
def test_a_real_server_gets_what_was_kept(servers: Servers, name: str) -> None:
    _arrives(servers[name], f"clear-{name}@dst.example", envelope({"BODY": "8BITMIME"}))


@pytest.mark.peers
@pytest.mark.parametrize("name", ["aiosmtpd", "postfix"])
def test_a_real_server_gets_it_encrypted(servers: Servers, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    server = servers.starttls(name)
    _arrives(server, f"tls-{name}@dst.example", envelope({"BODY": "8BITMIME"}), encrypted_before=True)
    (mail,) = server.wait_for(1, 20, f"tls-{name}@dst.example")
    assert mail.encrypted
    with pytest.raises(NotSent, match=r"(?i)certificate.verify.failed"):
        send(server.host, server.port, io.BytesIO(EIGHT), envelope(), encryption="verify")
    trusting = ssl.create_default_context(cafile=str(servers.authority.roots))
    trusting.check_hostname = False
    monkeypatch.setattr(sending, "_context", lambda encryption: trusting)
    _arrives(server, f"verified-{name}@dst.example", envelope({"BODY": "8BITMIME"}), encryption="verify")


@pytest.mark.peers
def test_tls_from_the_first_octet(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    server = servers.implicit("aiosmtpd")
    monkeypatch.setattr(sending, "IMPLICIT_TLS", server.port)
    _arrives(server, "implicit@dst.example", envelope({"BODY": "8BITMIME"}))
