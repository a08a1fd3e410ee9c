"""What is looked for: the words of a command line as filters, used in the same way on the store and on a live record.

A filter has spans, and holds if a value is in any of them; filters are joined by AND, and with a window of time. A
span is about one field: values from here to there, in the order in which the store's indexes have them (schema.py says
how addresses and clients are written there). A domain, all that is below it, a network, `4xx` are one span each. A `*`
makes a span with conditions on what is behind its beginning.

What can't be said in this way is refused with a word on what can, and never guessed at: a search that silently looks
for something else is worse than none. What must never happen: a store and a tail that answer differently. Both have the
spans made here, and nothing beside them.
"""

import difflib
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from ipaddress import IPv6Network, ip_address, ip_network
from typing import Final, NamedTuple

from smtpproxy.columns import printable
from smtpproxy.policy.toml import parse_duration, parse_size
from smtpproxy.store.indexing import GRAVITY
from smtpproxy.store.schema import client_key, key_of

VERDICTS: Final = tuple(GRAVITY)
OUTCOMES: Final = ("accepted", "refused", "server", "answer", "RSET", "hello", "another MAIL", "closed", "none")

Value = str | int | None


class Span(NamedTuple):
    """What a value of a field must be: `low` itself, or from `low` to before `high`.

    `inside` and `end` are of a pattern, whose first `start` characters the span has seen to: what is behind them ends
    with `end`, and has `inside` before that.
    """

    field: str
    low: Value = None
    high: Value = None  # None: there is no end
    same: bool = False
    start: int = 0
    inside: str = ""
    end: str = ""

    def fits(self, value: Value) -> bool:
        """Whether a value is in it. None is what is not there: it is in `same` of None and in nothing else."""
        if self.same or value is None:
            return self.same and value == self.low
        if isinstance(value, str):
            return self._within(value, str(self.low or ""), self.high) and self._rest(value)
        return (self.low is None or value >= int(self.low)) and (self.high is None or value < int(self.high))

    @staticmethod
    def _within(value: str, low: str, high: Value) -> bool:
        return value >= low and (high is None or value < str(high))

    def _rest(self, value: str) -> bool:
        stop = len(value) - len(self.end)
        return stop >= self.start and value.endswith(self.end) and self.inside in value[self.start : stop]


class Filter(NamedTuple):
    """One option, with all of its values: it holds if one of the spans has what is there."""

    name: str
    spans: tuple[Span, ...]


class Question(NamedTuple):
    """All that was asked for."""

    filters: tuple[Filter, ...] = ()
    since: float | None = None  # seconds since 1970
    until: float | None = None  # before this

    def holds(self, at: float, view: Mapping[str, Collection[Value]]) -> bool:
        """Whether it holds for something of that time.

        Args:
            at: seconds since 1970.
            view: the values of each field; what isn't there is in a span only if that is for what isn't there.
        """
        return (
            (self.since is None or at >= self.since)
            and (self.until is None or at < self.until)
            and all(
                any(one.fits(value) for one in each.spans for value in view.get(one.field) or (None,))
                for each in self.filters
            )
        )


# ------------------------------------------------------------------------------------------------------------ values


def pattern(field: str, text: str) -> Span:
    """A text in which `*` stands for anything, or for nothing.

    Raises:
        ValueError: it has more than two of them.
    """
    first, *rest = text.split("*")
    if not rest:
        return Span(field, text, same=True)
    if len(rest) > 2:
        raise ValueError(f"{text!r} has more than two *")
    return Span(field, first, after(first), False, len(first), "".join(rest[:-1]), rest[-1])


def after(prefix: str) -> str | None:
    """The first text behind all those that begin so; None if there is none."""
    for at in range(len(prefix) - 1, -1, -1):
        code = ord(prefix[at]) + 1
        if code <= 0x10FFFF:
            return prefix[:at] + chr(0xE000 if code == 0xD800 else code)
    return None


def _texts(field: str) -> "Callable[[str], list[Span]]":
    return lambda text: [pattern(field, text)]


def _rules(text: str) -> list[Span]:
    return [pattern("rule", text), pattern("observed", text)]


def _addresses(*fields: str) -> "Callable[[str], list[Span]]":
    """An address, with `*` in its local-part, or for its domain or the domain's first labels; `<>`."""

    def read(text: str) -> list[Span]:
        text = text[1:-1] if text[:1] == "<" and text[-1:] == ">" else text
        local, at, domain = text.rpartition("@")
        if at:
            keys = [f"{key}@{local}" for key in _domain_keys(domain)]
        elif "." in text:
            raise ValueError(f"{text!r} is no address: say *@{text}, or --domain {text}")
        else:
            keys = [key_of(text)]  # nothing, or a local-part without domain: postmaster
        return [pattern(field, key) for field in fields for key in keys]

    return read


def _domains(text: str) -> list[Span]:
    if "@" in text:
        raise ValueError(f"{text!r} is no domain; --address, --sender and --recipient take addresses")
    return [pattern(field, f"{key}@*") for field in ("sender", "recipient") for key in _domain_keys(text)]


