"""Registers: the names of things of one kind, built-in ones first, then those of installed packages.

An entry point of a register's group names a module whose import registers things, or one such thing. The built-in ones
come through the same door; they are loaded first, so that nobody can take their names.
"""

from __future__ import annotations

import ast
import importlib
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import _lru_cache_wrapper, lru_cache
from importlib.metadata import distributions
from inspect import Parameter, signature
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

from .errors import DiffsolveError, Kind, SolverError, did_you_mean

T = TypeVar("T")
Made = TypeVar("Made")
F = TypeVar("F", bound=Callable[..., Any])
_HOMES = ("form", "process", "prediction", "control", "denoiser", "registry")  # the modules that have the registers
REGISTERS: list[Register[Any]] = []
_lock, _stage = threading.RLock(), {"built-in": "", "plugins": ""}  # "", "begun" or "done"


class Owner(NamedTuple):
    """The module that registered a name, and its file, by which one that runs as a script is known again."""

    module: str
    file: str | None = None

    @classmethod
    def calling(cls, depth: int = 2) -> Owner:
        """The module that called the function which asks."""
        names = sys._getframe(depth).f_globals
        return cls(names.get("__name__", "__main__"), names.get("__file__"))

    def same(self, other: Owner) -> bool:
        return self.module == other.module or (self.file is not None and self.file == other.file)

    @property
    def package(self) -> str:
        return self.module.partition(".")[0]


class Point(NamedTuple):
    """An entry point of one of diffsolve's groups, and the distribution that it belongs to."""

    name: str
    value: str
    group: str
    dist: str | None
    load: Callable[[], Any]

    @property
    def built_in(self) -> bool:
        return self.value.startswith("diffsolve.") and self.dist in (None, "diffsolve")

    @property
    def module(self) -> str:
        return self.value.partition(":")[0].strip()

    def refused(self, reason: object) -> str:
        group, of = self.group.removeprefix("diffsolve."), f" of {self.dist}" if self.dist else ""
        kind = {"processes": "process", "libraries": "library"}.get(group, group.removesuffix("s"))
        return f"the {kind} plugin {self.value!r}{of} could not be loaded: {reason}"

    def open(self, error: Kind, use: Callable[[object], object] = lambda found: found) -> Any:
        """use(what it names); whatever is raised on the way, SystemExit included, comes as `error`."""
        try:
            return use(self.load())
        except KeyboardInterrupt:  # is the user's own
            raise
        except BaseException as failure:
            raise error(self.refused(repr(failure))) from failure


@lru_cache(maxsize=1)
def scan() -> tuple[Point, ...]:
    """The entry points of diffsolve's groups, built-in ones first, of each distribution's first copy on the path."""
    found: dict[str, list[Point]] = {}
    for dist in distributions():
        try:
            ours = [point for point in dist.entry_points if point.group.startswith("diffsolve.")]
            if not ours:
                continue
            about = dist.read_text("METADATA") or dist.read_text("PKG-INFO") or ""
            said = re.search(r"^Name: *(\S+)", about, re.MULTILINE)  # parsing all of it takes longer
        except Exception as error:  # a broken file must not take the other distributions with it
            warnings.warn(f"the entry points in {dist.locate_file('')} can't be read: {error!r}", stacklevel=2)
            continue
        name = said[1] if said else None
        found.setdefault(name or str(len(found)), [Point(p.name, p.value, p.group, name, p.load) for p in ours])
    known = (point for points in found.values() for point in points)
    return tuple(sorted(known, key=lambda point: (not point.built_in, point.name, point.value)))


def points(group: str) -> dict[str, Point]:
    """name -> entry point of a group, for who loads them when asked; a plugin with a taken name is warned of."""
    known: dict[str, Point] = {}
    for point in scan():
        if point.group == group and (held := known.setdefault(point.name, point)) is not point:
            warnings.warn(point.refused(f"the name {point.name!r} is taken by {held.value!r}"), stacklevel=2)
    return known


