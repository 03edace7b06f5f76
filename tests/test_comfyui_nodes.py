"""The node pack, through a stand-in of ComfyUI's documented interface: eps and flow models, every kind of node."""

from __future__ import annotations

import ast
import importlib.util
import math
from pathlib import Path
from typing import Any

import comfyui_stand_in as stand_in
import pytest
import torch
from peers_comfyui import noise, problem
from stubs import SOLVERS, gap, slow
from torch import Tensor

import diffsolve as ds
from diffsolve.interop import comfyui
from diffsolve.interop import k_diffusion as there

PACK = Path(__file__).resolve().parent.parent / "integrations" / "comfyui" / "__init__.py"
LATENT = {"samples": torch.zeros(3, 8, dtype=torch.float64)}
SEED = 7


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    stand_in.install(monkeypatch)
    spec: Any = importlib.util.spec_from_file_location("diffsolve_nodes", PACK)
    pack = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pack)
    assert pack.NODE_CLASS_MAPPINGS.keys() == pack.NODE_DISPLAY_NAME_MAPPINGS.keys()
    return {name: kind() for name, kind in pack.NODE_CLASS_MAPPINGS.items()}


def model(kind: str) -> stand_in.Model:
    def estimates(x: Tensor, level: float) -> tuple[Tensor, Tensor]:
        at = (x / (1 - level), level / (1 - level)) if kind == "flow" else (x, level)
        denoised, free, _ = problem().denoiser(*at)
        return denoised, free

    return stand_in.Model(stand_in.CONST() if kind == "flow" else stand_in.EPS(ds.VP()), estimates)


def levels(kind: str) -> Tensor:
    if kind == "flow":
        return torch.tensor([0.999, 0.95, 0.8, 0.6, 0.4, 0.2, 0.05, 0.0], dtype=torch.float64)
    return torch.tensor([14.0, 6.0, 3.0, 1.5, 0.8, 0.3, 0.05, 0.0], dtype=torch.float64)


def run(sampler: Any, kind: str, sigmas: Tensor | None = None, callback: Any = None, seed: int = SEED) -> Tensor:
    listed = levels(kind) if sigmas is None else sigmas
    noise = stand_in.prepare_noise(LATENT["samples"], SEED)
    return stand_in.sample_custom(
        model(kind), noise, 1.0, sampler, listed, [], [], LATENT["samples"], callback=callback, seed=seed
    )


def solved(spec: str, kind: str, sigmas: Tensor | None = None, **options: Any) -> Tensor:
    """The same by `ds.solve`."""
    listed = levels(kind) if sigmas is None else sigmas
    noise, first, last = stand_in.prepare_noise(LATENT["samples"], SEED), float(listed[0]), float(listed[-1])
    if kind == "flow":
        of = problem().replace(process=ds.RectifiedFlow(t_min=1e-4))
        grid = ds.Grid([t / (1 - t) for t in listed.tolist() if t], final="none" if last else "denoise")
        return ds.solve(of, spec, grid, x=noise * first / (1 - first), seed=SEED, **options).x
    of = problem()
    grid = ds.Grid([s for s in listed.tolist() if s], final="none" if last else "denoise")
    return ds.solve(of, spec, grid, x=noise * first, seed=SEED, **options).x


CASES = [
    ("euler", "", {"eps": "euler", "flow": "flow_euler"}), ("heun", "", {"eps": "heun", "flow": "flow_heun"}),
    ("dpm2", "", {"eps": "dpm2", "flow": "dpm2"}), ("dpmpp_2m", "", {"eps": "dpmpp_2m", "flow": "dpmpp_2m"}),
    ("unipc", "order=2, variant=bh1", dict.fromkeys(("eps", "flow"), "unipc(order=2, variant=bh1)")),
    ("damped_abm", "", dict.fromkeys(("eps", "flow"), "damped_abm")),
    ("rk4", "form=v", dict.fromkeys(("eps", "flow"), "rk4(form=v)")),
    ("euler_cfg_pp", "", {"eps": "euler_cfg_pp", "flow": "euler_cfg_pp(form=flow)"}),
    ("res_multistep_cfg_pp", "", dict.fromkeys(("eps", "flow"), "res_multistep_cfg_pp")),
]  # fmt: skip


