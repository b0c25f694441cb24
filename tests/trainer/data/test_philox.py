"""Philox for many keys at once is numpy's, bit for bit."""

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.philox import first_words, uniforms, uniforms_float32

WORDS = st.integers(0, 2**64 - 1)


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4))
def test_the_first_numbers_are_those_of_a_generator(keys: list[tuple[int, int]]) -> None:
    array = np.array(keys, np.uint64)

    def source(row: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=array[row]))

    def stacked(rows: list[npt.NDArray[np.generic]]) -> npt.NDArray[np.generic]:
        return np.stack(rows)

    count = range(len(keys))
    raw = stacked([np.random.Philox(key=array[row]).random_raw(4) for row in count])
    assert np.array_equal(first_words(array), raw)
    assert np.array_equal(uniforms(array), stacked([source(row).random(4) for row in count]))
    assert np.array_equal(uniforms_float32(array), stacked([source(row).random(8, dtype=np.float32) for row in count]))
