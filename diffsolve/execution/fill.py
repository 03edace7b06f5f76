"""A plan of numbers that come anew and a structure that came before."""

from __future__ import annotations

from ..form import Form
from ..tape import Projected, Tape
from .instructions import Ask, Constrain, Instruction, Meanings, Measure, Normal, Pass, Plan, StepPlan
from .plan import numbers_beside
from .structure import Arithmetic, numbers_of


def filled(
    plan: Plan, arithmetic: Arithmetic, tape: Tape, form: Form, start: float, meanings: Meanings
) -> Plan | None:
    """The plan of another tape of the same structure, as compile_plan would make it; None where it would be another."""
    scales, known = numbers_beside(tape, form, start, meanings)
    leaves = [*scales, *(float(c) for lines in tape.lines for line in lines for c in line.coefficients)]
    leaves += [number for row in known for of in row if of is not None for number in numbers_of(of)]
    table = arithmetic.played(leaves)
    if table is None:
        return None
    steps, place = list[StepPlan](), 0

    def taken(item: Pass) -> Pass:
        nonlocal place
        place += item.table.size
        return item.with_table(table[place - item.table.size : place].reshape(item.table.shape))

    for step, lines, row, scale, node, past_nodes in zip(
        plan.steps, tape.lines, known, scales[1:], tape.nodes, tape.past_nodes, strict=True
    ):
        asked = iter([(line.s, of) for line, of in zip(lines, row, strict=True) if of is not None])
        put = iter([line for line in lines if type(line.op) is Projected])
        first, made = None if step.first is None else taken(step.first), list[Instruction]()
        for item in step.instructions:
            if type(item) is Pass:
                made.append(taken(item))
            elif type(item) is Ask:
                made.append(Ask(item.x, *next(asked), item.parts, item.index))
            elif type(item) is Normal:
                span = lines[item.line].span
                assert span is not None
                made.append(Normal(item.out, span, item.kind, item.line))
            elif type(item) is Constrain:
                line = next(put)
                assert line.span is not None
                made.append(Constrain(item.x, item.out, line.span, line.node))
            elif type(item) is Measure:
                made.append(Measure(taken(item.rows), item.seen, item.share, item.rule, item.before))
        steps.append(
            StepPlan(step.inputs, first, step.given, tuple(made), step.dropped, step.size, step.x, step.past,
                     past_nodes, step.prepared, scale, node, step.most)
        )  # fmt: skip
    return Plan(tuple(steps), plan.expected, tuple(of.told for row in known for of in row if of is not None))
