"""TLS towards the server: what each `verify` asks of it, (B61-B75)."""

import ssl
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from smtpproxy.config import TLSConfig
from smtpproxy.net.towards import Attempt, Towards
from smtpproxy.net.trust import Knowledge
from smtpproxy.tls.channel import Channel, HandshakeError
from smtpproxy.tls.contexts import CertificateError, for_client
from smtpproxy.tls.dane import TLSA
from smtpproxy.tls.mtasts import Mode, Policy
from smtpproxy.tls.verdict import DANE_REQUIRED, HOST_MISMATCH, Verdict
from tests.net.tls_rig import BAD, NAME, good, put
from tests.tls.maker import NOW, Made, made, root, weak_rsa

NOTHING = Knowledge()
BETWEEN = made("Between", root(), ca=True)
LONG = made(NAME, BETWEEN, names=(NAME,))  # its chain has two


class Clock:
    """The time of day."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        """Unix seconds."""
        return self.now


def _towards(folder: Path, verify: str = "record", name: str = NAME, **more: Any) -> Towards:
    options = {"roots": put(folder, "roots.pem", root(), key=False), "policy_domain": "example"}
    wall = more.pop("wall", time.time)
    config = TLSConfig.model_validate({**options, "verify": verify, **more})
    return Towards(config, name, trust=None, keylog="", wall=wall)


def _shake(attempt: Attempt, serves: ssl.SSLContext) -> Channel:
    """The handshake; HandshakeError as the proxy sees it."""
    client, server = attempt.channel, Channel(serves, server_side=True)
    done = client.handshake()
    served = False
    while not (done and served):
        octets = client.outgoing()
        if not served:
            served = server.handshake(octets)
        back = server.outgoing()
        if not done:
            done = client.handshake(back)
        elif back:
            client.receive(back)
    client.receive(server.outgoing())
    return server


def _try(towards: Towards, which: Made, knowledge: Knowledge = NOTHING) -> Verdict:
    attempt = towards.begin(knowledge)
    chain = which.pem + (BETWEEN.pem if which is LONG else b"")
    _shake(attempt, for_client(chain, which.key_pem))
    return towards.look(attempt)


# ------------------------------------------------------------------------------------------------------------- verify


@pytest.mark.parametrize("why", BAD)
def test_record_takes_all_and_says_why_not(tmp_path: Path, why: str) -> None:
    verdict = _try(_towards(tmp_path), BAD[why])
    assert not verdict.verified
    assert verdict.result
    assert verdict.why


@pytest.mark.parametrize("which", [good(), LONG])
@pytest.mark.parametrize("verify", ["record", "verify"])
def test_who_is_good_is_verified(tmp_path: Path, verify: str, which: Made) -> None:
    assert _try(_towards(tmp_path, verify), which) == Verdict(True)


@pytest.mark.parametrize("why", BAD)
def test_verify_refuses_within_the_handshake_for_the_same_reason(tmp_path: Path, why: str) -> None:
    recorded = _try(_towards(tmp_path), BAD[why])
    with pytest.raises(HandshakeError) as caught:
        _try(_towards(tmp_path, "verify"), BAD[why])
    told = Towards.refused(caught.value)
    assert told.result == recorded.result
    assert told.why


def test_an_address_is_looked_for_and_not_asked_for(tmp_path: Path) -> None:
    """RFC 6066 §3: SNI is for names."""
    towards = _towards(tmp_path, "verify", "127.0.0.1")
    assert towards.sni == ""
    attempt = towards.begin(NOTHING)
    attempt.channel.handshake()
    assert b"127.0.0.1" not in attempt.channel.outgoing()
    assert _try(towards, good()).verified


def test_the_zone_of_an_address_is_no_part_of_it(tmp_path: Path) -> None:
    """It says by which interface, and nothing to anybody else (RFC 4007 §11)."""
    local = made(NAME, root(), names=("fe80::1",))
    for verify in ("record", "verify"):
        assert _try(_towards(tmp_path, verify, "fe80::1%lo"), local).verified


def test_what_is_not_about_a_certificate_keeps_its_words() -> None:
    error = HandshakeError("wrong version number", "validation-failure")
    assert Towards.refused(error) is error


# ---------------------------------------------------------------------------------------------------------------- dane


def _tlsa(which: Made) -> TLSA:
    key = which.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return TLSA(3, 1, 1, sha256(key).digest())


def test_dane_takes_the_key_it_is_told_of_and_no_other(tmp_path: Path) -> None:
    towards = _towards(tmp_path, "dane")
    which = BAD["expired"]  # usage 3: no date, no name, no root
    assert _try(towards, which, Knowledge(records=(_tlsa(which),))).verified
    with pytest.raises(HandshakeError) as caught:
        _try(towards, good(), Knowledge(records=(_tlsa(which),)))
    assert caught.value.result


def test_dane_without_records_is_not_even_tried(tmp_path: Path) -> None:
    with pytest.raises(HandshakeError, match="no records") as caught:
        _towards(tmp_path, "dane").begin(Knowledge(result=DANE_REQUIRED, why="no records"))
    assert caught.value.result == DANE_REQUIRED


def test_dane_by_an_anchor_within_the_chain(tmp_path: Path) -> None:
    anchor = Knowledge(records=(TLSA(2, 0, 1, sha256(BETWEEN.der).digest()),))
    towards = _towards(tmp_path, "dane")
    assert _try(towards, LONG, anchor).verified
    with pytest.raises(HandshakeError):
        _try(towards, good(), anchor)


# ------------------------------------------------------------------------------------------------------------- mta-sts


def _policy(mode: Mode, *hosts: str) -> Knowledge:
    return Knowledge(policy=Policy(mode, hosts, 86_400))


def test_mta_sts_enforced(tmp_path: Path) -> None:
    towards = _towards(tmp_path, "mta-sts")
    assert _try(towards, good(), _policy(Mode.ENFORCE, NAME)) == Verdict(True)
    with pytest.raises(HandshakeError, match="MTA-STS policy") as caught:
        towards.begin(_policy(Mode.ENFORCE, "mx.elsewhere.example"))
    assert caught.value.result == HOST_MISMATCH
    with pytest.raises(HandshakeError):
        _try(towards, BAD["self-signed"], _policy(Mode.ENFORCE, NAME))


def test_mta_sts_tested_or_unknown_is_recorded(tmp_path: Path) -> None:
    towards = _towards(tmp_path, "mta-sts")
    assert _try(towards, good(), _policy(Mode.TESTING, NAME)).verified
    assert _try(towards, good(), _policy(Mode.TESTING, "mx.elsewhere.example")).result == HOST_MISMATCH
    assert not _try(towards, BAD["self-signed"], _policy(Mode.TESTING, NAME)).verified
    unknown = Knowledge(result="sts-policy-fetch-error", why="no answer")
    assert _try(towards, good(), unknown) == Verdict(True)
    assert towards.policy(unknown) == "sts-policy-fetch-error: no answer"
    assert towards.policy(Knowledge(why="example: no MTA-STS record")) == "example: no MTA-STS record"
    assert towards.policy(Knowledge()) == _towards(tmp_path, "dane").policy(unknown) == ""


# --------------------------------------------------------------------------------------------------- again and again


@pytest.mark.parametrize("highest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_no_session_is_resumed(tmp_path: Path, highest: ssl.TLSVersion) -> None:
    """Each server proves who it is each time."""
    towards, serves = _towards(tmp_path), for_client(good().pem, good().key_pem)
    serves.maximum_version = highest
    for _ in range(3):
        attempt = towards.begin(NOTHING)
        _shake(attempt, serves)
        assert not attempt.channel.object.session_reused
        assert towards.look(attempt) == Verdict(True)


def test_a_verdict_does_not_outlive_the_certificate(tmp_path: Path) -> None:
    clock = Clock()
    towards = _towards(tmp_path, wall=clock)
    short = made(NAME, root(), names=(NAME,), until=(clock.now - NOW + 300) / 86_400)
    assert _try(towards, short).verified
    clock.now += 302
    assert _try(towards, short).result == "certificate-expired"


@pytest.mark.parametrize("verify", ["verify", "mta-sts"])
def test_old_versions_do_not_make_weak_keys_good(tmp_path: Path, verify: str) -> None:
    """The security level that TLS 1.0 needs is OpenSSL's for certificates too: there it would take any key."""
    weak = made(NAME, root(), names=(NAME,), key=weak_rsa())
    enforced = Knowledge(policy=Policy(Mode.ENFORCE, (NAME,), 86_400))
    towards = _towards(tmp_path, verify, legacy=True)
    attempt = towards.begin(enforced)
    _shake(attempt, for_client(weak.pem, weak.key_pem, legacy=True))
    with pytest.raises(HandshakeError, match="unfit key: RSA with 1024 bits"):
        towards.look(attempt)
    assert _try(towards, good(), enforced) == Verdict(True)


