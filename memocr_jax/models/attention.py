"""Attention behind one interface; the implementation is chosen by an argument, never by what is found.

Three uses: `packed` (training and prefill of rows [prefix | siblings]), `bidirectional` (vision), and
`decode` (one token per row over a shared prefix cache and its own suffix cache).
Scores and softmax are float32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int32

from memocr_jax.core.errors import UserError
from memocr_jax.core.sharding import per_device

Implementation = Literal["xla", "cudnn", "splash"]
"""What computes rows of known layout: plain operations (runs everywhere), cuDNN's flash attention (GPU), or
splash attention (TPU). Everything else is plain operations in any case."""

MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)
"""Score of an invisible key: finite, so a query that sees nothing (padding) gives a number, not NaN."""


def default_query_chunk(length: int) -> int:
    """Queries whose scores exist at once in the XLA path; [heads, L, L] never does.

    Short rows: few enough that scores stay in a processor's cache (512 -> 128 made a forward pass over 512
    tokens 9% faster on one core). Long rows: large products.
    """
    return 128 if length <= 2048 else 512


def visible(
    query_segments: Int32[Array, "B q"],
    key_segments: Int32[Array, "B k"],
    first_query: int | Array = 0,
) -> Bool[Array, "B q k"]:
    """Which keys a query of a packed row sees: not later, and in the prefix (0) or its own sibling.

    `first_query` is the row index of the first query; the first key has row index 0. Padding is -1.
    """
    query_index = first_query + jnp.arange(query_segments.shape[1])
    causal = jnp.arange(key_segments.shape[1])[None, :] <= query_index[:, None]
    keys, queries = key_segments[:, None, :], query_segments[:, :, None]
    return causal[None] & (keys >= 0) & ((keys == 0) | (keys == queries))


class Layout(NamedTuple):
    """Where the parts of a packed row are, when that is known to the program: [prefix | siblings x own].

    Padding is on the right of each part. Kernels whose masks are static need it. A row of one text is a
    prefix without siblings.
    """

    prefix: int
    siblings: int
    own: int


def packed(
    q: Float[Array, "B L heads dim"],
    k: Float[Array, "B L kv_heads dim"],
    v: Float[Array, "B L kv_heads dim"],
    segments: Int32[Array, "B L"],
    *,
    layout: Layout | None = None,
    implementation: Implementation = "xla",
    query_chunk: int | None = None,
    mesh: Mesh | None = None,
) -> Float[Array, "B L heads dim"]:
    """Attention within packed rows: prefix 0, siblings >= 1, padding -1 (see `visible`).

    Grouped-query: kv head h serves query heads h * group .. (h + 1) * group - 1.

    Args:
        layout: of all rows; without it they may be laid out differently, and every implementation does what
            xla does.
        mesh: over whose devices rows and heads are split (splash runs on each for itself).
    """
    check_implementation(implementation)
    length = q.shape[1]
    if layout is not None and layout.prefix + layout.siblings * layout.own != length:
        raise ValueError(f"{layout} is not that of rows of {length} slots")
    if layout is not None and implementation == "splash":
        return _splash(q, k, v, segments, layout, mesh)
    if layout is not None and (implementation == "cudnn" or layout.siblings > 1):
        return _by_parts(q, k, v, segments, layout, implementation, query_chunk)
    return _masked(q, k, v, segments, query_chunk)


def check_implementation(implementation: str) -> None:
    """Raise ValueError for a name that is not an implementation."""
    if implementation not in get_args(Implementation):
        names = ", ".join(get_args(Implementation))
        raise ValueError(f"attention implementation {implementation!r} is not one of: {names}")


def require_backend(implementation: str, backend: str, dtype: str) -> None:
    """Raise UserError when `model.attention` cannot run on this backend (`jax.default_backend()`)."""
    needs = {"cudnn": "gpu", "splash": "tpu"}.get(implementation)
    if needs not in (None, backend):
        raise UserError(
            f"model.attention is {implementation}, which needs a {needs.upper()}; this machine's JAX has a "
            f"{backend.upper()}: set it to xla"
        )
    if implementation == "cudnn" and dtype != "bfloat16":
        raise UserError(
            f"model.attention is cudnn and model.dtype {dtype}: cuDNN's attention is for bfloat16; change "
            "one of the two"
        )


BANDS = 8
"""Parts of a long row's queries that are programs of their own. Each sees the keys up to its own end: with 8,
an eighth more scores than needed; one program for each of 32 chunks took minutes to compile."""


def _masked(q: Array, k: Array, v: Array, segments: Array, query_chunk: int | None) -> Array:
    """`packed` with the mask written out, a few queries at a time."""
    length = q.shape[1]
    size = query_chunk or default_query_chunk(length)
    chunks = -(-length // size)
    step = size * -(-chunks // BANDS)
    outputs = []
    for start in range(0, length, step):
        end = min(start + step, length)
        # No key after the band's last query is seen.
        keys, values, key_segments = k[:, :end], v[:, :end], segments[:, :end]

        def one(_, chunk, keys=keys, values=values, key_segments=key_segments):
            queries, query_segments, first = chunk
            mask = visible(query_segments, key_segments, first_query=first)
            return None, _attend(queries, keys, values, mask)

        if chunks <= BANDS:
            outputs.append(one(None, (q[:, start:end], segments[:, start:end], start))[1])
        else:
            firsts = start + size * jnp.arange(-(-(end - start) // size))
            queries = _split(q[:, start:end], size), _split(segments[:, start:end], size), firsts
            outputs.append(_join(jax.lax.scan(one, None, queries)[1], end - start))
    return outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=1)


def _by_parts(
    q: Array,
    k: Array,
    v: Array,
    segments: Array,
    layout: Layout,
    implementation: str,
    query_chunk: int | None,
) -> Array:
    """`packed` as three products without a mask of their own: prefix with itself, siblings with the prefix,
    each sibling with itself; the last two merged. No sibling meets another, in K (P + S) S scores instead of
    (P + K S)^2 / 2."""
    batch, heads_dim, kv_dim = q.shape[0], q.shape[2:], k.shape[2:]
    prefix, siblings, own = layout
    kernel = {"xla": _flash_xla, "cudnn": _flash_cudnn}[implementation]
    prefix_len = (segments[:, :prefix] >= 0).sum(-1)
    if implementation == "cudnn":
        first = jax.nn.dot_product_attention(
            *(x[:, :prefix] for x in (q, k, v)),
            is_causal=True,
            query_seq_lengths=prefix_len,
            key_value_seq_lengths=prefix_len,
            implementation="cudnn",
        )
    else:
        first = _masked(*(x[:, :prefix] for x in (q, k, v)), segments[:, :prefix], query_chunk)
    if not siblings:
        return first
    own_len = (segments[:, prefix:] >= 0).reshape(batch * siblings, own).sum(-1)
    apart = lambda x: x[:, prefix:].reshape(batch * siblings, own, *x.shape[2:])  # noqa: E731
    rest = shared_prefix(
        apart(q).reshape(batch, siblings, own, *heads_dim),
        k[:, :prefix],
        v[:, :prefix],
        prefix_len,
        apart(k).reshape(batch, siblings, own, *kv_dim),
        apart(v).reshape(batch, siblings, own, *kv_dim),
        own_len.reshape(batch, siblings),
        kernel,
    )
    return jnp.concatenate([first, rest.reshape(batch, siblings * own, *heads_dim)], axis=1)


Kernel = Callable[[Array, Array, Array, Array, bool], tuple[Array, Array]]
"""(q [B T heads dim], k [B S kv_heads dim], v, valid keys i32[B], causal) -> (output [B T heads dim], and the
log-sum-exp of the scaled scores, f32[B T heads]; very negative where no key is valid)."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(7,))
def shared_prefix(
    q: Float[Array, "B K S heads dim"],
    prefix_k: Float[Array, "B P kv_heads dim"],
    prefix_v: Float[Array, "B P kv_heads dim"],
    prefix_len: Int32[Array, "B"],
    own_k: Float[Array, "B K S kv_heads dim"],
    own_v: Float[Array, "B K S kv_heads dim"],
    own_len: Int32[Array, "B K"],
    kernel: Kernel,
) -> Float[Array, "B K S heads dim"]:
    """Causal attention of siblings over their shared prefix and themselves, merged by log-sum-exp.

    `kernel` computes the two parts of the forward pass. It need not be differentiable: the merge depends on
    the log-sum-exp, whose gradient flash kernels leave out (cuDNN's drops it, XLA's form in jax.nn stops it),
    so the backward pass is written out here. It needs the total log-sum-exp only: with p = exp(s - lse), the
    gradient of a score is p (dO v - dO O) whichever part the key is in (arXiv 2205.14135, appendix B.2).
    """
    return _shared_prefix(q, prefix_k, prefix_v, prefix_len, own_k, own_v, own_len, kernel)[0]


