"""Which code a generated page describes: a line at its top, and the check that the code is still the same.

    <!-- made by: diffsolve validate coverage -o docs/coverage.md; commit 6657940; inputs 3f0c9a7b51d2 -->

A JSON file has the same words under "stamp". The inputs are a digest of the source that the page is made from, comments
and docstrings left out: a page is as old as the last change that could have changed it. A "+" at the commit says that
the inputs had changes beyond it.
"""

from __future__ import annotations

import ast
import hashlib
import io
import json
import re
import shlex
import subprocess
import sys
import tokenize
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import diffsolve

from ..cache import cache_folder
from ..report import write_text

ROOT = Path(str(diffsolve.__file__)).parent.parent
PRODUCT = (
    "diffsolve", "!diffsolve/app", "!diffsolve/interop", "problems", "!problems/emoji/train.py",
    "!problems/emoji/evaluate.py", "!problems/emoji/data.py", "!problems/vq/train.py", "!problems/training.py",
    "!problems/fashion", "!problems/checkpoints.py", "!problems/single_file.py", "!problems/weights.py",
    "!problems/configs.py", "!problems/pictures.py", "solvers",
)  # fmt: skip
"""What can change a figure: not how files are read, nor how models were trained."""
ORDERS = ("validation/problems.py", "validation/runs.py", "validation/orders/order.py", "validation/orders/slopes.py")
CASES = ("validation/problems.py", "validation/references.py")
PAGES = {
    "docs/claims.md": (*PRODUCT, *CASES, "validation/claims", "validation/samples/distances.py"),
    "docs/coverage.md": (*PRODUCT, *ORDERS, "validation/site/coverage.py"),
    "docs/fashion_quality.md": (
        *PRODUCT, "problems/fashion", "!problems/fashion/train.py", "validation/samples",
        "!validation/samples/bound.py", "!validation/samples/likelihood.py",
    ),
    "docs/parity.md": (
        *PRODUCT, "benchmarks/parity.py", "tests/parity_cases.py", "tests/peer_faults.py", "tests/peers.py",
        "tests/peers_flow.py", "tests/peers_k_diffusion.py", "tests/peers_noise.py",
    ),
    "docs/default_tables.md": (*PRODUCT, *CASES, "validation/cost/error_for_cost.py", "benchmarks/default.py"),
    "docs/quality.md": (*PRODUCT, *CASES, "problems/fashion", "validation/cost/reached.py"),
    "docs/validation.html": (
        *PRODUCT, "validation", "!validation/claims", "!validation/site", "validation/site/suite.py",
        "validation/site/page.py",
    ),
    "solvers/auto.json": (*PRODUCT, "!solvers/auto.json", *CASES, "problems/fashion", "validation/cost/choices.py"),
    "benchmarks/results/error_for_cost.md": (*PRODUCT, *CASES, "validation/cost", "!validation/cost/budget.py"),
    "benchmarks/results/overhead.md": (*PRODUCT, "benchmarks/overhead.py"),
    "benchmarks/results/overhead-cuda.md": (*PRODUCT, "benchmarks/overhead.py"),
    "benchmarks/results/walk.md": (*PRODUCT, "benchmarks/walk.py"),
    "benchmarks/results/queue.md": (*PRODUCT, "benchmarks/many.py"),
    "benchmarks/results/precision.md": (*PRODUCT, "problems/fashion", "benchmarks/precision.py"),
    "benchmarks/results/step.md": (*PRODUCT, "benchmarks/step.py"),
    "benchmarks/results/tuned.md": (*PRODUCT, "problems/fashion", "validation/cost/tune.py", "benchmarks/tuned.py"),
}  # fmt: skip
"""The pages that are made by a command, and what each is made from: folders and files, those after a ! left out."""
OLD = {
    "benchmarks/results/error_for_cost.md": "made before the kernel's second version; it takes an hour of a core",
}
"""Pages that are known to be older than the code, and why they have not been made again."""
WORDS = re.compile(r"made by: (?P<command>.*); commit (?P<commit>\S+); inputs (?P<inputs>\S+)")
LINE = re.compile(rf"<!-- {WORDS.pattern} -->\s*\n")


