"""Postures: what each pair makes of a session, as one table; and what happens before the greeting is told, where a link
is to be encrypted by then. What a client's STARTTLS does beyond test_starttls.py is in test_postures_client.py."""

from itertools import product

import pytest

from smtpproxy.policy.judge import default_judge
from smtpproxy.session.effects import Abort, Close, PrepareTLS, StartTLS
from smtpproxy.session.postures import ClientTLS, Posture, ServerTLS
from smtpproxy.session.session import Session
from smtpproxy.session.state import TLSInfo
from smtpproxy.smtp.errors import Side
from tests.play import play
from tests.session.judges import (
    BROKEN_PLAIN,
    LOST_PLAIN,
    NOOP,
    OPEN,
    Says,
    again,
    anomalies,
    answers,
    exchanges,
    hello,
)

INFO = TLSInfo("TLSv1.3", "TLS_AES_256_GCM_SHA384")
NAME = b"proxy.example"


def posture(client: str, server: str) -> Posture:
    return Posture(ClientTLS(client), ServerTLS(server), NAME)


# ---------------------------------------------------------------------------------------------- the table of all pairs

# What becomes of a session, with a server that offers STARTTLS / that does not (a server of implicit TLS is one link,
# whatever it says). Words: links encrypted at the greeting, `c` and `s`; "offered" or "not offered" in EHLO; then what
# STARTTLS is answered, and the links encrypted after it. "no session": the greeting is never told.
TABLE = {
    ("mirror", "mirror"): ("- offered 220 cs", "- not-offered 502 -"),
    ("mirror", "upgrade"): ("s offered 220 cs", "- not-offered 502 -"),
    ("mirror", "require"): ("s offered 220 cs", "no session"),
    ("mirror", "implicit"): ("s offered 220 cs", "s offered 220 cs"),
    ("mirror", "never"): ("- not-offered 502 -", "- not-offered 502 -"),
    ("offer", "mirror"): ("- offered 220 cs", "- offered 220 c"),
    ("offer", "upgrade"): ("s offered 220 cs", "- offered 220 c"),
    ("offer", "require"): ("s offered 220 cs", "no session"),
    ("offer", "implicit"): ("s offered 220 cs", "s offered 220 cs"),
    ("offer", "never"): ("- offered 220 c", "- offered 220 c"),
    ("require", "mirror"): ("- offered 220 cs", "- offered 454 -"),
    ("require", "upgrade"): ("s offered 220 cs", "- offered 454 -"),
    ("require", "require"): ("s offered 220 cs", "no session"),
    ("require", "implicit"): ("s offered 220 cs", "s offered 220 cs"),
    ("require", "never"): ("- offered 220 c", "- offered 220 c"),
    ("implicit", "mirror"): ("cs not-offered 502 cs", "no session"),
    ("implicit", "upgrade"): ("cs not-offered 502 cs", "c not-offered 502 c"),
    ("implicit", "require"): ("cs not-offered 502 cs", "no session"),
    ("implicit", "implicit"): ("cs not-offered 502 cs", "cs not-offered 502 cs"),
    ("implicit", "never"): ("c not-offered 502 c", "c not-offered 502 c"),
    ("refuse", "mirror"): ("- not-offered 502 -", "- not-offered 502 -"),
    ("refuse", "upgrade"): ("s not-offered 502 s", "- not-offered 502 -"),
    ("refuse", "require"): ("s not-offered 502 s", "no session"),
    ("refuse", "implicit"): ("s not-offered 502 s", "s not-offered 502 s"),
    ("refuse", "never"): ("- not-offered 502 -", "- not-offered 502 -"),
    ("passthrough", "mirror"): ("- offered 220 blind", "- not-offered 502 -"),
}


