"""The registries: every name is there, every row is whole, and the tables agree with each other."""

import re

import pytest

from smtpproxy.smtp.registry.extensions import EXTENSIONS
from smtpproxy.smtp.registry.features import FEATURE_NAMES, Feature, default_of, feature
from smtpproxy.smtp.registry.parameters import PARAMETERS
from smtpproxy.smtp.registry.replycodes import REPLY_CODES
from smtpproxy.smtp.registry.rows import (
    Argument,
    Default,
    Extension,
    Framing,
    FramingClass,
    Kind,
    Parameter,
    Pipelining,
    Verb,
)
from smtpproxy.smtp.registry.verbs import END, GREETING, OCTETS, SASL, UNKNOWN, VERBS

# Every known name: v a verb, k a keyword, m a parameter of MAIL, r one of RCPT; then framing class, place, default.
NAMES = """
    EHLO             v    line       last  allow
    HELO             v    line       last  allow
    LHLO             v    n-replies  last  deny
    MAIL             v    line       any   allow
    RCPT             v    line       any   allow
    DATA             v    dot        stop  allow
    RSET             v    line       any   allow
    VRFY             vk   line       last  deny
    EXPN             vk   line       last  deny
    HELP             vk   line       last  allow
    NOOP             v    line       last  allow
    QUIT             v    line       last  allow
    SEND             vk   line       any   deny
    SOML             vk   line       any   deny
    SAML             vk   line       any   deny
    TURN             vk   reverse    stop  deny
    ATRN             vk   reverse    stop  deny
    ETRN             vk   line       last  deny
    AUTH             vkm  sasl       stop  allow-under-tls
    BDAT             v    bdat       any   allow
    BURL             vk   line       any   deny
    STARTTLS         vk   tls        stop  terminate
    SIZE             km   line       -     limit
    8BITMIME         k    line       -     allow
    BODY             m    -          -     allow
    BINARYMIME       k    line       -     deny
    CHUNKING         k    bdat       -     allow
    PIPELINING       k    line       -     allow
    ENHANCEDSTATUSCODES k line       -     allow
    DSN              k    line       -     allow
    RET              m    -          -     allow
    ENVID            m    -          -     allow
    NOTIFY           r    -          -     allow
    ORCPT            r    -          -     allow
    SMTPUTF8         km   line       -     allow
    UTF8SMTP         k    line       -     deny
    ALT-ADDRESS      mr   -          -     deny
    DELIVERBY        k    line       -     allow
    BY               m    -          -     allow
    CHECKPOINT       k    line       -     deny
    TRANSID          m    -          -     deny
    CONNEG           kr   line       -     deny
    CONPERM          km   line       -     deny
    MTRK             km   line       -     deny
    SUBMITTER        km   line       -     deny
    NO-SOLICITING    k    line       -     allow
    SOLICIT          m    -          -     allow
    FUTURERELEASE    k    line       -     deny
    HOLDFOR          m    -          -     deny
    HOLDUNTIL        m    -          -     deny
    MT-PRIORITY      km   line       -     deny
    RRVS             kr   line       -     allow
    REQUIRETLS       km   line       -     allow-if-verified
    LIMITS           k    line       -     limit
    PRDR             km   n-replies  -     deny
    PIPECONNECT      k    line       -     deny
    X_PIPE_CONNECT   k    line       -     deny
    WELLKNOWN        vk   line       any   deny
    XVERP            km   line       -     deny
    XCLIENT          vk   reset      last  deny
    XFORWARD         vk   line       any   deny
    VERB             vk   noise      last  deny
    ONEX             vk   line       last  deny
    XUSR             vk   line       last  deny
    DEBUG            v    line       last  deny
    WIZ              v    line       last  deny
    QUEU             v    unknown    last  deny
    TICK             v    line       last  deny
    TIME             v    unknown    last  deny
    TURNME           v    line       last  deny
    IDENT            v    line       last  deny
    Z-IDENT          v    line       last  deny
    Z-DEBUG          v    line       last  deny
    Z-REPORT         v    line       last  deny
    EMAL             v    line       last  deny
    ESND             v    line       last  deny
    ESOM             v    line       last  deny
    ESAM             v    line       last  deny
    EVFY             v    line       last  deny
    XEXCH50          vk   go-octets  stop  deny
    X-EXCH50         v    go-octets  stop  deny
    X-EXPS           vk   sasl       stop  deny
    X-EXCHANGEAUTH   k    sasl       -     deny
    X-ANONYMOUSTLS   vk   tls        stop  terminate
    X-LINK2STATE     vk   line       last  deny
    XSHADOW          vkm  line       last  deny
    XSHADOWREQUEST   vk   line       last  deny
    XQDISCARD        v    line       last  deny
    XPROXY           vk   line       stop  deny
    XPROXYFROM       vk   line       last  deny
    XPROXYTO         vk   tunnel     stop  deny
    XRSETPROXYTO     v    line       last  deny
    XSESSIONPARAMS   vk   line       last  deny
    X-MESSAGECONTEXT k    bdat       -     deny
    XMESSAGECONTEXT  m    -          -     deny
    XOORG            km   line       -     deny
    XORAR            kr   line       -     deny
    XRDST            kr   line       -     deny
    XLONGADDR        k    line       -     deny
    XSYSPROBE        k    line       -     deny
    XSYSPROBEID      m    -          -     deny
    XMSGID           km   line       -     deny
    XATTR            k    line       -     deny
    XATTRDIRECT      m    -          -     deny
    XATTRORGID       m    -          -     deny
    XORIGFROM        km   line       -     deny
    XAUTH            v    sasl       stop  deny
    X-ADAT           v    unknown    last  deny
    X-DRCP           v    unknown    last  deny
    X-ERCP           v    unknown    last  deny
    XADR             v    line       last  deny
    XCIR             v    line       last  deny
    XGEN             v    line       last  deny
    XSTA             v    line       last  deny
    XQUE             v    unknown    last  deny
    XTRN             v    unknown    stop  deny
    XLICENSE         v    unknown    last  deny
"""

