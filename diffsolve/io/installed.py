"""What installed packages offer: the entry points of diffsolve's groups, built-in ones first."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import distributions
from typing import Any, NamedTuple

from ..errors import DiffsolveError

Kind = type[DiffsolveError]


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

    def open(self, error: Kind, use: Callable[[Any], Any] = lambda found: found) -> Any:
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
