"""`docs/coverage.md`: every sampler that people know by name, and the row of the catalogue that it is here.

The names are the literature's and the peers'; all else in the table is read from the registry, and the orders are
measured when the page is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from diffsolve import Driver, find_solver, get_solver

from ..orders.order import validate_order
from ..rows import flow_rows

Named = Sequence[tuple[str, str]]
"""(name elsewhere, solver here) pairs; a solver may have options: "unipc(order=2, variant=bh1)"."""

SECTIONS: Mapping[str, Named] = {
    "diffusers' schedulers, old and new": [
        ("ddim", "ddim"),
        ("ddpm", "ddpm"),
        ("singlestep_dpm_solver", "dpmpp_2s"),
        ("multistep_dpm_solver", "dpmpp_2m"),
        ("heun", "heun"),
        ("dpm_discrete (DPM2)", "dpm2"),
        ("dpm_discrete_ancestral (DPM2 a)", "dpm2_ancestral"),
        ("stochastic_karras_ve (EDM Algorithm 2, churn)", "edm_stochastic"),
        ("lms_discrete", "lms"),
        ("pndm, Runge-Kutta warm-up", "pndm"),
        ("pndm, without (PLMS)", "plms"),
        ("score_sde_ve (predictor-corrector)", "score_sde_ve"),
        ("ipndm", "ipndm"),
        ("score_sde_vp", "score_sde_vp"),
        ("euler", "euler"),
        ("euler_ancestral", "euler_ancestral"),
        ("vq_diffusion", "vq_diffusion"),
        ("repaint", "repaint"),
    ],
    "The samplers of the web interfaces; on Karras sigmas with `schedule=\"karras\"`": [
        ("Euler", "euler"),
        ("Euler a", "euler_ancestral"),
        ("LMS", "lms"),
        ("Heun", "heun"),
        ("DPM2", "dpm2"),
        ("DPM2 a", "dpm2_ancestral"),
        ("DPM++ 2S a", "dpmpp_2s_ancestral"),
        ("DPM++ 2M", "dpmpp_2m"),
        ("DPM++ SDE", "dpmpp_sde"),
        ("DPM fast", "dpm_fast"),
        ("DPM adaptive, pair 23", "dpm_adaptive"),
        ("DPM adaptive, pair 12", "dpm_adaptive(order=2)"),
        ("DDIM", "ddim"),
        ("PLMS", "plms"),
    ],
    "Since then": [
        ("DPM-Solver-1", "dpm_solver_1"),
        ("DPM-Solver-2", "dpm_solver_2"),
        ("DPM-Solver-3", "dpm_solver_3"),
        ("DPM++ 2S", "dpmpp_2s"),
        ("DPM++ 3S", "dpmpp_3s"),
        ("DPM++ 3M, as published", "dpmpp_3m_published"),
        ("DPM++ 3M, with the second difference mended", "dpmpp_3m"),
        ("DPM++ 2M SDE", "dpmpp_2m_sde"),
        ("DPM++ 3M SDE", "dpmpp_3m_sde"),
        *((f"UniPC-{order} {variant.upper().replace('BH', 'B')}, predicts {form}",
           f"unipc(order={order}, variant={variant}, form={'noise' if form == 'eps' else 'data'})")
          for order in (1, 2, 3, 4) for variant in ("bh1", "bh2") for form in ("eps", "x0")),
        ("UniP-3 (no corrector)", "unipc(order=3, corrector=False)"),
        *((f"DEIS {label}, order {order}", f"deis(order={order}, kind={kind})")
          for kind, label in (("t", "tAB"), ("rho", "rhoAB"), ("logrho", "log-rho")) for order in (1, 2, 3, 4)),
        ("iPNDM-v", "ipndm_v"),
        ("ETD-RK4", "etdrk4"),
        ("RES 2S", "res_2s"),
        ("RES 3S", "res_3s"),
        ("RES 5S", "res_5s"),
        ("RES 2M", "res_2m"),
        ("RES 3M", "res_3m"),
        ("SA-Solver", "sa_solver"),
        ("SEEDS-1", "seeds_1"),
        ("SEEDS-2", "seeds_2"),
        ("SEEDS-3", "seeds_3"),
        ("ER-SDE-1", "er_sde_1"),
        ("ER-SDE-2", "er_sde_2"),
        ("ER-SDE-3", "er_sde_3"),
        ("Restart", "restart"),
        ("gradient estimation", "gradient_estimation"),
        ("TCD", "tcd"),
        ("LCM", "lcm"),
        ("flow-matching Euler", "flow_euler"),
        ("flow-matching Heun", "flow_heun"),
        ("CFG++, Euler", "euler_cfg_pp"),
        ("CFG++, Euler a", "euler_ancestral_cfg_pp"),
        ("CFG++, DPM++ 2M", "dpmpp_2m_cfg_pp"),
        ("CFG++, DPM++ 2S a", "dpmpp_2s_ancestral_cfg_pp"),
        ("CFG++, RES 2M", "res_multistep_cfg_pp"),
        ("CFG++, RES 2M ancestral", "res_multistep_ancestral_cfg_pp"),
        ("CFG++, gradient estimation", "gradient_estimation_cfg_pp"),
        ("RES 2M ancestral", "res_multistep_ancestral"),
        ("exponential Heun on D", "exp_heun_2_x0"),
        ("exponential Heun on D, SDE", "exp_heun_2_x0_sde"),
        ("DPM++ 2M SDE Heun", "dpmpp_2m_sde_heun"),
        ("UniPC with B_1, by ComfyUI's name", "unipc_bh1"),
        ("SA-Solver, PECE", "sa_solver_pece"),
        ("Heun++", "heunpp2"),
        ("Euler a of flow models", "euler_ancestral_rf"),
        ("DPM2 a of flow models", "dpm2_ancestral_rf"),
        ("DPM++ 2S a of flow models", "dpmpp_2s_ancestral_rf"),
        ("BDIA", "bdia"),
        ("O-BELM", "o_belm"),
        ("CAB", "cab"),
        ("Flow-GRPO's SDE", "flow_grpo"),
        ("DanceGRPO's SDE", "dance_grpo"),
        ("CPS", "flow_cps"),
        ("Rectified-CFG++", "rectified_cfg_pp"),
        *((f"exponential Adams-Bashforth, {form} form", f"lms(order=4, form={form})")
          for form in ("sigma", "noise", "data", "v", "flow")),
        *((f"exponential Adams-Moulton (PEC), {form} form", f"abm(order=3, form={form})")
          for form in ("sigma", "noise", "data", "v", "flow")),
        ("Bogacki-Shampine 3(2)", "bs23"),
        ("Dormand-Prince 5(4)", "dopri5"),
        ("Tsitouras 5(4)", "tsit5"),
        ("Cash-Karp 5(4)", "cash_karp"),
        ("Dormand-Prince 8(7)", "dopri8"),
        ("Euler-Maruyama", "euler_maruyama"),
        ("exponential Euler on the SDE", "euler_ancestral"),
        ("SRA1", "sra1"),
        ("SRA3", "sra3"),
        ("Milstein", "milstein"),
        ("torchdiffeq's methods", "torchdiffeq:dopri5"),
        ("torchsde's methods", "torchsde:euler"),
    ],
}  # fmt: skip
ELSEWHERE = """\
Not rows, since they are no integrators of their own:

