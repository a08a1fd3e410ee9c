"""CEL, through cel-expr-python: the one module that imports it, because its interface is young.

A `Runtime` is what a set of rules is evaluated with: the variables of their conditions, our functions, and what those
need. CEL tells errors of evaluation as values and its own bounds as exceptions; `truth` makes one thing of both.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

from cel_expr_python import cel

from smtpproxy.policy import functions, rates
from smtpproxy.policy.lists import List
from smtpproxy.policy.membership import Kind
from smtpproxy.policy.slots import Slots
from smtpproxy.policy.view import View
from smtpproxy.policy.vocabulary import Type

_FRAME: Final = re.compile(r"^[A-Z_]+: |\s*\[[A-Z_]+\]$")
_T: Final = cel.Type
_TYPES: Final[dict[Type, Any]] = {
    Type.BOOL: _T.BOOL,
    Type.INT: _T.INT,
    Type.STRING: _T.STRING,
    Type.STRINGS: _T.List(_T.STRING),
    Type.MAP: _T.Map(_T.STRING, _T.STRING),
    Type.LISTS: _T.Map(_T.STRING, _T.List(_T.STRING)),
}


_TOLD: Final = {
    "INT": "a number",
    "UINT": "a number",
    "DOUBLE": "a number",
    "STRING": "a string",
    "LIST": "a list",
    "MAP": "a map",
}


class FailedError(Exception):
    """CEL came to no answer."""


class Runtime:
    """What conditions are evaluated with: variables, lists, counters; and the view, while one is."""

    def __init__(self, lists: Mapping[str, List], counters: "rates.Counters | None") -> None:
        self.slots = Slots(lists)
        self.view: View | None = None
        self._counters = counters
        self._made: Any = None
        self._with = -1  # so many variables
        self._programs: dict[str, Any] = {}

    def env(self) -> Any:
        """What evaluates. It knows all variables there are so far."""
        if self._with != len(self.slots.all):
            variables = {name: _TYPES[slot.type] for name, slot in self.slots.all.items()}
            self._made = cel.NewEnv(variables=variables, functions=self.functions(inside=True))
            self._with = len(self.slots.all)
            self._programs = {}
        return self._made

    def checker(self, known: Mapping[str, Type]) -> Any:
        """What checks conditions against a vocabulary."""
        variables = {name: _TYPES[kind] for name, kind in known.items()}
        return cel.NewEnv(variables=variables, functions=self.functions())

    def program(self, env: Any, source: str) -> Any:
        """An expression compiled, once."""
        if env is not self._made:
            return env.compile(source)
        if source not in self._programs:
            self._programs[source] = env.compile(source)
        return self._programs[source]

    def functions(self, *, inside: bool = False) -> list[Any]:
        """Ours; `inside`: with those that only we call."""
        text, texts, whole, yes = _T.STRING, _T.List(_T.STRING), _T.INT, _T.BOOL
        declared = [
            _function("in_list", yes, ([text, text], self._in_list), ([text, texts], self._one_in_list)),
            _function(
                "in_network",
                yes,
                ([text, text], self._in_network),
                ([text, texts], lambda value, names: any(self._in_network(value, name) for name in names)),
            ),
            _function("domain", text, ([text], functions.domain)),
            _function("lower", text, ([text], functions.lower)),
            _function("glob", yes, ([text, text], functions.glob)),
            _function("rate", yes, ([text, whole, text], self._locked)),  # never called: it is _rate that is
            _function("locked", yes, ([text, text], self._locked)),
        ]
        if inside:
            declared += [
                _function("_matches", yes, ([text, text], functions.matches), member=True),
                _function("_rate", yes, ([text, text, whole, _T.DOUBLE], self._rate)),
            ]
        return declared

    def _in_list(self, name: str, value: str) -> bool:
        return name in self.slots.index(self.slots.take(name)).find(value)

    def _one_in_list(self, name: str, values: list[str]) -> bool:
        return any(self._in_list(name, value) for value in values)

    def _in_network(self, value: str, name: str) -> bool:
        if name in self.slots.lists:
            return self._in_list(name, value)
        self.slots.take_network(name)
        return name in self.slots.index(Kind.NETWORKS).find(value)

    def _rate(self, count: str, key: str, most: int, window: float) -> bool:
        counters, now = self._counted()
        return counters.hit(f"rate\0{count}\0{most}\0{window}\0{key}", most, window, now)

    def _locked(self, rule: str, value: str) -> bool:
        counters, now = self._counted()
        return rates.locked(counters, rule, value, now)

    def _counted(self) -> "tuple[rates.Counters, float]":
        if self._counters is None or self.view is None:
            raise ValueError("nothing is counted here")
        return self._counters, self.view.session.clock()


def truth(program: Any, given: Any) -> bool:
    """What an expression comes to.

    Raises:
        FailedError: to nothing.
    """
    try:
        said = program.eval(given)
    except RuntimeError as error:  # a bound of CEL's
        raise FailedError(_FRAME.sub("", str(error))) from None
    plain = said.plain_value()
    if plain is True or plain is False:
        return bool(plain)
    raise FailedError(_FRAME.sub("", str(plain)) if said.type() == _T.ERROR else "neither true nor false")


def _function(name: str, result: Any, *overloads: tuple[list[Any], Any], member: bool = False) -> Any:
    made = []
    for number, (parameters, does) in enumerate(overloads):
        kinds = (False, True) if member else (False,)
        made += [
            cel.Overload(
                id=f"{name}_{number}_{kind}", return_type=result, parameters=parameters, is_member=kind, impl=does
            )
            for kind in kinds
        ]
    return cel.FunctionDecl(name, made)


def no_bool(program: Any) -> str:
    """What an expression gives, in words; "" if that is true or false."""
    kind = program.return_type()
    return "" if kind == _T.BOOL else _TOLD.get(kind.name().partition("<")[0], "something else")
