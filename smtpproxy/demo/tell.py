"""From what crossed the wires to strips: what was passed, stripped, refused, rewritten, and why.

The why is never written here: a rule's own `why`, the registry's where no rule decided, an anomaly's sentence from the
catalogue.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from smtpproxy.demo.show import Strip
from smtpproxy.demo.wire import Record, Row, Turn, What, text
from smtpproxy.policy.judge import Judge
from smtpproxy.smtp.anomalies import ANOMALIES
from smtpproxy.smtp.registry.extensions import EXTENSIONS
from smtpproxy.smtp.registry.verbs import VERBS

ODD = 400  # octets that are shown of what is no line
LONG = 400  # octets of a line that are looked at
FOLD = 5  # lines of content that are shown
_LINE = re.compile(rb"([^\r\n]*)(\r\n|\n|\r|\Z)")
_BREAKS = {b"\n": "␊", b"\r": "␍"}  # what is not a line end in mail, made visible
_BY_DIGIT = {b"2": "yes", b"3": "go-on", b"4": "no", b"5": "no"}
_NO_RULE = "no rule and no registry knows it, and what can't be read can't be inspected"


def lines(octets: bytes) -> list[tuple[str, int]]:
    """The lines with their octets; a line that ends in CR or LF alone says so."""
    found = [(_start(m[1]) + _BREAKS.get(m[2], ""), len(m[0])) for m in _LINE.finditer(octets)]
    return found if found and found[-1][1] else found[:-1]


def _start(line: bytes) -> str:
    return text(line) if len(line) <= LONG else text(line[:LONG]) + "…"


def _replies(reply: bytes) -> list[str]:
    return [line for line, _ in lines(reply)]


def _style(reply: bytes) -> str:
    return _BY_DIGIT.get(reply[:1], "")


class Teller:
    """Makes strips of rows, and keeps count of what was done."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._why = {rule.name: rule.why for rule in judge.rules}
        kinds = ("stripped", "refused", "answered", "rewritten", "violations")
        self.done: dict[str, list[str]] = {kind: [] for kind in kinds}
        self.counts: Counter[str] = Counter()

    def tell(self, rows: Sequence[Row], *, fold: bool = True) -> Iterator[Strip]:
        """The rows; what came in one segment stands together, and its replies behind it."""
        for _, together in itertools.groupby(rows, lambda row: row.client.segment if row.client else -id(row)):
            group = list(together)
            if group[0].record["kind"] != "exchange":
                for row in group:
                    yield from self._followed(row, [row.record, *row.after])
                continue
            asked = [strip for row in group for strip in self._asked(row, fold)]
            yield from _bracketed(asked) if len(group) > 1 else asked
            for row in group:
                self.counts["commands"] += row.client is not None and row.client.what is What.COMMAND
                yield from self._told(row, in_group=len(group) > 1)
                yield from self._followed(row, row.after)

    # ------------------------------------------------------------------------------------------------------ asked

    def _asked(self, row: Row, fold: bool) -> Iterator[Strip]:
        client, server = row.client, row.server
        if row.record["verb"] == "GREETING":
            return
        if client is None:
            if server is not None:
                yield Strip("", text(server.line), "smtpproxy's own command", "answered")
            return
        if client.what is What.CONTENT:
            yield from self._content(row, client, server, fold)
            return
        left = self._line(row, client)
        right = self._sent(row, server) if server is not None else ""
        words, style = "", ""
        if server is None:
            words, style = self._answered(row)
        elif server.octets != client.octets and not (row.talk.blind and left == right):
            words, style = self._changed(row)
        yield Strip(left, right, words, style)
        if client.chunk:
            yield from _chunk(client, server)

    @staticmethod
    def _line(row: Row, client: Turn) -> str:
        """A log-in is shown as the record has it: without the secret."""
        secret = client.verb == b"AUTH" or row.record["verb"] in ("AUTH", "SASL")
        return str(row.record["asked"]) if secret else text(client.octets.removesuffix(b"\r\n"))

    @staticmethod
    def _sent(row: Row, server: Turn) -> str:
        """The same at the server."""
        secret = row.record["verb"] in ("AUTH", "SASL")
        return str(row.record.get("sent", row.record["asked"])) if secret else text(server.line)

    def _content(self, row: Row, client: Turn, server: Turn | None, fold: bool) -> Iterator[Strip]:
        left, right = lines(client.octets), lines(server.octets) if server is not None else []
        if row.talk.blind:
            left = [(f"… {row.record.get('octets', 0):,} octets", 0)]
        if len(left) == len(right):
            changed = {at for at in range(len(left)) if left[at][0] != right[at][0]}
            keep = changed | {0, 1, 2, len(left) - 1} if fold and len(left) > FOLD else set(range(len(left)))
            for at, hidden in _folded(len(left), keep):
                if hidden:
                    folded = _hidden(left[at : at + hidden])
                    yield Strip(folded, folded, client_style="dim", server_style="dim", apart=True)
                    continue
                words = ""
                if at in changed:
                    words = _line_changed(left[at][0], right[at][0])
                mark = "no" if left[at][0][-1:] in ("␊", "␍") else "dim"
                inside = 0 < at < len(left) - 1
                yield Strip(
                    left[at][0], right[at][0], words, "rewritten", client_style=mark, server_style="dim", apart=inside
                )
        else:
            yield from _side_by_side(left, right)
        if row.record["action"] != "pass":
            yield Strip("", "", *self._answered(row))
        elif row.record.get("anomalies"):
            self.done["rewritten"].append("CR or LF alone in content")
            yield Strip("", "", *self._changed(row))

    def _answered(self, row: Row) -> tuple[str, str]:
        """Why the server was not asked."""
        record = row.record
        name = row.client.verb.decode("ascii", "replace") if row.client is not None else record["verb"]
        rule = record.get("rule", "")
        why = self._why.get(rule, "")
        if not why and rule == "default" and name.encode() in VERBS:
            why = VERBS[name.encode()].why
        anomalies = _sentences(record.get("anomalies", ()))
        kind = "refused" if row.refused else "answered"
        self.done[kind].append(str(record["asked"]))
        mark = "✗ refused" if row.refused else "◆ answered here"
        by = f" by {rule}" if rule and rule != "default" else ""
        return " ".join(
            part for part in (f"{mark}{by}:" if why or anomalies else f"{mark}{by}", why, anomalies) if part
        ), kind

    def _changed(self, row: Row) -> tuple[str, str]:
        """Why the server was asked something else."""
        if row.record["action"] == "answer":
            words, style = self._answered(row)
            return words + " The server is told to forget the mail instead.", style
        rule = row.record.get("rule", "")
        why = self._why.get(rule, "")
        sentence = _sentences(row.record.get("anomalies", ()))
        return " ".join(part for part in ("✎", f"{rule}: {why}" if why else "", sentence) if part), "rewritten"

    # ------------------------------------------------------------------------------------------------------- told

    def _told(self, row: Row, *, in_group: bool) -> Iterator[Strip]:
        client, server = row.client, row.server
        left = client.reply if client is not None else b""
        if client is None and row.record.get("told"):
            left = str(row.record["told"]).encode()
        right = server.reply if server is not None else b""
        told, got = _replies(left), _replies(right)
        looks = {"client_style": _style(left), "server_style": _style(right), "forth": False}
        secured = next((record for record in row.after if record["kind"] == "link-tls"), None)
        if secured is not None:
            yield from _handshakes(told, got, secured)
            return
        if row.record["verb"] in ("EHLO", "LHLO") and left and right and left != right and left[:1] == b"2":
            yield from self._hello(told, got, row)
        elif left == right:
            for line in told:
                yield Strip(line, line, "", "", **looks)  # type: ignore[arg-type]
        elif server is None:
            for at, line in enumerate(told):
                own = "◀── our reply, in its turn" if in_group else "◀── our reply"
                yield Strip(line, "", own if at == 0 else "", "dim", **looks)  # type: ignore[arg-type]
        else:
            for at, (a, b) in enumerate(itertools.zip_longest(told, got, fillvalue="")):
                words = ("◀── our reply" if a else "its reply stays here") if at == 0 else ""
                yield Strip(a, b, words, "dim", **looks)  # type: ignore[arg-type]

    def _hello(self, told: list[str], got: list[str], row: Row) -> Iterator[Strip]:
        """The two lists of extensions, keyword by keyword. Why one is not as it was is said once a conversation."""
        explained = row.talk.explained
        left = {line[4:].partition(" ")[0].upper(): line for line in told[1:]}
        seen: set[str] = set()
        for at, line in enumerate(got):
            keyword = line[4:].partition(" ")[0].upper()
            mine = told[0] if at == 0 else left.get(keyword, "") if keyword not in seen else ""
            seen.add(keyword)
            words, style = "", "dim"
            if not mine:
                words, style = f"✂ stripped{self._owner(keyword, keyword not in explained)}", "stripped"
                self.done["stripped"].append(keyword)
                explained.add(keyword)
            elif mine[4:] != line[4:]:
                words, style = f"✎ shown smaller{self._owner(keyword, keyword not in explained)}", "rewritten"
                self.done["rewritten"].append(f"{line[4:]} to {mine[4:]}")
                explained.add(keyword)
            elif keyword in explained:
                words, style = f"+ offered only now{self._owner(keyword, True)}", "ok"
                explained.remove(keyword)
            look = "" if mine and not words else style if mine else ""
            yield Strip(
                mine, line, words, style, forth=False, client_style=look or "yes", server_style="yes" if mine else "no"
            )
        sentence = _sentences(name for name in row.record.get("anomalies", ()) if name != "keyword-stripped")
        if sentence:
            yield Strip("", "", sentence, "rewritten", forth=False)

    def _owner(self, keyword: str, explain: bool) -> str:
        """Whose doing it is, and why."""
        rule = self._judge.owner(keyword.encode())
        known = EXTENSIONS.get(keyword.encode())
        why = self._why.get(rule, "") if rule else known.why if known else _NO_RULE
        return (f" by {rule}" if rule else "") + (f": {why}" if explain else "")

    def _followed(self, row: Row, records: Iterable[Record]) -> Iterator[Strip]:
        """What is no exchange."""
        for record in records:
            if record["kind"] == "tx-commit":
                self.counts["mails"] += 1
                digest = record.get("sha256", "")
                yield Strip("", "", f"✓ on record: {record.get('octets', 0):,} octets, SHA-256 {digest[:12]}…", "ok")
            elif record["kind"] == "violation":
                self.done["violations"].append(record["anomaly"])
                yield from _violation(row, f"⚠ {_sentences([record['anomaly']])}")
            elif record["kind"] == "note":
                why = f" ({text(record['why'].encode())})" if record.get("why") else ""
                yield Strip("", "", f"⚠ {_sentences([record.get('anomaly', '')])}{why}", "refused")
                if row.last_word:
                    surplus = row.talk.client.surplus
                    reply = surplus[-1] if surplus else str(record["told"]).encode()
                    for line in _replies(reply):
                        yield Strip(line, "", "◀── our reply", forth=False, client_style=_style(reply))
            elif record["kind"] == "tx-refused" and "reply" not in record:
                yield Strip("", "", "⚠ the mail was never finished, and nobody keeps it", "refused")


