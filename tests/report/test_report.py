"""The report's contents: what is read, what is chosen, what is escaped, what a run in progress gives."""

from __future__ import annotations

import json

import pytest

from memocr_jax.core.errors import UserError
from memocr_jax.report import ReportLimits, write_about, write_report
from memocr_jax.report.curves import draw_curves
from memocr_jax.report.evaluation import read_evaluation
from memocr_jax.report.record import read_run
from memocr_jax.report.trajectories import PictureReader, evenly, reward_spread, select_groups


def groups_of(run, **limits):
    options = {"max_steps": 6, "questions_per_step": 2, "max_turns": 400} | limits
    pictures = PictureReader(run.root / "trajectories", 10**8)
    return select_groups(read_run(run.root).turn_files, pictures=pictures, **options)


def test_a_whole_run(new_run):
    run = new_run("warm").config().metrics(30).trajectories(1).trajectories(30)
    path = write_report(run.root)
    html = path.read_text()
    assert path == run.root / "report.html"
    assert "<h1>warm</h1>" in html
    assert "30 of 200" in html and "run 3 · data 5" in html
    assert "document 367 tokens in 3 chunks" in html  # 128 * 3 - 17
    assert html.count('<details class="sample"') == 8  # two steps, one question, four samples
    assert html.count('<details class="draft"') == 24  # three chunks each
    assert html.count('class="read"') == 24  # three objectives each
    assert "http://" not in html and "https://" not in html, "the report must need no network"
    assert [p.name for p in run.root.glob("*.html")] == ["report.html"], "no half-written file stays"


def test_it_is_replaced_not_appended(new_run):
    run = new_run().config().metrics(2)
    write_report(run.root)
    run.metrics(3)
    assert "3 of 200" in write_report(run.root).read_text()


def test_drafts_are_in_order_whatever_the_file_says(new_run):
    run = new_run().config().trajectories(1, group=2, chunks=3)
    path = run.root / "trajectories" / "step_000001.jsonl"
    path.write_text("\n".join(reversed(path.read_text().splitlines())))
    (group,), _ = groups_of(run)
    assert [s.g for s in group.samples] == [0, 1]
    assert [[d.chunk for d in s.drafts] for s in group.samples] == [[0, 1, 2], [0, 1, 2]]
    assert list(group.samples[0].reads) == ["QA", "QA_LOWRES", "GAP_FILL"]


def test_two_readers_of_one_view_share_its_picture(new_run):
    run = new_run().config().trajectories(1, group=1)
    (group,), _ = groups_of(run)
    full, low = group.samples[0].views
    assert [t.kind for t in full.reads] == ["QA", "GAP_FILL"]
    assert [t.kind for t in low.reads] == ["QA_LOWRES"]
    assert (low.picture.width_px, full.picture.width_px) == (112, 364)  # 448 / 4 and 448 * 0.8125
    html = write_report(run.root).read_text()
    assert html.count("data:image/png") == 3  # the page, its full view, its low view: each once


def test_choice_of_steps_and_questions(new_run):
    run = new_run().config()
    for step in range(1, 10):
        run.trajectories(step, questions=3, group=2, chunks=1)
    groups, _ = groups_of(run, max_steps=3, questions_per_step=1)
    assert [g.step for g in groups] == [1, 5, 9]
    # 2 samples x (1 draft + 3 reads) = 8 turns a question: 17 turns hold two questions, the newest first.
    groups, _ = groups_of(run, max_steps=3, questions_per_step=2, max_turns=17)
    assert [g.step for g in groups] == [5, 9]
    groups, _ = groups_of(run, max_steps=1, questions_per_step=2, max_turns=1)
    assert len(groups) == 1, "one question is always shown"


def test_questions_whose_samples_differ_come_first():
    def turns(*rewards):
        return [{"kind": "QA", "reward": r} for r in rewards]

    assert reward_spread(turns(1, 0, 1)) == 1
    assert reward_spread(turns(1, 1)) == 0
    assert reward_spread([{"kind": "QA", "reward": None}, {"kind": "DRAFT", "reward": 5.0}]) == 0


def test_evenly():
    assert evenly(range(10), 4) == [0, 3, 6, 9]
    assert evenly([1, 2], 4) == [1, 2]
    assert evenly([1, 2, 3], 1) == [3]


def test_run_in_progress(new_run):
    run = new_run().config().metrics(5).trajectories(2)
    for path in (run.root / "metrics.jsonl", run.root / "trajectories" / "step_000002.jsonl"):
        path.write_text(path.read_text()[:-40])
    html = write_report(run.root).read_text()
    assert "4 of 200" in html
    assert "metrics.jsonl: 1 unreadable line left out" in html
    assert "trajectories: 1 unreadable line left out" in html
    assert html.count('class="read"') == 11, "the turn cut in half is left out, the others stay"


def test_a_run_that_has_only_begun(new_run):
    html = write_report(new_run().config().root).read_text()
    assert "No step has finished yet." in html
    assert "This run has left no trajectories." in html


