"""The compiled judge: what each name of the registry is treated as, what the list of a server becomes, and what a
client is told who asks for more."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpproxy.policy.judge import Judge, default_judge, extension_rule
from smtpproxy.policy.rules import ExtensionRule, Treatment
from smtpproxy.policy.treatments import TREATMENT_OF
from smtpproxy.session.ledger import Exchange
from smtpproxy.session.limits import LIMITS, Limits
from smtpproxy.session.postures import MIRROR, ClientTLS, Posture, ServerTLS
from smtpproxy.session.session import Session
from smtpproxy.session.state import TLSInfo, Transaction
from smtpproxy.session.verdicts import PASS, Action, Depth, Verdict
from smtpproxy.smtp import replies as say
from smtpproxy.smtp.commands import Command, parse_command
from smtpproxy.smtp.registry.extensions import EXTENSIONS
from smtpproxy.smtp.registry.features import FEATURE_NAMES, feature
from smtpproxy.smtp.registry.rows import Default, Framing, FramingClass, Verb
from smtpproxy.smtp.registry.verbs import VERBS
from smtpproxy.smtp.replies import Reply, multiline, own
from smtpproxy.smtp.values import Path
from tests.play import play
from tests.session.judges import ENVELOPE, GREETING, NOOP, QUIT, allow, anomalies, deny, exchanges, hello, limit_size

INFO = TLSInfo("TLSv1.3", "TLS_AES_256_GCM_SHA384", verified=True)
in_clear_and_under_tls = pytest.mark.parametrize("tls", [False, True], ids=["clear", "tls"])
NAMES = [name for name in FEATURE_NAMES if (found := feature(name)) and (found.keywords or found.verbs)]

MAIL = "MAIL FROM:<a@x.example>"


def session(judge: Judge, *, tls: bool = False, limits: Limits = LIMITS) -> Session:
    """A session that nobody talks in, both links encrypted and the server verified, or neither."""
    made = Session(judge=judge, record=lambda record: None, clock=lambda: 0.0, limits=limits)
    made.client.tls = made.server.tls = INFO if tls else None
    return made


def answer(judge: Judge, verb: str, *, tls: bool = False) -> Verdict:
    """What is done with a verb whose rule, if there is one, does not look at the command."""
    rule = judge.commands.get(verb)
    return PASS if rule is None else rule(None, session(judge, tls=tls))  # type: ignore[arg-type]


def mail(judge: Judge, line: str) -> Verdict:
    """What is done with a command as it is written."""
    command = parse_command(f"{line}\r\n".encode())
    assert isinstance(command, Command), command
    rule = judge.commands.get(command.verb.name)
    return PASS if rule is None else rule(command, session(judge))


def judged(judge: Judge, got: Reply, verb: str = "EHLO", *, tls: bool = False, limits: Limits = LIMITS) -> Verdict:
    """The verdict about the reply to a hello."""
    return judge.replies[verb](got, Exchange(VERBS[verb.encode()], None, 0.0), session(judge, tls=tls, limits=limits))


def listed(judge: Judge, *offered: str, tls: bool = False, limits: Limits = LIMITS) -> Verdict:
    """The verdict about a list."""
    return judged(judge, multiline(250, [b"mx", *(line.encode() for line in offered)]), tls=tls, limits=limits)


def told(judge: Judge, *offered: str, tls: bool = False, limits: Limits = LIMITS) -> list[str]:
    """What is left of a list."""
    verdict = listed(judge, *offered, tls=tls, limits=limits)
    if verdict == PASS:
        return list(offered)
    assert verdict.action is Action.REWRITE
    greeting, *lines = verdict.value.lines
    assert greeting == b"mx"
    return [line.decode() for line in lines]


def limit(name: str, number: int) -> ExtensionRule:
    return extension_rule(name, Treatment.LIMIT, number)


def tls_only(name: str) -> ExtensionRule:
    return extension_rule(name, Treatment.TLS)


# -------------------------------------------------------------------------------------- what holds without any rule


def test_every_default_has_a_treatment() -> None:
    assert set(TREATMENT_OF) == set(Default)


@pytest.mark.parametrize("verb", VERBS.values(), ids=lambda verb: verb.name)
def test_a_verb_is_treated_as_its_row_says(verb: Verb) -> None:
    """Allowed: no function at all. Denied: its refusal, by `default`. Under TLS: refused in clear alone."""
    judge = default_judge()
    refused = Verdict(Action.ANSWER, own(verb.refusal), "default")
    treatment = TREATMENT_OF[verb.default]
    assert (verb.name in judge.commands) is (treatment in (Treatment.DENY, Treatment.TLS))
    assert answer(judge, verb.name) == (PASS if treatment is Treatment.ALLOW else refused)
    assert answer(judge, verb.name, tls=True) == (refused if treatment is Treatment.DENY else PASS)


@pytest.mark.parametrize("keyword", EXTENSIONS)
def test_a_keyword_is_treated_as_its_row_says(keyword: bytes) -> None:
    """Offered with all it needs: told, taken out, or told on an encrypted link; what begins TLS, in clear alone."""
    row = EXTENSIONS[keyword]
    line = f"{row.keyword} 100"
    treatment = TREATMENT_OF[row.default]
    in_clear, encrypted = (line in told(default_judge(), line, *row.needs, tls=tls) for tls in (False, True))
    assert in_clear is (treatment in (Treatment.ALLOW, Treatment.LIMIT) and row.default is not Default.VERIFIED)
    assert encrypted is (treatment is not Treatment.DENY and row.default is not Default.TERMINATE)


def test_what_opens_a_tunnel_is_denied_by_default() -> None:
    """Nobody is let past inspection without an administrator's word."""
    for name, verb in VERBS.items():
        if Framing.OPAQUE in verb.then.values():
            assert answer(default_judge(), name.decode(), tls=True).action is Action.ANSWER


