"""The cache: hits, bounds, damage, sharing."""

import numpy as np
import pytest

from render import MemoryPage, PageStatus, Region, RenderError, RenderPool, RenderSettings
from render.cache import PageCache
from render.codec import CodecError, decode_page, encode_page
from render.theme import theme_css, with_theme_text


def page(number, side=100, status=PageStatus.OK):
    pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return MemoryPage(
        pixels, status, f"note {number}", f"{number:064x}", (Region("heading", 1, 0, 1, 2, 3, "é"),)
    )


def same(a, b):
    np.testing.assert_array_equal(a.pixels, b.pixels)
    return (a.status, a.detail, a.content_hash, a.regions) == (b.status, b.detail, b.content_hash, b.regions)


def test_a_page_survives_its_file():
    original = page(1)
    assert same(decode_page(encode_page(original)), original)
    for broken in (b"", b"x", encode_page(original)[:500]):
        with pytest.raises(CodecError):
            decode_page(broken)


def test_memory_is_bounded_and_forgets_the_least_recently_used():
    cache = PageCache(max_mb=1)  # 34 pages of 100 x 100 x 3 and 1 KiB
    for number in range(30):
        cache.put(page(number))
    assert cache.get(f"{0:064x}")
    for number in range(30, 40):
        cache.put(page(number))
    assert cache.get(f"{0:064x}"), "just used"
    assert cache.get(f"{1:064x}") is None, "used longest ago"
    assert cache.get(f"{39:064x}")


def test_disk_is_shared_bounded_and_forgiving(tmp_path):
    first = PageCache(1, str(tmp_path))
    for number in range(20):
        first.put(page(number))
    second = PageCache(1, str(tmp_path))
    assert same(second.get(f"{3:064x}"), page(3)), "another process finds it"
    file = tmp_path / "00" / f"{4:064x}.png"
    file.write_bytes(file.read_bytes()[:100])
    third = PageCache(1, str(tmp_path))
    assert third.get(f"{4:064x}") is None and not file.exists()
    for number in range(100, 160):
        third.put(page(number))
    total = sum(path.stat().st_size for path in tmp_path.glob("*/*"))
    assert total <= 1 << 20
    assert not list(tmp_path.glob("*/*.tmp"))


def test_bad_luck_is_not_remembered_and_zero_switches_off():
    cache = PageCache(1)
    cache.put(page(1, status=PageStatus.TIMEOUT))
    assert cache.get(f"{1:064x}") is None
    off = PageCache(0)
    off.put(page(2))
    assert off.get(f"{2:064x}") is None


def test_the_pool_uses_it(tmp_path):
    settings = RenderSettings(workers=1, cache_dir=str(tmp_path))
    with RenderPool(settings) as pool:
        drawn = pool.render(["# A", "京", ""])
        assert pool.render(["# A"])[0] is drawn[0]
    shared = PageCache(16, str(tmp_path))
    with RenderPool(settings, workers=1, cache=shared) as pool:
        again = pool.render(["# A", "京", ""])
        assert shared.get(drawn[0].content_hash) is again[0]
        other = pool.submit("# A", width_px=392).result()
    for a, b in zip(drawn[:2], again[:2], strict=True):
        assert same(a, b)
    assert again[2].status is PageStatus.EMPTY
    assert other.content_hash != drawn[0].content_hash


def test_everything_that_changes_pixels_changes_the_hash(tmp_path):
    css = tmp_path / "a.css"
    css.write_text("p { color: red }")
    kinds = [{}, {"scale": 2.0}, {"margin_px": 7}, {"theme": "small"}, {"theme": str(css)}, {"shrink": False}]
    hashes = set()
    for kind in kinds:
        with RenderPool(RenderSettings(workers=1, **kind)) as pool:
            hashes.add(pool.content_hash("x"))
            hashes.add(pool.content_hash("x", "html"))
    remembered = with_theme_text(RenderSettings(workers=1, theme=str(css)))
    with RenderPool(remembered) as pool:
        assert pool.content_hash("x") in hashes, "the same theme, given as text"
    css.write_text("p { color: blue }")
    assert theme_css(remembered) == "p { color: red }" and theme_css(with_theme_text(remembered))
    with RenderPool(RenderSettings(workers=1, theme=str(css))) as pool:
        hashes.add(pool.content_hash("x"))
    assert len(hashes) == 2 * len(kinds) + 1
    with pytest.raises(RenderError, match=r"render\.theme_css.*not plain CSS"):
        theme_css(RenderSettings(theme_css="</STYLE>"))


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RenderError, match=r"render\.cache_dir is .*file/x"):
        PageCache(1, str(tmp_path / "file" / "x"))
