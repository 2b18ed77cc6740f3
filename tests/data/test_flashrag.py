import copy
import json

import pytest

from memocr_jax.core.errors import UserError
from memocr_jax.data.flashrag import parse_row, read_flashrag, read_pool


def change(row, path, value):
    """A copy of `row` with the item at `path` replaced, or removed when `value` is ...."""
    row = copy.deepcopy(row)
    inner = row
    for key in path[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return row


CONTEXT = ("metadata", "context")
FACTS = ("metadata", "supporting_facts")

BAD = [
    (("id",), ..., "id: missing"),
    (("id",), 7, "id: an integer, not a string"),
    (("question",), "  ", "question: blank"),
    (("question",), None, "question: missing"),
    (("golden_answers",), ..., "golden_answers: missing"),
    (("golden_answers",), "baker", "golden_answers: a string, not a list"),
    (("golden_answers",), [1987], "golden_answers[0]: an integer, not a string"),
    (("golden_answers",), ["x", 19.5], "golden_answers[1]: a number, not a string"),
    (("golden_answers",), [["x", "y"]], "golden_answers[0]: a list, not a string"),
    (("golden_answers",), [None], "golden_answers[0]: null, not a string"),
    (("question",), "A broken \ud83d emoji", "question: half of a UTF-16 surrogate pair"),
    (("metadata",), None, "metadata: missing"),
    (("metadata",), [], "metadata: a list, not an object"),
    (CONTEXT, ..., "metadata.context: missing or empty"),
    (CONTEXT, {}, "metadata.context: missing or empty"),
    (CONTEXT, [["T", ["It was Ann."]]], "metadata.context: a list, not an object"),
    ((*CONTEXT, "sentences"), ..., "metadata.context.sentences: missing"),
    ((*CONTEXT, "title"), None, "metadata.context.title: missing"),
    ((*CONTEXT, "title", 1), None, "metadata.context.title[1]: null, not a string"),
    ((*CONTEXT, "title", 2), [["T"]], "metadata.context.title[2]: a list, not a string"),
    ((*CONTEXT, "sentences", 1), None, "metadata.context.sentences[1]: null, not a list"),
    ((*CONTEXT, "sentences", 1), [["It was Ann."]], "metadata.context.sentences[1][0]: a list, not a string"),
    ((*CONTEXT, "sentences", 1), ["x", None], "metadata.context.sentences[1][1]: null, not a string"),
    ((*CONTEXT, "title"), ["only one"], "metadata.context.sentences: 3 passages for 1 titles"),
    ((*CONTEXT, "sentences", 1), "text", "metadata.context.sentences[1]: a string, not a list"),
    ((*CONTEXT, "sentences", 1), [3], "metadata.context.sentences[1][0]: an integer, not a string"),
    ((*CONTEXT, "sentences", 0), [" "], "metadata.context.sentences[0]: the supporting passage"),
    (FACTS, ..., "metadata.supporting_facts: missing"),
    ((*FACTS, "title"), [], "metadata.supporting_facts.sent_id: 1 ids for 0 titles"),
    (FACTS, {"title": [], "sent_id": []}, "metadata.supporting_facts.title: empty"),
    ((*FACTS, "title"), ["Elsewhere"], "metadata.supporting_facts.title: 'Elsewhere' is not in"),
    ((*FACTS, "sent_id"), ["1"], "metadata.supporting_facts.sent_id[0]: a string, not an integer"),
    ((*FACTS, "sent_id"), [True], "metadata.supporting_facts.sent_id[0]: a bool, not an integer"),
    ((*FACTS, "sent_id"), [1.0], "metadata.supporting_facts.sent_id[0]: a number, not an integer"),
    ((*FACTS, "sent_id"), [[1]], "metadata.supporting_facts.sent_id[0]: a list, not an integer"),
]


@pytest.mark.parametrize(("path", "value", "message"), BAD)
def test_a_malformed_row_is_named_by_file_line_and_field(rows, write, path, value, message):
    file = write([rows[3], change(rows[0], path, value), rows[6]])
    with pytest.raises(UserError) as error:
        read_flashrag(file)
    assert str(error.value).startswith(f"{file}:2: {message}")
    assert "\n" not in str(error.value)
    lenient = read_flashrag(file, strict=False)
    assert [q.example_id for q in lenient.questions] == ["row-3", "row-6"]
    assert len(lenient.problems) == 1 and lenient.problems[0].startswith(f"{file}:2: {message}")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"id": "x", ', "line: not JSON"),
        (b"[1, 2]", "line: a list, not an object"),
        (b"null", "line: null, not an object"),
        (b'{"id": "\xe9"}', "line: byte 8 is not UTF-8; save the file as UTF-8"),
        ("{}".encode("utf-16"), "line: byte 0 is not UTF-8"),
        (b"[" * 100_000, "line: not JSON"),
    ],
)
def test_a_line_that_is_no_object_is_named(rows, write, line, message):
    file = write([rows[0], b"", line])
    with pytest.raises(UserError) as error:
        read_flashrag(file)
    assert str(error.value).startswith(f"{file}:3: {message}")


