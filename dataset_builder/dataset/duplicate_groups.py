"""From pairs of rows to groups: whoever is linked, also through others, is one group."""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    Rows = npt.NDArray[np.int64]

_PAIRS_IN_MEMORY = 8_000_000


class DuplicateGroups:
    """Joins rows 0 … num_rows - 1 pair by pair; 16 bytes to a row, and a bounded number of pairs at a time."""

    def __init__(self, num_rows: int) -> None:
        self._labels: Rows = np.arange(num_rows, dtype=np.int64)
        self._pending: list[tuple[Rows, Rows]] = []
        self._num_pending = 0

    def join(self, first: "Rows", second: "Rows") -> None:
        """Says that each row of `first` is the same thing as its partner in `second`."""
        if len(first):
            self._pending.append((first, second))
            self._num_pending += len(first)
        if self._num_pending > _PAIRS_IN_MEMORY:
            self._merge()

    def labels(self) -> "Rows":
        """The group of each row: the least row that is in it, (num_rows,)."""
        self._merge()
        return self._labels.copy()

    def _merge(self) -> None:
        from scipy.sparse import coo_matrix
        from scipy.sparse.csgraph import connected_components

        if not self._pending:
            return
        size = len(self._labels)
        first, second = (self._labels[np.concatenate(rows)] for rows in zip(*self._pending, strict=True))
        links = coo_matrix((np.ones(len(first), np.bool_), (first, second)), shape=(size, size))
        _, component = connected_components(links, directed=False)  # (num_rows,) over the old labels
        least = np.full(component.max() + 1, size, dtype=np.int64)
        np.minimum.at(least, component, np.arange(size, dtype=np.int64))
        self._labels = least[component[self._labels]]
        self._pending, self._num_pending = [], 0
