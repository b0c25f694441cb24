"""A click through every tab in headless Chromium: it works, reports no error, fetches nothing elsewhere, and is labelled."""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dataset_builder.reviews.records import read_reviews
from foundry.storage.folder import Folder
from tests.studio.world import HOSTILE, write_picture_run, write_training

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not all(map(shutil.which, ("chromium", "chromedriver"))), reason="needs Debian's chromium-driver"),
]
_UNLABELLED = """
return [...document.querySelectorAll("input, textarea, select, button, img")].filter((one) => {
  if (one.type === "hidden" || one.closest("[hidden]")) return false;
  const labelled = (one.getAttribute("aria-labelledby") || "").split(" ").map((id) => document.getElementById(id));
  const name = one.getAttribute("aria-label") || one.getAttribute("alt") || one.title || one.textContent.trim() ||
    labelled.some(Boolean) || (one.labels && [...one.labels].some((label) => label.textContent.trim()));
  return !name;
}).map((one) => one.outerHTML.slice(0, 200));
"""


class Page:
    """A page of the studio in a browser."""

    def __init__(self, browser: Any) -> None:
        self.browser = browser

    def find(self, selector: str) -> list[Any]:
        return self.browser.find_elements("css selector", selector)  # type: ignore[no-any-return]

    def wait(self, holds: Callable[[], object], what: str) -> None:
        until = time.monotonic() + 60
        while not self._holds(holds):
            assert time.monotonic() < until, what
            time.sleep(0.1)

    def click(self, selector: str, number: int = 0) -> None:
        self.wait(lambda: self.find(selector)[number], f"{selector} is there")
        script = "arguments[0].scrollIntoView({block: 'center'}); arguments[0].click()"
        self.browser.execute_script(script, self.find(selector)[number])

    def tab(self, name: str) -> None:
        (found,) = (one for one in self.find("button[role=tab]") if one.text.strip() == name)
        found.click()

    def text(self, selector: str) -> str:
        return " ".join(one.text for one in self.find(selector))

    def says(self, selector: str, words: str) -> None:
        self.wait(lambda: words in self.text(selector), f"{selector} says {words}, not {self.text(selector)[:300]}")

    def type(self, selector: str, words: str) -> None:
        self.browser.execute_script("arguments[0].value = ''", self.find(selector)[0])
        self.find(selector)[0].send_keys(words)

    def requests(self) -> set[str]:
        """The addresses that the page asked for since the last call."""
        messages = [json.loads(entry["message"])["message"] for entry in self.browser.get_log("performance")]
        sent = [one["params"] for one in messages if one["method"] == "Network.requestWillBeSent"]
        return {one["request"]["url"] for one in sent if not one["documentURL"].startswith("chrome://")}

    def _holds(self, holds: Callable[[], object]) -> bool:
        from selenium.common.exceptions import StaleElementReferenceException

        try:
            return bool(holds())
        except (IndexError, StaleElementReferenceException):
            return False


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    run = write_picture_run(tmp_path)
    write_training(tmp_path / "runs" / "alignment", rows=5)
    opened = [run, str(tmp_path / "runs"), "--checkpoints", "mini", "mini-few-steps", "--device", "cpu"]
    folders = ["--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache"), "--port", "0"]
    with subprocess.Popen(
        [sys.executable, "-m", "studio.serve", *opened, *folders], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as server:
        try:
            assert server.stdout is not None
            lines = [server.stdout.readline()]
            while lines[-1] and not (found := re.search(r"at (http://[\d.:]+);", lines[-1])):
                lines.append(server.stdout.readline())
            assert found, lines
            yield found[1]
        finally:
            server.terminate()
            server.wait(30)


@pytest.fixture
def page(address: str, tmp_path: Path) -> Iterator[Page]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-background-networking", "disable-component-update"):
        options.add_argument(f"--{flag}")
    for flag in ("disable-sync", "window-size=1400,1200", f"user-data-dir={tmp_path / 'browser'}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(shutil.which("chromedriver"))))
    try:
        browser.get(address)
        yield Page(browser)
    finally:
        browser.quit()


def test_every_tab_works_in_a_browser(page: Page, address: str, tmp_path: Path) -> None:
    for work in (_captions, _recipe, _training, _drawing, _judging):
        work(page, tmp_path)
    assert page.browser.execute_script(_UNLABELLED) == []
    elsewhere = {url for url in page.requests() if not url.startswith((address, "data:", "blob:"))}
    assert elsewhere == set()
    assert [entry for entry in page.browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    assert page.browser.title == "T2I Foundry studio"  # no caption has run a script


def _captions(page: Page, folder: Path) -> None:
    page.says("#line", "60 captions, page 1")
    page.click("#next")
    page.says("#line", "page 2")
    page.type("#text textarea, #text input", "onerror")
    page.click("#apply")
    page.says("#line", "20 captions")
    page.wait(lambda: all(one.get_attribute("naturalWidth") != "0" for one in page.find(".pictures img")[:4]), "pictures load")
    assert HOSTILE.split("$")[0].strip() in page.text(".pictures .snippet")
    page.click(".pictures button")
    page.says("#detail", "dense")
    assert page.browser.switch_to.active_element.get_attribute("class") == "detail"
    page.wait(lambda: page.find("#edited textarea")[0].get_attribute("value"), "the caption is in the editor")
    page.type("#edited textarea", "A fox ${7*7} <i>sleeps</i>.")
    page.click("#save")
    page.says("#message", "saved the caption")
    page.says("#detail .said", "A fox ${7*7} <i>sleeps</i>.")
    page.click("#set_flag")
    page.says("#message", "flagged 1 caption as good")
    reviews = read_reviews(Folder(str(folder / "run")))
    assert (reviews.edits.num_rows, reviews.flags.num_rows) == (1, 1)
    bar = max(page.find(".bars button[data-figure=num_words]"), key=lambda one: one.size["height"])
    bar.send_keys("\ue014")  # the right arrow moves to the next bar, which Enter chooses
    page.browser.switch_to.active_element.send_keys("\ue007")
    page.says("#histograms", "any words")


def _recipe(page: Page, folder: Path) -> None:
    page.tab("Data set")
    page.click("#count")
    page.says("#funnel", "30 of 30 images left")
    page.type("#least_num_words input[type=number]", "8\ue007")
    page.click("#count")
    page.says("#funnel", "num_words below 8")
    page.click("#save_recipe")
    page.says("#recipe_message", "t2i build --config")
    assert (folder / "out" / "recipes" / "recipe.yaml").exists()


def _training(page: Page, folder: Path) -> None:
    page.tab("Training")
    page.wait(lambda: len(page.find("#charts svg")) >= 8, "charts are drawn")
    page.says("#grid", "128 images")
    page.click("#resume")
    page.says("#training_message", "python -m trainer.fit")
    page.click("#stop")
    page.says("#training_message", "saves a checkpoint")
    assert (folder / "runs" / "alignment" / "STOP").exists()


def _drawing(page: Page, folder: Path) -> None:
    page.tab("Draw")
    page.type("#draw_prompt textarea", "a red owl")
    page.type("#steps textarea, #steps input", "2")
    page.click("#draw")
    page.wait(lambda: page.find("#drawn img")[0].get_attribute("naturalWidth") == "64", "the drawing is shown")
    page.wait(lambda: page.find("#past [data-pick]"), "the drawing is in the history")
    assert len(list((folder / "out" / "drawings").glob("*.png"))) == 1


def _judging(page: Page, folder: Path) -> None:
    page.tab("Judge")
    page.type("#judge_steps textarea, #judge_steps input", "2")
    page.click("#new_pair")
    page.wait(lambda: len(page.find("#pair img")) == 2, "a pair is shown")
    assert "mini" not in page.text("#pair")
    page.wait(page.find("#judge_tie")[0].is_enabled, "a verdict can be given")
    page.click("#judge_tie")
    page.says("#judge_message", "the left image was drawn by mini")
    page.says("#tally", "mini-few-steps")
    page.wait(lambda: not page.find("#judge_left")[0].is_enabled(), "the pair is judged once")
    page.click("#judge_left")
    page.says("#judge_message", "the left image was drawn by mini")
    assert (folder / "out" / "verdicts.jsonl").exists()
