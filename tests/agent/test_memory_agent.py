"""The memory agent for one's own use, and `python -m memocr_jax.ask`, on a tiny model with random weights."""

import io
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import memocr_jax
from memocr_jax import ask
from memocr_jax.agent import open as opening
from memocr_jax.agent.document import Document
from memocr_jax.agent.memory_agent import MemoryAgent
from memocr_jax.agent.open import open_model, save_habits
from memocr_jax.core.errors import UserError
from memocr_jax.models.tokenizer import load_tokenizer
from render.errors import CommandError

QUICK = {
    "agent": {"draft_max_new_tokens": 8, "read_max_new_tokens": 4, "budget_tokens": 16},
    "data": {"chunk_tokens": 24},
    # One length for all prompts: few programs.
    "engine": {"groups": 1, "length_multiple": 512, "decode_segment": 8, "pool_sizes": 1, "length_sizes": 1},
}
TEXT = " ".join(f"Fact {i} is that the river number {i} is long." for i in range(6))


@pytest.fixture(scope="module", autouse=True)
def one_engine():
    """All agents of these tests share an engine, which holds no weights: so its programs are traced once."""
    engines = {}
    real = opening.Engine

    def shared(graphdef, model, mesh, config, eos_ids):
        key = (repr(config), repr(model))
        if key not in engines:
            engines[key] = real(graphdef, model, mesh, config, eos_ids)
        return engines[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening, "Engine", shared)
        yield


@pytest.fixture(scope="module")
def run_dir(tiny_run):
    return tiny_run(**QUICK)


@pytest.fixture(scope="module")
def agent(run_dir):
    with MemoryAgent(run_dir) as agent:
        yield agent


def chunks_of(text, size):
    """The text cut where chunks of `size` tokens end."""
    tokenizer = load_tokenizer()
    ids = tokenizer.encode(text)
    return [tokenizer.decode(ids[i : i + size]) for i in range(0, len(ids), size)]


def test_reading_on_gives_the_memory_of_reading_at_once(agent):
    seen = []
    whole = agent.read(TEXT, progress=lambda done, total: seen.append((done, total)))
    document = agent.document
    parts = chunks_of(TEXT, 24)
    assert len(parts) >= 3 and seen == [(i, len(parts)) for i in range(len(parts) + 1)]
    assert agent.read(parts[0]) != whole
    agent.append("".join(parts[1:-1]))
    assert agent.append(parts[-1]) == whole and agent.document == document
    assert document.chunks == len(parts) and document.tokens == len(load_tokenizer().encode(TEXT))


def test_answers_keep_their_budget_and_need_no_second_reading(agent, run_dir, tmp_path):
    agent.read(TEXT, "How long is river 3?")
    for budget in (16, 3, 1):
        answer = agent.ask("How long is river 3?", budget)
        height, width, _ = agent.page_image(budget).shape
        assert answer.image_tokens == height // 28 * (width // 28) <= budget
        assert str(answer) == answer.text and 1 <= answer.new_tokens <= 4
    agent.save(tmp_path / "memory.json")
    with MemoryAgent(run_dir) as other:
        other.load(tmp_path / "memory.json")
        assert other.document == agent.document and other.memory
        assert other.ask("How long is river 3?", 1) == answer, "the same seed and page, the same answer"


def test_an_exported_model_is_used_as_it_was_trained(agent, run_dir, tmp_path):
    from memocr_jax.convert import export_run

    export_run(run_dir, tmp_path / "hf")
    habits = json.loads((tmp_path / "hf" / "memocr.json").read_text())
    assert habits["data"] == {"chunk_tokens": 24} and habits["agent"]["budget_tokens"] == 16
    assert ".memory" in habits["render"]["theme_css"], "the theme travels as text"
    agent.read(TEXT)
    page = agent.page()
    with MemoryAgent(tmp_path / "hf", engine=QUICK["engine"]) as exported:
        assert exported.read(TEXT) == agent.memory
        assert exported.page().content_hash == page.content_hash
        assert exported.ask("Who?") == agent.ask("Who?")
    habits["templates"]["any_question"] = "Everything."
    save_habits(tmp_path / "hf", habits)
    model = open_model(tmp_path / "hf", agent={"budget_tokens": 9})
    assert model.system.templates.any_question == "Everything." and model.config.agent.budget_tokens == 9
    habits["templates"]["any_question"] = "{what}"
    save_habits(tmp_path / "hf", habits)
    with pytest.raises(UserError, match=r"memocr\.json: any_question: unknown field \{what\}"):
        open_model(tmp_path / "hf")


def test_a_checkpoint_remembers_its_theme(tiny_run, tmp_path):
    css = tmp_path / "mine.css"
    css.write_text(".memory { font: 9px page-sans; color: #a00 }")
    run_dir = tiny_run(**QUICK, render={"theme": str(css)})
    css.write_text(".memory { font: 90px page-sans }")
    document = Document("# Amsterdam\n\nfounded", chunks=1, tokens=2)

    def page(**settings):
        with MemoryAgent(run_dir, **settings) as agent:
            agent.document = document
            return agent.page().pixels

    remembered = page()
    assert (remembered[..., 0].astype(int) - remembered[..., 1]).max() > 60, "red letters, as it was trained"
    css.unlink()
    np.testing.assert_array_equal(page(), remembered)
    default = page(render={"theme": "small"})
    assert (default[..., 0] == default[..., 1]).all(), "a theme that is asked for counts instead"


