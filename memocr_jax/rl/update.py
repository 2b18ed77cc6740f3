"""The learner: log-probabilities, accumulated gradients, one optimiser update for each mini-batch.

The loss itself is `loss.grpo_loss`; `_accumulate` below takes its gradient.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float

from memocr_jax.config import Config, RLConfig
from memocr_jax.core.metrics import Stopwatch
from memocr_jax.core.sharding import batch_sharding, put_batch, put_scalar, replicated
from memocr_jax.core.types import TrainBatch
from memocr_jax.models.config import Qwen25VLConfig
from memocr_jax.rl.loss import SUMS, Denominators, grpo_loss
from memocr_jax.rl.optimizer import abstract_optimizer, init_optimizer, make_optimizer
from memocr_jax.rl.pack import MiniBatch, Packing, Shape, empty_batch
from memocr_jax.rl.trainable import Trainable, training_graph


@dataclasses.dataclass
class TrainState:
    """The state that a step changes. `step` counts finished steps of the run, `updates` optimiser updates."""

    params: nnx.State
    """The trained part of the parameters; `Learner.policy_params` gives all."""
    opt_state: optax.OptState
    step: int = 0
    updates: int = 0
    skipped_in_row: int = 0
    """Updates skipped in a row up to now, also over several steps."""


class Update(NamedTuple):
    """What `Learner.update` gives back."""

    state: TrainState
    metrics: dict[str, float | None]
    skipped: tuple[int, ...]
    """Mini-batches (indices into those given) without an update: their loss or gradient was not finite."""


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
    hidden = model.hidden(embeds, batch.mrope_pos.transpose(1, 0, 2), batch.segments, layout=batch.layout)
    hidden = jnp.take_along_axis(hidden, batch.predict_pos[:, :, None], axis=1)
    rows, sampled, width = hidden.shape
    chunk = max(1, min(sampled, chunk_tokens // rows))
    chunks = -(-sampled // chunk)
    pad = chunks * chunk - sampled
    hidden = jnp.pad(hidden, ((0, 0), (0, pad), (0, 0))).reshape(rows, chunks, chunk, width)
    target = jnp.pad(batch.target, ((0, 0), (0, pad))).reshape(rows, chunks, chunk)

    @jax.checkpoint
    def one(hidden, target):
        logits = model.head(hidden) / temperature
        norm = jax.nn.logsumexp(logits, axis=-1)
        # Picked by comparison: the gradient of a gather would be a scatter into all logits.
        is_target = jnp.arange(logits.shape[-1]) == target[..., None]
        logp = jnp.where(is_target, logits, 0.0).sum(-1) - norm
        # Entropy is a metric, not a loss: log Z - E[logit].
        logits, norm = jax.lax.stop_gradient((logits, norm))
        return logp, norm - (jnp.exp(logits - norm[..., None]) * logits).sum(-1)

    _, (logp, entropy) = jax.lax.scan(
        lambda _, x: (None, one(*x)), None, (hidden.transpose(1, 0, 2, 3), target.transpose(1, 0, 2))
    )

    def unchunk(x: Array) -> Array:
        return x.transpose(1, 0, 2).reshape(rows, -1)[:, :sampled]

    return unchunk(logp), unchunk(entropy)


class Learner:
    """Turns packed mini-batches into updates of a `TrainState` on one mesh.

    Args:
        config: of the run. Log-probabilities are those of the distribution that was sampled from, so
            `sampling.temperature` counts too.
        model: the model's description.
        mesh: the devices of the parameters.
        initial: all parameters at the start of the run. The frozen part is used from here. With a KL term a
            copy of the trained part is held as the reference policy (none with adapters: their base is the
            reference). Abstract parameters (jax.ShapeDtypeStruct) are enough for `lower`.
        stopwatch: it counts the seconds of `update`.
    """

    def __init__(
        self,
        config: Config,
        model: Qwen25VLConfig,
        mesh: jax.sharding.Mesh,
        initial: nnx.State,
        stopwatch: Stopwatch,
    ):
        rl, trainable = config.rl, config.train.trainable
        self.packing, self.mesh = Packing.of(config, model), mesh
        self.optimizer = make_optimizer(config.optimizer)
        self._rl, self._clip_norm, self._stopwatch = rl, config.optimizer.clip_norm, stopwatch
        self._longest = max(config.agent.draft_max_new_tokens, config.agent.read_max_new_tokens)
        graphdef = training_graph(config, model, mesh)
        self._trainable = Trainable(graphdef, initial, trainable, config.lora, mesh, config.run.seed)
        temperature, chunk_tokens = config.sampling.temperature, config.train.logp_chunk_tokens

        def logp(graphdef, trained, frozen, batch):
            params = self._trainable.whole(trained, frozen)
            return token_logp(graphdef, params, batch, temperature, chunk_tokens)

        ours = functools.partial(logp, self._trainable.graphdef)
        self._logp = jax.jit(lambda *args: ours(*args)[0])
        self._programs = [self._logp]
        if not rl.kl_coef:
            self._ref_logp = None
        elif trainable == "lora":
            self._programs.append(base := jax.jit(lambda *args: logp(graphdef, *args)[0]))
            nothing = nnx.State({})
            self._ref_logp = lambda batch: base(nothing, self._trainable.frozen, batch)
        else:
            # Updates donate the parameters they change, so the reference is a copy of its own.
            reference = jax.tree.map(_copy, self._trainable.fresh(initial))
            self._ref_logp = lambda batch: self._logp(reference, self._trainable.frozen, batch)
        # Shardings are given, because the compiler would keep whole gradients on every device.
        trained = self._trainable.abstract()
        layout = jax.tree.map(lambda x: x.sharding, trained)
        moments = jax.tree.map(lambda x: x.sharding, abstract_optimizer(self.optimizer, trained, mesh))
        whole = replicated(mesh)
        self._zeros = jax.jit(_zeros, out_shardings=(layout, whole))
        self._accumulate = jax.jit(
            functools.partial(_accumulate, ours, rl),
            donate_argnames=("grads", "sums"),
            out_shardings=(layout, whole),
        )
        self._apply = jax.jit(
            functools.partial(_apply, self.optimizer),
            donate_argnames=("params", "opt_state"),
            out_shardings=(layout, moments, whole, whole),
        )
        self._programs += [self._zeros, self._accumulate, self._apply]

    @property
    def executables(self) -> int:
        """Number of programs compiled so far; it is constant once nothing is compiled any more."""
        return sum(program._cache_size() for program in self._programs)

    @property
    def base(self) -> str:
        """Fingerprint of the frozen base of adapters; empty without them."""
        return self._trainable.base

    def init(self, params: nnx.State) -> TrainState:
        """A fresh state that starts from `params` (all of them), which it consumes; moments are laid out as
        the parameters are."""
        trained = self._trainable.fresh(params)
        return TrainState(trained, init_optimizer(self.optimizer, trained, self.mesh))

    def policy_params(self, state: TrainState) -> nnx.State:
        """All parameters of the model without adapters: what samples, is evaluated and exported.

        Shares its arrays with the state, which the next update consumes; merged adapters are a copy.
        """
        return self._trainable.policy(state.params)

    def checkpoint_items(self, state: TrainState) -> dict[str, Any]:
        """Trees to save: `params` is always the whole policy; `restored` needs those of `abstract_items`."""
        return {**self._trainable.saved(state.params), "opt_state": state.opt_state}

    def abstract_state(self) -> TrainState:
        """Shapes, types and shardings of a state's arrays, without their memory."""
        trained = self._trainable.abstract()
        return TrainState(trained, abstract_optimizer(self.optimizer, trained, self.mesh))

    def abstract_items(self) -> dict[str, Any]:
        """Shapes, types and shardings of the items that `restored` takes, without their memory."""
        return {**self._trainable.abstract_saved(), "opt_state": self.abstract_state().opt_state}

    def restored(self, items: dict[str, Any], step: int, updates: int, skipped_in_row: int = 0) -> TrainState:
        """The state of a checkpoint's items."""
        trained = self._trainable.restored(items)
        return TrainState(trained, items["opt_state"], step, updates, skipped_in_row)

    def update(self, state: TrainState, minibatches: Sequence[MiniBatch]) -> Update:
        """One optimiser update for each mini-batch that has a token; `state` is consumed.

        Old log-probabilities (`rl.old_logp: recomputed`) are those of the parameters at the start of the
        step, as the update itself computes them, so the ratio is exactly 1 until the first update, however
        old the policy was that sampled (`rl.tis_cap` corrects for that gap).

        A mini-batch whose loss or gradient is not finite changes neither parameters nor moments, and counts
        in `update/skipped` alone. Metrics are means over the tokens (`kl/*`, `policy/*`, `tis/*`) or number
        (`loss/*`, `grad/*`) of the other updates, None where there is nothing to average. Every decision here
        follows from the mini-batches' totals and from results that all processes have.
        """
        with self._stopwatch("update"):
            return self._update(state, minibatches)

    def _update(self, state: TrainState, minibatches: Sequence[MiniBatch]) -> Update:
        indices = [i for i, m in enumerate(minibatches) if m.tokens]
        minibatches = [minibatches[i] for i in indices]
        frozen = self._trainable.frozen
        # With one update, or with the sampler's log-probabilities, no separate forward pass is needed.
        recompute = self._rl.old_logp == "recomputed" and len(minibatches) > 1
        prepared = []
        for minibatch in minibatches:
            micro = [put_batch(batch, self.mesh) for batch in minibatch.batches]
            old = [self._logp(state.params, frozen, b) if recompute else None for b in micro]
            ref = [self._ref_logp(b) if self._ref_logp else None for b in micro]
            prepared.append(list(zip(micro, old, ref, strict=True)))

        params, opt_state = state.params, state.opt_state
        results = []
        for number, (minibatch, micro) in enumerate(zip(minibatches, prepared, strict=True)):
            counts = minibatch.tokens, minibatch.sequences, self._longest
            # The policy that is updated is still the one that the step began with.
            at_start = recompute or number == 0
            *denominators, at_start = (put_scalar(n, self.mesh) for n in (*counts, at_start))
            grads, sums = self._zeros(params)
            for batch, old_logp, ref_logp in micro:
                grads, sums = self._accumulate(
                    params,
                    frozen,
                    batch,
                    old_logp,
                    ref_logp,
                    Denominators(*denominators),
                    at_start,
                    grads=grads,
                    sums=sums,
                )
            params, opt_state, norm, good = self._apply(
                params=params, opt_state=opt_state, grads=grads, loss=sums["loss"]
            )
            results.append((sums, norm, good))
        results = [(sums, float(norm), bool(good)) for sums, norm, good in jax.device_get(results)]

        skipped_in_row = state.skipped_in_row
        for *_, good in results:
            skipped_in_row = 0 if good else skipped_in_row + 1
        applied = [(m, r) for m, r in zip(minibatches, results, strict=True) if r[-1]]
        new = TrainState(params, opt_state, state.step + 1, state.updates + len(applied), skipped_in_row)
        skipped = tuple(i for i, (*_, good) in zip(indices, results, strict=True) if not good)
        return Update(new, self._metrics(applied, len(skipped)), skipped)

    def lower(self, shape: Shape) -> dict[str, jax.stages.Lowered]:
        """The programs of an update by name, lowered for micro-batches of one shape; nothing is run.

        The devices that the mesh names need not be here. `gradient` is that of a micro-batch, `apply` the
        optimiser's update, and `log-probabilities` (only where a step needs them) are those of the old or the
        reference policy.
        """
        state, frozen = self.abstract_state(), self._trainable.frozen
        trained, rows = state.params, batch_sharding(self.mesh)
        batch = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows), empty_batch(shape, self.packing)
        )
        one = jax.ShapeDtypeStruct((), jnp.float32, sharding=replicated(self.mesh))
        logp = jax.ShapeDtypeStruct(batch.target.shape, jnp.float32, sharding=rows)
        recomputed = self._rl.old_logp == "recomputed"
        accumulate = self._accumulate.lower(
            trained,
            frozen,
            batch,
            logp if recomputed else None,
            logp if self._ref_logp else None,
            Denominators(one, one, one),
            one,
            grads=trained,
            sums=dict.fromkeys(SUMS, one),
        )
        apply = self._apply.lower(params=trained, opt_state=state.opt_state, grads=trained, loss=one)
        programs = {"gradient": accumulate, "apply": apply}
        if recomputed or self._ref_logp:
            programs["log-probabilities"] = self._logp.lower(trained, frozen, batch)
        return programs

    def _metrics(self, applied, skipped: int) -> dict[str, float | None]:
        """`applied` are the mini-batches that were learned from, each with (sums, norm, True)."""
        tokens, updates = sum(m.tokens for m, _ in applied), len(applied)
        counts = {"update/tokens": tokens, "update/updates": updates, "update/skipped": skipped}
        if not updates:
            return counts
        total = {name: float(sum(sums[name] for _, (sums, *_) in applied)) for name in SUMS}
        norms = [norm for _, (_, norm, _) in applied]

        def mean(name: str, number: float, exists: bool = True) -> float | None:
            return total[name] / number if exists and number else None

        kl, tis = bool(self._rl.kl_coef), bool(self._rl.tis_cap)
        return {
            "loss/total": mean("loss", updates),
            "loss/policy": mean("policy", updates),
            "loss/kl": mean("kl_loss", updates, kl),
            "kl/mean": mean("kl", tokens, kl),
            "policy/entropy": mean("entropy", tokens),
            "policy/ratio": mean("ratio", tokens),
            "policy/clip_fraction": (total["clipped_low"] + total["clipped_high"]) / tokens,
            "policy/clip_low_fraction": mean("clipped_low", tokens),
            "policy/clip_high_fraction": mean("clipped_high", tokens),
            "policy/dual_clip_fraction": mean("dual_clipped", tokens, bool(self._rl.dual_clip)),
            "tis/weight": mean("tis_weight", tokens, tis),
            "tis/truncated_share": mean("tis_truncated", tokens, tis),
            "rollout/logp_gap": mean("logp_gap", total["logp_gap_tokens"]),
            "grad/norm": sum(norms) / updates,
            "grad/clipped_share": sum(norm > self._clip_norm for norm in norms) / updates,
            **counts,
        }