- DDIM inversion: `ds.solve(problem.reversed(), "ddim", x=latents)`, with any deterministic row in place of `ddim`.
- Karras sigmas, and every other schedule: `schedule="karras"` with any row.
- The reverse SDE as a problem: `problem.sde(eta=0.5)`; a user's own: `ds.SDEProblem(f, g, span, x0)`.
- Any right-hand side: `ds.ODEProblem(f, span, x0)`, with any deterministic row.
"""
COLUMNS = ("name", "here", "order", "measured", "strong, weak", "NFE", "form", "diffusers", "k-diffusion",
           "A1111, ComfyUI", "source")  # fmt: skip
MEASURED = COLUMNS.index("measured")


def _line(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def line(name: str, spec: str, measured: str = "") -> str:
    """The line of a name; raises SolverError where the catalogue has no such solver."""
    solver = get_solver(spec)
    kind = spec.partition("(")[0]
    if ":" in kind:
        return _line(name, f"`{spec}`", "its own", "", "", "its own", solver.form or "", "", "", "", solver.source)
    entry = find_solver(kind)
    one = solver.order_as_started in (solver.order, None)
    order = str(solver.order or "none") if one else f"{solver.order_as_started}/{solver.order}"
    noise = f"{entry.strong:g}, {entry.weak:g}" if entry.strong is not None and entry.weak is not None else ""
    peers = [entry.aliases.get(peer, "") for peer in ("diffusers", "k-diffusion")]
    shown = ", ".join(filter(None, (entry.aliases.get(peer, "") for peer in ("A1111", "ComfyUI"))))
    cost = "its own" if solver.stages is None else str(solver.stages)
    form = solver.form or ""
    return _line(name, f"`{spec}`", order, measured, noise, cost, form, *peers, shown, entry.source)


def measure(spec: str) -> str:
    """The measured order(s) as "as started/with an exact start", or why there is none."""
    solver = get_solver(spec)
    if solver.order is None or isinstance(solver, Driver) or solver.form is None:
        return ""
    slopes = [validate_order(spec, quick=True).measured]
    if solver.history:
        slopes.append(validate_order(spec, start="exact", quick=True).measured)
    return "/".join(f"{slope:.1f}" for slope in slopes)


def specs() -> list[str]:
    """The solver of every line, once: those that are known by a name, then the rows besides."""
    known = dict.fromkeys(spec for names in SECTIONS.values() for _, spec in names)
    listed = {spec.partition("(")[0] for spec in known}
    return [*known, *(row.name for row in flow_rows() if row.name not in listed)]


def page(measured: Callable[[str], str] = measure) -> str:
    """The whole page as Markdown. measured: solver -> text of its cell, asked once for each of `specs`."""
    parts = [
        "# Every sampler by name\n",
        "Made by `diffsolve validate coverage -o docs/coverage.md`. Order: claimed, as started/with an exact start "
        "where they differ; measured: the least slope on nonlinear problems in float64, at eta = 0 for stochastic "
        "rows; NFE: network calls a step. Every row runs on every schedule, from Python and from the command line.\n",
    ]
    cells = {spec: measured(spec) for spec in specs()}
    named = {spec for names in SECTIONS.values() for _, spec in names}
    besides = [(spec, spec) for spec in cells if spec not in named]
    for title, names in {**SECTIONS, "Rows besides": besides}.items():
        head = [_line(*COLUMNS), _line(*["---"] * len(COLUMNS))]
        parts += [f"## {title}\n", *head, *(line(name, spec, cells[spec]) for name, spec in names), ""]
    return "\n".join([*parts, ELSEWHERE])
