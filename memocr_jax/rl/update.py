"""The learner: log-probabilities, accumulated gradients, one optimiser update for each mini-batch."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float

from memocr_jax.agent.system import System
from memocr_jax.config import LoraConfig, OptimizerConfig, RLConfig
from memocr_jax.core.metrics import Stopwatch
from memocr_jax.core.sharding import put_batch, replicated
from memocr_jax.core.types import TrainBatch
from memocr_jax.rl.loss import Denominators, aggregate, kl_estimate, policy_loss
from memocr_jax.rl.optimizer import abstract_optimizer, init_optimizer, make_optimizer
from memocr_jax.rl.pack import MiniBatch, Packing
from memocr_jax.rl.trainable import Trainable


@dataclasses.dataclass
class TrainState:
    """What a step changes. `step` counts finished steps of the run, `updates` optimiser updates."""

    params: nnx.State
    """The trained part of the parameters; `Learner.policy_params` gives all."""
    opt_state: optax.OptState
    step: int = 0
    updates: int = 0
    skipped_in_row: int = 0
    """Updates skipped since the last one that was not, over steps."""


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
    unchunk = lambda x: x.transpose(1, 0, 2).reshape(rows, -1)[:, :sampled]  # noqa: E731
    return unchunk(logp), unchunk(entropy)


class Learner:
    """Turns packed mini-batches into updates of a `TrainState` on one mesh.

    Args:
        graphdef: of the model without adapters.
        initial: all its parameters at the start of the run: the reference policy, of which a copy of the
            trained part is held if there is a KL term (with adapters: none, the reference is the base), and
            the part that stays frozen.
        mesh: their devices.
        temperature: of sampling; log-probabilities are those of the distribution that was sampled from.
        logp_chunk_tokens: see `token_logp`.
        longest_completion: in tokens.
        trainable, lora, seed: see `Trainable`.
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        initial: nnx.State,
        mesh: jax.sharding.Mesh,
        rl: RLConfig,
        optimizer: OptimizerConfig,
        packing: Packing,
        temperature: float,
        logp_chunk_tokens: int,
        longest_completion: int,
        stopwatch: Stopwatch,
        *,
        trainable: str = "all",
        lora: LoraConfig | None = None,
        seed: int = 0,
    ):
        self.packing, self.mesh = packing, mesh
        self.optimizer = make_optimizer(optimizer)
        self.clip_norm = optimizer.clip_norm
        self._rl, self._longest, self._stopwatch = rl, longest_completion, stopwatch
        self._trainable = Trainable(graphdef, initial, trainable, lora or LoraConfig(), mesh, seed)

        def logp(graphdef, trained, frozen, batch):
            params = self._trainable.whole(trained, frozen)
            return token_logp(graphdef, params, batch, temperature, logp_chunk_tokens)

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
        # Said, not left to the compiler: without a reason it would keep gradients whole on every device.
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
        """Programs compiled so far; it stays where it is when nothing is compiled any more."""
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

    def abstract_items(self) -> dict[str, Any]:
        """Shapes, types and shardings of the items that `restored` takes, without their memory."""
        trained = self._trainable.abstract()
        opt_state = abstract_optimizer(self.optimizer, trained, self.mesh)
        return {**self._trainable.abstract_saved(), "opt_state": opt_state}

    def restored(self, items: dict[str, Any], step: int, updates: int, skipped_in_row: int = 0) -> TrainState:
        """The state of a checkpoint's items."""
        trained = self._trainable.restored(items)
        return TrainState(trained, items["opt_state"], step, updates, skipped_in_row)

    def update(self, state: TrainState, minibatches: Sequence[MiniBatch]) -> Update:
        """One optimiser update for each mini-batch that has a token; `state` is consumed.

        Old log-probabilities (`rl.old_logp: recomputed`) are those of the parameters at the start of the
        step, as the update itself computes them, so the ratio is exactly 1 until the first update, however
        old the policy was that sampled: that gap is `rl.tis_cap`'s. A mini-batch whose loss or gradient is
        not finite changes neither parameters nor moments, and counts in `update/skipped` alone; metrics are
        means over the tokens (`kl/*`, `policy/*`, `tis/*`) or number (`loss/*`, `grad/*`) of the other
        updates, None where there is nothing to average. Every decision here follows from the mini-batches'
        totals and from results that all processes have.
        """
        with self._stopwatch("update"):
            return self._update(state, minibatches)

    def _update(self, state: TrainState, minibatches: Sequence[MiniBatch]) -> Update:
        indices = [i for i, m in enumerate(minibatches) if m.tokens]
        minibatches = [minibatches[i] for i in indices]
        frozen = self._trainable.frozen
        # With one update, or the sampler's, no pass of its own: the update starts from its own policy.
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
            *denominators, at_start = (self._scalar(n) for n in (*counts, at_start))
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

    def programs(self, batch: TrainBatch) -> dict[str, jax.stages.Lowered]:
        """The programs of an update, by name, for micro-batches like `batch` (abstract, sharded).

        Lowered for the devices that the mesh names, which need not be here; nothing is run.
        `log-probabilities` are those of the old or the reference policy."""
        trained, frozen = self._trainable.abstract(), self._trainable.frozen
        place = lambda shape, sharding: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)  # noqa: E731
        one = place((), replicated(self.mesh))
        logp = place(batch.target.shape, batch.target.sharding)
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
            sums=dict.fromkeys(_SUMS, one),
        )
        opt_state = self.abstract_items()["opt_state"]
        apply = self._apply.lower(params=trained, opt_state=opt_state, grads=trained, loss=one)
        programs = {"gradient": accumulate, "apply": apply}
        if recomputed or self._ref_logp:
            programs["log-probabilities"] = self._logp.lower(trained, frozen, batch)
        return programs

    def _scalar(self, value: float) -> jax.Array:
        """f32[] on every device of the mesh; all processes pass the same."""
        return jax.make_array_from_callback((), replicated(self.mesh), lambda _: np.float32(value))

    def _metrics(self, applied, skipped: int) -> dict[str, float | None]:
        """`applied` are the mini-batches that were learned from, each with (sums, norm, True)."""
        tokens, updates = sum(m.tokens for m, _ in applied), len(applied)
        counts = {"update/tokens": tokens, "update/updates": updates, "update/skipped": skipped}
        if not updates:
            return counts
        total = {name: float(sum(sums[name] for _, (sums, *_) in applied)) for name in _SUMS}
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
            "grad/clipped_share": sum(norm > self.clip_norm for norm in norms) / updates,
            **counts,
        }


