"""What TLS needs is made before anybody is accepted, or said in one line: exit 2 (service.py)."""

import os
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs

from smtpproxy.config import Config
from smtpproxy.net.looking import look
from smtpproxy.net.materials import KEYLOG_WARNING, MaterialError, Materials
from smtpproxy.net.privileges import Identity
from smtpproxy.net.reactor import Reactor
from smtpproxy.net.signingprocess import SignerError
from smtpproxy.tls.authority import create
from tests.net.authority_rig import Signed
from tests.net.rig import DEADLINE, Process, Store
from tests.net.tls_rig import as_client, other, put, table

ROOT = Path(__file__).resolve().parents[2]


class NoRecord:
    """A record nothing is in."""

    unsettled = False

    def settle(self) -> None:
        """As AuditLog."""

    def flush(self) -> bool:
        """As AuditLog."""
        return True


def _config(folder: Path, tables: dict[str, Any] | None = None, **tls: Any) -> Config:
    listener = {"name": "mx", "listen": "127.0.0.1:0", "server": "127.0.0.1:9", "tls": table(folder, **tls)}
    return Config.model_validate({"listener": [listener], **(tables or {})})


@asynccontextmanager
async def _materials(config: Config) -> AsyncIterator[Materials]:
    reactor = Reactor(NoRecord())
    signed = Signed(config, reactor)
    made = Materials(config, reactor, time.time, signed.signer)
    try:
        yield made
    finally:
        made.close()
        signed.close()
        reactor.close()


# ----------------------------------------------------------------------------------------------------------- the start


@pytest.mark.parametrize("there", [True, False])
async def test_the_key_log_is_for_its_owner_and_a_warning_is_told(tmp_path: Path, there: bool) -> None:
    path = tmp_path / "keys"
    if there:
        path.write_text("# of yesterday\n")
        path.chmod(0o644)
    config = _config(tmp_path, {"tls": {"keylog": str(path)}})
    async with _materials(config) as materials:
        with capture_logs() as logs:
            await materials.start()
        materials.listener(config.listeners[0])
    assert [(entry["log_level"], entry["event"]) for entry in logs] == [("warning", KEYLOG_WARNING)]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text().startswith("# of yesterday") is there


async def test_a_key_log_that_can_not_be_written(tmp_path: Path) -> None:
    async with _materials(_config(tmp_path, {"tls": {"keylog": str(tmp_path)}})) as materials:
        with capture_logs(), pytest.raises(MaterialError, match=f"the key log {tmp_path} can't be written: Is a dir"):
            await materials.start()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
async def test_the_key_log_is_for_who_the_workers_become(tmp_path: Path) -> None:
    """OpenSSL opens it by name whenever a context is made, and that is after privileges were given up."""
    path = tmp_path / "keys"
    async with _materials(_config(tmp_path, {"tls": {"keylog": str(path)}})) as materials:
        with capture_logs():
            await materials.start()
        materials.give_to(Identity(65534, 65534, ()))
    assert (path.stat().st_uid, stat.S_IMODE(path.stat().st_mode)) == (65534, 0o600)


async def test_no_key_log_no_warning(tmp_path: Path) -> None:
    async with _materials(_config(tmp_path)) as materials:
        with capture_logs() as logs:
            await materials.start()
        assert not logs


async def test_a_signer_only_where_something_is_to_be_signed(tmp_path: Path) -> None:
    create(tmp_path / "ca", "Test", 100)
    tables = {"ca": {"directory": str(tmp_path / "ca")}}
    async with _materials(_config(tmp_path, tables)) as materials:
        assert materials.signer is None
    for client in ("refuse", "passthrough"):  # nothing is shown to anybody
        async with _materials(_config(tmp_path, tables, certificates=(), client=client)) as materials:
            assert materials.signer is None
    async with _materials(_config(tmp_path, tables, certificates=())) as materials:
        assert materials.signer is not None
        await materials.start()
        materials.check()


async def test_a_key_of_the_ca_that_others_can_read(tmp_path: Path) -> None:
    create(tmp_path / "ca", "Test", 100)
    (tmp_path / "ca" / "ca.key").chmod(0o640)
    config = _config(tmp_path, {"ca": {"directory": str(tmp_path / "ca")}}, certificates=())
    with pytest.raises(SignerError, match=r"ca\.key"):
        async with _materials(config):
            pass


