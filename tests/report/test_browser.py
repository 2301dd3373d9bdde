"""The page in a real browser: headless Chromium, driven by its own driver."""

from __future__ import annotations

import json
import shutil
import time
from importlib.resources import files

import numpy as np
import pandas as pd
import pytest
from cases_of_reports import (
    HOSTILE,
    found_of,
    hostile_found,
    made_found,
    sentences_found,
    small_found,
    table,
)
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from fimoda import AgreementCurve, GradDot, attribute

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None,
    reason="needs Chromium and its driver: apt-get install chromium chromium-driver",
)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for switch in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "window-size=1200,900"):
        options.add_argument(f"--{switch}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


class Browser:
    """A page that is open, with what the tests do to it."""

    def __init__(self, driver, folder):
        self.driver, self.folder = driver, folder
        self.cdp("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
        self.cdp("Emulation.setEmulatedMedia", features=[])
        self.cdp("Emulation.clearDeviceMetricsOverride")
        for kind in ("browser", "performance"):
            driver.get_log(kind)

    def cdp(self, command, **parameters):
        return self.driver.execute_cdp_cmd(command, parameters)

    def open(self, found, **options):
        page = found.report(self.folder / "report.html", **options)
        self.driver.get(page.as_uri())
        return self

    def js(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def all(self, selector):
        return self.driver.find_elements("css selector", selector)

    def click(self, selector, text=None):
        """Click the first element, or that with a text."""
        elements = self.all(selector)
        if text is not None:
            elements = [one for one in elements if one.text == text]
        self.js("arguments[0].scrollIntoView({block: 'center', inline: 'center'})", elements[0])
        elements[0].click()

    def search(self, place, text):
        field = self.all(f"{place} input[type=search]")[0]
        field.clear()
        field.send_keys(text or " \b")

    def column(self, place, title):
        """Return the texts of a column on the page that is shown, without the test row."""
        titles = [head.text for head in self.all(f"{place} thead th")]
        lines = f"{place} tbody tr:not(.pinned)"
        return [one.text for one in self.all(f"{lines} > :nth-child({titles.index(title) + 1})")]

    def status(self, place):
        return self.all(f"{place} [role=status]")[0].text

    def downloaded(self, name):
        """Return a file once it is there, and remove it."""
        path, end = self.folder / name, time.monotonic() + 20
        while not path.exists():
            assert time.monotonic() < end, f"{name} was not written"
            time.sleep(0.02)
        frame = pd.read_csv(path, keep_default_na=False)
        path.unlink()
        return frame

    def urls(self):
        """Return what was asked for since the last page."""
        events = (
            json.loads(one["message"])["message"] for one in self.driver.get_log("performance")
        )
        return [
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        ]

    def faults(self):
        """Return the serious and critical faults of accessibility that axe-core finds."""
        pytest.importorskip("axe_core_python")
        self.cdp(
            "Runtime.evaluate", expression=(files("axe_core_python") / "axe.min.js").read_text()
        )
        found = self.driver.execute_async_script("axe.run().then(arguments[0])")
        assert len(found["passes"]) > 20
        return [
            (one["id"], one["nodes"][0]["html"])
            for one in found["violations"]
            if one["impact"] in ("serious", "critical")
        ]


@pytest.fixture
def browser(chromium, tmp_path):
    return Browser(chromium, tmp_path)


def images_found():
    X, y = load_digits(return_X_y=True)
    model = LogisticRegression(max_iter=20, tol=1).fit(X[:80] / 16, y[:80])
    return attribute(model, X[:80] / 16, y[:80], X[80:84] / 16, y[80:84], method=GradDot())


def full_options():
    """Return options that show every section."""
    metrics = dict.fromkeys(("cosine", "cosine_centred", "spearman"), np.full((1, 2, 3), 0.5))
    return {
        "agreement": AgreementCurve(["Grad-Dot"], np.array([1, 5]), metrics),
        "groups": {"north": 0.25, "south": -0.125, "=west": 0.0},
    }


def repeated_found():
    X, y = table()
    X.iloc[3], y.iloc[3], y.iloc[20] = X.iloc[20], "ill", "well"
    return found_of(X, y)


# ---- what is clicked ------------------------------------------------------------------------


def test_sorting(browser):
    found = small_found()
    browser.open(found)
    mean = pd.Series(found.scores.mean(0), index=found.data["X_train"].index)
    place = "#of-train"
    assert browser.column(place, "row") == list(mean.sort_values(ascending=False).index[:15])
    browser.click(f"{place} thead button", "mean score")
    assert browser.column(place, "row") == list(mean.sort_values().index[:15])
    heads = browser.all(f"{place} th[aria-sort]")
    assert [(one.text, one.get_attribute("aria-sort")) for one in heads] == [
        ("mean score", "ascending")
    ]
    browser.click(f"{place} thead button", "row")
    assert browser.column(place, "row") == [f"patient {i}" for i in range(15)]
    browser.click(f"{place} thead button", "position")
    assert browser.column(place, "position") == [str(i) for i in range(59, 44, -1)]
    browser.click(f"{place} .pages button", "\u203a")
    assert browser.column(place, "position") == [str(i) for i in range(44, 29, -1)]
    browser.click(f"{place} .pages button", "\u00bb")
    assert browser.column(place, "position")[-1] == "0"


def test_searching(browser):
    found = small_found()
    browser.open(found)
    place, frame, y = "#of-train", found.data["X_train"], found.data["y_train"]
    browser.search(place, "WEST  ill")
    names = frame.index[(frame["ward"] == "west") & (y == "ill")]
    assert 0 < len(names) <= 15
    assert sorted(browser.column(place, "row")) == sorted(names)
    assert browser.status(place) == f"{len(names)} of 60 rows"
    browser.search(place, "no such row")
    assert browser.column(place, "row") == []
    browser.search(place, "")
    assert browser.status(place) == "60 rows"


def test_export(browser):
    found = small_found()
    browser.open(found, groups={"=a": 1.5})
    place, frame, y = "#of-train", found.data["X_train"], found.data["y_train"]
    browser.search(place, "south")
    browser.click(f"{place} .export")
    table = browser.downloaded("training_rows.csv").set_index("row")
    south = frame.index[frame["ward"] == "south"]
    assert sorted(table.index) == sorted(south)
    assert list(table["target"]) == list(y[table.index])
    np.testing.assert_allclose(table[["age", "dose", "weight"]], frame.loc[table.index].iloc[:, :3])
    mean = pd.Series(found.scores.mean(0), index=frame.index)
    np.testing.assert_allclose(table["mean score"], mean[table.index], rtol=1e-5)

    chosen = browser.column(place, "row")[:2]
    for tick in browser.all(f"{place} tbody input")[:2]:
        browser.js("arguments[0].scrollIntoView({block: 'center'})", tick)
        tick.click()
    browser.search(place, "")
    assert browser.status(place) == "60 rows, 2 selected"
    browser.click(f"{place} .export", "Export 2 selected (CSV)")
    assert sorted(browser.downloaded("training_rows.csv")["row"]) == sorted(chosen)
    browser.click(f"{place} .drop")
    drop = browser.downloaded("rows_to_drop.csv")
    assert list(drop["position"]) == sorted(frame.index.get_loc(name) for name in chosen)
    assert list(frame.index[drop["position"]]) == list(drop["row"])

    browser.click(f"{place} thead input")  # all of them
    browser.click(f"{place} .drop")
    assert list(browser.downloaded("rows_to_drop.csv")["position"]) == list(range(60))
    browser.click("#of-groups .export")
    assert browser.downloaded("groups.csv").to_numpy().tolist() == [["'=a", 1.5]]


def test_one_test_row_after_the_other(browser):
    found = small_found()
    browser.open(found, k=2)
    place, top = "#of-test", found.top(2)

    def check(z):
        positions, scores, _ = top.of_row(z)
        assert browser.column(place, "row") == [f"patient {i}" for i in positions]
        shown = [float(one.replace("\u2212", "-")) for one in browser.column(place, "score")]
        np.testing.assert_allclose(shown, scores, atol=5e-3 * np.abs(scores).max())
        assert browser.column(place, "kind") == ["helpful"] * 2 + ["harmful"] * 2
        pinned = [one.text for one in browser.all(f"{place} .pinned > *")]
        assert pinned[1] == f"patient {60 + z}"
        ages = found.data["X_train"]["age"].iloc[positions] > found.data["X_test"]["age"].iloc[z]
        marks = [one[-1] for one in (text.split("\n")[0] for text in arrows("age"))]
        assert marks == ["\u25b2" if above else "\u25bc" for above in ages]

    def arrows(title):
        titles = [head.text for head in browser.all(f"{place} thead th")]
        where = f"{place} tbody tr:not(.pinned) > :nth-child({titles.index(title) + 1}) .arrow"
        return [one.text for one in browser.all(where)]

    check(0)
    browser.click(f"{place} button", "Next")
    check(1)
    browser.js(
        "const choose = document.querySelector('#of-test select'); choose.value = 5;"
        "choose.dispatchEvent(new Event('change'))"
    )
    check(5)
    assert not browser.all(f"{place} button")[1].is_enabled()  # there is no next one


def test_words_of_the_test_row_are_marked(browser):
    browser.open(sentences_found(), k=1)
    marked = {one.text for one in browser.all("#of-test tbody tr:nth-child(2) mark")}
    assert marked == {"clean", "room", "kind", "staff", "and"}


def test_light_and_dark(browser):
    browser.open(small_found())

    def look():
        shown = [
            one.is_displayed() for one in browser.all("section[aria-labelledby=own] .chart img")
        ]
        return browser.js("return getComputedStyle(document.body).backgroundColor"), shown

    light, dark = ("rgb(255, 255, 255)", [True, False]), ("rgb(20, 23, 28)", [False, True])
    assert look() == light
    browser.click("#theme", "Dark page")
    assert look() == dark
    browser.click("#theme", "Light page")
    assert look() == light
    browser.cdp(
        "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}]
    )
    browser.driver.refresh()
    assert look() == dark
    browser.click("#theme", "Light page")
    assert look() == light


def test_missing_values_differ_from_known_ones(browser):
    X, y = table()
    found = found_of(X, y)
    for name in ("X_train", "X_test"):  # what is shown, not what was computed
        found.data[name] = found.data[name].copy()
        found.data[name].loc[:, "age"] = np.nan
    found.data["X_train"].loc[:, "dose"] = np.nan
    found.data["X_test"].loc[:, "ward"] = None
    browser.open(found, k=1, self_influence=False)
    assert browser.column("#of-test", "age") == ["missing", "missing"]
    titles = [head.text for head in browser.all("#of-test thead th")]
    marked = {
        titles[browser.js("return arguments[0].cellIndex", one)]
        for one in browser.all("#of-test .differs")
    }
    assert marked - {"target", "weight"} == {"dose", "ward"}


# ---- what it must not do --------------------------------------------------------------------


def test_hostile_data_do_nothing(browser):
    from selenium.common.exceptions import NoAlertPresentException

    browser.open(hostile_found(), title=HOSTILE[0], groups=dict.fromkeys(HOSTILE, 1.0))
    for place in ("#of-test", "#of-train", "#of-groups"):
        for title in [one.text for one in browser.all(f"{place} thead button")]:
            browser.click(f"{place} thead button", title)
        browser.click(f"{place} .export")
    browser.click("#of-test button", "Next")
    cell = browser.all("#of-test tbody th")[1]
    browser.js("arguments[0].dispatchEvent(new MouseEvent('mouseover', {bubbles: true}))", cell)
    assert browser.js("return window.stolen === undefined")
    with pytest.raises(NoAlertPresentException):
        _ = browser.driver.switch_to.alert.text
    assert browser.js("return document.scripts.length") == 2
    assert not browser.all("img:not([src^='data:'])")
    assert browser.all("h1")[0].text == HOSTILE[0]
    names = browser.downloaded("training_rows.csv")["row"]
    assert not [name for name in names if name.startswith("=")]
    assert {name.rsplit(" ", 1)[0] for name in names} >= {HOSTILE[0], HOSTILE[1], "'" + HOSTILE[7]}
    assert not browser.driver.get_log(
        "browser"
    )  # neither errors, nor anything that the policy stopped


def test_no_request_leaves_the_page(browser):
    browser.open(hostile_found(), **full_options())
    browser.click("#of-train .export")
    browser.downloaded("training_rows.csv")
    browser.click("#theme")
    asked = browser.urls()
    assert asked[0] == (browser.folder / "report.html").as_uri()
    assert {url.split(":")[0] for url in asked[1:]} <= {"data", "blob"}


def test_the_policy_stops_what_does_not_belong(browser):
    """The page would not load or run a thing even if something came into it."""
    browser.open(small_found())
    browser.js(
        "const [script, image] = ['script', 'img'].map((tag) => document.createElement(tag));"
        "script.textContent = 'window.stolen = 1'; image.src = 'http://localhost:9/x.png';"
        "document.body.append(script, image)"
    )
    assert browser.js("return window.stolen === undefined")
    told = " ".join(one["message"] for one in browser.driver.get_log("browser"))
    assert "script-src" in told
    assert "img-src" in told


def test_in_a_notebook(browser):
    """In its frame the page works, and has no way to the notebook."""
    notebook = browser.folder / "notebook.html"
    notebook.write_text(
        f"<!doctype html><meta charset=utf-8><body>{hostile_found()._repr_html_()}", "utf-8"
    )
    browser.driver.get(notebook.as_uri())
    browser.driver.switch_to.frame(0)
    browser.click("#of-train thead button", "position")
    assert browser.column("#of-train", "position")[0] == "59"
    browser.click("#of-train .export")
    assert len(browser.downloaded("training_rows.csv")) == 60
    assert browser.js("return window.origin") == "null"
    assert browser.js("try { parent.document; return false } catch { return true }")
    browser.driver.switch_to.default_content()
    assert browser.js("return window.stolen === undefined")


# ---- who can use it -------------------------------------------------------------------------

PAGES = {
    "every section": lambda: (repeated_found(), full_options()),
    "hostile": lambda: (hostile_found(), full_options()),
    "images": lambda: (images_found(), {"image_shape": (8, 8)}),
    "sentences": lambda: (sentences_found(), {}),
}


@pytest.mark.parametrize("name", PAGES)
def test_accessible_in_light_and_dark_and_on_a_phone(browser, name):
    found, options = PAGES[name]()
    browser.open(found, **options)
    assert browser.faults() == []
    browser.click("#theme", "Dark page")
    assert browser.faults() == []
    phone = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    browser.cdp("Emulation.setDeviceMetricsOverride", **phone)
    assert browser.faults() == []
    assert browser.js("return document.documentElement.scrollWidth") == 360


def test_images_are_shown(browser):
    """And labels are marked that differ from the test row's, although they are numbers."""
    found = images_found()
    browser.open(found, image_shape=(8, 8), k=3)
    positions, y = found.top(3).of_row(0)[0], found.data["y_train"]
    assert browser.column("#of-test", "target") == [str(one) for one in y[positions]]
    marked = [one.text for one in browser.all("#of-test .differs")]
    assert marked == [str(one) for one in y[positions] if one != found.data["y_test"][0]]
    assert marked
    images = browser.all("#of-test .thumb")
    assert len(images) == 7
    sizes = [
        browser.js("return [arguments[0].naturalWidth, arguments[0].naturalHeight]", one)
        for one in images
    ]
    assert sizes == [[8, 8]] * 7


def test_many_rows(browser):
    found = made_found(20_000)
    browser.open(found, self_influence=False)
    assert browser.status("#of-train") == "20,000 rows"
    browser.click("#of-train .pages button", "\u00bb")
    assert browser.all("#of-train .pages .quiet")[0].text == "page 1,334 of 1,334"
    mean = found.scores.mean(0)
    assert browser.column("#of-train", "position")[-1] == str(mean.argmin())
    browser.search("#of-train", "row19999")
    assert browser.status("#of-train") == "1 of 20,000 rows"
