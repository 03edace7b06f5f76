"""Random calls as data: what `fuzz.py` draws. Most of a call is sensible, so that what is odd of it is found alone."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

import diffsolve as ds
from diffsolve import problems
from diffsolve.problems.predictions import edm

F64 = torch.float64
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2.5, 1e-300, 1e300, math.nan, math.inf, -math.inf, 10**30, "", "x", "\ud800", b"x", 1j, (),
    [], [1], {}, np.array([1, 2]), np.array(2), np.array([]), np.float64(2), np.int32(2), np.bool_(True),
    torch.tensor(2.0), torch.tensor([1.0, 2.0]), torch.zeros(2, device="meta"), [[1.0], [2.0]],
)  # fmt: skip
WORDS = (
    "0", "1", "-1", "3", "12", "1e-3", "1e-300", "1e300", "nan", "inf", "-inf", "None", "True", "False", "'x'",
    "[1, 2]", "{}", "()", "1000000000000000000000000000000", "2.5", "0.5", "1.0", "1e-17", "b'x'", "1j", "", "(", "500",
)  # fmt: skip
PROCESSES: dict[str, ds.Process] = {}


@dataclass(frozen=True)
class Solve:
    """A call of `solve`, and what is to hold of it besides."""

    problem: str
    options: dict[str, Any]
    also: str

    def __repr__(self) -> str:
        told = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        return f"ds.solve(fuzz_cases.problem({self.problem!r}), {told})  # {self.also}"


def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x) * 0.3


def shrunk(y: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    return y / (1 + sigma * sigma)[:, None]


def _mean() -> torch.Tensor:
    return torch.tensor([1.0, -0.5, 0.3], dtype=F64)


def _gaussian(process: str | ds.Process) -> ds.ProbabilityFlow:
    return problems.Gaussian(_mean(), torch.tensor([0.5, 1.0, 0.2], dtype=F64), process)


def _mixture() -> Any:
    means = torch.stack([_mean(), -_mean(), 0.2 * _mean()])
    return problems.GaussianMixture(means, 0.4, [0.5, 0.3, 0.2], labels=[0, 1, 1], dtype=F64)


EXACT: dict[str, str | ds.Process] = {
    **{f"gaussian {name}": name for name in ("sd", "ddpm", "cosine", "vp", "ve", "edm", "flow")},
    "gaussian sd3": ds.RectifiedFlow(3.0, scale=1000), "gaussian zero": ds.VP(zero_snr=True),
}  # fmt: skip
OTHERS: dict[str, Callable[[], ds.Problem]] = {
    "mixture": _mixture,
    "guided": lambda: _mixture().guided(1, 2.0),
    "network": lambda: ds.ProbabilityFlow(network, shape=(3,), dtype=F64),
    "single": lambda: ds.ProbabilityFlow(network, "edm", "edm", shape=(2, 2)),
    "denoiser": lambda: ds.ProbabilityFlow.from_denoiser(shrunk, 0.01, 50, (3,), dtype=F64),
    "sde": lambda: _gaussian("sd").sde(0.7),
    "reversed": lambda: _gaussian("sd").reversed(),
    "reversed sde": lambda: _gaussian("sd").sde(1.0).reversed(),
    "inpaint": lambda: problems.Inpaint(_gaussian("sd"), _mean(), torch.tensor([1.0, 0.0, 0.0])),
    "ode": lambda: ds.ODEProblem(lambda t, x: -t * x * x, (0.0, 2.0), torch.ones(3, dtype=F64)),
    "backward ode": lambda: ds.ODEProblem(lambda t, x: -x, (1.0, 0.0), [1.0, 2.0]),
    "stiff": lambda: ds.SemilinearODE(-30.0, lambda t, u: torch.sin(u), (0.0, 1.0), torch.ones(2, dtype=F64)),
    "own sde": lambda: ds.SDEProblem(lambda t, x: -x, lambda t, x: 0.1 * x, (0.0, 1.0), torch.ones(2, 3, dtype=F64)),
    "additive sde": lambda: ds.SDEProblem(lambda t, x: -x, lambda t: 0.3, (0.0, 1.0), torch.ones(2, 3, dtype=F64)),
    "codes": lambda: problems.CodeTable([[0.2, 0.3], [0.4, 0.1]]),
}  # fmt: skip


@cache
def problem(name: str) -> Any:
    return _gaussian(EXACT[name]) if name in EXACT else OTHERS[name]()


def mostly(draw: Any, sensible: st.SearchStrategy[Any], odd: Sequence[Any] = ODD, share: int = 12) -> Any:
    return draw(st.sampled_from(odd)) if draw(st.integers(1, share)) == 1 else draw(sensible)


def _values(default: object) -> tuple[str, ...]:
    if isinstance(default, bool):
        return "True", "False"
    if isinstance(default, int):
        return "1", "2", "3", "4"
    if isinstance(default, float):
        return "0.1", "0.3", "0.5", "0.9", "1.0", "1.5", "2.0", "7"
    return "euler", "heun", "ddim", "linear", "exact", "bh1", "flow", "midpoint"


@st.composite
def named(draw: Any, entries: Sequence[Any], forms: Sequence[str], odd: int = 8) -> str:
    """A name, with options of its factory at times; one in `odd` of those is of any kind."""
    entry = draw(st.sampled_from(entries))
    name = draw(st.sampled_from([entry.name] * 3 + list(entry.aliases.values()))).split(",")[0]
    given = []
    for key, parameter in inspect.signature(entry.factory).parameters.items():
        if draw(st.integers(1, 6)) == 1:
            given.append(f"{key}={mostly(draw, st.sampled_from(_values(parameter.default)), WORDS, odd)}")
    if forms and draw(st.integers(1, 5)) == 1:
        given.append(f"form={mostly(draw, st.sampled_from(forms), WORDS, odd)}")
    if draw(st.integers(1, 80)) == 1:
        given.append(draw(st.sampled_from(["order=3", "nonsense=1", "3", "=", "order=3, order=3"])))
    return f"{name}({', '.join(given)})" if given else name


ROWS = [row for row in ds.list_solvers() if row.form is not None]
FLOW, NOISY = [row for row in ROWS if not row.stochastic], [row for row in ROWS if row.stochastic]
ABLE = [row for row in FLOW if {"embedded", "adaptive"} & set(row.tags) or row.name in ("bs23", "dopri5", "tsit5")]
PLAIN = sorted(name for name, form in ds.FORMS.items() if not form.stochastic)
RULES = [row for row in ds.list_schedules() if row.name != "uniform"]
LIBRARIES = ("torchdiffeq:dopri5", "torchdiffeq:rk4", "torchdiffeq:", "torchsde:euler", "nolib:x")


@st.composite
def falling(draw: Any, low: float, high: float) -> list[float]:
    return sorted(draw(st.lists(st.floats(low, high), min_size=2, max_size=6, unique=True)), reverse=True)


@st.composite
def schedule(draw: Any) -> Any:
    kind = draw(st.integers(1, 10))
    if kind == 1:
        nodes = draw(falling(0.05, 14))
        nodes += draw(st.sampled_from([[], [0.0]]))
        return draw(st.sampled_from([list, tuple, np.array, torch.tensor, sorted]))(nodes)
    if kind == 2:
        return draw(st.sampled_from([
            ds.Timesteps([999, 500, 1]), ds.Timesteps([1.0, 0.75, 0.5, 0.25, 0]), ds.Karras(rho=5), [0.0, 0.5, 2.0],
            ds.Grid([9, 3, 1], final="denoise"), ds.Grid([9, 3, 1]), ds.Karras, [1.0, 0.5, 0.0], [2.0, 1.0, 0.0], [1.0],
        ]))  # fmt: skip
    return draw(named(RULES, ()))


X: dict[str, Callable[[], Any]] = {
    "noise": lambda: 14 * torch.linspace(-1, 1, 6, dtype=F64).reshape(2, 3),
    "single": lambda: torch.linspace(-1, 1, 3).reshape(1, 3),
    "codes": lambda: torch.tensor([[0, 2], [2, 1]]),
    "pictures": lambda: torch.ones(1, 2, 2),
    "state": lambda: torch.ones(3, dtype=F64),
    "nan": lambda: torch.full((1, 3), math.nan),
    "half": lambda: torch.ones(1, 3).half(),
    "sparse": lambda: torch.ones(1, 3).to_sparse(),
    "empty": lambda: torch.ones(0, 3),
    "tracked": lambda: torch.ones(2, 3, dtype=F64, requires_grad=True),
}
WILD: dict[str, st.SearchStrategy[Any]] = {
    "solver": st.sampled_from([*(row.name for row in ds.list_solvers()), *LIBRARIES, ds.Solver]),
    "schedule": schedule(),
    "n": st.sampled_from([1, 2, 7, 10**9, 10**400]),
    "nfe": st.integers(1, 40),
    "x": st.sampled_from(sorted(X)).map(lambda name: X[name]()),
    "seed": st.integers(-5, 10**6),
    "batch": st.one_of(st.integers(1, 3), st.lists(st.integers(-2, 9), max_size=3)),
    "sigma_min": st.sampled_from([0.05, 0.1, 0.5, 20]),
    "sigma_max": st.sampled_from([10.0, 3, 1.0, 14.6]),
    "final": st.sampled_from(["denoise", "step", "none"]),
    "rtol": st.sampled_from([0.5, 0.1, 1e-2, 1e-3]),
    "atol": st.sampled_from([0.5, 0.1, 1e-2, 1e-3]),
    "controller": st.sampled_from([ds.PIDController(), ds.IntegralController(rtol=0.1), ds.PIDController(icoeff=0.3)]),
    "form": st.sampled_from(sorted(ds.FORMS)),
    "eta": st.sampled_from([0.0, 0.3, 1.0, 2, 1e-6, 50]),
    "save": st.sampled_from(["all", "final"]),
    "dtype": st.sampled_from([torch.float32, F64, torch.float16, "float32"]),
    "device": st.sampled_from(["cpu", torch.device("cpu"), "meta", "cuda:99", 0, "nowhere"]),
    "execution": st.sampled_from(["auto", "eager", "tape"]),
    "gradient": st.sampled_from([None, "backprop", "checkpoint"]),
    "events": st.sampled_from([None, lambda t, x: x.flatten()[0] - 0.5, lambda t, x: t - 0.3, 3]),
}
ALSO = ("again", "alone", "run", "resume", "calls", "tape", "exact", "exact", "exact")


def _of_a_flow(draw: Any, name: str) -> dict[str, Any]:
    """Options that go with a diffusion, its solver and its schedule."""
    noisy = name.endswith("sde") or (draw(st.integers(1, 3)) == 1 and "reversed" not in name)
    chosen = not noisy and draw(st.integers(1, 5)) == 1
    forms = sorted(ds.FORMS) if noisy else PLAIN
    options: dict[str, Any] = {"solver": draw(named(ABLE if chosen else NOISY if noisy else FLOW, forms))}
    if chosen:
        options["rtol"] = draw(WILD["rtol"])
        if draw(st.booleans()):
            options["nfe"] = draw(st.integers(20, 60))
    elif draw(st.integers(1, 6)) == 1:
        options["nfe"] = draw(st.integers(8, 40))
    if draw(st.booleans()):
        options["schedule"] = draw(schedule())
    rule = options.get("schedule")
    if (rule is None or isinstance(rule, str)) and draw(st.integers(1, 4)) == 1:
        options["sigma_min"] = draw(st.sampled_from([0.05, 0.1, 0.5]))
        options["sigma_max"] = draw(st.sampled_from([10.0, 3, 2]))
    if noisy and draw(st.booleans()):
        options["eta"] = draw(WILD["eta"])
    if "reversed" in name:
        options["x"] = X["noise"]()
    elif draw(st.integers(1, 2)) == 1:
        options["batch"] = draw(WILD["batch"])
    return options


def _of_an_equation(draw: Any, name: str) -> dict[str, Any]:
    if name == "codes":
        rows = ["vq_diffusion", "vq_diffusion(truncation=0.8)", "vq_diffusion(purity=2)"]
        return {"solver": draw(st.sampled_from(rows)), "batch": draw(WILD["batch"])}
    if "sde" in name:
        return {"solver": draw(st.sampled_from(["euler_maruyama", "milstein", "sra1", "sra3", "torchsde:srk"]))}
    options: dict[str, Any] = {"solver": draw(named(FLOW, ()))}
    if draw(st.integers(1, 3)) == 1:
        options = {"solver": draw(st.sampled_from(["dopri5", "bs23", "tsit5", "dopri8"])), "rtol": draw(WILD["rtol"])}
    if draw(st.integers(1, 3)) == 1:
        times = draw(falling(0, 1))
        options["schedule"] = times if "backward" in name else times[::-1]
        options["schedule"][0] = 1.0 if "backward" in name else 0.0
    if draw(st.integers(1, 5)) == 1:
        options["events"] = draw(WILD["events"])
    return options


@st.composite
def solve(draw: Any) -> Solve:
    """Options that go together, and one or two of them of any kind at times."""
    name = draw(st.sampled_from([*EXACT, *EXACT, *OTHERS]))
    flow = name in EXACT or isinstance(problem(name), ds.ProbabilityFlow)
    options = _of_a_flow(draw, name) if flow else _of_an_equation(draw, name)
    options["n"] = draw(st.integers(1, 12))
    for key in ("seed", "final", "save", "execution", "gradient"):
        if draw(st.integers(1, 6)) == 1 and (flow or key != "final"):
            options[key] = draw(WILD[key])
    for _ in range(draw(st.sampled_from([0, 0, 0, 0, 1, 1, 2]))):
        key = draw(st.sampled_from(sorted(WILD)))
        options[key] = mostly(draw, WILD[key], share=2)
    return Solve(name, options, draw(st.sampled_from(ALSO)))


# ---- whatever else is made or called with arguments


T = (torch.ones(3, dtype=F64), torch.zeros(2, 3), torch.ones(1, 3, dtype=F64), [1.0, 2.0], np.ones(3), torch.eye(3))
NUMBER = (0.5, 1.0, 2, 0, 1e-3, 100.0)
PROCESS = ("sd", "flow", "edm", ds.VP("cosine"), ds.RectifiedFlow(3.0, scale=1000), "sdd")
FUNCTION = (lambda a, b: -0.3 * (a if isinstance(a, torch.Tensor) else b),)  # (x, t) of a network, (t, x) of an ODE
CALLS: dict[str, tuple[Callable[..., Any], dict[str, Sequence[Any]]]] = {
    "Grid": (ds.Grid, {"nodes": ([3, 2, 1], [1.0], T[0]), "name": ("a",), "final": ("none", "denoise")}),
    "make_grid": (ds.make_grid, {"schedule": (ds.Karras(), [3, 1], ds.Grid([3, 1])), "n": (1, 5), "process": (
        ds.VP(), ds.VE(), ds.EDM()), "sigma_min": (0.1, None), "sigma_max": (3, None)}),
    "strength": (ds.Grid([3, 2, 1]).strength, {"strength": (0.5, 1, 1e-9)}),
    "Karras": (ds.Karras, {"rho": NUMBER}), "edm": (edm, {"sigma_data": NUMBER}),
    "VP": (ds.VP, {"schedule": ("linear", "cosine"), "beta_start": (1e-4,), "beta_end": (0.02,), "steps": (10, 1000),
                   "betas": (None, [0.1, 0.2], T[0] / 9), "zero_snr": (True, False), "snr_shift": (1.0, 3.0)}),
    "ContinuousVP": (ds.ContinuousVP, {"schedule": ("linear", "cosine"), "beta_min": (0.1,), "beta_max": (20.0,),
                                       "t_min": (1e-3,), "t_max": (1.0, 0.5)}),
    "VE": (ds.VE, {"low": NUMBER, "high": NUMBER}), "EDM": (ds.EDM, {"t_min": NUMBER, "t_max": NUMBER}),
    "RectifiedFlow": (ds.RectifiedFlow, {"shift": NUMBER, "t_min": (1e-3,), "t_max": (0.99,), "scale": NUMBER}),
    "PIDController": (ds.PIDController, {"rtol": NUMBER, "atol": NUMBER, "pcoeff": NUMBER, "icoeff": NUMBER, "dcoeff":
        NUMBER, "safety": NUMBER, "h_init": NUMBER, "h_min": NUMBER, "h_max": NUMBER, "order": NUMBER}),
    "IntegralController": (
        ds.IntegralController, {"rtol": NUMBER, "safety": NUMBER, "shrink": NUMBER, "grow": NUMBER, "h_min": NUMBER}),
    "NetworkDenoiser": (ds.NetworkDenoiser, {"network": FUNCTION, "process": PROCESS, "prediction": ("eps", "v", "x")}),
    "Guided": (ds.Guided, {"denoiser": (ds.NetworkDenoiser(network),), "scale": NUMBER, "interval": (None, (0.1, 3)),
                           "rescale": NUMBER}),
    "ProbabilityFlow": (ds.ProbabilityFlow, {"network": FUNCTION, "process": PROCESS, "prediction": ("eps", "v", "x0"),
        "shape": ((3,), [2, 2], (1,)), "dtype": (F64, torch.float32), "device": ("cpu",), "eta": (None, 0.5),
        "learned_range": (False,), "upward": (False,)}),
    "from_denoiser": (ds.ProbabilityFlow.from_denoiser, {"denoiser": FUNCTION, "sigma_min": NUMBER, "sigma_max": NUMBER,
                                                         "shape": ((3,), (2, 2))}),
    "Gaussian": (problems.Gaussian, {"mean": T, "std": (*T, *NUMBER), "process": PROCESS}),
    "GaussianMixture": (problems.GaussianMixture, {"means": T, "stds": (*T, *NUMBER), "weights": (None, [1, 2, 3]),
        "process": PROCESS, "labels": (None, [0, 1], [0, 1, 1])}),
    "guided": (_mixture().guided, {"label": (0, 1, 2), "guidance": NUMBER}),
    "EmpiricalImages": (problems.EmpiricalImages, {"images": (torch.zeros(2, 3, 4, 4), torch.ones(1, 1, 2, 2), T[1])}),
    "Inpaint": (partial(problems.Inpaint, _gaussian("sd")), {"known": T, "mask": T}),
    "ODEProblem": (ds.ODEProblem, {"f": FUNCTION, "span": ((0.0, 1.0), [1, 0]), "x0": T}),
    "SemilinearODE": (ds.SemilinearODE, {"linear": NUMBER, "f": FUNCTION, "span": ((0.0, 1.0),), "x0": T}),
    "SDEProblem": (ds.SDEProblem, {"f": FUNCTION, "g": FUNCTION, "span": ((0.0, 1.0),), "x0": T}),
    "CodeTable": (problems.CodeTable, {"table": (T[0], T[5], [0.5, 0.5])}),
    "MaskAndReplace": (problems.MaskAndReplace, {"classes": (2, 5), "kept": ([1, 0.5], T[0]), "masked": ([0, 0.5],)}),
    "linear": (problems.MaskAndReplace.linear, {"classes": (2, 5), "steps": (2, 10)}),
    "slerp": (ds.slerp, {"a": T[1:3], "b": T[1:3], "t": (0.5, torch.linspace(0, 1, 2), 2)}),
    "from_latents": (problems.from_latents, {"latents": T, "process": PROCESS, "sigma": (None, *NUMBER),
                                             "init_noise_sigma": (1.0, 14.6)}),
    "noised": (_gaussian("sd").noised, {"x": T, "sigma": NUMBER, "seed": (0, 7)}),
    "prior": (_gaussian("sd").prior, {"batch": (1, 3, [1, 2]), "seed": (0, 7)}),
    "sde": (_gaussian("sd").sde, {"eta": NUMBER}),
    "get_solver": (ds.get_solver, {"solver": ("heun", "lms(order=3)", "DPM++ 2M", *WORDS)}),
    "get_schedule": (ds.get_schedule, {"schedule": ("karras", "karras(rho=5)", *WORDS)}),
    "list_solvers": (ds.list_solvers, {"tags": ("multistep", ("one-step",), "")}),
    "get_problem": (ds.get_problem, {"name": ("gaussian", "Gaussian", "x")}),
    "read_scheduler_config": (problems.read_scheduler_config, {"config": ({"_class_name": "DDIMScheduler"},)}),
}  # fmt: skip


@dataclass(frozen=True)
class Make:
    """A call by name of something that is made of arguments."""

    name: str
    given: dict[str, Any]


@st.composite
def make(draw: Any) -> Make:
    name = draw(st.sampled_from(sorted(CALLS)))
    required = {
        key for key, parameter in inspect.signature(CALLS[name][0]).parameters.items()
        if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
    }  # fmt: skip
    given = {}
    for key, values in CALLS[name][1].items():
        if key in required or draw(st.booleans()):
            given[key] = mostly(draw, st.sampled_from(values), share=6)
    return Make(name, given)
