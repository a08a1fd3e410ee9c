"""What is told before anything is started: missing libraries, files that can't be used, what is hardly meant."""

import time
from pathlib import Path
from typing import Any

import pytest

from smtpproxy.config import Config, Mistake
from smtpproxy.net import looking
from smtpproxy.net.looking import look, look_at_rules
from smtpproxy.policy.load import load_rules
from smtpproxy.tls.authority import create
from tests.net.tls_rig import ALTERNATE, BAD, NAME, good, put, table
from tests.tls.maker import Made, made, root

HERE = ("listener", 0, "tls")
WORD = b"correct horse battery"


def _config(folder: Path, tables: dict[str, Any] | None = None, **tls: Any) -> Config:
    listener = {"name": "mx", "listen": "127.0.0.1:0", "server": "mx.example", "tls": table(folder, **tls)}
    return Config.model_validate({"listener": [listener], **(tables or {})})


def _ca(folder: Path, **more: str) -> dict[str, Any]:
    return {"ca": {"directory": str(folder / "ca"), **more}}


def _only(config: Config) -> Mistake:
    (mistake,) = look(config)
    return mistake


def test_nothing_is_wrong_with_what_is_good(tmp_path: Path) -> None:
    create(tmp_path / "ca", "Test", 100)
    put(tmp_path, "ours.pem", good())
    for more in ({}, {"certificates": ()}, {"verify": "dane"}, {"verify": "mta-sts", "policy_domain": "example"}):
        ours = {"chain": str(tmp_path / "ours.pem")}
        assert list(look(_config(tmp_path, _ca(tmp_path), client_certificate=ours, **more))) == []


@pytest.mark.parametrize(
    ("verify", "lacking"), [("dane", ["dns"]), ("mta-sts", ["dns", "h11"]), ("mta-sts", ["h11"]), ("verify", [])]
)
def test_a_missing_extra_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verify: str, lacking: list[str]
) -> None:
    monkeypatch.setattr(looking, "find_spec", lambda name: None if name in lacking else object())
    found = list(look(_config(tmp_path, verify=verify, policy_domain="example")))
    assert found == [
        Mistake(
            (*HERE, "verify"),
            f'verify = "{verify}" needs more, and {" and ".join(lacking)} can\'t be imported',
            f'`pip install "smtpproxy[{verify}]"`',
        )
    ] * bool(lacking)


# ------------------------------------------------------------------------------------------------- given certificates


@pytest.mark.parametrize(
    ("which", "why"),
    [
        (BAD["expired"], "expired at 20"),
        (BAD["not yet valid"], "is not valid before 20"),
        (BAD["CN only"], "has no name in subjectAltName: no client that verifies takes it"),
        (made(NAME, root(), names=(NAME,), until=13.5), ", within 14 days"),
    ],
)
def test_a_certificate_that_is_used_and_does_no_good_is_a_warning(tmp_path: Path, which: Made, why: str) -> None:
    mistake = _only(_config(tmp_path, certificates=[{"chain": put(tmp_path, "one.pem", which)}]))
    assert (mistake.place, mistake.severity) == ((*HERE, "certificates", 0, "chain"), "warning")
    assert mistake.message.startswith(f"{tmp_path}/one.pem ")
    assert why in mistake.message


def test_a_client_certificate_needs_no_name_but_time(tmp_path: Path) -> None:
    ours = {"chain": put(tmp_path, "ours.pem", BAD["CN only"])}
    assert list(look(_config(tmp_path, client_certificate=ours))) == []
    put(tmp_path, "ours.pem", BAD["expired"])
    mistake = _only(_config(tmp_path, client_certificate=ours))
    assert (mistake.place, mistake.severity) == ((*HERE, "client_certificate", "chain"), "warning")


