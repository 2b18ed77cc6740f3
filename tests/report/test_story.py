"""Before and after: the section of the report that compares two evaluations of the same questions."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from memocr_jax.report.run import ReportLimits, render_report
from memocr_jax.report.story import AFTER, BEFORE, QUESTIONS, read_story
from memocr_jax.runs.record import read_run
from render.views import fit

HOSTILE = "<script>window.hacked = 1</script>{{ 7 * 191 }}"


def page_of(name):
    return np.random.default_rng(len(name)).integers(0, 255, (224, 112, 3), np.uint8)


def leave(run, name, right, questions=6, question="Mark ?"):
    """An evaluation's journal and pages; `right[budget]` answers are right."""
    folder = run.root / name
    (folder / "journal").mkdir(parents=True)
    (folder / "pages").mkdir()
    lines = []
    for i in range(questions):
        page = f"{name}{i}"
        Image.fromarray(page_of(page)).save(folder / "pages" / f"{page}.png")
        results = [
            {
                "method": method,
                "budget": budget,
                "sample": 0,
                "id": f"q{i}",
                "answers": ["raft"],
                "prediction": HOSTILE if i >= right[budget] else "raft",
                "em": float(i < right[budget]),
                "page_hash": page,
            }
            for method in ("visual memory", "text memory")
            for budget in (2, 32)
        ]
        lines.append(json.dumps({"place": [0, i], "question": question, "results": results}))
    (folder / "journal" / "part-00000.jsonl").write_text("\n".join([*lines, '{"place": [0,']))


@pytest.fixture
def run(new_run):
    run = new_run().config()
    steps = [{"step": s, "memory/gold_in_heading": s / 4} for s in range(1, 5)]
    (run.root / "metrics.jsonl").write_text("\n".join(map(json.dumps, steps)))
    return run


def test_both_sides_of_the_first_questions(run):
    leave(run, BEFORE, {2: 1, 32: 6})
    leave(run, AFTER, {2: 5, 32: 6})
    story = read_story(run.root, 300, 24)
    assert story.questions == 6 and len(story.pairs) == QUESTIONS
    second = story.pairs[1]
    assert (second.question, second.answers) == ("Mark ?", ("raft",))
    before, after = second.sides
    assert [(r["budget"], r["em"]) for r in before.results] == [(32, 1), (2, 0)]
    assert [(r["budget"], r["em"]) for r in after.results] == [(32, 1), (2, 1)]
    assert [(label, text.replace("\N{NO-BREAK SPACE}", " ")) for _, label, text in story.chart.legend] == [
        *(("before", ""), ("after", "")),
        *(("at 2 tokens:", "17 % → 83 %"), ("at 32 tokens:", "100 % → 100 %")),
    ]
    assert story.sentence.replace("\N{NO-BREAK SPACE}", " ") == (
        "After 300 steps of training, 83 % of 6 held-out questions are answered right from a page of 2 "
        "visual tokens; before training it was 17 %."
    )


def test_the_small_page_is_the_page_as_it_is_read(run):
    leave(run, BEFORE, {2: 0, 32: 0})
    leave(run, AFTER, {2: 0, 32: 0})
    told = read_story(run.root, 4, 24).pairs[2].sides[1]
    data = base64.b64decode(told.small.data_uri.partition(",")[2])
    with Image.open(io.BytesIO(data)) as image:
        assert (np.asarray(image) == fit(page_of(f"{AFTER}2"), 2)).all()
    assert (told.small.width_px, told.small.height_px) == (28, 56)


def test_what_a_model_wrote_is_text(run):
    leave(run, BEFORE, {2: 0, 32: 0}, question=HOSTILE)
    leave(run, AFTER, {2: 0, 32: 0}, question=HOSTILE)
    html = render_report(read_run(run.root), ReportLimits())
    section = html[html.index('<section id="story">') : html.index('<section id="curves">')]
    assert "&lt;script&gt;window.hacked" in section and "<script>" not in section and "1337" not in section
    assert section.count("<img ") == 4 * QUESTIONS and "Before and after" in section


@pytest.mark.parametrize("other", [None, "another question"])
def test_no_story_without_both_sides_of_the_same_questions(run, other):
    leave(run, AFTER, {2: 0, 32: 0})
    if other:
        leave(run, BEFORE, {2: 0, 32: 0}, question=other)
    assert read_story(run.root, 4, 24) is None
    assert 'id="story"' not in render_report(read_run(run.root), ReportLimits())


def test_pages_that_are_no_pictures(run):
    leave(run, BEFORE, {2: 0, 32: 0})
    leave(run, AFTER, {2: 0, 32: 0})
    pages = run.root / AFTER / "pages"
    (pages / f"{AFTER}0.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    (pages / f"{AFTER}1.png").unlink()
    broken, missing, *_ = read_story(run.root, 4, 24).pairs
    assert broken.sides[1].small is None and missing.sides[1].page is None
    assert 'id="story"' in render_report(read_run(run.root), ReportLimits())


@pytest.mark.parametrize(
    "line", ["{not json", "[]", '{"place": [0, 0]}', '{"place": [0, 0], "results": [{}]}']
)
def test_a_damaged_journal_is_a_note(run, line):
    leave(run, BEFORE, {2: 0, 32: 0})
    leave(run, AFTER, {2: 0, 32: 0})
    (run.root / AFTER / "journal" / "part-00001.jsonl").write_text(line + "\n")
    html = render_report(read_run(run.root), ReportLimits())
    assert "evaluation_before and evaluation could not be read" in html and 'id="story"' not in html
