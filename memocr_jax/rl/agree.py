"""What the processes of a job must agree on before an update: micro-batch shapes and denominators.

Every process packs the turns of its own questions. A micro-batch of the global mesh takes rows of all, so all
must have micro-batches of the same shapes in the same order; who lacks one adds rows of padding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import jax
import numpy as np

from memocr_jax.core.processes import gather
from memocr_jax.core.sharding import own_rows
from memocr_jax.core.types import TrainBatch
from memocr_jax.rl.pack import MiniBatch, Packing, Shape, batch_shape, empty_batch


def agree(minibatches: Sequence[MiniBatch], packing: Packing, mesh: jax.sharding.Mesh) -> list[MiniBatch]:
    """The mini-batches with the micro-batches that other processes have and the sums over all processes.

    One exchange of a few bytes for the whole step. All processes must pass as many mini-batches.
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
    """The batch as the `block`-th part of a global one: its image features come after those before it."""
    if batch.vision is None:
        return batch
    rows, windows, patches, _ = batch.vision.patches.shape
    slots = batch.image_slots
    ahead = block * rows * windows * patches // merge_unit
    return batch._replace(image_slots=np.where(slots >= 0, slots + ahead, slots).astype(np.int32))
