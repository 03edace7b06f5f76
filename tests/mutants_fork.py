"""How mutants.py runs pytest: in a fork of a process that has imported what takes long, and nothing of diffsolve."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

Environment = dict[str, str]

PRELOAD = (
    "torch", "torch.fx.experimental.proxy_tensor", "scipy.integrate", "scipy.optimize", "scipy.stats", "sympy",
    "diffusers.models.unets.unet_2d_condition", "diffusers.models.autoencoders.autoencoder_kl", "diffusers.schedulers",
    "transformers.models.clip.modeling_clip", "matplotlib.figure", "safetensors.torch", "typer.testing", "rich.console",
    "PIL.Image", "coverage",
)  # fmt: skip


def run_pytest(arguments: Sequence[str], paths: Sequence[str], root: str, environment: Environment, log: str) -> None:
    """In the fork: pytest as in the folder `root`, but for the root itself, with these paths before the others."""
    os.setsid()  # a group that can be killed with all that it has started
    os.environ.update(environment, PYTHONPATH=os.pathsep.join(filter(None, [*paths, os.environ.get("PYTHONPATH")])))
    os.chdir(root)
    with Path(log).open("wb") as told:
        for stream in (1, 2):
            os.dup2(told.fileno(), stream)
    sys.path[:] = [*paths, *(path for path in sys.path if path not in ("", root, *paths))]
    sys.dont_write_bytecode = "PYTHONDONTWRITEBYTECODE" in environment
    import pytest

    code = pytest.main(["-W", "ignore::pytest.PytestAssertRewriteWarning", *arguments])  # of plugins that came early
    sys.stdout.flush()
    os._exit(code)
