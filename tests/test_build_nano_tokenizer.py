"""The nano model's tokenizer: the asset is what the code makes; a word is one entry wherever it stands."""

import json

import pytest

from memocr_jax import build_nano_tokenizer
from memocr_jax.agent.prompts import draft_prompt, load_templates, read_prompt
from memocr_jax.config.data import SyntheticConfig
from memocr_jax.data.synthetic import SyntheticWorld
from memocr_jax.data.vocabulary import SHORT_NAMES, SHORT_WORDS
from memocr_jax.models.config import Qwen25VLConfig
from memocr_jax.models.tokenizer import load_tokenizer

TOKENIZER = load_tokenizer(str(build_nano_tokenizer.FOLDER))


def test_the_asset_is_what_the_code_makes(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["build", "--to", str(tmp_path)])
    build_nano_tokenizer.main()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (build_nano_tokenizer.FOLDER / name).read_bytes()


def test_every_word_is_one_entry_at_the_start_of_a_line_and_within():
    for word in build_nano_tokenizer.words():
        [inside] = TOKENIZER.encode(f" {word}")
        assert TOKENIZER.encode(word) == [inside]
        assert TOKENIZER.encode(f"# {word}\n\n{word}").count(inside) == 2
    assert len({v for kind in SHORT_WORDS for v in kind.values}) == sum(kind.count for kind in SHORT_WORDS)


def test_documents_questions_and_answers_of_the_world_are_a_token_a_word():
    settings = SyntheticConfig(
        words="short", style="terse", names=24, attributes=4, facts=6, distractors=0, hops_max=2, chunks=2
    )
    for question in SyntheticWorld(settings, 0, "train", 50):
        for text in (*question.sections, question.question):
            assert len(TOKENIZER.encode(text)) == len(text.split())
            assert TOKENIZER.decode(TOKENIZER.encode(text)).strip() == text
        assert len(TOKENIZER.encode(f"\\boxed{{ {question.answer}}}")) == 3


def test_the_prompts_are_short():
    templates = load_templates("configs/prompts/nano.yaml")
    chunk = TOKENIZER.encode("Abel bell . Dora coat .")
    draft, read = draft_prompt("Abel ?", chunk, "", templates=templates), read_prompt("Abel ?", templates)
    assert sum(map(len, TOKENIZER.encode_prompt(draft))) == len(chunk) + 20
    assert sum(map(len, TOKENIZER.encode_prompt(read, [2]))) == 2 + 18


@pytest.mark.parametrize("text", ["Hello, wörld 12", "# Abel bell\n\nDora coat", "  x\n y", "", "\n"])
def test_any_text_survives_twice(text):
    once = TOKENIZER.decode(TOKENIZER.encode(text))
    assert TOKENIZER.decode(TOKENIZER.encode(once)) == once
    assert once.replace(" ", "") == text.replace(" ", "")


def test_the_model_and_transformers_agree_on_the_ids():
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(build_nano_tokenizer.FOLDER)
    text = "# Abel bell\n\nDora coat"
    assert theirs.encode(text + "<|im_end|>") == [*TOKENIZER.encode(text), TOKENIZER.im_end_id]
    model = Qwen25VLConfig.from_file(build_nano_tokenizer.FOLDER)
    assert model.text.vocab_size == TOKENIZER.vocab_size
    assert (model.image_token_id, model.eos_token_id) == (TOKENIZER.image_pad_id, TOKENIZER.im_end_id)
    assert json.loads((build_nano_tokenizer.FOLDER / "config.json").read_text())["model_type"] == "qwen2_5_vl"


def test_names_and_values_fill_one_visual_token_of_the_theme():
    assert {len(word) for word in (*SHORT_NAMES, *(v for kind in SHORT_WORDS for v in kind.values))} == {4}
