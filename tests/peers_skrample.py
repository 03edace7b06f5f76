"""skrample's samplers on a mixture in one dimension, from sigma = 10 to 0.1 in equal steps of log sigma. No torch."""

from __future__ import annotations

import importlib
import math
from typing import Any

MEANS, WIDTH, ENDS, START = (-1.0, 2.0), 0.5, (10.0, 0.1), 7.0


def denoised(y: float, sigma: float) -> float:
    """The mean of the data given y, of two equal parts at MEANS."""
    variance = WIDTH**2 + sigma**2
    weights = [math.exp(-((y - mean) ** 2) / (2 * variance)) for mean in MEANS]
    parts = [mean + WIDTH**2 / variance * (y - mean) for mean in MEANS]
    return sum(w * part for w, part in zip(weights, parts, strict=True)) / sum(weights)


def predicted(x: float, t: float, sigma: float, alpha: float) -> float:
    """The noise in x, as skrample asks for it."""
    y, level = x / alpha, sigma / alpha
    return (y - denoised(y, level)) / level


def end(sampler: Any, n: int) -> float:
    """y at the last noise level after n steps of a sampler of either kind."""
    scheduling = importlib.import_module("skrample.scheduling")
    kinds = {name: importlib.import_module(f"skrample.sampling.{name}") for name in ("interface", "models")}

    class Geometric(scheduling.SkrampleSchedule):  # type: ignore[name-defined, misc]
        space = scheduling.VariancePreserving()

        def _points(self, t: Any) -> Any:
            numpy = importlib.import_module("numpy")
            high, low = ENDS
            levels = low * (high / low) ** t
            return numpy.stack([t * 1000, *self.space.normalize(levels)], 1)

    schedule = Geometric()
    run = sampler if hasattr(sampler, "sample_model") else kinds["interface"].StructuredFunctionalAdapter(sampler)
    x = run.sample_model(START * schedule.point_1.alpha, predicted, kinds["models"].NoiseModel(), schedule, n)
    return float(x / schedule.point_0.alpha)


def unipc(order: int) -> Any:
    """Of the noise prediction: it is said to be of one order more."""
    models = importlib.import_module("skrample.sampling.models")
    structured = importlib.import_module("skrample.sampling.structured")
    return structured.UniPC(order=order, derivative_transform=models.NoiseModel())


def runge_kutta(family: str, name: str) -> Any:
    """Of a tableau, of the data prediction, which is what it takes by itself."""
    functional = importlib.import_module("skrample.sampling.functional")
    tableaux = importlib.import_module("skrample.sampling.tableaux")
    return functional.RKUltra(order=1, providers={1: getattr(getattr(tableaux, family), name)})