def _domain_keys(domain: str) -> list[str]:
    """How keys of addresses begin. `.example.org` is the domain and all below it, `*.example.org` what is below it."""
    first, dot, rest = domain.partition(".")
    if not domain or "*" in (rest if first in ("", "*") else domain) or (first in ("", "*") and dot and not rest):
        raise ValueError(
            f"{domain!r} is no domain here: * stands for all of it, or for its first labels (*.example.org)"
        )
    if domain == "*":
        return ["*"]
    if first == "*":
        return [f"{_turned(rest)}.*"]
    return [_turned(rest), f"{_turned(rest)}.*"] if not first else [_turned(domain)]


def _turned(domain: str) -> str:
    return key_of(f"@{domain}")[:-1]


def _clients(text: str) -> list[Span]:
    try:
        if "/" not in text:
            return [Span("client", client_key(str(ip_address(text.strip("[]")))), same=True)]
        network = ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"{text!r} is no address and no network (192.0.2.7, 192.0.2.0/24, 2001:db8::/32)") from None
    if isinstance(network, IPv6Network) and network.network_address.ipv4_mapped and network.prefixlen >= 96:
        network = ip_network((int(network.network_address) & 0xFFFFFFFF, network.prefixlen - 96))
    # Behind the last address, and before anything else: keys are of one length.
    return [Span("client", client_key(str(network[0])), f"{client_key(str(network[-1]))}0")]


def _servers(text: str) -> list[Span]:
    """With or without its port."""
    if "*" in text or re.search(r"[^:]:\d+$|\]:\d+$", text):
        return [pattern("server", text)]
    host = f"[{text}]" if ":" in text and text[0] != "[" else text
    return [Span("server", host, same=True), pattern("server", f"{host}:*")]


def _known(field: str, known: Iterable[str]) -> "Callable[[str], list[Span]]":
    names = {name.lower(): name for name in known}

    def read(text: str) -> list[Span]:
        name = names.get(text.lower())
        if name is None:
            raise ValueError(f"there is no {field} {text!r}{meant(text, names.values())}")
        return [Span(field, name, same=True)]

    return read


def meant(text: str, known: Iterable[str]) -> str:
    """`; did you mean X?`, or which there are, if they are few and none is like it."""
    names = [printable(name) for name in known]  # peers chose some of them
    like = difflib.get_close_matches(text, names, n=2, cutoff=0.6)
    if like:
        return f"; did you mean {' or '.join(like)}?"
    return f" ({', '.join(names)})" if 0 < len(names) <= 12 else ""


def _versions(text: str) -> list[Span]:
    word = text.lower()
    if word == "none":
        return [Span("client_tls", None, same=True)]
    if word == "any":
        return [pattern("client_tls", "*")]
    found = re.fullmatch(r"(?:tls ?v?)?1(?:\.([0-3]))?", word)
    if found is None:
        raise ValueError(f"{text!r} is no version of TLS (1.3, TLSv1.2, any, none)")
    return [Span("client_tls", f"TLSv1.{found[1]}" if found[1] not in (None, "0") else "TLSv1", same=True)]


_SIZE: Final = re.compile(r"([0-9]{1,100})([kKmMgG]?)")


def _octets(text: str) -> int:
    found = _SIZE.fullmatch(text)
    if found is not None:
        return int(found[1]) << {"": 0, "k": 10, "m": 20, "g": 30}[found[2].lower()]
    try:
        return parse_size(text)
    except ValueError:
        raise ValueError(f"{text!r} is no size (10000, 10k, >1M, <500, 10k..2M)") from None


def _sizes(text: str) -> list[Span]:
    """Of contents: what never came to one has no size."""
    text = text.replace(" ", "")
    low, between, high = text.partition("..")
    if between:
        least, most = (_octets(low) if low else 0), (_octets(high) + 1 if high else None)
        if most is not None and most <= least:
            raise ValueError(f"{text!r} is no size: the first is larger than the second")
    elif text[:1] == ">":
        least, most = (_octets(text[2:]) if text[1:2] == "=" else _octets(text[1:]) + 1), None
    elif text[:1] == "<":
        least, most = 0, (_octets(text[2:]) + 1 if text[1:2] == "=" else _octets(text[1:]))
    else:
        least, most = _octets(text), _octets(text) + 1
    # Up to 63 bits, which is what a store has room for.
    return [Span("size", min(max(least, 1), 2**63 - 1), most if most is None else min(most, 2**63 - 1))]


def _replies(text: str) -> list[Span]:
    found = re.fullmatch(r"([2-5])([0-9][0-9]|[0-9]x|xx)", text.lower())
    if found is None:
        raise ValueError(f"{text!r} is no reply code (450, 45x, 4xx)")
    digits = text.lower().rstrip("x")
    if digits[0] in "45":  # told at any time; of others the last alone is kept
        return [pattern("reply", digits + ("*" if len(digits) < 3 else ""))]
    width = 10 ** (3 - len(digits))
    return [Span("code", int(digits) * width, (int(digits) + 1) * width)]


def _message_ids(text: str) -> list[Span]:
    whole = [text] if text[:1] == "<" else [text, f"<{text}>"]
    return [pattern("message_id", one) for one in whole]


