"""k-diffusion's contract: `sample_heun(model, x, sigmas, extra_args, callback, disable, **options)` for every row.

    from diffsolve.interop.k_diffusion import sample_heun, sampler
    x = sample_heun(model, x, sigmas, extra_args={"cond": c})
    x = sampler("lms(order=3, form=v)")(model, x, sigmas)

model(x, sigma, **extra_args) -> denoised, with x = x_0 + sigma noise of shape (B, ...) and sigma (B,). A name means
what it means there: `sample_dpm_2`, eta as DDIM's share of noise. Any other row of the catalogue goes by its own name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from inspect import signature
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from .. import ProbabilityFlow
from ..errors import GridError, ProblemError, SolverError, did_you_mean
from ..grid import Grid, make_grid
from ..integrate import start
from ..register import parse
from ..registry import SolverEntry, find_solver, get_schedule, get_solver, solver_entries
from ..run import Run
from ..solver import Solver
from ..validate import at_least, choice, whole, written
from .k_problem import KDiffusionProblem as KDiffusionProblem
from .k_problem import Model, trained_range

Callback = Callable[[dict[str, object]], object]


class Sampler(Protocol):
    """What `sampler` hands back, with k-diffusion's signature."""

    def __call__(
        self, model: Model, x: Tensor, sigmas: Tensor, extra_args: Mapping[str, object] | None = None,
        callback: Callback | None = None, disable: bool | None = None, **options: object,
    ) -> Tensor: ...  # fmt: skip


# What a name stands for there, where it is not the row of that name: a row, and options of it.
_THERE: dict[str, tuple[str, dict[str, object]]] = {
    "euler_ancestral": ("ddim_eta", {}),
    "dpmpp_sde": ("dpmpp_sde", {"rule": "ddim"}),
}
_RENAMED = {
    "max_order": "order", "ge_gamma": "gamma", "predictor_order": "predictor", "corrector_order": "corrector",
    "deis_mode": "kind", "s_churn": "churn",
}  # fmt: skip
_CHURN = ("s_churn", "s_tmin", "s_tmax")
_OF_CONTROL = ("rtol", "atol", "controller")
_OF_RUN = ("eta", "nfe", "execution", "gradient", *_OF_CONTROL)
_OWN = ("noise_sampler", "s_noise", "seed", "final", *_CHURN)
_OWN_LAST_STEP = ("lms",)  # whose step to 0 is the method's own there; the others' is Euler's
_OWN_STEPS = ("dpm_fast", "dpm_adaptive")  # which are told where to start and to end there


class _Model:
    """The model of one run: its own dtype, and the callback once a step, after the step's first call."""

    def __init__(self, model: Model, given: Mapping[str, object], dtype: torch.dtype, report: _Report | None) -> None:
        self.model, self.given, self.dtype, self.report = model, given, dtype, report

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        given = x.to(self.dtype)
        out = self.model(given, sigma.to(self.dtype), **self.given)
        both = [part.to(x.dtype) if isinstance(part, Tensor) else part for part in _pair(out)]
        if self.report is not None:
            self.report.first_call(given, sigma[0], both[0].to(self.dtype))
        return both[0] if len(both) == 1 else (both[0], both[1])


def _pair(out: Tensor | tuple[Tensor, Tensor]) -> Iterable[Tensor]:
    return out if isinstance(out, tuple) else (out,)


class _Report:
    """k-diffusion's callback: x, i, sigma, sigma_hat and denoised of each step."""

    def __init__(self, callback: Callback, sigmas: Tensor, places: Mapping[float, int]) -> None:
        self.callback, self.sigmas, self.places = callback, sigmas, places
        self.run: Run | None = None
        self.told = -1

    def first_call(self, x: Tensor, sigma_hat: Tensor, denoised: Tensor) -> None:
        """Tell of a call if it is the first of its step."""
        if self.run is None or self.told == self.run.solution.steps:
            return
        node, self.told = self.run.solution.nodes[-1], self.run.solution.steps
        shown = [(part, part._version) for part in (x, denoised) if not part.is_inference()]
        self.callback({
            "x": x, "i": self.places.get(node, self.told), "sigma": self.sigmas.new_tensor(node),
            "sigma_hat": self.sigmas.new_tensor(node) if float(sigma_hat) == node else sigma_hat, "denoised": denoised,
        })  # fmt: skip
        if any(part._version != version for part, version in shown):
            raise SolverError("callback changed x or denoised in place, which only some runs would see; copy it first")