# The list of commands the proxy was asked to know.
MISSION = """
    8BITMIME ATRN AUTH BDAT BINARYMIME CHUNKING DATA DSN ENHANCEDSTATUSCODES ETRN EHLO EXPN HELO HELP MAIL NOOP ONEX
    PIPELINING QUEU QUIT RCPT RSET SAML SEND SIZE SOML STARTTLS TICK TURN VERB VRFY XEXCH50 XUSR
"""

PSEUDO = (GREETING, SASL, END, OCTETS, UNKNOWN)
ROWS: list[Verb | Extension] = [*VERBS.values(), *PSEUDO, *EXTENSIONS.values()]
PARAMETER_ROWS = {row.keyword: row for row in PARAMETERS.values()}
KNOWN = [tuple(line.split()) for line in NAMES.strip().splitlines()]


def name_of(row: object) -> str:
    return row.name if isinstance(row, Verb) else row.keyword if isinstance(row, Extension | Parameter) else str(row)


def is_sentence(text: str) -> bool:
    """One sentence: it begins with a capital and has one period, at its end. (`CRLF . CRLF` is not the end of one.)"""
    return bool(re.fullmatch(r"[A-Z](?:[^.]|\.(?=\w)|(?<= )\.(?= ))*\.", text))


# --- every name -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kinds", "framing", "place", "default"), KNOWN, ids=[line[0] for line in KNOWN])
def test_every_known_name_is_there(name: str, kinds: str, framing: str, place: str, default: str) -> None:
    key = name.encode("ascii")
    found = {
        "v": key in VERBS,
        "k": key in EXTENSIONS,
        "m": (b"MAIL", key) in PARAMETERS,
        "r": (b"RCPT", key) in PARAMETERS,
    }
    assert "".join(kind for kind, is_there in found.items() if is_there) == kinds
    if "v" in kinds:
        assert (VERBS[key].framing.value, VERBS[key].pipelining.value) == (framing, place)
        assert VERBS[key].default.value == default
    if "k" in kinds:
        assert (EXTENSIONS[key].framing.value, EXTENSIONS[key].default.value) == (framing, default)
    of = feature(name)
    assert of is not None
    assert default_of(of).value == default


def test_no_name_is_missing_from_the_list_above() -> None:
    assert set(FEATURE_NAMES) == {line[0] for line in KNOWN}


def test_the_mission_names_are_all_there() -> None:
    mission = MISSION.split()
    assert len(mission) == len(set(mission)) == 33
    assert [name for name in mission if feature(name) is None] == []


def test_pseudo_verbs_are_no_verbs() -> None:
    assert [row.name for row in PSEUDO] == ["GREETING", "SASL", "END", "OCTETS", "UNKNOWN"]
    assert all(row.kind is Kind.PSEUDO and row.name.encode() not in VERBS for row in PSEUDO)
    assert all(verb.kind is not Kind.PSEUDO for verb in VERBS.values())


