"""Functions of Python's that decide where data can't: `python = "module:function"` in place of `then`.

docs/rules-python.md says how to write one. A function takes fields of the vocabulary as typed arguments, `rcpt.domain`
as `rcpt_domain: str`, and returns a decision. All of that is checked when rules are loaded: a name that is no field of
the subject, or a type that is not the field's, is an error there and not in a session.

- A module is looked for beside the rule file, in its folder `python/`, then where Python looks. One that stands beside
  is a file of its own: it is read and run each time rules are loaded, once for each rule that names it, and found by
  nobody else; `sys.path` stays as it is.
- Whoever can write such a file decides about mail, with the supervisor's rights. So neither it nor a folder on the way
  to it may belong to a stranger, or be one that others than its owner can write to.
- Values are taken from the session when the function is asked, not when it runs: that may be in another thread.

What must never happen: that a file is run that others could have written; that a function is given a secret (no field
is one), or something by which it could change the session.
"""

import importlib
import inspect
import os
import pkgutil
import stat
import sys
import traceback
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from smtpproxy.policy import decisions
from smtpproxy.policy.decisions import (
    ABSTAIN,
    PASS,
    Abstain,
    Answer,
    Decision,
    Discard,
    EditHeader,
    Hangup,
    Pass,
    Quarantine,
    Record,
    Redirect,
    Rewrite,
    Tag,
    Tarpit,
)
from smtpproxy.policy.fields import FIELDS, Type, fields_of
from smtpproxy.policy.subjects import Subject
from smtpproxy.policy.templates import vocabulary
from smtpproxy.policy.toml import nearest, shown
from smtpproxy.session.state import Facts

if TYPE_CHECKING:
    from smtpproxy.policy.fields import Field, View
    from smtpproxy.policy.rules import Deed

__all__ = [
    "ABSTAIN",
    "PASS",
    "Abstain",
    "Answer",
    "Decision",
    "Discard",
    "EditHeader",
    "EntryPoint",
    "Facts",
    "Fault",
    "Hangup",
    "Pass",
    "Quarantine",
    "Record",
    "Redirect",
    "Rewrite",
    "Tag",
    "Tarpit",
    "resolve",
]

FOLDER: Final = "python"  # beside the rule file
_FORM: Final = 'a function, e.g. "site_checks:recipient": a module, a colon, a name in it'
_FACTS: Final = "facts"  # the one parameter that is no field
_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH

# How a parameter may be annotated. The first is what the field is.
_STRINGS: Final = (list[str], list, Sequence[str], Sequence, Collection[str], Collection, Iterable[str], Iterable)
_MAP: Final = (dict[str, str], dict, Mapping[str, str], Mapping)
_LISTS: Final = (dict[str, list[str]], dict, Mapping[str, list[str]], Mapping[str, Sequence[str]], Mapping)
_TYPES: Final[Mapping[Type, tuple[Any, ...]]] = MappingProxyType(
    {
        Type.BOOL: (bool,),
        Type.INT: (int,),
        Type.STRING: (str,),
        Type.STRINGS: _STRINGS,
        Type.MAP: _MAP,
        Type.LISTS: _LISTS,
    }
)
_ANY: Final = (Any, object)


class Fault(NamedTuple):
    """Why there is no function: what is wrong, what was expected, the nearest names."""

    message: str
    expected: str = ""
    nearest: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EntryPoint:
    """A function that decides.

    Attributes:
        name: as the rule has it, `module:function`.
        asynchronous: it is awaited under trio; else it is called in a thread.
        fields: the fields it is given, by their names in the vocabulary.
        facts: it is also given the session's `Facts`.
    """

    name: str
    function: Callable[..., Any]
    asynchronous: bool
    fields: tuple[str, ...]
    facts: bool = False

    def call(self, view: "View") -> Callable[[], Any]:
        """What calls it with what the fields say now; of an asynchronous one, what gives the awaitable. `view` is not
        touched behind this."""
        given: dict[str, Any] = {_parameter(name): deepcopy(FIELDS[name].get(view)) for name in self.fields}
        if self.facts:
            given[_FACTS] = view.session.facts
        return partial(self.function, **given)

    def deeds(self, returned: object, subject: Subject) -> "tuple[Deed, ...]":
        """The acts it decided on.

        Raises:
            TypeError: it returned no decision.
            ValueError: it returned one that makes no sense on this subject.
        """
        return decisions.deeds(self.name, returned, subject)


