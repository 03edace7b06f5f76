"""The problem zoo: exact denoisers, and Stable Diffusion. Heavy libraries are imported when a model is loaded."""

from typing import TYPE_CHECKING, Any

from .exact import EmpiricalImages as EmpiricalImages
from .exact import Gaussian as Gaussian
from .exact import GaussianMixture as GaussianMixture
from .exact import GuidedMixture as GuidedMixture
from .stable_diffusion import StableDiffusion as StableDiffusion
from .stable_diffusion import Text2Image as Text2Image

if TYPE_CHECKING:
    from .emoji.features import load_features as load_features
    from .emoji.features import training_features as training_features
    from .emoji.features import training_names as training_names

_FEATURES = ("load_features", "training_features", "training_names")

__all__ = [
    "EmpiricalImages", "Gaussian", "GaussianMixture", "GuidedMixture", "StableDiffusion", "Text2Image", *_FEATURES,
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _FEATURES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .emoji import features  # not before: `python -m` warns of a module that its package has imported

    return getattr(features, name)
