"""Values and combinations that cannot work, found before anything else is done."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path

from memocr_jax.config.data import DataConfig
from memocr_jax.config.sections import Config, Method
from memocr_jax.config.tree import from_tree, merged, to_tree
from memocr_jax.core.errors import UserError, require_at_least


def validate(config: Config) -> None:
    """Raise UserError for values and combinations that cannot work, each with the nearest that can."""
    c = config
    c.data.check()
    require_at_least(
        1,
        {
            "agent.draft_max_new_tokens": c.agent.draft_max_new_tokens,
            "agent.read_max_new_tokens": c.agent.read_max_new_tokens,
            "agent.budget_tokens": c.agent.budget_tokens,
            "agent.low_res_factor": c.agent.low_res_factor,
            "agent.gap_fill_blanks": c.agent.gap_fill_blanks,
            "engine.groups": c.engine.groups,
            "engine.length_multiple": c.engine.length_multiple,
            "engine.window_multiple": c.engine.window_multiple,
            "engine.decode_segment": c.engine.decode_segment,
            "engine.prefill_tokens": c.engine.prefill_tokens,
            "engine.pool_sizes": c.engine.pool_sizes,
            "engine.length_sizes": c.engine.length_sizes,
            "engine.question_tokens": c.engine.question_tokens,
            "engine.tensor": c.engine.tensor,
            "rl.waves": c.rl.waves,
            "rl.questions_per_step": c.rl.questions_per_step,
            "rl.minibatch_questions": c.rl.minibatch_questions,
            "lora.rank": c.lora.rank,
            "train.length_multiple": c.train.length_multiple,
            "train.micro_batch_rows": c.train.micro_batch_rows,
            "train.logp_chunk_tokens": c.train.logp_chunk_tokens,
            "mesh.data": c.mesh.data,
            "mesh.fsdp": c.mesh.fsdp,
            "mesh.tensor": c.mesh.tensor,
            "checkpoint.every_steps": c.checkpoint.every_steps,
            "checkpoint.keep": c.checkpoint.keep,
            "processes.count": c.processes.count,
            "validation.samples": c.validation.samples,
            "eval.samples": c.eval.samples,
        },
    )
    require_at_least(2, {"rl.group_size": c.rl.group_size})  # a group of one has no advantage
    require_at_least(
        0,
        {
            "run.seed": c.run.seed,
            "train.steps": c.train.steps,
            "engine.cache_gib": c.engine.cache_gib,
            "sampling.top_k": c.sampling.top_k,
            "sampling.min_new_tokens": c.sampling.min_new_tokens,
            "rl.weight_std": c.rl.weight_std,
            "rl.weight_aug_m": c.rl.weight_aug_m,
            "rl.weight_aug_q": c.rl.weight_aug_q,
            "rl.clip_low": c.rl.clip_low,
            "rl.clip_high": c.rl.clip_high,
            "rl.kl_coef": c.rl.kl_coef,
            "optimizer.learning_rate": c.optimizer.learning_rate,
            "optimizer.warmup_steps": c.optimizer.warmup_steps,
            "optimizer.decay_steps": c.optimizer.decay_steps,
            "optimizer.muon_adam_ratio": c.optimizer.muon_adam_ratio,
            "warmup.check_every": c.warmup.check_every,
            "optimizer.weight_decay": c.optimizer.weight_decay,
            "engine.devices": c.engine.devices,
            "checkpoint.keep_best": c.checkpoint.keep_best,
            "validation.every_steps": c.validation.every_steps,
            "validation.questions": c.validation.questions,
            "validation.temperature": c.validation.temperature,
            "health.max_skipped_updates": c.health.max_skipped_updates,
            "health.max_failed_pages": c.health.max_failed_pages,
            "health.hang_s": c.health.hang_s,
            "log.trajectory_every_steps": c.log.trajectory_every_steps,
            "log.trajectory_questions": c.log.trajectory_questions,
            "eval.questions": c.eval.questions,
            "eval.temperature": c.eval.temperature,
            "eval.raw_max_tokens": c.eval.raw_max_tokens,
            "eval.wave_questions": c.eval.wave_questions,
            "eval.bootstrap": c.eval.bootstrap,
            "eval.report_questions": c.eval.report_questions,
            "eval.report_mb": c.eval.report_mb,
        },
    )
    if not c.model.path:
        raise UserError("model.path is empty: name a Hugging Face directory or a config.json")
    if c.sampling.temperature <= 0:
        raise UserError(
            f"sampling.temperature is {c.sampling.temperature}: training samples, so use a value "
            "above 0 such as 1.0"
        )
    probabilities = {
        "sampling.top_p": c.sampling.top_p,
        "validation.top_p": c.validation.top_p,
        "eval.top_p": c.eval.top_p,
    }
    for name, value in probabilities.items():
        if not 0 < value <= 1:
            raise UserError(f"{name} is {value}: use a probability above 0 and at most 1")
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
    if c.train.trainable == "lora":
        if not c.lora.targets:
            raise UserError(
                "lora.targets is empty: nothing would be trained; name some, such as [q_proj, v_proj]"
            )
        if c.lora.alpha <= 0:
            raise UserError(f"lora.alpha is {c.lora.alpha}: use a value above 0, such as {2.0 * c.lora.rank}")
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
        if not budgets or min(budgets) < 1:
            raise UserError(f"{name}.budgets is {list(budgets)}: name budgets of at least 1 token")
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


def evaluation_sets(config: Config) -> list[tuple[str, str, DataConfig]]:
    """(name, length, data settings) of every set that an evaluation reads, in the order of `eval.sets`.

    A set's own settings replace fields of `config.data`; unless they say otherwise it has as many validation
    questions as `eval.questions` asks for. Raises UserError for what cannot work, named as eval.sets[i].
    """
    base = config.data
    if not config.eval.sets:
        name = Path(base.validation_path or base.path).stem or base.source
        return [(name, f"{base.document_tokens:,} tokens" if base.document_tokens else "native", base)]
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
