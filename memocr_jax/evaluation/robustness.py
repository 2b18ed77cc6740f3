"""The effect of layout: gold evidence is put into memories as headings or as body text, and read back.

An analysis of arXiv 2601.21468. Both variants have the same words at the same place, the memory's beginning;
they differ in how large the evidence is drawn.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import Any

from flax import nnx

from memocr_jax.agent.agent import Agent
from memocr_jax.config import EvalConfig
from memocr_jax.core.errors import UserError
from memocr_jax.core.types import QaExample
from memocr_jax.evaluation.methods import answer_pages, waves
from render.types import Mode

AS_WRITTEN, AS_HEADING, AS_BODY = "memory as written", "evidence as heading", "evidence as body text"
VARIANTS = (AS_HEADING, AS_BODY, AS_WRITTEN)
_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|~&!+.()-])")


def inject(memory: str, evidence: Sequence[str], variant: str, mode: Mode = "markdown") -> str:
    """The memory with the evidence before it: each sentence a level-1 heading, or a paragraph."""
    sentences = [" ".join(sentence.split()) for sentence in evidence]
    if variant == AS_WRITTEN:
        return memory
    if mode == "html":
        tag = "h1" if variant == AS_HEADING else "p"
        blocks = [f"<{tag}>{html.escape(sentence)}</{tag}>" for sentence in sentences]
    else:
        mark = "# " if variant == AS_HEADING else ""
        blocks = [mark + _MARKUP.sub(r"\\\1", sentence) for sentence in sentences]
    return "\n\n".join([*blocks, memory])


def robustness(
    agent: Agent,
    params: nnx.State,
    examples: Sequence[QaExample],
    memories: Sequence[str],
    settings: EvalConfig,
    dataset: str,
    length: str,
) -> list[dict[str, Any]]:
    """Results (fields `methods.KEYS`, the variant being the method) of every variant at every budget.

    `memories` has one text for each example. Examples without evidence are left out; raises UserError when
    none is left.
    """
    chosen = [i for i, example in enumerate(examples) if any(e.strip() for e in example.evidence)]
    if not chosen:
        raise UserError(f"{dataset} {length}: no question has gold evidence; use data that tells it")
    results = []
    for wave in waves(len(chosen), settings, agent.engine.config.groups):
        places = [chosen[k] for k in wave]
        asked = [examples[i] for i in places]
        for variant in VARIANTS:
            texts = [
                inject(memories[i], examples[i].evidence, variant, agent.config.memory_format) for i in places
            ]
            for answered in answer_pages(agent, params, asked, texts, settings, variant):
                results += answered.results(dataset, length)
    return results