# --- whole rows -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_row_is_whole(row: Verb | Extension) -> None:
    assert is_sentence(row.why), row.why
    assert is_sentence(row.what), row.what
    assert not row.risk or row.risk.endswith("."), row.risk
    assert row.reference
    assert row.confidence in {"A", "B", "U"}


@pytest.mark.parametrize("key", [*VERBS, *EXTENSIONS], ids=bytes.decode)
def test_keys_are_the_names_in_capitals(key: bytes) -> None:
    assert key == key.upper()
    if key in VERBS:
        assert VERBS[key].name.encode() == key
        assert re.match(rf"{re.escape(VERBS[key].name)}(?: |$)", VERBS[key].syntax)
    if key in EXTENSIONS:
        assert EXTENSIONS[key].keyword.encode() == key


@pytest.mark.parametrize("verb", [*VERBS.values(), *PSEUDO], ids=name_of)
def test_what_decides_the_framing_holds(verb: Verb) -> None:
    assert verb.holds or verb.pipelining is not Pipelining.STOP
    assert verb.holds or not verb.then
    assert verb.holds or verb.framing is not FramingClass.UNKNOWN
    assert verb.holds or verb.confidence != "U"
    assert all(200 <= code <= 399 for code in verb.then)


@pytest.mark.parametrize("verb", [*VERBS.values(), *PSEUDO], ids=name_of)
def test_refusal_is_a_reply_that_refuses(verb: Verb) -> None:
    if verb.name == "VRFY":  # answered here, and not with a refusal
        assert verb.refusal.startswith("252 2.5.0 ")
        return
    found = re.fullmatch(r"([45])\d\d ([45])\.\d+\.\d+ [ -~]+", verb.refusal)
    assert found is not None
    assert found[1] == found[2]
    assert int(verb.refusal[:3]) in REPLY_CODES


@pytest.mark.parametrize(
    ("verb", "then"),
    [
        ("DATA", {354: Framing.CONTENT}),
        ("AUTH", {334: Framing.SASL}),
        ("X-EXPS", {334: Framing.SASL}),
        ("XAUTH", {334: Framing.SASL}),
        ("STARTTLS", {220: Framing.TLS}),
        ("X-ANONYMOUSTLS", {220: Framing.TLS}),
        ("QUIT", {221: Framing.NOTHING}),
        ("XEXCH50", {354: Framing.COUNTED}),
        ("X-EXCH50", {354: Framing.COUNTED}),
        ("XCLIENT", {220: Framing.GREETING}),
        ("TURN", {250: Framing.OPAQUE}),
        ("ATRN", {250: Framing.OPAQUE}),
        ("XTRN", {250: Framing.OPAQUE}),
        ("XPROXYTO", {250: Framing.OPAQUE}),
    ],
)
def test_replies_that_change_the_framing(verb: str, then: dict[int, Framing]) -> None:
    assert VERBS[verb.encode()].then == then


def test_no_other_reply_changes_the_framing() -> None:
    changing = {verb.name for verb in VERBS.values() if verb.then}
    assert changing == (
        {"DATA", "AUTH", "X-EXPS", "XAUTH", "STARTTLS", "X-ANONYMOUSTLS", "QUIT", "XEXCH50", "X-EXCH50", "XCLIENT"}
        | {"TURN", "ATRN", "XTRN", "XPROXYTO"}
    )
    assert SASL.then == {334: Framing.SASL}
    assert not GREETING.then
    assert not END.then
    assert not OCTETS.then


def test_the_same_octets_follow_both_spellings_of_xexch50() -> None:
    one, other = VERBS[b"XEXCH50"], VERBS[b"X-EXCH50"]
    assert (one.argument, one.then, one.holds, one.extension) == (other.argument, other.then, other.holds, "XEXCH50")
    assert feature("XEXCH50") == Feature(
        "XEXCH50", keywords=frozenset({b"XEXCH50"}), verbs=frozenset({b"XEXCH50", b"X-EXCH50"})
    )


def test_who_begins_a_transaction() -> None:
    begin = {verb.name for verb in VERBS.values() if verb.transaction}
    assert begin == {"MAIL", "SEND", "SOML", "SAML", "EMAL", "ESND", "ESOM", "ESAM"}
    assert all(VERBS[name.encode()].argument is Argument.MAIL for name in begin)


def test_whose_argument_is_a_secret() -> None:
    secret = {verb.name for verb in VERBS.values() if verb.argument in {Argument.SECRET, Argument.AUTH, Argument.URI}}
    assert secret == {"AUTH", "X-EXPS", "XAUTH", "BURL", "WIZ"}
    assert SASL.argument is Argument.SECRET


