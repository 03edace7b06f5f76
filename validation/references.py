"""What errors are measured against: the problems on which cost is compared, and their exact states, kept on disk.

A reference is integrated by DOP853 in log sigma (`Case.at`) at two tolerances; their difference is its error estimate.
It is found again by the content of the problem, its start and its ends; the folder is `cache.cache_folder()`.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffsolve import ProbabilityFlow, Process, normals
from diffsolve.problems import Gaussian, GaussianMixture
from diffsolve.process import as_process

from . import cache
from .problems import Case

STREAM = -64  # of the keyed normals that the problems are drawn from
VERSION = 2  # of what is kept on disk
RTOL, LOOSER = 1e-12, 100.0  # of the reference, and how much looser the run is that tells its error
CONVERGED = 1e-7  # an estimate above it, for any start, means that the reference can't be trusted to six digits
PROBES = 4  # noise levels at which a kept reference's denoiser is compared with the present one


@dataclass(frozen=True, eq=False)
class Reference:
    """The exact states at a case's end, (B, *shape), and the estimate of their relative error, the worst row's."""

    state: Tensor
    error: float

    @property
    def converged(self) -> bool:
        return self.error <= CONVERGED


def sampling_cases(
    seed: int = 0,
    starts: int = 256,
    *,
    dims: Sequence[int] = (16, 2, 64),
    modes: Sequence[int] = (5, 10),
    guidance: float = 7.5,
    process: str | Process = "sd",
) -> list[Case]:
    """Gaussian, two mixtures, and each mixture under guidance, from the prior down to sigma_min.

    dims: of the Gaussian and of the two mixtures; modes: of the mixtures. The Gaussian's deviations run from 0.05 to 2,
    as a picture's spectrum falls; the mixtures' means are N(0, 1), their deviations 0.1 to 0.3: the modes lie apart.
    """
    kind = as_process(process)
    mean = _draw(seed, 0, 1, dims[0])[0]
    gauss = Gaussian(mean, torch.logspace(math.log10(0.05), math.log10(2), dims[0]).double(), kind)
    cases = [case_of("gauss", gauss, seed, starts)]
    for stream, (dim, count) in enumerate(zip(dims[1:], modes, strict=True), 1):
        free = GaussianMixture(
            _draw(seed, stream, count, dim), torch.linspace(0.1, 0.3, count).double(), process=kind,
            labels=[k % 2 for k in range(count)],
        )  # fmt: skip
        cases.append(case_of(f"gmm{dim}", free, seed, starts))
        cases.append(case_of(f"gmm{dim} cfg", free.guided(1, guidance), seed, starts))
    return cases


def _draw(seed: int, stream: int, *shape: int) -> Tensor:
    return normals(seed, range(shape[0]), STREAM - stream, shape[1:], torch.float64, "cpu")


def case_of(name: str, problem: ProbabilityFlow, seed: int = 0, starts: int = 256) -> Case:
    """A flow over its whole span, from `starts` of its priors."""
    high, low = problem.span
    x = problem.prior(starts, seed).double()
    known = getattr(problem, "exact", None)
    return Case(
        name, problem, high, low, x, exact=(lambda node: known(x, high, node)) if known else None, rtol=RTOL,
        atol=RTOL / 10,
    )  # fmt: skip


def a_mixture() -> GaussianMixture:
    """The first of `sampling_cases`' mixtures: where one problem has to stand for all."""
    return next(case.problem for case in sampling_cases(starts=1) if case.name == "gmm2")


def reference(case: Case) -> Reference:
    """The exact state at the case's end: closed, or remembered, or read from disk, or integrated and kept."""
    if known := getattr(case.problem, "exact", None):
        return Reference(known(case.x, case.start, case.end), 0.0)
    key = _key(case)
    if key is None:  # not to be recognised again
        return _integrate(case)
    if key not in _remembered:
        path = cache.cache_folder() / "references" / f"{key}.npz"
        kept = _read(path, case)
        _remembered[key] = kept or _integrate(case)
        if kept is None:
            _write(path, case, _remembered[key])
    return _remembered[key]


_remembered: dict[str, Reference] = {}


@torch.no_grad()
def _integrate(case: Case) -> Reference:
    rtol, atol = LOOSER * case.rtol, LOOSER * case.atol
    looser = Case(case.name, case.problem, case.start, case.end, case.x, rtol=rtol, atol=atol)
    state, rough = case.at(case.end), looser.at(case.end)
    return Reference(state, float(row_errors(rough, state).max()))


def row_errors(x: Tensor, exact: Tensor) -> Tensor:
    """|x - exact|/|exact| of each start, (B,)."""
    exact = exact.double()
    return (x.double() - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)


def _key(case: Case) -> str | None:
    """The case's content as a file's name; None for one that only its functions tell from another."""
    if not isinstance(case.problem, ProbabilityFlow):
        return None
    return cache.digest(VERSION, case.problem, case.start, case.end, case.x, case.rtol, case.atol)


def _probe(case: Case) -> np.ndarray:
    """The denoiser at a few states: what a file must agree with, whatever has become of the code since."""
    assert isinstance(case.problem, ProbabilityFlow)
    sigmas = np.geomspace(case.start, case.end, PROBES).tolist()
    with torch.no_grad():
        return np.stack([case.problem.denoise(case.x[:PROBES] * (s / case.start), s).double().numpy() for s in sigmas])


def _read(path: Path, case: Case) -> Reference | None:
    try:
        with path.open("rb") as handle, np.load(handle) as file:
            state, error, probe = file["state"], float(file["error"]), file["probe"]
    except Exception:  # absent, cut short, or something else by that name: it is made anew
        return None
    now = _probe(case)
    same = state.shape == tuple(case.x.shape) and probe.shape == now.shape
    if not (same and np.allclose(probe, now, rtol=1e-9, atol=1e-12)):
        return None
    return Reference(torch.from_numpy(state), error)


def _write(path: Path, case: Case, found: Reference) -> None:
    """Under its name only once it is whole; a folder that can't be written to costs time, not the result."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(suffix=".part", dir=path.parent)
    except OSError:
        return
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, state=found.state.numpy(), error=found.error, probe=_probe(case))
        os.replace(part, path)
    except OSError:
        Path(part).unlink(missing_ok=True)
