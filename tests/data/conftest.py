"""Rows in FlashRAG's layout, about people who do not exist."""

import json

import pytest

from memocr_jax.config.data import SyntheticConfig
from memocr_jax.data.synthetic import SyntheticWorld


def flashrag_row(number):
    """Row `number`: a question whose answer is in the middle sentence of one of three passages."""
    question = SyntheticWorld(SyntheticConfig(facts=9, hops_max=1, distractors=0), 0, "train", 10**6)[number]
    evidence = question.evidence[0]
    others = [fact for fact in question.facts if fact is not evidence]
    sentences = [[others[i].sentence, others[i + 1].sentence] for i in (0, 2, 4)]
    sentences[number % 3].insert(1, evidence.sentence)
    titles = [f"Register {number}, page {page}" for page in range(3)]
    return {
        "id": f"row-{number}",
        "question": question.question,
        "golden_answers": [question.answer],
        "metadata": {
            "type": "bridge",
            "level": None,
            "supporting_facts": {"title": [titles[number % 3]], "sent_id": [1]},
            "context": {"title": titles, "sentences": sentences},
        },
    }


@pytest.fixture
def rows():
    return [flashrag_row(number) for number in range(40)]


@pytest.fixture
def write(tmp_path):
    """Write objects (or raw bytes, one line each) as a JSON-lines file and give its path."""

    def _write(lines, name="questions.jsonl"):
        path = tmp_path / name
        encoded = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
        path.write_bytes(b"".join(line + b"\n" for line in encoded))
        return str(path)

    return _write
