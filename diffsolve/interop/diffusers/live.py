"""A pipeline that stands in its loop, asked for its network's answer at any sample and time, and let go at the end.

The pipeline runs in a thread of its own, and one of the two always waits for the other. Its scheduler hands each
answer over, and its list of times goes on as long as there are questions. Encoders, guidance and decoder are its own.
"""

from __future__ import annotations

import inspect
import math
import threading
import weakref
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor

from ...errors import DiffsolveError, ProblemError
from .config import levels
from .output import DiffsolveSchedulerOutput
from .scheduler import DiffsolveScheduler

NOBODY = math.inf  # in the place of a time: nobody has called the network since the one before
LISTED = 1000  # times that a pipeline is shown unless it is told a number


class PipelineStopped(DiffsolveError):  # noqa: N818
    """The pipeline was interrupted from outside, and goes on to its end with the sample it has."""


class _Stop(BaseException):
    """Unwinds the pipeline."""


@dataclass(frozen=True)
class Question:
    """What the network is to be asked: at a sample, told a time; or, without a time, the sample to end with."""

    sample: Tensor
    t: float | None
    grad: bool


@dataclass(frozen=True)
class Answer:
    """What it said, and at which sample and time; `known` is the data where the pipeline puts it back (`held`)."""

    raw: Tensor
    sample: Tensor
    t: float
    held: Tensor | None = None
    known: Tensor | None = None


Reply = Answer | BaseException | Callable[[], Any]


@dataclass
class PutBack:
    """What an inpainting pipeline puts back after each step: data and noise, the same for all calls, and where."""

    original: Tensor | None = None
    noise: Tensor | None = None
    held: Tensor | None = None


class Parts:
    """States that a pipeline keeps apart, each with a copy of its scheduler, such as video and sound: one to a solver.

    They are joined to (B, N); a state that is alone stays as it is.
    """

    def __init__(self) -> None:
        self.count = 1
        self.answers: dict[int, tuple[Tensor, Tensor]] = {}  # raw, sample
        self.due: dict[int, Tensor] = {}  # handed out, and filled once all have answered
        self.shapes: list[torch.Size] = []

    def joined(self, tensors: list[Tensor]) -> Tensor:
        if self.count == 1:
            return tensors[0]
        if len({len(t) for t in tensors}) > 1:
            raise ProblemError(f"the pipeline's states have batches of {[len(t) for t in tensors]}; expected the same")
        return torch.cat([t.flatten(1) for t in tensors], 1)

    def split(self, x: Tensor) -> list[Tensor]:
        """A joined state as the pipeline has it."""
        if self.count == 1:
            return [x]
        cut = torch.split(x, [math.prod(shape[1:]) for shape in self.shapes], 1)
        return [part.reshape(shape) for part, shape in zip(cut, self.shapes, strict=True)]


class Desk:
    """Where the pipeline's side of it waits: its scheduler and its times are both of it.

    kept: what one start of the pipeline has put back, for the next.
    """

    def __init__(self, kept: PutBack) -> None:
        self.kept, self.parts = kept, Parts()
        self.asked: float | None = None  # the time of the call under way, unless it is the pipeline's first
        self.noised: Tensor | None = None  # what is put back into the sample that was handed over
        self.questions: SimpleQueue[Question | None] = SimpleQueue()
        self.replies: SimpleQueue[Reply] = SimpleQueue()
        self.due: float | None = NOBODY  # the time of the call that is due, None at the end
        self.handed: Tensor | None = None
        self.span: tuple[int, int] = (0, 0)

    def answer(self, raw: Tensor, t: float, sample: Tensor, part: int = 0) -> Tensor:
        """Hand the answer over; the sample for the next call, or where it is going to be, once all parts are there."""
        parts = self.parts
        parts.answers[part] = raw, sample
        if len(parts.answers) < parts.count:
            parts.due[part] = torch.empty_like(sample)
            return parts.due[part]
        raws, samples = zip(*(parts.answers.pop(i) for i in range(parts.count)), strict=True)
        parts.shapes = [each.shape for each in samples]
        whole = parts.joined(list(samples))
        held = None if self.handed is None else self._held(whole, self.handed)
        known = None if held is None else self.kept.original
        self.replies.put(Answer(parts.joined(list(raws)), whole, t, held, known))
        after = [x.to(each.dtype) for x, each in zip(parts.split(self.wait(whole)), samples, strict=True)]
        if parts.count > 1:
            self.handed = parts.joined(after)
        for i, due in parts.due.items():
            due.copy_(after[i])
        parts.due = {}
        return after[part]

    def _held(self, sample: Tensor, handed: Tensor) -> Tensor | None:
        """Where the pipeline has put back what it knows. Raises ProblemError for any other change of the sample."""
        kept, noised = self.kept, self.noised
        if noised is None:
            if sample is handed or bool(_near(sample, handed).all()):
                return None
            raise ProblemError(
                "the pipeline changed the sample before its network saw it, so its answer is not about what was asked; "
                "put a DiffsolveScheduler with steps of its own into a pipeline that edits"
            )
        as_handed, put = _near(sample, handed), _near(sample, noised)
        if not bool((as_handed | put).all()):
            raise ProblemError(
                "the pipeline mixes what it knows into the sample by a soft mask, or changes it otherwise, so its "
                "answer is not about what was asked, and more steps mix in more: no equation is solved by that. Give "
                "it a mask of 0 and 1, or put a DiffsolveScheduler with steps of its own into it"
            )
        kept.held = put & ~as_handed if kept.held is None else put & (~as_handed | kept.held)
        return kept.held

    def put_back(self, make: Callable[[Tensor, Tensor, Tensor], Tensor], original: Tensor, noise: Tensor) -> Tensor:
        """Known data at the noise level of the call that is due: with the noise of the first time, none at the end."""
        kept = self.kept
        if kept.original is None or kept.noise is None:
            kept.original, kept.noise = original.clone(), noise.clone()
        if self.due is None:
            return kept.original
        self.noised = make(kept.original, kept.noise, torch.tensor([self.due], dtype=torch.float32))
        return self.noised

    def wait(self, like: Tensor) -> Tensor:
        """The next sample, once there is a question."""
        question, self.noised = self.questions.get(), None
        if question is None:
            raise _Stop
        torch.set_grad_enabled(question.grad)
        self.due, self.handed, self.asked = question.t, question.sample.to(like.dtype), question.t
        return self.handed

    def times(self, first: Tensor, span: tuple[int, int], most: int) -> Iterator[Tensor]:
        """The times of the questions, as the pipeline goes through them."""
        self.span, given = span, first
        for _ in range(most):
            self.due = NOBODY
            yield given
            if self.due is None:
                return
            if self.parts.answers:
                raise ProblemError("the pipeline copies its scheduler and takes no step with the copy; put a "
                                   "DiffsolveScheduler with steps of its own into it")
            if self.due == NOBODY:
                self.replies.put(PipelineStopped("the pipeline was interrupted"))
                return
            given = torch.tensor(self.due, dtype=torch.float32, device=first.device)
        raise _Stop


