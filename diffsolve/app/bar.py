"""The bar that `solve(progress=True)` shows."""

from __future__ import annotations

from typing import Any

from tqdm.auto import tqdm

from ..run import Run
from ..solution import Visit, Watcher


class Bar(Watcher):
    """A progress bar of tqdm's: of steps, or of the share of the way."""

    def __init__(self, count: int | None) -> None:
        self.bar: Any
        if count is None:
            self.bar = tqdm(total=1.0, bar_format="{percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}")
        else:
            self.bar = tqdm(total=count, unit="step")

    def see(self, visit: Visit, run: Run) -> None:
        self.bar.set_postfix(NFE=visit.nfe, refresh=False)
        self.bar.update(visit.share - self.bar.n if visit.count is None else 1)

    def close(self, run: Run) -> None:
        self.bar.close()
