"""The length of an adaptive solve's first step."""

from __future__ import annotations

import math

from torch import Tensor

from ..control import Controller
from ..field import Field, combine

_TINY = 1e-5  # below it a size says nothing
_LEAST = 1e-6  # of the way; what is still too long is rejected
_SMALL = 0.01  # of the size of the state, by which an Euler step that is that long moves it


def first_length(
    f: Field, u: Tensor, s: float, x: Tensor, node: float, distance: float, controller: Controller, order: float
) -> float:
    """|h| by Hairer's rule: as long as an Euler step, or the second derivative there, say that the error is small.

    u: the form's state at s, x: the same in VE coordinates at `node`. order: what an error shrinks with. Two
    evaluations, of which the first is that of the step itself; two numbers are read of the device.
    (Hairer, Norsett & Wanner 1993, sec. II.4, the algorithm after eq. 4.14, in the controller's norm.)
    """

    def size(v: Tensor) -> float:
        return float(controller.norm(f.form.from_form(v.detach(), node), x.detach(), x.detach()))

    def drift(v: Tensor, at: float) -> Tensor:
        value: Tensor = combine((1.0, f(v, at)), (f.form.linear, v)) if f.form.linear else f(v, at)
        return value

    # d_0 = |u|, d_1 = |F(u)|, h_0 = 0.01 d_0/d_1, d_2 = |F(u + h_0 F, s + h_0) - F|/h_0,
    # h_1^order max(d_1, d_2) = 0.01,  h = min(100 h_0, h_1)
    rate = drift(u, s)
    d0, d1 = size(u), size(rate)
    if not math.isfinite(d0 + d1):
        return abs(distance) / 100  # whoever rejects the step will say what is wrong
    least, most = _LEAST * abs(distance), abs(distance) / 10
    trial = min(max(least if min(d0, d1) < _TINY else _SMALL * d0 / d1, least), most)
    step = math.copysign(trial, distance)
    d2 = size(drift(combine((1.0, u), (step, rate)), s + step) - rate) / trial
    if not math.isfinite(d2):
        return trial
    wanted = (_SMALL / max(d1, d2)) ** (1 / order) if max(d1, d2) > 1e-15 else 1e-3 * trial
    return min(100 * trial, max(wanted, least))
