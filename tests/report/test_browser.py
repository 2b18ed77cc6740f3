"""The report in a real Chromium: no console message, everything decodes, folding and the rest work."""

from __future__ import annotations

import json

import pytest

from memocr_jax.report import write_report


@pytest.fixture
def open_report(open_page):
    return lambda run, **options: open_page(write_report(run.root), **options)


def test_pictures_decode_and_folding_works(new_run, open_report):
    page = open_report(new_run().config().metrics(40).trajectories(1, questions=2).trajectories(3))
    shown = page.locator("details.sample[open]")
    assert shown.count() == 1, "one sample is open at first"
    page.click("#unfold")
    assert shown.count() == 12  # three questions, four samples each
    sizes = page.evaluate(
        """async () => {
            document.querySelectorAll("details").forEach((d) => { d.open = true; });
            const images = [...document.images];
            await Promise.all(images.map((i) => { i.loading = "eager"; return i.decode(); }));
            return images.map((i) => [i.naturalWidth, i.naturalHeight]);
        }"""
    )
    assert len(sizes) == 36 and {w for w, _ in sizes} == {448, 364, 112}  # page, full view, low view
    page.click("#unfold")
    assert shown.count() == 0 and page.locator("details.item[open]").count() == 0
    page.locator("details.item > summary").nth(1).click()
    assert page.locator("details.item").nth(1).get_attribute("open") is not None
    assert page.complaints == []


def test_low_resolution_is_enlarged_until_true_size_is_asked_for(new_run, open_report):
    page = open_report(new_run().config().trajectories(1, group=1))
    low = page.locator(".view img.small").first
    assert low.evaluate("i => getComputedStyle(i).imageRendering") == "pixelated"
    full = page.locator(".view img:not(.small)").first
    assert low.bounding_box()["width"] > 2 * 112
    assert low.bounding_box()["width"] == pytest.approx(full.bounding_box()["width"], abs=1)
    page.click("#size")
    assert low.bounding_box()["width"] == 112
    assert full.bounding_box()["width"] == 364
    assert page.complaints == []


def test_light_and_dark(new_run, open_report):
    run = new_run().config().metrics(2)
    background = "getComputedStyle(document.body).backgroundColor"
    light, dark = (open_report(run, color_scheme=scheme) for scheme in ("light", "dark"))
    colours = light.evaluate(background), dark.evaluate(background)
    assert colours[0] != colours[1]
    for page, other in ((light, colours[1]), (dark, colours[0])):
        page.check("#theme", force=True)
        assert page.evaluate(background) == other


def test_charts_are_drawn_in_the_colours_of_the_page(new_run, open_report):
    run = new_run().config()
    rows = [{"step": s, "validation/accuracy": s / 300 if s % 50 == 0 else None} for s in range(1, 301)]
    (run.root / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    colours = set()
    for scheme in ("light", "dark"):
        page = open_report(run, color_scheme=scheme)
        marks = page.locator(".chart use[style*=c0]")
        assert marks.count() == 6, "each validation is marked"
        box, chart = marks.first.bounding_box(), page.locator(".chart svg").bounding_box()
        assert chart["x"] < box["x"] < chart["x"] + chart["width"] and box["width"] > 3
        colours.add(marks.first.evaluate("mark => getComputedStyle(mark).fill"))
        assert page.complaints == []
    assert len(colours) == 2


def test_hostile_text_stays_text(new_run, open_report, hostile):
    run = new_run().config().metrics(2)
    run.trajectories(
        1, group=1, chunks=1, question=hostile, response=hostile, answers=[hostile], asked=hostile
    )
    with (run.root / "metrics.jsonl").open("a") as file:
        file.write(
            json.dumps({"step": 3, "reward/std": 1, f"x/{hostile}": 1.0, "loss/" + hostile: 2.0}) + "\n"
        )
    page = open_report(run)
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert page.evaluate("window.hacked") is None
    assert page.locator("script").count() == 1 and page.locator("img[src=x]").count() == 0
    assert "window.hacked = 1" in page.locator(".question").inner_text()
    assert "window.hacked = 1" in page.locator(".draft > .text").inner_text()
    assert page.complaints == []


def test_a_phone_has_the_navigation_and_no_sideways_scrolling(new_run, open_report):
    page = open_report(new_run().config().metrics(40).trajectories(1))
    page.set_viewport_size({"width": 390, "height": 800})
    page.click("#unfold")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for link in page.locator("nav a").all():
        link.click()  # scrolls the navigation, and then the page
        section = page.locator(link.get_attribute("href")).bounding_box()
        assert -1 <= section["y"] < 800


def test_two_hundred_turns_open(new_run, open_report):
    run = new_run().config().metrics(1000)
    for step in (1, 2, 3):
        run.trajectories(step, group=12, chunks=3)  # 12 x (3 drafts + 3 reads) = 72 turns
    page = open_report(run)
    page.click("#unfold")
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert page.locator(".read").count() + page.locator("details.draft").count() == 216
    assert page.complaints == []
