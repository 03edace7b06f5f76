"""The problem zoo: your own ODE or SDE, exact denoisers, Stable Diffusion, inpainting, codes.

Heavy libraries are imported with a model.
"""

from typing import TYPE_CHECKING, Any

from .discrete import DiscreteProblem as DiscreteProblem
from .discrete import MaskAndReplace as MaskAndReplace
from .exact import EmpiricalImages as EmpiricalImages
from .exact import Gaussian as Gaussian
from .exact import GaussianMixture as GaussianMixture
from .exact import GuidedMixture as GuidedMixture
from .inpaint import Inpaint as Inpaint
from .interpolate import slerp as slerp
from .ode import ODEProblem as ODEProblem
from .ode import SemilinearODE as SemilinearODE
from .sde import SDEProblem as SDEProblem
from .stable_diffusion import StableDiffusion as StableDiffusion
from .stable_diffusion import Text2Image as Text2Image
from .vq_diffusion import CodeTable as CodeTable
from .vq_diffusion import VQDiffusion as VQDiffusion

if TYPE_CHECKING:
    from .emoji.features import load_features as load_features
    from .emoji.features import training_features as training_features
    from .emoji.features import training_names as training_names

_FEATURES = ("load_features", "training_features", "training_names")

__all__ = [
    "CodeTable", "DiscreteProblem", "EmpiricalImages", "Gaussian", "GaussianMixture", "GuidedMixture", "Inpaint",
    "MaskAndReplace", "ODEProblem", "SDEProblem", "SemilinearODE", "StableDiffusion", "Text2Image", "VQDiffusion",
    "slerp", *_FEATURES,
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _FEATURES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .emoji import features  # not before: `python -m` warns of a module that its package has imported

    return getattr(features, name)
