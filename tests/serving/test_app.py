"""The routes with the official client, over an engine that echoes: every answer says whose it is."""

import base64
import contextlib
import dataclasses
import io
import json
import random
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from memocr_jax.agent.open import open_model
from memocr_jax.serving import scheduler
from memocr_jax.serving.chat import Limits
from memocr_jax.serving.scheduler import Scheduler
from memocr_jax.serving.service import ServerSettings, Service
from render import RenderPool
from tests.waiting import LIMIT_S, wait_until

LIMITS = Limits(context_tokens=600, max_new_tokens=40, image_tokens=64)


@pytest.fixture(scope="module")
def model(tiny_run):
    return open_model(tiny_run(data={"chunk_tokens": 30}))


@pytest.fixture(scope="module")
def make(model, echo_engine, serve_service):
    """Context manager: a server over an echoing engine; gives (url, service, engine)."""

    @contextlib.contextmanager
    def make(settings=ServerSettings(), **engine):  # noqa: B008
        echo = echo_engine(model.system.tokenizer, **engine)
        renderer = RenderPool(dataclasses.replace(model.config.render, workers=1))
        service = Service(model, Scheduler(echo, None, 64), renderer, LIMITS, settings)
        with serve_service(service) as url:
            yield url, service, echo

    return make


@pytest.fixture(scope="module")
def server(make):
    with make() as (url, service, _):
        yield url, service


@pytest.fixture(scope="module")
def client(server):
    return openai_client(server[0])


def openai_client(url, key="none", **options):
    http = httpx.Client(trust_env=False, timeout=LIMIT_S)
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, http_client=http, max_retries=0, **options)


def ask(client, text, **options):
    messages = [{"role": "user", "content": text}]
    return client.chat.completions.create(model="tiny", messages=messages, **options)


def settle(url, read_metric):
    """Wait until nothing is under way."""
    names = ("memocr_requests_in_flight", "memocr_groups_waiting", "memocr_groups_decoding")
    wait_until(lambda: not any(read_metric(url, name) for name in names))


def test_a_chat_and_what_it_used(client, model):
    answer = ask(client, "one two three")
    choice = answer.choices[0]
    assert choice.message.content == "one two three" and choice.finish_reason == "stop"
    assert answer.object == "chat.completion" and answer.model == "tiny" and answer.id.startswith("chatcmpl-")
    words = model.system.tokenizer.encode("one two three")
    assert answer.usage.completion_tokens == len(words) + 1, "the stop token counts"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    longer = ask(client, "zero one two three")
    assert longer.usage.prompt_tokens > answer.usage.prompt_tokens


def test_a_server_that_lives_long_does_not_run_out_of_memory_mappings(client, monkeypatch):
    looks = []
    monkeypatch.setattr(scheduler, "free_programs_if_many", lambda: looks.append(True))
    ask(client, "one")
    assert looks, "before each call of the engine"


def test_choices_limits_and_stops(client, model):
    answer = ask(client, "alpha beta gamma", n=3)
    assert [choice.message.content for choice in answer.choices] == [
        "alpha beta gamma",
        "alpha beta gamma 1",
        "alpha beta gamma 2",
    ]
    cut = ask(client, "alpha beta gamma", max_tokens=2)
    assert cut.choices[0].finish_reason == "length" and cut.usage.completion_tokens == 2
    assert "alpha beta gamma".startswith(cut.choices[0].message.content)
    assert ask(client, "alpha beta", max_completion_tokens=1).usage.completion_tokens == 1
    stopped = ask(client, "alpha beta gamma", stop=["gam", "zzz"])
    assert stopped.choices[0].message.content == "alpha beta " and stopped.choices[0].finish_reason == "stop"
    assert ask(client, "alpha", stop="alpha").choices[0].message.content == ""


@pytest.mark.parametrize("options", [{}, {"stop": "gam"}, {"n": 2}, {"max_tokens": 3}])
def test_a_streamed_answer_is_the_whole_one_in_pieces(client, options):
    text = "alpha beta gamma日本 delta"
    whole = ask(client, text, **options)
    pieces = list(ask(client, text, stream=True, stream_options={"include_usage": True}, **options))
    assert {piece.object for piece in pieces} == {"chat.completion.chunk"} and len(pieces) > 3
    for i, choice in enumerate(whole.choices):
        mine = [c for piece in pieces for c in piece.choices if c.index == i]
        assert mine[0].delta.role == "assistant"
        assert "".join(c.delta.content or "" for c in mine) == choice.message.content
        assert [c.finish_reason for c in mine if c.finish_reason] == [choice.finish_reason]
    assert pieces[-1].choices == [] and pieces[-1].usage == whole.usage
    without = list(ask(client, text, stream=True, **options))
    assert all(piece.usage is None and piece.choices for piece in without)