class Wires:
    """A driver that does what it is asked, a server that does as it is told; and what went over each link in clear."""

    def __init__(self, wanted: Posture, *, offers: bool) -> None:
        self.session = Session(judge=default_judge(), record=lambda r: None, clock=lambda: 0.0, posture=wanted)
        self.offers = offers
        self.told = b""  # what the client was told last
        self.clear_to_client = b""
        self.clear_to_server = b""
        self.ended = False
        self.session.connected()
        if wanted.server is not ServerTLS.IMPLICIT:
            self.session.server_sent(b"220 mx\r\n")
            self.pump()
        else:
            self.pump()
            self.session.server_sent(b"220 mx\r\n")
            self.pump()

    @property
    def encrypted(self) -> str:
        """The links that are: `c`, `s`, both, or `-`; or nobody can see."""
        if self.session.opaque:
            return "blind"
        links = (("c", self.session.client), ("s", self.session.server))
        return "".join(letter for letter, peer in links if peer.tls is not None) or "-"

    def say(self, line: bytes) -> bytes:
        """A command of the client; the reply to it."""
        self.told = b""
        self.session.client_sent(line)
        self.pump()
        return self.told

    def pump(self) -> None:
        """Until nothing moves."""
        session = self.session
        while session.to_server or session.to_client or session.effects:
            octets, told = bytes(session.to_server), bytes(session.to_client)
            session.to_server.clear()
            session.to_client.clear()
            self.told += told
            self.clear_to_client += told if session.client.tls is None else b""
            self.clear_to_server += octets if session.server.tls is None else b""
            effects, session.effects = session.effects, []
            for effect in effects:
                if isinstance(effect, Close | Abort):
                    self.ended = True
                elif isinstance(effect, PrepareTLS):
                    session.tls_ready()
                elif isinstance(effect, StartTLS):
                    session.tls_done(effect.side, INFO)
            for line in octets.splitlines(keepends=True):
                session.server_sent(self.serve(line))

    def serve(self, line: bytes) -> bytes:
        """The server's reply."""
        if line.startswith(b"EHLO"):
            starttls = b"250-STARTTLS\r\n" if self.offers and self.session.server.tls is None else b""
            return b"250-mx\r\n" + starttls + b"250-AUTH PLAIN\r\n250 REQUIRETLS\r\n"
        return b"220 go\r\n" if line.startswith(b"STARTTLS") else b"250 ok\r\n"


def test_the_table_has_every_pair() -> None:
    """Passthrough goes with mirror alone: the configuration accepts no other."""
    pairs = {(client.value, server.value) for client, server in product(ClientTLS, ServerTLS)}
    assert set(TABLE) == {(c, s) for c, s in pairs if c != "passthrough" or s == "mirror"}


@pytest.mark.parametrize("offers", [True, False], ids=["server-has-it", "server-lacks-it"])
@pytest.mark.parametrize("pair", TABLE, ids="-".join)
def test_what_becomes_of_a_session(pair: tuple[str, str], offers: bool) -> None:
    """The table; and whatever it says: no password where a link that may not be in clear is, no octet in clear to a
    client of implicit TLS, no command of a client in clear to a server that must be encrypted."""
    wires = Wires(posture(*pair), offers=offers)
    wanted = TABLE[pair][0 if offers else 1]
    if wanted == "no session":
        assert wires.ended
        assert b"220" not in wires.told
    else:
        assert wires.told == b"220 mx\r\n"
        found = [wires.encrypted]
        listed = wires.say(b"EHLO me.example\r\n")
        found.append("offered" if b"STARTTLS" in listed else "not-offered")
        found.append(wires.say(b"STARTTLS\r\n")[:3].decode())
        assert " ".join([*found, wires.encrypted]) == wanted
        if wires.encrypted != "blind":
            listed = wires.say(b"EHLO me.example\r\n")
            safe = "c" in wires.encrypted and ("s" in wires.encrypted or pair[1] == "never")
            assert (b"AUTH PLAIN" in listed) is safe
            assert (b"STARTTLS" in listed) is (wanted == "- offered 454 -")
            assert b"REQUIRETLS" not in listed  # nobody is verified here
            assert wires.say(b"MAIL FROM:<a@x.example>\r\n")[:3] == (b"530" if "454" in wanted else b"250")
    if pair[0] == "implicit":
        assert wires.clear_to_client == b""
    if pair[1] in ("require", "implicit") or pair == ("implicit", "mirror"):
        assert set(wires.clear_to_server.split(b"\r\n")) <= {b"EHLO proxy.example", b"STARTTLS", b""}
    if pair[1] == "never":
        assert b"STARTTLS" not in wires.clear_to_server


