"""Likelihoods by the flow and DDPM's bound, against densities, orders and terms that are known exactly."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from stubs import gaussian, mixture, numbers, slow
from torch import Tensor
from typer.testing import CliRunner

import diffsolve as ds
from diffsolve.problems import Gaussian
from diffsolve.validation import log_likelihood, variational_bound
from diffsolve.validation.samples import bound
from diffsolve.validation.samples.bound import BoundReport, _decoded
from diffsolve.validation.samples.likelihood import WithDivergence


def at_the_end(problem: Any, batch: int = 8) -> Tensor:
    return problem.noised(problem.sample(batch), problem.process.sigma_min)


def column(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def worst(report: Any) -> float:
    return float((column(report.nats) - column(report.exact)).abs().max())


def test_log_density_integrates_to_one_and_is_torchs() -> None:
    problem = mixture((1,))
    y = torch.linspace(-30, 30, 20001, dtype=torch.float64)[:, None]
    assert float(torch.trapezoid(problem.log_density(y, 1.5).exp(), y[:, 0])) == pytest.approx(1, abs=1e-10)
    normal = gaussian((2, 3))
    x = normal.sample(4)
    spread = (normal.variance + 0.7**2).sqrt()
    wanted = torch.distributions.Normal(normal.mean, spread).log_prob(x).sum((1, 2))
    torch.testing.assert_close(normal.log_density(x, 0.7), wanted)


@pytest.mark.parametrize(
    ("solver", "order"),
    [("heun", 2), slow("rk4", 4), slow("dopri5", 5), ("dpm_solver_3", 3), ("dpmpp_2m", 2), ("lms(order=2)", 2),
     ("rk4(form=v)", 4), ("rk4(form=data)", 4), ("midpoint(form=noise)", 2)],
)  # fmt: skip
def test_any_solver_finds_the_density_with_its_order(solver: str, order: int) -> None:
    problem = mixture()
    x = at_the_end(problem)
    errors = [worst(log_likelihood(problem, x, solver, n=n, probes="exact", prior="exact")) for n in (30, 60)]
    assert errors[1] < 0.05
    assert order - 0.4 < math.log2(errors[0] / errors[1]) < order + 1.1


def test_a_trace_that_is_off_by_a_thousandth_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = mixture()
    x = at_the_end(problem)
    true = WithDivergence._traces
    monkeypatch.setattr(WithDivergence, "_traces", lambda *given: 1.001 * true(*given))
    errors = [worst(log_likelihood(problem, x, n=n, probes="exact", prior="exact")) for n in (30, 60)]
    assert errors[1] > 0.8 * errors[0] > 1e-3


@pytest.mark.parametrize("process", ["sd", "vp", "edm", "flow"])
def test_a_gaussian_of_any_process(process: str) -> None:
    problem = gaussian((2, 2), process)
    high = min(problem.process.sigma_max, 80.0)
    report = log_likelihood(
        problem, at_the_end(problem), "rk4", "lambda", 90, probes="exact", prior="exact", sigma_max=high
    )
    assert worst(report) < 1e-4
    assert report.passed
    assert report.sigma == pytest.approx(problem.process.sigma_min)


def test_the_normal_prior_is_what_solve_starts_from() -> None:
    problem = Gaussian([0.0, 0.0], 0.5)  # the flow maps N(0, s^2) to N(0, s'^2) with s' known
    low, high = problem.process.sigma_min, problem.process.sigma_max
    x = at_the_end(problem)
    report = log_likelihood(problem, x, "dopri5", n=60, probes="exact")
    spread = high * math.sqrt((0.25 + low**2) / (0.25 + high**2))
    wanted = torch.distributions.Normal(0.0, spread).log_prob(x).sum(1)
    torch.testing.assert_close(column(report.nats), wanted, rtol=0, atol=1e-6)
    assert (report.exact, report.mismatch, report.passed) == (None, None, None)


@pytest.mark.slow
@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
def test_probes_are_unbiased_and_tell_their_error(probe: Any) -> None:
    problem = mixture()
    x = at_the_end(problem)
    true = log_likelihood(problem, x, "rk4", n=8, probes="exact")
    report = log_likelihood(problem, x, "rk4", n=8, probes=256, probe=probe)
    gaps = (column(report.nats) - column(true.nats)) / column(report.errors)
    assert float(gaps.abs().max()) < 4.5
    assert 0.3 < float(gaps.square().mean().sqrt()) < 2
    fewer = log_likelihood(problem, x, "rk4", n=8, probes=16, probe=probe)
    assert 2 < float((column(fewer.errors) / column(report.errors)).mean()) < 6
    assert true.errors == (0.0,) * 8
    assert all(math.isnan(e) for e in log_likelihood(problem, x, "euler", n=4).errors)


def test_a_diagonal_jacobian_needs_one_rademacher_probe() -> None:
    problem = gaussian((6,))
    x = at_the_end(problem)
    one, exact = (log_likelihood(problem, x, "heun", n=20, probes=p) for p in (1, "exact"))
    torch.testing.assert_close(column(one.nats), column(exact.nats), rtol=1e-12, atol=1e-12)


def test_a_sample_does_not_know_its_batch() -> None:
    problem = mixture()
    x = at_the_end(problem)
    together = log_likelihood(problem, x, "heun", n=8, probes=2)
    alone = log_likelihood(problem, x[:3], "heun", n=8, probes=2)
    assert alone.nats == pytest.approx(together.nats[:3], rel=1e-12)
    assert log_likelihood(problem, x, "heun", n=8, probes=2, seed=1).nats != together.nats


class Tilted(torch.nn.Module):
    """A network of few numbers: eps for pictures (2, 3)."""

    def __init__(self, channels: int = 2) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        mixed = x.sum(2, keepdim=True).tanh() * 0.1 + 0.9 * x
        return torch.cat([mixed, (x * 2).tanh()], 1)[:, : self.channels]


def test_a_network_by_probes_and_by_finite_differences() -> None:
    problem = ds.ProbabilityFlow(Tilted(), "sd", "eps", shape=(2, 3), dtype=torch.float64)
    x = problem.prior(1, seed=3, sigma=0.5)
    report = log_likelihood(problem, x, n=20, probes="exact")
    end = ds.solve(problem.reversed(), "rk4", n=20, x=x).x
    jacobian = torch.stack([
        (ds.solve(problem.reversed(), "rk4", n=20, x=x + 1e-5 * e).x - end).flatten() / 1e-5
        for e in torch.eye(6, dtype=torch.float64).reshape(6, 1, 2, 3)
    ])  # fmt: skip
    high = problem.process.sigma_max
    wanted = torch.distributions.Normal(0.0, high).log_prob(end).sum() + jacobian.det().abs().log()
    assert report.nats[0] == pytest.approx(float(wanted), abs=0.01)  # the map's own divergence, up to rk4's error
    assert report.bits_per_dim(256)[0] == pytest.approx(7 - report.nats[0] / 6 / math.log(2))


def test_what_a_likelihood_refuses() -> None:
    problem, x = mixture(), at_the_end(mixture())
    with pytest.raises(ds.ProblemError, match="probes must be a whole number of at least 1 or 'exact', got 0"):
        log_likelihood(problem, x, probes=0)
    with pytest.raises(ds.ProblemError, match="probe is 'rademacher' or 'gaussian', got 'cauchy'"):
        log_likelihood(problem, x, probe="cauchy")  # type: ignore[arg-type]
    labelled = ds.problems.GaussianMixture([[0.0], [1.0]], [0.1, 0.1], labels=[0, 1])
    with pytest.raises(ds.ProblemError, match="GuidedMixture has no log_density"):
        log_likelihood(labelled.guided(1), labelled.sample(1), prior="exact")
    with pytest.raises(ds.SolverError, match="euler_ancestral adds noise, and this is the flow upwards"):
        log_likelihood(problem, x, "euler_ancestral")
    with pytest.raises(ds.ProblemError, match=r"x has shape \(8, 3\), expected \(B, 2\)"):
        log_likelihood(problem, torch.zeros(8, 3))
    with pytest.raises(ds.ProblemError, match="x must be a tensor"):
        log_likelihood(problem, [0.0, 0.0])  # type: ignore[arg-type]


def test_a_network_without_derivatives_is_noticed() -> None:
    network = torch.no_grad()(lambda x, t: 0.9 * x)
    for prediction in ("eps", "x0"):
        problem = ds.ProbabilityFlow(network, "sd", prediction, shape=(2,))
        with pytest.raises(ds.ProblemError, match=r"take off its torch\.no_grad or detach"):
            log_likelihood(problem, torch.zeros(1, 2), n=2)


def exact_terms(problem: Any, variance: str) -> tuple[float, list[float], float]:
    """The expected L_T, L_{T-1} .. L_1 and L_0 of a Gaussian with its optimal denoiser, from the paper's betas."""
    bar = 1 / (1 + problem.process.table**2)
    betas = 1 - bar / [1.0, *bar[:-1]]
    variances, means, dims = problem.variance.flatten(), problem.mean.flatten(), problem.mean.numel()

    def missed(t: int) -> float:  # E |x_0 - D|^2
        noise = (1 - bar[t]) / bar[t]
        return float((variances * noise / (variances + noise)).sum())

    last = bar[-1]
    prior = 0.5 * float((last * (variances + means**2) - last - math.log(1 - last)).sum())
    terms = []
    for t in range(len(bar) - 1, 0, -1):
        small = (1 - bar[t - 1]) / (1 - bar[t]) * betas[t]
        wanted = small if variance == "fixed_small" else betas[t]
        share = bar[t - 1] * (betas[t] / (1 - bar[t])) ** 2
        terms.append(0.5 * (dims * (math.log(wanted / small) + small / wanted - 1) + share * missed(t) / wanted))
    small = (1 - bar[0]) / (1 - bar[1]) * betas[1]
    return prior, terms, 0.5 * (dims * math.log(2 * math.pi * small) + missed(0) / small)


