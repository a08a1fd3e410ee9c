"""Rule files: all mistakes at once and in their places; which rule holds; and that the shipped ones change nothing."""

import re
from pathlib import Path
from time import process_time

import pytest

from smtpproxy.policy.judge import Judge
from smtpproxy.policy.load import Loaded, load_rules, shipped_rules
from smtpproxy.policy.rules import ExtensionRule, Rule, Treatment
from smtpproxy.policy.treatments import Treatments
from smtpproxy.smtp.registry.extensions import EXTENSIONS
from smtpproxy.smtp.registry.features import FEATURE_NAMES, feature
from smtpproxy.smtp.registry.verbs import VERBS

REPOSITORY = Path(__file__).resolve().parents[2]


def load(tmp_path: Path, *texts: str, shipped: bool = False) -> Loaded:
    """The rules of files `1.toml`, `2.toml` … with these texts."""
    for number, text in enumerate(texts, 1):
        (tmp_path / f"{number}.toml").write_text(text)
    return load_rules([tmp_path], shipped=shipped)


def rule(name: str, extension: str, then: str, more: str = "") -> str:
    return f'[[rule]]\nname = "{name}"\nwhy = "because"\nextension = "{extension}"\nthen = {then}\n{more}'


def told(loaded: Loaded) -> list[str]:
    """The problems without the directory."""
    return [re.sub(r"^.*/", "", str(problem)) for problem in loaded.problems]


def warned(loaded: Loaded) -> list[str]:
    assert loaded.ok, loaded.problems
    return told(loaded)


def one(tmp_path: Path, extension: str, then: str) -> ExtensionRule:
    loaded = load(tmp_path, rule("x", extension, then))
    assert loaded.ok, loaded.problems
    (only,) = about_extensions(loaded)
    return only


# --------------------------------------------------------------------------------------------------- what loads


def test_a_rule_has_all_that_its_file_says(tmp_path: Path) -> None:
    loaded = load(tmp_path, "# a comment\n\n" + rule("no-xexch50", "xExch50", '"deny"', 'mode = "enforce"'))
    (only,) = about_extensions(loaded)
    assert (only.name, only.why, only.treatment, only.limit, only.reply) == (
        "no-xexch50",
        "because",
        Treatment.DENY,
        0,
        None,
    )
    assert only.feature == feature("XEXCH50")
    assert str(only.source) == f"{tmp_path}/1.toml:3"
    assert loaded.ok


@pytest.mark.parametrize(
    ("extension", "then", "treatment", "limit"),
    [
        ("ETRN", '"allow"', Treatment.ALLOW, 0),
        ("DSN", '"deny"', Treatment.DENY, 0),
        ("8BITMIME", '"allow-under-tls"', Treatment.TLS, 0),
        ("SIZE", '{ limit = "25 MiB" }', Treatment.LIMIT, 26_214_400),
        ("SIZE", "{ limit = 1000 }", Treatment.LIMIT, 1000),
        ("LIMITS", "{ limit = 50 }", Treatment.LIMIT, 50),
        ("STARTTLS", '"deny"', Treatment.DENY, 0),
        ("X-ANONYMOUSTLS", '"allow"', Treatment.ALLOW, 0),
    ],
)
def test_what_can_be_done(tmp_path: Path, extension: str, then: str, treatment: Treatment, limit: int) -> None:
    made = one(tmp_path, extension, then)
    assert (made.treatment, made.limit) == (treatment, limit)


@pytest.mark.parametrize(
    ("extension", "answer"),
    [
        ("VRFY", "252 2.5.0 Cannot say"),
        ("HELP", "214 See the manual"),
        ("ETRN", "250 2.0.0 Queue runs by itself"),
        ("XEXCH50", "504 5.5.4 Not here"),
        ("DATA", "451 4.7.1 Later"),
        ("CHUNKING", "503 5.5.1 Use DATA"),
        ("STARTTLS", "454 4.7.0 Later"),
        ("MAIL", "550 5.7.1 No mail here"),
    ],
)
def test_answers(tmp_path: Path, extension: str, answer: str) -> None:
    made = one(tmp_path, extension, f'{{ answer = "{answer}" }}')
    assert made.treatment is Treatment.DENY
    assert made.reply is not None
    assert made.reply.full.raw == f"{answer}\r\n".encode()


