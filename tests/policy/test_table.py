"""The closed table: each act on each kind of subject, as a transcript. What is missing here is no act there."""

from pathlib import Path

import pytest

from smtpproxy.policy.load import load_rules
from smtpproxy.policy.rates import Counters
from smtpproxy.policy.subjects import TABLE
from smtpproxy.proving.testing import cases_of, run

CONNECT = """
    !! arrived
"""
HEADER = """
    .. data
    C> Subject: hello
    C>
    C> text
    C> .
"""
WITH_FILE = """
    .. data
    C> Subject: hello
    C> Content-Type: application/octet-stream; name="a.exe"
    C> Content-Disposition: attachment; filename="a.exe"
    C>
    C> MZ
    C> .
"""
SENT = """
    >S DATA
    S> 354 Go
    >S Subject: hello
    >S
    >S text
    >S .
    S> 250 2.0.0 Ok
    >C 250 2.0.0 Ok
"""
STREAMED = HEADER + SENT.replace("    >S DATA\n    S> 354 Go\n", "")
FILE_SENT = SENT.replace(
    "    >S\n    >S text",
    '    >S Content-Type: application/octet-stream; name="a.exe"\n'
    '    >S Content-Disposition: attachment; filename="a.exe"\n    >S\n    >S MZ',
)
TAKEN_BACK = """
    >S RSET
    S> 250 2.0.0 Reset
"""
OVER = """
    -> close client
"""
BOTH = """
    -> close server
    -> close client
"""
GREETED = """
    S> 220 mx.example
    >C 220 mx.example
"""
RCPT = """
    .. mail TO=<>
    C> RCPT TO:<c@z.example>
"""
RCPT_SENT = """
    >S RCPT TO:<c@z.example>
    S> 250 2.1.5 Ok
    >C 250 2.1.5 Ok
"""
RCPT_REPLY = """
    .. mail TO=<>
    C> RCPT TO:<c@z.example>
    >S RCPT TO:<c@z.example>
    S> 550 5.1.1 Not here
"""
RCPT_REFUSED = """
    >C 550 5.1.1 Not here
"""
ENCRYPTED = """
    S> 220 mx.example
    >C 220 mx.example
    C> EHLO me.example
    >S EHLO me.example
    S> 250-mx.example
    S> 250 STARTTLS
    >C 250-mx.example
    >C 250 STARTTLS
    C> STARTTLS
    >S STARTTLS
    S> 220 Go
    -> start-tls server
    !! tls-done server
    -> prepare-tls client
    !! tls-ready
    >C 220 Go
    -> start-tls client
    !! tls-done client
"""
EHLO_AGAIN = """
    C> EHLO me.example
    >S EHLO me.example
    S> 250 mx.example
    >C 250 mx.example
"""

