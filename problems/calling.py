"""How a loaded network is called: compiled, with channels last, in halves where a batch does not fit into memory."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from diffsolve import ModelError
from diffsolve.validate import flag, is_lacking, out_of_memory
from diffsolve.watch import Watcher

if TYPE_CHECKING:
    from diffsolve.run import Run

Said = dict[str, object]


class Calling:
    """The calls of one network, a module (x, ...) -> y, or -> (y, ...), with a row of each tensor for a row of x.

    compile: by torch.compile, for the shapes as they are, where that can be; what speaks against it is a warning, and
    `reason`. channels_last: weights and x in that layout. What does not fit into memory is halved, with a warning, and
    so are the calls that follow: `most` rows at a time, 0 while all fit. Raises ProblemError where one row does not.
    """

    def __init__(self, compile: bool = False, channels_last: bool = False) -> None:
        self.compile, self.channels_last = (
            flag(value, name, ModelError) for name, value in (("compile", compile), ("channels_last", channels_last))
        )
        self.most, self.reason = 0, ""
        self._made: tuple[nn.Module, Callable[..., object]] | None = None

    def __call__(self, module: nn.Module, x: Tensor, *more: Tensor, **named: object) -> Tensor:
        rows = len(x)
        x = x.contiguous(memory_format=torch.channels_last) if self.channels_last and x.ndim == 4 else x
        while True:
            size = min(rows, self.most or rows)
            try:
                parts = [self._run(module, *of) for of in _split((x, *more), named, rows, size)]
                return (parts[0] if len(parts) == 1 else torch.cat(parts)).contiguous()
            except (MemoryError, RuntimeError) as error:
                if not is_lacking(error):
                    raise
                if size == 1:
                    what = f"the {type(module).__name__} on {tuple(x[:1].shape)}"
                    raise out_of_memory(what, "take a smaller height or width", error) from error
            self._halve(x, rows, size)  # out of the handler, which keeps what was made until then alive

    def _halve(self, x: Tensor, rows: int, size: int) -> None:
        self.most = -(-size // 2)
        if x.device.type == "cuda":
            torch.cuda.empty_cache()
        warnings.warn(f"a network call of {size} samples did not fit into memory; now {self.most} at a time",
                      stacklevel=2)

    def _run(self, module: nn.Module, tensors: tuple[Tensor, ...], named: Said) -> Tensor:
        fault = ""
        if self.compile and not self.reason:
            try:
                return _first(self._compiled(module)(*tensors, **named))
            except Exception as error:
                if is_lacking(error):
                    raise
                fault = _brief(error)
        found = _first(module(*tensors, **named))
        if fault:  # and it was the compiler's, for the network itself can be called
            self.reason = fault
            warnings.warn(f"compile=True can't be: {fault}; the network is called as it is", stacklevel=2)
        return found

    def _compiled(self, module: nn.Module) -> Callable[..., object]:
        if self._made is None or self._made[0] is not module:
            self._made = module, torch.compile(module, dynamic=False)
        return self._made[1]

    def laid_out(self, module: nn.Module) -> None:
        """Put the weights where the calls want them."""
        if self.channels_last:
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def told(self) -> Said:
        """What there is to say of it in Solution.stats."""
        said: Said = {"compiled": self.reason or True} if self.compile else {}
        return said | ({"rows": self.most} if self.most else {})


class Telling(Watcher):
    """Puts into the stats of a run what came of its network's calls."""

    def __init__(self, calling: Calling) -> None:
        self.calling = calling

    def close(self, run: Run) -> None:
        if said := self.calling.told():
            run.solution.stats["network"] = said


def _split(
    tensors: tuple[Tensor, ...], named: dict[str, object], rows: int, size: int
) -> list[tuple[tuple[Tensor, ...], Said]]:
    """The arguments of calls of `size` rows."""
    if size == rows:
        return [(tensors, named)]

    def part(value: object, start: int) -> object:
        of_rows = isinstance(value, Tensor) and value.ndim > 0 and len(value) == rows
        return value[start : start + size] if of_rows else value  # type: ignore[index]

    return [
        (tuple(t[start : start + size] for t in tensors), {k: part(v, start) for k, v in named.items()})
        for start in range(0, rows, size)
    ]


def _first(found: object) -> Tensor:
    answer = found[0] if isinstance(found, tuple) else found
    assert isinstance(answer, Tensor)
    return answer


def _brief(error: Exception) -> str:
    """The line of a compiler's long story that names the fault."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = next((line for line in lines if "Error" in line or "not " in line), lines[0] if lines else "")
    return f"{type(error).__name__}: {told}"[:200]
