"""One question of an evaluation from its memory to what was answered at each budget."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from memocr_jax.core.errors import UserError, nearest
from memocr_jax.evaluation.journal import FOLDER, PAGES, Journal
from memocr_jax.evaluation.plots import figure_of
from render.views import fit

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Case:
    """A question's answers, and the views that they were read from."""

    data: dict[str, Any]
    views: list[np.ndarray | None]
    """u8[H, W, 3] of each of `data["answers"]`; None where no page was read, or none was kept."""


def read_case(
    directory: Path, example_id: str, dataset: str | None = None, length: str | None = None, sample: int = 0
) -> Case:
    """A question of the evaluation in `directory`. Raises UserError when it is not there, or not unique."""
    if not (directory / FOLDER).is_dir():
        raise UserError(f"{directory}: holds no evaluation; run python -m memocr_jax.evaluate first")
    entries = list(Journal(directory).finished().values())
    found = []
    for entry in entries:
        first = entry["results"][0]
        if (
            first["id"] == example_id
            and dataset in (None, first["dataset"])
            and length in (None, first["length"])
        ):
            found.append(entry)
    if not found:
        known = list(dict.fromkeys(entry["results"][0]["id"] for entry in entries))
        raise UserError(f"--id {example_id}: no such question{nearest(example_id, known[:20])}")
    if len(found) > 1:
        places = ", ".join(f"{e['results'][0]['dataset']} {e['results'][0]['length']}" for e in found)
        raise UserError(f"--id {example_id}: is in {places}; say --dataset and --length")
    (entry,) = found
    chosen = [k for k, result in enumerate(entry["results"]) if result["sample"] == sample]
    if not chosen:
        raise UserError(f"--sample {sample}: there are {len(entry['memories'])} samples, counted from 0")
    answers, views = [], []
    for k in chosen:
        result = entry["results"][k]
        view = _view(directory, result)
        views.append(view)
        size = {} if view is None else {"width_px": view.shape[1], "height_px": view.shape[0]}
        answers.append(
            {**result, "text": entry["texts"][k], "shown_tokens": entry["shown_tokens"][k], **size}
        )
    data = {
        "id": example_id,
        "dataset": answers[0]["dataset"],
        "length": answers[0]["length"],
        "sample": sample,
        "question": entry["question"],
        "gold": answers[0]["answers"],
        "evidence": entry["evidence"],
        "document_tokens": entry["document_tokens"],
        "memory": entry["memories"][sample] if entry["memories"] else None,
        "answers": answers,
    }
    return Case(data, views)


def case_plot(case: Case) -> Figure:
    """The views side by side, a row for each method, all as wide as the widest; what was answered below."""
    answers = case.data["answers"]
    methods = list(
        dict.fromkeys(a["method"] for a, v in zip(answers, case.views, strict=True) if v is not None)
    )
    budgets = list(dict.fromkeys(a["budget"] for a in answers if a["budget"] is not None))
    heights = [v.shape[0] / v.shape[1] for v in case.views if v is not None] or [0.2]
    panel = (2.3, min(6.0, 2.3 * max(heights) + 0.9))
    figure, axes = figure_of(max(1, len(methods)), max(1, len(budgets)), panel)
    for axis in axes.flat:
        axis.axis("off")
    for answer, view in zip(answers, case.views, strict=True):
        if view is None:
            continue
        axis = axes[methods.index(answer["method"])][budgets.index(answer["budget"])]
        axis.axis("on")
        axis.grid(False)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(True)
        axis.spines[:].set_color("#cfd6e0")
        axis.imshow(view, interpolation="nearest")
        axis.set_anchor("N")
        right = answer["em"] > 0
        size = f"{view.shape[1]} x {view.shape[0]} px"
        title = f"budget {answer['budget']}: {answer['image_tokens']} tokens, {size}"
        axis.set_title(title, fontsize=7.5)
        said = "nothing boxed" if answer["prediction"] is None else answer["prediction"]
        said = "".join(c if c.isprintable() else " " for c in said)
        axis.set_xlabel(
            ("right: " if right else "wrong: ") + (said if len(said) < 34 else said[:32] + "…"),
            fontsize=8,
            color="#12805c" if right else "#b42344",
            parse_math=False,
        )
    for row, method in zip(axes, methods, strict=False):
        row[0].set_ylabel(method, fontsize=9)
    return figure


def case_text(case: Case) -> str:
    data = case.data
    lines = [
        f"# {data['dataset']} {data['length']}, {data['id']}",
        "",
        f"Document of {data['document_tokens']:,} tokens, sample {data['sample']}.",
        "",
        "Question:",
        _fenced(data["question"]),
        "Gold:",
        _fenced("\n".join(data["gold"]) or "(none)"),
    ]
    if data["evidence"]:
        lines += ["Evidence:", _fenced("\n".join(data["evidence"]))]
    if data["memory"] is not None:
        lines += ["Memory as written:", _fenced(data["memory"])]
    lines += [
        "![views](case.svg)",
        "",
        "| method | budget | tokens | status | EM | F1 |",
        "|---|---|---|---|---|---|",
    ]
    for a in data["answers"]:
        budget = "–" if a["budget"] is None else a["budget"]
        tokens = a["image_tokens"] if a["image_tokens"] is not None else a["shown_tokens"]
        lines.append(
            f"| {a['method']} | {budget} | {'–' if tokens is None else tokens} | {a['status']} | {a['em']:g} "
            f"| {a['f1']:.2f} |"
        )
    lines.append("")
    for a in data["answers"]:
        place = a["method"] + ("" if a["budget"] is None else f", budget {a['budget']}")
        lines += [f"{place}:", _fenced("(nothing was read)" if a["text"] is None else a["text"])]
    return "\n".join(lines)


def _view(directory: Path, result: dict[str, Any]) -> np.ndarray | None:
    path = directory / PAGES / f"{result['page_hash']}.png"
    if result["image_tokens"] is None or not path.is_file():
        return None
    with Image.open(path) as image:
        return fit(np.asarray(image.convert("RGB")), result["budget"])


def _fenced(text: str) -> str:
    """Text of a model or of data as a code block; nothing in the text can end the block."""
    longest = run = 0
    for character in text:
        run = run + 1 if character == "`" else 0
        longest = max(longest, run)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}\n"
