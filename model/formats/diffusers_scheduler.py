"""Scheduler of a folder of diffusers: the objective that it samples, from scheduler/scheduler_config.json.

A field that the file leaves out has the default of the scheduler's class. Each field is represented in our objectives, belongs
to the sampler alone, or must have that default; any other is refused by its name.

Source: diffusers 0.42, diffusers.schedulers.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from foundry.errors import UserError
from model.diffusion import Diffusion, RectifiedFlow

_FLOWS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
CONSISTENCY = "LCMScheduler"
"""Sampler of diffusions that were distilled by consistency."""
# Samplers of a plain diffusion or a plain flow. Not TCD, which is of networks that are distilled otherwise.
_SCHEDULERS = (
    *("DDIMScheduler", "DDPMScheduler", "DEISMultistepScheduler", "DPMSolverMultistepScheduler", "DPMSolverSDEScheduler"),
    *("DPMSolverSinglestepScheduler", "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler"),
    *("KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "LMSDiscreteScheduler", "PNDMScheduler"),
    *("SASolverScheduler", "UniPCMultistepScheduler", *_FLOWS),
)
_SAME_FIELDS = {"DPMSolverSDEScheduler": "KDPM2DiscreteScheduler"}
"""A class that needs another library, and one with the same defaults."""
_BETAS = ("beta_start", "beta_end", "beta_schedule", "trained_betas")
_ANY = object()
# How a step is taken, and from which noise levels: our samplers have their own.
_OF_THE_SAMPLER = {
    *("solver_order", "algorithm_type", "solver_type", "lower_order_final", "euler_at_final", "final_sigmas_type"),
    *("lambda_min_clipped", "variance_type", "timestep_spacing", "steps_offset", "set_alpha_to_one", "skip_prk_steps"),
    *("predict_x0", "disable_corrector", "solver_p", "predictor_order", "corrector_order", "tau_func", "interpolation_type"),
    "noise_sampler_seed",
}
# What has an effect only with a field that must be off.
_OF_WHAT_IS_OFF = {
    *("dynamic_thresholding_ratio", "sample_max_value", "clip_sample_range"),
    *("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len", "time_shift_type"),
}
# Off in our objectives, whatever the class does with it; and in our samplers, where the class reads it.
_OFF_IN_OBJECTIVES = ("rescale_betas_zero_snr", "use_dynamic_shifting")
_OFF_IN_SAMPLERS = ("clip_sample", "thresholding")


def read_objective(scheduler: Mapping[str, Any], *, learned_variance: bool) -> tuple[str, dict[str, Any]]:
    """The objective that a scheduler samples, and its settings other than the defaults.

    Raises UserError for another class, and for a field that is not represented here.
    """
    name = scheduler.get("_class_name")
    if name not in (*_SCHEDULERS, CONSISTENCY):
        raise UserError(f"scheduler: expected one of {', '.join(_SCHEDULERS)}, found {name}: another objective")
    assert name is not None, "it is among them"
    defaults = _defaults(name)
    stated = {key: value for key, value in scheduler.items() if not key.startswith("_")}
    values = defaults | stated
    is_flow = name in _FLOWS or ("use_flow_sigmas" in defaults and bool(values["use_flow_sigmas"]))
    read = _represented(is_flow=is_flow)
    off = (*_OFF_IN_OBJECTIVES, *(key for key in _OFF_IN_SAMPLERS if key in defaults))
    _expect(values, dict.fromkeys(off, False), "not represented here")
    _expect(values, read, "another objective")
    known = _OF_THE_SAMPLER | _OF_WHAT_IS_OFF | {*read, *_OFF_IN_OBJECTIVES, *_OFF_IN_SAMPLERS}
    for key, value in stated.items():
        if key in known or (key in defaults and value == defaults[key]):
            continue
        if key in defaults or not _is_of_another_class(key):
            expected = f"expected {defaults[key]}" if key in defaults else "expected no such field"
            raise UserError(
                f"scheduler: {key}: {expected}, found {value}: not represented here; if it changes the sampling alone, remove "
                "it from scheduler/scheduler_config.json"
            )
    ours: Diffusion | RectifiedFlow = RectifiedFlow() if is_flow else Diffusion(learned_variance=learned_variance)
    settings = vars(ours) | {key: values[key] for key in vars(ours) if key in values}
    if is_flow:
        settings["shift"] = float(values.get("flow_shift" if name not in _FLOWS else "shift") or 1)
    return ("rectified_flow" if is_flow else "diffusion"), {
        key: value for key, value in settings.items() if value != getattr(type(ours), key)
    }


def _represented(*, is_flow: bool) -> dict[str, Any]:
    """The fields that say what the objective is, each with the value that it must have, or _ANY."""
    if is_flow:  # betas have no effect on it
        flow = dict.fromkeys(("num_train_timesteps", "shift", "flow_shift", "use_flow_sigmas", *_BETAS), _ANY)
        return flow | {"prediction_type": "flow_prediction"}
    free = dict.fromkeys(("num_train_timesteps", "beta_start", "beta_end", "flow_shift"), _ANY)
    fixed = {"prediction_type": "epsilon", "beta_schedule": "linear", "trained_betas": None, "use_flow_sigmas": False}
    return free | fixed


def _expect(values: Mapping[str, Any], expected: Mapping[str, Any], what: str) -> None:
    for key, value in expected.items():
        if value is not _ANY and (found := values.get(key, value)) != value:
            raise UserError(f"scheduler: {key}: expected {value}, found {found}: {what}")


def _defaults(name: str) -> dict[str, Any]:
    """The fields of a scheduler's class, with their defaults."""
    import diffusers

    parameters = inspect.signature(getattr(diffusers, _SAME_FIELDS.get(name, name)).__init__).parameters
    return {key: parameter.default for key, parameter in parameters.items() if key != "self"}


def _is_of_another_class(key: str) -> bool:
    """Whether the field is of another sampler, and left over from it: diffusers keeps such fields and does not read them."""
    return any(key in _defaults(name) for name in _SCHEDULERS)
