"""Benchmarks of sampling: with and without a shared prefix, against transformers, and against the trainer."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.model import SMALL, make_checkpoint
from benchmarks.rl_train import MODEL
from benchmarks.timing import Times, alternate, timed
from memocr_jax.config import EngineConfig, MeshConfig, SamplingConfig
from memocr_jax.core.errors import UserError
from memocr_jax.core.rng import row_key
from memocr_jax.core.sharding import make_mesh, put_batch
from memocr_jax.core.types import Completion, Turn, TurnKind
from memocr_jax.engine import Engine, PromptGroup, PromptLimits
from memocr_jax.models.config import Qwen25VLConfig
from memocr_jax.models.hf_weights import load_params
from memocr_jax.models.qwen25_vl import abstract_model
from memocr_jax.rl.pack import Packing, WeightedTurn, pack_turns
from memocr_jax.rl.update import token_logp


@dataclasses.dataclass(frozen=True)
class RolloutSetting:
    """Sizes of the measurements, in tokens."""

    prefix: int = 256
    own: int = 64
    """Own prompt of a sibling; with its completion, half as long as the prefix."""
    new: int = 64
    siblings: tuple[int, ...] = (4, 8, 16)
    groups: int = 2
    decode_rows: int = 16
    decode_prompt: int = 48
    decode_new: int = 48


def rollout_results(
    args: Any, setting: RolloutSetting = RolloutSetting(), model: Qwen25VLConfig = MODEL
) -> dict[str, Any]:
    """`shared_prefix.rollout.K*`: prefill and decoding of groups, and of the same prompts one by one.

    Raises UserError when the two sample other tokens.
    """
    with tempfile.TemporaryDirectory() as directory:
        make_checkpoint(Path(directory), model)
        results = {f"K{k}": _shared(Path(directory), setting, k, args.repeats) for k in setting.siblings}
    return {"shared_prefix": {"rollout": results}, "rollout_setting": dataclasses.asdict(setting)}


def decode_results(
    args: Any, setting: RolloutSetting = RolloutSetting(), model: Qwen25VLConfig = SMALL
) -> dict[str, Any]:
    """`decode.ratio_vs_transformers`: greedy decoding of prompts of equal length, as many new tokens in every
    row. The prefill is taken out on both sides: seconds for all tokens less seconds for one.

    Raises UserError when the two give other tokens.
    """
    rows, length, new = setting.decode_rows, setting.decode_prompt, setting.decode_new
    with tempfile.TemporaryDirectory() as directory:
        make_checkpoint(Path(directory), model)
        ids = np.random.default_rng(0).integers(0, model.image_token_id, (rows, length)).astype(np.int32)
        limits = PromptLimits("decode", 1, length - 1, 1, new, groups=rows)
        ours = _Ours(Path(directory), "float32", limits)
        theirs = _Transformers(Path(directory), ids, model.eos_token_id)
    groups = [PromptGroup(row[:-1], (row[-1:],), (row_key(0, "bench", i),)) for i, row in enumerate(ids)]
    results: dict[str, Any] = {}
    for name, sampling in {
        "greedy": SamplingConfig(temperature=0, min_new_tokens=new),
        "sampled": SamplingConfig(temperature=1.0, top_p=0.999, min_new_tokens=new),
    }.items():
        sample = name == "sampled"
        if not sample:
            mine = np.stack([c.tokens for (c,) in ours.generate(groups, new, sampling)])
            same = float((mine == theirs.generate(new, sample)[:, length:]).mean())
            # With random weights one tie that rounding breaks changes all greedy tokens after it.
            if same < 0.9:
                raise UserError(f"only {same:.0%} of the greedy tokens are transformers'; nothing was timed")
            results["same_tokens"] = same
        seconds = {}
        for count in (new, 1):
            seconds[count] = alternate(
                lambda count=count, sample=sample: timed(lambda: theirs.generate(count, sample)),
                lambda count=count, sampling=sampling: timed(lambda: ours.generate(groups, count, sampling)),
                args.repeats,
            )
        (torch_all, jax_all), (torch_one, jax_one) = seconds[new], seconds[1]
        torch_s, jax_s = torch_all.wall - torch_one.wall, jax_all.wall - jax_one.wall
        results[name] = {
            "ratio": torch_s / jax_s,
            "torch_s": torch_s,
            "jax_s": jax_s,
            "jax_tokens_per_s": rows * (new - 1) / jax_s,
            "ratio_with_prefill": torch_all.wall / jax_all.wall,
            "processor_ratio": (torch_all.processor - torch_one.processor)
            / (jax_all.processor - jax_one.processor),
        }
    parameters = {"parameters": theirs.parameters, "rows": rows, "prompt": length, "new_tokens": new}
    return {"decode": {"ratio_vs_transformers": results["greedy"]["ratio"], **results, **parameters}}


def logp_results(
    args: Any, setting: RolloutSetting = RolloutSetting(), model: Qwen25VLConfig = MODEL
) -> dict[str, Any]:
    """`logp_gap`: |sampler's - trainer's log-probability| of the sampled tokens, in float32 and bfloat16."""
    gaps = {}
    with tempfile.TemporaryDirectory() as directory:
        make_checkpoint(Path(directory), model)
        for dtype in ("float32", "bfloat16"):
            gap = _logp_gap(Path(directory), dtype, setting, model)
            gaps[dtype] = {"mean": float(gap.mean()), "largest": float(gap.max()), "tokens": gap.size}
    return {"logp_gap": gaps}


class _Ours:
    """An engine whose programs fit one kind of prompts exactly: nothing is padded."""

    def __init__(self, directory: Path, dtype: str, limits: PromptLimits):
        config = Qwen25VLConfig.from_file(directory)
        self.mesh = make_mesh(MeshConfig(), jax.devices()[:1])
        self.graphdef, _ = abstract_model(config, dtype=jnp.dtype(dtype), mesh=self.mesh)
        self.params = load_params(directory, config, self.mesh)
        settings = EngineConfig(groups=limits.groups, pool_sizes=1, length_sizes=1, prefill_tokens=4096)
        self.engine = Engine(self.graphdef, config, self.mesh, settings, (config.eos_token_id,))
        self.engine.warm_up(self.params, [limits])

    def generate(
        self, groups: Sequence[PromptGroup], new: int, sampling: SamplingConfig
    ) -> list[list[Completion]]:
        return self.engine.generate(self.params, groups, new, sampling)


class _Transformers:
    """transformers' `generate`, as its documentation calls it."""

    def __init__(self, directory: Path, ids: np.ndarray, pad_token_id: int):
        import torch
        from transformers import Qwen2_5_VLForConditionalGeneration

        self.torch, self.pad_token_id = torch, pad_token_id
        device = "cuda" if torch.cuda.is_available() and jax.default_backend() == "gpu" else "cpu"
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            directory, dtype=torch.float32, attn_implementation="sdpa"
        )
        self.model = model.to(device).eval()
        self.parameters = sum(p.numel() for p in self.model.parameters())
        self.ids = torch.tensor(ids, dtype=torch.long, device=device)

    def generate(self, new: int, sample: bool) -> np.ndarray:
        how = {"temperature": 1.0, "top_p": 0.999, "top_k": 0} if sample else {}
        with self.torch.no_grad():
            out = self.model.generate(
                input_ids=self.ids,
                attention_mask=self.torch.ones_like(self.ids),
                do_sample=sample,
                min_new_tokens=new,
                max_new_tokens=new,
                pad_token_id=self.pad_token_id,
                **how,
            )
        return out.cpu().numpy()


