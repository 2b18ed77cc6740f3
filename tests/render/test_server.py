"""The server under real HTTP: replies, refusals, load, shutdown; and the client against it."""

import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image

from render import PageStatus, RenderError, RenderSettings, open_renderer
from tests.waiting import LIMIT_S, wait_until


class Server:
    """A `python -m render.server` of its own."""

    def __init__(self, *options):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        command = [
            sys.executable,
            "-m",
            "render.server",
            "--port",
            str(self.port),
            "--workers",
            "2",
            *options,
        ]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        self.log: list[str] = []
        threading.Thread(target=lambda: self.log.extend(self.process.stderr), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.port}"
        wait_until(lambda: self.healthy() or self.process.poll() is not None)
        assert self.process.poll() is None, "".join(self.log)

    def healthy(self):
        try:
            return httpx.get(self.url + "/health", trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    def post(self, body, **kind):
        data = body if isinstance(body, bytes) else json.dumps(body)
        return httpx.post(self.url + "/render", content=data, timeout=LIMIT_S, trust_env=False, **kind)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=LIMIT_S)


@pytest.fixture(scope="module")
def server():
    server = Server("--cache-mb", "0", "--max-chars", "20000")
    yield server
    assert server.stop() == 0


def image_of(answer):
    return np.asarray(Image.open(io.BytesIO(answer.content)).convert("RGB"))


def test_upstreams_request(server, pool):
    answer = server.post({"content": "# Amsterdam\n\nfounded", "format": "png"})
    assert answer.status_code == 200 and answer.headers["content-type"] == "image/png"
    assert answer.headers["x-page-status"] == "OK"
    np.testing.assert_array_equal(image_of(answer), pool.render(["# Amsterdam\n\nfounded"])[0].pixels)
    jpeg = server.post({"content": "# Amsterdam\n\nfounded", "format": "jpeg"})
    assert Image.open(io.BytesIO(jpeg.content)).format == "JPEG"
    plain = server.post({"content": "# Amsterdam\n\nfounded"})
    assert plain.content == answer.content, "png is the default, as upstream has it"


def test_our_request(server, pool):
    request = {"content": "<h1>Amsterdam</h1>" + "word " * 300, "mode": "html", "width_px": 392}
    answer = server.post(request | {"budget_tokens": 32, "format": "webp"})
    height, width, _ = image_of(answer).shape
    assert height % 28 == 0 and width % 28 == 0 and height * width // 784 <= 32
    assert int(answer.headers["x-image-tokens"]) == height * width // 784
    whole = server.post(request | {"format": "webp"})
    expected = pool.submit(request["content"], mode="html", width_px=392).result().pixels
    np.testing.assert_array_equal(image_of(whole), expected, "webp is lossless")


@pytest.mark.parametrize(
    "body,code,message",
    [
        (b"{", 400, "no valid JSON"),
        (b"\xff\xfe", 400, "no valid JSON"),
        (b"[" * 100_000, 400, "no valid JSON"),
        (b"", 400, "no valid JSON"),
        ([1], 422, "body"),
        ({}, 422, "content"),
        ({"content": 5}, 422, "content"),
        ({"content": None}, 422, "content"),
        ({"content": "x", "format": "gif"}, 422, "format"),
        ({"content": "x", "mode": "pdf"}, 422, "mode"),
        ({"content": "x", "width_px": "wide"}, 422, "width_px"),
        ({"content": "x", "width_px": 5}, 422, "width_px"),
        ({"content": "x", "width_px": 40}, 422, "width_px 40"),
        ({"content": "x", "budget_tokens": 0}, 422, "budget_tokens"),
        ({"content": "x", "colour": "red"}, 422, "colour"),
        ({"content": ""}, 400, "nothing visible"),
        ({"content": " \n"}, 400, "nothing visible"),
        ({"content": "x" * 20_001}, 413, "render.max_chars"),
        ({"content": "x" * 200_000}, 413, "larger than"),
    ],
)
def test_what_is_wrong_is_a_4xx_with_a_message(server, body, code, message):
    answer = server.post(body)
    assert answer.status_code == code, answer.text
    assert message in answer.json()["detail"]


