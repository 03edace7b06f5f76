"""The schedule zoo: rules that place the nodes of a grid. Each is registered by name, as a plugin's would be."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffsolve import VP, GridError, Process, Schedule
from diffsolve.errors import did_you_mean
from diffsolve.grid import Nodes, Tabulated, explicit
from diffsolve.registry import register_schedule
from diffsolve.validate import whole


def _ramp(count: int) -> Nodes:
    return np.linspace(0, 1, count) if count > 1 else np.zeros(1)


def _between(high: float, low: float, ramp: Nodes) -> Nodes:
    """high at ramp 0 and low at ramp 1, to the last bit."""
    return np.where(ramp == 1, low, high + ramp * (low - high))


@dataclass(frozen=True, eq=False)
class Timesteps(Schedule):
    """Explicit decreasing times of the process: 0 to 999 of Stable Diffusion's, 0 to 1 of a flow.

    A first time where sigma is infinite, a flow's 1, stands for t_max; a last one where sigma is 0 is the end.
    """

    times: Sequence[float]
    listed = True

    def nodes(self, count: int, low: float, high: float, process: Process) -> Nodes:
        t = np.array(explicit(self.times))
        with np.errstate(all="ignore"):
            sigmas = np.asarray(process.sigma(t))
        if t.ndim == 1 and len(t) > 1:
            if sigmas[0] == np.inf:
                t[0], sigmas[0] = process.t_max, process.sigma_max
            if sigmas[-1] == 0:
                t = t[:-1]
        outside = ~((t >= process.t_min) & (t <= process.t_max))
        if outside.any():
            told = process.c_noise(process.sigma_min), process.c_noise(process.sigma_max)
            raise GridError(
                f"timestep {t[outside][0]:g} is outside [{process.t_min:g}, {process.t_max:g}], the range that "
                f"the process was trained on (of which its network is told {told[0]:g} to {told[1]:g})"
            )
        return sigmas


@register_schedule(
    "karras", source="Karras et al. 2022, eq. 5",
    aliases={"diffusers": "use_karras_sigmas", "k-diffusion": "get_sigmas_karras", "A1111": "Karras"},
)  # fmt: skip
@dataclass(frozen=True)
class Karras(Schedule):
    """sigma^(1/rho) evenly spaced (Karras et al. 2022, eq. 5)."""

    rho: float = 7.0

    def __post_init__(self) -> None:
        self.check_above_zero(rho=self.rho)

    def nodes(self, count: int, low: float, high: float, process: Process) -> Nodes:
        try:
            nodes = _between(high ** (1 / self.rho), low ** (1 / self.rho), _ramp(count)) ** self.rho
        except OverflowError:
            raise GridError(f"Karras: rho = {self.rho:g} is too small for sigma up to {high:g}; take 1 to 10") from None
        return _pin(nodes, low, high)


@dataclass(frozen=True)
class PolyExponential(Schedule):
    """log sigma polynomially spaced, uniform in lambda at rho = 1 (k-diffusion, get_sigmas_polyexponential)."""

    rho: float = 1.0

    def __post_init__(self) -> None:
        self.check_above_zero(rho=self.rho)

    def nodes(self, count: int, low: float, high: float, process: Process) -> Nodes:
        nodes = np.exp(math.log(low) + (1 - _ramp(count)) ** self.rho * math.log(high / low))
        return _pin(nodes, low, high)


@register_schedule(
    "polyexponential", source="k-diffusion; log sigma polynomial, rho = 2",
    aliases={"k-diffusion": "get_sigmas_polyexponential", "A1111": "Polyexponential"},
)  # fmt: skip
def _polyexponential(rho: float = 2.0) -> PolyExponential:
    return PolyExponential(rho)


register_schedule(
    "exponential", source="uniform in lambda = -log sigma; Lu et al. 2022, sec. 3.3",
    aliases={"diffusers": "use_exponential_sigmas", "k-diffusion": "get_sigmas_exponential", "A1111": "Exponential",
             "dpm-solver": "logSNR"},
)(PolyExponential)  # fmt: skip
register_schedule("lambda", source="uniform in lambda = -log sigma", aliases={"diffusers": "use_lu_lambdas"})(
    PolyExponential
)


@register_schedule(
    "cosine", source="uniform in atan sigma; Nichol & Dhariwal 2021; Sabour et al. 2024, theorem 3.1 (KL optimal)",
    aliases={"ComfyUI": "kl_optimal", "A1111": "KL Optimal"},
)  # fmt: skip
@dataclass(frozen=True)
class Cosine(Schedule):
    """Uniform in the angle atan(sigma), the time of a cosine process (Nichol & Dhariwal 2021)."""

    def nodes(self, count: int, low: float, high: float, process: Process) -> Nodes:
        return _pin(np.tan(_between(math.atan(high), math.atan(low), _ramp(count))), low, high)


def _pin(nodes: Nodes, low: float, high: float) -> Nodes:
    """The end nodes without the rounding of the map that placed them."""
    nodes[0] = high
    if len(nodes) > 1:
        nodes[-1] = low
    return nodes


class _InTime(Schedule):
    """Rules that place t; the process turns it into sigma."""

    def nodes(self, count: int, low: float, high: float, process: Process) -> Nodes:
        first, last = process.t(high), process.t(low)
        times = np.clip(self.times(count, first, last, process), last, first)  # an ulp of rounding at the ends
        return np.clip(process.sigma(np.asarray(times, np.float64)), low, high)

    @abstractmethod
    def times(self, count: int, first: float, last: float, process: Process) -> Nodes: ...


@register_schedule(
    "linspace", source="uniform in t, both ends",
    aliases={"diffusers": "linspace", "A1111": "Normal", "ComfyUI": "normal"},
)  # fmt: skip
@dataclass(frozen=True)
class Linspace(_InTime):
    """t evenly spaced from end to end (diffusers' timestep_spacing="linspace", without its rounding)."""

    def times(self, count: int, first: float, last: float, process: Process) -> Nodes:
        return _between(first, last, _ramp(count))


def _unit(process: Process) -> float:
    """One training step in units of t: 1 for a discrete process, a thousandth of the range for a continuous one."""
    return 1.0 if isinstance(process, VP) else (process.t_max - process.t_min) / 999


def _stride(count: int, total: float) -> float:
    """Training steps from node to node: total/count, or less where `count` nodes would not fit among so few."""
    return min(total / count, (total - 1) / max(count - 1, 1))


@register_schedule(
    "leading", source="uniform in t, from below the top; Song et al. 2021",
    aliases={"diffusers": "leading", "A1111": "DDIM", "ComfyUI": "ddim_uniform"},
)  # fmt: skip
@dataclass(frozen=True)
class Leading(_InTime):
    """t = offset + i floor(T/n), i = n - 1, ..., 0 (diffusers' "leading" with steps_offset): starts below the top."""

    offset: int = 1

    def __post_init__(self) -> None:
        whole(self.offset, "Leading: offset", GridError, least=0)

    def times(self, count: int, first: float, last: float, process: Process) -> Nodes:
        unit = _unit(process)
        total = (first - last) / unit + 1
        stride = float(round(total) // count) if unit == 1 and count <= total else _stride(count, total)
        offset = min(self.offset, max(total - 1 - (count - 1) * stride, 0))
        return np.asarray(last + unit * (offset + stride * np.arange(count)[::-1]))


@register_schedule("trailing", source="uniform in t, from the top; Lin et al. 2024", aliases={"diffusers": "trailing"})
@dataclass(frozen=True)
class Trailing(_InTime):
    """t = T - i T/n - 1 for i = 0, 1, ... (diffusers' "trailing", without its rounding): ends above the bottom."""

    def times(self, count: int, first: float, last: float, process: Process) -> Nodes:
        unit = _unit(process)
        total = (first - last) / unit + 1
        return np.asarray(first - unit * _stride(count, total) * np.arange(count))


@register_schedule(
    "simple", source="every (T/n)-th timestep; ComfyUI",
    aliases={"A1111": "Simple", "ComfyUI": "simple"},
)  # fmt: skip
@dataclass(frozen=True)
class Simple(_InTime):
    """Every (T/n)-th training timestep from the top, rounded down as ComfyUI's "simple" does where t is discrete."""

    def times(self, count: int, first: float, last: float, process: Process) -> Nodes:
        unit = _unit(process)
        total = (first - last) / unit + 1
        places = np.arange(count) * _stride(count, total)
        return np.asarray(first - unit * (np.floor(places) if unit == 1 and count <= total else places))


@register_schedule(
    "sgm_uniform", source="uniform in t, the last of n + 1 left out; Stability's sgm",
    aliases={"A1111": "SGM Uniform", "ComfyUI": "sgm_uniform"},
)  # fmt: skip
@dataclass(frozen=True)
class SgmUniform(Linspace):
    """t evenly spaced over n + 1 nodes, the last of which gives way to 0 (ComfyUI's "sgm_uniform")."""

    zero_last = True


@register_schedule("quadratic", source="uniform in sqrt t; Song et al. 2021, app. D.2", aliases={"ddim": "quad"})
@dataclass(frozen=True)
class Quadratic(_InTime):
    """sqrt(t) evenly spaced (DDIM's quadratic sub-sequence, Song et al. 2021, appendix D.2), from end to end."""

    def times(self, count: int, first: float, last: float, process: Process) -> Nodes:
        return _between(math.sqrt(first), math.sqrt(last), _ramp(count)) ** 2


@register_schedule(
    "beta", source="Beta(0.6, 0.6) quantiles of t; Lee et al. 2024",
    aliases={"A1111": "Beta", "ComfyUI": "beta"},
)  # fmt: skip
@dataclass(frozen=True)
class Beta(_InTime):
    """t at the quantiles of Beta(a, b) (Lee et al. 2024, arXiv 2407.12173; ComfyUI's "beta", unrounded)."""

    a: float = 0.6
    b: float = 0.6

    def __post_init__(self) -> None:
        self.check_above_zero(a=self.a, b=self.b)

    def times(self, count: int, first: float, last: float, process: Process) -> Nodes:
        from scipy.stats import beta  # slow to import, used by this rule alone

        quantiles = beta.ppf(1 - np.arange(count) / count, self.a, self.b)
        return np.asarray(last + (first - last) * quantiles)


# Sabour et al. 2024 (arXiv 2404.14507), the sigmas published for 10 steps. The ends of the first two are Stable
# Diffusion's own, printed there as 14.615 and 0.029; unrounded, they leave the published nodes between them unmoved.
_SD_ENDS = (14.614646624923662, 0.02916753316555422)
_AYS = {
    "sd15": (_SD_ENDS[0], 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, _SD_ENDS[1]),
    "sdxl": (_SD_ENDS[0], 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, _SD_ENDS[1]),
    "svd": (700.00, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}


@register_schedule(
    "ays", source="Sabour et al. 2024, published tables",
    aliases={"diffusers": "AysSchedules", "A1111": "Align Your Steps", "ComfyUI": "AlignYourSteps"},
)  # fmt: skip
@dataclass(frozen=True)
class AlignYourSteps(Schedule):
    """The published 10-step table of `model` ("sd15", "sdxl", "svd"), log-linear in between for another count.

    A 0 takes the place of the table's last node. The table's ends are stretched to the ends asked for, in log sigma.
    """

    model: str = "sd15"
    zero_last = True

    def __post_init__(self) -> None:
        if self.model not in _AYS:
            raise GridError(f"no Align-Your-Steps table for {self.model!r}{did_you_mean(self.model, _AYS)}")

    def nodes(self, count: int, low: float, high: float, process: Process) -> Nodes:
        return Tabulated(_AYS[self.model]).nodes(count, low, high, process)
