"""The parts of diffusers and transformers that drawing needs, without what they import beside: 5 of 8 seconds of start.

Both import all that a model can be trained, fine-tuned, quantised and spread over machines with, before the first class
is there. `diffsolve sample` and `diffsolve batch`, in processes of their own, stand empty modules in for that while the
four classes are imported, and take them away again: who imports the rest later gets the real ones. In a Python session
nothing of this happens.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

NEEDED = ("diffusers.models.autoencoders.autoencoder_kl", "diffusers.models.unets.unet_2d_condition",
          "transformers.models.clip.modeling_clip", "transformers.models.clip.tokenization_clip")  # fmt: skip
ABSENT = (
    "torch._dynamo", "diffusers.loaders", "diffusers.quantizers", "transformers.quantizers", "transformers.loss",
    "transformers.conversion_mapping", "transformers.core_model_loading", "transformers.distributed",
    "transformers.generation",
)  # fmt: skip
"""What is not imported, with all below it: compilation, adapters, quantising, losses, conversion of weights,
distribution over machines."""
BUT = ("diffusers.quantizers.quantization_config", "transformers.distributed.configuration_utils",
       "transformers.distributed.mixin", "transformers.distributed.utils", "transformers.generation",
       "transformers.generation.configuration_utils")  # fmt: skip
"""Small modules among them that a model is made with."""
BARE = ("diffusers.models.autoencoders", "diffusers.models.unets", "diffusers.models.transformers")
"""Packages whose modules are imported one by one, in place of all at once."""
own_process = False
"""Whether this process is the command line's alone."""


@contextmanager
def parts() -> Iterator[None]:
    """Within it models are loaded: what that needs is imported, the plain way where the short one does not work, or
    where another has imported the rest already."""
    if not own_process or any(name in sys.modules for name in ("diffusers.models", "transformers.modeling_utils")):
        yield
        return
    before = set(sys.modules)
    with _standing_in():
        try:
            for name in NEEDED:
                importlib.import_module(name)
        except Exception:  # another version than it was made for
            for name in set(sys.modules) - before:
                if name.partition(".")[0] in ("diffusers", "transformers"):
                    del sys.modules[name]
        else:
            yield
            return
    yield


@contextmanager
def _standing_in() -> Iterator[None]:
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in finder.made:
            module, (parent, _, last) = sys.modules.pop(name, None), name.rpartition(".")
            if getattr(sys.modules.get(parent), "__dict__", {}).get(last) is module:
                with suppress(AttributeError):
                    delattr(sys.modules[parent], last)


class _Finder(MetaPathFinder, Loader):
    """Finds stand-ins for what is absent, and packages that do nothing by themselves for what is bare."""

    def __init__(self) -> None:
        self.made: list[str] = []

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        stands_in = name not in BUT and any(name == one or name.startswith(f"{one}.") for one in ABSENT)
        if not stands_in and name not in BARE:
            return None
        real = PathFinder.find_spec(name, path)
        spec = ModuleSpec(name, self, is_package=True)
        spec.submodule_search_locations = list((real and real.submodule_search_locations) or [])
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        self.made.append(spec.name)
        return ModuleType(spec.name) if spec.name in BARE else _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        return None


class _StandIn(ModuleType):
    """Has what it is asked for: an empty class, an empty mapping for a constant, else a decorator that does nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        found: Any = {} if name.isupper() else type(name, (), {}) if name[0].isupper() else _unchanged
        found = _no if name.startswith("is_") else found
        setattr(self, name, found)
        return found


def _no(*_: Any) -> bool:
    return False


def _unchanged(*arguments: Any, **_: Any) -> Any:
    """What is decorated, as it is."""
    if arguments and callable(arguments[0]):
        return arguments[0]

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        return function

    return decorate
