"""The fused player on CUDA: one Triton kernel for what lies between two network calls, and graphs of whole steps.

The kernels are run by Triton's interpreter in the tests where no device is; the graphs by a stand-in that runs a step
again. A plan's coefficients are one table of float64 on the device.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..field import Evaluation
from ..problem import RightHandSide
from ..program import Program, State
from ..solver import Solver
from .instructions import Ask, Normal, Pass, Plan
from .passes import Passing, of_samples
from .player import Folded, FusedLoop, Reached

BLOCK = 1024


@triton.jit  # type: ignore[untyped-decorator]
def _combine(inputs, outputs, table, count, stride, N: tl.constexpr, M: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """outputs[j] = sum_k table[j, k] (inputs, outputs)[k], k < N + j; a share of 0 is none, whatever it is of.

    count: the numbers of a sample; stride: how far its table is from the next one's.
    """
    sample, place = tl.program_id(1).to(tl.int64), tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside, at = place < count, sample * count + place
    table += sample * stride
    for j in tl.static_range(M):
        total = tl.zeros([BLOCK], dtype=outputs[j].dtype.element_ty)
        for k in tl.static_range(N):
            share = tl.load(table + j * (N + M) + k).to(total.dtype)
            if share != 0:
                total += share * tl.load(inputs[k] + at, mask=inside)
        for k in tl.static_range(j):
            share = tl.load(table + j * (N + M) + N + k).to(total.dtype)
            if share != 0:
                total += share * tl.load(outputs[k] + at, mask=inside)
        tl.store(outputs[j] + at, total, mask=inside)


class TritonPass:
    """A pass as one kernel; whether an output is finite is asked of the state at the end, so the answer is 0."""

    def __init__(self, plan: Plan, device: torch.device) -> None:
        self._table, self._places = torch.from_numpy(plan.table).to(device), plan.places

    def __call__(
        self, item: Pass, inputs: Sequence[Tensor], outputs: Sequence[Tensor], shares: Sequence[Tensor] = ()
    ) -> int:
        n, m, samples = len(inputs), len(outputs), 1
        if not m:
            return 0
        table = self._table[self._places[id(item)] :]
        if shares:
            samples = len(outputs[0])
            table = of_samples(item, table[: item.table.size].view(m, -1), shares)
        count = outputs[0].numel() // samples
        grid = triton.cdiv(count, BLOCK), samples
        _combine[grid](tuple(inputs), tuple(outputs), table, count, m * (n + m), n, m, BLOCK)
        return 0


class Graph(Protocol):
    """What was captured, to be run again into the same tensors."""

    def replay(self) -> None: ...


Capture = Callable[[Callable[[], State]], tuple[Graph, State]]
"""Captures a function and hands back the graph, and what the function did."""


class CudaCapture:
    """Captures into CUDA graphs that share their memory."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, step: Callable[[], State]) -> tuple[Graph, State]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            made = step()
        return graph, made


class Captured(NamedTuple):
    """A step's graph, the state that it reads, the one that it leaves, what it draws, and what its last call told."""

    graph: Graph
    read: State
    made: State
    draws: dict[int, Tensor]
    newest: Evaluation | None


class GraphLoop(FusedLoop):
    """Each step one graph, its network calls included, captured where it is taken for the first time, after a step as
    it is, and kept for the next runs of the same denoiser.

    What a step draws is drawn before it, into tensors of its own; the state is copied to where the graph reads it, and
    what it leaves is copied from there.
    """

    execution = "graph"

    def __init__(
        self, solver: Solver, program: Program, plan: Plan, x: Tensor, passing: Passing, capture: Capture
    ) -> None:
        super().__init__(solver, program, plan, x, passing)
        self._capture = capture
        self._steps: dict[int, Captured] = {}
        self._draws: dict[int, Tensor] = {}

    def next(self, state: State, field: RightHandSide) -> State:
        if torch.is_grad_enabled() or not self._fits(state):
            return super().next(state, field)
        index, counted = state.steps, (field.nfe, field.samples)
        if isinstance(field.newest, Folded):
            field.newest.keep()
        if index not in self._steps:
            self._steps[index] = self._captured(state, field)
        step = self._steps[index]
        items = self.plan.steps[index].instructions
        _copy(step.read, state)
        for item in items:
            if isinstance(item, Normal):
                step.draws[item.out].copy_(field.normal(item.span, item.kind))
        step.graph.replay()
        field.nfe, field.samples = counted
        for item in items:
            if isinstance(item, Ask):
                field.count(field.form.sigma(item.s))
        if isinstance(step.newest, Folded):
            field.newest = step.newest.again()
        return _own(step.made, field.nfe)

    def _normal(self, item: Normal, field: RightHandSide) -> Tensor:
        return self._draws[item.out]

    def _give_back(self) -> None:
        """Nothing: its graphs hold its buffers."""

    def _captured(self, state: State, field: RightHandSide) -> Captured:
        read = _own(state, state.nfe)
        items = [item for item in self.plan.steps[state.steps].instructions if isinstance(item, Normal)]
        draws = {item.out: field.normal(item.span, item.kind).clone() for item in items}

        def step() -> State:
            self._draws, self._last, self._prepared = draws, None, None
            return FusedLoop.next(self, read, field)

        step()  # a capture may not begin with what is set up at a first call
        graph, made = self._capture(step)
        self._last = self._prepared = None
        asks = any(isinstance(item, Ask) for item in self.plan.steps[state.steps].instructions)
        newest = field.newest.again() if asks and isinstance(field.newest, Folded) else None
        return Captured(graph, read, made, draws, newest)


def _copy(to: State, state: State) -> None:
    for (_, kept), (_, value) in zip(to.past, state.past, strict=True):
        kept.copy_(value)
    assert to.x is not None
    to.x.copy_(state.x)


def _own(state: State, nfe: int) -> State:
    """The state in tensors of its own."""
    assert state.x is not None
    made: State = object.__new__(Reached)
    made.__dict__.update(state.__dict__)
    made.__dict__.update(
        x=state.x.clone(), past=tuple((node, value.clone()) for node, value in state.past), nfe=nfe, _u=None,
        _scale=getattr(state, "_scale", 1.0), finite=False,
    )  # fmt: skip
    return made


_LOOPS: OrderedDict[tuple[int, ...], tuple[GraphLoop, object]] = OrderedDict()


def cuda_loop(
    solver: Solver, program: Program, plan: Plan, field: RightHandSide, x: Tensor, graph: bool
) -> FusedLoop:
    """The loop on a CUDA device. The latest few with graphs are kept, for runs of the same plan, denoiser and shape."""
    if not graph:
        return FusedLoop(solver, program, plan, x, TritonPass(plan, x.device))
    denoiser = getattr(field, "denoiser", field)
    key = id(plan), id(denoiser), *x.shape, x.element_size(), x.device.index or 0
    if key not in _LOOPS:
        made = GraphLoop(solver, program, plan, x, TritonPass(plan, x.device), CudaCapture())
        _LOOPS[key] = made, (plan, denoiser)
        if len(_LOOPS) > 4:
            _LOOPS.popitem(last=False)
    return _LOOPS[key][0]
