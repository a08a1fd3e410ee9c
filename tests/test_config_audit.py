"""The settings of the record and of its sinks: defaults, what does not go together, files, mistakes."""

from pathlib import Path

import pytest

from smtpproxy.config import Endpoint, exposed, files
from tests.test_config import LISTENER, load, mistakes

AUDIT = LISTENER + "[audit]\n"
STORE = AUDIT + 'store = "audit"\n'
SYSLOG = STORE + '[[audit.syslog]]\nname = "siem"\n'
OTEL = STORE + '[[audit.otel]]\nname = "collector"\nendpoint = "https://collector.example:4318"\n'
POSTGRES = STORE + "[audit.postgres]\n"


def test_there_is_no_store_and_no_sink(tmp_path: Path) -> None:
    audit = load(tmp_path, LISTENER).audit
    assert (audit.file, audit.store, audit.key, audit.on_full, audit.durable) == ("-", "", "", "wait", False)
    assert (audit.postgres.address, audit.syslog, audit.otel) == ("", (), ())


def test_a_store(tmp_path: Path) -> None:
    (tmp_path / "audit.key").write_text("x")
    text = STORE + 'file = ""\nkey = "audit.key"\non_full = "refuse"\ndurable = true\nqueue = "1 MiB"\nkeep = 90\n'
    audit = load(tmp_path, text + 'keep_size = "2 GiB"\n').audit
    assert (audit.store, audit.key) == (f"{tmp_path}/audit", f"{tmp_path}/audit.key")
    assert (audit.queue, audit.keep, audit.keep_size) == (2**20, 90, 2**31)


def test_a_syslog_server(tmp_path: Path) -> None:
    (one,) = load(tmp_path, SYSLOG + 'server = "logs.example"\n').audit.syslog
    assert one.server == Endpoint("logs.example", 6514)  # RFC 5425 §4.1
    assert (one.tls, one.facility, one.longest, one.personal, one.checkpoints) == (True, "mail", 8192, True, True)
    assert (one.when_down, one.skip_after, one.history) == ("keep", 3600.0, False)
    (one,) = load(tmp_path, SYSLOG + 'socket = "/dev/log"\nfacility = "local3"\nlongest = "2 KiB"\n').audit.syslog
    assert (one.server, one.socket, one.facility, one.longest) == (None, "/dev/log", "local3", 2048)


def test_a_collector(tmp_path: Path) -> None:
    (one,) = load(tmp_path, OTEL + 'traces = true\nlogs = false\nwhen_down = "skip"\n').audit.otel
    assert (one.endpoint, one.traces, one.logs, one.when_down) == (
        "https://collector.example:4318",
        True,
        False,
        "skip",
    )


def test_a_database(tmp_path: Path) -> None:
    address = "postgresql://smtpproxy@db.example/audit?sslmode=verify-full&passfile=/etc/smtpproxy/pgpass"
    assert load(tmp_path, f'{POSTGRES}address = "{address}"\n').audit.postgres.address == address


