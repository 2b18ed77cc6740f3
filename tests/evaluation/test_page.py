"""report.html in a real Chromium: filters, order, pages side by side, and hostile text stays text."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

HOSTILE = (
    "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"
    "\"'{{ 7 * 191 }}\u2028\x00\ud800\u202eltr <!--"
)
NAME = "</title><script>window.hacked = 3</script>$x_1$ & \"'{{ 7 * 191 }}"


@pytest.fixture
def open_report(open_page):
    return lambda evaluation, **options: open_page(evaluation.directory / "report.html", **options)


def questions(page):
    return [text.split()[5] for text in page.locator(".entry .ask > b").all_inner_texts()]


def test_filters(evaluation, open_report):
    page = open_report(evaluation)
    count = page.locator("#count")
    assert count.inner_text() == "32 of 32 · 320 answers, 42.2 % right"
    page.select_option("#f-dataset", "hotpotqa")
    page.select_option("#f-length", "30k")
    assert page.locator(".entry").count() == 8
    page.select_option("#f-method", "visual memory")
    page.select_option("#f-budget", "64")
    assert count.inner_text() == "8 of 32 · 8 answers, 75.0 % right"
    page.select_option("#f-outcome", "wrong")
    assert questions(page) == ["3", "7"]
    page.select_option("#f-outcome", "right")
    assert questions(page) == ["0", "1", "2", "4", "5", "6"]
    page.fill("#f-text", "question 5")
    assert questions(page) == ["5"]
    page.fill("#f-text", "nowhere")
    assert page.locator("#list .empty").count() == 1
    page.click("#reset")
    assert page.locator(".entry").count() == 32
    page.select_option("#f-outcome", "failed")
    assert count.inner_text().startswith("1 of 32")
    assert page.complaints == []


def test_order(evaluation, open_report):
    page = open_report(evaluation)
    page.select_option("#f-dataset", "nq")
    page.select_option("#f-length", "10k")
    page.click("[data-sort=score]")
    assert questions(page) == ["3", "7", "2", "6", "1", "5", "0", "4"]
    page.click("[data-sort=score]")
    assert questions(page) == ["0", "4", "1", "5", "2", "6", "3", "7"]
    assert page.locator("[data-sort=score]").get_attribute("aria-sort") == "descending"
    page.select_option("#f-method", "visual memory")
    page.click("[data-sort=least]")
    assert questions(page)[:2] == ["0", "4"] and questions(page)[-2:] == ["3", "7"]
    page.click("[data-sort=question]")
    assert questions(page) == list("01234567")
    assert page.complaints == []


def test_a_question_shows_its_pages_at_each_budget_side_by_side(evaluation, by_hand, open_report):
    page = open_report(evaluation)
    page.locator(".entry > summary").nth(1).click()
    opened = page.locator(".entry[open]")
    expect(opened.locator("h4")).to_have_count(4)
    assert opened.locator("h4").all_inner_texts() == list(by_hand.METHODS)
    row = opened.locator(".method").first
    sizes = row.locator("img").evaluate_all(
        "images => Promise.all(images.map(i => i.decode().then(() => [i.naturalWidth, i.naturalHeight])))"
    )
    assert len(sizes) == 3 and sizes == sorted(sizes, reverse=True)
    for (width, height), budget in zip(sizes, (512, 64, 8), strict=True):
        assert width % 28 == height % 28 == 0 and width * height <= 784 * budget
    boxes = [figure.bounding_box() for figure in row.locator("figure").all()]
    assert len({box["y"] for box in boxes}) == 1, "side by side"
    assert len({box["width"] for box in boxes}) == 1, "enlarged to compare"
    assert row.locator(".mark").all_inner_texts() == ["✓", "✓", "✗"]
    assert "Answer 1" in row.locator("figure").first.inner_text()
    page.click("#size")
    assert row.locator("img").nth(2).bounding_box()["width"] == sizes[2][0]
    row.locator("img").nth(2).click()
    assert page.locator("#zoom img").is_visible()
    page.click("#close")
    assert not page.locator("#zoom").is_visible()
    assert "Memory as written" in opened.inner_text()
    assert page.complaints == []


def test_what_failed_says_why(evaluation, open_report):
    page = open_report(evaluation)
    page.locator(".entry > summary").nth(7).click()
    assert page.locator(".entry[open] .status").first.inner_text() == "TIMEOUT"
    page.locator("#accuracy details summary").first.click()
    assert "rows.jsonl:3: question: empty" in page.locator("#accuracy").inner_text()
    assert "hotpotqa 10k, hotpotqa-7, sample 0: visual memory TIMEOUT" in page.content()


def test_hostile_text_stays_text(tmp_path, by_hand, open_report):
    made = by_hand.finish(by_hand.make_entries(tmp_path / "e", (("nq", NAME),), 2, text=HOSTILE))
    page = open_report(made)
    page.locator(".entry > summary").first.click()
    page.locator(".entry img").first.click()
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert page.evaluate("window.hacked") is None
    assert page.locator("script").count() == 2 and page.locator("img[src=x]").count() == 0
    assert "window.hacked = 1" in page.locator(".entry .ask > b").first.inner_text()
    assert page.complaints == []


def test_samples_limits_and_phones(tmp_path, by_hand, open_report):
    journal = by_hand.make_entries(tmp_path / "e", (("nq", "10k"),), 4, samples=2)
    made = by_hand.finish(journal, report_questions=2)
    page = open_report(made)
    assert page.locator(".entry .num").first.inner_text() == "1.1"
    assert page.locator(".entry").count() == 8
    assert "first 2 questions" in page.locator("#overview").inner_text()
    page.locator(".entry > summary").nth(0).click()
    expect(page.locator(".entry[open] img")).to_have_count(6)
    page.locator(".entry > summary").nth(7).click()
    expect(page.locator(".entry[open] .golds")).to_have_count(2)
    assert page.locator(".entry[open] img").count() == 6  # the last question's pages are not in the report
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.complaints == []
    whole = (made.directory / "report.html").stat().st_size
    made = by_hand.finish(journal, report_mb=0)
    assert (made.directory / "report.html").stat().st_size < whole
    assert "views left out" in (made.directory / "report.html").read_text()


def test_light_and_dark(evaluation, open_report):
    background = "getComputedStyle(document.body).backgroundColor"
    light, dark = (open_report(evaluation, color_scheme=scheme) for scheme in ("light", "dark"))
    assert light.evaluate(background) != dark.evaluate(background)
