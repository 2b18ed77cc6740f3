"""Optimisers: AdamW, or Muon for matrices; linear warm-up, then a constant rate or a linear decay."""

from __future__ import annotations

import jax
import optax
from flax import nnx
from optax.contrib import MuonDimensionNumbers, muon

from memocr_jax.config import OptimizerConfig
from memocr_jax.core.sharding import replicated

STACKS = ("layers", "blocks")
"""Modules whose parameters have a leading axis of layers."""
TABLES = ("embed_tokens", "lm_head")
"""Parameters that are tables with a row for each token. Muon is for matrices that multiply."""


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """The optimiser of `config`, behind a clip of the global norm."""
    rate = _rate(config)
    if config.name == "adamw":
        update = optax.adamw(
            rate, b1=config.b1, b2=config.b2, eps=config.eps, weight_decay=config.weight_decay
        )
    else:
        update = muon(
            rate,
            beta=config.b1,
            eps=config.eps,
            weight_decay=config.weight_decay,
            adam_b1=config.b1,
            adam_b2=config.b2,
            adam_weight_decay=config.weight_decay,
            adam_learning_rate=_rate(config, config.muon_adam_ratio),
            muon_weight_dimension_numbers=muon_dimensions,
        )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), update)


def init_optimizer(
    optimizer: optax.GradientTransformation, params: nnx.State, mesh: jax.sharding.Mesh
) -> optax.OptState:
    """A fresh optimiser state: moments laid out as their parameters, everything else on every device."""
    shardings = jax.tree.map(lambda x: x.sharding, abstract_optimizer(optimizer, params, mesh))
    return jax.jit(optimizer.init, out_shardings=shardings)(params)


def abstract_optimizer(
    optimizer: optax.GradientTransformation, params: nnx.State, mesh: jax.sharding.Mesh
) -> optax.OptState:
    """Shapes, types and shardings of `init_optimizer`'s result."""

    def masked(x) -> bool:
        # Where Muon leaves a parameter to AdamW, and the other way round.
        return isinstance(x, optax.MaskedNode)

    def place(x, sharding):
        return x if masked(x) else jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return optax.tree_utils.tree_map_params(
        optimizer,
        lambda x, param: x if masked(x) else place(x, param.sharding),
        jax.eval_shape(optimizer.init, params),
        params,
        transform_non_params=lambda x: place(x, replicated(mesh)),
        is_leaf=masked,
    )


def muon_dimensions(params):
    """For every parameter, which axes Muon (arXiv 2502.16982) takes as the rows and columns of a matrix.

    None means AdamW: norms, biases and the tables of tokens. A linear map is [out, in], a patch embedding is
    one map from a whole patch, and each layer of a stack is a matrix of its own.
    """

    def dimensions(path, x):
        names = [str(getattr(key, "key", getattr(key, "name", key))) for key in path]
        stacked = int(any(name in STACKS for name in names))
        if x.ndim - stacked < 2 or any(name in TABLES for name in names):
            return None
        return MuonDimensionNumbers(reduction_axis=tuple(range(stacked + 1, x.ndim)), output_axis=(stacked,))

    return jax.tree_util.tree_map_with_path(dimensions, params)


def _rate(config: OptimizerConfig, ratio: float = 1.0) -> optax.ScalarOrSchedule:
    peak, warmup, decay = ratio * config.learning_rate, config.warmup_steps, config.decay_steps
    if not warmup and not decay:
        return peak
    after = optax.linear_schedule(peak, 0.0, decay) if decay else optax.constant_schedule(peak)
    if not warmup:
        return after
    # optax counts from 0: shift by one, so that the first update of a warm-up already moves.
    rising = optax.linear_schedule(0.0, peak, warmup)
    return optax.join_schedules([lambda count: rising(count + 1), after], [warmup])