def test_models(client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "memocr_jax"
    with pytest.raises(openai.NotFoundError, match="model 'other' is not served here, 'tiny' is"):
        client.models.retrieve("other")


def picture(height, width, kind="PNG"):
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def image_part(url):
    return {"type": "image_url", "image_url": {"url": url, "detail": "auto"}}


def test_images_come_as_data_and_are_fitted(client):
    words = {"type": "text", "text": "what is this"}
    bare = ask(client, [words]).usage.prompt_tokens

    def tokens(*images):
        answer = ask(client, [image_part(image) for image in images] + [words])
        assert answer.choices[0].message.content.endswith("what is this")
        return answer.usage.prompt_tokens - bare

    markers = 2
    assert tokens(picture(56, 84)) == 6 + markers
    assert tokens(picture(28, 28)) == 1 + markers, "a page of one token is not enlarged"
    assert tokens(picture(50, 90, "JPEG")) == 6 + markers, "sides are rounded to whole tokens"
    assert tokens(picture(1000, 1000, "WEBP")) == LIMITS.image_tokens + markers
    assert tokens(picture(56, 84), picture(28, 56, "GIF")) == 6 + 2 + 2 * markers


def conversation(*messages, **fields):
    return {"model": "tiny", "messages": list(messages)} | fields


USER = {"role": "user", "content": "hello"}


def part(value):
    return {"role": "user", "content": [value]}


@pytest.mark.parametrize(
    "body,status,message",
    [
        (b"{", 400, "no valid JSON"),
        (b"\xff", 400, "no valid JSON"),
        (b"[" * 100_000, 400, "no valid JSON"),
        ([], 400, "body"),
        ({"model": "tiny"}, 400, "messages"),
        (conversation(), 400, "messages"),
        (conversation(USER) | {"model": "gpt"}, 404, "model 'gpt' is not served here"),
        (conversation({"role": "tool", "content": "x"}), 400, "messages.0.role"),
        (conversation({"role": "user", "content": 5}), 400, "messages.0.content"),
        (conversation(USER, temperature=3), 400, "temperature"),
        (conversation(USER, temperature="hot"), 400, "temperature"),
        (conversation(USER, top_p=0), 400, "top_p"),
        (conversation(USER, n=0), 400, "n:"),
        (conversation(USER, n=17), 400, "n:"),
        (conversation(USER, max_tokens=0), 400, "max_tokens"),
        (conversation(USER, max_tokens=41), 400, "max_tokens is 41; at most 40"),
        (conversation(USER, seed=2**70), 400, "seed"),
        (conversation(USER, stop=[""]), 400, "stop takes"),
        (conversation(USER, stop=list("abcde")), 400, "stop takes"),
        (conversation(USER, colour="red"), 400, "colour"),
        (conversation(USER, tools=[{"type": "function"}]), 400, "tools is not supported"),
        (conversation(USER, logprobs=True), 400, "logprobs is not supported"),
        (conversation(USER, response_format={"type": "json_object"}), 400, "response_format"),
        (conversation({"role": "user", "content": "word " * 700}), 400, "together at most 600"),
        (conversation(part({"type": "input_audio"})), 400, "parts are text or image_url"),
        (conversation(part(image_part("http://127.0.0.1:9/a.png"))), 400, "nothing is fetched"),
        (conversation(part(image_part("file:///etc/passwd"))), 400, "nothing is fetched"),
        (conversation(part(image_part("data:image/png;base64,@@"))), 400, "no image"),
        (conversation(part(image_part("data:image/png;base64,aGVsbG8="))), 400, "no image"),
        (conversation(part(image_part(picture(2, 900)))), 400, "200 times"),
        (conversation(*[part(image_part(picture(28, 28)))] * 17), 400, "at most 16 images"),
    ],
)
def test_what_is_wrong_is_an_error_of_openais_shape(server, body, status, message):
    data = body if isinstance(body, bytes) else json.dumps(body)
    answer = httpx.post(f"{server[0]}/v1/chat/completions", content=data, timeout=LIMIT_S, trust_env=False)
    error = answer.json()["error"]
    assert answer.status_code == status, answer.text
    assert message in error["message"] and error["type"] == "invalid_request_error"
    assert set(error) == {"message", "type", "param", "code"}


def test_the_client_knows_our_errors(client):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, "word " * 700)
    assert caught.value.code == "context_length_exceeded" and caught.value.param == "messages"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="x", messages=[USER])


