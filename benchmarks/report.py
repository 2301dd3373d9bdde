"""How long a report takes to write and to open, and how large it is: python benchmarks/report.py

Scores of Grad-Dot for 100 test rows; the page is opened by headless Chromium (Debian's packages chromium
and chromium-driver), and timed by its own clock from the start of navigation to the end of the load event,
when all tables are there, or to the first paint, if that is later. Search and sort are timed from the click
to the new table, its layout among it.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from selenium import webdriver
from sklearn.linear_model import LogisticRegression

from fimoda import Attribution, GradDot, attribute

N_OPENED = 7


def found_of(n_train: int, n_features: int = 20, n_test: int = 100) -> Attribution:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n_train + n_test, n_features))
    y = np.where(X[:, 0] + rng.normal(size=len(X)) > 0, "yes", "no")
    frame = pd.DataFrame(X, columns=[f"feature {j}" for j in range(n_features)])
    model = LogisticRegression().fit(frame[:n_train], y[:n_train])
    rows = frame[:n_train], y[:n_train], frame[n_train:], y[n_train:]
    return attribute(model, *rows, method=GradDot())


def browser() -> webdriver.Chrome:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for switch in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "window-size=1200,900"):
        options.add_argument(f"--{switch}")
    return webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))


def opened(driver: webdriver.Chrome, path: Path) -> float:
    """Return milliseconds until the page is there."""
    driver.get(path.as_uri())
    return driver.execute_async_script(
        "const done = arguments[0], times = (kind) => performance.getEntriesByType(kind);"
        "const wait = () => times('paint').length < 2 ? setTimeout(wait, 5) : done(Math.max("
        "times('navigation')[0].loadEventEnd, ...times('paint').map((one) => one.startTime)));"
        "wait()"
    )


def redrawn(driver: webdriver.Chrome, action: str) -> float:
    """Return milliseconds of a script that makes a table anew."""
    return driver.execute_script(
        f"const t = performance.now(); {action}; document.body.offsetHeight; return performance.now() - t"
    )


SORT = "document.querySelectorAll('#of-train thead button')[3].click()"
SEARCH = (
    "const s = document.querySelector('#of-train input[type=search]'); s.value = 'row123';"
    "s.dispatchEvent(new Event('input'))"
)


def main() -> None:
    driver = browser()
    print("training rows  written, s   size, MB  opened, ms (slowest)  sorted, ms  searched, ms")
    with tempfile.TemporaryDirectory() as folder:
        for n_train in (500, 5_000, 20_000, 100_000):
            found = found_of(n_train)
            start = time.perf_counter()
            path = found.report(Path(folder) / "report.html")
            seconds = time.perf_counter() - start
            times = [opened(driver, path) for _ in range(N_OPENED)]
            line = f"{n_train:13,}{seconds:12.1f}{path.stat().st_size / 1e6:11.1f}"
            line += f"{statistics.median(times):12.0f} ({max(times):.0f})".ljust(22)
            print(line + f"{redrawn(driver, SORT):12.0f}{redrawn(driver, SEARCH):14.0f}")
    driver.quit()


if __name__ == "__main__":
    main()
