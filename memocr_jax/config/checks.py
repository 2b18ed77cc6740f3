"""Finds values and combinations that cannot work, before anything else is done."""

from __future__ import annotations

import dataclasses
import json
import typing
from pathlib import Path

from memocr_jax.config.data import DataConfig
from memocr_jax.config.sections import Config, Method
from memocr_jax.config.tree import from_tree, merged, to_tree
from memocr_jax.core.errors import UserError
from render.bounds import out_of_bounds


def validate(config: Config) -> None:
    """Raise UserError for values and combinations that cannot work, with the nearest that can."""
    c = config
    c.data.check()
    if message := out_of_bounds(c):
        raise UserError(message)
    if not c.model.path:
        raise UserError("model.path is empty: name a Hugging Face directory or a config.json")
    if c.sampling.temperature <= 0:
        raise UserError(
            f"sampling.temperature is {c.sampling.temperature}: training samples, so use a value "
            "above 0 such as 1.0"
        )
    if c.sampling.min_new_tokens > min(c.agent.draft_max_new_tokens, c.agent.read_max_new_tokens):
        raise UserError(
            f"sampling.min_new_tokens is {c.sampling.min_new_tokens}, more than a completion may have "
            "(agent.draft_max_new_tokens, agent.read_max_new_tokens); use at most "
            f"{min(c.agent.draft_max_new_tokens, c.agent.read_max_new_tokens)}"
        )
    if c.model.attention != "xla" and c.train.row_layout == "packed":
        raise UserError(
            f"model.attention is {c.model.attention} with train.row_layout: packed, where training would not "
            "use it; set train.row_layout to aligned, or model.attention to xla"
        )
    if c.rl.weight_std + c.rl.weight_aug_m + c.rl.weight_aug_q <= 0:
        raise UserError("rl.weight_std, weight_aug_m and weight_aug_q are all 0: nothing would be learned")
    if c.rl.dual_clip != 0 and c.rl.dual_clip <= 1:
        raise UserError(f"rl.dual_clip is {c.rl.dual_clip}: use 0 (off) or a value above 1 such as 3.0")
    if c.rl.tis_cap != 0 and c.rl.tis_cap < 1:
        raise UserError(
            f"rl.tis_cap is {c.rl.tis_cap}: a cap below 1 would scale down even what needs no "
            "correction; use 0 (off) or a value of at least 1 such as 2.0"
        )
    if c.rl.tis_cap and c.rl.old_logp == "sampler":
        raise UserError(
            f"rl.tis_cap is {c.rl.tis_cap} with rl.old_logp sampler: the ratio is taken to the sampler "
            "already, so every weight would be 1; set rl.tis_cap: 0 or rl.old_logp: recomputed"
        )
    if c.rl.staleness and c.rl.old_logp == "recomputed" and not c.rl.tis_cap:
        raise UserError(
            f"rl.staleness is {c.rl.staleness} with rl.old_logp recomputed and rl.tis_cap 0: nothing would "
            "correct for the older policy that sampled; set rl.tis_cap: 2.0 or rl.old_logp: sampler"
        )
    if c.train.trainable == "lora" and not c.lora.targets:
        raise UserError(
            "lora.targets is empty: nothing would be trained; name some, such as [q_proj, v_proj]"
        )
    if c.rl.questions_per_step % c.rl.minibatch_questions:
        divisors = [d for d in range(1, c.rl.questions_per_step + 1) if c.rl.questions_per_step % d == 0]
        best = min(divisors, key=lambda d: abs(d - c.rl.minibatch_questions))
        raise UserError(
            f"rl.minibatch_questions is {c.rl.minibatch_questions}, which does not divide "
            f"rl.questions_per_step = {c.rl.questions_per_step}; the nearest that does is {best}"
        )
    rows = c.mesh.data * c.mesh.fsdp
    if c.train.micro_batch_rows % rows:
        raise UserError(
            f"train.micro_batch_rows is {c.train.micro_batch_rows}, which does not divide over mesh.data * "
            f"mesh.fsdp = {rows} devices; the nearest that does is "
            f"{max(rows, round(c.train.micro_batch_rows / rows) * rows)}"
        )
    for name, budgets in {"eval": c.eval.budgets, "validation": c.validation.budgets}.items():
        if not budgets:
            raise UserError(f"{name}.budgets is empty: name budgets of at least 1 token, such as [512, 64]")
    p = c.processes
    if p.launcher == "flags" and (":" not in p.coordinator or not 0 <= p.index < p.count):
        raise UserError(
            f"processes: launcher flags needs coordinator (host:port), count, and index from 0 to count - 1; "
            f"they are {p.coordinator!r}, {p.count} and {p.index}"
        )
    if p.launcher != "flags" and (p.coordinator or p.count != 1 or p.index):
        raise UserError(
            f"processes.coordinator, count and index are used with launcher flags only; it is {p.launcher!r}"
        )
    profile_steps(c.profile.steps)
    if not c.eval.methods:
        raise UserError(f"eval.methods is empty: name some of {', '.join(typing.get_args(Method))}")
    for name, values in {"eval.budgets": c.eval.budgets, "eval.methods": c.eval.methods}.items():
        if len(set(values)) < len(values):
            raise UserError(f"{name} is {list(values)}: name each once")
    if c.eval.samples > 1 and c.eval.temperature == 0:
        raise UserError(
            f"eval.samples is {c.eval.samples} with eval.temperature 0: greedy samples are all alike; use "
            "eval.samples 1 or a temperature above 0"
        )
    evaluation_sets(c)


