"""The mutation check's own tools: each fault changes the one place that it names, and the right tests are shown it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from mutants import PASSING, ROOT, Kept, Map, fast_tests, near_files, words
from mutants_equivalent import EQUIVALENT
from mutation import Finder, Mutant, labels, sample


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
    assert changed[3, "arithmetic"].lines == frozenset(labels(source)[1:3])


def test_a_line_is_known_by_what_it_is_defined_in_and_its_text() -> None:
    code = ["a = 1", "", "class A:", "    @wrap", "    def f(", "b=3", "    ):", "        return b", "", "a = 1"]
    assert labels("\n".join(code).encode()) == [
        " a = 1", " ", "A. class A:", "A. @wrap", "A.f. def f(", "A.f. b=3", "A.f. ):", "A.f. return b", " ", " a = 1"
    ]  # fmt: skip


def test_a_mutant_knows_its_statement_and_its_scope() -> None:
    code = ["a = 1", "", "@wrap(", "2", ")", "def f(", "b=3", "):", "    if b + c:", "        return (", "4", ")"]
    names = labels("\n".join(code).encode())
    places = {"a = 1": ((1, 1), (1, 12)), "2": ((3, 8), (3, 12)), "b=3": ((3, 8), (3, 12)),
              "if b + c:": ((9, 9), (3, 12)), "4": ((10, 12), (3, 12))}  # fmt: skip
    found = {m.texts[0]: (m.lines, m.scope) for m in Finder("a.py", "\n".join(code).encode()).mutants(0)}
    assert found == {
        text: tuple(frozenset(names[first - 1 : last]) for first, last in near) for text, near in places.items()
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
    more = sample(sources | {"solvers/new.py": b"x = a + b"}, 1, 80)
    assert [m for m in more if m.file != "solvers/new.py"] == [m for m in drawn if m in more]


F = "f. return a + b"


def a_mutant(code: bytes = b"def f():\n    return a + b\n") -> Mutant:
    (mutant,) = Finder("a.py", code).mutants(0)
    return mutant


def test_the_tests_of_a_line_come_first_the_fastest_of_each_before_its_other_cases() -> None:
    near = [("t::f[slow]", 3.0), ("t::f[fast]", 1.0), ("t::g", 2.0), ("t::fails", math.inf), ("t::rest", 0.1)]
    maps = [
        Map(near, [[4], [0, 1, 2, 3]], {"a.py": {"f. def f():": 0, F: 1}}),
        Map([("u::elsewhere in the file", 0.01), ("u::too_long", 1e6)], [[0, 1]], {"a.py": {" b = 1": 0}}),
        Map([("v::elsewhere", 0.1)], [[0]], {"b.py": {F: 0}}),
    ]
    names = ["t::f[fast]", "t::g", "t::f[slow]", "t::rest", "u::elsewhere in the file"]
    assert fast_tests(a_mutant(), "a.py", maps) == names
    assert fast_tests(a_mutant(), "c.py", maps) == []


def test_the_slow_tests_are_those_of_the_files_that_import_a_module_or_run_it_the_most() -> None:
    run = {"a/b.py": {F: 0}}
    maps = {
        "few": Map([("few::1", 1.0), ("few::2", 1.0)], [[0]], run),
        "most": Map([("most::1", 1.0)], [[0]], run),
        "none": Map([("none::1", 1.0)], [[0]], {"a/c.py": {F: 0}}),
        "imports": Map([], [], {}),
        "is there as it is imported": Map([("there::1", 1.0)], [[0]], {"a/b.py": {"f. def f():": 0}}),
    }
    texts = dict.fromkeys(maps, "import a.bc") | {"imports": "from a.b import f"}
    assert near_files(a_mutant(), "a/b.py", maps, texts) == ["most", "imports", "few"]
    for test in ("few", "most"):
        del maps[test]
    assert near_files(a_mutant(), "a/b.py", maps, texts) == ["imports", "is there as it is imported"]


def test_the_names_of_slow_tests_are_known_by_the_strings_of_a_line_and_the_cases_that_alone_run_it() -> None:
    mutant = a_mutant(b'x = f("row", "a", b + c)\n')
    (line,) = mutant.lines
    maps = [Map([("t::f[one-both]", 1.0), ("t::f[two-both]", 1.0)], [[1]], {"a.py": {line: 0}})]
    assert words(mutant, "a.py", maps) == ["row", "two"]


def test_a_result_holds_as_long_as_what_it_rests_on(tmp_path: Path) -> None:
    code, tests = {"a.py": b"1", "b.py": b"2"}, {"test_a.py": b"3", "test_b.py": b"4"}
    killed, alive = (Finder("a.py", text).mutants(0) for text in (b"a + b", b"a - b"))
    first, second = next(killed), next(alive)
    kept = Kept(tmp_path / "results.json", code, tests)
    kept.put(first, {"verdict": "killed", "by": "test_a.py::f", "sure": True})
    kept.put(second, {"verdict": PASSING, "by": "", "sure": True})

    def hold(code: dict[str, bytes], tests: dict[str, bytes]) -> tuple[bool, bool]:
        again = Kept(tmp_path / "results.json", code, tests)
        return again[first] is not None, again[second] is not None

    assert hold(code, tests) == (True, True)
    assert hold(code | {"b.py": b"5"}, tests) == hold(code, tests | {"test_b.py": b"5"}) == (True, False)
    assert hold(code | {"a.py": b"5"}, tests) == hold(code, tests | {"test_a.py": b"5"}) == (False, False)


def test_what_is_called_equivalent_still_stands_there() -> None:
    gone = [(file, line) for file, line, _ in EQUIVALENT
            if line not in map(str.strip, (ROOT / file).read_text(encoding="utf-8").splitlines())]  # fmt: skip
    assert gone == []
