"""When a step's rollout happens: right before its update, or during the update of the step before."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

T = TypeVar("T")


class Schedule(Generic[T]):
    """Hands out the rollouts of one step after another.

    With staleness 0 a step is sampled from the weights that its update starts from. With 1 the sampling of
    step t + 1 runs in a thread during update t, with the weights before that update. What is sampled still
    depends on nothing but the seed and those weights.

    Use it as a context manager, or `close` it.

    Args:
        sample: rolls out a step with the given weights.
        staleness: 0 or 1 (rl.staleness).
        last: the last step that is wanted.
        next_policy: with staleness 1, the weights that the first step is sampled from, where a checkpoint
            holds them; default those of the first `take`.
    """

    def __init__(
        self,
        sample: Callable[[nnx.State, int], T],
        staleness: int,
        last: int,
        next_policy: nnx.State | None = None,
    ):
        self._sample, self._last = sample, last
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rollout") if staleness else None
        self._ahead: Future[T] | None = None
        self.next_policy = next_policy
        """With staleness 1, the weights that the coming step is sampled from: a checkpoint must hold them."""

    def take(self, policy: nnx.State, step: int) -> T:
        """The rollout of `step`, whose update starts from the weights `policy`."""
        if self._thread is None:
            return self._sample(policy, step)
        if self._ahead is None:
            self._start(policy if self.next_policy is None else self.next_policy, step)
        result = self._ahead.result()
        # The update will donate the memory of `policy`.
        self.next_policy = jax.tree.map(jnp.copy, policy)
        self._ahead = None
        if step < self._last:
            self._start(self.next_policy, step + 1)
        return result

    def _start(self, policy: nnx.State, step: int) -> None:
        self._ahead = self._thread.submit(self._sample, policy, step)

    def __enter__(self) -> Schedule[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait for the sampling under way, and drop its result."""
        if self._thread is not None:
            self._thread.shutdown()
