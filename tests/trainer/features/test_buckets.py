"""Buckets are diffusers' tables where it has one; images are cropped, never squashed."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from foundry.errors import UserError
from foundry.images.decoding import DecodeLimits, decode_image
from model.generation.resolution import fit, size_table
from trainer.features.buckets import bucket_table, decoding_side_px, nearest_buckets, to_signed


@pytest.mark.parametrize("resolution", [256, 512, 1024])
def test_tables_are_those_of_the_pipelines(resolution: int) -> None:
    table = bucket_table(resolution, multiple=16)
    assert set(table) == {(int(height), int(width)) for height, width in size_table(resolution).values()}


@given(resolution=st.sampled_from([32, 64, 96, 128, 384, 768]), multiple=st.sampled_from([4, 16, 32]))
def test_other_tables_keep_area_and_multiples(resolution: int, multiple: int) -> None:
    table = bucket_table(resolution, multiple=multiple)
    assert (resolution, resolution) in table
    for height, width in table:
        assert height % multiple == width % multiple == 0
        assert 0.25 <= height / width <= 4
        assert abs(height * width - resolution**2) <= height * multiple / 2


def test_a_side_that_the_network_cannot_have_is_refused() -> None:
    with pytest.raises(UserError, match="250 px: expected a multiple of 16 px, try 256"):
        bucket_table(250, multiple=16)


def test_the_nearest_bucket_is_nearest_by_ratio() -> None:
    table = ((32, 128), (64, 64), (128, 32))
    heights, widths = np.array([100, 100, 100, 1000]), np.array([100, 199, 210, 20])
    assert nearest_buckets(heights, widths, table).tolist() == [1, 1, 0, 2]


@given(height=st.integers(1, 300), width=st.integers(1, 300), place=st.integers(0, 32))
@settings(max_examples=300)
def test_images_of_any_size_fit(height: int, width: int, place: int) -> None:
    size = bucket_table(256, multiple=16)[place]
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    assert fit(pixels, size).shape == (*size, 3)
    assert decoding_side_px(height, width, [size]) >= min(size)


def test_the_centre_is_kept_and_nothing_is_squashed() -> None:
    pixels = np.zeros((40, 120, 3), dtype=np.uint8)
    pixels[:, 40:80] = 255
    assert (fit(pixels, (40, 40)) == 255).all()
    assert (fit(pixels, (20, 20))[:, 1:-1] > 250).all()


def test_decoding_leaves_only_a_crop() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (150, 225, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    for size in [(64, 64), (48, 80), (80, 48)]:
        side = decoding_side_px(150, 225, [size])
        decoded = decode_image(buffer.getvalue(), limits=DecodeLimits(), target_side_px=side).pixels
        rows = fit(decoded, size)
        top, left = (decoded.shape[0] - size[0]) // 2, (decoded.shape[1] - size[1]) // 2
        assert np.array_equal(rows, decoded[top : top + size[0], left : left + size[1]])


def test_an_image_of_the_right_size_is_untouched() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (24, 40, 3), dtype=np.uint8)
    assert np.array_equal(fit(pixels, (24, 40)), pixels)


def test_it_is_an_antialiased_resize_and_a_centre_crop() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (96, 160, 3), dtype=np.uint8)
    whole = Image.fromarray(pixels).resize((80, 48), Image.Resampling.LANCZOS)
    assert np.array_equal(fit(pixels, (48, 48)), np.asarray(whole)[:, 16:64])


def test_pixels_become_minus_one_to_one() -> None:
    pixels = torch.tensor([0, 255, 51], dtype=torch.uint8).reshape(1, 1, 1, 3)
    assert torch.allclose(to_signed(pixels).flatten(), torch.tensor([-1.0, 1.0, -0.6]))
