"""A live pipeline as a problem to solve, and `run`, which solves it and lets the pipeline finish."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ... import NetworkDenoiser, ProbabilityFlow
from ...control import Controller
from ...denoiser import Output, Raw, Sigma
from ...errors import ProblemError
from ...integrate import solve
from ...problem import freeze
from ...registry import CHOOSERS
from ...solution import Solution
from ...solver import Solver
from .calls import Nature
from .live import Answer, Live, PipelineStopped
from .scheduler import DiffsolveScheduler
from .session import seeds_of


class PipelineNetwork(NetworkDenoiser):
    """The network of a live pipeline, its guidance included."""

    def __init__(self, live: Live, nature: Nature) -> None:
        super().__init__(self._ask, nature.process, nature.prediction, nature.learned_range)
        self.live, self.clip = live, nature.clip
        self._newest: tuple[Tensor, Answer] | None = None

    def _ask(self, x: Tensor, t: Tensor) -> Tensor:
        times = set(t.tolist())
        if len(times) > 1:
            raise ProblemError("a pipeline is told one time for its whole batch; pass one sigma")
        if x.shape != self.live.first.sample.shape:
            expected = tuple(self.live.first.sample.shape)
            raise ProblemError(f"the pipeline was called for samples of {expected}, and is asked at {tuple(x.shape)}")
        answer = self.live.ask(x, times.pop())
        self._newest = answer.raw.to(x.dtype), answer
        return self._newest[0]

    def output(self, y: Tensor, raw: Raw, sigma: Sigma) -> Output:
        found = super().output(y, raw, sigma)
        if self.clip is not None:
            found = found._replace(denoised=self.clip(found.denoised))
        newest, self._newest = self._newest, None
        if newest is None or newest[0] is not raw or newest[1].held is None or newest[1].known is None:
            return found
        # what a pipeline puts back is data and noise on its straight way: there D is the data
        return found._replace(denoised=torch.where(newest[1].held, newest[1].known.to(y), found.denoised))


class PipelineFlow(ProbabilityFlow):
    """What a pipeline draws when it is called so, as a problem: made by calling what `from_pipe` hands back.

    `latents`: the pipeline's own start, in VE coordinates, for `solve(problem, x=problem.latents)`, at the noise level
    `levels[0]`; `levels[1]` is where it ends, None for the data. The batch is that of the pipeline's call. States that
    the pipeline keeps apart, as of video and sound, are one here, (B, N), which `split` takes apart.
    """

    def __init__(self, live: Live) -> None:
        nature = live.scheduler._now.clock.plan.recipe.nature
        network = PipelineNetwork(live, nature)
        first = live.first.sample
        wide = torch.promote_types(first.dtype, torch.float32)
        super().__init__(
            denoiser=network, process=nature.process, shape=first.shape[1:], dtype=wide, device=first.device
        )
        scale = float(network.scaling(live.levels[0]).c_in)
        freeze(self, live=live, latents=first.to(wide) / scale, levels=live.levels)

    live: Live
    latents: Tensor
    levels: tuple[float, float | None]

    def finish(self, x: Tensor) -> Any:
        """What the pipeline returns for a state x at sigma = 0, or at its end: decoded, as its `output_type` says."""
        last = self.levels[1]
        scale = 1.0 if last is None else float(self.denoiser.scaling(last).c_in)  # type: ignore[attr-defined]
        return self.live.finish((x.detach() * scale).to(self.live.first.sample.dtype))

    def split(self, x: Tensor) -> list[Tensor]:
        """The pipeline's own states of (B, *shape), in the order of its schedulers; one where there is one."""
        return self.live.parts.split(x)

    def decode(self, x: Tensor) -> list[Any]:
        """The pipeline's pictures of data-coordinate states, or videos."""
        made = self.finish(x)
        return list(made[0])


class LivePipeline:
    """A pipeline whose calls are problems: `from_pipe(pipe)(prompt, **what it takes)`."""

    def __init__(self, pipe: object) -> None:
        self.pipe = pipe

    def __call__(self, *prompt: object, **given: object) -> PipelineFlow:
        """The problem of what the pipeline would draw. Raises ProblemError, and what the pipeline raises."""
        if len(prompt) > 1:
            raise ProblemError("name what is passed to the pipeline beside the prompt")
        return PipelineFlow(Live(self.pipe, given | ({"prompt": prompt[0]} if prompt else {})))


def from_pipe(pipe: object) -> LivePipeline:
    """A diffusers pipeline as a maker of problems, for solve(), validation, gradients; it is left as it is."""
    return LivePipeline(pipe)


def run(
    pipe: Any,
    solver: str | Solver | None = None,
    schedule: object = None,
    *,
    rtol: float | None = None,
    atol: float | None = None,
    controller: Controller | None = None,
    nfe: int | None = None,
    quality: str | float | None = None,
    eta: float | None = None,
    final: str | None = None,
    **given: Any,
) -> Any:
    """What `pipe(**given)` returns, its steps taken by any solver, chosen as it goes where it is adaptive.

    The pipeline's own encoders, guidance, ControlNets, adapters, callbacks and decoder; its scheduler's config alone is
    read. rtol, atol, controller, eta: of `solve`. nfe: network calls at most; `num_inference_steps` is another name for
    it. quality: of `solve`, its runs in one call of the pipeline. final: None is "denoise", or where the
    pipeline ends. What comes back has the `solution` beside what it has.

    What a pipeline decides by the number of a step (`control_guidance_end`, ...) goes by its share of `nfe`, or 1000.
    Raises SolverError, GridError, ProblemError, and what the pipeline raises.
    """
    if "num_inference_steps" in given and nfe is None:
        nfe = given["num_inference_steps"]
    if nfe is not None:
        given["num_inference_steps"] = nfe
    own = getattr(pipe, "scheduler", None)
    if solver is None and isinstance(own, DiffsolveScheduler):
        solver = own.config.solver if own.config.solver in CHOOSERS else own._method()
        schedule = schedule or own.config.schedule
    problem = from_pipe(pipe)(**given)
    first, last = problem.levels
    named = schedule is None or isinstance(schedule, str)
    end: Any = final or ("denoise" if last is None else "none")
    solution: Solution | None = None
    try:
        solution = solve(
            problem, solver, schedule, nfe=nfe, quality=quality, rtol=rtol, atol=atol, controller=controller, eta=eta,
            final=end, x=problem.latents, batch=seeds_of(given.get("generator"), len(problem.latents)),
            progress=_shows(pipe),
            sigma_max=min(first, problem.process.sigma_max) if named else None, sigma_min=last if named else None,
        )  # fmt: skip
    except PipelineStopped as stopped:
        solution, made = stopped.solution, problem.live.finish(None)
    else:
        made = problem.finish(solution.x)
    if hasattr(made, "__dict__"):
        made.solution = solution
    return made


def _shows(pipe: object) -> bool:
    return not getattr(pipe, "_progress_bar_config", {}).get("disable", False)
