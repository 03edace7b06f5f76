"""A solve that is under way: step by step, inside out, to be saved and gone on with."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, NoReturn, get_args

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from .adaptive import AdaptiveLoop, AdaptiveState
from .denoiser import Output
from .errors import DiffsolveError, Interrupted, SolverError
from .field import Evaluation, FieldView, Vector
from .grid import Grid
from .problem import Call, RightHandSide
from .program import External, FixedLoop, State
from .solution import Finiteness, Solution, Trajectory, Visit, Watcher
from .solver import Span
from .validate import choice, transformed

Gradient = Literal["backprop", "checkpoint"]
Reply = Output | Tensor | tuple[Tensor, Tensor]
"""An answer to a Call: an Output, or what the network returned."""


class GradientMode:
    """How the steps of a run are taken; see `start(gradient=)`.

    asked: None, "backprop" or "checkpoint". x: the state that the run begins with. weights_count: whether a right-hand
    side that carries a gradient of its own is reason enough, as it is for an ODE, to keep a graph.
    """

    def __init__(self, asked: Gradient | None, x: Tensor, weights_count: bool) -> None:
        if asked is not None:
            choice(asked, "gradient", get_args(Gradient))
        self.asked = asked
        self.ambient = weights_count or x.requires_grad or is_transformed()
        if asked == "checkpoint" and is_transformed():
            raise SolverError("gradient='checkpoint' does not go together with torch.func; take gradient='backprop'")

    def enabled(self) -> bool:
        """Whether grad mode is on in a step taken now."""
        return self.asked is not None or (self.ambient and torch.is_grad_enabled())

    def take(self, step: Callable[[], State]) -> State:
        """The step, in that mode; with "checkpoint" it is taken again when gradients are asked for."""
        with torch.set_grad_enabled(self.enabled()):
            if self.asked != "checkpoint":
                return step()
            from torch.utils.checkpoint import checkpoint

            made: State = checkpoint(step, use_reentrant=False)
            return made


def is_transformed() -> bool:
    """Whether a torch.func transform or a level of forward-mode differentiation is under way."""
    return transformed() or forward_ad._current_level >= 0


class Run:
    """A solve between two steps; made by `start`.

    Iterating it takes the steps, each a Visit; `step()` takes one and hands back None at the end. `solution` is what
    there is so far. `state` is plain data that `start(..., state=saved)` goes on from to the bit.
    """

    def __init__(
        self, solution: Solution, field: RightHandSide, loop: FixedLoop | AdaptiveLoop, samples: Sequence[int],
        mode: GradientMode,
    ) -> None:  # fmt: skip
        self.solution, self.field, self._loop, self._samples, self.mode = solution, field, loop, samples, mode
        self.solver = loop.solver
        x, node = solution.x, float(solution.grid.nodes[0])
        self._finite = Finiteness(x)
        self.count = loop.count  # the steps there will be, None where they are chosen on the way
        self.watchers: list[Watcher] = [] if solution.trajectory is None else [Trajectory()]
        self._state: State = loop.begin(x, field)
        self._closed = False
        self._shown: list[tuple[Tensor, int]] = []  # what a visit shows, and how often it had been changed by then
        solution.nodes = [node]

    @property
    def denoised(self) -> Tensor | None:
        """The data estimate of the newest evaluation; None before the first, and for an ODE."""
        newest = self.field.newest
        return None if newest is None else newest.denoised

    def __iter__(self) -> Iterator[Visit]:
        while (visit := self.step()) is not None:
            yield visit

    def step(self) -> Visit | None:
        """Take one step (and as many attempts as it takes); None where there is none left."""
        return self._take(True)

    def rest(self) -> None:
        """Take all the steps that are left, each a Visit for the watchers alone."""
        self._take(False)

    def _take(self, one: bool) -> Visit | None:
        began = time.perf_counter()
        try:
            self._check_shown()
            while not self._state.ended:
                visit = self._commit(self._next(), one)
                if one and visit:
                    return visit
            self.close()
        except (Exception, KeyboardInterrupt) as error:
            self._fail(error)
        finally:
            self.solution.seconds += time.perf_counter() - began
        return None

    def _next(self) -> State:
        state, field, next_of = self._state, self.field, self._loop.next
        if self.mode.asked or self.mode.ambient:
            return self.mode.take(partial(next_of, state, field))  # type: ignore[arg-type]
        before = torch.is_grad_enabled()
        torch._C._set_grad_enabled(False)
        try:
            return next_of(state, field)  # type: ignore[arg-type]
        finally:
            torch._C._set_grad_enabled(before)

    def calls(self) -> Generator[Call, Reply, None]:
        """The run inside out: yields each network call that is due, and is sent its answer.

        A step that needs another call is taken again from its start with the answers that are there, which costs no
        network call. Raises SolverError for a method that makes its calls by itself.
        """
        loop = self._loop
        if isinstance(loop, FixedLoop):
            if any(isinstance(op, External) for op, *_ in loop.program):
                raise SolverError(f"{self.solution.solver} makes its calls by itself; it can't be turned inside out")
            loop = FixedLoop(loop.solver, loop.program)  # a tape is not taken again
        try:
            while not self._state.ended:
                after, answers = None, list[Evaluation]()
                while after is None:
                    try:
                        with torch.set_grad_enabled(self.mode.enabled()):
                            after = loop.next(self._state, Answered(self.field, answers))  # type: ignore[arg-type]
                    except Pending as due:
                        self._shown = [] if due.u.is_inference() else [(due.u, due.u._version)]
                        reply = yield self.field.request(due.u, due.s)
                        self._check_shown()
                        with torch.set_grad_enabled(self.mode.enabled()):
                            answers.append(self.field.accept(due.u, due.s, reply))
                self._commit(after)
            self.close()
        except (Exception, KeyboardInterrupt) as error:
            self._fail(error)

    def _commit(self, after: State, asked: bool = True) -> Visit | None:
        """Go on to the state; a Visit where a step was taken, None where an attempt was not kept or all is over.

        asked: whether a Visit is wanted where nobody watches.
        """
        before, solution, field = self._state, self.solution, self.field
        if after.steps == before.steps:
            self._state = after
            solution.nfe = field.nfe
            self._note(after)
            return None
        x = field.form.from_form(after.u, after.node) if after.x is None else after.x
        visit, shown = None, asked or self.watchers
        if shown or not after.finite:
            share = after.steps / self.count if self.count else self._loop.share(after)  # type: ignore[arg-type]
            visit = Visit(before.steps, self.count, share, after.node, x, after.error, after.nfe, field.newest)
            if not after.finite:
                self._finite.see(visit, self)
        self._state = after
        solution.x, solution.nfe, solution.steps = x, after.nfe, after.steps
        solution.nodes.append(after.node)
        if self.count is None:
            self._note(after)
        self._shown = []
        if shown:
            newest = None if field.newest is None or field.newest.unmade else field.newest.denoised
            self._shown = [(t, t._version) for t in (x, newest) if t is not None and not t.is_inference()]
        for watcher in self.watchers:
            if watcher.see(visit, self):  # type: ignore[arg-type]
                self._state = replace(self._state, ended="stopped")
            self._check_shown()
        return visit

    def _check_shown(self) -> None:
        """Refuse to go on from what somebody has changed."""
        for tensor, version in self._shown:
            if tensor._version != version:
                raise SolverError(
                    "a callback, an event or the loop changed the state, or the data estimate, in place, which only "
                    "some forms would see; copy it first"
                )

    def _note(self, state: State) -> None:
        """What an adaptive run has learnt, for the solution."""
        if isinstance(state, AdaptiveState):
            self.solution.stats.update(
                accepted=len(state.sizes), rejected=state.rejected, h=list(state.lengths), errors=list(state.sizes)
            )

    def replace_state(self, u: Tensor) -> None:
        """Go on from another state, in the solver's form, at the same node, the calls of a watcher counted."""
        state = replace(self._state, u=u, nfe=self.field.nfe, x=None)
        if isinstance(state, AdaptiveState) and u is not self._state.u:
            state = replace(state, known=())
        self._state = state

    def label(self, index: int) -> str:
        """ "step 3 of 20 (5 -> 4)", to say where something happened."""
        nodes = self.solution.nodes
        if index + 1 < len(nodes):
            ends = nodes[index], nodes[index + 1]
        elif isinstance(self._loop, FixedLoop):
            planned = self._loop.program.nodes
            ends = planned[min(index, len(planned) - 2)], planned[min(index + 1, len(planned) - 1)]
        else:
            span: Span = self._loop.span(self._state)  # type: ignore[arg-type]
            ends = self._state.node, 0.0 if span.last else self.field.form.sigma(span.end)
        return f"step {index + 1}{self._of()} ({ends[0]:g} -> {ends[1]:g})"

    def _of(self) -> str:
        return "" if self.count is None else f" of {self.count}"

    def _fail(self, error: BaseException) -> NoReturn:
        """Raise it with the solution so far, saying in which step it was."""
        solution, taken = self.solution, self._state.steps
        solution.reason, solution.nfe = "failed", self.field.nfe
        if isinstance(error, KeyboardInterrupt):
            solution.reason = "interrupted"
            self.close(check=False)
            raise Interrupted(f"interrupted after step {solution.steps}{self._of()}", solution) from error
        if not isinstance(error, DiffsolveError):
            error.add_note(f"diffsolve: in {self.label(min(taken, (self.count or taken + 1) - 1))}")
        elif solution.steps == taken and not str(error).startswith("step "):
            error.args = (f"{self.label(taken)}: {error}", *error.args[1:])
        solution.stats["failure"] = str(error) or repr(error)
        self.close(check=False)
        error.solution = solution  # type: ignore[attr-defined]
        raise error

    def close(self, check: bool = True) -> None:
        """End the run where it is; what is still to be checked is. Called by itself at the end, and once only."""
        if self._closed:
            return
        self._closed, solution = True, self.solution
        solution.stats |= self.field.told()
        if check:
            solution.reason = self._state.ended or "stopped"
        if self.count is None and solution.steps:
            to_zero = solution.nodes[-1] == 0 and solution.grid.final != "none"
            taken = solution.nodes[: -1 if to_zero else None]
            solution.grid = Grid(np.asarray(taken), "adaptive", solution.grid.final if to_zero else "none")
        try:
            if check:
                self._finite.close(self)
        finally:
            for watcher in self.watchers:
                watcher.close(self)

    @property
    def state(self) -> dict[str, Any]:
        """Where the run stands, as plain data: numbers, strings, lists and tensors, to be saved, copied and pickled.

        Raises SolverError for a run that another library has in hand.
        """
        state, solution = self._state, self.solution
        if any(not isinstance(value, Tensor) for _, value in state.past):
            raise SolverError(f"the history of {solution.solver} is not made of tensors, so it can't be saved")
        saved: dict[str, Any] = {
            "solver": solution.solver, "schedule": solution.schedule, "nodes": solution.grid.nodes.tolist(),
            "final": solution.grid.final, "form": self.field.form.name, "eta": self.field.eta, "seed": solution.seed,
            "samples": list(self._samples), "node": state.node, "u": state.u, "x": solution.x, "nfe": state.nfe,
            "steps": state.steps,
            "past": [[node, value] for node, value in state.past], "ended": state.ended,
            "visited": list(solution.nodes), "trajectory": solution.trajectory and list(solution.trajectory),
            "seconds": solution.seconds, "times": solution.times,
            "events": solution.events and list(solution.events),
        }  # fmt: skip
        if isinstance(state, AdaptiveState):
            saved["adaptive"] = {
                name: value for name, value in vars(state).items() if name in _ADAPTIVE
            } | {"known": [[s, e.value, e.denoised, e.variance, e.unconditional] for _, s, e in state.known]}
        return saved

    def resume(self, saved: Mapping[str, Any]) -> None:
        """Go on from a saved state. Raises SolverError where it was saved by another run."""
        now = self.state
        for name in ("solver", "nodes", "final", "form", "eta", "seed", "samples"):
            if saved.get(name) != now[name]:
                raise SolverError(
                    f"the saved state is of a run with {name} {saved.get(name)!r}, this one has {now[name]!r}"
                )
        past = tuple((node, value.clone()) for node, value in saved["past"])
        changes = {"node": saved["node"], "u": saved["u"].clone(), "past": past}
        changes |= {name: saved[name] for name in ("nfe", "steps", "ended")}
        if isinstance(self._state, AdaptiveState):
            own = dict(saved["adaptive"])
            changes["known"] = tuple((changes["u"], s, Evaluation(*parts)) for s, *parts in own.pop("known"))
            changes |= {name: tuple(value) if isinstance(value, list) else value for name, value in own.items()}
        if self._state.x is not None:  # the loop goes on from x, of which u is made
            changes["x"] = saved["x"].clone()
        self._state = replace(self._state, **changes)
        self.field.nfe = self._state.nfe
        solution = self.solution
        solution.nodes, solution.nfe, solution.steps = list(saved["visited"]), saved["nfe"], saved["steps"]
        x = self._state.x
        solution.x = self.field.form.from_form(self._state.u, self._state.node) if x is None else x
        solution.seconds = saved["seconds"]
        if saved["trajectory"] and (solution.trajectory is not None or saved["times"]):
            solution.trajectory = list(saved["trajectory"])
        solution.times, solution.events = saved["times"], saved["events"] and list(saved["events"])
        self._note(self._state)


