"""Held-out combinations of kind, place and background, which training never shows.

A combination is held out by a hash of its words, fixed here for good: about one in ten. A `train` scene contains no
held-out combination; in an `unseen` scene every object makes one. So whatever was trained on `train` scenes, of any
seed, has never seen an object of an `unseen` scene at that place before that background.
"""

import functools
import hashlib

from examples.openmoji.kinds import KIND_NAMES

SPLITS = ("train", "unseen")
_ONE_IN = 10


@functools.cache
def is_held_out(kind: str, place: str, color: str, pattern: str) -> bool:
    """Whether the combination belongs to the `unseen` split."""
    digest = hashlib.blake2b(f"{kind}/{place}/{color}/{pattern}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % _ONE_IN == 0


@functools.cache
def allowed_kinds(split: str, place: str, color: str, pattern: str) -> tuple[str, ...]:
    """The kinds that may be at this place on this background in a scene of the split; may be empty for `unseen`."""
    assert split in SPLITS, split
    return tuple(kind for kind in KIND_NAMES if is_held_out(kind, place, color, pattern) == (split == "unseen"))
