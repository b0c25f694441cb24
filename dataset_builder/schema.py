"""Tables of captions, noun counts, scores and reviews of runs, and of samples, funnel and dropped images of data sets."""

import pyarrow as pa

from foundry.images.index import REFERENCE

DATASET_VERSION = 2
"""Schema version of data sets; since 2 the nouns have a column next to the captions."""

# One row per image and prompt. nouns holds lemmas in the order of the caption, repeats included, so that the first
# num_t5_nouns of them are those that the text encoder reads.
CAPTIONS = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("caption", pa.string(), nullable=False),
        pa.field("caption_raw", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("flags", pa.list_(pa.string()), nullable=False),
        pa.field("finish_reason", pa.string(), nullable=False),
        pa.field("num_tokens", pa.int32(), nullable=False),
        pa.field("num_words", pa.int32(), nullable=False),
        pa.field("num_t5_tokens", pa.int32(), nullable=False),
        pa.field("num_nouns", pa.int32(), nullable=False),
        pa.field("num_distinct_nouns", pa.int32(), nullable=False),
        pa.field("num_meta_nouns", pa.int32(), nullable=False),
        pa.field("num_t5_nouns", pa.int32(), nullable=False),
        pa.field("nouns", pa.list_(pa.string()), nullable=False),
        pa.field("mean_logprob", pa.float32()),
        pa.field("min_logprob", pa.float32()),
    ]
)

# Mergeable by summing: the occurrences of each noun under each prompt, whole and in the part that the text encoder reads.
NOUN_COUNTS = pa.schema(
    [
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("noun", pa.string(), nullable=False),
        pa.field("count", pa.int64(), nullable=False),
        pa.field("count_t5", pa.int64(), nullable=False),
        pa.field("num_captions", pa.int64(), nullable=False),
    ]
)

# One row per scored image. The CLIP scores are cosines over the sentences of all its captions: the mean of the captions' means,
# and the least. sharpness is the variance of the Laplacian (scores/image_quality.py), perceptual_hash a pHash of 64 bits.
SCORES = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("clip_mean", pa.float32()),
        pa.field("clip_least", pa.float32()),
        pa.field("aesthetic", pa.float32()),
        pa.field("sharpness", pa.float32(), nullable=False),
        pa.field("perceptual_hash", pa.int64(), nullable=False),
    ]
)

# One row per scored image and prompt, with the cosine of each sentence, in the order of the caption.
CAPTION_SCORES = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("clip_mean", pa.float32(), nullable=False),
        pa.field("clip_least", pa.float32(), nullable=False),
        pa.field("sentences", pa.list_(pa.string()), nullable=False),
        pa.field("sentence_scores", pa.list_(pa.float32()), nullable=False),
    ]
)

# The CLIP embedding of each scored image, of length 1, in half precision.
EMBEDDINGS = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("embedding", pa.list_(pa.float16()), nullable=False),
    ]
)

# One row per image that was looked at for duplicates. Groups are numbered in the order of their first image; null: alone.
# A near group holds whole exact groups. is_kept is true for one image of each group, and for those without one; is_copy for
# all of an exact group but the one that stays, or would stay if there were no near ones.
GROUPS = pa.schema(
    [
        pa.field("run", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("exact_group", pa.int64()),
        pa.field("near_group", pa.int64()),
        pa.field("is_copy", pa.bool_(), nullable=False),
        pa.field("is_kept", pa.bool_(), nullable=False),
    ]
)

# Captions that people rewrote, in the order of the saves (reviews.py). The counts are those of the text after the edit.
EDITS = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("edited_by", pa.string(), nullable=False),
        pa.field("edited_at", pa.timestamp("ms"), nullable=False),
        pa.field("before", pa.string(), nullable=False),
        pa.field("after", pa.string(), nullable=False),
        pa.field("is_current", pa.bool_(), nullable=False),
        *(
            CAPTIONS.field(name)
            for name in (
                *("status", "num_words", "num_t5_tokens", "num_nouns", "num_distinct_nouns", "num_meta_nouns"),
                *("num_t5_nouns", "nouns"),
            )
        ),
        pa.field("file", pa.string(), nullable=False),
    ]
)

