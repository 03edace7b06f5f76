"""From a timestep that a pipeline hands back to the call that it is of: the runs of a scheduler, and their noise."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...errors import SolverError
from .plan import Plan, make_plan
from .play import Play
from .timesteps import Clock, Tick

Generators = torch.Generator | Sequence[torch.Generator] | None


class Run:
    """A run under way. listed: the plan whose times are gone through, which is the run's own but for another eta."""

    play: Play | None = None
    listed: Plan | None = None

    def state(self) -> dict[str, Any] | None:
        """Where it stands, as data."""
        if self.play is None or self.listed is None:
            return None
        place = replace(self.play.place, handed=None)
        return {"base": self.listed.base, "eta": self.play.plan.recipe.eta, "place": place, "seeds": self.play.seeds}

    def resume(self, plan: Plan, state: dict[str, Any] | None) -> None:
        """Go on from there. plan: the whole, made anew."""
        if state is not None:
            self.listed = plan.tail(state["base"])
            own = self.listed if state["eta"] == plan.recipe.eta else _at_eta(self.listed, state["eta"])
            self.play = Play(own, state["place"], state["seeds"])
            self.play.before = None


class Pass:
    """What set_timesteps arranges: the times, and the run over them, or one for each sample. One for each thread."""

    begin: int | None = None

    def __init__(self, clock: Clock, given: dict[str, object]) -> None:
        self.clock, self.given = clock, given
        self.run = Run()
        self.rows: dict[int, Run] = {}

    def state(self) -> dict[str, Any]:
        """All of it as data: what set_timesteps was given, and where the runs stand."""
        rows = {i: run.state() for i, run in self.rows.items()}
        return {"given": self.given, "begin": self.begin, "run": self.run.state(), "rows": rows}

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.begin = state["begin"]
        self.run.resume(self.clock.plan, state["run"])
        for i, one in state["rows"].items():
            self.rows.setdefault(i, Run()).resume(self.clock.plan, one)


def at(now: Pass, run: Run, timestep: object, eta: float | None) -> Play:
    """The run, standing before the call that this time is of."""
    tick = now.clock.known(timestep) or _found(now, run, timestep)
    if run.play is not None and tick.plan is run.listed:
        due = run.play.place.index
        if tick.index == due:
            return run.play
        if tick.index == due - 1 and run.play.before is not None:
            run.play.again()
            return run.play
    plan, index = tick.plan, tick.index
    if not plan.calls[index].first:
        raise SolverError(
            f"call {index} is not the first of its step, so nothing can begin with it; slice scheduler.timesteps "
            f"itself, whose slices begin where steps do, as with call {plan.begin(index)}"
        )
    run.listed = now.clock.plan.tail(plan.step_of(index))
    run.play = Play(run.listed if eta is None else _at_eta(run.listed, eta))
    return run.play


def _found(now: Pass, run: Run, timestep: object) -> Tick:
    """Which call a time is of that is none of those handed out: by its value where that costs no sync."""
    base = now.clock.plan
    plan = run.listed or base
    if run.play is None and now.begin is not None:
        plan = base.tail(base.step_of(base.begin(now.begin)))
    due = 0 if run.play is None else run.play.place.index
    value = _number(timestep)
    near = [i for i in (due, due - 1) if 0 <= i < len(plan) and (value is None or plan.told(i, value))]
    if near:
        return Tick(plan, near[0], torch.empty(0))
    if value is None:
        raise SolverError("the run is over; call set_timesteps before another")
    same = [i for i in range(len(base)) if base.told(i, value)]
    same = [i for i in same if base.calls[i].first] or same
    if same:
        return Tick(base, same[0], torch.empty(0))
    index = min(base.starts, key=lambda i: abs(base.calls[i].t - value))
    warnings.warn(
        f"the time {value:g} is none of scheduler.timesteps; the step that begins at {base.calls[index].t:g} is taken",
        stacklevel=4,
    )
    return Tick(base, index, torch.empty(0))


def _at_eta(plan: Plan, eta: float) -> Plan:
    """The same with another share of noise. Raises SolverError where the network would be called elsewhere."""
    other = make_plan(plan.recipe._replace(eta=float(eta))).tail(plan.base)
    if [call.t for call in other.calls] != [call.t for call in plan.calls]:
        raise SolverError(f"eta = {eta:g} moves the calls of {plan.recipe.solver!r}; give it to the scheduler instead")
    return other


def _number(timestep: Any) -> float | None:
    """A time as a float; None where it is on a device, to be read at the price of a sync."""
    if not isinstance(timestep, Tensor):
        return float(timestep)
    if timestep.numel() != 1:
        raise SolverError(f"expected one timestep, got {tuple(timestep.shape)}")
    return float(timestep) if timestep.device.type == "cpu" else None


def seeds_of(generator: Generators, count: int) -> list[int]:
    """A seed for each sample: the next number of its generator, of the one there is, or of torch's own."""
    given = list(generator) if isinstance(generator, list | tuple) else [generator] * count
    if len(given) != count:
        raise SolverError(f"there are {len(given)} generators and {count} samples; expected one, or as many")
    made = []
    for one in given:
        if not (one is None or isinstance(one, torch.Generator)):
            raise SolverError(f"a generator is a torch.Generator, got {type(one).__name__}; a seed is for manual_seed")
        device = "cpu" if one is None else one.device
        made.append(int(torch.randint(-(1 << 62), 1 << 62, (1,), generator=one, device=device)))
    return made
