"""A step is linear in vectors, so it can be recorded: on symbolic vectors it leaves a list of three kinds of operation.

`record` runs a solver's ordinary `step` over a grid; `Tape.play` runs the list on tensors. Scalars are float64 (or
symbols).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .errors import SolverError
from .problem import SWAPPED, RightHandSide
from .solver import Past, Solver, Span, Step, combine

Row = tuple[tuple[int, Any], ...]
"""(register, coefficient) pairs: a sum of multiples of registers."""


@dataclass(frozen=True)
class Evaluate:
    """register `out` = N(sum of `row`, s), and `plain` the same without guidance; where `final`, the denoised state."""

    out: int
    row: Row
    s: Any
    final: bool = False
    plain: int | None = None


@dataclass(frozen=True)
class Combine:
    """register `out` = sum of `row`."""

    out: int
    row: Row


@dataclass(frozen=True)
class Draw:
    """register `out` = a standard normal of an interval: `Field.draw`, or the one that `kind` names."""

    out: int
    span: Span
    kind: str = "draw"


Operation = Evaluate | Combine | Draw


_LINEAR = (
    "a step is sums of float multiples of vectors. Declare traceable = False on the solver if it must do more, "
    "and it runs eagerly"
)


class Vec:
    """A symbolic vector: a sum of multiples of registers. Anything but linear algebra on it is refused."""

    __slots__ = ("terms",)
    __array_ufunc__ = None  # numpy scalars leave the arithmetic to this class

    def __init__(self, terms: dict[int, Any]) -> None:
        self.terms = terms

    def __add__(self, other: Any) -> Vec:
        if not isinstance(other, Vec):
            return self._refuse("add", other)
        terms = dict(self.terms)
        for register, c in other.terms.items():
            terms[register] = terms[register] + c if register in terms else c
        return Vec(terms)

    def __sub__(self, other: Any) -> Vec:
        return self + other * -1.0 if isinstance(other, Vec) else self._refuse("subtract", other)

    def __neg__(self) -> Vec:
        return self * -1.0

    def __mul__(self, scalar: Any) -> Vec:
        if isinstance(scalar, Vec | Tensor):
            return self._refuse("multiply by", scalar)
        return Vec({register: c * scalar for register, c in self.terms.items()})

    __rmul__ = __mul__

    def __truediv__(self, scalar: Any) -> Vec:
        if isinstance(scalar, Vec | Tensor):
            return self._refuse("divide by", scalar)
        return Vec({register: c / scalar for register, c in self.terms.items()})

    def _refuse(self, what: str, other: Any) -> Vec:
        raise SolverError(
            f"a traced step may not {what} a {type(other).__name__}: {_LINEAR}"
        )

    def __eq__(self, other: object) -> bool:
        return bool(self)

    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        raise SolverError("a traced step may not branch on a state's value; branch on span or on len(past)")


@dataclass(frozen=True)
class TapeStep:
    """The operations of one step and the register that holds its result."""

    span: Span
    operations: tuple[Operation, ...]
    out: int


@dataclass(frozen=True)
class Tape:
    """A recorded solve. Register 0 is the start; every operation writes a register of its own."""

    steps: tuple[TapeStep, ...]

    @property
    def operations(self) -> list[Operation]:
        return [op for step in self.steps for op in step.operations]

    @property
    def nfe(self) -> int:
        """Evaluations, counted rather than declared."""
        return sum(isinstance(op, Evaluate) for op in self.operations)

    @property
    def draws(self) -> int:
        return sum(isinstance(op, Draw) for op in self.operations)

    @property
    def keeps(self) -> Any:
        """What the result is of the start where every evaluation and draw is 0: e^{linear h} up to the order."""
        share: dict[int, Any] = {0: 1.0}
        for op in self.operations:
            share[op.out] = sum(c * share[register] for register, c in op.row) if isinstance(op, Combine) else 0.0
            if isinstance(op, Evaluate) and op.plain is not None:
                share[op.plain] = 0.0
        return share[self.steps[-1].out]

    def play(self, field: RightHandSide, start: Tensor) -> Iterator[Tensor]:
        """Run the tape, yielding the state after each step; a register is freed after its last use."""
        last_use: dict[int, int] = {}
        for place, op in enumerate(self.operations):
            for register, _ in () if isinstance(op, Draw) else op.row:
                last_use[register] = place
        dying: dict[int, list[int]] = {}
        for register, place in last_use.items():
            dying.setdefault(place, []).append(register)
        live, place = {0: start}, 0
        for step in self.steps:
            for op in step.operations:
                if isinstance(op, Draw):
                    live[op.out] = getattr(field, op.kind)(op.span)
                else:
                    live.update(self._run(op, field, live))
                    for register in dying.get(place, ()):
                        if register != step.out:
                            del live[register]
                place += 1
            live[step.out] = field.settle(live[step.out], step.span)
            yield live[step.out]

    @staticmethod
    def _run(op: Evaluate | Combine, field: RightHandSide, live: dict[int, Tensor]) -> dict[int, Tensor]:
        (register, c), *rest = op.row
        value = live[register] if not rest and c == 1 else combine(*((c, live[r]) for r, c in op.row))
        if isinstance(op, Combine):
            return {op.out: value}
        if op.plain is not None:
            return dict(zip((op.out, op.plain), field.both(value, op.s), strict=True))
        return {op.out: field.denoise(value, op.s) if op.final else field(value, op.s)}

    def __str__(self) -> str:
        lines = []
        for step in self.steps:
            lines.append(f"step {step.span.index}: {step.span.start:g} -> {step.span.end:g}")
            for op in step.operations:
                if isinstance(op, Draw):
                    lines.append(f"  r{op.out} = {op.kind}")
                    continue
                total = " + ".join(f"{c:g} r{r}" if isinstance(c, float) else f"({c}) r{r}" for r, c in op.row)
                call = "D" if isinstance(op, Evaluate) and op.final else "f"
                lines.append(f"  r{op.out} = {f'{call}({total}; {op.s:g})' if isinstance(op, Evaluate) else total}")
        return "\n".join(lines)


class _Recorder:
    """The `f` that a step is given while it is recorded; all but evaluations and draws it takes from the real one."""

    def __init__(self, field: Any) -> None:
        self._field = field
        self.operations: list[Operation] = []
        self.registers = 1

    def __getattr__(self, name: str) -> Any:
        return getattr(self._field, name)

    def __call__(self, y: Vec, s: Any) -> Vec:
        if not isinstance(y, Vec):
            raise SolverError(SWAPPED.format(type(y).__name__))
        return self.append(Evaluate(self.registers, tuple(y.terms.items()), s))

    def both(self, y: Vec, s: Any) -> tuple[Vec, Vec]:
        guided, plain = self.registers, self.registers + 1
        self.append(Evaluate(guided, tuple(y.terms.items()), s, plain=plain))
        self.registers = plain + 1
        return Vec({guided: 1.0}), Vec({plain: 1.0})

    def draw(self, span: Span) -> Vec:
        return self.append(Draw(self.registers, span))

    def learned(self, span: Span) -> Vec:
        return self.append(Draw(self.registers, span, "learned"))

    def wiener(self, span: Span) -> Vec:
        return self.append(Draw(self.registers, span, "wiener"))

    def area(self, span: Span) -> Vec:
        return self.append(Draw(self.registers, span, "area"))

    def append(self, op: Operation) -> Vec:
        self.operations.append(op)
        self.registers = op.out + 1
        return Vec({op.out: 1.0})

    def cut(self, y: Vec) -> Vec:
        """`y` as one register, so that the next step's sums stay short."""
        if list(y.terms.values()) == [1.0] and 0 not in y.terms:
            return y
        return self.append(Combine(self.registers, tuple(y.terms.items())))


