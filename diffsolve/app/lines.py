"""What `diffsolve batch` is asked for: the lines of a file, each checked, and the pictures that they come to."""

from __future__ import annotations

import bisect
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from errno import EFBIG
from itertools import accumulate
from pathlib import Path
from typing import Any

from ..errors import DiffsolveError, ProblemError, did_you_mean
from ..parallel import Record
from .picture import Settings

SUFFIXES = ".jsonl", ".json", ".txt", ".ndjson"
MOST_BYTES = 1 << 28  # of a file of lines

WHOLE = ("model", "config", "revision", "process", "prediction", "dtype", "device", "compile", "channels_last")
"""Settings that hold for the whole command."""


@dataclass(frozen=True)
class Picture:
    """One picture: sample `sample` of line `line`, counted from 1; settings are its own."""

    index: int
    line: int
    sample: int
    settings: Settings

    @property
    def name(self) -> str:
        return f"{self.line:06d}-{self.sample:06d}"

    @property
    def digest(self) -> str:
        """Of what was asked for: pictures with the same one are the same."""
        later = ("guidance_min", "guidance_max")  # pictures from before there were these have the same digest
        how = ("device", "compile", "channels_last")
        asked = {k: v for k, v in asdict(self.settings).items() if k not in how and not (k in later and v is None)}
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]


class Pictures:
    """All pictures of a command. lines: JSON objects as they stand in the file; base: what holds beside them.

    Lines are kept as text, and read again when they are drawn: a million take as much memory as their file.
    """

    def __init__(self, lines: list[str], base: Settings) -> None:
        self.lines, self.base, self._numbers = lines, base, list[int]()
        counts = []
        for number, line in enumerate(lines, 1):
            if line.strip():
                self._numbers.append(number)
                counts.append(self._settings(number).batch)
        self._starts = [0, *accumulate(counts)]

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Picture:
        row = bisect.bisect_right(self._starts, index) - 1
        line, sample = self._numbers[row], index - self._starts[row]
        settings = self._settings(line)
        return Picture(index, line, sample, replace(settings, batch=1, first=settings.first + sample))

    def index_of(self, name: str) -> int | None:
        """The number of the picture of that name, None where there is no such one."""
        line, _, sample = name.partition("-")
        if not (line.isdigit() and sample.isdigit()):
            return None
        row = bisect.bisect_left(self._numbers, int(line))
        if row == len(self._numbers) or self._numbers[row] != int(line):
            return None
        index = self._starts[row] + int(sample)
        return index if index < self._starts[row + 1] else None

    def check(self, rehearse: Callable[[Settings], None]) -> None:
        """Raise ProblemError, naming the line, for what no solver can be asked; each kind is tried once."""
        seen: set[tuple[object, ...]] = set()
        for number in self._numbers:
            s = self._settings(number)
            grid = (s.schedule, s.n, s.nfe, s.quality, s.final, s.sigma_min, s.sigma_max)
            kind = (s.solver, s.rtol, s.atol, s.eta, *grid)
            if kind not in seen:
                seen.add(kind)
                try:
                    rehearse(s)
                except DiffsolveError as error:
                    raise ProblemError(f"line {number}: {error}") from error

    def _settings(self, number: int) -> Settings:
        """The settings of a line. Raises ProblemError that names it."""
        line = self.lines[number - 1]
        if not line:
            return self.base
        try:
            asked = json.loads(line, object_pairs_hook=_once, parse_constant=_no_number)
        except (ValueError, RecursionError) as error:
            raise ProblemError(f"line {number} is no JSON ({error}): {line.strip()[:80]!r}") from error
        if not isinstance(asked, dict):
            raise ProblemError(f"line {number} is {line.strip()[:80]!r}, expected an object such as "
                               '{"prompt": "red apple", "seed": 3}')  # fmt: skip
        own = {field.name for field in fields(Settings)} - set(WHOLE)
        for name, value in asked.items():
            if name in WHOLE:
                raise ProblemError(f"line {number}: {name} ({value!r}) holds for all lines; give it as --{name}")
            if name not in own:
                raise ProblemError(f"line {number}: unknown setting {name!r} ({value!r}){did_you_mean(name, own)}")
        if "prompt" not in asked and not self.base.prompt:
            raise ProblemError(f"line {number} has no prompt: {line.strip()[:80]!r}")
        try:
            return replace(self.base, **asked)
        except DiffsolveError as error:
            raise ProblemError(f"line {number}: {error}") from error


def _once(pairs: list[tuple[str, Any]]) -> Record:
    found: Record = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name!r} stands twice")
        found[name] = value
    return found


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")


def read_lines(given: str, base: Settings, count: int | None) -> Pictures:
    """The pictures of a prompt, `count` of them, or of a file of lines, as many of each that does not say `batch`.

    Raises ProblemError.
    """
    base = base if count is None else replace(base, batch=count)
    path = Path(given).expanduser() if len(given) < 4096 and "\0" not in given else Path()
    try:
        is_file = path.is_file() or path.is_fifo() or path.is_char_device() or path.suffix.lower() in SUFFIXES
        if not is_file:
            return Pictures([" {} "], replace(base, prompt=given))
        with path.open("rb") as file:
            text = file.read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:
            raise OSError(EFBIG, f"it has more than {MOST_BYTES} bytes; split it")
    except OSError as error:
        reason = f"{given} can't be read ({error.strerror})"
        raise ProblemError(f"{reason}; give a file of JSON lines, or a prompt") from error
    try:
        lines = text.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        number = text[: error.start].count(b"\n") + 1
        raise ProblemError(f"line {number} is no UTF-8 ({text[error.start:error.start + 8]!r})") from error
    found = Pictures(lines, base)
    if not len(found):
        raise ProblemError(f"{given} has no line that asks for a picture")
    return found
