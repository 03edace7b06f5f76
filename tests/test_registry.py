"""A solver is registered once and known everywhere; what a plugin does wrong stays its own affair."""

from __future__ import annotations

import math
import re
import warnings
from typing import Any

import pytest
import torch
from stubs import gap, gaussian, mixture

import diffsolve as ds
from diffsolve import register
from diffsolve.problems.guidance import Guidance, guided
from diffsolve.solvers import forms


def my_heun(name: str = "my_heun") -> type[ds.Solver]:
    @ds.register_solver(name, order=2, form="sigma", source="a notebook", stages=2, aliases={"lab": "Our Heun"})
    class MyHeun(ds.Solver):
        def step(self, f: Any, y: Any, span: ds.Span, past: Any) -> ds.Step:
            k1 = f(y, span.start)
            k2 = f(y + span.h * k1, span.end)
            return ds.Step(y + span.h / 2 * (k1 + k2), error=span.h / 2 * (k2 - k1), past=past)

    return MyHeun


def test_a_solver_of_a_few_lines_works_wherever_a_name_does() -> None:
    cls = my_heun()
    problem = mixture()
    ours, theirs = (ds.solve(problem, s, n=6, batch=2) for s in ("my_heun", "heun"))
    assert gap(ours.x, theirs.x) < 1e-13
    assert (ours.solver, ours.nfe) == ("my_heun", 11)
    tape = ds.solve(problem, "my_heun", n=6, batch=2, execution="tape")
    assert gap(tape.x, ours.x) < 1e-12
    assert ds.solve(problem, "my_heun", nfe=11).n == 6
    assert ds.solve(problem, cls(), n=6, batch=2).x.equal(ours.x)
    for other in ("My-Heun", " my heun", "our heun", "Our Heun", "my_heun()"):
        assert ds.get_solver(other).name == "my_heun"
    angle = ds.solve(problem, "my_heun(form=v)", n=400, sigma_min=0.1, final="none")
    assert gap(angle.x, ds.solve(problem, "my_heun", n=400, sigma_min=0.1, final="none").x) < 1e-3
    assert angle.solver == "my_heun(form=v)"
    entry = next(e for e in ds.list_solvers() if e.name == "my_heun")
    assert (entry.order, entry.order_as_started, entry.stages) == (2, 2, 2)
    assert (entry.form, entry.stochastic) == ("sigma", False)
    ode = ds.ODEProblem(lambda t, u: -t * u * u, (0.0, 2.0), torch.ones(1, dtype=torch.float64))
    assert float(ds.solve(ode, "my_heun", n=200).x) == pytest.approx(1 / 3, rel=1e-4)
    with pytest.raises(ds.SolverError, match="unknown solver 'my_hoin'; did you mean 'my_heun'"):
        ds.get_solver("my_hoin")


def test_a_solver_that_knows_no_linear_part_is_not_given_one() -> None:
    """Its step integrates f alone: with the linear part of these forms left out, the answer would be another one."""
    my_heun()
    for form in ("noise", "data"):
        with pytest.raises(ds.SolverError, match=r"my_heun.* leaves out the linear part of u' = -?1 u \+ f\(u, s\);"):
            ds.solve(mixture(), "my_heun", n=3, form=form)
    semilinear = ds.SemilinearODE(-2.0, lambda t, u: -t * u * u, (0.0, 2.0), torch.ones(1))
    with pytest.raises(ds.SolverError, match=r"linear part of u' = -2 u \+ f"):
        ds.solve(semilinear, "my_heun", n=3)


@pytest.mark.parametrize("shape", [(), (2,), (3, 4, 4)])
def test_nor_is_one_that_can_not_be_traced(shape: tuple[int, ...]) -> None:
    class Own(ds.Solver):
        traceable, whole = False, False

        def step(self, f: ds.Field, y: Any, span: ds.Span, past: ds.Past) -> ds.Step:
            k = f(y, span.start) + (f.form.linear * y if self.whole else 0)
            return ds.Step(y + span.h * k * (1 + 0 * k.norm() / y.norm()))

    problem, whole = gaussian(shape), type("Whole", (Own,), {"whole": True})
    for form in ("noise", "data"):
        with pytest.raises(ds.SolverError, match=r"Own.* leaves out the linear part of u' = -?1 u \+ f\(u, s\);"):
            ds.solve(problem, Own(), n=3, form=form)
        x = problem.prior(2)
        run = ds.solve(problem, whole(), "lambda", 200, x=x, form=form, final="none")
        assert gap(run.x, problem.exact(x, *problem.span)) < 0.1
    for form in ("sigma", "v", "flow"):
        assert torch.equal(*(ds.solve(problem, each(), n=3, form=form).x for each in (Own, whole)))


