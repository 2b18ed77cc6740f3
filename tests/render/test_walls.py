"""Each wall against the network stands by itself, with the sanitiser and the other walls taken away."""

import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from render import RenderSettings, chromium, sheet
from render.chromium import Browser, find_chromium
from render.sheet import Sheet
from tests.waiting import LIMIT_S, wait_until

SETTINGS = RenderSettings()
NAME_FLAGS = ("--host-resolver-rules", "--proxy-server", "--proxy-bypass-list")


class Listener:
    def __init__(self):
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                self._socket.accept()[0].close()
            except OSError:
                return
            self.connections += 1


@pytest.fixture
def listener():
    listener = Listener()
    yield listener
    listener._socket.close()


def hostile(port):
    here = f"http://127.0.0.1:{port}/"
    return [
        f"<img src='{here}a'><img src='http://localhost:{port}/b'>visible",
        f"<div style='background:url({here}c)'>x</div><style>@import url({here}d);</style>",
        f"<link rel=stylesheet href='{here}e'><iframe src='{here}f'></iframe>x",
        f"<object data='{here}g'></object><video src='{here}h' autoplay></video>x",
        f"<style>@font-face{{font-family:f;src:url({here}i)}} p{{font-family:f}}</style><p>x</p>",
    ]


def connections_with(monkeypatch, listener, policy, interception, names):
    """Connections that unsanitised HTML makes when only the named walls stand."""
    if not names:
        flags = tuple(flag for flag in chromium.FLAGS if not flag.startswith(NAME_FLAGS))
        monkeypatch.setattr(chromium, "FLAGS", flags)
    if not policy:
        monkeypatch.setattr(sheet, "CSP", "default-src * 'unsafe-inline' data:")
    original = Browser.call
    if not interception:

        def call(self, method, *arguments, **kind):
            return {} if method == "Fetch.enable" else original(self, method, *arguments, **kind)

        monkeypatch.setattr(Browser, "call", call)
    browser = Browser(find_chromium())
    try:
        page = Sheet(browser, SETTINGS)
        for html in hostile(listener.port):
            page.draw([html], 784, time.monotonic() + LIMIT_S)
        if not (policy or interception or names):
            wait_until(lambda: listener.connections)
        time.sleep(0.5)
        page.draw(["x"], 784, time.monotonic() + LIMIT_S)
    finally:
        browser.close()
    return listener.connections


def test_without_any_wall_the_page_does_reach_the_network(monkeypatch, listener):
    assert connections_with(monkeypatch, listener, False, False, False) > 0, (
        "or the other tests prove nothing"
    )


@pytest.mark.parametrize("wall", ["policy", "interception", "names"])
def test_each_wall_alone_keeps_every_request_in(monkeypatch, listener, wall):
    walls = {name: name == wall for name in ("policy", "interception", "names")}
    assert connections_with(monkeypatch, listener, **walls) == 0


def test_scripts_do_not_run_even_unsanitised():
    browser = Browser(find_chromium())
    try:
        page = Sheet(browser, SETTINGS)
        html = (
            "<script>document.body.remove()</script><img src=x onerror='document.body.remove()'><b>still</b>"
        )
        drawn = page.draw([html, "<p onclick=1>here</p>"], 784, time.monotonic() + LIMIT_S)
        assert [region.text for one in drawn for region in one.regions] == ["still", "here"]
    finally:
        browser.close()


def test_files_are_not_readable(tmp_path):
    secret = tmp_path / "secret.html"
    secret.write_text("<body style='background:red'>secret")
    browser = Browser(find_chromium())
    try:
        page = Sheet(browser, SETTINGS)
        html = f"<iframe src='file://{secret}'></iframe><object data='file://{secret}'></object><p>x</p>"
        (drawn,) = page.draw([html], 784, time.monotonic() + LIMIT_S)
        red = (drawn.pixels[..., 0] > 200) & (drawn.pixels[..., 1] < 50)
        assert not red.any()
    finally:
        browser.close()


SANDBOX = """
import os, sys, socket, psutil
from render import RenderPool, RenderSettings, chromium
settings = RenderSettings(workers=1, cache_mb=0)
if os.geteuid() == 0:  # everything is imported as root, then root is given up
    with RenderPool(settings) as pool:
        pool.render(["x"])
    chromium._say_once.cache_clear()
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
with RenderPool(settings) as pool:
    print(pool.render(["# x"])[0].status)
    for process in psutil.Process().children(recursive=True):
        if "--type=renderer" in process.cmdline():
            status = open(f"/proc/{process.pid}/status").read().split("Seccomp:")[1].split()[0]
            print("seccomp", status, "no-sandbox" in " ".join(process.cmdline()))
"""


def test_the_sandbox_is_on_for_everyone_but_root():
    if Path("/proc/sys/user/max_user_namespaces").read_text().strip() == "0":
        pytest.skip("this kernel has no user namespaces, which Chromium's sandbox is made of")
    done = subprocess.run(
        [sys.executable, "-c", SANDBOX], capture_output=True, text=True, timeout=LIMIT_S, cwd="/"
    )
    # Mode 2: system calls are filtered.
    assert done.stdout.split("\n")[:2] == ["OK", "seccomp 2 False"], done.stdout + done.stderr
