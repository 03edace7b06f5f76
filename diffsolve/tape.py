"""A step is linear in vectors, so it can be recorded: on symbolic vectors it leaves a list of five kinds of operation.

`record` folds `advance` over a program on symbols; `Tape.play` runs the list on tensors. What a step does is a
structure, which is hashable and the same for every grid of one length; what it does it with is a table of float64
numbers (or of symbols).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

from torch import Tensor

from .errors import SolverError
from .field import Evaluation, Field, Noise, Rule, Vector
from .problem import SWAPPED, RightHandSide
from .program import Op, Program, State, advance
from .scalars import Scalar
from .solver import Past, Solver, Span, Step

Registers = tuple[int, ...]
"""Numbers of registers. An operation is what is done to registers, without a number of its own."""


@dataclass(frozen=True)
class Evaluate:
    """An evaluation at the sum of the registers `row`; `parts` names the registers that its parts go to."""

    parts: tuple[tuple[str, int], ...]
    row: Registers


@dataclass(frozen=True)
class Combine:
    """register `out` = the sum of the registers `row` in their coefficients."""

    out: int
    row: Registers


@dataclass(frozen=True)
class Draw:
    """register `out` = a standard normal of an interval."""

    out: int
    kind: Noise


@dataclass(frozen=True)
class Projected:
    """register `out` = the problem's constraint put on the sum of `row`."""

    out: int
    row: Registers


@dataclass(frozen=True)
class Blend:
    """register `out` = near + w (far - near), register `share` = w (B, 1, ..., 1), as `field.blend` has it.

    row: near, far, the vectors of the evidence, and last, where `goes_on`, the share of the step before.
    """

    out: int
    share: int
    row: Registers
    rule: Rule
    goes_on: bool


Operation = Evaluate | Combine | Draw | Projected | Blend


@dataclass(frozen=True)
class TapeStep:
    """The operations of one step, the register of its end, and those of the history it hands on."""

    operations: tuple[Operation, ...]
    out: int
    past: Registers


@dataclass(frozen=True)
class Line:
    """An operation with its numbers: coefficients of its row; where it evaluates, or the span that it is about."""

    op: Operation
    coefficients: tuple[Scalar, ...] = ()
    s: Scalar = None
    span: Span | None = None
    node: float = 0.0


@dataclass(frozen=True)
class Tape:
    """What a solver does on a grid. structure: hashable, without a number. lines: a step's operations with theirs.

    nodes: where each step ends; past_nodes: of the history that it hands on.
    """

    structure: tuple[TapeStep, ...]
    lines: tuple[tuple[Line, ...], ...]
    nodes: tuple[float, ...]
    past_nodes: tuple[tuple[float, ...], ...]
    first: Registers = (0,)

    @property
    def operations(self) -> list[Line]:
        return [line for step in self.lines for line in step]

    @property
    def table(self) -> list[Scalar]:
        """Every coefficient and every point of evaluation, in order: all the numbers of the tape."""
        return [x for line in self.operations for x in (*line.coefficients, *([] if line.s is None else [line.s]))]

    @property
    def nfe(self) -> int:
        """Evaluations, counted rather than declared."""
        return sum(isinstance(line.op, Evaluate) for line in self.operations)

    @property
    def draws(self) -> int:
        return sum(isinstance(line.op, Draw) for line in self.operations)

    @property
    def linear(self) -> bool:
        """Whether it is nothing but sums: no number of it is measured on the way."""
        return not any(isinstance(line.op, Blend) for line in self.operations)

    @property
    def start_factor(self) -> Scalar:
        """What the result is of the start where every evaluation and draw is 0: e^{linear h} up to the order."""
        share: dict[int, Scalar] = {0: 1.0}
        for line in self.operations:
            op = line.op
            if isinstance(op, Combine):
                share[op.out] = sum(c * share[r] for r, c in zip(op.row, line.coefficients, strict=True))
            elif isinstance(op, Blend):
                share |= {op.out: share[op.row[1]], op.share: 0.0}
            else:
                share |= dict.fromkeys(_outs(op), 0.0)
        return share[self.structure[-1].out]

    def play(self, field: RightHandSide, state: State) -> Iterator[State]:
        """Run the tape from a state, yielding that after each step."""
        from .execution.tape_player import play

        return play(self, field, state)

    def __str__(self) -> str:
        lines = []
        for index, step in enumerate(self.lines):
            lines.append(f"step {index}: -> {self.nodes[index]:g}")
            for line in step:
                op = line.op
                if isinstance(op, Draw):
                    lines.append(f"  r{op.out} = {op.kind.value}")
                    continue
                if isinstance(op, Blend):
                    lines.append(f"  r{op.out}, r{op.share} = blend({', '.join(f'r{r}' for r in op.row)})")
                    continue
                total = " + ".join(
                    f"{c:g} r{r}" if isinstance(c, float) else f"({c}) r{r}"
                    for r, c in zip(op.row, line.coefficients, strict=True)
                )
                if isinstance(op, Evaluate):
                    names = ", ".join(f"r{r}" + ("" if part == "value" else f" ({part})") for part, r in op.parts)
                    lines.append(f"  {names} = f({total}; {line.s:g})")
                else:
                    lines.append(f"  r{op.out} = {total if isinstance(op, Combine) else f'projected({total})'}")
        return "\n".join(lines)


