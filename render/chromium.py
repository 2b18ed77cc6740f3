"""Finds Chromium, starts it, and speaks its DevTools protocol over a pair of pipes.

Pipes are used and not a port, so that nothing listens, and Chromium ends by itself when our end closes,
however this process dies. `posix_spawn` is used and not fork, because it is safe beside JAX's threads.
Playwright's driver process would stand between this process and every screenshot, so Playwright only installs
Chromium, and the benchmark compares with it (`benchmarks/render.py`).
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import logging
import os
import re
import select
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from render import cbor, fonts
from render.errors import RenderError

log = logging.getLogger("render")

INSTALL_HINT = (
    "install it with 'apt-get install chromium-headless-shell' or 'python -m playwright install chromium'"
)
PATH_NAMES = (
    "chromium-headless-shell",
    "chrome-headless-shell",
    "chromium",
    "chromium-browser",
    "google-chrome",
)
FLAGS = (
    "--headless",
    "--remote-debugging-pipe=cbor",
    "--no-startup-window",
    # Frames are drawn only when asked for, and completely.
    "--enable-begin-frame-control",
    "--run-all-compositor-stages-before-draw",
    # The same pixels everywhere.
    "--disable-gpu",
    "--in-process-gpu",
    "--disable-lcd-text",
    "--font-render-hinting=none",
    "--force-color-profile=srgb",
    "--force-device-scale-factor=1",
    "--hide-scrollbars",
    "--lang=en-US",
    # No network: every name and address resolves to nothing.
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--proxy-server=http://127.0.0.1:9",
    "--proxy-bypass-list=<-loopback>",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--disable-domain-reliability",
    "--no-pings",
    "--mute-audio",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-breakpad",
    "--disable-crash-reporter",
    "--disable-in-process-stack-traces",
    "--renderer-process-limit=1",
)
_PROFILE_PREFIX = "memocr-render-"
_SMALL_SHM_BYTES = 512 << 20
_PIPE_BYTES = 1 << 20


class BrowserGone(Exception):
    """The browser process ended or its page crashed."""


class PageFault(BrowserGone):
    """The page's process crashed by its own fault: it was not killed from outside."""


class BrowserTimeout(Exception):
    """The browser did not answer in time."""


class ProtocolError(Exception):
    """The browser refused a command."""


def find_chromium(setting: str = "") -> str:
    """Path of the Chromium to use: `setting`, else PATH, else Playwright's own installation.

    Raises `RenderError` with the command that installs it when there is none.
    """
    if setting:
        path = shutil.which(setting)
        if path is None:
            raise RenderError(f"render.chromium is {setting!r}, which is no executable file; {INSTALL_HINT}")
        return path
    for name in PATH_NAMES:
        if path := shutil.which(name):
            return path
    for pattern in ("chromium_headless_shell-*/*/*headless*shell", "chromium-*/*/chrome"):
        found = sorted(path for path in _playwright_folder().glob(pattern) if os.access(path, os.X_OK))
        if found:
            return str(found[-1])
    raise RenderError(f"no Chromium was found on PATH or in Playwright's folder; {INSTALL_HINT}")


def _playwright_folder() -> Path:
    # Playwright's documented places; its own variable wins because `playwright install` obeys it.
    chosen = os.environ.get("PLAYWRIGHT_BROWSERS_PATH")
    return Path(chosen) if chosen else Path.home() / ".cache" / "ms-playwright"


