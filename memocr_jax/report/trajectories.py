"""Which questions a report shows, and their turns in the order in which they happened."""

from __future__ import annotations

import base64
import dataclasses
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from memocr_jax.report.record import read_json_lines
from memocr_jax.report.values import finite, text, texts, whole

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
KIND_NAMES = {
    "QA": ("std", "the question, page at full budget"),
    "QA_LOWRES": ("augM", "the question, page at low resolution"),
    "GAP_FILL": ("augQ", "a cloze over the memory, page at full budget"),
}
"""Objective and meaning of each way to read a page (arXiv 2601.21468, section 4), in the order shown."""


@dataclasses.dataclass(frozen=True)
class Picture:
    """A PNG as it goes into the page."""

    data_uri: str
    width_px: int
    height_px: int


@dataclasses.dataclass(frozen=True)
class ShownTurn:
    """One turn; a field that the file leaves out, or fills with another kind of value, is None or empty."""

    kind: str
    chunk: int | None
    prompt: str
    response: str
    prompt_tokens: int | None
    response_tokens: int | None
    stop: str
    asked: str
    expected: tuple[str, ...]
    prediction: str | None
    reward: float | None
    advantage: float | None
    weight: float | None


@dataclasses.dataclass(frozen=True)
class View:
    """A page as the reader saw it, and the turns that read it."""

    name: str
    picture: Picture | None
    tokens: int | None
    width_px: int | None
    height_px: int | None
    reads: tuple[ShownTurn, ...]


@dataclasses.dataclass(frozen=True)
class Sample:
    """One of a question's G trajectories."""

    g: int
    drafts: tuple[ShownTurn, ...]
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
    def reads(self) -> dict[str, ShownTurn]:
        """Read turns by kind, in the order of the objectives."""
        turns = {turn.kind: turn for view in self.views for turn in view.reads}
        return {kind: turns[kind] for kind in KIND_NAMES if kind in turns}


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


class PictureReader:
    """Reads PNG files of one folder until a number of bytes is used up; each file once."""

    def __init__(self, folder: Path, max_bytes: int):
        self.folder = folder.resolve()
        self.bytes_left = max_bytes
        self.left_out = 0
        self._known: dict[str, Picture | None] = {}

    def read(self, name: Any) -> Picture | None:
        """The picture in a file named relative to the folder; None when there is none to show."""
        if not isinstance(name, str) or not name:
            return None
        if name not in self._known:
            self._known[name] = self._load(name)
        return self._known[name]

    def _load(self, name: str) -> Picture | None:
        try:
            path = (self.folder / name).resolve()
            inside = path.is_relative_to(self.folder) and path.is_file()
        except (OSError, ValueError):  # a name that no file can have
            return None
        if not inside:
            return None
        data = path.read_bytes()
        if len(data) < 24 or not data.startswith(PNG_MAGIC):
            return None
        if len(data) > self.bytes_left:
            self.left_out += 1
            return None
        self.bytes_left -= len(data)
        width, height = struct.unpack(">II", data[16:24])
        return Picture("data:image/png;base64," + base64.b64encode(data).decode("ascii"), width, height)


def evenly(items: Sequence[Any], count: int) -> list[Any]:
    """`count` items spread over the whole sequence, its first and last among them."""
    if len(items) <= count:
        return list(items)
    if count == 1:
        return [items[-1]]
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def _turn(turn: Mapping[str, Any]) -> ShownTurn:
    prediction = turn.get("prediction")
    return ShownTurn(
        kind=text(turn.get("kind")),
        chunk=whole(turn.get("chunk")),
        prompt=text(turn.get("prompt")),
        response=text(turn.get("response")),
        prompt_tokens=whole(turn.get("prompt_tokens")),
        response_tokens=whole(turn.get("response_tokens")),
        stop=text(turn.get("stop")),
        asked=text(turn.get("asked")),
        expected=texts(turn.get("expected")),
        prediction=None if prediction is None else text(prediction),
        reward=finite(turn.get("reward")),
        advantage=finite(turn.get("advantage")),
        weight=finite(turn.get("weight")),
    )


def _sample(g: int, turns: Sequence[Mapping[str, Any]], pictures: PictureReader) -> Sample:
    drafts = sorted((t for t in turns if t.get("kind") == "DRAFT"), key=lambda t: whole(t.get("chunk")) or 0)
    reads = {str(t.get("kind")): t for t in turns if t.get("kind") in KIND_NAMES}
    by_file: dict[Any, list[Mapping[str, Any]]] = {}
    for kind in KIND_NAMES:
        if kind in reads:
            view = reads[kind].get("view")
            by_file.setdefault(view.get("file") if isinstance(view, dict) else None, []).append(reads[kind])
    views = []
    for file, readers in by_file.items():
        view = readers[0].get("view")
        view = view if isinstance(view, dict) else {}
        views.append(
            View(
                name="low resolution" if readers[0].get("kind") == "QA_LOWRES" else "full budget",
                picture=pictures.read(file),
                tokens=whole(view.get("image_tokens")),
                width_px=whole(view.get("width_px")),
                height_px=whole(view.get("height_px")),
                reads=tuple(map(_turn, readers)),
            )
        )
    told = {
        name: next((t[name] for t in (*reads.values(), *drafts[::-1]) if t.get(name)), None)
        for name in ("page", "page_status", "page_detail")
    }
    page = pictures.read(told["page"])
    if any(view.picture == page for view in views):
        page = None
    return Sample(
        g,
        tuple(map(_turn, drafts)),
        page,
        text(told["page_status"]),
        text(told["page_detail"]),
        tuple(views),
    )


def reward_spread(turns: Iterable[Mapping[str, Any]]) -> float:
    """How unlike the samples of a question score: the sum over objectives of max - min reward."""
    rewards: dict[Any, list[float]] = {}
    for turn in turns:
        reward = finite(turn.get("reward"))
        if reward is not None and turn.get("kind") in KIND_NAMES:
            rewards.setdefault(turn["kind"], []).append(reward)
    return sum(max(values) - min(values) for values in rewards.values())


def select_groups(
    turn_files: Mapping[int, Path],
    *,
    max_steps: int,
    questions_per_step: int,
    max_turns: int,
    pictures: PictureReader,
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
    ranked: dict[int, list[tuple[int, list[dict[str, Any]]]]] = {}
    skipped = 0
    for step in evenly(sorted(turn_files), max_steps):
        turns, bad = read_json_lines(turn_files[step])
        skipped += bad
        by_question: dict[int, list[dict[str, Any]]] = {}
        for turn in turns:
            if isinstance(turn.get("q"), int) and isinstance(turn.get("g"), int):
                by_question.setdefault(turn["q"], []).append(turn)
        best = sorted(by_question.items(), key=lambda item: (-reward_spread(item[1]), item[0]))
        ranked[step] = best[:questions_per_step]
    chosen: list[tuple[int, int, list[dict[str, Any]]]] = []
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


def _group(step: int, q: int, turns: list[dict[str, Any]], pictures: PictureReader) -> Group:
    first = turns[0]
    by_sample: dict[int, list[dict[str, Any]]] = {}
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
