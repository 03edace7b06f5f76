"""A live pipeline of diffusers as a problem."""

from __future__ import annotations

from collections.abc import Callable

from diffsolve import get_problem

from .diffusion import ProbabilityFlow


def from_pipe(pipe: object) -> Callable[..., ProbabilityFlow]:
    """`from_pipe(pipe)(prompt, **what it takes)`: the problem of what the pipeline would draw.

    Its encoders, guidance, ControlNets, adapters and decoder are the network; the pipeline is left as it is.
    `problem.latents` are its own start, at the noise level `problem.levels[0]`, and `problem.finish(solution.x)` what
    it returns for a result. The batch is that of the call. Raises ProblemError, ModelError, and what the call raises.
    """
    made: Callable[..., ProbabilityFlow] = get_problem("pipeline")(pipe)
    return made
