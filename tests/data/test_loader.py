import dataclasses

import numpy as np
import pytest

from memocr_jax.config.data import DataConfig, SyntheticConfig
from memocr_jax.core.errors import UserError
from memocr_jax.data.loader import load_examples
from memocr_jax.models.tokenizer import load_tokenizer

SMALL = load_tokenizer()


def test_synthetic_examples():
    config = DataConfig(chunk_tokens=64, synthetic=SyntheticConfig(questions=50, chunks=3))
    train, validation = (load_examples(config, SMALL, split) for split in ("train", "validation"))
    assert (len(train), len(validation)) == (50, config.validation_questions)
    for example in [*train, *validation]:
        assert len(example.chunks) == 3
        assert all(chunk.dtype == np.int32 and 0 < len(chunk) <= 64 for chunk in example.chunks)
        text = " ".join(SMALL.decode(chunk) for chunk in example.chunks)
        assert example.evidence and all(sentence in text for sentence in example.evidence)
        assert example.answers[0] in text
    assert train[-1].example_id == train[49].example_id
    with pytest.raises(IndexError):
        train[50]


def test_a_section_longer_than_a_chunk_is_an_error():
    examples = load_examples(DataConfig(chunk_tokens=5), SMALL, "train")
    with pytest.raises(UserError, match=r"^data\.chunk_tokens: 5 is too small for a section of \d+ tokens"):
        examples[0]


def test_chunks_zero_cuts_by_tokens_and_max_chunks_cuts_the_middle():
    config = DataConfig(
        chunk_tokens=20, max_chunks=2, synthetic=SyntheticConfig(chunks=0, facts=12, names=40)
    )
    short = load_examples(config, SMALL, "train")[0]
    whole = load_examples(dataclasses.replace(config, max_chunks=0), SMALL, "train")[0]
    ids = np.concatenate(whole.chunks)
    assert all(len(chunk) == 20 for chunk in whole.chunks[:-1]) and len(whole.chunks) > 2
    assert [len(chunk) for chunk in short.chunks] == [20, 20]
    assert short.chunks[0].tolist() == ids[:20].tolist() and short.chunks[1].tolist() == ids[-20:].tolist()


def test_flashrag_examples(rows, write):
    config = DataConfig(
        source="flashrag", path=write(rows), document_tokens=400, chunk_tokens=150, validation_questions=8
    )
    train, validation = (load_examples(config, SMALL, split) for split in ("train", "validation"))
    assert [e.example_id for e in train] == [f"row-{n}" for n in range(32)]
    assert [e.example_id for e in validation] == [f"row-{n}" for n in range(32, 40)]
    for example in train:
        assert len(example.chunks) == 3
        text = SMALL.decode(np.concatenate(example.chunks))
        assert all(sentence in text for sentence in example.evidence)
    again = load_examples(config, SMALL, "train")
    for one, other in zip(train, again, strict=True):
        assert [c.tolist() for c in one.chunks] == [c.tolist() for c in other.chunks]
    assert len(load_examples(dataclasses.replace(config, limit=5), SMALL, "train")) == 5
    # A limit changes which questions are used, not their documents.
    limited = load_examples(dataclasses.replace(config, limit=5), SMALL, "train")[4]
    assert np.concatenate(limited.chunks).tolist() == np.concatenate(train[4].chunks).tolist()


def test_the_order_of_questions_in_the_file_decides_no_document(rows, write):
    config = DataConfig(source="flashrag", document_tokens=400, validation_questions=1)
    documents = []
    for name, lines in (("one.jsonl", rows), ("two.jsonl", rows[::-1])):
        examples = load_examples(dataclasses.replace(config, path=write(lines, name)), SMALL, "train")
        documents.append({e.example_id: np.concatenate(e.chunks).tolist() for e in examples})
    both = documents[0].keys() & documents[1].keys()
    assert len(both) == 38 and all(documents[0][key] == documents[1][key] for key in both)


def test_a_validation_file_and_a_pool_file(rows, write):
    pool = [{"title": f"Pool {n}", "text": f"Sentence {n} of the pool."} for n in range(400)]
    config = DataConfig(
        source="flashrag",
        path=write(rows[:30]),
        validation_path=write(rows[30:], "dev.jsonl"),
        pool_path=write(pool, "pool.jsonl"),
        document_tokens=1000,
        validation_questions=4,
    )
    assert len(load_examples(config, SMALL, "train")) == 30
    validation = load_examples(config, SMALL, "validation")
    assert [e.example_id for e in validation] == [f"row-{n}" for n in range(30, 34)]
    assert "of the pool." in SMALL.decode(validation[0].chunks[0])


def test_a_validation_file_alone(rows, write):
    config = DataConfig(source="flashrag", validation_path=write(rows), validation_questions=7)
    assert len(load_examples(config, SMALL, "validation")) == 7
    with pytest.raises(UserError, match=r"^data\.path: empty, but the training split was asked for"):
        load_examples(config, SMALL, "train")


def test_wrong_splits_and_sizes(rows, write):
    config = DataConfig(source="flashrag", path=write(rows), validation_questions=40)
    with pytest.raises(UserError, match=r"^data\.validation_questions: 40 of 40 questions of .* leave none"):
        load_examples(config, SMALL, "train")
    with pytest.raises(UserError, match="has no test split"):
        load_examples(config, SMALL, "test")
    with pytest.raises(UserError, match=r"^data\.chunk_tokens"):
        load_examples(dataclasses.replace(config, chunk_tokens=0), SMALL, "train")


def test_lenient_reading_reports_what_was_left_out(rows, write):
    path = write([*rows, {"id": "broken"}])
    config = DataConfig(source="flashrag", path=path, validation_questions=4)
    with pytest.raises(UserError, match=r"questions\.jsonl:41: golden_answers: missing"):
        load_examples(config, SMALL, "train")
    examples = load_examples(dataclasses.replace(config, strict=False), SMALL, "train")
    assert len(examples) == 36 and examples.problems == (f"{path}:41: golden_answers: missing",)


def test_real_hotpotqa_in_several_chunks(shared_dir):
    tokenizer = load_tokenizer(str(shared_dir / "tokenizer" / "qwen2.5"))
    config = DataConfig(
        source="flashrag",
        path=str(shared_dir / "data" / "hotpotqa_train.jsonl"),
        document_tokens=3000,
        chunk_tokens=1000,
        validation_questions=10,
    )
    examples = load_examples(config, tokenizer, "train")
    assert len(examples) == 90
    for example in examples:
        assert len(example.chunks) == 3 and 2910 <= example.document_tokens <= 3000
