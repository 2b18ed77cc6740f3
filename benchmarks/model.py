"""The model against transformers' PyTorch model: same weights, same inputs, one process, warm.

Both run in turns, so that other work on the machine slows both. A number is the median over the repeats; a
ratio above 1 means that ours is faster.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.timing import Times, alternate, machine, timed, use_cores
from memocr_jax.config import MeshConfig
from memocr_jax.core.errors import UserError, run_command
from memocr_jax.core.sharding import make_mesh
from memocr_jax.core.types import RowLayout
from memocr_jax.engine import api
from memocr_jax.models.attention import Implementation, require_backend
from memocr_jax.models.cache import cache_from_packed, per_layer
from memocr_jax.models.config import Qwen25VLConfig, TextConfig, VisionConfig
from memocr_jax.models.flops import decoder_flops, head_flops, peak_flops, row_pairs, vision_flops
from memocr_jax.models.hf_weights import load_params
from memocr_jax.models.images import prepare_image
from memocr_jax.models.qwen25_vl import abstract_model
from render.bounds import NonNegativeInt, PositiveInt
from render.options import parse_options

SMALL = Qwen25VLConfig(
    text=TextConfig(
        vocab_size=32000,
        hidden_size=768,
        intermediate_size=2560,
        num_hidden_layers=8,
        num_attention_heads=12,
        num_key_value_heads=2,
        mrope_section=(8, 12, 12),
        rms_norm_eps=1e-6,
    ),
    vision=VisionConfig(
        depth=6,
        hidden_size=512,
        intermediate_size=1408,
        num_heads=8,
        out_hidden_size=768,
        fullatt_block_indexes=(2, 5),
    ),
    image_token_id=31000,
    video_token_id=31001,
    vision_start_token_id=31002,
    vision_end_token_id=31003,
    bos_token_id=31004,
    eos_token_id=31005,
)
"""About 120 million parameters in the proportions of the real models: minutes on a CPU."""


@dataclasses.dataclass(frozen=True)
class ModelSetting:
    """Sizes of the measurement."""

    rows: PositiveInt = 2
    length: PositiveInt = 512
    """Tokens of a row, its image included."""
    image_tokens: tuple[PositiveInt, PositiveInt] = (8, 12)
    """Height and width of each row's image, in tokens."""
    new_tokens: PositiveInt = 64
    repeats: PositiveInt = 5
    dtype: Literal["float32", "bfloat16"] = "float32"
    attention: Implementation = "xla"
    """Attention of our decoder over whole rows: cudnn for a GPU in bfloat16, splash for a TPU. transformers
    has torch's `scaled_dot_product_attention`."""


@dataclasses.dataclass(frozen=True)
class Options(ModelSetting):
    hf: str = ""
    """Directory of a checkpoint; default: a random one of 120M parameters."""
    shape: str = ""
    """Random weights of the shapes of this directory's config.json, as configs/models/*."""
    cores: NonNegativeInt = 0
    """Processor cores for both; 0 for all."""
    out: str = ""
    """File to write the JSON to, too."""


def make_checkpoint(directory: Path, config: Qwen25VLConfig = SMALL) -> None:
    """Write a model with random weights, made by transformers."""
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(0)
    theirs = Qwen2_5_VLConfig.from_dict(config.to_dict())
    Qwen2_5_VLForConditionalGeneration(theirs).save_pretrained(directory)


