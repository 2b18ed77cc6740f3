"""The ablation command: each run, what is counted in memories, what is written; nothing is trained."""

import dataclasses
import json

import pytest

from memocr_jax import ablate
from memocr_jax.ablate import AblationConfig, load, memory_shares, run_config, table, write_results
from memocr_jax.config import load_config
from memocr_jax.core.errors import UserError
from memocr_jax.data.synthetic import SyntheticWorld

FILE = "configs/nano_ablation.yaml"


def test_methods_differ_in_what_they_say_and_in_nothing_else():
    settings = load(FILE)
    full, without = (run_config(settings, method, 1) for method in ("full", "without augM and augQ"))
    assert (full.rl.weight_aug_m, full.rl.weight_aug_q) == (0.7, 0.3)
    assert (without.rl.weight_aug_m, without.rl.weight_aug_q, without.rl.weight_std) == (0, 0, 1)
    assert run_config(settings, "no RL", 0).train.steps == 0
    assert full.run.seed == without.run.seed == 1 and full.run.dir != without.run.dir
    base = load_config(settings.base)
    for name in ("data", "agent", "render", "optimizer", "eval"):
        assert getattr(full, name) == getattr(without, name) == getattr(base, name)
    # Each seed has a warm-up of its own; seed 0 that of the base.
    assert full.model == without.model == dataclasses.replace(base.model, path=settings.starts[1])
    assert run_config(settings, "full", 0).model == base.model and len(set(settings.starts)) == 3


def test_the_paper_methods_are_all_there():
    assert list(load(FILE).methods) == list(ablate.PAPER)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("methods: {}", "methods and seeds"),
        ("methods: {full: {rl: {weight_augm: 0}}}", "weight_augm.*did you mean"),
        ("methods: {full: {nix: {a: 0}}}", "section"),
        ("methods: {full: {}}\nstarts: [a, b]", "2 starts for 3 seeds"),
    ],
)
def test_what_cannot_work_is_said_before_anything_runs(tmp_path, text, complaint):
    path = tmp_path / "ablation.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=complaint):
        ablate.main(["--config", str(path)])


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [(["--methods", "ful"], "no method 'ful'"), (["--seeds", "7"], "7 is not one of")],
)
def test_unknown_methods_and_seeds(arguments, complaint):
    with pytest.raises(UserError, match=complaint):
        ablate.main(["--config", FILE, *arguments])


def test_a_start_that_is_missing_is_said_before_the_other_seeds_run(tmp_path, monkeypatch):
    monkeypatch.setattr(ablate, "ablate", lambda *arguments: pytest.fail("a run was started"))
    path = tmp_path / "ablation.yaml"
    path.write_text("methods: {full: {}}\nseeds: [0, 1]\nstarts: [memocr_jax/assets/nano, gone/nano]\n")
    with pytest.raises(UserError, match=r"seed 1 starts from gone/nano, which is not there.*--seeds"):
        ablate.main(["--config", str(path)])


def test_shares_of_gold_evidence_and_facts_are_counted_in_the_memories():
    config = load_config("configs/nano.yaml")
    world = SyntheticWorld(config.data.synthetic, config.data.seed, "validation", 3)

    def fact(f):
        return f"{f.person} {f.value}"

    entries = []
    for number, question in enumerate(world):
        [gold] = question.evidence
        others = [f for f in question.facts if f != gold]
        # The gold fact as heading; as text, under another heading; with a wrong value, and a fact missing.
        memory = [
            "\n\n".join([f"# {fact(gold)}", *map(fact, others)]),
            "\n\n".join([f"# {fact(others[0])}", *map(fact, [gold, *others[1:]])]),
            "\n\n".join([f"# {gold.person} {others[0].value}", *map(fact, others[1:])]),
        ][number]
        evidence = [f.sentence for f in question.evidence]
        # Read right at 32 tokens, and at 2 where the answer is large; another method's answers do not count.
        results = [
            {"sample": 0, "method": method, "budget": budget, "em": float(budget == 32 or number == 0)}
            for method in ("visual memory", "text memory")
            for budget in (32, 8, 2)
        ]
        entries.append({"evidence": evidence, "memories": [memory], "results": results})
    shares = memory_shares(config, entries)
    read = shares.pop("read")
    assert shares == {"gold_in_heading": 1 / 3, "facts_kept": (5 + 5 + 3) / 15, "memories": 3}
    # The third memory lacks the asked fact, so how it is read says nothing about reading.
    assert read["32"] == {"heading": [1, 1], "body": [1, 1]}
    assert read["2"] == {"heading": [1, 1], "body": [0, 1]}


def test_documents_that_share_a_question_and_its_evidence_are_kept_apart():
    config = load_config("configs/nano.yaml")
    world = SyntheticWorld(config.data.synthetic, config.data.seed, "validation", 200)
    asked = [(q.question, q.answer) for q in world]
    assert len(set(asked)) < len(asked), "no such documents here: the test shows nothing"
    entries = [
        {
            "evidence": [f.sentence for f in q.evidence],
            "results": [],
            "memories": ["\n\n".join(f"{f.person} {f.value}" for f in q.facts)],
        }
        for q in world
    ]
    shares = memory_shares(config, entries)
    assert (shares["gold_in_heading"], shares["facts_kept"], shares["memories"]) == (0.0, 1.0, 200)


def test_results_of_finished_runs_are_written(tmp_path):
    settings = AblationConfig(dir=str(tmp_path), seeds=(0, 1), methods={"full": {}, "no RL": {}})
    for seed, value in ((0, 0.9), (1, 1.0)):
        folder = tmp_path / f"full_seed{seed}"
        folder.mkdir()
        accuracy = {b: {"mean": value, "low": value - 0.1, "high": value} for b in ("32", "2")}
        read = {"32": {"heading": [1, 1], "body": [2, 3]}}
        shares = {"gold_in_heading": value, "facts_kept": 1.0, "memories": 4, "read": read}
        (folder / "ablation.json").write_text(json.dumps({"accuracy": accuracy, **shares}))
    write_results(settings)
    results = json.loads((tmp_path / "ablation.json").read_text())
    assert results["full"]["accuracy"] == {"32": [0.9, 1.0], "2": [0.9, 1.0]}
    assert results["full"]["interval"]["2"] == [[0.8, 0.9], [0.9, 1.0]] and "no RL" not in results
    assert results["full"]["read"][1]["32"]["body"] == [2, 3]
    text = table(results)
    assert "| full | 0 | 90.0 (80.0 to 90.0) | 90.0 (80.0 to 90.0) | 90.0 | 100.0 |" in text
    assert "| **full** | mean | **95.0** | **95.0** | **95.0** | **100.0** |" in text
    assert "| without augM | 61.3 | 48.5 | 41.2 |" in (tmp_path / "ablation.md").read_text()
    assert (tmp_path / "ablation.png").stat().st_size > 5000
