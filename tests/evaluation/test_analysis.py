"""The analyses, on memories whose densities are counted by hand, and as commands."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from memocr_jax.agent.regions import content, in_heading, split_regions
from memocr_jax.analyze import main
from memocr_jax.config import EvalConfig
from memocr_jax.core.errors import UserError
from memocr_jax.evaluation.case import case_text, read_case
from memocr_jax.evaluation.density import density
from memocr_jax.evaluation.lengths import lengths
from memocr_jax.evaluation.memories import FinalMemory, read_memories
from memocr_jax.evaluation.robustness import AS_BODY, AS_HEADING, AS_WRITTEN, VARIANTS, inject, robustness

EVIDENCE = ("Torim keeps an otter.", "The neighbour of Torim is Vek.")


def test_in_heading_wants_every_word_of_the_evidence_drawn_large():
    assert in_heading("# Torim keeps otter\n\nbody", ["Torim keeps an otter."]) is True
    assert in_heading("# Torim\n\nkeeps otter", ["Torim keeps an otter."]) is False
    assert in_heading("## Torim keeps otter", ["Torim keeps an otter."]) is False
    assert in_heading("# Torim", []) is in_heading("# Torim", ["."]) is None


def test_regions_are_headings_and_body():
    memory = "# Torim: **ot**ter\n\nbody *text*\n\n## second\n\n- a list\n\n| x | y |\n|---|---|\n| 1 | 2 |"
    regions = split_regions(memory)
    assert regions.crucial == ("torim", "otter")
    assert regions.between == ("second",)
    assert regions.detailed == ("body", "text", "list", "x", "y", "1", "2")
    same = split_regions("<h1>Torim: <b>ot</b>ter</h1>body <i>text</i><script>no</script>", "html")
    assert (same.crucial, same.detailed) == (("torim", "otter"), ("body", "text"))


@given(st.text(st.characters(codec=None), max_size=60))
@settings(max_examples=60)
def test_any_text_has_regions(text):
    for mode in ("markdown", "html"):
        split_regions(text, mode)
    split_regions(f"# {text}\n\n{text}")


def test_density_is_the_share_of_words_that_are_evidence():
    # Evidence, in normal form: torim keeps otter neighbour of is vek (articles are no words).
    crucial = content(("torim", "keeps", "otter"), EVIDENCE)
    assert (crucial.words, crucial.density, crucial.coverage) == (3, 1.0, 3 / 7)
    detailed = content(("torim", "torim", "likes", "nothing"), EVIDENCE)
    assert (detailed.density, detailed.coverage) == (0.5, 1 / 7)
    assert content((), EVIDENCE).density is None
    with pytest.raises(ValueError, match="no word"):
        content(("a",), ("...",))


def memories():
    heading, body = "# Torim keeps an otter", "nothing useful here now"
    return [
        FinalMemory(1, "a", "?", f"{heading} maybe\n\n{body}", EVIDENCE),  # 3 of 4; 0 of 4
        FinalMemory(1, "b", "?", "Torim keeps nothing", EVIDENCE),  # no heading; 2 of 3
        FinalMemory(1, "c", "?", "# x", ()),
        FinalMemory(5, "a", "?", f"{heading}\n\n{body}", EVIDENCE),  # 3 of 3; 0 of 4
    ]


def test_density_over_steps():
    first, last = density(memories())["steps"]
    assert (first["step"], first["memories"], first["without_evidence"]) == (1, 2, 1)
    assert (first["crucial"]["density"], first["crucial"]["empty"]) == (0.75, 1)
    assert first["detailed"]["density"] == pytest.approx((0 + 2 / 3) / 2)
    assert first["crucial"]["coverage"] == pytest.approx((3 / 7 + 0) / 2)
    assert (last["step"], last["crucial"]["density"], last["detailed"]["density"]) == (5, 1.0, 0.0)
    with pytest.raises(UserError, match="no memory has gold evidence"):
        density(memories()[2:3])


def test_lengths_over_steps():
    first, last = lengths(memories())["steps"]
    assert first["crucial"]["words"] == [0, 1, 4] and first["detailed"]["words"] == [0, 3, 4]
    assert first["crucial"]["mean"] == pytest.approx(5 / 3) and first["crucial"]["quantiles"][1] == 1
    assert last["memories"] == 1


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run directory with the final memories of `memories()`, each drafted over two chunks."""
    root = tmp_path_factory.mktemp("run")
    (root / "config.yaml").write_text(yaml.safe_dump({"agent": {"memory_format": "markdown"}}))
    (root / "trajectories").mkdir()
    for step in (1, 5):
        turns = []
        for q, memory in enumerate(m for m in memories() if m.step == step):
            common = {
                "q": q,
                "g": 0,
                "example_id": memory.example_id,
                "question": "?",
                "evidence": memory.evidence,
            }
            for chunk, text in enumerate(("# draft", memory.text)):
                turns.append({**common, "kind": "DRAFT", "chunk": chunk, "response": text})
            turns.append({**common, "kind": "QA", "chunk": None, "response": "no memory"})
        lines = "".join(json.dumps(turn) + "\n" for turn in turns)
        (root / f"trajectories/step_{step:06d}.jsonl").write_text(lines + '{"cut')
    return root


