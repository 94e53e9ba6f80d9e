"""The page at `/` in Chromium: what it sends and shows, and the conversations that it keeps in the browser."""

import json
import shutil
import time
import urllib.parse

import httpx
import numpy as np
import pytest

from tests.serving.conftest import pixels
from tuna_jax.serving.app import PAGE

pytestmark = pytest.mark.usefixtures("any_words")
QUESTION = "what is this?"
AS_DATA = """async (image) => {
  const blob = await (await fetch(image.src)).blob();
  const reader = new FileReader();
  return new Promise((done) => { reader.onload = () => done(reader.result); reader.readAsDataURL(blob); });
}"""


class Driver:
    """A page, the requests that it sends, and the errors that it reports."""

    def __init__(self, browser, url, **options):
        self.page = browser.new_context(**options).new_page()
        self.errors, self.requests = [], []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", self._console)
        self.page.on("request", lambda request: self.requests.append(request))
        self.page.goto(url)
        self.page.wait_for_selector("#tasks input")

    def _console(self, line):
        # Chromium itself reports every response with such a status.
        if line.type == "error" and "responded with a status of 400" not in line.text:
            self.errors.append(line.text)

    def set(self, **settings):
        """Fills in settings."""
        if not self.page.locator("#seed").is_visible():
            self.page.locator("summary").click()
        for name, value in settings.items():
            self.page.locator(f"#{name}").fill(str(value))

    def begin(self, task, prompt):
        """Sends a prompt."""
        self.page.locator(f"#tasks input[value={task}]").check(force=True)
        self.page.locator("#prompt").fill(prompt)
        self.page.locator("#prompt").press("Enter")

    def send(self, task, prompt):
        """Sends a prompt; the turn, when it has ended."""
        self.begin(task, prompt)
        return self.ended()

    def ended(self):
        """The last turn, when it has ended."""
        self.page.wait_for_selector("#send:enabled", timeout=60_000)
        return self.page.locator(".turn").last

    def kept(self):
        """The titles in the open list of conversations."""
        self.page.wait_for_selector("#past[open] #kept[aria-busy=false]", state="attached")
        return self.page.locator("#kept .title").all_inner_texts()

    def count(self, selector, number):
        """Waits until there are this many elements."""
        end = time.monotonic() + 20
        while self.page.locator(selector).count() != number:
            assert time.monotonic() < end
            self.page.wait_for_timeout(20)

    def messages(self):
        """The messages of the last question."""
        chats = [r for r in self.requests if r.url.endswith("/chat/completions")]
        return json.loads(chats[-1].post_data)["messages"]


@pytest.fixture(scope="module")
def browser():
    """Chromium."""
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("requires Chromium")
    with playwright.sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def driver(browser, running):
    """A page of a new browser profile; it must report no error and load nothing from elsewhere."""
    driver = Driver(browser, running.url)
    yield driver
    driver.page.context.close()
    assert driver.errors == []
    urls = [request.url for request in driver.requests]
    hosts = {urllib.parse.urlsplit(url).netloc for url in urls if url.startswith("http")}
    assert hosts == {urllib.parse.urlsplit(running.url).netloc}


def test_the_page_is_one_small_file():
    assert PAGE.stat().st_size < 150_000


def test_it_generates_edits_asks_animates_and_cancels(driver, running):
    page = driver.page
    driver.set(n=2, seed=7, steps=3)
    turn = driver.send("image", "a red apple")
    wanted = httpx.post(
        f"{running.url}/v1/images/generations",
        json={"prompt": "a red apple", "n": 2, "seed": 7, "num_inference_steps": 3},
    ).json()["data"]
    shown = turn.locator(".made img").all()
    assert len(shown) == len(wanted) == 2
    for image, item in zip(shown, wanted, strict=True):
        difference = pixels(image.evaluate(AS_DATA)).astype(int) - pixels(item["b64_json"])
        assert np.abs(difference).max() <= 1
    driver.set(n=1)
    turn.locator(".use").first.click()
    assert page.locator("#tasks input:checked").input_value() == "edit"
    assert driver.send("edit", "make it blue").locator(".made img").count() == 1
    assert driver.send("chat", QUESTION).locator(".answer").count() == 1
    clip = driver.send("video", "a cat").locator(".made video")
    assert clip.evaluate("one => one.src").startswith("blob:")
    driver.set(steps=200)
    driver.begin("video", "a dog")
    page.wait_for_selector("progress")
    page.keyboard.press("Escape")
    assert "cancelled" in driver.ended().locator(".error").inner_text()
    driver.set(negative="x" * 3000)
    turn = driver.send("image", "a cat")
    assert "tokens; the limit is" in turn.locator(".error").inner_text()