def sampler(solver: str | Solver, **fixed: object) -> Sampler:
    """A function with k-diffusion's signature that takes the steps of `solver`: a row, a name there, or a Solver.

    options, fixed here or given in the call: those of the row ("order", "solver_type", "r", ...), `eta`, `s_churn`,
    `s_tmin`, `s_tmax` (of any method of the flow), `noise_sampler`, `s_noise`, with the names and the meaning that
    they have there; and `seed` of the noise where there is no sampler (default: extra_args["seed"], else torch's
    global generator), `rtol` and `atol`, `nfe`, `form`, `final`, `execution`, `gradient` as in `diffsolve.solve`.

    sigmas fall to 0 or to another level (rise: the flow is followed upwards). A level that repeats is passed once. The
    state is float32 or float64; a model in half precision is called in it. As there, no graph is kept unless
    gradient="backprop" or "checkpoint" is given. Raises SolverError, GridError, ProblemError or NonFiniteError.
    """
    name, entry, own = _row(solver)
    given = {**own, **fixed}
    mine = {key: given.pop(key) for key in (*_OWN, *_OF_RUN) if key in given and not _is_rows(key, entry)}
    if given or mine:  # what is wrong with them is said here
        _method(solver, name, entry, given, mine)

    def sample(
        model: Model, x: Tensor, sigmas: Tensor, extra_args: Mapping[str, object] | None = None,
        callback: Callback | None = None, disable: bool | None = None, **options: object,
    ) -> Tensor:  # fmt: skip
        asked = {**own, **fixed, **options}
        with nullcontext() if asked.get("gradient") else torch.no_grad():
            return _sample(solver, name, entry, asked, model, x, sigmas, extra_args, callback, disable)[0]

    sample.__name__ = sample.__qualname__ = f"sample_{name}"
    sample.__doc__ = f"Steps of {name} over `sigmas`, with k-diffusion's signature; see diffsolve.interop.k_diffusion."
    return sample


def _row(solver: str | Solver) -> tuple[str, SolverEntry | None, dict[str, object]]:
    """(its name, its row, options that came with its name)."""
    if isinstance(solver, Solver):
        return solver.name or type(solver).__name__, None, {}
    named, own = parse(solver)
    entry = _entry(named)
    name = entry.name
    if name in _THERE:
        row, there = _THERE[name]
        entry, own = find_solver(row), {**there, **own}
    return name, entry, own


def _entry(name: str) -> SolverEntry:
    """The row of `heun`, `sample_heun` or another name there."""
    plain = name.removeprefix("sample_")
    for spelt in (f"sample_{plain}", plain):
        try:
            return find_solver(spelt)
        except SolverError as error:
            missing = error
    raise missing


def _sample(
    solver: str | Solver, name: str, entry: SolverEntry | None, options: dict[str, object], model: Model, x: Tensor,
    sigmas: Tensor, extra_args: Mapping[str, object] | None, callback: Callback | None, disable: bool | None,
) -> tuple[Tensor, dict[str, int]]:  # fmt: skip
    """The state at the end, and how many steps and calls it took."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or not x.ndim:
        raise ProblemError(f"x must be a tensor of floats, (B, ...), got {getattr(x, 'dtype', type(x).__name__)}")
    for what, one in (("model", model), ("callback", callback), ("noise_sampler", options.get("noise_sampler"))):
        if not callable(one) and (one is not None or what == "model"):
            raise ProblemError(f"{what} must be a function, got {type(one).__name__}")
    if not (isinstance(extra_args, Mapping) or extra_args is None):
        raise ProblemError(f"extra_args must be a mapping of what the model takes, got {type(extra_args).__name__}")
    try:
        levels = torch.as_tensor(sigmas)
    except (TypeError, ValueError, RuntimeError) as error:
        raise GridError(f"sigmas must be a tensor of noise levels, got {written(sigmas)}") from error
    nodes, places = _nodes(levels, name)
    if name == "dpm_fast" and len(nodes) > 1:
        options = {"remainder": (len(levels) - 1) % 3, **options}
        nodes = np.geomspace(nodes[0], nodes[-1] or nodes[-2], (len(levels) - 1) // 3 + 2).tolist()
    mine = {key: options.pop(key) for key in _OWN if key in options and not _is_rows(key, entry)}
    of_run = {key: options.pop(key) for key in _OF_RUN if key in options and not _is_rows(key, entry)}
    method = _method(solver, name, entry, options, mine)
    if len(nodes) < 2:
        return x.clone(), {}
    grid, upward = _grid(nodes, name, entry, mine)
    chooses = any(control is not None for control in (method.controller, *map(of_run.get, _OF_CONTROL)))
    report = _Report(callback, levels, places) if callback is not None and not chooses else None
    given = dict(extra_args or {})
    ends = [level for level in nodes if level > 0] + list(trained_range(model) or ())
    problem: ProbabilityFlow = KDiffusionProblem(
        _Model(model, given, x.dtype, report), min(ends), max(ends) if max(ends) > min(ends) else 2 * max(ends),
        tuple(x.shape[1:]), noise_sampler=mine.get("noise_sampler"), s_noise=mine.get("s_noise", 1.0),  # type: ignore[arg-type]
        dtype=torch.float64 if x.dtype == torch.float64 else torch.float32, device=x.device,
    )  # fmt: skip
    run = start(
        problem.reversed() if upward else problem, method, grid, len(grid), x=x.to(problem.dtype),
        seed=_seed(mine, given), **of_run,  # type: ignore[arg-type]
    )  # fmt: skip
    if report is not None:
        report.run = run
    _steps(run, disable, callback if chooses else None)
    return run.solution.x.to(x.dtype), _info(run)


def _is_rows(key: str, entry: SolverEntry | None) -> bool:
    """Whether an option is one of the row's own."""
    return entry is not None and key in signature(entry.factory).parameters


