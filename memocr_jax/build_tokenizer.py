"""Make the project's small tokenizer: `python -m memocr_jax.build_tokenizer [--to DIR]`.

A byte-level BPE in the shape of Qwen2.5's (same normaliser, same word splitting, same control tokens, which
come last), trained on text that the project generates itself: synthetic documents and questions in every
style, memories about them, every prompt. The same code gives the same bytes; a test holds the asset to that.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from annotated_types import Ge
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

from memocr_jax.agent.cloze import BLANK
from memocr_jax.agent.prompts import DEFAULT_TEMPLATES
from memocr_jax.config.data import SyntheticConfig
from memocr_jax.core.errors import UserError, run_command
from memocr_jax.data.synthetic import SyntheticQuestion, SyntheticWorld
from memocr_jax.data.vocabulary import FILLER, WORDS, name
from memocr_jax.models.tokenizer import SMALL_TOKENIZER
from render.options import parse_options

ENTRIES = 3072
"""Size of the vocabulary, control tokens included."""

# Splits text into words before merging, so that no entry spans a word (the pattern of Qwen2.5's tokenizer).
WORD_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)

CONTROL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

# Text and images in Qwen2.5-VL's chat markup; no default system message.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message.role + '\\n' }}"
    "{%- if message.content is string -%}{{ message.content }}"
    "{%- else -%}{%- for part in message.content -%}"
    "{%- if part.type == 'image' -%}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- else -%}{{ part.text }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{{ '<|im_end|>\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)


def corpus(questions: int = 1500) -> Iterator[str]:
    """Texts to train on: `questions` generated questions a style, the world's words, every prompt."""
    for style in ("plain", "varied", "terse"):
        config = SyntheticConfig(style=style, attributes=len(WORDS), values=100, numbers=True, dates=True)
        for question in SyntheticWorld(config, seed=0, split="train", questions=questions):
            yield from question.sections
            yield question.question
            yield _memory(question)
    # Every word of the default world often enough to become one entry.
    names = [name(index) for index in range(SyntheticConfig.names)]
    words = itertools.chain(names, *(kind.values for kind in WORDS))
    for word in words:
        yield from [f" {word}", f" {word}.", f"{{{word}}}"] * 20
    yield from FILLER * 20
    yield from [str(value) for value in DEFAULT_TEMPLATES.__dict__.values()] * 20
    yield from [f"{BLANK} {BLANK}, {BLANK}.", "system\n", "user\n", "assistant\n", "\n\n## ", "\n- **"] * 20


def train(entries: int = ENTRIES) -> Backend:
    """Train the tokenizer. `UserError` when `entries` cannot hold all bytes and control tokens."""
    if entries < 256 + len(CONTROL):
        raise UserError(f"--entries: {entries} is too small; use {256 + len(CONTROL)} or more")
    tokenizer = Backend(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    byte_level = dict(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(WORD_PATTERN), "isolated"), pre_tokenizers.ByteLevel(**byte_level)]
    )
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False, **byte_level)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=entries - len(CONTROL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    # Added after training: control tokens get the last ids, as in Qwen2.5.
    tokenizer.add_special_tokens(list(CONTROL))
    return tokenizer


def save(tokenizer: Backend, folder: Path) -> None:
    """Write a folder that `transformers.AutoTokenizer.from_pretrained` loads."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True) + "\n", encoding="utf-8")
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "additional_special_tokens": list(CONTROL[1:]),
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "errors": "replace",
        "model_max_length": 131072,
        "split_special_tokens": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


@dataclasses.dataclass(frozen=True)
class Options:
    to: Path = SMALL_TOKENIZER
    """Folder to write."""
    entries: Annotated[int, Ge(256 + len(CONTROL))] = ENTRIES
    """Size of the vocabulary: at least all bytes and control tokens."""


def main() -> None:
    arguments = parse_options(Options, None, "python -m memocr_jax.build_tokenizer", description=__doc__)
    tokenizer = train(arguments.entries)
    save(tokenizer, arguments.to)
    print(f"{tokenizer.get_vocab_size()} entries written to {arguments.to}")


def _memory(question: SyntheticQuestion) -> str:
    facts = [fact.sentence for fact in question.facts]
    return f"# {facts[0]}\n\n## {facts[-1]}\n\n- " + "\n- ".join(facts) + f"\n\n**{question.answer}**"


if __name__ == "__main__":
    run_command(main)
