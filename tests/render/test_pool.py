"""The pool: order, failures alone, browsers that die, and nothing left behind."""

import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from render import PageStatus, RenderError, RenderPool, RenderSettings
from render import pool as pool_module
from render.chromium import BrowserGone, find_chromium
from render.sheet import Sheet
from tests.waiting import LIMIT_S

SETTINGS = RenderSettings(workers=2, cache_mb=0)
SLOW = "<div style='column-count:3'>" * 200 + "x y z " * 100
"""Takes Chromium minutes to lay out."""


def browsers(parent=None):
    """Living Chromium processes below a process (default: this one)."""
    found = []
    for process in psutil.Process(parent).children(recursive=True):
        try:
            if process.status() != psutil.STATUS_ZOMBIE and "headless" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            pass
    return found


def leftovers(pid=None):
    """Names of the browser files of a process (default: this one)."""
    pattern = f"memocr-render-{pid or os.getpid()}-*"
    return {path.name for path in Path(tempfile.gettempdir()).glob(pattern)}


def test_order_is_kept_and_equal_memories_are_drawn_once():
    texts = [f"memory number {i % 40}" for i in range(120)]
    with RenderPool(SETTINGS) as pool:
        futures = [pool.submit(text) for text in texts]
        pages = [future.result() for future in futures]
        again = pool.render(texts[:3])
    for text, page in zip(texts, pages, strict=True):
        assert page.regions[0].text == text
    assert len({id(page) for page in pages}) < 120, "samples that agree share a page"
    np.testing.assert_array_equal(again[0].pixels, pages[0].pixels)


def test_a_page_that_hangs_fails_alone():
    good = [f"good {i}" for i in range(30)]
    with RenderPool(RenderSettings(workers=2, cache_mb=0, timeout_s=4.0)) as pool:
        pages = pool.render([*good[:15], SLOW, *good[15:]])
        assert pool.restarts >= 1
    assert pages[15].status is PageStatus.TIMEOUT and pages[15].pixels is None
    assert "4 s" in pages[15].detail
    others = pages[:15] + pages[16:]
    assert [page.regions[0].text for page in others] == good


def test_a_page_that_crashes_its_process_fails_alone(monkeypatch):
    draw = Sheet.draw

    def draw_or_crash(self, fragments, width_px, deadline):
        # A fault of Chromium's own that does not depend on its version: its crash command.
        if any("crash" in fragment for fragment in fragments):
            self._call("Page.crash", {}, 10.0)
        return draw(self, fragments, width_px, deadline)

    monkeypatch.setattr(Sheet, "draw", draw_or_crash)
    with RenderPool(SETTINGS) as pool:
        pages = pool.render(["before", "crash", "after"])
        assert 1 <= pool.restarts <= 2, "once among others, once alone"
    assert pages[1].status is PageStatus.CRASHED and "crashed" in pages[1].detail
    assert [pages[0].regions[0].text, pages[2].regions[0].text] == ["before", "after"]


def test_memory_of_a_page_is_limited():
    # 4096 x 16384 px are 268 MB as Chromium holds them, and more while they are encoded.
    heavy = "<p style='font-size:399px'>" + "W " * 10_000
    kind = {"workers": 1, "cache_mb": 0, "max_memory_mb": 512, "timeout_s": 30.0}
    with RenderPool(RenderSettings(width_px=4096, max_height_px=16_384, **kind)) as pool:
        page, good = pool.render([heavy, "good"])
    assert good.status is PageStatus.OK
    assert page.status is PageStatus.CRASHED and page.pixels is None


def kill_at_random(pool_size, count, seed, period_s):
    rng = random.Random(seed)
    kills = 0
    bystanders = set(browsers())
    stop = threading.Event()

    def killer():
        nonlocal kills
        while not stop.wait(rng.uniform(0.5, 1.5) * period_s):
            victims = sorted(set(browsers()) - bystanders, key=lambda process: process.pid)
            if victims:
                try:
                    rng.choice(victims).kill()
                    kills += 1
                except psutil.NoSuchProcess:
                    pass

    texts = [f"# page {i}\n\n" + "some words of a memory " * 20 for i in range(count)]
    with RenderPool(RenderSettings(workers=pool_size, cache_mb=0)) as pool:
        pool.render(["warm"])
        thread = threading.Thread(target=killer)
        thread.start()
        pages = []
        while not pool.restarts or len(pages) < count:  # until a kill has struck
            batch = texts[len(pages) : len(pages) + 100] or texts[:100]
            pages += pool.render(batch)
        stop.set()
        thread.join()
        restarts = pool.restarts
    for text, page in zip(texts, pages, strict=False):
        assert page.status is PageStatus.OK, page.detail
        assert page.regions[0].text == text.splitlines()[0].removeprefix("# ")
    assert kills and restarts
    return kills, restarts