def test_memories_are_the_last_drafts(run):
    assert read_memories([run]) == memories()
    with pytest.raises(UserError, match=r"holds no memory|neither"):
        read_memories([run / "trajectories"])


def test_an_evaluations_memories_count_too(evaluation):
    found = read_memories([evaluation.directory])
    assert len(found) == 32
    assert density(found)["steps"][0]["crucial"]["density"] == 1.0  # "# Answer 3 is the answer"


@pytest.mark.parametrize("name", ["density", "lengths"])
def test_commands_over_training(name, run, tmp_path, capsys):
    assert main([name, str(run), "--to", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / f"{name}.md")
    assert [step["step"] for step in json.loads((tmp_path / f"{name}.json").read_text())["steps"]] == [1, 5]
    ET.parse(tmp_path / f"{name}.svg")
    text = (tmp_path / f"{name}.md").read_text()
    assert f"({name}.svg)" in text and text.count("\n| ") == 4


def test_mistakes_are_said():
    with pytest.raises(UserError, match=r"'densty' is not known \(did you mean 'density'\?\)"):
        main(["densty"])
    with pytest.raises(UserError, match="does not exist"):
        main(["lengths", "nowhere"])


def test_case(evaluation, tmp_path, capsys):
    arguments = ["case", str(evaluation.directory), "--id", "nq-1", "--length", "30k", "--to", str(tmp_path)]
    assert main(arguments) == 0
    data = json.loads((tmp_path / "case.json").read_text())
    assert data["question"].startswith("What is asked by question 1") and data["gold"] == ["Answer 1"]
    assert data["memory"].startswith("# Answer 1 is the answer") and data["evidence"] == [
        "Answer 1 is the answer."
    ]
    visual = [a for a in data["answers"] if a["method"] == "visual memory"]
    assert [(a["budget"], a["em"]) for a in visual] == [(512, 1.0), (64, 1.0), (8, 0.0)]
    assert all(a["width_px"] * a["height_px"] == 784 * a["image_tokens"] for a in visual)
    ET.parse(tmp_path / "case.svg")
    text = (tmp_path / "case.md").read_text()
    assert "| visual memory | 512 |" in text and "| raw history | – | 9000 | OK |" in text


def test_a_case_must_be_one_question_that_is_there(evaluation):
    with pytest.raises(UserError, match="is in nq 10k, nq 30k; say --dataset and --length"):
        read_case(evaluation.directory, "nq-1")
    with pytest.raises(UserError, match=r"no such question \(did you mean 'nq-1'\?\)"):
        read_case(evaluation.directory, "nq-1x", length="30k")
    with pytest.raises(UserError, match="--sample 4: there are 1"):
        read_case(evaluation.directory, "nq-1", length="30k", sample=4)
    with pytest.raises(UserError, match="holds no evaluation"):
        read_case(evaluation.directory / "plots", "nq-1")


def test_a_model_cannot_break_out_of_the_case(by_hand, tmp_path):
    hostile = "```\n# heading\n````md"
    made = by_hand.make_entries(tmp_path, (("nq", "10k"),), 1, text=hostile, pages=False)
    case = read_case(made.directory, "nq-0")
    assert case.views == [None] * 10
    blocks = case_text(case).split("\n`````text\n")
    assert len(blocks) > 3 and all("\n`````\n" in block for block in blocks[1:])


def test_injected_evidence_has_the_same_words_in_another_size():
    sentences = ("It *was* 5 < 6.", "# not a heading\n1. list")
    heading, body = (inject("# memory\n\ntext", sentences, variant) for variant in (AS_HEADING, AS_BODY))
    assert inject("m", sentences, AS_WRITTEN) == "m"
    words = ("it", "was", "5", "6", "not", "heading", "1", "list")
    assert split_regions(heading).crucial == (*words, "memory") and split_regions(heading).detailed == (
        "text",
    )
    assert split_regions(body).crucial == ("memory",) and split_regions(body).detailed == (*words, "text")
    for variant in (AS_HEADING, AS_BODY):
        regions = split_regions(inject("<p>m</p>", sentences, variant, "html"), "html")
        assert (regions.crucial or regions.detailed)[: len(words)] == words


def test_robustness_reads_every_variant_at_every_budget(agent, tokenizer, examples):
    one = agent()
    made = examples(tokenizer, 3, evidence=("Gold is here.",))
    made[1] = examples(tokenizer, 1, example_id="none")[0]
    options = EvalConfig(budgets=(64, 8), wave_questions=2)
    results = robustness(one, None, made, ["m0", "m1", "m2"], options, "nq", "10k")
    assert not one.engine.drafts()
    assert [text for text, _ in one.renderer.seen] == [
        *("# Gold is here\\.\n\nm0", "# Gold is here\\.\n\nm2"),
        *("Gold is here\\.\n\nm0", "Gold is here\\.\n\nm2", "m0", "m2"),
    ]
    counted = {(r["method"], r["budget"], r["id"]) for r in results}
    assert counted == {(v, b, i) for v in VARIANTS for b in (64, 8) for i in ("q0", "q2")}
    assert len(results) == len(counted)
    with pytest.raises(UserError, match="no question has gold evidence"):
        robustness(one, None, made[1:2], ["m"], options, "nq", "10k")
    assert isinstance(results[0]["em"], float) and np.isfinite(results[0]["f1"])