def test_the_judge_of_the_defaults_is_made_once_and_asks_for_nothing() -> None:
    """No limit of ours, nothing held back, nobody to name."""
    judge = default_judge()
    assert judge is default_judge()
    assert judge.rules == ()
    assert judge.max_size(session(judge)) == 0
    assert judge.depth(Transaction(1, Path(b"", b""), ()), session(judge)) is Depth.STREAM
    assert (judge.header, judge.content, judge.malformed) == (None, None, None)
    assert [judge.owner(name) for name in (*EXTENSIONS, *VERBS, b"XUNHEARDOF")] == [""] * (
        len(EXTENSIONS) + len(VERBS) + 1
    )


def test_what_is_compiled_does_not_change() -> None:
    """One judge serves all sessions."""
    judge = default_judge()
    with pytest.raises(TypeError):
        judge.commands["MAIL"] = judge.commands["VRFY"]  # type: ignore[index]
    with pytest.raises(TypeError):
        judge.replies["EHLO"] = judge.replies["HELO"]  # type: ignore[index]
    assert set(judge.replies) == {"EHLO", "LHLO", "HELO"}


# ------------------------------------------------------------------------------------------------- one rule, any name


@pytest.mark.parametrize("name", NAMES)
def test_allowed_is_allowed_everywhere(name: str) -> None:
    """In clear too; only what begins TLS is not offered inside of TLS, and what promises it not in clear."""
    about = feature(name)
    assert about is not None
    needs = [need for keyword in about.keywords for need in EXTENSIONS[keyword].needs]
    judge = allow(name, *needs)
    for verb in about.verbs:
        assert verb.decode() not in judge.commands
        assert judge.owner(verb) == f"allow-{name}".lower()
    for keyword in about.keywords:
        line = keyword.decode()
        row = EXTENSIONS[keyword]
        assert (line in told(judge, line, *needs)) is (row.default is not Default.VERIFIED)
        assert (line in told(judge, line, *needs, tls=True)) is (row.framing is not FramingClass.TLS)


@in_clear_and_under_tls
@pytest.mark.parametrize("name", NAMES)
def test_denied_is_denied_everywhere(name: str, tls: bool) -> None:
    """Keyword and verbs, by the rule's name; and the keyword of a verb that is denied by itself."""
    about = feature(name)
    assert about is not None
    judge, rule = deny(name), f"deny-{name}".lower()
    owners = {VERBS[verb].extension.encode() for verb in about.verbs if VERBS[verb].extension}
    for verb in about.verbs:
        verdict = answer(judge, verb.decode(), tls=tls)
        assert (verdict.action, verdict.rule) == (Action.ANSWER, rule)
        assert verdict.value.full.digit in (2, 4, 5)
        assert judge.owner(verb) == rule
    for keyword in about.keywords | owners:
        verdict = listed(judge, keyword.decode(), *EXTENSIONS[keyword].needs, tls=tls)
        assert keyword.decode() not in told(judge, keyword.decode(), *EXTENSIONS[keyword].needs, tls=tls)
        assert rule in verdict.rule.split()
        assert judge.owner(keyword) == rule


@pytest.mark.parametrize("name", NAMES)
def test_under_tls_is_denied_in_clear_and_allowed_under_tls(name: str) -> None:
    about = feature(name)
    assert about is not None
    needs = [need for keyword in about.keywords for need in EXTENSIONS[keyword].needs]
    judge = Judge([tls_only(name), *(extension_rule(need, Treatment.ALLOW) for need in needs)])
    for verb in about.verbs:
        row = VERBS[verb]
        assert answer(judge, row.name) == Verdict(Action.ANSWER, own(row.refusal), f"allow-under-tls-{name}".lower())
        assert answer(judge, row.name, tls=True) == PASS
    for keyword in about.keywords:
        line = keyword.decode()
        assert line not in told(judge, line, *needs)
        if EXTENSIONS[keyword].framing is not FramingClass.TLS:  # STARTTLS is neither here nor there
            assert line in told(judge, line, *needs, tls=True)


def test_the_last_rule_about_a_name_holds() -> None:
    judge = Judge(
        [
            extension_rule("ETRN", Treatment.ALLOW),
            tls_only("ETRN"),
            extension_rule("ETRN", Treatment.DENY, reply="450 4.7.1 Later"),
        ]
    )
    assert answer(judge, "ETRN", tls=True) == Verdict(Action.ANSWER, own("450 4.7.1 Later"), "deny-etrn")
    treatments = [rule.treatment for rule in judge.rules if isinstance(rule, ExtensionRule)]
    assert treatments == [Treatment.ALLOW, Treatment.TLS, Treatment.DENY]
    back = Judge([*judge.rules, extension_rule("ETRN", Treatment.ALLOW)])
    assert "ETRN" not in back.commands
    assert told(back, "ETRN") == ["ETRN"]


