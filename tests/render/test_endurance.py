"""Memory does not grow: a short look in every run, 10,000 pages in the soak."""

import gc
import json

import psutil
import pytest

from benchmarks.render import make_memory
from render import RenderPool, RenderSettings

MB = 1 << 20


def tree_mb():
    """Proportional set size of this process and all below it, in MiB: what is shared counts once."""
    total = 0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except psutil.NoSuchProcess:
            continue
    return total / MB


def curve(pages, every, workers):
    """Memory of the process tree in MiB after every so many pages, all different, none kept."""
    points = []
    with RenderPool(RenderSettings(workers=workers, cache_mb=0)) as pool:
        for start in range(0, pages, every):
            statuses = {
                page.status for page in pool.render([make_memory(220, start + i) for i in range(every)])
            }
            assert statuses == {"OK"}
            gc.collect()
            points.append((start + every, round(tree_mb(), 1)))
    return points


def test_memory_does_not_run_away():
    points = curve(pages=600, every=100, workers=1)
    # A leak of one captured sheet (some 20 MB) would show at once; caches may still fill up.
    assert points[-1][1] < points[1][1] * 1.35 + 30, points


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_ten_thousand_pages_in_a_row():
    points = curve(pages=10_000, every=500, workers=2)
    print("pages, MiB:", json.dumps(points))
    warm = dict(points)[1000]
    assert max(mb for count, mb in points if count > 1000) <= 1.2 * warm, points
