"""What a plan is made of: steps of calls, draws and passes over numbered slots."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, combinations_with_replacement
from operator import itemgetter
from struct import Struct

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..field import Noise, Rule
from ..solver import Span

NOTHING = torch.empty(0)
"""What an empty slot holds, and the place of an output that is nowhere."""
NEAR_ONE = 2e-15
"""How near 1 a product of a scale and its reciprocal is, and relative to them, how near 0 a sum that cancels."""


@dataclass(frozen=True)
class Meaning:
    """A call at (u, s): the network is given `given` u; N = u_share u + raw_share raw, D = (skip, out) of (u, raw).

    The last four are of an answer that is N itself (an ODE's) where `folded` is false.
    """

    given: float
    folded: bool
    u_share: float = 0.0
    raw_share: float = 1.0
    skip: float = 0.0
    out: float = 1.0
    told: float = 0.0  # the time that the network is told
    network: bool = False  # which may work in place: it is given a tensor of its own
    sigma: float = 0.0


Picker = Callable[[Sequence[Tensor]], tuple[Tensor, ...]]


def picker(which: Sequence[int]) -> Picker:
    """What hands out those of a list."""
    if len(which) > 1:
        return itemgetter(*which)
    return (lambda slots: (slots[which[0]],)) if which else lambda slots: ()


def _address(numbers: NDArray[np.uint64]) -> int:
    return int(numbers.ctypes.data)


Meanings = Callable[[float], Meaning]
"""s -> Meaning."""


@dataclass(frozen=True, eq=False)
class Pass:
    """slots[outputs] = table @ slots[inputs + outputs], a row at a time; of `watched` outputs finiteness is asked.

    products: of the table's columns beyond those, each for one of the inputs times a factor of each sample, which two;
    factors: 1, and then each one before times one of the slots `shares`, which two.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    table: NDArray[np.float64]
    watched: int = 0
    shares: tuple[int, ...] = ()
    factors: tuple[tuple[int, int], ...] = ()
    products: tuple[tuple[int, int], ...] = ()

    @cached_property
    def told(self) -> int:
        """Where it stands what compiled code is told of it."""
        return _address(self._told)

    @cached_property
    def _told(self) -> NDArray[np.uint64]:
        return self.words(0)

    def words(self, pairs: int) -> NDArray[np.uint64]:
        """Sizes, and where the table is, `of_samples` and the pairs of vectors whose inner products are wanted."""
        of_samples = _address(self._of_samples) if self.products else 0
        sizes = len(self.inputs), len(self.outputs)
        return np.array([*sizes, self.table.ctypes.data, self.watched, of_samples, pairs], np.uint64)

    @cached_property
    def _of_samples(self) -> NDArray[np.uint64]:
        pairs = (*self.factors, *self.products)
        return np.array([len(self.factors), len(self.products), len(self.shares), *chain(*pairs)], np.uint64)

    @cached_property
    def job(self) -> Callable[..., bytes]:
        """Packs what `combine` of kernels.c is given: four numbers, and where its tensors are."""
        return Struct(f"{4 + len(self.shares) + len(self.inputs) + len(self.outputs)}Q").pack

    @cached_property
    def tensors(self) -> Picker:
        """Its shares, inputs and outputs, of the slots; that in slot -1 for an output that is nowhere."""
        return picker((*self.shares, *self.inputs, *self.outputs))

    def with_table(self, table: NDArray[np.float64]) -> Pass:
        """The same with other numbers, a part of a table that stays where it is."""
        return Pass(self.inputs, self.outputs, table, self.watched, self.shares, self.factors, self.products)


@dataclass(frozen=True, eq=False)
class Ask:
    """A network call: of slots[x] at s; its answers go to slots, by their part: "raw" and "unconditional", or N's."""

    x: int
    s: float
    meaning: Meaning
    parts: tuple[tuple[str, int], ...]
    index: int = 0  # among the calls of the run


@dataclass(frozen=True, eq=False)
class Normal:
    """slots[out] = a standard normal of the span."""

    out: int
    span: Span
    kind: Noise
    line: int = 0  # of the step's tape


@dataclass(frozen=True, eq=False)
class Noisy:
    """A pass that alone reads a normal, the last of its inputs that are drawn: the two in one."""

    normal: Normal
    rows: Pass


@dataclass(frozen=True, eq=False)
class Constrain:
    """slots[out] = the problem's constraint put on slots[x]."""

    x: int
    out: int
    span: Span
    node: float


@dataclass(frozen=True, eq=False)
class Measure:
    """slots[share] = rule(inner products of some vectors, slots[before], where that is not -1).

    rows: the pass that makes those that are not there, an output of -1 being for their inner products alone. seen:
    which of its inputs and outputs the vectors are.
    """

    rows: Pass
    seen: tuple[int, ...]
    share: int
    rule: Rule
    before: int

    @cached_property
    def measured(self) -> tuple[tuple[int, int], ...]:
        """The pairs of vectors whose inner products the rule reads: all, where it says nothing of it."""
        return tuple(getattr(self.rule, "pairs", combinations_with_replacement(range(len(self.seen)), 2)))

    @cached_property
    def pairs(self) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """How many there are, and which two of the inputs and outputs each is of; without those of before."""
        known = dict(self.again)
        every = self.measured, [pair for i, pair in enumerate(self.measured) if i not in known]
        few, all_of = (np.array([len(p), *(self.seen[i] for pair in p for i in pair)], np.uint64) for p in every[::-1])
        return all_of, few

    @cached_property
    def numbers(self) -> Callable[[Sequence[float], float | None], float] | None:
        """The rule on floats, the products of the pairs of one sample and its share of before, where it has one."""
        found: Callable[[Sequence[float], float | None], float] | None = getattr(self.rule, "numbers", None)
        return found

    @cached_property
    def again(self) -> tuple[tuple[int, int], ...]:
        """Pairs that are also of the step before, where the rule says so: which, in order, and which it was there."""
        return tuple(sorted(getattr(self.rule, "again", {}).items()))

    @cached_property
    def same(self) -> tuple[tuple[int, int], ...]:
        """Which vectors have to be the same ones for that, of this step and of the one before."""
        pairs = self.measured
        return tuple({of for new, old in self.again for of in zip(pairs[new], pairs[old], strict=True)})

    @cached_property
    def places(self) -> Picker:
        """Its vectors, of the tensors of its rows."""
        return picker([len(self.rows.shares) + i for i in self.seen])

    @cached_property
    def told(self) -> tuple[int, int]:
        """Where it stands what compiled code is told of it: of all pairs, and without those of before."""
        return _address(self._told[0]), _address(self._told[1])

    @cached_property
    def _told(self) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        return self.rows.words(_address(self.pairs[0])), self.rows.words(_address(self.pairs[1]))

    @cached_property
    def made(self) -> tuple[int, ...]:
        """The slots of those outputs that are somewhere."""
        return tuple(out for out in self.rows.outputs if out >= 0)


Instruction = Pass | Ask | Normal | Constrain | Measure


@dataclass(frozen=True, eq=False)
class StepPlan:
    """A step: from slots 0 (the state in VE coordinates) and 1, 2, ... (the history: `inputs` of them) to `x` and
    `past`. The form's state is `scale` times x at its end.

    first: what makes the first call's input, where the step before has not left it in slot `given`. dropped: the slots
    to let go after each instruction. prepared: where this step leaves the next one's first input, or -1.
    """

    inputs: int
    first: Pass | None
    given: int
    instructions: tuple[Instruction, ...]
    dropped: tuple[tuple[int, ...], ...]
    size: int
    x: int
    past: tuple[int, ...]
    past_nodes: tuple[float, ...]
    prepared: int
    scale: float
    node: float
    most: int = 0  # slots that are live at one time, the network's answer not counted

    @property
    def passes(self) -> list[Pass]:
        every = [item.rows if isinstance(item, Measure) else item for item in (self.first, *self.instructions)]
        return [item for item in every if isinstance(item, Pass)]

    @cached_property
    def empty(self) -> tuple[Tensor, ...]:
        """What the slots hold beside what is given, and one more: slot -1 is nowhere."""
        return (NOTHING,) * (self.size - self.inputs)

    @cached_property
    def items(self) -> list[tuple[type, Instruction | Noisy, tuple[int, ...]]]:
        """Each instruction with what is dropped after it; after the last all is."""
        made: list[tuple[type, Instruction | Noisy, tuple[int, ...]]] = []
        for item, gone in zip(self.instructions, self.dropped, strict=True):
            before = made[-1][1] if made else None
            if type(item) is Pass and type(before) is Normal and before.out in item.inputs and before.out in gone:
                made[-1] = Noisy, Noisy(before, item), gone
            else:
                made.append((type(item), item, gone))
        return [*made[:-1], *((kind, item, ()) for kind, item, _ in made[-1:])]

    @cached_property
    def history(self) -> Picker:
        """What is handed on, of the slots."""
        return picker(self.past)

    @cached_property
    def checked(self) -> bool:
        """Whether the last pass looks at the state that the step ends with."""
        last = self.instructions[-1] if self.instructions else None
        return isinstance(last, Pass) and self.x in last.outputs


@dataclass(frozen=True, eq=False)
class Plan:
    """A run's steps, and the history that each of them expects."""

    steps: tuple[StepPlan, ...]
    expected: tuple[int, ...]
    told: tuple[float, ...] = ()  # to the network in each call

    def __deepcopy__(self, memo: object) -> Plan:
        return self  # it never changes, and compiled code reads its tables where they are

    @property
    def table(self) -> NDArray[np.float64]:
        """Every coefficient of every pass, in order."""
        passes = [p.table.ravel() for step in self.steps for p in step.passes]
        return np.concatenate(passes) if passes else np.zeros(0)

    @cached_property
    def places(self) -> dict[int, int]:
        """Where in `table` that of each pass begins, by its id."""
        passes = [p for step in self.steps for p in step.passes]
        ends = np.cumsum([p.table.size for p in passes]).tolist()
        return {id(p): end - p.table.size for p, end in zip(passes, ends, strict=True)}

    @cached_property
    def widest(self) -> int:
        """The most terms or sums of a pass."""
        return max((max(p.table.shape) for step in self.steps for p in step.passes if p.table.size), default=0)

    @property
    def most(self) -> int:
        """The most latents that are live at one time, beside a network's answer."""
        return max(step.most for step in self.steps)
