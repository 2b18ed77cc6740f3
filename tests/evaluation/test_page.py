"""An evaluation's report.html in a real Chromium: what can be looked for, and hostile text."""

from __future__ import annotations

import pytest

HOSTILE = (
    "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"
    "\"'{{ 7 * 191 }}\u2028\x00\ud800\u202eltr <!--"
)
NAME = "</title><script>window.hacked = 3</script>$x_1$ & \"'{{ 7 * 191 }}"


@pytest.fixture
def open_report(open_page):
    return lambda evaluation, **options: open_page(evaluation.directory / "report.html", **options)


def shown(page):
    return [text.split()[5] for text in page.locator(".item:visible .question").all_inner_texts()]


def test_questions_can_be_looked_for(evaluation, open_report):
    page = open_report(evaluation)
    count = page.locator("#count")
    assert count.inner_text() == "32 of 32"
    page.fill("#words", "hotpotqa 30k")
    assert shown(page) == list("01234567")
    page.select_option("#kind", "visual memory at 64: no")
    assert shown(page) == ["3", "7"] and count.inner_text() == "2 of 32"
    page.select_option("#kind", "visual memory at 64: yes")
    assert shown(page) == ["0", "1", "2", "4", "5", "6"]
    page.fill("#words", "Hotpotqa-5 30K")
    assert shown(page) == ["5"]
    page.fill("#words", "ANSWER nq-5")  # the accepted answer and the id
    assert shown(page) == ["5", "5"]
    page.fill("#words", "nowhere")
    assert shown(page) == []
    page.fill("#words", "")
    page.select_option("#kind", "failed")
    assert count.inner_text() == "1 of 32"
    page.select_option("#kind", "wrong")
    assert count.inner_text() == "1 of 32", "question 7 of the first set has no page, and text was not enough"
    page.select_option("#kind", "raw history at no budget: yes")
    assert shown(page) == ["0", "1", "4", "5"] * 4
    page.select_option("#kind", "")
    assert count.inner_text() == "32 of 32"
    assert page.complaints == []


def test_without_a_script_everything_is_there(evaluation, open_report):
    page = open_report(evaluation, java_script_enabled=False)
    assert page.locator(".item:visible").count() == 32
    page.locator(".item > summary").nth(1).click()
    assert page.locator(".item[open] img:visible").count() == 6


def test_the_result_is_on_top_and_every_share_in_per_cent(evaluation, open_report):
    page = open_report(evaluation)
    sentence = page.locator(".sentence").inner_text().replace("\N{NO-BREAK SPACE}", " ")
    # 7 of 8, 8 of 8, 8 of 8, 8 of 8 at the largest budget; a quarter at the smallest.
    assert sentence == (
        "With visual memory, 97 % of 32 questions are answered right at 512 tokens, and 25 % at 8 "
        "(mean of the sets)."
    )
    assert "weights: runs/made_up, step 120" in page.locator("#overview").inner_text()
    means = page.locator("td b").all_inner_texts()
    assert len(means) == 60 and all(mean.endswith(" %") for mean in means)


def test_a_question_shows_its_pages_at_each_budget_side_by_side(evaluation, by_hand, open_report):
    page = open_report(evaluation)
    page.locator(".item > summary").nth(1).click()
    opened = page.locator(".item[open]")
    assert opened.locator("h4").all_inner_texts() == list(by_hand.METHODS)
    row = opened.locator(".readings").first
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
    page.check("#size")
    assert row.locator("img").nth(2).bounding_box()["width"] == sizes[2][0]
    assert "memory as written" in opened.inner_text()
    assert page.complaints == []


def test_budgets_that_show_the_same_page_are_shown_once(tmp_path, by_hand, open_report):
    made = by_hand.make_entries(tmp_path / "e", (("nq", "10k"),), 1, budgets=(1024, 512, 8))
    page = open_report(by_hand.finish(made))
    page.locator(".item > summary").click()
    row = page.locator(".readings").first
    assert row.locator("figcaption b").all_inner_texts() == ["1,024, 512", "8"]
    assert row.locator("img").count() == 2
    assert page.locator(".item .strip span").first.locator(".mark").count() == 3


def test_what_failed_says_why(evaluation, open_report):
    page = open_report(evaluation)
    page.locator(".item > summary").nth(7).click()
    assert page.locator(".item[open] .status").first.inner_text() == "TIMEOUT"
    page.locator("#evaluation details summary").first.click()
    assert "rows.jsonl:3: question: empty" in page.locator("#evaluation").inner_text()
    assert "hotpotqa 10k, hotpotqa-7, sample 0: visual memory TIMEOUT" in page.content()


def test_hostile_text_stays_text(tmp_path, by_hand, open_report):
    made = by_hand.finish(by_hand.make_entries(tmp_path / "e", (("nq", NAME),), 2, text=HOSTILE))
    page = open_report(made)
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    page.fill("#words", "<img src=x")
    assert page.locator(".item:visible").count() == 2
    assert page.evaluate("window.hacked") is None
    assert page.locator("script").count() == 1 and page.locator("img[src=x]").count() == 0
    assert "window.hacked = 1" in page.locator(".item .question").first.inner_text()
    assert page.complaints == []


def test_samples_limits_and_phones(tmp_path, by_hand, open_report):
    journal = by_hand.make_entries(tmp_path / "e", (("nq", "10k"),), 4, samples=2)
    made = by_hand.finish(journal, report_questions=2)
    page = open_report(made)
    assert page.locator(".item summary .dim").first.inner_text().split()[0].endswith("1.1")
    assert page.locator(".item").count() == 8
    assert "first 2 questions" in page.locator("#overview").inner_text()
    items = page.locator(".item")
    assert items.nth(0).locator("img").count() == 6
    # The last question's pages and memories are not in the report; its answers are.
    assert items.nth(7).locator("img").count() == 0 and items.nth(7).locator(".answer").count() == 10
    assert items.nth(7).locator(".text").count() == 0
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator("nav a:visible").count() == 2
    assert page.complaints == []
    whole = (made.directory / "report.html").stat().st_size
    made = by_hand.finish(journal, report_mb=0)
    assert (made.directory / "report.html").stat().st_size < whole
    assert "views left out" in (made.directory / "report.html").read_text()


def test_light_and_dark(evaluation, open_report):
    background = "getComputedStyle(document.body).backgroundColor"
    light, dark = (open_report(evaluation, color_scheme=scheme) for scheme in ("light", "dark"))
    assert light.evaluate(background) != dark.evaluate(background)
