"""Which row of which micro-batch takes which turns: planned for all processes at once, from sizes alone.

A program of the learner takes rows of a fixed shape (`RowShape`). A row holds groups one after the other,
each a prefix and some of its siblings; a group that does not fit into the rest of a row is split over several
rows, and each of them gets a copy of the prefix. Every process plans from the sizes of everybody's groups, so
all run the same programs the same number of times, and no row is padding for another process's sake.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class RowShape(NamedTuple):
    """What a row of a micro-batch can hold. Rows of one shape run one program."""

    tokens: int
    """Slots for tokens."""
    sampled: int
    """Slots for sampled tokens, whose log-probabilities are computed."""
    segments: int
    """Prefixes and siblings, at most."""
    views: int = 0
    """Vision rows: each holds images with `windows` attention windows together."""
    windows: int = 0
    """Attention windows of a vision row."""


class GroupSize(NamedTuple):
    """What a group of turns with one prefix takes of a row."""

    prefix: int
    """Slots of the prefix."""
    siblings: tuple[int, ...]
    """Slots of each sibling: its own part of the prompt, and what was sampled."""
    sampled: tuple[int, ...]
    """Sampled tokens of each sibling."""
    windows: int = 0
    """Attention windows of the prefix's image; 0 without an image."""
    owner: int = 0
    """The process that sampled it."""


class Part(NamedTuple):
    """Siblings of a group that share a row, behind a copy of their prefix."""

    group: int
    siblings: tuple[int, ...]


class MicroBatchPlan(NamedTuple):
    """The rows of a micro-batch over all processes."""

    shape: RowShape
    rows: tuple[tuple[tuple[Part, ...], ...], ...]
    """[process][row]: the parts that the row holds."""


def too_long(group: GroupSize, shapes: Sequence[RowShape]) -> tuple[int, ...]:
    """The siblings of a group that no row holds, not even alone."""
    return tuple(
        k
        for k, (tokens, sampled) in enumerate(zip(group.siblings, group.sampled, strict=True))
        if not any(
            group.prefix + tokens <= shape.tokens
            and sampled <= shape.sampled
            and shape.segments >= 2
            and (not group.windows or (shape.views and group.windows <= shape.windows))
            for shape in shapes
        )
    )


