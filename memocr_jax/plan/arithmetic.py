"""Memory and work of a run's programs by formulas, for where nothing can compile them.

They keep what is large: stored layer inputs, the working set of one layer, the head's chunk, caches. They
know nothing of communication. Memory and operations are near those of compiled programs; these move 4 to 30
times the bytes (docs/plans.md), so that times by formulas are too short. All is of one device.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from memocr_jax.config import Config
from memocr_jax.engine import PromptLimits
from memocr_jax.models.attention import default_query_chunk
from memocr_jax.models.config import Qwen25VLConfig
from memocr_jax.models.flops import decoder_flops, head_flops, row_pairs, vision_flops
from memocr_jax.plan.roofline import Facts
from memocr_jax.rl.pack import Shape


@dataclasses.dataclass(frozen=True)
class Formulas:
    """The formulas for one configuration and model; `rows` and `images` are those of one device."""

    config: Config
    model: Qwen25VLConfig

    @property
    def width(self) -> int:
        """Bytes of a number in the compute type."""
        return jnp.dtype(self.config.model.dtype).itemsize

    def update(self, shape: Shape, backward: bool) -> Facts:
        """The gradient, or log-probabilities alone, of a micro-batch."""
        c, vision, train, mesh = self.model.text, self.model.vision, self.config.train, self.config.mesh
        rows, tensor = train.micro_batch_rows / (mesh.data * mesh.fsdp), mesh.tensor
        tokens, patches = rows * shape.length, shape.windows * vision.window_patches
        trains_all = train.trainable != "lora"
        # Forward, forward again for the backward pass (rematerialisation), and one or two products backward.
        passes = (4 if trains_all else 3) if backward else 1
        chunk = min(shape.sampled, max(1, train.logp_chunk_tokens // train.micro_batch_rows))
        logits = rows * chunk * c.vocab_size / tensor * 4
        temporary = 2 * tokens * c.hidden_size * self.width + max(
            (1 + backward) * self._working_set(rows, shape.length, tensor), 2 * (1 + backward) * logits
        )
        if backward:
            temporary += c.num_hidden_layers * tokens * c.hidden_size * self.width
            temporary += vision.depth * rows * patches * vision.hidden_size * self.width
        if mesh.fsdp > 1:  # a layer or the head, gathered, and its gradient
            temporary += self._head / tensor * (self.width + (4 if backward and trains_all else 0))
        pairs = shape.length * (shape.length + 1) // 2
        if shape.siblings:
            pairs = row_pairs(shape.prefix, [shape.own] * shape.siblings)
        flops = decoder_flops(self.model, shape.length, pairs) + head_flops(self.model, shape.sampled)
        flops = passes * flops + (vision_flops(self.model, patches) if patches else 0.0)
        return Facts(temporary, 0.0, rows / tensor * flops, passes * self._moved(tokens, tensor))

    def prefill(self, limits: PromptLimits, rows: float) -> Facts:
        """Prompts of so many groups, all of them the longest."""
        tensor = self.config.engine.tensor
        length = limits.prefix_tokens + limits.siblings * limits.suffix_tokens
        pairs = row_pairs(limits.prefix_tokens, [limits.suffix_tokens] * limits.siblings)
        flops = decoder_flops(self.model, length, pairs) + head_flops(self.model, limits.siblings)
        working = self._working_set(rows, length, tensor)
        moved = self._moved(rows * length, tensor)
        return Facts(working, rows * length * self.slot_bytes(), rows / tensor * flops, moved)

    def vision(self, windows: int, images: float) -> Facts:
        vision = self.model.vision
        patches = windows * vision.window_patches
        hidden = 12 * images * patches * vision.hidden_size * self.width
        return Facts(hidden, 0.0, images * vision_flops(self.model, patches), vision.depth * hidden)

    def decode(self, limits: PromptLimits, rows: float, cache: float) -> Facts:
        """`engine.decode_segment` tokens of so many rows, whose cache has `cache` bytes."""
        c, tensor, steps = self.model.text, self.config.engine.tensor, self.config.engine.decode_segment
        slots = limits.prefix_tokens + limits.suffix_tokens + limits.max_new_tokens
        flops = rows / tensor * (decoder_flops(self.model, 1, slots) + head_flops(self.model, 1))
        logits = rows * c.vocab_size * 4
        scores = rows * c.num_attention_heads / tensor * slots * 8
        moved = self._moved(rows, tensor) + cache + 4 * logits
        return Facts(5 * logits + scores, 0.0, steps * flops, steps * moved)

    def apply(self, trained: float, optimizer: float) -> Facts:
        """Adam reads gradient, parameter and two moments and writes three of them."""
        return Facts(0.0, 0.0, 0.0, 3 * trained + 2 * optimizer)

    def slot_bytes(self) -> float:
        """Bytes of one token's keys and values in all layers of the rollouts' cache."""
        c, tensor = self.model.text, self.config.engine.tensor
        shared = tensor if c.num_key_value_heads % tensor == 0 else 1
        return 2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim * self.width / shared

    @property
    def _head(self) -> float:
        return float(self.model.text.hidden_size * self.model.text.vocab_size)

    def _moved(self, tokens: float, tensor: int) -> float:
        """Bytes that a forward pass moves: all weights, and twelve times each layer's input."""
        c = self.model.text
        weights = decoder_flops(self.model, 1, 0) / 2 + self._head
        return (weights / tensor + 12 * c.num_hidden_layers * tokens * c.hidden_size) * self.width

    def _working_set(self, rows: float, length: int, tensor: int) -> float:
        """Bytes of one layer's intermediate results in a forward pass."""
        c, tokens = self.model.text, rows * length
        heads = c.num_attention_heads / tensor
        attention = 3 * tokens * heads * c.head_dim * self.width
        if self.config.model.attention == "xla":
            # float32 scores and weights of a chunk of queries
            attention += 2 * rows * heads * min(default_query_chunk(length), length) * length * 4
        mlp = 2 * tokens * c.intermediate_size / tensor * self.width
        return 3 * tokens * c.hidden_size * self.width + max(mlp, attention)
