"""Prompt sets of the captioner: named and versioned, the paper's first.

A set is chosen by name (`--prompts ladder`) or read from a YAML file (`--prompts mine.yaml`):

    name: mine
    version: "1"
    prompts:
      - name: dense
        text: Describe this image in full sentences.
      - name: with_tags
        text: 'It is tagged {metadata.tags}, and its alt text is "{alt_text}". Describe this image.'
        fallback: Describe this image.
      - name: counted
        text: Count what this image shows.
        schema: counted.json

`schema` is a JSON schema for the answer: a file, looked for next to the YAML file, or the schema itself. captioner/prompts.py
lists the placeholders. Those for captions of another run need `--captions_from`.
"""

import difflib
import json
from pathlib import Path
from typing import Any

from captioner.prompts import Prompt, PromptSet
from captioner.structured.scene_schema import SCENE_SCHEMA
from foundry.errors import UserError, one_line
from foundry.settings.yaml_text import load_yaml

# Source: PixArt-alpha (arXiv 2310.00426), section 2.4: the prompt given to LLaVA.
_DENSE = Prompt(name="dense", text="Describe this image and its style in a very detailed manner")

# After two recipes of 2026 that publish figures on the length of captions and no prompt; the words are ours.
# Source: Photoroom's PRX, part 2: trained on long captions FID 18.20, on short ones 36.84.
# Source: i1 (arXiv 2606.11289): trained on long captions alone, GenEval 0.17 on short prompts and 0.73 on rewritten, long ones.
_LONG_SHORT = (
    Prompt(
        name="long",
        text="Describe this image in about 160 words of plain prose: what it shows and what each thing looks like, where "
        "things are, the composition, the lighting, the colours, the atmosphere and the style. Quote text in it word for word",
    ),
    Prompt(name="short", text="Describe this image in one sentence"),
)

PROMPT_SETS = {
    "paper": PromptSet(name="paper", version="1", prompts=(_DENSE,)),
    "ladder": PromptSet(
        name="ladder",
        version="1",
        prompts=(
            _DENSE,
            Prompt(name="medium", text="Describe this image in one or two sentences"),
            Prompt(name="short", text="Name what this image shows in a few words"),
        ),
    ),
    "alt_text": PromptSet(
        name="alt_text",
        version="1",
        prompts=(
            Prompt(
                name="dense_alt_text",
                text='The page that shows this image calls it "{alt_text}". That may be wrong or incomplete. '
                "Using the names in it that fit, describe this image and its style in a very detailed manner",
                fallback=_DENSE.text,
            ),
        ),
    ),
    "long_short": PromptSet(name="long_short", version="1", prompts=_LONG_SHORT),
    "refine": PromptSet(
        name="refine",
        version="1",
        prompts=(
            Prompt(
                name="refined",
                text='An earlier caption of this image is "{caption}" Compare it with the image and write a better one: keep '
                "what is right, correct what is wrong, add what is missing. Answer with the caption alone",
                fallback=_DENSE.text,
            ),
        ),
    ),
    "merge": PromptSet(
        name="merge",
        version="1",
        prompts=(
            Prompt(
                name="merged",
                text="These captions describe this image: {captions} Write one caption of all that is true in them, without "
                "repetition and without what the image does not show. Answer with the caption alone",
                fallback=_DENSE.text,
            ),
        ),
    ),
    "translate": PromptSet(
        name="translate",
        version="1",
        prompts=(
            Prompt(
                name="english",
                text='Translate this caption of the image into English: "{caption}" Answer with the translation alone',
            ),
        ),
    ),
    "shorten": PromptSet(
        name="shorten",
        version="1",
        prompts=(
            Prompt(
                name="shortened",
                text='Shorten this caption of the image to one sentence about its main subjects: "{caption}" '
                "Answer with the sentence alone",
            ),
        ),
    ),
    "structured": PromptSet(
        name="structured",
        version="1",
        prompts=(
            Prompt(
                name="structured",
                text="Describe this image in a very detailed manner: the whole, its style, its background, and each object or "
                "written text in it with its bounding box [top, left, bottom, right], where 0 is the top or left edge of the "
                "image and 1000 its bottom or right edge.",
                schema=SCENE_SCHEMA,
            ),
        ),
    ),
}


def load_prompts(name_or_path: str) -> PromptSet:
    """The set of that name, or the one in a YAML file.

    Raises UserError for an unknown name (with the nearest), an unreadable file and a set that is not valid.
    """
    if name_or_path in PROMPT_SETS:
        return PROMPT_SETS[name_or_path]
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        try:
            return _read_yaml(path)
        except UserError as error:
            where = "" if str(path) in str(error) else f"{path}: "
            raise UserError(f"{where}{error}", setting="prompts") from None
    near = difflib.get_close_matches(name_or_path, PROMPT_SETS, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}?" if near else f"give one of {', '.join(PROMPT_SETS)} or a YAML file"
    raise UserError(f"there is no prompt set {name_or_path}: {hint}", setting="prompts")


def _read_yaml(path: Path) -> PromptSet:
    import yaml

    try:
        content = load_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"the prompts {path} cannot be read ({error.strerror}): check the path") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"the prompts {path} are not valid YAML ({one_line(error)}): correct the file") from None
    _check_keys(content, where=str(path), required={"name", "version", "prompts"}, optional=set())
    if not isinstance(content["prompts"], list):
        raise UserError(f"{path}: prompts must be a list, see the example in captioner/prompt_sets.py")
    prompts = []
    for number, entry in enumerate(content["prompts"], start=1):
        _check_keys(entry, where=f"{path}, prompt {number}", required={"name", "text"}, optional={"fallback", "schema"})
        schema = {"schema": _schema(entry.pop("schema"), path, number=number)} if "schema" in entry else {}
        prompts.append(Prompt(**{key: str(value) for key, value in entry.items()}, **schema))
    return PromptSet(name=str(content["name"]), version=str(content["version"]), prompts=tuple(prompts))


def _schema(given: Any, path: Path, *, number: int) -> str:
    """The JSON schema that a prompt names or holds, as JSON text. Raises UserError for one that is unreadable or not JSON."""
    where = f"{path}, prompt {number}"
    if not isinstance(given, str):
        try:
            return json.dumps(given, ensure_ascii=False)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{where}: the schema holds what JSON does not have ({error}): put texts that look like dates into quotes"
            ) from None
    file = path.parent / given
    try:
        return json.dumps(json.loads(file.read_text(encoding="utf-8")), ensure_ascii=False)
    except OSError as error:
        raise UserError(f"{where}: the schema {file} cannot be read ({error.strerror}): check the path") from None
    except ValueError as error:
        raise UserError(f"{where}: the schema {file} is not valid JSON ({error}): correct the file") from None


def _check_keys(entry: Any, *, where: str, required: set[str], optional: set[str]) -> None:
    if not isinstance(entry, dict):
        raise UserError(f"{where}: expected a mapping with {', '.join(sorted(required))}, found {type(entry).__name__}")
    missing = sorted(required - set(entry))
    unknown = sorted(set(map(str, entry)) - required - optional)
    if missing or unknown:
        problems = ([f"lacks {', '.join(missing)}"] if missing else []) + (
            [f"has unknown {', '.join(unknown)}"] if unknown else []
        )
        raise UserError(f"{where} {' and '.join(problems)}: it takes {', '.join(sorted(required | optional))}")