def scores(report: BoundReport, terms: list[float]) -> Tensor:
    """By how many standard errors each term is off, where it has one."""
    pairs = zip(report.terms, terms, strict=True)
    return column([(mean - wanted) / error for (mean, error), wanted in pairs if error > 1e-9])


@pytest.mark.parametrize("process", [ds.VP("linear", 1e-3, 0.2, 100), slow("ddpm"), slow("cosine")], ids=str)
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_the_terms_of_a_gaussian_are_known(process: Any, variance: Any) -> None:
    problem = Gaussian([0.3, -0.5], [1.2, 0.4], process)
    report = variational_bound(problem, problem.sample(400), variance)
    prior, terms, last = exact_terms(problem, variance)
    assert abs(report.prior[0] - prior) < 4.5 * report.prior[1]
    off = scores(report, terms)
    assert len(off) > 0.8 * len(terms)
    assert float(off.abs().max()) < 6
    assert 0.8 < float(off.square().mean().sqrt()) < 1.2
    assert abs(report.decoder_term[0] - last) < 4.5 * report.decoder_term[1]
    assert abs(report.total[0] - prior - sum(terms) - last) < 4.5 * report.total[1]


def test_a_variance_that_is_off_by_a_tenth_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Gaussian([0.3, -0.5], [1.2, 0.4], ds.VP("linear", 1e-3, 0.2, 100))
    true = bound.posterior_variances
    monkeypatch.setattr(bound, "posterior_variances", lambda *given: (1.1 * true(*given)[0], true(*given)[1]))
    report = variational_bound(problem, problem.sample(400))
    assert float(scores(report, exact_terms(problem, "fixed_small")[1]).square().mean().sqrt()) > 1.25