_PER_TOKEN = ("ratio", "clipped_low", "clipped_high", "dual_clipped", "tis_weight", "tis_truncated")
"""Fields of `PolicyLoss` that are summed as metrics."""
_SUMS = ("loss", "policy", "kl_loss", "kl", "entropy", "logp_gap", "logp_gap_tokens", *_PER_TOKEN)


def _copy(x):
    """A copy of an array; what only stands for one (jax.ShapeDtypeStruct) is left as it is."""
    return x if isinstance(x, jax.ShapeDtypeStruct) else jnp.copy(x)


def _zeros(params):
    """Gradients and sums before the first micro-batch."""
    return jax.tree.map(jnp.zeros_like, params), {name: jnp.zeros((), jnp.float32) for name in _SUMS}


def _accumulate(
    logp_fn, rl: RLConfig, params, frozen, batch: TrainBatch, old_logp, ref_logp, denominators, at_start,
    *, grads, sums,
):  # fmt: skip
    """Add one micro-batch's gradient and sums.

    `old_logp` None: the policy's own at this moment, or the sampler's, as `rl.old_logp` says. `at_start` is 1
    where the gap to the sampler is that of the parameters the step began with.
    """

    def loss_fn(params):
        logp, entropy = logp_fn(params, frozen, batch)
        now = jax.lax.stop_gradient(logp)
        start = now if old_logp is None else old_logp
        old = batch.sampler_logp if rl.old_logp == "sampler" else start
        mask = batch.loss_mask
        policy = policy_loss(logp, old, batch.sampler_logp, batch.advantage, mask, batch.sequence, rl)
        kl = jnp.zeros_like(logp)
        if ref_logp is not None:
            kl = kl_estimate(jnp.where(mask, logp, 0.0), jnp.where(mask, ref_logp, 0.0), rl.kl_estimator)
        mean = lambda x: aggregate(x, mask, batch.sequence, denominators, rl.aggregation)  # noqa: E731
        policy_mean, kl_mean = mean(policy.loss), rl.kl_coef * mean(kl)
        total = lambda x: jnp.where(mask, x, 0.0).sum()  # noqa: E731
        shares = {
            "loss": policy_mean + kl_mean,
            "policy": policy_mean,
            "kl_loss": kl_mean,
            "kl": total(kl),
            "entropy": total(entropy),
            "logp_gap": at_start * total(jnp.abs(start - batch.sampler_logp)),
            "logp_gap_tokens": at_start * mask.sum(),
            **{name: total(getattr(policy, name)) for name in _PER_TOKEN},
        }
        return policy_mean + kl_mean, shares

    gradient, shares = jax.grad(loss_fn, has_aux=True)(params)
    return jax.tree.map(jnp.add, grads, gradient), {name: sums[name] + shares[name] for name in _SUMS}


def _apply(optimizer, params, opt_state, grads, loss):
    """The updated parameters and moments, or the same as before where loss or gradient are not finite."""
    norm = optax.tree.norm(grads)
    good = jnp.isfinite(norm) & jnp.isfinite(loss)
    updates, new_opt_state = optimizer.update(grads, opt_state, params)
    keep = lambda new, old: jnp.where(good, new, old)  # noqa: E731
    new_params = optax.apply_updates(params, updates)
    return jax.tree.map(keep, new_params, params), jax.tree.map(keep, new_opt_state, opt_state), norm, good


def build_learner(system: System, initial: nnx.State, stopwatch: Stopwatch) -> Learner:
    """The learner of a run that starts from `initial`, its reference policy if there is a KL term."""
    config = system.config
    packing = Packing(
        system.model,
        config.train.max_row_tokens,
        config.train.micro_batch_rows // jax.process_count(),
        config.train.length_multiple,
        config.engine.window_multiple,
        config.train.row_layout,
    )
    return Learner(
        system.graphdef,
        initial,
        system.mesh,
        config.rl,
        config.optimizer,
        packing,
        config.sampling.temperature,
        config.train.logp_chunk_tokens,
        max(config.agent.draft_max_new_tokens, config.agent.read_max_new_tokens),
        stopwatch,
        trainable=config.train.trainable,
        lora=config.lora,
        seed=config.run.seed,
    )
