"""Kinds of values in smtpproxy.toml, and how each is read: what is wrong with one is said by who knows the kind.

A value that is wrong raises what `wrong` makes: the message, what was expected, the nearest right ones. `load` tells it
with its place. What is wrong with several values together is a `Mistake` for each, raised at once by `wrong_together`.
"""

import ipaddress
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from smtpproxy.policy.toml import KeyPath, Severity, nearest_sizes, parse_size, shown

_LONGEST_NAME = 254  # RFC 1035 §3.1, as text, with a dot at the end
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9_-]*[A-Za-z0-9])?)*\.?")
_ENDPOINT = re.compile(r"(?:\[(?P<v6>[^\[\]]*)\]|(?P<host>[^:\[\]]*))(?::(?P<port>[0-9]{1,5}))?")
_LITERAL = re.compile(r"\[(?:IPv6:(?P<v6>[0-9A-Fa-f:.]+)|(?P<v4>[0-9.]+))\]")
_LISTENER_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
_ACCOUNT = re.compile(r"[0-9]{1,10}|[A-Za-z_][A-Za-z0-9_.-]*\$?")  # as useradd(8) has it, and more
_INTERFACE = re.compile(r"[^\s/:\"\\*]{1,15}")  # dev_valid_name of Linux (IFNAMSIZ), and nothing nft reads otherwise
_LONGEST_SOCKET = 107  # unix(7): sun_path, with a NUL at the end

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A host, by name or address, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_endpoint(text: str, *, port: int = 25) -> Endpoint:
    """`"host:port"`, `"[v6]:port"` or `"host"`, which then is at `port`.

    Raises:
        ValueError: it is none of these.
    """
    found = _ENDPOINT.fullmatch(text)
    if found is None:
        hint = f"; an IPv6 address stands in brackets: [{text}]" if _is_v6(text) else ""
        raise ValueError(f"{shown(text)} is not host:port{hint}")
    host = found["host"] if found["v6"] is None else found["v6"]
    if not (_is_v6(host) if found["v6"] is not None else _is_host(host)):
        raise ValueError(f"{shown(host)} is not a host" if host else f"{shown(text)} names no host")
    number = int(found["port"]) if found["port"] else port
    if number > 65_535:
        raise ValueError(f"{number} is not a port")
    return Endpoint(host, number)


def is_address(text: str) -> bool:
    """An IPv4 or IPv6 address, and no name."""
    return _is_v6(text) or (_is_host(text) and text.rpartition(".")[2].isdigit())


def _is_host(text: str) -> bool:
    """A name, or an IPv4 address: what ends in a number is one or is nothing (RFC 1123 §2.1)."""
    if text.removesuffix(".").rpartition(".")[2].isdigit():
        try:
            ipaddress.IPv4Address(text)
        except ValueError:
            return False
    return len(text) <= _LONGEST_NAME and _HOST.fullmatch(text) is not None


def _is_v6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def wrong(message: str, expected: str, near: Sequence[str] = ()) -> PydanticCustomError:
    context = {"message": message, "expected": expected, "nearest": tuple(near)}
    return PydanticCustomError("smtpproxy", "{message}", context)


def wrong_missing(key: str, expected: str) -> PydanticCustomError:
    """Something must be said, and only sometimes: it is missing like what must always be said."""
    context = {"message": f"{key} is missing", "expected": expected, "nearest": ()}
    return PydanticCustomError("smtpproxy_missing", "{message}", context)


class Mistake(NamedTuple):
    """What is wrong at a place, seen from elsewhere: from the whole of a table, or from the files it names. A warning
    is about what is valid and hardly meant."""

    place: KeyPath
    message: str
    expected: str = ""
    severity: Severity = "error"
    nearest: tuple[str, ...] = ()


def wrong_together(mistakes: Iterable[Mistake]) -> None:
    """Raises for all of them, if there are any; their places are within the table that is being checked."""
    if found := tuple(mistakes):
        raise PydanticCustomError("smtpproxy_together", "settings that do not go together", {"mistakes": found})


def _listen(value: object) -> Endpoint:
    try:
        return parse_endpoint(_string(value, '"0.0.0.0:25"'))
    except ValueError as error:
        raise wrong(
            str(error), 'e.g. "127.0.0.1:2525", "[::]:25" for all of IPv6, "localhost:0" for any free port'
        ) from None


def _server(value: object) -> Endpoint:
    try:
        endpoint = parse_endpoint(_string(value, '"mx.example:25"'))
    except ValueError as error:
        raise wrong(str(error), 'e.g. "mx.example:25", "192.0.2.1", "[2001:db8::1]:2525"') from None
    if not endpoint.port:
        raise wrong("a server is not at port 0", 'e.g. "mx.example:25"')
    return endpoint


def _resolver(value: object) -> Endpoint:
    expected = 'e.g. "127.0.0.1", "192.0.2.1:5353", "[2001:db8::1]:53"'
    try:
        endpoint = parse_endpoint(_string(value, '"127.0.0.1"'), port=53)
    except ValueError as error:
        raise wrong(str(error), expected) from None
    if not is_address(endpoint.host):
        raise wrong(f"{shown(endpoint.host)} is not an address, and it is the resolver that knows them", expected)
    if not endpoint.port:
        raise wrong("a resolver is not at port 0", expected)
    return endpoint


