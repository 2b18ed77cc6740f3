import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from memocr_jax.core.errors import UserError
from memocr_jax.core.normalize import normalize
from memocr_jax.data.contexts import AnswerFinder, ContextBuilder, cut_middle, split_chunks
from memocr_jax.data.flashrag import parse_row, read_flashrag, read_pool
from memocr_jax.data.rows import Paragraph, SourceQuestion
from memocr_jax.models.tokenizer import load_tokenizer

SMALL = load_tokenizer()


@pytest.fixture
def questions(rows):
    return [parse_row(row) for row in rows]


@pytest.fixture
def builder(questions):
    return ContextBuilder([p for q in questions for p in q.paragraphs], SMALL, seed=3)


def test_tokens_are_those_of_the_text(questions, builder):
    for question in questions[:5]:
        document = builder.build(question, 800)
        assert document.tokens.tolist() == SMALL.encode(document.text)
        assert document.tokens.dtype == np.int32


def test_passages_are_numbered_and_the_gold_ones_are_where_it_says(questions, builder):
    for question in questions:
        document = builder.build(question, 800)
        parts = document.text.split("\n\n")[:-1]
        assert [part.split("\n")[0] for part in parts] == [f"Document {n + 1}:" for n in range(len(parts))]
        assert len(parts) == document.num_passages
        gold = [part for n, part in enumerate(parts) if n in document.gold_positions]
        assert sorted(part.split("\n")[2] for part in gold) == [
            question.paragraphs[i].text for i in question.gold
        ]
        assert all(sentence in document.text for sentence in question.evidence)


def test_filler_holds_no_answer_and_no_supporting_title(questions, builder):
    for question in questions:
        document = builder.build(question, 800)
        for n, part in enumerate(document.text.split("\n\n")[:-1]):
            if n in document.gold_positions:
                continue
            assert normalize(question.answers[0]) not in normalize(part.split("\n", 1)[1])
            assert part.split("\n")[1] != question.paragraphs[question.gold[0]].title


def test_documents_follow_from_seed_and_id_alone(questions, builder):
    again = ContextBuilder([p for q in questions for p in q.paragraphs], SMALL, seed=3)
    texts = [again.build(q, 800).text for q in reversed(questions)]
    assert texts[::-1] == [builder.build(q, 800).text for q in questions]
    other = ContextBuilder([p for q in questions for p in q.paragraphs], SMALL, seed=4)
    assert other.build(questions[0], 800).text != builder.build(questions[0], 800).text


def test_the_order_of_the_pool_decides_nothing(questions, builder):
    pool = [p for q in questions for p in q.paragraphs]
    # Of two passages with one text, the same one is taken.
    pool += [Paragraph("Another title", pool[3].text)]
    for order in (pool[::-1], pool[7:] + pool[:7]):
        one, other = (ContextBuilder(passages, SMALL, seed=3) for passages in (pool, order))
        assert [one.build(q, 800).text for q in questions] == [other.build(q, 800).text for q in questions]


@pytest.mark.parametrize("target", [300, 800, 2000])
def test_lengths_come_near_the_target_from_below(questions, builder, target):
    for question in questions[:10]:
        length = len(builder.build(question, target).tokens)
        assert target - 60 <= length <= target, "a passage of this world has about 40 tokens"


def test_gold_passages_stay_even_when_they_alone_are_too_long(questions, builder):
    document = builder.build(questions[0], 5)
    assert document.num_passages == 1 and document.gold_positions == (0,)
    assert questions[0].evidence[0] in document.text


def test_target_zero_keeps_a_question_s_own_passages(questions, builder):
    document = builder.build(questions[0], 0)
    assert document.num_passages == 3
    assert all(p.text in document.text for p in questions[0].paragraphs)


def test_one_huge_passage_does_not_end_the_search(questions):
    """A passage that does not fit is passed over; the length is reached with the others."""
    huge = [Paragraph(f"Huge {n}", f"{n} " + "many words of one passage " * 400) for n in range(100)]
    small = [Paragraph(f"Small {n}", f"Sentence {n} of a small passage.") for n in range(400)]
    for seed in range(5):
        builder = ContextBuilder(huge + small, SMALL, seed=seed)
        assert 0.97 * 1500 <= len(builder.build(questions[0], 1500).tokens) <= 1500
        with pytest.raises(UserError, match="cannot be reached"):
            ContextBuilder(huge[:1], SMALL, seed=seed).build(questions[0], 1500)


def test_answers_without_a_normal_form_are_looked_for_as_they_are():
    pool = [
        Paragraph(f"T{n}", f"Number {n}: " + ("the band !!! played." if n % 2 else "silence."))
        for n in range(50)
    ]
    question = SourceQuestion("q", "Who played?", ("!!!",), (Paragraph("Gold", "!!! it was."),), gold=(0,))
    document = ContextBuilder(pool, SMALL, seed=0).build(question, target_passages=26)
    assert document.text.count("!!!") == 1 and document.num_passages == 26