def profile_steps(text: str) -> tuple[int, int] | None:
    """`profile.steps` as (first, last), or None. Raises UserError."""
    if not text:
        return None
    first, _, last = text.partition(":")
    try:
        found = int(first), int(last or first)
    except ValueError:
        found = (0, 0)
    if not 1 <= found[0] <= found[1]:
        raise UserError(f"profile.steps is {text!r}: give a step or first:last, such as 10:13")
    return found


def _length(data: DataConfig) -> str:
    """The length of a set's documents: the average in its prepared folder, or the padded length."""
    manifest = Path(data.validation_path or data.path) / "manifest.json"
    tokens: float = data.document_tokens
    if data.source == "prepared" and manifest.is_file():
        tokens = json.loads(manifest.read_text(encoding="utf-8"))["document_tokens"]["mean"]
    return f"{tokens:,.0f} tokens" if tokens else "native"


def evaluation_sets(config: Config) -> list[tuple[str, str, DataConfig]]:
    """(name, length, data settings) of every set that an evaluation reads, in the order of `eval.sets`.

    A set's own settings replace fields of `config.data`; unless they say otherwise it has as many validation
    questions as `eval.questions` asks for. Raises UserError for what cannot work, named as eval.sets[i].
    """
    base = config.data
    if not config.eval.sets:
        name = Path(base.validation_path or base.path).stem or base.source
        return [(name, _length(base), base)]
    sets: list[tuple[str, str, DataConfig]] = []
    for i, one in enumerate(config.eval.sets):
        field = f"eval.sets[{i}]"
        if not one.name or not one.length:
            raise UserError(f"{field}: name is {one.name!r} and length {one.length!r}; give both")
        if not (one.name + one.length).isprintable():
            raise UserError(f"{field}: name {one.name!r} or length {one.length!r} has control characters")
        if (one.name, one.length) in [(name, length) for name, length, _ in sets]:
            raise UserError(f"{field}: {one.name} at {one.length} is there twice; rename one of them")
        data = from_tree(DataConfig, merged(to_tree(base), one.data), field, "data.")
        if "validation_questions" not in one.data and (data.validation_path or data.source == "synthetic"):
            wanted = config.eval.questions or (10**9 if data.validation_path else data.validation_questions)
            data = dataclasses.replace(data, validation_questions=wanted)
        data.check(f"{field}.data")
        sets.append((one.name, one.length, data))
    return sets
