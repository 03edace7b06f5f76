"""The problem zoo: exact denoisers, and Stable Diffusion. Heavy libraries are imported when a model is loaded."""

from .exact import EmpiricalImages as EmpiricalImages
from .exact import Gaussian as Gaussian
from .exact import GaussianMixture as GaussianMixture
from .exact import GuidedMixture as GuidedMixture
from .stable_diffusion import StableDiffusion as StableDiffusion
from .stable_diffusion import Text2Image as Text2Image

__all__ = ["EmpiricalImages", "Gaussian", "GaussianMixture", "GuidedMixture", "StableDiffusion", "Text2Image"]
