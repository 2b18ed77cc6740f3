"""Benchmarks of the training step: with and without a shared prefix, and against a plain PyTorch step.

    python -m benchmarks.rl_train [--repeats 3] [--out FILE]

Rows of text: a prefix of P tokens and K siblings of S tokens, of which two thirds were sampled; P : S = 2.
The step is the learner's own: log-probabilities of the reference, loss, gradient with full rematerialisation,
clip, AdamW. Everything but the vision tower is trained. Both sides of a ratio run in one process, in turns,
warm; numbers are medians, a ratio above 1 means that the shared prefix, or this package, is faster. Before
anything is timed, loss and gradient norm of the two sides are compared.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from benchmarks.model import make_checkpoint
from benchmarks.timing import Times, alternate, machine, timed, use_cores
from memocr_jax.config import Config, MeshConfig, ModelConfig, OptimizerConfig, RLConfig, TrainConfig
from memocr_jax.core.errors import UserError, run_command
from memocr_jax.core.metrics import Stopwatch
from memocr_jax.core.sharding import make_mesh
from memocr_jax.core.types import Completion, Stop, Turn, TurnKind
from memocr_jax.models.config import Qwen25VLConfig, TextConfig, VisionConfig
from memocr_jax.models.hf_weights import load_params
from memocr_jax.rl.pack import WeightedTurn, pack_turns
from memocr_jax.rl.update import Learner
from render.bounds import NonNegativeInt, PositiveInt
from render.options import parse_options

MODEL = Qwen25VLConfig(
    text=TextConfig(
        vocab_size=4608,
        hidden_size=512,
        intermediate_size=2688,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        mrope_section=(8, 12, 12),
        rms_norm_eps=1e-6,
    ),
    vision=VisionConfig(
        depth=2,
        hidden_size=64,
        intermediate_size=112,
        num_heads=4,
        out_hidden_size=512,
        fullatt_block_indexes=(1,),
    ),
    image_token_id=4600,
    video_token_id=4601,
    vision_start_token_id=4602,
    vision_end_token_id=4603,
    bos_token_id=4604,
    eos_token_id=4605,
)
"""About 24 million parameters. The head has as large a share of the work as in the 7B model (a tenth): it
works on sampled tokens alone in any case, so a larger vocabulary would hide what sharing saves."""

RL = RLConfig(kl_coef=0.001)
OPTIMIZER = OptimizerConfig(warmup_steps=0)


@dataclasses.dataclass(frozen=True)
class TrainingSetting:
    """Sizes of the measurement."""

    prefix: PositiveInt = 128
    """P, tokens that siblings share."""
    suffix: PositiveInt = 64
    """S, tokens of each sibling."""
    siblings: tuple[PositiveInt, ...] = (4, 8, 16)
    groups: PositiveInt = 4
    """Questions of the update, each with its K siblings. The recipe has 16: what the optimiser costs, which
    sharing does not change, weighs more here than there."""
    torch_siblings: PositiveInt = 8
    """K of the comparison with PyTorch."""
    micro_batch_rows: PositiveInt = 8
    """Unshared rows, here and in PyTorch, that go through the model at once; of shared rows it is one."""
    repeats: PositiveInt = 3
    dtype: Literal["float32", "bfloat16"] = "float32"


@dataclasses.dataclass(frozen=True)
class Options(TrainingSetting):
    cores: NonNegativeInt = 0
    """Processor cores for both; 0 for all."""
    hf: str = ""
    """Directory of a checkpoint; default: a random one of 24M parameters."""
    out: str = ""
    """File to write the JSON to, too."""


def training_results(args: Any) -> dict[str, Any]:
    """`shared_prefix.train.K*` and `train_step`, as nested dictionaries; reads `args.repeats` if there."""
    setting = TrainingSetting(repeats=getattr(args, "repeats", TrainingSetting.repeats))
    with tempfile.TemporaryDirectory() as directory:
        make_checkpoint(Path(directory), MODEL)
        return compare(Path(directory), setting)


def compare(directory: Path, setting: TrainingSetting) -> dict[str, Any]:
    """Time everything on the checkpoint in `directory`.

    Raises UserError when two sides disagree in loss or gradient: a wrong step is not timed.
    """
    shared = {f"K{k}": _shared_against_unshared(directory, setting, k) for k in setting.siblings}
    return {
        "shared_prefix": {"train": shared},
        "train_step": _against_torch(directory, setting),
        "training_setting": dataclasses.asdict(setting),
    }


def make_turns(config: Qwen25VLConfig, setting: TrainingSetting, siblings: int) -> list[WeightedTurn]:
    """Groups with one prefix each and K own suffixes, of random tokens."""
    rng = np.random.default_rng(siblings)

    def ids(n: int) -> np.ndarray:
        return rng.integers(0, config.image_token_id, n).astype(np.int32)

    prefixes, asked = [ids(setting.prefix) for _ in range(setting.groups)], setting.suffix // 3
    sampled = setting.suffix - asked
    return [
        WeightedTurn(
            Turn(
                q=q,
                g=g,
                kind=TurnKind.DRAFT,
                prefix=prefixes[q],
                suffix=ids(asked),
                image=None,
                completion=Completion(ids(sampled), np.full(sampled, -8.0, np.float32), Stop.LENGTH),
            ),
            advantage=float(rng.normal()),
        )
        for q, g in np.ndindex(setting.groups, siblings)
    ]


class JaxSide:
    """The learner, with the prefix shared or not. Rows are as long as what is in them."""

    def __init__(self, directory: Path, setting: TrainingSetting, turns: Sequence[WeightedTurn], share: bool):
        config = Qwen25VLConfig.from_file(directory)
        mesh = make_mesh(MeshConfig(), jax.devices()[:1])
        params = load_params(directory, config, mesh)
        run = Config(
            model=ModelConfig(dtype=setting.dtype),
            rl=RL,
            optimizer=OPTIMIZER,
            train=TrainConfig(
                trainable="decoder",
                max_row_tokens=10**9 if share else 1,
                micro_batch_rows=1 if share else setting.micro_batch_rows,
                # An unshared row gets no padding. Nor do the parts of a shared one, see `Packing.row_layout`.
                length_multiple=2 * setting.prefix if share else setting.prefix + setting.suffix,
                row_layout="aligned" if share else "packed",
            ),
        )
        self.learner = Learner(run, config, mesh, params, Stopwatch())
        self.state = self.learner.init(params)
        self.minibatch = pack_turns(turns, self.learner.packing)
        self.tokens = sum(batch.tokens.size for batch in self.minibatch.batches)
        """Slots of all rows, padding included."""

    def step(self) -> dict[str, float | None]:
        self.state, metrics, _ = self.learner.update(self.state, [self.minibatch])
        jax.block_until_ready(self.state.params)
        return metrics

    def timed(self) -> Times:
        return timed(self.step)


class TorchSide:
    """A plain GRPO step: a padded row per sample, transformers' model, autograd, AdamW.

    Attention is sdpa; logits are made for the sampled tokens alone; nothing is rematerialised, which costs it
    memory and saves it time.
    """

    def __init__(self, directory: Path, setting: TrainingSetting, turns: Sequence[WeightedTurn]):
        import torch
        from transformers import Qwen2_5_VLForConditionalGeneration

        self.torch, self.setting = torch, setting
        self.device = "cuda" if torch.cuda.is_available() and jax.default_backend() == "gpu" else "cpu"
        load = Qwen2_5_VLForConditionalGeneration.from_pretrained
        dtype = getattr(torch, setting.dtype)
        self.model, self.reference = (
            load(directory, dtype=dtype, attn_implementation="sdpa").to(self.device) for _ in range(2)
        )
        self.model.model.visual.requires_grad_(False)
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.trained,
            lr=OPTIMIZER.learning_rate,
            betas=(OPTIMIZER.b1, OPTIMIZER.b2),
            eps=OPTIMIZER.eps,
            weight_decay=OPTIMIZER.weight_decay,
        )
        rows = [np.concatenate([t.turn.prefix, t.turn.suffix, t.turn.completion.tokens]) for t in turns]
        self.ids = torch.tensor(np.stack(rows), dtype=torch.long, device=self.device)
        self.advantage = torch.tensor([t.advantage for t in turns], device=self.device)[:, None]
        self.sampled = len(turns[0].turn.completion.tokens)

    def logp(self, model: Any, ids: Any) -> Any:
        """[rows, sampled]"""
        out = model(input_ids=ids, use_cache=False, logits_to_keep=self.sampled + 1).logits[:, :-1].float()
        logp = self.torch.log_softmax(out, dim=-1)
        return logp.gather(-1, ids[:, -self.sampled :, None])[..., 0]

    def step(self) -> dict[str, float]:
        torch, total = self.torch, 0.0
        self.optimizer.zero_grad()
        for start in range(0, len(self.ids), self.setting.micro_batch_rows):
            rows = slice(start, start + self.setting.micro_batch_rows)
            ids, advantage = self.ids[rows], self.advantage[rows]
            with torch.no_grad():
                reference = self.logp(self.reference, ids)
            logp = self.logp(self.model, ids)
            ratio = (logp - logp.detach()).exp()  # one update a step: the old policy is this one
            clipped = ratio.clamp(1 - RL.clip_low, 1 + RL.clip_high)
            policy = torch.maximum(-advantage * ratio, -advantage * clipped)
            d = reference - logp
            loss = (policy + RL.kl_coef * (d.expm1() - d)).sum() / (len(self.ids) * self.sampled)
            loss.backward()
            total += float(loss.detach())
        norm = torch.nn.utils.clip_grad_norm_(self.trained, OPTIMIZER.clip_norm)
        self.optimizer.step()
        return {"loss/total": total, "grad/norm": float(norm)}

    def timed(self) -> Times:
        def finished() -> None:
            self.step()
            if self.device == "cuda":
                self.torch.cuda.synchronize()

        return timed(finished)


def _shared_against_unshared(directory: Path, setting: TrainingSetting, siblings: int) -> dict[str, Any]:
    turns = make_turns(Qwen25VLConfig.from_file(directory), setting, siblings)
    shared, unshared = (JaxSide(directory, setting, turns, share) for share in (True, False))
    _require_equal(f"K = {siblings}, shared and unshared prefix", shared, unshared, setting.dtype)
    slow, fast = alternate(unshared.timed, shared.timed, setting.repeats)
    return {
        "shared_s": fast.wall,
        "unshared_s": slow.wall,
        "ratio": slow.wall / fast.wall,
        "shared_processor_s": fast.processor,
        "unshared_processor_s": slow.processor,
        "processor_ratio": slow.processor / fast.processor,
        "shared_tokens": shared.tokens,
        "unshared_tokens": unshared.tokens,
        "tokens_ratio": unshared.tokens / shared.tokens,
    }


def _against_torch(directory: Path, setting: TrainingSetting) -> dict[str, Any]:
    turns = make_turns(Qwen25VLConfig.from_file(directory), setting, setting.torch_siblings)
    ours, theirs = JaxSide(directory, setting, turns, share=True), TorchSide(directory, setting, turns)
    _require_equal("this package and PyTorch", ours, theirs, setting.dtype)
    torch, jax_ = alternate(theirs.timed, ours.timed, setting.repeats)
    return {
        "jax_s": jax_.wall,
        "torch_s": torch.wall,
        "ratio_vs_torch": torch.wall / jax_.wall,
        "jax_processor_s": jax_.processor,
        "torch_processor_s": torch.processor,
        "processor_ratio_vs_torch": torch.processor / jax_.processor,
        "siblings": setting.torch_siblings,
        "parameters_trained": sum(p.numel() for p in theirs.trained),
        "machine": machine(theirs.device),
    }


def _require_equal(what: str, one: Any, other: Any, dtype: str) -> None:
    """Run one step of each; UserError when their loss or the norm of their gradient differ."""
    ours, theirs = one.step(), other.step()
    limit = 1e-3 if dtype == "float32" else 0.1
    for name in ("loss/total", "grad/norm"):
        if not math.isclose(ours[name], theirs[name], rel_tol=limit, abs_tol=limit * 1e-2):
            raise UserError(f"{what}: {name} is {ours[name]:.6g} and {theirs[name]:.6g}; nothing was timed")


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_options(Options, argv, "python -m benchmarks.rl_train", description=__doc__.split("\n")[0])
    if args.cores:
        use_cores(args.cores)
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(args.hf or scratch)
        if not args.hf:
            make_checkpoint(directory, MODEL)
        text = json.dumps(compare(directory, args), indent=2)
    print(text)
    if args.out:
        Path(args.out).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