@pytest.mark.parametrize("kind", ["eps", "flow"])
@pytest.mark.parametrize(("solver", "options", "spec"), CASES, ids=[case[0] for case in CASES])
def test_a_sampler_is_what_solve_draws(
    nodes: dict[str, Any], solver: str, options: str, spec: dict[str, str], kind: str
) -> None:
    (sampler,) = nodes["DiffsolveSampler"].sampler(solver, 1.0, 1.0, options)
    assert gap(run(sampler, kind), solved(spec[kind], kind)) < 1e-9
    part = levels(kind)[2:6]  # of a run that begins later and does not end at 0
    x = solved(spec[kind], kind, part)
    assert gap(run(sampler, kind, part), x) < 1e-9


@pytest.mark.parametrize("kind", ["eps", "flow"])
@pytest.mark.parametrize("solver", [row if row in ("euler", "dpmpp_2m_sde", "restart", "unipc") else slow(row)
                                    for row in SOLVERS if row != "dpm_fast"])  # fmt: skip
def test_every_row_is_a_sampler(nodes: dict[str, Any], solver: str, kind: str) -> None:
    (sampler,) = nodes["DiffsolveSampler"].sampler(solver, 1.0, 1.0, "")
    seen: list[int] = []
    sigmas = nodes["DiffsolveSchedule"].sigmas(model(kind), "linspace", 8, 1.0, 1.0, "")[0]
    end = run(sampler, kind, sigmas, callback=lambda step, *_: seen.append(step))
    assert end.isfinite().all()
    assert end.dtype == torch.float64
    assert seen == sorted(seen) or solver == "restart"
    assert set(seen) == set(range(8))


@pytest.mark.parametrize(
    ("solver", "row"),
    [("euler_ancestral", "euler_ancestral_rf"), ("dpm2_ancestral", "dpm2_ancestral_rf"),
     ("dpmpp_2s_ancestral", "dpmpp_2s_ancestral_rf"), ("dpmpp_2m_sde", "dpmpp_2m_sde")],
)  # fmt: skip
def test_the_noise_of_a_flow_model_is_the_straight_paths(nodes: dict[str, Any], solver: str, row: str) -> None:
    (sampler,), (less,) = (nodes["DiffsolveSampler"].sampler(solver, 1.0, s, "") for s in (1.0, 0.5))
    ours, problem_ = run(sampler, "flow"), model("flow")
    assert torch.equal(ours, run(sampler, "flow"))
    assert gap(ours, run(sampler, "flow", seed=8)) > 1e-3
    assert gap(ours, run(less, "flow")) > 1e-3
    x, t = ds.normals(1, range(3), 3, (8,), torch.float64, "cpu"), levels("flow")[:-1]
    found = sampler.sampler_function(_as_given(problem_), x, t, {"seed": 3, "denoise_mask": None}, None, True,
                                     noise_sampler=noise)  # fmt: skip
    odds = {"noise_sampler": lambda a, b: noise(a / (1 + a), b / (1 + b))}
    wide = there.sampler(row, **odds)(_as_denoiser, x / (1 - t[0]), t / (1 - t), None, None, True)
    assert gap(found, wide * (1 - t[-1])) < 1e-9


def _as_denoiser(y: Tensor, sigma: Tensor) -> Tensor:
    return problem().denoiser(y, float(sigma[0])).denoised


def _as_given(of: stand_in.Model) -> Any:
    class Given:
        inner_model = of

        def __call__(self, x: Tensor, sigma: Tensor, denoise_mask: Any, seed: Any = None) -> Tensor:
            return of.guided(x, sigma, {}, seed)

    return Given()