def test_the_owner_of_a_name_is_the_rule_that_decides() -> None:
    """HELP is keyword and verb; a rule that allows BDAT is about the verb alone."""
    judge = Judge([replace(extension_rule("HELP", Treatment.DENY), name="no-help")])
    assert judge.owner(b"HELP") == "no-help"
    assert answer(judge, "HELP").rule == "no-help"
    assert judge.owner(b"EXPN") == ""
    by_verb = Judge([replace(extension_rule("BDAT", Treatment.ALLOW), name="with-bdat")])
    assert (by_verb.owner(b"BDAT"), by_verb.owner(b"CHUNKING")) == ("with-bdat", "")


def test_a_rule_about_no_name_is_not_made() -> None:
    with pytest.raises(KeyError, match="XUNHEARDOF"):
        extension_rule("XUNHEARDOF", Treatment.DENY)


def test_an_answer_has_both_forms() -> None:
    """The enhanced status code goes to those who were told of ENHANCEDSTATUSCODES."""
    judge = deny("VRFY", reply="252 2.5.0 Ask somebody else")
    for offered, reply in (("ENHANCEDSTATUSCODES", "252 2.5.0 Ask somebody else"), ("DSN", "252 Ask somebody else")):
        records = play(hello(offered) + f"\n    C> VRFY a\n    >C {reply}\n", rules=judge)
        assert exchanges(records)[-1]["rule"] == "deny-vrfy"


# --------------------------------------------------------------------------------------------------- AUTH and STARTTLS


def test_auth_in_clear_is_told_to_encrypt() -> None:
    """RFC 4954 §6: 538, and no mechanism is shown."""
    judge = default_judge()
    assert answer(judge, "AUTH").value.full.code == 538
    assert told(judge, "AUTH PLAIN", "AUTH=LOGIN", "auth plain") == []
    assert told(judge, "AUTH PLAIN", "AUTH=LOGIN", tls=True) == ["AUTH PLAIN", "AUTH=LOGIN"]


@in_clear_and_under_tls
def test_denied_auth_is_not_told_to_encrypt(tls: bool) -> None:
    """538 would send the client through a handshake for nothing."""
    refused = Verdict(Action.ANSWER, own("502 5.5.1 Command not implemented"), "deny-auth")
    assert answer(deny("AUTH"), "AUTH", tls=tls) == refused
    assert told(deny("AUTH"), "AUTH PLAIN", "AUTH=PLAIN", tls=tls) == []


def test_the_answer_of_a_rule_takes_the_place_of_either() -> None:
    judge = deny("AUTH", reply="504 5.5.4 Not here")
    assert answer(judge, "AUTH").value == own("504 5.5.4 Not here")


def test_auth_in_a_session() -> None:
    """Refused without a word to the server, and the parameter of MAIL goes with it."""
    script = (
        hello("AUTH PLAIN", "AUTH=PLAIN", told=())
        + """
        C> AUTH PLAIN AGEAYg==
        >C {told}
        C> MAIL FROM:<a@x.example> AUTH=<>
        >C 555 Parameter not offered here
    """
        + NOOP
    )
    clear = exchanges(play(script.format(told="538 Encryption required for requested authentication mechanism")))
    assert [r.get("rule") for r in clear[1:4]] == ["default", "default", None]
    denied = exchanges(play(script.format(told="502 Command not implemented"), rules=deny("AUTH")))
    assert [r.get("rule") for r in denied[1:4]] == ["deny-auth", "deny-auth", "deny-auth"]


@pytest.mark.parametrize("name", ["STARTTLS", "X-ANONYMOUSTLS"])
def test_tls_is_not_offered_twice(name: str) -> None:
    """RFC 3207 §4.2: not inside of TLS, even if it is allowed."""
    assert told(allow(name), name, "DSN") == [name, "DSN"]
    assert told(allow(name), name, "DSN", tls=True) == ["DSN"]
    assert (told(default_judge(), name), told(default_judge(), name, tls=True)) == ([name], [])
    assert answer(deny(name), name).value == own("454 4.7.0 TLS not available")


def linked(judge: Judge, posture: Posture, client: bool, server: bool, verified: bool = False) -> Session:
    """A session under a posture, with these links encrypted."""
    made = Session(judge=judge, record=lambda record: None, clock=lambda: 0.0, posture=posture)
    made.client.tls = INFO if client else None
    made.server.tls = INFO._replace(verified=verified) if server else None
    return made


def told_in(made: Session, *offered: str) -> list[str]:
    """What is left of a list in this session."""
    got = multiline(250, [b"mx", *(line.encode() for line in offered)])
    verdict = made.judge.replies["EHLO"](got, Exchange(VERBS[b"EHLO"], None, 0.0), made)
    return [line.decode() for line in (got if verdict == PASS else verdict.value).lines[1:]]


