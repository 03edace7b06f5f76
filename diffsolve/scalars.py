"""The scalar functions that steps may use, for floats, numpy arrays, sympy expressions and mpmath numbers alike.

A step's coefficients are float64 numbers in production and symbols in analysis, so it takes exp, log, phi, ... from
here. Any other `numbers.Number` brings its own exp, expm1, log and sqrt as methods.
"""

from __future__ import annotations

import math
from numbers import Number
from typing import Any

import numpy as np

Scalar = Any
"""A float, or in analysis any number that is taken here: of numpy, sympy, mpmath, a power series."""
_SERIES_BELOW = 1.0  # under it phi_k is summed as a series, since the closed form cancels


def _apply(name: str, x: Scalar) -> Scalar:
    if isinstance(x, (float, int)):
        return getattr(math, name)(x)
    if isinstance(x, (np.ndarray, np.generic)):
        return getattr(np, name)(x)
    kind = type(x).__module__.partition(".")[0]
    if kind == "mpmath":
        import mpmath

        return getattr(mpmath, name)(x)
    if kind == "sympy":
        import sympy

        return sympy.exp(x) - 1 if name == "expm1" else getattr(sympy, name)(x)
    if isinstance(x, Number) and hasattr(x, name):
        return getattr(x, name)()
    raise TypeError(f"diffsolve.scalars.{name} takes a float, numpy, sympy or mpmath number, got {type(x).__name__}")


def exp(x: Scalar) -> Scalar:
    return _apply("exp", x)


def expm1(x: Scalar) -> Scalar:
    """e^x - 1 without cancelling."""
    return _apply("expm1", x)


def log(x: Scalar) -> Scalar:
    return _apply("log", x)


def sqrt(x: Scalar) -> Scalar:
    return _apply("sqrt", x)


def phi(k: int, z: Scalar) -> Scalar:
    """phi_0 = e^z, phi_k(z) = (phi_{k-1}(z) - 1/(k-1)!)/z = int_0^1 e^{(1-s) z} s^{k-1}/(k-1)! ds; phi_k(0) = 1/k!.

    Stable for every z <= 0 and small |z| (a series below 1); exact for sympy, where z may be 0 but not a hidden zero.
    """
    if k == 0:
        return exp(z)
    if isinstance(z, np.ndarray):
        return np.vectorize(lambda v: phi(k, float(v)), otypes=[float])(z)
    if isinstance(z, (float, int, np.generic)):
        z = float(z)
        if abs(z) < _SERIES_BELOW:
            term = total = 1.0 / math.factorial(k)
            for j in range(1, 25):
                term *= z / (k + j)
                if total + term == total:
                    break
                total += term
            return total
    one = z * 0 + 1  # an exact 1 of z's own kind
    if z == 0:
        return one / math.factorial(k)
    value = expm1(z) / z
    for j in range(1, k):
        value = (value - one / math.factorial(j)) / z
    return value
