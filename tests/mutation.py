"""The faults that mutants.py puts into the product: small edits of one place, all the rest kept byte for byte."""

from __future__ import annotations

import ast
import math
import random
import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate, islice, pairwise, zip_longest
from typing import Any, NamedTuple

SHARES = ((("diffsolve",), 2), (("solvers",), 1), (("problems", "validation"), 1))  # of a sample, by folder

Lines = tuple[int, int]  # the first and the last
Edit = tuple[str, int, int, str]  # the kind; the bytes from start to end, and what stands there instead
TOKENS: dict[type[ast.AST], tuple[str, str, str]] = {
    ast.Add: ("arithmetic", "+", "-"), ast.Sub: ("arithmetic", "-", "+"),
    ast.Mult: ("arithmetic", "*", "/"), ast.Div: ("arithmetic", "/", "*"),
    ast.Lt: ("comparison", "<", "<="), ast.LtE: ("comparison", "<=", "<"),
    ast.Gt: ("comparison", ">", ">="), ast.GtE: ("comparison", ">=", ">"),
    ast.Eq: ("comparison", "==", "!="), ast.NotEq: ("comparison", "!=", "=="),
    ast.And: ("boolean", "and", "or"), ast.Or: ("boolean", "or", "and"),
}  # fmt: skip
PAIRS = (("min", "max"), ("amin", "amax"), ("argmin", "argmax"), ("minimum", "maximum"))
OPPOSITE = {a: b for pair in PAIRS for a, b in (pair, pair[::-1])}


@dataclass(frozen=True)
class Mutant:
    """A file with one fault. code: all of it. texts: the line of the fault, before and after.

    lines: of the statement. scope: of the innermost function, class or module that it stands in; both as `labels`.
    """

    file: str
    kind: str
    line: int
    name: str
    code: bytes
    texts: tuple[str, str]
    lines: frozenset[str]
    scope: frozenset[str]


def labels(source: bytes) -> list[str]:
    """A name for each line that outlives changes elsewhere in the file: what it is defined in, and its text."""
    texts = source.decode().splitlines()
    homes = [""] * len(texts)
    waiting: list[tuple[str, ast.AST]] = [("", ast.parse(source))]
    while waiting:
        home, node = waiting.pop(0)
        for child in ast.iter_child_nodes(node):
            inner = home
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                inner = f"{home}{child.name}."
                homes[child.lineno - 1 : child.end_lineno] = [inner] * ((child.end_lineno or 0) - child.lineno + 1)
            waiting.append((inner, child))
    return [f"{home} {text.strip()}" for home, text in zip(homes, texts, strict=True)]


class Where(NamedTuple):
    """What a node of the syntax tree stands in."""

    lines: Lines
    scope: Lines
    optional: bool = False  # a function that may return None
    default: bool = False  # the arguments of a definition