def test_a_table_of_its_own_is_the_same(tmp_path: Path) -> None:
    text = '[[rule]]\nname = "x"\nwhy = "y"\nextension = "SIZE"\n[rule.then]\nlimit = 5\n'
    assert about_extensions(load(tmp_path, text))[0].limit == 5


# ------------------------------------------------------------------------------------------------- what does not

SIX = """\
[[rule]]
name = "Size 25"
why = "large files"
extension = "SIZE"
then = { limit = "25 Mb" }

[[rule]]
name = "no-exch"
why = "old"
extension = "XECH50"
then = "denny"

[[rule]]
name = "no-dsn"
whi = "private"
extension = "DSN"
then = "deny"
"""


def test_six_mistakes_are_all_told_with_place_and_nearest_name(tmp_path: Path) -> None:
    loaded = load(tmp_path, SIX)
    assert loaded.rules == ()
    assert not loaded.ok
    errors = [(p.line, p.column, p.where, p.nearest) for p in loaded.problems]
    assert errors == [
        (2, 8, 'rule 1 "Size 25": name', ("size-25",)),
        (5, 18, 'rule 1 "Size 25": then.limit', ("25 MB", "25 MiB")),
        (10, 13, 'rule 2 "no-exch": extension', ("XEXCH50", "X-EXCH50")),
        (11, 8, 'rule 2 "no-exch": then', ("deny",)),
        (13, 1, 'rule 3 "no-dsn"', ()),
        (15, 1, 'rule 3 "no-dsn"', ("why",)),
    ]
    assert {p.file for p in loaded.problems} == {f"{tmp_path}/1.toml"}
    assert "why is missing" in str(loaded.problems[4])
    assert loaded.problems[1].show().splitlines()[1:] == [
        '  5 | then = { limit = "25 Mb" }',
        "    |                  ^",
    ]


