"""A mail that a rule keeps, from a client to the quarantine, and from there to the server."""

from __future__ import annotations

import json
import smtplib
import subprocess
import sys
from pathlib import Path

import pytest

from tests.peers.conftest import Servers
from tests.peers.process import REPOSITORY
from tests.peers.serving import Serving

pytestmark = pytest.mark.peers

RULE = """
[[rule]]
name = "held"
why = "to be looked at"
on = "header"
when = 'header["subject"].exists(one, one.contains("macro"))'
then = { quarantine = "accept" }
"""
MAIL = b"Subject: a macro\r\nFrom: a@src.example\r\n\r\n.dots\r\nGr\xc3\xbc\xc3\x9fe\r\n"


def _command(*words: str) -> str:
    command = [sys.executable, "-m", "smtpproxy", "quarantine", *words]
    return subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True, timeout=60).stdout


@pytest.mark.parametrize("name", ["aiosmtpd", "postfix"])
def test_a_kept_mail_arrives_when_it_is_released(servers: Servers, name: str, tmp_path: Path) -> None:
    server = servers[name]
    rules = tmp_path / "rules.toml"
    rules.write_text(RULE)
    tmp_path.chmod(0o755)
    listener = {"name": "in", "listen": "127.0.0.1:0", "server": f"127.0.0.1:{server.port}"}
    to = [f"quarantine-{number}-{name}@dst.example" for number in (1, 2)]
    with Serving([listener]) as proxy:
        text = proxy.config.read_text()
        proxy.stop()
        proxy.config.write_text(
            f'rules = ["{rules}"]\n{text}\n[quarantine]\ndirectory = "{proxy.config.parent}/mails"\n'
        )
        proxy.start()
        with smtplib.SMTP("127.0.0.1", proxy.ports["in"], timeout=20) as client:
            client.sendmail("a@src.example", to, MAIL, mail_options=["BODY=8BITMIME"])
        config = ("--config", str(proxy.config))
        (record,) = map(json.loads, _command("list", *config, "--json").splitlines())
        assert (record["rule"], record["mail"], record["rcpt"]) == ("held", "a@src.example", to)
        assert record["parameters"]["BODY"] == "8BITMIME"
        assert [mail for mail in server.mails() if to[0] in mail.recipients] == []
        assert _command("release", *config, record["name"]).startswith(f"{record['name']} released to 127.0.0.1:")
        assert _command("release", *config, record["name"]) == f"{record['name']} was released already\n"
        for one in to:
            mails = server.wait_for(1, 20, one)
            assert [mail.wire for mail in mails] == [MAIL]
        told = [one["told"] for one in proxy.records() if one.get("verb") == "END"]
        assert told[0] in (record["told"], record["told"].replace(" 2.0.0", ""))
