"""Conditions: read and checked when rules are loaded, evaluated while sessions go on.

A condition is checked against the vocabulary of each of its subjects when rules are loaded. To be evaluated, all
conditions of a subject are put into one expression that gives a list of yes and no: 200 of them take about 25
microseconds, where one by one they would take 300. Evaluated alone are those that count, because asking changes
something, and those that may be costly.

What must never happen:

- A condition that fails and is taken for one that does not hold. CEL's errors are values, and its bounds exceptions;
  both are RuleFailed here, as are values beyond the bounds of slots.py.
- An evaluation without a bound. CEL ends loops after 10,000 turns and takes no deeper nesting than 32; RE2 is linear; a
  loop that makes texts or lists is evaluated only where what it makes has a bound, too.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final

from smtpproxy.policy.cel import FailedError, Runtime, no_bool, truth
from smtpproxy.policy.fields import DEPTH_OF, EXTENSION, fields_of, subject_name
from smtpproxy.policy.lists import List
from smtpproxy.policy.mistakes import TOO_DEEP, Mistake, of_cel
from smtpproxy.policy.rates import Counters
from smtpproxy.policy.reading import Reading
from smtpproxy.policy.slots import ITEMS, Slot, TooMuchError
from smtpproxy.policy.subjects import Subject
from smtpproxy.policy.tokens import ours, readable, readable_source
from smtpproxy.policy.view import View
from smtpproxy.policy.vocabulary import Field
from smtpproxy.session.verdicts import Depth

__all__ = ["EXTENSION", "Compiler", "Condition", "ConditionSet", "Mistake", "RuleFailed"]

_SHALLOW: Final = 28  # so many words can't be nested too deeply
_CHUNK: Final = 50_000  # characters of one expression; CEL takes 100,000
_COPIED: Final = 2_000  # entries that filter and map may be about: they take time by the square of it
_MADE: Final = 1 << 26  # characters that the loops of a condition may look at and make
_DEEPEST: Final = (Depth.STREAM, Depth.HEADER, Depth.WHOLE)


class RuleFailed(Exception):  # noqa: N818 - it is what happened
    """A condition that could not be decided: the `index` of it in its set, and why."""

    def __init__(self, index: int, why: str) -> None:
        super().__init__(f"condition {index}: {why}")
        self.index = index
        self.why = why


class Condition:
    """One condition, checked.

    Attributes:
        source: as it was written.
        fields: the names of the fields in it.
        lists: the names of the lists in it.
        counts: asking changes something: it has `rate`.
        depth: how deep content must be looked into for it.
        constant: what it always is; None if that depends.
        shown: what stands in it for a field (`rcpt.domain`, `header["Subject"]`), with its variable.
        program: what CEL is given.
        slots: the variables of that.
    """

    __slots__ = (
        "_costs",
        "_written",
        "alone",
        "constant",
        "counts",
        "depth",
        "fields",
        "lists",
        "loops",
        "program",
        "runtime",
        "shown",
        "slots",
        "source",
    )

    def __init__(self, source: str, reading: Reading, runtime: Runtime, constant: bool | None) -> None:
        self.source = source
        self.fields = frozenset(reading.fields)
        self.lists = frozenset(reading.lists)
        self.counts = reading.counts > 0
        depths = [DEPTH_OF.get(field.known, Depth.STREAM) for field in reading.fields.values()]
        self.depth = max((Depth.STREAM, *depths), key=_DEEPEST.index)
        self.constant = constant
        self.shown = reading.shown
        self.program = reading.program
        self.slots = tuple(reading.used.values())
        self.runtime = runtime
        self._written = len(reading.words)  # lists that are written out have no more entries
        self._costs = (reading.loops, reading.copies, reading.grows) if reading.loops else (0, 0, 0)
        self.loops = reading.loops > 0
        self.alone = self.counts or any(self._costs[1:])

    def __repr__(self) -> str:
        return f"Condition({self.source!r})"

    def afford(self, values: Mapping[str, Any]) -> None:
        """Whether its loops come to an end soon enough, with these values.

        Raises:
            TooMuchError: they don't.
        """
        loops, copies, grows = self._costs
        if not loops:
            return
        entries = sum(len(value) for value in values.values() if isinstance(value, (list, dict)))
        if copies and entries > _COPIED:
            raise TooMuchError(f"filter or map of {entries} entries")
        turns = min(ITEMS, (entries + self._written) ** loops)
        made = turns * (1 + copies + grows) * sum(map(_longest, values.values()))  # looked at, and made
        if made > _MADE:
            raise TooMuchError(f"{turns} turns about texts of that length")


class Compiler:
    """Makes conditions of texts. One for all rules that are in force together.

    Args:
        lists: those that conditions may name.
        counters: what `rate` counts in; None where nothing is evaluated.
        limits: the names of the rules with a limit, for `locked`.
    """

    def __init__(
        self, lists: Mapping[str, List], counters: Counters | None = None, limits: Collection[str] = ()
    ) -> None:
        self._limits = limits
        self._runtime = Runtime(lists, counters)
        self._envs: dict[tuple[str, ...], Any] = {}
        self._sources: dict[str, int] = {}

    def condition(self, source: str, subjects: Sequence[Subject]) -> Condition | list[Mistake]:
        """The condition, checked for each of the subjects; or all that is wrong with it.

        For the `when` of a rule about an extension the subject is EXTENSION. What `rate` counts goes by the text of the
        condition, so it survives a reload; of equal conditions each counts for itself.
        """
        nth = self._sources[source] = self._sources.get(source, 0) + 1
        reading = Reading(source, self._runtime.slots, self._limits, f"{source}\0{nth}")
        mistakes = list(reading.mistakes)
        text = readable_source(source, reading.words)
        checked: Any = None
        for known, names in _vocabularies(subjects):
            env = self._env(known)
            try:
                checked = env.compile(text)
            except RuntimeError as error:
                mistakes += of_cel(ours(str(error)), source, reading.words, known, names)
                continue
            if said := no_bool(checked):
                mistakes.append(Mistake(1, 1, f"a condition is true or false, and this is {said}"))
        if mistakes:
            return sorted(dict.fromkeys(mistakes))
        try:
            if len(reading.words) >= _SHALLOW:
                env.compile(f"[(((\n{text}\n)))]")  # as deep as it will stand among others
        except RuntimeError:
            return [Mistake(1, 1, TOO_DEEP)]
        constant: bool | None = None
        if not (reading.fields or reading.calls):
            try:
                constant = truth(checked, env.Activation({}))
            except FailedError as failed:
                return [Mistake(1, 1, f"it always fails: {failed}")]
        return Condition(source, reading, self._runtime, constant)

    def _env(self, known: Mapping[str, Field]) -> Any:
        """What checks against a vocabulary."""
        key = tuple(known)
        if key not in self._envs:
            self._envs[key] = self._runtime.checker({readable(name): field.type for name, field in known.items()})
        return self._envs[key]


class ConditionSet:
    """The conditions of one subject's rules, in order; None is one that always holds.

    Attributes:
        whole: one of them needs all of the content.
    """

    def __init__(self, conditions: Sequence[Condition | None], subject: Subject) -> None:
        self.subject = subject
        self.whole = any(one is not None and one.depth is Depth.WHOLE for one in conditions)
        self._conditions = tuple(conditions)
        self._programs: dict[int, Any] = {}
        self._some: Any = None  # what says whether any of them could hold
        made = [one for one in conditions if one is not None]
        self._runtime = made[0].runtime if made else Runtime({}, None)
        self._env = self._runtime.env()
        together = [one for one in made if one.constant is None and not one.alone]
        self._looping = [one for one in together if one.loops]
        self._slots = tuple({slot.name: slot for one in together for slot in one.slots}.values())
        sources = [_among(one) for one in conditions]
        self._alone = {index for index, one in enumerate(conditions) if one is not None and one.alone}
        self._fixed = None if together else [source == "true" for source in sources]
        self._lists = [self._runtime.program(self._env, f"[{chunk}]") for chunk in _chunks(sources, ",")]

    def __len__(self) -> int:
        return len(self._conditions)

    def matching(self, view: View, start: int = 0) -> Iterator[int]:
        """The conditions that hold, one by one, from `start`: those behind one are looked at again when the view was
        touched meanwhile.

        Raises:
            RuleFailed: one can't be decided, and was come to.
        """
        index, behind = start, len(self._conditions)
        version, held = -1, None
        while index < behind:
            if version != view.version:
                version, held = view.version, self._together(view)
            if held is not None:
                try:
                    index = held.index(True, index)
                except ValueError:
                    return
            if (held is not None and index not in self._alone) or self._holds(index, view):
                yield index
            index += 1

    def possible(self, view: View) -> bool:
        """Whether any of them could hold once the mail's content comes, with the envelope as it is."""
        asked = []
        for one in self._conditions:
            if one is None or one.constant:
                return True
            if one.constant is None:
                asked.append(one)
        slots = {slot.name: slot for one in asked for slot in one.slots if slot.stable}
        if self._some is None:
            programs = [f"({one.program}\n)" for one in asked]
            self._some = [self._runtime.program(self._env, chunk) for chunk in _chunks(programs, "||")]
        try:
            # What is not known yet is missing: an error for CEL, but where it does not matter.
            values = {name: slot.get(view) for name, slot in slots.items()}
            for one in asked:
                one.afford(values)
            given = self._env.Activation(values)
            return any(truth(program, given) for program in self._some)
        except Exception:  # whatever it is: it shows when it is decided
            return True

    def used(self, index: int, view: View) -> dict[str, Any]:
        """What the fields in one condition are, as it names them."""
        one = self._conditions[index]
        return {} if one is None else {name: _shown(slot, view) for name, slot in one.shown.items()}

    def values(self, view: View) -> dict[str, Any]:
        """What the fields in all of them are."""
        return {name: said for index in range(len(self)) for name, said in self.used(index, view).items()}

    def _together(self, view: View) -> list[bool] | None:
        """What holds, those true that are asked alone; None where that can't be said of all of them at once."""
        if self._fixed is not None:
            return self._fixed
        held: list[bool] = []
        self._runtime.view = view
        try:
            values = {slot.name: slot.get(view) for slot in self._slots}
            for one in self._looping:
                one.afford({slot.name: values[slot.name] for slot in one.slots})
            given = self._env.Activation(values)
            for program in self._lists:
                said = program.eval(given).plain_value()
                if type(said) is not list:
                    return None
                held += said
        except Exception:  # whatever it is: one of them fails, and each is asked alone
            return None
        finally:
            self._runtime.view = None
        return held

    def _holds(self, index: int, view: View) -> bool:
        """One of them, asked alone."""
        one = self._conditions[index]
        if one is None or one.constant is not None:
            return one is None or bool(one.constant)
        self._runtime.view = view
        try:
            values = {slot.name: slot.get(view) for slot in one.slots}
            one.afford(values)
            if index not in self._programs:
                self._programs[index] = self._runtime.program(self._env, one.program)
            return truth(self._programs[index], self._env.Activation(values))
        except Exception as error:  # whatever it is: fail closed
            raise RuleFailed(index, str(error) or type(error).__name__) from error
        finally:
            self._runtime.view = None


