"""diffusers' solvers of the flow, and the rows that are the same; see peers.py."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import diffusers
import torch
from parity_cases import OWN
from peers import Comparison, Given, N, Pair, Scheduler, compare, in_float64

import diffsolve as ds
from diffsolve.process import as_process
from diffsolve.solvers import Adams, quadrature

KARRAS = {"use_karras_sigmas": True}
TO_THE_LEAST = {"final_sigmas_type": "sigma_min", **KARRAS}  # the last call, of length 0, is left out
LEADING = [float(t) for t in range(901, 0, -100)]


def midpoint_at_second(linear: float, h: float, nodes: Any) -> list[float]:
    return (quadrature.midpoint if len(nodes) == 2 else quadrature.third_halved)(linear, h, nodes)


def multistep(order: int, kind: str, form: str) -> Any:
    """DPMSolverMultistepScheduler's method: it takes the second of its order-3 steps by `solver_type`."""
    names = {(2, "midpoint"): "dpmpp_2m", (2, "heun"): "res_2m", (3, "heun"): "dpmpp_3m_published"}
    name = names.get((order, kind))

    def build() -> ds.Solver:
        solver: Any = ds.get_solver(name) if name else Adams(3, quadrature=midpoint_at_second)
        solver.form = form
        return solver

    return build


def multisteps() -> list[Comparison]:
    made = []
    for order, kind in ((2, "midpoint"), (2, "heun"), (3, "midpoint"), (3, "heun")):
        row = {2: "dpmpp_2m" if kind == "midpoint" else "res_2m", 3: "dpmpp_3m_published"}[order]
        name, label = "DPMSolverMultistepScheduler", f"order {order}, {kind}"
        config: dict[str, Any] = {"solver_order": order, "solver_type": kind, "lower_order_final": False}
        made.append(compare(row, name, label, multistep(order, kind, "data"), config=config | KARRAS))
        config |= {"algorithm_type": "dpmsolver", **TO_THE_LEAST}
        made.append(compare(row, name, f"{label}, dpmsolver", multistep(order, kind, "noise"), config=config))
    return made


def unipc() -> list[Comparison]:
    made, name = [], "UniPCMultistepScheduler"
    for order in (1, 2, 3, 4):
        for variant in ("bh1", "bh2"):
            config: dict[str, Any] = {"solver_order": order, "solver_type": variant}
            own, label = f"unipc(order={order}, variant={variant}", f"{variant} order {order}"
            made.append(compare("unipc", name, label, f"{own}, lower_final=True)", config=config | KARRAS,
                                steps=N if variant == "bh2" else N - 1))
            kept = {**config, "lower_order_final": False, **TO_THE_LEAST}
            made.append(compare("unipc", name, f"{label}, order kept", f"{own})", config=kept))
            eps = {**kept, "predict_x0": False}
            made.append(compare("unipc", name, f"{label}, eps", f"{own}, form=noise)", config=eps))
            alone = {**eps, "disable_corrector": list(range(N))}
            made.append(compare("unipc", name, f"{label}, predictor alone",
                                f"{own}, corrector=False, form=noise)", config=alone))
    return made


def ipndm(problem: Given, solver: str = "ipndm") -> Pair:
    with in_float64(diffusers.IPNDMScheduler):
        grid = ds.make_grid(ds.Karras(), N, as_process("sd"), final="step")
        beta = torch.tensor([s / math.hypot(1, s) for s in grid.sigmas], dtype=torch.float64)
        scheduler = diffusers.IPNDMScheduler(trained_betas=beta.tolist())
        scheduler.set_timesteps(N)
        scheduler.set_begin_index(0)
        y = problem.unit * grid.sigmas[0]
        x = y * scheduler.alphas[0]
        for i, t in enumerate(scheduler.timesteps):
            eps = problem.eps(x / scheduler.alphas[i], float(grid.sigmas[i]))
            v = (eps - beta[i] * x) / scheduler.alphas[i]  # what its network predicts: v = alpha eps - beta x_0
            x = scheduler.step(v, t, x, return_dict=False)[0]
        return problem.solve(solver, grid, y).x, x


class InPairs(Scheduler):
    """DPMSolverSinglestepScheduler of order 2: node 2k + 1 is the inner stage of the step from 2k to 2k + 2."""

    def __call__(self, problem: Given) -> Pair:
        with in_float64(diffusers.DPMSolverSinglestepScheduler):
            scheduler = self.build(problem.process)
            visited, grid = self.levels(scheduler)
            y = problem.unit * visited[0]
            s, steps = visited, len(grid) if self.steps is None else self.steps
            theirs = self.theirs(problem, scheduler, visited, grid, y, steps)
        for a, m, b in zip(s[0:-2:2], s[1:-2:2], s[2::2], strict=True):
            r = math.log(a / m) / math.log(a / b)
            y = problem.solve(f"{self.solver}(r={r!r})", ds.Grid([a, b]), y).x
        for a, b in pairwise(grid.sigmas[len(s) - 2 : steps + 1].tolist()):
            y = problem.solve("euler", ds.Grid([a, b]) if b else ds.Grid([a], final="denoise"), y).x
        return y, theirs


def bounded(scheduler: Any) -> None:
    """Flow matching from t = 0.9, since sigma is infinite at 1, to 0.05."""
    scheduler.sigma_max, scheduler.sigma_min = 0.9, 0.05
    scheduler.set_timesteps(N)


def singlestep() -> list[Comparison]:
    name = "DPMSolverSinglestepScheduler"
    own = InPairs(name, "dpmpp_2s", {"lower_order_final": True})
    eps = InPairs(name, "dpm_solver_2", {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min",
                                         "lower_order_final": True}, steps=N - 1)
    return [Comparison("dpmpp_2s", name, "order 2", own), Comparison("dpm_solver_2", name, "order 2, dpmsolver", eps)]


def deis(order: int) -> Comparison:
    config = {"solver_order": order, "lower_order_final": False, **KARRAS}
    return compare("deis", "DEISMultistepScheduler", f"order {order}", f"deis(order={order})", config=config)


DDIM = {"clip_sample": False, "set_alpha_to_one": False, **OWN}
PNDM = {"times": LEADING, "config": {"skip_prk_steps": True, **OWN}}
FLOW = [
    compare("euler", "EulerDiscreteScheduler"), compare("euler", "EulerDiscreteScheduler", "Karras", config=KARRAS),
    compare("euler", "EDMEulerScheduler", process="edm", config={"sigma_min": 0.03, "sigma_max": 14.0}),
    compare("ddim", "DDIMScheduler", config=DDIM),
    compare("ddim", "DDIMScheduler", "trailing", config={"clip_sample": False, "timestep_spacing": "trailing"}),
    compare("heun", "HeunDiscreteScheduler"), compare("heun", "HeunDiscreteScheduler", "Karras", config=KARRAS),
    compare("flow_euler", "FlowMatchEulerDiscreteScheduler", prepare=bounded),
    compare("flow_heun", "FlowMatchHeunDiscreteScheduler", prepare=bounded),
    compare("dpm2", "KDPM2DiscreteScheduler"), compare("dpm2", "KDPM2DiscreteScheduler", "Karras", config=KARRAS),
    compare("lms", "LMSDiscreteScheduler", final="step"),
    compare("plms", "PNDMScheduler", **PNDM),
    compare("pndm", "PNDMScheduler", "skip_prk_steps=False", times=LEADING, config=OWN),
    Comparison("ipndm", "IPNDMScheduler", "", ipndm),
    *(deis(order) for order in (1, 2, 3)), *unipc(), *multisteps(), *singlestep(),
]  # fmt: skip