def record(solver: Solver, field: Any, spans: Sequence[Span]) -> Tape:
    """The tape of `solver` over `spans`, planned already; `field` is neither evaluated nor drawn from.

    Raises SolverError for a solver that is declared, or found, not to be linear in its vectors.
    """
    if not (solver.traceable and field.traceable):
        what = repr(solver) if field.traceable else "a problem whose noise may depend on the state"
        raise SolverError(f"{what} is not traceable; run it with execution='eager'")
    recorder: Any = _Recorder(field)
    y, steps = Vec({0: 1.0}), []
    past: Past = ()
    for span in spans:
        recorder.operations = []
        if ends_by_denoising(solver, field, span):
            y = recorder.append(Evaluate(recorder.registers, tuple(y.terms.items()), span.start, final=True))
        elif span.up:
            y, past = recorder.cut(climb(recorder, y, span)), ()
        else:
            try:
                step = solver.step(recorder, y, span, past)
            except (AttributeError, TypeError) as error:  # y.clamp(), abs(y), y < 1: a symbol has none of it
                raise SolverError(f"{solver!r}.step can't be traced: {error}; {_LINEAR}") from error
            check_step(step, solver)
            if not isinstance(step.y, Vec):
                raise SolverError(f"{solver!r}.step can't be traced: its y is a {type(step.y).__name__}; {_LINEAR}")
            y, past = recorder.cut(step.y), tuple((node, recorder.cut(value)) for node, value in step.past)
        steps.append(TapeStep(span, tuple(recorder.operations), next(iter(y.terms))))
    return Tape(tuple(steps))


def trial(solver: Solver, field: Any, span: Span) -> tuple[int, bool]:
    """The evaluations of one traced step, and whether it hands back an estimate of its error."""
    recorder: Any = _Recorder(field)
    step = solver.step(recorder, Vec({0: 1.0}), span, ())
    check_step(step, solver)
    return sum(isinstance(op, Evaluate) for op in recorder.operations), step.error is not None


def ends_by_denoising(solver: Solver, field: Any, span: Span) -> bool:
    """Whether this span is the Euler step to sigma = 0 rather than a step of the solver's own."""
    return span.last and not (span.own and solver.steps_to_zero and field.finite_at_zero)


def climb(field: Any, u: Any, span: Span) -> Any:
    """The state taken back up in noise over a span."""
    return combine((field.rescale(span.start, span.end), u), (field.climb(span), field.draw(span)))


def check_step(step: Any, solver: Solver) -> None:
    if not isinstance(step, Step):
        raise SolverError(f"{solver!r}.step returned {type(step).__name__}, expected diffsolve.Step(y, error, past)")
    if not all(isinstance(pair, tuple) and len(pair) == 2 for pair in step.past):
        raise SolverError(f"{solver!r}.step handed back a past that is not ((node, vector), ...), oldest first")
