"""A tape as passes over memory: what lies between two network calls is one linear map of the live buffers.

`compile_plan` walks a tape in float64 and leaves for every step a list of calls, draws and passes over numbered slots.
What a network is given and what its answer means (c_in, c_skip, c_out) is in the coefficients, so neither eps nor D is
made. A slot is dropped after its last use.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from ..errors import SolverError
from ..field import same
from ..form import Form
from ..tape import Blend, Combine, Draw, Evaluate, Line, Projected, Tape, TapeStep
from .instructions import (
    NEAR_ONE,
    Ask,
    Constrain,
    Instruction,
    Meaning,
    Meanings,
    Measure,
    Normal,
    Pass,
    Plan,
    StepPlan,
)
from .structure import Book, Traced, added

_PLAIN = Meaning(1.0, False)
Sum = dict[int, float]
"""A vector as a sum of slots."""


def compile_plan(tape: Tape, form: Form, start: float, meanings: Meanings, book: Book | None = None) -> Plan:
    """The plan of a tape from the node `start` on. Raises SolverError for an operation that is not known here.

    book: what its numbers' arithmetic is written into.
    """
    registers = [tape.first, *((step.out, *step.past) for step in tape.structure)]
    scales, known, all_lines = *numbers_beside(tape, form, start, meanings), tape.lines
    if book is not None:
        scales = [book.leaf(scale) for scale in scales]
        all_lines = tuple(
            tuple(replace(line, coefficients=tuple(book.leaf(c) for c in line.coefficients)) for line in lines)
            for lines in tape.lines
        )
        known = [[None if of is None else book.meaning(of) for of in row] for row in known]
    entries = [
        _entry(lines, first, row, scale)
        for lines, first, row, scale in zip(all_lines, registers, known, scales, strict=False)
    ]
    steps, calls = list[StepPlan](), list[float]()
    for i, (step, lines) in enumerate(zip(tape.structure, all_lines, strict=True)):
        compiler = _Step(registers[i], scales[i], entries[i], known[i], len(calls), book)
        following = entries[i + 1] if i + 1 < len(entries) else None
        made = compiler.run(step, lines, scales[i + 1], following)
        steps.append(replace(made, scale=float(scales[i + 1]), node=tape.nodes[i], past_nodes=tape.past_nodes[i]))
        calls += [of.told for of in known[i] if of is not None]
    return Plan(tuple(steps), tuple(len(first) - 1 for first in registers[:-1]), tuple(calls))


def numbers_beside(
    tape: Tape, form: Form, start: float, meanings: Meanings
) -> tuple[list[float], list[list[Meaning | None]]]:
    """What goes into a plan beside the tape's own numbers: the scale at each node, and what each call means."""
    scales = [form.scale(node) if node > 0 else 1.0 for node in (start, *tape.nodes)]
    return scales, [[meanings(line.s) if type(line.op) is Evaluate else None for line in lines] for lines in tape.lines]


def _entry(
    lines: Sequence[Line], first: Sequence[int], known: Sequence[Meaning | None], scale: float
) -> list[float] | None:
    """What a step's first call is given, of the step's inputs: nothing where it is the state itself; None where it is
    no sum of them alone."""
    value = {register: {i: 1.0 if i else scale} for i, register in enumerate(first)}
    for line, of in zip(lines, known, strict=True):
        op = line.op
        if isinstance(op, Draw | Blend) or not set(op.row) <= value.keys():
            return None
        total = _total(line, value)
        if isinstance(op, Combine):
            value[op.out] = total
            continue
        meaning = of or _PLAIN
        row = [_one(meaning.given * total.get(i, 0.0)) for i in range(len(first))]
        return [] if row == [1.0, *row[1:]] and not any(row[1:]) and not meaning.network else row
    return None


def _one(c: float) -> float:
    """c, where it is not 1 but for the rounding of a scale and its reciprocal."""
    return 1.0 if (c.near_one() if type(c) is Traced else abs(c - 1) < NEAR_ONE) else c