def test_a_resumed_run_counts_a_repeated_step_once(new_run):
    run = new_run().config().metrics(3)
    with (run.root / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 3, "reward/std": 0.25}) + "\n")
    assert [(m["step"], m["reward/std"]) for m in read_run(run.root).metrics][-1] == (3, 0.25)
    assert len(read_run(run.root).metrics) == 3


def test_not_a_run_directory(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        write_report(tmp_path / "none")
    with pytest.raises(UserError, match=r"neither config.yaml nor metrics.jsonl"):
        write_report(tmp_path)


def test_missing_values_are_gaps_not_zeros(new_run):
    run = new_run().config()
    lines = [
        {"step": 1, "reward/std": 0.5},
        {"step": 2, "reward/std": None},
        {"step": 3, "reward/std": float("nan")},
        {"step": 4, "reward/std": 1.0, "new/one": 3},
    ]
    (run.root / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    charts, others = draw_curves(read_run(run.root).metrics)
    assert [chart.title for chart in charts] == ["Rewards"]
    assert charts[0].lines[0].raw.count("M") == 2 and "L" not in charts[0].lines[0].raw
    assert [chart.title for chart in others["new"]] == ["one"]


def test_every_metric_is_drawn_once(new_run):
    run = new_run().config().metrics(3)
    charts, others = draw_curves(read_run(run.root).metrics)
    drawn = sum(len(c.lines) for c in charts) + sum(len(c.lines) for cs in others.values() for c in cs)
    assert drawn == len(json.loads((run.root / "metrics.jsonl").read_text().splitlines()[0])) - 1
    titles = {chart.title: len(chart.lines) for chart in charts}
    assert titles == {
        "Rewards": 3,
        "Loss": 2,
        "KL to the initial policy": 1,
        "Gradient norm": 1,
        "Response length": 2,
        "Page size": 1,
        "Groups without a signal": 1,
        "Failures": 2,
        "Throughput": 1,
        "Time per stage": 5,
    }


def test_objectives_keep_their_order_and_colour():
    keys = (
        "reward/aug_m",
        "reward/aug_q",
        "reward/std",
        "draft/tokens",
        "read/tokens_aug_q",
        "read/tokens_std",
    )
    charts, _ = draw_curves([{"step": 1, **dict.fromkeys(keys, 0.5)}])
    lines = {chart.title: [(line.label, line.colour) for line in chart.lines] for chart in charts}
    assert lines == {
        "Rewards": [("std", 0), ("aug_m", 1), ("aug_q", 2)],
        "Response length": [("read/tokens_std", 0), ("read/tokens_aug_q", 2), ("draft/tokens", 3)],
    }


def test_a_page_that_is_its_own_full_view_is_shown_once(new_run):
    run = new_run().config().trajectories(1, group=1)
    for name in (run.root / "trajectories" / "pages").glob("*.png"):
        if not name.stem.endswith(("_32", "_512")):
            name.write_bytes(name.with_name(name.stem + "_512.png").read_bytes())
    (group,), _ = groups_of(run)
    assert group.samples[0].page is None and group.samples[0].wide_px == 364


def test_hostile_text_is_text(new_run, hostile):
    run = new_run("<b>name").config(model={"path": hostile.replace("\x00", "").replace("\x1b", "")})
    run.metrics(2).trajectories(
        1,
        group=1,
        chunks=1,
        question=hostile,
        answers=[hostile],
        response=hostile,
        prompt=hostile,
        asked=hostile,
        expected=hostile,
        prediction=hostile,
        example_id=hostile,
        page_status=hostile,
        stop=hostile,
    )
    with (run.root / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 3, hostile: 1.0}) + "\n")
    html = write_report(run.root).read_text()
    for markup in ("<script>window", "<img src=x", "<svg onload", "<b>name", "</pre></details></main>"):
        assert markup not in html
    assert "{{ 7 * 191 }}" in html and "1337" not in html, "text of a model is data to the template"
    assert not set(html) & {"\x00", "\x1b", "\ud800"}
    assert html.count("<script>") == 1


@pytest.mark.parametrize(
    "name", ["../config.yaml", "/etc/passwd", "pages/none.png", "pages", "", "a\x00b", "x" * 5000, 7, None]
)
def test_only_pictures_of_the_run_are_embedded(new_run, name):
    run = new_run().config()
    (run.root / "trajectories").mkdir()
    assert PictureReader(run.root / "trajectories", 10**6).read(name) is None


def test_a_file_that_is_no_png_is_not_embedded(new_run):
    run = new_run().config().trajectories(1, group=1)
    for path in (run.root / "trajectories" / "pages").glob("*.png"):
        path.write_bytes(b"<svg xmlns='x' onload='alert(1)'/>" + bytes(40))
    html = write_report(run.root).read_text()
    assert "data:image/png" not in html and html.count("no image kept") == 2


