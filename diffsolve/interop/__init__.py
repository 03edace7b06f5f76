"""Other libraries' methods through `solve(problem, "library:method")`; each module is imported when it is first named.

An entry point of the group `diffsolve.libraries` names a function `entry(method) -> SolverEntry` for the part before
the colon.
`k_diffusion` and `comfyui` are the other way round: our rows through their contracts. `rl` is for trainers: what the
steps of a solve were drawn with. `ray` draws the rows of a Ray Dataset.
"""