def make_inputs(config: Qwen25VLConfig, setting: ModelSetting) -> dict[str, np.ndarray]:
    """Rows of text with one image each, as transformers' processor returns them."""
    rng = np.random.default_rng(0)
    height, width = setting.image_tokens
    count = height * width
    if setting.length < count + 3:
        raise UserError(f"--length is {setting.length}; the image alone needs {count + 2} tokens")
    ids = rng.integers(0, min(config.text.vocab_size, config.image_token_id), (setting.rows, setting.length))
    ids[:, 1] = config.vision_start_token_id
    ids[:, 2 : 2 + count] = config.image_token_id
    ids[:, 2 + count] = config.vision_end_token_id
    side = config.vision.token_px
    shape = (height * side, width * side, 3)
    images = [
        prepare_image(rng.integers(0, 256, shape, dtype=np.uint8), config.vision) for _ in range(setting.rows)
    ]
    return {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "pixel_values": np.concatenate([patches for patches, _ in images]),
        "image_grid_thw": np.array([(1, *grid) for _, grid in images]),
        "mm_token_type_ids": (ids == config.image_token_id).astype(np.int64),
    }


def compare(directory: Path, setting: ModelSetting) -> dict[str, Any]:
    """Time both on the checkpoint and return the results, seconds and ratios.

    Raises UserError when the logits of the two disagree: a wrong model is not timed.
    """
    config = Qwen25VLConfig.from_file(directory)
    inputs = make_inputs(config, setting)
    theirs = _TorchSide(directory, inputs, setting)
    ours = _JaxSide(directory, config, inputs, setting)
    difference = float(np.abs(theirs.logits() - ours.logits()).max())
    limit = 2e-3 if setting.dtype == "float32" else 1.0
    if difference > limit:
        raise UserError(f"logits differ by {difference:.2e} (limit {limit}); nothing was timed")
    results = {}
    for name in ("forward", "forward_backward", "forward_backward_remat", "decode"):
        torch, our = alternate(getattr(theirs, name), getattr(ours, name), setting.repeats)
        results[name] = {
            "torch_s": torch.wall,
            "jax_s": our.wall,
            "ratio": torch.wall / our.wall,
            "torch_processor_s": torch.processor,
            "jax_processor_s": our.processor,
            "processor_ratio": torch.processor / our.processor,
        }
        print(f"{name}: torch {torch}, jax {our}", file=sys.stderr, flush=True)
    if peak := peak_flops(jax.devices()[0].device_kind):
        for name, passes in {"forward": 1, "forward_backward": 3, "forward_backward_remat": 3}.items():
            useful = passes * _forward_flops(config, setting)
            results[name]["mfu"] = useful / (peak * results[name]["jax_s"])
            results[name]["torch_mfu"] = useful / (peak * results[name]["torch_s"])
    results["decode"]["tokens_per_s"] = setting.rows * setting.new_tokens / results["decode"]["jax_s"]
    return {
        "what": "transformers (torch) against memocr_jax; ratio above 1: memocr_jax is faster",
        "setting": dataclasses.asdict(setting),
        "parameters": theirs.parameters,
        "largest_logit_difference": difference,
        "results": results,
        "machine": machine(theirs.device),
    }


def _forward_flops(config: Qwen25VLConfig, setting: ModelSetting) -> float:
    """Operations of a forward pass, without recomputation; a backward pass takes twice as many."""
    height, width = setting.image_tokens
    decoder = decoder_flops(config, setting.length, row_pairs(setting.length, []))
    vision = vision_flops(config, height * width * config.vision.merge_unit)
    return setting.rows * (decoder + head_flops(config, setting.length) + vision)


