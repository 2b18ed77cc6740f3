"""Packs turns into training batches: turns that share a prefix share a row (arXiv 2506.05433).

Every process packs the turns of its own questions (`pack_turns`). A micro-batch of the global mesh takes rows
of all processes, so all must have micro-batches of the same shapes in the same order, and the denominators
are sums over all: `agree` sees to both.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
import numpy as np

from memocr_jax.config import Config
from memocr_jax.core.buckets import batches, bucket
from memocr_jax.core.processes import gather
from memocr_jax.core.sharding import own_rows
from memocr_jax.core.types import RowLayout, TrainBatch, Turn, VisionBatch
from memocr_jax.models.config import Qwen25VLConfig
from memocr_jax.models.images import image_grid, image_hash, image_rows, most_windows, vision_batch
from memocr_jax.models.packing import PackedRows, PlacedImage


class WeightedTurn(NamedTuple):
    """A turn and the advantage that each of its sampled tokens is trained with."""

    turn: Turn
    advantage: float


@runtime_checkable
class Trained(Protocol):
    """What can be packed: a `WeightedTurn`, or anything else with these two."""

    @property
    def turn(self) -> Turn: ...
    @property
    def advantage(self) -> float: ...


T = TypeVar("T", bound=Trained)


@dataclasses.dataclass(frozen=True)
class Packing:
    """How rows are laid out."""

    model: Qwen25VLConfig
    max_row_tokens: int
    rows: int
    """Rows of a micro-batch."""
    length_multiple: int
    """Smallest padded length of a row; a quarter of it is the smallest padded number of sampled tokens."""
    window_multiple: int
    row_layout: str = "packed"
    """See `train.row_layout`. Of an aligned row, the prefix is padded to multiples of half `length_multiple`
    and siblings to multiples of an eighth."""

    @classmethod
    def of(cls, config: Config, model: Qwen25VLConfig) -> Packing:
        """The packing of a run; `rows` is this process's share of `train.micro_batch_rows`."""
        train = config.train
        return cls(
            model,
            train.max_row_tokens,
            train.micro_batch_rows // jax.process_count(),
            train.length_multiple,
            config.engine.window_multiple,
            train.row_layout,
        )


@dataclasses.dataclass(frozen=True)
class MiniBatch:
    """The micro-batches of one optimiser update, and the denominators of its loss."""

    batches: list[TrainBatch]
    tokens: int
    """Sampled tokens."""
    sequences: int
    """Turns."""
    longest: int
    """Tokens of the longest completion."""


_COUNTS = ("tokens", "sequences", "longest")
"""Fields of a `MiniBatch` that are numbers."""


def pack_turns(turns: Sequence[Trained], packing: Packing) -> MiniBatch:
    """Pack the turns of one mini-batch; token ids go in as they were sampled."""
    packed = [pack_rows(rows, shape, packing) for shape, rows in micro_batches(turns, packing)]
    lengths = [len(t.turn.completion.tokens) for t in turns]
    return MiniBatch(packed, sum(lengths), len(turns), max(lengths, default=0))


def micro_batches(turns: Sequence[T], packing: Packing) -> list[tuple[Shape, list[list[T]]]]:
    """Arrange turns in rows, and rows in micro-batches: (shape, turns of each row) of every micro-batch.

    Turns with the same prefix and image share a row as far as `max_row_tokens` allows. Rows of like size form
    micro-batches of at most `packing.rows` rows. A row's turns are numbered in its order (`sequence`).
    """
    rows = [part for group in _prefix_groups(turns) for part in _split(group, packing)]
    by_shape: dict[Shape, list[list[T]]] = {}
    for row in rows:
        by_shape.setdefault(_shape(row, packing), []).append(row)
    arranged = []
    for shape in sorted(by_shape, reverse=True):
        same = by_shape[shape]
        # Rows of smaller shapes fill the slots that would be padding.
        for smaller in (s for s in sorted(by_shape, reverse=True) if _fits(s, shape)):
            while len(same) % packing.rows and by_shape[smaller]:
                same.append(by_shape[smaller].pop())
        arranged += [(shape, [same[i] for i in chosen]) for chosen in batches(len(same), packing.rows)]
    return arranged


def save_minibatch(path: str | Path, minibatch: MiniBatch) -> None:
    """Write a mini-batch (this process's rows) as a compressed .npz, to be inspected."""
    arrays = {name: np.asarray(getattr(minibatch, name)) for name in _COUNTS}
    for i, batch in enumerate(minibatch.batches):
        vision = {} if batch.vision is None else batch.vision._asdict()
        shown = {f"vision.{name}": value for name, value in vision.items() if value is not None}
        fields = {**batch._asdict(), **shown}
        del fields["vision"]
        layout = fields.pop("layout")
        if layout is not None:
            fields["layout"] = dataclasses.astuple(layout)
        arrays |= {f"{i}.{name}": np.asarray(value) for name, value in fields.items()}
    np.savez_compressed(path, **arrays)


