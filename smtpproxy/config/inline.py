"""The settings of a proxy in line: `[listener.intercept]`, `[[match]]`, `[process]` and `[gateway]`.

How connections reach a listener (`mode`, `source`, `reach`) is in its own table (`tables`); what of all this can't be
meant, or would do nothing, is in `together` and `idle`.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from smtpproxy.config.tls import TLSConfig
from smtpproxy.config.values import (
    Account,
    Interface,
    ListenerName,
    NetworkValue,
    Port,
    ServerEndpoint,
    SocketPath,
    Table,
    setting,
    wrong,
)

Mode = Literal["forward", "redirect", "tproxy"]
Source = Literal["own", "client"]
Announce = Literal["none", "proxy-v1", "proxy-v2", "xclient", "xforward"]
WhenDown = Literal["bypass", "refuse", "hold"]

Networks = Annotated[tuple[NetworkValue, ...], Field(strict=False)]
Ports = Annotated[tuple[Port, ...], Field(strict=False)]

MOST_WORKERS = 1024
_SYSTEM_TABLES = {253: "default", 254: "main", 255: "local"}  # rt_tables


def _some(ports: tuple[int, ...]) -> tuple[int, ...]:
    if not ports:
        raise wrong("no port, and so nothing would be led here", "e.g. [25]")
    return ports


def _free_table(number: int) -> int:
    if number in _SYSTEM_TABLES:
        raise wrong(f"{number} is the system's own table `{_SYSTEM_TABLES[number]}`", "one that nobody else uses")
    return number


class InterceptConfig(Table):
    """`[listener.intercept]`, behind its `[[listener]]`: which connections the text of `smtpproxy nft` leads to it.

    The proxy itself does not look at it: what arrives is served.
    """

    ports: Annotated[Ports, AfterValidator(_some)] = setting(
        (25,), "where clients connect to", "mail between servers goes there, as RFC 5321 has it"
    )
    clients: Networks = setting((), "networks of clients. Empty: all", "who is on the way through this machine")
    servers: Networks = setting((), "networks of servers. Empty: all", "wherever clients want to go")
    interfaces: Annotated[tuple[Interface, ...], Field(strict=False)] = setting(
        (), "interfaces that clients are behind. Empty: all", "this machine may have only one"
    )
    when_down: WhenDown = setting(
        "refuse",
        "what clients meet while no proxy listens. `bypass`: they reach the server directly, and nothing is inspected;"
        " `refuse`: their connection is refused at once; `hold`: it is not answered, and their TCP tries again",
        "nothing goes uninspected, and a mail server that is refused keeps the mail and comes back",
    )


class MatchConfig(Table):
    """One `[[match]]`: what is different for some connections, by who the client is and where it was going.

    The first block of which all conditions hold counts, and no other. `[match.tls]`, behind its `[[match]]`, has the
    keys of `[listener.tls]`; what is not said in it is as the listener has it.
    """

    name: ListenerName = setting(..., "what the record calls it", "must be said")
    listeners: Annotated[tuple[ListenerName, ...], Field(strict=False)] = setting(
        (), "condition: names of listeners. Empty: all", "there may be only one; a block must have some condition"
    )
    clients: Networks = setting(
        (),
        "condition: networks of clients; who that is behind a load balancer, its PROXY header says. Empty: any",
        "a block must have some condition",
    )
    servers: Networks = setting(
        (),
        "condition: networks of where the client was going; with mode `forward` that is this machine, or what a load"
        " balancer says. Empty: any",
        "a block must have some condition",
    )
    ports: Ports = setting((), "condition: ports of where it was going. Empty: any", "a block must have some condition")
    unseen: bool = setting(
        False,
        "octets pass uninspected, both ways, and the record says so. Nothing but `server` and conditions can be said"
        " beside it",
        "nothing goes uninspected but by this word",
    )
    server: ServerEndpoint | None = setting(
        None,
        "where these go, in place of the listener's `server`, to whose certificate its `server_name` then no longer"
        " applies; without a port it is 25. Not said: where the others of the listener go",
        "a block changes nothing that it does not say",
    )
    rules: Annotated[tuple[str, ...], Field(strict=False)] = setting(
        (),
        "rule files and directories of them, for these connections; they hold over them",
        "a block changes nothing that it does not say",
        path=True,
    )
    tls: TLSConfig | None = None


class ProcessConfig(Table):
    """`[process]`: the processes it is made of, and who they are."""

    workers: Annotated[int, Field(ge=0, le=MOST_WORKERS)] = setting(
        0,
        "processes that serve. 0: as many as there are CPUs for this process to use",
        "one uses one CPU",
    )
    user: Account = setting(
        "",
        "who the processes that serve become once the listeners are open. Empty: whoever started it, and nobody (65534)"
        " where that was root. Key files that only root can read are then read at the start and at SIGHUP",
        "who reads the octets of strangers needs no privileges; under systemd the unit says who it is",
    )
    group: Account = setting("", "their group. Empty: that of `user`", "it is the user's own")
    control: SocketPath = setting(
        "",
        "a unix socket that `smtpproxy status` asks, for its owner alone. Empty: none",
        "nothing listens that was not asked for",
        path=True,
        absolute=True,
    )


class GatewayConfig(Table):
    """`[gateway]`: numbers of the kernel's that the text of `smtpproxy nft` uses, and `smtpproxy doctor` looks for.

    Change them where something else on this machine has them.
    """

    mark: Annotated[int, Field(gt=0, le=2**32 - 1)] = setting(
        0x25, "the mark (fwmark) of packets that are for the proxy", "any that is free"
    )
    table: Annotated[int, Field(gt=0, le=2**32 - 1), AfterValidator(_free_table)] = setting(
        2525, "the routing table that keeps packets with that mark on this machine", "any that is free"
    )
