"""What a step of a scheduler hands back; the data estimate is made when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils import BaseOutput
from torch import Tensor

from .play import Play


@dataclass
class DiffsolveSchedulerOutput(BaseOutput):  # type: ignore[misc]
    """prev_sample: for the next call of the network, or the result. pred_original_sample: the data estimate."""

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None


class _Pair(tuple[Tensor, Tensor]):
    """(prev_sample, pred_original_sample), of which the second is made when it is asked for."""

    make: Callable[[], Tensor]

    def __new__(cls, sample: Tensor, make: Callable[[], Tensor]) -> _Pair:
        pair = super().__new__(cls, (sample, sample))
        pair.make = make
        return pair

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(0) if index == 0 else tuple(self)[index]

    def __iter__(self) -> Iterator[Tensor]:
        yield super().__getitem__(0)
        yield self.make()


def output(
    after: Tensor, sample: Tensor, plays: list[Play], return_dict: bool
) -> DiffsolveSchedulerOutput | tuple[Tensor, Tensor]:
    estimates = [play.estimate() for play in plays]

    def denoised() -> Tensor:
        found = [estimate() for estimate in estimates]
        return (found[0] if len(found) == 1 else torch.cat(found)).to(sample.dtype)

    return DiffsolveSchedulerOutput(after, denoised()) if return_dict else _Pair(after, denoised)
