"""Names of the first kernel: each still works in this version, and warns of the new one."""

from __future__ import annotations

from types import FunctionType
from typing import Any

import pytest
import torch
from stubs import mixture

import diffsolve as ds
from diffsolve.deprecated import MOVED
from diffsolve.form import StochasticForm, as_form
from diffsolve.process import as_process


@pytest.mark.parametrize("name", sorted(MOVED))
def test_a_moved_name_is_found(name: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"diffsolve.{name} is now"):
        assert getattr(ds, name) is not None
    assert name not in ds.__all__


class Old(ds.Solver):
    """A step as it was written for the first kernel, in a form with a linear part and noise."""

    order, stochastic = 1, True

    def step(self, f: Any, y: Any, span: ds.Span, past: ds.Past) -> ds.Step:
        scale = f.rescale(span.start, span.start) * f.scale(span.start) / f.scale(span.start)
        drift = f(y, span.start) + f.linear * y
        return ds.Step(y + span.h * drift * scale + f.noise(span) * f.draw(span), past=past)


class New(Old):
    def step(self, f: Any, y: Any, span: ds.Span, past: ds.Past) -> ds.Step:
        drift = f(y, span.start) + f.form.linear * y
        noise = f.form.noise_std(span.start, span.end) * f.normal(span)
        return ds.Step(y + span.h * drift + noise, past=past)


def test_a_step_of_the_first_kernel_still_works() -> None:
    old, new = Old(), New()
    old.form = new.form = "sde"
    with pytest.warns(DeprecationWarning, match=r"f\.\w+ is now f\.(form|normal)"):
        x = ds.solve(mixture(), old, n=20, seed=1).x
    assert torch.allclose(x, ds.solve(mixture(), new, n=20, seed=1).x, rtol=1e-12)


@pytest.mark.parametrize(
    "name", ["sigma", "time", "alpha", "eps_slope", "state_slope", "diffusion", "scale", "at_time", "variable"]
)
def test_what_a_field_was_asked_for(name: str) -> None:
    problem = mixture()
    field = problem.field(ds.get_solver("dpmpp_2m"), problem.prior(1), (0,), 0, None)
    with pytest.warns(DeprecationWarning, match=f"f.{name} is now f.form"):
        assert isinstance(getattr(field, name)(0.3), float)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = field.nonsense


def test_guidance_taken_apart_by_its_former_name() -> None:
    problem = ds.problems.GaussianMixture([[1.0], [-1.0]], 0.5, labels=[0, 1]).guided(1, 3.0)
    u = problem.prior(2)
    field = problem.field(ds.get_solver("euler"), u, (0, 1), 0, None)
    with pytest.warns(DeprecationWarning, match="f.both is now"):
        guided, plain = field.both(u, 2.0)
    found = field.evaluate(u, 2.0)
    assert torch.equal(guided, found.value)
    assert torch.equal(plain, found.unconditional)


def test_claims_by_their_former_names() -> None:
    with pytest.warns(DeprecationWarning, match="started= is now order_as_started="):
        decorate = ds.register_solver("old_claims", order=3, started=2, source="this test")
    decorate(type("Unclaimed", (New,), {"order": None}))
    row = ds.find_solver("old_claims")
    assert (row.order, row.order_as_started) == (3, 2)
    with pytest.warns(DeprecationWarning, match="order_as_started"):
        assert row.build().started == 2
    with pytest.warns(DeprecationWarning, match="order=0 is now order=None"):
        ds.register_solver("old_zero", order=0, source="this test")
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        ds.register_solver("old_colour", order=1, source="this test", colour=2)


@pytest.mark.parametrize(
    "say",
    [
        lambda: New().started,
        lambda: setattr(New(), "started", 1),
        lambda: mixture().field(New(), mixture().prior(1), (0,), 0, None).sigma(0.3),
        lambda: ds.register_solver("old_warning", order=0, source="this test"),
        lambda: getattr(ds, min(MOVED)),
    ],
)
def test_a_warning_points_at_who_says_the_former_name(say: FunctionType) -> None:
    with pytest.warns(DeprecationWarning, match="is now") as told:
        say()
    assert [(warning.filename, warning.lineno) for warning in told] == [(__file__, say.__code__.co_firstlineno)]


def test_attributes_of_classes_by_their_former_names() -> None:
    with pytest.warns(DeprecationWarning, match="started is now order_as_started"):

        class Two(New):
            started = 1

    assert Two().order_as_started == 1
    with pytest.warns(DeprecationWarning, match="told is now c_noise"):

        class Own(ds.EDM):
            def told(self, sigma: Any) -> Any:
                return sigma * 7

    assert Own().c_noise(2.0) == 14.0


def test_the_variable_of_a_solve() -> None:
    with pytest.warns(DeprecationWarning, match="variable= is now form="):
        old = ds.solve(mixture(), "heun", n=4, variable="v")
    assert torch.equal(old.x, ds.solve(mixture(), "heun", n=4, form="v").x)


@pytest.mark.parametrize("name", ["sd", "edm", "flow", "ve"])
def test_what_a_process_tells_by_its_former_name(name: str) -> None:
    process = as_process(name)
    with pytest.warns(DeprecationWarning, match=r"\.told is now \.c_noise"):
        assert process.told(1.0) == process.c_noise(1.0)


def test_what_a_stochastic_form_was_asked_for() -> None:
    form = as_form("sde", as_process("sd"), 1.0, False)
    assert isinstance(form, StochasticForm)
    with pytest.warns(DeprecationWarning, match=r"\.(clock|noise) is now \.(variance_at|noise_std)"):
        assert (form.clock(0.3), form.noise(0.1, 0.3)) == (form.variance_at(0.3), form.noise_std(0.1, 0.3))