def test_pictures_are_bounded_and_counted(new_run):
    run = new_run().config().trajectories(1, group=4)
    pictures = PictureReader(run.root / "trajectories", 20_000)
    files = sorted((run.root / "trajectories" / "pages").glob("*.png"))
    kept = [p for p in files if pictures.read(f"pages/{p.name}")]
    assert 0 < len(kept) < len(files) and pictures.left_out == len(files) - len(kept)
    assert sum(p.stat().st_size for p in kept) <= 20_000
    html = write_report(run.root, ReportLimits(image_mb=0)).read_text()
    assert "12 page images left out: more than 0 MB in all" in html


def test_long_text_loses_its_middle(new_run):
    run = new_run().config().trajectories(1, group=1, chunks=1, response="a" * 30 + "b" * 1000 + "c" * 30)
    html = write_report(run.root, ReportLimits(text_chars=60)).read_text()
    assert "a" * 30 + "\n\n[… 1,000 characters left out …]\n\n" + "c" * 30 in html


def test_new_lines_of_a_draft_are_marked(new_run):
    run = new_run().config()
    (run.root / "trajectories").mkdir()
    turns = [
        {"q": 0, "g": 0, "kind": "DRAFT", "chunk": i, "response": response}
        for i, response in enumerate(["# A\nb\n", "# A\n\nc <i>\nb", "x\n\ny"])
    ]
    (run.root / "trajectories" / "step_000001.jsonl").write_text("\n".join(map(json.dumps, turns)))
    html = write_report(run.root).read_text()
    assert "<bdi># A\nb\n</bdi>" in html, "nothing stands out in the first draft: all of it is new"
    assert "<bdi># A\n\n<ins>c &lt;i&gt;\n</ins>b</bdi>" in html


def test_turns_with_fields_missing_or_of_another_kind(new_run):
    run = new_run().config()
    (run.root / "trajectories").mkdir()
    turns = [
        {"q": 0, "g": 0},
        {"q": 0, "g": 0, "kind": "DRAFT"},
        {"q": 0, "g": 0, "kind": "QA", "view": "x", "reward": "1", "answers": "one"},
        {"q": 0, "g": 0, "kind": "TELEPATHY", "page": 5},
        {"q": "0", "g": 0, "kind": "QA"},
        7,
    ]
    (run.root / "trajectories" / "step_000001.jsonl").write_text("\n".join(map(json.dumps, turns)))
    (run.root / "trajectories" / "step_x.jsonl").write_text("not a step")
    html = write_report(run.root).read_text()
    assert html.count('class="read"') == 1 and html.count('class="draft"') == 1


def test_a_sample_without_a_page_says_why(new_run):
    run = (
        new_run()
        .config()
        .trajectories(1, group=2, page_status="EMPTY", page_detail="nothing visible", page=None)
    )
    path = run.root / "trajectories" / "step_000001.jsonl"
    turns = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text(
        "\n".join(json.dumps(turn) for turn in turns if turn["kind"] == "DRAFT" or turn["g"] == 1)
    )
    html = write_report(run.root).read_text()
    assert html.count("No page was read: EMPTY, nothing visible.") == 1
    assert html.count('<span class="status" title="nothing visible">page EMPTY</span>') == 2


def cell(budget, em, **more):
    scores = {"mean": em, "low": em - 0.1, "high": em + 0.1, "drop": None}
    place = {"dataset": "nq", "length": "10k", "method": "visual memory", "budget": budget}
    return {**place, "em": scores, "f1": {"mean": None}, "image_tokens": 7.5, **more}


def test_evaluation(new_run):
    run = new_run().config()
    (run.root / "evaluation").mkdir()
    cells = [cell(512, 0.75), cell(16, 0.25), cell(None, 0.5, method="raw history"), 5, cell(0, 1.0)]
    summary = {"cells": cells, "questions": 128, "failures": ["q7: CRASHED", "q9: <b>"]}
    (run.root / "evaluation" / "summary.json").write_text(json.dumps(summary))
    html = write_report(run.root).read_text()
    html = html[html.index('<section id="evaluation">') :]
    assert "questions <b>128</b>" in html
    assert "2 not read or not scored" in html and "q7: CRASHED\nq9: &lt;b&gt;" in html
    columns = "<td>nq</td><td>10k</td><td>visual memory</td>"
    rest = "<td>–</td><td>–</td>"
    assert f"{columns}<td>512</td><td>75.0</td>{rest}<td>65.0 to 85.0</td><td>7.5</td>" in html
    (line,) = read_evaluation(summary).chart.lines
    assert line.label == "visual memory", "without a budget there is nothing to draw"


@pytest.mark.parametrize("summary", [{}, {"cells": 5}, {"cells": []}, {"cells": [1]}])
def test_no_evaluation(summary):
    assert read_evaluation(summary) is None


def test_about(new_run):
    run = new_run().config()
    about = json.loads(write_about(run.root, model_parameters=1_234_567, note="x").read_text())
    assert about["versions"]["jax"] and about["versions"]["python"] and about["note"] == "x"
    html = write_report(run.root).read_text()
    assert "1.23M parameters" in html and f"jax {about['versions']['jax']}" in html