# --------------------------------------------------------------------------------- our own EHLO and STARTTLS, in order

OURS = """
    S> 220 mx.example
    >S EHLO proxy.example

    S> 250-mx.example
    S> 250-SIZE 100
    S> 250 STARTTLS
    >S STARTTLS

    S> 220 go
    -> start-tls server
"""
UP = OURS + "\n    !! tls-done server\n    >C 220 mx.example\n"
PROXY_FAILED = """
    >C 421 TLS to the mail server not available, try again later
    -> abort server
    -> close client
"""
SILENT = "    -> abort server\n    -> close client\n"
demanding = pytest.mark.parametrize("server", ["upgrade", "require"])


@demanding
def test_the_greeting_is_held_until_the_servers_link_is_encrypted(server: str) -> None:
    """And then the client has the list of that link, whatever was said in clear."""
    records = play(UP + again("DSN", told=("DSN", "STARTTLS")) + NOOP, posture=posture("mirror", server))
    assert [r["verb"] for r in exchanges(records)] == ["EHLO", "STARTTLS", "GREETING", "EHLO", "NOOP"]
    assert [r["asked"] for r in exchanges(records)[:2]] == [None, None]
    event = next(r for r in records if r["kind"] == "link-tls")
    assert event["server"]["version"] == "TLSv1.3"
    assert "client" not in event or event["client"] is None


@demanding
def test_a_keyword_from_clear_is_not_offered(server: str) -> None:
    """SIZE was in the list given to us in clear (B47)."""
    play(UP + "\n    C> MAIL FROM:<a@x.example> SIZE=1\n    >C 555 Parameter not offered here\n"
        + again("DSN", told=("DSN", "STARTTLS")) + "\n    C> MAIL FROM:<a@x.example> SIZE=1\n"
        "    >C 555 Parameter not offered here\n", posture=posture("offer", server))  # fmt: skip


@pytest.mark.parametrize("listed", ["250 mx.example", "250-mx.example\n    S> 250 X-STARTTLS", "500 what", "502 no",
                                    "421 bye", "554 no", "250 STARTTLS"])  # fmt: skip
def test_a_server_that_does_not_offer_it(listed: str) -> None:
    """Upgrade goes on in clear; require, and a client of implicit TLS beside mirror, have no session."""
    script = f"\n    S> 220 mx.example\n    >S EHLO proxy.example\n\n    S> {listed}\n"
    play(script + "    >C 220 mx.example\n" + NOOP, posture=posture("mirror", "upgrade"))
    # The hello the server has heard is ours: the client's own comes first.
    first = "\n    C> MAIL FROM:<a@x.example>\n    >C 503 EHLO comes first\n"
    play(script + "    >C 220 mx.example\n" + first + NOOP + again(), posture=posture("mirror", "upgrade"))
    for client in ("mirror", "offer", "require", "refuse"):
        records = play(script + PROXY_FAILED, posture=posture(client, "require"))
        (event,) = [r for r in records if r.get("anomaly") == "tls-failed"]
        assert (event["side"], event["result"]) == ("server", "starttls-not-supported")
    for server in ("mirror", "require"):
        play(script + SILENT, posture=posture("implicit", server))


@demanding
@pytest.mark.parametrize("reply", ["454 later", "502 what", "501 no", "503 no", "554 no", "421 bye"])
def test_offered_and_then_refused(server: str, reply: str) -> None:
    """B24–B30: no clear text, not even where TLS is only wanted: somebody in between may have said so."""
    script = OURS.replace("S> 220 go\n    -> start-tls server", f"S> {reply}")
    assert "tls-failed" in anomalies(play(script + PROXY_FAILED, posture=posture("mirror", server)))
    play(script + SILENT, posture=posture("implicit", server))