_ADAPTIVE = ("s", "h", "before", "recent", "unknown", "rejected", "lengths", "sizes")


class Pending(Exception):  # noqa: N818
    """An evaluation that nobody has answered yet."""

    def __init__(self, u: Tensor, s: float) -> None:
        super().__init__("a network call is due")
        self.u, self.s = u, s


class Answered(FieldView, RightHandSide):
    """A field whose evaluations are answers that are there already, in their order; past the last one a call is due."""

    def __init__(self, f: RightHandSide, answers: Sequence[Evaluation]) -> None:
        super().__init__(f)
        self._f: RightHandSide = f
        self._answers = iter(answers)
        self.traceable, self.guided, self.constrained, self.nfe = f.traceable, f.guided, f.constrained, f.nfe

    def __call__(self, u: Vector, s: float, /) -> Vector:
        return self.evaluate(u, s).value

    def evaluate(self, u: Vector, s: float, /) -> Evaluation:
        for found in self._answers:
            return found
        raise Pending(u, s)

    def answer(self, u: Tensor, s: float) -> Any:
        raise Pending(u, s)

    def accept(self, u: Tensor, s: float, reply: object) -> Evaluation:
        return self._f.accept(u, s, reply)

    def project(self, u: Tensor, span: Span, node: float) -> Tensor:
        return self._f.project(u, span, node)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._f, name)  # of a field that has more to it than a flow's