def test_a_cell_that_runs_twice_replaces_and_another_module_is_refused() -> None:
    first, second = my_heun(), my_heun()
    assert type(ds.get_solver("my_heun")) is second is not first
    with pytest.raises(ds.SolverError, match=r"'heun' is taken by diffsolve\.solvers\.catalogue\.classical; choose"):
        my_heun("heun")
    with pytest.raises(ds.SolverError, match=r"a solver's name is lower-case letters, .* got 'My Heun'"):
        my_heun("My Heun")
    with pytest.raises(ds.SolverError, match="unknown form 'sigmma' for x; did you mean 'sigma'"):
        ds.register_solver("x", order=1, form="sigmma", source="")
    assert ds.get_solver("heun").order == 2


def test_a_name_wins_over_an_alias() -> None:
    my_heun("euler_a")  # A1111's name for euler_ancestral
    assert ds.get_solver("euler_a").name == "euler_a"
    assert ds.get_solver("Euler a").name == "euler_ancestral"


@pytest.mark.parametrize("peer", ["sample_heun", "HeunDiscreteScheduler", "Heun", "HEUN"])
def test_the_peers_names_are_aliases(peer: str) -> None:
    assert ds.get_solver(peer).name == "heun"


def test_every_alias_leads_back_to_its_row() -> None:
    for entry in ds.list_solvers():
        for names in entry.aliases.values():
            for name in names.split(", "):
                assert ds.find_solver(name).name == entry.name
    for schedule in ds.list_schedules():
        for name in schedule.aliases.values():
            made, canonical = ds.get_schedule(name)
            assert canonical in (schedule.name, name)
            assert type(made) is type(ds.get_schedule(schedule.name)[0])


def test_what_a_row_says_is_what_its_solver_is() -> None:
    """test_contract.py measures the solver: a claim that the method overrules would be measured by nobody."""
    for entry in ds.list_solvers():
        made, silent = entry.build(), ("stages",) if entry.claims["stages"] is None else ()
        for name, said in entry.claims.items():
            assert name in silent or getattr(made, name) == said, f"{entry.name} says {name} = {said}"


def test_options_say_what_was_asked_for() -> None:
    solver = ds.get_solver("lms(order=3)")
    assert (solver.name, solver.order, solver.history) == ("lms(order=3)", 3, 2)
    assert ds.get_solver("heun(form=noise)").form == "noise"
    assert ds.get_schedule("karras(rho=5)")[0] == ds.Karras(rho=5)
    assert ds.solve(mixture(), "lms(order=3)", "karras(rho=5)", n=2).schedule == "karras(rho=5)"
    multistep, data = ({e.name for e in ds.list_solvers(tags)} for tags in ("multistep", "one-step, data"))
    assert {"dpmpp_2m", "lms", "plms"} == {"dpmpp_1", "dpmpp_2m", "euler", "lms", "plms"} & multistep
    assert {"dpmpp_1"} == {"dpmpp_1", "dpmpp_2m", "euler", "lms", "plms"} & data
    assert ds.list_solvers(("no such tag",)) == []


# -- entry points ------------------------------------------------------------------------------------------------------


def point(name: str, found: Any, group: str = "solvers") -> register.Point:
    """An entry point: loading it gives `found`, or raises it."""

    def load() -> Any:
        if isinstance(found, BaseException):
            raise found
        return found

    return register.Point(name, f"plugin_of.{name}", f"diffsolve.{group}", None, load)


def install(points: list[register.Point], monkeypatch: Any) -> None:
    """These entry points as those of installed packages, beside the built-in things."""
    monkeypatch.setattr(register, "scan", lambda: points)
    monkeypatch.setitem(register._stage, "plugins", "")