def test_the_bound_is_above_the_entropy_and_close_at_many_steps() -> None:
    gaps = []
    for steps in (10, 100, 1000):
        problem = Gaussian([0.3, -0.5], [0.05, 0.1], ds.VP("linear", 0.1 / steps, min(20 / steps, 0.7), steps))
        prior, terms, last = exact_terms(problem, "fixed_large")
        entropy = float(0.5 * (2 * math.pi * math.e * problem.variance).log().sum())
        gaps.append((prior + sum(terms) + last - entropy) / 2 / math.log(2))
        report = variational_bound(problem, problem.sample(100), "fixed_large")
        assert report.passed
        assert abs(report.bits(report.looseness[0]) - gaps[-1]) < 4.5 * report.bits(report.looseness[1])
    assert gaps == sorted(gaps, reverse=True)
    assert 0 < gaps[-1] < 0.2


@pytest.mark.slow
def test_the_rate_distortion_curve() -> None:
    problem = mixture((4,), "ddpm")
    report = variational_bound(problem, problem.sample(200))
    assert len(report.rate) == len(report.rmse) == 1000
    assert list(report.rate) == sorted(report.rate), "a KL divergence is never negative"
    coarse = [sum(report.rmse[i : i + 100]) for i in range(0, 1000, 100)]
    assert coarse == sorted(coarse, reverse=True)
    sent = report.rate[-1] + report.bits(report.decoder_term[0])
    assert report.bits(report.total[0]) == pytest.approx(sent)
    spread = float((problem.sample(4000) - problem.sample(4000).mean(0)).square().mean().sqrt())
    assert report.rmse[0] == pytest.approx(spread, rel=0.1), "nothing sent: the mean is the best guess"


