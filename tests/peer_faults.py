"""Where a peer differs from its paper, from the rest of itself or from float64, and what the comparisons do about it.

diffusers 0.42.1 and k-diffusion 0.1.1; docs/parity.md prints the table, test_peer_faults.py checks that each line of
diffusers is what it is said to be, and that the test named exists.
"""

from __future__ import annotations

from dataclasses import dataclass

VERSION = "0.42.1"  # of diffusers


@dataclass(frozen=True)
class Fault:
    """file, line: in diffusers/, or in k_diffusion/. code: a part of that line. shown: the test that shows it."""

    file: str
    line: int
    code: str
    what: str
    followed: str
    shown: str


def _own(test: str) -> str:
    return f"test_peer_faults.py::test_{test}"


DIFFERENT = "test_parity.py::test_it_sees_a_small_difference"
MULTI, UNIPC = "schedulers/scheduling_dpmsolver_multistep.py", "schedulers/scheduling_unipc_multistep.py"
CAST = "casts the state to float32 at every step"
WIDE = "its module is handed a torch whose float32 is float64"
FAULTS = [
    Fault(
        MULTI,
        1116,
        "D2 = ",
        "half of the second difference: `solver_order=3` is of order 2",
        "`dpmpp_3m_published`; `dpmpp_3m` has it in full",
        DIFFERENT,
    ),
    Fault(
        MULTI,
        1139,
        "- 0.5)) * D2",
        "the wrong sign of the second difference in sde-dpmsolver++ of order 3",
        "not followed: `dpmpp_3m_sde` is k-diffusion's",
        _own("the_third_order_of_sde_dpmsolver_has_a_wrong_sign"),
    ),
    Fault(
        MULTI,
        1269,
        "elif self.config.solver_order == 2 or self.lower_order_nums < 2",
        "the second of its order-3 steps is taken by `solver_type`",
        "the same rule in the comparison alone",
        DIFFERENT,
    ),
    Fault(
        MULTI,
        474,
        "sigma_last = ",
        "with Karras noise levels and `sigma_min` the last step has no length: NaN at order 3",
        "that call is left out",
        _own("a_step_of_no_length"),
    ),
    Fault(
        UNIPC,
        388,
        "sigma_last = sigmas[-1]",
        "the same: NaN with `lower_order_final=False`",
        "that call is left out",
        _own("a_step_of_no_length"),
    ),
    Fault(
        "schedulers/scheduling_deis_multistep.py",
        319,
        "sigmas[-1:]",
        "the same; the last call changes nothing",
        "that call is left out",
        _own("a_step_of_no_length"),
    ),
    Fault(
        UNIPC,
        938,
        "rhos_p = torch.ones(1",
        "the order-2 predictor's weight is set to 1/2, not solved for",
        "`unipc`'s own rule; `abm` solves for it",
        DIFFERENT,
    ),
    Fault(
        UNIPC,
        1076,
        "rhos_c = torch.ones(1",
        "the order-1 corrector's weight is set to 1/2, not solved for: an order is lost where L h is large",
        "`unipc`'s own rule; `abm` solves for it",
        DIFFERENT,
    ),
    Fault(
        UNIPC,
        950,
        "B_h * pred_res",
        "no step to sigma = 0 (its default end) with bh1: infinity times 0",
        "compared up to the last node",
        _own("no_step_to_zero"),
    ),
    Fault(
        UNIPC,
        957,
        "B_h * pred_res",
        "nor with `predict_x0=False`",
        "compared with `sigma_min`",
        _own("no_step_to_zero"),
    ),
    Fault(
        UNIPC,
        1209,
        "len(self.timesteps) - self.step_index",
        "lowers its order towards the end of every grid, DEIS and DPM-Solver below 15 steps only",
        "`unipc(lower_final=True)`",
        DIFFERENT,
    ),
    Fault(MULTI, 1254, "torch.float32", CAST, WIDE, _own("the_state_is_cast")),
    Fault("schedulers/scheduling_euler_discrete.py", 751, "torch.float32", CAST, WIDE, _own("the_state_is_cast")),
    Fault(
        "schedulers/scheduling_euler_ancestral_discrete.py", 430, "torch.float32", CAST, WIDE, _own("the_state_is_cast")
    ),
    Fault("schedulers/scheduling_edm_euler.py", 492, "torch.float32", CAST, WIDE, _own("the_state_is_cast")),
    Fault(
        "schedulers/scheduling_flow_match_euler_discrete.py",
        493,
        "torch.float32",
        CAST,
        WIDE,
        _own("the_state_is_cast"),
    ),
    Fault(
        "schedulers/scheduling_flow_match_heun_discrete.py", 289, "torch.float32", CAST, WIDE, _own("the_state_is_cast")
    ),
    Fault(
        "schedulers/scheduling_deis_multistep.py",
        845,
        "np.log(d)",
        "its weights cancel in float32, the more the more steps there are",
        WIDE,
        _own("weights_that_cancel"),
    ),
    Fault(
        "schedulers/scheduling_sasolver.py",
        746,
        "interval_start_cov - 1",
        "its weights cancel in float32, the more the more steps there are",
        WIDE,
        _own("weights_that_cancel"),
    ),
    Fault(
        "schedulers/scheduling_ddim.py",
        445,
        "num_train_timesteps // self.num_inference_steps",
        "a step ends 1000 // n below its start, wherever the next one starts (PNDM 363 and RePaint 302 alike)",
        "step counts that divide 1000, spacing 'leading' or 'trailing'",
        _own("a_step_that_ends_elsewhere"),
    ),
    Fault(
        "schedulers/scheduling_pndm.py",
        297,
        "self.num_inference_steps // 2",
        "half steps are whole timesteps, true halves only where 1000 // n is even",
        "10 steps",
        _own("half_steps_that_are_not_halves"),
    ),
    Fault(
        "schedulers/scheduling_ipndm.py",
        106,
        "torch.linspace(1, 0",
        "starts at sigma = infinity unless it is given betas",
        "it is given betas",
        _own("a_start_at_infinity"),
    ),
    Fault(
        "schedulers/deprecated/scheduling_karras_ve.py",
        127,
        "self.config.sigma_max**2",
        "its schedule holds sigma^2 where its steps take sigma",
        "its steps are given sigma",
        _own("a_schedule_of_squares"),
    ),
    Fault(
        "schedulers/deprecated/scheduling_sde_vp.py",
        89,
        "dt = -1.0 / len(self.timesteps)",
        "its steps are 1/n long, its timesteps (1 - 0.001)/(n - 1) apart",
        "one step at a time",
        _own("steps_of_another_length_than_their_spacing"),
    ),
    Fault(
        "schedulers/scheduling_sde_ve.py",
        282,
        ".mean()",
        "the corrector takes the mean norm of the batch, so that a sample depends on its neighbours",
        "one sample",
        _own("a_sample_that_knows_its_batch"),
    ),
    Fault(
        "pipelines/deprecated/repaint/pipeline_repaint.py",
        218,
        "undo_step(image, t_last",
        "each jump starts one level lower than in the authors' schedule, the last one from sigma = 0",
        "its scheduler in the authors' loop",
        _own("jumps_that_are_a_level_too_low"),
    ),
    Fault(
        "k_diffusion/sampling.py",
        687,
        "d2 = ",
        "half of the second difference: order 2 at eta = 0",
        "`dpmpp_3m_sde`; `dpmpp_3m_sde(mended=True)` has it in full",
        DIFFERENT,
    ),
    Fault(
        "k_diffusion/sampling.py",
        444,
        "eps_cache = {}",
        "evaluates the start of a rejected step again",
        "the same steps, fewer calls",
        "test_dpm_adaptive.py::test_k_diffusion_adaptive",
    ),
]
