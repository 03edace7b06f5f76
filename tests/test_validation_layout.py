"""The rooms of validation: which folder may see which, and that no module leads back to itself."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "validation"
QUESTIONS = {"orders", "stability", "cost", "samples"}
MAY_SEE = {"": set(), "claims": {"", *QUESTIONS}, "site": {"", "claims", *QUESTIONS}} | {q: {""} for q in QUESTIONS}


def module_of(file: Path) -> str:
    """ "orders.order" for validation/orders/order.py; "orders" for its __init__.py, "" for validation's own."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(file): file for file in ROOT.rglob("*.py")}


def imports(module: str, source: str) -> set[str]:
    """The modules of validation that one imports, anywhere in it: at its top, in a function, or for types alone."""
    parts = module.split(".") if module else []
    package = parts if MODULES.get(module, Path()).name == "__init__.py" else parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = ".".join([*package[: len(package) - node.level + 1], *(node.module.split(".") if node.module else [])])
        for name in node.names:
            below = f"{base}.{name.name}" if base else name.name
            found.add(below if below in MODULES else base)
    return found - {module}


GRAPH = {module: imports(module, file.read_text(encoding="utf-8")) for module, file in MODULES.items()}


def circle(graph: dict[str, set[str]]) -> list[str]:
    """A way from a module back to itself, or nothing."""
    done: set[str] = set()

    def walk(module: str, trail: list[str]) -> list[str]:
        if module in trail:
            return [*trail[trail.index(module) :], module]
        if module in done:
            return []
        for other in sorted(graph.get(module, ())):
            if found := walk(other, [*trail, module]):
                return found
        done.add(module)
        return []

    return next((found for module in sorted(graph) if (found := walk(module, []))), [])


def room(module: str) -> str:
    return module.partition(".")[0] if module.partition(".")[0] in MAY_SEE else ""


def test_there_is_no_circle() -> None:
    assert circle({module: seen for module, seen in GRAPH.items() if module}) == []


@pytest.mark.parametrize("module", sorted(GRAPH.keys() - {""}))
def test_data_flows_one_way(module: str) -> None:
    own = room(module)
    assert {other for other in GRAPH[module] if room(other) not in {own, *MAY_SEE[own]}} == set()
    assert "" not in GRAPH[module], "the package itself imports all of them"


@pytest.mark.parametrize(
    "sources",
    [
        {"a": "from .b import x", "b": "def f():\n    from .a import y"},
        {"a": "from . import b", "b": "from .c import z", "c": "if TYPE_CHECKING:\n    from .a import y"},
    ],
)
def test_a_circle_is_seen(sources: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in sources:
        monkeypatch.setitem(MODULES, name, ROOT / f"{name}.py")
    assert circle({name: imports(name, code) for name, code in sources.items()})
    assert not circle({"a": {"b", "c"}, "b": {"c"}, "c": set()})


def test_levels_are_counted() -> None:
    assert imports("orders.order", "from ..report import as_json\nfrom .slopes import Slope\nfrom .. import cache") == {
        "report", "orders.slopes", "cache",
    }  # fmt: skip
    assert imports("orders.order", "from .. import validate_order") == {""}