def test_a_pool_that_is_too_small_says_so(questions):
    builder = ContextBuilder(questions[0].paragraphs, SMALL, seed=0)
    with pytest.raises(UserError, match=r"^data\.document_tokens: 5000 cannot be reached for .*'row-0'"):
        builder.build(questions[0], 5000)


def test_the_same_text_is_not_put_in_twice(questions):
    copies = [Paragraph(f"copy {n}", questions[0].paragraphs[0].text) for n in range(50)]
    builder = ContextBuilder([*copies, Paragraph("x", "Other words.")], SMALL, seed=0)
    document = builder.build(questions[0], 0)
    assert document.num_passages == 3
    with pytest.raises(UserError, match="cannot be reached"):
        builder.build(questions[0], 3000)


@pytest.mark.parametrize(
    ("text", "answers", "found"),
    [
        ("exiled in paris", ["exile"], True),  # inside a word counts: the filter errs on the safe side
        ("nobody knows", ["no"], False),
        ("there is no way", ["no"], True),
        ("yes", ["yes"], True),
        ("no-one came", ["no"], True),
        ("noone came", ["no"], False),
        ("anything", [""], False),
        ("anything", ["!!!"], False),
        ("so they said: !!! and left", ["!!!"], True),
        ("the u.s. navy", ["U.S."], True),
        ("because", ["U.S."], True),  # "us" in normal form: again on the safe side
        ("back in the\nnew york of old", ["New York"], True),
        ("born in 1987", ["1986", "1987"], True),
        ("because of scurvy", ["C"], False),  # a letter is not looked for inside words ...
        ("rich in vitamin c.", ["C"], True),  # ... and found where it stands alone
        ("Rich in Vitamin C", ["C"], True),
        ("because of scurvy", ["C."], False),
        ("in 1987", ["7"], False),
        ("7 of them", ["7"], True),
        ("\u6c34\u7d20", ["\u6c34"], True),  # a Chinese character is a word, and words are not set apart
        ("a planet", ["A"], False),  # an article alone is no answer, as in scoring
        ("the band the the played", ["The The"], True),
    ],
)
def test_finding_answers(text, answers, found):
    assert AnswerFinder(answers).found_in(text) is found


def test_gold_position_is_uniform_over_questions():
    """One gold passage among 10, 2,000 questions: chi-square over its place."""
    paragraphs = tuple(Paragraph(f"Title {n}", f"Text number {n}.") for n in range(10))
    builder = ContextBuilder((), SMALL, seed=0)
    places = [
        builder.build(SourceQuestion(f"q{n}", "?", ("x",), paragraphs, gold=(n % 10,)), 0).gold_positions[0]
        for n in range(2000)
    ]
    assert stats.chisquare(np.bincount(places, minlength=10)).pvalue > 0.001


@given(st.integers(0, 300), st.integers(0, 100), st.integers(1, 40))
def test_cut_middle_and_split_chunks(length, limit, chunk):
    tokens = np.arange(length, dtype=np.int32)
    kept = cut_middle(tokens, limit)
    assert len(kept) == (min(length, limit) if limit else length)
    if limit and length > limit:
        # The first ceil(limit/2) and the last floor(limit/2) tokens.
        head = -(-limit // 2)
        assert kept.tolist() == [*range(head), *range(length - (limit - head), length)]
    chunks = split_chunks(kept, chunk)
    assert np.concatenate([*chunks, []]).tolist() == kept.tolist()
    assert all(len(c) == chunk for c in chunks[:-1]) and all(len(c) > 0 for c in chunks)


@pytest.mark.parametrize("name", ["hotpotqa", "2wikimultihopqa", "nq", "triviaqa"])
def test_real_contexts(shared_dir, name):
    """10K and 30K real tokens: lengths within 3%, evidence in, no answer in filler, places uniform."""
    tokenizer = load_tokenizer(str(shared_dir / "tokenizer" / "qwen2.5"))
    rows = read_flashrag(str(shared_dir / "data" / f"{name}_dev.jsonl")).questions[:64]
    builder = ContextBuilder(
        read_pool(str(shared_dir / "data" / "pool" / f"{name}.jsonl")), tokenizer, seed=0
    )
    places = []
    for target in (10_000, 30_000):
        for question in rows if target == 10_000 else rows[:8]:
            document = builder.build(question, target)
            assert 0.97 * target <= len(document.tokens) <= target
            assert all(sentence in document.text for sentence in question.evidence)
            passages = document.text.split("\n\nDocument ")
            assert len(passages) == document.num_passages
            finder = AnswerFinder(question.answers)
            for n, passage in enumerate(passages):
                text = passage.split("\n", 1)[1].lower()
                assert n in document.gold_positions or not finder.found_in(text)
            places += [place / document.num_passages for place in document.gold_positions]
    assert document.tokens.tolist() == tokenizer.encode(document.text)
    # 10 equal parts of the document, at least 7 places expected in each (test_real_soak.py has many more).
    assert stats.chisquare(np.histogram(places, bins=10, range=(0, 1))[0]).pvalue > 0.001
