"""The types that flow through a step.

Axes: Q questions, G group, K siblings, A objectives; B rows, P prefix, S suffix, L packed row length;
R image rows, W windows per image row, N patch slots per window.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int32, UInt8


class TurnKind(enum.StrEnum):
    """The kind of a turn. DRAFT writes a memory; the other three read its page."""

    DRAFT = "DRAFT"
    QA = "QA"  # the question, at the full training budget (objective std)
    QA_LOWRES = "QA_LOWRES"  # the question, on the shrunk page (objective augM)
    GAP_FILL = "GAP_FILL"  # a cloze over the memory's own text, at the full budget (objective augQ)


READ_KINDS = (TurnKind.QA, TurnKind.QA_LOWRES, TurnKind.GAP_FILL)
"""Order of the objective axis A in every [Q, G, A] array: std, augM, augQ (arXiv 2601.21468)."""


@dataclasses.dataclass(frozen=True)
class QaExample:
    """A question over a long document, tokenised and cut into chunks."""

    example_id: str
    question: str
    chunks: tuple[np.ndarray, ...]
    """Token ids of the document's chunks, i32[<= chunk_tokens] each."""
    answers: tuple[str, ...]
    """Accepted answers; empty means that the question cannot be scored."""
    evidence: tuple[str, ...] = ()
    """Sentences of the document that carry the answer."""

    @property
    def document_tokens(self) -> int:
        return sum(len(chunk) for chunk in self.chunks)


class VisionBatch(NamedTuple):
    """Images as the vision tower takes them: rows of attention windows, patches grouped by window.

    Every window has all its slots, real or not, so one executable serves every aspect ratio; the four patches
    of a 2x2 merge unit are contiguous.
    """

    patches: Float[Array, "R W N patch"] | UInt8[Array, "R W N pixels"]
    """Normalised patches, or the bytes of their pixels (one frame), which the vision tower normalises."""
    coords: Int32[Array, "R W N 2"]
    """Row and column of each patch in its image, in patches."""
    valid: Bool[Array, "R W N"]
    image: Int32[Array, "R W"] | None = None
    """Which image of its row a window belongs to; without it a row is one image."""


class Stop(enum.StrEnum):
    """Why a completion ended."""

    EOS = "eos"
    LENGTH = "length"


@dataclasses.dataclass(frozen=True)
class Completion:
    """The sampled continuation of a prompt: the ids as sampled, with the stop token."""

    tokens: np.ndarray
    """i32[S]"""
    sampler_logp: np.ndarray
    """f32[S], log-probability of each token under the sampler (temperature applied, before top-p/top-k)."""
    stop: Stop


@dataclasses.dataclass(frozen=True)
class Turn:
    """One independent conversation of a trajectory, as token ids. Sampled text is never re-tokenised."""

    q: int
    g: int
    kind: TurnKind
    prefix: np.ndarray
    """i32[P], the part of the prompt that siblings share."""
    suffix: np.ndarray
    """i32[S], the part of the prompt that is this turn's own."""
    image: np.ndarray | None
    """u8[H, W, 3] view of the page inside the prefix, or None for a draft."""
    completion: Completion
    chunk: int | None = None
    """0-based chunk of a draft turn."""

    @property
    def prompt_tokens(self) -> int:
        return len(self.prefix) + len(self.suffix)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class RowLayout:
    """Where the parts of a packed row are: `prefix` slots, then `siblings` times `own` slots.

    Each part is padded on its right. A layout is a part of what a program is compiled for, and no array.
    Kernels whose masks are static need it. A row of one text is a prefix without siblings.
    """

    prefix: int
    siblings: int
    own: int


class TrainBatch(NamedTuple):
    """One micro-batch: B packed rows [prefix | siblings], and the T sampled tokens of each row.

    The token at `target[b, t]` was sampled by `logits[b, predict_pos[b, t]]`; `loss_mask` says which of the T
    slots are real, by provenance (sampled or not), never by comparing with a padding id.
    """

    tokens: Int32[Array, "B L"]
    mrope_pos: Int32[Array, "B 3 L"]
    segments: Int32[Array, "B L"]
    """0 prefix, k >= 1 sibling k, -1 padding."""
    image_slots: Int32[Array, "B L"]
    vision: VisionBatch | None
    predict_pos: Int32[Array, "B T"]
    target: Int32[Array, "B T"]
    loss_mask: Bool[Array, "B T"]
    sequence: Int32[Array, "B T"]
    """Sibling (0-based) that a sampled token belongs to, for sequence-level aggregation."""
    advantage: Float[Array, "B T"]
    sampler_logp: Float[Array, "B T"]
    layout: RowLayout | None = None
    """Where the parts of every row are, if all rows have them in the same places; part of the shape."""