def resolve(text: str, subjects: Sequence[Subject], beside: Path | None = None) -> EntryPoint | Fault:
    """The function of this name, or what is wrong with it.

    Args:
        text: `module:function`; the module with dots, if it is in a package.
        subjects: what it is to decide about; it may take the fields that all of these have.
        beside: the folder of the rule file.
    """
    where, colon, what = text.partition(":")
    if not colon or not what.isidentifier() or not all(part.isidentifier() for part in where.split(".")):
        return Fault(f"{shown(text)} does not name a function", _FORM)
    module = _module(where, beside)
    if isinstance(module, Fault):
        return module
    function = getattr(module, what, None)
    if function is None:
        known = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        return Fault(f"no {what} in {where}", "", tuple(nearest(what, known)))
    if not callable(function):
        return Fault(f"{text} is {_a(type(function))}, and can't be called", "a function")
    return _entry(text, function, subjects)


# -------------------------------------------------------------------------------------------------------- the function


def _entry(text: str, function: Callable[..., Any], subjects: Sequence[Subject]) -> EntryPoint | Fault:
    if isinstance(function, type):
        return Fault(f"{text} is a class", "a function")
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        return Fault(f"{text} yields, and would decide nothing", "a function that returns a decision")
    try:
        parameters = inspect.signature(function).parameters
        hints = typing.get_type_hints(_called(function))
    except Exception as error:  # whatever stands in an annotation
        return Fault(f"the parameters of {text} can't be read: {type(error).__name__}: {error}", "a function")
    known = {_parameter(name): field for name, field in vocabulary(subjects).items()}
    fields: list[str] = []
    for name, parameter in parameters.items():
        if wrong := _unfit(text, parameter, known, hints.get(name, Any), subjects):
            return wrong
        if name != _FACTS:
            fields.append(known[name].name)
    return EntryPoint(
        text, function, inspect.iscoroutinefunction(_called(function)), tuple(fields), _FACTS in parameters
    )


def _unfit(
    text: str, parameter: inspect.Parameter, known: "Mapping[str, Field]", hint: Any, subjects: Sequence[Subject]
) -> Fault | None:
    """What is wrong with one parameter."""
    name = parameter.name
    if parameter.kind is not parameter.POSITIONAL_OR_KEYWORD and parameter.kind is not parameter.KEYWORD_ONLY:
        return Fault(f"{text} takes {parameter}, and arguments are given by name", "the fields it needs, each by name")
    if name == _FACTS:
        return None if hint in (Facts, *_ANY) else Fault(f"{name} of {text} is {_said(hint)}", "facts: Facts")
    found = known.get(name)
    if found is None:
        return Fault(_no_such(text, name, subjects), "", tuple(nearest(name, (*known, _FACTS))))
    fits = _TYPES[found.type]
    if hint in fits or hint in _ANY:
        return None
    return Fault(
        f"{name} of {text} is {_said(hint)}, and {found.name} is {_said(fits[0])}", f"{name}: {_said(fits[0])}"
    )


def _no_such(text: str, name: str, subjects: Sequence[Subject]) -> str:
    """A parameter that is no field, or none of a subject's."""
    elsewhere = next((field for field in FIELDS if _parameter(field) == name), None)
    if elsewhere is None:
        return f"{text} takes {name}, which is no field"
    without = [str(subject) for subject in subjects if elsewhere not in fields_of(subject)]
    return f"{text} takes {name}, and {elsewhere} is not known on {' or '.join(without)}"


