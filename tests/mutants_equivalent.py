"""The mutants that no test can tell from the code, each with the reason: mutants.py does not count them."""

from __future__ import annotations

# (file, its line, the line as changed): why no test can tell the two apart
EQUIVALENT: dict[tuple[str, str, str], str] = {
    ("diffsolve/execution/instructions.py",
     "@dataclass(frozen=True, eq=False)",
     "@dataclass(frozen=True, eq=True)"):
        "no two passes are compared, nor is one hashed",
    ("diffsolve/execution/instructions.py",
     "return (NOTHING,) * (self.size - self.inputs)",
     "return (NOTHING,) * (self.size + self.inputs)"):
        "more empty slots than any instruction names; the last one is nowhere all the same",
    ("diffsolve/execution/native.py",
     "key = hashlib.sha256(_SOURCE.read_bytes() + repr((_FLAGS, _machine())).encode()).hexdigest()[:20]",
     "key = hashlib.sha256(_SOURCE.read_bytes() + repr((_FLAGS, _machine())).encode()).hexdigest()[:21]"):
        "the name of a file in the cache, one digit longer",
    ("diffsolve/execution/passes.py",
     "if len(self._found) < samples * count:",
     "if len(self._found) <= samples * count:"):
        "memory that was large enough is made anew, and all that is read of it has been written since",
    ("diffsolve/execution/plan.py",
     "def _pass(self, rows: Sequence[tuple[int, Sum]], watched: int = 0) -> None:",
     "def _pass(self, rows: Sequence[tuple[int, Sum]], watched: int = 1) -> None:"):
        "a sum on the way that is not finite makes the state be looked at once more, and no more",
    ("diffsolve/execution/plan.py",
     "def _rows(self, rows: Sequence[tuple[int, Sum]], watched: int = 0, beside: Sequence[int] = ()) -> Pass:",
     "def _rows(self, rows: Sequence[tuple[int, Sum]], watched: int = 1, beside: Sequence[int] = ()) -> Pass:"):
        "a sum on the way that is not finite makes the state be looked at once more, and no more",
    ("diffsolve/program.py",
     "done = copy(solver).step(_LinearPart(field, 0 * one), one.clone(), op.span, ())",
     "done = copy(solver).step(_LinearPart(field, 0 / one), one.clone(), op.span, ())"):
        "0 / 1 is 0 too",
    ("diffsolve/testing/equations.py",
     "x0 = torch.tensor([0.5, -0.3], dtype=torch.float64)",
     "x0 = torch.tensor([0.5, 0.3], dtype=torch.float64)"):
        "another start of a check that holds from any",
    ("diffsolve/testing/facades.py",
     "x = numbers(2, 2, stream=-5) * SIGMAS[0]",
     "x = numbers(2, 2, stream=5) * SIGMAS[0]"):
        "another start of a check that holds from any",
    ("diffsolve/testing/others.py",
     "assert low <= nodes[-1] <= nodes[0] <= high, f\"{where}: out of range\"",
     "assert low < nodes[-1] <= nodes[0] <= high, f\"{where}: out of range\""):
        "`low` is 1e-9 below what a node may be, so no node is `low`",
    ("diffsolve/testing/world.py",
     "return Gaussian(numbers(*shape), 0.5 + 0.1 * numbers(*shape, stream=-8).abs(), process, dtype=dtype)",
     "return Gaussian(numbers(*shape), 0.5 + 0.1 * numbers(*shape, stream=-8), process, dtype=dtype)"):
        "other deviations, above 0 all the same, of a problem of which any will do",
    ("problems/discrete.py",
     "if not ((nodes == nodes.round()).all() and nodes[0] > nodes[-1] and top >= nodes[0] and nodes[-1] >= 0):",
     "if not ((nodes == nodes.round()).all() and nodes[0] >= nodes[-1] and top >= nodes[0] and nodes[-1] >= 0):"):
        "explicit nodes are two or more and strictly monotone, so the first is never the last",
    ("problems/fashion/features.py",
     "print(f\"step {step + 1} of {steps}: loss {float(loss.detach()):.3f}\", flush=True)",
     "print(f\"step {step + 1} of {steps}: loss {float(loss.detach()):.3f}\", flush=False)"):
        "when a line of progress is flushed",
    ("solvers/er_sde.py",
     "if abs(change) <= 1e-15 * max(1.0, abs(log_sigma)):",
     "if abs(change) <= 1e-15 * max(1.0, (log_sigma)):"):
        "more rounds of Newton's method at its fixed point",
}  # fmt: skip
