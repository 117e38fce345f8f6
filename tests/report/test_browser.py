# SPDX-License-Identifier: Apache-2.0
"""The page in a browser: pictures, sorting, filters, sliders and folds, at two widths, and the rules of axe-core."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.report.page import write_report
from tests.report.output_folder import write_evaluation

sync_api = pytest.importorskip("playwright.sync_api", reason="requirements-browser.txt")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH")

DECODED = "async () => (await Promise.all([...document.querySelectorAll('image')].map(async (each) => { \
const image = new Image(); image.src = each.getAttribute('href'); await image.decode(); return image.width; })))"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = [*(f"case {n}" for n in range(6)), '<b>träger\'s</b> "last"']
    folder = write_evaluation(tmp_path_factory.mktemp("run"), names, ["liver", "kidney"])
    other = write_evaluation(tmp_path_factory.mktemp("other"), names, ["liver", "kidney"])
    return write_report(folder, compare=[str(other)])


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=[(1280, "light"), (390, "dark")], ids=["desktop", "phone"])
def page(request: pytest.FixtureRequest, browser, report: Path) -> Iterator[object]:
    """The page; the test fails if it logs an error or asks for another file."""
    width, scheme = request.param
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.set_default_timeout(10_000)
    messages, requests = [], []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda each: requests.append(each.url) if not each.url.startswith("data:") else None)
    page.goto(report.as_uri())
    yield page
    assert messages == [] and requests == [report.as_uri()]
    page.close()


def cells(page, column: int) -> list[str]:
    return page.eval_on_selector_all(
        f"#all-rows tbody tr:not([hidden]) > :nth-child({column})", "all => all.map((each) => each.textContent.trim())"
    )


def cards(page) -> list[str]:
    return page.eval_on_selector_all(".case:not([hidden])", "all => all.map((each) => each.dataset.name)")


def test_every_picture_is_there_and_nothing_is_wider_than_the_window(page) -> None:
    widths = page.evaluate(DECODED)
    assert len(widths) == 7 * 3 and min(widths) > 0
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0


def test_a_column_sorts_in_both_directions_and_cases_follow(page) -> None:
    dice = [float(text) for text in cells(page, 3)]
    button = page.get_by_role("button", name="Dice", exact=True)
    button.focus()
    page.keyboard.press("Enter")
    assert [float(text) for text in cells(page, 3)] == sorted(dice)
    page.keyboard.press("Enter")
    assert [float(text) for text in cells(page, 3)] == sorted(dice, reverse=True)
    assert cards(page)[0] == cells(page, 1)[0] == "case 0"
    assert page.locator("th[aria-sort=descending]").inner_text().strip().startswith("Dice")
    page.get_by_role("button", name="Case", exact=True).click()
    assert [name for name in cells(page, 1) if name.startswith("case")][::2] == [f"case {n}" for n in range(6)]


def test_filters_by_structure_and_by_name(page) -> None:
    page.get_by_label("Structure", exact=True).select_option("kidney")
    assert set(cells(page, 2)) == {"kidney"}
    visible = "all => all.filter((each) => getComputedStyle(each).display !== 'none').length"
    assert page.eval_on_selector_all(".planes .line.s1", visible) == 0 < page.eval_on_selector_all(".line.s2", visible)
    others = ".planes .area:not(.e2)"
    assert page.locator(others).count() > 0 == page.eval_on_selector_all(others, visible)
    page.get_by_label("Name contains").fill("TRÄGER")
    assert cards(page) == ['<b>träger\'s</b> "last"'] and len(cells(page, 1)) == 1
    assert page.locator("#status").inner_text() == "1 of 7 cases"
    page.get_by_label("reference", exact=True).uncheck()
    assert page.eval_on_selector_all(".planes .reference", visible) == 0


def test_a_slider_goes_through_the_slices_and_back(page) -> None:
    plane = page.locator(".plane").first
    slider, shown = plane.locator("input[type=range]"), plane.locator("output")

    def state() -> tuple[str, str, str]:
        return shown.inner_text(), plane.locator("image").get_attribute("href"), plane.locator("g").inner_html()

    before = state()
    slider.focus()
    page.keyboard.press("ArrowRight")
    after = state()
    assert all(one != other for one, other in zip(before, after, strict=True))
    assert slider.get_attribute("aria-valuetext") == after[0]
    page.keyboard.press("ArrowLeft")
    assert state() == before
    page.keyboard.press("End")
    number, total = (int(word) for word in shown.inner_text().split()[1::2])
    assert number <= total


def test_folds_open_and_close_and_a_link_opens_its_case(page) -> None:
    last = page.locator(".case").last
    assert not last.evaluate("each => each.open")
    page.locator("#all-rows a").last.click()
    page.wait_for_function("document.querySelector('.case:last-child').open")
    last.locator("summary").focus()
    page.keyboard.press("Enter")
    assert not last.evaluate("each => each.open")


def test_axe_finds_no_serious_violation(page) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="requirements-browser.txt")
    found = axe.Axe().run(page).response["violations"]
    serious = [
        (each["id"], each["nodes"][0]["html"][:200]) for each in found if each["impact"] in ("serious", "critical")
    ]
    assert serious == []


def test_print_shows_all_cases_without_controls(page) -> None:
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator(".case:not([open])").count() == 0
    assert not page.locator(".tools").is_visible() and not page.locator("input[type=range]").first.is_visible()
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator(".case:not([open])").count() == 3