def test_a_byte_order_mark_is_no_part_of_the_first_row(rows, write):
    marked = [b"\xef\xbb\xbf" + json.dumps(rows[0]).encode(), rows[1]]
    assert read_flashrag(write(marked)).questions == read_flashrag(write(rows[:2], "plain.jsonl")).questions
    pool = write([b'\xef\xbb\xbf{"title": "T", "text": "t"}'], "pool.jsonl")
    assert [(p.title, p.text) for p in read_pool(pool)] == [("T", "t")]
    only = write([b"\xef\xbb\xbf", rows[0]], "only.jsonl")
    assert len(read_flashrag(only).questions) == 1
    with pytest.raises(UserError, match=r":2: line: not JSON"):
        read_flashrag(write([rows[0], marked[0]], "late.jsonl"))


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0c"])
def test_only_a_line_feed_ends_a_line(rows, write, mark):
    row = {**rows[0], "question": f"Who{mark}keeps it?"}
    line = json.dumps(row, ensure_ascii=False) if mark != "\x0c" else json.dumps(row)
    assert read_flashrag(write([line.encode()])).questions[0].question == f"Who{mark}keeps it?"


def test_duplicate_ids_name_both_lines(rows, write):
    file = write([rows[0], rows[1], rows[0]])
    with pytest.raises(UserError, match=r":3: id: 'row-0' is also on line 1$"):
        read_flashrag(file)


def test_a_missing_file_names_the_nearest_one(rows, write, tmp_path):
    write(rows, "hotpotqa_train.jsonl")
    wrong = str(tmp_path / "hotpot_train.jsonl")
    with pytest.raises(
        UserError, match=r"^data\.path: .* does not exist; did you mean .*hotpotqa_train\.jsonl'\?"
    ):
        read_flashrag(wrong)
    with pytest.raises(UserError, match=r"is a folder; did you mean .*hotpotqa_train\.jsonl"):
        read_flashrag(str(tmp_path))
    with pytest.raises(UserError, match=r"does not exist; name a file that exists"):
        read_flashrag(str(tmp_path / "no" / "folder.jsonl"))


def test_a_file_without_a_usable_row(write):
    with pytest.raises(UserError, match=r"no usable row$"):
        read_flashrag(write([]))
    with pytest.raises(UserError, match=r"no usable row \(first problem: .*:1: metadata: missing"):
        read_flashrag(write([{"golden_answers": ["x"]}]), strict=False)


def test_what_a_row_becomes(rows):
    question = parse_row(rows[4])  # 4 % 3 == 1: the second passage is gold
    assert question.gold == (1,)
    context = rows[4]["metadata"]["context"]
    assert question.paragraphs[1].title == context["title"][1]
    assert question.paragraphs[1].text == " ".join(context["sentences"][1])
    assert question.evidence == (context["sentences"][1][1],)


