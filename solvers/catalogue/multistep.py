"""Rows of (exponential) multistep methods and of predictor-correctors."""

from __future__ import annotations

from diffsolve import register_solver
from diffsolve.validate import between, choice, whole

from .. import quadrature
from ..adams import Adams, Coordinate, Start
from ..pndm import PseudoRungeKutta
from ..predictor_corrector import PredictorCorrector
from .sources import LU_PP

LIU = "Liu et al. 2022 (arXiv 2202.09778)"
ZHANG = "Zhang & Chen 2022 (arXiv 2204.13902)"
RES = "Zhang et al. 2023 (arXiv 2308.02157)"


@register_solver(
    "lms", order=4, order_as_started=2, tags=("multistep",),
    source="Adams-Bashforth on the uneven grid; Crowson 2022 (k-diffusion)",
    aliases={"diffusers": "LMSDiscreteScheduler", "k-diffusion": "sample_lms", "A1111": "LMS", "ComfyUI": "lms"},
    note="order=1..12; as started 2, since the first step is Euler's: 3 with start=heun, 4 with start=third",
)
def lms(order: int = 4, start: Start = "euler") -> Adams:
    return Adams(order, start=start)


@register_solver(
    "plms", order=2, order_as_started=2, tags=("multistep", "even weights"),
    source=f"{LIU}, eq. 12; Rombach et al. 2022",
    aliases={"diffusers": "PNDMScheduler", "A1111": "PLMS"},
    note="the weights of an even grid: order 4 (3 as started) there, 2 on smooth uneven grids, 1 on jagged ones",
)
def plms(order: int = 4) -> Adams:
    return Adams(order, quadrature="uniform", start="heun")


@register_solver(
    "pndm", order=2, order_as_started=2, tags=("multistep", "even weights"),
    source=f"{LIU}, Algorithm 2 with eq. 11 to 13",
    note="three pseudo Runge-Kutta steps of four evaluations, then plms; PNDMScheduler with skip_prk_steps=False",
)
def pndm() -> Adams:
    return Adams(4, quadrature="uniform", start=PseudoRungeKutta())


@register_solver(
    "ipndm", order=2, order_as_started=2, tags=("multistep", "even weights"), source=f"{ZHANG}, sec. 3.3",
    aliases={"diffusers": "IPNDMScheduler", "ComfyUI": "ipndm"},
    note="plms with Euler's first step; order 4 on even grids, 2 as started",
)
def ipndm(order: int = 4) -> Adams:
    return Adams(_up_to_4(order), quadrature="uniform")


@register_solver(
    "ipndm_v", order=4, order_as_started=2, tags=("multistep",), source=f"{ZHANG}, sec. 3.3, on the uneven grid",
    aliases={"ComfyUI": "ipndm_v"}, note="the same as lms",
)
def ipndm_v(order: int = 4) -> Adams:
    return Adams(_up_to_4(order))


@register_solver(
    "deis", order=3, order_as_started=2, form="noise", tags=("multistep",), source=f"{ZHANG}, eq. 15, Algorithm 1",
    aliases={"diffusers": "DEISMultistepScheduler", "A1111": "DEIS", "ComfyUI": "deis"},
    note="order=1..4; kind=logrho (diffusers), rho (the same as lms) or t: the coordinate of the polynomials",
)
def deis(order: int = 3, kind: str = "logrho", start: Start = "euler") -> Adams:
    coordinates: dict[str, Coordinate] = {"logrho": "variable", "rho": "sigma", "t": "time"}
    coordinate = coordinates[choice(kind, "deis's kind", coordinates)]
    return Adams(_up_to_4(order), coordinate=coordinate, start=start)


