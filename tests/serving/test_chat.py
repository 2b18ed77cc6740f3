"""Texts that grow: pieces, stop texts, characters that arrive in parts."""

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from memocr_jax.models.tokenizer import load_tokenizer
from memocr_jax.serving.chat import TextStream

TOKENIZER = load_tokenizer()
ALPHABET = "ab日🎉 \ufffd"


@settings(max_examples=300)
@given(
    text=st.text(ALPHABET, max_size=30),
    stops=st.lists(st.text(ALPHABET, min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(0, 60), max_size=8),
)
@example(text="ab日", stops=["ab日", "b"], cuts=[])
@example(text="ab日", stops=["ab日", "b"], cuts=[1, 2, 3])
@example(text="a日", stops=["a\ufffd"], cuts=[1, 2, 3])
def test_pieces_make_the_text_up_to_the_first_stop(text, stops, cuts):
    tokens = np.array(TOKENIZER.encode(text), np.int32)
    stream = TextStream(TOKENIZER, stops)
    pieces = [stream.feed(tokens[:cut]) for cut in sorted(min(cut, len(tokens)) for cut in cuts)]
    pieces.append(stream.feed(tokens, last=True))
    # The stop text that is complete first counts, wherever the cuts are.
    met = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    assert stream.stopped == bool(met)
    assert "".join(pieces) == stream.text == (text[: min(met)[1]] if met else text)


def test_a_character_is_given_out_when_it_is_whole():
    tokens = np.array(TOKENIZER.encode("a日"), np.int32)
    assert len(tokens) > 2, "its bytes are several tokens"
    stream = TextStream(TOKENIZER)
    assert [stream.feed(tokens[: n + 1]) for n in range(len(tokens))] == [
        "a",
        *[""] * (len(tokens) - 2),
        "日",
    ]
    broken = TextStream(TOKENIZER)
    assert broken.feed(tokens[:-1]) == "a" and broken.feed(tokens[:-1], last=True) == "\ufffd"


def test_what_may_become_a_stop_text_is_held_back():
    tokens = np.array(TOKENIZER.encode("a b END"), np.int32)
    stream = TextStream(TOKENIZER, ["END", "EXIT"])
    given_out = [stream.feed(tokens[: n + 1]) for n in range(len(tokens))]
    assert "".join(given_out) == "a b " and stream.stopped and "E" not in "".join(given_out)
    assert stream.feed(np.array(TOKENIZER.encode("a b END more"), np.int32), last=True) == ""