@functools.cache
def chromium_version(executable: str) -> str:
    """What `executable --version` prints. Raises `RenderError` when it does not run."""
    try:
        done = subprocess.run(
            [executable, "--version"], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise RenderError(f"{executable!r} does not run ({type(error).__name__}); {INSTALL_HINT}") from None
    return done.stdout.strip()


def open_browser(executable: str, max_memory_mb: int, sandbox: str) -> tuple[Browser, bool]:
    """A first browser, and whether it has Chromium's sandbox, by `RenderSettings.sandbox`.

    Where `auto` cannot have it, a warning says so once per process. Raises `RenderError` when Chromium does
    not start.
    """
    problem = "running as root" if os.geteuid() == 0 else ""
    try:
        if sandbox == "on" or (sandbox == "auto" and not problem):
            try:
                return _start(executable, max_memory_mb, sandbox=True), True
            except BrowserGone as error:
                if sandbox == "on" or "sandbox" not in str(error):
                    raise
                problem = "this machine refuses it (no user namespaces)"
        browser = _start(executable, max_memory_mb, sandbox=False)
    except (BrowserGone, BrowserTimeout) as error:
        raise RenderError(f"Chromium does not start (render.sandbox {sandbox}): {error}") from None
    if problem:
        _say_once(
            f"{problem}: Chromium's sandbox is off; it needs an ordinary user (not root) and user namespaces"
        )
    return browser, False


def _start(executable: str, max_memory_mb: int, sandbox: bool) -> Browser:
    """A browser. One that crashes while it starts, which is rare, is started once more."""
    try:
        return Browser(executable, max_memory_mb, sandbox)
    except BrowserGone as error:
        if "sandbox" in str(error):  # a refusal, no accident
            raise
        log.warning("Chromium crashed while it started (%s); it is started once more", error)
        return Browser(executable, max_memory_mb, sandbox)


@functools.cache
def _say_once(message: str) -> None:
    log.warning(message)


def _command(executable: str, max_memory_mb: int, sandbox: bool, profile: str) -> list[str]:
    flags = [*FLAGS, f"--user-data-dir={profile}"]
    if not sandbox:
        flags.append("--no-sandbox")
    if not os.path.isdir("/dev/shm") or shutil.disk_usage("/dev/shm").total < _SMALL_SHM_BYTES:
        flags.append("--disable-dev-shm-usage")
    # The shell sets the limit before Chromium exists and then becomes it.
    limit = str(max_memory_mb * 1024) if max_memory_mb else "unlimited"
    return ["/bin/sh", "-c", 'ulimit -d "$0" && exec "$@"', limit, executable, *flags]


class Browser:
    """One running Chromium: commands out, replies in, one thread at a time."""

    def __init__(
        self, executable: str, max_memory_mb: int = 0, sandbox: bool = False, start_timeout_s: float = 30.0
    ):
        """Start `executable`. `max_memory_mb` limits each of its processes' writable memory (0: no limit).

        Raises `BrowserGone` or `BrowserTimeout` when it does not come up; the end of its error output is in
        the message.
        """
        self._profile = tempfile.mkdtemp(prefix=f"{_PROFILE_PREFIX}{os.getpid()}-")
        self._next_id = 0
        # One buffer for all messages: fresh memory costs more than reading into it. What `wait` returns may
        # point into it, until the next message is received.
        self._buffer = bytearray(1 << 16)
        self.layers: dict[str, list[dict]] = {}
        """By session, the compositor layers that its page last had."""
        self.pid = 0
        self._read, child_out = os.pipe()
        child_in, self._write = os.pipe()
        try:
            self._spawn(_command(executable, max_memory_mb, sandbox, self._profile), child_in, child_out)
            self.product = self.call("Browser.getVersion", timeout_s=start_timeout_s)["product"]
            self.call("Target.setDiscoverTargets", {"discover": True}, timeout_s=start_timeout_s)
        except BaseException as error:
            words = _last_words(Path(self._profile, "stderr"))
            self.close()
            if isinstance(error, BrowserGone | BrowserTimeout):
                raise type(error)(words or str(error)) from None
            raise

    def _spawn(self, command: list[str], child_in: int, child_out: int) -> None:
        """Start the browser with descriptors 3 and 4 as the ends of the pipes; closes them here."""
        # 3 and 4 may be in use here, even by these very pipes: lift the child's ends out of the way first.
        high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 64) for descriptor in (child_in, child_out)]
        actions = [
            (os.POSIX_SPAWN_DUP2, high[0], 3),
            (os.POSIX_SPAWN_DUP2, high[1], 4),
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            (
                os.POSIX_SPAWN_OPEN,
                2,
                f"{self._profile}/stderr",
                os.O_WRONLY | os.O_CREAT | os.O_APPEND,
                0o600,
            ),
        ]
        fontconfig = Path(self._profile, "fonts.conf")
        fontconfig.write_text(fonts.fontconfig(), encoding="utf-8")
        keep = ("PATH", "LD_LIBRARY_PATH")
        environment = {name: os.environ[name] for name in keep if name in os.environ}
        environment |= {"HOME": self._profile, "TMPDIR": self._profile, "LANG": "C.UTF-8"}
        environment |= {"FONTCONFIG_FILE": str(fontconfig)}
        environment |= {"DBUS_SESSION_BUS_ADDRESS": "disabled:", "DBUS_SYSTEM_BUS_ADDRESS": "disabled:"}
        try:
            self.pid = os.posix_spawn(command[0], command, environment, file_actions=actions, setpgroup=0)
        finally:
            for descriptor in (child_in, child_out, *high):
                os.close(descriptor)
        for descriptor in (self._write, self._read):
            fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        os.set_blocking(self._write, False)

    def call(
        self, method: str, params: dict | None = None, session: str = "", timeout_s: float = 10.0
    ) -> dict:
        """Send a command and return its result. Raises `BrowserGone`, `BrowserTimeout`, `ProtocolError`."""
        return self.wait(self.send(method, params, session), time.monotonic() + timeout_s)

    def send(self, method: str, params: dict | None = None, session: str = "") -> int:
        """Send a command without waiting; `wait` with the number returned fetches the result."""
        self._next_id += 1
        message = {"id": self._next_id, "method": method, "params": params or {}}
        if session:
            message["sessionId"] = session
        rest = memoryview(cbor.encode(message))
        deadline = time.monotonic() + 30.0
        while rest:
            try:
                rest = rest[os.write(self._write, rest) :]
            except BlockingIOError:
                if not select.select([], [self._write], [], max(0.0, deadline - time.monotonic()))[1]:
                    raise BrowserTimeout("the browser stopped reading commands") from None
            except OSError as error:
                raise BrowserGone(f"the browser is gone ({error.strerror})") from None
        return self._next_id

    def wait(self, number: int, deadline: float) -> dict:
        """Result of command `number`; `deadline` is in `time.monotonic` seconds."""
        while True:
            message = self._receive(deadline)
            if message.get("id") == number:
                if "error" in message:
                    raise ProtocolError(message["error"].get("message", "unknown error"))
                return message["result"]
            self._handle(message)

    def _handle(self, message: dict) -> None:
        method = message.get("method")
        if method == "Fetch.requestPaused":  # second wall: every request of a page is refused
            request = {"requestId": message["params"]["requestId"], "errorReason": "BlockedByClient"}
            self.send("Fetch.failRequest", request, message.get("sessionId", ""))
        elif method == "LayerTree.layerTreeDidChange":
            self.layers[message["sessionId"]] = message["params"].get("layers", [])
        elif method == "Target.targetCrashed":
            status = message["params"]["status"]
            raise (BrowserGone if status == "killed" else PageFault)(f"the page's process ended: {status}")
        elif method in ("Inspector.detached", "Target.detachedFromTarget"):
            raise BrowserGone("the page is gone")

    def _receive(self, deadline: float) -> dict:
        self._read_exactly(memoryview(self._buffer)[: cbor.HEADER_BYTES], deadline)
        size = cbor.HEADER_BYTES + cbor.body_length(self._buffer)
        if size > len(self._buffer):
            self._buffer = self._buffer[: cbor.HEADER_BYTES] + bytearray(size - cbor.HEADER_BYTES)
        message = memoryview(self._buffer)[:size]
        self._read_exactly(message[cbor.HEADER_BYTES :], deadline)
        return cbor.decode(message)

    def _read_exactly(self, view: memoryview, deadline: float) -> None:
        while view:
            if not select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise BrowserTimeout("no answer within the time limit")
            if not (count := os.readv(self._read, [view])):
                raise BrowserGone("the browser ended")
            view = view[count:]

    def kill(self) -> None:
        """Kill the browser's processes. The one method that another thread may call."""
        if group := self.pid:  # read once: 0 would be our own group
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)

    def close(self) -> None:
        """Kill the browser with all its processes and remove its files. May be called again."""
        if self._read < 0:
            return
        if self.pid:
            self.kill()
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, 0)
            self.pid = 0
        for descriptor in (self._read, self._write):
            os.close(descriptor)
        self._read = -1
        shutil.rmtree(self._profile, ignore_errors=True)


def _last_words(stderr: Path) -> str:
    """The line of a browser's error output that says most: the last fatal one, else the last."""
    lines = stderr.read_text(errors="replace").strip().splitlines() if stderr.exists() else []
    fatal = [line for line in lines if ":FATAL:" in line]
    return re.sub(r"^\[[^]]*\]\s*", "", (fatal or lines or [""])[-1])[:200]


def sweep_profiles() -> None:
    """Remove browser files that a killed process could not remove itself."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PROFILE_PREFIX}*-*"):
        owner = path.name.removeprefix(_PROFILE_PREFIX).partition("-")[0]
        if owner.isdigit() and not Path("/proc", owner).exists():
            shutil.rmtree(path, ignore_errors=True)