def test_the_files_they_name(tmp_path: Path) -> None:
    """All are looked for, and those with secrets in them are not to be open to others."""
    for name in ("roots.pem", "own.pem", "own.key", "headers", "pseudonyms", "auditor.pub", "audit.key"):
        (tmp_path / name).write_text("x")
        (tmp_path / name).chmod(0o644)
    tls = 'roots = "roots.pem"\nclient_certificate = { chain = "own.pem", key = "own.key" }\n'
    keys = 'key = "audit.key"\npseudonym_key = "pseudonyms"\nauditor = "auditor.pub"\n'
    text = f'{STORE}{keys}[[audit.syslog]]\nname = "siem"\nserver = "logs.example"\n{tls}'
    text += f'[[audit.otel]]\nname = "otel"\nendpoint = "https://c.example"\nheaders_file = "headers"\n{tls}'
    config = load(tmp_path, text)
    found = {(file.path.name, *map(str, file.place)) for file in files(config)}
    assert found == {
        ("audit.key", "audit", "key"),
        ("pseudonyms", "audit", "pseudonym_key"),
        ("auditor.pub", "audit", "auditor"),
        ("headers", "audit", "otel", "0", "headers_file"),
        *(
            (name, "audit", kind, "0", *place)
            for kind in ("syslog", "otel")
            for name, *place in (("own.pem", "client_certificate", "chain"), ("own.key", "client_certificate", "key"))
        ),
        *(("roots.pem", "audit", kind, "0", "roots") for kind in ("syslog", "otel")),
    }
    open_to_others = {mistake.message.partition(" ")[0] for mistake in exposed(config)}
    assert len(list(exposed(config))) == 5, open_to_others  # two client keys, headers, the store's and the pseudonyms'


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        (AUDIT + 'file = ""', "audit.file: there is neither a file nor a store: nothing would be on record"),
        (AUDIT + 'on_full = "refuse"', "audit.on_full: `on_full` is about the store, and there is none"),
        (AUDIT + "durable = true", "audit.durable: `durable` is about the store, and there is none"),
        (AUDIT + "keep = 3", "audit.keep: `keep` is about the store"),
        (
            AUDIT + 'on_full = "refused"',
            'audit.on_full: "refused" is not one of its values (expected "wait" or "refuse"',
        ),
        (AUDIT + 'rotate_size = "1 MiB"', "audit.rotate_size: standard output can't be rotated"),
        (AUDIT + "rotate_age = -1.0", "audit.rotate_age: -1.0 is too small (expected at least 0.0)"),
        (AUDIT + "rotate_age = 60.0", "audit.rotate_age: standard output can't be rotated"),
        (AUDIT + 'stor = "x"', 'audit: unknown key "stor" (nearest: store)'),
        (AUDIT + '[audit.postgres]\naddress = "postgresql://db/x"', "`postgres` is about the store, and there is none"),
        (AUDIT + '[[audit.syslog]]\nname = "a"\nserver = "b"', "`syslog` is about the store"),
        (SYSLOG, 'audit.syslog 1 "siem": `server` or `socket`: neither is said (expected one of them)'),
        (SYSLOG + 'server = "a"\nsocket = "/dev/log"', "`server` or `socket`: both are said"),
        (SYSLOG + 'server = "a:0"', 'audit.syslog 1 "siem": server: a server is not at port 0'),
        (SYSLOG + 'server = "a b"', '"a b" is not a host'),
        (SYSLOG + "server = 1", "1 is not a string"),
        (SYSLOG + 'socket = "log"', '"log" is not an absolute path'),
        (SYSLOG + 'server = "a"\nfacility = "mial"', '(expected "kern" or "user" or "mail"'),
        (SYSLOG + 'server = "a"\nlongest = 100', "100 is too small (expected at least 1024)"),
        (SYSLOG + 'server = "a"\ntls = false\nserver_name = "b"', "server_name: it is about TLS, and there is none"),
        (SYSLOG + 'socket = "/dev/log"\nserver_name = "b"', "server_name: it is about TLS, and there is none"),
        (
            SYSLOG + 'server = "a"\n[[audit.syslog]]\nname = "siem"\nserver = "b"',
            'audit.syslog 2 "siem": name: two sinks are called "siem" (expected a name of its own for each)',
        ),
        (SYSLOG.replace("siem", "postgresql") + 'server = "a"', 'two sinks are called "postgresql"'),
        (OTEL + 'when_down = "wait"', '"wait" is not one of its values (expected "keep" or "skip")'),
        (OTEL + "logs = false", "neither logs nor traces are sent"),
        (
            OTEL.replace("https:", "http:") + 'client_certificate = { chain = "x" }',
            "certificate: it is about TLS, and there is",
        ),
        (OTEL.replace("https://", ""), "is not the address of a collector (expected e.g."),
        (OTEL.replace(":4318", ":x"), "is not the address of a collector"),
        (OTEL.replace("collector.example", "user:hunter2@collector.example"), "there is more in it than where the"),
        (OTEL.replace(":4318", "/?token=hunter2"), "secrets are for `headers_file`"),
        (POSTGRES + 'address = "mysql://x"', "it is not the address of a PostgreSQL database"),
        (POSTGRES + 'address = "postgresql://[x"', "it is not the address of a PostgreSQL database"),
        (
            POSTGRES + 'address = "postgresql://a:hunter2@b/c"',
            "there is a password in it, and this is no place",
        ),
        (POSTGRES + 'address = "postgresql://b/c?password=hunter2"', "there is a password in it"),
    ],
)
def test_mistakes(tmp_path: Path, text: str, mistake: str) -> None:
    (only,) = mistakes(tmp_path, text)
    assert mistake in only
    assert "hunter2" not in only


def test_pseudonyms_want_a_key(tmp_path: Path) -> None:
    (only,) = mistakes(tmp_path, LISTENER + 'addresses = "pseudonym"\n')
    assert "addresses: pseudonyms are made with a key, and none is named" in only
