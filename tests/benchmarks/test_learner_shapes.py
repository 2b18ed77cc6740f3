"""`python -m benchmarks.learner_shapes` counts programs and useful slots, as rows are and as planned."""

import json

from benchmarks.learner_shapes import main


def test_one_process(capsys, tmp_path):
    assert main(["--processes", "1", "--steps", "1", "--out", str(tmp_path / "shapes.json")]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads((tmp_path / "shapes.json").read_text())
    assert result["settings"] == {"sigma": 0.5, "mean": 1.0, "steps": 1, "seed": 0}
    one = result["processes"]["1"]
    assert 0 < one["useful"] <= 1 and one["programs"] > 1
    # Two lengths of rows, each with a gradient and log-probabilities; zeros, and the optimiser's update.
    assert one["planned"]["programs"] == 6
    assert 0.75 <= one["planned"]["useful_without_copies"] <= one["planned"]["useful"] <= 1
    assert one["planned"]["moved"] == 0, "one process has nobody to send turns to"