class Option(NamedTuple):
    """An option of the command line."""

    metavar: str
    help: str
    read: "Callable[[str], list[Span]]"  # raises ValueError


OPTIONS: Final[dict[str, Option]] = {
    "client": Option("ADDRESS", "The client's address, or a network: 192.0.2.7, 2001:db8::/32.", _clients),
    "server": Option("HOST", "The server, with or without its port.", _servers),
    "listener": Option("NAME", "The listener it came to.", _texts("listener")),
    "sender": Option("ADDRESS", "The sender: ann@x.example, '*@x.example', 'ann@*', '<>'.", _addresses("sender")),
    "recipient": Option("ADDRESS", "One of the recipients, accepted or not.", _addresses("recipient")),
    "address": Option("ADDRESS", "The sender or one of the recipients.", _addresses("sender", "recipient")),
    "domain": Option("DOMAIN", "Of sender or recipient; .x.example is x.example and all below it.", _domains),
    "verdict": Option("NAME", f"What rules made of it: {', '.join(VERDICTS)}.", _known("verdict", VERDICTS)),
    "outcome": Option("NAME", f"How it ended: {', '.join(OUTCOMES)}.", _known("outcome", OUTCOMES)),
    "rule": Option("NAME", "A rule that acted, or would have.", _rules),
    "anomaly": Option("NAME", "An anomaly that was noted.", _texts("anomaly")),
    "tag": Option("NAME", "A tag that a rule put on.", _texts("tag")),
    "tls": Option("VERSION", "TLS of the client's link: 1.3, TLSv1.2, any, none.", _versions),
    "size": Option("SIZE", "Octets of the content: '>1M', 10k..2M.", _sizes),
    "reply": Option("CODE", "A reply that was told: 450, 4xx.", _replies),
    "message-id": Option("ID", "The Message-ID, with or without its <>.", _message_ids),
    "identity": Option("NAME", "Whom the client logged in as.", _texts("identity")),
    "session": Option("NAME", "The session; 4d9d6b* is all whose names begin so.", _texts("session")),
    "hello": Option("NAME", "What the client called itself.", _texts("hello")),
}


def question(
    words: Mapping[str, Iterable[str]], *, since: str | None = None, until: str | None = None, now: float
) -> Question:
    """What the options of a command line ask for.

    Args:
        words: the values of each option of OPTIONS, by its name.
        since: a moment, as `moment` reads it.
        until: a moment; a date is until its end.
        now: seconds since 1970.

    Raises:
        ValueError: one makes no sense; the text begins with the option.
    """
    filters = []
    for name, values in words.items():
        spans: list[Span] = []
        for value in values:
            try:
                value.encode()  # what is no UTF-8 on the command line is no text of a record either
                spans += OPTIONS[name].read(value)
            except UnicodeEncodeError:
                raise ValueError(f"--{name}: {value!r} is no UTF-8") from None
            except ValueError as error:
                raise ValueError(f"--{name}: {error}") from None
        if spans:
            filters.append(Filter(name, tuple(dict.fromkeys(spans))))
    window = []
    for name, text in (("since", since), ("until", until)):
        try:
            window.append(None if text is None else moment(text, now, end=name == "until"))
        except ValueError as error:
            raise ValueError(f"--{name}: {error}") from None
    if window[0] is not None and window[1] is not None and window[0] >= window[1]:
        raise ValueError("--since is not before --until: there is no time between them")
    return Question(tuple(filters), *window)


# -------------------------------------------------------------------------------------------------------------- time

_DAYS: Final = {"today": 0, "yesterday": 1}
_DATE: Final = re.compile(r"\d{4}-\d\d-\d\d")
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d(:\d\d([.]\d+)?)?([Zz]|[+-]\d\d:\d\d)?")


def moment(text: str, now: float, *, end: bool = False) -> float:
    """A moment, in seconds since 1970: RFC 3339, a date, `today`, `yesterday`, `now`, or how long ago (`2h`).

    Args:
        text: what is said; without a zone it is UTC.
        now: seconds since 1970.
        end: a day stands for its end, not for its beginning.

    Raises:
        ValueError: it is none of these.
    """
    word = text.strip()
    day: datetime | None = None
    try:
        if word.lower() in _DAYS:
            today = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
            day = today - timedelta(days=_DAYS[word.lower()])
        elif _DATE.fullmatch(word):
            day = datetime.fromisoformat(word).replace(tzinfo=UTC)
        if day is not None:
            return (day + timedelta(days=end)).timestamp()
        if word.lower() == "now":
            return now
        if _TIME.fullmatch(word):
            found = datetime.fromisoformat(word.upper())
            return (found if found.tzinfo is not None else found.replace(tzinfo=UTC)).timestamp()
        return now - parse_duration(word.removesuffix("ago").rstrip())
    except (ValueError, OverflowError):
        raise ValueError(
            f"{text!r} is no moment (2h, yesterday, 2026-11-24, 2026-11-24T10:00, 2026-11-24T10:00:00Z)"
        ) from None