@pytest.mark.parametrize(
    ("client", "server", "verified", "there"),
    [
        (False, False, False, False),
        (True, False, False, False),
        (False, True, True, False),
        (True, True, False, False),
        (True, True, True, True),
    ],
)
def test_requiretls_is_told_where_all_is_verified(client: bool, server: bool, verified: bool, there: bool) -> None:
    """RFC 8689 §2; and no rule can do without."""
    for judge in (default_judge(), allow("REQUIRETLS")):
        assert ("REQUIRETLS" in told_in(linked(judge, MIRROR, client, server, verified), "REQUIRETLS")) is there
    assert "REQUIRETLS" not in told_in(linked(deny("REQUIRETLS"), MIRROR, client, server, verified), "REQUIRETLS")


@pytest.mark.parametrize("never", [False, True])
@pytest.mark.parametrize(("client", "server"), [(False, False), (True, False), (False, True), (True, True)])
def test_auth_is_told_where_no_password_goes_in_clear(client: bool, server: bool, never: bool) -> None:
    """Both links, or the client's alone where the server's is never to be."""
    posture = Posture(ClientTLS.OFFER, ServerTLS.NEVER if never else ServerTLS.MIRROR)
    made = linked(default_judge(), posture, client, server)
    may = client and (server or never)
    assert ("AUTH PLAIN" in told_in(made, "AUTH PLAIN", "DSN")) is may
    command = parse_command(b"AUTH PLAIN AGEAYg==\r\n")
    assert isinstance(command, Command)
    assert (default_judge().commands["AUTH"](command, made) == PASS) is may


def test_starttls_is_added_where_the_posture_offers_it() -> None:
    """At the end, once, by the name of the posture; not where a rule denies it, nor to a HELO."""
    offering = Posture(ClientTLS.OFFER, ServerTLS.MIRROR)
    judge = default_judge()
    assert told_in(linked(judge, offering, False, False), "DSN") == ["DSN", "STARTTLS"]
    assert told_in(linked(judge, offering, False, False)) == ["STARTTLS"]
    assert told_in(linked(judge, offering, False, False), "starttls", "DSN") == ["starttls", "DSN"]
    assert told_in(linked(judge, offering, True, False), "STARTTLS", "DSN") == ["DSN"]
    for none in (deny("STARTTLS"), Judge([tls_only("STARTTLS")])):
        assert told_in(linked(none, offering, False, False), "STARTTLS", "DSN") == ["DSN"]
    made = linked(judge, offering, False, False)
    verdict = judge.replies["EHLO"](multiline(250, [b"mx", b"DSN"]), Exchange(VERBS[b"EHLO"], None, 0.0), made)
    assert (verdict.rule, verdict.anomalies) == ("posture", ())
    assert judge.replies["HELO"](multiline(250, [b"mx"]), Exchange(VERBS[b"HELO"], None, 0.0), made) == PASS


def test_one_judge_keeps_postures_apart() -> None:
    """What is remembered for a listener that offers TLS is not told at one that refuses it."""
    judge = Judge()
    for _ in range(2):
        for client, left in ((ClientTLS.OFFER, ["DSN", "STARTTLS"]), (ClientTLS.REFUSE, ["DSN"])):
            assert told_in(linked(judge, Posture(client, ServerTLS.MIRROR), False, False), "DSN") == left


@pytest.mark.parametrize("name", ["STARTTLS", "X-ANONYMOUSTLS"])
def test_tls_that_is_allowed_under_tls_is_never_offered(name: str) -> None:
    assert told(Judge([tls_only(name)]), name, "DSN", tls=True) == ["DSN"]


# ------------------------------------------------------------------------------------------------------ EHLO: keywords

OFFER = (
    "PIPELINING", "SIZE 10000000", "STARTTLS", "AUTH PLAIN LOGIN", "AUTH=PLAIN LOGIN", "8BITMIME", "BINARYMIME",
    "CHUNKING", "XUNHEARDOF a b", "X_ODD", "ENHANCEDSTATUSCODES", "SMTPUTF8", "XCLIENT NAME ADDR", "DSN",
)  # fmt: skip
LEFT = ["PIPELINING", "SIZE 10000000", "STARTTLS", "8BITMIME", "CHUNKING", "ENHANCEDSTATUSCODES", "SMTPUTF8", "DSN"]


def test_what_is_allowed_stays_as_it_came_and_in_order() -> None:
    verdict = listed(default_judge(), *OFFER)
    assert told(default_judge(), *OFFER) == LEFT
    assert (verdict.rule, verdict.anomalies) == ("default", ("keyword-stripped",))
    assert verdict.value.raw.endswith(b"\r\n250-SMTPUTF8\r\n250 DSN\r\n")


def test_a_list_with_nothing_to_take_out_passes_octet_for_octet() -> None:
    assert listed(default_judge(), *LEFT) == PASS
    assert listed(default_judge(), "size 5", "Dsn", "8bitmime ") == PASS
    assert listed(default_judge()) == PASS


@pytest.mark.parametrize("spelling", ["XCLIENT", "xclient NAME", "XClient=NAME", "XCLIENT\tNAME", "XCLIENT  "])
def test_no_spelling_saves_a_keyword(spelling: str) -> None:
    assert told(default_judge(), "DSN", spelling) == ["DSN"]


@pytest.mark.parametrize("spelling", ["DSN", "dsn", "DSN=x", "dSn  x "])
def test_a_denied_keyword_goes_in_every_spelling(spelling: str) -> None:
    verdict = listed(deny("DSN"), spelling, "8BITMIME")
    assert told(deny("DSN"), spelling, "8BITMIME") == ["8BITMIME"]
    assert (verdict.rule, verdict.anomalies) == ("deny-dsn", ("keyword-stripped",))


