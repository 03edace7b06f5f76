"""A step's view of the user's own SDE: its drift, its noise and their Brownian motions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffsolve import Noise, ProblemError, SolverError, Span
from diffsolve.run import is_transformed
from diffsolve.validate import Samples, check_like, finite, unchanged

from .noise import SpaceTimePath, normals
from .ode import GivenField, GivenForm

if TYPE_CHECKING:
    from .sde import SDEProblem

TAKE = "take 'euler_maruyama', 'milstein', 'sra1' or 'sra3'"
_DEPTH = 24  # 2^-24 of the span is the shortest step, with LEVELS or more of it in the tree
_OFF = 1e-4  # of the largest derivative: what a component may seem to read of others
_READS = "Milstein's correction is for {}, and {}; take 'euler_maruyama'"
_NO_SLOPE = (
    "the derivative of g is needed, and what g(t, x) does with x can't be followed ({}); keep to torch, without "
    "detach, or take 'euler_maruyama'"
)


class SDEForm(GivenForm):
    """The form of a user's SDE, which has noise but no noise level."""

    def __init__(self, problem: SDEProblem) -> None:
        super().__init__()
        self.problem = problem

    def sigma(self, s: float) -> float:
        raise SolverError(f"this solver reads a noise level, and an SDEProblem has none; {TAKE}")

    def diffusion(self, s: float) -> float:
        level = self.problem.g(s) if self.problem.additive and self.problem.noise != "general" else None
        if isinstance(level, Tensor) and level.ndim == 0:
            if level.requires_grad or is_transformed():
                raise SolverError(f"this solver takes the level of the noise as a number, without its gradient; {TAKE}")
            level = float(level)
        number = finite(level)
        if number is None:
            raise SolverError(
                "this solver takes additive noise of one level, and this g has more of them, or reads x; "
                "take 'euler_maruyama' or 'milstein'"
            )
        return number

    def noise_std(self, start: float, end: float) -> float:
        return self.diffusion(start) * math.sqrt(abs(end - start))  # with g's sign, which the path of W has too