@demanding
@pytest.mark.parametrize("code", [200, 221, 250, 299, 334, 354])
def test_wrong_codes_to_what_we_say(server: str, code: int) -> None:
    """B31–B36: a violation, told in place of the greeting."""
    starttls = OURS.replace("S> 220 go\n    -> start-tls server", f"S> {code} go")
    records = play(starttls + BROKEN_PLAIN, posture=posture("mirror", server))
    assert "reply-impossible" in anomalies(records)
    play(starttls + SILENT, posture=posture("implicit", server))
    if code >= 300:
        script = f"\n    S> 220 mx.example\n    >S EHLO proxy.example\n\n    S> {code} x\n"
        play(script + BROKEN_PLAIN, posture=posture("mirror", server))


@pytest.mark.parametrize("client", ["mirror", "implicit"])
@pytest.mark.parametrize("tail", [b"2", b"250 mx\r\n", b"250-mx\r\n250 AUTH PLAIN\r\n", b"\x16\x03\x03", b"220 go\r\n"])
def test_octets_behind_220_to_our_starttls(tail: bytes, client: str) -> None:
    """B37–B46 (CVE-2021-38371): in the same segment or the next, in any cut."""
    octets = b"220 go\r\n" + tail
    for cut in (1, 2, 3, 8, 9, 100):
        records: list[object] = []
        session = opened(client, "require", 2, records.append)
        for at in range(0, len(octets), cut):
            session.server_sent(octets[at : at + cut])
        assert session.closed
        assert bytes(session.to_client) == (
            b"" if client == "implicit" else b"421 The mail server broke the protocol, try again later\r\n"
        )
        assert "octets-behind-220" in str(records)
        session.tls_done(Side.SERVER, INFO)
        assert b"220" not in session.to_client


def opened(client: str, server: str, step: int, record: object = lambda r: None) -> Session:
    """A session at a step: 0 connected, 1 our EHLO said, 2 our STARTTLS said, 3 the server's handshake; with a client
    of implicit TLS then 4 the certificate, 5 the client's handshake."""
    session = Session(judge=OPEN, record=record, clock=lambda: 0.0, posture=posture(client, server))  # type: ignore[arg-type]
    session.connected()
    for octets in (b"220 mx\r\n", b"250-mx\r\n250 STARTTLS\r\n", b"220 go\r\n")[:step]:
        session.server_sent(octets)
    if step > 3:
        session.tls_done(Side.SERVER, INFO)
    if step > 4:
        session.tls_ready()
    return session


# -------------------------------------------------------------------------------------- what goes wrong, at each step

LOST = b"421 Connection to the mail server lost, try again later\r\n"
FAILED = b"421 TLS to the mail server not available, try again later\r\n"
STOPPED = b"421 Service shutting down, try again later\r\n"
TOO_LONG = b"421 Session open for too long, closing\r\n"
REACHED = b"421 Cannot reach the mail server, try again later\r\n"
SLOW = b"421 The mail server does not answer, try again later\r\n"
BROKE = b"421 The mail server broke the protocol, try again later\r\n"


def goes_wrong(session: Session, how: str) -> None:
    match how:
        case "server ends":
            session.server_sent(b"")
        case "server is silent":
            session.timed_out(session.patience()[0])
        case "session too long":
            session.timed_out(Side.CLIENT, "session-too-long")
        case "stop":
            session.stop()
        case "handshake fails":
            session.tls_failed("x")
        case "client lost":
            session.client_lost()
        case "server talks":
            session.server_sent(b"050 noise\r\n199 x\r\nwhat\r\n")
        case "nobody there":
            session.connect_failed("refused")
        case _:
            raise AssertionError(how)


WRONG = [
    # what happens, and what a client in clear is told of it at steps 0 to 3
    ("server ends", (LOST, LOST, LOST, LOST)),
    ("server is silent", (SLOW, SLOW, SLOW, FAILED)),
    ("session too long", (TOO_LONG, TOO_LONG, TOO_LONG, TOO_LONG)),
    ("stop", (STOPPED, STOPPED, STOPPED, STOPPED)),
    ("handshake fails", (None, None, None, FAILED)),
    ("client lost", (b"", b"", b"", b"")),
    ("server talks", (BROKE, BROKE, BROKE, BROKE)),
    ("nobody there", (REACHED,)),
]