def test_killed_browsers_lose_no_page():
    kill_at_random(pool_size=2, count=200, seed=1, period_s=1.0)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_killed_browsers_lose_none_of_500_pages():
    kills, restarts = kill_at_random(pool_size=3, count=500, seed=2, period_s=0.4)
    print(f"500 pages, {kills} kills, {restarts} restarts: none lost")
    assert kills >= 3


def test_close_leaves_nothing_and_decides_what_is_waiting():
    before, bystanders = leftovers(), set(browsers())
    pool = RenderPool(SETTINGS)
    pool.render(["x"])
    started = set(browsers()) - bystanders
    assert started and leftovers() - before
    futures = [pool.submit(SLOW + str(i)) for i in range(4)]
    time.sleep(0.5)
    pool.close()
    assert all(future.result(timeout=LIMIT_S).status is PageStatus.FAILED for future in futures)
    assert "closed" in futures[-1].result().detail
    psutil.wait_procs(started, timeout=LIMIT_S)
    assert not [process for process in started if process.is_running()]
    assert leftovers() <= before
    pool.close()
    with pytest.raises(RenderError, match="closed"):
        pool.submit("x")


SCRIPT = """
import signal, sys, time
from render import RenderPool, RenderSettings
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job that a shell started with & ignores it
pool = RenderPool(RenderSettings(workers=2, cache_mb=0))
pool.render(["x"])
future = pool.submit({slow!r})
print("ready", flush=True)
{end}
"""