def test_the_mistakes_of_all_files_are_told(tmp_path: Path) -> None:
    loaded = load(tmp_path, "x = ", rule("a", "ETRN", '"alow"'), "[[rules]]\n")
    assert [re.split(":", line)[0] for line in told(loaded)] == ["1.toml", "2.toml", "3.toml"]
    assert load_rules([tmp_path, tmp_path / "none"], shipped=False).problems[0].message == "no such file or directory"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[[rules]]", '1.toml:1:3: unknown key "rules" (expected [[rule]] or [lists.NAME]; nearest: rule)'),
        ("[rule]", "1.toml:1:1: rules are a list (expected [[rule]])"),
        ("rule = [1]", "1.toml:1:9: 1 is not a rule (expected [[rule]])"),
        ("rule = 1", "1.toml:1:8: rules are a list (expected [[rule]])"),
        (
            rule("", "DSN", '"deny"'),
            '1.toml:2:8: rule 1: name: is empty (expected a name such as "size-25m": a-z, 0-9 and -)',
        ),
        (rule("default", "DSN", '"deny"'), "what the record calls decisions without a rule"),
        (rule("x", "DSN", '"deny"', "name2 = 1"), 'rule 1 "x": unknown key "name2" (nearest: name)'),
        (
            rule("x", "DSN", '"deny"', 'on = "RCPT"'),
            'rule 1 "x": a rule is on subjects or about an extension (expected on or extension)',
        ),
        (
            rule("x", "DSN", '"deny"', "deadline = 1"),
            'unknown key "deadline" (expected name, why, extension, when, then, mode or tags)',
        ),
        (
            rule("x", "DSN", '"deny"', 'mode = "of"'),
            '"of" is not a mode (expected "enforce", "observe" or "off"; nearest: off)',
        ),
        (rule("x", "DSN", '"deny"', "mode = []"), 'an array is not a mode (expected "enforce", "observe" or "off")'),
        (rule("x", "RET", '"deny"'), 'RET is a parameter, and parameters go with their extension (expected "DSN")'),
        (rule("x", "ﬀ", '"deny"'), '"ﬀ" is not a name that smtpproxy knows'),
        (rule("x", "DSN", "3"), "3 is not something to do"),
        (
            rule("x", "STARTTLS", '"allow-under-tls"'),
            'STARTTLS under TLS is nothing: it begins it (expected "allow" or',
        ),
        (rule("x", "DSN", "{}"), 'rule 1 "x": then: is empty'),
        (rule("x", "DSN", '{ anser = "x" }'), 'unknown key "then.anser" (nearest: answer)'),
        (rule("x", "SIZE", '{ limit = 1, answer = "x" }'), "limit and answer are two things (expected one of them)"),
        (rule("x", "DSN", "{ limit = 1 }"), "DSN has no number to limit (expected SIZE or LIMITS)"),
        (rule("x", "SIZE", "{ limit = 0 }"), '0 is not a limit (expected a size, e.g. "25 MiB")'),
        (rule("x", "SIZE", "{ limit = true }"), "true is not a limit"),
        (rule("x", "SIZE", "{ limit = 1.5 }"), "1.5 is not a limit"),
        (rule("x", "LIMITS", '{ limit = "50" }'), '"50" is not a limit (expected a count of recipients, e.g. 100)'),
        (rule("x", "8BITMIME", '{ answer = "550 no" }'), "8BITMIME has no verb to answer"),
        (rule("x", "VRFY", "{ answer = 550 }"), "550 is not a string"),
        (rule("x", "VRFY", '{ answer = "550" }'), "not a reply: '550'"),
        (rule("x", "VRFY", '{ answer = "550 2.0.0 x" }'), "550 and 2.0.0 disagree"),
        (rule("x", "VRFY", '{ answer = "550 a\\r\\n250 b" }'), "not a reply"),
        (rule("x", "VRFY", '{ answer = "421 x" }'), "421 says that the connection is closed, and it would not be"),
        (rule("x", "QUIT", '{ answer = "221 x" }'), "221 says that the connection is closed, and it would not be"),
        (rule("x", "DATA", '{ answer = "354 x" }'), "354 asks for more, and nobody would take it"),
        (rule("x", "VRFY", '{ answer = "334 x" }'), "334 asks for more, and nobody would take it"),
        ('[[rule]]\nname = "x"\nmode = "off"\n', 'rule 1 "x": why is missing'),
        (rule("x", "DSN", '"deny"') + rule("x", "ETRN", '"deny"'), '"x" is the name of the rule in line 1 already'),
    ],
)
def test_mistakes(tmp_path: Path, text: str, problem: str) -> None:
    loaded = load(tmp_path, text)
    assert loaded.rules == ()
    (only,) = told(loaded)
    assert problem in only


@pytest.mark.parametrize(
    "extension",
    [
        "DATA",
        "CHUNKING",
        "BDAT",
        "XEXCH50",
        "MAIL",
        "SOML",
        "RCPT",
        "RSET",
        "EHLO",
        "AUTH",
        "STARTTLS",
        "ATRN",
        "TURN",
        "BURL",
        "XCLIENT",
        "LHLO",
        "X-ADAT",
    ],
)
def test_success_may_not_be_told_where_the_server_has_to_keep_it(tmp_path: Path, extension: str) -> None:
    (problem,) = load(tmp_path, rule("x", extension, '{ answer = "250 2.0.0 Ok" }')).problems
    assert "promises what only the server can do (expected a refusal, 4yz or 5yz)" in str(problem)


# ----------------------------------------------------------------------------------------------- which rule holds


def names(loaded: Loaded) -> list[str]:
    assert loaded.ok, loaded.problems
    return [made.name for made in loaded.rules]


def test_files_go_by_name_and_rules_by_order(tmp_path: Path) -> None:
    (tmp_path / ".0.toml").write_text("not toml")
    (tmp_path / "README").write_text("not toml")
    first = rule("a", "DSN", '"deny"') + rule("b", "ETRN", '"allow"')
    loaded = load(tmp_path, first, rule("c", "DELIVERBY", '"deny"'))
    assert names(loaded) == ["a", "b", "c"]
    turned = load_rules([tmp_path / "2.toml", tmp_path], shipped=False)
    assert names(turned) == ["c", "a", "b"]