def _copy(x):
    """A copy of an array; a jax.ShapeDtypeStruct is returned as it is."""
    return x if isinstance(x, jax.ShapeDtypeStruct) else jnp.copy(x)


def _zeros(params):
    """Gradients and sums before the first micro-batch."""
    return jax.tree.map(jnp.zeros_like, params), {name: jnp.zeros((), jnp.float32) for name in SUMS}


def _accumulate(
    logp_fn, rl: RLConfig, params, frozen, batch: TrainBatch, old_logp, ref_logp, denominators, at_start,
    *, grads, sums,
):  # fmt: skip
    """Add one micro-batch's gradient, and what `grpo_loss` sums.

    `old_logp` is None where the policy's own are used, or the sampler's (`rl.old_logp`).
    """

    def loss_fn(params):
        logp, entropy = logp_fn(params, frozen, batch)
        return grpo_loss(logp, entropy, batch, old_logp, ref_logp, denominators, at_start, rl)

    gradient, shares = jax.grad(loss_fn, has_aux=True)(params)
    return jax.tree.map(jnp.add, grads, gradient), {name: sums[name] + shares[name] for name in SUMS}


def _apply(optimizer, params, opt_state, grads, loss):
    """The updated parameters and moments, or the same as before where loss or gradient are not finite."""
    norm = optax.tree.norm(grads)
    good = jnp.isfinite(norm) & jnp.isfinite(loss)
    updates, new_opt_state = optimizer.update(grads, opt_state, params)

    def keep(new, old):
        return jnp.where(good, new, old)

    new_params = optax.apply_updates(params, updates)
    return jax.tree.map(keep, new_params, params), jax.tree.map(keep, new_opt_state, opt_state), norm, good
