"""The data set tab: sliders are a recipe that build reads, and its funnel is that of a dry run."""

import re
from pathlib import Path

import pytest
import yaml

from dataset_builder.reviews.records import FlagRow, save_flags
from foundry.errors import UserError
from studio.captions.source import CaptionSource
from studio.recipes.page import RecipeTab, Sliders
from tests.in_this_process import run_here

ANY = Sliders(prompts=("dense", "short"), least={})


@pytest.fixture
def tab(source: CaptionSource, tmp_path: Path) -> RecipeTab:
    return RecipeTab([source], out=tmp_path / "studio")


def _run(tab: RecipeTab) -> list[str]:
    return list(tab.runs)


def test_the_funnel_is_that_of_a_dry_run(tab: RecipeTab) -> None:
    assert (tab.prompts(), tab.statuses()) == (["dense", "short"], ["ok"])
    assert "<b>30</b> of 30 images left" in tab.funnel(_run(tab), ANY)
    html = tab.funnel(_run(tab), Sliders(prompts=("dense",), least={"num_words": 8}, where="NOT contains(caption, '<img')"))
    assert "<b>10</b> of 30 images left" in html
    assert "num_words below 8 or missing" in html and "NOT contains(caption, &#x27;&lt;img&#x27;)" in html


@pytest.mark.parametrize("where", ["contains(caption, '<img') -- x", "contains(caption, '<img') /* ) */"])
def test_a_condition_may_have_a_comment(tab: RecipeTab, where: str) -> None:
    sliders = Sliders(**{**vars(ANY), "without_bad": True, "where": where})
    assert "<b>10</b> of 30 images left" in tab.funnel(_run(tab), sliders)


@pytest.mark.parametrize("where", ["1=1) OR (1=1", "true; SELECT 1", "true FROM captions", "num_words >", "/* open"])
def test_a_condition_is_one_expression(tab: RecipeTab, where: str) -> None:
    html = tab.funnel(_run(tab), Sliders(**{**vars(ANY), "where": where}))
    assert "the SQL condition is no single expression" in html


def test_captions_that_are_flagged_as_bad_are_left_out(tab: RecipeTab, source: CaptionSource) -> None:
    rows = [FlagRow(key="img_3", prompt=prompt, flagged_by="Ada", flag="bad") for prompt in ("dense", "short")]
    save_flags(source.review_folder(), rows)
    assert "<b>29</b> of 30 images left" in tab.funnel(_run(tab), Sliders(**{**vars(ANY), "without_bad": True}))


def test_a_saved_recipe_is_read_by_build(tab: RecipeTab, source: CaptionSource, tmp_path: Path) -> None:
    sliders = Sliders(
        prompts=("dense",),
        least={"num_words": 8, "num_nouns": 0},
        min_side_px=16,
        max_aspect=2,
        without_bad=True,
        where="contains(caption, 'owl') OR true",
        exact_duplicates=True,
        max_per_noun=1000,
        validation_share=0.25,
        seed=7,
    )
    said = tab.save("dense-v1", _run(tab), sliders)
    path = tmp_path / "studio" / "recipes" / "dense-v1.yaml"
    saved = yaml.safe_load(path.read_text())
    assert saved["least"] == {"num_words": 8.0} and saved["splits"] == {"validation": 0.25, "train": 0.75}
    assert saved["where"] == "(contains(caption, 'owl') OR true) AND flag IS DISTINCT FROM 'bad'"
    assert str(path) in said
    out = run_here(
        "dataset_builder.build", "--config", str(path), "--captions", source.url, "--out", str(tmp_path / "d"), "--dry_run"
    )
    left = int(out.strip().splitlines()[-2].split()[0])
    shown = re.search(r"<b>(\d+)</b> of 30", tab.funnel(_run(tab), sliders))
    assert shown is not None and int(shown[1]) == left > 0
    assert tab.save("dense-v1", _run(tab), sliders) == said
    with pytest.raises(UserError, match="another recipe"):
        tab.save("dense-v1", _run(tab), ANY)


def test_a_recipe_of_all_prompts_names_none(tab: RecipeTab, tmp_path: Path) -> None:
    tab.save("all", _run(tab), ANY)
    assert yaml.safe_load((tmp_path / "studio" / "recipes" / "all.yaml").read_text()) in (None, {})


@pytest.mark.parametrize("name", ["", "../out", "a/b", "a b", "x.yaml"])
def test_a_name_is_no_path(tab: RecipeTab, name: str) -> None:
    with pytest.raises(UserError, match="expected a name"):
        tab.save(name, _run(tab), ANY)


@pytest.mark.parametrize(
    ("runs", "changes", "reason"),
    [
        ([], {}, "no run is chosen"),
        (["/etc"], {}, "is not open"),
        (None, {"prompts": ()}, "no prompt is chosen"),
        (None, {"statuses": ()}, "statuses must name at least one"),
        (None, {"where": "nothing > 3"}, "no column nothing"),
        (None, {"where": "true) FROM read_text('/etc/passwd') --"}, ""),
        (None, {"min_cosine": 0.1}, "min_cosine must be between"),
    ],
)
def test_what_is_no_recipe_is_said(tab: RecipeTab, runs: list[str] | None, changes: dict[str, object], reason: str) -> None:
    html = tab.funnel(_run(tab) if runs is None else runs, Sliders(**{**vars(ANY), **changes}))
    assert 'role="alert"' in html and reason in html and "root:" not in html
