"""The exact outlines of a mask, as rings along the edges of its pixels."""

import numpy as np


def trace_outlines(mask: np.ndarray) -> list[np.ndarray]:
    """The closed rings around the pixels of a bool [H, W] mask.

    Returns rings [M, 2] int64 of (x, y), the corners of pixels where the outline turns; a side
    along a row comes first, then one along a column, and so on. With y downwards the mask lies to
    the right of every side: outer rings go clockwise, holes anticlockwise. Pixels that share only
    a corner have outlines of their own.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows) == 0:
        return []
    top, left = rows[0], columns[0]
    inside = np.pad(mask[top : rows[-1] + 1, left : columns[-1] + 1], 1)
    above_left, above_right = inside[:-1, :-1], inside[:-1, 1:]
    below_left, below_right = inside[1:, :-1], inside[1:, 1:]

    # An outline turns at a corner where one or three of the four pixels are inside, and twice
    # where it is two that share nothing but the corner.
    parity = above_left ^ above_right ^ below_left ^ below_right
    touching = (
        (above_left == below_right) & (above_right == below_left) & (above_left != above_right)
    )
    corner_y, corner_x = np.nonzero(parity | touching)
    twice = touching[corner_y, corner_x]
    y, x = (np.repeat(place, 1 + twice) for place in (corner_y, corner_x))

    # Along a row every second turn begins a side that ends at the next, of two turns in one place
    # the first to the left and the second to the right. Likewise along a column; there the upper
    # side goes to the turn around the upper one of the two pixels that touch.
    second = np.zeros(len(x), bool)
    second[np.cumsum(1 + twice)[twice] - 1] = True
    by_column = np.lexsort((second == above_left[y, x], y, x)).reshape(-1, 2)
    across = np.empty(len(x), np.int64)
    across[by_column[:, 0]], across[by_column[:, 1]] = by_column[:, 1], by_column[:, 0]

    # A side along a row goes to the right if the mask is below it.
    start, end = np.arange(len(x)).reshape(-1, 2).T
    rightwards = below_right[y[start], x[start]]
    start, end = np.where(rightwards, start, end), np.where(rightwards, end, start)
    points = np.stack([x + left, y + top], axis=1)
    sides = np.stack([points[start], points[end]], axis=1)
    return [sides[ring].reshape(-1, 2) for ring in _cycles((across[end] // 2).tolist())]


def _cycles(following: list[int]) -> list[list[int]]:
    """The cycles of a permutation, each from its smallest member on."""
    cycles, seen = [], [False] * len(following)
    for first in range(len(following)):
        if seen[first]:
            continue
        cycle, place = [], first
        while not seen[place]:
            seen[place] = True
            cycle.append(place)
            place = following[place]
        cycles.append(cycle)
    return cycles
