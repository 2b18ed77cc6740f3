"""Evaluations as the command leaves them, made by hand: what is read right follows a rule that is known."""

from __future__ import annotations

import dataclasses
import hashlib
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from memocr_jax.agent.agent import Agent
from memocr_jax.config import AgentConfig, EvalConfig
from memocr_jax.core.metrics import Stopwatch
from memocr_jax.core.types import Completion, QaExample, Stop
from memocr_jax.evaluation.journal import Journal, write_pages, write_results
from memocr_jax.evaluation.outputs import write_outputs
from memocr_jax.models.tokenizer import load_tokenizer
from memocr_jax.report import write_evaluation
from render.types import MemoryPage, PageStatus
from render.views import fit, image_tokens

BUDGETS = (512, 64, 8)
METHODS = ("visual memory", "visual without layout", "text memory", "raw history")
# Smallest budget at which a question whose number is k (mod 4) is read right; 10**6 is never.
LEAST = {
    "visual memory": (8, 64, 64, 512),
    "visual without layout": (64, 512, 512, 10**6),
    "text memory": (64, 512, 10**6, 10**6),
    "raw history": (0, 0, 10**6, 10**6),
}


def draw_page(lines: list[tuple[str, int]], width: int = 364) -> np.ndarray:
    """u8[H, W, 3]: lines of (text, size in px)."""
    height = sum(int(size * 1.4) for _, size in lines) + 20
    image = Image.new("RGB", (width, height), "white")
    draw, y = ImageDraw.Draw(image), 8
    for text, size in lines:
        draw.text((8, y), text, "black", ImageFont.load_default(size))
        y += int(size * 1.4)
    return np.asarray(image)


@dataclasses.dataclass
class Evaluation:
    """A directory with an evaluation in it."""

    directory: Path
    settings: EvalConfig
    summary: dict[str, Any]


def make_entries(
    directory: Path,
    sets=(("hotpotqa", "10k"), ("hotpotqa", "30k"), ("nq", "10k"), ("nq", "30k")),
    questions: int = 8,
    samples: int = 1,
    methods=METHODS,
    budgets=BUDGETS,
    text: str = "",
    pages: bool = True,
) -> Journal:
    """A journal whose question i of every set follows LEAST[method][i % 4]; question 7 of the first set has
    no page. `text` goes into every free text."""
    journal = Journal(directory)
    journal.open({"made": "by hand"})
    for s, (dataset, length) in enumerate(sets):
        for i in range(questions):
            journal.append(
                (s, i), entry(journal, dataset, length, s, i, samples, methods, budgets, text, pages)
            )
    return journal


def entry(journal, dataset, length, s, i, samples, methods, budgets, text, with_pages):
    gold = f"Answer {i}"
    blank = s == 0 and i == 7
    results, texts, shown, pages = [], [], [], {}
    for sample in range(samples):
        for method in methods:
            heading = 40 if method == "visual memory" else 14
            body = [(f"detail {k} of question {i}{' ' + text if text else ''}", 14) for k in range(12)]
            pixels = draw_page([(f"{gold} is the answer", heading), *body])
            content_hash = hashlib.sha256(pixels.tobytes()).hexdigest()[:24]
            visual = method.startswith("visual")
            for budget in (None,) if method == "raw history" else budgets:
                failed = blank and visual
                right = not failed and (budget or 0) >= LEAST[method][i % 4]
                prediction = None if failed else gold if right else f"no idea{text}"
                results.append(
                    {
                        "dataset": dataset,
                        "length": length,
                        "method": method,
                        "budget": budget,
                        "sample": sample,
                        "id": f"{dataset}-{i}",
                        "answers": [gold, f"{gold}{text}"] if text else [gold],
                        "prediction": prediction,
                        "em": float(right),
                        "f1": float(right),
                        "sub_em": float(right),
                        "status": "TIMEOUT" if failed else "OK",
                        "image_tokens": image_tokens(fit(pixels, budget)) if visual and not failed else None,
                        "page_hash": content_hash if visual else None,
                    }
                )
                texts.append(None if failed else f"I see \\boxed{{{prediction}}}{text}")
                shown.append(None if visual else 9000 if method == "raw history" else min(budget, 300))
            if visual:
                status = PageStatus.TIMEOUT if blank else PageStatus.OK
                pages[content_hash] = MemoryPage(None if blank else pixels, status, text, content_hash)
    if with_pages:
        write_pages(journal.directory, pages)
    return {
        "results": results,
        "question": f"What is asked by question {i} of {dataset}?{text}",
        "document_tokens": 10_000 * (1 + s),
        "evidence": [f"{gold} is the answer."],
        "memories": [f"# {gold} is the answer\n\ndetails{text}"] * samples,
        "texts": texts,
        "shown_tokens": shown,
        "pages": {h: {"status": str(page.status), "detail": page.detail} for h, page in pages.items()},
    }


