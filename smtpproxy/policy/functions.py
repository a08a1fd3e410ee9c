"""The functions of conditions: what they are, for people, and what ours do.

CEL brings most; those in OWN are ours, and work on what mail is made of. All of them take time in proportion to what
they are given: regular expressions are RE2's, which can't be made to hang.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import re2

_CACHED: Final = 2048  # patterns kept compiled
_MEMORY: Final = 1 << 22  # octets RE2 may use for one pattern
_LONGEST: Final = 1000  # characters of a pattern
_ENDS: Final = ' \t>,;)"'


class PatternError(ValueError):
    """A regular expression that RE2 does not take; the message says why."""


class Function(NamedTuple):
    """One function, for people."""

    name: str
    signature: str
    example: str
    sentence: str


OWN: Final[tuple[Function, ...]] = (
    Function(
        "in_list",
        'in_list("name", value)',
        'in_list("blocked-domains", mail.domain)',
        "The value is in the list of that name, by the list's kind; of several values, one of them is.",
    ),
    Function(
        "in_network",
        'in_network(address, "network")',
        'in_network(client.address, ["10.0.0.0/8", "fc00::/7"])',
        "The address is in the network, in one of several, or in the list of networks of that name. What is no address"
        " is in none.",
    ),
    Function(
        "domain",
        "domain(address)",
        'header["From"].exists(f, domain(f) != mail.domain)',
        'What stands behind the last @, in small letters; "" if there is none.',
    ),
    Function(
        "glob",
        'glob(value, "pattern")',
        'glob(rcpt.local, "sales-*")',
        "The whole value is like the pattern: `*` is any characters, `?` is one. Case does not matter.",
    ),
    Function(
        "matches",
        'matches(value, "expression")',
        'matches(client.hello, r"^[0-9-]+\\.")',
        "The regular expression (RE2) is found in the value. `value.matches(…)` is the same.",
    ),
    Function("lower", "lower(value)", 'lower(mail.local) == "root"', "The value in small letters."),
    Function(
        "rate",
        'rate(key, n, "window")',
        'rate(client.address, 100, "1h")',
        "The key has come more than n times within the window. Asking counts, but for what is beyond n. The count is"
        " this condition's own.",
    ),
    Function(
        "locked",
        'locked("rule", key)',
        'locked("too-many-unknown", client.address)',
        "The limit of that rule has locked the key: an address, a sender, a domain, as its `per` says.",
    ),
)

CELS: Final[tuple[Function, ...]] = (
    Function("size", "size(value)", "size(mail.recipients) > 10", "Characters of a text, or entries of a list or map."),
    Function(
        "startsWith", "value.startsWith(text)", 'rcpt.local.startsWith("list-")', "The value begins with the text."
    ),
    Function("endsWith", "value.endsWith(text)", 'client.hello.endsWith(".local")', "The value ends with the text."),
    Function("contains", "value.contains(text)", 'reply.text.contains("spam")', "The text is somewhere in the value."),
    Function(
        "exists",
        "list.exists(x, condition)",
        "mail.domains.exists(d, d != mail.domain)",
        "The condition holds for one of the entries, at least.",
    ),
    Function(
        "all",
        "list.all(x, condition)",
        'mail.recipients.all(r, domain(r) == "example.com")',
        "The condition holds for all of the entries.",
    ),
    Function(
        "exists_one",
        "list.exists_one(x, condition)",
        'header["Received"].exists_one(r, r.contains("localhost"))',
        "The condition holds for one of the entries, and no more.",
    ),
    Function(
        "filter",
        "list.filter(x, condition)",
        'size(header.names.filter(n, n == "received")) > 30',
        "The entries for which the condition holds.",
    ),
    Function(
        "map",
        "list.map(x, value)",
        '"example.com" in mail.recipients.map(r, domain(r))',
        "The entries, each made into another value.",
    ),
    Function("string", "string(value)", 'string(reply.code).startsWith("45")', "A text from a number."),
)

FUNCTIONS: Final[Mapping[str, Function]] = MappingProxyType({one.name: one for one in (*OWN, *CELS)})

# What CEL has beside these; known so that nobody is told it is not.
OTHERS: Final = frozenset(
    {"bool", "bytes", "double", "duration", "dyn", "getDate", "getDayOfMonth", "getDayOfWeek", "getDayOfYear"}
    | {"getFullYear", "getHours", "getMilliseconds", "getMinutes", "getMonth", "getSeconds", "has", "int", "timestamp"}
    | {"type", "uint", "existsOne"}
)

# The macros of CEL: what is named behind their bracket is theirs.
LOOPS: Final = frozenset({"exists", "all", "exists_one", "existsOne", "filter", "map"})
COPYING: Final = frozenset({"filter", "map"})


def domain(address: str) -> str:
    """What stands behind the last @, up to a bracket, comma or blank, in small letters; "" if there is none."""
    behind = address.rpartition("@")[2] if "@" in address else ""
    for end in _ENDS:
        behind = behind.partition(end)[0]
    return behind.lower()


def lower(value: str) -> str:
    """In small letters."""
    return value.lower()


def glob(value: str, pattern: str) -> bool:
    """The whole value is like the pattern."""
    return searching(glob_expression(pattern))(value) is not None


def matches(value: str, expression: str) -> bool:
    """The expression is found in the value.

    Raises:
        PatternError: RE2 does not take it.
    """
    return searching(expression)(value) is not None


def glob_expression(pattern: str) -> str:
    """The regular expression of a pattern with `*` and `?`."""
    joined = "".join({"*": ".*", "?": "."}.get(character) or re2.escape(character) for character in pattern)
    return f"(?is)^{joined}$"


@lru_cache(maxsize=_CACHED)
def searching(expression: str) -> Callable[[str], Any]:
    """What looks for a regular expression in a text.

    Raises:
        PatternError: RE2 does not take it.
    """
    if len(expression) > _LONGEST:
        raise PatternError(f"longer than {_LONGEST} characters")
    return compiled(expression)


def compiled(expression: str) -> Callable[[str], Any]:
    """As `searching`, of any length and not kept."""
    options = re2.Options()
    options.log_errors = False
    options.max_mem = _MEMORY
    try:
        search: Callable[[str], Any] = re2.compile(expression, options=options).search
    except re2.error as error:
        said = error.args[0] if error.args else "?"
        raise PatternError(said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)) from None
    return search