def _shared_prefix(q, prefix_k, prefix_v, prefix_len, own_k, own_v, own_len, kernel):
    batch, siblings, own, heads, dim = q.shape
    together = q.reshape(batch, siblings * own, heads, dim)
    far, far_lse = kernel(together, prefix_k, prefix_v, prefix_len, False)
    flat = lambda x: x.reshape(batch * siblings, *x.shape[2:])  # noqa: E731
    near, near_lse = kernel(flat(q), flat(own_k), flat(own_v), own_len.reshape(-1), True)
    near, near_lse = near.reshape(far.shape), near_lse.reshape(far_lse.shape)
    lse = jnp.logaddexp(far_lse, near_lse)
    f32 = jnp.float32
    out = far.astype(f32) * jnp.exp(far_lse - lse)[..., None]
    out += near.astype(f32) * jnp.exp(near_lse - lse)[..., None]
    return out.astype(q.dtype).reshape(q.shape), lse


def _shared_prefix_forward(q, prefix_k, prefix_v, prefix_len, own_k, own_v, own_len, kernel):
    out, lse = _shared_prefix(q, prefix_k, prefix_v, prefix_len, own_k, own_v, own_len, kernel)
    return out, (q, prefix_k, prefix_v, prefix_len, own_k, own_v, own_len, out, lse)


