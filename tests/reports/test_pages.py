"""The report of a batch and the page of all batches, in a real browser."""

import datetime
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.select import Select

from oasisgen.quality.history import FinishedBatch
from oasisgen.reports.index import render_index
from tests.reports.test_index import SUMMARY


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    program, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not program or not driver:
        pytest.skip("no Chromium with its driver on this machine")
    options = ChromeOptions()
    options.binary_location = program
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with Chrome(options, Service(driver)) as chrome:
        yield chrome


def shown(browser: Chrome, selector: str) -> list[WebElement]:
    return [element for element in browser.find_elements(By.CSS_SELECTOR, selector) if element.is_displayed()]


def is_sound(browser: Chrome) -> bool:
    """No error, nothing fetched, every picture there."""
    assert browser.get_log("browser") == []
    fetched = "performance.getEntriesByType('resource').filter(entry => !entry.name.startsWith('data:')).length"
    assert browser.execute_script(f"return {fetched}") == 0
    return bool(browser.execute_script("return [...document.images].every(image => image.naturalWidth > 0)"))


def test_the_report_shows_verdict_and_slices_and_filters_by_level(browser: Chrome, batch: Path) -> None:
    browser.set_window_size(1200, 900)
    browser.get((batch / "report" / "index.html").as_uri())
    assert is_sound(browser)
    assert shown(browser, ".verdict.quarantined li")
    everything = len(shown(browser, "#gallery-2 figure"))
    assert everything == 40  # two of each of the first eight levels, one of the others
    select = Select(browser.find_element(By.TAG_NAME, "select"))
    select.select_by_visible_text("7")
    captions = [figure.text for figure in shown(browser, "#gallery-2 figure")]
    assert [caption.split(":")[0] for caption in captions] == ["id 7, level 7", "id 39, level 7"]
    select.select_by_visible_text("all")
    assert len(shown(browser, "#gallery-2 figure")) == everything


def test_the_page_of_all_batches_filters_and_leads_to_the_report(browser: Chrome, batch: Path) -> None:
    browser.get((batch.parent / "index.html").as_uri())
    assert is_sound(browser)
    select = Select(browser.find_element(By.TAG_NAME, "select"))
    for choice, rows in (("released", 0), ("quarantined", 1), ("all", 1)):
        select.select_by_visible_text(choice)
        assert len(shown(browser, "#batches tr")) == rows
    browser.find_element(By.LINK_TEXT, batch.name).click()
    assert browser.title == "40 synthetic slices"


def test_among_hundreds_of_batches_one_is_found(browser: Chrome, tmp_path: Path) -> None:
    page = tmp_path / "index.html"
    nights = [FinishedBatch(f"night-{number}", replace(SUMMARY, finished=day_of(number))) for number in range(230)]
    page.write_bytes(render_index(nights))
    browser.get(page.as_uri())
    assert is_sound(browser)

    def names() -> list[str]:
        return [row.text.split()[0] for row in shown(browser, "#batches tr")]

    def control(name: str) -> WebElement:
        return browser.find_element(By.NAME, name)

    assert names() == [f"night-{number}" for number in range(229, 179, -1)]
    assert not control("newer").is_enabled()
    for _ in range(4):
        control("older").click()
    assert names() == [f"night-{number}" for number in range(29, -1, -1)]
    assert not control("older").is_enabled()
    control("words").send_keys("tue RELEASED")
    assert names() == [f"night-{number}" for number in range(229, -1, -7)]  # from the first page on
    browser.execute_script(
        "for (const name of ['from', 'to']) document.querySelector(`[name=${name}]`).value = '2026-11-24';"
        "document.querySelector('[name=to]').dispatchEvent(new Event('input', {bubbles: true}));"
    )
    assert names() == ["night-229"]
    Select(control("verdict")).select_by_visible_text("quarantined")
    assert (names(), control("count").text) == ([], "none")


def day_of(number: int) -> str:
    """The last of 230 nights is that of a Tuesday."""
    day = datetime.date(2026, 11, 24) - datetime.timedelta(days=229 - number)
    return f"{day.isoformat()}T03:00:00+00:00"


def test_a_phone_need_not_scroll_sideways(browser: Chrome, batch: Path) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    )
    for page in (batch / "report" / "index.html", batch.parent / "index.html"):
        browser.get(page.as_uri())
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