def parse_network(text: str) -> Network:
    """`"192.0.2.0/24"`, `"2001:db8::/32"`, or an address, which is a network of one.

    Raises:
        ValueError: it is none; the text names the one that was perhaps meant.
    """
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"{shown(text)} is not a network") from None
    if isinstance(network, ipaddress.IPv6Network) and "%" in text:
        raise ValueError(f"{shown(text)} is not a network: it has an interface in it")
    address, _, bits = text.partition("/")
    meant = network
    mapped = network.network_address.ipv4_mapped if isinstance(network, ipaddress.IPv6Network) else None
    if mapped is not None and network.prefixlen >= 96:  # nobody is seen by such an address
        meant = ipaddress.IPv4Network((mapped, network.prefixlen - 96))
    elif bits and not bits.isdecimal():  # a netmask; ipaddress takes several kinds of them
        pass
    elif ipaddress.ip_address(address) == network.network_address:
        return network
    raise ValueError(f"{text} is no network; {meant} is")


def _network(value: object) -> Network:
    expected = 'e.g. "192.0.2.0/24", "2001:db8::/32", "192.0.2.7"'
    try:
        return parse_network(_string(value, '"192.0.2.0/24"'))
    except ValueError as error:
        raise wrong(str(error), expected) from None


def _interface(value: str) -> str:
    if not _INTERFACE.fullmatch(value) or value in (".", ".."):
        raise wrong(f"{shown(value)} is not the name of an interface", 'e.g. "eth0", as `ip link` tells them')
    return value


def _account(value: str) -> str:
    if value and not _ACCOUNT.fullmatch(value):
        raise wrong(f"{shown(value)} is neither the name of an account nor its number", 'e.g. "smtpproxy"')
    return value


def _socket_path(value: str) -> str:
    if not _file_or_none(value):
        return value
    if not value.startswith("/"):
        raise wrong(f"{shown(value)} is not an absolute path", 'e.g. "/run/smtpproxy/control"')
    if len(os.fsencode(value)) > _LONGEST_SOCKET:
        raise wrong(f"{shown(value)} is too long for a socket", f"at most {_LONGEST_SOCKET} octets")
    return value


def _string(value: object, expected: str) -> str:
    if not isinstance(value, str):
        raise wrong(f"{shown(value)} is not a string", f"e.g. {expected}")
    return value


def _octets(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return parse_size(value)
    except ValueError as error:
        raise wrong(str(error), 'a size, e.g. "25 MiB"', nearest_sizes(value)) from None


def _listener_name(value: str) -> str:
    if not _LISTENER_NAME.fullmatch(value):
        raise wrong(f"{shown(value)} is not a name", 'a name such as "inbound": a-z, 0-9 and -')
    return value


def _file(value: str) -> str:
    if not value or "\0" in value:
        raise wrong(f"{shown(value)} names no file", "the path of a file")
    return value


def _file_or_none(value: str) -> str:
    return _file(value) if value else value


def _host_name(value: str) -> str:
    if value and (not _is_host(value) or is_address(value)):
        raise wrong(f"{shown(value)} is not a domain", 'e.g. "mx.example"; what is not ASCII as A-labels: "xn--…"')
    return value


def _host_or_address(value: str) -> str:
    if value and not (_is_host(value) or _is_v6(value)):
        raise wrong(f"{shown(value)} is not a host", 'e.g. "mx.example", "192.0.2.1", "2001:db8::1"')
    return value


def _hello(value: str) -> str:
    if value and not is_hello(value):
        raise wrong(
            f"{shown(value)} is not what EHLO may say", 'e.g. "proxy.example", "[192.0.2.1]", "[IPv6:2001:db8::1]"'
        )
    return value


def is_hello(text: str) -> bool:
    """A domain or an address literal (RFC 5321 §4.1.3)."""
    found = _LITERAL.fullmatch(text)
    if found is None:
        return _is_host(text) and not is_address(text) and not text.endswith(".")
    return _is_v6(found["v6"]) if found["v6"] else is_address(found["v4"])


ListenEndpoint = Annotated[Endpoint, BeforeValidator(_listen)]
ServerEndpoint = Annotated[Endpoint, BeforeValidator(_server)]
ResolverEndpoint = Annotated[Endpoint, BeforeValidator(_resolver)]
FilePath = Annotated[str, AfterValidator(_file)]
FilePathOrNone = Annotated[str, AfterValidator(_file_or_none)]
HostName = Annotated[str, AfterValidator(_host_name)]
HostOrAddress = Annotated[str, AfterValidator(_host_or_address)]
Hello = Annotated[str, AfterValidator(_hello)]
ListenerName = Annotated[str, AfterValidator(_listener_name)]
NetworkValue = Annotated[Network, BeforeValidator(_network)]
Interface = Annotated[str, AfterValidator(_interface)]
Account = Annotated[str, AfterValidator(_account)]
SocketPath = Annotated[str, AfterValidator(_socket_path)]
Port = Annotated[int, Field(gt=0, le=65_535)]
Positive = Annotated[int, Field(gt=0, le=2**62)]
Octets = Annotated[int, BeforeValidator(_octets), Field(gt=0, le=2**62)]
OctetsOrNone = Annotated[int, BeforeValidator(_octets), Field(ge=0, le=2**62)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Table(BaseModel):
    """A table: it does not change, and knows all its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=False)


def setting(default: Any, meaning: str, why: str, *, path: bool = False, absolute: bool = False) -> Any:
    """A setting: its default (`...`: it must be said), what it means, why that default.

    `path`: it names a file or directory, or several, and is relative to the configuration file. `absolute`: it is found
    from wherever one is.
    """
    return Field(default, description=meaning, json_schema_extra={"why": why, "path": path, "absolute": absolute})
