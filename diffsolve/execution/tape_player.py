"""The player of a tape, operation by operation on tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from ..field import blend, combine
from ..problem import RightHandSide
from ..program import FixedLoop, State
from ..tape import Blend, Combine, Draw, Line, Projected, Tape, record


def play(tape: Tape, field: RightHandSide, state: State) -> Iterator[State]:
    """Run the tape from a state, yielding that after each step; a register is freed after its last use."""
    dying = _last_uses(tape)
    live: dict[int, Tensor] = dict(zip(tape.first, (state.u, *(v for _, v in state.past)), strict=True))
    place = 0
    for step, lines, node, past in zip(tape.structure, tape.lines, tape.nodes, tape.past_nodes, strict=True):
        for line in lines:
            live.update(_run(line, field, live))
            for register in dying.get(place, ()):
                live.pop(register, None)
            place += 1
        history = tuple((at, live[register]) for at, register in zip(past, step.past, strict=True))
        state = State(node, live[step.out], history, field.nfe, state.steps + 1)
        yield state


def _last_uses(tape: Tape) -> dict[int, list[int]]:
    """The registers to free after each operation; what a step hands on is used until the next step ends."""
    last: dict[int, int] = {}
    place = 0
    for step in tape.structure:
        for op in step.operations:
            last.update(dict.fromkeys(() if isinstance(op, Draw) else op.row, place))
            place += 1
        last.update(dict.fromkeys((step.out, *step.past), place))
    dying: dict[int, list[int]] = {}
    for register, when in last.items():
        dying.setdefault(when, []).append(register)
    return dying


def _run(line: Line, field: RightHandSide, live: dict[int, Tensor]) -> dict[int, Tensor]:
    op = line.op
    if isinstance(op, Draw):
        assert line.span is not None
        return {op.out: field.normal(line.span, op.kind)}
    if isinstance(op, Blend):
        near, far, *seen = (live[r] for r in op.row)
        before = seen.pop() if op.goes_on else None
        return dict(zip((op.out, op.share), blend(near, far, seen, op.rule, before), strict=True))
    first = line.coefficients[0]
    if len(op.row) == 1 and first == 1:
        value = live[op.row[0]]
    else:
        value = combine(*((c, live[r]) for r, c in zip(op.row, line.coefficients, strict=True)))
    if isinstance(op, Combine):
        return {op.out: value}
    if isinstance(op, Projected):
        assert line.span is not None
        return {op.out: field.project(value, line.span, line.node)}
    found = field.evaluate(value, line.s)
    return {out: getattr(found, part) for part, out in op.parts}


class TapeLoop(FixedLoop):
    """The same, recorded first. A tape is played from where it was begun, once."""

    execution = "tape"
    _player: Iterator[State] | None = None

    def next(self, state: State, field: RightHandSide) -> State:
        if self._player is None:
            tape = record(self.solver, field, self.program.steps[state.steps :], state.past)
            self._player = play(tape, field, state)
        state = next(self._player)
        return replace(state, ended="end") if state.steps == self.count else state