@pytest.mark.parametrize("name", ["certificates", "client_certificate"])
@pytest.mark.parametrize("apart", [False, True])
def test_a_key_that_others_can_read_is_a_warning(tmp_path: Path, name: str, apart: bool) -> None:
    """The file it is in, which is the chain's where no other is named; its group may read it."""
    which = made(ALTERNATE, root(), names=(ALTERNATE,))
    pair: dict[str, Any] = {"chain": put(tmp_path, "one.pem", which, key=not apart)}
    (tmp_path / "one.pem").chmod(0o644)
    if apart:
        pair["key"] = str(tmp_path / "one.key")
        (tmp_path / "one.key").write_bytes(which.key_pem)
    secret = tmp_path / ("one.key" if apart else "one.pem")
    secret.chmod(0o604)
    given: dict[str, Any] = {name: [pair] if name == "certificates" else pair}
    config = _config(tmp_path, **given)
    mistake = _only(config)
    assert (mistake.severity, mistake.place[-1]) == ("warning", "key" if apart else "chain")
    assert mistake.message.endswith(f"key {secret}: is open to others (mode 0604)")
    assert mistake.expected == f"`chmod 600 {secret}`"
    secret.chmod(0o640)
    assert list(look(config)) == []


# ---------------------------------------------------------------------------------------------------------------- CA


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o620])
@pytest.mark.parametrize("given", [False, True])
def test_a_key_of_the_ca_that_others_can_read(tmp_path: Path, mode: int, given: bool) -> None:
    """The signing process refuses it; where there is nothing to sign, that harms nobody."""
    create(tmp_path / "ca", "Test", 100)
    (tmp_path / "ca" / "ca.key").chmod(mode)
    mistake = _only(_config(tmp_path, _ca(tmp_path), **({} if given else {"certificates": ()})))
    assert (mistake.place, mistake.severity) == (("ca", "directory"), "warning" if given else "error")
    assert mistake.message == f"private key of the CA {tmp_path}/ca/ca.key: is open to others (mode {mode:04o})"


def test_the_key_of_the_ca_is_not_opened(tmp_path: Path) -> None:
    create(tmp_path / "ca", "Test", 100)
    (tmp_path / "ca" / "ca.key").write_text("no key")
    (tmp_path / "word").write_bytes(b"")
    (tmp_path / "word").chmod(0o600)
    config = _config(tmp_path, _ca(tmp_path, passphrase_file=str(tmp_path / "word")), certificates=())
    assert list(look(config)) == []


def test_a_passphrase_that_others_can_read(tmp_path: Path) -> None:
    create(tmp_path / "ca", "Test", 100, WORD)
    (tmp_path / "word").write_bytes(WORD)
    config = _config(tmp_path, _ca(tmp_path, passphrase_file=str(tmp_path / "word")), certificates=())
    for mode in (0o604, 0o660):
        (tmp_path / "word").chmod(mode)
        mistake = _only(config)
        assert (mistake.place, mistake.severity) == (("ca", "passphrase_file"), "error")
    (tmp_path / "word").chmod(0o440)  # as service managers hand them out
    assert list(look(config)) == []


@pytest.mark.parametrize(
    ("days", "severity", "why"),
    [(87, "warning", "within 14 days"), (101, "error", "expired at"), (-2, "error", "is not valid before")],
)
def test_a_ca_that_is_out_of_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: float, severity: str, why: str
) -> None:
    create(tmp_path / "ca", "Test", 100)
    config = _config(tmp_path, _ca(tmp_path), certificates=())
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now + 86_400 * days)
    mistake = _only(config)
    assert (mistake.place, mistake.severity) == (("ca", "directory"), severity)
    assert why in mistake.message


def test_a_directory_that_is_no_ca(tmp_path: Path) -> None:
    found = list(look(_config(tmp_path, _ca(tmp_path))))
    assert {mistake.place for mistake in found} == {("ca", "directory")}
    (tmp_path / "ca").mkdir()
    for name in ("ca.key", "ca.crt"):
        (tmp_path / "ca" / name).touch(0o600)
    mistake = _only(_config(tmp_path, _ca(tmp_path), certificates=()))
    assert (mistake.place, mistake.severity) == (("ca", "directory"), "error")


# ------------------------------------------------------------------------------------------------------------- rules