def test_a_later_rule_of_the_same_name_takes_the_place_of_the_earlier(tmp_path: Path) -> None:
    first = rule("a", "SIZE", "{ limit = 5 }") + rule("b", "ETRN", '"allow"')
    loaded = load(tmp_path, first, rule("a", "DSN", '"deny"'))
    assert names(loaded) == ["b", "a"]
    assert about_extensions(loaded)[1].feature == feature("DSN")
    assert loaded.problems == ()


def test_off_takes_a_rule_out(tmp_path: Path) -> None:
    off = '[[rule]]\nname = "a"\nwhy = "no more"\nmode = "off"\n'
    loaded = load(tmp_path, rule("a", "DSN", '"deny"') + rule("b", "ETRN", '"allow"'), off)
    assert names(loaded) == ["b"]
    assert loaded.problems == ()
    again = load(tmp_path, rule("a", "DSN", '"deny"'), off, rule("a", "DSN", '"deny"'))
    assert names(again) == ["a"]
    assert names(load(tmp_path, rule("a", "DSN", '"deny"', 'mode = "off"'), "", "")) == []


def test_the_site_comes_after_what_is_shipped(tmp_path: Path) -> None:
    loaded = load(tmp_path, rule("etrn-for-us", "ETRN", '"allow"'), shipped=True)
    assert loaded.problems == ()
    assert names(loaded)[-1] == "etrn-for-us"
    judge = Judge(loaded.rules)
    assert "ETRN" not in judge.commands
    assert judge.owner(b"ETRN") == "etrn-for-us"
    replaced = load(tmp_path, rule("strip-etrn", "ETRN", '"allow"'), shipped=True)
    assert replaced.problems == ()
    assert "ETRN" not in Judge(replaced.rules).commands


# ------------------------------------------------------------------------------------------------ both kinds, in order


def on(name: str, subject: str = "RCPT", more: str = "") -> str:
    return f'[[rule]]\nname = "{name}"\nwhy = "because"\non = "{subject}"\nthen = {{ tag = "{name}" }}\n{more}'


@pytest.fixture
def ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of shipped rules with two sets."""
    folder = tmp_path / "shipped"
    (folder / "sets").mkdir(parents=True)
    (folder / "10.toml").write_text(on("ship") + rule("ship-dsn", "DSN", '"allow"'))
    (folder / "sets" / "one.toml").write_text(on("one") + rule("one-dsn", "DSN", '"deny"'))
    (folder / "sets" / "two.toml").write_text(on("two") + on("shared"))
    monkeypatch.setattr("smtpproxy.policy.load.shipped_rules", lambda: folder)
    return folder


def test_the_sites_rules_are_tried_first_and_hold_last(tmp_path: Path, ours: Path) -> None:
    """On subjects the first that decides wins, about an extension the last: both times it is the site's."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "a.toml").write_text(on("a") + rule("a-dsn", "DSN", '"allow-under-tls"') + on("b"))
    (site / "b.toml").write_text(on("c"))
    loaded = load_rules([site, Path("set:two"), Path("set:one")])
    assert names(loaded) == ["ship-dsn", "one-dsn", "a-dsn", "a", "b", "c", "two", "shared", "one", "ship"]
    assert [made.shipped for made in loaded.rules if isinstance(made, Rule)] == [False] * 3 + [True] * 4
    assert [one.origin for one in loaded.listed] == [
        *("shipped", "set:one", "site"),
        *("site", "site", "site", "set:two", "set:two", "set:one", "shipped"),
    ]
    assert names(load_rules([site / "b.toml", site], shipped=False)) == ["a-dsn", "c", "a", "b"]


def test_a_rule_takes_the_place_of_one_of_the_other_kind(tmp_path: Path, ours: Path) -> None:
    loaded = load(tmp_path, rule("ship", "ETRN", '"allow"') + on("one-dsn"))
    assert names(loaded) == ["ship", "one-dsn"]
    both = load_rules([tmp_path / "1.toml", Path("set:one")])
    assert names(both) == ["ship-dsn", "ship", "one-dsn", "one"]


