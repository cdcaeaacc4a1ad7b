"""Connected pieces of tissue on a patch grid."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["find_lumps", "split_windows"]

_GAP = 2
"""Patches so many cells apart (along the worse axis) belong to one lump: a hole of one is none."""


def find_lumps(index: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Group patches into lumps, in the order of their first patch.

    Parameters
    ----------
    index
        ``(N, 2)`` column, row of each patch in its lattice.

    Returns
    -------
    The rows of ``index`` of each lump, ascending. Patches belong together if they touch, or if one
    missing patch lies between.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import cKDTree

    if not len(index):
        return []
    pairs = cKDTree(index).query_pairs(_GAP, p=np.inf, output_type="ndarray")
    ones = np.ones(len(pairs), np.int8)
    graph = coo_array((ones, (pairs[:, 0], pairs[:, 1])), (len(index), len(index)))
    _, labels = connected_components(graph, directed=False)
    return _groups(labels)


def split_windows(index: NDArray[np.int64], side: int) -> list[NDArray[np.int64]]:
    """Group patches by windows of ``side`` x ``side`` cells, edge to edge from the first.

    Returns
    -------
    As :func:`find_lumps`.
    """
    if not len(index):
        return []
    window = (index - index.min(0)) // side
    _, labels = np.unique(window, axis=0, return_inverse=True)
    return _groups(labels.reshape(-1))


def _groups(labels: NDArray[np.integer]) -> list[NDArray[np.int64]]:
    order = np.argsort(labels, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    return sorted(groups, key=lambda rows: int(rows[0]))
