"""The learner: log-probabilities, accumulated gradients, one optimiser update for each mini-batch."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float

from memocr_jax.config import OptimizerConfig, RLConfig
from memocr_jax.metrics import Stopwatch
from memocr_jax.rl.loss import Denominators, aggregate, clipped_policy_loss, kl_estimate
from memocr_jax.rl.pack import MiniBatch, Packing
from memocr_jax.sharding import put_batch, replicated
from memocr_jax.types import TrainBatch


@dataclasses.dataclass
class TrainState:
    """What a step changes. `step` counts finished steps of the run, `updates` optimiser updates."""

    params: nnx.State
    opt_state: optax.OptState
    step: int = 0
    updates: int = 0


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """AdamW with linear warm-up to a constant rate, behind a clip of the global norm."""
    schedule = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
    # optax counts from 0: shift by one, so that the first update of a warm-up already moves.
    rate = (lambda count: schedule(count + 1)) if config.warmup_steps else config.learning_rate
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(rate, b1=config.b1, b2=config.b2, eps=config.eps, weight_decay=config.weight_decay),
    )


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
    place = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)  # noqa: E731
    return optax.tree_utils.tree_map_params(
        optimizer,
        lambda x, param: place(x, param.sharding),
        jax.eval_shape(optimizer.init, params),
        params,
        transform_non_params=lambda x: place(x, replicated(mesh)),
    )


def token_logp(
    graphdef: nnx.GraphDef,
    params: nnx.State,
    batch: TrainBatch,
    temperature: float,
    chunk_tokens: int,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Log-probability of every sampled token, and the entropy of the distribution it was drawn from.

    Computed `chunk_tokens` tokens at a time with rematerialisation: [B, T, V] never exists. Values at padding
    are finite and meaningless.
    """
    model = nnx.merge(graphdef, params)
    features = None if batch.vision is None else model.encode_images(batch.vision)
    slots = None if batch.vision is None else batch.image_slots
    embeds = model.embed(batch.tokens, slots, features)
    hidden = model.hidden(embeds, batch.mrope_pos.transpose(1, 0, 2), batch.segments)
    hidden = jnp.take_along_axis(hidden, batch.predict_pos[:, :, None], axis=1)
    rows, sampled, width = hidden.shape
    chunk = max(1, min(sampled, chunk_tokens // rows))
    chunks = -(-sampled // chunk)
    pad = chunks * chunk - sampled
    hidden = jnp.pad(hidden, ((0, 0), (0, pad), (0, 0))).reshape(rows, chunks, chunk, width)
    target = jnp.pad(batch.target, ((0, 0), (0, pad))).reshape(rows, chunks, chunk)

    @jax.checkpoint
    def one(hidden, target):
        logp = jax.nn.log_softmax(model.head(hidden) / temperature)
        chosen = jnp.take_along_axis(logp, target[..., None], axis=-1)[..., 0]
        return chosen, -(jnp.exp(logp) * logp).sum(-1)

    _, (logp, entropy) = jax.lax.scan(
        lambda _, x: (None, one(*x)), None, (hidden.transpose(1, 0, 2, 3), target.transpose(1, 0, 2))
    )
    unchunk = lambda x: x.transpose(1, 0, 2).reshape(rows, -1)[:, :sampled]  # noqa: E731
    return unchunk(logp), unchunk(entropy)


class Learner:
    """Turns packed mini-batches into updates of a `TrainState` on one mesh."""

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        ref_params: nnx.State | None,
        mesh: jax.sharding.Mesh,
        rl: RLConfig,
        optimizer: OptimizerConfig,
        packing: Packing,
        temperature: float,
        logp_chunk_tokens: int,
        longest_completion: int,
        stopwatch: Stopwatch,
    ):
        if rl.kl_coef and ref_params is None:
            raise ValueError("kl_coef > 0 needs ref_params")
        self.packing = packing
        self.optimizer = make_optimizer(optimizer)
        self.clip_norm = optimizer.clip_norm
        self._rl, self._mesh, self._ref_params = rl, mesh, ref_params
        self._longest, self._stopwatch = longest_completion, stopwatch
        logp = functools.partial(
            token_logp, graphdef, temperature=temperature, chunk_tokens=logp_chunk_tokens
        )
        self._logp = jax.jit(lambda params, batch: logp(params, batch)[0])
        self._accumulate = jax.jit(
            functools.partial(_accumulate, logp, rl), donate_argnames=("grads", "sums")
        )
        self._apply = jax.jit(
            functools.partial(_apply, self.optimizer), donate_argnames=("params", "opt_state")
        )
        self._zeros = jax.jit(lambda params: jax.tree.map(jnp.zeros_like, params))

    def init(self, params: nnx.State) -> TrainState:
        """A fresh state; the optimiser's moments are laid out as the parameters are."""
        return TrainState(params, init_optimizer(self.optimizer, params, self._mesh))

    def abstract_opt_state(self, params: nnx.State) -> optax.OptState:
        """The optimiser state's shapes and shardings for these parameters, without its memory."""
        return abstract_optimizer(self.optimizer, params, self._mesh)

    def update(
        self, state: TrainState, minibatches: Sequence[MiniBatch]
    ) -> tuple[TrainState, dict[str, float]]:
        """One optimiser update for each mini-batch that has a token; returns the metrics of them all.

        `state` is consumed. Old log-probabilities are those of the parameters at the start of the step, as
        the update itself computes them, so the ratio is exactly 1 until the first update. Metrics are means
        over all tokens (`loss/*`, `kl/*`, `policy/*`) or over updates (`grad/*`).
        """
        with self._stopwatch("update"):
            return self._update(state, [m for m in minibatches if m.tokens])

    def _update(
        self, state: TrainState, minibatches: Sequence[MiniBatch]
    ) -> tuple[TrainState, dict[str, float]]:
        on_device = [[put_batch(batch, self._mesh) for batch in m.batches] for m in minibatches]
        first = len(minibatches) == 1
        prepared = [
            [
                (
                    batch,
                    # A single update starts from the sampling policy: its own logp are the old ones.
                    None if first else self._logp(state.params, batch),
                    self._logp(self._ref_params, batch) if self._rl.kl_coef else None,
                )
                for batch in micro
            ]
            for micro in on_device
        ]
        params, opt_state = state.params, state.opt_state
        sums_of_all: list[dict] = []
        norms: list[float] = []
        for minibatch, micro in zip(minibatches, prepared, strict=True):
            denominators = Denominators(
                *(np.float32(n) for n in (minibatch.tokens, minibatch.sequences, self._longest))
            )
            grads, sums = self._zeros(params), {name: np.float32(0) for name in _SUMS}
            for batch, old_logp, ref_logp in micro:
                grads, sums = self._accumulate(
                    params, batch, old_logp, ref_logp, denominators, grads=grads, sums=sums
                )
            params, opt_state, norm = self._apply(params=params, opt_state=opt_state, grads=grads)
            sums_of_all.append(jax.device_get(sums))
            norms.append(float(norm))
        new = TrainState(params, opt_state, state.step + 1, state.updates + len(minibatches))
        return new, self._metrics(minibatches, sums_of_all, norms)

    def _metrics(self, minibatches, sums_of_all, norms) -> dict[str, float]:
        tokens = sum(m.tokens for m in minibatches)
        total = {name: float(sum(s[name] for s in sums_of_all)) for name in _SUMS}
        updates = len(minibatches)
        if not updates:
            return {"update/tokens": 0, "update/updates": 0}
        return {
            "loss/total": total["loss"] / updates,
            "loss/policy": total["policy"] / updates,
            "loss/kl": total["kl_loss"] / updates,
            "kl/mean": total["kl"] / tokens,
            "policy/entropy": total["entropy"] / tokens,
            "policy/clip_fraction": total["clipped"] / tokens,
            "policy/ratio": total["ratio"] / tokens,
            "rollout/logp_gap": total["logp_gap"] / tokens,
            "grad/norm": sum(norms) / updates,
            "grad/clipped_share": sum(norm > self.clip_norm for norm in norms) / updates,
            "update/tokens": tokens,
            "update/updates": updates,
        }


_SUMS = ("loss", "policy", "kl_loss", "kl", "entropy", "clipped", "ratio", "logp_gap")


def _accumulate(
    logp_fn, rl: RLConfig, params, batch: TrainBatch, old_logp, ref_logp, denominators, *, grads, sums
):
    """Add one micro-batch's gradient and sums."""

    def loss_fn(params):
        logp, entropy = logp_fn(params, batch)
        old = jax.lax.stop_gradient(logp) if old_logp is None else old_logp
        policy, clipped = clipped_policy_loss(logp, old, batch.advantage, rl)
        mean = lambda x: aggregate(x, batch.loss_mask, batch.sequence, denominators, rl.aggregation)  # noqa: E731
        kl = jnp.zeros_like(logp) if ref_logp is None else kl_estimate(logp, ref_logp, rl.kl_estimator)
        policy_loss, kl_loss = mean(policy), rl.kl_coef * mean(kl)
        total = lambda x: jnp.where(batch.loss_mask, x, 0.0).sum()  # noqa: E731
        shares = {
            "loss": policy_loss + kl_loss,
            "policy": policy_loss,
            "kl_loss": kl_loss,
            "kl": total(kl),
            "entropy": total(entropy),
            "clipped": total(clipped),
            "ratio": total(jnp.exp(logp - old)),
            "logp_gap": total(jnp.abs(old - batch.sampler_logp)),
        }
        return policy_loss + kl_loss, shares

    gradient, shares = jax.grad(loss_fn, has_aux=True)(params)
    return jax.tree.map(jnp.add, grads, gradient), {name: sums[name] + shares[name] for name in _SUMS}


def _apply(optimizer, params, opt_state, grads):
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, optax.tree.norm(grads)