def test_what_cannot_be_is_one_clear_line(agent, run_dir, tmp_path):
    with MemoryAgent(run_dir) as fresh, pytest.raises(UserError, match="nothing was read yet"):
        fresh.ask("Who?")
    with pytest.raises(UserError, match="document is empty"):
        agent.read(" \n")
    agent.read("one")
    with pytest.raises(UserError, match="budget is 0"):
        agent.ask("Who?", 0)
    for arguments, message in [
        ({"revision": "main"}, "revision 'main' is for hub ids"),
        ({"step": 7}, "no checkpoint of step 7"),
        (
            {"agent": {"draft_max": 3}},
            r"unknown field agent\.draft_max \(did you mean 'draft_max_new_tokens'",
        ),
        ({"agnt": {}}, r"agnt is no section.*did you mean 'agent'"),
        ({"data": {"chunk_tokens": 0}}, r"data\.chunk_tokens is 0; use 1 or more"),
        ({"render": {"width_px": 0}}, r"render\.width_px is 0"),
        ({"temperature": -1.0}, "temperature is -1"),
        ({"top_p": 0.0}, r"top_p is 0\.0"),
    ]:
        with pytest.raises(UserError, match=message):
            MemoryAgent(run_dir, **arguments)
    with pytest.raises(UserError, match="step 3 is for the directory of a run"):
        open_model(tmp_path, step=3)


def test_a_page_that_could_not_be_drawn_is_said(agent):
    agent.document = Document(" ", chunks=1)
    with pytest.raises(UserError, match=r"could not be drawn: EMPTY \(nothing visible\)"):
        agent.ask("Who?")


def test_the_public_name():
    assert memocr_jax.MemoryAgent is MemoryAgent


# --- the command ---


def test_ask_reads_answers_and_remembers(run_dir, tmp_path, capsys):
    document, memory, page = tmp_path / "a.md", tmp_path / "m.json", tmp_path / "p.png"
    document.write_text(TEXT)
    model = ["--model", str(run_dir), "--question", "Who?", "--budget", "4"]
    command = [*model, "--document", str(document), "--page", str(page), "--save-memory", str(memory)]
    assert ask.main(command) == 0
    out = capsys.readouterr()
    answer = out.out
    assert answer.strip() and "reading a.md" in out.err and "visual tokens" in out.err
    width, height = Image.open(page).size
    assert width % 28 == height % 28 == 0 and width * height <= 4 * 784
    assert Document.load(memory).question == "Who?"
    assert ask.main([*model, "--memory", str(memory)]) == 0
    out = capsys.readouterr()
    assert out.out == answer and "reading" not in out.err
    more = [*model, "--memory", str(memory), "--document", str(document), "--save-memory", str(memory)]
    before = Document.load(memory).chunks
    assert ask.main([*more, "--agent.read-max-new-tokens", "2"]) == 0
    assert Document.load(memory).chunks == 2 * before


@pytest.mark.parametrize(
    "options,message",
    [
        (["--question", "x"], "nothing to read"),
        (["--document", "a.txt"], "nothing to do"),
        (["--document", "none.txt", "--question", "x"], "none.txt: cannot be read"),
        (["--document", "a.txt", "--question", "x", "--budget", "0"], "--budget is 0"),
        (["--document", "a.txt", "--question", "x", "--page", "no/p.png"], "--page no/p.png: its folder"),
        (["--document", "a.txt", "--question", "x", "--bugdet", "3"], r"--bugdet \(did you mean '--budget'"),
        (["--document", "a.txt", "--question", "x", "--agent.seed"], "--agent.seed: its value is missing"),
        (["--document", "a.txt", "--question", "x"], "no such directory, and not a hub id"),
    ],
)
def test_ask_says_what_is_wrong_before_it_begins(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(CommandError, match=message):
        ask.main(["--model", "/no/such/model", *options])


@pytest.mark.parametrize(
    "name,data,expected",
    [
        ("a.txt", "caf\u00e9\n".encode(), "caf\u00e9\n"),
        ("a.txt", b"\xef\xbb\xbfbyte order mark", "byte order mark"),
        ("a.txt", b"caf\xe9", "not UTF-8 at byte 3"),
        ("a.txt", b"a\0b", "null bytes"),
        ("a.txt", b" \n", "no text in it"),
        ("a.pdf", b"%PDF-1.7", "a PDF"),
        ("a.html", b"<html><script>x()</script><style>p{}</style></html>", "no text in it"),
        ("a.html", b"", "no text in it"),
        (
            "a.HTM",
            b"<h1>Title</h1><p>caf\xc3\xa9 <b>bold</b><ul><li>x<li>y</ul>",
            "Title\n\ncaf\u00e9 bold\n\nx\ny",
        ),
        ("a.html", b'<meta charset="iso-8859-1"><p>caf\xe9</p><!-- no -->', "caf\u00e9"),
        ("page", b" <!DOCTYPE html><title>T</title><p>by its first tag", "T\n\nby its first tag"),
    ],
)
def test_documents_become_text(tmp_path, name, data, expected):
    path = tmp_path / name
    path.write_bytes(data)
    try:
        assert ask.read_document_file(str(path)) == expected
    except UserError as error:
        assert str(path) in str(error) and expected in str(error)


def test_a_document_from_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO("日本".encode())))
    assert ask.read_document_file("-") == "日本"


def test_settings_of_a_command_line():
    words = ["--agent.draft-max-new-tokens", "5", "--render.theme=small", "--run.seed", "-1"]
    expected = {"agent": {"draft_max_new_tokens": 5}, "render": {"theme": "small"}, "run": {"seed": -1}}
    assert ask.parse_settings(words, ask.Options) == expected
