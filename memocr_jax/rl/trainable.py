"""Which part of a model is trained: everything, all but the vision tower, or low-rank adapters alone.

What is not trained is held once, and has neither gradients nor optimiser state: a loss is a function of the
trained part, and the frozen part is a constant in it.
"""

from __future__ import annotations

import functools
import hashlib

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from memocr_jax.config import Config, LoraConfig
from memocr_jax.core.sharding import abstract_like, param_shardings
from memocr_jax.models import lora as adapters
from memocr_jax.models.config import Qwen25VLConfig
from memocr_jax.models.qwen25_vl import abstract_model


def training_graph(config: Config, model: Qwen25VLConfig, mesh: Mesh) -> nnx.GraphDef:
    """The graph of the model (without adapters) as it is trained: `train.remat` says what its layers keep for
    the backward pass."""
    graphdef, _ = abstract_model(
        model,
        dtype=jnp.dtype(config.model.dtype),
        param_dtype=config.param_dtype,
        remat=config.train.remat,
        attention=config.model.attention,
        mesh=mesh,
    )
    return graphdef


class Trainable:
    """The split of a model's parameters into a trained and a frozen part.

    Args:
        graphdef: of the model without adapters.
        initial: its parameters, on their mesh; the frozen part is used in place, without a copy.
        trainable: `train.trainable`.
        lora: section `lora`; used if `trainable` is "lora".
        seed: of fresh adapters.
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        initial: nnx.State,
        trainable: str,
        lora: LoraConfig,
        mesh: Mesh,
        seed: int,
    ):
        self.kind, self._lora, self._mesh, self._seed = trainable, lora, mesh, seed
        self._abstract = abstract_like(initial)
        self.base_graphdef = self.graphdef = graphdef
        """Graphs of the model that samples (`policy`), and of the one that is trained (`whole`)."""
        if trainable == "lora":
            self.graphdef, self._abstract_adapters = adapters.adapted(graphdef, self._abstract, lora)
            self._abstract_adapters = abstract_like(
                self._abstract_adapters, param_shardings(self._abstract_adapters, mesh)
            )
            self.frozen = initial
            self._merge = jax.jit(
                lambda params, trained: adapters.merge(params, trained, lora),
                out_shardings=jax.tree.map(lambda x: x.sharding, self._abstract),
            )
        else:
            self.frozen = self._split(initial)[1]

    def _split(self, params: nnx.State) -> tuple[nnx.State, nnx.State]:
        frozen = ("visual",) if self.kind == "decoder" else ()
        return nnx.split_state(params, lambda path, _: path[0] not in frozen, ...)

    def fresh(self, params: nnx.State) -> nnx.State:
        """The trained part at the start of a run: that of `params`, or new adapters."""
        if self.kind == "lora":
            return adapters.init_adapters(self._abstract_adapters, self._mesh, self._seed)
        return self._split(params)[0]

    def abstract(self) -> nnx.State:
        """Shapes, types and shardings of the trained part."""
        return self.restored(self.abstract_saved())

    @functools.cached_property
    def base(self) -> str:
        """Fingerprint of the frozen base of adapters; empty without them."""
        return fingerprint(self.frozen) if self.kind == "lora" else ""

    def whole(self, trained: nnx.State, frozen: nnx.State) -> nnx.State:
        """All parameters of `graphdef`; structure only, so it may be called under jit."""
        return nnx.merge_state(trained, frozen)

    def policy(self, trained: nnx.State) -> nnx.State:
        """All parameters of `base_graphdef`: what samples, and what is exported. A copy only of merged
        adapters."""
        if self.kind == "lora":
            return self._merge(self.frozen, trained)
        return nnx.merge_state(trained, self.frozen)

    def saved(self, trained: nnx.State) -> dict[str, nnx.State]:
        """Items of a checkpoint: always the policy, as `params`; and what `restored` needs besides."""
        items = {"params": self.policy(trained)}
        return items | {"adapters": trained} if self.kind == "lora" else items

    def abstract_saved(self) -> dict[str, nnx.State]:
        """Shapes, types and shardings of the items that `restored` needs."""
        return {"adapters": self._abstract_adapters} if self.kind == "lora" else {"params": self._abstract}

    def restored(self, items: dict[str, nnx.State]) -> nnx.State:
        """The trained part, restored from those items."""
        return items["adapters"] if self.kind == "lora" else self._split(items["params"])[0]


def fingerprint(params: nnx.State) -> str:
    """A number that changes with any bit of the weights; the same on every mesh, as integers are added."""
    sums = jax.device_get(jax.jit(lambda tree: jax.tree.map(_weighed_bits, tree))(params))
    flat = [(".".join(map(str, path)), int(x.get_value())) for path, x in nnx.to_flat_state(sums)]
    return hashlib.blake2b(repr(sorted(flat)).encode(), digest_size=16).hexdigest()


def _weighed_bits(x: jax.Array) -> jax.Array:
    """u32[]: the sum of the elements' bits, each times an odd number of its place, modulo 2**32."""
    unsigned = {2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
    place, stride = jnp.uint32(0), 1
    for axis in reversed(range(x.ndim)):
        place += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= x.shape[axis]
    return jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)