# act on group: the subject, what is done, and the transcript with what is on record.
CELLS: dict[tuple[str, str], tuple[str, str, str]] = {
    # ------------------------------------------------------------------------------------------------------ connect
    ("connect", "pass"): ("connect", '"pass"', CONNECT + "    -> dial\n" + GREETED + "    => pass r"),
    ("connect", "answer"): (
        "connect",
        '{ answer = "554 5.7.1 Not you" }',
        CONNECT + "    >C 554 Not you" + OVER + "    => answer r",
    ),
    ("connect", "hangup"): (
        "connect",
        '{ hangup = "421 4.7.0 Not now" }',
        CONNECT + "    >C 421 Not now" + OVER + "    => hangup r",
    ),
    ("connect", "tarpit"): (
        "connect",
        '{ tarpit = "5s" }',
        CONNECT + "    -> wait 5\n    -> dial\n" + GREETED + "    => did r",
    ),
    ("connect", "redirect"): (
        "connect",
        '{ redirect = "mx2.example:2525" }',
        CONNECT + "    -> dial mx2.example:2525\n" + GREETED + "    => redirect r",
    ),
    ("connect", "limit"): (
        "connect",
        '{ limit = { connections = 1, per = "client", within = "1h", answer = "421 4.7.0 Too many" } }',
        CONNECT
        + "    -> dial\n"
        + GREETED
        + "\n    .. session\n"
        + CONNECT
        + "    >C 421 Too many"
        + OVER
        + "    => answer r",
    ),
    ("connect", "tag"): (
        "connect",
        '{ tag = "seen" }',
        CONNECT + "    -> dial\n" + GREETED + "    => did r\n    => tag seen",
    ),
    ("connect", "record"): ("connect", '{ record = "full" }', CONNECT + "    -> dial\n" + GREETED + "    => did r"),
    # ---------------------------------------------------------------------------------------------------------- tls
    ("tls", "pass"): ("tls", '"pass"', ENCRYPTED + EHLO_AGAIN),
    ("tls", "answer"): (
        "tls",
        '{ answer = "554 5.7.1 Not with this" }',
        ENCRYPTED + "    C> EHLO me.example\n    >C 554 Not with this\n",
    ),
    ("tls", "hangup"): (
        "tls",
        '"hangup"',
        ENCRYPTED.partition("    -> prepare-tls")[0]
        + "    >C 421 Not accepted by local policy, closing\n    -> abort server\n    -> close client\n",
    ),
    ("tls", "tag"): ("tls", '{ tag = "secret" }', ENCRYPTED + EHLO_AGAIN),
    ("tls", "record"): ("tls", '{ record = "full" }', ENCRYPTED + EHLO_AGAIN),
    # ------------------------------------------------------------------------------------------------------ command
    ("command", "pass"): ("RCPT", '"pass"', RCPT + RCPT_SENT + "    => pass r"),
    ("command", "answer"): (
        "RCPT",
        '{ answer = "550 5.7.1 Not {rcpt.domain}" }',
        RCPT + "    >C 550 5.7.1 Not z.example\n    => answer r",
    ),
    ("command", "rewrite"): (
        "RCPT",
        '{ rewrite = { address = "{rcpt.local}@new.example", set = { NOTIFY = "NEVER" } } }',
        RCPT.replace("c@z.example>", "c@z.example> ORCPT=rfc822;c@z.example")
        + RCPT_SENT.replace("c@z.example>", "c@new.example> ORCPT=rfc822;c@z.example NOTIFY=NEVER")
        + "    => rewrite r",
    ),
    ("command", "discard"): (
        "RCPT",
        '"discard"',
        RCPT
        + RCPT_SENT
        + "    => discard r\n    C> DATA\n    >C 354 Start mail input; end with <CRLF>.<CRLF>\n    C> text\n    C> .\n"
        + TAKEN_BACK
        + "    >C 250 2.0.0 Ok\n    => discard r",
    ),
    ("command", "hangup"): (
        "RCPT",
        '"hangup"',
        RCPT + "    >C 421 4.7.0 Not accepted by local policy, closing" + BOTH + "    => hangup r",
    ),
    ("command", "tarpit"): ("RCPT", '{ tarpit = "2s" }', RCPT + "    -> wait 2" + RCPT_SENT + "    => did r"),
    ("command", "limit"): (
        "RCPT",
        '{ limit = { recipients = 1, per = "session", answer = "452 4.5.3 Too many" } }',
        RCPT
        + RCPT_SENT
        + RCPT.partition("\n    C>")[1]
        + " RCPT TO:<d@z.example>\n    >C 452 4.5.3 Too many\n    => answer r",
    ),
    ("command", "tag"): ("RCPT", '{ tag = "seen" }', RCPT + RCPT_SENT + "    => did r\n    => tag seen"),
    ("command", "record"): ("RCPT", '{ record = "full" }', RCPT + RCPT_SENT + "    => did r"),
    # -------------------------------------------------------------------------------------------------------- reply
    ("reply", "pass"): ("RCPT reply", '"pass"', RCPT_REPLY + RCPT_REFUSED + "    => pass r"),
    ("reply", "rewrite"): (
        "RCPT reply",
        '{ rewrite = { text = "No" } }',
        RCPT_REPLY + "    >C 550 5.1.1 No\n    => rewrite r",
    ),
    ("reply", "hangup"): ("RCPT reply", '"hangup"', RCPT_REPLY + RCPT_REFUSED + BOTH + "    => hangup r"),
    ("reply", "tarpit"): (
        "RCPT reply",
        '{ tarpit = "2s" }',
        RCPT_REPLY + "    -> wait 2" + RCPT_REFUSED + "    => did r",
    ),
    ("reply", "limit"): (
        "RCPT reply",
        '{ limit = { replies = 1, per = "client", within = "1h", lock = "1h" } }',
        RCPT_REPLY.replace(" TO=<>", "") + RCPT_REFUSED + "    => did r",
    ),
    ("reply", "tag"): ("RCPT reply", '{ tag = "seen" }', RCPT_REPLY + RCPT_REFUSED + "    => did r\n    => tag seen"),
    ("reply", "record"): ("RCPT reply", '{ record = "full" }', RCPT_REPLY + RCPT_REFUSED + "    => did r"),
    # ------------------------------------------------------------------------------------------------------- header
    ("header", "pass"): ("header", '"pass"', HEADER + SENT + "    => pass r"),
    ("header", "header"): (
        "header",
        '{ header = { replace = { Subject = "bye" } } }',
        HEADER + SENT.replace("Subject: hello", "Subject: bye") + "    => rewrite r",
    ),
    # ---------------------------------------------------------------------------------------------------- content
    ("content", "header"): (
        "content",
        '{ header = { add = { X-Size = "{content.size}" } } }',
        HEADER + SENT.replace("Subject: hello", "Subject: hello\n    >S X-Size: 24") + "    => rewrite r",
    ),
    ("content", "limit"): (
        "content",
        '{ limit = { octets = 10, per = "session", answer = "552 5.3.4 Too much" } }',
        HEADER + TAKEN_BACK + "    >C 552 5.3.4 Too much\n    => answer r",
    ),
    # -------------------------------------------------------------------------------------------------- transaction
    ("transaction", "limit"): (
        "transaction",
        '{ limit = { messages = 1, per = "client", within = "1h", lock = "1h" } }',
        STREAMED.replace("    .. data", "    .. sent\n    .. data") + "    => did r",
    ),
    ("transaction", "tag"): ("transaction", '{ tag = "seen" }', STREAMED + "    => did r\n    => tag seen"),
    ("transaction", "record"): ("transaction", '{ record = "full" }', STREAMED + "    => did r"),
}
for group, content, sent in (("header", HEADER, SENT), ("attachment", WITH_FILE, FILE_SENT), ("content", HEADER, SENT)):
    CELLS |= {
        (group, "pass"): (group, '"pass"', content + sent + "    => pass r"),
        (group, "answer"): (
            group,
            '{ answer = "550 5.7.1 Not this" }',
            content + TAKEN_BACK + "    >C 550 5.7.1 Not this\n    => answer r",
        ),
        (group, "discard"): (group, '"discard"', content + TAKEN_BACK + "    >C 250 2.0.0 Ok\n    => discard r"),
        (group, "hangup"): (
            group,
            '"hangup"',
            content + TAKEN_BACK + "    >C 421 4.7.0 Not accepted by local policy, closing" + BOTH + "    => hangup r",
        ),
        (group, "quarantine"): (
            group,
            '{ quarantine = "refuse" }',
            content + "    -> keep" + TAKEN_BACK + "    >C 550 5.7.1 Message refused\n    => quarantine r",
        ),
        (group, "tag"): (group, '{ tag = "seen" }', content + sent + "    => did r\n    => tag seen"),
        (group, "record"): (group, '{ record = "full" }', content + sent + "    => did r"),
    }
for group in ("header", "content"):
    CELLS[group, "tarpit"] = group, '{ tarpit = "2s" }', HEADER + "    -> wait 2" + SENT + "    => did r"


def test_each_cell_of_the_table_has_its_transcript() -> None:
    assert CELLS.keys() == {(group.value, act.value) for group, acts in TABLE.items() for act in acts}


@pytest.mark.parametrize("cell", sorted(CELLS), ids=" ".join)
def test_an_act_on_a_subject(cell: tuple[str, str], tmp_path: Path) -> None:
    subject, deed, transcript = CELLS[cell]
    rules, playbook = tmp_path / "r.toml", tmp_path / "r.play"
    rules.write_text(f'[[rule]]\nname = "r"\nwhy = "To see."\non = "{subject}"\nthen = {deed}\n', encoding="utf-8")
    playbook.write_text(f"== {' '.join(cell)}\n{transcript}\n", encoding="utf-8")
    counters = Counters()
    loaded = load_rules([rules], counters=counters)
    assert loaded.ok, [problem.show() for problem in loaded.problems]
    cases, problems = cases_of([playbook])
    assert not problems, problems
    (result,) = run(cases, loaded.rules, counters)
    assert not result.wrong, result.wrong