def test_a_worse_denoiser_has_a_worse_bound() -> None:
    right = Gaussian([0.3], [1.2], ds.VP("linear", 1e-3, 0.2, 100))
    worse = right.replace(denoiser=ds.FunctionDenoiser(lambda y, sigma: right.denoise(y, sigma) + 0.1))
    good, bad = (variational_bound(problem, right.sample(100)).total[0] for problem in (right, worse))
    assert bad > good + 0.1


def test_the_discrete_decoder_is_a_distribution_over_levels() -> None:
    levels = torch.arange(256, dtype=torch.float64)[:, None] / 127.5 - 1
    for mean, deviation in ((0.2, 0.3), (-1.4, 0.02), (0.999, 1e-3)):
        logs = torch.tensor(2 * math.log(deviation), dtype=torch.float64)
        mass = (-_decoded(levels, torch.full_like(levels, mean), logs, "discrete")).exp()
        assert float(mass.sum()) == pytest.approx(1, abs=1e-9)
    far = _decoded(levels[:1], levels[200:201], torch.tensor(-20.0, dtype=torch.float64), "discrete")
    assert far.isfinite().all()


def test_eight_bit_data() -> None:
    problem = Gaussian([0.1, -0.2], 0.4, ds.VP("linear", 1e-4, 0.02, 200))
    x = ((problem.sample(50).clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
    discrete = variational_bound(problem, x, decoder="discrete")
    density = variational_bound(problem, x)
    assert discrete.passed is None
    # a probability is a density times the width of a level, 2/255, where the density is smooth across it
    offset = math.log2(255 / 2)
    assert discrete.bits(discrete.total[0]) == pytest.approx(density.bits(density.total[0]) + offset, abs=0.3)
    with pytest.raises(ds.ProblemError, match="the discrete decoder takes 8-bit data"):
        variational_bound(problem, x + 0.001, decoder="discrete")


def test_what_a_bound_refuses() -> None:
    problem = mixture()
    with pytest.raises(ds.ProblemError, match="timesteps of a discrete VP process, got ContinuousVP"):
        variational_bound(mixture((2,), "vp"), problem.sample(2))
    with pytest.raises(ds.ProblemError, match=r"variance must be one of 'fixed_small', .*got 'small'"):
        variational_bound(problem, problem.sample(2), "small")  # type: ignore[arg-type]
    with pytest.raises(ds.ProblemError, match="needs a problem made with learned_range=True"):
        variational_bound(problem, problem.sample(2), "learned_range")


def ranged(share: float, process: Any = "ddpm") -> ds.ProbabilityFlow:
    """A network that says where its variance lies: 0 small, 1 large."""

    def network(x: Tensor, t: Tensor) -> Tensor:
        return torch.cat([x * 0.8, torch.full_like(x, 2 * share - 1)], 1)

    return ds.ProbabilityFlow(network, process, shape=(2, 3), dtype=torch.float64, learned_range=True)


def test_a_learned_variance_between_the_two_fixed_ones() -> None:
    runs = {v: ds.solve(ranged(0.0), f"ddpm(variance={v})", n=6, seed=1).x for v in ("fixed_small", "fixed_large")}
    for share, fixed in ((0.0, "fixed_small"), (1.0, "fixed_large")):
        learned = ds.solve(ranged(share), "ddpm(variance=learned_range)", n=6, seed=1)
        torch.testing.assert_close(learned.x, runs[fixed], rtol=1e-12, atol=1e-12)
    between = ds.solve(ranged(0.5), "ddpm(variance=learned_range)", n=6, seed=1).x
    assert not torch.allclose(between, runs["fixed_small"])
    still = ds.solve(ranged(0.5), "ddpm(variance=learned_range)", n=6, seed=1, eta=0.0).x
    torch.testing.assert_close(still, ds.solve(ranged(0.5), "ddim", n=6, seed=1).x, rtol=1e-12, atol=1e-12)


def test_a_learned_variance_is_diffusers() -> None:
    from diffusers import DDPMScheduler

    problem, process = ranged(0.3), ds.PROCESSES["ddpm"]
    scheduler = DDPMScheduler(variance_type="learned_range", clip_sample=False)
    scheduler.set_timesteps(20)
    scheduler.alphas_cumprod = 1 / (1 + torch.from_numpy(process.table) ** 2)
    x = numbers(1, 2, 3)
    high, low = process.sigma(500.0), process.sigma(450.0)
    seeded = torch.Generator().manual_seed(0)
    raw = problem.denoiser.network(x, torch.tensor([500.0]))
    theirs = scheduler.step(raw, 500, x, generator=seeded).prev_sample
    z = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    y = x / process.alpha(high)
    field = problem.field(ds.get_solver("ddpm"), y, (0,), 0, None)
    field.normal = lambda span, kind: z  # type: ignore[method-assign]
    span = ds.Span(field.form.variable(high), field.form.variable(low))
    step = ds.get_solver("ddpm(variance=learned_range)").step(field, y, span, ())
    torch.testing.assert_close(step.y * process.alpha(low), theirs, rtol=1e-9, atol=1e-9)


def test_the_learned_bound_meets_the_fixed_ones() -> None:
    process = ds.VP("linear", 1e-3, 0.2, 50)
    x = numbers(5, 2, 3)
    for share, fixed in ((0.0, "fixed_small"), (1.0, "fixed_large")):
        learned, known = (variational_bound(ranged(share, process), x, v) for v in ("learned_range", fixed))
        assert [m for m, _ in learned.terms] == pytest.approx([m for m, _ in known.terms], rel=1e-9)
    assert learned.decoder_term[0] != pytest.approx(known.decoder_term[0]), "L_0 has the large variance only if learned"


def test_what_a_learned_variance_refuses() -> None:
    with pytest.raises(ds.SolverError, match="needs a problem made with learned_range=True"):
        ds.solve(mixture(), "ddpm(variance=learned_range)", n=3)
    with pytest.raises(ds.SolverError, match=r"that of eta = 1, got eta = 0\.5"):
        ds.solve(ranged(0.0), "ddpm(variance=learned_range)", n=3, eta=0.5)
    narrow = ds.ProbabilityFlow(Tilted(2), shape=(2, 3), learned_range=True)
    with pytest.raises(ds.ProblemError, match=r"twice the channels .* shape \(1, 2, 3\), expected \(1, 4, 3\)"):
        ds.solve(narrow, "ddim", n=2)
    assert ds.solve(ds.ProbabilityFlow(Tilted(4), shape=(2, 3), learned_range=True), "ddim", n=2).nfe == 2


@pytest.mark.parametrize("kind", ["likelihood", "known", "bound"])
def test_reports_print_plot_and_save(kind: str) -> None:
    problem = mixture((2,), ds.VP("linear", 1e-3, 0.2, 50))
    x = problem.sample(12)
    report: Any
    if kind == "bound":
        report = variational_bound(problem, x)
    elif kind == "known":
        report = log_likelihood(problem, x, n=30, probes="exact", prior="exact")
    else:
        report = log_likelihood(problem, x, n=4, probes=2)
    data = json.loads(report.to_json())
    assert data["passed"] == report.passed
    text = str(report)
    assert "bits/dim" in text
    assert kind == "bound" or f"{-report.mean[0] / (2 * math.log(2)):.4f} bits/dim" in text
    assert len(text.splitlines()) >= 8
    assert report.__rich__().row_count >= 7
    assert report.plot().axes


@pytest.mark.slow
def test_the_command(tmp_path: Any) -> None:
    from diffsolve.validation.site.cli import app

    done = CliRunner().invoke(app, ["likelihood", "dopri5", "--samples", "8", "-n", "6", "-o", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "exact trace" in done.output
    assert "variational bound of 8 samples" in done.output
    assert (tmp_path / "bound-fixed_large-mixture-8.png").is_file()
