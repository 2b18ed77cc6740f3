"""One pool for the tests that only draw; small, because two cores serve everything."""

from __future__ import annotations

import pytest

from render import RenderPool, RenderSettings


@pytest.fixture(scope="session")
def pool():
    with RenderPool(RenderSettings(workers=2, cache_mb=0)) as pool:
        yield pool