def _violation(row: Row, words: str) -> Iterator[Strip]:
    """What the client sent last, but for what is on record already as asked."""
    odd = _short(lines(row.talk.client.odd[:ODD]))
    if odd and odd[0] == row.record.get("asked"):
        odd = odd[1:]
    for mine in odd or [""]:
        yield Strip(mine, "", words, "refused", client_style="no")
        words = ""


def _handshakes(told: Sequence[str], got: Sequence[str], record: Record) -> Iterator[Strip]:
    """STARTTLS, in the order of events: what the server said, its handshake; what the client is told, its handshake."""
    client, server = record["client"], record["server"]
    go_ahead = {"forth": False, "client_style": "yes", "server_style": "yes"}
    for at, line in enumerate(got):
        yield Strip("", line, "" if at else "not told yet", **go_ahead)  # type: ignore[arg-type]
    if server is not None:
        verified = "verified" if server["verified"] else f"not verified: {text(server.get('why', '').encode())}"
        named = text(server["certificate"].get("subject", "").encode())
        words = "⇄ first the handshake with the server"
        yield Strip("", f"{_suite(server)}\n{named}\n{verified}", words, "answered", apart=True)
    for at, line in enumerate(told):
        yield Strip(line, "", "" if at else "◀── and now it is told", **go_ahead)  # type: ignore[arg-type]
    if client is not None:
        words = f"⇄ then the handshake with the client. It is shown a certificate like the server's, {client['shown']}"
        if server is not None and not server["verified"]:
            words += ", for the server's is not verified: who verifies must fail here too"
        facts = [_suite(client)]
        facts += [f"asks for {text(client['sni'].encode())}"] if client.get("sni") else []
        facts.append(f"shown: {client['shown']}")
        yield Strip("\n".join(facts), "", words + ".", "answered", apart=True, forth=False)