def test_what_changes_nothing_is_taken(client):
    options = {"user": "me", "frequency_penalty": 0, "response_format": {"type": "text"}, "logprobs": False}
    assert ask(client, "one", **options, metadata={"a": "b"}, store=False).choices[0].message.content == "one"
    developer = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": "one \ud800"}]
    body = json.dumps({"model": "tiny", "messages": developer})
    answer = httpx.post(f"{client.base_url}chat/completions", content=body, trust_env=False).json()
    assert answer["choices"][0]["message"]["content"] == "one \ufffd"


def test_other_paths_and_methods_too(server):
    for method, path, status in [("GET", "/v1/chat/completions", 405), ("GET", "/v1/nothing", 404)]:
        answer = httpx.request(method, server[0] + path, trust_env=False)
        assert answer.status_code == status and answer.json()["error"]["message"]
    health = httpx.get(f"{server[0]}/health", trust_env=False)
    assert health.status_code == 200 and health.json() == {"status": "healthy", "model": "tiny"}


def test_an_endless_or_huge_body_is_refused(make):
    def endless():
        for _ in range(500):
            yield b" " * 65536

    with make(ServerSettings(max_body_bytes=10_000)) as (url, _, _):
        url += "/v1/chat/completions"
        body = json.dumps(conversation({"role": "user", "content": "x" * 20_000}))
        answer = httpx.post(url, content=body, trust_env=False)
        assert answer.status_code == 413 and "larger than 10000 bytes" in answer.json()["error"]["message"]
        with contextlib.suppress(httpx.WriteError):  # the server hung up while we were still sending
            assert httpx.post(url, content=endless(), timeout=LIMIT_S, trust_env=False).status_code == 413


def test_the_token_is_asked_for(make):
    with make(ServerSettings(token="secret")) as (url, _, _):
        for key in ("wrong", "none"):
            with pytest.raises(openai.AuthenticationError, match="missing or wrong bearer token"):
                ask(openai_client(url, key), "hello")
        assert ask(openai_client(url, "secret"), "hello").choices[0].message.content == "hello"
        assert httpx.get(f"{url}/v1/memories", trust_env=False).status_code == 401
        assert httpx.get(f"{url}/health", trust_env=False).status_code == 200


# --- memories ---


@pytest.fixture
def http(server):
    with httpx.Client(base_url=server[0], trust_env=False, timeout=LIMIT_S) as http:
        yield http


TEXT = " ".join(f"river {i} is long" for i in range(20))


