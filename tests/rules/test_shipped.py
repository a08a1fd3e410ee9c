"""The rules that come with smtpproxy do what their playbooks say, and each is shown at work by one of them.

The baseline has a rule for every name there is, nearly all of one line, and most of them let something through. So each
of those is shown in a loop: its keyword offered by the server, its verb said by a client.
"""

from functools import lru_cache
from pathlib import Path

import pytest

from smtpproxy.policy.judge import Judge
from smtpproxy.policy.load import load_rules, shipped_rules
from smtpproxy.policy.rates import Counters
from smtpproxy.policy.rules import ExtensionRule, Treatment
from smtpproxy.proving import testing
from smtpproxy.proving.driving import TLS, Clock, Outputs, Outside
from smtpproxy.proving.playbook import SUFFIX
from smtpproxy.session.postures import MIRROR, ClientTLS, Posture, ServerTLS
from smtpproxy.session.records import AuditRecord, Kind
from smtpproxy.session.session import Session
from smtpproxy.smtp.commands import Command
from smtpproxy.smtp.registry.extensions import EXTENSIONS
from smtpproxy.smtp.replies import multiline

FOLDER = shipped_rules()
SETS = sorted(path.stem for path in (FOLDER / "sets").glob("*.toml"))
BASELINE = [rule for rule in load_rules([]).rules if isinstance(rule, ExtensionRule)]
INSIDE = Posture(ClientTLS.IMPLICIT, ServerTLS.IMPLICIT)
# Some argument or other that the grammar of any verb takes.
ARGUMENTS = (
    "",
    " x",
    " FROM:<a@x.example>",
    " TO:<b@y.example>",
    " me.example",
    " PLAIN",
    " 1",
    " 10 LAST",
    " imap://a@x.example/x;uid=1 LAST",
    " ADDR=192.0.2.1",
    " 1 2",
    " <a@x.example>",
    " #x",
    " 16 MULTIPLE=1",
    " x y z",
    " /x",
    " x=1",
)


@pytest.mark.parametrize("name", SETS)
def test_a_set(name: str) -> None:
    """All cases pass, and every rule is shown by one of them."""
    counters = Counters()
    given = testing.gather([f"set:{name}"])
    cases, problems = testing.cases_of(given.playbooks)
    loaded = load_rules(given.rules, counters=counters)
    assert not [problem for problem in (*problems, *loaded.problems) if problem.severity == "error"]
    results = list(testing.run(cases, loaded.rules, counters))
    assert [result.wrong for result in results if result.wrong] == []
    covered = testing.coverage(testing.rules_from(loaded, given.rules), results)
    assert covered
    assert [one.rule.name for one in covered if not one.cases] == []


def test_what_is_always_there() -> None:
    """The playbook of the baseline, if it has one."""
    cases, problems = testing.cases_of(testing.gather([str(FOLDER)]).playbooks)
    assert problems == ()
    results = testing.run(cases, load_rules([]).rules, Counters())
    assert [result.wrong for result in results if result.wrong] == []


def _said(inside: bool, line: str = "") -> set[str]:
    """What rules do of a list with every keyword, and of a line if there is one: "NAME denies" and "NAME lets"."""
    judge = Judge(BASELINE)
    found: set[str] = set()
    asked = line.split(" ")[0].encode() or b"EHLO"

    def record(item: AuditRecord) -> None:
        exchange = item.exchange
        if item.kind is not Kind.EXCHANGE or exchange.verb.name.encode() != asked:
            return
        found.update(f"{name} denies" for name in exchange.rule.split())
        if type(exchange.asked) is Command and exchange.sent is exchange.asked:
            found.add(f"{judge.owner(asked)} lets")
        if not line:
            keywords = [told.replace(b"=", b" ").split(b" ")[0] for told in exchange.told.lines[1:]]
            found.update(f"{judge.owner(keyword)} lets" for keyword in keywords)

    session = Session(judge=judge, record=record, clock=Clock(), posture=INSIDE if inside else MIRROR)
    outside = Outside(Clock())
    session.connected()

    def hear(octets: bytes) -> None:
        session.server_sent(octets)
        Outputs(outside, lambda side: TLS._replace(verified=True)).collect(session)

    Outputs(outside, lambda side: TLS._replace(verified=True)).collect(session)
    hear(b"220 mx.example\r\n")
    session.client_sent(b"EHLO me.example\r\n")
    Outputs(outside).collect(session)
    hear(multiline(250, [b"mx.example", *(name + b" 9" * (name == b"SIZE") for name in EXTENSIONS)]).raw)
    if line:
        session.client_sent(f"{line}\r\n".encode())
        if session.ledger.awaited is not None:
            session.server_sent(b"454 4.7.0 Not now\r\n")
    return found


@lru_cache(maxsize=2)
def _of_lists(inside: bool) -> frozenset[str]:
    return frozenset(_said(inside))


def _shows(rule: ExtensionRule) -> bool:
    deed = "denies" if rule.treatment is Treatment.DENY else "lets"
    wanted = f"{rule.name} {deed}"
    if wanted in _of_lists(True) | _of_lists(False):
        return True
    return any(
        wanted in _said(inside, f"{verb.decode()}{argument}")
        for verb in rule.feature.verbs
        for argument in ARGUMENTS
        for inside in (False, True)
    )


@pytest.mark.parametrize("rule", BASELINE, ids=lambda rule: rule.name)
def test_each_rule_of_the_baseline_shows(rule: ExtensionRule) -> None:
    assert _shows(rule)


def test_every_rule_of_the_baseline_is_about_an_extension() -> None:
    assert len(BASELINE) == len(load_rules([]).rules) > 90


def test_no_playbook_is_without_its_rules() -> None:
    playbooks = [*FOLDER.glob(f"*{SUFFIX}"), *Path(FOLDER, "sets").glob(f"*{SUFFIX}")]
    assert [path for path in playbooks if not path.with_suffix(".toml").is_file()] == []
