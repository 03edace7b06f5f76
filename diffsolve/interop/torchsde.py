"""torchsde's methods (Li et al. 2020), by their names there: `solve(problem.sde(), "torchsde:srk")`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from ..errors import SolverError, did_you_mean
from ..field import Field, Noise
from ..registry import SolverEntry, library_entry
from ..solver import Driver, Span
from ..validate import above_zero

if TYPE_CHECKING:
    from ..control import Controller

# method: strong order with additive noise, evaluations a step
ITO = {"euler": (1, 1), "milstein": (1, 1), "srk": (1.5, 9)}  # srk evaluates its stages anew
STRATONOVICH = {"euler_heun": (1, 1), "heun": (1, 2), "midpoint": (1, 2)}
_LEAST = 1e-5  # of a span: the shortest step that is chosen


def entry(method: str) -> SolverEntry:
    """The row of a method. Raises SolverError for one that torchsde does not have for the noise of an SDEProblem."""
    known = ITO | STRATONOVICH
    if method not in known:
        raise SolverError(f"torchsde has no method {method!r} that solves these SDEs{did_you_mean(method, known)}")
    strong, stages = known[method]
    return library_entry(
        f"torchsde:{method}", partial(TorchSDE, method), order=1, stages=stages, form="sde", stochastic=True,
        source="Li et al. 2020, torchsde", strong=strong, weak=1,
    )  # fmt: skip


class TorchSDE(Driver):
    """`torchsde.sdeint`, a call a span, on our Brownian path, so that noise is keyed by (seed, sample) here too.

    rtol, atol: where one is given, it chooses its steps within a span by halving them, which takes three steps for one;
    the other is equal to it. Its Stratonovich methods take additive noise alone, for which they solve the same
    equation; general noise that reads the state is left to "euler".
    """

    stochastic = True

    def __init__(self, method: str, rtol: float | None = None, atol: float | None = None) -> None:
        known = [above_zero(value, name) for name, value in (("rtol", rtol), ("atol", atol)) if value is not None]
        self.method = method
        self.tolerances = (known[0], known[-1]) if known else None
        self.stages = None if known else (ITO | STRATONOVICH)[method][1]

    def tolerating(self, rtol: float | None, atol: float | None, controller: Controller | None) -> Self:
        if controller is not None:
            raise SolverError(f"{self!r} has a rule of its own for its steps; leave controller out")
        changed = type(self)(self.method, rtol, atol)
        return self.with_changes(tolerances=changed.tolerances, stages=None)

    def run(self, f: Field, y: Tensor, spans: Sequence[Span]) -> Iterator[Tensor]:
        from torchsde import sdeint

        self._check(f, y, spans[0].start)
        for span in spans:
            equation = _Equation(f, y, span, "ito" if self.method in ITO else "stratonovich", self.method)
            h = abs(span.h)
            ts = torch.tensor([0.0, h], dtype=torch.float64, device=y.device)
            flat = y.reshape(len(y), -1)
            options: dict[str, Any] = {"bm": equation.brownian, "method": self.method, "dt": h}
            if self.tolerances is not None:
                rtol, atol = self.tolerances
                options |= {"adaptive": True, "rtol": rtol, "atol": atol, "dt_min": _LEAST * h}
            with warnings.catch_warnings():
                warnings.filterwarnings("error", message="Hitting minimum allowed step size")
                warnings.filterwarnings("ignore", message="Numerical solution is not guaranteed")  # it is additive
                try:
                    ends = sdeint(equation, flat, ts, **options)
                except (AssertionError, UserWarning) as error:
                    raise SolverError(f"torchsde's {self.method} failed: {error}; raise rtol and atol") from error
            # its Milstein leaves a graph behind, whether or not anything carries a gradient
            carried = y.requires_grad or equation.carried or equation.g(0.0, flat.detach()).requires_grad
            y = ends[-1].reshape(y.shape) if carried else ends[-1].reshape(y.shape).detach()
            yield y

    def _check(self, f: Field, y: Tensor, s: float) -> None:
        """Raise SolverError for what the method would solve wrongly, or not at all."""
        if f.additive:
            return
        if self.method in STRATONOVICH:
            raise SolverError(
                f"torchsde's {self.method} solves Stratonovich's equation, and the noise of this one, which is Ito's, "
                f"depends on the state; choose one of: {', '.join(ITO)}"
            )
        noise = _noise_type(f)
        if noise == "general" and self.method != "euler":
            raise SolverError(f"torchsde's {self.method} takes no general noise that reads x; take 'torchsde:euler'")
        if noise == "scalar" and self.method == "milstein" and y[0].numel() > 1:
            raise SolverError(
                "torchsde's milstein multiplies scalar noise with the Jacobian's transpose; take 'milstein' or "
                "'torchsde:srk'"
            )
        if self.method == "euler" and self.tolerances is not None:
            raise SolverError(
                "torchsde's euler does not converge to the solution with steps of its own choice where the noise reads "
                "the state; leave rtol and atol out, or take 'torchsde:milstein' or 'torchsde:srk'"
            )
        if self.method != "euler":
            f.gdg_prod(y, s)  # diagonal noise is to be diagonal: its derivative is looked at


def _noise_type(f: Field) -> str:
    return str(getattr(f, "noise_type", "diagonal"))


class _Equation:
    """One step as torchsde wants it: time from 0 up, states (B, d), g (B, d) where it is diagonal, else (B, d, m)."""

    def __init__(self, f: Field, y: Tensor, span: Span, sde_type: str, method: str) -> None:
        self.field, self.shape, self.span, self.sde_type = f, y.shape, span, sde_type
        self.own_noise = self.noise_type = _noise_type(f)
        if f.additive and self.own_noise == "general":
            self.noise_type = "additive"
        self.sense = 1.0 if span.h > 0 else -1.0
        self.carried = False
        self.latest: tuple[float, Tensor, Tensor] | None = None
        self.brownian = _Brownian(self, self.g(0.0, y.detach().reshape(len(y), -1)))

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

    def g(self, t: object, y: Tensor) -> Tensor:
        u = y.reshape(self.shape)
        if self.own_noise == "general":
            own = self.field.level(u, self.at(t))
            whole: Tensor = own.to(u).expand(*u.shape, own.shape[-1]).reshape(len(y), -1, own.shape[-1])
            return whole
        level: Tensor = self.field.g_prod(u, self.at(t), torch.ones_like(u)).reshape(len(y), -1)
        return level.unsqueeze(-1) if self.own_noise == "scalar" else level


class _Brownian:
    """What torchsde asks of a Brownian motion, of the field's own path."""

    levy_area_approximation = "space-time"

    def __init__(self, equation: _Equation, g: Tensor) -> None:
        self.equation, self.shape = equation, (len(g), g.shape[-1])
        self.dtype, self.device = g.dtype, g.device

    def __call__(self, ta: object, tb: object, return_U: bool = False, return_A: bool = False) -> Any:
        field, span = self.equation.field, Span(self.equation.at(ta), self.equation.at(tb))
        h = abs(span.h)
        z = field.normal(span, Noise.WIENER).reshape(self.shape)
        if not return_U:
            return z * h**0.5
        z2 = field.normal(span, Noise.LEVY_AREA).reshape(self.shape)
        return z * h**0.5, (z / 2 + z2 / 12**0.5) * h**1.5