def test_t_for_sigma_is_comfyuis_own_reading(nodes: dict[str, Any]) -> None:
    """A flow model's x' = (x - D)/t, as if t were sigma: dpmpp_2m in log t."""
    (sampler,) = nodes["DiffsolveSampler"].sampler("dpmpp_2m", 1.0, 1.0, "flow=t")
    sigmas, of = torch.tensor([0.99, 0.8, 0.5, 0.2, 0.0], dtype=torch.float64), model("flow")
    unit = stand_in.prepare_noise(LATENT["samples"], SEED)
    x, old, h_old = 0.99 * unit, None, 0.0
    for t, to in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
        d = of.estimates(x, t)[0]
        h = math.log(t / to) if to else math.inf
        mix = d if old is None or not to else d + h / (2 * h_old) * (d - old)
        x = (to / t) * x - math.expm1(-h) * mix
        old, h_old = d, h
    ours = stand_in.sample_custom(of, unit, 1.0, sampler, sigmas, [], [], LATENT["samples"], seed=SEED)
    assert gap(ours, x) < 1e-9
    with pytest.raises(ds.SolverError, match="adds noise"):
        nodes["DiffsolveSampler"].sampler("euler_ancestral", 1.0, 1.0, "flow=t")


@pytest.mark.parametrize("solver", ["euler", "heun", "dpmpp_2m", "dpmpp_2m_sde", "er_sde_3"])
def test_a_flow_begins_at_its_end(nodes: dict[str, Any], solver: str) -> None:
    """t = 1, where sigma is infinite, in float32."""
    (sampler,) = nodes["DiffsolveSampler"].sampler(solver, 1.0, 1.0, "")
    sigmas = nodes["DiffsolveSchedule"].sigmas(model("flow"), "linspace", 30, 1.0, 1.0, "")[0]
    assert sigmas[0] == 1
    noise = stand_in.prepare_noise(LATENT["samples"], SEED).float()
    many = nodes["DiffsolveSampler"].sampler("dopri5", 1.0, 1.0, "")[0]
    ends = [stand_in.sample_custom(model("flow"), noise, 1.0, s, sigmas, [], [], LATENT["samples"].float(), seed=SEED)
            for s in (sampler, many)]  # fmt: skip
    assert all(end.dtype == torch.float32 and end.isfinite().all() for end in ends)
    assert gap(*ends) < (0.15 if "sde" not in solver else 2.0)


def test_adaptive_steps(nodes: dict[str, Any]) -> None:
    (tight,) = nodes["DiffsolveAdaptive"].sampler("dopri5", 1e-6, 1e-6, 0, "")
    (loose,) = nodes["DiffsolveAdaptive"].sampler("dpm_solver_3", 0.05, 0.0078, 0, "")
    for kind in ("eps", "flow"):
        steps: list[tuple[int, int]] = []
        exact = run(tight, kind, callback=lambda i, d, x, total, steps=steps: steps.append((i, total)))
        assert gap(run(loose, kind), exact) < 0.1
        assert gap(exact, run(nodes["DiffsolveSampler"].sampler("dopri5", 1.0, 1.0, "")[0], kind)) < 0.05
        assert [i for i, _ in steps] == sorted(i for i, _ in steps)
        assert {total for _, total in steps} == {7}
        assert steps[-1][0] == 6
    (short,) = nodes["DiffsolveAdaptive"].sampler("dopri5", 1e-6, 1e-6, 40, "")
    of = model("eps")
    stand_in.sample_custom(of, LATENT["samples"] + 1, 1.0, short, levels("eps"), [], [], LATENT["samples"], seed=1)
    assert of.calls <= 40


