"""Mails as a table in a Parquet file, read back by DuckDB."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from smtpproxy.inquiry import parquet
from smtpproxy.inquiry.exporting import Mail
from tests.inquiry.awkward import all_of, of, sessions
from tests.inquiry.mails import varied

duckdb = pytest.importorskip("duckdb", reason="pip install 'smtpproxy[export]'")


def read(path: Path) -> tuple[list[tuple[str, str]], list[dict[str, Any]]]:
    """Columns with their types, and the rows in order; moments as microseconds since 1970."""
    moments = {column.name for column in parquet.COLUMNS if column.type.startswith("TIMESTAMP")}
    with duckdb.connect() as database:
        told = database.execute(f"DESCRIBE SELECT * FROM '{path}'").fetchall()
        names = [name for name, *_ in told]
        chosen = ", ".join(f"epoch_us({name})" if name in moments else name for name in names)
        rows = database.execute(f"SELECT {chosen} FROM '{path}'").fetchall()
    return [(name, kind) for name, kind, *_ in told], [dict(zip(names, row, strict=True)) for row in rows]


def as_read(mail: Mail) -> dict[str, Any]:
    """A row as it should come back."""
    row = parquet.row(mail)
    for column in parquet.COLUMNS:
        if column.type.startswith("TIMESTAMP") and row[column.name] is not None:
            moment = datetime.fromisoformat(row[column.name])
            row[column.name] = round(moment.timestamp() * 1_000_000)
    return row


def test_every_column_of_every_mail(tmp_path: Path) -> None:
    varied(tmp_path / "store").close()
    found = all_of(tmp_path / "store")
    parquet.write(found, tmp_path / "mails.parquet")
    columns, rows = read(tmp_path / "mails.parquet")
    assert columns == [(column.name, column.type) for column in parquet.COLUMNS]
    assert rows == [as_read(mail) for mail in found]
    (one,) = (row for row in rows if row["message_id"] == "<one@example.org>")
    assert (one["mail"], one["tls"], one["octets"]) == ("Ann@sub.example.org", "TLSv1.3", 3_000_000)
    assert one["rcpt"] == ["bob@example.org", "carl@deep.sub.example.org"]
    assert any(row["rcpt_refused"] for row in rows)
    assert any(row["anomalies"] for row in rows)
    assert [path.name for path in tmp_path.iterdir() if path.name != "store"] == ["mails.parquet"]


@pytest.mark.parametrize("which", sessions())
def test_awkward_ones(tmp_path: Path, which: str) -> None:
    found = of(tmp_path / "store", *sessions()[which])
    parquet.write(found, tmp_path / "it's one.parquet")
    _, rows = read(tmp_path / "it's one.parquet".replace("'", "''"))
    assert rows == [as_read(mail) for mail in found]
    (row,) = rows
    assert (row["mail"] is None) == (which.startswith("erased") or row["outcome"] == "none")
    assert bool(row["erased"]) == (which.startswith("erased") or which == "nobody and nowhere")


def test_a_table_of_nothing(tmp_path: Path) -> None:
    parquet.write([], tmp_path / "none.parquet")
    columns, rows = read(tmp_path / "none.parquet")
    assert (len(columns), rows) == (len(parquet.COLUMNS), [])


def test_it_is_there_once_whole(tmp_path: Path) -> None:
    """What was there before stays until then, and nothing is left beside it."""
    path = tmp_path / "mails.parquet"
    path.write_text("before")
    (mail,) = of(tmp_path / "store", *sessions()["IPv6"])

    def broken() -> Iterator[Mail]:
        yield mail
        assert path.read_text() == "before"
        raise RuntimeError("gone")

    with pytest.raises(RuntimeError, match="gone"):
        parquet.write(broken(), path)
    assert path.read_text() == "before"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["mails.parquet", "store"]
    parquet.write([mail], path)
    assert len(read(path)[1]) == 1
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_duckdb_can_not_do_is_an_error_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = parquet.COLUMNS[0]._replace(type="INTEGER")
    monkeypatch.setattr(parquet, "COLUMNS", (wrong, *parquet.COLUMNS[1:]))
    mails = of(tmp_path / "store", *sessions()["IPv6"])
    with pytest.raises(OSError, match="DuckDB: "):
        parquet.write(mails, tmp_path / "mails.parquet")
    assert [one.name for one in tmp_path.iterdir()] == ["store"]
