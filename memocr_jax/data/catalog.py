"""The published data sets: where they come from and under what licence."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Card:
    """What one has to know before using or sharing a data set."""

    licence: str
    homepage: str
    source: str
    """The paper that introduced it."""
    questions: str = ""
    """Hub file with questions and passages, where FlashRAG publishes both."""


CARDS = {
    "hotpotqa": Card(
        licence="CC BY-SA 4.0",
        homepage="https://hotpotqa.github.io",
        source="arXiv 1809.09600",
        questions="hf://datasets/RUC-NLPIR/FlashRAG_datasets/hotpotqa/dev.jsonl",
    ),
    "2wikimultihopqa": Card(
        licence="Apache-2.0",
        homepage="https://github.com/Alab-NII/2wikimultihop",
        source="arXiv 2011.01060",
        questions="hf://datasets/RUC-NLPIR/FlashRAG_datasets/2wikimultihopqa/dev.jsonl",
    ),
    "nq": Card(
        licence="CC BY-SA 3.0",
        homepage="https://ai.google.com/research/NaturalQuestions",
        source="Kwiatkowski et al., TACL 2019",
    ),
    "triviaqa": Card(
        licence="Apache-2.0",
        homepage="https://nlp.cs.washington.edu/triviaqa",
        source="arXiv 1705.03551",
    ),
}
"""By the name that `prepare --name` takes."""
