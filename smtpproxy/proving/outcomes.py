"""What came on record, in the words of a playbook's `=>` lines; and which rules that shows at work.

`must` are the outcomes by a rule's word: a step that says anything of rules says all of these. `may` are the others.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from smtpproxy.proving.transcript import difference

NOT_RULES: Final = frozenset({"default", "posture"})  # what a record calls decisions without a rule
DECIDED, ACTED, OBSERVED, LET = "decided", "acted", "observed", "let through"


class Outcomes(NamedTuple):
    """Of some records."""

    must: tuple[str, ...]
    may: tuple[str, ...]


def outcomes_of(records: Iterable[Mapping[str, Any]]) -> Outcomes:
    """The outcomes of rendered records."""
    must: list[str] = []
    may: list[str] = []
    for record in records:
        action = str(record.get("action", ""))
        names, acted = _names(record), record.get("rules", ())
        if names:
            # One that did something and then decided is named once; "pass" by its word is no decision of its own then.
            (may if action == "pass" and set(names) <= set(acted) else must).append(
                f"{action or 'pass'} {_sorted(names)}"
            )
        elif action:
            may += [action, f"{action} {record['rule']}"] if record.get("rule") else [action]
        for name in acted:
            (may if name in names and action != "pass" else must).append(f"did {name}")
        must += [f"observed {one['rule']} {one['action']}" for one in record.get("observed", ())]
        may += [f"tag {label}" for label in record.get("tags", ())]
        anomaly = record.get("anomaly")
        may += [f"anomaly {name}" for name in (*record.get("anomalies", ()), *([anomaly] if anomaly else []))]
    return Outcomes(tuple(must), tuple(may))


def fired(records: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Names of rules that are on record, and how: decided, acted or observed."""
    for record in records:
        yield from ((name, DECIDED) for name in _names(record))
        yield from ((name, ACTED) for name in record.get("rules", ()))
        yield from ((one["rule"], OBSERVED) for one in record.get("observed", ()))


def wrong(told: Sequence[str], records: Sequence[Mapping[str, Any]]) -> str:
    """What is wrong with a step's `=>` lines, as a difference; "" if nothing, or if there are none."""
    if not told:
        return ""
    must, may = outcomes_of(records)
    named = [_settled(line, must) for line in told]
    there = Counter(must) + Counter(may)
    missing = Counter(named) - there
    # A rule that acts twice in one step, on two commands of one write, may be named once.
    if not missing and set(must) <= set(named):
        return ""
    wanted = [f"=> {line}" for line in sorted(named)]
    return difference(wanted, [f"=> {line}" for line in sorted({*must, *(line for line in may if line in named)})])


def hint(records: Sequence[Mapping[str, Any]], before: Iterable[Mapping[str, Any]] = ()) -> str:
    """All that came on record, for whoever looks for what went wrong; why rules failed, also `before`. Or ""."""
    must, may = outcomes_of(records)
    failed = [record for record in (*before, *records) if record.get("anomaly") == "rule-failed"]
    whys = [f"a rule failed: {record.get('why', '')}" for record in failed]
    said = "; ".join(dict.fromkeys((*must, *may, *whys)))
    return f"  on record: {said}" if said else ""


def _names(record: Mapping[str, Any]) -> list[str]:
    return [name for name in str(record.get("rule", "")).split() if name not in NOT_RULES]


def _sorted(names: Iterable[str]) -> str:
    return " ".join(sorted(names))


def _settled(line: str, must: Iterable[str]) -> str:
    """As records have it: several names in order, and of what was observed the action though it was not said."""
    word, *rest = line.split()
    if word == "observed" and len(rest) == 1:
        return next((one for one in must if one.startswith(f"observed {rest[0]} ")), line)
    if word in ("observed", "did", "tag", "anomaly"):
        return " ".join((word, *rest))
    return " ".join((word, *sorted(name for name in rest if len(rest) == 1 or name not in NOT_RULES)))
