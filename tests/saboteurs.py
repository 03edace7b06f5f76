"""For each check of diffsolve.testing something small and broken that it finds."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import torch
from torch import Tensor

import diffsolve as ds
from diffsolve.problems import Gaussian
from diffsolve.problems.processes import EDM


def euler(f: Any, y: Any, span: ds.Span) -> Any:
    return y + span.h * (f(y, span.start) + f.form.linear * y)


def made(step: Any, **traits: Any) -> ds.Solver:
    """A solver of order 1 whose step hands back a state, or a Step."""

    def whole(self: Any, f: Any, y: Any, span: ds.Span, past: Any) -> ds.Step:
        done = step(self, f, y, span, past)
        return done if isinstance(done, ds.Step) else ds.Step(done)

    return type("Odd", (ds.Solver,), {"step": whole, "order": 1, **traits})()


def counts(self: Any, f: Any, y: Any, span: ds.Span, past: Any) -> Any:
    type(self).kept = getattr(self, "kept", 0) + 1
    return euler(f, y, span) * (1 + 1e-3 * self.kept)


def momentum(self: Any, f: Any, y: Any, span: ds.Span, past: Any) -> Any:
    k = f(y, span.start)
    if span.index:
        k = 0.97 * k + 0.03 * self.last
    self.last = k
    return y + span.h * k


def once(self: Any, f: Any, y: Any, span: ds.Span, past: Any) -> Any:
    return euler(f, y, span)


def twice(self: Any, f: Any, y: Any, span: ds.Span, past: Any) -> Any:
    return euler(f, y, span) + 0 * f(y, span.end)


def own_call(self: Any, f: Any, y: Any, span: ds.Span, past: Any) -> Any:
    """It calls the network past `f`, and keeps what is the caller's."""
    if not hasattr(f, "denoiser"):
        return euler(f, y, span)
    denoised = f.denoiser(y, span.start).denoised
    late = past[-1][1] if past else denoised
    return ds.Step(y + span.h * (y - late) / span.start, past=((span.start, denoised),))


def unlike(kind: type) -> Any:
    return lambda s, f, y, span, past: euler(f, y, span) * (1 + 1e-3 * isinstance(y, kind))


class Locked(ds.Solver):
    order = 1

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def step(self, f: Any, y: Any, span: ds.Span, past: Any) -> ds.Step:
        return ds.Step(euler(f, y, span))


class Liar(ds.Solver):
    order, stages = 3, None

    def step(self, f: Any, y: Any, span: ds.Span, past: Any) -> ds.Step:
        done = ds.get_solver("bs23").step(f, y, span, past)
        return ds.Step(done.y, done.error * 1e-6)


def one(self: Any, span: ds.Span, known: int) -> int:
    return 1


