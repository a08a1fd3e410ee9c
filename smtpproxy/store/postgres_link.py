"""The way to a PostgreSQL database: where it is, how long it may take, what is said when it can't be reached.

    postgresql://smtpproxy@db.example:5432/audit?sslmode=verify-full&gateway=mx1.example.org

That is libpq's address (TLS, several hosts, `passfile`, `service` and the rest are its parameters), with one parameter
of ours: `gateway`, whose records are meant where there are several gateways' in it.

Nothing waits for ever. Connecting has `connect_timeout`, a statement `statement_timeout`, a lock `lock_timeout`, a peer
that is gone TCP's keepalives and `tcp_user_timeout`; what the address says of these counts. A server that is there and
says nothing is beyond all of them: `within` cuts the link.

What must never happen: a password in a text. An address is a `Where`, which prints without it; what libpq says of an
address it can't read is not repeated, because it quotes it; and of what a server says only the first line is, because
the details behind it quote rows.
"""

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import unquote

import psycopg
from psycopg.adapt import Loader
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from smtpproxy.store.errors import StoreError

Connection = psycopg.Connection[tuple[Any, ...]]

PATIENCE: Final = 30.0  # seconds that something may take on a server where it should take far less
_DEFAULTS: Final = {
    "connect_timeout": "10",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
    "client_encoding": "utf8",
}
_SETTINGS: Final = {  # ms; behind these come those of the address, which count
    "TimeZone": "UTC",
    "statement_timeout": "30000",
    "lock_timeout": "10000",
    "idle_in_transaction_session_timeout": "60000",
    "jit": "off",  # many partitions make a query look expensive, and compiling it takes longer than running it
}
_GATEWAY: Final = "gateway="
_SHOWN: Final = ("user", "host", "hostaddr", "port", "dbname", "service")


class Where:
    """The address of a database.

    Attributes:
        gateway: whose records are meant; "": all, or the only one's.

    Raises:
        StoreError: it can't be read.
    """

    __slots__ = ("_address", "_parts", "gateway")

    def __init__(self, address: str) -> None:
        before, mark, query = address.partition("?")
        pairs = query.split("&") if query else []
        ours = [pair for pair in pairs if pair.startswith(_GATEWAY)]
        self._address = before + mark + "&".join(pair for pair in pairs if pair not in ours)
        self.gateway = unquote(ours[-1].removeprefix(_GATEWAY)) if ours else ""
        self._parts = _parsed(self._address)

    def __repr__(self) -> str:
        said = " ".join(f"{key}={self._parts[key]}" for key in _SHOWN if key in self._parts)
        return said + (f" gateway={self.gateway}" if self.gateway else "")

    def conninfo(self, name: str, settings: dict[str, str]) -> str:
        """For psycopg.connect alone: it has the password in it."""
        options = " ".join(f"-c {key}={value}" for key, value in {**_SETTINGS, **settings}.items())
        given = self._parts.get("options", "")
        return make_conninfo(
            self._address,
            **{key: value for key, value in _DEFAULTS.items() if key not in self._parts},
            application_name=self._parts.get("application_name", name),
            options=f"{options} {given}".strip(),
        )


def _parsed(address: str) -> dict[str, str]:
    with contextlib.suppress(psycopg.Error):  # which has the address in it, and so is nobody's cause or context
        return {key: str(value) for key, value in conninfo_to_dict(address).items()}
    raise StoreError(_UNREADABLE)


_UNREADABLE: Final = (
    "this is no address of a PostgreSQL database: postgresql://user@host:port/database?sslmode=…, with % and the"
    " hexadecimal code for what is special in a name"
)


def connect(where: Where, name: str, **settings: str) -> Connection:
    """A connection, each statement a transaction of its own until one is begun.

    Args:
        where: the database.
        name: what the server shows as who is connected.
        settings: of the server for this session.

    Raises:
        StoreError: why not, in the server's words.
    """
    try:
        connection = psycopg.connect(where.conninfo(name, settings), autocommit=True)
    except psycopg.Error as error:
        raise StoreError(f"the database ({where}) can't be reached: {words(error)}") from None
    if (encoding := connection.info.parameter_status("server_encoding")) != "UTF8":
        connection.close()
        raise StoreError(f"the database ({where}) is encoded in {encoding}; it has to be UTF8")
    connection.adapters.register_loader("numeric", _Number)
    return connection


class _Number(Loader):
    """Sums and averages, as SQLite gives them."""

    def load(self, data: Any) -> int | float:
        """An integer if it is one."""
        text = bytes(data).decode()
        return int(text) if text.lstrip("-").isdecimal() else float(text)


def words(error: psycopg.Error) -> str:
    """What the server says, in one line; what libpq says, where the server could say nothing."""
    primary = error.diag.message_primary
    if primary:
        return f"{primary} ({error.sqlstate})"
    lines = [line.strip() for line in str(error).splitlines() if line and not line.startswith("Multiple connection")]
    return "; ".join(lines) or type(error).__name__


@contextlib.contextmanager
def within(connection: Connection, seconds: float) -> Iterator[None]:
    """Whatever is done takes no longer: the link is cut then, and what waits for the server fails."""
    link = socket.socket(fileno=os.dup(connection.fileno()))
    timer = threading.Timer(seconds, _cut, (link,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        link.close()


def _cut(link: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it is gone already
        link.shutdown(socket.SHUT_RDWR)
