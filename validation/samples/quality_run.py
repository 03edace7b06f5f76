"""The runs of a sample_quality call: what is sampled, how sets are drawn and measured, and what is kept on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffsolve import (
    Grid,
    NonFiniteError,
    ProbabilityFlow,
    ProblemError,
    Solver,
    count_evaluations,
    plan,
    record,
    solve,
)
from diffsolve.problems import Fashion, StableDiffusion, load_features, training_features, training_names
from diffsolve.problems.fashion.features import known_features
from diffsolve.problems.fashion.features import load_features as fashion_features

from .. import cache
from ..report import JSON
from .distances import (
    Estimate,
    Moments,
    Rows,
    frechet_distance,
    paired_distance,
    picture_psnr,
    precision_recall,
    sliced_wasserstein,
)

if TYPE_CHECKING:
    from tqdm import tqdm

VERSION = 2  # of what is kept on disk
KIND = "quality"
PROBE = 8  # steps of the grid on which a solver's own algebra is read, to know it again
SIDE = 32  # of the pictures that the features are of
GUIDANCE = 4.0  # of the emoji model where none is given


@dataclass(frozen=True)
class QualityCell:
    """One solver at one budget. `nfe` is what a sample cost, `measures` are named as in MEASURES.

    status: "ok", "too dear" (no grid fits the budget), "diverged" (not finite) or "failed"; `note` says why.
    """

    solver: str
    budget: int | None
    nfe: int = 0
    steps: int = 0
    seconds: float = 0.0
    measures: Mapping[str, Estimate] = field(default_factory=dict)
    status: str = "ok"
    note: str = ""


@dataclass(frozen=True)
class Drawn:
    """Samples at sigma 0 with what they cost a sample; for pictures, the pixels and their features."""

    x: Tensor
    nfe: int = 0
    steps: int = 0
    seconds: float = 0.0
    pixels: Tensor | None = None
    features: Tensor | None = None


@dataclass
class Source:
    """What is sampled: batches of rows, each with its flow. content: what tells it from another."""

    name: str
    content: str | None
    batches: list[tuple[range, ProbabilityFlow]]

    def seen(self, drawn: Drawn) -> Drawn:
        return drawn

    def against_data(self, drawn: Drawn, seed: int) -> dict[str, Estimate]:
        flow, count = self.batches[0][1], len(drawn.x)
        return {"wasserstein_data": sliced_wasserstein(drawn.x, _true_samples(flow, count, seed), seed=seed)}

    def floors(self, count: int, seed: int) -> dict[str, Estimate]:
        return self.against_data(Drawn(_true_samples(self.batches[0][1], count, seed + 1)), seed)


def _true_samples(flow: ProbabilityFlow, count: int, seed: int) -> Tensor:
    assert hasattr(flow, "sample")
    samples: Tensor = flow.sample(count, seed)
    return samples


@dataclass
class PictureSource(Source):
    """Pictures of a network, measured in the features of a classifier of their kind.

    pixels: of states at sigma 0, (B, c, side, side) in [-1, 1]. load: the classifier. known: features of all real
    pictures, or their moments. perfect: so many features of real pictures, as the best samples would have them. real:
    features for precision and recall, which are not measured without.
    """

    pixels: Callable[[Tensor], Tensor]
    load: Callable[[], Callable[[Tensor], Tensor]]
    known: Tensor | Moments
    perfect: Callable[[int, int], Tensor]
    real: Tensor | None = None

    @cached_property
    def net(self) -> Callable[[Tensor], Tensor]:
        return self.load()

    def seen(self, drawn: Drawn) -> Drawn:
        pixels = self.pixels(drawn.x).cpu()
        return replace(drawn, pixels=pixels, features=torch.cat([self.net(p) for p in pixels.split(256)]))

    def against_data(self, drawn: Drawn, seed: int) -> dict[str, Estimate]:
        assert drawn.features is not None
        found = {"frechet_data": frechet_distance(drawn.features, self.known, rows="fixed", seed=seed)}
        if self.real is not None:
            found["precision"], found["recall"] = precision_recall(drawn.features, self.real)
        return found

    def floors(self, count: int, seed: int) -> dict[str, Estimate]:
        features = self.perfect(count, seed)
        return self.against_data(Drawn(features, features=features), seed)


def source_of(
    problem: str | StableDiffusion | ProbabilityFlow, count: int, batch: int, seed: int, guidance: float | None,
    prompts: Sequence[str] | None, device: str | torch.device | None,
) -> Source:  # fmt: skip
    if count < 2 or batch < 2:
        raise ProblemError(f"count is {count}, batch {batch}; expected at least 2 samples in batches of at least 2")
    if problem == "fashion":
        problem = Fashion(list(range(len(Fashion.CLASSES))), 1.0 if guidance is None else guidance,
                          device="cpu" if device is None else device)  # fmt: skip
    if isinstance(problem, Fashion):
        return _fashion(problem, count, batch)
    rows = [range(a, min(a + batch, count)) for a in range(0, count, batch)]
    if isinstance(problem, ProbabilityFlow) and hasattr(problem, "sample"):
        return Source(type(problem).__name__, cache.digest(problem), [(r, problem) for r in rows])
    model = StableDiffusion.from_pretrained(problem, device=device) if isinstance(problem, str) else problem
    if not isinstance(model, StableDiffusion):
        raise ProblemError(f"the quality of samples of a {type(problem).__name__} can't be measured; expected a "
                              "StableDiffusion or a Fashion, or a flow that can draw its data, such as a "
                              "GaussianMixture")  # fmt: skip
    return _emoji(model, rows, count, seed, GUIDANCE if guidance is None else guidance, prompts)


def _emoji(
    model: StableDiffusion, rows: list[range], count: int, seed: int, guidance: float, prompts: Sequence[str] | None
) -> PictureSource:
    known = training_features()
    if prompts is None:
        names = training_names()
        order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
        prompts = [names[i] for i in order]
    told = [prompts[i % len(prompts)] for i in range(count)]
    content = (model.unet, model.vae, model.text_encoder, model.process, model.prediction, told, guidance,
               known)  # fmt: skip
    batches = [(r, model([told[i] for i in r], guidance=guidance)) for r in rows]
    flow = batches[0][1]
    if (flow.height, flow.width) != (SIDE, SIDE):
        raise ProblemError(f"{model.source} draws {flow.width}x{flow.height} pixels; the features that ship are of "
                              f"emoji of {SIDE}x{SIDE}, so that only such a model's pictures can be measured")

    def perfect(many: int, seed: int) -> Tensor:
        return known[torch.randint(len(known), (many,), generator=torch.Generator().manual_seed(seed))]

    return PictureSource(
        model.source, cache.digest(content), [(r, flow) for r, flow in batches],
        lambda x: model.pixels(x.to(model.device)), load_features, known, perfect)  # fmt: skip


def _fashion(flow: Fashion, count: int, batch: int) -> PictureSource:
    """The labels of the problem in turn; the test pictures are the data, others that no classifier saw are perfect."""
    labels, known = len(flow.labels), known_features()
    if count % labels:
        raise ProblemError(f"count is {count}, but there are {labels} labels; expected a multiple of them")
    batch = max(batch - batch % labels, labels)
    rows = [range(a, min(a + batch, count)) for a in range(0, count, batch)]
    content = cache.digest((flow.network, flow.labels, flow.guidance, flow.process, flow.sigma_data, *known))

    def perfect(many: int, seed: int) -> Tensor:
        order = torch.randperm(len(known.held), generator=torch.Generator().manual_seed(seed))
        return known.held[order[:many]]

    return PictureSource("fashion", content, [(r, flow) for r in rows], lambda x: x.clamp(-1, 1), fashion_features,
                         Moments(known.mean, known.covariance), perfect, known.test)  # fmt: skip


class Run:
    """One call: draws sets, measures them, and remembers both on disk."""

    def __init__(self, source: Source, rule: tuple[object, str], seed: int, bar: tqdm) -> None:
        self.source, self.rule, self.seed, self.bar = source, rule, seed, bar
        self.count = sum(len(rows) for rows, _ in source.batches)

    def key(self, solver: Solver, *more: object) -> str | None:
        """Of the problem, the seed and what the solver does on a grid of this schedule, not only what it is called."""
        if self.source.content is None:
            return None
        flow = self.source.batches[0][1]
        grid = self._grid(PROBE)
        probe = flow.field(solver, torch.zeros(1), (0,), 0, None)
        if solver.traceable:
            algebra = repr(record(solver, probe, plan(solver, grid, probe)))
        else:
            algebra = repr(solver) + version("diffsolve")
        about = self.source.content, self.rule[1], grid.sigmas, solver.name, algebra, self.seed
        return cache.digest(VERSION, *about, *more)

    def _grid(self, n: int) -> Grid:
        flow, (rule, name) = self.source.batches[0][1], self.rule
        return flow.grid(rule, n, final="denoise", sigma_min=None, sigma_max=None, name=name)

    def draw(
        self, solver: Solver, batches: int | None = None, keep: bool = False, *, n: int = 20, nfe: int | None = None
    ) -> Drawn:
        """The samples of the first `batches` batches; with `keep`, each batch is kept on disk as it is done."""
        parts, cost, taken, seconds = [], 0, 0, 0.0
        for rows, flow in self.source.batches[:batches]:
            key = self.key(solver, rows.start, rows.stop, n, nfe) if keep else None
            kept = cache.read_array(KIND, key)
            if kept is None:
                solution = solve(flow, solver, self.rule[0], n, nfe=nfe, seed=self.seed, batch=rows)
                cost, taken, seconds = solution.nfe, solution.steps, seconds + solution.seconds
                parts.append(solution.x.cpu())
                cache.write_array(KIND, key, parts[-1].numpy())
            else:
                parts.append(torch.from_numpy(kept))
            self.bar.update()
        return Drawn(torch.cat(parts), cost, taken, seconds)

    def cell(self, solver: Solver, budget: int, exact: Exact) -> QualityCell:
        head = solver.name or type(solver).__name__, budget
        self.bar.set_description(f"{head[0]} at {budget}", refresh=False)
        key = self.key(solver, budget, self.count, exact.key)
        kept = cache.read_json(KIND, key)
        if kept is not None:
            self.bar.update(len(self.source.batches))
            return _cell(kept)
        least = count_evaluations(solver, self._grid(2), self.source.batches[0][1])  # a step, and one to sigma = 0
        if least > budget:
            self.bar.update(len(self.source.batches))
            return QualityCell(*head, status="too dear", note=f"it needs at least {least} evaluations")
        before = self.bar.n
        try:
            drawn = self.source.seen(self.draw(solver, nfe=budget))
            measures = {**self.source.against_data(drawn, self.seed), **exact.against(drawn, not solver.stochastic)}
        except (NonFiniteError, ProblemError) as error:
            self.bar.update(before + len(self.source.batches) - self.bar.n)
            return QualityCell(*head, status="diverged", note=str(error))
        except Exception as error:  # whatever a plugin raises is a finding, not the end of the run
            self.bar.update(before + len(self.source.batches) - self.bar.n)
            return QualityCell(*head, status="failed", note=f"{type(error).__name__}: {error}")
        done = QualityCell(*head, drawn.nfe, drawn.steps, round(drawn.seconds, 2), measures)
        cache.write_json(KIND, key, asdict(done))
        return done

    def floors(self) -> dict[str, Estimate]:
        return self.source.floors(self.count, self.seed)


class Exact:
    """The reference's samples, drawn when they are first asked for: a run whose cells are all kept needs none."""

    def __init__(self, run: Run, solver: Solver, steps: int) -> None:
        self.run, self.solver, self.steps = run, solver, steps
        self.key = run.key(solver, "reference", steps, run.count)

    @cached_property
    def drawn(self) -> Drawn:
        return self.run.source.seen(self.run.draw(self.solver, keep=True, n=self.steps))

    def against(self, drawn: Drawn, paired: bool) -> dict[str, Estimate]:
        """paired: whether both began in the same noise and added none; rows of a model share their prompt besides."""
        own, seed = self.drawn, self.run.seed
        rows: Rows = "paired" if paired or is_model(self.run.source) else "independent"
        found = {"wasserstein_reference": sliced_wasserstein(drawn.x, own.x, rows=rows, seed=seed)}
        if drawn.features is not None and own.features is not None:
            found["frechet_reference"] = frechet_distance(drawn.features, own.features, rows=rows, seed=seed)
        if paired:
            found["paired"] = paired_distance(drawn.x, own.x)
            if drawn.pixels is not None and own.pixels is not None:
                found["psnr"] = picture_psnr(drawn.pixels, own.pixels)
        return found

    def cell(self) -> QualityCell:
        kept = cache.read_json(KIND, self.key)
        if kept is not None:
            return _cell(kept)
        self.run.bar.set_description(f"reference: {self.solver.name}", refresh=False)
        measures = self.run.source.against_data(self.drawn, self.run.seed)
        nfe = count_evaluations(self.solver, self.run._grid(self.steps), self.run.source.batches[0][1])
        done = QualityCell(self.solver.name, None, nfe, self.steps, round(self.drawn.seconds, 2), measures)
        cache.write_json(KIND, self.key, asdict(done))
        return done

    def error(self) -> Estimate:
        """How far half as many steps are, on the first batch."""
        coarse = self.run.draw(self.solver, 1, True, n=max(self.steps // 2, 1)).x
        fine = self.run.draw(self.solver, 1, True, n=self.steps).x
        return paired_distance(coarse, fine)


def _cell(kept: dict[str, JSON]) -> QualityCell:
    return QualityCell(**{**kept, "measures": {k: Estimate(**v) for k, v in kept["measures"].items()}})


def is_model(source: Source) -> bool:
    return isinstance(source, PictureSource)
