"""ComfyUI's own samplers, whose outputs make_comfyui_reference.py keeps, and the rows that are the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import diffsolve as ds
from diffsolve.interop.k_problem import _Normals
from diffsolve.problems import GaussianMixture

FILE = Path(__file__).parent / "data" / "comfyui.npz"
SIGMAS = (14.0, 6.0, 3.0, 1.5, 0.8, 0.4, 0.1, 0.05, 0.0)
TIMES = (0.98, 0.9, 0.7, 0.5, 0.3, 0.1, 0.0)


@cache
def stored() -> dict[str, Tensor]:
    with np.load(FILE) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


@cache
def problem() -> Any:
    means = ds.normals(1, range(4), 3, (8,), torch.float64, "cpu")
    return GaussianMixture(means, [0.2, 0.3, 0.4, 0.5], labels=[0, 1, 0, 1]).guided(1, 1.5)


def unit() -> Tensor:
    return ds.normals(0, range(3), 3, (8,), torch.float64, "cpu")


def noise(start: Tensor, end: Tensor) -> Tensor:
    """One normal for each interval of noise levels (or times)."""
    place = round(abs(float(start)) * 1e4) * 200000 + round(abs(float(end)) * 1e4)
    return ds.normals(place, range(3), 5, (8,), torch.float64, "cpu")


@dataclass(frozen=True)
class Case:
    """One of ComfyUI's functions with options, and the row that is the same. flow: of a model of straight paths.

    cut: how many of the list's last levels are left out, of theirs; ours: of ours besides (sa_solver_pece hands back
    the state one level before the last). between: the first and last of the levels at which its steps with noise end.
    """

    name: str
    row: str
    eta: float | None = None
    given: dict[str, Any] = field(default_factory=dict)
    flow: bool = False
    cut: int = 0
    ours_cut: int = 0
    between: tuple[int, int] | None = None

    @property
    def key(self) -> str:
        options = [f"{key}={value}" for key, value in self.given.items()]
        return " ".join([self.name, f"eta={self.eta}", *options, "flow" * self.flow, f"cut={self.cut}", *self.where])

    @property
    def where(self) -> list[str]:
        return [] if self.between is None else [f"between={self.between}"]

    def levels(self, ours: bool = False) -> list[float]:
        listed = TIMES if self.flow else SIGMAS
        return list(listed[: len(listed) - self.cut - (self.ours_cut if ours else 0)])

    def ours(self) -> Tensor:
        levels = self.levels(ours=True)
        first, last = levels[0], levels[-1]
        of = problem().replace(process=ds.RectifiedFlow()) if self.flow else problem()
        x = unit() / (1 - first) if self.flow else unit() * first
        sigmas = [t / (1 - t) for t in levels] if self.flow else levels
        run = ds.start(of, self.row, sigmas if last == 0 else ds.Grid(np.array(sigmas)), x=x, eta=self.eta)
        if run.field.eta:
            told = (lambda a, b: noise(a / (1 + a), b / (1 + b))) if self.flow else noise
            run.field.normal = _Normals(run.field, x, told, 1.0)  # type: ignore[method-assign]
        for _ in run:
            pass
        return run.solution.x * (1 - last) if self.flow else run.solution.x

    def theirs(self, sampling: Any, model: Any) -> Tensor:
        """Their function's output; `sampling` is ComfyUI's module, model(flow) one as it wants it."""
        given = dict(self.given)
        if "sa_solver" in self.name:
            first, last = self.between or (0, len(SIGMAS) - 1)
            given["tau_func"] = lambda s: (self.eta or 0.0) ** 0.5 if SIGMAS[last] <= s <= SIGMAS[first] else 0.0
        elif self.eta is not None:
            given["eta"] = self.eta
        if self.eta is not None:
            given["noise_sampler"] = noise
        levels = torch.tensor(self.levels(), dtype=torch.float64)
        x = unit() if self.flow else unit() * levels[0]
        end: Tensor = getattr(sampling, f"sample_{self.name}")(model(self.flow), x, levels, disable=True, **given)
        return end


def cases() -> Iterator[Case]:
    for cut in (0, 1):
        yield Case("heunpp2", "heunpp2", cut=cut)
        yield Case("gradient_estimation_cfg_pp", "gradient_estimation_cfg_pp", cut=cut)
        yield Case("euler_cfg_pp", "euler_cfg_pp", cut=cut)
        yield Case("dpmpp_2m_cfg_pp", "dpmpp_2m_cfg_pp", cut=cut)
        yield Case("res_multistep_cfg_pp", "res_multistep_cfg_pp", cut=cut)
        for eta in (1.0, 0.4):
            for name in ("res_multistep_ancestral", "res_multistep_ancestral_cfg_pp", "dpmpp_2s_ancestral_cfg_pp",
                         "euler_ancestral_cfg_pp", "dpmpp_2m_sde_heun"):  # fmt: skip
                yield Case(name, name, eta, cut=cut)
    for eta in (1.0, 0.4):
        for p, c in ((3, 4), (2, 2), (1, 2), (3, 2)):
            row = f"sa_solver_pece(predictor={p}, corrector={c})"
            yield Case("sa_solver_pece", row, eta, {"predictor_order": p, "corrector_order": c}, cut=1, ours_cut=1)
        simple = {"predictor_order": 2, "corrector_order": 2, "simple_order_2": True}
        row = "sa_solver_pece(predictor=2, corrector=2, simple_order_2=True)"
        yield Case("sa_solver_pece", row, eta, simple, cut=1, ours_cut=1)
        for p, c, more in ((3, 4, {}), (2, 2, {"simple_order_2": True}), (1, 2, {})):
            row = f"sa_solver_pece(predictor={p}, corrector={c}, simple_order_2={bool(more)}, lower_final=True"
            orders = {"predictor_order": p, "corrector_order": c, **more}
            yield Case("sa_solver_pece", f"{row})", eta, orders)
            span = f"s_tmin={SIGMAS[4]}, s_tmax={SIGMAS[1]}"  # of the starts
            yield Case("sa_solver_pece", f"{row}, {span})", eta, orders, between=(2, 5))
        yield Case("euler_ancestral_RF", "euler_ancestral_rf", eta, flow=True)
        yield Case("dpm_2_ancestral_RF", "dpm2_ancestral_rf", eta, flow=True, cut=1)
        yield Case("dpmpp_2s_ancestral_RF", "dpmpp_2s_ancestral_rf", eta, flow=True)
        for name in ("dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde"):
            yield Case(name, name, eta, flow=True)


CASES = list(cases())
