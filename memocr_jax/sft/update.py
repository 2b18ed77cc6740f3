"""Supervised learning: cross-entropy over packed rows, one optimiser update for each batch."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from memocr_jax.config import Config
from memocr_jax.core.sharding import abstract_like, put_batch
from memocr_jax.core.types import TrainBatch
from memocr_jax.models.config import Qwen25VLConfig
from memocr_jax.rl.optimizer import abstract_optimizer, init_optimizer, make_optimizer
from memocr_jax.rl.pack import Packing, micro_batches, pack_rows, pack_turns
from memocr_jax.rl.trainable import training_graph
from memocr_jax.rl.update import token_logp
from memocr_jax.sft.lessons import Taught


class TaughtBatch(NamedTuple):
    """Packed rows of one shape, and how many tokens they teach."""

    lesson: str
    batch: TrainBatch
    tokens: int


class SftState(NamedTuple):
    params: nnx.State
    opt_state: object


def pack_lesson(lesson: str, rows: Sequence[Sequence[Taught]], packing: Packing) -> list[TaughtBatch]:
    """The rows of one lesson as batches of few shapes."""
    batches = pack_turns([taught for row in rows for taught in row], packing).batches
    return [TaughtBatch(lesson, batch, int(batch.loss_mask.sum())) for batch in batches]


def metrics_of(sums: dict[str, tuple[float, float, int]]) -> dict[str, float]:
    """Metrics of an update, by lesson: the mean of -log p, and the share of tokens above one half."""
    metrics = {}
    for lesson, (loss, sure, tokens) in sums.items():
        metrics |= {f"warmup/{lesson}/loss": loss / tokens, f"warmup/{lesson}/sure": sure / tokens}
    return metrics


class Teacher:
    """Cross-entropy training of all parameters of `model` on one mesh, as `config` describes it."""

    def __init__(self, config: Config, model: Qwen25VLConfig, mesh: jax.sharding.Mesh):
        self.packing, self.mesh = Packing.of(config, model), mesh
        self.optimizer = make_optimizer(config.optimizer)
        graphdef, chunk_tokens = training_graph(config, model, mesh), config.train.logp_chunk_tokens
        self._logp = lambda params, batch: token_logp(graphdef, params, batch, 1.0, chunk_tokens)[0]
        self._step = jax.jit(functools.partial(_gradient, self._logp), donate_argnums=(1,))
        self._apply = jax.jit(functools.partial(_apply, self.optimizer), donate_argnums=(0, 1))
        self._zeros = jax.jit(lambda params: jax.tree.map(jnp.zeros_like, params))
        self._missed = jax.jit(functools.partial(_missed, self._logp))

    def init(self, params: nnx.State) -> SftState:
        return SftState(params, init_optimizer(self.optimizer, params, self.mesh))

    def abstract_state(self, params: nnx.State) -> SftState:
        """Shapes, types and shardings of the state that `init(params)` gives, without its memory."""
        return SftState(abstract_like(params), abstract_optimizer(self.optimizer, params, self.mesh))

    def update(
        self, state: SftState, batches: Sequence[TaughtBatch]
    ) -> tuple[SftState, dict[str, tuple[float, float, int]]]:
        """One update with the mean over all taught tokens; the state is consumed.

        Returns the new state and, by lesson, the sum of -log p, the number of tokens with a probability above
        one half, and the number of tokens.
        """
        total = np.float32(sum(b.tokens for b in batches))
        grads, sums = self._zeros(state.params), []
        for taught in batches:
            grads, result = self._step(state.params, grads, put_batch(taught.batch, self.mesh), total)
            sums.append(result)
        params, opt_state = self._apply(state.params, state.opt_state, grads)
        metrics: dict[str, tuple[float, float, int]] = {}
        for taught, (loss, sure) in zip(batches, jax.device_get(sums), strict=True):
            a, b, n = metrics.get(taught.lesson, (0.0, 0.0, 0))
            metrics[taught.lesson] = (a + float(loss), b + float(sure), n + taught.tokens)
        return SftState(params, opt_state), metrics

    def right(self, params: nnx.State, rows: Sequence[Sequence[Taught]]) -> dict[str, tuple[int, int]]:
        """By region, how many turns would be answered as taught by greedy sampling, and of how many.

        A turn counts when every token of it has a probability above one half given those before it.
        """
        good: Counter[str] = Counter()
        number: Counter[str] = Counter()
        for shape, arranged in micro_batches([taught for row in rows for taught in row], self.packing):
            batch = pack_rows(arranged, shape, self.packing)
            missed = jax.device_get(self._missed(params, put_batch(batch, self.mesh)))
            for b, row in enumerate(arranged):
                for k, taught in enumerate(row):
                    tokens = batch.loss_mask[b] & (batch.sequence[b] == k)
                    number[taught.region] += 1
                    good[taught.region] += not missed[b][tokens].any()
        return {region: (good[region], n) for region, n in number.items()}


def _gradient(logp_fn, params, grads, batch, total):
    def loss_fn(params):
        logp = jnp.where(batch.loss_mask, logp_fn(params, batch), 0.0)
        return -logp.sum() / total, (-logp.sum(), ((logp > jnp.log(0.5)) & batch.loss_mask).sum())

    gradient, sums = jax.grad(loss_fn, has_aux=True)(params)
    return jax.tree.map(jnp.add, grads, gradient), sums


def _missed(logp_fn, params, batch):
    """Tokens that greedy sampling might miss."""
    return (logp_fn(params, batch) <= jnp.log(0.5)) & batch.loss_mask


def _apply(optimizer, params, opt_state, grads):
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return jax.tree.map(lambda p, u: p + u, params, updates), opt_state
