"""A captioning run of a few images, written file by file as the captioner leaves it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dataset_builder.concepts.noun_counts import CaptionNouns, count_nouns
from dataset_builder.concepts.t5_view import T5Config
from dataset_builder.concepts.tagger import TaggerConfig
from dataset_builder.schema import CAPTIONS, SCORES
from dataset_builder.sql.score_files import record_name, score_folder
from foundry.images.index import IMAGES, INDEX, REJECTED
from foundry.images.reader import content_hash
from foundry.storage.folder import Folder
from foundry.units.commits import Unit, commit_unit, table_bytes

NOUNS = ("owl", "house", "image", "tree", "sky")
T5_WORDS = 6
MINI_T5 = T5Config(tokenizer="mini")
"""The tokenizer that is there offline; the default is that of PixArt-alpha, from the hub."""


@dataclass(frozen=True, kw_only=True)
class SmallRun:
    """What `write` puts into a folder: images img_0 …, with the first units committed, and one of them rejected."""

    num_images: int = 8
    unit_size: int = 3
    num_committed: int = 2
    rejected: tuple[str, ...] = ("img_4",)
    run_id: str = "0123456789ab"
    content_hashes: dict[str, str] = field(default_factory=dict)
    """By key; "00" where nothing is said."""
    perceptual_hashes: dict[str, int] = field(default_factory=dict)
    """By key; the run is scored where there are any."""
    captions: dict[str, str] = field(
        default_factory=lambda: {
            "dense": "An owl sits beside a house and a tree under the sky.",
            "short": "An image of an owl.",
        }
    )
    carried: dict[str, str] = field(
        default_factory=lambda: {"score": "DOUBLE", "KEY": "VARCHAR", "a.b/c": "BIGINT", "ok": "BOOLEAN"}
    )

    def write(self, folder: Folder) -> Folder:
        """Writes the run and returns the folder."""
        record = {
            "run_id": self.run_id,
            "carried": self.carried,
            "settings": {
                "tagger": {"model": TaggerConfig().spacy_model, "version": "3.8.0", "noun_tags": ["NN", "NNS", "NNP", "NNPS"]},
                "t5": {"tokenizer": "mini", "max_tokens": T5_WORDS},
                "prompts": {"prompts": [{"name": name, "text": f"{name}?"} for name in self.captions]},
            },
        }
        folder.write("run.json", json.dumps(record).encode())
        units = [
            range(start, min(start + self.unit_size, self.num_images)) for start in range(0, self.num_images, self.unit_size)
        ]
        self._write_plan(folder, units)
        for number in range(self.num_committed):
            self.commit(folder, number, units[number])
        if self.perceptual_hashes:
            self._score(folder)
        return folder

    def commit(self, folder: Folder, number: int, images: Sequence[int]) -> None:
        """Publishes a unit of these images."""
        keys = [f"img_{image}" for image in images]
        good = [key for key in keys if key not in self.rejected]
        captions = [_caption(key, prompt, text) for key in good for prompt, text in self.captions.items()]
        nouns = [
            CaptionNouns(prompt=row["prompt"], lemmas=tuple(row["nouns"]), num_t5_nouns=row["num_t5_nouns"]) for row in captions
        ]
        rejected = [key for key in keys if key in self.rejected]
        commit = commit_unit(
            folder,
            run_id=self.run_id,
            unit=Unit(number=number, part="", row_group=0, num_images=len(images)),
            tables={
                "captions": pa.Table.from_pylist(captions, schema=CAPTIONS),
                "noun_counts": count_nouns(nouns),
                "images": pa.Table.from_pylist([self._image(key) for key in good], schema=IMAGES),
                "rejected": pa.Table.from_pylist(
                    [{"key": key, "uri": f"/data/{key}.jpg", "reason": "broken", "message": "truncated"} for key in rejected],
                    schema=REJECTED,
                ),
            },
            num_tokens=10 * len(captions),
            seconds={"prepare": 0.5, "process": 2.0, "finish": 0.25},
        )
        assert commit is not None

    def _image(self, key: str) -> dict[str, Any]:
        row = _index_row(key)
        del row["sidecars"]
        return row | {"content_hash": self.content_hashes.get(key, "00"), "width": 64, "height": 48, "format": "JPEG"}

    def _score(self, folder: Folder) -> None:
        folder.write(record_name("1"), json.dumps({"score_id": "1", "created_at": "2026-01-01"}).encode())
        rows = [{"key": key, "sharpness": 1.0, "perceptual_hash": code} for key, code in self.perceptual_hashes.items()]
        unit = Unit(number=0, part="", row_group=0, num_images=len(rows))
        tables = {"scores": pa.Table.from_pylist(rows, schema=SCORES)}
        assert commit_unit(score_folder(folder, "1"), run_id="1", unit=unit, tables=tables) is not None

    def _write_plan(self, folder: Folder, units: Sequence[range]) -> None:
        parts = []
        for number, images in enumerate(units):
            path = f"images/plan-0-ab12-{number:08d}.parquet"
            rows = [_index_row(f"img_{image}") for image in images]
            folder.create(path, table_bytes(pa.Table.from_pylist(rows, schema=INDEX)))
            parts.append({"path": path, "first_unit": number, "units": 1, "rows": len(rows)})
        folder.create("plans/0.json", json.dumps({"parts": parts, "sources": [], "num_repeated": 0}).encode())


def _index_row(key: str) -> dict[str, Any]:
    number = int(key.removeprefix("img_"))
    metadata = {"score": number / 2, "KEY": f"own {number}", "a.b/c": number, "ok": number % 2 == 0}
    return {
        "key": key,
        "uri": f"/data/{key}.jpg",
        "sidecars": [],
        "alt_text": None if number == 1 else "An owl and a tree.",
        "class_label": "owl",
        "metadata": json.dumps(metadata),
    }


def _caption(key: str, prompt: str, text: str) -> dict[str, Any]:
    """The tokenizer of this world splits at spaces; the encoder reads T5_WORDS - 1 words and </s>."""
    words = [word.strip(".") for word in text.lower().split()]
    nouns = [word for word in words if word in NOUNS]
    return {
        "key": key,
        "prompt": prompt,
        "caption": text,
        "caption_raw": text,
        "status": "ok",
        "flags": [],
        "finish_reason": "stop",
        "num_tokens": len(words),
        "num_words": len(words),
        "num_t5_tokens": len(words) + 1,
        "num_nouns": len(nouns),
        "num_distinct_nouns": len(set(nouns)),
        "num_meta_nouns": nouns.count("image"),
        "num_t5_nouns": sum(word in NOUNS for word in (words if len(words) < T5_WORDS else words[: T5_WORDS - 1])),
        "nouns": nouns,
        "mean_logprob": -0.5,
        "min_logprob": -2.0,
    }


def write_run_with_images(tmp_path: Path) -> str:
    """Three images, of which the second is gone and the third another one by now."""
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(tmp_path / "img_0.png")
    (tmp_path / "img_2.png").write_bytes(b"another image")
    folder = SmallRun(num_images=3, rejected=(), num_committed=1).write(Folder(str(tmp_path / "pictures")))
    path = next(Path(folder.root).glob("images/0*.parquet"))
    rows = pq.read_table(path).to_pylist()
    for row in rows:
        row["uri"] = str(tmp_path / f"{row['key']}.png")
        row["content_hash"] = content_hash((tmp_path / "img_0.png").read_bytes())
    pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(path)), path)
    return folder.url