def test_schedules(nodes: dict[str, Any]) -> None:
    node = nodes["DiffsolveSchedule"]
    eps, flow = model("eps"), model("flow")
    karras = node.sigmas(eps, "karras", 9, 1.0, 1.0, "rho=5")[0]
    assert karras.dtype == torch.float32
    assert len(karras) == 10
    assert karras[-1] == 0
    ours = ds.make_grid(ds.Karras(5), 9, ds.VP()).sigmas
    assert karras.tolist() == pytest.approx(ours.tolist(), rel=1e-6)
    assert node.sigmas(eps, "linspace", 9, 1.0, 1.0, "")[0].tolist() == pytest.approx(
        [float(eps.model_sampling.sigmas[round(t)]) for t in torch.linspace(999, 0, 9).tolist()] + [0.0], rel=0.02)
    part = node.sigmas(eps, "karras", 5, 0.5, 1.0, "")[0]
    whole = node.sigmas(eps, "karras", 10, 1.0, 1.0, "")[0]
    assert torch.equal(part, whole[-6:])
    assert len(node.sigmas(eps, "karras", 5, 0.0, 1.0, "")[0]) == 0
    times = node.sigmas(flow, "linear_quadratic", 8, 1.0, 1.0, "")[0]
    assert times[0] == 1
    assert times[1].item() == pytest.approx(1 - 0.025 / 4, rel=1e-3)
    moved = node.sigmas(flow, "linear_quadratic", 8, 1.0, 2.0, "")[0]
    assert moved[4].item() == pytest.approx(2 * times[4].item() / (1 + times[4].item()), rel=1e-3)
    for place, schedule in enumerate(comfyui.schedules_for_menu()):
        found = node.sigmas((eps, flow)[place % 2], schedule, 7, 1.0, 1.0, "")[0]
        assert len(found) == 8
        assert (found.diff() < 0).all(), schedule


def test_the_error_report(nodes: dict[str, Any]) -> None:
    for kind in ("eps", "flow"):
        (sampler,) = nodes["DiffsolveSampler"].sampler("heun", 1.0, 1.0, "")
        out = nodes["DiffsolveErrorReport"].report(model(kind), SEED, 1.0, [], [], sampler, levels(kind), LATENT)
        latent, text = out["result"]
        assert out["ui"]["text"] == [text]
        assert torch.equal(latent["samples"], run(sampler, kind))
        assert len(text.splitlines()) == 3 + 7
        finer = run(sampler, kind, comfyui.halved(levels(kind), kind == "flow"))
        assert f"differ by {gap(latent['samples'], finer):.2e}" in text
        assert "The most is added in step" in text
    silent = stand_in.KSAMPLER(lambda model, x, sigmas, **_: x)
    with pytest.raises(ds.SolverError, match="told nothing of step 2"):
        nodes["DiffsolveErrorReport"].report(model("eps"), SEED, 1.0, [], [], silent, levels("eps"), LATENT)


def test_menus_and_nothing_of_comfyuis_changed(nodes: dict[str, Any]) -> None:
    import comfy.samplers  # the stand-in

    for node in nodes.values():
        inputs = type(node).INPUT_TYPES()["required"]
        assert callable(getattr(node, type(node).FUNCTION))
        assert len(type(node).RETURN_TYPES) == len(getattr(type(node), "RETURN_NAMES", type(node).RETURN_TYPES))
        for kind, *rest in inputs.values():
            if isinstance(kind, list):
                assert rest[0]["default"] in kind
    assert set(SOLVERS) < set(comfyui.solvers_for_menu())
    assert "dopri5" in comfyui.adaptive_for_menu()
    assert "rk4" not in comfyui.adaptive_for_menu()
    assert (comfy.samplers.SAMPLER_NAMES, comfy.samplers.SCHEDULER_HANDLERS) == (["euler", "heun"], {"normal": None})


def test_the_pack_costs_nothing_until_it_is_used() -> None:
    tops = [node for node in ast.parse(PACK.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert {getattr(node, "module", None) for node in tops} == {"__future__", "typing"}


@pytest.mark.parametrize(
    ("call", "said"),
    [(lambda: comfyui.function_of("huen"), "unknown solver 'huen'"),
     (lambda: comfyui.function_of("lms(ordr=2)")(_as_given(model("eps")), torch.ones(1, 8), levels("eps"), {}, None,
                                                 True), "no option 'ordr'"),
     (lambda: comfyui.sigmas_of(model("eps"), "karras", 5, 1.5), "share from 0 to 1"),
     (lambda: comfyui.sampling_of(object()), "has no model_sampling"),
     (lambda: run(stand_in.KSAMPLER(comfyui.function_of("euler")), "flow", torch.tensor([14.0, 1.0, 0.0])),
      "times from 1 to 0")],
)  # fmt: skip
def test_what_is_refused(call: Any, said: str) -> None:
    with pytest.raises(ds.DiffsolveError, match=said):
        call()
