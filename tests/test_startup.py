"""What `diffsolve sample` imports of diffusers and transformers: what a picture takes, and none of the rest."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from diffsolve.app import cli, lean

UNUSED = ("torch._dynamo", "torch._inductor", "torch.distributed.tensor", "torch.distributed.fsdp", "sympy",
          "scipy.stats", "matplotlib", "diffusers.loaders", "diffusers.quantizers", "diffusers.pipelines",
          "diffusers.models.transformers.auraflow_transformer_2d", "diffusers.models.autoencoders.vq_model",
          "transformers.quantizers", "transformers.loss", "transformers.core_model_loading", "transformers.pipelines",
          "transformers.generation.utils", "transformers.distributed.tensor_parallel")  # fmt: skip
SAMPLE = """
    import sys
    from diffsolve.app.cli import main
    sys.argv = ["diffsolve", "sample", "red apple", "-n", "1", "-o", "a.png", "--device", "cpu"]
    try:
        main()
    except SystemExit as end:
        assert not end.code
"""


@pytest.mark.slow
def test_sample_imports_what_it_uses_and_draws_the_same(tmp_path: Path) -> None:
    code = textwrap.dedent(SAMPLE)
    code += f"\nprint([name for name in {UNUSED!r} if name in sys.modules])\n"
    code += "import diffusers.loaders\nprint(diffusers.loaders.__file__ is not None)\n"  # the real one, when asked for
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["[]", "True"]
    plain = tmp_path / "plain.png"
    asked = ["sample", "red apple", "-n", "1", "-o", str(plain), "--device", "cpu"]
    assert CliRunner().invoke(cli.app, asked).exit_code == 0  # in a session, where nothing is left out
    ours, theirs = (Image.open(tmp_path / name).convert("RGB").tobytes() for name in ("a.png", "plain.png"))
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) <= 1


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package `heavy_lib` whose `small` imports a decorator, a class, a constant and a flag from its heavy parts."""
    root = tmp_path / "heavy_lib"
    for folder in (root, root / "heavy", root / "bare"):
        folder.mkdir()
        (folder / "__init__.py").write_text("" if folder == root else "raise ImportError('all of it')\n")
    (root / "heavy" / "light.py").write_text("VALUE = 3\n")
    (root / "bare" / "small.py").write_text(textwrap.dedent("""
        from ..heavy import Mixin, TABLE, decorate, is_there
        from ..heavy.light import VALUE
        @decorate
        class Small(Mixin):
            flag, table, value = is_there(), TABLE, VALUE
        @decorate(1, level=2)
        def function():
            return 4
    """))
    monkeypatch.syspath_prepend(str(tmp_path))
    names = {"NEEDED": "bare.small", "ABSENT": "heavy", "BARE": "bare", "BUT": "heavy.light"}
    for name, value in names.items():
        monkeypatch.setattr(lean, name, (f"heavy_lib.{value}",))
    for name in [name for name in sys.modules if name.startswith("heavy_lib")]:
        del sys.modules[name]
    return root


def test_stand_ins_are_there_and_gone_again(library: Path) -> None:
    with lean._standing_in():
        from heavy_lib.bare.small import Small, function  # type: ignore[import-not-found]
    assert (Small.flag, Small.table, Small.value, function()) == (False, {}, 3, 4)
    assert Small.__name__ == "Small"
    assert {name for name in sys.modules if name.startswith("heavy_lib")} == {
        "heavy_lib", "heavy_lib.bare.small", "heavy_lib.heavy.light"}  # fmt: skip
    with pytest.raises(ImportError, match="all of it"):
        import heavy_lib.heavy  # type: ignore[import-not-found]  # noqa: F401


def test_nothing_stands_in_within_a_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lean, "own_process", False)
    before = list(sys.meta_path)
    with lean.parts():
        assert sys.meta_path == before