def test_the_last_line_may_go() -> None:
    """The line before it is the last one then."""
    verdict = listed(default_judge(), "DSN", "XCLIENT")
    assert verdict.value.raw == b"250-mx\r\n250 DSN\r\n"


def test_a_list_of_one_leaves_the_greeting_line() -> None:
    verdict = listed(default_judge(), "XCLIENT NAME")
    assert verdict.value.raw == b"250 mx\r\n"


def test_a_repeated_keyword_is_told_once() -> None:
    """The first line of each spelling is kept: `AUTH=` stands for old clients."""
    verdict = listed(default_judge(), "DSN", "DELIVERBY 1", "dsn", "DELIVERBY 2")
    assert told(default_judge(), "DSN", "DELIVERBY 1", "dsn", "DELIVERBY 2") == ["DSN", "DELIVERBY 1"]
    assert (verdict.rule, verdict.anomalies) == ("", ("ehlo-keyword-repeated",))
    assert told(default_judge(), "AUTH A", "AUTH=B", "AUTH C", "AUTH=D", tls=True) == ["AUTH A", "AUTH=B"]


@pytest.mark.parametrize(
    "line", ["", " ", " DSN", "-DSN", "_DSN", "DSN,8BITMIME", "caf\u00e9", "DSN \x01", "DSN\x00", "=DSN"]
)
def test_a_line_that_is_no_keyword_is_not_told(line: str) -> None:
    verdict = listed(default_judge(), "DSN", line, "8BITMIME")
    assert told(default_judge(), "DSN", line, "8BITMIME") == ["DSN", "8BITMIME"]
    assert (verdict.rule, verdict.anomalies) == ("", ("ehlo-line-malformed",))


def test_all_that_is_odd_is_told_together() -> None:
    """And each rule that took something out, once, in the order of the list."""
    verdict = listed(
        deny("DSN", "DELIVERBY"), "DELIVERBY", "DSN", "8BITMIME", "dsn", "8bitmime", "XUNHEARDOF", "@", "DELIVERBY 5"
    )
    assert verdict.value.raw == b"250-mx\r\n250 8BITMIME\r\n"
    assert verdict.rule == "deny-deliverby deny-dsn default"
    assert verdict.anomalies == ("ehlo-line-malformed", "keyword-stripped", "ehlo-keyword-repeated")


def test_lines_beyond_the_bound_are_not_looked_at() -> None:
    """A name that stood within it may stand behind it too, and is a repetition."""
    few = replace(LIMITS, ehlo_lines=2)
    assert told(Judge(), "DSN", "8BITMIME", "CHUNKING", "dsn", limits=few) == ["DSN", "8BITMIME"]


@pytest.mark.parametrize("code", [220, 251, 299])
def test_another_code_of_success_stays(code: int) -> None:
    """The first digit counts (RFC 5321 §4.2.1)."""
    assert judged(Judge(), multiline(code, [b"mx", b"DSN"])) == PASS
    verdict = judged(Judge(), multiline(code, [b"mx", b"XCLIENT", b"DSN"]))
    assert verdict.value == multiline(code, [b"mx", b"DSN"])


@pytest.mark.parametrize(
    "raw", [b"500 no\r\n", b"421-go\r\n421 XCLIENT\r\n", b"354 XCLIENT\r\n", b"550-a\r\n550 b\r\n"]
)
def test_a_refusal_is_no_list(raw: bytes) -> None:
    assert judged(default_judge(), Reply(int(raw[:3]), raw)) == PASS


def test_the_reply_to_lhlo_is_a_list_too() -> None:
    verdict = judged(default_judge(), multiline(250, [b"mx", b"XCLIENT", b"DSN"]), "LHLO")
    assert verdict.value.raw == b"250-mx\r\n250 DSN\r\n"


# -------------------------------------------------------------------------------------------- EHLO: what needs another


@pytest.mark.parametrize(
    ("rules", "offered", "left"),
    [
        (allow("BINARYMIME"), ["BINARYMIME", "CHUNKING"], ["BINARYMIME", "CHUNKING"]),
        (allow("BINARYMIME"), ["BINARYMIME", "8BITMIME"], ["8BITMIME"]),  # the server has none
        (Judge([*allow("BINARYMIME").rules, *deny("CHUNKING").rules]), ["BINARYMIME", "CHUNKING"], []),
        (Judge([*allow("BINARYMIME").rules, *deny("BDAT").rules]), ["BINARYMIME", "CHUNKING"], []),
        (Judge([*allow("BINARYMIME").rules, tls_only("CHUNKING")]), ["BINARYMIME", "CHUNKING"], []),
        (default_judge(), ["BINARYMIME", "CHUNKING"], ["CHUNKING"]),
        (default_judge(), ["SMTPUTF8", "8BITMIME"], ["SMTPUTF8", "8BITMIME"]),
        (default_judge(), ["SMTPUTF8", "DSN"], ["DSN"]),
        (deny("8BITMIME"), ["SMTPUTF8", "8BITMIME"], []),
        (default_judge(), ["smtputf8", "8bitmime"], ["smtputf8", "8bitmime"]),
        (allow("X-EXCHANGEAUTH"), ["X-EXCHANGEAUTH", "X-EXPS"], []),
        (allow("X-EXCHANGEAUTH", "X-EXPS"), ["X-EXCHANGEAUTH", "X-EXPS"], ["X-EXCHANGEAUTH", "X-EXPS"]),
        (allow("PIPECONNECT"), ["PIPECONNECT", "PIPELINING"], ["PIPECONNECT", "PIPELINING"]),
        (allow("PIPECONNECT"), ["PIPECONNECT"], []),
    ],
)
def test_an_extension_is_told_with_what_it_needs_or_not_at_all(
    rules: Judge, offered: list[str], left: list[str]
) -> None:
    """What is needed must be offered by the server, and allowed."""
    assert told(rules, *offered) == left


