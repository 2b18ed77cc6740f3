"""Group advantages of the three objectives, and the draft's weighted mixture of them. Pure numpy, float64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float


def group_advantages(
    rewards: Float[np.ndarray, "Q G A"], scored: Bool[np.ndarray, "Q G A"], normalize_by_std: bool = False
) -> Float[np.ndarray, "Q G A"]:
    """A_k = reward minus the mean over the group, each objective k by itself (arXiv 2601.21468).

    Means are over the samples that were scored; an unscored entry has advantage 0 and moves no mean.
    `normalize_by_std` divides by the group's sample standard deviation plus 1e-6, as GRPO does
    (arXiv 2402.03300); the paper's recipe leaves it off.
    """
    rewards = np.where(scored, rewards, 0.0).astype(np.float64)
    count = np.maximum(scored.sum(axis=1, keepdims=True), 1)
    mean = rewards.sum(axis=1, keepdims=True) / count
    advantage = np.where(scored, rewards - mean, 0.0)
    if normalize_by_std:
        std = np.sqrt((advantage**2).sum(axis=1, keepdims=True) / np.maximum(count - 1, 1))
        advantage = advantage / (std + 1e-6)
    return advantage


def read_advantages(advantage: Float[np.ndarray, "Q G A"], weights: Sequence[float]) -> np.ndarray:
    """[Q, G, A]: the advantage that the read turn of each objective is trained with, w_k A_k."""
    return advantage * np.asarray(weights, np.float64)


def draft_advantages(advantage: Float[np.ndarray, "Q G A"], weights: Sequence[float]) -> np.ndarray:
    """[Q, G]: the advantage of every draft turn of a sample, sum_k w_k A_k / sum_k w_k."""
    weights = np.asarray(weights, np.float64)
    return (advantage * weights).sum(axis=-1) / weights.sum()
