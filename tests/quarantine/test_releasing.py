"""Releasing a mail: where to, to whom, and once."""

import threading
from pathlib import Path
from typing import Any

import pytest

from smtpproxy.quarantine.folders import Folders
from smtpproxy.quarantine.releasing import Way, envelope_of, release, server_of
from smtpproxy.quarantine.sending import NotSent
from smtpproxy.quarantine.store import NEW, RELEASED, QuarantineError, Store
from tests.quarantine.kept import CONTENT, FACTS, NOW, RELEASED_ONE, keep, made, record, tree
from tests.quarantine.talking import talking


@pytest.fixture
def here(tmp_path: Path) -> Path:
    return tmp_path / "quarantine"


def test_a_mail_goes_to_whom_it_was_for_and_counts_as_released(here: Path) -> None:
    with talking() as server:
        kept = made(here)
        name = keep(kept, server=f"127.0.0.1:{server.port}", parameters={"RET": "HDRS"})
        found = release(kept, name, Way(), NOW)
        assert found is not None
        assert found.sent.reply == "250 2.0.0 queued as 1"
        assert release(kept, name, Way(), NOW) is None
    assert server.lines[1:4] == [
        b"MAIL FROM:<a@x.example> SIZE=%d RET=HDRS" % len(CONTENT),
        b"RCPT TO:<b@y.example>",
        b"RCPT TO:<c@y.example>",
    ]
    assert len(server.contents) == 1
    assert tree(here) == RELEASED_ONE
    assert record(here, name, "released")["released"] == [
        {
            "at": "2025-11-23T10:15:00Z",
            "server": f"127.0.0.1:{server.port}",
            "rcpt": ["b@y.example", "c@y.example"],
            "reply": "250 2.0.0 queued as 1",
        }
    ]


def test_elsewhere_to_others_and_again(here: Path) -> None:
    with talking() as server:
        kept = made(here)
        name = keep(kept)
        where = ("127.0.0.1", server.port)
        assert release(kept, name, Way(where, ("d@y.example",)), NOW)
        assert release(kept, name, Way(where, again=True), NOW)
    assert [line for line in server.lines if b"RCPT" in line] == [
        b"RCPT TO:<d@y.example>",
        b"RCPT TO:<b@y.example>",
        b"RCPT TO:<c@y.example>",
    ]
    assert [one["rcpt"] for one in record(here, name, "released")["released"]] == [
        ["d@y.example"],
        ["b@y.example", "c@y.example"],
    ]


@pytest.mark.parametrize("verb", [b"RCPT", b".", b"QUIT"])
def test_it_moves_only_behind_the_250(here: Path, verb: bytes) -> None:
    with talking({verb: b"450 4.2.0 Not now\r\n"}) as server:
        kept = made(here)
        name = keep(kept, server=f"127.0.0.1:{server.port}")
        if verb == b"QUIT":
            release(kept, name, Way(), NOW)
        else:
            with pytest.raises(NotSent, match="450"):
                release(kept, name, Way(), NOW)
        assert kept.find(name).state == (RELEASED if verb == b"QUIT" else NEW)


def test_two_at_once_do_not_send_it_twice(here: Path) -> None:
    """Each with its own store, as two processes have."""
    with talking() as server:
        name = keep(made(here), server=f"127.0.0.1:{server.port}")
        said: list[Any] = []

        def one() -> None:
            try:
                said.append(release(Store(Folders(here)), name, Way(), NOW))
            except QuarantineError as error:
                said.append(str(error))

        threads = [threading.Thread(target=one) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(server.contents) == 1
    others = [what for what in said if isinstance(what, str) or what is None]
    assert len(others) == 7
    assert set(others) <= {None, f"{name} is being released or erased by another"}


def test_what_was_sent_and_can_not_be_moved_is_told(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise QuarantineError("no room")

    with talking() as server:
        kept = made(here)
        name = keep(kept, server=f"127.0.0.1:{server.port}")
        monkeypatch.setattr(Store, "release", fails)
        with pytest.raises(NotSent, match=r"it was sent \(250 2.0.0 queued as 1\), and does not count as released"):
            release(kept, name, Way(), NOW)


@pytest.mark.parametrize("tls", [{"client": "TLSv1.3", "server": "TLSv1.3"}, {"client": "TLSv1.3"}, None, "x"])
def test_what_came_encrypted_does_not_go_in_clear(here: Path, tls: Any) -> None:
    with talking() as server:
        kept = made(here)
        name = keep(kept, server=f"127.0.0.1:{server.port}", tls=tls)
        if isinstance(tls, dict) and "server" in tls:
            with pytest.raises(NotSent, match="its link was encrypted when the mail came"):
                release(kept, name, Way(), NOW)
        assert release(kept, name, Way(encryption="never"), NOW)


@pytest.mark.parametrize(
    ("text", "found"),
    [("mx.example:25", ("mx.example", 25)), ("[2001:db8::1]:2525", ("2001:db8::1", 2525)), ("192.0.2.1:1", None)],
)
def test_the_server_of_a_record(text: str, found: tuple[str, int] | None) -> None:
    assert server_of({"server": text}) == (found or ("192.0.2.1", 1))


@pytest.mark.parametrize("text", ["", "mx.example", ":25", "mx:x", None, 25, "mx:²"])
def test_a_record_that_names_no_server(text: Any) -> None:
    with pytest.raises(NotSent, match="names no server: say --server"):
        server_of({"server": text})


@pytest.mark.parametrize("more", [{"mail": None}, {"rcpt": []}, {"rcpt": "b@y.example"}, {"mail": 3}])
def test_a_record_without_envelope(more: dict[str, Any]) -> None:
    with pytest.raises(NotSent, match="from whom and to whom"):
        envelope_of({**FACTS, **more})


def test_an_odd_record_gives_what_there_is() -> None:
    odd = {"mail": "", "parameters": [1], "rcpt_parameters": {"b@y.example": 3}}
    assert envelope_of(odd, ["b@y.example"]) == ("", ["b@y.example"], {}, {"b@y.example": {}})