def test_a_lone_surrogate_is_drawn_as_the_replacement_character(server, pool):
    answer = server.post(b'{"content": "a\\ud800"}')
    np.testing.assert_array_equal(image_of(answer), pool.render(["a\ufffd"])[0].pixels)


def test_an_endless_body_is_refused_without_reading_it_all(server):
    def endless():
        for _ in range(1000):
            yield b" " * 65536

    try:
        answer = httpx.post(server.url + "/render", content=endless(), timeout=LIMIT_S, trust_env=False)
        assert answer.status_code == 413
    except httpx.WriteError:
        pass  # the server hung up while we were still sending


def test_other_paths_and_methods(server):
    assert httpx.get(server.url + "/render", trust_env=False).status_code == 405
    assert httpx.get(server.url + "/nothing", trust_env=False).status_code == 404
    health = httpx.get(server.url + "/health", trust_env=False).json()
    assert health["status"] == "healthy" and "Chromium" in health["chromium"] and "ziamath" in health["fonts"]


def test_metrics(server):
    def count(text, name):
        lines = [line for line in text.splitlines() if line.startswith(name + " ")]
        return float(lines[0].split()[1]) if lines else 0.0

    name = 'render_pages_total{status="OK"}'
    before = count(httpx.get(server.url + "/metrics", trust_env=False).text, name)
    server.post({"content": "one more"})
    text = httpx.get(server.url + "/metrics", trust_env=False).text
    assert count(text, name) == before + 1
    assert "render_in_flight 0.0" in text and "render_seconds_bucket" in text


def test_it_listens_on_loopback_only(server):
    addresses = {
        c.laddr.ip
        for c in psutil.Process(server.process.pid).net_connections()
        if c.status == psutil.CONN_LISTEN
    }
    assert addresses == {"127.0.0.1"}


def load(server, clients, turns):
    """Many clients at once; every reply must be the page of its own request."""
    counts = {"ok": 0, "busy": 0}
    lock = threading.Lock()

    def client(number):
        rng = random.Random(number)
        with httpx.Client(base_url=server.url, timeout=LIMIT_S, trust_env=False) as http:
            for turn in range(turns):
                text = f"client {number} turn {turn}"
                body = {"content": f"# {text}\n\n" + "word " * rng.randint(1, 200), "format": "page"}
                answer = http.post("/render", json=body)
                if answer.status_code == 429:
                    assert int(answer.headers["retry-after"]) >= 1 and answer.json()["detail"]
                    time.sleep(0.2)
                else:
                    assert answer.status_code == 200, answer.text
                    record = json.loads(Image.open(io.BytesIO(answer.content)).text["page"])
                    assert record["regions"][0]["text"] == text, "a reply for another request"
                with lock:
                    counts["busy" if answer.status_code == 429 else "ok"] += 1

    with ThreadPoolExecutor(clients) as threads:
        for future in [threads.submit(client, number) for number in range(clients)]:
            future.result()
    return counts


def test_concurrent_clients_get_their_own_pages(server):
    assert load(server, clients=16, turns=8) == {"ok": 128, "busy": 0}


@pytest.mark.soak
@pytest.mark.parametrize("max_queue", [256, 8])
def test_32_clients_for_long(max_queue):
    server = Server("--max-queue", str(max_queue), "--cache-mb", "0")
    try:
        counts = load(server, clients=32, turns=100)
    finally:
        assert server.stop() == 0
    print(f"queue {max_queue}: {counts}")
    assert counts["ok"] > 200
    assert (counts["busy"] > 0) == (max_queue < 32)


def test_a_full_queue_is_a_429():
    server = Server("--max-queue", "2", "--cache-mb", "0")
    try:
        with ThreadPoolExecutor(12) as threads:
            answers = list(threads.map(lambda i: server.post({"content": f"{i} " + "x " * 3000}), range(36)))
        codes = [answer.status_code for answer in answers]
        assert set(codes) == {200, 429}
        assert all(answer.headers["retry-after"] for answer in answers if answer.status_code == 429)
    finally:
        assert server.stop() == 0


def in_flight(server):
    text = httpx.get(server.url + "/metrics", trust_env=False).text
    return float(next(line for line in text.splitlines() if line.startswith("render_in_flight ")).split()[1])


