"""Random configs, settings and commands for `make fuzz`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from fuzz_cases import ODD, WORDS, mostly
from hypothesis import strategies as st

import diffsolve as ds
from diffsolve.problems import configs

NAMES = [
    f"{name}Scheduler"
    for name in (*configs._BY_BETAS, *configs._FLOWS, *configs._EDMS, *configs._REFUSED, "ScoreSdeVe", "NoSuch")
]
NUMBERS = (None, True, "abc", "", -1, 0, 0.5, 0.02, 3, 1000, 1e30, math.nan, math.inf, 10**30, [], [1], {}, [0.1, 0.2])
KEYS = (
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type", "shift",
    "use_dynamic_shifting", "base_shift", "max_shift", "time_shift_type", "sigma_min", "sigma_max", "sigma_data",
    "rescale_betas_zero_snr", "timestep_type", "use_flow_sigmas", "flow_shift", "snr_shift_scale", "invert_sigmas",
    "base_image_seq_len", "max_image_seq_len", "steps_offset",
)  # fmt: skip
MEANT: dict[str, tuple[Any, ...]] = {
    "num_train_timesteps": (2, 10, 1000), "beta_start": (1e-4, 0.00085), "beta_end": (0.012, 0.02, 0.5),
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"), "shift": (1.0, 3.0, 12),
    "prediction_type": ("epsilon", "v_prediction", "sample", "flow_prediction"), "sigma_max": (80.0, 700.0),
    "trained_betas": ([0.1, 0.2, 0.3],), "timestep_type": ("discrete", "continuous"), "sigma_min": (0.002, 0.3),
    **dict.fromkeys(("use_dynamic_shifting", "rescale_betas_zero_snr", "use_flow_sigmas"), (True, False)),
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    config: dict[str, Any] = field(default_factory=dict)
    tokens: Any = None


@st.composite
def config(draw: Any) -> Config:
    chosen: dict[str, Any] = {}
    if draw(st.integers(1, 15)) > 1:
        chosen["_class_name"] = mostly(draw, st.sampled_from(NAMES), NUMBERS)
    for key in KEYS:
        if draw(st.integers(1, 4)) == 1:
            chosen[key] = mostly(draw, st.sampled_from(MEANT.get(key, (0.5, 2.0, 256, 4096))), NUMBERS, 5)
    return Config(chosen, mostly(draw, st.sampled_from([None, 256, 1024, 4096]), ODD))


def json_values() -> st.SearchStrategy[Any]:
    words = st.text(max_size=5) | st.just("\ud800")
    plain = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), words)
    return st.recursive(
        plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3), max_leaves=5
    )


@st.composite
def settings(draw: Any) -> Any:
    """What a PNG's `diffsolve` chunk may hold: JSON of about the right shape, or any text."""
    if draw(st.integers(1, 8)) == 1:
        return draw(st.one_of(json_values(), st.text(max_size=20)))
    names = (
        "prompt", "negative", "model", "config", "revision", "solver", "schedule", "n", "nfe", "seed", "batch",
        "guidance", "height", "width", "dtype", "device", "final", "sigma_min", "sigma_max", "eta", "rtol", "atol",
        "scale",
    )  # fmt: skip
    meant = {"n": (1, 20), "batch": (1, 4), "seed": (0, 7), "scale": (1, 2), "guidance": (1, 4.0, None)}
    chosen = {}
    for name in names:
        if draw(st.integers(1, 4)) == 1:
            chosen[name] = mostly(draw, st.sampled_from(meant.get(name, ("a", 1.0, 8, None))), [draw(json_values())], 3)
    return {"settings": chosen, "result": draw(json_values()), "made_with": draw(st.just({}) | json_values())}


@st.composite
def command(draw: Any) -> list[str]:
    """Arguments of the command line; MODEL, PICTURE and OUT stand for paths."""
    word = st.one_of(st.sampled_from(WORDS), st.text(max_size=4))
    verb = draw(st.sampled_from(["sample"] * 9 + ["solvers", "schedules", "problems", "validate", "smpl", "--version"]))
    if verb != "sample":
        more = ["--tags", "--json", "multistep", "-h", "order", "conditions", "--quick", "nothing"]
        return [verb, *draw(st.lists(st.sampled_from(more) | word, max_size=2))]
    options: dict[str, st.SearchStrategy[str]] = {
        "--solver": st.sampled_from([e.name for e in ds.list_solvers()]),
        "--schedule": st.sampled_from(["karras", "linspace"]),
        "-n": st.sampled_from("123"), "--nfe": st.sampled_from(["3", "5"]), "--seed": st.sampled_from(["0", "7"]),
        "--batch": st.sampled_from("12"), "--negative": st.sampled_from(["blue", "(word:1.2)"]),
        "--guidance": st.sampled_from(["1", "4", "0"]), "--height": st.sampled_from(["8", "16", "7"]),
        "--width": st.sampled_from(["8", "12"]), "--dtype": st.sampled_from(["float32", "bfloat16", "float64"]),
        "--device": st.sampled_from(["cpu", "cuda:9"]), "--eta": st.sampled_from(["0.5", "1"]),
        "--rtol": st.sampled_from(["0.1"]), "--atol": st.sampled_from(["0.1"]), "--sigma-min": st.sampled_from(["0.1"]),
        "--sigma-max": st.sampled_from(["10"]), "--final": st.sampled_from(["denoise", "step", "none"]),
        "--scale": st.sampled_from("12"), "--revision": st.sampled_from(["main"]),
        "--config": st.sampled_from(["emoji"]), "--like": st.sampled_from(["PICTURE", "OUT", "none.png"]),
        "-o": st.sampled_from(["OUT", "a.jpg", ".", "no/a.png"]),
    }  # fmt: skip
    given = {"--model": "MODEL", "-n": "2", "-o": "OUT", "--device": "cpu"}
    for key, values in options.items():
        if draw(st.integers(1, 9)) == 1:
            given[key] = draw(word) if draw(st.integers(1, 6)) == 1 else draw(values)
    if draw(st.integers(1, 20)) == 1:
        given["--model"] = draw(st.sampled_from(["no/such model", "", "x.safetensors", "PICTURE", "/", "\x00"]))
    prompt = draw(st.sampled_from(["apple", "", "red apple " * 30, "(word:1.2)"]) | st.text(max_size=5))
    asked = ["--", prompt] if draw(st.integers(1, 9)) > 1 else []
    return ["sample", *[part for pair in given.items() for part in pair], *asked]