def _method(
    solver: str | Solver, name: str, entry: SolverEntry | None, options: dict[str, object], mine: dict[str, object]
) -> Solver:
    if entry is None:
        if options:
            key = next(iter(options))
            raise SolverError(f"a Solver is made already, so it takes no option {key!r}{did_you_mean(key, _OWN)}")
        method = get_solver(solver)
    else:
        known = [*signature(entry.factory).parameters]
        renamed = {_RENAMED.get(key, key) if _RENAMED.get(key) in known else key: v for key, v in options.items()}
        for key in renamed:
            if key not in (*known, "form"):
                offered = (*known, "form", *_OWN, *_OF_RUN)
                raise SolverError(f"sample_{name} has no option {key!r}{did_you_mean(key, offered)}")
        if "churn" in known and "s_churn" in mine:
            renamed["churn"] = mine.pop("s_churn")
        if "guided" in known:
            renamed.setdefault("guided", True)  # what guidance there is, is inside the model
        method = entry.build(**renamed)
    churn = {key: mine[key] for key in _CHURN if key in mine}
    if not at_least(churn.get("s_churn", 0.0), "s_churn", infinite=True):
        return method
    return find_solver("edm_stochastic").build(solver=method, **{_RENAMED.get(key, key): v for key, v in churn.items()})


def _nodes(sigmas: Tensor, name: str) -> tuple[list[float], dict[float, int]]:
    """The noise levels without repetition, and where each stands."""
    if sigmas.ndim != 1:
        raise GridError(f"sigmas of sample_{name} are a flat list, got shape {tuple(sigmas.shape)}")
    listed = [float(level) for level in sigmas.tolist()]
    if any(not math.isfinite(level) or level < 0 for level in listed):
        raise GridError(f"sigmas of sample_{name} must be finite and at least 0, got {listed}")
    kept = {i: level for i, level in enumerate(listed) if i == len(listed) - 1 or level != listed[i + 1]}
    if len(kept) > 1 and listed[0] == 0:
        raise GridError("sigmas begin at 0, where there is no noise to solve for; begin at a small level, such as 1e-4")
    if name in _OWN_STEPS and len(kept) == 2 and listed[-1] == 0:
        raise GridError(
            f"sample_{name} stops at the last level above 0, and sigmas have {listed[0]:g} alone; give it two"
        )
    return list(kept.values()), {level: i for i, level in kept.items()}


def _grid(nodes: list[float], name: str, entry: SolverEntry | None, mine: dict[str, object]) -> tuple[Grid, bool]:
    """(the grid, whether it leads upwards). Raises GridError where it turns back."""
    upward = nodes[0] < nodes[-1]
    if nodes[-1] > 0:
        return Grid(np.asarray(nodes), final="none"), upward
    row = name if entry is None else entry.name
    if row in _OWN_STEPS:  # which stop at the last level above 0
        return Grid(np.asarray(nodes[:-1]), final="none"), upward
    final = choice(mine.get("final", "step" if row in _OWN_LAST_STEP else "denoise"), "final", ("denoise", "step"))
    return Grid(np.asarray(nodes[:-1]), final=final), upward  # type: ignore[arg-type]