def _parameter(field: str) -> str:
    """What a field is called where it is an argument."""
    return field.replace(".", "_")


def _called(function: Callable[..., Any]) -> Any:
    """What runs when it is called: of an object, its method."""
    while isinstance(function, partial):
        function = function.func
    return function if inspect.isroutine(function) else type(function).__call__


def _said(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("typing.", "")


def _a(kind: type) -> str:
    return f"{'an' if kind.__name__[0] in 'aeiou' else 'a'} {kind.__name__}"


# ---------------------------------------------------------------------------------------------------------- the module


def _module(name: str, beside: Path | None) -> ModuleType | Fault:
    if beside is not None:
        file = Path(os.path.abspath(beside / FOLDER / Path(*name.split(".")))).with_suffix(".py")
        if file.exists():
            return _of_file(name, file)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            return Fault(f"no module {name}", _places(name, beside), tuple(nearest(name, _siblings(name, beside))))
        return _broken(name, error)
    except (Exception, SystemExit) as error:  # its own code
        return _broken(name, error)


def _of_file(name: str, file: Path) -> ModuleType | Fault:
    """The module of one file, run now. While it is, it can be found under a name that nobody else has."""
    if wrong := _exposed(file):
        return wrong
    module = ModuleType(f"smtpproxy_{FOLDER}.{name}")
    module.__file__ = str(file)
    loader = SourceFileLoader(module.__name__, str(file))
    sys.modules[module.__name__] = module  # dataclasses ask for the module they stand in
    try:
        exec(loader.source_to_code(loader.get_data(str(file)), str(file)), vars(module))  # noqa: S102 - that is the point
    except (Exception, SystemExit) as error:
        return _broken(name, error, file)
    finally:
        del sys.modules[module.__name__]
    return module


def _exposed(file: Path) -> Fault | None:
    """Why it is not run: somebody else could have written it. In a folder with the sticky bit nobody can replace what
    is another's; on a file system that is mounted read-only nobody can do anything."""
    real = Path(os.path.realpath(file))
    try:
        for path in dict.fromkeys((real, *file.parents, *real.parents)):
            status = path.stat()
            sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
            if status.st_uid not in (0, os.geteuid()):
                return Fault(
                    f"{path} belongs to user {status.st_uid}, and would run with the rights of the proxy", _SAFE
                )
            if status.st_mode & _OTHERS and not sticky and not os.statvfs(path).f_flag & os.ST_RDONLY:
                return Fault(f"{path} can be written to by others than its owner", f"{_SAFE}: chmod go-w")
    except OSError as error:
        return Fault(f"{file} can't be read: {error.strerror}")
    return None


_SAFE: Final = "files and folders that only root or the user of smtpproxy can write to"


def _broken(name: str, error: BaseException, file: Path | None = None) -> Fault:
    """It is there, and can't be run."""
    place = ""
    if file is not None:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        place = f"{file}:{line}: " if line else f"{file}: "
    said = error.msg if isinstance(error, SyntaxError) else str(error)
    return Fault(f"{name} can't be imported: {place}{type(error).__name__}: {said}")


def _places(name: str, beside: Path | None) -> str:
    """Where it was looked for."""
    file = "/".join((FOLDER, *name.split("."))) + ".py"
    return f"{file} beside the rule file, or a module that is installed" if beside else "a module that is installed"


def _siblings(name: str, beside: Path | None) -> list[str]:
    """Modules there are: beside the rule file, and in the package that is named."""
    found = [file.stem for file in sorted((beside / FOLDER).glob("*.py"))] if beside else []
    package, dot, _ = name.rpartition(".")
    paths = getattr(sys.modules.get(package), "__path__", None) if dot else None
    if paths is not None or not dot:
        found += [f"{package}{dot}{module.name}" for module in pkgutil.iter_modules(paths)]
    return found
