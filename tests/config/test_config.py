"""The configuration: strict, typed, overridable, and checked before anything heavy is imported."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, get_args, get_origin

import pytest
import yaml
from annotated_types import BaseMetadata

from memocr_jax.config import (
    Config,
    EvalConfig,
    EvalSet,
    ModelConfig,
    answer_settings,
    evaluation_sets,
    from_tree,
    load_config,
    parse_command,
    save_config,
    to_tree,
    validate,
)
from memocr_jax.config.data import DataConfig
from memocr_jax.core.errors import UserError
from render.bounds import hints_of, marks_of
from tests.waiting import LIMIT_S

ROOT = Path(__file__).resolve().parents[2]
# What `train` takes; an ablation (memocr_jax/ablate.py) has settings of its own.
CONFIGS = sorted(set((ROOT / "configs").glob("*.yaml")) - set((ROOT / "configs").glob("*_ablation.yaml")))


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_load_and_name_existing_models(path):
    config = load_config(path)
    if config.model.init == "random":
        assert (ROOT / config.model.path).exists()


def test_round_trip_keeps_every_field(tmp_path, tiny_config):
    save_config(tiny_config, tmp_path / "c.yaml")
    assert load_config(tmp_path / "c.yaml") == tiny_config
    # Resolved means resolved: defaults are written out too.
    assert set(yaml.safe_load((tmp_path / "c.yaml").read_text())) == set(to_tree(Config()))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rl: {grup_size: 4}", ["rl.grup_size", "group_size"]),
        ("rll: {}", ["rll", "'rl'"]),
        ("rl: {group_size: eight}", ["rl.group_size", "'eight'", "whole number"]),
        ("rl: {group_size: 4.5}", ["rl.group_size", "4.5", "whole number"]),
        ("rl: {group_size: true}", ["rl.group_size", "True"]),
        ("run: {fresh: 1}", ["run.fresh", "1", "true or false"]),
        ("rl: {kl_estimator: k4}", ["rl.kl_estimator", "k4", "k"]),
        ("model: {init: pretraind}", ["model.init", "'pretrained'"]),
        ("eval: {budgets: 64}", ["eval.budgets", "[64]"]),
        ("eval: {budgets: [64, x]}", ["eval.budgets[1]", "'x'"]),
        ("rl: [1]", ["rl", "[1]", "mapping"]),
        ("data: {synthetic: {fact: 3}}", ["data.synthetic.fact", "facts"]),
        ("render: {width_px: -1}", ["render.width_px", "-1"]),
        ("run: {dir: 3}", ["run.dir", "3", "'3'"]),
        ("a: [", ["not YAML"]),
        ("- 1", ["the file", "mapping"]),
    ],
)
def test_mistakes_in_the_file_name_field_value_and_fix(tmp_path, text, words):
    with pytest.raises(UserError) as error:
        load_config(write(tmp_path, text))
    message = str(error.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_scientific_notation_without_a_dot_is_a_number(tmp_path):
    # YAML 1.1 would call 1e-6 a string.
    config = load_config(write(tmp_path, "optimizer: {learning_rate: 1e-6, eps: 1}"))
    assert config.optimizer.learning_rate == 1e-6
    assert config.optimizer.eps == 1.0


def test_a_file_changes_its_base(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "a.yaml").write_text(
        "train: {steps: 7, micro_batch_rows: 2}\neval: {budgets: [9, 3]}\n"
    )
    (tmp_path / "b.yaml").write_text("base: below/a.yaml\nrun: {seed: 4}\ntrain: {steps: 8}\n")
    config = load_config(write(tmp_path, "base: b.yaml\ntrain:\neval: {budgets: [5]}\n"))
    assert (config.run.seed, config.train.steps, config.train.micro_batch_rows) == (4, 8, 2)
    assert config.eval.budgets == (5,), "a list is replaced as a whole"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("base: 3", r"c\.yaml: base is 3, not the name of a file"),
        ("base: gone.yaml", r"c\.yaml: base gone\.yaml: cannot be read"),
        ("base: c.yaml", r"c\.yaml: base c\.yaml leads back to a file that it is the base of"),
        ("base: bad.yaml", r"bad\.yaml: unknown field train\.step"),
        ("base: list.yaml", r"list\.yaml: the file is \[1\], not a mapping"),
        ("base: good.yaml\ntrain: {step: 1}", r"c\.yaml: unknown field train\.step"),
    ],
)
def test_mistakes_with_a_base_name_the_file_they_are_in(tmp_path, text, words):
    for name, below in {"bad": "train: {step: 1}", "good": "train: {steps: 1}", "list": "[1]"}.items():
        (tmp_path / f"{name}.yaml").write_text(below)
    with pytest.raises(UserError, match=words):
        load_config(write(tmp_path, text))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            {"rl": {"questions_per_step": 8, "minibatch_questions": 3}},
            ["rl.minibatch_questions", "3", "is 2"],
        ),
        ({"rl": {"group_size": 1}}, ["rl.group_size", "1", "2"]),
        ({"mesh": {"fsdp": 4}, "engine": {"groups": 6}}, ["micro_batch_rows", "4"]),
        ({"processes": {"launcher": "flags", "count": 2}}, ["processes", "coordinator"]),
        ({"processes": {"count": 2}}, ["processes.coordinator", "launcher"]),
        ({"validation": {"budgets": []}}, ["validation.budgets"]),
        ({"rl": {"tis_cap": 0.5}}, ["rl.tis_cap", "0.5", "2.0"]),
        ({"rl": {"tis_cap": 2.0, "old_logp": "sampler"}}, ["rl.tis_cap", "rl.old_logp", "recomputed"]),
        ({"rl": {"staleness": 1}}, ["rl.staleness", "rl.tis_cap: 2.0", "rl.old_logp: sampler"]),
        ({"train": {"trainable": "lora"}, "lora": {"targets": []}}, ["lora.targets", "q_proj"]),
        ({"train": {"trainable": "lora"}, "lora": {"alpha": 0.0}}, ["lora.alpha", "32.0"]),
        ({"lora": {"rank": 0}}, ["lora.rank", "0", "1"]),
        ({"sampling": {"temperature": 0.0}}, ["sampling.temperature"]),
        ({"sampling": {"top_p": 1.5}}, ["sampling.top_p", "1.5"]),
        ({"rl": {"dual_clip": 0.5}}, ["rl.dual_clip", "0.5", "3.0"]),
        ({"agent": {"read_max_new_tokens": 2}, "sampling": {"min_new_tokens": 3}}, ["min_new_tokens", "2"]),
        ({"eval": {"budgets": []}}, ["eval.budgets"]),
        ({"model": {"path": ""}}, ["model.path"]),
        (
            {"model": {"path": "x", "attention": "splash"}},
            ["model.attention", "splash", "train.row_layout", "aligned"],
        ),
        ({"engine": {"cache_gib": -1.0}}, ["engine.cache_gib", "-1"]),
        ({"optimizer": {"clip_norm": 0}}, ["optimizer.clip_norm is 0.0", "more than 0", "1.0"]),
        ({"optimizer": {"b2": 1.0}}, ["optimizer.b2 is 1.0", "less than 1", "0.999"]),
        ({"eval": {"budgets": [8, 0]}}, ["eval.budgets[1] is 0", "1 or more"]),
        ({"warmup": {"stages": [{}, {"clozes": -1}]}}, ["warmup.stages[1].clozes is -1", "0 or more"]),
        ({"data": {"synthetic": {"chunks": -1}}}, ["data.synthetic.chunks is -1", "0 or more"]),
        ({"data": {"source": "flashrag"}}, ["data.path"]),
        ({"rl": {"weight_std": 0.0, "weight_aug_m": 0.0, "weight_aug_q": 0.0}}, ["weight_std"]),
    ],
)
def test_impossible_combinations_are_refused(override, words):
    tree = {"model": {"path": "x"}, **override}
    with pytest.raises(UserError) as error:
        validate(from_tree(Config, tree, "test"))
    assert all(word in str(error.value) for word in words), str(error.value)


def _numbers(cls, prefix=""):
    """(dotted name, type with its marks) of every number in a dataclass of settings."""
    for name, hint in hints_of(cls).items():
        plain = get_args(hint)[0] if get_origin(hint) is Annotated else hint
        if get_origin(plain) is tuple:
            hint = get_args(plain)[0]
            plain = get_args(hint)[0] if get_origin(hint) is Annotated else hint
        if dataclasses.is_dataclass(plain):
            yield from _numbers(plain, f"{prefix}{name}.")
        elif plain in (int, float):
            yield prefix + name, hint


def test_every_number_has_bounds():
    numbers = dict(_numbers(Config))
    assert len(numbers) > 100 and {"rl.group_size", "eval.budgets", "warmup.stages.updates"} <= set(numbers)
    unbounded = [
        name for name, hint in numbers.items() if not any(isinstance(m, BaseMetadata) for m in marks_of(hint))
    ]
    assert not unbounded, f"without a bound (Annotated[int, Ge(0)]): {unbounded}"


def test_marks_say_what_decides_the_answers_of_an_evaluation():
    decides = answer_settings(Config())
    assert {"run.seed", "model.path", "agent.memory_format", "engine.groups", "eval.budgets"} <= set(decides)
    assert {"render.theme", "render.width_px", "prompts.path", "tokenizer.path"} <= set(decides)
    same = {
        "run.dir",
        "engine.warm_up",
        "eval.report_mb",
        "render.workers",
        "render.url",
        "agent.budget_tokens",
    }
    assert not same & set(decides)
    assert not [name for name in decides if name.startswith(("train.", "rl.", "data."))]
    data = answer_settings(Config().data, "data.", decide=True)
    assert {"data.path", "data.synthetic.words"} <= set(data)


def test_command_line_overrides_the_file():
    argv = ["--config", str(ROOT / "configs/tiny.yaml"), "--rl.group-size", "8", "--eval.budgets", "5", "3"]
    config, args = parse_command([*argv, "--run.fresh"], "x", "y")
    assert (config.rl.group_size, config.eval.budgets, config.run.fresh) == (8, (5, 3), True)
    assert config.run.dir == "runs/tiny"  # named after the file
    assert args.config.endswith("tiny.yaml")
    config, _ = parse_command([*argv, "--run.dir", "elsewhere"], "x", "y")
    assert config.run.dir == "elsewhere"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rl.grup-size", "8"], ["--rl.grup-size", "--rl.group-size"]),
        (["--rl.group-size", "eight"], ["group-size", "eight"]),
        (["--rl.group-size", "1"], ["rl.group_size"]),
        (["--render.width-px", "0"], ["render.width_px"]),
        (["--config", "missing.yaml"], ["missing.yaml", "No such file"]),
    ],
)
def test_command_line_mistakes_are_quick_and_light(arguments, words):
    """One message, status 2, no traceback, and neither JAX nor transformers imported on the way."""
    program = (
        "import sys\n"
        "from memocr_jax.core.errors import run_command\n"
        "import memocr_jax.train as train\n"
        "try:\n"
        "    run_command(lambda: train.main(sys.argv[1:]))\n"
        "finally:\n"
        "    heavy = {'jax', 'transformers', 'playwright', 'torch'} & set(sys.modules)\n"
        "    print('HEAVY', sorted(heavy), file=sys.stderr)\n"
    )
    command = [sys.executable, "-c", program, "--config", str(ROOT / "configs/tiny.yaml"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, cwd=ROOT)
    output = done.stdout + done.stderr
    assert done.returncode == 2, output
    assert all(word in output for word in words), output
    assert "Traceback" not in output
    assert "HEAVY []" in output


def test_config_is_required():
    with pytest.raises(UserError, match="--config is missing"):
        parse_command([], "x", "y")


def test_evaluation_sets_replace_fields_of_data(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(
        "model: {path: m}\ndata: {chunk_tokens: 99}\n"
        "eval:\n  questions: 7\n  sets:\n"
        "    - {name: hotpotqa, length: 10k, data: {source: prepared, validation_path: p}}\n"
        "    - {name: world, length: '4', data: {synthetic: {chunks: 4}}}\n"
    )
    config = load_config(path)
    validate(config)
    (name, length, hotpot), (_, _, world) = evaluation_sets(config)
    assert (name, length, hotpot.source, hotpot.validation_path) == ("hotpotqa", "10k", "prepared", "p")
    assert hotpot.chunk_tokens == world.chunk_tokens == 99
    assert hotpot.validation_questions == world.validation_questions == 7
    assert world.synthetic.chunks == 4 and world.synthetic.facts == config.data.synthetic.facts
    # What is kept in a run directory reads back as the same.
    save_config(config, tmp_path / "kept.yaml")
    assert load_config(tmp_path / "kept.yaml") == config


def test_without_sets_the_validation_questions_are_evaluated():
    config = dataclasses.replace(Config(), model=ModelConfig(path="m"))
    assert evaluation_sets(config) == [("synthetic", "native", config.data)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sets": (EvalSet("a", "10k", {"pth": "x"}),)}, ["eval.sets[0]", "data.pth", "path"]),
        ({"sets": (EvalSet("a", ""),)}, ["eval.sets[0]", "length", "''"]),
        ({"sets": (EvalSet("a\n", "b"),)}, ["eval.sets[0]", "'a\\n'", "control"]),
        ({"sets": (EvalSet("a", "b"), EvalSet("a", "b"))}, ["eval.sets[1]", "twice"]),
        ({"sets": (EvalSet("a", "b", {"source": "prepared"}),)}, ["eval.sets[0].data.path"]),
        ({"budgets": (8, 8)}, ["eval.budgets", "8", "once"]),
        ({"methods": ()}, ["eval.methods", "raw history"]),
        ({"samples": 2, "temperature": 0.0}, ["eval.samples", "2", "temperature"]),
    ],
)
def test_mistakes_in_what_is_evaluated(changes, words):
    config = Config(model=ModelConfig(path="m"), eval=dataclasses.replace(EvalConfig(), **changes))
    with pytest.raises(UserError) as error:
        validate(config)
    assert all(word in str(error.value) for word in words), error.value


def test_the_length_of_prepared_documents_is_their_own(tmp_path):
    """document_tokens was shown: what documents would be padded to if they were not prepared."""
    manifest = {"document_tokens": {"least": 2100, "mean": 2980.4, "most": 3000}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    data = DataConfig(source="prepared", validation_path=str(tmp_path), document_tokens=1500)
    config = dataclasses.replace(Config(), model=ModelConfig(path="m"), data=data)
    assert evaluation_sets(config) == [(tmp_path.stem, "2,980 tokens", data)]
