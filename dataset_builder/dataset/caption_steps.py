"""The steps of a recipe that look at one caption at a time, as SQL, and what such SQL knows beside the columns of a run."""

from collections.abc import Iterator
from dataclasses import dataclass

from dataset_builder.dataset.recipe import RecipeConfig
from dataset_builder.sql.views import literal, quoted

REJECTED = "rejected"
EMBED = "embed"
"""Steps that no recipe takes: what the captioner rejected, and images that could not be read to be embedded."""

# What a data set knows of a caption beside the columns of the run.
CAPTION_FIGURES = {
    "repetition": "(1 - num_distinct_nouns / greatest(num_nouns, 1))::FLOAT * (num_nouns > 0)::FLOAT",
    "opener": r"lower(regexp_extract(caption, '^\s*(\S+(?:\s+\S+){0,2})', 1))",
    "meta_share": "(num_meta_nouns / greatest(num_nouns, 1))::FLOAT",
}


@dataclass(frozen=True)
class Step:
    """A step of the recipe, its reason for dropping a caption, and the SQL that is true for one that it drops."""

    name: str
    reason: str
    drops: str = ""


def row_steps(recipe: RecipeConfig) -> Iterator[Step]:
    """The steps that look at one caption at a time."""
    yield Step("captioned", "not captioned yet", "width IS NULL")
    yield Step("captioned", "has no caption", "prompt IS NULL")
    if recipe.prompts:
        yield Step("prompts", "another prompt", f"prompt NOT IN ({', '.join(map(literal, recipe.prompts))})")
    statuses = ", ".join(map(literal, recipe.statuses))
    yield Step("statuses", f"status is not {' or '.join(recipe.statuses)}", f"status NOT IN ({statuses})")
    if recipe.min_side_px:
        side = f"least(width, height) < {recipe.min_side_px}"
        yield Step("min_side_px", f"shorter side below {recipe.min_side_px} px", side)
    if recipe.max_aspect is not None:
        aspect = f"greatest(width, height) > {recipe.max_aspect!r} * least(width, height)"
        yield Step("max_aspect", f"aspect above {recipe.max_aspect:g}", aspect)
    for name, least in recipe.least.items():
        yield Step("least", f"{name} below {least:g} or missing", f"coalesce({quoted(name)} < {least!r}, true)")
    if recipe.where:
        yield Step("where", recipe.where, f"coalesce(NOT ({recipe.where}\n), true)")