def _shared_prefix_backward(kernel, kept, d_out):
    q, prefix_k, prefix_v, prefix_len, own_k, own_v, own_len, out, lse = kept
    batch, siblings, own, heads, _ = q.shape
    delta = (d_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1).reshape(lse.shape)
    row = lambda x: x.reshape(batch, siblings * own, *x.shape[3:])  # noqa: E731
    far_q, d_prefix_k, d_prefix_v = _part_gradient(
        row(q), prefix_k, prefix_v, prefix_len, False, lse, row(d_out), delta
    )
    flat = lambda x: x.reshape(batch * siblings, *x.shape[2:])  # noqa: E731
    by_own = lambda x: x.reshape(batch * siblings, own, heads)  # noqa: E731
    near_q, d_own_k, d_own_v = _part_gradient(
        flat(q), flat(own_k), flat(own_v), own_len.reshape(-1), True, by_own(lse), flat(d_out), by_own(delta)
    )
    d_q = (far_q.reshape(q.shape) + near_q.reshape(q.shape)).astype(q.dtype)
    like = lambda d, x: d.reshape(x.shape).astype(x.dtype)  # noqa: E731
    return (
        d_q,
        like(d_prefix_k, prefix_k),
        like(d_prefix_v, prefix_v),
        None,
        like(d_own_k, own_k),
        like(d_own_v, own_v),
        None,
    )


shared_prefix.defvjp(_shared_prefix_forward, _shared_prefix_backward)