# Judgements of captions by people: good, bad, look again, or empty where one was taken back.
FLAGS = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("flag", pa.string(), nullable=False),
        pa.field("flagged_by", pa.string(), nullable=False),
        pa.field("flagged_at", pa.timestamp("ms"), nullable=False),
        pa.field("is_current", pa.bool_(), nullable=False),
        pa.field("file", pa.string(), nullable=False),
    ]
)

# What a data set keeps of a caption. repetition is the share of its nouns that were named in it before, opener its first three
# words in lower case, meta_share the share of its nouns that are META_NOUNS.
SAMPLE_CAPTION = pa.struct(
    [
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("caption", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("finish_reason", pa.string(), nullable=False),
        pa.field("num_words", pa.int32(), nullable=False),
        pa.field("num_t5_tokens", pa.int32(), nullable=False),
        pa.field("num_nouns", pa.int32(), nullable=False),
        pa.field("num_distinct_nouns", pa.int32(), nullable=False),
        pa.field("num_meta_nouns", pa.int32(), nullable=False),
        pa.field("num_t5_nouns", pa.int32(), nullable=False),
        pa.field("mean_logprob", pa.float32()),
        pa.field("repetition", pa.float32(), nullable=False),
        pa.field("opener", pa.string(), nullable=False),
        pa.field("meta_share", pa.float32(), nullable=False),
    ]
)

# One row per image of a data set. Either the reference is there (uri is not null) or the image itself, in the Image convention
# of `datasets`. nouns has those of each caption, in the order of captions: a separate column, which duckdb can read alone.
# bucket is the nearest of ASPECT_RATIOS (dataset/samples.py; height / width). Scores are null where not scored, groups where
# the image is alone or was not compared.
SAMPLES = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("run", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        *(field.with_nullable(True) for field in REFERENCE),
        pa.field("image", pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])),
        pa.field("content_hash", pa.string(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("format", pa.string()),
        pa.field("bucket", pa.string(), nullable=False),
        pa.field("captions", pa.list_(SAMPLE_CAPTION), nullable=False),
        pa.field("nouns", pa.list_(pa.list_(pa.string())), nullable=False),
        pa.field("alt_text", pa.string()),
        pa.field("class_label", pa.string()),
        pa.field("num_masks", pa.int32()),
        pa.field("mask_area_px", pa.int64()),
        pa.field("clip_mean", pa.float32()),
        pa.field("clip_least", pa.float32()),
        pa.field("aesthetic", pa.float32()),
        pa.field("sharpness", pa.float32()),
        pa.field("exact_group", pa.int64()),
        pa.field("near_group", pa.int64()),
        pa.field("metadata", pa.string()),
    ]
)

# Images of the runs that are not in a data set: the step of the recipe that dropped them, and why.
DROPPED = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("run", pa.string(), nullable=False),
        pa.field("step", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
    ]
)

# Captions that are not in a data set although their image is. key and run are those of the caption's run.
DROPPED_CAPTIONS = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("run", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("step", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
    ]
)

# Images by step, in order: how many were left after it, and how many it dropped for which reason. The first row is the input.
FUNNEL = pa.schema(
    [
        pa.field("step", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("kept", pa.int64(), nullable=False),
        pa.field("dropped", pa.int64(), nullable=False),
    ]
)

# NOUN_COUNTS of a data set, by split.
SPLIT_NOUN_COUNTS = pa.schema([pa.field("split", pa.string(), nullable=False), *NOUN_COUNTS])

# How many captions of a prompt have words, how many have none, and how many the text encoder does not read to the end.
TALLIES = pa.schema(
    [
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("num_captions", pa.int64(), nullable=False),
        pa.field("num_empty", pa.int64(), nullable=False),
        pa.field("num_cut", pa.int64(), nullable=False),
    ]
)

# Which captions hold a noun. A noun has several rows, one for each stretch of the samples; a row group is sorted by noun.
NOUN_INDEX = pa.schema(
    [
        pa.field("noun", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("keys", pa.list_(pa.string()), nullable=False),
    ]
)

# Losses that a training recorded; `images_seen` is that of its stage after the step.
LOSSES = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("images_seen", pa.int64(), nullable=False),
        pa.field("resolution", pa.int32(), nullable=False),
        pa.field("timestep", pa.float32(), nullable=False),
        pa.field("loss", pa.float32(), nullable=False),
    ]
)