def _seed(mine: Mapping[str, object], given: Mapping[str, object]) -> int:
    """The seed that is given, the model's own, or one of torch's global generator, as its tree of noise is seeded."""
    for seed in (mine.get("seed"), given.get("seed")):
        if isinstance(seed, int) and not isinstance(seed, bool):
            return seed
    return int(torch.randint(0, 2**63 - 1, ()).item())


def _info(run: Run) -> dict[str, int]:
    stats = run.solution.stats
    accepted, rejected = stats.get("accepted", run.solution.steps), stats.get("rejected", 0)
    return {"steps": accepted + rejected, "nfe": run.solution.nfe, "n_accept": accepted, "n_reject": rejected}


def _steps(run: Run, disable: bool | None, told: Callback | None) -> None:
    """All steps, with a bar; told: of each step of a run that chooses them, as it is there."""
    from tqdm.auto import tqdm

    with tqdm(total=run.count, disable=disable) as bar:
        for visit in run:
            bar.update()
            if told is not None:
                stats, info, level = run.solution.stats, _info(run), torch.tensor(visit.node)
                told({
                    "x": visit.x, "i": visit.index + info["n_reject"], "sigma": level, "sigma_hat": level,
                    "t": -level.log(), "t_up": -level.log(), "denoised": visit.denoised,
                    "error": stats["errors"][-1], "h": stats["h"][-1], "share": visit.share, **info,
                })  # fmt: skip


def sample_dpm_fast(
    model: Model, x: Tensor, sigma_min: float, sigma_max: float, n: int,
    extra_args: Mapping[str, object] | None = None, callback: Callback | None = None, disable: bool | None = None,
    **options: object,
) -> Tensor:  # fmt: skip
    """DPM-Solver-fast with `n` calls, as it is called there; `sampler("dpm_fast")` takes sigmas, one call a step."""
    ends = torch.linspace(float(sigma_max), float(sigma_min), whole(n, "n") + 1, dtype=torch.float64)
    return sampler("dpm_fast")(model, x, ends, extra_args, callback, disable, **options)


def sample_dpm_adaptive(
    model: Model, x: Tensor, sigma_min: float, sigma_max: float, extra_args: Mapping[str, object] | None = None,
    callback: Callback | None = None, disable: bool | None = None, return_info: bool = False, **options: object,
) -> Tensor | tuple[Tensor, dict[str, int]]:  # fmt: skip
    """DPM-Solver-12 or -23 between two levels, as it is called there; `sampler("dpm_adaptive")` takes sigmas."""
    ends = torch.tensor([float(sigma_max), float(sigma_min)], dtype=torch.float64)
    name, entry, own = _row("dpm_adaptive")
    with torch.no_grad():
        done = _sample(name, name, entry, {**own, **options}, model, x, ends, extra_args, callback, disable)
    return done if return_info else done[0]


def _get_sigmas(schedule: str) -> Callable[..., Tensor]:
    """n, sigma_min, sigma_max -> n levels and a 0, in torch's default dtype."""
    rule, name = get_schedule(schedule)

    def get_sigmas(
        n: int, sigma_min: float, sigma_max: float, *, device: torch.device | str | None = None,
        dtype: torch.dtype | None = None, **options: object,
    ) -> Tensor:  # fmt: skip
        given = ", ".join(f"{key}={value!r}" for key, value in options.items())
        placed = get_schedule(f"{name}({given})")[0] if options else rule
        process = ProbabilityFlow.from_denoiser(lambda x, _: x, sigma_min, sigma_max, ()).process
        sigmas = make_grid(placed, n, process).sigmas
        return torch.tensor(sigmas, dtype=dtype or torch.get_default_dtype(), device=device)

    get_sigmas.__name__ = get_sigmas.__qualname__ = f"get_sigmas_{name}"
    return get_sigmas


def __getattr__(name: str) -> Callable[..., Tensor]:
    kind, _, rest = name.partition("_")
    if name.startswith("get_sigmas_"):
        made: Callable[..., Tensor] = _get_sigmas(name.removeprefix("get_sigmas_"))
    elif kind == "sample" and rest:
        try:
            made = sampler(_entry(name).name)
        except SolverError as error:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}: {error}") from None
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    made.__name__ = made.__qualname__ = name
    globals()[name] = made  # one function a name, so that it is pickled by it
    return made


def __dir__() -> list[str]:
    return sorted([*globals(), *(f"sample_{entry.name}" for entry in solver_entries() if entry.form is not None)])
