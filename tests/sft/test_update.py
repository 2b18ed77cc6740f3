"""The teacher: what it counts does not depend on how turns are packed."""

import jax
import numpy as np

from memocr_jax.config import Config, EngineConfig, ModelConfig, TrainConfig
from memocr_jax.core.types import TurnKind
from memocr_jax.sft.lessons import Taught, taught_turn
from memocr_jax.sft.update import Teacher


def test_right_turns_are_counted_by_what_they_are_about(small_model, tiny_mesh):
    config = Config(
        model=ModelConfig(dtype="float32"),
        engine=EngineConfig(window_multiple=1),
        train=TrainConfig(micro_batch_rows=4, max_row_tokens=96, length_multiple=96, logp_chunk_tokens=512),
    )
    teacher = Teacher(config, small_model.config, tiny_mesh)
    params = jax.tree.map(lambda x: 4 * x, small_model.on(tiny_mesh)[1])  # certain of what comes next
    rng = np.random.default_rng(3)
    prompts = [(rng.integers(8, 200, 5), rng.integers(8, 200, 2)) for _ in range(2)]

    def taught(prompt, token, region):
        prefix, suffix = prompt
        return Taught(taught_turn(prefix, suffix, [token], TurnKind.QA, None), region)

    # Every token is taught as a turn of its own kind: no two of them can have more than half of the chance.
    likely = []
    for prompt in prompts:
        counted = teacher.right(params, [[taught(prompt, t, str(t)) for t in range(8, 212)]])
        assert {number for _, number in counted.values()} == {1}
        right = [int(region) for region, (good, _) in counted.items() if good]
        assert len(right) == 1, "the model is not certain: this test needs one that is"
        likely += right

    # Turns of one row that are about different things, some of which are right.
    rows = [
        [
            taught(prompt, token, "body"),
            taught(prompt, 8, "heading"),
            taught(prompt, token, "cloze"),
            taught(prompt, 9, "body"),
        ]
        for prompt, token in zip(prompts, likely, strict=True)
    ]
    assert teacher.right(params, rows) == {"body": (2, 4), "heading": (0, 2), "cloze": (2, 2)}