def _outs(op: Evaluate | Draw | Projected) -> Iterable[int]:
    return (out for _, out in op.parts) if isinstance(op, Evaluate) else (op.out,)


_LINEAR = (
    "a step is sums of float multiples of vectors. Declare traceable = False on the solver if it must do more, "
    "and it runs eagerly"
)


class Vec:
    """A symbolic vector: a sum of multiples of registers. Anything but linear algebra on it is refused."""

    __slots__ = ("terms",)
    __array_ufunc__ = None  # numpy scalars leave the arithmetic to this class

    def __init__(self, terms: dict[int, Scalar]) -> None:
        self.terms = terms

    def __add__(self, other: object) -> Vec:
        if not isinstance(other, Vec):
            return self._refuse("add", other)
        terms = dict(self.terms)
        for register, c in other.terms.items():
            terms[register] = terms[register] + c if register in terms else c
        return Vec(terms)

    def __sub__(self, other: object) -> Vec:
        return self + other * -1.0 if isinstance(other, Vec) else self._refuse("subtract", other)

    def __neg__(self) -> Vec:
        return self * -1.0

    def __mul__(self, scalar: Scalar) -> Vec:
        if isinstance(scalar, Vec | Tensor):
            return self._refuse("multiply by", scalar)
        return Vec({register: c * scalar for register, c in self.terms.items()})

    __rmul__ = __mul__

    def __truediv__(self, scalar: Scalar) -> Vec:
        if isinstance(scalar, Vec | Tensor):
            return self._refuse("divide by", scalar)
        return Vec({register: c / scalar for register, c in self.terms.items()})

    def _refuse(self, what: str, other: object) -> Vec:
        raise SolverError(f"a traced step may not {what} a {type(other).__name__}: {_LINEAR}")

    def __eq__(self, other: object) -> bool:
        return bool(self)

    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        raise SolverError(f"a traced step may not branch on a vector's value: {_LINEAR}")


class _Asked(Evaluation):
    """The parts of a recorded evaluation; one that is asked for gets a register."""

    __slots__ = ("parts", "recorder")

    def __init__(self, recorder: Recorder, parts: dict[str, int]) -> None:
        self.recorder, self.parts = recorder, parts

    def __getattr__(self, name: str) -> Vec:
        if name == "variance":
            raise SolverError(f"a traced step may not read the variance that a network tells: {_LINEAR}")
        if name not in ("value", "denoised", "unconditional"):
            raise AttributeError(name)
        if name not in self.parts:
            self.parts[name] = self.recorder.register()
        return Vec({self.parts[name]: 1.0})

    @property
    def unconditional(self) -> Vec | None:
        return self.__getattr__("unconditional") if self.recorder.guided else None