class _TorchSide:
    def __init__(self, directory: Path, inputs: dict[str, np.ndarray], setting: ModelSetting):
        import torch
        from transformers import Qwen2_5_VLForConditionalGeneration

        self.torch, self.setting = torch, setting
        self.device = "cuda" if torch.cuda.is_available() and jax.default_backend() == "gpu" else "cpu"
        dtype = getattr(torch, setting.dtype)
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            directory, dtype=dtype, attn_implementation="sdpa"
        )
        self.model = model.to(self.device)
        self.parameters = sum(p.numel() for p in self.model.parameters())
        self.inputs = {k: torch.tensor(v, device=self.device) for k, v in inputs.items()}

    def logits(self) -> np.ndarray:
        with self.torch.no_grad():
            return self.model(**self.inputs, use_cache=False).logits.float().cpu().numpy()

    def forward(self) -> Times:
        with self.torch.no_grad():
            return self._timed(lambda: self.model(**self.inputs, use_cache=False).logits)

    def forward_backward(self) -> Times:
        return self._timed(self._step)

    def forward_backward_remat(self) -> Times:
        self.model.train()  # transformers recomputes in training mode only
        # The old names, which transformers 5 still has, so that the range of releases in setup.py works.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
            times = self._timed(self._step)
            self.model.gradient_checkpointing_disable()
        self.model.eval()
        return times

    def _step(self) -> None:
        logits = self.model(**self.inputs, use_cache=False).logits.float()
        targets = self.inputs["input_ids"][:, 1:]
        loss = self.torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets.flatten())
        self.model.zero_grad()
        loss.backward()

    def decode(self) -> Times:
        """Greedy decoding after the prefill, which is not timed."""
        with self.torch.no_grad():
            out = self.model(**self.inputs, use_cache=True)
            cache, token = out.past_key_values, out.logits[:, -1:].argmax(-1)
            position = self.model.model.rope_deltas + self.setting.length
            mask = self.inputs["attention_mask"]

            def loop() -> None:
                nonlocal token, mask, position
                for _ in range(self.setting.new_tokens):
                    mask = self.torch.nn.functional.pad(mask, (0, 1), value=1)
                    step = self.model(
                        input_ids=token,
                        attention_mask=mask,
                        position_ids=position[None].expand(3, -1, -1),
                        past_key_values=cache,
                        use_cache=True,
                    )
                    token, position = step.logits[:, -1:].argmax(-1), position + 1

            return self._timed(loop)

    def _timed(self, run: Callable[[], Any]) -> Times:
        def finished() -> None:
            run()
            if self.device == "cuda":
                self.torch.cuda.synchronize()

        return timed(finished)


class _JaxSide:
    def __init__(
        self, directory: Path, config: Qwen25VLConfig, inputs: dict[str, np.ndarray], setting: ModelSetting
    ):
        mesh = make_mesh(MeshConfig(), jax.devices()[:1])
        dtype = jnp.dtype(setting.dtype)
        self.setting = setting
        graphs = {
            remat: abstract_model(
                config, dtype=dtype, param_dtype=dtype, remat=remat, attention=setting.attention
            )[0]
            for remat in ("none", "dots", "full")
        }
        self.params = load_params(directory, config, mesh, dtype)
        arrays = (inputs[k] for k in ("input_ids", "attention_mask", "pixel_values", "image_grid_thw"))
        self.rows = jax.device_put(api.pack_inputs(config, None, *arrays))
        self._logits = jax.jit(functools.partial(_logits, graphs["none"]))
        # The last gradients' memory is donated to the next ones, as in a training loop: on a CPU, fresh
        # memory costs more than copies.
        self._step = {
            remat: jax.jit(functools.partial(_loss_gradient, graph), donate_argnums=2, keep_unused=True)
            for remat, graph in graphs.items()
        }
        self._gradients = jax.tree.map(jnp.zeros_like, self.params)
        self._prefill = jax.jit(
            functools.partial(_prefill, graphs["none"], setting.length, setting.new_tokens)
        )
        self._decode = jax.jit(functools.partial(_decode, graphs["none"], setting.new_tokens))

    def logits(self) -> np.ndarray:
        return np.asarray(self._logits(self.params, self.rows))[:, : self.setting.length]

    def forward(self) -> Times:
        return timed(lambda: jax.block_until_ready(self._logits(self.params, self.rows)))

    def forward_backward(self) -> Times:
        return self._timed_step("dots")

    def forward_backward_remat(self) -> Times:
        return self._timed_step("full")

    def _timed_step(self, remat: str) -> Times:
        def run() -> None:
            loss, self._gradients = self._step[remat](self.params, self.rows, self._gradients)
            jax.block_until_ready((loss, self._gradients))

        return timed(run)

    def decode(self) -> Times:
        state = jax.block_until_ready(self._prefill(self.params, self.rows))
        return timed(lambda: jax.block_until_ready(self._decode(self.params, state)))