def _prompts(model: Qwen25VLConfig, setting: RolloutSetting, siblings: int) -> list[PromptGroup]:
    rng = np.random.default_rng(siblings)

    def ids(n):
        return rng.integers(0, model.image_token_id, n).astype(np.int32)

    return [
        PromptGroup(
            ids(setting.prefix),
            tuple(ids(setting.own) for _ in range(siblings)),
            tuple(row_key(0, "bench", q, k) for k in range(siblings)),
        )
        for q in range(setting.groups)
    ]


def _shared(directory: Path, setting: RolloutSetting, siblings: int, repeats: int) -> dict[str, Any]:
    groups = _prompts(Qwen25VLConfig.from_file(directory), setting, siblings)
    alone = [
        PromptGroup(np.concatenate([group.prefix, suffix[:-1]]), (suffix[-1:],), (key,))
        for group in groups
        for suffix, key in zip(group.suffixes, group.keys, strict=True)
    ]
    limits = PromptLimits("shared", siblings, setting.prefix, setting.own, setting.new, groups=setting.groups)
    shared = _Ours(directory, "float32", limits)
    limits = PromptLimits("unshared", 1, setting.prefix + setting.own - 1, 1, setting.new, groups=len(alone))
    unshared = _Ours(directory, "float32", limits)
    sampling = SamplingConfig(min_new_tokens=setting.new)

    def run(side, prompts):
        return timed(lambda: side.generate(prompts, setting.new, sampling))

    one = [c.tokens for group in shared.generate(groups, setting.new, sampling) for c in group]
    other = [c.tokens for group in unshared.generate(alone, setting.new, sampling) for c in group]
    differing = sum(not np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    if differing > len(one) // 50:
        raise UserError(f"{differing} of {len(one)} rows differ without the shared prefix; nothing was timed")
    slow, fast = alternate(lambda: run(unshared, alone), lambda: run(shared, groups), repeats)
    return _ratio(slow, fast) | {"differing_rows": differing, "rows": len(one)}


def _ratio(slow: Times, fast: Times) -> dict[str, float]:
    return {
        "shared_s": fast.wall,
        "unshared_s": slow.wall,
        "ratio": slow.wall / fast.wall,
        "processor_ratio": slow.processor / fast.processor,
    }


def _logp_gap(directory: Path, dtype: str, setting: RolloutSetting, model: Qwen25VLConfig) -> np.ndarray:
    groups = _prompts(model, setting, setting.siblings[0])
    limits = PromptLimits(
        "logp", setting.siblings[0], setting.prefix, setting.own, setting.new, groups=setting.groups
    )
    ours = _Ours(directory, dtype, limits)
    turns = [
        WeightedTurn(Turn(q, k, TurnKind.DRAFT, group.prefix, group.suffixes[k], None, completion), 0.0)
        for q, (group, completions) in enumerate(
            zip(groups, ours.generate(groups, setting.new, SamplingConfig()), strict=True)
        )
        for k, completion in enumerate(completions)
    ]
    (batch,) = pack_turns(turns, Packing(model, 10**9, len(groups), 128, 4)).batches
    logp = jax.jit(lambda params, batch: token_logp(ours.graphdef, params, batch, 1.0, 1024)[0])
    trainer = np.asarray(logp(ours.params, put_batch(batch, ours.mesh)))
    return np.abs(trainer - batch.sampler_logp)[batch.loss_mask]
