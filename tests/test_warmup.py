"""The warm-up command: lessons, a user's own conversations, going on after an interruption, errors."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from memocr_jax import warmup
from memocr_jax.config import MeshConfig, WarmupConfig, WarmupStage, load_config
from memocr_jax.core.errors import UserError
from memocr_jax.models.tokenizer import load_tokenizer
from memocr_jax.sft.conversations import Conversations

NANO = load_config("configs/nano_warmup.yaml")


def config(run_dir, **settings):
    """The nano warm-up with other settings, on the four devices of the tests."""
    return dataclasses.replace(
        NANO,
        run=dataclasses.replace(NANO.run, dir=str(run_dir)),
        train=dataclasses.replace(NANO.train, micro_batch_rows=4),
        mesh=MeshConfig(fsdp=4),
        warmup=WarmupConfig(**{"from_nothing": True, "check_every": 2, "check_rows": 2, **settings}),
    )


def stages(*updates):
    rows = {"draft": 2, "read@2": 2}
    return tuple(WarmupStage(updates=n, rows=rows, facts_min=5, questions=2) for n in updates)


def lines(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("warmup") / "whole"
    assert warmup.warm_up(config(run_dir, stages=stages(1, 1))) == 0
    return run_dir


def test_a_run_leaves_metrics_checks_and_a_checkpoint(whole):
    first, second = lines(whole)
    assert set(first) == {
        f"warmup/{lesson}/{name}" for lesson in ("draft", "read@2") for name in ("loss", "sure")
    } | {"step"}
    assert 5 < first["warmup/draft/loss"] < 7.5, "not the loss of random weights, ln 472 = 6.2"
    assert set(second) - set(first) == {"check/read@2/body", "check/read@2/heading"}
    assert (whole / "config.yaml").is_file() and (whole / "checkpoints" / "2").is_dir()


def test_the_same_command_goes_on_as_if_it_had_not_stopped(whole, tmp_path):
    run_dir = tmp_path / "parts"
    for run in (stages(1), stages(1, 1)):
        assert warmup.warm_up(config(run_dir, stages=run, check_every=2)) == 0
    assert lines(run_dir)[1] == lines(whole)[1]


@pytest.fixture
def conversations(tmp_path):
    Image.fromarray(np.full((30, 60, 3), 200, np.uint8)).save(tmp_path / "page.png")
    rows = [
        [{"role": "user", "content": "Abel ?"}, {"role": "assistant", "content": "bell"}],
        [
            {
                "role": "user",
                "content": [{"type": "image", "image": "page.png"}, {"type": "text", "text": "Dora ?"}],
            },
            {"role": "assistant", "content": [{"type": "text", "text": "coat"}]},
        ],
    ]
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    return path


def test_own_conversations_with_images_are_learned(conversations, tmp_path):
    run_dir = tmp_path / "run"
    settings = config(run_dir, data=str(conversations), updates=8, batch_rows=2, check_every=0)
    settings = dataclasses.replace(
        settings, optimizer=dataclasses.replace(settings.optimizer, warmup_steps=1, decay_steps=0)
    )
    assert warmup.warm_up(settings) == 0
    losses = [line["warmup/data/loss"] for line in lines(run_dir)]
    assert losses[-1] < losses[0] / 3, losses


def test_a_conversation_is_its_chat_markup(conversations):
    tokenizer = load_tokenizer(NANO.tokenizer.path)
    [[text]], [[image]] = (Conversations(conversations, tokenizer, 32, 512).rows([i]) for i in (0, 1))
    ids = np.concatenate([text.turn.prefix, text.turn.suffix, text.turn.completion.tokens])
    assert (
        tokenizer.decode(ids, skip_special=False)
        == "<|im_start|> user\n Abel ?<|im_end|>\n<|im_start|> assistant\n bell<|im_end|>"
    )
    assert text.turn.image is None and image.turn.image.shape == (56, 84, 3)
    assert (np.concatenate([image.turn.prefix, image.turn.suffix]) == tokenizer.image_pad_id).sum() == 6


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("nonsense", "line: not JSON"),
        ("[]", "line: a list, not an object"),
        ("{}", "messages: missing"),
        ('{"messages": []}', "messages: .*at least 2"),
        (
            '{"messages": [{"content": "x"}, {"role": "assistant", "content": "y"}]}',
            r"messages\[0\]\.role: missing",
        ),
        (
            '{"messages": [{"role": "user", "content": 7}, {"role": "assistant", "content": "y"}]}',
            r"messages\[0\]\.content: an integer, not a list",
        ),
        ('{"messages": [{"role": "user", "content": "x"}, {"role": "user", "content": "y"}]}', "assistant's"),
        (
            '{"messages": [{"role": "user", "content": [{"a": 1}]}, {"role": "assistant", "content": "y"}]}',
            r"messages\[0\]\.content\[0\]: a part that is no text and no image",
        ),
        (
            '{"messages": [{"role": "user", "content": [{"image": "a"}, {"image": "b"}]},'
            ' {"role": "assistant", "content": "y"}]}',
            "2 images",
        ),
    ],
)
def test_a_line_that_is_no_conversation_is_named(tmp_path, line, complaint):
    path = tmp_path / "bad.jsonl"
    path.write_text(
        '{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}\n' + line
    )
    with pytest.raises(UserError, match=rf"bad\.jsonl:2.*{complaint}"):
        Conversations(path, load_tokenizer(NANO.tokenizer.path), 32, 512)


def test_conversations_as_other_tools_write_them(tmp_path):
    """A byte-order mark, separators inside texts, and fields of the other kind of part filled with null."""
    answer = {"role": "assistant", "content": "y"}
    text = [{"type": "text", "text": "one\u2028two", "image_url": None, "image": None}]
    image = [{"type": "image_url", "text": None, "image_url": {"url": "page.png", "detail": "low"}}]
    path = tmp_path / "mine.jsonl"
    rows = [{"messages": [{"role": "user", "content": content}, answer]} for content in (text, image)]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(b"\xef\xbb\xbf" + lines.encode())
    Image.new("RGB", (56, 28)).save(tmp_path / "page.png")
    tokenizer = load_tokenizer(NANO.tokenizer.path)
    [[first], [second]] = Conversations(path, tokenizer, 32, 512).rows([0, 1])
    assert first.turn.image is None and second.turn.image.shape == (28, 56, 3)


def test_an_image_that_is_not_there_and_a_conversation_that_is_too_long(conversations):
    tokenizer = load_tokenizer(NANO.tokenizer.path)
    with pytest.raises(UserError, match=r"mine\.jsonl:1.*train\.max_row_tokens 10"):
        Conversations(conversations, tokenizer, 32, 10).rows([0])
    (conversations.parent / "page.png").unlink()
    with pytest.raises(UserError, match=r"mine\.jsonl:2.*page\.png.*cannot be read"):
        Conversations(conversations, tokenizer, 32, 512).rows([1])


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({}, "give either data"),
        ({"data": "x.jsonl", "stages": stages(1)}, "give either data"),
        ({"stages": (WarmupStage(updates=0, rows={"draft": 1}),)}, r"stages\[0\]: updates is 0"),
        ({"stages": (WarmupStage(updates=1),)}, r"rows \{\}"),
        ({"stages": (WarmupStage(updates=1, rows={"draft": 1}, facts_min=9),)}, "facts_min is 9; use 1 to"),
    ],
)
def test_stages_that_teach_nothing_are_refused_at_once(tmp_path, settings, complaint):
    with pytest.raises(UserError, match=complaint):
        warmup.warm_up(config(tmp_path / "run", **settings))
    assert not (tmp_path / "run").exists()
