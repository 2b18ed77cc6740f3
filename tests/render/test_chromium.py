"""How a browser starts."""

import logging

import pytest

from render.chromium import find_chromium, open_browser
from render.errors import RenderError


def crashing(path, times):
    """An executable that crashes the first `times` times, and is Chromium after that."""
    path.write_text(
        "#!/bin/sh\n"
        f'n=$(cat "{path}.count" 2>/dev/null || echo 0)\n'
        f'echo $((n + 1)) > "{path}.count"\n'
        f'[ "$n" -lt {times} ] && {{ echo "Segmentation fault" >&2; kill -SEGV $$; }}\n'
        f'exec "{find_chromium()}" "$@"\n'
    )
    path.chmod(0o755)
    return str(path)


def test_a_browser_that_crashes_while_it_starts_is_started_once_more(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="render"):
        browser, _ = open_browser(crashing(tmp_path / "once", 1), 0, "off")
    try:
        assert "Chrome" in browser.product
    finally:
        browser.close()
    assert "crashed while it started" in caplog.text


def test_a_browser_that_never_starts_is_one_clear_error(tmp_path):
    with pytest.raises(
        RenderError, match=r"Chromium does not start \(render.sandbox off\): Segmentation fault"
    ):
        open_browser(crashing(tmp_path / "always", 9), 0, "off")
