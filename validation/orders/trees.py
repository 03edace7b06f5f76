"""Rooted trees, the index set of the order conditions (Butcher 2016, ch. 3; Hairer, Norsett & Wanner I, sec. II.2).

A tree is the sorted tuple of its root's subtrees, so the one-node tree is () and prints as t. Leaves may also be
coloured: a string is a leaf of another kind, such as "s", a derivative with respect to time, which reads a method's
node where the leaf t reads the row sum of its coefficients. A coloured leaf counts one towards the order.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from typing import TypeAlias

from .series import Coefficient

Tree: TypeAlias = "tuple[Tree | str, ...]"
Rank: TypeAlias = "tuple[int, str, tuple[Rank, ...]]"

T: Tree = ()


@cache
def order(tree: Tree | str) -> int:
    """The number of nodes."""
    return 1 if isinstance(tree, str) else 1 + sum(map(order, tree))


@cache
def name(tree: Tree | str) -> str:
    """Butcher's bracket notation: t is one node, [t,[t]] a root with a leaf and a chain of two above it."""
    if isinstance(tree, str):
        return tree
    return f"[{','.join(map(name, tree))}]" if tree else "t"


@cache
def rank(tree: Tree | str) -> Rank:
    """The canonical order: small before large, bushy before tall, t before coloured leaves."""
    return (1, tree, ()) if isinstance(tree, str) else (order(tree), "", tuple(map(rank, tree)))


@cache
def trees(nodes: int, leaves: tuple[str, ...] = ()) -> tuple[Tree, ...]:
    """Every rooted tree with so many nodes, by `rank`: 1, 1, 2, 4, 9, 20, 48, 115 of them for 1 to 8 nodes.

    leaves: colours that a leaf may have besides t.
    """
    parts: list[Tree | str] = [*leaves, *(tree for n in range(1, nodes) for tree in trees(n, leaves))]
    parts.sort(key=rank)
    found: list[Tree] = []

    def grow(children: Tree, room: int, first: int) -> None:
        if not room:
            found.append(children)
        for place in range(first, len(parts)):
            if order(parts[place]) > room:
                break
            grow((*children, parts[place]), room - order(parts[place]), place)

    grow((), nodes - 1, 0)
    return tuple(found)


@cache
def density(tree: Tree | str) -> int:
    """gamma: the exact solution's coefficient of the tree is 1/(gamma sigma)."""
    return 1 if isinstance(tree, str) else order(tree) * math.prod(map(density, tree))


@cache
def symmetry(tree: Tree | str) -> int:
    """sigma: the number of the tree's automorphisms."""
    if isinstance(tree, str):
        return 1
    return math.prod(symmetry(child) ** many * math.factorial(many) for child, many in Counter(tree).items())


def is_tall(tree: Tree) -> bool:
    """Whether no node has two children: the trees that a linear autonomous problem can see."""
    return len(tree) <= 1 and all(isinstance(child, str) or is_tall(child) for child in tree)


def is_plain(tree: Tree | str) -> bool:
    """Whether no leaf is coloured."""
    return not isinstance(tree, str) and all(map(is_plain, tree))


def elementary_weights(
    wanted: Iterable[Tree],
    c: Sequence[Coefficient],
    a: Sequence[Sequence[Coefficient]],
    b: Sequence[Coefficient],
) -> list[Coefficient]:
    """Phi of each tree for a Runge-Kutta tableau: it has order p iff Phi = 1/gamma for all trees of up to p nodes.

    The rows of `a` may be short. A leaf "s" takes the node c_i as it is given, the leaf t the row's sum (Hairer,
    Norsett & Wanner I, sec. II.2).
    """
    slopes: dict[Tree, list[Coefficient]] = {}

    def slope(tree: Tree) -> list[Coefficient]:
        """The tree's coefficient in the stages' slopes."""
        if tree not in slopes:
            factors = zip(*map(state, tree), strict=True) if tree else [()] * len(b)
            slopes[tree] = [math.prod(f) for f in factors]
        return slopes[tree]

    def state(tree: Tree | str) -> Sequence[Coefficient]:
        """Its coefficient in the stages' states, or in their times."""
        if isinstance(tree, str):
            return c
        above = slope(tree)
        return [sum(x * y for x, y in zip(row, above, strict=False)) for row in a]

    return [sum(x * y for x, y in zip(b, slope(tree), strict=True)) for tree in wanted]