def _scores(q: Array, k: Array, valid: Array, causal: bool, first: Array) -> Float[Array, "B kv g q k"]:
    """Scaled scores of a chunk of queries, whose first is number `first` of its sequence; masked."""
    batch, count, heads, dim = q.shape
    kv_heads = k.shape[2]
    q = q.reshape(batch, count, kv_heads, heads // kv_heads, dim)
    scores = jnp.einsum("bqhgd,bkhd->bhgqk", q, k, preferred_element_type=jnp.float32) * dim**-0.5
    keys = jnp.arange(k.shape[1])
    seen = keys < valid[:, None, None]
    if causal:
        seen = seen & (keys <= (first + jnp.arange(count))[:, None])
    return jnp.where(seen[:, None, None], scores, MASKED)


def _split(x: Float[Array, "B T ..."], size: int) -> Float[Array, "n B c ..."]:
    """Queries in chunks of `size`, for a scan; the last is padded with zeros."""
    count = -(-x.shape[1] // size)
    x = jnp.pad(x, [(0, 0), (0, count * size - x.shape[1])] + [(0, 0)] * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(x.shape[0], count, size, *x.shape[2:]), 1, 0)


def _join(x: Float[Array, "n B c ..."], length: int) -> Float[Array, "B T ..."]:
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]


def _flash_xla(q: Array, k: Array, v: Array, valid: Array, causal: bool) -> tuple[Array, Array]:
    """`Kernel` in plain operations, a few queries at a time."""
    length = q.shape[1]
    size = min(length, default_query_chunk(length))
    firsts = jnp.arange(0, length, size)

    def one(_, chunk):
        q, first = chunk
        scores = _scores(q, k, valid, causal, first)
        top = scores.max(-1, initial=MASKED)
        weights = jnp.exp(scores - top[..., None])
        total = weights.sum(-1)
        out = jnp.einsum("bhgqk,bkhd->bqhgd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
        # Where no key is valid the scores are all MASKED: the part's share in a merge is 0 or does not count.
        total = jnp.maximum(total, 1e-30)
        out = out / jnp.moveaxis(total, 3, 1)[..., None]
        lse = jnp.moveaxis(top + jnp.log(total), 3, 1)
        return None, (out.reshape(*q.shape), lse.reshape(*q.shape[:3]))

    _, (out, lse) = jax.lax.scan(one, None, (_split(q, size), firsts))
    return _join(out, length), _join(lse, length)


def _part_gradient(
    q: Array, k: Array, v: Array, valid: Array, causal: bool, lse: Array, d_out: Array, delta: Array
) -> tuple[Array, Array, Array]:
    """Gradients of q, k and v of one part, given the log-sum-exp over all parts; float32."""
    _, length, heads, dim = q.shape
    kv_heads, f32 = k.shape[2], jnp.float32
    size = min(length, default_query_chunk(length))
    firsts = jnp.arange(0, length, size)
    grouped = lambda x: x.reshape(*x.shape[:2], kv_heads, heads // kv_heads, *x.shape[3:])  # noqa: E731
    to_scores = lambda x: jnp.moveaxis(grouped(x), 1, 3)[..., None]  # noqa: E731

    def one(carry, chunk):
        d_k, d_v = carry
        q, lse, d_out, delta, first = chunk
        scores = _scores(q, k, valid, causal, first)
        weights = jnp.where(scores == MASKED, 0.0, jnp.exp(scores - to_scores(lse)))
        d_out = grouped(d_out)
        d_v += jnp.einsum("bhgqk,bqhgd->bkhd", weights.astype(v.dtype), d_out, preferred_element_type=f32)
        d_weights = jnp.einsum("bqhgd,bkhd->bhgqk", d_out, v, preferred_element_type=f32)
        d_scores = (weights * (d_weights - to_scores(delta)) * dim**-0.5).astype(q.dtype)
        d_q = jnp.einsum("bhgqk,bkhd->bqhgd", d_scores, k, preferred_element_type=f32)
        d_k += jnp.einsum("bhgqk,bqhgd->bkhd", d_scores, grouped(q), preferred_element_type=f32)
        return (d_k, d_v), d_q.reshape(*q.shape)

    empty = (jnp.zeros(k.shape, f32), jnp.zeros(v.shape, f32))
    queries = (*(_split(x, size) for x in (q, lse, d_out, delta)), firsts)
    (d_k, d_v), d_q = jax.lax.scan(one, empty, queries)
    return _join(d_q, length), d_k, d_v


def _flash_cudnn(q: Array, k: Array, v: Array, valid: Array, causal: bool) -> tuple[Array, Array]:
    """`Kernel` by cuDNN. `jax.nn.dot_product_attention` would round the log-sum-exp to bfloat16 (an error of
    up to 3% in the weights of a merge), so this calls the function below it, which keeps float32."""
    from jax._src.cudnn.fused_attention_stablehlo import MaskType, dot_product_attention

    out, lse = dot_product_attention(
        q,
        k,
        v,
        q_seqlen=jnp.full(q.shape[0], q.shape[1], jnp.int32),
        # cuDNN divides by the sum of no weights: an empty part reads one key, and is taken out below.
        kv_seqlen=jnp.maximum(valid, 1).astype(jnp.int32),
        scale=q.shape[-1] ** -0.5,
        mask_type=MaskType.PADDING_CAUSAL if causal else MaskType.PADDING,
        return_residual=True,
    )
    lse = jnp.where((valid > 0)[:, None, None], lse.transpose(0, 2, 1), MASKED)
    return out, lse


def _splash(
    q: Array, k: Array, v: Array, segments: Array, layout: Layout, mesh: Mesh | None, interpret: bool = False
) -> Array:
    """`packed` by the TPU's splash attention: one call, blocks that nobody sees are not visited."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    # The kernel takes whole blocks of 128 slots at least: the rest is padding.
    slots, dim = q.shape[1], q.shape[3]
    pad = lambda x, value: jnp.pad(  # noqa: E731
        x, [(0, 0), (0, -slots % 128)] + [(0, 0)] * (x.ndim - 2), constant_values=value
    )
    q, k, v, segments = pad(q, 0), pad(k, 0), pad(v, 0), pad(segments, -1)
    length = q.shape[1]
    mask = _splash_mask(layout, length)
    block = max(size for size in (128, 256, 512) if length % size == 0)
    blocks = splash.BlockSizes(
        **{f"block_{name}": block for name in ("q", "kv", "q_dkv", "kv_dkv", "q_dq", "kv_dq")}
    )

    def local(q: Array, k: Array, v: Array, segments: Array) -> Array:
        batch, _, heads, _ = q.shape
        kv_heads = k.shape[2]
        kernel = splash.make_splash_mqa_single_device(
            masks.MultiHeadMask([mask] * (heads // kv_heads)), block_sizes=blocks, interpret=interpret
        )
        grouped = q.reshape(batch, length, kv_heads, heads // kv_heads, dim).transpose(0, 2, 3, 1, 4)
        # Padding sees padding: every query sees something, and no valid one sees padding.
        ids = (segments < 0).astype(jnp.int32)
        ids = splash.SegmentIds(q=ids, kv=ids)
        by_head = jax.vmap(kernel, in_axes=(0, 0, 0, None))
        out = jax.vmap(by_head)(grouped * dim**-0.5, k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3), ids)
        return out.transpose(0, 3, 1, 2, 4).reshape(q.shape)

    return per_device(local, mesh, q.shape[0], k.shape[2])(q, k, v, segments)[:, :slots]


@functools.cache
def _splash_mask(layout: Layout, length: int) -> Any:
    """The mask of packed rows of `length` slots as a function of indices; it is never written out."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    prefix, _, own = layout

    def sees(query: Array, key: Array) -> Array:
        same = (query - prefix) // own == (key - prefix) // own
        return (key <= query) & ((key < prefix) | (same & (query >= prefix)))

    class SharedPrefixMask(masks._ComputableMask):
        """Splash computes such a mask in the kernel; there is no public way to add one."""

        def __eq__(self, other: object) -> bool:
            return self is other  # made once for each layout

        def __hash__(self) -> int:
            return hash((layout, length))

    return SharedPrefixMask((length, length), sees)


def bidirectional(
    q: Float[Array, "B L heads dim"],
    k: Float[Array, "B L heads dim"],
    v: Float[Array, "B L heads dim"],
    valid: Bool[Array, "B L"],
    *,
    implementation: Implementation = "xla",
    query_chunk: int | None = None,
) -> Float[Array, "B L heads dim"]:
    """Every query sees every valid key of its row.

    The same for every implementation: padding is anywhere in a window, which flash kernels do not take, and
    windows are short.
    """
    check_implementation(implementation)
    length = q.shape[1]
    query_chunk = query_chunk or default_query_chunk(length)
    mask = valid[:, None, :]
    chunks = [_attend(q[:, s : s + query_chunk], k, v, mask) for s in range(0, length, query_chunk)]
    return chunks[0] if len(chunks) == 1 else jnp.concatenate(chunks, axis=1)


def decode(
    q: Float[Array, "R heads dim"],
    prefix_k: Float[Array, "Q kv_heads dim P"],
    prefix_v: Float[Array, "Q kv_heads P dim"],
    prefix_valid: Bool[Array, "Q P"],
    suffix_k: Float[Array, "R kv_heads dim T"],
    suffix_v: Float[Array, "R kv_heads T dim"],
    suffix_valid: Bool[Array, "R T"],
    members: Int32[Array, "Q K"],
    place: Int32[Array, "R"],
) -> Float[Array, "R heads dim"]:
    """One query per row over its group's shared prefix and its own suffix.

    `members` and `place` say which rows belong to which group (`cache.DecodeCache`). A prefix is read once
    for all rows of its group, and the two softmaxes are merged so that the result equals attention over the
    concatenation (arXiv 2402.05099, section 3.2).
    """
    rows, heads, dim = q.shape
    groups, siblings = members.shape
    kv_heads, f32 = prefix_k.shape[1], jnp.float32
    q = q.reshape(rows, kv_heads, heads // kv_heads, dim)
    near = jnp.einsum("RhgD,RhDT->RhgT", q, suffix_k, preferred_element_type=f32) * dim**-0.5
    near = jnp.where(suffix_valid[:, None, None, :], near, MASKED)
    # Queries by group: a sibling that is not there reads another row's query, and nobody reads its result.
    together = q[jnp.minimum(members, rows - 1)]
    far = jnp.einsum("QKhgD,QhDP->QKhgP", together, prefix_k, preferred_element_type=f32) * dim**-0.5
    far = jnp.where(prefix_valid[:, None, None, None, :], far, MASKED)
    # The far part has a maximum of its own (P may be 0), so that only small arrays go between the two orders.
    far_top = far.max(-1, keepdims=True, initial=MASKED)
    far = jnp.exp(far - far_top)
    far_out = jnp.einsum("QKhgP,QhPD->QKhgD", far.astype(q.dtype), prefix_v, preferred_element_type=f32)
    by_row = lambda x: x.reshape(groups * siblings, *x.shape[2:])[place]  # noqa: E731
    far_top, far_total, far_out = by_row(far_top), by_row(far.sum(-1, keepdims=True)), by_row(far_out)
    near_top = near.max(-1, keepdims=True)
    near = jnp.exp(near - near_top)
    near_out = jnp.einsum("RhgT,RhTD->RhgD", near.astype(q.dtype), suffix_v, preferred_element_type=f32)
    top = jnp.maximum(near_top, far_top)
    # A part of which nothing is valid has the maximum MASKED, and so the share 0.
    near_share, far_share = jnp.exp(near_top - top), jnp.exp(far_top - top)
    total = near.sum(-1, keepdims=True) * near_share + far_total * far_share
    out = (near_out * near_share + far_out * far_share) / total
    return out.reshape(rows, heads, dim).astype(q.dtype)


# The backward pass computes the scores again: keeping them costs more, in memory and (measured) in time.
@jax.checkpoint
def _attend(
    q: Float[Array, "B q heads dim"],
    k: Float[Array, "B k kv_heads dim"],
    v: Float[Array, "B k kv_heads dim"],
    mask: Bool[Array, "B #q k"],
) -> Float[Array, "B q heads dim"]:
    """Masked grouped-query attention with all scores of the given queries at once."""
    batch, queries, heads, dim = q.shape
    kv_heads = k.shape[2]
    q = q.reshape(batch, queries, kv_heads, heads // kv_heads, dim)
    scores = jnp.einsum("bqhgd,bkhd->bhgqk", q, k, preferred_element_type=jnp.float32)
    scores = jnp.where(mask[:, None, None], scores * dim**-0.5, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bhgqk,bkhd->bqhgd", weights, v).reshape(batch, queries, heads, dim)
