"""Documents: what the model is told while it reads one, and their files."""

import dataclasses

import numpy as np
import pytest

from memocr_jax.agent.agent import Agent
from memocr_jax.agent.document import Document, read_document
from memocr_jax.agent.prompts import DEFAULT_TEMPLATES
from memocr_jax.core.errors import UserError
from memocr_jax.core.metrics import Stopwatch
from memocr_jax.core.types import Completion, Stop
from memocr_jax.models.tokenizer import load_tokenizer


class Recorder:
    """An engine that answers with a number and keeps what it was asked."""

    def __init__(self, tokenizer):
        self.tokenizer, self.prompts = tokenizer, []

    def generate(self, params, groups, max_new_tokens, sampling, progress=None):
        self.prompts += [self.tokenizer.decode([*g.prefix, *g.suffixes[0]]) for g in groups]
        tokens = np.array(self.tokenizer.encode(f"memory {len(self.prompts)}"), np.int32)
        return [[Completion(tokens, np.zeros(len(tokens), np.float32), Stop.EOS)] for _ in groups]


def test_what_the_model_is_told_while_it_reads(tiny_config):
    tokenizer = load_tokenizer()
    engine = Recorder(tokenizer)
    agent = Agent(engine, tokenizer, None, tiny_config.agent, 0, Stopwatch())
    document = read_document(agent, None, Document(), "one two three four", 2, tiny_config.sampling)
    assert document.text == f"memory {document.chunks}" and document.chunks == len(engine.prompts) >= 2
    assert DEFAULT_TEMPLATES.no_memory in engine.prompts[0] and "memory 1" in engine.prompts[1]
    assert all(DEFAULT_TEMPLATES.any_question in prompt for prompt in engine.prompts)
    asked = dataclasses.replace(document, question="Who wrote it?")
    read_document(agent, None, asked, "five", 2, tiny_config.sampling)
    following = engine.prompts[document.chunks]
    assert "Question: Who wrote it?\n" in following and document.text in following
    assert DEFAULT_TEMPLATES.any_question not in following


@pytest.mark.parametrize(
    "content,message",
    [
        (None, "cannot be read"),
        ("# a memory", "not JSON"),
        ("[1]", "its kind is not"),
        ('{"text": "x"}', "its kind is not"),
        ('{"kind": "memocr memory 1", "words": 3}', "unknown field words"),
        ('{"kind": "memocr memory 1", "chunks": "3"}', "chunks is '3', which is not a whole number"),
    ],
)
def test_a_file_that_is_no_memory_is_named(tmp_path, content, message):
    path = tmp_path / "memory.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=f"memory.json: .*{message}"):
        Document.load(path)
    with pytest.raises(UserError, match="cannot be written"):
        Document().save(tmp_path / "no" / "folder.json")