def load_minibatch(path: str | Path) -> MiniBatch:
    """Read what `save_minibatch` wrote."""
    with np.load(path) as file:
        arrays = dict(file)
    counts = {name: int(arrays.pop(name)) for name in _COUNTS}
    by_batch: dict[int, dict[str, np.ndarray]] = {}
    for name, value in arrays.items():
        number, _, field = name.partition(".")
        by_batch.setdefault(int(number), {})[field] = value
    batches = []
    for _, fields in sorted(by_batch.items()):
        vision = {f: fields.pop(f"vision.{f}") for f in VisionBatch._fields if f"vision.{f}" in fields}
        if "layout" in fields:
            fields["layout"] = RowLayout(*fields["layout"].tolist())
        batches.append(TrainBatch(**fields, vision=VisionBatch(**vision) if vision else None))
    return MiniBatch(batches, **counts)


def _prefix_groups(turns: Sequence[T]) -> list[list[T]]:
    groups: dict[tuple[bytes, bytes], list[T]] = {}
    for t in turns:
        image = t.turn.image
        # Two pages may have prefixes of the same ids (as many image tokens) and still differ.
        key = t.turn.prefix.tobytes(), b"" if image is None else image_hash(image)
        groups.setdefault(key, []).append(t)
    return list(groups.values())


def _sibling(turn: Turn) -> np.ndarray:
    """i32[S + C]: the turn's own prompt part and what was sampled after it."""
    return np.concatenate([turn.suffix, turn.completion.tokens])


def _split(group: list[T], packing: Packing) -> list[list[T]]:
    """Cut a group into rows of at most `max_row_tokens`; a longer sibling gets a row of its own."""
    if packing.row_layout == "aligned":
        # Siblings of like length share a row; the first of a row is its longest.
        group = sorted(group, key=lambda t: -len(_sibling(t.turn)))
    parts: list[list[T]] = [[]]
    for t in group:
        if parts[-1] and _row_tokens([*parts[-1], t], packing) > packing.max_row_tokens:
            parts.append([])
        parts[-1].append(t)
    return parts


def _row_tokens(row: Sequence[Trained], packing: Packing) -> int:
    """Slots that a row takes, before its end is padded."""
    if packing.row_layout == "aligned":
        layout = _layout(row, packing)
        return layout.prefix + layout.siblings * layout.own
    return len(row[0].turn.prefix) + sum(len(_sibling(t.turn)) for t in row)