@pytest.mark.parametrize(
    ("setting", "value", "told"),
    [
        ("certificates", [{"chain": "bad.pem"}], "bad.pem: no certificate in it"),
        ("certificates", [{"chain": "none.pem"}], "none.pem: No such file"),
        ("client_certificate", {"chain": "bad.pem"}, "bad.pem: no certificate in it"),
        ("roots", "bad.pem", "bad.pem"),
        ("roots", "none.pem", "none.pem"),
    ],
)
@pytest.mark.parametrize("verify", ["record", "verify"])
async def test_a_file_that_can_not_be_used_is_named(
    tmp_path: Path, setting: str, value: Any, told: str, verify: str
) -> None:
    (tmp_path / "bad.pem").write_text("nothing")

    def whole(value: Any) -> Any:
        if isinstance(value, str):
            return str(tmp_path / value)
        if isinstance(value, dict):
            return {name: whole(path) for name, path in value.items()}
        return [whole(entry) for entry in value]

    config = _config(tmp_path, verify=verify, **{setting: whole(value)})
    async with _materials(config) as materials:
        with pytest.raises(MaterialError) as caught:
            materials.listener(config.listeners[0])
    assert str(caught.value).startswith("listener mx: ")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    # `smtpproxy check` says the same, and where.
    (mistake,) = look(config)
    assert str(tmp_path) in mistake.message
    assert mistake.place[:3] == ("listener", 0, "tls")
    assert setting in mistake.place


async def test_two_listeners_share_nothing(tmp_path: Path) -> None:
    """B76: not even if they are configured alike."""
    config = _config(tmp_path)
    async with _materials(config) as materials:
        first, second = (materials.listener(config.listeners[0]) for _ in range(2))
        found: list[Any] = []
        for made in (first, second):
            made.identify(b"", False, found.append)
        assert found[0].choose("").context is not found[1].choose("").context
        assert first.towards is not second.towards


async def test_who_is_asked_for_records_is_asked_while_it_runs(tmp_path: Path) -> None:
    config = _config(tmp_path, {"dns": {"servers": ["127.0.0.1:9"]}}, verify="dane")
    async with _materials(config) as materials:
        materials.listener(config.listeners[0])
        with trio.move_on_after(0.05):
            await materials.run()


# ---------------------------------------------------------------------------------------------------------- the service


def _serve(folder: Path, *options: str) -> tuple[int, list[str]]:
    """The exit code, and what it said."""
    command = [sys.executable, "-m", "smtpproxy", "serve", "--listen", "127.0.0.1:0", "--server", "127.0.0.1:9"]
    done = subprocess.run(
        [*command, "--audit", str(folder / "audit"), *options], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    return done.returncode, done.stderr.splitlines()


@pytest.mark.parametrize("harm", ["certificate", "no CA", "open key"])
def test_what_can_not_work_ends_it_with_2_and_says_so(tmp_path: Path, harm: str) -> None:
    if harm == "certificate":
        (tmp_path / "bad.pem").write_text("nothing")
        options, told = ("--certificate", str(tmp_path / "bad.pem")), "bad.pem: no certificate in it"
    elif harm == "no CA":
        options, told = ("--ca", str(tmp_path / "ca")), str(tmp_path / "ca")
    else:
        create(tmp_path / "ca", "Test", 100)
        (tmp_path / "ca" / "ca.key").chmod(0o644)
        options, told = ("--ca", str(tmp_path / "ca")), "ca.key"
    code, said = _serve(tmp_path, *options)
    assert code == 2
    assert told in "\n".join(said)
    assert not any("Traceback" in line or "listening" in line for line in said)
    assert len([line for line in said if told in line]) == 1


async def test_a_process_with_a_certificate_and_a_key_log(tmp_path: Path) -> None:
    """The whole program: a mail by STARTTLS, its keys in the file, the record marked."""
    store, keys, audit = Store(), tmp_path / "keys", tmp_path / "audit"
    settings = tmp_path / "smtpproxy.toml"
    settings.write_text(f'[tls]\nkeylog = "{keys}"\n')
    chain = put(tmp_path, "chain.pem", other())
    process = Process(
        store.port, audit, "--config", str(settings), "--certificate", chain, "--client-tls", "implicit",
        "--server-tls", "never", *(["--user", "nobody"] if os.geteuid() == 0 else []),
    )  # fmt: skip
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.run)
            await process.ready()
            assert KEYLOG_WARNING in process.said
            with trio.fail_after(DEADLINE):
                client = await as_client(await process.connect())
            assert client.shown == other().der
            assert (await client.reply()).startswith(b"220")
            await client.send(b"EHLO me.example\r\n")
            await client.reply()
            await client.send(b"QUIT\r\n")
            await client.rest()
            client.close()
            nursery.cancel_scope.cancel()
    finally:
        process.close()
        store.close()
    assert stat.S_IMODE(keys.stat().st_mode) == 0o600
    assert "CLIENT_TRAFFIC_SECRET_0" in keys.read_text()
    (record,) = [line for line in process.lines() if line["kind"] == "link-tls"]
    assert record["client"]["keylog"] is True