def finish(journal: Journal, **settings: Any) -> Evaluation:
    """Write everything that follows from a journal."""
    config = dataclasses.replace(EvalConfig(), methods=METHODS, budgets=BUDGETS, bootstrap=200, **settings)
    entries = journal.finished()
    write_results(journal.directory, entries)
    names = dict.fromkeys((e["results"][0]["dataset"], e["results"][0]["length"]) for e in entries.values())
    about = {
        "checkpoint": 120,
        "weights": "runs/made_up",
        "samples": 1 + max(r["sample"] for e in entries.values() for r in e["results"]),
        "temperature": 1.0,
        "top_p": 0.7,
        "sets": [
            {
                "dataset": dataset,
                "length": length,
                "questions": sum(place[0] == s for place in entries),
                "left_out": 2 * (s == 0),
                "problems": ["rows.jsonl:3: question: empty", "rows.jsonl:9: not JSON"] if s == 0 else [],
            }
            for s, (dataset, length) in enumerate(names)
        ],
    }
    summary = write_outputs(journal.directory, entries, config, 0, about)
    write_evaluation(journal.directory, entries, summary, config)
    return Evaluation(journal.directory, config, summary)


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory) -> Evaluation:
    """A finished evaluation of two data sets at two lengths by all methods."""
    return finish(make_entries(tmp_path_factory.mktemp("made_up") / "evaluation"))


@pytest.fixture(scope="session")
def by_hand() -> SimpleNamespace:
    """Helpers that make evaluations by hand."""
    return SimpleNamespace(finish=finish, make_entries=make_entries, result=result, METHODS=METHODS)


def result(**changes: Any) -> dict[str, Any]:
    """A line of results.jsonl."""
    return {
        "dataset": "nq",
        "length": "10k",
        "method": "visual memory",
        "budget": 64,
        "sample": 0,
        "id": "a",
        "answers": ["x"],
        "prediction": "x",
        "em": 1.0,
        "f1": 1.0,
        "sub_em": 1.0,
        "status": "OK",
        "image_tokens": 60,
        "page_hash": "h",
        **changes,
    }


class Engine:
    """Drafts a memory that names its sample; reads say how many tokens the prompt and the image have."""

    def __init__(self, tokenizer, memory):
        self.tokenizer, self.memory, self.calls = tokenizer, memory, []
        self.config = SimpleNamespace(groups=4)
        self.model_config = SimpleNamespace(text=SimpleNamespace(max_position_embeddings=6000))

    def generate(self, params, groups, max_new_tokens, sampling, progress=lambda done, total: None, **_):
        self.calls.append((groups, sampling))
        return [[self.complete(group, k) for k in range(len(group.suffixes))] for group in groups]

    def complete(self, group, k):
        if self.is_draft(group):
            text = self.memory(k)
        else:
            pixels = "-" if group.image is None else "x".join(map(str, group.image.shape[:2]))
            text = f"\\boxed{{{len(group.prefix)} {pixels} {group.keys[k][0]}}}"
        tokens = np.array(self.tokenizer.encode(text), np.int32)
        return Completion(tokens, np.zeros(len(tokens), np.float32), Stop.EOS)

    def is_draft(self, group):
        return "Memory so far" in self.tokenizer.decode(group.prefix)

    def drafts(self):
        return [group for groups, _ in self.calls for group in groups if self.is_draft(group)]

    def reads(self):
        return [group for groups, _ in self.calls for group in groups if not self.is_draft(group)]


class Renderer:
    """A page of 280 x 140 px (50 tokens), or none for a memory that says so."""

    def __init__(self):
        self.seen = []

    def submit(self, memory, mode=None):
        self.seen.append((memory, mode))
        future = Future()
        if "unreadable" in memory:
            future.set_result(MemoryPage(None, PageStatus.TIMEOUT, "", f"none{len(memory)}"))
        else:
            pixels = np.full((140, 280, 3), len(memory) % 255, np.uint8)
            future.set_result(MemoryPage(pixels, PageStatus.OK, "", f"page{len(memory)}-{mode}"))
        return future


@pytest.fixture(scope="session")
def tokenizer():
    return load_tokenizer()


@pytest.fixture
def agent(tokenizer):
    def make(memory=lambda k: f"# Heading {k}\n\nbody text of sample {k} " + "word " * 40):
        engine = Engine(tokenizer, memory)
        return Agent(engine, tokenizer, Renderer(), AgentConfig(), 3, Stopwatch())

    return make


@pytest.fixture(scope="session")
def examples():
    return make_examples


def make_examples(tokenizer, count=3, words=200, **changes):
    chunk = np.array(tokenizer.encode("the quick fox " * words), np.int32)
    made = [QaExample(f"q{i}", f"What is {i}?", (chunk, chunk), (f"gold {i}",)) for i in range(count)]
    return [dataclasses.replace(example, **changes) for example in made]
