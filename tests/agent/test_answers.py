import itertools
import json
import random
import re
import string
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memocr_jax.agent.answers import boxed_answer, exact_match, f1, list_match, sub_em
from memocr_jax.core.normalize import normalize


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{Paris}", "Paris"),
        (r"\boxed{one} or rather \boxed{two}.", "two"),
        (r"\boxed{ spaced  }", "spaced"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{a {b {c}} d}", "a {b {c}} d"),
        (r"\boxed{\text{New York}}", "New York"),
        (r"\boxed{\textbf{\text{New York}}}", "New York"),
        (r"\boxed{\text{New} York}", r"\text{New} York"),
        (r"\boxed {loose}", "loose"),
        (r"\boxed{}", ""),
        (r"\boxed{an \} escaped brace}", r"an \} escaped brace"),
        (r"\boxed{complete} then \boxed{never closed", "complete"),
        (r"\boxed{outer \boxed{inner}}", "inner"),
        ("\\boxed{two\nlines}", "two\nlines"),
        (r"\boxed{never closed", None),
        (r"boxed{no backslash}", None),
        (r"\boxedx{other command}", None),
        ("", None),
    ],
)
def test_boxed_answer(text, answer):
    assert boxed_answer(text) == answer


@given(st.text())
def test_boxed_answer_never_fails_and_finds_what_was_put_in(text):
    boxed_answer(text)
    plain = "".join(c for c in text if c not in "{}\\").strip()
    assert boxed_answer(text + r" \boxed{" + plain + "} " + plain) == plain


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Beatles!", "beatles"),
        ("  An  apple\ta day ", "apple day"),
        ("U.S.A.", "usa"),
        ("theory", "theory"),
        ("Ro\u0308ntgen", "r\u00f6ntgen"),
        ("1,234.5", "12345"),
        ("twenty-one", "twentyone"),
    ],
)
def test_normalize(text, normal):
    assert normalize(text) == normal


def test_no_answer_is_wrong_for_every_measure():
    for measure in (exact_match, f1, sub_em):
        assert measure(None, ["x"]) == 0.0
        assert measure("x", []) == 0.0
        assert measure("", ["x"]) == 0.0


def test_measures_on_values_worked_out_by_hand():
    # {new, york, city} against {new, york}: precision 2/3, recall 1, F1 = 2*(2/3)*1 / (2/3+1) = 0.8.
    assert f1("New York City", ["new york"]) == pytest.approx(0.8)
    assert exact_match("New York City", ["new york"]) == 0.0
    assert sub_em("New York City", ["the new york"]) == 1.0
    # The best gold answer counts.
    assert f1("New York City", ["london", "York"]) == pytest.approx(0.5)  # P 1/3, R 1
    # A wrong yes or no earns nothing, even where words overlap.
    assert f1("no way", ["no"]) == 0.0
    assert f1("No.", ["no"]) == 1.0


def test_gold_answers_made_of_articles_or_signs_are_not_matched_by_nothing():
    assert exact_match("", ["The The"]) == 0.0
    assert exact_match("the the", ["The The"]) == 1.0
    assert sub_em("anything", ["!!!"]) == 0.0
    assert sub_em("they are called !!!", ["!!!"]) == 1.0


# ----- an independent scorer, written from the published definition and sharing no code with answers.py


def _reference_normal(text):
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    # An article is a whole run of word characters, as \b has it in SQuAD's script: also next to an emoji.
    runs = re.findall(r"\w+|\W", kept)
    return "".join(" " if run in ("a", "an", "the") else run for run in runs).split()


