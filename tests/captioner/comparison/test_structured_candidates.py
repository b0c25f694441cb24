"""JSON captions are compared by their words: counted, scored and marked as density and scores do."""

import json
import re
import shutil
from html import unescape
from pathlib import Path

import pytest

from captioner.compare import CompareConfig
from captioner.compare import main as compare
from captioner.comparison.candidates import find_candidates
from captioner.comparison.measures import COUNTED, pair_images
from captioner.comparison.sampled import draw_sample, keep_clip, keep_recounted, keep_stored_clip
from dataset_builder.concepts.t5_view import T5Config
from dataset_builder.concepts.tagger import TaggerConfig
from dataset_builder.scores.clip import resolve_clip
from dataset_builder.scores.job import score_job
from dataset_builder.scores.plan import find_scored, plan_scores
from dataset_builder.sql.database import open_workbench
from dataset_builder.sql.score_files import score_folder
from tests.captioner.structured_scenes import run, scenes
from tests.dataset_builder.tiny_clip import write_tiny_clip
from tests.foundry.units.plain_loop import run_plainly

__all__ = ["run", "scenes"]  # fixtures


def test_a_comparison_counts_and_scores_the_words_of_json(run: str, tmp_path: Path) -> None:
    """What compare measures itself is what the run has counted, and what dataset_builder.score would say of it."""
    scored, clip = tmp_path / "run", write_tiny_clip(tmp_path / "clip")
    shutil.copytree(run, scored)
    found = find_scored(str(scored))
    job = score_job(found, clip=str(clip), aesthetic=None, batch_size=64)
    run_plainly(job, plan_scores(found, score_folder(found.folder, job.score_id)))
    candidates = find_candidates([str(scored)])
    settings = candidates[0].files.settings
    tagger, t5 = TaggerConfig.as_described(settings["tagger"], default=TaggerConfig()), T5Config(tokenizer="mini")
    with open_workbench({str(scored): candidates[0].files}) as bench:
        pair_images(bench, candidates)
        sample = draw_sample(bench, candidates, size=6)
        keep_recounted(bench, candidates, sample, tagger=tagger, t5=t5)
        for one in candidates:
            both = " JOIN paired USING (image) JOIN " + one.captions + f" AS s ON s.key = key_0 WHERE candidate = {one.index}"
            same = " AND ".join(f"r.{name} IS NOT DISTINCT FROM s.{name}" for name in COUNTED)
            assert bench.fetch(f"SELECT count(*) AS n FROM recounted r {both} AND {same}")["n"].to_pylist() == [6]
        assert keep_clip(bench, candidates, sample, resolve_clip(str(clip))) == []
        computed = bench.fetch("SELECT * FROM clip ORDER BY image, candidate").to_pylist()
    with open_workbench({str(scored): candidates[0].files}) as bench:
        pair_images(bench, candidates)
        keep_stored_clip(bench, candidates)
        chosen = ", ".join(f"'{one.image}'" for one in sample)
        stored = bench.fetch(f"SELECT * FROM clip WHERE image IN ({chosen}) ORDER BY image, candidate").to_pylist()
    assert len(stored) == len(computed) == 12
    for here, there in zip(computed, stored, strict=True):
        assert here == {name: pytest.approx(value, rel=1e-3) if "clip" in name else value for name, value in there.items()}


def test_a_page_shows_json_with_spaces_and_marks_none_of_its_keys(run: str, tmp_path: Path) -> None:
    page = tmp_path / "compare.html"
    assert compare(CompareConfig(runs=(run,), out=str(page), pictures=8)) == 0
    text = unescape(page.read_text())
    cards = re.findall(r"<p>(\{.*?)</p>", text)
    assert len(cards) == 8
    plain = re.sub("</?mark[^>]*>", "", cards[0])
    assert plain == json.dumps(json.loads(plain), ensure_ascii=False), "JSON, spaced"
    marks = [mark for card in cards for mark in re.findall("<mark[^>]*>(.*?)</mark>", card)]
    assert marks and not any(re.search(r'"\w+":|\d|\{', mark) for mark in marks)
