"""`diffsolve batch` in a process of its own, forked from a server that has imported everything."""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["diffsolve.app.many", "diffsolve.problems.stable_diffusion",
                               "diffusers.models.unets.unet_2d_condition",
                               "diffusers.models.autoencoders.autoencoder_kl", "transformers.models.clip.modeling_clip",
                               "batch_process"])  # fmt: skip


def command(arguments: Sequence[str], environment: Mapping[str, str], log: str, grace: float, file_size: int) -> None:
    """The command line with these arguments, its output in a file."""
    os.environ.update(environment)
    sys.stdout = sys.stderr = open(log, "w", buffering=1, encoding="utf-8")  # noqa: SIM115
    import torch

    from diffsolve import parallel
    from diffsolve.app.cli import main

    torch.set_num_threads(1)
    parallel.GRACE = grace
    if file_size:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    sys.argv = ["diffsolve", *arguments]
    main()


def begin(
    *arguments: object, log: Path, rank: int = 0, world: int = 1, port: int = 0, grace: float = 20.0, file_size: int = 0
) -> ForkServerProcess:
    """Start it as one of `world` ranks."""
    environment = {"RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_PORT": str(port)} if world > 1 else {}
    words = [str(a) for a in arguments]
    process = SERVER.Process(target=command, args=(words, environment, str(log), grace, file_size))
    process.start()
    return process