def words(page: str) -> str:
    """What is said of a page of PAGES, or of one that is made of the same, that this command makes now."""
    inputs = PAGES[page]
    return f"made by: {this_command()}; commit {commit(inputs)}; inputs {digest(inputs)}"


def line(page: str) -> str:
    """The line for its top."""
    return f"<!-- {words(page)} -->\n"


def write(page: str, path: Path, text: str) -> None:
    """A page of PAGES into a file, its line first."""
    write_text(path, line(page) + text.rstrip("\n") + "\n")


def this_command() -> str:
    """The command that is running, as one would type it again."""
    script, *options = sys.argv
    name = Path(script).name
    return shlex.join([*(["python", f"benchmarks/{name}"] if name.endswith(".py") else [name]), *options])


def commit(inputs: Iterable[str], root: Path | None = None) -> str:
    """The commit that is checked out; "unknown" away from a repository."""

    def git(*command: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root or ROOT), *command], capture_output=True, text=True, check=True
        ).stdout.strip()  # fmt: skip

    try:
        changed = git("status", "--porcelain", "--", *(part for part in inputs if part[0] != "!"))
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def digest(inputs: Iterable[str], root: Path | None = None) -> str:
    """Of the files that `inputs` name; "unknown" where one of them is not there, as away from a checkout."""
    found, root = hashlib.sha256(), root or ROOT
    try:
        for path in _files(tuple(inputs), root):
            found.update(f"{path.relative_to(root).as_posix()}\0{content(path)}\0".encode())
    except FileNotFoundError:
        return "unknown"
    return found.hexdigest()[:12]


def kept(page: str) -> Path:
    """Where the figures of a page are kept while they are measured: a file for each state of the code."""
    return cache_folder() / f"{Path(page).stem}-{digest(PAGES[page])}.json"


def _files(inputs: tuple[str, ...], root: Path) -> Iterator[Path]:
    """Every file that is named, or lies in a folder that is, in one order. Raises FileNotFoundError for one missing."""
    wanted: set[Path] = set()
    for part in inputs:
        path = root / part.removeprefix("!")
        files = {p for p in path.rglob("*") if p.is_file() and "__pycache__" not in p.parts} or {path}
        if part[0] == "!":
            wanted -= files
        elif not path.exists():
            raise FileNotFoundError(path)
        else:
            wanted |= files
    return iter(sorted(wanted))


def content(path: Path) -> str:
    """A digest of a file, of Python's its code alone; made again when the file has changed."""
    return _content(path, path.stat().st_mtime_ns)


@cache
def _content(path: Path, changed: int) -> str:
    data = path.read_bytes()
    text = code_of(data.decode()).encode() if path.suffix == ".py" else data
    return hashlib.sha256(text).hexdigest()


def code_of(source: str) -> str:
    """Python source without its comments, docstrings and blank lines: what can change what it does."""
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            for row in range(node.lineno, (node.end_lineno or node.lineno) + 1):
                lines[row - 1] = ""
    return "\n".join(text.rstrip() for text in lines if text.strip())


def stale(root: Path | None = None) -> list[tuple[str, str]]:
    """(page, what is wrong) of each page that is not of the code that is there, or says nothing of it."""
    root = root or ROOT
    here = [*(page for page in PAGES if (root / page).exists()), *_strangers(root)]
    return [(page, wrong) for page in here if (wrong := _wrong(page, root))]


def _strangers(root: Path) -> list[str]:
    """Pages in the folder of results that nobody has said what they are made from."""
    found = (path.relative_to(root).as_posix() for path in sorted((root / "benchmarks" / "results").glob("*.md")))
    return [page for page in found if page not in PAGES]


def _wrong(page: str, root: Path) -> str:
    if page not in PAGES:
        return "it is not in PAGES, so that nothing says what it is made from"
    with (root / page).open(encoding="utf-8") as file:
        json_file = page.endswith(".json")
        stamp = WORDS.fullmatch(json.load(file).get("stamp", "")) if json_file else LINE.fullmatch(file.readline())
    if stamp is None:
        return "it has no stamp; make it again"
    if stamp["inputs"] != digest(PAGES[page], root):
        return f"it is older than what it describes (commit {stamp['commit']}); make it again: {stamp['command']}"
    return ""