# ------------------------------------------------------------------------------------------------------ promises, files


def test_which_promises_are_broken(tmp_path: Path) -> None:
    towards = _towards(tmp_path)
    records = Knowledge(records=(_tlsa(good()),))
    assert towards.broken(NOTHING, "minted", good().der) == ()
    assert towards.broken(records, "given", good().der) == ()
    assert towards.broken(records, "minted", BAD["expired"].der) == ("dane",)
    assert towards.broken(_policy(Mode.ENFORCE, NAME), "minted", good().der) == ("mta-sts",)
    assert towards.broken(_policy(Mode.ENFORCE, NAME), "given", good().der) == ()
    assert towards.broken(_policy(Mode.TESTING, NAME), "minted", good().der) == ()


def test_nothing_has_to_be_known_where_nobody_is_asked(tmp_path: Path) -> None:
    found: list[Knowledge] = []
    _towards(tmp_path).ask(found.append)
    assert found == [NOTHING]


def test_a_client_certificate_that_can_not_be_used(tmp_path: Path) -> None:
    chain = put(tmp_path, "ours.pem", good(), key=False)
    with pytest.raises(CertificateError, match="ours"):
        _towards(tmp_path, client_certificate={"chain": chain})


def test_roots_that_can_not_be_used(tmp_path: Path) -> None:
    for verify in ("record", "verify"):
        with pytest.raises(ValueError, match="none"):
            _towards(tmp_path, verify, roots=str(tmp_path / "none.pem"))


def test_of_a_server_known_by_its_address_the_chain_is_looked_at(tmp_path: Path) -> None:
    """Enough for the CA to certify what it shows: the client looks for the name it meant. Not to call it verified."""
    towards = _towards(tmp_path).for_host("192.0.2.1")
    assert (towards.name, towards.sni) == ("192.0.2.1", "")
    whole = _try(towards, made(NAME, root(), names=(NAME,)))
    assert not whole.verified
    assert towards.vouched(whole)
    alone = _try(towards, made(NAME, names=(NAME,)))
    assert not alone.verified
    assert not towards.vouched(alone)
