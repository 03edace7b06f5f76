"""A plan under way: where it stands, what it keeps, and the sums that lead from one network call to the next."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ...errors import SolverError
from ...field import Evaluation
from ...problem import RightHandSide
from ...program import FixedLoop, State
from ...run import Answered, Pending
from .calls import ANSWER, Call, Terms, X
from .plan import Plan, answered


@dataclass(slots=True)
class Place:
    """Before which call a run stands, and what it keeps there: data, never changed, so a call can be taken again.

    (It is not frozen, as that would cost as much as a call's arithmetic.)

    kept: by the numbers of the plan. state, answers: in their place for a solver that can't be traced. x: the input of
    the call in full precision, and `handed`, `version`: as it was handed out; None where it is the caller's to give.
    """

    index: int = 0
    kept: dict[int, Tensor] | None = None
    state: State | None = None
    answers: tuple[Evaluation, ...] = ()
    x: Tensor | None = None
    handed: Tensor | None = None
    version: int = 0


class Play:
    """A plan that is carried out, call by call. seeds: one for each sample, asked for where noise is first needed."""

    def __init__(self, plan: Plan, place: Place | None = None, seeds: list[int] | None = None) -> None:
        self.plan, self.place, self.before = plan, place or Place(), place
        self.seeds = seeds
        self.newest: tuple[float, Tensor, Tensor, int, int] | None = None
        self._field: RightHandSide | None = None

    @property
    def over(self) -> bool:
        return self.place.index == len(self.plan)

    def answer(self, raw: Tensor, sample: Tensor, seeds: Callable[[int], list[int]]) -> Tensor:
        """The sample for the next call, or the result, in the dtype of `sample`, which was answered with `raw`.

        A sample that is not what was handed out is an edit. What it changes of the state is kept: on a step's state it
        is that state; on a stage's, the step's start moves with it, by what leads to it, and its answers stay.
        """
        place, calls = self.place, self.plan.calls
        call = calls[place.index]
        x, moved = self._read(place, sample, call)
        kept = self._split(raw, x)
        after = self._summed(place, call, kept, x, moved, seeds) if self.plan.traced else self._taken(
            place, call, kept, x, seeds)
        handed = after.x
        assert handed is not None
        if handed.dtype is not sample.dtype:
            handed = handed.to(sample.dtype)
        elif after.index != len(calls) and calls[after.index].moves:
            handed = handed.clone()  # what it was must be known where it is changed in place
        after.handed, after.version = handed, _version(handed)
        self.before, self.place, self.newest = place, after, (call.sigma, x, kept, _version(x), _version(kept))
        return handed

    def again(self) -> None:
        """Back to before the newest call."""
        if self.before is not None:
            self.place = self.before

    def estimate(self) -> Callable[[], Tensor]:
        """What makes the data estimate of the call that is the newest now, whenever it is asked for."""
        assert self.newest is not None
        return partial(self._denoised, *self.newest)

    def _denoised(self, sigma: float, x: Tensor, kept: Tensor, of_x: int, of_kept: int) -> Tensor:
        """Raises SolverError where the network has written over its answer, or somebody over the sample."""
        if (_version(x), _version(kept)) != (of_x, of_kept):
            raise SolverError(
                "the sample or the network's answer of that call has been written over since; read "
                "pred_original_sample before the next call"
            )
        if not self.plan.traced or self.plan.units.clip is not None:
            return answered(self.plan, kept, x, sigma).denoised
        terms = tuple(self.plan.units.denoised(sigma).items())
        return _fresh(terms, {X: x, ANSWER: kept})

    def _read(self, place: Place, sample: Tensor, call: Call) -> tuple[Tensor, Tensor | None]:
        """The input of the call in full precision, and by how much it was moved since it was handed out, if it was."""
        known = place.x
        if known is None:
            return sample.to(torch.promote_types(sample.dtype, torch.float32)), None
        if sample is place.handed and (sample.is_inference() or sample._version == place.version):
            return known, None
        if sample.shape != known.shape or sample.device != known.device:
            raise SolverError(
                f"the sample was {tuple(known.shape)} on {known.device} when it was handed out, and is "
                f"{tuple(sample.shape)} on {sample.device}; call set_timesteps before another run"
            )
        if call.moves is None:
            warnings.warn(
                f"the sample was changed before call {place.index}, in a step of {self.plan.recipe.solver!r} whose "
                "state can't follow it: the change reaches the network alone",
                stacklevel=4,
            )
        if sample.dtype == known.dtype and not call.moves:
            return sample, None
        moved = sample.to(known.dtype) - known.to(sample.dtype).to(known.dtype)  # exactly 0 where it is as it was
        return known + moved, moved

    def _split(self, raw: Tensor, x: Tensor) -> Tensor:
        """The answer in full precision, without a variance where the sums take it as it is."""
        if raw.dtype is not x.dtype:
            raw = raw.to(x.dtype)
        if raw.shape == x.shape:
            return raw
        nature = self.plan.recipe.nature
        twice = raw.shape[:1] == x.shape[:1] and raw.ndim == x.ndim and raw.shape[1] == 2 * x.shape[1]
        if not (nature.learned_range and twice):
            raise SolverError(
                f"the network answered with {tuple(raw.shape)} at a sample of {tuple(x.shape)}; expected the same shape"
            )
        return raw.chunk(2, 1)[0] if self.plan.traced and self.plan.units.clip is None else raw

    def _summed(
        self, place: Place, call: Call, raw: Tensor, x: Tensor, moved: Tensor | None,
        seeds: Callable[[int], list[int]],
    ) -> Place:  # fmt: skip
        live = dict(place.kept or {})
        if moved is not None and call.moves:
            live.update({r: live[r].add(moved, alpha=factor) for r, factor in call.moves})
        live[X], live[ANSWER] = x, self._clipped(raw, x, call)
        for register, span, kind in call.draws:
            live[register] = self.field(x, seeds).normal(span, kind)
        kept = {r: live[r] for r in call.stay}
        for r, terms in call.keep:
            kept[r] = _fresh(terms, live)
        out = _fresh(call.out, live) if call.out else torch.zeros_like(x)
        if kept and len(call.out) == 1 and call.out[0][0] in kept:
            out = out.clone()
        return Place(place.index + 1, kept, x=out)

    def _clipped(self, raw: Tensor, x: Tensor, call: Call) -> Tensor:
        if self.plan.units.clip is None:
            return raw
        return answered(self.plan, raw, x, call.sigma).denoised

    def _taken(
        self, place: Place, call: Call, raw: Tensor, x: Tensor, seeds: Callable[[int], list[int]]
    ) -> Place:
        """The same for a solver that can't be traced: its step is taken again with the answers that are there."""
        plan, field, units = self.plan, self.field(x, seeds), self.plan.units
        u = x / units.from_form(call.sigma)
        state = place.state or State(plan.program.start, u)
        if not place.answers:
            state = replace(state, u=u)
        found = field.accept(u, plan.field.form.variable(call.sigma), answered(plan, raw, x, call.sigma))
        answers, loop = [*place.answers, found], FixedLoop(plan.recipe.solver, plan.program)
        while True:
            try:
                state = loop.next(state, Answered(field, answers))
            except Pending as due:
                out = due.u * units.from_form(plan.field.form.sigma(due.s))
                return Place(place.index + 1, None, state, tuple(answers), out)
            answers = []
            if state.ended:
                return Place(place.index + 1, None, state, (), state.u * units.from_form(state.node))

    def field(self, x: Tensor, seeds: Callable[[int], list[int]]) -> RightHandSide:
        """The field whose noise this run takes."""
        if self._field is None:
            if self.seeds is None:
                self.seeds = seeds(len(x))
            self._field = self.plan.field_of(torch.empty_like(x), self.seeds)
        return self._field


def _version(t: Tensor) -> int:
    return 0 if t.is_inference() else t._version


def _fresh(terms: Terms, live: dict[int, Tensor]) -> Tensor:
    """The sum, in storage of its own unless it is one of the vectors that are ours already."""
    (key, c), *rest = terms
    first = live[key]
    if c != 1:
        total = first * c
    elif rest:
        (other, c), *rest = rest
        total = first.add(live[other], alpha=c)
    else:
        return first.clone() if key < 0 else first
    for key, c in rest:
        total.add_(live[key], alpha=c)
    return total
