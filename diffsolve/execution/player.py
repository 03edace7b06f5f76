"""The fused player: a plan on tensors of the host, one pass over memory between two network calls."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from ..denoiser import Denoiser, GuidedCall, NetworkCall, Output
from ..errors import ProblemError
from ..field import Evaluation, Noise
from ..problem import RightHandSide
from ..program import FixedLoop, Program, State
from ..solver import Solver, Span
from ..validate import check_like, unchanged
from .buffers import POOL, Buffers
from .instructions import NOTHING, Ask, Constrain, Meaning, Measure, Noisy, Normal, Pass, Plan
from .native import native
from .passes import CompiledPass, Measured, Passing, torch_pass, torch_share

Variance = Tensor | Callable[[], Tensor] | None

class Folded(Evaluation):
    """An evaluation whose parts are made when they are asked for, or by `keep`, before they would be lost.

    of: the meaning of the answer, what the network was given, its answer, that without guidance, the variance.
    """

    __slots__ = ("_of",)

    def __init__(self, of: tuple[Meaning, Tensor, Tensor, Tensor | None, Variance]) -> None:
        self._of: tuple[Meaning, Tensor, Tensor, Tensor | None, Variance] | None = of

    @property
    def unmade(self) -> bool:  # type: ignore[override]
        return self._of is not None

    def keep(self) -> None:
        if self._of is None:
            return
        (meaning, x, raw, free, variance), self._of = self._of, None

        def made(state: float, answer: Tensor, c: float) -> Tensor:
            total = answer * c
            return total.add_(x, alpha=state / meaning.given) if state else total

        super().__init__(
            made(meaning.u_share, raw, meaning.raw_share), made(meaning.skip, raw, meaning.out),
            variance() if callable(variance) else variance,
            None if free is None else made(meaning.u_share, free, meaning.raw_share),
        )  # fmt: skip

    def again(self) -> Folded:
        """The same of what stands in its tensors now."""
        assert self._of is not None
        return Folded(self._of)

    def __getattr__(self, name: str) -> object:
        if name not in Evaluation.__slots__ or self._of is None:
            raise AttributeError(name)
        self.keep()
        return getattr(self, name)


class Reached(State):
    """A state of which x is at hand; the form's u is made when it is asked for."""

    _u: Tensor | None = None
    _scale: float
    x: Tensor

    @property
    def u(self) -> Tensor:
        if self._u is None:
            self.__dict__["_u"] = self.x if self._scale == 1 else self.x * self._scale
        return self.__dict__["_u"]  # type: ignore[no-any-return]

    @u.setter
    def u(self, value: Tensor) -> None:
        self.__dict__["_u"] = value


def _reached(values: dict[str, object]) -> State:
    made: State = _NEW(Reached)  # the constructor of a frozen record takes as long as a small pass
    _SET(made, "__dict__", values)
    return made


_NEW, _SET = object.__new__, object.__setattr__