def test_the_life_of_a_memory(http, model):
    made = http.post("/v1/memories", json={"text": TEXT, "question": "How long?"})
    assert made.status_code == 201, made.text
    memory = made.json()
    tokens = len(model.system.tokenizer.encode(TEXT))
    assert memory["object"] == "memory" and memory["question"] == "How long?" and memory["text"]
    assert memory["document_tokens"] == tokens and memory["chunks"] == -(-tokens // 30) >= 3
    assert memory["usage"]["prompt_tokens"] > tokens
    path = f"/v1/memories/{memory['id']}"
    assert http.get(path).json() == {k: v for k, v in memory.items() if k != "usage"}
    assert [m["id"] for m in http.get("/v1/memories").json()["data"]] == [memory["id"]]

    more = http.post(f"{path}/append", json={"text": "one more river"}).json()
    assert more["chunks"] == memory["chunks"] + 1 and more["id"] == memory["id"]

    answer = http.post(f"{path}/ask", json={"question": "which river", "budget_tokens": 5}).json()
    assert answer["object"] == "memory.answer" and answer["answer"] == "which river"
    assert 1 <= answer["image_tokens"] <= 5 and answer["usage"]["completion_tokens"] >= 2

    for budget in (1, 8, 64):
        page = http.get(f"{path}/page", params={"budget_tokens": budget})
        width, height = Image.open(io.BytesIO(page.content)).size
        assert page.headers["content-type"] == "image/png" and page.headers["x-page-status"] == "OK"
        assert width * height // 784 == int(page.headers["x-image-tokens"]) <= budget
    assert http.get(f"{path}/page").status_code == 200

    gone = http.delete(path).json()
    assert gone == {"id": memory["id"], "object": "memory.deleted", "deleted": True}
    for answer in (http.get(path), http.delete(path), http.post(f"{path}/ask", json={"question": "x"})):
        assert answer.status_code == 404 and answer.json()["error"]["code"] == "memory_not_found"
    assert http.get("/v1/memories").json()["data"] == []


def test_reading_can_be_watched(http):
    with http.stream("POST", "/v1/memories", json={"text": TEXT, "stream": True}) as answer:
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    events = [json.loads(line) for line in lines[:-1]]
    assert lines[-1] == "[DONE]" and events[-1]["object"] == "memory"
    steps = [(e["chunks_done"], e["chunks"]) for e in events[:-1]]
    assert steps == [(i, events[-1]["chunks"]) for i in range(events[-1]["chunks"] + 1)]
    http.delete(f"/v1/memories/{events[-1]['id']}")


@pytest.mark.parametrize(
    "path,body,status,message",
    [
        ("", {}, 400, "text"),
        ("", {"text": 5}, 400, "text"),
        ("", {"text": " "}, 422, "document is empty"),
        ("", {"text": "x", "colour": 1}, 400, "colour"),
        ("/mem_0/append", {"text": "x"}, 404, "there is no memory 'mem_0'"),
        ("/ID/append", {"text": ""}, 422, "document is empty"),
        ("/ID/ask", {"question": ""}, 400, "question"),
        ("/ID/ask", {"question": "x", "budget_tokens": 0}, 400, "budget_tokens"),
        ("/ID/ask", {"question": "x", "temperature": -1}, 400, "temperature"),
        ("/ID/page?budget_tokens=0", None, 400, "budget_tokens is '0'"),
        ("/ID/page?budget_tokens=many", None, 400, "budget_tokens is 'many'"),
    ],
)
def test_what_is_wrong_with_a_memory(http, path, body, status, message):
    memory_id = http.post("/v1/memories", json={"text": "one river"}).json()["id"]
    path = "/v1/memories" + path.replace("ID", memory_id)
    answer = http.get(path) if body is None else http.post(path, json=body)
    assert answer.status_code == status and message in answer.json()["error"]["message"], answer.text
    http.delete(f"/v1/memories/{memory_id}")


def test_memories_are_bounded_and_outlive_the_server_in_a_folder(make, tmp_path):
    settings = ServerSettings(max_memories=2, memory_dir=str(tmp_path / "memories"))
    with make(settings) as (url, _, _):
        made = [httpx.post(f"{url}/v1/memories", json={"text": f"river {i}"}, trust_env=False) for i in "abc"]
        assert [answer.status_code for answer in made] == [201, 201, 409]
        assert made[2].json()["error"]["code"] == "too_many_memories"
        httpx.delete(f"{url}/v1/memories/{made[0].json()['id']}", trust_env=False)
    with make(settings) as (url, _, _):
        kept = httpx.get(f"{url}/v1/memories", trust_env=False).json()["data"]
        assert [m["text"] for m in kept] == [made[1].json()["text"]] and kept[0]["id"] == made[1].json()["id"]


# --- load, disconnects, failures ---


def test_more_than_the_server_takes_is_a_429(make, read_metric):
    with make(ServerSettings(max_requests=3), pause_s=0.05) as (url, _, _):
        client = openai_client(url)

        def one(i):
            try:
                return ask(client, f"number {i}").choices[0].message.content
            except openai.RateLimitError as error:
                assert error.response.headers["retry-after"] == "1" and error.code == "rate_limit_exceeded"
                return None

        with ThreadPoolExecutor(12) as threads:
            answers = list(threads.map(one, range(24)))
        assert None in answers and any(answers)
        assert all(answer in (None, f"number {i}") for i, answer in enumerate(answers))
        settle(url, read_metric)


def test_requests_share_the_batch(make):
    with make(pause_s=0.5, places=8) as (url, _, engine):
        client = openai_client(url)
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda i: ask(client, f"a b c d e f {i}"), range(8)))
        assert max(engine.batches) >= 4, "those that came while others were decoded joined them"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_place(make, read_metric, stream):
    with make(words=400, pause_s=0.5, places=1) as (url, _, engine):
        body = json.dumps(
            conversation({"role": "user", "content": "a b " * 100}, max_tokens=40, stream=stream)
        )
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as plug:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            plug.sendall((head + body).encode())
            wait_until(lambda: read_metric(url, "memocr_groups_decoding"))
            if stream:
                assert plug.recv(100)
        looks = engine.looks
        settle(url, read_metric)
        assert engine.looks - looks < 10, "it was not decoded to its end (20 looks)"
        assert ask(openai_client(url), "still here").choices[0].message.content == "still here"


