"""Uses an installed plugin's solver, named on the command line, wherever a solver's name goes.

Run by .ci/smoke in an empty environment, and by tests/test_new.py.
"""

import sys

import torch
from diffusers import DiffusionPipeline
from typer.testing import CliRunner

import diffsolve as ds
from diffsolve.app.cli import app
from diffsolve.interop import k_diffusion
from diffsolve.interop.diffusers import DiffsolveScheduler
from diffsolve.problems.stable_diffusion import EMBEDDED

name = sys.argv[1]
entry = ds.find_solver(name)
print(entry.solver, "from", entry.factory.__module__)

model = ds.problems.StableDiffusion.from_pretrained("emoji", device="cpu")
problem = model("red apple", guidance=4, height=16, width=16)
solved = ds.solve(problem, name, "karras", nfe=6)
assert solved.x.isfinite().all()
assert solved.nfe <= 6

pipe = DiffusionPipeline.from_pretrained(EMBEDDED, dtype=torch.float32)
pipe.scheduler = DiffsolveScheduler.from_config(pipe.scheduler.config, solver=name, schedule="karras")
pipe.set_progress_bar_config(disable=True)
latents = problem.prior(1) / problem.process.sigma_max  # times init_noise_sigma, says the pipeline
drawn = pipe("red apple", num_inference_steps=6, guidance_scale=4, height=16, width=16, latents=latents,
             output_type="latent").images  # fmt: skip
off = float((drawn - solved.x).norm() / solved.x.norm())
print("a pipeline draws what solve draws, to", f"{off:.0e}")
assert off < 1e-4

sigmas = torch.tensor(solved.sigmas.copy())
x = k_diffusion.sampler(name)(problem.denoise, problem.prior(1), sigmas, disable=True)
assert float((x - solved.x).norm() / solved.x.norm()) < 1e-4

for arguments, shown in ((("solvers",), name), (("validate", "order", name, "--quick", "-o", "report"), "1 of 1 hold")):
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.exception
    assert shown in done.output, done.output
print("the plugin's solver is one of ours")
