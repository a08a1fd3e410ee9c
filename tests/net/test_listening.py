"""Listening sockets that outlive whoever accepts from them."""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from smtpproxy.config import Config
from smtpproxy.net.listening import Held, ListenError, announce, close, from_manager, gone, open_all
from smtpproxy.net.machine import printable
from smtpproxy.net.systemd import Activated


def config(*listens: str, names: str = "abcdef", **more: object) -> Config:
    """Listeners by their addresses."""
    listeners = [
        {"name": name, "listen": listen, "server": "192.0.2.1", **more}
        for name, listen in zip(names, listens, strict=False)
    ]
    return Config.model_validate({"listener": listeners})


@pytest.fixture
def held() -> Iterator[ExitStack]:
    """Closes what is pushed here."""
    with ExitStack() as stack:
        yield stack


def opened(stack: ExitStack, settings: Config, before: tuple[Held, ...] | list[Held] = ()) -> list[Held]:
    """As `open_all`; closed at the end."""
    made = open_all(settings, before)
    for one in made:
        stack.callback(close, one)
    return made


def ports(made: list[Held]) -> list[list[int]]:
    """Of each listener."""
    return [[sock.getsockname()[1] for sock in one.sockets] for one in made]


def test_each_listener_has_its_own_in_the_order_of_the_configuration(held: ExitStack) -> None:
    made = opened(held, config("127.0.0.1:0", "localhost:0", "127.0.0.1:0"))
    assert [(one.name, one.listen, one.unit) for one in made] == [
        ("a", "127.0.0.1:0", False),
        ("b", "localhost:0", False),
        ("c", "127.0.0.1:0", False),
    ]
    assert len({port for group in ports(made) for port in group}) == sum(len(one.sockets) for one in made)
    assert not any(sock.getblocking() for one in made for sock in one.sockets)


def test_what_is_held_is_kept_where_it_still_listens_there(held: ExitStack) -> None:
    """Port 0 above all: another socket would have another port. The name first, then the place alone."""
    before = opened(held, config("127.0.0.1:0", "127.0.0.1:0", "127.0.0.2:0"))
    after = opened(held, config("127.0.0.3:0", "127.0.0.1:0", "127.0.0.1:0", names="xbz"), before)
    assert after[1].sockets == before[1].sockets
    assert after[2].sockets == before[0].sockets
    assert [one.name for one in after] == ["x", "b", "z"]
    assert gone(before, after) == [before[2]]
    assert gone(after, before) == [after[0]]
    assert gone(before, before) == []


@pytest.mark.parametrize(
    ("listen", "why"),
    [
        ("192.0.2.1:2525", "can't listen on 192.0.2.1:2525: Cannot assign requested address"),
        ("no-such-host.invalid:25", "can't listen on no-such-host.invalid:25: "),
        ("a" * 64 + ".example:25", "the name is not a host's"),
    ],
)
def test_one_that_can_not_be_had_leaves_all_as_it_was(held: ExitStack, listen: str, why: str) -> None:
    before = opened(held, config("127.0.0.1:0"))
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ListenError, match=why.replace(".", r"\.")):
        open_all(config("127.0.0.1:0", "127.0.0.2:0", listen), before)
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert before[0].sockets[0].getsockname()[1]


def test_one_that_is_taken(held: ExitStack) -> None:
    (one,) = opened(held, config("127.0.0.1:0"))
    where = printable(one.sockets[0].getsockname())
    with pytest.raises(ListenError, match=f"can't listen on {where}: Address already in use"):
        open_all(config(where))


@pytest.mark.skipif(os.getuid() != 0, reason="takes CAP_NET_RAW")
@pytest.mark.parametrize("listen", ["127.0.0.1:0", "[::1]:0"])
def test_what_is_held_becomes_transparent_when_it_must(
    held: ExitStack, listen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = opened(held, config(listen))
    for _ in range(2):
        after = opened(held, config(listen, mode="tproxy"), before)
        assert after[0].sockets == before[0].sockets
    six = listen.startswith("[")
    level, option = (socket.IPPROTO_IPV6, 75) if six else (socket.SOL_IP, socket.IP_TRANSPARENT)
    assert before[0].sockets[0].getsockopt(level, option) == 1

    def refuse(sock: socket.socket) -> None:
        raise PermissionError(1, "no")

    monkeypatch.setattr("smtpproxy.net.listening.make_transparent", refuse)
    assert open_all(config(listen, mode="tproxy"), after)  # it is already, and nothing need be asked for


def test_what_may_not_become_transparent_is_an_error(held: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    before = opened(held, config("127.0.0.1:0"))

    def refuse(sock: socket.socket) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("smtpproxy.net.listening.make_transparent", refuse)
    with pytest.raises(ListenError, match="Operation not permitted"):
        open_all(config("127.0.0.1:0", mode="tproxy"), before)


def test_the_managers_sockets_are_found_by_name_address_or_how_we_had_them_kept(held: ExitStack) -> None:
    socks = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(6)]
    where = [printable(sock.getsockname()) for sock in socks]
    settings = config("0.0.0.0:25", where[2], "localhost:2525", "127.0.0.1:26")
    kept = Held("c", "localhost:2525", ()).stored_as
    assert ":" not in kept
    given = [
        Activated("a", socks[0]),
        Activated("a", socks[1]),
        Activated("unknown", socks[2]),
        Activated(kept, socks[3]),
        Activated("whose", socks[4]),
        Activated(Held("d", where[5], ()).stored_as, socks[5]),  # d listened there once
    ]
    found, strangers = from_manager(settings, given)
    assert found == [
        Held("a", "0.0.0.0:25", (socks[0], socks[1]), unit=True),
        Held("b", where[2], (socks[2],), unit=True),
        Held("c", "localhost:2525", (socks[3],)),
    ]
    assert [name for name, _ in strangers] == ["whose", given[5].name]


def test_what_is_said_of_them(held: ExitStack) -> None:
    settings = Config.model_validate(
        {
            "listener": [
                {"name": "a", "listen": "127.0.0.1:0", "server": "mx.example"},
                {"name": "b", "listen": "[::1]:0", "mode": "redirect"},
                {"name": "c", "listen": "127.0.0.2:0", "mode": "redirect", "server": "[2001:db8::1]:26"},
            ]
        }
    )
    made = opened(held, settings)
    (a,), (b,), (c,) = ports(made)
    lines = [
        f"smtpproxy: listening on 127.0.0.1:{a} (server mx.example:25)",
        f"smtpproxy: listening on [::1]:{b} (redirect)",
        f"smtpproxy: listening on 127.0.0.2:{c} (redirect, server [2001:db8::1]:26)",
    ]
    assert announce(made, settings) == lines
    assert announce(made, settings, [made[0], made[2]]) == lines[1:2]