@register_solver(
    "dpmpp_2m", order=2, form="data", source=f"{LU_PP}, Algorithm 2", tags=("multistep",),
    aliases={"diffusers": "DPMSolverMultistepScheduler", "k-diffusion": "sample_dpmpp_2m", "A1111": "DPM++ 2M",
             "ComfyUI": "dpmpp_2m"},
    note="form=noise is the multistep DPM-Solver-2; diffusers' solver_type='heun' is res_2m",
)
def dpmpp_2m() -> Adams:
    return Adams(2, quadrature="midpoint")


@register_solver(
    "dpmpp_3m", order=3, order_as_started=2, form="data", source=f"{LU_PP}, sec. 5, with the second difference in full",
    tags=("multistep",), note="the same as res_3m; dpmpp_3m_published is what the peers run",
)
def dpmpp_3m(start: Start = "euler") -> Adams:
    return Adams(3, start=start)


@register_solver(
    "dpmpp_3m_published", order=2, form="data", source=f"{LU_PP}, app. B, as shipped (dpm-solver)",
    tags=("multistep",), aliases={"k-diffusion": "sample_dpmpp_3m_sde(eta=0)"},
    note="half of the second difference, as k-diffusion, diffusers (order 3) and the authors run it; form=noise too",
)
def dpmpp_3m_published() -> Adams:
    return Adams(3, quadrature="third_halved")


@register_solver(
    "res_2m", order=2, form="data", source=f"{RES}, multistep; exponential Adams-Bashforth 2", tags=("multistep",),
    aliases={"ComfyUI": "res_multistep", "RES4LYF": "res_2m"},
)
def res_2m(start: Start = "euler") -> Adams:
    return Adams(2, start=start)


@register_solver(
    "res_3m", order=3, order_as_started=2, form="data", source=f"{RES}, multistep; exponential Adams-Bashforth 3",
    tags=("multistep",), aliases={"RES4LYF": "res_3m"},
)
def res_3m(start: Start = "euler") -> Adams:
    return Adams(3, start=start)


@register_solver(
    "abm", order=3, order_as_started=3, form="noise", tags=("multistep", "predictor-corrector"),
    source="exponential Adams-Bashforth-Moulton, PEC; Hairer, Norsett & Wanner I, sec. III.1",
    note="order=1..12; one evaluation a step; predictor=order - 1 is calmer below 15 steps",
)
def abm(order: int = 3, predictor: int | None = None) -> PredictorCorrector:
    return PredictorCorrector(order if predictor is None else predictor, order)


@register_solver(
    "unipc", order=4, order_as_started=3, form="data", tags=("multistep", "predictor-corrector"),
    source="Zhao et al. 2023 (arXiv 2302.04867), Algorithms 5 to 8",
    aliases={"diffusers": "UniPCMultistepScheduler", "A1111": "UniPC", "ComfyUI": "uni_pc_bh2"},
    note="order=1..4 of the predictor, one less than the method's; variant=bh1 or bh2; form=data (predict_x0) or noise",
)
def unipc(order: int = 3, variant: str = "bh2", corrector: bool = True, lower_final: bool = False) -> Adams:
    choice(variant, "unipc's variant", ("bh1", "bh2"))
    if corrector:
        return PredictorCorrector(_up_to_4(order), order + 1, quadrature=variant, lower_final=lower_final)
    return Adams(_up_to_4(order), quadrature=variant, lower_final=lower_final)


@register_solver(
    "gradient_estimation", order=1, tags=("multistep",), source="Permenter & Yuan 2023 (arXiv 2306.04848), Algorithm 2",
    aliases={"ComfyUI": "gradient_estimation"},
    note="eps taken beyond its last change by gamma - 1: order 1, and 2 at gamma=1.5, where it is ipndm(order=2)",
)
def gradient_estimation(gamma: float = 2.0) -> Adams:
    if gamma == 1.5:
        return Adams(2, quadrature="uniform")
    return Adams(2, quadrature=quadrature.extrapolated(between(gamma, "gamma", -100, 100)))


def _up_to_4(order: int) -> int:
    return whole(order, "its order", most=4)
