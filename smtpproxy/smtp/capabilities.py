"""The EHLO reply as a set of extensions (RFC 5321 §4.1.1.1): `Capabilities` ⇄ `Reply`.

In the wild the list is odder than its grammar: `AUTH=LOGIN` beside `AUTH LOGIN`, lower case, trailing blanks, repeated
keywords, a last line `250 OK`, underscores. A line's keyword is what stands before the first blank or `=`, in
capitals; whoever takes an extension out by keyword takes out every spelling of it. A line that is no keyword is not
carried at all.
"""

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from smtpproxy.smtp.replies import Reply, multiline

_LINE = re.compile(rb"([A-Za-z0-9][A-Za-z0-9_-]*)(?:([ \t=])[ \t]*((?:[!-~]+[ \t]*)*))?[ \t]*")


class Offer(NamedTuple):
    """One line of the list: `line` is its exact text, `twin` says that `=` stands behind the keyword."""

    keyword: bytes
    parameters: tuple[bytes, ...]
    twin: bool
    line: bytes


class Capabilities:
    """The extensions of one EHLO (or LHLO) reply. `greeting` is the text of its first line."""

    __slots__ = ("greeting", "keywords", "malformed", "offers")

    def __init__(self, greeting: bytes, offers: Iterable[Offer] = (), malformed: Iterable[bytes] = ()) -> None:
        self.greeting = greeting
        self.offers = tuple(offers)
        self.malformed = tuple(malformed)
        self.keywords: frozenset[bytes] = frozenset(offer.keyword for offer in self.offers)

    @classmethod
    def from_reply(cls, reply: Reply) -> "Capabilities":
        """What the lines of a 250 to EHLO offer; lines that are no keyword are in `malformed`."""
        greeting, *lines = reply.lines
        offers: list[Offer] = []
        malformed: list[bytes] = []
        for line in lines:
            found = _LINE.fullmatch(line)
            if found is None:
                malformed.append(line)
                continue
            keyword, separator, rest = found.groups()
            offers.append(Offer(keyword.upper(), tuple((rest or b"").split()), separator == b"=", line))
        return cls(greeting, offers, malformed)

    def __contains__(self, keyword: bytes) -> bool:
        return keyword in self.keywords

    def parameters(self, keyword: bytes) -> tuple[bytes, ...]:
        """The parameters offered with `keyword` (all its lines together), in order."""
        return tuple(p for offer in self.offers if offer.keyword == keyword for p in offer.parameters)

    def edited(self, change: Callable[[Offer], bytes | None]) -> "Capabilities":
        """The list with each offer's line as `change` gives it: None takes it out."""
        offers = []
        for offer in self.offers:
            line = change(offer)
            if line is None:
                continue
            found = _LINE.fullmatch(line)
            if found is None:
                raise ValueError(f"not an EHLO line: {line!r}")
            offers.append(
                offer
                if line == offer.line
                else Offer(offer.keyword, tuple((found[3] or b"").split()), offer.twin, line)
            )
        return Capabilities(self.greeting, offers)

    def with_line(self, line: bytes) -> "Capabilities":
        """The list with one more offer, a keyword without parameters, at its end."""
        return Capabilities(self.greeting, (*self.offers, Offer(line, (), False, line)))

    def to_reply(self) -> Reply:
        """The 250 that offers exactly this; the greeting line alone if the list is empty."""
        return multiline(250, [self.greeting, *(offer.line for offer in self.offers)])


NO_CAPABILITIES = Capabilities(b"")
