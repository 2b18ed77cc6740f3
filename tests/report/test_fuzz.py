"""Whatever JSON a run directory holds, there is a report, and its markup is the template's own."""

from __future__ import annotations

import html.parser
import json
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from memocr_jax.report import write_report
from memocr_jax.report.charts import Line, line_chart
from memocr_jax.report.questions import KINDS, _turn

FIELDS = list(_turn({}))
FIELDS += ["step", "q", "g", "example_id", "question", "answers", "document_tokens", "n_chunks"]
FIELDS += ["page", "page_status", "page_detail", "view", "file", "image_tokens", "width_px", "height_px"]
MARKUP = st.sampled_from(
    ["</script>", "<b>", '"', "'", "&lt;", "{{x}}", "<!--", "]]>", "\x00", "\ud800", "\u202e"]
)
TEXT = st.lists(st.one_of(MARKUP, st.text(max_size=5)), max_size=4).map("".join)
NUMBER = st.one_of(
    st.integers(), st.floats(), st.sampled_from([10**400, -(10**18), 1.7e308, -1.7e308, 5e-324])
)
VALUE = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBER, TEXT),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(TEXT, st.sampled_from(FIELDS)), inner, max_size=3),
    ),
    max_leaves=5,
)
TURN = st.fixed_dictionaries(
    {"q": st.integers(0, 1), "g": st.integers(0, 1), "kind": st.sampled_from(["DRAFT", *KINDS, "?"])},
    optional=dict.fromkeys(set(FIELDS) - {"q", "g", "kind"}, VALUE),
)
METRICS = st.dictionaries(
    st.one_of(TEXT, st.sampled_from(["reward/std", "time/step_s", "step"])),
    st.one_of(NUMBER, VALUE),
    max_size=4,
)
CELL = st.dictionaries(
    st.sampled_from(["dataset", "length", "method", "budget", "em", "f1", "image_tokens"]),
    st.one_of(VALUE, st.dictionaries(st.sampled_from(["mean", "low", "high"]), NUMBER)),
)
CELLS = st.lists(st.one_of(VALUE, CELL), max_size=4)


class Tags(html.parser.HTMLParser):
    """Names of the elements, and of their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def handle_starttag(self, tag, attrs):
        self.found |= {tag, *(f"{tag} {name}" for name, _ in attrs)}


def tags_of(text: str) -> set[str]:
    parser = Tags()
    parser.feed(text)
    parser.close()
    return parser.found


ASSETS = Path(__file__).parents[2] / "memocr_jax" / "report" / "assets"
A_CHART = line_chart("", range(2), [Line("", [0.0, 1.0]), Line("", [1e-7, None])]).svg
KNOWN = tags_of(str(A_CHART) + "".join(path.read_text("utf-8") for path in ASSETS.glob("*.html")))


@settings(
    max_examples=60,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    turns=st.lists(st.one_of(TURN, VALUE), max_size=8),
    metrics=st.lists(METRICS, max_size=4),
    about=VALUE,
    summary=st.one_of(
        VALUE,
        st.fixed_dictionaries({"cells": CELLS, "averages": CELLS, "failures": VALUE, "questions": VALUE}),
    ),
)
def test_any_json_gives_a_report(tmp_path, turns, metrics, about, summary):
    root = tmp_path / "run"
    for folder in ("trajectories", "evaluation"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "config.yaml").write_text("run: {seed: 1}\ntrain: 5\n")
    lines = [{"step": i, **line} for i, line in enumerate(metrics)]
    (root / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (root / "trajectories" / "step_000001.jsonl").write_text("\n".join(map(json.dumps, turns)))
    (root / "about.json").write_text(json.dumps(about))
    (root / "evaluation" / "summary.json").write_text(json.dumps(summary))
    report = write_report(root).read_text("utf-8")
    assert tags_of(report) <= KNOWN
    assert report.rstrip().endswith("</html>")
