"""Addresses that must not be read: in no form that commands and replies have them."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpproxy.audit.hiding import MOST_KNOWN, Addresses, Seen
from smtpproxy.audit.privacy import Key, Pseudonyms
from smtpproxy.smtp.values import Path

KEY = Key("k1", b"k" * 32)
PSEUDONYMS = Pseudonyms([KEY])


def _seen(mode: str = "pseudonym") -> Seen:
    return Addresses(PSEUDONYMS if mode == "pseudonym" else None).session()


def test_a_pseudonym_is_an_address_by_shape_and_the_same_each_time() -> None:
    one = _seen().path(Path(b"alice", b"Example.org"))
    assert one == _seen().path(Path(b"alice", b"example.ORG"))
    local, at, domain = one.partition("@")
    assert local.startswith("~k1.")
    assert at
    assert domain.startswith("~k1.")
    assert one != _seen().path(Path(b"bob", b"example.org"))
    assert domain == _seen().path(Path(b"bob", b"example.org")).partition("@")[2]


def test_domain_only() -> None:
    assert _seen("domain-only").path(Path(b"alice", b"example.org")) == "~@example.org"
    assert _seen("domain-only").text("550 <alice@example.org>: no") == "550 <~@example.org>: no"


def test_the_null_path_stays_and_postmaster_does_not() -> None:
    assert _seen().path(Path(b"", b"")) == ""
    assert _seen().path(Path(b"postmaster", b"")).startswith("~k1.")


# What is asked about alice; and what commands are left of it.
COMMANDS = {
    "MAIL FROM:<alice@example.org> SIZE=1000 BODY=8BITMIME": "MAIL FROM:<~@example.org> SIZE=1000 BODY=8BITMIME",
    "MAIL FROM:<> AUTH=alice@example.org": "MAIL FROM:<> AUTH=~@example.org",
    "MAIL FROM:<bob@x.example> AUTH=alice+40example.org": "MAIL FROM:<~@x.example> AUTH=~@example.org",
    "MAIL FROM:<bob@x.example> AUTH=alice": "MAIL FROM:<~@x.example> AUTH=~",
    "MAIL FROM:<bob@x.example> ENVID=alice-1 ALICE": "MAIL FROM:<~@x.example> ENVID=~-~ ~",
    "MAIL FROM:<bob@x.example> SUBMITTER=alice@example.org": "MAIL FROM:<~@x.example> SUBMITTER=~@example.org",
    "MAIL FROM:<bob@x.example> SIZE=alice": "MAIL FROM:<~@x.example> SIZE=~",
    'RCPT TO:<"alice"@example.org>': "RCPT TO:<~@example.org>",
    'RCPT TO:<"al>x alice \\" y"@example.org>': "RCPT TO:<~@example.org>",
    "RCPT TO:<@relay.example:alice@example.org>": "RCPT TO:<@relay.example:~@example.org>",
    "RCPT TO:<@a.example,@[192.0.2.1]:alice@example.org>": "RCPT TO:<@a.example,@[192.0.2.1]:~@example.org>",
    "RCPT TO:<alice@[192.0.2.1]>": "RCPT TO:<~@[192.0.2.1]>",
    "RCPT TO:<alice@[IPv6:2001:db8::1]>": "RCPT TO:<~@[IPv6:2001:db8::1]>",
    "RCPT TO:<alice@example.org> NOTIFY=FAILURE ORCPT=rfc822;alice+40example.org": (
        "RCPT TO:<~@example.org> NOTIFY=FAILURE ORCPT=rfc822;~@example.org"
    ),
    "RCPT TO:<bob@x.example> ORCPT=utf-8;alice\\x{40}x.example": "RCPT TO:<~@x.example> ORCPT=utf-8;~@x.example",
    "RCPT TO:<bob@x.example> ORCPT=rfc822;alice": "RCPT TO:<~@x.example> ORCPT=rfc822;~",
    "RCPT TO:<bob@x.example> ORCPT=alice;bob": "RCPT TO:<~@x.example> ORCPT=~;~",
    "RCPT TO:<bob@x.example> ORCPT=utf-8;alice\\x{DFFF}\\x{FFFFFF}": "RCPT TO:<~@x.example> ORCPT=utf-8;~",
    "RCPT TO:<alice>": "RCPT TO:<~>",
    "RCPT TO: alice@example.org": "RCPT TO: ~@example.org",
    "RCPT TO:alice": "RCPT TO:~",
    "RCPT TO:<alice@>": "RCPT TO:<~@>",
    "RCPT TO:<alice @example.org>": "RCPT TO:<~ @~.~>",
    "RCPT TO:<bob,alice@example.org>": "RCPT TO:<~,~@~.~>",
    "RCPT TO:<alice(c)@example.org>": "RCPT TO:<~(~)@~.~>",
    "RCPT TO:<bob@example.org>alice": "RCPT TO:<~@~.~>~",
    "RCPT alice": "RCPT ~",
    "SOML FROM:<alice@example.org>": "SOML FROM:<~@example.org>",
    "VRFY alice": "VRFY ~",
    "VRFY alice smith": "VRFY ~",
    "VRFY <alice@example.org>": "VRFY ~@example.org",
    "EXPN alice-list": "EXPN ~",
    "HELP alice": "HELP ~",
    "NOOP I am alice": "NOOP ~ ~ ~",
    "DATA alice": "DATA ~",
    "FROB alice": "FROB ~",
    "alice": "~",
    "GET /alice HTTP/1.1": "GET /~ ~/~.~",
    "AUTH alice": "AUTH ~",
    "XCLIENT NAME=x.example LOGIN=alice@example.org": "XCLIENT NAME=x.example LOGIN=~@example.org",
    "XCLIENT LOGIN=alice": "XCLIENT LOGIN=~",
    "XCLIENT alice WHO=alice": "XCLIENT ~ ~=~",
    "XFORWARD IDENT=alice": "XFORWARD IDENT=~",
    "BURL imap://alice;urlauth=submit+bob@example.org/x;uid=1 LAST": "BURL imap://~;~=~+~@example.org/~;~=~ LAST",
    "BURL http://x.example/alice": "BURL http://x.example/~",
    "BURL alice": "BURL ~",
}

# What is told about her.
REPLIES = [
    "550 5.1.1 <alice@example.org>: Recipient address rejected: User unknown in local recipient table",
    "550-Verification failed for <alice@example.org>",
    "550 alice@example.org... User unknown",
    "550 5.1.1 The email account alice@example.org does not exist.",
    "550 5.7.1 See https://x.example/bounce?address=alice%40example.org&x=1",
    "451 4.7.1 Greylisted, see http://x.example/?r=alice=40example.org",
    "550 =alice=40example.org",
    "550 alice%40example.org.",
    "252 2.0.0 alice@example.org",
    "250 2.1.5 Alice <alice@example.org>",
    "550-5.1.1 alice@\r\n550 example.org",
    "SRS0=hash=tt=x.example=alice@example.org",
    "prvs=1234=alice@example.org",
    "535 AUTH=alice@example.org",
    "alice@例え.example",
    "(alice@example.org), [alice@example.org]; alice@example.org:",
    "550 <~alice@example.org>: a tilde does not make it a pseudonym",
    "550 http://x.example/~alice%40example.org",
]


@pytest.mark.parametrize("mode", ["pseudonym", "domain-only"])
@pytest.mark.parametrize("text", REPLIES)
def test_no_reply_has_the_local_part(text: str, mode: str) -> None:
    assert "alice" not in _seen(mode).text(text).lower()
    assert "alice" not in _seen(mode).text(text.upper()).lower()


@pytest.mark.parametrize(("text", "shown"), COMMANDS.items())
def test_no_command_has_the_local_part(text: str, shown: str) -> None:
    assert _seen("domain-only").command(text) == shown
    assert _seen("domain-only").command(text + "\r\n") == shown + "\r\n"
    assert "alice" not in _seen().command(text)
    if text not in ("alice", "AUTH alice"):  # in capitals they are a verb and a mechanism
        assert "alice" not in _seen().command(text.upper()).lower()


@pytest.mark.parametrize(
    "text",
    [
        "(connect)",
        "(end of data)",
        "<17 octets>",
        "*",
        "AUTH PLAIN <17 octets>",
        "AUTH LOGIN",
        "AUTH EXTERNAL =",
        "WIZ <5 octets>",
        "MAIL FROM:<>",
        "MAIL FROM:<> SIZE=100 BODY=8BITMIME RET=HDRS SMTPUTF8 AUTH=<>",
        "RCPT TO:<> NOTIFY=SUCCESS,DELAY",
        "HELP MAIL",
        "BDAT 1000 LAST",
        "XEXCH50 904 2",
        "EHLO client.example.org",
        "EHLO [192.0.2.1]",
        "ETRN example.org",
        "DATA",
        "STARTTLS",
        "FROB",
        "XCLIENT NAME=mail.example ADDR=192.0.2.1 PORT=25 LOGIN=[UNAVAILABLE]",
        "XFORWARD IDENT=4F2A1B0C3D PROTO=ESMTP",
    ],
)
def test_commands_that_name_nobody_are_left(text: str) -> None:
    assert _seen().command(text) == text
    assert _seen("domain-only").command(text) == text


def test_how_many_octets_a_secret_has_stays() -> None:
    assert _seen("domain-only").command("MAIL FROM:<x@y.example> XSYSPROBEID=<9 octets>").endswith("=<9 octets>")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("235 2.7.0 Authentication successful", "235 2.7.0 Authentication successful"),
        ("235 2.7.0 alice authenticated", "235 2.7.0 ~ authenticated"),
        ("235 ok, EXAMPLE\\alice", "235 ok, ~\\~"),
        (
            "535 5.7.8 Error: authentication failed: <alice@example.org>",
            "535 5.7.8 Error: authentication failed: <~@~.~>",
        ),
    ],
)
def test_replies_to_auth_have_the_words_of_a_list_alone(text: str, shown: str) -> None:
    seen = _seen("domain-only")
    assert seen.signing_in(text) == shown
    if "alice" in text:
        assert seen.text("250 hello alice") == "250 hello ~"
    assert "alice" not in _seen().signing_in(text)


@pytest.mark.parametrize(
    "address",
    [
        "alice.smith@example.org",
        "prvs=1234=alice@example.org",
        "SRS0=abc=xx=example.org=alice@fwd.example",
        "bounces+alice=example.org@list.example",
        "alice%example.org@relay.example",
        "alice_smith+x@example.org",
    ],
)
@pytest.mark.parametrize(
    "reply", ["550 Alice Smith is unknown", "451 /var/mail/alice/x: locked", "550 <alice>: no", "550 alice_x"]
)
def test_every_word_of_a_local_part_is_looked_for(address: str, reply: str) -> None:
    seen = _seen()
    seen.command(f"RCPT TO:<{address}>")
    assert "alice" not in seen.text(reply).lower()


def test_a_local_part_that_comes_back_is_its_pseudonym() -> None:
    seen = _seen()
    name = seen.path(Path(b"alice.smith", b"example.org")).partition("@")[0]
    assert seen.text("550 5.1.1 alice.smith: unknown") == f"550 5.1.1 {name}: unknown"
    assert seen.text("550 <Alice.Smith>") == f"550 <{name}>"


def test_a_domain_that_comes_back_is_its_pseudonym() -> None:
    seen = _seen()
    domain = seen.path(Path(b"alice", b"example.org")).partition("@")[2]
    assert seen.text("550 no relaying to Example.org.") == f"550 no relaying to {domain}."


def test_codes_are_no_names() -> None:
    seen = _seen()
    seen.path(Path(b"550.5551234", b"example.org"))
    assert seen.text("550 5.7.1 no 5551234").startswith("550 5.7.1 no ~")


@pytest.mark.parametrize(
    "text", ["550 alice unknown", "550 5.1.1 ALICE: no such user", "553 sorry, (alice)", "250 alice"]
)
def test_what_the_session_called_somebody_is_found_alone(text: str) -> None:
    seen = _seen()
    seen.text("RCPT TO:<Alice@example.org>")
    assert "alice" not in seen.text(text).lower()
    assert _seen().text(text) == text


def test_words_that_only_begin_so_are_left() -> None:
    seen = _seen()
    seen.path(Path(b"post", b"example.org"))
    assert seen.text("postfix and compost") == "postfix and compost"


def test_short_ones_are_not_looked_for_alone() -> None:
    seen = _seen()
    seen.path(Path(b"ok", b"example.org"))
    assert seen.text("250 2.0.0 Ok") == "250 2.0.0 Ok"


def test_what_is_done_twice_is_as_done_once() -> None:
    seen = _seen()
    once = seen.text("550 <alice@example.org> ORCPT=rfc822;alice@example.org")
    assert seen.text(once) == once
    once = seen.command("RCPT TO:<alice@example.org> ORCPT=rfc822;alice@example.org")
    assert seen.command(once) == once


@pytest.mark.parametrize(
    "text",
    [
        "354 End data with <CR><LF>.<CR><LF>",
        "250 2.1.0 Ok",
        "EHLO client.example.org",
        "QUIT",
        "DATA",
        "250 mx.example SIZE 40",
    ],
)
def test_what_names_nobody_is_left(text: str) -> None:
    assert _seen().text(text) == text


def test_logins_and_message_ids() -> None:
    assert "ann" not in _seen().identity("ann")
    assert "ann" not in _seen().identity("ann@example.org")
    assert "alice" not in _seen().message_id("<alice.1@pc.example.org>")
    assert _seen("domain-only").message_id("<alice.1@pc.example.org>") == "<~@pc.example.org>"
    assert _seen().message_id("<nothing>").startswith("<~k1.")


@given(
    st.text("abcdefghijklmnopqrstuvwxyz0123456789.+-_'/&é", min_size=3, max_size=20).filter(
        lambda text: text.strip(".") == text and len(set(text)) > 3 and not text.isdigit()
    ),
    st.sampled_from(["MAIL FROM:<{}@example.org>", "550 <{}@example.org> no", "{}@example.org", '"{}"@example.org x']),
)
def test_no_local_part_gets_through(local: str, form: str) -> None:
    out = _seen("domain-only").text(form.format(local)).lower()
    if local.lower() not in form.format("").lower():
        assert local.lower() not in out


@pytest.mark.parametrize(
    "text",
    [
        "a" * 100_000,
        '"' * 100_000,
        "<" * 100_000,
        "a@" * 50_000,
        "%40" * 30_000,
        "=40" * 30_000,
        "@a," * 30_000,
        "x " * 50_000,
    ],
)
def test_time_is_linear(text: str) -> None:
    begin = time.process_time()
    _seen().text(text)
    _seen().command(f"RCPT TO:<{text}")
    _seen().command(f"RCPT TO:<x@y.example> {text}")
    _seen().command(f"BURL {text}")
    _seen().signing_in(text)
    assert time.process_time() - begin < 5


def test_the_newest_are_remembered_and_the_oldest_are_not() -> None:
    seen = _seen()
    for number in range(10_000):
        seen.path(Path(b"user%d" % number, b"example.org"))
    for number in range(10_000 - MOST_KNOWN + 2, 10_000):
        assert f"user{number} " not in seen.text(f"550 user{number} unknown")
    assert seen.text("550 user1 unknown") == "550 user1 unknown"


def test_long_ones_take_no_more_room() -> None:
    seen = _seen()
    for number in range(100):
        seen.path(Path(b"%d-" % number + b"x" * 4000, b"example.org"))
    assert len(seen._known) + len(seen._before) < 30