def test_what_goes_for_want_of_another_goes_by_the_rule_about_that() -> None:
    judge = Judge([*allow("BINARYMIME").rules, *deny("CHUNKING").rules])
    assert listed(judge, "CHUNKING", "BINARYMIME").rule == "deny-chunking"


def test_what_is_needed_under_tls_is_there_under_tls() -> None:
    judge = Judge([tls_only("8BITMIME")])
    assert told(judge, "SMTPUTF8", "8BITMIME") == []
    assert told(judge, "SMTPUTF8", "8BITMIME", tls=True) == ["SMTPUTF8", "8BITMIME"]


def test_what_is_needed_must_be_within_the_lines_looked_at() -> None:
    few = replace(LIMITS, ehlo_lines=2)
    assert told(Judge(), "SMTPUTF8", "DSN", "8BITMIME", limits=few) == ["DSN"]


def test_denied_bdat_takes_chunking_and_binarymime_along() -> None:
    """A client that was told of none of them is refused BDAT by the same rule, and sends by DATA."""
    judge = Judge([*allow("BINARYMIME").rules, *deny("BDAT").rules])
    records = play(
        hello("CHUNKING", "BINARYMIME", "8BITMIME", told=("8BITMIME",))
        + ENVELOPE
        + """
        C> BDAT 6 LAST
        C> RSET\\r\\n\\
        >C 502 Command not implemented

        C> MAIL FROM:<a@x.example> BODY=BINARYMIME
        >C 555 Parameter not offered here
    """
        + QUIT,
        rules=judge,
    )
    by = {r["verb"]: r.get("rule", "") for r in exchanges(records)}
    assert "deny-bdat" in by["EHLO"].split()
    assert by["BDAT"] == "deny-bdat"
    assert judge.owner(b"CHUNKING") == judge.owner(b"BDAT") == "deny-bdat"


# ------------------------------------------------------------------------------------------------------- EHLO: numbers


@pytest.mark.parametrize(
    ("offered", "left"),
    [
        ("SIZE", "SIZE 1000"),
        ("SIZE 0", "SIZE 1000"),  # RFC 1870 §4: no fixed maximum
        ("SIZE 10", "SIZE 10"),
        ("SIZE 999", "SIZE 999"),
        ("SIZE 1000", "SIZE 1000"),
        ("SIZE 1001", "SIZE 1000"),
        ("size 99999", "SIZE 1000"),
        ("SIZE=99999", "SIZE 1000"),
        ("SIZE  99999 ", "SIZE 1000"),
        ("SIZE 00010", "SIZE 10"),
        ("SIZE 00000", "SIZE 1000"),
        ("SIZE 5000 10", "SIZE 10"),
        ("SIZE 99999999999999999999", "SIZE 1000"),  # twenty digits, as RFC 1870 has them
        ("SIZE 000000000000000000010", "SIZE 1000"),  # more than it has: no number
        ("SIZE " + "9" * 2000, "SIZE 1000"),
        ("SIZE -1", "SIZE 1000"),
        ("SIZE +10", "SIZE 1000"),
        ("SIZE 1e1", "SIZE 1000"),
        ("SIZE 0x10", "SIZE 1000"),
        ("SIZE 10M", "SIZE 1000"),
    ],
)
def test_the_smaller_size_is_shown(offered: str, left: str) -> None:
    verdict = listed(limit_size(1000), "DSN", offered, "8BITMIME")
    assert told(limit_size(1000), "DSN", offered, "8BITMIME") == ["DSN", left, "8BITMIME"]
    assert verdict.rule == ("" if offered == left else "limit-size")
    assert verdict.anomalies == ()


@pytest.mark.parametrize(
    ("offered", "left"),
    [
        (["SIZE 5000", "SIZE 10"], "SIZE 10"),
        (["SIZE", "size 10"], "SIZE 10"),
        (["SIZE 0", "SIZE 0"], "SIZE 1000"),
        (["SIZE 10", "SIZE 0"], "SIZE 10"),
        (["SIZE 9999", "SIZE", "SIZE 8888"], "SIZE 1000"),
    ],
)
def test_of_several_sizes_the_smallest_counts(offered: list[str], left: str) -> None:
    assert told(limit_size(1000), *offered) == [left]
    assert listed(limit_size(1000), *offered).anomalies == ("ehlo-keyword-repeated",)


def test_a_size_in_both_spellings_is_told_once() -> None:
    assert told(limit_size(1000), "SIZE=10", "SIZE 20") == ["SIZE 10"]


