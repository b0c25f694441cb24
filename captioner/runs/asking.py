"""Questions to an engine: for a prompt with a schema, an answer that does not follow it is asked for again, up to twice.

All engines are asked in this way. One that constrains its answers to the schema can still be cut at its token limit.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from captioner.engines.generation import Engine, Generation
from captioner.engines.model_source import ModelSource
from captioner.prompts import Prompt, PromptSet, harmless, render
from captioner.structured.answers import INVALID_JSON, question, question_again, read_answer
from foundry.errors import UserError
from foundry.units.commits import Commit

ASKED_AGAIN = 2
"""Number of further attempts for an answer that does not follow its schema."""


def sample_question(prompt: Prompt) -> str:
    """The question of a prompt, with its schema, for an image whose metadata and captions are two words each."""
    rendered = render(prompt, dict.fromkeys(prompt.fields, "an owl"))
    assert rendered is not None
    return rendered if prompt.schema is None else question(rendered, prompt.schema)


def check_lengths(prompts: PromptSet, model: ModelSource, *, context: int) -> None:
    """Raises UserError for a prompt that exceeds the model's context without an image, as far as the model's files tell.

    An engine's own check finds the others once the model is loaded.
    """
    if not context or not model.tokenizer_file:
        return
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(model.tokenizer_file)
    except Exception:  # noqa: BLE001 - it raises no narrower one; who loads the model says what is wrong with the file
        return
    tokenizer.no_truncation()
    for prompt in prompts.prompts:
        asked = sample_question(prompt)
        needed, of_schema = (len(tokenizer.encode(text, add_special_tokens=False).ids) for text in (asked, prompt.schema or ""))
        if needed >= context:
            cause = f", {of_schema} of them for its JSON schema" if prompt.schema else ""
            raise UserError(
                f"the prompt {prompt.name} takes {needed} tokens without an image{cause}, and the context of {model.name} has "
                f"{context}: use a model with a longer context, or other prompts",
                setting="prompts",
            )


def check_engine(engine: Engine, prompt: Prompt, *, side_px: int) -> None:
    """One token about a grey square of this side: a model that cannot say that, or not under this schema, can caption nothing.

    Raises what the engine's check raises.
    """
    grey = np.full((side_px, side_px, 3), 128, np.uint8)
    if prompt.schema is None:
        engine.check(grey, sample_question(prompt))
    else:
        engine.check(grey, sample_question(prompt), schema=prompt.schema)


def ask(
    engine: Engine,
    images: Sequence[np.ndarray | str],
    rendered: Sequence[str],
    keys: Sequence[str],
    *,
    prompt: Prompt,
    one_by_one: bool,
) -> list[Generation]:
    """The answers about images, uint8 (H, W, 3) each, to one prompt, rendered for each. Raises what the engine raises.

    The tokens of all tries count in the answer that stays: the first that follows the schema, else the last.
    """
    schema = prompt.schema
    if schema is None:
        return engine.caption(images, rendered, keys, one_by_one=one_by_one)
    asked = [question(text, schema) for text in rendered]
    said = engine.caption(images, asked, keys, one_by_one=one_by_one, schema=schema)
    for _ in range(ASKED_AGAIN):
        faults = {index: fault for index, one in enumerate(said) if (fault := _fault(one, schema))}
        if not faults:
            break
        again = engine.caption(
            [images[index] for index in faults],
            [question_again(asked[index], fault) for index, fault in faults.items()],
            [keys[index] for index in faults],
            one_by_one=one_by_one,
            schema=schema,
        )
        for index, one in zip(faults, again, strict=True):
            if not one.failure:  # else the answer before it stays
                said[index] = _with_tokens_of(one, said[index])
    return said


def invalid_line(commit: Commit, prompts: Sequence[Prompt]) -> str:
    """A line of warning where not one answer of a unit follows its schema; "" elsewhere."""
    asked = commit.completed * sum(prompt.schema is not None for prompt in prompts)
    if not asked or commit.statuses.get(INVALID_JSON) != asked:
        return ""
    return (
        f"warning: none of the {asked} structured captions of unit {commit.unit} follows its schema ({INVALID_JSON}): "
        "look at caption_raw and finish_reason by SQL; where that is length, raise generation.max_new_tokens, else take a "
        "stronger model"
    )


def _fault(said: Generation, schema: str) -> str:
    """Fault of an answer; "" if it follows the schema, for a refusal, and if there is no answer, or NaN."""
    if said.failure or said.is_refusal or not said.is_finite:
        return ""
    fault = read_answer(said.text, schema).fault
    if fault and said.finish_reason == "length":
        return f"it was cut after {said.num_tokens} tokens; be shorter"
    return harmless(fault)


def _with_tokens_of(said: Generation, before: Generation) -> Generation:
    """The answer with the tokens of the tries before it."""
    return replace(
        said,
        num_tokens=said.num_tokens + before.num_tokens,
        num_input_tokens=said.num_input_tokens + before.num_input_tokens,
    )
