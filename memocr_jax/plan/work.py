"""What one step of a run is made of: kinds of turns, how many, how long; from the configuration alone."""

from __future__ import annotations

import dataclasses
import math

from memocr_jax.config import Config
from memocr_jax.core.buckets import bucket
from memocr_jax.models.config import Qwen25VLConfig
from memocr_jax.rl.pack import Shape

DRAFT_TOKENS, DRAFT_OWN_TOKENS = 160, 80
READ_TOKENS, READ_OWN_TOKENS = 64, 64
"""Tokens of the shipped templates around a chunk or an image, and after it, with a question of 40: measured
with Qwen2.5's vocabulary as 122, 65, 52 and 26, rounded up. Of a cloze (300 characters) about 80 more."""
CLOZE_TOKENS = 96


@dataclasses.dataclass(frozen=True)
class Kind:
    """Turns of one kind in one step, over all processes."""

    name: str
    groups: int
    """Prefixes, each with its siblings."""
    siblings: int
    prefix: int
    """Tokens, those of an image included."""
    suffix: int
    """Most tokens of a sibling's own prompt."""
    completion: int
    """Most tokens of a completion."""
    mean_suffix: float
    mean_completion: float
    patches: int = 0
    """Of the image; 0 without."""
    windows: int = 0
    rounds: int = 1
    """Calls of the engine that follow each other: a chunk's draft needs the memory of the chunk before."""

    @property
    def sampled_tokens(self) -> float:
        """Completion tokens of a step."""
        return self.groups * self.siblings * self.mean_completion

    def rows(self, config: Config) -> tuple[int, int, float]:
        """How the learner packs a group: (rows of a group, siblings of a row, tokens of a row), at mean
        lengths."""
        own = self.mean_suffix + self.mean_completion
        limit = config.train.max_row_tokens
        if config.train.row_layout == "aligned":
            prefix, slots = self._aligned(config, own)
            fit = max(1, (limit - prefix) // slots)
        else:
            fit = max(1, int((limit - self.prefix) // own))
        rows = math.ceil(self.siblings / fit)
        per_row = math.ceil(self.siblings / rows)
        return rows, per_row, self.prefix + per_row * own

    def row_shape(self, config: Config, full: bool) -> Shape:
        """The largest micro-batch of these turns (`rl.pack`) or, unless `full`, one at mean lengths."""
        train = config.train
        windows = bucket(self.windows, config.engine.window_multiple) if self.windows else 0
        _, siblings, mean_length = self.rows(config)
        mean_own = self.mean_suffix + self.mean_completion
        if train.row_layout == "aligned":
            prefix, slots = self._aligned(config, mean_own)
            if full:
                _, most = self._aligned(config, self.suffix + self.completion)
                smallest = max(1, train.length_multiple // 8)
                steps = sorted({bucket(n, smallest) for n in range(smallest, most + 1, smallest)})
                fits = [(min(self.siblings, max(1, (train.max_row_tokens - prefix) // s)), s) for s in steps]
                siblings, slots = max(fits, key=lambda fit: (fit[0] * fit[1], fit[1]))
            share = self.completion / (self.suffix + self.completion)
            sampled = siblings * slots * (share if full else self.mean_completion / mean_own)
            sampled = bucket(math.ceil(sampled), max(1, train.length_multiple // 4))
            return Shape(windows, prefix + siblings * slots, sampled, prefix, siblings, slots)
        if full:
            own = self.suffix + self.completion
            length = max(min(train.max_row_tokens, self.prefix + self.siblings * own), self.prefix + own)
            sampled = min(self.siblings * self.completion, length - self.prefix)
        else:
            length, sampled = mean_length, siblings * self.mean_completion
        return Shape(
            windows,
            bucket(math.ceil(length), train.length_multiple),
            bucket(math.ceil(sampled), max(1, train.length_multiple // 4)),
        )

    def _aligned(self, config: Config, own: float) -> tuple[int, int]:
        """Slots of the prefix and of a sibling of `own` tokens in an aligned row."""
        multiple = config.train.length_multiple
        return bucket(self.prefix, max(1, multiple // 2)), bucket(math.ceil(own), max(1, multiple // 8))


def kinds_of(config: Config, model: Qwen25VLConfig, chunks: float, fill: float) -> list[Kind]:
    """The turns of a step.

    Args:
        chunks: of a document.
        fill: mean length of what is sampled, as a share of its limit.
    """
    agent, rl = config.agent, config.rl
    questions, samples = rl.questions_per_step, rl.group_size
    merge = model.vision.merge_unit
    low = max(1, agent.budget_tokens // agent.low_res_factor**2)
    low = agent.budget_tokens if agent.low_res_mode == "blur" else low
    mean = fill * agent.draft_max_new_tokens

    def read(name: str, tokens: int, siblings: int, own: int) -> Kind:
        limit = agent.read_max_new_tokens
        return Kind(
            name,
            questions * samples,
            siblings,
            tokens + READ_TOKENS,
            own,
            limit,
            own,
            fill * limit,
            tokens * merge,
            windows_of(tokens, config.render.width_px // 28),
        )

    draft = Kind(
        "draft",
        math.ceil(questions * chunks),
        samples,
        config.data.chunk_tokens + DRAFT_TOKENS,
        agent.draft_max_new_tokens + DRAFT_OWN_TOKENS,
        agent.draft_max_new_tokens,
        mean * (chunks - 1) / chunks + DRAFT_OWN_TOKENS,  # the first chunk starts from no memory
        mean,
        rounds=math.ceil(chunks),
    )
    return [
        draft,
        # std and augQ read the same view of a page; augM reads the shrunk one.
        read("read", agent.budget_tokens, 2, READ_OWN_TOKENS + CLOZE_TOKENS),
        read("read low", low, 1, READ_OWN_TOKENS),
    ]


def windows_of(tokens: int, width_tokens: int, window_tokens: int = 4) -> int:
    """Most attention windows (112 px a side) of a view of `tokens` visual tokens, over the widths that pages
    have: from a third of the square's side to the page's width."""
    side = math.isqrt(tokens)
    widths = range(max(1, side // 3), max(side, min(tokens, width_tokens)) + 1)
    up = lambda n: -(-n // window_tokens)  # noqa: E731
    return max(up(width) * up(max(1, tokens // width)) for width in widths)
