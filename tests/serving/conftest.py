"""A server in a thread of this process, and an engine that needs no model."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

import httpx
import numpy as np
import pytest
import uvicorn

from memocr_jax.core.types import Completion, Stop
from memocr_jax.engine import PromptGroup
from memocr_jax.serving.app import create_app
from tests.waiting import LIMIT_S, wait_until


class EchoEngine:
    """Answers a prompt with its own last words, a few tokens at a look; has the hooks of `Engine.generate`.

    A prompt with the word FAIL makes the whole call fail, as a bug or a full memory would.
    """

    def __init__(self, tokenizer, words=6, pause_s=0.0, places=4):
        self.tokenizer, self.words, self.pause_s, self.places = tokenizer, words, pause_s, places
        self.looks = 0
        self.batches = []
        """Groups decoded together, at every look."""

    def answer(self, group: PromptGroup, k: int) -> list[int]:
        prompt = self.tokenizer.decode([*group.prefix, *group.suffixes[k]])
        said = prompt.rsplit("\nassistant\n", 1)[0].rsplit("\n", 1)[-1].split()[-self.words :]
        return self.tokenizer.encode(" ".join(said) + f" {k}" * bool(k))[: group.max_new_tokens]

    def generate(self, params, groups, max_new_tokens, sampling, watch=None, more=None, finished=None):
        waiting = list(enumerate(groups))
        asked = len(waiting)
        live: dict[int, tuple[PromptGroup, list[list[int]], list[int]]] = {}
        while waiting or live:
            if more is not None:
                for group in more():
                    waiting.append((asked, group))
                    asked += 1
            while waiting and len(live) < self.places:
                index, group = waiting.pop(0)
                assert group.max_new_tokens <= max_new_tokens
                if "FAIL" in self.tokenizer.decode(group.prefix):
                    raise MemoryError("FAIL")
                answers = [self.answer(group, k) for k in range(len(group.suffixes))]
                live[index] = group, answers, [0] * len(answers)
            self.looks += 1
            self.batches.append(len(live))
            time.sleep(self.pause_s)
            for index, (group, answers, done) in list(live.items()):
                for k, answer in enumerate(answers):
                    if done[k] < len(answer):
                        done[k] = min(done[k] + 2, len(answer))
                        tokens = np.array(answer[: done[k]], np.int32)
                        if done[k] < len(answer) and not watch(index, k, tokens):
                            answers[k] = answer[: done[k]]
                if all(n == len(answer) for n, answer in zip(done, answers, strict=True)):
                    stops = [Stop.LENGTH if len(a) >= group.max_new_tokens else Stop.EOS for a in answers]
                    del live[index]
                    finished(index, [self._completion(a, s) for a, s in zip(answers, stops, strict=True)])
        return []

    def _completion(self, answer, stop):
        tokens = np.array(answer + [self.tokenizer.im_end_id] * (stop is Stop.EOS), np.int32)
        return Completion(tokens, np.zeros(len(tokens), np.float32), stop)


@contextlib.contextmanager
def running(service):
    """The service under real HTTP on a free port of 127.0.0.1; its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = uvicorn.Config(create_app(service), host="127.0.0.1", port=port, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{port}"
    wait_until(lambda: server.started or not thread.is_alive())
    assert thread.is_alive()
    try:
        yield url
    finally:
        server.should_exit = True
        thread.join(LIMIT_S)
        assert not thread.is_alive(), "the server did not shut down"


def metric(url: str, name: str) -> float:
    """A number of /metrics; `name` with its labels. 0 when it is not there."""
    text = httpx.get(f"{url}/metrics", trust_env=False).text
    return float(next((line.split()[-1] for line in text.splitlines() if line.startswith(f"{name} ")), 0))


@pytest.fixture(scope="session")
def serve_service():
    return running


@pytest.fixture(scope="session")
def read_metric():
    return metric


@pytest.fixture(scope="session")
def echo_engine():
    return EchoEngine
