import pyarrow
import pyarrow.parquet
import pytest

from memocr_jax.core.errors import UserError
from memocr_jax.data.memagent import read_memagent


def row(number, **changes):
    return {
        "prompt": [{"role": "user", "content": f"Question {number}?"}],
        "context": f"Document 1:\nText {number}.",
        "reward_model": {"ground_truth": [f"answer {number}", f"answer {number}"], "style": "rule"},
        "extra_info": {"index": number},
        "data_source": "hotpotqa",
        **changes,
    }


@pytest.fixture
def write(tmp_path):
    def _write(rows):
        path = str(tmp_path / "train.parquet")
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=3)
        return path

    return _write


def test_rows_become_questions_with_a_context(write):
    rows = read_memagent(write([row(n) for n in range(100)])).questions
    assert len(rows) == 100
    assert rows[70].question == "Question 70?"
    assert [question.context for question in rows] == [f"Document 1:\nText {n}." for n in range(100)]
    assert rows[-1] == rows[99]
    assert rows[70].answers == ("answer 70",)
    assert rows[70].example_id == "memagent-70"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context": "  "}, "context: blank"),
        ({"context": None}, "context: missing"),
        ({"prompt": []}, "prompt: 0 messages, not one"),
        ({"prompt": [{"role": "user", "content": None}]}, "prompt[0].content: missing"),
        ({"prompt": [None]}, "prompt[0]: null, not an object"),
        ({"reward_model": {"ground_truth": None, "style": "rule"}}, "reward_model.ground_truth: missing"),
        ({"reward_model": None}, "reward_model: missing"),
        ({"extra_info": {"index": None}}, "extra_info.index: missing"),
        ({"extra_info": {"index": 0}}, "id: 'memagent-0' is also on line 1"),
    ],
)
def test_a_malformed_row_is_named(write, changes, message):
    path = write([row(0), row(1), row(2, **changes), row(3)])
    with pytest.raises(UserError) as error:
        read_memagent(path)
    assert str(error.value).startswith(f"{path}:3: {message}")
    lenient = read_memagent(path, strict=False)
    assert len(lenient.questions) == 3 and len(lenient.problems) == 1
    assert lenient.questions[0].context == "Document 1:\nText 0."


def test_files_of_another_kind(tmp_path, write):
    path = tmp_path / "x.parquet"
    path.write_text("no parquet")
    with pytest.raises(UserError, match=r"^data\.path: .* is not a parquet file"):
        read_memagent(str(path))
    with pytest.raises(UserError, match="no column 'reward_model'; MemAgent's files have prompt, context"):
        read_memagent(write([{k: v for k, v in row(0).items() if k != "reward_model"}]))
    with pytest.raises(UserError, match="does not exist; did you mean"):
        read_memagent(str(tmp_path / "trian.parquet"))


def test_a_question_without_an_answer_is_a_question(write):
    rows = [row(0), row(1, reward_model={"ground_truth": [" "], "style": "rule"})]
    assert read_memagent(write(rows)).questions[1].answers == ()


def test_truth_may_be_a_plain_string(write):
    rows = [row(n, reward_model={"ground_truth": f"answer {n}", "style": "rule"}) for n in range(3)]
    assert read_memagent(write(rows)).questions[1].answers == ("answer 1",)
