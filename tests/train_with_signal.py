"""`python tests/train_with_signal.py --config ...`: training with a reward that random weights can earn.

The main job's random weights answer nothing right, so its gradients are zero and runs could not be told
apart. Here an answer is right when the checksum of its text is even; everything else is `memocr_jax.train`.
"""

import zlib

from memocr_jax.core.errors import run_command
from memocr_jax.core.types import READ_KINDS
from memocr_jax.rl import step

_score = step.score_readings


def _score_by_checksum(examples, group_size, readings):
    scores = _score(examples, group_size, readings)
    for reading in readings:
        index = reading.turn.q, reading.turn.g, READ_KINDS.index(reading.turn.kind)
        scores.rewards[index] = zlib.crc32(reading.text.encode()) % 2 == 0
    return scores


if __name__ == "__main__":
    step.score_readings = _score_by_checksum
    from memocr_jax.train import main

    run_command(main)
