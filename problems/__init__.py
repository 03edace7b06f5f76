"""The problem zoo: your own ODE or SDE, exact denoisers, Stable Diffusion, Fashion-MNIST, inpainting, codes.

Heavy libraries are imported with a model.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .configs import read_scheduler_config as read_scheduler_config
    from .diffusion import ProbabilityFlow as ProbabilityFlow
    from .discrete import DiscreteProblem as DiscreteProblem
    from .discrete import MaskAndReplace as MaskAndReplace
    from .emoji.features import load_features as load_features
    from .emoji.features import training_features as training_features
    from .emoji.features import training_names as training_names
    from .exact import EmpiricalImages as EmpiricalImages
    from .exact import Gaussian as Gaussian
    from .exact import GaussianMixture as GaussianMixture
    from .exact import GuidedMixture as GuidedMixture
    from .fashion.problem import Fashion as Fashion
    from .guidance import FunctionDenoiser as FunctionDenoiser
    from .guidance import NetworkDenoiser as NetworkDenoiser
    from .inpaint import Inpaint as Inpaint
    from .interpolate import slerp as slerp
    from .latents import from_latents as from_latents
    from .live import from_pipe as from_pipe
    from .noise import normals as normals
    from .ode import ODEProblem as ODEProblem
    from .ode import SemilinearODE as SemilinearODE
    from .sde import SDEProblem as SDEProblem
    from .stable_diffusion import StableDiffusion as StableDiffusion
    from .stable_diffusion import Text2Image as Text2Image
    from .vq_diffusion import CodeTable as CodeTable
    from .vq_diffusion import VQDiffusion as VQDiffusion

_HOMES = {
    ".configs": ("read_scheduler_config",),
    ".diffusion": ("ProbabilityFlow",),
    ".discrete": ("DiscreteProblem", "MaskAndReplace"),
    ".emoji.features": ("load_features", "training_features", "training_names"),
    ".exact": ("EmpiricalImages", "Gaussian", "GaussianMixture", "GuidedMixture"),
    ".fashion.problem": ("Fashion",),
    ".guidance": ("FunctionDenoiser", "NetworkDenoiser"),
    ".inpaint": ("Inpaint",),
    ".interpolate": ("slerp",),
    ".latents": ("from_latents",),
    ".live": ("from_pipe",),
    ".noise": ("normals",),
    ".ode": ("ODEProblem", "SemilinearODE"),
    ".sde": ("SDEProblem",),
    ".stable_diffusion": ("StableDiffusion", "Text2Image"),
    ".vq_diffusion": ("CodeTable", "VQDiffusion"),
}  # fmt: skip
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> object:
    """Loaded on first use: a problem of one's own needs no model loader."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_HOME_OF[name], __name__), name)
    return value


def __dir__() -> list[str]:
    return __all__
