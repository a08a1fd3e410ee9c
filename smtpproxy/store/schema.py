"""The tables of a store, in SQLite and in PostgreSQL, and how an older one is made a newer one. docs/audit.md has them
column by column.

Numbers: a record's number is its place in the tree of its gateway, from 0. What refers to a record (`first`, `last`,
`id`) holds `gateway << 40 | number`; in a gateway's own store its gateway is 0. So several gateways fit into the same
tables. A session's id is its link-connect's, a mail's is that of the record at which it was over.

Times are seconds since 1970, as the records have them.

Addresses stand with the domain first, its labels from the last to the first: `org.example@alice` (`key_of`). One index
then finds an address, a domain, all domains below one, and the null reverse-path `""`. A client's address is a key that
sorts as the number it is (`client_key`): a network is one range.

A mail has what was known of its session when it was over: so every question is about one table, and each index of it
has the time behind its column, because the newest are wanted first.

    block       lines as they are, several to a row: what is proved
    subtree     hashes of 256 leaves each, whole ones only
    checkpoint  what was signed
    session, mail, recipient, mark    the index; all in it can be made again from the blocks
    sink        how far each sink has come
    meta        the rest: one value for a name
"""

from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import Final

VERSION: Final = 1
GATEWAY_SHIFT: Final = 40  # bits of a number

# A column is (name, type). Types are those that mean the same in both: BIGINT, TEXT, DOUBLE PRECISION, and BLOB, which
# is BYTEA in PostgreSQL.
TABLES: Final[dict[str, tuple[tuple[tuple[str, str], ...], tuple[str, ...]]]] = {
    # name: (columns, primary key)
    "block": (
        (
            ("first", "BIGINT"),  # number of its first line
            ("count", "BIGINT"),  # lines
            ("at", "DOUBLE PRECISION"),  # when its first line was recorded
            ("lines", "BLOB"),  # joined by LF, no LF at the end
            ("leaves", "BLOB"),  # the first 8 octets of each leaf hash: they tell which line was changed, not whether
        ),
        ("first",),
    ),
    "subtree": ((("n", "BIGINT"), ("hash", "BLOB")), ("n",)),  # of the records 256 n to 256 n + 255
    "checkpoint": (
        (
            ("size", "BIGINT"),  # records it is about: those before this number
            ("at", "DOUBLE PRECISION"),
            ("root", "BLOB"),
            ("note", "TEXT"),  # signed (C2SP signed-note), or not
            ("bridge", "BLOB"),  # hashes that lead from it to the end of its subtree, once its records are pruned
        ),
        ("size",),
    ),
    "session": (
        (
            ("id", "BIGINT"),
            ("name", "TEXT"),  # as in its records
            ("at", "DOUBLE PRECISION"),
            ("until", "DOUBLE PRECISION"),  # NULL while it goes on
            ("last", "BIGINT"),  # its last record; NULL while it goes on
            ("how", "TEXT"),  # it ended: closed, refused (never let in), lost (its worker died); NULL while it goes on
            ("listener", "TEXT"),
            ("client", "TEXT"),  # address without port
            ("server", "TEXT"),  # as recorded, host:port
            ("hello", "TEXT"),  # what the client called itself last
            ("client_tls", "TEXT"),  # TLSv1.3 …; NULL in clear
            ("server_tls", "TEXT"),
            ("identity", "TEXT"),  # authenticated as
            ("mails", "BIGINT"),
        ),
        ("id",),
    ),
    "mail": (
        (
            ("id", "BIGINT"),
            ("session", "BIGINT"),
            (
                "tx",
                "BIGINT",
            ),  # its number in the session; 0: refused at MAIL, or what stands for a session without mail
            ("at", "DOUBLE PRECISION"),  # when it was over
            ("outcome", "TEXT"),  # accepted, refused (at MAIL), server, answer, RSET, hello, another MAIL, closed; none
            ("sender", "TEXT"),  # key_of; NULL: none known
            ("size", "BIGINT"),
            ("code", "BIGINT"),  # of the last reply told about it
            (
                "verdict",
                "TEXT",
            ),  # the gravest of its exchanges: pass, rewrite, redirect, answer, discard, quarantine, hangup
            ("rule", "TEXT"),  # that said so
            ("message_id", "TEXT"),
            ("sha256", "TEXT"),
            ("client", "TEXT"),  # client_key
            ("server", "TEXT"),
            ("listener", "TEXT"),
            ("client_tls", "TEXT"),
            ("hello", "TEXT"),
            ("identity", "TEXT"),
        ),
        ("id",),
    ),
    "recipient": (
        (
            ("mail", "BIGINT"),
            ("n", "BIGINT"),
            ("address", "TEXT"),  # key_of
            ("accepted", "BIGINT"),  # 1 or 0
            ("at", "DOUBLE PRECISION"),  # its mail's
        ),
        ("mail", "n"),
    ),
    "mark": (
        (
            ("what", "TEXT"),  # rule, observed, anomaly, tag, reply (a code of 400 and above that was told)
            ("name", "TEXT"),
            ("session", "BIGINT"),
            ("mail", "BIGINT"),  # 0: of the session, outside any mail
            ("at", "DOUBLE PRECISION"),  # its mail's; or when its session ended, but not before any of its mails
            ("times", "BIGINT"),  # how often, there
        ),
        ("what", "name", "session", "mail"),
    ),
    "sink": (
        (("name", "TEXT"), ("next", "BIGINT"), ("skipped", "BIGINT"), ("detail", "TEXT")),
        ("name",),
    ),
    "meta": ((("name", "TEXT"), ("value", "TEXT")), ("name",)),
}