def test_a_client_that_goes_away_while_its_document_is_read(make, read_metric):
    with make(pause_s=0.05) as (url, service, _):
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/v1/memories", json={"text": TEXT * 20}, timeout=0.5, trust_env=False)
        settle(url, read_metric)
        assert len(service.store) == 0


def test_a_failure_is_only_the_failing_requests(make, read_metric):
    with make(pause_s=0.02, places=8) as (url, _, _):
        client = openai_client(url)

        def one(i):
            try:
                return ask(client, f"FAIL {i}" if i % 5 == 0 else f"number {i}").choices[0].message.content
            except openai.InternalServerError as error:
                assert "MemoryError" in error.message
                return "failed"

        with ThreadPoolExecutor(10) as threads:
            answers = list(threads.map(one, range(20)))
        assert answers == ["failed" if i % 5 == 0 else f"number {i}" for i in range(20)]
        memory = httpx.post(f"{url}/v1/memories", json={"text": "x", "question": "FAIL"}, trust_env=False)
        assert memory.status_code == 500 and "MemoryError" in memory.json()["error"]["message"]
        with pytest.raises(openai.APIError, match="MemoryError"):
            list(ask(client, "FAIL", stream=True))
        settle(url, read_metric)


def test_shutdown_finishes_what_was_accepted(make):
    with ThreadPoolExecutor(6) as threads:
        with make(pause_s=0.3, places=2) as (url, service, _):
            client = openai_client(url)
            futures = [threads.submit(ask, client, f"number {i} a b c") for i in range(6)]
            wait_until(lambda: service.under_way == 6 or any(future.done() for future in futures))
        answers = [future.result().choices[0].message.content for future in futures]
    assert answers == [f"number {i} a b c" for i in range(6)] and not service.scheduler.alive


def load(url, turns, clients=16):
    """Many clients that do everything at once, some of it wrong; counts what came back."""
    counts = {"chats": 0, "streams": 0, "memories": 0, "refused": 0, "left": 0}
    lock = threading.Lock()

    def count(name):
        with lock:
            counts[name] += 1

    def client(number):
        rng = random.Random(number)
        api = openai_client(url)
        http = httpx.Client(base_url=url, trust_env=False, timeout=LIMIT_S)
        for turn in range(turns):
            text = f"client {number} turn {turn}"
            match rng.randrange(8):
                case 0 | 1 | 2:
                    assert ask(api, text).choices[0].message.content == text
                    count("chats")
                case 3 | 4:
                    pieces = [c.delta.content or "" for p in ask(api, text, stream=True) for c in p.choices]
                    assert "".join(pieces) == text
                    count("streams")
                case 5:
                    made = http.post("/v1/memories", json={"text": text}).json()
                    answer = http.post(
                        f"/v1/memories/{made['id']}/ask", json={"question": text, "budget_tokens": 8}
                    )
                    assert answer.json()["answer"] == text, answer.text
                    assert http.delete(f"/v1/memories/{made['id']}").status_code == 200
                    count("memories")
                case 6:
                    bad = rng.choice(
                        [b"{", b"{}", json.dumps(conversation(USER, n=99)).encode(), b"x" * 70_000]
                    )
                    answer = http.post("/v1/chat/completions", content=bad)
                    assert answer.status_code in (400, 413) and answer.json()["error"]["message"]
                    count("refused")
                case 7:
                    with ask(api, text + " a b c d e f", stream=True) as stream:
                        next(iter(stream))
                    count("left")

    with ThreadPoolExecutor(clients) as threads:
        for future in [threads.submit(client, number) for number in range(clients)]:
            future.result()
    return counts


def test_16_clients_get_their_own_answers(make, read_metric):
    with make(ServerSettings(max_body_bytes=60_000), places=6) as (url, _, _):
        counts = load(url, turns=8)
        assert all(counts.values()), counts
        settle(url, read_metric)
