"""All four data sets at 10K, 30K and 100K tokens through the command line, twice, checked from outside."""

import json
import re
import subprocess
import sys
import time

import numpy as np
import pytest
from scipy import stats

from memocr_jax.data.flashrag import read_flashrag
from memocr_jax.data.prepared import PreparedQuestions
from memocr_jax.models.tokenizer import load_tokenizer

NAMES = ("hotpotqa", "2wikimultihopqa", "nq", "triviaqa")


def prepare(shared_dir, name, length, to, workers):
    data = shared_dir / "data"
    command = [sys.executable, "-m", "memocr_jax.data", "prepare", "--name", name, "--length", length]
    command += [
        "--questions",
        str(data / f"{name}_dev.jsonl"),
        "--pool",
        str(data / "pool" / f"{name}.jsonl"),
    ]
    command += ["--tokenizer", str(shared_dir / "tokenizer" / "qwen2.5"), "--limit", "128"]
    start = time.perf_counter()
    result = subprocess.run(
        [*command, "--to", str(to), "--workers", str(workers)], check=True, capture_output=True, text=True
    )
    return time.perf_counter() - start, int(re.search(r"(\d+) MiB at most", result.stdout)[1])


def passages(document):
    """Title and text of each passage, from nothing but the document's text."""
    parts = re.split(r"(?:\A|\n\n)Document \d+:\n", document.removesuffix("\n\n"))[1:]
    return [tuple(part.split("\n", 1)) for part in parts]


def holds(answer, text):
    """An answer found in plain text, by rules of this test's own: yes and no as words, others anywhere."""
    if answer.lower() in ("yes", "no"):
        return re.search(rf"(?i)\b{answer}\b", text) is not None
    return answer.lower() in text.lower()


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("length", ["10k", "30k", "100k"])
def test_prepare_real_data(shared_dir, tmp_path, length):
    tokenizer = load_tokenizer(str(shared_dir / "tokenizer" / "qwen2.5"))
    target = int(length[:-1]) * 1000
    places = []
    for name in NAMES:
        seconds, mib = prepare(shared_dir, name, length, tmp_path / name, workers=1)
        prepare(shared_dir, name, length, tmp_path / f"{name}-again", workers=2)
        files = sorted(
            path.relative_to(tmp_path / name) for path in (tmp_path / name).rglob("*") if path.is_file()
        )
        assert len(files) == 8 + 8 + 5  # shards, reports, job + manifest + what TFDS keeps
        for file in files:
            assert (tmp_path / name / file).read_bytes() == (tmp_path / f"{name}-again" / file).read_bytes()
        sources = {
            q.example_id: q for q in read_flashrag(str(shared_dir / "data" / f"{name}_dev.jsonl")).questions
        }
        lengths = []
        for question in PreparedQuestions(str(tmp_path / name)):
            source = sources[question.example_id]
            gold = {(source.paragraphs[i].title, source.paragraphs[i].text) for i in source.gold}
            found = passages(question.context)
            lengths.append(len(tokenizer.encode(question.context)))
            assert 0.97 * target <= lengths[-1] <= 1.03 * target
            assert gold <= set(found), f"{question.example_id}: a gold passage is missing"
            assert all(sentence in question.context for sentence in source.evidence)
            titles = {title for title, _ in gold}
            for place, passage in enumerate(found):
                if passage in gold:
                    places.append(place / len(found))
                    continue
                assert passage[0] not in titles
                assert not any(holds(answer, " ".join(passage)) for answer in source.answers)
        manifest = json.loads((tmp_path / name / "manifest.json").read_text())
        assert manifest["questions"] == 128 and not manifest["problems"]
        assert (manifest["document_tokens"]["least"], manifest["document_tokens"]["most"]) == (
            min(lengths),
            max(lengths),
        )
        print(f"{name} {length}: {min(lengths)}-{max(lengths)} tokens, {seconds:.1f} s, {mib} MiB")
    chi2 = stats.chisquare(np.histogram(places, bins=20, range=(0, 1))[0])
    print(f"{length}: {len(places)} gold passages over 20 parts, chi-square p = {chi2.pvalue:.3f}")
    assert chi2.pvalue > 0.001