def test_shutdown_finishes_what_was_accepted_and_leaves_no_browser():
    server = Server("--cache-mb", "0")
    children = psutil.Process(server.process.pid).children(recursive=True)
    with ThreadPoolExecutor(8) as threads:
        futures = [threads.submit(server.post, {"content": f"{i} " + "x " * 30_000}) for i in range(8)]
        # Stopped while most are under way; what was not yet accepted may be refused.
        wait_until(lambda: in_flight(server) >= 6 or any(future.done() for future in futures))
        server.process.send_signal(signal.SIGTERM)
        done = [future for future in futures if not isinstance(future.exception(), httpx.ConnectError)]
    assert len(done) >= 5 and [future.result().status_code for future in done] == [200] * len(done)
    assert server.process.wait(timeout=LIMIT_S) == 0
    _, alive = psutil.wait_procs(children, timeout=LIMIT_S)
    assert not [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def test_the_token_is_asked_for():
    server = Server("--token", "secret", "--mode", "html")
    try:
        assert server.post({"content": "x"}).status_code == 401
        assert server.post({"content": "x"}, headers={"Authorization": "Bearer wrong"}).status_code == 401
        good = server.post({"content": "x"}, headers={"Authorization": "Bearer secret"})
        assert good.status_code == 200
        with open_renderer(RenderSettings(url=server.url, token="secret"), "html") as remote:
            assert remote.render(["<h1>x</h1>"])[0].regions[0].kind == "heading"
        with open_renderer(RenderSettings(url=server.url, token="wrong")) as remote:
            page = remote.render(["x"])[0]
        assert page.status is PageStatus.FAILED and "401" in page.detail
    finally:
        assert server.stop() == 0


def test_the_client_gives_the_pools_pages(server, pool):
    texts = ["# A\n\n**b**", "", "x" * 20_001, "京都", "a\ud800b", *[f"memory {i}" for i in range(40)]]
    with open_renderer(RenderSettings(url=server.url)) as remote:
        pages = remote.render(texts)
        submitted = remote.submit("<h2>z</h2>", mode="html", width_px=196).result()
    local = pool.render(texts)
    for mine, theirs in zip(pages, local, strict=True):
        if len(mine.detail) and mine.status is PageStatus.TOO_LARGE:
            continue  # the server of these tests takes shorter memories
        assert mine.status == theirs.status and mine.detail == theirs.detail
        assert mine.regions == theirs.regions
        if theirs.pixels is None:
            assert mine.pixels is None
        else:
            np.testing.assert_array_equal(mine.pixels, theirs.pixels)
            assert not mine.pixels.flags.writeable
    assert pages[2].status is PageStatus.TOO_LARGE
    assert submitted.regions[0].level == 2 and submitted.pixels.shape[1] <= 196


def test_the_client_waits_for_a_busy_server():
    server = Server("--max-queue", "3", "--cache-mb", "0")
    try:
        with open_renderer(RenderSettings(url=server.url)) as remote:
            pages = remote.render([f"memory {i} " + "x " * 500 for i in range(40)])
        assert [page.status for page in pages] == [PageStatus.OK] * 40
    finally:
        assert server.stop() == 0


def test_a_server_that_goes_away_costs_pages_not_the_program(monkeypatch):
    from render import client

    monkeypatch.setattr(client, "MAX_TRIES", 2)
    server = Server()
    with open_renderer(RenderSettings(url=server.url)) as remote:
        assert remote.render(["x"])[0].status is PageStatus.OK
        assert server.stop() == 0
        page = remote.render(["y"])[0]
    assert page.status is PageStatus.FAILED and "ConnectError" in page.detail
    with pytest.raises(RenderError, match="closed"):
        remote.submit("z")


def test_a_wrong_address_is_one_clear_line():
    with pytest.raises(RenderError, match=r"render\.url is 'localhost'.*http"):
        open_renderer(RenderSettings(url="localhost"))
    with pytest.raises(RenderError, match=r"no renderer answers there.*render\.server"):
        open_renderer(RenderSettings(url="http://127.0.0.1:9"))


def test_a_server_without_chromium_is_one_line():
    command = [sys.executable, "-m", "render.server", "--chromium", "/no/such"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, env=os.environ)
    assert done.returncode == 2
    assert done.stderr.startswith("error: render.chromium is '/no/such'") and done.stderr.count("\n") == 1
