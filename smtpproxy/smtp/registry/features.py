"""A feature: whatever a rule or a setting calls by one name, as all the names that must go or stay together.

Taking an extension out means three things at once: the keyword leaves the EHLO reply, its verbs are refused, its
parameters are refused. `feature` finds the three for one name:

- a keyword brings its verbs and parameters along (`CHUNKING` brings BDAT);
- a verb stands for itself, and for the keyword of the same name with all that belongs to it (`BDAT` is BDAT alone,
  `ETRN` is both);
- a parameter stands for itself (`RET` doesn't bring the rest of DSN).
"""

from dataclasses import dataclass

from smtpproxy.smtp.registry.extensions import EXTENSIONS
from smtpproxy.smtp.registry.parameters import PARAMETERS
from smtpproxy.smtp.registry.rows import Default
from smtpproxy.smtp.registry.verbs import VERBS

_NOTHING: frozenset[bytes] = frozenset()


@dataclass(frozen=True, slots=True)
class Feature:
    """What one name stands for; all names in capitals."""

    name: str
    keywords: frozenset[bytes] = _NOTHING
    verbs: frozenset[bytes] = _NOTHING
    mail_parameters: frozenset[bytes] = _NOTHING
    rcpt_parameters: frozenset[bytes] = _NOTHING


FEATURE_NAMES: tuple[str, ...] = tuple(
    sorted({name.decode("ascii") for name in (*VERBS, *EXTENSIONS, *(keyword for _, keyword in PARAMETERS))})
)


def feature(name: str) -> Feature | None:
    """What `name` stands for, in any case; None if no registry knows it."""
    if not name.isascii():  # asked first: "ß" in capitals is "SS"
        return None
    name = name.strip().upper()
    key = name.encode("ascii")
    extension = EXTENSIONS.get(key)
    if extension is not None:
        return Feature(
            name,
            keywords=frozenset((key,)),
            verbs=_octets(extension.verbs) | (frozenset((key,)) & VERBS.keys()),
            mail_parameters=_octets(extension.mail_parameters),
            rcpt_parameters=_octets(extension.rcpt_parameters),
        )
    if key in VERBS:
        return Feature(name, verbs=frozenset((key,)))
    on_mail, on_rcpt = (b"MAIL", key) in PARAMETERS, (b"RCPT", key) in PARAMETERS
    if on_mail or on_rcpt:
        return Feature(
            name,
            mail_parameters=frozenset((key,)) if on_mail else _NOTHING,
            rcpt_parameters=frozenset((key,)) if on_rcpt else _NOTHING,
        )
    return None


def default_of(feature: Feature) -> Default:
    """What is done with `feature` when no rule says otherwise: the keyword's default, else the verb's, else that of
    the first keyword that permits the parameter."""
    for keyword in feature.keywords:
        return EXTENSIONS[keyword].default
    for verb in feature.verbs:
        return VERBS[verb].default
    for verb, parameters in ((b"MAIL", feature.mail_parameters), (b"RCPT", feature.rcpt_parameters)):
        for parameter in parameters:
            return EXTENSIONS[PARAMETERS[verb, parameter].extensions[0].encode("ascii")].default
    return Default.DENY


def _octets(names: tuple[str, ...]) -> frozenset[bytes]:
    return frozenset(name.encode("ascii") for name in names)
