"""The guarded default: a sample by itself, at its full order where the problem is smooth, steady where it is stiff."""

from __future__ import annotations

import math
from functools import lru_cache
from types import SimpleNamespace

import pytest
import torch

import diffsolve as ds
from diffsolve.denoiser import Output
from diffsolve.field import blend
from diffsolve.problems import Fashion, StableDiffusion
from diffsolve.problems.fashion.features import load_features
from diffsolve.problems.guidance import Guided
from diffsolve.solvers.evidence import EarlyShare, GapShare, Share, _rise
from diffsolve.solvers.guarded import Guarded
from diffsolve.tape import record
from diffsolve.testing.world import Stub, advances, spans
from diffsolve.validation.problems import Case, guided, mixture
from diffsolve.validation.references import reference, row_errors, sampling_cases

GUIDED = "guarded_abm(guided=True)"
NARROW, WIDE = torch.logspace(-2, -0.5, 8).double(), torch.linspace(0.5, 1.5, 8).double()


def stiff(guidance: float, known: bool = False) -> ds.ProbabilityFlow:
    """A narrow Gaussian guided away from a wide one: the Jacobian of D is about 1 - guidance below their widths.

    A small ripple makes it nonlinear, so that samples differ. known: whether a solver is told what guidance adds.
    """

    def sides(y: torch.Tensor, sigma: float) -> Output:
        narrow, wide = (y * (v**2 / (v**2 + sigma**2)) for v in (NARROW, WIDE))
        return Output(narrow + 1, wide + 0.05 * torch.sin(3 * y))

    both = Guided(sides, guidance)
    return ds.ProbabilityFlow(denoiser=both if known else lambda y, s: both(y, s), shape=(8,), dtype=torch.float64)


