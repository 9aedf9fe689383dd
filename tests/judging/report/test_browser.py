"""The committed page in a real browser: it fits each width, opens what its address names, and prints whole."""

import base64
from collections.abc import Iterator

import pytest
from tests.support.browser import CHROMIUM, Browser, browsing
from tests.support.project import CHECKOUT

PAGE = (CHECKOUT / "results/report.html").as_uri()
ALL_OPEN = "document.querySelectorAll('details').forEach(each => each.open = true)"
TOO_WIDE = """[...document.querySelectorAll("body *")].filter(each => !each.closest(".scroll, svg")
  && each.getBoundingClientRect().right > innerWidth + 1).map(each => each.outerHTML.slice(0, 80))"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here: apt-get install chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as opened:
        yield opened
        assert opened.complaints == []


@pytest.mark.parametrize("width", [1280, 768, 390])
def test_nothing_is_wider_than_the_window(browser: Browser, width: int) -> None:
    browser.open(PAGE, width=width)
    browser.value(ALL_OPEN)
    assert browser.value(TOO_WIDE) == []
    assert browser.value("document.documentElement.scrollWidth") == width


def test_letters_of_the_forest_plot_can_be_read_on_a_phone(browser: Browser) -> None:
    browser.open(PAGE, width=390)
    heights = "[...document.querySelectorAll('.narrow svg a text')].map(each => each.getBoundingClientRect().height)"
    assert min(browser.value(heights)) >= 11


def test_dark_is_dark_on_the_screen_and_not_on_paper(browser: Browser) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    browser.open(PAGE, width=1280, dark=True)
    assert browser.value(ground) == "rgb(20, 23, 29)"
    browser.open(PAGE, width=1280, dark=True, media="print")
    assert browser.value(ground) == "rgb(255, 255, 255)"


def test_the_address_opens_the_section_that_it_names(browser: Browser) -> None:
    browser.open(f"{PAGE}#mlp2-mnist", width=1280)
    opened = "[...document.querySelectorAll('details.row[open]')].map(each => each.id)"
    assert browser.value(opened) == ["mlp2-mnist"]
    browser.value("document.querySelector('.rows a[href=\"#lenet5-mnist\"]').click()")
    browser.value("new Promise(done => setTimeout(done, 100))")
    assert browser.value(opened) == ["mlp2-mnist", "lenet5-mnist"]


def test_a_click_on_a_columns_name_sorts_up_then_down_with_empty_cells_last(browser: Browser) -> None:
    browser.open(PAGE, width=1280)
    cells = "[...document.querySelectorAll('.rows tbody tr')].map(each => each.cells[3].dataset.sort ?? '')"
    for reverse in (False, True):
        browser.value("document.querySelectorAll('.rows button')[3].click()")
        found = browser.value(cells)
        numbers = [float(text) for text in found if text]
        assert numbers == sorted(numbers, reverse=reverse)
        assert len(numbers) > 4
        assert found == [*filter(None, found), *[""] * found.count("")]


def test_it_prints_whole_on_a4(browser: Browser) -> None:
    browser.open(PAGE, width=1280)
    printed = base64.b64decode(browser.call("Page.printToPDF", preferCSSPageSize=True)["data"])
    assert b"/MediaBox [0 0 594.9" in printed
    assert printed.count(b"/Type /Page\n") > 15  # all sections are open
    assert browser.value("document.querySelectorAll('details[open]').length") == 0  # and closed again afterwards