class Times(Tensor):
    """The listed times, which go on as they are asked for."""

    desk: Desk
    span: tuple[int, int]
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __iter__(self) -> Iterator[Tensor]:
        plain = self.as_subclass(Tensor)
        return self.desk.times(plain[0].clone(), self.span, len(plain))

    def __getitem__(self, part: Any) -> Tensor:
        found = super().__getitem__(part)
        if not isinstance(part, slice) or part.step not in (None, 1):
            return found
        start, stop, _ = part.indices(len(self))
        cut = found.as_subclass(Times)
        cut.desk, cut.span = self.desk, (self.span[0] + start, self.span[0] + stop)
        return cut


class AskedScheduler(DiffsolveScheduler):
    """The scheduler of a pipeline that is asked: its plan is but a list of times, its steps are the questions'."""

    desk: Desk
    part = 0  # which of the pipeline's states it takes on

    @property
    def sigmas(self) -> Tensor:
        """At any index the noise level of the call under way, which is none of the list's."""
        listed, asked = super().sigmas, self.desk.asked
        if asked is None:
            return listed
        nature = self._now.clock.plan.recipe.nature
        level = float(levels([asked], nature)[0])
        return torch.full_like(listed, level / (1 + level) if nature.flow else level)

    @property
    def timesteps(self) -> Tensor:
        times = self._now.clock.timesteps().as_subclass(Tensor).as_subclass(Times)
        times.desk, times.span = self.desk, (0, len(times))
        return times

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, eta: float | None = None, generator: object = None,
        return_dict: bool = True, *_: object, **per_token: object,
    ) -> Any:  # fmt: skip
        if per_token.get("per_token_timesteps") is not None:
            model_output = -model_output
        after = self.desk.answer(model_output, float(timestep), sample, self.part)
        return DiffsolveSchedulerOutput(after, after) if return_dict else (after, after)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: object) -> Tensor:
        """Of what a pipeline puts back between two calls, at the level of the next one, whatever the list says."""
        if self.desk.handed is None:
            return super().add_noise(original_samples, noise, timesteps)
        return self.desk.put_back(super().add_noise, original_samples, noise)

    def __deepcopy__(self, memo: object) -> AskedScheduler:
        """For a state beside the first, such as sound: its steps are asked with the others'."""
        if self.desk.handed is not None:
            raise ProblemError("a scheduler that is asked can't be copied in mid-run; its state is the solver's")
        made = type(self).from_config(self.config)
        made.desk, made.part = self.desk, self.desk.parts.count
        self.desk.parts.count += 1
        if self._latest is not None:
            made.set_timesteps(**self._now.given)
        return made  # type: ignore[no-any-return]