def _reference(prediction, golds):
    best = [0.0, 0.0, 0.0]
    ours = _reference_normal(prediction)
    for gold in golds:
        theirs = _reference_normal(gold)
        same = float(ours == theirs)
        if same == 0.0 and (
            ours in ([["yes"], ["no"], ["noanswer"]]) or theirs in ([["yes"], ["no"], ["noanswer"]])
        ):
            overlap = 0.0
        else:
            pool, hits = list(theirs), 0
            for word in ours:
                if word in pool:
                    pool.remove(word)
                    hits += 1
            precision = hits / len(ours) if ours else 0.0
            recall = hits / len(theirs) if theirs else 0.0
            overlap = 2 * precision * recall / (precision + recall) if hits else same
        inside = float(" ".join(theirs) in " ".join(ours))
        best = [max(a, b) for a, b in zip(best, (same, overlap, inside), strict=True)]
    return best


def _pairs(answers, number, rng):
    """Predictions near gold answers: cut, extended, reordered, recased, with articles and punctuation."""
    decorations = ["the ", "a ", "An ", "", " (of course)", "!", "...", " and more", "“", "—", "\u00a0", "\t"]
    for _ in range(number):
        golds = rng.sample(answers, rng.choice([1, 1, 2, 5]))
        words = rng.choice([rng.choice(golds), rng.choice(answers)]).split()
        kind = rng.randrange(6)
        if kind == 1:
            rng.shuffle(words)
        elif kind == 2:
            words = words[: rng.randrange(len(words) + 1)]
        elif kind == 3:
            words = words + rng.choice(answers).split()
        elif kind == 4:
            words = [w.upper() if rng.random() < 0.5 else w.replace("-", " ") for w in words]
        elif kind == 5:
            words = rng.choice(["yes", "no", "noanswer", "", "42", "4.2", "$5,000", "naïve café"]).split()
        text = " ".join(words)
        for _ in range(rng.randrange(3)):
            extra = rng.choice(decorations)
            text = extra + text if rng.random() < 0.5 else text + extra
        yield text, golds


def _assert_agreement(answers, number):
    rng = random.Random(0)
    outcomes = Counter()
    for prediction, golds in _pairs(answers, number, rng):
        expected = _reference(prediction, golds)
        got = [exact_match(prediction, golds), f1(prediction, golds), sub_em(prediction, golds)]
        close = all(abs(x - y) < 1e-12 for x, y in zip(got, expected, strict=True))
        assert close, f"{prediction!r} against {golds!r}: {got} != {expected}"
        outcomes[tuple(score > 0 for score in got)] += 1
    # The pairs must reach right, partly right, contained and wrong answers, each often.
    assert all(outcomes[key] > number // 50 for key in [(True,) * 3, (False, True, False), (False,) * 3])


def test_agrees_with_an_independent_scorer_on_generated_pairs():
    words = [
        "Röntgen",
        "yes",
        "no",
        "1987",
        "New York",
        "the Who",
        "Café de l’Étoile",
        "well-known",
        "3.14",
        "U.S.",
    ]
    joined = [" ".join(pair) for pair in itertools.permutations(words, 2)]
    _assert_agreement(words + joined, 10_000)


def test_agrees_with_an_independent_scorer_on_real_answers(shared_dir):
    answers = []
    for file in sorted((shared_dir / "data").glob("*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            answers += json.loads(line)["golden_answers"]
    usable = sorted({a for a in answers if _reference_normal(a)})
    _assert_agreement(usable, 10_000)


@pytest.mark.parametrize(
    ("prediction", "right"),
    [
        ("alpha, beta, gamma", 1.0),
        ("alpha,beta,gamma", 1.0),  # was "alphabetagamma" in normal form
        ("Alpha , beta,\ngamma.", 1.0),
        ("alpha beta gamma", 1.0),
        ("alpha, gamma, beta", 0.0),
        ("alpha, beta", 0.0),
        ("alpha, beta, gamma, delta", 0.0),
        ("alpha, betagamma", 0.0),
        (None, 0.0),
    ],
)
def test_a_list_is_compared_item_by_item(prediction, right):
    assert list_match(prediction, ["alpha, beta, gamma"]) == right