class Recorder(RightHandSide):
    """The field that a step is given while it is recorded: it mirrors a field's members, on symbols."""

    def __init__(self, field: Field, first: int = 1) -> None:
        self.form, self.eta, self.additive, self._field = field.form, field.eta, field.additive, field
        self.guided = field.guided
        self.constrained = isinstance(field, RightHandSide) and field.constrained
        self.registers = first
        self._lines: list[tuple[dict[str, int] | None, Line]] = []

    def register(self) -> int:
        self.registers += 1
        return self.registers - 1

    def evaluate(self, u: Vector, s: Scalar, /) -> Evaluation:
        if not isinstance(u, Vec):
            raise SolverError(SWAPPED.format(type(u).__name__))
        if self.form.linear:  # a step adds it to what comes back: both of one rounded state, as in an eager step
            u.terms = self.cut(u, True).terms
        parts: dict[str, int] = {}
        self._lines.append((parts, Line(Evaluate((), tuple(u.terms)), tuple(u.terms.values()), s)))
        return _Asked(self, parts)

    def answer(self, u: Tensor, s: float) -> NoReturn:
        raise SolverError("a tape is recorded without an answer")

    def accept(self, u: Tensor, s: float, reply: object) -> NoReturn:
        raise SolverError("a tape is recorded without an answer")

    def normal(self, span: Span, kind: Noise = Noise.INCREMENT) -> Vec:
        out = self.register()
        self._lines.append((None, Line(Draw(out, kind), span=span)))
        return Vec({out: 1.0})

    def gdg_prod(self, u: Vector, s: float) -> Vector:
        return self._field.gdg_prod(u, s)

    def project(self, u: Vector, span: Span, node: float) -> Vector:
        out = self.register()
        line = Line(Projected(out, tuple(u.terms)), tuple(u.terms.values()), span=span, node=node)
        self._lines.append((None, line))
        return Vec({out: 1.0})

    def blend(
        self, near: Vec, far: Vec, evidence: Sequence[Vec], rule: Rule, before: Vec | None = None
    ) -> tuple[Vec, Vec]:
        vectors = (near, far, *evidence, *([] if before is None else [before]))
        for vector in vectors:  # what is handed on of them is not made again
            vector.terms = self.cut(vector, True).terms
        row = tuple(next(iter(vector.terms)) for vector in vectors)
        out, share = self.register(), self.register()
        self._lines.append((None, Line(Blend(out, share, row, rule, before is not None), (1.0,) * len(row))))
        return Vec({out: 1.0}), Vec({share: 1.0})

    def cut(self, u: Vec, first: bool = False) -> Vec:
        """`u` as one register of its own, so that the next step's sums stay short; first: the start's may serve."""
        if list(u.terms.values()) == [1.0] and (first or 0 not in u.terms):
            return u
        out = self.register()
        self._lines.append((None, Line(Combine(out, tuple(u.terms)), tuple(u.terms.values()))))
        return Vec({out: 1.0})

    def take_lines(self) -> tuple[Line, ...]:
        """What was recorded since this was asked before, the parts of evaluations that nobody asked for left out."""
        lines = []
        for parts, line in self._lines:
            if parts is not None:
                assert isinstance(line.op, Evaluate)
                line = replace(line, op=Evaluate(tuple(parts.items()), line.op.row))
            lines.append(line)
        self._lines = []
        return tuple(lines)


def record(solver: Solver, field: Field, program: Program | Sequence[Sequence[Op]], past: Past = ()) -> Tape:
    """The tape of `solver` over a program; `field` is neither evaluated nor drawn from. past: the history at its start.

    Raises SolverError for a solver that is declared, or found, not to be linear in its vectors.
    """
    of_field = not isinstance(field, RightHandSide) or field.traceable
    if not (solver.traceable and of_field):
        what = repr(solver) if of_field else "a problem whose noise may depend on the state"
        raise SolverError(f"{what} is not traceable; run it with execution='eager'")
    first = tuple(range(1 + len(past)))
    recorder = Recorder(field, len(first))
    known = tuple((node, Vec({i: 1.0})) for i, (node, _) in enumerate(past, 1))
    state = State(0.0, Vec({0: 1.0}), known)
    steps, lines, nodes, past_nodes = [], [], [], []
    for ops in program:
        for op in ops:
            try:
                state = advance(state, op, solver, recorder)
            except (AttributeError, TypeError, RuntimeError) as error:  # y.clamp(), abs(y), y < 1: a symbol has none
                raise SolverError(f"{solver!r}.step can't be traced: {error}; {_LINEAR}") from error
            if not isinstance(state.u, Vec):
                kind = type(state.u).__name__
                raise SolverError(f"{solver!r}.step can't be traced: its y is a {kind}; {_LINEAR}")
            state = replace(
                state, u=recorder.cut(state.u), past=tuple((node, recorder.cut(value)) for node, value in state.past)
            )
        made = recorder.take_lines()
        history = tuple(next(iter(value.terms)) for _, value in state.past)
        steps.append(TapeStep(tuple(line.op for line in made), next(iter(state.u.terms)), history))
        lines.append(made)
        nodes.append(state.node)
        past_nodes.append(tuple(node for node, _ in state.past))
    return Tape(tuple(steps), tuple(lines), tuple(nodes), tuple(past_nodes), first)


def trial(solver: Solver, field: Field, span: Span) -> tuple[int, bool]:
    """The evaluations of one traced step, and whether it hands back an estimate of its error."""
    recorder = Recorder(field)
    step = solver.step(recorder, Vec({0: 1.0}), span, ())
    if not isinstance(step, Step):
        raise SolverError(f"{solver!r}.step returned {type(step).__name__}, expected diffsolve.Step(y, error, past)")
    return sum(isinstance(line.op, Evaluate) for line in recorder.take_lines()), step.error is not None