def test_a_set_there_is_not_is_told_with_those_there_are(ours: Path) -> None:
    near, far = load_rules([Path("set:tow"), Path("set:something")]).problems
    assert str(near) == "set:tow: there is no such set of rules (nearest: set:two)"
    assert str(far) == "set:something: there is no such set of rules (expected set:one or set:two)"
    assert str(load_rules([Path("set:../10")]).problems[0]).startswith("set:../10: there is no such set of rules")


def test_a_set_is_there_without_the_shipped_rules(ours: Path) -> None:
    assert names(load_rules([Path("set:one"), Path("set:one")], shipped=False)) == ["one-dsn", "one"]


def test_what_is_off_or_replaced_is_listed_too(tmp_path: Path, ours: Path) -> None:
    off = '[[rule]]\nname = "one"\nwhy = "not here"\nmode = "off"\n'
    loaded = load(
        tmp_path, on("shared", more='mode = "observe"\n') + on("parked", more='mode = "off"\n'), off, shipped=True
    )
    assert warned(loaded) == [
        '2.toml:2:8: warning: rule 1 "one": switches nothing off: no rule before it has this name'
    ]
    chosen = load_rules([Path("set:one"), Path("set:two"), tmp_path / "1.toml", tmp_path / "2.toml"])
    assert warned(chosen) == []
    listed = {(one.name, one.origin): one for one in chosen.listed}
    mine, theirs = listed["shared", "site"], listed["shared", "set:two"]
    assert mine.in_force
    assert (mine.mode, mine.replaces) == ("observe", (theirs.source,))
    assert not theirs.in_force
    assert theirs.replaced == mine.source
    assert not listed["one", "set:one"].in_force
    taken_out = listed["one", "site"]
    assert (taken_out.rule, taken_out.mode, taken_out.why, taken_out.in_force) == (None, "off", "not here", False)
    assert taken_out.replaces == (listed["one", "set:one"].source,)
    assert (listed["parked", "site"].mode, listed["parked", "site"].rule) == ("off", None)
    in_force = [one.name for one in chosen.listed if one.in_force]
    assert in_force == names(chosen)
    assert [one.in_force for one in chosen.listed] == [True] * len(in_force) + [False] * (len(listed) - len(in_force))


def test_what_is_off_is_read_all_the_same(tmp_path: Path) -> None:
    """Who switches it on again should find no mistake in it then."""
    loaded = load(tmp_path, on("a", "RCTP", 'mode = "off"\n'))
    assert told(loaded) == [
        '1.toml:4:6: rule 1 "a": on: "RCTP" is not a subject (nearest: RCPT, X-ERCP, X-DRCP)',
    ]


def test_a_later_list_of_a_name_takes_the_place_of_the_earlier(tmp_path: Path) -> None:
    lists = '[lists.a]\nkind = "words"\nentries = {}\n'
    uses = on("x", more="when = 'in_list(\"a\", rcpt.local)'\n")
    loaded = load(tmp_path, lists.format('["one"]') + uses, lists.format('["two", "three"]'))
    assert loaded.problems == ()
    assert (len(loaded.lists["a"]), loaded.lists["a"].source.file) == (2, f"{tmp_path}/2.toml")


def test_a_limit_that_is_switched_off_is_known_by_its_name(tmp_path: Path, ours: Path) -> None:
    """A set may ask for a limit of its own that the site doesn't want: it locks nobody, and all the rest holds."""
    limit = (
        '[[rule]]\nname = "l"\nwhy = "y"\non = "RCPT"\nthen = { limit = { recipients = 9, within = 9, lock = 9 } }\n'
    )
    uses = on("u", more="when = 'locked(\"l\", client.address)'\n")
    (ours / "sets" / "one.toml").write_text(limit + uses)
    (tmp_path / "1.toml").write_text('[[rule]]\nname = "l"\nwhy = "y"\nmode = "off"\n')
    loaded = load_rules([Path("set:one"), tmp_path / "1.toml"])
    assert names(loaded) == ["ship-dsn", "u", "ship"]
    assert [problem.message for problem in loaded.problems] == ["rule l is not in force: it locks nobody"]