@pytest.mark.parametrize(
    ("client", "then", "warned"),
    [
        ("require", '"deny"', True),
        ("require", '{ answer = "454 4.7.0 not today" }', True),
        ("require", '"allow"', False),
        ("offer", '"deny"', False),
        ("implicit", '"deny"', False),
    ],
)
def test_a_client_that_must_say_what_a_rule_refuses(tmp_path: Path, client: str, then: str, warned: bool) -> None:
    path = tmp_path / "rules.toml"
    path.write_text(f'\n[[rule]]\nname = "no-tls"\nwhy = "why"\nextension = "STARTTLS"\nthen = {then}\n')
    loaded = load_rules([path])
    assert loaded.ok, loaded.problems
    problems = list(look_at_rules(_config(tmp_path, client=client), loaded.rules))
    assert [(one.file, one.line, one.severity) for one in problems] == [(str(path), 2, "warning")] * warned
    if warned:
        assert 'rule "no-tls": refuses STARTTLS, and listener "mx" has client = "require"' in str(problems[0])
    assert list(look_at_rules(_config(tmp_path, client=client), load_rules([]).rules)) == []


KEEPING = """
[[rule]]
name = "keeps"
why = "why"
on = "content"
{what}
"""


@pytest.mark.parametrize(
    "what",
    [
        'then = { quarantine = "accept" }',
        'then = [{ tag = "odd" }, { quarantine = { answer = "554 5.7.1 Held" } }]',
        'mode = "observe"\nthen = { quarantine = "refuse" }',
    ],
)
def test_a_rule_that_keeps_mails_needs_a_quarantine(tmp_path: Path, what: str) -> None:
    path = tmp_path / "rules.toml"
    path.write_text(KEEPING.format(what=what))
    rules = load_rules([path]).rules
    (problem,) = look_at_rules(_config(tmp_path), rules)
    assert (problem.file, problem.line, problem.severity) == (str(path), 2, "error")
    assert 'rule "keeps": keeps mails in the quarantine, and the configuration has none' in str(problem)
    assert list(look_at_rules(_config(tmp_path, {"quarantine": {"directory": "q"}}), rules)) == []
    assert list(look_at_rules(Config.model_validate({}), rules)) == []  # rules that are looked at by themselves


# ------------------------------------------------------------------------------------------------------ match blocks


def _with_block(folder: Path, **block: Any) -> Config:
    tables = {"match": [{"name": "few", "clients": ["192.0.2.0/24"], **block}]}
    return _config(folder, tables)


def test_what_a_block_says_of_tls_is_looked_at_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "one.pem", BAD["expired"])
    (tmp_path / "own.pem").write_text("no certificate")
    tls = {"certificates": [{"chain": str(tmp_path / "one.pem")}], "roots": str(tmp_path / "own.pem")}
    found = list(look(_with_block(tmp_path, tls=tls)))
    assert [(one.place, one.severity) for one in found] == [
        (("match", 0, "tls", "certificates", 0, "chain"), "warning"),
        (("match", 0, "tls", "roots"), "error"),
    ]
    monkeypatch.setattr(looking, "find_spec", lambda name: None)
    assert _only(_with_block(tmp_path, tls={"verify": "dane"})).place == ("match", 0, "tls", "verify")


def test_rules_of_a_block_are_looked_at_beside_what_is_for_its_clients(tmp_path: Path) -> None:
    (tmp_path / "no.toml").write_text('[[rule]]\nname = "no"\nwhy = "x"\nextension = "STARTTLS"\nthen = "deny"\n')
    rules = load_rules([tmp_path / "no.toml"], shipped=False).rules
    tls = {"client": "require"}
    config = _with_block(tmp_path, tls=tls)
    assert len(list(look_at_rules(config, rules))) == 1
    assert list(look_at_rules(config, rules, "few")) == []
    config = _with_block(tmp_path, tls=tls, rules=["no.toml"])
    assert list(look_at_rules(config, rules)) == []
    assert len(list(look_at_rules(config, rules, "few"))) == 1