class Register(Mapping[str, T]):
    """name -> thing of one kind; what is installed is loaded when it is asked for more than it knows.

    adopt: (name, found, owner) -> what to register of what an entry point names, where that is no module, or None where
    it has registered itself; it raises where it can't. signs: what a name may have besides letters, digits and _.
    """

    def __init__(
        self, kind: str, group: str, error: Kind, adopt: Callable[[str, Any, Owner], T | None], signs: str = ""
    ) -> None:
        self.kind, self.group, self.error, self.adopt, self.signs = kind, group, error, adopt, signs
        self._forget: list[Callable[[], None]] = []
        self.entries: dict[str, T] = {}
        self.aliases: dict[str, str] = {}
        self.owners: dict[str, Owner] = {}
        REGISTERS.append(self)

    def add(self, name: str, thing: T, owner: Owner, aliases: Iterable[str] = ()) -> None:
        """Give a thing its name. One that the same module gave before is replaced, another's is refused."""
        if not (isinstance(name, str) and re.fullmatch(rf"[a-z][a-z0-9_{re.escape(self.signs)}]*", name)):
            raise self.error(f"a {self.kind}'s name is lower-case letters, digits and _{self.signs}, got {name!r}")
        if owner.package != "diffsolve":
            load(plugins=False)
        held = next((other for other in (name, key(name)) if other in self.entries), None)
        if held is not None and not (held == name and self.owners[held].same(owner)):
            raise self.error(f"the {self.kind} name {name!r} is taken by {self.owners[held].module}; choose another")
        self.entries[name], self.owners[name] = thing, owner
        self._changed()
        for alias in aliases:
            if key(alias) not in self.entries:
                self.aliases.setdefault(key(alias), name)

    def decorator(
        self, name: str, owner: Owner, aliases: Mapping[str, str] | None = None, entry: Callable[[Any], T] | None = None
    ) -> Callable[[F], F]:
        """What gives a class or function its name, as `entry` of it. aliases: peer -> its names there, "a, b"."""

        def keep(made: F) -> F:
            names = [part for names in (aliases or {}).values() for part in names.split(", ")]
            self.add(name, entry(made) if entry else made, owner, names)  # type: ignore[arg-type]
            return made

        return keep

    def canonical(self, name: str) -> str | None:
        """The name as it is registered, also for a peer's name, or None where nothing is called so."""
        if name not in self.entries:
            load()
        found = name if name in self.entries else self.aliases.get(key(name), key(name))
        return found if found in self.entries else None

    def find(self, name: object) -> T:
        """What is called so, by itself or by peers. Raises the register's error, with the nearest right name."""
        found = self.canonical(name) if isinstance(name, str) else None
        if found is None:
            raise self.error(f"unknown {self.kind} {name!r}{did_you_mean(name, self)}")
        return self.entries[found]

    def __getitem__(self, name: str) -> T:
        if name not in self.entries:
            load()
        return self.entries[name]

    def __iter__(self) -> Iterator[str]:
        load()
        return iter(list(self.entries))

    def __len__(self) -> int:
        load()
        return len(self.entries)

    def copies(self) -> tuple[dict[str, T], dict[str, str], dict[str, Owner]]:
        return dict(self.entries), dict(self.aliases), dict(self.owners)

    def undo(self, copies: tuple[dict[str, T], dict[str, str], dict[str, Owner]], kept: Iterable[str] = ()) -> None:
        """Everything as in the copies, but for what the packages `kept` registered since then."""
        since = {n: (e, self.owners[n]) for n, e in self.entries.items() if self.owners[n].package in set(kept)}
        self.entries, self.aliases, self.owners = copies
        for name, (entry, owner) in since.items():
            self.entries[name], self.owners[name] = entry, owner
        self._changed()

    def cached(self, function: Callable[..., Made]) -> _lru_cache_wrapper[Made]:
        """A decorator: its answers are kept until the register changes."""
        made = lru_cache(maxsize=128)(function)
        self._forget.append(made.cache_clear)
        return made

    def _changed(self) -> None:
        for forget in self._forget:
            forget()


def instance(found: object, kind: type[object], error: Kind) -> Any:
    """One of a kind from what an entry point names: it, a class, or a function that makes one without arguments."""
    made = found if isinstance(found, kind) or not callable(found) else found()
    if not isinstance(made, kind):
        raise error(f"it names a {type(made).__name__}, expected a {kind.__name__} or what makes one")
    return made


