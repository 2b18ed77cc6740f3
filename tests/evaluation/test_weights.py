"""The fingerprint of an evaluation: everything that its answers depend on."""

from __future__ import annotations

import dataclasses
import json

from memocr_jax.config import Config, EvalConfig, EvalSet, ModelConfig
from memocr_jax.evaluation.weights import fingerprint
from render.settings import RenderSettings


def test_the_fingerprint_knows_what_matters(tmp_path):
    data = tmp_path / "dev.jsonl"
    data.write_text("{}\n")
    sets = (EvalSet("a", "10k", {"source": "flashrag", "validation_path": str(data)}),)
    config = Config(model=ModelConfig(path="m"), eval=EvalConfig(sets=sets))
    mark = fingerprint(config, {"checkpoint step": 3})
    json.dumps(mark)

    def changed(**parts):
        other = dataclasses.replace(
            config, **{k: dataclasses.replace(getattr(config, k), **v) for k, v in parts.items()}
        )
        new = fingerprint(other, {"checkpoint step": 3})
        return sorted(name for name in {*mark, *new} if mark.get(name) != new.get(name))

    assert changed(eval={"temperature": 0.0}) == ["eval.temperature"]
    assert changed(eval={"budgets": (8,)}) == ["eval.budgets"]
    assert changed(render={"theme": "small"}) == ["render.theme"]
    assert changed(agent={"read_max_new_tokens": 7}) == ["agent.read_max_new_tokens"]
    assert changed(data={"chunk_tokens": 77}) == ["eval.sets[0].data.chunk_tokens"]
    # What changes no answer may change.
    assert changed(eval={"bootstrap": 0, "report_mb": 1}, render={"workers": 3}, run={"dir": "x"}) == []
    assert changed(train={"steps": 3}, mesh={"fsdp": 2}) == []
    data.write_text("{}\n{}\n")
    assert changed(run={"seed": 0}) == ["eval.sets[0].data.validation_path (contents)"]
    assert isinstance(config.render, RenderSettings)