def test_codes_named_in_a_row_are_in_the_table() -> None:
    for verb in (*VERBS.values(), *PSEUDO):
        for code in re.findall(r"\b[0-9]{3}\b", f"{verb.success} {verb.failure}"):
            assert int(code) in REPLY_CODES, (verb.name, code)
        assert set(verb.then) <= set(REPLY_CODES)


@pytest.mark.parametrize("code", REPLY_CODES)
def test_reply_code_row_is_whole(code: int) -> None:
    row = REPLY_CODES[code]
    assert row.code == code
    assert row.meaning.endswith(".")
    assert not row.note or row.note.endswith(".")
    assert row.verbs
    assert row.reference
    assert code == 50 or 200 <= code <= 599


# --- the tables agree -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extension", EXTENSIONS.values(), ids=name_of)
def test_what_a_keyword_brings_points_back(extension: Extension) -> None:
    for verb in extension.verbs:
        row = VERBS[verb.encode()]
        core = row.kind in {Kind.STANDARD, Kind.HISTORIC} and not row.extension  # may be used unannounced
        assert row.extension == extension.keyword or (core and verb == extension.keyword)
        assert row.default is extension.default
    for on, parameters in (("MAIL", extension.mail_parameters), ("RCPT", extension.rcpt_parameters)):
        for parameter in parameters:
            assert extension.keyword in PARAMETERS[on.encode(), parameter.encode()].extensions
    assert all(need.encode() in EXTENSIONS for need in extension.needs)


@pytest.mark.parametrize("verb", VERBS.values(), ids=name_of)
def test_what_a_verb_belongs_to_brings_it(verb: Verb) -> None:
    if verb.extension:
        assert verb.name in EXTENSIONS[verb.extension.encode()].verbs


@pytest.mark.parametrize("row", PARAMETER_ROWS.values(), ids=name_of)
def test_what_permits_a_parameter_brings_it(row: Parameter) -> None:
    for on in row.on:
        assert PARAMETERS[on.encode(), row.keyword.encode()] is row
        for keyword in row.extensions:
            extension = EXTENSIONS[keyword.encode()]
            assert row.keyword in (extension.mail_parameters if on == "MAIL" else extension.rcpt_parameters)


def test_needed_keywords() -> None:
    assert EXTENSIONS[b"BINARYMIME"].needs == ("CHUNKING",)
    assert EXTENSIONS[b"SMTPUTF8"].needs == ("8BITMIME",)


# --- features -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("chunking", Feature("CHUNKING", keywords=frozenset({b"CHUNKING"}), verbs=frozenset({b"BDAT"}))),
        ("BDAT", Feature("BDAT", verbs=frozenset({b"BDAT"}))),
        ("Etrn", Feature("ETRN", keywords=frozenset({b"ETRN"}), verbs=frozenset({b"ETRN"}))),
        ("help", Feature("HELP", keywords=frozenset({b"HELP"}), verbs=frozenset({b"HELP"}))),
        ("RET", Feature("RET", mail_parameters=frozenset({b"RET"}))),
        (
            "dsn",
            Feature(
                "DSN",
                keywords=frozenset({b"DSN"}),
                mail_parameters=frozenset({b"RET", b"ENVID"}),
                rcpt_parameters=frozenset({b"NOTIFY", b"ORCPT"}),
            ),
        ),
        (
            "alt-address",
            Feature(
                "ALT-ADDRESS", mail_parameters=frozenset({b"ALT-ADDRESS"}), rcpt_parameters=frozenset({b"ALT-ADDRESS"})
            ),
        ),
        (
            "AUTH",
            Feature(
                "AUTH",
                keywords=frozenset({b"AUTH"}),
                verbs=frozenset({b"AUTH"}),
                mail_parameters=frozenset({b"AUTH"}),
            ),
        ),
    ],
)
def test_feature(name: str, expected: Feature) -> None:
    assert feature(name) == expected


@pytest.mark.parametrize("name", ["", "XYZZY", "MAIL FROM", "ﬀ", "ſIZE", "GREETING", "UNKNOWN"])
def test_no_feature(name: str) -> None:
    assert feature(name) is None


def test_default_of_a_feature_of_nothing_is_deny() -> None:
    assert default_of(Feature("NOTHING")) is Default.DENY


def test_feature_names_are_sorted_and_resolve() -> None:
    assert list(FEATURE_NAMES) == sorted(set(FEATURE_NAMES))
    for name in FEATURE_NAMES:
        of = feature(name.lower())
        assert of is not None
        assert of.keywords | of.verbs | of.mail_parameters | of.rcpt_parameters
