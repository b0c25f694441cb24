"""Rows of captions: what a model wrote, cleaned or read by its schema, and counted. A structured answer gives two rows.

The caption of the first is its JSON, under the prompt's name; that of the second its rendering to prose. Rules of cleaning are
for prose and leave JSON alone.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from captioner.cleaning import clean
from captioner.engines.generation import Generation, sampling_seed
from captioner.prompts import Prompt
from captioner.structured.answers import INVALID_JSON, read_answer
from captioner.structured.prose import prose
from dataset_builder.concepts.noun_counts import CaptionNouns, count_captions
from dataset_builder.concepts.t5_view import T5Config
from dataset_builder.concepts.tagger import TaggerConfig
from dataset_builder.json_text import words_of_json

_REFUSAL = "refusal"
RENDERED = "rendered"
"""The finish reason of prose that was made from a structured caption."""


def caption_rows(
    prompt: Prompt,
    keys: Sequence[str],
    generations: Sequence[Generation],
    *,
    seed: int,
    tagger: TaggerConfig,
    t5: T5Config,
) -> tuple[list[dict[str, Any]], list[CaptionNouns]]:
    """Rows of schema.CAPTIONS for the answers to one prompt, and what was counted for them. `seed` is that of the rendering."""
    if prompt.schema is None:
        written = [_cleaned(said) for said in generations]
        return _counted(prompt.name, keys, written, [row["caption"] for row in written], tagger=tagger, t5=t5)
    answers = [read_answer(said.text, prompt.schema) for said in generations]
    structured, rendered = [], []
    for key, said, answer in zip(keys, generations, answers, strict=True):
        status = _REFUSAL if said.is_refusal else INVALID_JSON if answer.fault else "ok"
        structured.append(_said(said) | _as_caption(answer.caption if status == "ok" else "", status))
        if status != "ok":
            told = _as_caption("", status)
        else:
            clean_prose = clean(prose(answer.value, seed=sampling_seed(seed, key, prompt.name)), finish_reason=RENDERED)
            told = _as_caption(clean_prose.caption, clean_prose.status, clean_prose.flags)
        rendered.append(_said(said) | told | {"caption_raw": "", "finish_reason": RENDERED, "num_tokens": 0})
    as_json, as_prose = prompt.caption_names
    words = [words_of_json(row["caption"]) for row in structured]
    rows, nouns = _counted(as_json, keys, structured, words, tagger=tagger, t5=t5)
    rows_of_prose, nouns_of_prose = _counted(
        as_prose, keys, rendered, [row["caption"] for row in rendered], tagger=tagger, t5=t5
    )
    return rows + rows_of_prose, nouns + nouns_of_prose


def _counted(
    prompt: str,
    keys: Sequence[str],
    written: Sequence[dict[str, Any]],
    words: Sequence[str],
    *,
    tagger: TaggerConfig,
    t5: T5Config,
) -> tuple[list[dict[str, Any]], list[CaptionNouns]]:
    captions = [row["caption"] for row in written]
    counted, nouns = count_captions(captions, words=words, prompt=prompt, tagger=tagger, t5=t5)
    return [{"key": key, **row, **found} for key, row, found in zip(keys, written, counted, strict=True)], nouns


def _said(said: Generation) -> dict[str, Any]:
    return {
        "caption_raw": said.text,
        "finish_reason": said.finish_reason,
        "num_tokens": said.num_tokens,
        "mean_logprob": said.mean_logprob,
        "min_logprob": said.min_logprob,
    }


def _cleaned(said: Generation) -> dict[str, Any]:
    if said.is_refusal:
        return _said(said) | _as_caption("", _REFUSAL)
    found = clean(said.text, finish_reason=said.finish_reason)
    return _said(said) | _as_caption(found.caption, found.status, found.flags)


def _as_caption(caption: str, status: str, flags: Iterable[str] = ()) -> dict[str, Any]:
    return {"caption": caption, "status": status, "flags": list(flags)}
