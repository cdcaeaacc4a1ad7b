"""The report in a real browser: accessible, alone, and worked by mouse and keyboard."""

import pytest
from axe_playwright_python.sync_playwright import Axe

from sample_evaluation import SCORES, TRUTH, evaluated
from slidelens.review.errors import list_errors
from slidelens.review.report import ReportOptions, write_report
from slidelens.review.store import CaseKey, ReviewStore
from slidelens.testing.browser import browser

pytestmark = pytest.mark.gui


@pytest.fixture(scope="module")
def opened(phantoms, tmp_path_factory):
    """The page, and what it asked for while it was opened."""
    import shutil

    folder = tmp_path_factory.mktemp("page")
    shutil.copytree(phantoms.parent, folder / "all")
    store = ReviewStore(folder / "all" / "eval" / "review.sqlite")
    for model in ("streaming", "segmentation"):
        key = CaseKey("doe_jane_2", model, "fn")
        store.set(key, reviewer="ann", category="Low-grade tumor", note="pale nuclei")
    store.set(CaseKey("doe_jane_1", "mil", "fp"), reviewer="bob", true_label="tumor")
    made = write_report(folder / "all" / "eval", folder / "r.html", options=ReportOptions(fields=1))
    with browser() as chromium:
        page = chromium.new_page(viewport={"width": 1280, "height": 900})
        asked, said = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(made.html.as_uri())
        page.wait_for_load_state("networkidle")
        yield page, asked, said


@pytest.fixture
def page(opened):
    one = opened[0]
    one.reload()
    return one


def visible(page):
    names = page.locator("article.case:not([hidden]) h3").all_text_contents()
    rows = page.locator("#list tbody tr:not([hidden]) th").all_text_contents()
    assert [name.split()[0] for name in names] == rows
    return rows


def test_it_asks_for_nothing_and_complains_of_nothing(opened):
    _, asked, said = opened
    assert [url for url in asked if not url.startswith("data:")] == [asked[0]]
    assert asked[0].startswith("file://")
    assert said == []


def test_axe_finds_no_violation(page):
    found = Axe().run(page).response
    assert len(found["passes"]) > 30  # it did look
    assert [(v["impact"], v["id"], v["nodes"][0]["html"]) for v in found["violations"]] == []


def test_errors_are_filtered(page):
    both = visible(page)
    assert len(both) == 2
    page.select_option("#f-model", "magnet")
    assert len(visible(page)) == 1
    assert page.text_content("#f-count") == "1 of 2 slides"
    page.select_option("#f-model", "")
    page.select_option("#f-kind", "fn")
    (missed,) = visible(page)
    page.select_option("#f-kind", "")
    page.select_option("#f-state", "done")
    assert visible(page) == [missed]
    page.select_option("#f-state", "")
    page.fill("#f-text", "PALE nuclei")
    assert visible(page) == [missed]
    page.fill("#f-text", "no such word")
    assert visible(page) == []
    page.fill("#f-text", "")
    assert visible(page) == both


def test_the_list_is_sorted_with_its_pages(page):
    margin = page.locator("#list thead th", has_text="Margin")
    margin.locator("button").click()
    assert margin.get_attribute("aria-sort") == "ascending"
    up = visible(page)
    numbers = [float(t) for t in page.locator("#list tbody td:nth-last-child(2)").all_inner_texts()]
    assert numbers == sorted(numbers)
    margin.locator("button").click()
    assert margin.get_attribute("aria-sort") == "descending"
    assert visible(page) == up[::-1]


def test_keys_go_from_slide_to_slide_and_can_be_switched_off(page):
    def at():
        return page.evaluate("document.activeElement.id")

    page.keyboard.press("j")
    assert at() == "case-1"
    page.keyboard.press("j")
    assert at() == "case-2"
    assert page.evaluate("document.getElementById('case-2').getBoundingClientRect().top") < 200
    page.keyboard.press("k")
    assert at() == "case-1"
    page.keyboard.press("/")
    assert at() == "f-text"
    page.keyboard.type("jk")  # letters in a field are letters
    assert page.input_value("#f-text") == "jk"
    page.keyboard.press("Escape")
    page.fill("#f-text", "")
    page.uncheck("#f-keys")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("j")
    assert at() == ""


def test_who_has_no_keyboard_comes_back_to_the_list(page):
    page.locator("#case-2 a.back").click()
    assert page.evaluate("document.getElementById('errors').getBoundingClientRect().top") < 100
    page.emulate_media(media="print")
    assert not page.locator("#case-2 a.back").is_visible(), "paper has no links"
    page.emulate_media(media="screen")


@pytest.mark.parametrize("width", [390, 1280])
def test_long_names_of_methods_fit(opened, tmp_path, monkeypatch, width):
    monkeypatch.setattr("slidelens.engine.evaluate._pictures", lambda *_: {})
    long = "streaming-network-of-2024-11-30-fold-3-of-5-resnet50-imagenet-of-{}-quite-long"
    scores = {long.format(name): of_slide for name, of_slide in SCORES.items()}
    scores |= {long.format(number): next(iter(SCORES.values())) for number in range(3)}
    evaluation = evaluated(tmp_path, TRUTH, scores)
    store = ReviewStore(evaluation / "review.sqlite")
    for error in list_errors(evaluation):
        for reviewer in ("ann", "bob"):
            store.set(error.key, reviewer=reviewer, category="Tissue artefacts")
    made = write_report(evaluation, tmp_path / "r.html")
    page = opened[0].context.browser.new_page(viewport={"width": width, "height": 800})
    page.goto(made.html.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    tables = page.locator(".scroll").evaluate_all(
        "all => all.map((one) => [one.querySelector('table').offsetWidth, one.clientWidth])"
    )
    assert len(tables) > 7
    assert page.locator("#sources table").count() == page.locator("#sources .scroll table").count()
    if width > 1000:
        assert [table for table, room in tables if table > room] == []
    page.close()


def test_pictures_are_lazy_and_all_are_shown_to_who_looks(page):
    for case in page.locator("article.case").all():
        pictures = case.locator("img")
        assert {one.get_attribute("loading") for one in pictures.all()} == {"lazy"}
        for one in pictures.all():
            one.scroll_into_view_if_needed()
            assert one.evaluate("image => image.decode().then(() => image.naturalWidth)") > 100


def test_it_prints_all_slides_and_no_controls(page):
    page.select_option("#f-kind", "fn")
    page.emulate_media(media="print")
    assert page.locator("form.filter").is_hidden()
    assert len(page.pdf(format="A4")) > 20_000
    page.emulate_media(media="screen")


def test_on_a_phone_nothing_is_wider_than_the_page(page):
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.set_viewport_size({"width": 1280, "height": 900})
