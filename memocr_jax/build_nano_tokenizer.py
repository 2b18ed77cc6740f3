"""Make the nano model's tokenizer: `python -m memocr_jax.build_nano_tokenizer [--to DIR]`.

Every word of the world of short words (`data.synthetic.words: short`) and of the nano prompts is one entry,
and so are Markdown's signs; other text falls back to bytes. A word is the same entry wherever it stands: one
that begins a line gets a space before it, which Markdown does not show. Qwen's control tokens come last, as
in Qwen2.5. The same code gives the same bytes; a test holds the asset to that.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from memocr_jax.agent.cloze import BLANK
from memocr_jax.build_tokenizer import CHAT_TEMPLATE, CONTROL, save
from memocr_jax.core.errors import run_command
from memocr_jax.data.vocabulary import SHORT_NAMES, SHORT_RELATIONS, SHORT_WORDS
from render.options import parse_options

FOLDER = Path(__file__).parent / "assets" / "nano"

PROMPT_WORDS = ("system", "user", "assistant", "write", "about", "none", "page", "copy")
SIGNS = ("\\boxed{", "}", " .", " ?", ",", "#", "##", "**", "-", "\n", "\n\n", f" {BLANK}")
"""Entries beside words: a box, Markdown's signs and ends of lines, a blank."""

# A word with the space before it, the signs, or one character of anything else.
PATTERN = r"\\boxed\{| ?_{4}| ?\p{L}+| ?\p{N}| [.?]|#{1,2}|\*\*|\n\n|."


def words() -> list[str]:
    """Every word that has an entry of its own, each once."""
    listed = [
        *PROMPT_WORDS,
        *(kind.key for kind in (*SHORT_WORDS, *SHORT_RELATIONS)),
        *SHORT_NAMES,
        *(value for kind in SHORT_WORDS for value in kind.values),
    ]
    return list(dict.fromkeys(listed))


def build() -> Backend:
    """The tokenizer, without training: its entries are listed."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    byte_level = dict(add_prefix_space=False, use_regex=False)
    as_bytes = pre_tokenizers.ByteLevel(**byte_level)
    spelled = [as_bytes.pre_tokenize_str(text)[0][0] for text in (*SIGNS, *(f" {w}" for w in words()))]
    entries = list(dict.fromkeys([*alphabet, *spelled]))
    tokenizer = Backend(
        models.BPE(vocab={entry: i for i, entry in enumerate(entries)}, merges=[], ignore_merges=True)
    )
    # A space before the word that begins the text or a line (the library cannot replace an empty match).
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Prepend(" "),
            normalizers.Replace(Regex(r"\A (?!\p{L})"), ""),
            normalizers.Replace(Regex(r"\n(?=\p{L})"), "\n "),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(PATTERN), "isolated"), pre_tokenizers.ByteLevel(**byte_level)]
    )
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False, **byte_level)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(CONTROL))
    return tokenizer


@dataclasses.dataclass(frozen=True)
class Options:
    to: Path = FOLDER
    """Folder to write."""


def main() -> None:
    arguments = parse_options(Options, None, "python -m memocr_jax.build_nano_tokenizer", description=__doc__)
    tokenizer = build()
    save(tokenizer, arguments.to)
    # Not Qwen2's class: that one brings its own way of splitting text.
    path = arguments.to / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": CHAT_TEMPLATE}
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    print(f"{tokenizer.get_vocab_size()} entries written to {arguments.to}")


if __name__ == "__main__":
    run_command(main)
