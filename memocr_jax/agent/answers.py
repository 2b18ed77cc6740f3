"""The scorer of rewards and evaluation: boxed answers are compared after SQuAD normalisation.

Normalisation is SQuAD's (arXiv 1606.05250, evaluation script): lower case, no ASCII punctuation, no English
articles, single spaces. In addition text is brought to NFC, so that two spellings of one accented letter
are equal. F1 gives nothing for a wrong yes, no or noanswer, as the HotpotQA script does (arXiv 1809.09600).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from memocr_jax.core.normalize import normalize

_BOX = re.compile(r"\\boxed\s*\{")
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf)\s*\{")
_CLOSED = frozenset({"yes", "no", "noanswer"})


def boxed_answer(text: str) -> str | None:
    r"""The contents of the last complete `\boxed{...}` in `text`, or None when there is none.

    Braces may be nested and escaped (`\{`); a box around nothing but `\text{...}` gives the inner text.
    """
    for match in reversed(list(_BOX.finditer(text))):
        end = _closing_brace(text, match.end())
        if end is not None:
            return _unwrap(text[match.end() : end].strip())
    return None


def exact_match(prediction: str | None, golds: Iterable[str]) -> float:
    """1.0 when `prediction` equals one of `golds` in normal form, else 0.0; None (no answer) is wrong."""
    if prediction is None:
        return 0.0
    return float(any(_comparable(prediction, gold) == _comparable(gold, gold) for gold in golds))


def list_match(prediction: str | None, golds: Iterable[str]) -> float:
    """1.0 when `prediction` lists the words of one of `golds`, in order, else 0.0.

    Items are separated by commas, with or without spaces, and compared one by one in normal form; a list
    without commas is compared as a whole.
    """
    if prediction is None:
        return 0.0
    given = [normalize(item) for item in prediction.split(",")]
    listed = any(given == [normalize(item) for item in gold.split(",")] for gold in golds)
    return 1.0 if listed else exact_match(prediction, golds)


def sub_em(prediction: str | None, golds: Iterable[str]) -> float:
    """1.0 when one of `golds` is contained in `prediction` (normal forms, as strings), else 0.0."""
    if prediction is None:
        return 0.0
    return float(any(_contains(_comparable(prediction, gold), _comparable(gold, gold)) for gold in golds))


def f1(prediction: str | None, golds: Iterable[str]) -> float:
    """The largest F1 over `golds` between the bags of words of the normal forms; None scores 0.0."""
    if prediction is None:
        return 0.0
    return max((_f1(_comparable(prediction, gold), _comparable(gold, gold)) for gold in golds), default=0.0)


def _closing_brace(text: str, start: int) -> int | None:
    depth, position = 1, start
    while position < len(text):
        char = text[position]
        if char == "\\":
            position += 1  # an escaped character never opens or closes
        elif char == "{":
            depth += 1
        elif char == "}":
            depth -= 1
            if depth == 0:
                return position
        position += 1
    return None


def _unwrap(answer: str) -> str:
    while match := _TEXT_COMMAND.match(answer):
        if _closing_brace(answer, match.end()) != len(answer) - 1:
            break
        answer = answer[match.end() : -1].strip()
    return answer


def _comparable(text: str, gold: str) -> str:
    # A gold such as "The The" or "!" normalises to nothing and would equal an empty prediction: compare
    # letters and signs as they are instead.
    return normalize(text) if normalize(gold) else " ".join(text.lower().split())


def _contains(prediction: str, gold: str) -> bool:
    return gold in prediction if gold else not prediction


def _f1(prediction: str, gold: str) -> float:
    if prediction != gold and (prediction in _CLOSED or gold in _CLOSED):
        return 0.0
    ours, theirs = prediction.split(), gold.split()
    common = sum((Counter(ours) & Counter(theirs)).values())
    if common == 0:
        return float(ours == theirs)
    return 2 * common / (len(ours) + len(theirs))
