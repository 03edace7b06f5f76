"""torchsde's methods (Li et al. 2020), by their names there: `solve(problem.sde(), "torchsde:srk")`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..errors import SolverError, did_you_mean
from ..field import Noise
from ..registry import SolverEntry, library_entry
from ..solver import Driver, Span

# method: strong order with additive noise, evaluations a step
ITO = {"euler": (1, 1), "milstein": (1, 1), "srk": (1.5, 9)}  # srk evaluates its stages anew
STRATONOVICH = {"euler_heun": (1, 1), "heun": (1, 2), "midpoint": (1, 2)}


def entry(method: str) -> SolverEntry:
    """The row of a method. Raises SolverError for one that torchsde does not have for an SDE with diagonal noise."""
    known = ITO | STRATONOVICH
    if method not in known:
        raise SolverError(f"torchsde has no method {method!r} that takes diagonal noise{did_you_mean(method, known)}")
    strong, stages = known[method]
    return library_entry(
        f"torchsde:{method}", partial(TorchSDE, method), order=1, stages=stages, form="sde", stochastic=True,
        source="Li et al. 2020, torchsde", strong=strong, weak=1,
    )  # fmt: skip


class TorchSDE(Driver):
    """`torchsde.sdeint`, a call a step, on our Brownian path, so that noise is keyed by (seed, sample) here too.

    Its Stratonovich methods take additive noise alone, for which they solve the same equation.
    """

    stochastic = True

    def __init__(self, method: str) -> None:
        self.method, self.stages = method, (ITO | STRATONOVICH)[method][1]

    def run(self, f: Any, y: Tensor, spans: Sequence[Span]) -> Iterator[Tensor]:
        from torchsde import sdeint

        if self.method in STRATONOVICH and not f.additive:
            raise SolverError(
                f"torchsde's {self.method} solves Stratonovich's equation, and the noise of this one, which is Ito's, "
                f"depends on the state; choose one of: {', '.join(ITO)}"
            )
        for span in spans:
            equation = _Equation(f, y, span, "ito" if self.method in ITO else "stratonovich")
            ts = torch.tensor([0.0, abs(span.h)], dtype=torch.float64, device=y.device)
            flat = y.reshape(len(y), -1)
            ends = sdeint(equation, flat, ts, bm=equation.brownian, method=self.method, dt=abs(span.h))
            # its Milstein leaves a graph behind, whether or not anything carries a gradient
            carried = y.requires_grad or equation.carried or equation.g(0.0, flat.detach()).requires_grad
            y = ends[-1].reshape(y.shape) if carried else ends[-1].reshape(y.shape).detach()
            yield y


class _Equation:
    """One step as torchsde wants it: time from 0 up, states (B, d), diagonal noise."""

    noise_type = "diagonal"

    def __init__(self, f: Any, y: Tensor, span: Span, sde_type: str) -> None:
        self.field, self.shape, self.span, self.sde_type = f, y.shape, span, sde_type
        self.sense = 1.0 if span.h > 0 else -1.0
        self.brownian = _Brownian(self, y)
        self.carried = False
        self.latest: tuple[float, Tensor, Tensor] | None = None

    def at(self, t: Any) -> float:
        return self.span.start + self.sense * float(t)

    def f(self, t: Any, y: Tensor) -> Tensor:
        if self.latest is None or self.latest[0] != t or self.latest[1] is not y:  # its checks ask twice
            u = y.reshape(self.shape)
            value = self.field(u, self.at(t))
            self.carried = self.carried or (value.requires_grad and not u.requires_grad)
            drift = value + u * self.field.form.linear if self.field.form.linear else value
            self.latest = float(t), y, (drift * self.sense).reshape(len(y), -1)
        return self.latest[2]

    def g(self, t: Any, y: Tensor) -> Tensor:
        u = y.reshape(self.shape)
        level: Tensor = self.field.g_prod(u, self.at(t), torch.ones_like(u))
        return level.reshape(len(y), -1)


class _Brownian:
    """What torchsde asks of a Brownian motion, of the field's own path."""

    levy_area_approximation = "space-time"

    def __init__(self, equation: _Equation, y: Tensor) -> None:
        self.equation, self.shape = equation, (len(y), y[0].numel())
        self.dtype, self.device = y.dtype, y.device

    def __call__(self, ta: Any, tb: Any, return_U: bool = False, return_A: bool = False) -> Any:
        field, span = self.equation.field, Span(self.equation.at(ta), self.equation.at(tb))
        h = abs(span.h)
        z = field.normal(span, Noise.WIENER).reshape(self.shape)
        if not return_U:
            return z * h**0.5
        z2 = field.normal(span, Noise.LEVY_AREA).reshape(self.shape)
        return z * h**0.5, (z / 2 + z2 / 12**0.5) * h**1.5
