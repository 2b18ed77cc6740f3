"""The programs that an engine runs: `pool`'s functions, compiled for one model on one mesh."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from memocr_jax.core.sharding import batch_sharding, cache_sharding, replicated
from memocr_jax.engine import pool as device
from memocr_jax.engine.sampling import RowSampling
from memocr_jax.engine.sizes import Kind
from memocr_jax.models.config import Qwen25VLConfig
from memocr_jax.models.images import vision_batch


class EnginePrograms:
    """The jitted functions of an engine, with their layouts and donated arguments.

    Args:
        graphdef: of `Qwen25VL`, whose compute type is the cache's.
        eos_ids: tokens that end a completion.
        decode_segment: most tokens that `decode` samples before the host looks.
        decoding_copy: whether decoding reads a copy of the weights in another layout, and a cache of
            separate layers.
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        model: Qwen25VLConfig,
        mesh: Mesh,
        eos_ids: tuple[int, ...],
        decode_segment: int,
        decoding_copy: bool,
    ):
        self.graphdef, self.model, self.mesh = graphdef, model, mesh
        self.eos_ids, self.copies = eos_ids, decoding_copy
        self.dtype = _compute_dtype(graphdef)
        self._copy_graphdef: nnx.GraphDef | None = None
        text = model.text
        kv = cache_sharding(mesh, text.num_key_value_heads, stacked=not decoding_copy)
        layers = (kv,) * text.num_hidden_layers if decoding_copy else kv
        whole = replicated(mesh)
        self._cache = {
            "layers": text.num_hidden_layers,
            "kv_heads": text.num_key_value_heads,
            "head_dim": text.head_dim,
            "dtype": self.dtype,
            "per_layer": decoding_copy,
        }
        fields = {name: whole for name in device.Pool._fields}
        fields["sampling"] = RowSampling(whole, whole, whole, whole)
        fields["cache"] = device.DecodeCache(layers, layers, whole, layers, layers, whole, whole, whole)
        pool = device.Pool(**fields)
        jit, bind = jax.jit, device.bind

        def decode(*args: Any) -> device.Pool:
            return device.decode(graphdef, self._copy_graphdef, eos_ids, decode_segment, *args)

        def copy(params: nnx.State) -> nnx.State:
            return nnx.state(nnx.merge(graphdef, params).decoding_copy())

        self._empty = jit(
            device.empty_pool,
            static_argnums=(0, 1),
            static_argnames=("siblings", "prefix", "capacity", "max_new_tokens", *self._cache),
            out_shardings=pool,
        )
        self.encode = jit(bind(device.encode, graphdef), out_shardings=whole)
        self.prefill = jit(bind(device.prefill, graphdef, eos_ids), static_argnames=("prefix_slots",))
        self.insert = jit(
            bind(device.insert, eos_ids),
            static_argnames=("prefix_slots",),
            donate_argnums=0,
            out_shardings=pool,
        )
        self.decode = jit(decode, donate_argnums=0, out_shardings=pool)
        self.shrink = jit(device.shrink, out_shardings=pool)
        self.stop = jit(device.stop, donate_argnums=0, out_shardings=pool)
        self._copy = jit(copy)

    @property
    def compiled(self) -> int:
        """Programs compiled so far."""
        programs = (
            *(self._empty, self.encode, self.prefill, self.insert),
            *(self.decode, self.shrink, self.stop, self._copy),
        )
        return sum(program._cache_size() for program in programs)

    def empty(self, kind: Kind, level: int) -> device.Pool:
        """An empty pool of one of the kind's sizes."""
        return self._empty(*kind.pools[level], **self._sizes(kind))

    def weights(self, params: nnx.State) -> nnx.State | None:
        """The copy of the weights that decoding reads, where it reads one."""
        if not self.copies:
            return None
        self._know_copy(params)
        return self._copy(params)

    def lower(self, params: nnx.State, kind: Kind) -> dict[str, jax.stages.Lowered]:
        """See `Engine.lower`."""

        def place(tree: Any, sharding: Any) -> Any:
            return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)

        whole = replicated(self.mesh)
        pool = self._empty.eval_shape(*kind.pools[0], **self._sizes(kind))
        weights = None
        if self.copies:
            self._know_copy(params)
            weights = place(self._copy.eval_shape(params), whole)
        size = kind.prefill_groups[0]
        found: dict[str, jax.stages.Lowered] = {}
        features: tuple[Any, ...] = ()
        if kind.images:
            vision, _ = vision_batch([], self.model.vision, windows=kind.windows, rows=size)
            vision = place(vision, batch_sharding(self.mesh))
            found["vision"] = self.encode.lower(params, vision)
            one = place(self.encode.eval_shape(params, vision)[0], whole)
            features = (one,) * (size * kind.images)
        prompts, _ = device.empty_prompts(size, kind.siblings, kind.prefix, kind.suffix, kind.pools[0])
        prompts = place(prompts, whole)
        found["prefill"] = self.prefill.lower(params, prompts, features, prefix_slots=kind.prefix)
        enough = place(jax.ShapeDtypeStruct((), np.int32), whole)
        found["decode"] = self.decode.lower(pool, params, weights, enough)
        return found

    def _sizes(self, kind: Kind) -> dict[str, Any]:
        return {
            "siblings": kind.siblings,
            "prefix": kind.prefix,
            "capacity": kind.capacity,
            "max_new_tokens": kind.max_new_tokens,
            **self._cache,
        }

    def _know_copy(self, params: nnx.State) -> None:
        """The structure of the copy, which `decode` needs when it is traced."""
        if self._copy_graphdef is None:
            model = nnx.eval_shape(lambda params: nnx.merge(self.graphdef, params).decoding_copy(), params)
            self._copy_graphdef = nnx.graphdef(model)


def _compute_dtype(graphdef: nnx.GraphDef) -> Any:
    """The type of activations, which `Qwen25VL` keeps as an attribute of the graph."""
    return next(value.value for name, value in graphdef.attributes if name == "dtype")
