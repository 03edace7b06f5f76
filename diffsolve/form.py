"""The forms of the flow: one ODE (or SDE) written in several variables, u' = L u + N with a constant scalar L.

y and sigma are VE coordinates, D the denoiser; N = on_state u + on_denoised D at each noise level.
The concrete ones are in solvers/.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TypeVar

from torch import Tensor

from .deprecated import former_attribute
from .errors import SolverError
from .process import Process
from .register import Owner, Register
from .validate import finite, written


class Form(ABC):
    """u = scale(sigma) y as a function of s = variable(sigma); s grows or falls monotonically along a solve.

    All of it is float64 on the host. process: that of the problem, for `time` and `alpha`.
    """

    name: str
    linear: float = 0.0
    stochastic = False
    finite_at_zero = True  # whether s and u have a limit at sigma = 0, so that a step may end there

    def __init__(self, process: Process) -> None:
        self.process = process

    @abstractmethod
    def variable(self, sigma: float) -> float:
        """s at a noise level; infinite at 0 where s has no limit there."""

    @abstractmethod
    def sigma(self, s: float) -> float:
        """The noise level at s."""

    @abstractmethod
    def scale(self, sigma: float) -> float:
        """The factor from y to u at a noise level."""

    @abstractmethod
    def weights(self, sigma: float) -> tuple[float, float]:
        """(on_state, on_denoised) of N."""

    def noise_std(self, start: float, end: float) -> float:
        """Standard deviation, in u, of the noise that a step from s = start to s = end adds; 0 for an ODE."""
        return 0.0

    def renoise_std(self, start: float, end: float) -> float:
        """Standard deviation, in u at `end`, of the noise that takes the state up in noise from `start` to `end`."""
        low, high = self.sigma(start), self.sigma(end)
        return self.scale(high) * math.sqrt(high * high - low * low)

    def variance_at(self, s: float) -> float:
        """The variance that the Brownian path of a solve in this form has run up to s; it grows along the solve.

        An ODE form has noise only where a solver adds some of its own: its variance is that of the reverse SDE.
        """
        return 1 / self.sigma(s) ** 2

    def diffusion(self, s: float) -> float:
        """g of the form's SDE du = (L u + N) ds + g dW; 0 for an ODE."""
        return 0.0

    def time(self, s: float) -> float:
        """The process's time at s."""
        return self.process.t(self.sigma(s))

    def variable_at_time(self, t: float) -> float:
        """s at the process's time t."""
        return self.variable(self.process.sigma(t))

    def alpha(self, s: float) -> float:
        """alpha of the process at s: x_t = alpha y."""
        return self.process.alpha(self.sigma(s))

    def rescale(self, start: float, end: float) -> float:
        """The factor from u at s = start to the u of the same y at s = end."""
        return self.scale(self.sigma(end)) / self.scale(self.sigma(start))

    def dN_du(self, s: float) -> float:
        """d N/d u at s with the denoised state held fast."""
        return self.weights(self.sigma(s))[0]

    def deps_dN(self, s: float) -> float:
        """d eps/d N at s: what a change of N is in the noise estimate eps = (y - D)/sigma."""
        sigma = self.sigma(s)
        on_denoised = self.weights(sigma)[1]
        if on_denoised == 0:
            raise SolverError("upwards at eta = 1 nothing is read of the model, so there is no noise estimate to go by")
        return -1 / (on_denoised * sigma)

    def to_form(self, x: Tensor, node: float) -> Tensor:
        """u for the state x, in VE coordinates at a noise level; at 0 they are one."""
        scale = self.scale(node) if node > 0 else 1.0
        return x if scale == 1 else x * scale

    def from_form(self, u: Tensor, node: float) -> Tensor:
        """The state in VE coordinates for u at a noise level."""
        scale = self.scale(node) if node > 0 else 1.0
        return u if scale == 1 else u / scale


class PlainForm(Form):
    """The state and the noise level (or the time) as they are: u = y, s = sigma."""

    def variable(self, sigma: float) -> float:
        return sigma

    def sigma(self, s: float) -> float:
        return s

    def scale(self, sigma: float) -> float:
        return 1.0


class StochasticForm(Form):
    """A form of the reverse SDE (Song et al. 2021, eq. 6) with `eta` times its noise; eta = 0 is the flow.

    upward: solved from low noise to high, the SDE of the same marginals run the other way: at eta = 1 the forward
    process itself. `drift` is what the flow's drift is multiplied by: 1 + eta downwards, 1 - eta upwards.
    """

    stochastic = True
    clock, noise = former_attribute("clock", "variance_at"), former_attribute("noise", "noise_std")

    def __init__(self, process: Process, eta: float = 1.0, upward: bool = False) -> None:
        super().__init__(process)
        self.eta = self.checked(eta)
        self.upward, self.sense = upward, -1 if upward else 1
        self.drift = 1 + self.sense * self.eta

    @staticmethod
    def checked(eta: object) -> float:
        """eta as a float. Raises SolverError for what is none, below 0, or outside of 1e-6 to 50 without being 0."""
        given = finite(eta)
        if given is None or not (given == 0 or 1e-6 <= given <= 50):  # beyond, the variance leaves float64's range
            raise SolverError(
                f"eta must be a finite number of at least 0, got {written(eta)}; 0 is the ODE, 1 the reverse SDE, 50 "
                "the most and 1e-6 the least above 0"
            )
        return given

    @abstractmethod
    def diffusion(self, s: float) -> float: ...


FormClass = TypeVar("FormClass", bound=type[Form])


def register_form(form: FormClass) -> FormClass:
    """Give a Form class its `name` everywhere; a decorator. Raises SolverError where it is taken."""
    FORMS.add(form.name, form, Owner.calling())
    return form


def _form_class(name: str, found: object, owner: Owner) -> type[Form]:
    if not (isinstance(found, type) and issubclass(found, Form)):
        raise SolverError(f"it names a {type(found).__name__}, expected a diffsolve.form.Form class")
    return found


FORMS = Register[type[Form]]("form", "diffsolve.forms", SolverError, _form_class)
"""name -> form."""


@FORMS.cached  # forms are immutable
def as_form(name: str, process: Process, eta: float | None = None, upward: bool = False) -> Form:
    """The named form; the stochastic ones alone read `eta` and `upward`. Raises SolverError for an unknown name.

    It is kept for a process that can be hashed; for another ask `as_form.__wrapped__`.
    """
    kind = FORMS.find(name)
    if issubclass(kind, StochasticForm):
        return _in_range(kind(process, 1.0 if eta is None else eta, upward))
    return kind(process)


def _in_range(form: StochasticForm) -> Form:
    """The form. Raises SolverError where the variance of its path leaves float64's range between the process's ends."""
    process = form.process
    for sigma in (process.sigma_max, process.sigma_min) if form.eta > 1 else ():
        try:
            grown = abs(form.variance_at(form.variable(0.9 * sigma)) - form.variance_at(form.variable(sigma)))
        except OverflowError:
            grown = math.inf
        if not 1e-290 < grown < 1e290:
            raise SolverError(
                f"eta = {form.eta:g} is too large for the form {form.name!r} at sigma = {sigma:g}: the variance of its "
                "path leaves float64's range; take a smaller one, or another form"
            )
    return form