def _suite(link: Record) -> str:
    return f"{link['version']} {link['cipher']}{' resumed' * link['resumed']}"


# ------------------------------------------------------------------------------------------------------------ content


def _line_changed(line: str, now: str) -> str:
    """What was done to a line of content."""
    words = []
    if line[-1:] in _BREAKS.values():
        words.append(f"{'LF' if line[-1] == '␊' else 'CR'} alone becomes CRLF")
    if now == "." + line.rstrip("␊␍"):
        words.append("its dot is doubled, for it is text and ends nothing")
    return f"✎ {' and '.join(words)}" if words else "✎ replaced"


def direct(turns: Sequence[Turn], replies: Sequence[bytes]) -> Iterator[Strip]:
    """Content that went straight to a server, as it read it: `turns` are its own, `replies` what the client was told.

    The client means all of it as the content of one mail, so what stands on its side are the same lines.
    """
    ends = 0
    for turn in turns:
        read = [line for line, _ in lines(turn.octets)]
        for at, line in enumerate(read):
            words, style = "", "dim"
            if turn.what is not What.CONTENT:
                words, style = "⚠ read as a command", "danger"
            elif at == len(read) - 1:
                ends += 1
                early = turn is not turns[-1]
                words = f"⚠ read as the end of mail {ends}" if early else f"  the end of mail {ends}"
                style = "danger" if early else "dim"
            odd = "no" if line[-1:] in ("␊", "␍") else "dim"
            there = "no" if style == "danger" else odd
            yield Strip(line, line, words, style, client_style=odd, server_style=there, by="S", apart=True)
    for told, turn in zip(replies, turns, strict=True):
        for mine, theirs in itertools.zip_longest(_replies(told), _replies(turn.reply), fillvalue=""):
            yield Strip(mine, theirs, forth=False, client_style=_style(told), server_style=_style(turn.reply))


