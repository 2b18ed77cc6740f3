"""Chooses the questions of the training that a report shows, with their turns in order."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from memocr_jax.report.pictures import Picture, Pictures
from memocr_jax.report.values import finite, text, texts, whole
from memocr_jax.runs.record import read_json_lines

KINDS = {
    "QA": ("whole page", "the question, page at the full budget"),
    "QA_LOWRES": ("small page", "the question, page at low resolution"),
    "GAP_FILL": ("cloze", "a cloze over the memory, page at the full budget"),
}
"""Name and meaning of each way to read a page (arXiv 2601.21468, section 4), in the order shown."""

Turn = Mapping[str, Any]
"""A turn as its file has it, or as it is shown: fields of another kind than expected are None or text."""


@dataclasses.dataclass(frozen=True)
class View:
    """A page as the reader saw it, and the turns that read it."""

    name: str
    picture: Picture | None
    tokens: int | None
    reads: tuple[Turn, ...]


@dataclasses.dataclass(frozen=True)
class Sample:
    """One of a question's G trajectories."""

    g: int
    drafts: tuple[Turn, ...]
    """Draft turns, chunk by chunk."""
    page: Picture | None
    """The page at its own size, when it is another image than the views."""
    page_status: str
    page_detail: str
    views: tuple[View, ...]

    @property
    def wide_px(self) -> int:
        """Width of the largest view: the others are enlarged to it, so that they compare."""
        return max((view.picture.width_px for view in self.views if view.picture), default=0)

    @property
    def reads(self) -> dict[str, Turn]:
        """Read turns by kind, in the order of the objectives."""
        turns = {turn["kind"]: turn for view in self.views for turn in view.reads}
        return {kind: turns[kind] for kind in KINDS if kind in turns}


@dataclasses.dataclass(frozen=True)
class Group:
    """A question of one step with all its samples."""

    step: int
    q: int
    example_id: str
    question: str
    answers: tuple[str, ...]
    document_tokens: int | None
    n_chunks: int | None
    samples: tuple[Sample, ...]


def evenly(items: Sequence[Any], count: int) -> list[Any]:
    """`count` items spread over the whole sequence, its first and last among them."""
    if len(items) <= count:
        return list(items)
    if count == 1:
        return [items[-1]]
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def _turn(turn: Turn) -> Turn:
    prediction = turn.get("prediction")
    return {
        **{name: text(turn.get(name)) for name in ("kind", "prompt", "response", "stop", "asked")},
        **{name: whole(turn.get(name)) for name in ("chunk", "prompt_tokens", "response_tokens")},
        **{name: finite(turn.get(name)) for name in ("reward", "advantage", "weight")},
        "expected": texts(turn.get("expected")),
        "prediction": None if prediction is None else text(prediction),
    }


def _sample(g: int, turns: Sequence[Turn], pictures: Pictures) -> Sample:
    drafts = sorted((t for t in turns if t.get("kind") == "DRAFT"), key=lambda t: whole(t.get("chunk")) or 0)
    by_kind = {t["kind"]: t for t in turns if t.get("kind") in KINDS}
    by_file: dict[str, list[tuple[Turn, Mapping[str, Any]]]] = {}
    for kind in KINDS:
        if kind in by_kind:
            view = by_kind[kind].get("view")
            view = view if isinstance(view, dict) else {}
            by_file.setdefault(text(view.get("file")), []).append((by_kind[kind], view))
    views = tuple(
        View(
            name="low resolution" if readers[0][0]["kind"] == "QA_LOWRES" else "full budget",
            picture=pictures.file(file),
            tokens=whole(readers[0][1].get("image_tokens")),
            reads=tuple(_turn(turn) for turn, _ in readers),
        )
        for file, readers in by_file.items()
    )
    told = {
        name: next((t[name] for t in (*by_kind.values(), *drafts[::-1]) if t.get(name)), None)
        for name in ("page", "page_status", "page_detail")
    }
    page = pictures.file(told["page"])
    if any(view.picture == page for view in views):
        page = None
    return Sample(
        g, tuple(map(_turn, drafts)), page, text(told["page_status"]), text(told["page_detail"]), views
    )


def reward_spread(turns: Iterable[Turn]) -> float:
    """The spread of a question's rewards: the sum over objectives of max - min reward."""
    rewards: dict[str, list[float]] = {}
    for turn in turns:
        reward = finite(turn.get("reward"))
        if reward is not None and turn.get("kind") in KINDS:
            rewards.setdefault(turn["kind"], []).append(reward)
    return sum(max(values) - min(values) for values in rewards.values())


def select_groups(
    turn_files: Mapping[int, Path],
    *,
    max_steps: int,
    questions_per_step: int,
    max_turns: int,
    pictures: Pictures,
) -> tuple[list[Group], int]:
    """Choose questions over the whole run and put their turns in order.

    Steps are spread evenly, first and last among them; within a step the questions whose samples score
    most unlike come first, since those are the ones that training learns from. The first question of every
    step comes before any second one, until `max_turns` turns are taken (the first question is always shown).

    Args:
        turn_files: trajectory file of each step.
        max_steps: steps looked at.
        questions_per_step: questions shown of each.
        max_turns: turns shown in all, about.
        pictures: reads the page images, newest step first.

    Returns:
        The groups by step, and the number of unreadable lines in the files looked at.
    """
    ranked: dict[int, list[tuple[int, list[Turn]]]] = {}
    skipped = 0
    for step in evenly(sorted(turn_files), max_steps):
        turns, bad = read_json_lines(turn_files[step])
        skipped += bad
        by_question: dict[int, list[Turn]] = {}
        for turn in turns:
            if isinstance(turn.get("q"), int) and isinstance(turn.get("g"), int):
                # A kind that is no text counts as missing.
                turn["kind"] = text(turn.get("kind"))
                by_question.setdefault(turn["q"], []).append(turn)
        best = sorted(by_question.items(), key=lambda item: (-reward_spread(item[1]), item[0]))
        ranked[step] = best[:questions_per_step]
    chosen: list[tuple[int, int, list[Turn]]] = []
    taken = 0
    for rank in range(questions_per_step):
        for step in sorted(ranked, reverse=True):
            if rank < len(ranked[step]):
                q, turns = ranked[step][rank]
                if not chosen or taken + len(turns) <= max_turns:
                    chosen.append((step, q, turns))
                    taken += len(turns)
    groups = [_group(step, q, turns, pictures) for step, q, turns in chosen]
    return sorted(groups, key=lambda group: (group.step, group.q)), skipped


def _group(step: int, q: int, turns: list[Turn], pictures: Pictures) -> Group:
    first = turns[0]
    by_sample: dict[int, list[Turn]] = {}
    for turn in turns:
        by_sample.setdefault(turn["g"], []).append(turn)
    return Group(
        step=step,
        q=q,
        example_id=text(first.get("example_id")),
        question=text(first.get("question")),
        answers=texts(first.get("answers")),
        document_tokens=whole(first.get("document_tokens")),
        n_chunks=whole(first.get("n_chunks")),
        samples=tuple(_sample(g, by_sample[g], pictures) for g in sorted(by_sample)),
    )