def test_a_passage_is_gold_by_its_title_and_its_text(rows):
    """Two articles may have one title: the one that has the named sentence, or the answer, is meant."""
    row = copy.deepcopy(rows[0])
    context, facts = row["metadata"]["context"], row["metadata"]["supporting_facts"]
    context["title"] = ["Mercury", "Mercury", "Other"]
    context["sentences"] = [["A planet."], ["A god.", "He was Ann's."], ["Nothing."]]
    row["golden_answers"] = ["planet"]
    facts["title"], facts["sent_id"] = ["Mercury"], [1]
    assert parse_row(row).gold == (1,) and parse_row(row).evidence == ("He was Ann's.",)
    facts["sent_id"] = [0]  # both have it: the one with the answer
    assert parse_row(row).gold == (0,) and parse_row(row).evidence == ("A planet.",)
    row["golden_answers"] = ["nobody"]  # nothing tells them apart: both
    assert parse_row(row).gold == (0, 1) and parse_row(row).evidence == ("A planet.", "A god.")
    facts["title"], facts["sent_id"] = ["Mercury", "Mercury"], [7, 1]  # a sentence that is not there: both
    assert parse_row(row).gold == (0, 1) and parse_row(row).evidence == ("He was Ann's.",)
    context["sentences"][0] = [""]
    assert parse_row(row).gold == (0,) and parse_row(row).paragraphs[0].text == "A god. He was Ann's."


def test_the_other_layout_and_untidy_rows(rows):
    row = rows[0]
    context = row["metadata"]["context"]
    context["content"] = context.pop("sentences")  # 2WikiMultihopQA's name for it
    context["content"][0] = [" Leading space.", "", context["content"][0][1] + " "]
    context["content"][2] = []
    row["metadata"]["supporting_facts"] = {"title": [context["title"][0]] * 3, "sent_id": [0, 2, 99]}
    row["golden_answers"] = ["Ro\u0308ntgen", "R\u00f6ntgen", ""]
    question = parse_row(row)
    assert len(question.paragraphs) == 2, "an empty passage that is not gold is left out"
    assert question.paragraphs[0].text == "Leading space. " + question.evidence[1]
    assert question.evidence[0] == "Leading space."
    assert question.answers == ("R\u00f6ntgen",)


@pytest.mark.parametrize("answers", [[], ["", " "]])
def test_a_question_without_an_answer_is_a_question(rows, write, answers):
    """It is no malformed row: whoever scores counts it (a reward of none, not a wrong answer)."""
    rows[1]["golden_answers"] = answers
    assert read_flashrag(write(rows)).questions[1].answers == ()


def test_pool_rows(write):
    file = write([{"title": "T", "text": " some text "}, {"title": "T"}], "pool.jsonl")
    with pytest.raises(UserError, match=r"pool\.jsonl:2: text: missing"):
        read_pool(file)
    assert [(p.title, p.text) for p in read_pool(file, strict=False)] == [("T", "some text")]
    with pytest.raises(UserError, match=r"^data\.pool_path: "):
        read_pool(file + "x")


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("hotpotqa_dev", 297),
        ("hotpotqa_train", 100),
        ("2wikimultihopqa_dev", 164),
        ("2wikimultihopqa_train", 300),
        ("nq_dev", 300),
        ("triviaqa_dev", 135),
    ],
)
def test_real_files_read_whole(shared_dir, name, number):
    rows = read_flashrag(str(shared_dir / "data" / f"{name}.jsonl"))
    assert len(rows.questions) == number and not rows.problems
    for question in rows.questions:
        texts = [question.paragraphs[i].text for i in question.gold]
        assert texts and all(any(sentence in text for text in texts) for sentence in question.evidence)
    assert sum(bool(q.evidence) for q in rows.questions) >= 0.98 * number