@demanding
@pytest.mark.parametrize(("how", "told"), WRONG, ids=[row[0] for row in WRONG])
def test_what_goes_wrong_before_the_greeting(server: str, how: str, told: tuple[bytes | None, ...]) -> None:
    """421 in place of the greeting, once, and both links close; never the greeting, never clear text instead."""
    for step, wanted in enumerate(told):
        session = opened("mirror", server, step)
        session.to_server.clear()
        goes_wrong(session, how)
        if wanted is None:  # nobody waits for a handshake here
            assert not session.closed
            assert not session.to_client
            continue
        assert bytes(session.to_client) == wanted
        assert not session.to_server
        assert_ended(session)


def assert_ended(session: Session) -> None:
    assert session.closed
    ends = [effect for effect in session.effects if isinstance(effect, Close | Abort)]
    assert sum(effect.side is Side.CLIENT for effect in ends) == 1
    before = bytes(session.to_client)
    for how in ("server ends", "handshake fails", "stop", "client lost", "server talks"):
        goes_wrong(session, how)
    session.tls_ready()
    session.tls_done(Side.SERVER, INFO)
    session.tls_done(Side.CLIENT, INFO)
    session.connected()
    session.drain()
    assert bytes(session.to_client) in (before, b"")
    assert [effect for effect in session.effects if isinstance(effect, Close | Abort)] == ends


@pytest.mark.parametrize("server", ["upgrade", "require", "mirror"])
@pytest.mark.parametrize("how", [row[0] for row in WRONG])
@pytest.mark.parametrize("step", range(6))
def test_a_client_of_implicit_tls_is_told_nothing_in_clear(server: str, how: str, step: int) -> None:
    """RFC 8314 §3: no 421, no noise, no greeting: its link closes, and that is all."""
    if how == "nobody there" and step:
        return
    session = opened("implicit", server, step)
    assert not session.wants(Side.CLIENT)
    session.to_server.clear()
    goes_wrong(session, how)
    assert not session.to_client
    assert not session.to_server
    if how == "handshake fails" and step < 3:
        assert not session.closed
        return
    assert_ended(session)


def test_what_was_not_told_is_not_on_record_as_told() -> None:
    """The client of implicit TLS heard nothing of the 421."""
    records = play("\n    S> 220 mx.example\n    >S EHLO proxy.example\n\n    S> 250 mx.example\n" + SILENT,
        posture=posture("implicit", "require"))  # fmt: skip
    (greeting,) = [r for r in records if r.get("verb") == "GREETING"]
    assert greeting["told"] is None


@pytest.mark.parametrize("greeting", ["421 busy", "450 later", "554 no"])
def test_a_refused_greeting(greeting: str) -> None:
    """Told as it came, inside TLS where that is implicit; and nothing more is said in clear to a server that may not be
    in clear (the client of a 554 may talk on, RFC 5321 §3.1)."""
    closing = "    -> close server\n    -> close client\n"
    ends = "" if greeting.startswith("554") else closing
    open_end = NOOP if greeting.startswith("554") else ""
    plain = f"\n    S> {greeting}\n    >C {greeting}\n"
    for client, server in (("mirror", "mirror"), ("mirror", "upgrade"), ("offer", "never"), ("require", "mirror")):
        play(plain + ends + open_end, posture=posture(client, server))
    for client in ("mirror", "require", "refuse"):
        play(plain + closing, posture=posture(client, "require"))
    inside = f"""
        S> {greeting}
        -> prepare-tls client

        !! tls-ready
        -> start-tls client

        !! tls-done client
        >C {greeting}
    """
    for server in ("mirror", "require"):
        play(inside + closing, posture=posture("implicit", server))
    for server in ("upgrade", "never"):
        play(inside + ends + open_end, posture=posture("implicit", server))


def test_a_refused_greeting_of_an_encrypted_server_leaves_the_session() -> None:
    """Its link is as it should be: 554 leaves the choice to the client."""
    for client in ("mirror", "refuse"):
        play("\n    !! connected\n    -> start-tls server\n\n    !! tls-done server\n\n    S> 554 no\n    >C 554 no\n"
            + NOOP, posture=posture(client, "implicit"))  # fmt: skip