def _hidden(model: nnx.Module, rows: api.InputRows, **options: Any) -> Any:
    """Hidden states of rows of one text each: prefixes without siblings."""
    layout = RowLayout(prefix=rows.tokens.shape[1], siblings=0, own=1)
    return model.hidden(api.embed_rows(model, rows), rows.mrope_pos, rows.segments, layout=layout, **options)


def _logits(graphdef: Any, params: nnx.State, rows: api.InputRows) -> jax.Array:
    model = nnx.merge(graphdef, params)
    return model.head(_hidden(model, rows))


def _loss_gradient(
    graphdef: Any, params: nnx.State, rows: api.InputRows, memory: nnx.State
) -> tuple[jax.Array, nnx.State]:
    def loss(params: nnx.State) -> jax.Array:
        model = nnx.merge(graphdef, params)
        logits = model.head(_hidden(model, rows)[:, :-1])
        # Picked by comparison: the gradient of a gather would be a scatter into all logits.
        is_target = jnp.arange(logits.shape[-1]) == rows.tokens[:, 1:, None]
        loss = jax.nn.logsumexp(logits, axis=-1) - jnp.where(is_target, logits, 0).sum(-1)
        valid = rows.segments[:, 1:] >= 0
        return (loss * valid).sum() / valid.sum()

    return jax.value_and_grad(loss)(params)


def _prefill(graphdef: Any, length: int, new_tokens: int, params: nnx.State, rows: api.InputRows) -> Any:
    model = nnx.merge(graphdef, params)
    hidden, (k, v) = _hidden(model, rows, return_kv=True)
    batch, slots = rows.tokens.shape
    cache = cache_from_packed(
        k,
        v,
        prefix_slots=slots,
        siblings=1,
        suffix_slots=0,
        capacity=new_tokens,
        prefix_len=jnp.full(batch, length),
        suffix_len=jnp.zeros((batch, 1), jnp.int32),
    )
    token = model.head(hidden[:, length - 1]).argmax(-1).astype(jnp.int32)
    return token, rows.mrope_pos.max((0, 2)) + 1, cache


def _decode(graphdef: Any, new_tokens: int, params: nnx.State, state: Any) -> Any:
    model = nnx.merge(graphdef, params)
    copy = None
    if jax.default_backend() == "cpu":
        copy = model.decoding_copy()
        token, position, cache = state
        state = token, position, cache.map_layers(lambda _, layers: per_layer(layers))

    def one(state: Any, _: None) -> tuple[Any, None]:
        token, position, cache = state
        logits, cache = model.decode(token, jnp.broadcast_to(position, (3, *position.shape)), cache, copy)
        return (logits.argmax(-1).astype(jnp.int32), position + 1, cache), None

    return jax.lax.scan(one, state, None, length=new_tokens)[0][0]


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_options(Options, argv, "python -m benchmarks.model", description=__doc__.split("\n")[0])
    if args.hf and args.shape:
        raise UserError("--hf names weights and --shape asks for random ones; give one of them")
    try:
        import torch  # noqa: F401
    except ImportError:
        raise UserError(
            "torch is not installed; install the dev extra: pip install memocr_jax[dev]"
        ) from None
    if args.cores:
        use_cores(args.cores)
    require_backend(args.attention, jax.default_backend(), args.dtype)
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(args.hf or scratch)
        if not args.hf:
            make_checkpoint(directory, Qwen25VLConfig.from_file(args.shape) if args.shape else SMALL)
        result = compare(directory, args)
    text = json.dumps(
        {"arguments": {k: v for k, v in dataclasses.asdict(args).items() if k != "out"}, **result}, indent=2
    )
    print(text)
    if args.out:
        Path(args.out).write_text(text + "\n", encoding="utf-8")
    sys.stdout.flush()


if __name__ == "__main__":
    run_command(main)
