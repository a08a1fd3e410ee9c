"""Rules on extensions: `extension = NAME`, `then = TREATMENT`."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from smtpproxy.policy.answers import A_REFUSAL, A_REPLY, answerable, why_not
from smtpproxy.policy.fields import EXTENSION
from smtpproxy.policy.rules import ExtensionRule, Source, Treatment
from smtpproxy.policy.ruletables import RuleTable
from smtpproxy.policy.tables import near
from smtpproxy.policy.toml import nearest_sizes, parse_size, shown
from smtpproxy.smtp.registry.features import FEATURE_NAMES, Feature, default_of, feature
from smtpproxy.smtp.registry.parameters import PARAMETERS
from smtpproxy.smtp.registry.rows import Default
from smtpproxy.smtp.registry.verbs import VERBS
from smtpproxy.smtp.replies import OwnReply, own

if TYPE_CHECKING:
    from smtpproxy.policy.expr import Compiler

KEYS = ("name", "why", "extension", "when", "then", "mode", "tags")
_WORDS = {treatment.value: treatment for treatment in (Treatment.ALLOW, Treatment.DENY, Treatment.TLS)}
_TABLES = ("limit", "answer")
_THEN = '"allow", "deny", "allow-under-tls", { limit = … } or { answer = "…" }'
_LIMITS = {"SIZE": 'a size, e.g. "25 MiB"', "LIMITS": "a count of recipients, e.g. 100"}
_LARGEST = 10**20 - 1  # RFC 1870 §3: a size has at most 20 digits

Then = tuple[Treatment, int, OwnReply | None]


def read_extension(table: RuleTable, compiler: "Compiler", source: Source) -> ExtensionRule | None:
    """The rule; None where it is off, or where anything is wrong and the table's problems say what."""
    table.unknown_keys((), table.values, KEYS)
    table.read_name()
    why = table.read_why()
    about = _feature(table)
    when = table.read_when(compiler, (EXTENSION,))
    then = _then(table, about)
    mode = table.read_mode()
    tags = table.read_tags()
    if table.off or about is None or then is None:
        return None
    treatment, limit, reply = then
    return ExtensionRule(table.name, why, about, treatment, limit, reply, source, when, mode, tags)


def _feature(table: RuleTable) -> Feature | None:
    if table.off and "extension" not in table.values:
        return None
    name = table.text("extension", 'the name of an extension or verb, e.g. "XEXCH50"')
    if not name:
        return None
    about = feature(name)
    if about is None:
        table.bad(("extension",), f"{shown(name)} is not a name that smtpproxy knows", near=near(name, FEATURE_NAMES))
    elif not about.keywords and not about.verbs:
        table.bad(
            ("extension",),
            f"{about.name} is a parameter, and parameters go with their extension",
            expected=" or ".join(f'"{name}"' for name in _extensions_of(about)),
        )
        return None
    return about


def _then(table: RuleTable, about: Feature | None) -> Then | None:
    value = table.values.get("then")
    if value is None:
        if not table.off:
            table.bad((), "then is missing", expected=_THEN)
        return None
    if isinstance(value, dict):
        return _then_table(table, value, about)
    treatment = _WORDS.get(value) if isinstance(value, str) else None
    if treatment is None:
        table.bad(("then",), f"{shown(value)} is not something to do", expected=_THEN, near=near(value, _WORDS))
        return None
    if about is not None and treatment is Treatment.TLS and default_of(about) is Default.TERMINATE:
        table.bad(("then",), f"{about.name} under TLS is nothing: it begins it", expected='"allow" or "deny"')
    return treatment, 0, None


def _then_table(table: RuleTable, then: Mapping[str, Any], about: Feature | None) -> Then | None:
    table.unknown_keys(("then",), then, _TABLES)
    if "limit" in then and "answer" in then:
        table.bad(("then",), "limit and answer are two things", expected="one of them")
    elif "limit" in then:
        return _limit(table, then["limit"], about)
    elif "answer" in then:
        return _answer(table, then["answer"], about)
    elif not then:
        table.bad(("then",), "is empty", expected=_THEN)
    return None


def _limit(table: RuleTable, value: object, about: Feature | None) -> Then | None:
    path = ("then", "limit")
    if about is None:
        return None
    expected = _LIMITS.get(about.name)
    if expected is None:
        table.bad(path, f"{about.name} has no number to limit", key=True, expected=" or ".join(_LIMITS))
        return None
    number = 0
    if isinstance(value, int) and not isinstance(value, bool):
        number = value
    elif about.name == "SIZE" and isinstance(value, str):
        try:
            number = parse_size(value)
        except ValueError as error:
            table.bad(path, str(error), expected=expected, near=nearest_sizes(value))
            return None
    if not 0 < number <= _LARGEST:
        table.bad(path, f"{shown(value)} is not a limit", expected=expected)
    return Treatment.LIMIT, number, None


def _answer(table: RuleTable, value: object, about: Feature | None) -> Then | None:
    path = ("then", "answer")
    if about is not None and not about.verbs:
        table.bad(path, f"{about.name} has no verb to answer", key=True, expected='then = "deny"')
    if not isinstance(value, str):
        table.bad(path, f"{shown(value)} is not a string", expected=A_REPLY)
        return None
    try:
        reply = own(value)
    except ValueError as error:
        table.bad(path, str(error).partition(" (expected")[0], expected=A_REPLY)
        return None
    verbs = () if about is None else sorted(verb.decode() for verb in about.verbs if not answerable(VERBS[verb]))
    if wrong := why_not(reply.full.code, verbs):
        table.bad(path, wrong, expected=A_REFUSAL)
    return Treatment.DENY, 0, reply


def _extensions_of(parameter: Feature) -> list[str]:
    key = parameter.name.encode()
    rows = [PARAMETERS[verb, key] for verb in (b"MAIL", b"RCPT") if (verb, key) in PARAMETERS]
    return sorted({extension for row in rows for extension in row.extensions})