def test_a_size_that_is_not_limited_stays_as_it_came() -> None:
    for line in ("SIZE", "SIZE 0", "SIZE 00010", "SIZE x", "SIZE " + "9" * 2000):
        assert told(default_judge(), line) == [line]
    assert told(limit_size(1000), "DSN") == ["DSN"]  # nothing is told that the server does not have


@pytest.mark.parametrize("then", [Treatment.ALLOW, Treatment.DENY, Treatment.TLS])
def test_a_later_rule_lifts_the_limit(then: Treatment) -> None:
    judge = Judge([limit("SIZE", 1000), extension_rule("SIZE", then)])
    assert judge.max_size(session(judge)) == 0
    assert "MAIL" not in judge.commands
    assert told(judge, "SIZE 5000") == (["SIZE 5000"] if then is Treatment.ALLOW else [])
    again = Judge([*judge.rules, limit("SIZE", 7)])
    assert again.max_size(session(again)) == 7


@pytest.mark.parametrize(
    ("offered", "left"),
    [
        ("LIMITS RCPTMAX=1000", "LIMITS RCPTMAX=100"),
        ("LIMITS RCPTMAX=100", "LIMITS RCPTMAX=100"),
        ("LIMITS RCPTMAX=20", "LIMITS RCPTMAX=20"),
        ("LIMITS MAILMAX=5000 RCPTMAX=1000 RCPTDOMAINMAX=5000", "LIMITS MAILMAX=5000 RCPTMAX=100 RCPTDOMAINMAX=5000"),
        ("limits rcptmax=1000", "LIMITS RCPTMAX=100"),
        ("LIMITS RCPTMAX=0001000", "LIMITS RCPTMAX=100"),
        ("LIMITS RCPTMAX=99999999999999999999", "LIMITS RCPTMAX=100"),
        ("LIMITS RCPTMAX=x RCPTMAX", "LIMITS RCPTMAX=x RCPTMAX"),  # no number to compare with
        ("LIMITS RCPTMAX=-5", "LIMITS RCPTMAX=-5"),
        ("LIMITS MAILMAX=5000", "LIMITS MAILMAX=5000"),
        ("LIMITS", "LIMITS"),
    ],
)
def test_the_smaller_count_of_recipients_is_shown(offered: str, left: str) -> None:
    """RFC 9422: a number of ours comes from a rule, else from the configuration."""
    by_rule, by_configuration = Judge([limit("LIMITS", 100)], recipients=1000), Judge(recipients=100)
    for judge, rule in ((by_rule, "limit-limits"), (by_configuration, "default")):
        assert told(judge, "DSN", offered) == ["DSN", left]
        assert listed(judge, "DSN", offered).rule == ("" if offered == left else rule)
    assert told(default_judge(), offered) == [offered]


def test_a_hostile_count_of_recipients_is_limited_too() -> None:
    assert told(Judge(recipients=100), "LIMITS RCPTMAX=" + "9" * 21) == ["LIMITS RCPTMAX=100"]


def test_a_later_rule_lifts_the_limit_of_recipients() -> None:
    judge = Judge([limit("LIMITS", 50), extension_rule("LIMITS", Treatment.ALLOW)], recipients=100)
    assert told(judge, "LIMITS RCPTMAX=1000") == ["LIMITS RCPTMAX=100"]


# ----------------------------------------------------------------------------------------------------------- all lists

_WORDS = [*(keyword.decode() for keyword in EXTENSIONS), "XUNHEARDOF", "8bitmime", "chunking", "dsn"]
_LINES = st.one_of(
    st.sampled_from(_WORDS),
    st.builds("{} {}".format, st.sampled_from(_WORDS), st.sampled_from(["PLAIN", "10", "0", "5000", "RCPTMAX=5000"])),
    st.builds("AUTH={}".format, st.sampled_from(["PLAIN", "LOGIN"])),
    st.text("AZaz09-_= \t\x00\xe9", max_size=8),
)
_RULES = st.lists(
    st.builds(
        extension_rule, st.sampled_from(NAMES), st.sampled_from([Treatment.ALLOW, Treatment.DENY, Treatment.TLS])
    ),
    max_size=4,
)


@given(_RULES, st.lists(_LINES, max_size=12), st.booleans(), st.sampled_from([0, 1000]))
def test_of_any_list_only_what_is_allowed_is_told(
    rules: list[ExtensionRule], offered: list[str], tls: bool, size: int
) -> None:
    """Nothing is told that was not offered; nothing without what it needs; and what was told is a list to be told."""
    judge = Judge([*rules, *([limit("SIZE", size)] if size else [])])
    left = told(judge, *offered, tls=tls)
    words = [line.upper().replace("=", " ").split()[0].encode() for line in left]
    assert set(words) <= EXTENSIONS.keys()
    for word, line in zip(words, left, strict=True):
        assert line in offered or (size and word == b"SIZE")
        assert {need.encode() for need in EXTENSIONS[word].needs} <= set(words)
        assert [told(judge, line, *EXTENSIONS[word].needs, tls=tls)[0]] == [line]
    assert listed(judge, *left, tls=tls) == PASS


# ---------------------------------------------------------------------------------------------------------------- HELO