class Plain(ds.Solver):
    order, stages, source = 1, 1, "a plugin"

    def step(self, f: Any, y: Any, span: ds.Span, past: Any) -> ds.Step:
        return ds.Step(y + span.h * f(y, span.start))


class NoOrder(ds.Solver):
    step = Plain.step


REFUSED = {
    "broken": (ImportError("no module named cupy"), r"ImportError\('no module named cupy'\)"),
    "leaving": (SystemExit(3), r"SystemExit\(3\)"),
    "cancelled": (GeneratorExit(), "GeneratorExit"),
    "crashing": (ZeroDivisionError("at import"), "ZeroDivisionError"),
    "heun": (Plain, "'heun' is taken by diffsolve.solvers.catalogue.classical; choose another"),
    "dpmpp-2m": (Plain, "'dpmpp-2m' is taken by diffsolve.solvers.catalogue"),
    "No Name": (Plain, "lower-case"),
    "not_a_solver": (dict, "it names a dict, expected a Solver or what makes one"),
    "a_number": (5, "it names a int, expected a Solver"),
    "no_order": (NoOrder, "NoOrder says no order: let it have `order = 2`, or None if it has none"),
}


def test_a_broken_plugin_warns_and_takes_nothing_with_it(monkeypatch: Any) -> None:
    def whole(factory: Any = Plain) -> Any:
        return lambda: factory()

    good = {"good": whole(), "a_module": pytest, "made": whole(), "an_object": Plain(), "euler_a": whole()}
    install([point(n, found) for n, (found, _) in REFUSED.items()] + [point(*g) for g in good.items()], monkeypatch)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        names = {e.name for e in ds.list_solvers()}
        ds.list_solvers()
    *said, peers = [str(w.message) for w in caught]
    for name, (_, reason), text in zip(REFUSED, REFUSED.values(), said, strict=True):
        assert re.search(f"the solver plugin 'plugin_of.{name}' could not be loaded: .*{reason}", text), text
    assert peers == "solver 'euler_a' of plugin_of.euler_a: where peers say so they mean 'euler_ancestral'"
    assert names == {e.name for e in ds.list_solvers()} >= {"good", "made", "an_object", "euler", "heun"}
    assert ds.get_solver("dpmpp-2m").name == "dpmpp_2m"
    euler = ds.solve(mixture(), "euler", n=3).x
    for name in ("good", "made", "an_object"):
        assert gap(ds.solve(mixture(), name, n=3).x, euler) < 1e-14


