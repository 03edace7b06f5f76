# The problem zoo as mypy sees it from here: it is joined to the package at install, and checked as a root of its own.
from typing import Any

from problems.diffusion import ProbabilityFlow as ProbabilityFlow
from problems.guidance import FunctionDenoiser as FunctionDenoiser
from problems.guidance import NetworkDenoiser as NetworkDenoiser
from problems.noise import normals as normals

def __getattr__(name: str) -> Any: ...
