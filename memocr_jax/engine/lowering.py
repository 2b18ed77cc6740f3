"""The engine's programs for devices that are not here (`memocr_jax.compile_plan`): lowered, never run."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from flax import nnx

from memocr_jax.core.sharding import batch_sharding, replicated
from memocr_jax.engine.engine import Engine
from memocr_jax.engine.pool import Prompts
from memocr_jax.engine.sampling import RowSampling
from memocr_jax.engine.sizes import PromptLimits
from memocr_jax.models.images import vision_batch


def lowered_programs(
    engine: Engine, params: nnx.State, limits: PromptLimits
) -> dict[str, jax.stages.Lowered]:
    """The largest programs that a kind of prompts needs: `vision` (with images), `prefill`, `decode`.

    Args:
        engine: on a mesh of accelerators; they may be those of a topology description.
        params: jax.ShapeDtypeStruct with shardings on that mesh.

    Raises:
        UserError: engine.cache_gib does not hold a single group.
    """
    kind, _ = engine._plan(limits)
    mesh = engine.mesh
    whole = replicated(mesh)

    def place(tree: Any, sharding: Any) -> Any:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)

    pool = engine._empty.eval_shape(
        *kind.pools[0],
        siblings=kind.siblings,
        prefix=kind.prefix,
        capacity=kind.capacity,
        max_new_tokens=kind.max_new_tokens,
        **engine._shapes,
    )
    weights = None
    if engine._copies:
        copy = nnx.eval_shape(lambda params: nnx.merge(engine.graphdef, params).decoding_copy(), params)
        engine._copy_graphdef = nnx.graphdef(copy)
        weights = place(engine._copy.eval_shape(params), whole)
    size = kind.prefill_groups[0]
    prompts = place(_prompts(size, kind.siblings, kind.prefix, kind.suffix), whole)
    found: dict[str, jax.stages.Lowered] = {}
    features: tuple[Any, ...] = ()
    if kind.images:
        vision, _ = vision_batch([], engine.model_config.vision, windows=kind.windows, rows=size)
        vision = place(vision, batch_sharding(mesh))
        found["vision"] = engine._encode.lower(params, vision)
        one = place(engine._encode.eval_shape(params, vision)[0], whole)
        features = (one,) * (size * kind.images)
    found["prefill"] = engine._prefill.lower(params, prompts, features, prefix_slots=kind.prefix)
    enough = place(jax.ShapeDtypeStruct((), np.int32), whole)
    found["decode"] = engine._decode.lower(pool, params, weights, enough)
    return found


def _prompts(size: int, siblings: int, prefix: int, suffix: int) -> Prompts:
    """Shapes and types of `size` groups."""
    length, each = prefix + siblings * suffix, (size, siblings)
    i32 = lambda *shape: jax.ShapeDtypeStruct(shape, np.int32)  # noqa: E731
    f32 = lambda *shape: jax.ShapeDtypeStruct(shape, np.float32)  # noqa: E731
    return Prompts(
        tokens=i32(size, length),
        mrope_pos=i32(size, 3, length),
        segments=i32(size, length),
        image_slots=i32(size, length),
        prefix_len=i32(size),
        suffix_len=i32(*each),
        next_pos=i32(*each),
        keys=jax.ShapeDtypeStruct((*each, 2), np.uint32),
        sampling=RowSampling(f32(*each), f32(*each), i32(*each), i32(*each)),
        limit=i32(*each),
        groups=i32(size),
        rows=i32(*each),
    )