def _chunk(client: Turn, server: Turn | None) -> Iterator[Strip]:
    """A chunk's octets; they pass, or go nowhere."""
    left = lines(client.chunk)
    passed = server is not None and server.chunk == client.chunk
    keep = {0, 1, len(left) - 1} if len(left) > FOLD else set(range(len(left)))
    keep |= {at for at, (line, _) in enumerate(left) if line == "."}
    for at, hidden in _folded(len(left), keep):
        line = _hidden(left[at : at + hidden]) if hidden else left[at][0]
        words = (
            "" if passed or at else "read to the last octet and thrown away: left unread it would be taken for commands"
        )
        yield Strip(line, line if passed else "", words, "dim", client_style="dim", server_style="dim", apart=True)


def _folded(count: int, keep: Iterable[int]) -> Iterator[tuple[int, int]]:
    """The lines to be shown as `(at, 0)`, and the runs of others as `(at, how many)`."""
    hidden = 0
    kept = set(keep)
    for at in range(count):
        if at in kept:
            if hidden:
                yield at - hidden, hidden
            hidden = 0
            yield at, 0
        else:
            hidden += 1
    if hidden:
        yield count - hidden, hidden


def _hidden(some: Sequence[tuple[str, int]]) -> str:
    if len(some) == 1:
        return some[0][0]
    return f"… {len(some):,} lines, {sum(size for _, size in some):,} octets"


def _side_by_side(left: Sequence[tuple[str, int]], right: Sequence[tuple[str, int]]) -> Iterator[Strip]:
    for mine, theirs in itertools.zip_longest(_short(left), _short(right), fillvalue=""):
        yield Strip(mine, theirs, client_style="dim", server_style="dim", apart=True)


def _short(some: Sequence[tuple[str, int]]) -> list[str]:
    keep = {0, 1, 2, len(some) - 1} if len(some) > FOLD else set(range(len(some)))
    return [_hidden(some[at : at + hidden]) if hidden else some[at][0] for at, hidden in _folded(len(some), keep)]


def _bracketed(strips: Sequence[Strip]) -> Iterator[Strip]:
    last = max((at for at, strip in enumerate(strips) if strip.client), default=0)
    for at, strip in enumerate(strips):
        yield strip._replace(bracket="┌" if at == 0 else "└" if at == last else "│" if at < last else "")


def _sentences(anomalies: Iterable[str]) -> str:
    return " ".join(ANOMALIES.get(name, name) for name in dict.fromkeys(anomalies))
