"""Files of scores inside a captioning run or a data set: scores/<score_id>.json says what was measured, and the folder of that
name holds units and commits.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from foundry.storage.folder import Folder
from foundry.units.commits import Commit, read_commits

SCORES_FOLDER = "scores"


@dataclass(frozen=True, kw_only=True)
class ScoreFiles:
    """One scoring at one moment."""

    score_id: str
    record: dict[str, Any]
    """Its settings, and when it began."""
    commits: tuple[Commit, ...]

    def paths(self, kind: str) -> list[str]:
        """The files of a kind (scores, caption_scores, embeddings, rejected), relative to the folder that was scored."""
        files = [commit.files[kind].path for commit in self.commits if kind in commit.files]
        return [f"{SCORES_FOLDER}/{self.score_id}/{path}" for path in files]


def record_name(score_id: str) -> str:
    """The record of one scoring, relative to the folder that is scored."""
    return f"{SCORES_FOLDER}/{score_id}.json"


def score_folder(scored: Folder, score_id: str) -> Folder:
    """The folder of one scoring."""
    return Folder(f"{scored.url.rstrip('/')}/{SCORES_FOLDER}/{score_id}")


def newest_scores(scored: Folder) -> ScoreFiles | None:
    """The scoring that was started last; None if nothing was scored."""
    names = [name for name in scored.names(SCORES_FOLDER) if name.endswith(".json")]
    if not names:
        return None
    records = [json.loads(data) for data in scored.read_many([f"{SCORES_FOLDER}/{name}" for name in names]).values()]
    newest = max(records, key=lambda record: (record["created_at"], record["score_id"]))
    commits = tuple(read_commits(score_folder(scored, newest["score_id"])))
    return ScoreFiles(score_id=newest["score_id"], record=newest, commits=commits)


def unscored(folder: Folder, views: Iterable[str]) -> dict[str, str]:
    """Explanation of these views on scores if nothing was scored."""
    return {
        view: f"{view} is empty, nothing was scored yet: run python -m dataset_builder.score {folder.url}" for view in views
    }
