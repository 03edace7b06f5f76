"""Any solver as a diffusers scheduler."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers
from torch import Tensor

from ...errors import GridError, SolverError
from ...grid import Nodes, Schedule
from ...registry import CHOOSERS, named_solver
from ...solver import Solver
from ...validate import whole
from . import config as configs
from . import noising
from .calls import Nature, c_in, network_of
from .output import DiffsolveSchedulerOutput, output
from .plan import Plan, Recipe, make_plan
from .session import Generators, Pass, Run, at, seeds_of
from .timesteps import Clock


class DiffsolveScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """A solver of diffsolve in a pipeline: a call of the network is a timestep, however many a step has.

    solver: a name of `diffsolve solvers`, one with options ("lms(order=3)"), "auto", or a Solver; None is
    guarded_abm(guided=True). schedule: a name or a Schedule; None is what the config it was taken from says, else
    "karras". final: "denoise", "step" or "none", see `start`; None is what `final_sigmas_type` says. eta: of the
    reverse SDE, for stochastic solvers.
    config_of: the diffusers class whose config the other parameters are of; they are read as it reads them.

    `order` is 1, and `num_inference_steps` are network calls: a method that makes several a step takes as many steps as
    they are enough for. The sample is what the network is given (`scale_model_input` leaves it as it is), data at the
    end. Slices of `timesteps` begin and end where the nearest step does. An edit of the sample between two calls is
    kept: on a step's state it is the new state; on a stage's, the step's start moves by what leads to it.

    Raises ModelError for a config that can't be honoured, SolverError, GridError.
    """

    _compatibles = [e.name for e in KarrasDiffusionSchedulers]  # noqa: RUF012
    order = 1

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        solver: str | Solver | None = None,
        schedule: object = None,
        final: str | None = None,
        eta: float | None = None,
        num_train_timesteps: int = 1000,
        beta_start: float | None = None,
        beta_end: float | None = None,
        beta_schedule: str | None = None,
        trained_betas: object = None,
        prediction_type: str | None = None,
        timestep_spacing: str | None = None,
        steps_offset: int = 1,
        timestep_type: str | None = None,
        rescale_betas_zero_snr: bool = False,
        snr_shift_scale: float | None = None,
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        variance_type: str | None = None,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        use_lu_lambdas: bool = False,
        use_flow_sigmas: bool = False,
        final_sigmas_type: str | None = None,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        sigma_data: float | None = None,
        sigma_schedule: str | None = None,
        shift: float = 1.0,
        flow_shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        base_shift: float | None = 0.5,
        max_shift: float | None = 1.15,
        base_image_seq_len: int = 256,
        max_image_seq_len: int = 4096,
        time_shift_type: str = "exponential",
        shift_terminal: float | None = None,
        invert_sigmas: bool = False,
        config_of: str | None = None,
    ) -> None:
        self._solver = solver if isinstance(solver, Solver) else None
        self._schedule = schedule if not (schedule is None or isinstance(schedule, str)) else None
        named = {"solver": getattr(solver, "name", "") or str(solver)} if self._solver else {}
        named |= {"schedule": repr(schedule)} if self._schedule is not None else {}
        self.register_to_config(**named, config_of=config_of or "DDPMScheduler")
        self._recall("config_of")
        self._passes: WeakKeyDictionary[threading.Thread, Pass] = WeakKeyDictionary()
        self._latest: Pass | None = None
        self.num_inference_steps: int | None = None
        configs.check(self.config)
        self._method()

    def _recall(self, key: str) -> None:
        """Not to be taken for a default: it is carried over to another class's config and back."""
        if "_use_default_values" in self.config:
            defaults = [name for name in self.config["_use_default_values"] if name != key]
            self.register_to_config(_use_default_values=defaults)

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """The scheduler of a config, any diffusers scheduler's; `kwargs` are the parameters that are to be others.

        Raises ModelError where it can't be honoured, SolverError for a parameter that there is none of.
        """
        if not return_unused_kwargs:
            configs.check_known(kwargs, cls._get_init_keys(cls))
        if isinstance(config, dict):
            config = configs.adopted(config, list(cls._get_init_keys(cls)), kwargs.get("config_of"))
        return super().from_config(config, return_unused_kwargs, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """Plain data, in the middle of a run too; this thread's run alone."""
        state = {key: value for key, value in self.__dict__.items() if key not in ("_passes", "_latest")}
        return state | {"_run": None if self._latest is None else self._now.state()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        run = state.pop("_run")
        self.__dict__.update(state, _passes=WeakKeyDictionary(), _latest=None)
        if run is not None:
            self.set_timesteps(**run["given"])
            self._now.resume(run)

    # what a run is made of

    def _method(self, calls: int | None = None) -> Solver:
        """The solver; of "auto" the one for so many calls, 20 where nobody said, under guidance from outside."""
        if self._solver is not None:
            return self._solver
        name = self.config.solver or "guarded_abm(guided=True)"
        if name in CHOOSERS:
            name = CHOOSERS[name](None, calls or 20, False, kind="guided").solver
        return named_solver(name)

    def _recipe(
        self, n: int | None, timesteps: object, sigmas: object, mu: float | None, rule: Schedule | None
    ) -> Recipe:  # fmt: skip
        """The arguments of `start` for what set_timesteps was given."""
        config = dict(self.config) | ({"schedule": self._schedule} if self._schedule is not None else {})
        nature = configs.shifted(configs.nature_of(config), config, mu)
        final = config["final"] or ("none" if config["final_sigmas_type"] == "sigma_min" else "denoise")
        bounds = {key: configs.bound(config[key], nature.process) for key in ("sigma_min", "sigma_max")}
        recipe = Recipe(
            nature, self._method(n), rule or configs.schedule_of(config, nature), n, final, **bounds, eta=config["eta"]
        )
        if sigmas is not None:
            return configs.with_sigmas(recipe, sigmas, timesteps, asked=config["schedule"] is not None)
        return recipe if timesteps is None else configs.with_timesteps(recipe, timesteps)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | int | None = None,
        timesteps: object = None,
        sigmas: object = None,
        mu: float | None = None,
        original_inference_steps: int | None = None,
        strength: float = 1.0,
    ) -> None:
        """Plan a run of at most `num_inference_steps` network calls, or over the nodes that are listed.

        timesteps: as the network is told them. sigmas: noise levels, 0 last where it ends there; of a flow its times,
        before the shift. Nodes that are listed are visited, in as many calls as it takes; but a flow's evenly spaced
        times, which pipelines make by themselves, are a rule. With `schedule` set, a flow's sigmas give the ends alone.
        mu: of a flow whose shift goes with the picture's size. original_inference_steps, strength: of LCM.
        Raises GridError or SolverError.
        """
        if num_inference_steps is not None:
            num_inference_steps = whole(num_inference_steps, "num_inference_steps", GridError)
        elif timesteps is None and sigmas is None:
            raise GridError("set_timesteps needs num_inference_steps, timesteps or sigmas")
        given = {
            "num_inference_steps": num_inference_steps, "device": device, "timesteps": timesteps, "sigmas": sigmas,
            "mu": mu, "original_inference_steps": original_inference_steps, "strength": strength,
        }  # fmt: skip
        rule = None if original_inference_steps is None else configs.Distilled(original_inference_steps, strength)
        plan = make_plan(self._recipe(num_inference_steps, timesteps, sigmas, mu, rule))
        if plan.unmixed and self.config.solver:  # the default knows what to do without
            warnings.warn(
                f"{plan.recipe.solver.name} reads the network's answer without guidance, which a pipeline mixes in "
                "before its scheduler sees it; here it is the method without that. ds.solve has both",
                stacklevel=2,
            )
        made = Pass(Clock(plan, device), given)
        self._passes[threading.current_thread()] = self._latest = made
        self.num_inference_steps = len(plan)

    @property
    def _now(self) -> Pass:
        """This thread's, or the newest."""
        now = self._passes.get(threading.current_thread()) or self._latest
        if now is None:
            raise SolverError("call set_timesteps first")
        return now

    @property
    def _planned(self) -> Plan | None:
        return None if self._latest is None else self._now.clock.plan

    # what pipelines read

    @property
    def timesteps(self) -> Tensor:
        """The times the network is told, float32, one for each call; before set_timesteps all of its training."""
        if self._latest is None:
            nature = configs.nature_of(self.config)
            told, process = network_of(nature).scaling, nature.process
            first, last = (float(told(sigma).c_noise) for sigma in (process.sigma_max, process.sigma_min))
            return torch.linspace(first, last, len(self), dtype=torch.float64).float()
        return self._now.clock.timesteps()

    @property
    def sigmas(self) -> Tensor:
        """The noise level of each call and of the end; of a flow its times, from 0 to 1. float32, on the CPU."""
        plan = self._planned
        if plan is None:
            raise AttributeError("sigmas are known after set_timesteps")
        levels = np.asarray([*(call.sigma for call in plan.calls), plan.end])
        return torch.from_numpy(levels / (1 + levels) if plan.recipe.nature.flow else levels).float()

    @property
    def init_noise_sigma(self) -> float:
        """What a pipeline multiplies normal noise with: the deviation of the first call's sample."""
        plan = self._planned
        nature = configs.nature_of(self.config)
        sigma = nature.process.sigma_max if plan is None else plan.calls[0].sigma
        return sigma * c_in(network_of(nature), sigma)

    @property
    def begin_index(self) -> int | None:
        """The call that a run begins with, as `set_begin_index` was told; None where it was not."""
        return None if self._latest is None else self._now.begin

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin with the step that is nearest to this call: what a slice `timesteps[begin_index:]` begins with."""
        now = self._now
        now.begin = whole(begin_index, "begin_index", GridError, 0, len(now.clock.plan) - 1)
        now.run = Run()

    @property
    def step_index(self) -> int | None:
        """The call that is due; None before the first."""
        if self._latest is None or (play := self._now.run.play) is None:
            return None
        return play.place.index + len(self._now.clock.plan) - len(play.plan)

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)

    def scale_model_input(self, sample: Tensor, timestep: object = None) -> Tensor:
        """The sample as it is: it is what the network is given."""
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: object,
        sample: Tensor,
        eta: float | None = None,
        generator: Generators = None,
        return_dict: bool = True,
        use_clipped_model_output: bool = False,
        prev_timestep: object = None,
        per_token_timesteps: Tensor | None = None,
    ) -> DiffsolveSchedulerOutput | tuple[Tensor, Tensor]:
        """What follows the network's answer at `sample`: the sample for the next call, or the result.

        timestep: of `timesteps`. A time that was answered before is answered again from where it was; another one
        begins a run afresh at its step. One for each sample, (B,), takes each sample on its own way.
        eta: 0, which pipelines pass unless told otherwise, leaves the solver's own. generator: its next number, or that
        of each in a list, keys the noise of a sample; torch's own where it is None.
        use_clipped_model_output, prev_timestep: of some pipelines, which pass what is so in any case.
        per_token_timesteps: of LTX's, which hand over the answer's negative then, and hold what is not due themselves.
        """
        if not (isinstance(model_output, Tensor) and isinstance(sample, Tensor) and sample.is_floating_point()):
            got = " and ".join(str(getattr(given, "dtype", type(given).__name__)) for given in (model_output, sample))
            raise SolverError(f"model_output and sample must be tensors, the sample of floats, got {got}")
        if per_token_timesteps is not None:
            model_output = -model_output
        now, seeds = self._now, partial(seeds_of, generator)
        if isinstance(timestep, Tensor) and timestep.ndim and timestep.numel() > 1:
            times = timestep.tolist()
            if len(set(times)) > 1:
                return self._step_rows(now, (model_output, times, sample), eta or None, generator, return_dict)
            timestep = times[0]
        play = at(now, now.run, timestep, eta or None)
        return output(play.answer(model_output, sample, seeds), sample, [play], return_dict)

    def _step_rows(
        self, now: Pass, given: tuple[Tensor, list[float], Tensor], eta: float | None, generator: Generators,
        return_dict: bool,
    ) -> DiffsolveSchedulerOutput | tuple[Tensor, Tensor]:  # fmt: skip
        """The same with a time for each sample."""
        answers, times, samples = given
        if not len(times) == len(samples) == len(answers):
            raise SolverError(f"there are {len(times)} timesteps and {len(samples)} samples; expected one, or as many")
        plays, after = [], []
        for i, t in enumerate(times):
            one = generator if generator is None or isinstance(generator, torch.Generator) else generator[i]
            play = at(now, now.rows.setdefault(i, Run()), t, eta)
            after.append(play.answer(answers[i : i + 1], samples[i : i + 1], partial(seeds_of, one)))
            plays.append(play)
        return output(torch.cat(after), samples, plays, return_dict)

    # noise

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: object) -> Tensor:
        """Clean samples with noise, as the network is given them at these times, one or one for each sample."""
        nature, sigmas = self._levels(timesteps)
        return noising.noised(original_samples, noise, sigmas, nature)

    def scale_noise(self, sample: Tensor, timestep: object, noise: Tensor | None = None) -> Tensor:
        """The same, as a flow's pipelines say it."""
        if noise is None:
            raise SolverError("scale_noise needs noise=, of the sample's shape")
        return self.add_noise(sample, noise, timestep)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: object) -> Tensor:
        """What a network that predicts the velocity is to say, for training."""
        nature, sigmas = self._levels(timesteps)
        return noising.velocity(sample, noise, sigmas, nature)

    def _levels(self, timesteps: object) -> tuple[Nature, Nodes]:
        """What the network is, and the noise levels of times."""
        if self._latest is None:
            nature = configs.nature_of(self.config)
            return nature, noising.noise_levels(timesteps, nature, {})
        now = self._now
        nature, tick = now.clock.plan.recipe.nature, now.clock.known(timesteps)
        if tick is not None:
            return nature, np.asarray([tick.plan.calls[tick.index].sigma])
        return nature, noising.noise_levels(timesteps, nature, now.clock.known_levels)

    @property
    def alphas_cumprod(self) -> Tensor:
        """alpha^2 at each timestep of a discrete process."""
        return self._table(noising.alphas_cumprod)

    @property
    def betas(self) -> Tensor:
        """The betas of a discrete process."""
        return self._table(noising.betas)

    def _table(self, made: Callable[[Nature], Tensor | None]) -> Tensor:
        table = made(configs.nature_of(self.config))
        if table is None:
            raise AttributeError("only a discrete process has a table of betas")
        return table