SOLVERS: dict[str, Any] = {
    "check_runs": lambda: made(twice, evaluations=one),
    "check_zero": lambda: made(lambda s, f, y, span, past: y + span.h * f(y, span.end), steps_to_zero=True),
    "check_shapes": lambda: made(lambda s, f, y, span, past: euler(f, y, span) * (y.shape[1] > 0), traceable=False),
    "check_batch": lambda: made(lambda s, f, y, span, past: euler(f, y, span) - 1e-3 * y.mean(0), traceable=False),
    "check_aliasing": lambda: made(own_call, traceable=False, history=1),
    "check_tape": lambda: made(unlike(Tensor)),
    "check_inside_out": lambda: made(own_call, traceable=False, history=1),
    "check_saved_state": lambda: made(momentum, traceable=False),
    "check_serialisation": Locked,
    "check_shared": lambda: made(momentum, traceable=False),
    "check_budget": lambda: made(twice, evaluations=one),
    "check_declared": lambda: made(once, history=1),
    "check_structure": lambda: made(lambda *given: (twice if given[3].h < -1 else once)(*given)),
    "check_evaluations": lambda: made(twice, evaluations=one),
    "check_memory": lambda: made(counts),
    "check_numbers": lambda: made(unlike(np.ndarray)),
    "check_told": lambda: made(once, source=None),
    "check_ode": lambda: made(lambda s, f, y, span, past: y - abs(span.h) * f(y, span.start)),
    "check_backwards": lambda: made(lambda s, f, y, span, past: y - abs(span.h) * f(y, span.start)),
    "check_forms": lambda: made(lambda s, f, y, span, past: y + 0.9 * span.h * f(y, span.start)),
    "check_data": lambda: made(lambda s, f, y, span, past: euler(f, y, span) * (1 + span.last), steps_to_zero=True),
    "check_noise": lambda: made(lambda s, f, y, span, past: euler(f, y, span) + torch.randn_like(y), traceable=False),
    "check_gradient": lambda: made(lambda s, f, y, span, past: euler(f, y.detach(), span), traceable=False),
    "check_order": lambda: made(once, order=2),
    "check_sde_orders": lambda: ds.get_solver("euler_maruyama").with_changes(strong=2.5, weak=None),
    "check_error_estimate": Liar,
    "check_k_diffusion": lambda: made(counts),
    "check_scheduler": lambda: made(counts),
}  # fmt: skip
"""check -> what makes a solver that it finds."""


class Grid(ds.Schedule):
    """nodes(count, low, high) as it is told."""

    def __init__(self, rule: Any) -> None:
        self.rule = rule

    def nodes(self, count: int, low: float, high: float, process: ds.Process) -> Any:
        return self.rule(count, low, high)


class Broken(EDM):
    """sigma(t) = t but for what is told."""

    def __init__(self, **maps: Any) -> None:
        super().__init__()
        for name, function in maps.items():
            object.__setattr__(self, name, function)


class Flawed(Gaussian):
    """A Gaussian whose answer is changed."""

    def __init__(self, change: Any) -> None:
        super().__init__([0.5, -1.0])
        plain = self.denoiser
        object.__setattr__(self, "denoiser", lambda y, sigma: ds.Output(change(plain(y, sigma).denoised, y, sigma)))


def forgetful() -> Any:
    """A problem that counts its calls."""
    calls: list[float] = []
    return Flawed(lambda d, y, sigma: d + 0.01 * (calls.append(0.0) or len(calls)))


class Fixed(Gaussian):
    """A problem that is another class once its noise is asked for."""

    def sde(self, eta: float = 1.0) -> Any:
        return Gaussian([0.5, -1.0]).sde(eta)


OTHERS: dict[str, tuple[Any, Any]] = {
    "check_nodes": ("schedule", lambda: Grid(lambda n, low, high: np.geomspace(low, high, n))),
    "check_bounds": ("schedule", lambda: Grid(lambda n, low, high: np.geomspace(30.0, low, n))),
    "check_solves": ("schedule", lambda: Grid(lambda n, low, high: np.geomspace(high, low, max(n - (n == 6), 1)))),
    "check_inverse": ("process", lambda: Broken(t=lambda sigma: sigma * 1.01)),
    "check_arrays": ("process", lambda: Broken(alpha=lambda sigma: 1.0)),
    "check_rates": ("process", lambda: Broken(sigma_rate=lambda t: 2.0)),
    "check_flow": ("process", lambda: Broken(sigma_rate=lambda t: 1.2)),
    "check_solve": ("problem", forgetful),
    "check_denoiser": ("problem", lambda: Flawed(lambda d, y, sigma: y.mul_(0.9))),
    "check_samples": ("problem", lambda: Flawed(lambda d, y, sigma: d + d.mean(0))),
    "check_record": ("problem", lambda: Fixed([0.5, -1.0])),
    "check_exact": ("problem", lambda: Flawed(lambda d, y, sigma: d * 1.2)),
}  # fmt: skip
"""check -> (kind, what makes a thing that it finds)."""