@demanding
def test_the_client_waits_and_is_not_read(server: str) -> None:
    """What it says before the greeting stays where it is; what was read too early is answered behind the greeting."""
    play(
        """
        C> EHLO me.example
        S> 220 mx.example
        >S EHLO proxy.example

        S> 250-mx.example
        S> 250 STARTTLS
        >S STARTTLS

        S> 220 go
        -> start-tls server

        !! tls-done server
        >C 220 mx.example
        >S EHLO me.example

        S> 250 mx.example
        >C 250-mx.example
        >C 250 STARTTLS
    """.replace("        S> 220 mx", "\n        S> 220 mx"),
        posture=posture("mirror", server),
    )
    for step in range(4):
        assert not opened("mirror", server, step).wants(Side.CLIENT)


@demanding
def test_a_client_that_has_ended_its_side_is_not_waited_for(server: str) -> None:
    """It is told the greeting, and both links close: also where the greeting comes behind a handshake."""
    for step in range(4):
        session = opened("mirror", server, 0)
        for at, octets in enumerate((b"220 mx\r\n", b"250-mx\r\n250 STARTTLS\r\n", b"220 go\r\n")):
            if at == step:
                session.client_sent(b"")
            session.server_sent(octets)
        if step == 3:
            session.client_sent(b"")
        assert not session.closed
        session.tls_done(Side.SERVER, INFO)
        assert session.to_client == b"220 mx\r\n"
        assert session.closed


@demanding
def test_drain_before_the_greeting(server: str) -> None:
    """What is in flight is the greeting: told when all is well, then 421."""
    end = "    >C 421 Service shutting down, try again later\n    -> close server\n    -> close client\n"
    play("\n    !! drain\n" + UP + end, posture=posture("mirror", server))
    play(OURS + "\n    !! drain\n\n    !! tls-done server\n    >C 220 mx.example\n" + end,
         posture=posture("mirror", server))  # fmt: skip


@demanding
def test_drain_before_the_greeting_inside_implicit_tls(server: str) -> None:
    """The same, behind the client's handshake."""
    play(OURS + """
        !! drain

        !! tls-done server
        -> prepare-tls client

        !! tls-ready
        -> start-tls client

        !! tls-done client
        >C 220 mx.example
        >C 421 Service shutting down, try again later
        -> close server
        -> close client
    """, posture=posture("implicit", server))  # fmt: skip


def test_our_own_words_are_on_record_as_ours() -> None:
    """Nobody asked, nobody was told; and rules about EHLO or STARTTLS are not asked about them."""
    rules = Says({"EHLO": answers("550 no"), "STARTTLS": answers("550 no")}, {"EHLO": answers("550 no")})
    records = play(UP, rules=rules, posture=posture("mirror", "require"))
    for record in exchanges(records)[:2]:
        assert record["asked"] is None
        assert record["told"] is None
        assert "rule" not in record


# ---------------------------------------------------------------------------------------------- implicit TLS (RFC 8314)

IMPLICIT = "\n    !! connected\n    -> start-tls server\n\n    !! tls-done server\n"


def test_a_server_of_implicit_tls() -> None:
    """The handshake comes first; nothing is said, and nothing heard, before it."""
    play(IMPLICIT + hello("DSN", told=("DSN", "STARTTLS")) + NOOP, posture=posture("mirror", "implicit"))
    play("\n    !! connected\n    -> start-tls server\n\n    !! tls-failed validation-failure\n" + PROXY_FAILED,
        posture=posture("mirror", "implicit"))  # fmt: skip
    records = play("\n    !! connected\n    -> start-tls server\n\n    S> 2\\\n" + BROKEN_PLAIN,
                   posture=posture("mirror", "implicit"))  # fmt: skip
    assert "octets-behind-220" in anomalies(records)
    play("\n    !! connected\n    -> start-tls server\n\n    !! end server\n" + LOST_PLAIN,
        posture=posture("mirror", "implicit"))  # fmt: skip
    session = opened("refuse", "implicit", 0)
    assert not session.wants(Side.SERVER)
    assert session.patience() == (Side.SERVER, 60.0)


