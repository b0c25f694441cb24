"""The macros give the figures that the density command gives, on a run as on a data set."""

from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from dataset_builder.concepts.density import rarefied
from dataset_builder.dataset.building import build_dataset
from dataset_builder.dataset.recipe import BuildConfig
from dataset_builder.dataset.samples import ASPECT_RATIOS, nearest_ratios
from dataset_builder.reports.density_rows import counted_captions, density_row
from dataset_builder.sql.database import Database
from dataset_builder.sql.dataset_files import open_stored
from dataset_builder.sql.macros import macro_sql
from foundry.errors import UserError
from foundry.storage.folder import Folder
from tests.dataset_builder.small_run import SmallRun


@pytest.fixture(params=["run", "dataset"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    url = SmallRun(num_images=30, unit_size=10, num_committed=3, rejected=()).write(Folder(str(tmp_path / "run"))).url
    if request.param == "dataset":
        config = BuildConfig(captions=(url,), out=str(tmp_path / "dataset"))
        build_dataset(config)
        url = config.out
    with open_stored(url) as opened:
        yield opened


def test_density_and_rarefaction_are_those_of_the_density_command(database: Database) -> None:
    for text in counted_captions(database, source="here"):
        row = density_row(text, sample_size=12)
        found = database.fetch(f"FROM density() WHERE prompt = '{text.prompt}'").to_pylist()
        assert [line["counted"] for line in found] == list(row.whole)
        for line in found:
            whole = row.whole[line["counted"]]
            assert (line["valid_nouns"], line["distinct_nouns"]) == (whole.valid_nouns, whole.distinct_nouns)
            assert (line["total_nouns"], line["num_captions"]) == (whole.total_nouns, 30)
            assert line["ratio"] == pytest.approx(whole.ratio, abs=1e-4)
        sample = database.fetch(f"FROM rarefied(12) WHERE prompt = '{text.prompt}'").to_pylist()[0]
        assert sample["valid_nouns"] == pytest.approx(row.sample["written"].valid_nouns, abs=0.06)
        assert sample["distinct_nouns"] == pytest.approx(row.sample["written"].distinct_nouns, abs=0.06)
    assert {line["num_captions"] for line in database.fetch("FROM rarefied(1000)").to_pylist()} == {
        30
    }  # no more than there are


@pytest.mark.parametrize("num_nouns", [200, 124_000])
def test_rarefaction_in_sql_is_that_of_python_at_any_size(num_nouns: int) -> None:
    """Up to the paper's 327.9M nouns, where differences of log-gammas would keep no digits."""
    counts = np.maximum(3e7 / np.arange(1, num_nouns + 1) ** 1.1, 1).astype(np.int64)
    with duckdb.connect() as connection:
        connection.execute("CREATE SCHEMA stored")
        connection.execute("CREATE TABLE stored.tallies AS SELECT 'dense' AS prompt, 11_200_000 AS num_captions")
        connection.register("counted", pa.table({"count": counts}))
        connection.execute("CREATE TABLE noun_counts AS SELECT 'dense' AS prompt, count FROM counted")
        for statement in macro_sql(has_noun_index=False):
            if "stored." in statement and ("choose" in statement or "stirling" in statement):
                connection.execute(statement)
        for size in (0, 1, 1_000, 112_000, 11_200_000, 20_000_000):
            wanted = rarefied(counts, num_captions=11_200_000, sample_size=min(size, 11_200_000))
            (found,) = connection.execute(f"SELECT valid_nouns, distinct_nouns FROM rarefied({size})").fetchall()
            assert found == pytest.approx((wanted.valid_nouns, wanted.distinct_nouns), abs=0.051)
        with pytest.raises(duckdb.Error, match="a sample holds 0 captions or more, not -1"):
            connection.execute("FROM rarefied(-1)").fetchall()


def test_valid_nouns_appear_so_often(database: Database) -> None:
    assert database.fetch("SELECT DISTINCT noun FROM valid_nouns(31)")["noun"].to_pylist() == []
    assert set(database.fetch("FROM valid_nouns(30)")["noun"].to_pylist()) == {"owl", "house", "image", "tree", "sky"}


def test_compare_tells_what_is_typical(database: Database) -> None:
    found = database.fetch("SELECT noun, count_a, count_b, difference FROM compare('short', 'dense')").to_pylist()
    assert found[0] == {"noun": "image", "count_a": 30, "count_b": 0, "difference": 0.5}
    assert found[-1]["difference"] == -0.25
    with pytest.raises(UserError, match='no prompt or split "long": there are dense, short'):
        database.fetch("FROM compare('short', 'long')")


def test_captions_with_all_nouns_are_found_in_both_ways(database: Database) -> None:
    as_table = database.fetch("FROM with_all(['owl', 'sky']) ORDER BY key").to_pylist()
    as_condition = "SELECT key, prompt FROM captions WHERE with_all(nouns, ['owl', 'sky']) ORDER BY key"
    assert as_table == database.fetch(as_condition).to_pylist()
    assert len(as_table) == 30
    assert database.fetch("FROM with_all(['owl', 'unicorn'])").num_rows == 0


def test_a_macro_that_is_not_there_has_a_nearest_name(database: Database) -> None:
    with pytest.raises(UserError, match=r"there is no densty\(\): did you mean density\(\)"):
        database.fetch("FROM densty()")


def test_buckets_are_the_nearest_ratios() -> None:
    sides = np.array([(64, 64), (1, 9), (9, 1), (107, 100), (10, 18)], dtype=np.int32)
    found = [ASPECT_RATIOS[place] for place in nearest_ratios(sides[:, 0], sides[:, 1])]
    assert found == ["1.0", "0.25", "4.0", "1.07", "0.57"]


@pytest.mark.slow
def test_buckets_are_those_of_diffusers() -> None:
    from diffusers.pipelines.pixart_alpha.pipeline_pixart_sigma import ASPECT_RATIO_2048_BIN

    assert tuple(ASPECT_RATIO_2048_BIN) == ASPECT_RATIOS
