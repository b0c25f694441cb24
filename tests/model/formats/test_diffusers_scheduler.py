"""Schedulers of diffusers: what they say of the objective is read with the defaults of their class, all else is refused."""

import json
from typing import Any

import diffusers
import pytest

from foundry.errors import UserError
from model.formats.diffusers_scheduler import _SCHEDULERS, read_objective


def _classes() -> list[type]:
    names = [name for name in _SCHEDULERS if name != "DPMSolverSDEScheduler"]  # which needs another library
    return [getattr(diffusers, name) for name in names]


@pytest.mark.parametrize("kind", _classes())
def test_every_scheduler_is_read_with_the_defaults_of_its_class(kind: Any) -> None:
    config = dict(kind().config)
    config["clip_sample"] = False if "clip_sample" in config else None
    stated = json.loads(json.dumps({"_class_name": kind.__name__, **{key: value for key, value in config.items() if value}}))
    stated |= {"clip_sample": False}
    found = read_objective(stated, learned_variance=True)
    assert found == read_objective({"_class_name": kind.__name__, "clip_sample": False}, learned_variance=True)
    is_late = kind.__name__ in ("HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler")
    betas = {"beta_start": 0.00085, "beta_end": 0.012} if is_late else {}
    assert found == (("rectified_flow", {}) if "Flow" in kind.__name__ else ("diffusion", betas))


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True}, "prediction_type: expected flow_prediction, found epsilon"),
        ("DDIMScheduler", {"use_flow_sigmas": True, "clip_sample": False}, "use_flow_sigmas: expected False"),
        ("DDIMScheduler", {}, "clip_sample: expected False, found True"),
        ("DDIMScheduler", {"clip_sample": False, "thresholding": True}, "thresholding: expected False, found True"),
        ("DDIMScheduler", {"clip_sample": False, "snr_shift_scale": 3.0}, "snr_shift_scale: expected no such field, found 3.0"),
        ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, "use_karras_sigmas: expected False, found True"),
        ("EulerDiscreteScheduler", {"timestep_type": "continuous"}, "timestep_type: expected discrete, found continuous"),
        ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}, "invert_sigmas: expected False, found True"),
        ("FlowMatchEulerDiscreteScheduler", {"shift_terminal": 0.1}, "shift_terminal: expected None, found 0.1"),
        ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}, "stochastic_sampling: expected False, found True"),
        (None, {}, "found None: another objective"),
    ],
)
def test_a_field_that_is_not_represented_is_refused(name: str | None, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_objective({"_class_name": name, **fields}, learned_variance=True)


def test_fields_of_the_sampler_and_of_a_sampler_before_are_accepted() -> None:
    published = {
        "solver_order": 3,
        "timestep_spacing": "trailing",
        "lambda_min_clipped": -float("inf"),
        "_diffusers_version": "0",
    }
    left_over = {
        "clip_sample": True,
        "skip_prk_steps": True,
        "set_alpha_to_one": False,
    }  # of DDIM and PNDM, which DPM-Solver ignores
    found = read_objective({"_class_name": "DPMSolverMultistepScheduler", **published, **left_over}, learned_variance=True)
    assert found == ("diffusion", {})
    flow = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0, "num_train_timesteps": 500}
    assert read_objective(flow, learned_variance=False) == ("rectified_flow", {"shift": 3.0, "num_train_timesteps": 500})
