"""The screen: a conversation in three columns, or in lines with arrows where the terminal is narrow.

What is shown is a list of strips. A strip is one line at the client, one at the server and what the proxy did between
them; an empty one means that nothing was there, and no word of the proxy that the line passed as it came. Where a side
has several lines (the facts of a handshake), \n is between them: nothing a peer said has one, `wire.text` sees to that.
"""

import textwrap
import unicodedata
from collections.abc import Callable, Iterable
from typing import NamedTuple

NARROW = 100  # columns; below it there are no three columns
WIDEST = 160
BAR = " │ "
_COLOURS = {
    "dim": "2",
    "bold": "1",
    "title": "1;36",
    "yes": "32",
    "go-on": "36",
    "no": "31",
    "refused": "1;31",
    "stripped": "1;35",
    "rewritten": "1;33",
    "answered": "1;36",
    "danger": "1;37;41",
    "ok": "1;32",
}

_GOES_ON = {"┌": "│", "│": "│", "└": " "}  # the line below a bracket


class Strip(NamedTuple):
    """One line of the conversation. `forth`: from the client to the server; else the way back."""

    client: str = ""
    server: str = ""
    proxy: str = ""
    style: str = "dim"  # of the proxy's words
    forth: bool = True
    client_style: str = ""
    server_style: str = ""
    bracket: str = ""  # joins what the client sent in one segment
    by: str = "P"  # whose words they are
    apart: bool = False  # the two lines are not one line on its way: no arrow between them


def columns(line: str) -> int:
    """How wide a line is on a terminal."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in line)
    return len(line) + wide - sum(unicodedata.combining(c) > 0 for c in line)


def cut(line: str, width: int) -> str:
    """The line, ending in … if it is too long; nothing where there is no room at all (a very narrow terminal)."""
    if columns(line) <= width:
        return line
    if width < 1:
        return ""
    line = line[:width]
    while columns(line) >= width:
        line = line[:-1]
    return line + "…"


def _in_two(line: str, width: int) -> list[str]:
    """A line that is a little too long goes on below; one that is much too long is cut there."""
    if columns(line) <= width:
        return [line]
    at = line.rfind(" ", width // 2, width)
    at = at if at > 0 else width
    return [line[:at], "  " + cut(line[at:].lstrip(), width - 2)]


class Screen:
    """Writes strips, titles and sentences. Without `colour` no escape code is ever written."""

    def __init__(self, write: Callable[[str], object], width: int, *, colour: bool) -> None:
        self._write = write
        self.width = max(40, min(width, WIDEST))
        self._colour = colour
        self.wide = width >= NARROW
        free = self.width - 2 * len(BAR) - 1
        self._middle = max(26, free * 28 // 100)
        self._side = (free - self._middle) // 2

    def paint(self, line: str, style: str) -> str:
        """The line in a colour."""
        code = _COLOURS.get(style) if self._colour else None
        return f"\x1b[{code}m{line}\x1b[0m" if code and line else line

    def line(self, words: str = "", style: str = "") -> None:
        """One line."""
        self._write(self.paint(words, style).rstrip() + "\n")

    def sentence(self, words: str, style: str = "", indent: str = " ", then: str | None = None) -> None:
        """Words over as many lines as they need; `then` indents all lines but the first."""
        for line in textwrap.wrap(
            words,
            min(self.width, 110) if style == "dim" else self.width,
            initial_indent=indent,
            subsequent_indent=indent if then is None else then,
            break_on_hyphens=False,
        ):
            self.line(line, style)

    def title(self, words: str) -> None:
        """The one line that says what an act teaches."""
        self.line()
        if columns(words) + 6 > self.width:
            self.sentence(words, "title", "━━ ")
        else:
            self.line(f"━━ {words} {'━' * (self.width - columns(words) - 4)}", "title")

    def head(self, client: str, server: str, proxy: str = "smtpproxy") -> None:
        """The heads of the columns."""
        if self.wide:
            self._row(client, f"{proxy:^{self._middle}}", server, ("bold", "bold", "bold"))
            self.line("─" * (self._side + 2) + "┼" + "─" * (self._middle + 2) + "┼" + "─" * (self._side + 1), "dim")
        else:
            self.sentence(f"C {client} · P {proxy} · S {server}", "bold")

    def strips(self, strips: Iterable[Strip]) -> None:
        """A piece of the conversation."""
        for strip in strips:
            if self.wide:
                self._columns(strip)
            else:
                self._stack(strip)

    # ------------------------------------------------------------------------------------------------ three columns

    def _columns(self, strip: Strip) -> None:
        words = textwrap.wrap(strip.proxy, self._middle, subsequent_indent="  ", break_on_hyphens=False)
        style = strip.style
        if not words:
            style = "dim"
            if strip.client and strip.server and not strip.apart:
                words = ["─" * (self._middle - 2) + "─▶" if strip.forth else "◀─" + "─" * (self._middle - 2)]
        width = self._side - 2 * bool(strip.bracket)
        left = [part for line in strip.client.split("\n") for part in _in_two(line, width)]
        right = [part for line in strip.server.split("\n") for part in _in_two(line, self._side)]
        for at in range(max(len(words), len(left), len(right))):
            client, middle, server = (cells[at] if at < len(cells) else "" for cells in (left, words, right))
            bracket = strip.bracket if at == 0 else _GOES_ON.get(strip.bracket, "")
            client = f"{bracket} {client}" if bracket else client
            self._row(client, middle, server, (strip.client_style, style, strip.server_style))

    def _row(self, left: str, middle: str, right: str, styles: tuple[str, str, str]) -> None:
        cells = []
        for words, width, style in zip(
            (left, middle, right), (self._side, self._middle, self._side), styles, strict=True
        ):
            words = cut(words, width)
            cells.append(self.paint(words, style) + " " * (width - columns(words)))
        self.line(" " + self.paint(BAR, "dim").join(cells))

    # -------------------------------------------------------------------------------------------------------- lines

    def _stack(self, strip: Strip) -> None:
        """`C→S` and `C←S` as it came; else `C→`, `P`, `→S`, in the order of the way."""
        arrow = "→" if strip.forth else "←"
        words = "" if strip.proxy.startswith("◀") else strip.proxy  # the tags say that already
        proxy = (f"  {strip.by}", words, strip.style, "")
        if strip.client == strip.server:
            parts = [(f"C{arrow}S", strip.client, strip.client_style, strip.bracket), proxy]
        else:
            client = (f"C{arrow}", strip.client, strip.client_style, strip.bracket)
            server = (f" {arrow}S", strip.server, strip.server_style, "")
            parts = [client, proxy, server] if strip.forth else [server, proxy, client]
        for part in parts:
            if part is proxy:
                for at, line in enumerate(textwrap.wrap(words, self.width - 8, break_on_hyphens=False)):
                    self._tagged(proxy[0] if at == 0 else "", ("  " if at else "") + line, strip.style)
            elif part[1] or (strip.client == strip.server and not words):
                tag, said, style, bracket = part
                for at, line in enumerate(said.split("\n")):
                    self._tagged("" if at else tag, line, style, bracket)

    def _tagged(self, tag: str, words: str, style: str, bracket: str = "") -> None:
        words = cut(f"{bracket} {words}" if bracket else words, self.width - 6)
        self.line(f" {self.paint(f'{tag:<4}', 'dim')} {self.paint(words, style)}")