def test_a_conversation_is_kept_and_goes_on_after_a_reload(driver):
    page = driver.page
    driver.set(seed=7, steps=2)
    image = driver.send("image", "a red apple").locator(".made img").evaluate(AS_DATA)
    answer = driver.send("chat", QUESTION).locator(".answer").inner_text()
    driver.send("video", "a cat")
    page.reload()
    page.wait_for_selector("#tasks input")
    assert page.locator(".turn .prompt").all_inner_texts() == ["a red apple", QUESTION, "a cat"]
    assert page.locator(".made img").evaluate(AS_DATA) == image
    assert page.locator(".answer").inner_text() == answer
    readable = "one => one.readyState >= 2 || new Promise((done) => { one.onloadeddata = () => done(true); })"
    assert page.locator(".made video").evaluate(readable)
    page.locator(".made .use").first.click()
    driver.send("chat", "and its color?")
    (first, reply, second) = driver.messages()
    assert first["content"][0]["image_url"]["url"] == image
    assert first["content"][1]["text"] == QUESTION
    assert (reply["content"], second["content"]) == (answer, "and its color?")


def test_the_list_with_the_keyboard(driver):
    page = driver.page
    driver.set(steps=1)
    for prompt in ("first", "second", "third"):
        page.locator("#clear").click()
        driver.send("image", prompt)
    page.locator("#history").focus()
    page.keyboard.press("Enter")
    assert driver.kept() == ["third", "second", "first"]
    loaded = "all => Promise.all(all.map((one) => one.decode().then(() => one.naturalWidth)))"
    assert page.locator("#kept img").evaluate_all(loaded) == [96] * 3
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Delete")  # The second.
    driver.count("#kept li", 2)
    assert driver.kept() == ["third", "first"]
    page.keyboard.press("Enter")  # The focus is on what took its place.
    page.wait_for_selector("#past:not([open])", state="attached")
    page.wait_for_selector(".turn .prompt:text-is('first')")
    assert page.locator(".turn").count() == page.locator(".made img").count() == 1
    page.locator("#history").click()
    page.keyboard.press("Escape")
    page.wait_for_selector("#past:not([open])", state="attached")
    page.locator("#history").click()
    page.locator("#forget").click()
    assert driver.kept() == ["third", "first"]  # The first click only arms it.
    page.locator("#forget").click()
    driver.count("#kept li", 0)
    assert page.locator(".turn").count() == 0
    page.reload()
    page.locator("#history").click()
    assert driver.kept() == []


def test_what_is_kept_is_bounded(driver):
    page = driver.page
    driver.set(steps=1)

    def titles():
        page.locator("#history").click()
        titles = driver.kept()
        page.keyboard.press("Escape")
        return titles

    page.evaluate("LIMITS.conversations = 2")
    for prompt in ("a", "b", "c"):
        page.locator("#clear").click()
        driver.send("image", prompt)
    assert titles() == ["c", "b"]
    page.evaluate("LIMITS.bytes = talk.media[0].blob.size * 2.5")
    for prompt in ("d", "e", "f"):
        driver.send("image", prompt)
    page.reload()
    page.wait_for_selector(".turn")
    prompts = page.locator(".turn .prompt").all_inner_texts()
    assert prompts[-1] == "f" and 1 <= len(prompts) <= 2 and titles() == ["c"]
    page.locator("summary").click()
    page.locator("#keep").select_option("no")
    page.locator("#clear").click()
    driver.send("image", "secret")
    assert titles() == ["c"]


def test_a_conversation_that_is_left_stops(driver, running):
    page = driver.page
    driver.set(steps=200)
    driver.begin("image", "long")
    page.wait_for_selector("progress")
    page.locator("#clear").click()
    driver.count(".turn", 0)
    driver.set(steps=1)
    assert driver.send("image", "next").locator(".made img").count() == 1
    assert page.locator(".turn").count() == 1
    page.locator("#history").click()
    assert driver.kept() == ["next", "long"]


def test_on_a_phone(browser, running):
    options = {"viewport": {"width": 360, "height": 640}, "has_touch": True, "is_mobile": True}
    driver = Driver(browser, running.url, **options)
    page = driver.page
    driver.set(steps=1)
    page.locator("summary").tap()
    driver.send("image", "a red apple with a very long description " * 4)
    overflow = "document.documentElement.scrollWidth - innerWidth"
    assert page.evaluate(overflow) <= 0
    page.locator("#history").tap()
    assert len(driver.kept()) == 1 and page.evaluate(overflow) <= 0
    box = page.locator("#past").bounding_box()
    assert box["width"] == 360 and box["x"] == 0
    page.locator("#kept .open_it").tap()
    page.wait_for_selector("#past:not([open])", state="attached")
    page.locator("#history").tap()
    page.locator("#kept .remove").tap()
    driver.count("#kept li", 0)
    assert driver.errors == []
    page.context.close()
