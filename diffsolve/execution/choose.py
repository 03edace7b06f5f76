"""Which player a solve takes, and why."""

from __future__ import annotations

from collections import OrderedDict
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor

from ..errors import SolverError
from ..problem import RightHandSide
from ..program import FixedLoop, Program
from ..solver import Driver, Solver
from ..tape import Tape, record
from .fill import filled
from .instructions import NEAR_ONE, Meaning, Meanings, Plan
from .native import native
from .plan import compile_plan
from .player import FusedLoop, network_of
from .structure import Arithmetic, Book
from .tape_player import TapeLoop

Execution = Literal["auto", "eager", "tape", "fused", "graph"]
LEAST = 1024
"""Numbers of a sample from which on a plan pays: below, Python's own work is all there is in a step."""
_MOST = 256
_VARIANTS = 4  # of a structure, by which of its numbers are 0 or 1
_BEFORE = 2  # plans of a structure before its arithmetic is written down, which takes as long as eight
_STRUCTURES: OrderedDict[tuple[object, ...], tuple[int, list[tuple[Plan, Arithmetic]]]] = OrderedDict()
_PLANS: OrderedDict[tuple[object, ...], tuple[Plan, object]] = OrderedDict()


def chosen(
    solver: Solver, field: RightHandSide, program: Program, x: Tensor, execution: Execution, graph: bool
) -> tuple[FixedLoop, str]:
    """The loop over a program, and why it is that one. graph: whether gradients are kept.

    Raises SolverError where what is asked for can't be.
    """
    if execution == "tape":
        return TapeLoop(solver, program), "asked for"
    if execution == "eager":
        return FixedLoop(solver, program), "asked for"
    against = _against(solver, field, program, x, graph)
    on_cuda = x.device.type == "cuda"
    if execution == "graph" and not against and not (on_cuda and not field.constrained):
        against = "what is known of a state is put back between graphs" if on_cuda else "a graph is of a CUDA device"
    if execution == "auto" and not against and on_cuda:
        against = "on CUDA the fused players are taken where they are asked for"
    if execution == "auto" and not against and field.denoiser is None:
        against = "no network's coefficients could be folded"
    if execution == "auto" and not against and x.numel() < LEAST * x.shape[0]:
        against = f"a sample of {x.numel() // len(x)} numbers is below {LEAST}, from where on a plan pays"
    if not against:
        try:
            plan = plan_of(solver, field, program)
        except SolverError as error:
            against = str(error)
        else:
            if on_cuda:
                from .cuda import cuda_loop

                return cuda_loop(solver, program, plan, field, x, execution == "graph"), "asked for"
            library = native()
            why = "" if library.library is not None else f"by torch, for {library.reason}"
            return FusedLoop(solver, program, plan, x), why or "one compiled pass between two calls"
    if execution != "auto":
        raise SolverError(f"execution={execution!r} can't be: {against}; take execution='eager', or leave it out")
    return FixedLoop(solver, program), against


def _against(solver: Solver, field: RightHandSide, program: Program, x: Tensor, graph: bool) -> str:
    """What speaks against a plan, "" if nothing does."""
    if graph:
        return "gradients flow through eager steps"
    if not (solver.traceable and field.traceable):
        return f"{solver!r} is not traceable" if not solver.traceable else "the noise may depend on the state"
    if isinstance(solver, Driver):
        return f"{solver!r} takes the whole run in hand"
    if type(x) is not Tensor or x.layout != torch.strided:
        return f"the state is a {type(x).__name__}"
    if x.device.type == "cuda" and find_spec("triton") is None:
        return "the kernel of a CUDA device needs triton, which is not installed"
    if x.device.type not in ("cpu", "cuda"):
        return f"there is no fused player for {x.device}"
    return ""


def plan_of(solver: Solver, field: RightHandSide, program: Program) -> Plan:
    """The plan of a program; made once for what it is made of, which stays alive with it. Raises SolverError."""
    network = network_of(field.denoiser)
    scaling = (network.prediction, network.process) if network is not None else ()
    made_of = (solver, program, field.form, *scaling, *vars(solver).values())
    key = (*map(id, made_of), field.denoiser is None, field.eta, field.additive, field.guided, field.constrained)
    if key in _PLANS:
        _PLANS.move_to_end(key)
        return _PLANS[key][0]
    plan = _compiled(record(solver, field, program), field, program.start)
    _PLANS[key] = plan, made_of
    if len(_PLANS) > _MOST:
        _PLANS.popitem(last=False)
    return plan


def _compiled(tape: Tape, field: RightHandSide, start: float) -> Plan:
    """The plan of a tape: of a structure that came before, by filling its numbers in."""
    meanings, folded = meanings_of(field), network_of(field.denoiser) is not None if field.denoiser else None
    key = tape.structure, tape.first, folded, field.form.name
    times, known = _STRUCTURES.pop(key, (0, []))
    _STRUCTURES[key] = times + 1, known
    if len(_STRUCTURES) > _MOST:
        _STRUCTURES.popitem(last=False)
    for plan, arithmetic in known:
        if made := filled(plan, arithmetic, tape, field.form, start, meanings):
            return made
    if times < _BEFORE:
        return compile_plan(tape, field.form, start, meanings)
    book = Book()
    plan = compile_plan(tape, field.form, start, meanings, book)
    known[:] = [(plan, Arithmetic.of(book)), *known[: _VARIANTS - 1]]
    return plan


def meanings_of(field: RightHandSide) -> Meanings:
    """What a network of this field is given and what its answer means, folded where it is a diffusion's."""
    form = field.form
    if field.denoiser is None:
        return lambda s: Meaning(1.0, False)
    network = network_of(field.denoiser)

    def meaning(s: float) -> Meaning:
        sigma = form.sigma(s)
        scale, (on_state, on_denoised) = form.scale(sigma), form.weights(sigma)
        if network is None:
            return Meaning(1 / scale, True, on_state, on_denoised, 0.0, 1.0, sigma=sigma)
        k = network.scaling(sigma)
        skip = k.c_skip / scale
        on_u = on_state + on_denoised * skip
        if abs(on_u) < NEAR_ONE * abs(on_state):  # N is a multiple of what the network says
            on_u = 0.0
        return Meaning(k.c_in / scale, True, on_u, on_denoised * k.c_out, skip, k.c_out, k.c_noise, True, sigma)

    return meaning