def gone(processes, within_s=LIMIT_S):
    _, alive = psutil.wait_procs(processes, timeout=within_s)
    return not [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("end", ["sys.exit(0)", "raise RuntimeError('x')", "time.sleep(900)"])
def test_interpreter_exit_leaves_nothing(end):
    script = SCRIPT.format(slow=SLOW, end=end)
    child = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert child.stdout.readline().strip() == b"ready"
    started = browsers(child.pid)
    if "sleep" in end:
        child.send_signal(signal.SIGINT)
    child.wait(timeout=LIMIT_S)
    assert gone(started)
    assert not leftovers(child.pid)


def test_sigkill_leaves_no_browser_and_its_files_go_with_the_next_pool():
    script = SCRIPT.format(slow="y", end="time.sleep(900)")
    child = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert child.stdout.readline().strip() == b"ready"
    started = browsers(child.pid)
    assert len(started) >= 4
    child.kill()
    child.wait()
    assert gone(started), "Chromium ends when its pipe closes"
    assert leftovers(child.pid)
    RenderPool(SETTINGS).close()
    assert not leftovers(child.pid)


def test_missing_chromium_is_one_clear_line(monkeypatch, tmp_path):
    with pytest.raises(RenderError, match=r"render\.chromium is '/no/such'.*apt-get install"):
        RenderPool(RenderSettings(chromium="/no/such"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("PLAYWRIGHT_BROWSERS_PATH", raising=False)
    with pytest.raises(RenderError, match=r"no Chromium was found.*playwright install"):
        RenderPool()


def test_the_order_of_the_search_for_chromium(monkeypatch, tmp_path):
    def make(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
        return str(path)

    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("PLAYWRIGHT_BROWSERS_PATH", raising=False)
    folder = tmp_path / ".cache" / "ms-playwright"
    full = make(folder / "chromium-1200" / "chrome-linux64" / "chrome")
    assert find_chromium() == full
    shell = make(folder / "chromium_headless_shell-1200" / "chrome-linux" / "headless_shell")
    assert find_chromium() == shell
    on_path = make(tmp_path / "bin" / "chromium")
    assert find_chromium() == on_path
    on_path = make(tmp_path / "bin" / "chromium-headless-shell")
    assert find_chromium() == on_path
    chosen = make(tmp_path / "mine")
    assert find_chromium(chosen) == chosen


def fail_to_start(monkeypatch, times):
    """Let sheets of new browsers fail so often, as when browsers are killed while they start."""
    left = [times]
    real = pool_module.Sheet

    def sheet(*arguments):
        if left[0]:
            left[0] -= 1
            raise BrowserGone("the page's process ended: killed")
        return real(*arguments)

    monkeypatch.setattr(pool_module, "Sheet", sheet)


def test_browsers_that_are_killed_while_they_start_lose_no_page(monkeypatch):
    with RenderPool(SETTINGS, workers=1) as pool:
        assert pool.render(["warm"])[0].status is PageStatus.OK
        fail_to_start(monkeypatch, 2 * pool_module.MAX_START_FAILURES - 1)
        for browser in list(pool._browsers):
            browser.kill()
        assert {page.status for page in pool.render(["one", "two"])} == {PageStatus.OK}


def test_when_no_browser_starts_any_more_pages_fail(monkeypatch):
    monkeypatch.setattr(pool_module, "GIVE_UP_S", 0.3)
    with RenderPool(SETTINGS, workers=1) as pool:
        pool.render(["warm"])
        fail_to_start(monkeypatch, 1000)
        for browser in list(pool._browsers):
            browser.kill()
        pages = pool.render(["one", "two"])
    assert {page.status for page in pages} == {PageStatus.FAILED}
    assert "does not start: the page's process ended" in pages[0].detail


def test_a_chromium_that_does_not_start_is_one_clear_line(tmp_path):
    before = leftovers()
    broken = tmp_path / "chromium"
    broken.write_text(
        "#!/bin/sh\n[ $1 = --version ] && echo Chromium 1 && exit 0\necho missing lib >&2; exit 1\n"
    )
    broken.chmod(0o755)
    with pytest.raises(RenderError, match=r"does not start.*missing lib"):
        RenderPool(RenderSettings(workers=1, cache_mb=0, chromium=str(broken)))
    assert leftovers() <= before


def test_a_chromium_that_no_longer_starts_fails_pages_not_the_program(tmp_path):
    lock = tmp_path / "broken"
    wrapper = tmp_path / "chromium"
    wrapper.write_text(
        f'#!/bin/sh\n[ -e {lock} ] && echo gone bad >&2 && exit 1\nexec {find_chromium()} "$@"\n'
    )
    wrapper.chmod(0o755)
    bystanders = set(browsers())
    with RenderPool(RenderSettings(workers=1, cache_mb=0, chromium=str(wrapper))) as pool:
        assert pool.render(["x"])[0].status is PageStatus.OK
        lock.write_text("")
        for process in set(browsers()) - bystanders:
            process.kill()
        page = pool.render(["y"])[0]
        assert page.status is PageStatus.FAILED and "gone bad" in page.detail
        lock.unlink()
        assert pool.render(["z"])[0].status is PageStatus.OK, "and it recovers"


def test_one_pool_serves_many_threads(pool):
    results = {}

    def ask(i):
        results[i] = pool.render([f"thread {i} memory {j}" for j in range(5)])

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, pages in results.items():
        assert [page.regions[0].text for page in pages] == [f"thread {i} memory {j}" for j in range(5)]


def test_sandbox_on_is_an_error_where_there_is_none():
    if os.geteuid() != 0:
        pytest.skip("only root is refused for certain")
    with pytest.raises(RenderError, match=r"render\.sandbox on.*root"):
        RenderPool(RenderSettings(sandbox="on"))
    with pytest.raises(RenderError, match=r"render\.sandbox is 'maybe'"):
        RenderSettings(sandbox="maybe")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has Chromium's sandbox off")
def test_root_is_told_once_that_the_sandbox_is_off(caplog):
    from render import chromium

    chromium._say_once.cache_clear()
    with caplog.at_level("WARNING", "render"), RenderPool(SETTINGS) as pool:
        pool.render(["a", "b"])
    with RenderPool(SETTINGS) as pool:
        pool.render(["a"])
    assert sum("sandbox is off" in record.message for record in caplog.records) == 1