def key(name: str) -> str:
    """Names compared as people type them: case, blanks and hyphens do not count."""
    return re.sub(r"[\s\-_]+", "_", name.strip().lower()).replace("++", "pp")


def load(plugins: bool = True) -> None:
    """Load what is installed, once: the built-in things, which are to load, then plugins, each of which may fail."""
    stage = "plugins" if plugins else "built-in"
    if _stage[stage] == "done":
        return
    with _lock:
        if _stage[stage]:  # by this thread: what is being loaded asks for what there is so far
            return
        if plugins:
            load(plugins=False)
        _stage[stage], said = "begun", []
        try:
            groups = {}
            for home in _HOMES:
                importlib.import_module(f".{home}", __package__)
            for register in REGISTERS:
                groups[register.group] = register
            for point in scan():
                if point.group in groups and point.built_in is not plugins:
                    said += _adopt(point, groups[point.group])
            _stage[stage] = "done"
        finally:
            if _stage[stage] != "done":
                _stage[stage] = ""
    for text in said:
        warnings.warn(text, stacklevel=3)


def _adopt(point: Point, register: Register[object]) -> list[str]:
    """Load an entry point into the registers; of a plugin that fails nothing stays, and the reason is handed back."""
    before = [each.copies() for each in REGISTERS]
    try:
        found = point.load()
        owner = Owner(point.module)
        thing = None if isinstance(found, ModuleType) else register.adopt(point.name, found, owner)
        if thing is not None:
            register.add(point.name, thing, owner)
    except BaseException as failure:
        if point.built_in:
            raise
        others = {other.module.partition(".")[0] for other in scan()} - {point.module.partition(".")[0]}
        for each, copies in zip(REGISTERS, before, strict=True):
            each.undo(copies, others)
        if isinstance(failure, KeyboardInterrupt):  # is the user's own
            raise
        return [point.refused(repr(failure))]
    return [
        f"{each.kind} {name!r} of {each.owners[name].module}: where peers say so they mean {aliases[key(name)]!r}"
        for each, (names, aliases, _) in zip(REGISTERS, before, strict=True)
        for name in each.entries.keys() - names.keys()
        if key(name) in aliases
    ]


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """`"lms(order=3)"` as ("lms", {"order": 3}); values are Python literals or bare words."""
    match = re.fullmatch(r"\s*([^()]+?)\s*(?:\((.*)\))?\s*", text, flags=re.DOTALL)
    if match is None:
        raise SolverError(f"can't read {text!r}; expected a name, or a name with options such as 'lms(order=3)'")
    options: dict[str, Any] = {}
    for part in filter(None, (p.strip() for p in (match[2] or "").split(","))):
        name, equals, value = part.partition("=")
        if not (equals and name.strip().isidentifier() and value.strip()):
            raise SolverError(f"can't read the option {part!r} in {text!r}; expected key=value")
        if name.strip() in options:
            raise SolverError(f"the option {name.strip()!r} stands twice in {text!r}; leave one of them out")
        try:
            options[name.strip()] = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # the last three: of deep nesting
            options[name.strip()] = value.strip()
    return match[1], options


def make(factory: Callable[..., object], options: Mapping[str, object], what: str, error: Kind, *others: str) -> Any:
    """factory(**options), with `error` where it does not take them. others: options that were dealt with before."""
    known = signature(factory).parameters
    if not any(p.kind is Parameter.VAR_KEYWORD for p in known.values()):
        for name in options:
            if name not in known:
                raise error(f"{what} has no option {name!r}{did_you_mean(name, [*known, *others])}")
    for name, value in options.items():
        if name in known and known[name].annotation in (bool, "bool") and not isinstance(value, bool):
            raise error(f"{what} has {name}=True or {name}=False, got {value!r}")
    try:
        return factory(**options)
    except DiffsolveError:
        raise
    except Exception as failure:
        said = failure if isinstance(failure, TypeError | ValueError | ArithmeticError) else repr(failure)
        raise error(f"{what} can't be built with {dict(options)}: {said}") from failure