def test_a_keyboard_interrupt_is_the_users(monkeypatch: Any) -> None:
    """Ctrl-C while a plugin is imported stops; the next call loads what is left."""
    install(points := [point("good", Plain), point("stuck", KeyboardInterrupt())], monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        ds.list_solvers()
    points[1] = point("stuck", lambda: Plain())
    assert {"stuck", "good"} <= {e.name for e in ds.list_solvers()}


def test_a_broken_problem_is_named(monkeypatch: Any) -> None:
    install([point("far", ImportError("no jax"), "problems"), point("near", 5, "problems")], monkeypatch)
    assert ds.list_problems() == ["far", "near"]
    assert ds.get_problem("near") == 5
    with pytest.raises(ds.ProblemError, match=r"problem plugin 'plugin_of.far' could not be loaded: ImportError"):
        ds.get_problem("far")


# -- forms, controllers, guidance, processes ---------------------------------------------------------------------------


class LogSigma(forms.SigmaForm):
    """u = y, s = log sigma: the sigma form in another variable."""

    name = "log_sigma"
    finite_at_zero = False

    def variable(self, sigma: float) -> float:
        return math.log(sigma)

    def sigma(self, s: float) -> float:
        return math.exp(s)

    def weights(self, sigma: float) -> tuple[float, float]:
        return 1.0, -1.0


class Halving(ds.Controller):
    def judge(self, errors: Any, order: float) -> tuple[bool, float]:
        return (True, 1.0) if errors[0] <= 1 else (False, 0.5)


class Stronger(Guidance):
    def __init__(self, denoiser: Any, scale: float, power: float = 1.0) -> None:
        super().__init__(denoiser)
        self.scale, self.power = scale, power

    def mix(self, conditional: torch.Tensor, unconditional: torch.Tensor, sigma: Any) -> torch.Tensor:
        return unconditional + self.scale**self.power * (conditional - unconditional)


def test_a_plugins_form_controller_guidance_and_process_go_by_name(monkeypatch: Any) -> None:
    found = {"forms": LogSigma, "controllers": Halving, "guidance": Stronger, "processes": lambda: ds.EDM()}
    names = {"forms": "log_sigma", "controllers": "halving", "guidance": "stronger", "processes": "own"}
    install([point(names[group], thing, group) for group, thing in found.items()], monkeypatch)
    exact = ds.solve(mixture(), "rk4", n=400, sigma_min=0.1, final="none").x
    form = ds.solve(mixture(), "heun(form=log_sigma)", n=200, sigma_min=0.1, final="none")
    assert gap(form.x, exact) < 1e-3
    kept = ds.solve(mixture(), "bs23", controller="halving(rtol=1e-5, h_init=0.5)", sigma_min=0.1, final="none")
    assert gap(kept.x, exact) < 1e-3
    assert gap(kept.x, ds.solve(mixture(), "bs23", controller="pid(rtol=1e-5)", sigma_min=0.1, final="none").x) < 1e-3
    labelled = ds.problems.GaussianMixture([[1.0], [-1.0]], 0.5, labels=[0, 1], process="own")
    sides = labelled.guided(0, 1.0).denoiser.denoiser
    y = torch.tensor([[0.3]])
    assert Stronger(sides, 3.0).needs_both(1.0), "unless a guidance says otherwise"
    assert torch.equal(guided(sides, "stronger(scale=3, power=2)")(y, 1.0).denoised, guided(sides, 9)(y, 1.0).denoised)
    with pytest.raises(ds.ProblemError, match="unknown guidance 'stronge'; did you mean 'stronger'"):
        guided(sides, "stronge(scale=3)")
    with pytest.raises(ds.ProblemError, match="guidance 'stronger' has no option 'pow'; did you mean 'power'"):
        guided(sides, "stronger(scale=3, pow=2)")


WRONG = {"forms": (5, "a int, expected a diffsolve.form.Form"), "controllers": (dict, "a dict, expected a Controller"),
         "guidance": (5, "a int, expected a Guidance"), "processes": (ds.EDM, "the process name 'edm' is taken"),
         "schedules": (Halving, "a Halving, expected a Schedule")}  # fmt: skip


@pytest.mark.parametrize("group", WRONG)
def test_a_wrong_thing_in_any_register_is_refused(group: str, monkeypatch: Any) -> None:
    found, message = WRONG[group]
    install([point("edm", found, group)], monkeypatch)
    with pytest.warns(UserWarning, match=f"plugin 'plugin_of.edm' could not be loaded: .*{message}"):
        register.load()
    assert ds.solve(mixture(), "heun", n=2).nfe == 3


# -- what a step may not do --------------------------------------------------------------------------------------------


def stepping(body: Any, **traits: Any) -> ds.Solver:
    made = type("Odd", (ds.Solver,), {"step": lambda self, f, y, span, past: body(f, y, span), "order": 1, **traits})
    return made()


NOT_LINEAR = {
    "product": lambda f, y, span: ds.Step(y * f(y, span.start)),
    "power": lambda f, y, span: ds.Step(y**2),
    "shift": lambda f, y, span: ds.Step(y + 1.0),
    "difference": lambda f, y, span: ds.Step(y - 1.0),
    "quotient": lambda f, y, span: ds.Step(1.0 / y),
    "method": lambda f, y, span: ds.Step(y.clamp(-1, 1)),
    "function": lambda f, y, span: ds.Step(torch.tanh(y)),
    "size": lambda f, y, span: ds.Step(y * float(abs(y).max())),
    "tensor": lambda f, y, span: ds.Step(y * torch.tensor(2.0)),
}
BRANCHES = {
    "truth": lambda f, y, span: ds.Step(y * 2.0 if y else y),
    "equal": lambda f, y, span: ds.Step(y * 2.0 if y == 0 else y),
    "differs": lambda f, y, span: ds.Step(y * 2.0 if y != 0 else y),
    "member": lambda f, y, span: ds.Step(y * 2.0 if y in (1.0, 2.0) else y),
}


@pytest.mark.parametrize("case", NOT_LINEAR)
def test_what_is_not_linear_is_not_traced(case: str) -> None:
    solver = stepping(NOT_LINEAR[case])
    with pytest.raises(ds.SolverError, match=r"float multiples of vectors\. Declare traceable = False .* eagerly"):
        ds.solve(gaussian(), solver, n=2, execution="tape")


@pytest.mark.parametrize("case", BRANCHES)
def test_what_branches_on_a_value_is_not_traced(case: str) -> None:
    with pytest.raises(ds.SolverError, match=r"may not branch on a vector's value: .* float multiples of vectors"):
        ds.solve(gaussian(), stepping(BRANCHES[case]), n=2, execution="tape")


def test_a_step_that_is_not_linear_runs_eagerly() -> None:
    solver = stepping(lambda f, y, span: ds.Step((y + span.h * f(y, span.start)).clamp(-3, 3)), traceable=False)
    solution = ds.solve(gaussian(), solver, n=8)
    assert solution.x.abs().max() <= 3
    assert ds.solve(gaussian(), solver, nfe=8).nfe == 8
    with pytest.raises(ds.SolverError, match="is not traceable; run it with execution='eager'"):
        ds.solve(gaussian(), solver, n=8, execution="tape")


@pytest.mark.parametrize("execution", ["eager", "tape"])
@pytest.mark.parametrize(
    ("body", "message"),
    [
        (lambda f, y, span: y, r"step returned \w+, expected diffsolve.Step\(y, error, past\)"),
        (lambda f, y, span: None, r"step returned NoneType, expected diffsolve.Step\(y, error, past\)"),
        (lambda f, y, span: ds.Step(1.0), r"step returned float, expected a tensor|its y is a float"),
        (lambda f, y, span: ds.Step(f(span.start, y)), "the state first, then the form's variable; got float first"),
        (lambda f, y, span: ds.Step(y, past=[y]), r"handed back a past that is not \(\(node, vector\), \.\.\.\)"),
    ],
)
def test_what_a_step_may_not_hand_back(body: Any, message: str, execution: Any) -> None:
    with pytest.raises((ds.SolverError, ds.ProblemError), match=message):
        ds.solve(gaussian(), stepping(body), n=2, execution=execution)


@pytest.mark.parametrize("controlled", [{}, {"rtol": 1e-2}])
def test_a_step_may_not_change_the_state_in_place(controlled: dict[str, float]) -> None:
    def body(f: Any, y: Any, span: ds.Span) -> ds.Step:
        y += span.h * f(y, span.start)
        return ds.Step(y, error=y * 1e-6)

    with pytest.raises(ds.SolverError, match=r"changes the state it is given; write y = y \+ \.\.\., not y \+= "):
        ds.solve(gaussian(), stepping(body, traceable=False), n=3, **controlled)
    with torch.inference_mode():
        assert ds.solve(gaussian(), "heun", n=3).x.isfinite().all()


@pytest.mark.parametrize("change", [lambda y: y.float(), lambda y: y[:, :1], lambda y: y.unsqueeze(0)])
def test_a_step_keeps_the_states_shape_and_dtype(change: Any) -> None:
    solver = stepping(lambda f, y, span: ds.Step(change(y)), traceable=False)
    with pytest.raises(ds.ProblemError, match=r"step 1 of 3 .*Odd.*\.step returned (shape|dtype) .* the state's"):
        ds.solve(gaussian(), solver, n=3)


@pytest.mark.parametrize(("name", "solver"), [("DPM++ 2M Karras", "dpmpp_2m"), ("lms_karras", "lms")])
def test_a_solver_and_a_schedule_in_one_name_are_told_apart(name: str, solver: str) -> None:
    with pytest.raises(ds.SolverError, match=f"take solver='{solver}', schedule='karras'"):
        ds.get_solver(name)


def test_a_row_claims_what_its_solver_is() -> None:
    """What the solver says of itself goes before the row, so another claim would stand there unseen."""
    names = ("order", "order_as_started", "strong", "weak", "stochastic")
    rows = {row.name: (row.claims, {name: getattr(row, name) for name in names}) for row in ds.list_solvers()}
    assert {name: is_ for name, (says, is_) in rows.items() if is_ != {key: says[key] for key in names}} == {}