# name: (table, columns, condition)
INDEXES: Final[dict[str, tuple[str, str, str]]] = {
    "block_at": ("block", "at", ""),
    "session_name": ("session", "name", ""),
    "session_open": ("session", "id", "until IS NULL"),
    "mail_session": ("mail", "session", ""),
    "mail_at": ("mail", "at", ""),
    "mail_client": ("mail", "client, at", ""),
    "mail_server": ("mail", "server, at", ""),
    "mail_tls": ("mail", "client_tls, at", ""),
    "mail_sender": ("mail", "sender, at", ""),
    "mail_size": ("mail", "size, at", "size > 0"),
    "mail_code": ("mail", "code, at", "code >= 300"),
    "mail_verdict": ("mail", "verdict, at", "verdict <> 'pass'"),
    "mail_outcome": ("mail", "outcome, at", "outcome <> 'accepted'"),
    "mail_identity": ("mail", "identity, at", "identity IS NOT NULL"),
    "mail_message_id": ("mail", "message_id", "message_id IS NOT NULL"),
    "recipient_address": ("recipient", "address, at, mail", ""),
    "mark_at": ("mark", "what, name, at, session, mail", ""),
}

_WITHOUT_ROWID: Final = frozenset({"recipient", "mark"})
_INTEGERS: Final = frozenset({"block", "subtree", "checkpoint", "session", "mail"})  # their key is SQLite's rowid


def sqlite_statements() -> list[str]:
    """What makes an empty SQLite database a store."""
    made = []
    for table, (columns, key) in TABLES.items():
        if table in _INTEGERS:
            parts = [
                f"{name} INTEGER PRIMARY KEY" if (name,) == key else f"{name} {_SQLITE[kind]}" for name, kind in columns
            ]
        else:
            parts = [f"{name} {_SQLITE[kind]}" for name, kind in columns] + [f"PRIMARY KEY ({', '.join(key)})"]
        made.append(f"CREATE TABLE {table} ({', '.join(parts)}){' WITHOUT ROWID' if table in _WITHOUT_ROWID else ''}")
    for name, (table, indexed, condition) in INDEXES.items():
        made.append(f"CREATE INDEX {name} ON {table} ({indexed})" + (f" WHERE {condition}" if condition else ""))
    return made


_SQLITE: Final = {"BIGINT": "INTEGER", "TEXT": "TEXT", "DOUBLE PRECISION": "REAL", "BLOB": "BLOB"}


def key_of(address: str) -> str:
    """An address as it is indexed: the domain before the local-part, in lower case. The null reverse-path is ``."""
    local, at, domain = address.rpartition("@")
    return f"{'.'.join(domain.lower().split('.')[::-1])}@{local}" if at else address


def address_of(key: str) -> str:
    """An indexed address as people write it."""
    domain, at, local = key.partition("@")
    return f"{local}@{'.'.join(domain.split('.')[::-1])}" if at else key


@lru_cache(maxsize=4096)
def client_key(address: str) -> str:
    """A client's address as it is indexed: 4 or 6 and its hexadecimal digits. What is no IP address stays as it is."""
    try:
        ip = ip_address(address)
    except ValueError:
        return address
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return f"{ip.version}{ip.packed.hex()}"


def client_of(key: str) -> str:
    """An indexed client as people write it."""
    try:
        octets = bytes.fromhex(key[1:])
        return str(ip_address(octets)) if key[:1] == {4: "4", 16: "6"}.get(len(octets)) else key
    except ValueError:
        return key


MIGRATIONS: Final[dict[int, tuple[str, ...]]] = {}  # from a version to the next: statements, for both