def test_the_digest_is_of_what_the_files_say(tmp_path: Path) -> None:
    """Not of comments, layout, or where they are; of lists too."""
    lists = '[lists.a]\nkind = "words"\nfile = "a.txt"\n'
    uses = on("x", more="when = 'in_list(\"a\", rcpt.local)'\n")
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    first = load(tmp_path, lists + uses).digest
    assert re.fullmatch("[0-9a-f]{16}", first)
    (tmp_path / "a.txt").write_text("# first\ntwo\none\n")
    assert load(tmp_path, f"# a comment\n\n{lists}\n\n{uses}").digest == first
    (tmp_path / "a.txt").write_text("one\nthree\n")
    assert load(tmp_path, lists + uses).digest != first
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    assert load(tmp_path, lists + uses.replace("because", "because of that")).digest != first
    assert load(tmp_path, lists + uses, on("y")).digest != first
    assert load(tmp_path, lists + uses, shipped=True).digest != first


def test_two_thousand_rules_load_in_a_second(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("".join(f"d{number}.example\n" for number in range(1000)))
    text = '[lists.a]\nkind = "domains"\nfile = "a.txt"\n' + "".join(
        f"""
[[rule]]
name = "rule-{number}"
why = "One of many."
tags = ["many"]
on = "RCPT"
when = 'rcpt.domain == "d{number}.example" && in_list("a", mail.domain) && client.hello.endsWith(".{number}.example")'
then = [{{ tag = "t{number}" }}, {{ answer = "550 5.7.1 {{rcpt.domain}} is rule {number}" }}]
"""
        for number in range(2000)
    )
    began = process_time()
    loaded = load(tmp_path, text)
    took = process_time() - began
    assert loaded.problems == ()
    assert len(loaded.rules) == 2000
    assert took < 4, f"{took:.2f} s"  # it takes half a second; a machine under test may be busy


# ------------------------------------------------------------------------------------------------------ warnings


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        (
            rule("x", "XEXCH50", '"deny"'),
            '4:13: warning: rule 1 "x": changes nothing: XEXCH50 is denied by rule strip-xexch50',
        ),
        (rule("x", "SIZE", '"allow"'), "changes nothing: SIZE is allowed by rule allow-size already"),
        (
            '[[rule]]\nname = "strip-etrn"\nwhy = "y"\nmode = "off"',
            '4:8: warning: rule 1 "strip-etrn": changes nothing: ETRN',
        ),
        (
            '[[rule]]\nname = "strip-ertn"\nwhy = "y"\nmode = "off"',
            "switches nothing off: no rule before it has this name",
        ),
        (
            rule("x", "BINARYMIME", '"allow"') + rule("y", "CHUNKING", '"deny"'),
            "BINARYMIME is told only where CHUNKING is",
        ),
        (rule("x", "8BITMIME", '"deny"'), "SMTPUTF8 is allowed by rule allow-smtputf8 and needs 8BITMIME"),
        (rule("x", "8BITMIME", '"allow-under-tls"'), "SMTPUTF8 is told only where 8BITMIME is"),
        (
            rule("x", "BDAT", '"allow-under-tls"'),
            "CHUNKING is allowed by rule allow-chunking, but its verb BDAT is allowed under TLS by rule x",
        ),
        (
            rule("x", "BDAT", '"deny"') + rule("y", "BDAT", '"allow"'),  # what x took along stays denied
            'rule 2 "y": CHUNKING is denied by rule x, but its verb BDAT is allowed by rule y',
        ),
        (rule("x", "BDAT", '"deny"') + rule("y", "BINARYMIME", '"allow"'), "but CHUNKING is denied by rule x"),
        (
            rule("x", "CHUNKING", '"deny"') + rule("y", "BDAT", '"deny"'),
            'rule 2 "y": changes nothing: BDAT is denied by rule x already',
        ),
        (rule("x", "TURN", '"allow"'), "once TURN is accepted nothing of the session is inspected"),
        (
            rule("x", "ETRN", '"allow"') + rule("y", "ETRN", '"allow-under-tls"'),
            'rule 1 "x": never holds: rule y comes later',
        ),
    ],
)
def test_what_is_hardly_meant_is_a_warning(tmp_path: Path, text: str, warning: str) -> None:
    loaded = load(tmp_path, text, shipped=True)
    (only,) = told(loaded)
    assert warning in only
    assert loaded.problems[0].severity == "warning"
    assert loaded.ok
    assert len(loaded.rules) > 90