def test_connected_begins_nothing_elsewhere() -> None:
    """Nor where the session is over by then."""
    for server in ("mirror", "upgrade", "require", "never"):
        play("\n    !! connected\n\n    .. open\n", posture=posture("mirror", server))
    play("\n    !! stop\n    >C 421 Service shutting down, try again later\n    -> close server\n"
        "    -> close client\n\n    !! connected\n", posture=posture("mirror", "implicit"))  # fmt: skip


def test_the_result_of_a_failed_handshake_is_on_record() -> None:
    """RFC 8460 §4.3."""
    records = play(OURS + "\n    !! tls-failed certificate-host-mismatch\n" + PROXY_FAILED,
                   posture=posture("mirror", "require"))  # fmt: skip
    (event,) = [r for r in records if r.get("anomaly") == "tls-failed"]
    assert (event["side"], event["result"]) == ("server", "certificate-host-mismatch")


INSIDE = """
    -> prepare-tls client

    !! tls-ready
    -> start-tls client

    !! tls-done client
    >C 220 mx.example
"""


def test_a_client_of_implicit_tls() -> None:
    """The server's link, the certificate, the client's handshake, the greeting; then a session like any other."""
    play(OURS + "\n    !! tls-done server\n" + INSIDE + again("DSN") + NOOP, posture=posture("implicit", "mirror"))
    play("\n    S> 220 mx.example\n" + INSIDE + again("DSN") + NOOP, posture=posture("implicit", "never"))
    play(IMPLICIT + "\n    S> 220 mx.example\n" + INSIDE + again("STARTTLS", "DSN", told=("DSN",)) + NOOP,
         posture=posture("implicit", "implicit"))  # fmt: skip


@pytest.mark.parametrize("early", [b"EHLO evil.example\r\nMAIL FROM:<evil@x.example>\r\n", b"E", b"\x16\x03\x01"])
@pytest.mark.parametrize("step", range(6))
def test_octets_before_implicit_tls_never_act_inside_it(early: bytes, step: int) -> None:
    """I5: a driver that read what it should not have: a violation, and nothing of it reaches the server."""
    records: list[object] = []
    session = opened("implicit", "require", step, records.append)
    session.client_sent(early)
    for octets in (b"220 mx\r\n", b"250-mx\r\n250 STARTTLS\r\n", b"220 go\r\n")[step:]:
        session.server_sent(octets)
    session.tls_done(Side.SERVER, INFO)
    session.tls_ready()
    session.tls_done(Side.CLIENT, INFO)
    assert session.closed
    assert b"evil" not in session.to_server
    assert not session.to_client
    assert "octets-behind-starttls" in str(records)


def test_a_client_hello_is_no_early_talk() -> None:
    """Where TLS is implicit the client talks first."""
    for client, early in (("implicit", False), ("mirror", True)):
        records: list[object] = []
        session = Session(judge=OPEN, record=records.append, clock=lambda: 0.0, posture=posture(client, "never"))
        session.early_talk()
        session.server_sent(b"220 mx\r\n")
        session.tls_ready()
        session.tls_done(Side.CLIENT, INFO)
        assert session.to_client == b"220 mx\r\n"
        assert any("early-talk" in getattr(getattr(r, "exchange", None), "anomalies", ()) for r in records) is early


def test_results_out_of_turn_change_nothing() -> None:
    """A driver that reports what nobody asked for."""
    for pair in (("implicit", "require"), ("mirror", "upgrade"), ("offer", "implicit")):
        session = opened(*pair, 0)
        session.effects.clear()
        session.tls_ready()
        session.tls_done(Side.CLIENT, INFO)
        assert (session.client.tls, bytes(session.to_client), session.effects) == (None, b"", [])
    session = opened("mirror", "mirror", 1)
    session.tls_ready()
    session.tls_done(Side.SERVER, INFO)
    session.tls_failed("x")
    assert session.server.tls is None
    assert session.to_client == b"220 mx\r\n"
