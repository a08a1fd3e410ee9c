"""The tables of the record: `[audit]`, and in it its sinks (sinks.py)."""

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from smtpproxy.config.sinks import OTelConfig, PostgresConfig, SyslogConfig, mistakes
from smtpproxy.config.values import (
    FilePathOrNone,
    Mistake,
    Octets,
    OctetsOrNone,
    Table,
    setting,
    wrong_together,
)

OnFull = Literal["wait", "refuse"]
Addresses = Literal["clear", "pseudonym", "domain-only"]


class AuditConfig(Table):
    """`[audit]`: the record of everything that was asked, sent, got and told. docs/audit.md is about it."""

    file: str = setting(
        "-",
        "a file of JSON lines, or `-` for standard output; empty for neither, where there is a store",
        "a service manager or container collects it there",
        path=True,
    )
    store: FilePathOrNone = setting(
        "",
        "the directory of the store: what `smtpproxy audit` searches, shows and proves. It is made if its parent is"
        " there, and must belong to who the workers are. Empty: none",
        "records are kept nowhere that was not said",
        path=True,
    )
    key: FilePathOrNone = setting(
        "",
        "the key that checkpoints of the store are signed with (`smtpproxy audit key init`). Empty: they are not"
        " signed, and who can write the store can make another one of it",
        "a key is made by who keeps its other half",
        path=True,
    )
    on_full: OnFull = setting(
        "wait",
        "when the record can't be written, because the disk is full, or the store too far behind: mail waits until it"
        " can, or MAIL is refused with 451 4.3.1. `refuse` wants a store",
        "senders notice neither, if it is over soon",
    )
    durable: bool = setting(
        False,
        "a mail is told 250 only once its record is on the disk, not just written. Wants a store; costs a sync a turn",
        "the record outlives any crash of the proxy all the same; this is about power failures",
    )
    queue: Octets = setting(
        2**30, "octets of the record that may wait for the store, before `on_full` is done", "a day of a small gateway"
    )
    checkpoint_records: Annotated[int, Field(gt=0, le=100_000)] = setting(
        10_000, "records after which a checkpoint is made", "a second of a busy one"
    )
    checkpoint_seconds: Annotated[float, Field(gt=0, le=3600)] = setting(
        30.0, "seconds after which one is made, if there is a new record", "recent enough"
    )
    keep: Annotated[int, Field(ge=0, le=36_500)] = setting(
        0,
        "days after which the records of the store are pruned, once an hour; what remains is proved as before. 0: only"
        " `smtpproxy audit prune` does",
        "nothing is erased that nobody said",
    )
    keep_size: OctetsOrNone = setting(
        0, "octets of the store beyond which the oldest records are pruned, once an hour. 0: no such bound", "as `keep`"
    )
    rotate_size: OctetsOrNone = setting(
        0,
        "octets after which `file` is moved away, as `file.1`, `file.2` and on, the highest the newest, and begun anew."
        " 0: never; logrotate and a reload do it as well",
        "who has logrotate wants no second one",
    )
    rotate_age: Annotated[float, Field(ge=0, allow_inf_nan=False)] = setting(
        0.0, "seconds after which that is done, too. 0: never", "as `rotate_size`"
    )
    pseudonym_key: FilePathOrNone = setting(
        "",
        'the key of pseudonyms (`smtpproxy audit pseudonym-key init`), for listeners with `addresses = "pseudonym"`',
        "who has it can tell who is meant",
        path=True,
    )
    auditor: FilePathOrNone = setting(
        "",
        "the public key (`smtpproxy audit auditor-key init`) that transcripts are encrypted to before they are written."
        " Empty: they are not",
        "a rule has to ask for transcripts first",
        path=True,
    )

    postgres: PostgresConfig = PostgresConfig()
    syslog: Annotated[tuple[SyslogConfig, ...], Field(strict=False)] = ()
    otel: Annotated[tuple[OTelConfig, ...], Field(strict=False)] = ()

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        wrong_together(list(_mistakes(self)))
        return self


_WANT_STORE = ("key", "durable", "keep", "keep_size")


def _mistakes(audit: AuditConfig) -> Iterator[Mistake]:
    yield from mistakes(audit.postgres, audit.syslog, audit.otel)
    if audit.store:
        return
    if not audit.file:
        yield Mistake(
            ("file",), "there is neither a file nor a store: nothing would be on record", "a file, or a store"
        )
    wanting = [key for key in _WANT_STORE if getattr(audit, key)]
    wanting += [key for key in ("syslog", "otel") if getattr(audit, key)]
    if audit.postgres.address:
        wanting.append("postgres")
    if audit.on_full == "refuse":
        wanting.append("on_full")
    for key in wanting:
        yield Mistake(
            (key,), f"`{key}` is about the store, and there is none", 'e.g. store = "/var/lib/smtpproxy/audit"'
        )
    if (audit.rotate_size or audit.rotate_age) and audit.file == "-":
        key = "rotate_size" if audit.rotate_size else "rotate_age"
        yield Mistake(
            (key,), "standard output can't be rotated", 'a file, e.g. file = "/var/log/smtpproxy/audit.jsonl"'
        )
