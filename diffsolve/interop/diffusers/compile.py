"""A tape in what a pipeline has in hand: each of its registers as a sum of the network's input, its answer and noise.

What is needed beyond the next call is kept, the rest is substituted, so that a call costs a few passes over memory.
"""

from __future__ import annotations

from collections.abc import Iterator

from ...errors import SolverError
from ...field import Noise
from ...solver import Span
from ...tape import Combine, Draw, Evaluate, Line, Projected, Tape
from .calls import START, Call, Sum, Terms, Units, X, tidy


def compiled(tape: Tape, units: Units) -> Iterator[Call]:
    """The calls of a tape, in their order. Raises SolverError where a constraint is put on the state."""
    return _Compiler(tape, units).run()


class _Compiler:
    """The lines of a tape, cut at its evaluations, in sums of what is in hand."""

    def __init__(self, tape: Tape, units: Units) -> None:
        self.units, self.form = units, units.form
        self.end = self.units.from_form(tape.nodes[-1])
        self.result = tape.structure[-1].out
        self.segments: list[list[Line]] = [[]]
        self.calls: list[tuple[Line, int, dict[int, float]]] = []  # evaluation, step, shares of the step's start
        for index, lines in enumerate(tape.lines):
            shares = {0 if index == 0 else tape.structure[index - 1].out: 1.0}
            for line in lines:
                if isinstance(line.op, Projected):
                    raise SolverError("a pipeline puts back what is known of a sample by itself")
                if isinstance(line.op, Evaluate):
                    self.calls.append((line, index, dict(shares)))
                    self.segments.append([])
                    continue
                self.segments[-1].append(line)
                if isinstance(line.op, Combine):
                    pairs = zip(line.op.row, line.coefficients, strict=True)
                    shares[line.op.out] = sum(c * shares.get(r, 0.0) for r, c in pairs)
        self.read = self._last_reads()

    def _last_reads(self) -> dict[int, int]:
        """In which segment each register is read for the last time; segment i + 1 follows call i."""
        last = {self.result: len(self.segments) - 1}
        for i, lines in enumerate(self.segments):
            rows = [line.op.row for line in lines if isinstance(line.op, Combine)]
            if i < len(self.calls) and isinstance(op := self.calls[i][0].op, Evaluate):
                rows.append(op.row)
            for register in (r for row in rows for r in row):
                last[register] = max(last.get(register, 0), i)
        return last

    def run(self) -> Iterator[Call]:
        known, kept = self._begun(), set[int]()
        for i in range(len(self.calls)):
            call, known, kept = self._call(i, known, kept)
            yield call

    def _begun(self) -> dict[int, Sum]:
        """The registers before the first call, whose x is given: the start is what, with the noise, leads to it."""
        first = self.calls[0][0]
        known: dict[int, Sum] = {0: {START: 1.0}}
        self._follow(self.segments[0], known)
        row = _sum_of(first, known)
        share = row.pop(START)
        start = {X: 1 / (share * self.units.from_form(self.form.sigma(first.s)))}
        start |= {z: -c / share for z, c in row.items()}
        return {r: _put_in(terms, START, start) for r, terms in known.items()}

    @staticmethod
    def _follow(lines: list[Line], sums: dict[int, Sum]) -> list[tuple[int, Span, Noise]]:
        """Add what these lines make to the sums; the draws among them."""
        draws = []
        for line in lines:
            if isinstance(line.op, Draw):
                assert line.span is not None
                draws.append((line.op.out, line.span, line.op.kind))
                sums[line.op.out] = {line.op.out: 1.0}
            elif isinstance(line.op, Combine):
                sums[line.op.out] = _sum_of(line, sums)
        return draws

    def _call(self, i: int, known: dict[int, Sum], kept: set[int]) -> tuple[Call, dict[int, Sum], set[int]]:
        """Call i, and the registers that are sums of the next x, and those that are kept."""
        line, step, shares = self.calls[i]
        assert isinstance(line.op, Evaluate)
        sigma = self.form.sigma(line.s)
        sums = dict(known) | {out: self.units.part(name, sigma) for name, out in line.op.parts}
        sums |= {r: {r: 1.0} for r in kept if r not in sums}
        draws = self._follow(self.segments[0], {0: {}}) if i == 0 else []
        draws += self._follow(self.segments[i + 1], sums)
        out, alias = self._following(i, sums)
        needed = {r for r, last in self.read.items() if last > i + 1 and sums.get(r) and r not in alias}
        keep = [(r, _in_order(sums[r])) for r in sorted(needed) if r not in kept]
        share = _sum_of(line, {r: {X: c} for r, c in shares.items()}).get(X, 0.0)
        moves = None
        if share:
            factor = 1 / (share * self.units.from_form(sigma))
            moves = tuple((r, shares[r] * factor) for r in sorted(kept) if shares.get(r))
        first = i == 0 or self.calls[i - 1][1] != step
        call = Call(
            sigma, self.units.told(sigma), step, first, tuple(draws), tuple(keep), tuple(sorted(kept & needed)),
            _in_order(out), moves,
        )  # fmt: skip
        return call, alias, needed

    def _following(self, i: int, sums: dict[int, Sum]) -> tuple[Sum, dict[int, Sum]]:
        """x of the next call, or the result, as a sum; and the register that it is a multiple of, if it is one."""
        if i + 1 == len(self.calls):
            return _times(sums[self.result], self.end), {}
        line = self.calls[i + 1][0]
        assert isinstance(line.op, Evaluate)
        factor = self.units.from_form(self.form.sigma(line.s))
        alias = {}
        if len(line.op.row) == 1:
            alias = {line.op.row[0]: {X: 1 / (factor * line.coefficients[0])}}
        return _times(_sum_of(line, sums), factor), alias


def _sum_of(line: Line, sums: dict[int, Sum]) -> Sum:
    """The row of a line, in terms of what its registers are sums of."""
    assert isinstance(line.op, Evaluate | Combine)
    total: Sum = {}
    for register, c in zip(line.op.row, line.coefficients, strict=True):
        for key, share in sums.get(register, {}).items():
            total[key] = total.get(key, 0.0) + c * share
    return tidy(total)


def _put_in(terms: Sum, key: int, sum_of_key: Sum) -> Sum:
    """A sum in which one of the terms is a sum itself."""
    total = {k: c for k, c in terms.items() if k != key}
    for k, c in sum_of_key.items():
        total[k] = total.get(k, 0.0) + c * terms.get(key, 0.0)
    return tidy(total)


def _times(terms: Sum, factor: float) -> Sum:
    return {key: c * factor for key, c in terms.items()}


def _in_order(terms: Sum) -> Terms:
    """A coefficient of 1 first, which costs no pass over memory."""
    return tuple(sorted(terms.items(), key=lambda term: term[1] != 1))
