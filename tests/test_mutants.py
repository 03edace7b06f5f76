"""The mutation check's own tools: each fault changes the one place that it names, and the right tests are shown it."""

from __future__ import annotations

import math

import pytest
from mutants import EQUIVALENT, ROOT, Map, shown_tests
from mutation import Finder, sample


def mutated(source: str) -> set[str]:
    return {mutant.code.decode() for mutant in Finder("a.py", source.encode()).mutants(0)}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("x = a + b", {"x = a - b"}),
        ("x = a - b", {"x = a + b"}),
        ("x = a * b / c", {"x = a / b / c", "x = a * b * c"}),
        ("x += y", {"x -= y"}),
        ("a < b <= c", {"a <= b <= c", "a < b < c"}),
        ("a > b or a >= c", {"a >= b or a >= c", "a > b or a > c", "a > b and a >= c"}),
        ("a == b != c", {"a != b != c", "a == b == c"}),
        ("a and b and c", {"a or b and c", "a and b or c"}),
        ("not (a or b)", {"(a or b)", "not (a and b)"}),
        ("x = [0, 7, 0.5, 1e-3]", {f"x = [{s}]" for s in ("1, 7, 0.5, 1e-3", "0, 8, 0.5, 1e-3", "0, 7, 1.5, 1e-3",
                                                           "0, 7, 0.5, 1.001")}),
        ("x = True", {"x = False"}),
        ("f(flag=False)", {"f(flag=True)"}),
        ("x = -a", {"x = a"}),
        ("min(a, b)", {"max(a, b)"}),
        ("a.amax(b).min()", {"a.amin(b).min()", "a.amax(b).max()"}),
        ("abs(a)", {"(a)"}),
        ("(a * b).abs()", {"(a * b)", "(a / b).abs()"}),
        ("def f(a, b=2, *, c=False): ...", {"def f(a, b=3, *, c=False): ...", "def f(a, b=2, *, c=True): ..."}),
        ("def f() -> int | None: return g(x)", {"def f() -> int | None: return None"}),
        ("def f() -> int: return g(x)", set()),
        ("self.a = b", {"pass"}),
        ("self.a, self.b = c", {"pass"}),
        ("self.a += b", {"self.a -= b", "pass"}),
        ("a = self.b", set()),
    ],
)  # fmt: skip
def test_each_fault(before: str, after: set[str]) -> None:
    assert mutated(before) == after


@pytest.mark.parametrize(
    "source",
    [
        '"""One of 2: a + b, not True."""',
        'def f() -> int:\n    """-1 or 0."""\n    return g()',
        "x: Literal[1, -2] = y\ndef f(a: Literal[3], *b: Literal[4]) -> Literal[5]: ...",
        'raise ValueError("n is " + str(n + 1), -1 if not n else 0)',
        'x = f"{a + 1:{b - 2}}"',
        'x = "a" + b + "c"',
        'warnings.warn("a", stacklevel=2)',
        "if TYPE_CHECKING:\n    x = 1",
        'if __name__ == "__main__":\n    main(1)',
        "zip(a, b, strict=True)",
        "@dataclass(frozen=True)\nclass A: ...",
    ],
)
def test_what_is_left_alone(source: str) -> None:
    assert mutated(source) == set()


def test_the_rest_of_the_file_is_kept_to_the_byte() -> None:
    source = '"""é"""\r\nx = (é  # a - or *\r\n     + "ü".f(b))\ny  \r\nz = not\\\n a'.encode()
    changed = {(m.line, m.kind): m for m in Finder("a.py", source).mutants(0)}
    assert changed[3, "arithmetic"].code == source.replace(b'+ "', b'- "')
    assert changed[3, "arithmetic"].texts == ('+ "ü".f(b))', '- "ü".f(b))')
    assert changed[3, "arithmetic"].lines == (2, 3)


def test_a_mutant_knows_its_statement_and_its_scope() -> None:
    code = ["a = 1", "", "@wrap(", "2", ")", "def f(", "b=3", "):", "    if b + c:", "        return (", "4", ")"]
    found = {m.texts[0]: (m.lines, m.scope) for m in Finder("a.py", "\n".join(code).encode()).mutants(0)}
    assert found == {
        "a = 1": ((1, 1), (1, math.inf)),
        "2": ((3, 8), (3, 12)),
        "b=3": ((3, 8), (3, 12)),
        "if b + c:": ((9, 9), (3, 12)),
        "4": ((10, 12), (3, 12)),
    }


def test_a_sample_is_even_and_comes_again() -> None:
    sources = {f"{folder}/{name}.py": b"x = a + b * 3\ny = not -c\n" * 40
               for folder in ("diffsolve", "solvers", "problems", "validation") for name in "pq"}  # fmt: skip
    drawn = sample(sources, 1, 80)
    assert drawn == sample(sources, 1, 80) != sample(sources, 2, 80)
    assert len({mutant.name for mutant in drawn}) == 80
    count = {file: sum(mutant.file == file for mutant in drawn) for file in sources}
    shares = {"diffsolve": 20, "solvers": 10, "problems": 5, "validation": 5}
    assert count == {file: shares[file.split("/")[0]] for file in sources}
    assert {mutant.kind for mutant in drawn} == {"arithmetic", "number", "not", "sign"}
    alone = sample({"solvers/p.py": sources["solvers/p.py"]}, 1, 30)
    assert len(alone) == 30


def test_the_tests_of_a_line_come_first_the_fastest_of_each_before_its_other_cases() -> None:
    (mutant,) = Finder("a.py", b"def f():\n    return a + b\n").mutants(0)
    near = [("t::f[slow]", 3.0), ("t::f[fast]", 1.0), ("t::g", 2.0), ("t::fails", math.inf), ("t::rest", 0.1)]
    maps = [
        Map(near, [[-1], [0, 1, 2, 3]], {"a.py": {"1": 0, "2": 1}}),
        Map([("u::at_import", 0.2), ("u::too_long", 1e6)], [[-1]], {"a.py": {"1": 0}}),
        Map([("v::elsewhere", 0.1)], [[0]], {"b.py": {"2": 0}}),
    ]
    names = [name for name, _ in shown_tests(mutant, "a.py", maps)]
    assert names == ["t::f[fast]", "t::g", "t::f[slow]", "t::rest", "u::at_import"]
    assert shown_tests(mutant, "c.py", maps) == []


def test_what_is_called_equivalent_still_stands_there() -> None:
    gone = [(file, line) for file, line, _ in EQUIVALENT
            if line not in map(str.strip, (ROOT / file).read_text(encoding="utf-8").splitlines())]  # fmt: skip
    assert gone == []
