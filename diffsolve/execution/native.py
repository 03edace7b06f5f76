"""kernels.c, compiled once for a user and a machine and loaded; where that can't be, the reason why."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

_SOURCE = Path(__file__).with_name("kernels.c")
_FLAGS = ("-std=gnu11", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")
_SECONDS = 120  # a compiler that takes longer is given up; it takes four
_POINTER, _INT, _BITS = ctypes.c_void_p, ctypes.c_int, ctypes.c_uint64
_JOB = (_POINTER,)  # or bytes


class Native:
    """The library, or `reason`, why there is none. DIFFSOLVE_NATIVE=0 does without it."""

    def __init__(self, library: ctypes.CDLL | None, reason: str) -> None:
        self.library, self.reason = library, reason
        if library is None:
            return
        for name, arguments, answer in (("combine", _JOB, _BITS), ("draw", _JOB, _INT)):
            for kind in ("float", "double"):
                function = getattr(library, f"{name}_{kind}")
                function.argtypes, function.restype = arguments, answer


@lru_cache(maxsize=1)
def native() -> Native:
    """Built at the first call of all, in about four seconds of one core, and read from the cache after that."""
    if os.environ.get("DIFFSOLVE_NATIVE") == "0":
        return Native(None, "DIFFSOLVE_NATIVE=0 asks to do without compiled code")
    try:
        made = _built(folder())
        try:
            library = ctypes.CDLL(str(made))
        except OSError:  # half of one, from before a crash
            made.unlink()
            library = ctypes.CDLL(str(made := _built(folder())))
        if made.parent != folder():
            shutil.rmtree(made.parent, ignore_errors=True)  # nobody else looks there, and it is loaded
        return Native(library, "")
    except (OSError, AttributeError, subprocess.SubprocessError) as error:
        return Native(None, f"kernels.c can't be compiled here ({_brief(error)})")


def folder() -> Path:
    """Where compiled code is kept: DIFFSOLVE_CACHE, or diffsolve/ in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("DIFFSOLVE_CACHE") or Path(home) / "diffsolve")


def _built(into: Path) -> Path:
    """The library of this source for this machine; made where it is not there. Raises OSError or SubprocessError."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    key = hashlib.sha256(_SOURCE.read_bytes() + repr((_FLAGS, _machine())).encode()).hexdigest()[:20]
    made = into / f"kernels-{key}.so"
    if made.exists() and made.stat().st_uid == os.getuid():  # nobody else's code is run
        return made
    if compiler is None:
        raise OSError("there is no C compiler: neither cc, gcc nor clang is on the path")
    try:
        into.mkdir(mode=0o700, parents=True, exist_ok=True)
        if into.stat().st_uid != os.getuid():
            raise OSError("it is another user's")
        work = tempfile.TemporaryDirectory(dir=into, prefix="build-")
    except OSError:  # a home that can't be written: for this process alone
        into = Path(tempfile.mkdtemp(prefix="diffsolve-"))
        made, work = into / made.name, tempfile.TemporaryDirectory(dir=into)
    with work as place:
        target = Path(place) / made.name
        for own in (("-march=native",), ("-mcpu=native",), ()):
            command = [*compiler.split(), *_FLAGS, *own, "-o", str(target), str(_SOURCE)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
            if done.returncode == 0:
                break
        else:
            raise OSError(f"{compiler} failed: {done.stderr.strip().splitlines()[-1:] or done.returncode}")
        target.replace(made)  # whole, whoever else builds it at the same time
    return made


def _machine() -> tuple[str, ...]:
    """What code for this machine may rely on; a home may be shared by machines that differ."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    kept = ("flags", "Features", "model name", "CPU part")
    return (platform.system(), platform.machine(), *sorted({line for line in lines if line.startswith(kept)}))


def _brief(error: Exception) -> str:
    if isinstance(error, subprocess.TimeoutExpired):
        return f"the compiler took more than {_SECONDS} s"
    return str(error).strip().replace("\n", " ")[:200] or type(error).__name__