class GivenSDEField(GivenField):
    """The user's own drift and noise. noise_type: "diagonal", "scalar" or "general", see `SDEProblem`."""

    traceable = False  # g(t, x) z is no multiple of z
    eta = 1.0

    def __init__(self, problem: SDEProblem, x: Tensor, samples: Samples, seed: int) -> None:
        super().__init__(problem)
        if not x.numel():
            raise ProblemError(f"the state has the shape {tuple(x.shape)}, and noise takes one row at least, not empty")
        self.form, self.problem, self.additive = SDEForm(problem), problem, problem.additive
        self.noise_type = problem.noise or "diagonal"
        self._x, self._samples, self._seed = x, samples, seed
        square = x.ndim > 1 and len(set(x.shape)) == 1 and len(x) > 1
        self._ambiguous = problem.noise is None and square
        self._places: dict[float, int] = {}  # times at which the derivative of g was asked for, in their order
        self._made: SpaceTimePath | None = None

    # -- the Brownian motions

    @property
    def _path(self) -> SpaceTimePath:
        if self._made is None:
            x, shape = self._x, self._x.shape[1:]
            if self.noise_type == "scalar":
                shape = torch.Size(())
            elif self.noise_type == "general":
                with torch.no_grad():
                    shape = self._of_state(x.detach(), self.problem.span[0]).shape[-1:]
            self._made = SpaceTimePath(
                self._seed, self._samples, shape, *self.problem.span, dtype=x.dtype, device=x.device, depth=_DEPTH
            )
        return self._made

    def normal(self, span: Span, kind: Noise = Noise.INCREMENT) -> Tensor:
        ask = self._path.area if kind is Noise.LEVY_AREA else self._path.wiener
        z = ask(span.start, span.end)
        return z.reshape(-1, *[1] * (self._x.ndim - 1)) if self.noise_type == "scalar" else z

    # -- g

    def g_prod(self, u: Tensor, s: float, z: Tensor) -> Tensor:
        level = self.level(u, s)
        if self.noise_type != "general":
            product: Tensor = level * z
            return product
        return (level * z.reshape(len(z), *[1] * (u.ndim - 1), -1)).sum(-1)

    def level(self, u: Tensor, s: float) -> Tensor | float:
        """g at (u, s), checked: a number or a tensor that fits u; of general noise (*u.shape, m), or without the B."""
        with unchanged(u, "g at t = {:g}", s):
            level = self.problem.g(s) if self.additive else self.problem.g(s, u)
        if isinstance(level, Tensor) and level.device != u.device and level.ndim:
            raise ProblemError(f"g at t = {s:g} returned device {level.device}, expected {u.device}, the state's")
        if self.additive and isinstance(level, Tensor) and not level.is_complex():
            level = level.to(u.dtype)  # as a number would be
        if self.noise_type == "scalar" and isinstance(level, Tensor) and level.shape == (*u.shape, 1):
            level = level.squeeze(-1)
        if self.noise_type == "general":
            self._check_general(level, u, s)
        elif self.additive:
            self._check_additive(level, u, s)
        elif isinstance(level, Tensor) and level.shape != u.shape:
            got = f"returned shape {tuple(level.shape)}"
            raise ProblemError(f"g at t = {s:g} {got}, expected {tuple(u.shape)}{_hint(u)}")
        else:
            check_like(level, u, "g at t = {:g}", s)
        if self._ambiguous:
            self._check_reading(level, u, s)
        return level

    def _of_state(self, u: Tensor, s: float) -> Tensor:
        level = self.level(u, s)
        assert isinstance(level, Tensor)  # a number is of g(t) alone
        return level

    def _check_additive(self, level: object, u: Tensor, s: float) -> None:
        try:
            if not isinstance(level, Tensor) and finite(level) is None:
                raise TypeError
            if torch.broadcast_shapes(torch.as_tensor(level).shape, u.shape) != u.shape:
                raise RuntimeError
        except (TypeError, RuntimeError) as error:
            got = f"shape {tuple(level.shape)}" if isinstance(level, Tensor) else repr(level)
            raise ProblemError(
                f"g at t = {s:g} returned {got}, expected a number, or a tensor that fits {tuple(u.shape)}{_hint(u)}"
            ) from error

    def _check_general(self, level: object, u: Tensor, s: float) -> None:
        shapes = (tuple(u.shape), *([tuple(u.shape[1:])] if self.additive else []))
        if isinstance(level, Tensor) and level.ndim and tuple(level.shape[:-1]) in shapes:
            if level.dtype == u.dtype or self.additive:
                return
            raise ProblemError(f"g at t = {s:g} returned dtype {level.dtype}, expected {u.dtype}, the state's")
        expected = " or ".join(map(_with_m, shapes))
        got = f"shape {tuple(level.shape)}" if isinstance(level, Tensor) else type(level).__name__
        raise ProblemError(
            f"g at t = {s:g} returned {got}; general noise takes {expected}, m being the Brownian motions of a row"
        )

    def _check_reading(self, level: object, u: Tensor, s: float) -> None:
        """Raise ProblemError where a square g may be a matrix for all rows: unless of one row it is one row."""
        if not isinstance(level, Tensor) or level.shape != u.shape:
            self._ambiguous = False
            return
        if not self.additive:
            try:
                with torch.no_grad():
                    row = self.problem.g(s, u[:1].detach())
            except Exception:  # it holds to the shape of its batch, so that it does not tell
                row = None
            if isinstance(row, Tensor) and row.shape == u[:1].shape:
                self._ambiguous = False
                return
        shape = tuple(u.shape)
        raise ProblemError(
            f"g at t = {s:g} returned shape {shape} for x of shape {shape}: is it a level for each component of each "
            f"row, or a matrix for {shape[-1]} Brownian motions? Say noise='diagonal', or noise='general' with g of "
            f"shape {_with_m(shape)}"
        )

    # -- Milstein's correction

    def gdg_prod(self, u: Tensor, s: float) -> Tensor:
        if self.additive:
            return torch.zeros_like(u)
        if self.noise_type == "general":
            raise SolverError(_READS.format("noise that is diagonal or scalar", "general noise is neither"))
        level = self._of_state(u, s)
        along = torch.ones_like(u) if self.noise_type == "diagonal" else level
        slope = self._slope(u, s, along)
        place = self._places.setdefault(s, len(self._places) + 1)
        if place in (1, 2, 4) or place % 8 == 0:  # a step that is taken again for its gradient does the same again
            with torch.no_grad():
                self._check_slope(u, s, slope)
        return level * slope if self.noise_type == "diagonal" else slope

    def _slope(self, u: Tensor, s: float, along: Tensor) -> Tensor:
        """The derivative of g along a direction. Raises SolverError where g can't be followed."""
        try:
            found: Tensor = torch.func.jvp(lambda x: self.level(x, s), (u,), (along,))[1]
        except (RuntimeError, NotImplementedError) as error:
            self.level(u, s)  # its own error, where it has one
            raise SolverError(_NO_SLOPE.format(str(error).partition("\n")[0])) from error
        return found

    def _check_slope(self, u: Tensor, s: float, slope: Tensor) -> None:
        """Raise SolverError where g reads what the correction leaves out: one product with the Jacobian tells."""
        rows = self.noise_type == "scalar"
        places = (len(u), *[1] * (u.ndim - 1)) if rows else tuple(u.shape)
        factors = 1 + torch.tanh(normals(0, (0,), 0, places, u.dtype, u.device)[0]) / 2
        if not slope.any():  # a state where it happens to be 0, or a function that does not tell
            off = factors * 1e-2 * (1 + u.abs())
            slope = self._slope(u + off, s, torch.ones_like(u))
            if not slope.any() and not torch.equal(*(self._of_state(u + k * off, s) for k in (1, 2))):
                raise SolverError(_NO_SLOPE.format("it has no derivative"))
            u, along = u + off, torch.ones_like(u)
        else:
            along = self._of_state(u, s) if rows else torch.ones_like(u)
        mixed, alone = self._slope(u, s, factors * along), factors * slope
        error, size = (mixed - alone).abs().amax(), torch.maximum(mixed.abs().amax(), alone.abs().amax())
        if u.numel() and bool(error > _OFF * size):
            what = ("scalar noise", "a row of this g(t, x) reads other rows") if rows else (
                "diagonal noise", "a component of this g(t, x) reads other components of x")  # fmt: skip
            raise SolverError(_READS.format(*what))


def _hint(u: Tensor) -> str:
    return f"; where a row has other Brownian motions, noise='general' takes a g of shape {_with_m(u.shape)}"


def _with_m(shape: Sequence[int]) -> str:
    return f"({', '.join(map(str, shape))}, m)"