def _layout(row: Sequence[Trained], packing: Packing) -> RowLayout:
    multiple = packing.length_multiple
    longest = max(len(_sibling(t.turn)) for t in row)
    prefix = bucket(len(row[0].turn.prefix), max(1, multiple // 2))
    return RowLayout(prefix, len(row), bucket(longest, max(1, multiple // 8)))


class Shape(NamedTuple):
    """The sizes that decide which executable a row or a micro-batch runs in."""

    windows: int
    length: int
    sampled: int
    prefix: int = 0
    """With `siblings` and `own` the layout of aligned rows; all 0 without."""
    siblings: int = 0
    own: int = 0


def _shape(row: Sequence[Trained], packing: Packing) -> Shape:
    sampled = sum(len(t.turn.completion.tokens) for t in row)
    windows = most_windows([row[0].turn.image], packing.model.vision, packing.window_multiple)
    sampled = bucket(sampled, max(1, packing.length_multiple // 4))
    length = _row_tokens(row, packing)
    if packing.row_layout == "aligned":
        return Shape(windows, length, sampled, *dataclasses.astuple(_layout(row, packing)))
    return Shape(windows, bucket(length, packing.length_multiple), sampled)


def _fits(small: Shape, large: Shape) -> bool:
    """Whether rows of one shape may stand in a micro-batch of another: both with images or both without, and
    (aligned) the same layout."""
    return (
        small != large
        and bool(small.windows) == bool(large.windows)
        and all(a <= b for a, b in zip(small[:3], large[:3], strict=True))
        and small[3:] == large[3:]
    )


def batch_shape(batch: TrainBatch) -> Shape:
    """Micro-batches of equal shape run the same executable."""
    windows = 0 if batch.vision is None else batch.vision.patches.shape[1]
    layout = () if batch.layout is None else dataclasses.astuple(batch.layout)
    return Shape(windows, batch.tokens.shape[1], batch.target.shape[1], *layout)


def empty_batch(shape: Sequence[int], packing: Packing) -> TrainBatch:
    """A micro-batch of the given `batch_shape` that is all padding."""
    return pack_rows([], Shape(*shape), packing)


def pack_rows(rows: Sequence[Sequence[Trained]], shape: Shape, packing: Packing) -> TrainBatch:
    """The micro-batch of the given rows of turns (`micro_batches`); missing rows are padding."""
    windows, length, sampled, *parts = shape
    layout = RowLayout(*parts) if shape.siblings else None
    images = [row[0].turn.image for row in rows]
    vision, slots = image_rows(images, packing.rows, windows, packing.model.vision)
    if windows and not rows:
        vision, _ = vision_batch([], packing.model.vision, windows=windows, rows=packing.rows)
    packed = PackedRows.empty(packing.rows, length)
    predict_pos = np.zeros((packing.rows, sampled), np.int32)
    target = np.zeros((packing.rows, sampled), np.int32)
    sequence = np.zeros((packing.rows, sampled), np.int32)
    loss_mask = np.zeros((packing.rows, sampled), bool)
    advantage = np.zeros((packing.rows, sampled), np.float32)
    sampler_logp = np.zeros((packing.rows, sampled), np.float32)
    for b, row in enumerate(rows):
        siblings = [_sibling(t.turn) for t in row]
        prefix = row[0].turn.prefix
        lengths = [len(s) for s in siblings]
        if layout is None:
            starts = (len(prefix) + np.cumsum(lengths) - lengths).tolist()
        else:
            starts = [layout.prefix + k * layout.own for k in range(len(siblings))]
        ends = [start + n for start, n in zip(starts, lengths, strict=True)]
        shown = []
        if images[b] is not None:
            shown = [PlacedImage(slots[b], image_grid(images[b], packing.model.vision))]
        packed.place(b, prefix, siblings, starts, packing.model, shown)
        filled = 0
        for k, (t, end) in enumerate(zip(row, ends, strict=True)):
            completion = t.turn.completion
            n = len(completion.tokens)
            span = slice(filled, filled + n)
            # A token is sampled from the logits at its predecessor, which is the sibling's own: no suffix is
            # empty.
            predict_pos[b, span] = end - n - 1 + np.arange(n)
            target[b, span] = completion.tokens
            sequence[b, span] = k
            loss_mask[b, span] = True
            advantage[b, span] = t.advantage
            sampler_logp[b, span] = completion.sampler_logp
            filled += n
    return TrainBatch(
        tokens=packed.tokens,
        mrope_pos=packed.mrope_pos.transpose(1, 0, 2),
        segments=packed.segments,
        image_slots=packed.image_slots,
        vision=vision,
        predict_pos=predict_pos,
        target=target,
        loss_mask=loss_mask,
        sequence=sequence,
        advantage=advantage,
        sampler_logp=sampler_logp,
        layout=layout,
    )


def agree(minibatches: Sequence[MiniBatch], packing: Packing, mesh: jax.sharding.Mesh) -> list[MiniBatch]:
    """The mini-batches with empty micro-batches where only other processes have rows, and with counts summed
    over all processes.

    One exchange of a few bytes serves the whole step. All processes must pass equally many mini-batches.
    """
    if jax.process_count() == 1:
        return list(minibatches)
    mine = [
        {
            "shapes": [batch_shape(batch) for batch in m.batches],
            "tokens": m.tokens,
            "sequences": m.sequences,
            "longest": m.longest,
        }
        for m in minibatches
    ]
    everyone = gather(mine)
    first, count = own_rows(mesh)
    return [
        _agreed(minibatch, [process[i] for process in everyone], packing, first // count)
        for i, minibatch in enumerate(minibatches)
    ]


def _agreed(minibatch: MiniBatch, everyone: Sequence[dict], packing: Packing, block: int) -> MiniBatch:
    most: Counter[Shape] = Counter()
    for theirs in everyone:
        most |= Counter(Shape(*shape) for shape in theirs["shapes"])
    by_shape: dict[Shape, list[TrainBatch]] = {}
    for batch in minibatch.batches:
        by_shape.setdefault(batch_shape(batch), []).append(batch)
    batches = []
    for shape in sorted(most):
        own = by_shape.get(shape, [])
        batches += [_at_block(batch, block, packing.model.vision.merge_unit) for batch in own]
        batches += [empty_batch(shape, packing)] * (most[shape] - len(own))
    return MiniBatch(
        batches,
        tokens=sum(theirs["tokens"] for theirs in everyone),
        sequences=sum(theirs["sequences"] for theirs in everyone),
        longest=max(theirs["longest"] for theirs in everyone),
    )


def _at_block(batch: TrainBatch, block: int, merge_unit: int) -> TrainBatch:
    """The batch as part number `block` of a global one: its image features follow those of earlier parts."""
    if batch.vision is None:
        return batch
    rows, windows, patches, _ = batch.vision.patches.shape
    slots = batch.image_slots
    ahead = block * rows * windows * patches // merge_unit
    return batch._replace(image_slots=np.where(slots >= 0, slots + ahead, slots).astype(np.int32))