@pytest.mark.parametrize("code", [250, 220, 550, 421])
def test_the_reply_to_helo_has_one_line(code: int) -> None:
    """RFC 5321 §4.1.1.1: a list behind it would be one that nobody may use."""
    verdict = judged(default_judge(), multiline(code, [b"mx hello", b"SIZE 10", b"DSN"]), "HELO")
    assert verdict == Verdict(Action.REWRITE, multiline(code, [b"mx hello"]), "default", ("helo-multiline",))
    assert judged(default_judge(), multiline(code, [b"mx SIZE"]), "HELO") == PASS


def test_helo_in_a_session() -> None:
    records = play(
        GREETING
        + """
        C> HELO me.example
        >S HELO me.example
        S> 250-mx.example
        S> 250-SIZE 1000
        S> 250 DSN
        >C 250 mx.example
        C> MAIL FROM:<a@x.example> SIZE=5
        >C 555 Parameter not offered here
    """
        + NOOP
    )
    assert "helo-multiline" in anomalies(records)


# ---------------------------------------------------------------------------------------------------- the size at MAIL


@pytest.mark.parametrize(
    ("size", "passes"),
    [
        ("0", True),
        ("1", True),
        ("1000", True),
        ("00000000000000001000", True),
        ("1001", False),
        ("00000000000000001001", False),
        ("99999999999999999999", False),
    ],
)
def test_a_declared_size_is_held_against_the_limit(size: str, passes: bool) -> None:
    """RFC 1870 §6.1: refused before a single octet of it."""
    verdict = mail(limit_size(1000), f"{MAIL} BODY=8BITMIME size={size}")
    assert verdict == (PASS if passes else Verdict(Action.ANSWER, say.TOO_BIG, "limit-size"))


def test_without_a_declared_size_or_a_limit_nothing_is_refused() -> None:
    assert mail(limit_size(1000), MAIL) == mail(limit_size(1000), f"{MAIL} BODY=8BITMIME RET=HDRS") == PASS
    assert mail(default_judge(), f"{MAIL} SIZE=99999999999999999999") == PASS
    assert "MAIL" not in default_judge().commands


@pytest.mark.parametrize("digits", [21, 1000])
def test_a_size_of_too_many_digits_is_none(digits: int) -> None:
    """RFC 1870 §3 has 20: the grammar refuses the command, and the judge is not asked."""
    records = play(
        hello("SIZE 5000", told=("SIZE 1000",))
        + f"""
        C> {MAIL} SIZE={"9" * digits}
        >C 501 Bad value for SIZE
    """,
        rules=limit_size(1000),
    )
    assert "rule" not in exchanges(records)[-1]


@pytest.mark.parametrize("verb", ["SEND", "SOML", "SAML", "EMAL", "ESND", "ESOM", "ESAM"])
def test_each_verb_that_begins_a_mail_is_held_to_the_limit(verb: str) -> None:
    """Where it is allowed; where it is not it stays refused as a verb."""
    line = f"{verb} FROM:<a@x.example> SIZE="
    judge = Judge([*allow(verb).rules, limit("SIZE", 1000)])
    assert mail(judge, f"{line}1000") == PASS
    assert mail(judge, f"{line}1001").value == say.TOO_BIG
    assert mail(limit_size(1000), f"{line}1").value == own("502 5.5.1 Command not implemented")


def test_a_denied_mail_is_refused_whatever_its_size() -> None:
    judge = Judge([*deny("MAIL").rules, limit("SIZE", 1000)])
    assert mail(judge, f"{MAIL} SIZE=5000").value == own("550 5.7.1 Transaction refused")


def test_the_size_at_mail_in_a_session() -> None:
    records = play(
        hello("SIZE 5000", "ENHANCEDSTATUSCODES", told=("SIZE 1000", "ENHANCEDSTATUSCODES"))
        + f"""
        C> {MAIL} SIZE=1001
        >C 552 5.3.4 Message too big
        C> {MAIL} SIZE=1000
        >S {MAIL} SIZE=1000
        S> 250 2.1.0 Ok
        >C 250 2.1.0 Ok
    """,
        rules=limit_size(1000),
    )
    assert [r.get("rule") for r in exchanges(records)[1:]] == ["limit-size", "limit-size", None]


# ---------------------------------------------------------------------------------------------------------- the memory


def test_a_list_is_judged_once() -> None:
    judge = Judge()
    first, second = (listed(judge, "XCLIENT", "DSN") for _ in range(2))
    assert first.value is second.value
    assert first == second


def test_what_is_remembered_in_clear_is_not_told_under_tls() -> None:
    judge = Judge()
    for _ in range(2):
        assert told(judge, "AUTH PLAIN", "DSN") == ["DSN"]
        assert told(judge, "AUTH PLAIN", "DSN", tls=True) == ["AUTH PLAIN", "DSN"]


def test_the_memory_is_bounded() -> None:
    """A server that never says the same twice costs no more than 256 lists (I7)."""
    judge = Judge()
    sizes = set()
    for number in range(1000):
        assert told(judge, f"SIZE {number}", "XCLIENT") == [f"SIZE {number}"]
        sizes.add(len(judge._base._told))
    assert max(sizes) == 256
    assert told(judge, "SIZE 0", "XCLIENT") == ["SIZE 0"]
