"""Mails as a table in a Parquet file, made by DuckDB: an extra, imported when it is wanted.

The mails go to a temporary file first, as JSON, and DuckDB makes the table of that: neither has more than a part of it
in memory. The file appears under its name when it is whole, and nobody else can read it, nor what it is made of.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

from smtpproxy.inquiry import exporting
from smtpproxy.inquiry.exporting import Mail
from smtpproxy.inquiry.wording import moment_text

MEMORY: Final = "512MB"  # that DuckDB takes


class Column(NamedTuple):
    """A column: its name, its type in DuckDB, what it has."""

    name: str
    type: str
    source: str


COLUMNS: Final = (
    Column("ended", "TIMESTAMP WITH TIME ZONE", "when it was over"),
    Column("number", "BIGINT", "of the record at which it was"),
    Column("gateway", "BIGINT", "in a database of several; else 0"),
    Column("session", "VARCHAR", "the session"),
    Column("session_began", "TIMESTAMP WITH TIME ZONE", "when that began"),
    Column("session_ended", "TIMESTAMP WITH TIME ZONE", "when that ended; nothing while it goes on"),
    Column("session_how", "VARCHAR", "and how: `closed`, `refused`, `lost`"),
    Column("tx", "INTEGER", "the transaction in it; 0: refused at MAIL, or no mail"),
    Column("outcome", "VARCHAR", "as `audit search` has it"),
    Column("code", "SMALLINT", "of the last reply"),
    Column("verdict", "VARCHAR", "the gravest thing rules did"),
    Column("rule", "VARCHAR", "whose verdict it is"),
    Column("mail", "VARCHAR", "the reverse-path; empty is `<>`"),
    Column("rcpt", "VARCHAR[]", "recipients that were accepted"),
    Column("rcpt_refused", "VARCHAR[]", "and those that were not"),
    Column("octets", "BIGINT", "of the content"),
    Column("message_id", "VARCHAR", "Message-ID, as it came"),
    Column("sha256", "VARCHAR", "of the content"),
    Column("client", "VARCHAR", "the client's address"),
    Column("server", "VARCHAR", "the server"),
    Column("listener", "VARCHAR", "the listener"),
    Column("tls", "VARCHAR", "of the client's link"),
    Column("server_tls", "VARCHAR", "of the server's link"),
    Column("hello", "VARCHAR", "what the client called itself"),
    Column("identity", "VARCHAR", "whom it logged in as"),
    Column("rules", "VARCHAR[]", "rules that acted"),
    Column("observed", "VARCHAR[]", "rules that would have"),
    Column("anomalies", "VARCHAR[]", "anomalies"),
    Column("tags", "VARCHAR[]", "tags that rules put on"),
    Column("erased", "VARCHAR[]", "what was there and was erased: `client`, `sender`, `recipient`"),
)


def row(mail: Mail) -> dict[str, Any]:
    """A mail by the names of the columns."""
    found, session = mail.found, mail.session
    return {
        "ended": moment_text(found.at),
        "number": exporting.number_of(mail),
        "gateway": exporting.gateway_of(mail),
        "session": found.session,
        "session_began": moment_text(session.began),
        "session_ended": None if session.ended is None else moment_text(session.ended),
        "session_how": session.how,
        "tx": found.tx,
        "outcome": found.outcome,
        "code": found.code or None,
        "verdict": found.verdict,
        "rule": found.rule,
        "mail": found.sender,
        "rcpt": exporting.recipients(mail, accepted=True),
        "rcpt_refused": exporting.recipients(mail, accepted=False),
        "octets": found.size or None,
        "message_id": found.message_id,
        "sha256": found.sha256,
        "client": found.client or None,
        "server": found.server,
        "listener": found.listener,
        "tls": found.tls,
        "server_tls": session.server_tls,
        "hello": found.hello,
        "identity": found.identity,
        "rules": exporting.marks(mail, "rule"),
        "observed": exporting.marks(mail, "observed"),
        "anomalies": exporting.marks(mail, "anomaly"),
        "tags": exporting.marks(mail, "tag"),
        "erased": exporting.erased(mail),
    }


def write(mails: Iterable[Mail], path: Path) -> None:
    """Make the file.

    Raises:
        ImportError: DuckDB is not installed.
        OSError: the file can't be written.
    """
    import duckdb

    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise OSError(f"DuckDB takes names in UTF-8 only: {str(path)!r}") from None
    with TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as directory:
        lines = Path(directory) / "mails.json"
        with lines.open("w", encoding="utf-8") as file:
            for mail in mails:
                file.write(json.dumps(row(mail)) + "\n")
        new = Path(directory) / "new.parquet"
        new.touch(0o600, exist_ok=False)  # before there is anything in it
        with duckdb.connect(config={"memory_limit": MEMORY, "temp_directory": directory}) as database:
            columns = ", ".join(f"'{column.name}': '{column.type}'" for column in COLUMNS)
            try:
                database.execute(
                    f"COPY (SELECT * FROM read_json({_quoted(lines)}, format = 'newline_delimited',"  # noqa: S608 - ours
                    f" columns = {{{columns}}}, maximum_object_size = 67108864))"
                    f" TO {_quoted(new)} (FORMAT parquet, COMPRESSION zstd, USE_TMP_FILE false)"
                )
            except duckdb.Error as error:
                raise OSError(f"DuckDB: {error}") from error
        with new.open("rb") as file_:
            os.fsync(file_.fileno())
        os.replace(new, path)


def _quoted(path: Path) -> str:
    text = str(path).replace("'", "''")
    return f"'{text}'"