def errors(problem: ds.ProbabilityFlow, solver: str, n: int, x: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    got = ds.solve(problem, solver, n=n, x=x, final="none").x
    return (got - exact).norm(dim=1) / exact.norm(dim=1)


@lru_cache
def inside(name: str) -> ds.Solver:
    """The pair that is guarded: "free" without guidance, "held" with it, "whole" where what it adds is known."""
    return getattr(ds.get_solver("guarded_abm"), name).with_changes(form="noise")


def flow_of(guidance: float, known: bool) -> tuple[ds.ProbabilityFlow, torch.Tensor, torch.Tensor]:
    problem = stiff(guidance, known)
    x = problem.prior(16, 1)
    return problem, x, ds.solve(problem, "dpmpp_2m", n=300, x=x, final="none").x


def blind(case: Case) -> Case:
    """The same problem, of which a solver is not told what guidance adds."""
    both, of = case.flow.denoiser, case.flow
    flow = ds.ProbabilityFlow(denoiser=lambda y, s: both(y, s), process=of.process, shape=of.shape, dtype=torch.float64)
    return Case(case.name, flow, case.start, case.end, case.x)


@pytest.mark.parametrize("guidance", [4.0, 12.0])
@pytest.mark.parametrize("n", [15, 25])
@pytest.mark.parametrize("known", [False, True])
def test_it_bears_guidance(guidance: float, n: int, known: bool) -> None:
    """On a stiff problem that makes the unguarded rows explode it stays near the better of Euler and 2M."""
    problem, x, exact = flow_of(guidance, known)
    mine, euler, second = (errors(problem, s, n, x, exact).median().item() for s in (GUIDED, "euler", "dpmpp_2m"))
    assert mine < (3.0 if known else 2.5) * min(euler, second)
    if guidance > 5:
        wild = errors(problem, "damped_abm(order=5, reach=2, trust=0.67)", n, x, exact).median().item()
        assert mine < 0.5 * wild


@pytest.mark.parametrize("guidance", [4.0, 6.0])
def test_an_alarm_takes_the_high_order_before_the_low(guidance: float) -> None:
    """Where steps are short but too long for order 5, a method of order 2 is no nearer; it is to a fall to order 1."""
    problem, x, exact = flow_of(guidance, True)
    mine, second = (errors(problem, s, 25, x, exact).median().item() for s in ("guarded_abm", "unipc(order=1)"))
    assert mine < 0.84 * second


@pytest.mark.parametrize(("share", "wanted", "aim"), [(0.0, 1.0, 2.0), (0.5, 3.25, 3.5), (1.0, 8.0, 8.0)])
def test_the_curve_by_hand(share: float, wanted: float, aim: float) -> None:
    low, middle, high = (torch.full((2, 3), v) for v in (1.0, 2.0, 8.0))
    got = Guarded.curve(SimpleNamespace(blend=blend), low, middle, high, torch.full((2, 1), share))  # type: ignore[arg-type]
    assert torch.equal(torch.stack(got), torch.tensor([wanted, aim])[:, None, None].expand(2, 2, 3))


@pytest.mark.parametrize("execution", ["eager", "tape", "fused"])
@pytest.mark.parametrize("known", [False, True])
def test_a_sample_is_its_own_alone_and_in_company(execution: str, known: bool) -> None:
    problem = stiff(9.0, known)
    together = ds.solve(problem, GUIDED, n=14, batch=6, execution=execution).x  # type: ignore[arg-type]
    for i in range(6):
        alone = ds.solve(problem, GUIDED, n=14, batch=[i], execution=execution).x  # type: ignore[arg-type]
        assert (alone[0] - together[i]).norm() < 1e-12 * together[i].norm()


@pytest.mark.parametrize(("known", "n"), [(False, 3), (False, 14), (True, 3), (True, 14)])
def test_every_player_does_the_same_under_alarm(n: int, known: bool) -> None:
    problem = stiff(9.0, known)
    eager, tape, fused = (ds.solve(problem, GUIDED, n=n, batch=3, execution=e).x for e in ("eager", "tape", "fused"))  # type: ignore[arg-type]
    plain = ds.solve(problem, inside("whole" if known else "held"), n=n, batch=3).x
    assert torch.allclose(tape, eager, rtol=1e-12)
    assert torch.allclose(fused, eager, rtol=1e-12)
    assert torch.allclose(plain, eager, rtol=1e-3) == (n == 3 and not known), "the alarm is what makes the difference"


@pytest.mark.parametrize(
    ("case", "name", "close"), [(mixture(), "free", 1e-13), (blind(guided()), "held", 1e-13), (guided(), "whole", 1e-6)]
)
def test_it_is_the_pair_inside_where_steps_are_short(case, name: str, close: float) -> None:
    grid = case.nodes("uneven", inside(name), 40)
    row = GUIDED if name == "held" else "guarded_abm"
    got, pair = (ds.solve(case.flow, s, grid, x=case.x, final="none").x for s in (row, inside(name)))
    assert torch.allclose(got, pair, rtol=close, atol=close)


@pytest.mark.parametrize("name", ["free", "held"])
@pytest.mark.parametrize(("high", "low"), [(80.0, 35.0), (35.0, 14.0), (17.5, 2.5)])
def test_noise_that_stays_is_removed_far_above_the_data(name: str, high: float, low: float) -> None:
    """Where eps is constant, as far above the data's scale, a long step leaves low/high of the state."""
    pair = inside(name)
    span = ds.Span(-math.log(high), -math.log(low))
    nodes = [span.start - 0.9 * i for i in (2, 1, 0)]
    assert sum(pair.weights(1.0, span, nodes)) == pytest.approx(high / low - 1, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_few_calls_from_much_noise_are_nearer_than_2m(guidance: float) -> None:
    """The Fashion-MNIST network, from sigma 80 to 0.002 at 5 to 10 calls: steps of up to 4.4 in lambda.

    Both in the state and in the features by which the distance to the data's pictures is taken.
    """
    problem = Fashion(list(range(0, 10, 2)), guidance)
    exact = ds.solve(problem, "dpmpp_2m", n=40, batch=5, seed=5).x
    look = load_features()
    for n in (5, 8, 10):
        ends = [ds.solve(problem, solver, n=n, batch=5, seed=5).x for solver in ("guarded_abm", "dpmpp_2m")]
        mine, second = ((x - exact).flatten(1).norm(dim=1).median().item() for x in ends)
        assert mine < 0.97 * second
        mine, second = ((look(x.clamp(-1, 1)) - look(exact.clamp(-1, 1))).square().sum().item() for x in ends)
        assert mine < 2 * second


@pytest.mark.slow
@pytest.mark.parametrize(("guidance", "most"), [(1.0, 1.05), (2.0, 0.75)])
def test_a_step_beside_one_much_longer(guidance: float, most: float) -> None:
    """Fashion-MNIST's flow-matched form, evenly in its time: the first step is of 2.4 in lambda, the next of 0.8, the
    last of 4. The line through two D was followed as far as that, and eps was to fall all the way: 1.28, 1.50 of 2M."""
    problem = Fashion(list(range(0, 10, 2)), guidance, process="flow")
    exact = ds.solve(problem, "dpmpp_2m", n=60, batch=5, seed=5).x.double()
    ends = [ds.solve(problem, solver, "linspace", 10, batch=5, seed=5).x for solver in ("guarded_abm", "dpmpp_2m")]
    mine, second = (row_errors(x, exact).median() for x in ends)
    assert mine < most * second


@pytest.mark.parametrize("known", [False, True])
def test_a_run_goes_on_from_its_state(known: bool) -> None:
    problem = stiff(9.0, known)
    whole = ds.start(problem, GUIDED, n=12, batch=2)
    for _ in range(7):
        whole.step()
    rest = ds.start(problem, GUIDED, n=12, batch=2, state=whole.state)
    for run in (whole, rest):
        for _ in run:
            pass
    assert torch.equal(rest.solution.x, whole.solution.x)


def test_the_share_of_what_is_nothing_but_noise() -> None:
    share = Share(0.5)
    assert share(torch.zeros(3, 5, 5), None).tolist() == [1, 1, 1]
    assert share(torch.zeros(3, 5, 5), torch.tensor([1.0, 0.0, 0.5])).tolist() == [1, 0.5, 0.75]


@pytest.mark.parametrize(("rule", "count"), [(Share(0.5), 5), (GapShare(0.9), 4), (EarlyShare(0.9), 2)])
def test_a_rule_says_the_same_of_numbers_and_of_tensors(rule: Share | GapShare | EarlyShare, count: int) -> None:
    rows = torch.randn(200, count, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    products = rows @ rows.mT
    first = rule(products, None)
    then = rule(products.flip(0), first)
    assert 10 < (first < 1).sum() < 190
    for i in range(len(rows)):
        numbers, after = ([float(p[i, a, b]) for a, b in rule.pairs] for p in (products, products.flip(0)))
        assert rule.numbers(numbers, None) == pytest.approx(first[i].item())
        assert rule.numbers(after, first[i].item()) == pytest.approx(then[i].item())


@pytest.mark.parametrize(("high", "low", "wanted"), [(2.0, 1.8, 1.0), (5.0, 2.0, 0.0), (80.0, 40.0, 1.0)])
def test_what_is_trusted_before_there_is_evidence(high: float, low: float, wanted: float) -> None:
    """Short steps, and long ones far above the data; a doubt is remembered."""
    share = float(Guarded.trusted(math.log(high / low), high * low))
    assert share == pytest.approx(wanted, abs=0.1)
    root, before = torch.tensor([[share**0.5], [1.0]], dtype=torch.float64), torch.tensor([0.0], dtype=torch.float64)
    products = (root @ root.mT)[None]
    assert EarlyShare(0.9)(products, None).item() == pytest.approx(share)
    assert EarlyShare(0.9)(products, before).item() == pytest.approx(min(share, 0.1))


@pytest.mark.slow
@pytest.mark.parametrize("n", [6, 8])
def test_few_calls_of_a_network_under_guidance_are_near_euler_s(n: int) -> None:
    """No high order is any good there, and the evidence of that comes too late: without the doubt it is 1.8 times."""
    problem = StableDiffusion.from_pretrained("emoji")(["red apple", "penguin", "rocket", "guitar"], guidance=4.0)
    exact = ds.solve(problem, "dpmpp_2m", n=60, seed=0, final="none").x
    mine, euler = (row_errors(ds.solve(problem, s, nfe=n, seed=0, final="none").x, exact).median().item()
                   for s in ("guarded_abm", "euler"))  # fmt: skip
    assert mine < 1.4 * euler


@pytest.mark.parametrize("n", [15, 20])
def test_where_the_gap_is_known_there_is_less_to_lose(n: int) -> None:
    """On mixtures under guidance, where the rule that does not see the gap takes false alarm."""
    seen = next(case for case in sampling_cases(3, 32) if case.name == "gmm2 cfg")
    exact = reference(seen).state
    known, unknown = (
        row_errors(ds.solve(case.flow, GUIDED, nfe=n, x=case.x, final="none").x, exact).median().item()
        for case in (seen, blind(seen))
    )
    assert known < 0.8 * unknown


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("linear", [-0.3, 0.8])
def test_where_nothing_is_evaluated_its_tape_knows_the_linear_part_alone(linear: float, guided: bool) -> None:
    steps = spans([0.1, 0.3, 0.4, 0.7, 0.8, 1.0])
    tape = record(ds.get_solver(f"guarded_abm(guided={guided})"), Stub(linear), advances(steps))
    assert tape.start_factor == pytest.approx(math.exp(0.9 * linear), rel=1e-12)


@pytest.mark.parametrize("shape", [(), (3,), (3, 2), (3, 2, 2)])
def test_blend_is_a_mean_of_each_sample(shape: tuple[int, ...]) -> None:
    near, far = torch.zeros(shape), torch.ones(shape)
    out, share = blend(near, far, (far, far * 2), lambda products, _: products[:, 0, 1] / products[:, 1, 1])
    assert torch.equal(out, far / 2)
    assert share.numel() == (shape[0] if shape else 1)


@pytest.mark.parametrize(("options", "words"), [("order=2", "order must be"), ("memory=2", "memory must be"),
                                                ("memory=-1", "memory must be")])  # fmt: skip
def test_options_out_of_range(options: str, words: str) -> None:
    with pytest.raises(ds.SolverError, match=words):
        ds.get_solver(f"guarded_abm({options})")


def test_it_is_the_default() -> None:
    assert ds.solve(mixture().flow, n=3, batch=1).solver.startswith("guarded_abm")


@pytest.mark.parametrize("n", [20, 40])
@pytest.mark.parametrize("known", [False, True])
def test_a_false_alarm_is_mended(n: int, known: bool) -> None:
    """A smooth guided run with one Euler step: the correction after it starts from where the pair would have ended."""
    case, once = guided() if known else blind(guided()), ds.get_solver(GUIDED)

    def rule(products: torch.Tensor, before: torch.Tensor | None) -> torch.Tensor:
        return products.new_full((len(products),), float(before is not None))

    once.share = once.gap_share = rule  # type: ignore[attr-defined]
    grid, exact = case.nodes("uneven", once, n), case.at(case.end)
    mine, pair = (
        (ds.solve(case.flow, s, grid, x=case.x, final="none", execution="eager").x - exact).norm().item()
        for s in (once, inside("whole" if known else "held"))
    )
    assert mine < 1.6 * pair


def test_an_ode_is_not_guided() -> None:
    ode = ds.ODEProblem(lambda t, x: -9 * t * torch.sin(3 * x), (0.0, 2.0), [[1.0, -2.0]])
    plain, free, held = (
        ds.solve(ode, f"guarded_abm{words}", n=9).x for words in ("", "(guided=False)", "(guided=True)")
    )
    assert torch.equal(plain, free)
    assert not torch.allclose(plain, held, rtol=1e-6)


@pytest.mark.parametrize(("x", "wanted"), [(-1.0, 0.0), (0.5, 0.0), (1.0, 0.25), (2.5, 1.0), (9.0, 1.0)])
def test_a_rise_by_hand(x: float, wanted: float) -> None:
    assert [float(_rise(of, 0.5, 2.5)) for of in (x, torch.tensor([x]))] == [wanted, wanted]