class FusedLoop(FixedLoop):
    """A program played from its plan. A state that is not of this plan is taken on by the eager step."""

    execution = "fused"

    def __init__(
        self, solver: Solver, program: Program, plan: Plan, x: Tensor, passing: Passing | None = None
    ) -> None:
        super().__init__(solver, program)
        self.plan, self._traits, self._over = plan, (x.shape, x.dtype, x.device), False
        self._of_samples = torch.Size([x.shape[0]] + [1] * (x.ndim - 1)), x.dtype, x.device  # of a share
        self._shares: Buffers | None = None
        self.buffers = POOL.taken(plan, *self._traits)
        by_torch = native().library is None or plan.widest > 64
        self._pass: Passing = passing or (torch_pass if by_torch else CompiledPass(x))
        self._play = self._pass.play if type(self._pass) is CompiledPass else self._by_torch
        self._last: State | None = None
        self._handed: tuple[Tensor, ...] = ()
        self._measured: Measured | None = None
        self._prepared: Tensor | None = None
        self._drawn: tuple[RightHandSide, Callable[[Span, Noise], int] | None] | None = None
        self._network: tuple[Denoiser, NetworkCall | None] | None = None
        self._times: tuple[Tensor, ...] = ()

    def begin(self, x: Tensor, field: RightHandSide) -> State:
        node = self.program.start
        made = _reached({"node": node, "x": x, "_scale": field.form.scale(node) if node > 0 else 1.0})
        if self._fits(made):
            self._last = made
        return made

    def next(self, state: State, field: RightHandSide) -> State:
        going_on = state is self._last
        if torch.is_grad_enabled() or not (going_on or self._fits(state)):
            return super().next(state, field)
        if self._over:  # and is gone on with from an earlier state
            self._over, self._shares, self.buffers = False, None, Buffers(*self._traits)
        step = self.plan.steps[state.steps]
        x = state.x if state.x is not None else field.form.from_form(state.u, state.node)
        past = self._handed if going_on else [value for _, value in state.past]
        slots: list[Tensor] = [x, *past, *step.empty]
        items = step.items
        if step.given > 0:
            if going_on and self._prepared is not None:
                slots[step.given] = self._prepared
            else:
                assert step.first is not None
                items = [(Pass, step.first, ()), *items]
        self._last, self._prepared, self._handed, past = None, None, (), ()
        bad, play, take = 0, self._play, self.buffers.take
        for kind, item, dropped in items:
            if kind is Pass:
                for out in item.outputs:  # type: ignore[union-attr]
                    slots[out] = take()
                bad |= play(item, item.tensors(slots))  # type: ignore[arg-type, union-attr]
            elif kind is Ask:
                self._ask(item, slots, field)  # type: ignore[arg-type]
            elif kind is Measure:
                self._measure(item, slots)  # type: ignore[arg-type]
            elif kind is Noisy:
                bad |= self._noisy(item, slots, field)  # type: ignore[arg-type]
            elif kind is Normal:
                slots[item.out] = self._normal(item, field)  # type: ignore[arg-type, union-attr]
            else:
                self._constrain(item, slots, field)  # type: ignore[arg-type]
            for slot in dropped:
                slots[slot] = NOTHING
        steps = state.steps + 1
        if step.prepared >= 0:
            self._prepared = slots[step.prepared]
        self._handed = handed = step.history(slots)
        self._last = after = _reached({
            "node": step.node, "_scale": step.scale, "past": tuple(zip(step.past_nodes, handed, strict=True)),
            "nfe": field.nfe, "steps": steps, "x": slots[step.x], "ended": "end" if steps == self.count else "",
            "finite": step.checked and not bad,
        })  # fmt: skip
        if steps == self.count:
            self._give_back()
        return after

    def _give_back(self) -> None:
        """The buffers, to the next run."""
        self._last, self._measured, self._over = None, None, True
        POOL.give(self.plan, self.buffers, *self._traits)
        if self._shares is not None:
            POOL.give(self.plan, self._shares, *self._of_samples)

    def _fits(self, state: State) -> bool:
        shape, dtype, _ = self._traits
        shapes = shape, self._of_samples[0]
        tensors = [state.u if state.x is None else state.x, *(value for _, value in state.past)]
        return len(state.past) == self.plan.expected[state.steps] and all(
            type(t) is Tensor and t.shape in shapes and t.dtype == dtype and t.is_contiguous()
            for t in tensors
        )

    def _noisy(self, item: Noisy, slots: list[Tensor], field: RightHandSide) -> int:
        normal, rows, play = item.normal, item.rows, self._pass
        job = 0
        if type(play) is CompiledPass and (ask := self._job_of(field)) is not None:
            job = ask(normal.span, normal.kind)
        if not job:
            slots[normal.out] = self._normal(normal, field)
        for out in rows.outputs:
            slots[out] = self.buffers.take()
        tensors = rows.tensors(slots)
        return play.play(rows, tensors, job) if type(play) is CompiledPass else self._play(rows, tensors)

    def _by_torch(self, item: Pass, tensors: Sequence[Tensor]) -> int:
        shares, inputs = len(item.shares), len(item.shares) + len(item.inputs)
        return self._pass(item, tensors[shares:inputs], tensors[inputs:], tensors[:shares])

    def _job_of(self, field: RightHandSide) -> Callable[[Span, Noise], int] | None:
        """How a field's normals are drawn within a pass; None where they are not its own, or somebody watches them."""
        if self._drawn is None or self._drawn[0] is not field:
            found = None
            for kind in type(field).__mro__:
                if "normal" in vars(kind):
                    found = getattr(field, "normal_job", None) if "normal_job" in vars(kind) else None
                    break
            self._drawn = field, None if "normal" in vars(field) else found
        return self._drawn[1]

    def _measure(self, item: Measure, slots: list[Tensor]) -> None:
        rows, play, take = item.rows, self._pass, self.buffers.take
        for out in item.made:
            slots[out] = take()
        tensors = rows.tensors(slots)
        before = slots[item.before] if item.before >= 0 else None
        if self._shares is None:
            self._shares = POOL.taken(self.plan, *self._of_samples)
        share = slots[item.share] = self._shares.take()
        if type(play) is CompiledPass:
            last, self._measured = self._measured, None
            self._measured = play.measure(item, tensors, before, share, last)
            return
        tensors = tuple(take() if tensor is NOTHING else tensor for tensor in tensors)
        self._play(rows, tensors)
        torch_share(item, tensors[len(rows.shares) :], before, share)

    def _normal(self, item: Normal, field: RightHandSide) -> Tensor:
        return _dense(field.normal(item.span, item.kind))

    @staticmethod
    def _constrain(item: Constrain, slots: list[Tensor], field: RightHandSide) -> None:
        x = slots[item.x]
        slots[item.out] = _dense(field.project(x, item.span, item.node))

    def _ask(self, item: Ask, slots: list[Tensor], field: RightHandSide) -> None:
        x = slots[item.x]
        if not item.meaning.folded:
            found = field.evaluate(x, item.s)
            for part, slot in item.parts:
                slots[slot] = _dense(getattr(found, part))
            return
        denoiser = field.denoiser
        assert denoiser is not None
        newest = field.newest
        if type(newest) is Folded and sys.getrefcount(newest) > 3:  # a visit that was kept has it too
            newest.keep()
        if self._network is None or self._network[0] is not denoiser:
            self._network = denoiser, network_of(denoiser)
        network, sigma = self._network[1], item.meaning.sigma
        field.count(sigma)
        if network is None:
            raw, free, variance = self._denoised(denoiser, x, sigma)
        else:
            raw, free, variance = self._answered(denoiser, network, x, sigma, item.index)
        field.newest = Folded((item.meaning, x, raw, free, variance))
        for part, slot in item.parts:
            slots[slot] = raw if part == "raw" or free is None else free

    def _answered(
        self, denoiser: Denoiser, network: NetworkCall, x: Tensor, sigma: float, index: int
    ) -> tuple[Tensor, Tensor | None, Variance]:
        """(raw, raw without guidance, the variance's share)."""
        if not self._times:
            told = [[c] * len(x) for c in self.plan.told]
            self._times = torch.tensor(told, dtype=x.dtype, device=x.device).unbind()
        guidance = denoiser if denoiser is not network and isinstance(denoiser, GuidedCall) else None
        call = network.network if guidance is None else guidance.called(sigma)
        raw, free = call(x, self._times[index]), None
        if guidance is not None:
            raw, free = guidance.pair(raw, sigma)
        elif isinstance(raw, tuple):
            raw, free = raw
        value, variance = network.halves(raw, x, sigma)
        rest = None if free is None else _dense(network.halves(free, x, sigma)[0])
        return _dense(value), rest, None if variance is None else partial(_share, variance)

    def _denoised(self, denoiser: Denoiser, y: Tensor, sigma: float) -> tuple[Tensor, Tensor | None, Variance]:
        before = None if y.is_inference() else y._version
        found = denoiser(y, sigma)
        if before is not None and y._version != before:
            with unchanged(y, "the denoiser at sigma = {:g}", sigma):
                y.add_(0)  # says so
        if not isinstance(found, Output):
            got = type(found).__name__
            raise ProblemError(f"the denoiser at sigma = {sigma:g} returned {got}, expected an Output")
        denoised, free, variance = found
        shape, dtype, device = self._traits
        if not (type(denoised) is Tensor and denoised.shape == shape and denoised.dtype is dtype
                and denoised.device == device):  # fmt: skip
            check_like(denoised, y, "the denoiser at sigma = {:g}", sigma)
        if not denoised.is_contiguous():
            denoised = denoised.contiguous()
        return denoised, None if free is None else _dense(free), variance


def network_of(denoiser: Denoiser | None) -> NetworkCall | None:
    """The network whose coefficients can be folded, None where the denoiser is anything else."""
    found: NetworkCall | None = getattr(denoiser, "folded", None)
    return found


def _share(v: Tensor) -> Tensor:
    return (v + 1) / 2


def _dense(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_contiguous() else tensor.contiguous()