def _total(line: Line, value: dict[int, Sum]) -> Sum:
    total: Sum = {}
    assert not isinstance(line.op, Draw)
    for register, c in zip(line.op.row, line.coefficients, strict=True):
        for slot, share in value[register].items():
            total[slot] = added(total.get(slot, 0.0), (c if type(c) is Traced else float(c)) * share)
    return {slot: share for slot, share in total.items() if share}


def _times(total: Sum, c: float) -> Sum:
    return {slot: c * share for slot, share in total.items()} if c else {}


def _plus(a: Sum, b: Sum) -> Sum:
    return {slot: added(a.get(slot, 0.0), b.get(slot, 0.0)) for slot in (*a, *(k for k in b if k not in a))}


@dataclass
class _Step:
    """The compiler of one step."""

    first: Sequence[int]
    start: float  # u = start x
    entry: list[float] | None
    known: Sequence[Meaning | None]
    calls: int
    book: Book | None = None
    made: list[Instruction] = field(default_factory=list)
    value: dict[int, Sum] = field(default_factory=dict)
    passing: set[int] = field(default_factory=set)  # slots that the next call may overwrite
    waiting: dict[int, Normal] = field(default_factory=dict)
    products: list[tuple[int, int]] = field(default_factory=list)  # slot -2 - i is a share's slot times another slot
    size: int = 0

    def run(self, step: TapeStep, lines: Sequence[Line], scale: float, following: list[float] | None) -> StepPlan:
        self.value = {register: {i: 1.0 if i else self.start} for i, register in enumerate(self.first)}
        self.size = len(self.first) + 1
        given, opening = len(self.first), None
        if self.entry:
            opening = Pass(tuple(range(given)), (given,), self._table([[*self.entry, 0.0]]))
        elif self.entry is not None:
            given = 0  # it is given the state itself
        last = {r: i for i, line in enumerate(lines) if not isinstance(line.op, Draw) for r in line.op.row}
        last |= dict.fromkeys((step.out, *step.past), len(lines))
        asked = False
        for i, line in enumerate(lines):
            op = line.op
            if isinstance(op, Combine):
                self.value[op.out] = _total(line, self.value)
            elif isinstance(op, Draw):
                assert line.span is not None
                self.value[op.out] = {self.size: 1.0}
                self.waiting[self.size] = Normal(self.size, line.span, op.kind, i)
                self.size += 1
            elif isinstance(op, Evaluate | Projected):
                living = [r for r, at in last.items() if at > i and r in self.value]
                there = given if self.entry is not None and not asked else None
                self._call(line, self.known[i] or _PLAIN, living, there)
                asked = True
            elif isinstance(op, Blend):
                self._blend(op, [r for r in op.row if last[r] > i])
            else:
                raise SolverError(f"a fused plan has no {type(op).__name__}; run it with execution='eager'")
        return self._end(step, scale, following, opening, given)

    def _slot(self) -> int:
        self.size += 1
        return self.size - 1

    def _call(self, line: Line, meaning: Meaning, living: Sequence[int], given: int | None) -> None:
        op, state = line.op, _total(line, self.value)
        assert isinstance(op, Evaluate | Projected)
        own = [r for r in op.row if len(op.row) == 1 and isinstance(op, Evaluate) and line.coefficients[0] == 1]
        rows = self._kept(r for r in living if r not in own)
        if given is None:
            x = None if meaning.network else self._exact(_times(state, meaning.given))
            if x is None:
                x = self._slot()
                rows.append((x, _times(state, meaning.given)))
        else:
            x = given
        self._pass(rows)
        if isinstance(op, Projected):
            assert line.span is not None
            out = self._slot()
            self.made.append(Constrain(x, out, line.span, line.node))
            self.value[op.out] = {out: 1.0}
            return
        assert isinstance(op, Evaluate)
        if state.keys() != {0}:  # what the call was given is live in any case
            state = {x: 1 / meaning.given}
            self.value |= dict.fromkeys(own, state)
        self._answer(op, line.s, x, meaning, state)

    def _blend(self, op: Blend, living: Sequence[int]) -> None:
        near, far, *seen = op.row
        before = next(iter(self.value[seen.pop()])) if op.goes_on else -1
        share = before
        if op.rule is not same:
            share, rows = self._slot(), list[tuple[int, Sum]]()
            places = [self._exact(self.value[register]) for register in seen]
            for i, (register, place) in enumerate(zip(seen, places, strict=True)):
                if place is None:
                    places[i] = -2 - len(rows)
                    rows.append((self._slot() if register in living else -1, self.value[register]))
                    self.value |= {register: {rows[-1][0]: 1.0}} if register in living else {}
            made = self._rows(rows, beside=[place for place in places if place is not None and place >= 0])
            where = [made.inputs.index(p) if p >= 0 else len(made.inputs) - 2 - p for p in places if p is not None]
            self.made.append(Measure(made, tuple(where), share, op.rule, before))
        apart = _plus(self.value[far], _times(self.value[near], -1.0))
        moved = {self._product(share, slot): c for slot, c in apart.items() if c}
        self.value |= {op.out: _plus(self.value[near], moved), op.share: {share: 1.0}}

    def _product(self, share: int, slot: int) -> int:
        if (share, slot) not in self.products:
            self.products.append((share, slot))
        made = -2 - self.products.index((share, slot))
        self.passing |= {made} if slot in self.passing else set()
        return made

    def _answer(self, op: Evaluate, s: float, x: int, meaning: Meaning, state: Sum) -> None:
        wanted = {name for name, _ in op.parts}
        if meaning.folded:
            names = ["raw"] if wanted - {"unconditional"} else []
            names += ["unconditional"] if "unconditional" in wanted else []
        else:
            names = sorted(wanted)
        slots = {name: self._slot() for name in names}
        self.passing = set(slots.values())
        self.made.append(Ask(x, s, meaning, tuple(slots.items()), self.calls))
        self.calls += 1
        for name, register in op.parts:
            if not meaning.folded:
                self.value[register] = {slots[name]: 1.0}
            elif name == "denoised":
                self.value[register] = _plus(_times(state, meaning.skip), {slots["raw"]: meaning.out})
            else:
                raw = slots["unconditional" if name == "unconditional" else "raw"]
                self.value[register] = _plus(_times(state, meaning.u_share), {raw: meaning.raw_share})

    def _kept(self, living: Iterable[int]) -> list[tuple[int, Sum]]:
        """Slots of their own for the living registers that are made of what passes."""
        rows = []
        for register in living:
            if self.passing & self.value[register].keys():
                rows.append((self._slot(), self.value[register]))
                self.value[register] = {rows[-1][0]: 1.0}
        return rows

    def _exact(self, total: Sum) -> int | None:
        """The slot that a sum is, where it is one that stays."""
        ((slot, share), *more) = total.items() or [(-1, 0.0)]
        share = _one(share)
        stays = slot >= 0 and slot not in self.passing and slot not in self.waiting
        return slot if not more and share == 1 and stays else None

    def _pass(self, rows: Sequence[tuple[int, Sum]], watched: int = 0) -> None:
        if rows:
            self.made.append(self._rows(rows, watched))

    def _rows(self, rows: Sequence[tuple[int, Sum]], watched: int = 0, beside: Sequence[int] = ()) -> Pass:
        """The pass that makes them. beside: slots that are among its inputs in any case."""
        outputs = tuple(out for out, _ in rows)
        read = dict.fromkeys(slot for _, total in rows for slot in total)
        shares, factors = dict[int, int](), dict[tuple[int, ...], int]({(): 0})
        products, bases = dict[int, int](), dict[int, int]()
        for slot in read:
            if slot < 0:
                bases[slot], chain = self._parts(slot)
                for i in range(1, len(chain) + 1):
                    shares.setdefault(chain[i - 1], len(shares))
                    factors.setdefault(chain[:i], len(factors))
                products[slot] = factors[chain]
        inputs = tuple(dict.fromkeys(s for s in (*(bases.get(s, s) for s in read), *beside) if s not in outputs))
        self.made += [self.waiting.pop(slot) for slot in inputs if slot in self.waiting]
        table = [[total.get(slot, 0.0) for slot in (*inputs, *outputs, *products)] for _, total in rows]
        return Pass(
            inputs, outputs, self._table(table).reshape(len(rows), -1), watched, tuple(shares),
            tuple((factors[of[:-1]], shares[of[-1]]) for of in factors if of),
            tuple((inputs.index(bases[slot]), factor) for slot, factor in products.items()),
        )  # fmt: skip

    def _parts(self, slot: int) -> tuple[int, tuple[int, ...]]:
        """The slot that a product is of, and the slots of its shares, in order."""
        chain = list[int]()
        while slot < 0:
            share, slot = self.products[-2 - slot]
            chain.append(share)
        return slot, tuple(sorted(chain))

    def _table(self, rows: list[list[float]]) -> NDArray[np.float64]:
        if self.book is not None:
            self.book.tables += [self.book.index(c) for row in rows for c in row]
        return np.array(rows, np.float64)

    def _end(
        self, step: TapeStep, scale: float, following: list[float] | None, opening: Pass | None, given: int
    ) -> StepPlan:
        ends = [step.out, *step.past]
        rows: list[tuple[int, Sum]] = []
        where: list[int] = []
        for i, register in enumerate(ends):
            total = self.value[register] if i else _times(self.value[register], 1 / scale)
            found = self._exact(total)
            if found is None:
                found = self._slot()
                rows.append((found, total))
                if i:
                    self.value[register] = {found: 1.0}  # it may be there twice
            where.append(found)
        x = where[0]
        prepared = -1
        if following:
            total = {}
            for c, slot in zip(following, where, strict=True):  # of what was rounded: as a run that begins here does
                total = _plus(total, {slot: c}) if c else total
            prepared = self._slot()
            rows.append((prepared, total))
        self._pass(rows, sum(1 << j for j, (out, _) in enumerate(rows) if out == x))
        past = tuple(where[1:])
        kept = {x, *past, prepared}
        dropped, most = self._drops(kept)
        return StepPlan(
            len(self.first) - 1, opening, given if self.entry is not None else -1, tuple(self.made), dropped,
            self.size, x, past, (), prepared, 1.0, 0.0, most,
        )  # fmt: skip

    def _drops(self, kept: set[int]) -> tuple[tuple[tuple[int, ...], ...], int]:
        """The slots to let go after each instruction, and the most that are live at once beside answers."""
        last: dict[int, int] = {}
        for i, item in enumerate(self.made):
            rows = item.rows if isinstance(item, Measure) else item
            if isinstance(rows, Pass):
                last.update(dict.fromkeys((*rows.inputs, *rows.shares), i))
                last |= {item.before: i} if isinstance(item, Measure) and item.before >= 0 else {}
            elif isinstance(item, Ask | Constrain):
                last[item.x] = i
        dropped = tuple(
            tuple(slot for slot, at in last.items() if at == i and slot not in kept) for i in range(len(self.made))
        )
        live, answers, most = set(range(len(self.first))), set[int](), len(self.first)
        for item, gone in zip(self.made, dropped, strict=True):
            if isinstance(item, Ask):
                live.add(item.x)
                answers |= {slot for _, slot in item.parts}
            elif isinstance(item, Measure):
                live |= {*item.rows.outputs, item.share} - {-1}
            else:
                live |= {*item.outputs} if isinstance(item, Pass) else {item.out}
            most = max(most, len(live - answers))
            live -= set(gone)
        return dropped, most
