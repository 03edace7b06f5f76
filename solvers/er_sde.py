"""ER-SDE: its form, and its solver's third order as it is published."""

from __future__ import annotations

import math
from collections.abc import Sequence

from diffsolve import Field, Process, SolverError, Span
from diffsolve.form import StochasticForm, register_form

from . import quadrature as rules
from .adams import Adams


@register_form
class ExtendedSDEForm(StochasticForm):
    """u = y, s = -log phi(sigma), L = -1, N = D, plus noise (ER-SDE, Cui et al. 2023, arXiv 2309.06169, eq. 17).

    phi = sigma (e^{sigma^0.3} + 10)^eta: the paper's choice at eta = 1; the flow, in the data form, at eta = 0.
    """

    name = "er_sde"
    linear = -1.0
    finite_at_zero = False

    def __init__(self, process: Process, eta: float = 1.0, upward: bool = False) -> None:
        if upward and eta:
            raise SolverError("the form 'er_sde' has no way up in noise: phi would not grow; take the form 'sde'")
        super().__init__(process, eta, upward)

    def variable(self, sigma: float) -> float:
        return -math.log(sigma) - self.eta * _log_boost(sigma)[0] if sigma > 0 else math.inf

    def sigma(self, s: float) -> float:
        log_sigma = -s - self.eta * math.log(11)  # Newton from sigma = 0's own slope; log phi is convex in log sigma
        for _ in range(60):
            value, slope = _log_boost(math.exp(min(log_sigma, 50.0)))
            change = (log_sigma + self.eta * value + s) / (1 + self.eta * slope)
            log_sigma -= change
            if abs(change) <= 1e-15 * max(1.0, abs(log_sigma)):
                break
        return math.exp(log_sigma)

    def scale(self, sigma: float) -> float:
        return 1.0

    def weights(self, sigma: float) -> tuple[float, float]:
        return 0.0, 1.0

    def noise_std(self, start: float, end: float) -> float:
        before, after = self._boost(start), self._boost(end)
        return self.sigma(end) * math.sqrt(-math.expm1(2 * (after - before))) if self.eta else 0.0

    def variance_at(self, s: float) -> float:
        return math.exp(-2 * self._boost(s))  # (sigma/phi)^2; y's noise is phi times the increment

    def diffusion(self, s: float) -> float:
        slope = self.eta * _log_boost(self.sigma(s))[1]
        return self.sigma(s) * math.sqrt(2 * slope / (1 + slope))

    def _boost(self, s: float) -> float:
        return self.eta * _log_boost(self.sigma(s))[0]


def _log_boost(sigma: float) -> tuple[float, float]:
    """log(e^{sigma^0.3} + 10) and its derivative in log sigma."""
    power = sigma**0.3
    share = 1 / (1 + 10 * math.exp(-power))
    return power - math.log(share), 0.3 * power * share


class OneSidedAdams(Adams):
    """Adams(3, coordinate="sigma") with D's slope at sigma_0 taken from one side (Cui et al. 2023, Algorithm 3).

    D is D_0 + D[0, 1] (sigma - sigma_0) + D[0, 1, 2] (sigma - sigma_0)^2, where the interpolating polynomial has
    (sigma - sigma_0) (sigma - sigma_1): an error of the size of a second-order method's.
    """

    def __init__(self) -> None:
        super().__init__(3, coordinate="sigma")
        self.order = self.order_as_started = 2

    def weigh(self, f: Field, span: Span, nodes: Sequence[float]) -> list[float]:
        weights = super().weigh(f, span, nodes)
        if len(nodes) < 3:
            return weights
        form = f.form
        sigmas = [form.sigma(node) for node in nodes]
        step = sigmas[-2] - sigmas[-1]
        # step int (sigma - sigma_0)
        change = step * step * rules.in_coordinate(form.linear, span, nodes[-2:], form.sigma)[0]
        shares = [1 / math.prod(x - other for other in sigmas if other is not x) for x in sigmas]
        return [w + change * share for w, share in zip(weights, shares, strict=True)]
