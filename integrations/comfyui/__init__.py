"""diffsolve's nodes for ComfyUI: every row as a SAMPLER, every schedule as SIGMAS. Put this folder into custom_nodes/.

It needs `pip install diffsolve` in ComfyUI's Python. ComfyUI's own lists of samplers and schedulers stay as they are.
"""

from __future__ import annotations

from typing import Any

CATEGORY = "sampling/diffsolve"
STEPS = ("INT", {"default": 20, "min": 1, "max": 10000})
SHARE = ("FLOAT", {"default": 1.0, "min": 0.0, "max": 100.0, "step": 0.01})
OPTIONS = ("STRING", {"default": "", "tooltip": "options of the row, such as: order=3, form=v"})


def _interop() -> Any:
    try:
        from diffsolve.interop import comfyui
    except ImportError as error:
        raise ImportError("diffsolve's nodes need the package: pip install diffsolve, in ComfyUI's Python") from error
    return comfyui


def _sampler(solver: str, options: str, **extra: Any) -> tuple[Any]:
    """A SAMPLER: ComfyUI's KSAMPLER with our function."""
    import comfy.samplers

    named = f"{solver}({options.strip()})" if options.strip() else solver
    return (comfy.samplers.KSAMPLER(_interop().function_of(named), extra),)


def _menu(names: list[str], first: str) -> tuple[list[str], dict[str, Any]]:
    return names, {"default": first}


class DiffsolveSampler:
    """Any row of diffsolve's catalogue. eta: the share of noise of a stochastic row; s_noise: its size."""

    CATEGORY, FUNCTION, RETURN_TYPES = CATEGORY, "sampler", ("SAMPLER",)
    DESCRIPTION = __doc__

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        solvers = _menu(_interop().solvers_for_menu(), "guarded_abm")
        return {"required": {"solver": solvers, "eta": SHARE, "s_noise": SHARE, "options": OPTIONS}}

    def sampler(self, solver: str, eta: float, s_noise: float, options: str) -> tuple[Any]:
        extra = {"eta": eta, "s_noise": s_noise} if _interop().is_stochastic(solver) else {}
        return _sampler(solver, options, **extra)


class DiffsolveAdaptive:
    """Steps chosen by their error: of the SIGMAS only the first and the last are read.

    rtol, atol: what error a step may have. calls: after how many network calls to stop at the latest, 0 for no limit.
    """

    CATEGORY, FUNCTION, RETURN_TYPES = CATEGORY, "sampler", ("SAMPLER",)
    DESCRIPTION = __doc__

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        solvers = _menu(_interop().adaptive_for_menu(), "dpm_solver_3")
        number = {"min": 1e-6, "max": 10.0, "step": 0.001, "round": False}
        return {"required": {
            "solver": solvers, "rtol": ("FLOAT", {"default": 0.05, **number}),
            "atol": ("FLOAT", {"default": 0.0078, **number}), "calls": ("INT", {"default": 0, "min": 0, "max": 100000}),
            "options": OPTIONS,
        }}  # fmt: skip

    def sampler(self, solver: str, rtol: float, atol: float, calls: int, options: str) -> tuple[Any]:
        return _sampler(solver, options, rtol=rtol, atol=atol, **({"nfe": calls} if calls else {}))


class DiffsolveSchedule:
    """Any schedule of diffsolve's, for this model. shift multiplies sigma, as the shift of a flow model does."""

    CATEGORY, FUNCTION, RETURN_TYPES = CATEGORY, "sigmas", ("SIGMAS",)
    DESCRIPTION = __doc__

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {
            "model": ("MODEL",), "schedule": _menu(_interop().schedules_for_menu(), "karras"), "steps": STEPS,
            "denoise": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01}),
            "shift": ("FLOAT", {"default": 1.0, "min": 0.01, "max": 100.0, "step": 0.01}), "options": OPTIONS,
        }}  # fmt: skip

    def sigmas(self, model: Any, schedule: str, steps: int, denoise: float, shift: float, options: str) -> tuple[Any]:
        named = f"{schedule}({options.strip()})" if options.strip() else schedule
        return (_interop().sigmas_of(model, named, steps, denoise, shift),)


class DiffsolveErrorReport:
    """Where a SAMPLER, any, is wrong on these SIGMAS: it runs on them, and with twice as many steps."""

    CATEGORY, FUNCTION, RETURN_TYPES = CATEGORY, "report", ("LATENT", "STRING")
    RETURN_NAMES = ("latent", "report")
    DESCRIPTION = __doc__
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {
            "model": ("MODEL",), "noise_seed": ("INT", {"default": 0, "min": 0, "max": 0xFFFFFFFFFFFFFFFF}),
            "cfg": ("FLOAT", {"default": 8.0, "min": 0.0, "max": 100.0, "step": 0.1}), "positive": ("CONDITIONING",),
            "negative": ("CONDITIONING",), "sampler": ("SAMPLER",), "sigmas": ("SIGMAS",), "latent_image": ("LATENT",),
        }}  # fmt: skip

    def report(
        self, model: Any, noise_seed: int, cfg: float, positive: Any, negative: Any, sampler: Any, sigmas: Any,
        latent_image: dict[str, Any],
    ) -> dict[str, Any]:  # fmt: skip
        import comfy.sample

        interop = _interop()
        latent = comfy.sample.fix_empty_latent_channels(model, latent_image["samples"])
        noise = comfy.sample.prepare_noise(latent, noise_seed, latent_image.get("batch_index"))

        def run(levels: Any) -> list[Any]:
            seen: dict[int, Any] = {}
            end = comfy.sample.sample_custom(
                model, noise, cfg, sampler, levels, positive, negative, latent,
                noise_mask=latent_image.get("noise_mask"), seed=noise_seed,
                callback=lambda step, denoised, x, total: seen.setdefault(step, x.detach().cpu()),
            )  # fmt: skip
            return [seen.get(step) for step in range(len(levels) - 1)] + [end]

        states, finer = run(sigmas), run(interop.halved(sigmas, interop.is_flow(interop.sampling_of(model))))
        text = interop.error_report(states, finer, sigmas)
        return {"ui": {"text": [text]}, "result": ({**latent_image, "samples": states[-1]}, text)}


NODE_CLASS_MAPPINGS = {
    kind.__name__: kind for kind in (DiffsolveSampler, DiffsolveAdaptive, DiffsolveSchedule, DiffsolveErrorReport)
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "DiffsolveSampler": "diffsolve sampler", "DiffsolveAdaptive": "diffsolve adaptive sampler",
    "DiffsolveSchedule": "diffsolve schedule", "DiffsolveErrorReport": "diffsolve error report",
}  # fmt: skip