@pytest.mark.parametrize(
    "text",
    [
        rule("x", "BINARYMIME", '"allow"'),
        rule("x", "CHUNKING", '"deny"'),  # BINARYMIME is denied anyway
        rule("x", "BDAT", '"deny"'),  # takes CHUNKING along
        rule("x", "BDAT", '{ answer = "503 5.5.1 Use DATA" }'),
        rule("x", "X-EXCH50", '{ answer = "504 5.5.4 Not here" }'),
        rule("x", "X-EXPS", '"allow-under-tls"'),
        rule("x", "SIZE", "{ limit = 5 }"),
        rule("x", "VRFY", '"allow"'),
        rule("x", "VRFY", '{ answer = "502 5.5.1 No" }'),
        rule("x", "HELP", '{ answer = "214 2.0.0 Ask us" }'),
        rule("x", "SMTPUTF8", '"deny"') + rule("y", "8BITMIME", '"deny"'),
    ],
)
def test_what_is_meant_is_none(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, text, shipped=True).problems == ()


# -------------------------------------------------------------------------------------------------- what is shipped


def about_extensions(loaded: Loaded) -> list[ExtensionRule]:
    return [made for made in loaded.rules if isinstance(made, ExtensionRule)]


def treatments(made: Treatments) -> dict[str, Treatment]:
    """What is done with every keyword and verb; LIMIT without a number is ALLOW."""
    return {
        f"{kind} {name.decode()}": Treatment.ALLOW if treatment is Treatment.LIMIT else treatment
        for kind, table in (("keyword", made._keywords), ("verb", made._verbs))
        for name, (treatment, _) in table.items()
    }


def test_the_shipped_rules_are_the_defaults_of_the_registry() -> None:
    loaded = load_rules([])
    assert loaded.problems == ()
    made, plain = Treatments(about_extensions(loaded)), Treatments([])
    assert treatments(made) == treatments(plain)
    assert made.commands.keys() == plain.commands.keys()
    for name, command in plain.commands.items():
        if made._verbs[name.encode()][0] is Treatment.DENY:  # such a rule asks nothing of command and session
            assert made.commands[name](None, None).value == command(None, None).value, name  # type: ignore[arg-type]
    assert made.size == 0


def test_every_keyword_and_every_verb_has_a_shipped_rule_with_a_reason_of_its_own() -> None:
    rules = about_extensions(load_rules([]))
    judge = Judge(rules)
    assert [name for name in (*EXTENSIONS, *VERBS) if not judge.owner(name)] == []
    assert len({made.feature.name for made in rules}) == len(rules)
    assert {made.feature.name for made in rules} <= set(FEATURE_NAMES)
    assert all(len(made.why) > 10 for made in rules)


def test_a_checkout_ships_its_rules_directory() -> None:
    assert shipped_rules() == REPOSITORY / "rules"


def test_missing_shipped_rules_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smtpproxy.policy.load.shipped_rules", lambda: tmp_path / "rules")
    assert told(load_rules([])) == ["rules: no such file or directory"]


def test_the_examples_load() -> None:
    examples = sorted((REPOSITORY / "deploy" / "rules-examples").glob("*.toml"))
    assert examples
    for example in examples:
        assert load_rules([example]).problems == (), example


def test_the_documentation_tells_the_truth(tmp_path: Path) -> None:
    page = (REPOSITORY / "docs" / "rules.md").read_text()
    blocks = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    loaded = load(tmp_path, *blocks, shipped=True)
    assert loaded.ok, loaded.problems
    assert "old-domain" not in names(loaded)  # switched off in the second block
    assert [problem.where for problem in loaded.problems] == ['rule 1 "strip-xexch50"']  # as shipped
