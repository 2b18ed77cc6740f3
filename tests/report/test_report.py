"""The report's contents: what is read, what is chosen, what is escaped, what a run in progress gives."""

from __future__ import annotations

import json

import pytest

from memocr_jax.report import ReportLimits, write_about, write_report
from memocr_jax.report.curves import draw_curves
from memocr_jax.report.pictures import Pictures
from memocr_jax.report.questions import evenly, reward_spread, select_groups
from memocr_jax.runs.record import read_run


def groups_of(run, **limits):
    options = {"max_steps": 6, "questions_per_step": 2, "max_turns": 400} | limits
    pictures = Pictures(run.root / "trajectories", 10**8)
    return select_groups(read_run(run.root).turn_files, pictures=pictures, **options)


def test_a_whole_run(new_run):
    run = new_run("warm").config().metrics(30).trajectories(1).trajectories(30)
    path = write_report(run.root)
    html = path.read_text()
    assert path == run.root / "report.html"
    assert "<h1>warm</h1>" in html
    assert "30 of 200" in html and "run 3 · data 5" in html
    assert "document of 367 tokens in 3 chunks" in html  # 128 * 3 - 17
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
    assert [[d["chunk"] for d in s.drafts] for s in group.samples] == [[0, 1, 2], [0, 1, 2]]
    assert list(group.samples[0].reads) == ["QA", "QA_LOWRES", "GAP_FILL"]


def test_two_readers_of_one_view_share_its_picture(new_run):
    run = new_run().config().trajectories(1, group=1)
    (group,), _ = groups_of(run)
    full, low = group.samples[0].views
    assert [t["kind"] for t in full.reads] == ["QA", "GAP_FILL"]
    assert [t["kind"] for t in low.reads] == ["QA_LOWRES"]
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


def test_every_metric_is_shown_once(new_run):
    run = new_run().config().metrics(3)
    charts, others = draw_curves(read_run(run.root).metrics)
    titles = {chart.title: len(chart.legend) for chart in charts}
    assert titles == {
        "Right answers": 3,
        "Loss": 2,
        "KL to the initial policy": 1,
        "Gradient norm": 1,
        "Length of memories and answers": 2,
        "Size of a page": 1,
        "Groups without a signal": 1,
        "Failures": 2,
        "Throughput": 1,
        "Time per stage": 5,
    }
    assert others == ["optim/learning_rate"]
    assert sum(titles.values()) + 1 == len(json.loads((run.root / "metrics.jsonl").open().readline())) - 1
    html = write_report(run.root).read_text()
    assert "1 more metrics" in html and "<td>optim/learning_rate</td>" in html


def test_names_are_words_in_the_order_and_colours_of_the_objectives():
    keys = (
        *("reward/aug_m", "reward/aug_q", "reward/std", "draft/tokens", "read/tokens_aug_q"),
        *("read/tokens_std", "validation/failed"),
        *("validation/accuracy", "validation/accuracy_2", "validation/accuracy_1024"),
    )
    charts, _ = draw_curves([{"step": 1, **dict.fromkeys(keys, 0.5)}])
    half = "50\N{NO-BREAK SPACE}%"
    assert {chart.title: chart.legend for chart in charts} == {
        "Right answers": [(0, "whole page", half), (1, "small page", half), (2, "cloze", half)],
        "Validation": [
            (0, "at 1,024 tokens", half),
            (1, "at 2 tokens", half),
            (2, "mean of the budgets", half),
        ],
        "Length of memories and answers": [
            (0, "answer, whole page", "0.5"),
            (2, "answer, cloze", "0.5"),
            (3, "memory", "0.5"),
        ],
        "Failures": [(None, "", "0.5")],
    }


def test_the_result_is_one_sentence(new_run):
    run = new_run().config()
    lines = [{"step": s, "reward/std": 0.5, "reward/aug_m": 0.2 if s == 1 else 0.9} for s in (1, 2)]
    (run.root / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    html = write_report(run.root).read_text().replace("\N{NO-BREAK SPACE}", " ")
    assert (
        '<p class="sentence">Right answers over 2 steps of training: 50 % → 50 % (whole page), '
        "20 % → 90 % (small page).</p>"
    ) in html


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
    assert Pictures(run.root / "trajectories", 10**6).file(name) is None


def test_a_file_that_is_no_png_is_not_embedded(new_run):
    run = new_run().config().trajectories(1, group=1)
    for path in (run.root / "trajectories" / "pages").glob("*.png"):
        path.write_bytes(b"<svg xmlns='x' onload='alert(1)'/>" + bytes(40))
    html = write_report(run.root).read_text()
    assert "data:image/png" not in html and html.count("no image kept") == 2


def test_pictures_are_bounded_and_counted(new_run):
    run = new_run().config().trajectories(1, group=4)
    pictures = Pictures(run.root / "trajectories", 20_000)
    files = sorted((run.root / "trajectories" / "pages").glob("*.png"))
    kept = [p for p in files if pictures.file(f"pages/{p.name}")]
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
    assert html.count('<span class="status">page EMPTY</span>') == 2


def cell(budget, em, **more):
    scores = {"mean": em, "low": em - 0.1, "high": em + 0.1, "drop": None}
    place = {"dataset": "nq", "length": "10k", "method": "visual memory", "budget": budget}
    return {**place, "em": scores, **more}


def leave_evaluation(run, **more):
    folder = run.root / "evaluation"
    folder.mkdir()
    cells = [cell(512, 0.75), cell(16, 0.25), cell(None, 0.5, method="raw history")]
    summary = {"cells": cells, "averages": [], "questions": 128, **more}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_evaluation(new_run):
    run = new_run().config()
    folder = leave_evaluation(run, failures=["q7: CRASHED", "q9: <b>"])
    (folder / "report.html").write_text("")
    html = write_report(run.root).read_text().replace("\N{NO-BREAK SPACE}", " ")
    html = html[html.index('<section id="evaluation">') :]
    assert (
        "With visual memory, 75 % of 128 questions are answered right at 512 tokens, and 25 % at 16." in html
    )
    assert '<a href="evaluation/report.html">' in html
    assert "2 not read or not scored" in html and "q7: CRASHED\nq9: &lt;b&gt;" in html
    assert "<td>512</td>" in html and "<b>75.0 %</b><small>65.0–85.0</small>" in html
    assert "raw history <b>50 %</b>" in html, "a method without a budget is a level line"


def test_an_evaluation_without_a_report_is_not_linked(new_run):
    run = new_run().config()
    leave_evaluation(run)
    assert "evaluation/report.html" not in write_report(run.root).read_text()


@pytest.mark.parametrize(
    "summary", [{"cells": 5}, {"cells": [1]}, {"cells": [cell(8, 0.5)]}, {"cells": [{}], "averages": []}]
)
def test_a_damaged_summary_is_a_note(new_run, summary):
    run = new_run().config()
    (run.root / "evaluation").mkdir()
    (run.root / "evaluation" / "summary.json").write_text(json.dumps(summary))
    html = write_report(run.root).read_text()
    assert "evaluation/summary.json could not be read" in html and 'id="evaluation"' not in html


def test_about(new_run):
    run = new_run().config()
    about = json.loads(write_about(run.root, model_parameters=1_234_567, note="x").read_text())
    assert about["versions"]["jax"] and about["versions"]["python"] and about["note"] == "x"
    html = write_report(run.root).read_text()
    assert "1.23M parameters" in html and f"jax {about['versions']['jax']}" in html