def plan_rows(
    groups: Sequence[GroupSize], shapes: Sequence[RowShape], rows: int, processes: int = 1
) -> list[MicroBatchPlan]:
    """The micro-batches that hold all groups in the fewest slots that were found.

    Args:
        groups: of all processes; every sibling fits into a row of some shape (`too_long`).
        shapes: the shapes that rows may have, in any order.
        rows: rows of a micro-batch on each process.

    The result depends on nothing but the arguments. A row is preferably given to the process that sampled
    most of what it holds.
    """
    if not any(group.siblings for group in groups):
        return []
    shapes = sorted(shapes, reverse=True)
    largest, *others = shapes
    tokens = sum(group.prefix + sum(group.siblings) for group in groups)
    count = -(-tokens // (largest.tokens * rows * processes))
    best = _filled(groups, shapes, [count, *(0 for _ in others)], rows, processes)
    while best is None:
        count += max(1, count // 24)
        if count > len(groups) + sum(len(group.siblings) for group in groups):
            raise ValueError("a sibling fits into no row: leave out those of `too_long` first")
        best = _filled(groups, shapes, [count, *(0 for _ in others)], rows, processes)
    # What is left over may fit into smaller rows than the largest.
    for counts in _smaller(count, shapes):
        if (found := _filled(groups, shapes, counts, rows, processes)) is not None:
            return found
    return best


def _smaller(count: int, shapes: Sequence[RowShape]) -> list[list[int]]:
    """Numbers of micro-batches of each shape with fewer slots than `count` of the largest; fewest first."""
    slots = [shape.tokens for shape in shapes]
    found = [
        [count - fewer, *few]
        for fewer in range(1, min(count, 3) + 1)
        for few in itertools.product(*(range(fewer + 2) for _ in shapes[1:]))
        if any(few) and np.dot([count - fewer, *few], slots) < count * slots[0]
    ]
    return sorted(found, key=lambda counts: int(np.dot(counts, slots)))


def _filled(
    groups: Sequence[GroupSize], shapes: Sequence[RowShape], counts: Sequence[int], rows: int, processes: int
) -> list[MicroBatchPlan] | None:
    """All groups in `counts` micro-batches of each shape, or None where they do not fit."""
    bins = _fill(groups, shapes, [count * rows for count in counts], processes)
    if bins is None:
        return None
    plans, first = [], 0
    for shape, count in zip(shapes, counts, strict=True):
        own = count * rows
        for i in range(count):
            places = [[first + p * own + i * rows + r for r in range(rows)] for p in range(processes)]
            plans.append(MicroBatchPlan(shape, tuple(tuple(tuple(bins[b]) for b in mine) for mine in places)))
        first += own * processes
    return plans


class _Bins:
    """The room that is left in every row of all micro-batches."""

    def __init__(self, shapes: Sequence[RowShape], counts: Sequence[int], processes: int):
        kinds = [shape for shape, count in zip(shapes, counts, strict=True) for _ in range(count * processes)]
        self.tokens = np.array([shape.tokens for shape in kinds])
        self.sampled = np.array([shape.sampled for shape in kinds])
        self.segments = np.array([shape.segments for shape in kinds])
        views = max(shape.views for shape in shapes)
        self.windows = np.array(
            [[shape.windows] * shape.views + [0] * (views - shape.views) for shape in kinds]
        ).reshape(len(kinds), views)
        self.owner = np.concatenate(
            [np.repeat(np.arange(processes), count) for count in counts if count] or [np.zeros(0, np.int64)]
        )
        self.parts: list[list[Part]] = [[] for _ in kinds]

    def room(self, prefix: int, tokens: int, sampled: int, siblings: int, windows: int) -> np.ndarray:
        """bool[bins]: which have room for a prefix and this much of its siblings."""
        fits = (self.tokens >= prefix + tokens) & (self.sampled >= sampled) & (self.segments > siblings)
        return fits & (self.windows >= windows).any(-1) if windows else fits

    def put(self, place: int, index: int, group: GroupSize, siblings: Sequence[int]) -> None:
        self.tokens[place] -= group.prefix + sum(group.siblings[k] for k in siblings)
        self.sampled[place] -= sum(group.sampled[k] for k in siblings)
        self.segments[place] -= 1 + len(siblings)
        if group.windows:
            left = self.windows[place]
            # The fullest vision row that holds it.
            row = min((n for n in range(len(left)) if left[n] >= group.windows), key=lambda n: left[n])
            left[row] -= group.windows
        self.parts[place].append(Part(index, tuple(sorted(siblings))))


def _fill(
    groups: Sequence[GroupSize], shapes: Sequence[RowShape], counts: Sequence[int], processes: int
) -> list[list[Part]] | None:
    """What each bin holds (by shape, then process), or None where this does not fit everything in."""
    bins = _Bins(shapes, counts, processes)
    # Images first: they are short, and only some of them fit into a row.
    by_size = sorted(
        range(len(groups)),
        key=lambda i: (-groups[i].windows, -groups[i].prefix - sum(groups[i].siblings)),
    )
    for index in by_size:
        group = groups[index]
        left = sorted(range(len(group.siblings)), key=lambda k: -group.siblings[k])
        while left:
            tokens, sampled = sum(group.siblings[k] for k in left), sum(group.sampled[k] for k in left)
            whole = bins.room(group.prefix, tokens, sampled, len(left), group.windows)
            if whole.any():
                # The fullest row that holds the rest of the group, of its own process if there is one.
                mine = whole & (bins.owner == group.owner)
                places = np.flatnonzero(mine if mine.any() else whole)
                bins.put(places[bins.tokens[places].argmin()], index, group, left)
                break
            first = left[-1]  # the shortest
            some = bins.room(group.prefix, group.siblings[first], group.sampled[first], 1, group.windows)
            if not some.any():
                return None
            # The emptiest row takes as many siblings as it can.
            mine = some & (bins.owner == group.owner)
            places = np.flatnonzero(mine if mine.any() else some)
            place = places[bins.tokens[places].argmax()]
            room = [
                bins.tokens[place] - group.prefix,
                bins.sampled[place],
                bins.segments[place] - 1,
            ]
            taken = []
            for k in left:
                need = group.siblings[k], group.sampled[k], 1
                if all(n <= r for n, r in zip(need, room, strict=True)):
                    room = [r - n for n, r in zip(need, room, strict=True)]
                    taken.append(k)
            bins.put(place, index, group, taken)
            left = [k for k in left if k not in taken]
    return bins.parts