class Live:
    """A pipeline called with `given`, standing before its first answer is used."""

    def __init__(self, pipe: object, given: dict[str, object]) -> None:
        if not hasattr(pipe, "scheduler") or not callable(pipe):
            raise ProblemError(f"expected a diffusers pipeline with a scheduler, got {type(pipe).__name__}")
        self.pipe, self.given = pipe, {"num_inference_steps": LISTED} | given
        self._lock = threading.Lock()
        self._desk: Desk | None = None
        self._kept, self._again = PutBack(), _again(given)
        self.known: Answer | None = None
        self.first = self._start()

    def _start(self) -> Answer:
        """The pipeline up to its network's first answer."""
        desk = self._desk = Desk(self._kept)
        pipe = _quiet_copy(self.pipe)
        pipe.scheduler = self.scheduler = AskedScheduler.from_config(
            self.pipe.scheduler.config, solver="euler", schedule="linspace", final="denoise"
        )
        self.scheduler.desk = desk
        call = inspect.unwrap(type(self.pipe).__call__)  # without its no_grad
        given = self.given if self.known is None else self.given | self._again()
        work = threading.Thread(target=_work, args=(desk, call, pipe, given), daemon=True)
        weakref.finalize(self, desk.questions.put, None)
        work.start()
        first = self._reply(desk)
        if not isinstance(first, Answer):
            raise ProblemError(f"{type(self.pipe).__name__} came to its end without a step of its scheduler")
        self.parts = desk.parts
        # what a network answers with may be a buffer of its own, as where it is compiled to a CUDA graph
        self.known = replace(first, raw=first.raw.clone(), sample=first.sample.clone())
        return self.known

    @staticmethod
    def _reply(desk: Desk) -> Answer | Callable[[], Any]:
        reply = desk.replies.get()
        if isinstance(reply, BaseException):
            raise reply
        return reply

    @property
    def levels(self) -> tuple[float, float | None]:
        """The noise levels where the pipeline begins, and where it ends if that is before the data."""
        assert self._desk is not None
        calls, (start, stop) = self.scheduler._now.clock.plan.calls, self._desk.span
        return calls[start].sigma, None if stop >= len(calls) else calls[stop].sigma

    def ask(self, sample: Tensor, t: float) -> Answer:
        """The network's answer, guidance and all. Raises PipelineStopped, and whatever the pipeline raises."""
        with self._lock:
            known = self.known
            if known is not None and known.t == t and not sample.requires_grad and _same(sample, known.sample):
                return known
            for _ in range(2):
                if self._desk is None:
                    self._start()
                assert self._desk is not None
                self._desk.questions.put(Question(sample, t, torch.is_grad_enabled()))
                try:
                    found = self._reply(self._desk)
                except _Stop:  # its list of times is through
                    self._desk = None
                    continue
                assert isinstance(found, Answer)
                return found
        raise ProblemError("the pipeline ends before it is asked")

    def finish(self, sample: Tensor | None) -> Any:
        """What the pipeline makes of a sample at the end of its loop; None: of the one that it has."""
        with self._lock:
            if self._desk is None:
                self._start()
            assert self._desk is not None
            desk, self._desk, self.known = self._desk, None, None
            if sample is not None:
                desk.questions.put(Question(sample, None, False))
            done = self._reply(desk)
            assert callable(done)
            return done()


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether they are one sample, but for the rounding of a change of units."""
    eps = max(torch.finfo(a.dtype).eps, torch.finfo(b.dtype).eps)
    return a.shape == b.shape and bool(torch.allclose(a.detach(), b.detach().to(a), rtol=4 * eps, atol=0.0))


def _near(a: Tensor, b: Tensor) -> Tensor:
    """Where they are the same in that sense, number for number."""
    eps = max(torch.finfo(a.dtype).eps, torch.finfo(b.dtype).eps)
    a, b = a.detach(), b.detach().to(a)
    return torch.isclose(a, b, rtol=4 * eps, atol=0.0) if a.shape == b.shape else torch.zeros_like(a, dtype=torch.bool)


def _again(given: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """What makes the generators that are given anew, as they are now: for a pipeline that has to begin again."""
    own = given.get("generator")
    made = own if isinstance(own, list | tuple) else [own]
    states = [(one.device, one.get_state()) for one in made if isinstance(one, torch.Generator)]

    def again() -> dict[str, Any]:
        copies = []
        for device, state in states:
            copies.append(torch.Generator(device))
            copies[-1].set_state(state)
        if len(copies) != len(made):
            return {}
        return {"generator": copies if isinstance(own, list | tuple) else copies[0]}

    return again


def _work(desk: Desk, call: Callable[..., object], pipe: object, given: dict[str, object]) -> None:
    torch.set_grad_enabled(False)
    try:
        made = call(pipe, **given)
        desk.replies.put(lambda: made)
    except BaseException as error:
        desk.replies.put(error)


def _quiet_copy(pipe: Any) -> Any:
    """A copy that shares its parts but the scheduler, shows no bar, and can be interrupted through the original."""
    own = copy(pipe)
    kind = type(pipe)
    if isinstance(getattr(kind, "interrupt", None), property):
        pipe._interrupt = False

        def interrupt(self: Any) -> bool:
            return bool(self._interrupt or pipe._interrupt)

        own.__class__ = type(kind.__name__, (kind,), {"interrupt": property(interrupt), "__module__": kind.__module__})
    own._progress_bar_config = {"disable": True}
    return own