class Finder:
    """The mutants of one file. Places are the syntax tree's, which counts bytes."""

    def __init__(self, file: str, source: bytes) -> None:
        self.file, self.source, self.tree, self.labels = file, source, ast.parse(source), labels(source)
        self.starts = [0, *accumulate(len(line) for line in source.splitlines(keepends=True))]

    def mutants(self, seed: int) -> Iterator[Mutant]:
        """In random order, each kind as likely as the others."""
        chance, kinds, same = random.Random(f"{seed} {self.file}"), defaultdict(list), ast.dump(self.tree)
        everywhere = 1, len(self.labels)
        for edit, where in self.walk(self.tree, Where(everywhere, everywhere)):
            kinds[edit[0]].append((edit, where))
        while kinds:
            found = kinds[chance.choice(sorted(kinds))]
            (kind, start, end, other), where = found.pop(chance.randrange(len(found)))
            if not found:
                del kinds[kind]
            code = self.source[:start] + other.encode() + self.source[end:]
            with suppress(SyntaxError):
                if ast.dump(ast.parse(code)) == same:
                    continue
                line = bisect_right(self.starts, start)
                before, after = (text.splitlines()[line - 1].decode().strip() for text in (self.source, code))
                name = f"{self.file} {start}-{end} {other}"
                near = (frozenset(self.labels[first - 1 : last]) for first, last in (where.lines, where.scope))
                yield Mutant(self.file, kind, line, name, code, (before, after), *near)

    def walk(self, node: Any, where: Where) -> Iterator[tuple[Edit, Where]]:
        if _is_left_out(node):
            return
        if isinstance(node, ast.stmt):
            where = where._replace(lines=_lines(node))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            scope = where.lines[0], node.end_lineno or node.lineno
            where = Where(where.lines, scope, _may_be_none(getattr(node, "returns", None)))
        where = where._replace(default=where.default or isinstance(node, ast.arguments))
        yield from ((edit, where) for edit in self.edits(node, where))
        for name, value in ast.iter_fields(node):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST) and name not in ("annotation", "returns"):
                    yield from self.walk(child, where)

    def edits(self, node: Any, where: Where) -> Iterator[Edit]:
        """Those of the node itself."""
        start, end = self.span(node)
        match node:
            case ast.BinOp(a, op, b) if type(op) in TOKENS and not _is_text(node):
                yield self.between(a, op, b)
            case ast.AugAssign(a, op, b) if type(op) in TOKENS and not _is_text(b):
                yield self.between(a, op, b)
            case ast.Compare(first, ops, others):
                steps = zip(ops, pairwise([first, *others]), strict=True)
                yield from (self.between(a, op, b) for op, (a, b) in steps if type(op) in TOKENS)
            case ast.BoolOp(op, values):
                yield from (self.between(a, op, b) for a, b in pairwise(values))
            case ast.UnaryOp(ast.Not()):
                yield self.without("not", start, rb"not[ \t]*")
            case ast.UnaryOp(ast.USub()):
                yield self.without("sign", start, rb"-[ \t]*")
            case ast.Constant(bool(value)):
                yield "default" if where.default else "flag", start, end, str(not value)
            case ast.Constant(int(value) | float(value)):
                yield "default" if where.default else "number", start, end, repr(value + 1)
            case ast.Call(ast.Name("abs"), [_], []):
                yield self.without("abs", start, rb"abs")
            case ast.Call(ast.Attribute(_, "abs") as function, [], []):
                yield "abs", self.span(function)[1] - len(".abs"), end, ""
            case ast.Call(ast.Name(name) | ast.Attribute(_, name) as function) if name in OPPOSITE:
                end = self.span(function)[1]
                yield "min/max", end - len(name), end, OPPOSITE[name]
            case ast.Return(value) if value and where.optional:
                yield "return", *self.span(value), "None"
        match node:
            case ast.Assign([ast.Attribute()]) | ast.AugAssign(ast.Attribute()):
                yield "dropped", start, end, "pass"
            case ast.AnnAssign(ast.Attribute(), _, ast.expr()):
                yield "dropped", start, end, "pass"
            case ast.Assign([ast.Tuple(parts)]) if all(isinstance(part, ast.Attribute) for part in parts):
                yield "dropped", start, end, "pass"

    def span(self, node: Any) -> tuple[int, int]:
        if not hasattr(node, "lineno"):
            return 0, 0
        return self.starts[node.lineno - 1] + node.col_offset, self.starts[node.end_lineno - 1] + node.end_col_offset

    def between(self, a: Any, op: ast.AST, b: Any) -> Edit:
        """Another operator: but for brackets and comments it is all that stands between its operands."""
        kind, token, other = TOKENS[type(op)]
        start, end = self.span(a)[1], self.span(b)[0]
        gap = re.sub(rb"#[^\r\n]*", lambda comment: b" " * len(comment[0]), self.source[start:end])
        start += gap.index(token.encode())
        return kind, start, start + len(token), other

    def without(self, kind: str, start: int, word: bytes) -> Edit:
        found = re.compile(word).match(self.source, start)
        return kind, start, found.end() if found else start, ""


def _is_left_out(node: Any) -> bool:
    """Messages, what only a type checker or a command line runs, and guards against what the code itself never does."""
    match node:
        case ast.Raise() | ast.JoinedStr() | ast.Call(ast.Name("warn") | ast.Attribute(_, "warn")):
            return True
        case ast.keyword("strict" | "frozen"):  # of zip and dataclass
            return True
        case ast.If(ast.Name(name) | ast.Attribute(_, name) | ast.Compare(ast.Name(name))):
            return name in ("TYPE_CHECKING", "__name__")
    return False


def _lines(node: Any) -> Lines:
    """Those that run as one statement: of a compound one, the decorators and the head."""
    first = min([node.lineno, *(mark.lineno for mark in getattr(node, "decorator_list", ()))])
    return first, max(node.lineno, node.body[0].lineno - 1) if hasattr(node, "body") else node.end_lineno


def _may_be_none(annotation: Any) -> bool:
    match annotation:
        case ast.BinOp(a, ast.BitOr(), b):
            return _may_be_none(a) or _may_be_none(b) or None in (getattr(a, "value", 0), getattr(b, "value", 0))
        case ast.Subscript(ast.Name(name) | ast.Attribute(_, name)):
            return bool(name == "Optional")
    return False


def _is_text(node: Any) -> bool:
    """Whether it joins strings or lists, to which another operator is no more than a TypeError."""
    if isinstance(node, ast.BinOp):
        return _is_text(node.left) or _is_text(node.right)
    texts = ast.JoinedStr | ast.List | ast.Tuple | ast.ListComp
    return isinstance(node, texts) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def sample(sources: Mapping[str, bytes], seed: int, count: int) -> list[Mutant]:
    """`count` mutants: each group of folders has its share, and in it each file as much as the others.

    A file keeps its place and its mutants whatever becomes of the others.
    """
    shuffled = sorted(sources, key=lambda file: random.Random(f"{seed} {file}").random())
    groups = [([file for file in shuffled if file.split("/")[0] in folders], share) for folders, share in SHARES]
    total = sum(share for files, share in groups if files)
    drawn: list[Mutant] = []
    for files, share in groups:
        decks = [Finder(file, sources[file]).mutants(seed) for file in files]
        rounds = (mutant for row in zip_longest(*decks) for mutant in row if mutant)
        drawn += islice(rounds, math.ceil(count * share / total))
    return drawn