def _vocabularies(subjects: Sequence[Subject]) -> Iterator[tuple[Mapping[str, Field], str]]:
    """Each vocabulary once, with the first subject that has it."""
    seen: set[tuple[str, ...]] = set()
    for subject in subjects:
        known = fields_of(subject)
        if tuple(known) not in seen:
            seen.add(tuple(known))
            yield known, subject_name(subject)


def _among(one: Condition | None) -> str:
    """What stands for a condition among the others."""
    if one is None or one.alone:
        return "true"
    if one.constant is not None:
        return "true" if one.constant else "false"
    return f"({one.program}\n)"


def _chunks(sources: Sequence[str], sign: str) -> Iterator[str]:
    """The sources, joined, in pieces that CEL takes."""
    piece: list[str] = []
    size = 0
    for source in sources:
        if size + len(source) > _CHUNK and piece:
            yield sign.join(piece)
            piece, size = [], 0
        piece.append(source)
        size += len(source) + len(sign)
    if piece:
        yield sign.join(piece)


def _longest(value: Any) -> int:
    """The longest text in a value."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return max((*map(_longest, value), *map(_longest, value.values()), 0))
    return max(map(_longest, value), default=0) if isinstance(value, list) else 0


def _shown(slot: Slot, view: View) -> Any:
    """What a variable is, for people; why it is not, where it can't be had."""
    try:
        return slot.get(view)
    except Exception as error:  # whatever it is
        return f"({error})"
