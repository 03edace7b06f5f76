"""The one door from a step to the outside: what it may ask of the problem, and views of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .deprecated import former_field_member
from .errors import SolverError

if TYPE_CHECKING:
    from .form import Form
    from .solver import Span

Vector = Any
"""A tensor, or anything else that can be added and multiplied by a float."""

NO_NOISE = "this problem has no noise; use a solver that is not stochastic"


Rule = Callable[[Tensor, Tensor | None], Tensor]
"""(inner products (B, m, m) of m vectors, the share (B,) of the step before or None) -> the share (B,), 0 to 1."""


class Noise(Enum):
    """Which standard normal of an interval a step asks for.

    INCREMENT: of the exact noise that the form adds over it, of deviation form.noise_std. WIENER: z of the form's own
    dW = sqrt(|h|) z. LEVY_AREA: z2 beside it, int (W(s) - W(start)) ds being |h|^{3/2} (z/2 + z2/(2 sqrt 3)). RENOISE:
    of the noise that takes a state back up, of deviation form.renoise_std.
    """

    INCREMENT = "increment"
    WIENER = "wiener"
    LEVY_AREA = "levy_area"
    RENOISE = "renoise"


class Evaluation:
    """What one evaluation tells, for the price of one network call.

    value: N of the form. denoised: D, in VE coordinates; None where there is no noise level. variance: where the log
    variance lies (see `Output`), None where the network says nothing of it. unconditional: N without guidance, None
    where there is none; it is made when it is asked for.
    """

    __slots__ = ("_unconditional", "denoised", "value", "variance")
    unmade = False  # whether its parts are yet to be made, of what nobody has been shown

    def __init__(
        self,
        value: Vector,
        denoised: Vector | None = None,
        variance: Vector | None = None,
        unconditional: Callable[[], Vector] | Vector | None = None,
    ) -> None:
        self.value, self.denoised, self.variance, self._unconditional = value, denoised, variance, unconditional

    @property
    def unconditional(self) -> Vector | None:
        found = self._unconditional
        return found() if callable(found) else found


class Field(ABC):
    """u' = linear u + f(u, s), plus noise, as a step sees it: ten members, all mirrored by the tape.

    form: the variable s and the state u in float64, see `diffsolve.form`. eta: the share of the reverse SDE's noise.
    additive: whether the noise does not depend on the state. guided: whether an evaluation has an unconditional part.
    What is not abstract is an ODE's.
    """

    form: Form
    eta: float = 0.0
    additive: bool = True
    guided: bool = False

    def __call__(self, u: Vector, s: float, /) -> Vector:
        """N of the form at state `u` and variable `s`. Each call is one network evaluation."""
        return self.evaluate(u, s).value

    @abstractmethod
    def evaluate(self, u: Vector, s: float, /) -> Evaluation:
        """The same call with all that it tells."""

    def normal(self, span: Span, kind: Noise = Noise.INCREMENT) -> Vector:
        """The standard normal of `kind` that belongs to the interval."""
        raise SolverError(NO_NOISE)

    def g_prod(self, u: Vector, s: float, z: Vector) -> Vector:
        """g(s, u) z, elementwise: the diffusion term times noise z. The state is read where noise is not additive."""
        return combine((self.form.diffusion(s), z))

    def gdg_prod(self, u: Vector, s: float) -> Vector:
        """g dg/du at (s, u), elementwise: of Milstein's correction; 0 where the noise is additive."""
        return u * 0.0

    def blend(
        self, near: Vector, far: Vector, evidence: Sequence[Vector], rule: Rule, before: Vector | None = None
    ) -> tuple[Vector, Vector]:
        """(near + w (far - near), w): the one thing that a step may let its vectors' values decide, see `blend`."""
        return blend(near, far, evidence, rule, before)

    def __getattr__(self, name: str) -> Any:
        return former_field_member(self, name)


class FieldView(Field):
    """A field with something changed: what a subclass does not say is the field's own. For solvers around solvers."""

    def __init__(self, f: Field) -> None:
        self._f = f
        self.form, self.eta, self.additive, self.guided = f.form, f.eta, f.additive, f.guided

    def __call__(self, u: Vector, s: float, /) -> Vector:
        return self._f(u, s)

    def evaluate(self, u: Vector, s: float, /) -> Evaluation:
        return self._f.evaluate(u, s)

    def normal(self, span: Span, kind: Noise = Noise.INCREMENT) -> Vector:
        return self._f.normal(span, kind)

    def g_prod(self, u: Vector, s: float, z: Vector) -> Vector:
        return self._f.g_prod(u, s, z)

    def gdg_prod(self, u: Vector, s: float) -> Vector:
        return self._f.gdg_prod(u, s)

    def blend(
        self, near: Vector, far: Vector, evidence: Sequence[Vector], rule: Rule, before: Vector | None = None
    ) -> tuple[Vector, Vector]:
        return self._f.blend(near, far, evidence, rule, before)


class EvaluationCache(FieldView):
    """A field that does not repeat an evaluation at a state that it has seen.

    A state is known by being the same object. known: (state, s, evaluation) of before.
    """

    def __init__(self, f: Field, known: tuple[tuple[Vector, float, Evaluation], ...] = ()) -> None:
        super().__init__(f)
        self.known = known

    def __call__(self, u: Vector, s: float, /) -> Vector:
        return self.evaluate(u, s).value

    def evaluate(self, u: Vector, s: float, /) -> Evaluation:
        for state, at, found in self.known:
            if state is u and at == s:
                return found
        found = self._f.evaluate(u, s)
        self.known = (*self.known, (u, s, found))
        return found

    def of_state(self, u: Vector) -> tuple[tuple[Vector, float, Evaluation], ...]:
        """What is known of one state: all that is worth keeping once a step has been taken to it."""
        return tuple(entry for entry in self.known if entry[0] is u)


def same(products: Tensor, before: Tensor | None) -> Tensor:
    """The rule that has the share of before again."""
    assert before is not None
    return before


def combine(*terms: tuple[Any, Vector]) -> Vector:
    """The sum of coefficient x vector over the terms; for tensors one pass over memory a term, none for a leading 1."""
    (first, total), *rest = terms
    if not isinstance(total, Tensor):
        return sum((vector * c for c, vector in rest), total * first)
    for c, _ in terms:
        if not isinstance(c, float):
            return sum((vector * c for c, vector in rest), total * first)
    if first == 1 and rest:
        (c, vector), *rest = rest
        total = total.add(vector, alpha=c)
    else:
        total = total * first
    for c, vector in rest:
        total.add_(vector, alpha=c)
    return total


def blend(
    near: Vector, far: Vector, evidence: Sequence[Vector], rule: Rule, before: Vector | None = None
) -> tuple[Vector, Vector]:
    """(near + w (far - near), w) with a share w of each sample, (B, 1, ..., 1), that its own vectors decide.

    w = rule(products, before): products (B, m, m) are inner products of the `evidence` of a sample, before (B,)
    is the w of the step before, where there is one. Of numbers that are no tensors w is 1, as a rule must have it
    of every smooth problem on short steps.
    """
    if not isinstance(near, Tensor):
        return far, far * 0.0
    samples = near.shape[0] if near.ndim else 1
    rows = torch.stack([v.reshape(samples, -1) for v in evidence], 1) if evidence else None
    products = near.new_zeros(samples, 0, 0) if rows is None else rows @ rows.mT
    share = rule(products, None if before is None else before.reshape(samples))
    share = share.to(near.dtype).reshape([samples] + [1] * (near.ndim - 1) if near.ndim else [])
    return torch.lerp(near, far, share), share
