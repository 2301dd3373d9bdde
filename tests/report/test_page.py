"""The page: what it says, and that nothing in it is more than text."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from cases_of_reports import HOSTILE, data_of, found_of, hostile_found, small_found, table

from fimoda import AgreementCurve, ExactInfluence, FurtherTraining, GradDot
from fimoda.report.page import report_page


class Elements(HTMLParser):
    """All elements of a page with their attributes, and the text of scripts and styles."""

    def __init__(self, page):
        super().__init__()
        self.found, self.inner, self.is_inside = [], [], False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self.is_inside = tag in ("script", "style")
        if self.is_inside:
            self.inner.append([tag, dict(attrs), ""])

    def handle_data(self, data):
        if self.is_inside:
            self.inner[-1][2] += data

    def handle_endtag(self, tag):
        self.is_inside = False


@pytest.fixture(scope="module")
def found():
    return small_found()


@pytest.fixture(scope="module")
def hostile():
    agreement = AgreementCurve(
        [HOSTILE[0], HOSTILE[3]],
        np.array([1, 2]),
        dict.fromkeys(("cosine", "cosine_centred", "spearman"), np.full((2, 2, 3), 0.5)),
    )
    groups = {name: j for j, name in enumerate(HOSTILE)}
    return report_page(hostile_found(), title=HOSTILE[0], agreement=agreement, groups=groups)


def test_names_cells_and_titles_are_text(hostile):
    """The elements are those of the template, whatever the data hold."""
    page = Elements(hostile)
    plain = Elements(report_page(small_found()))
    of_agreement = {"table", "caption", "thead", "tbody", "tr", "th", "td", "h3"}
    assert {tag for tag, _ in page.found} == {tag for tag, _ in plain.found} | of_agreement
    assert [tag for tag, *_ in page.inner] == ["style", "script", "script"]
    names = {name for _, attributes in page.found for name in attributes}
    assert not [name for name in names if name.startswith("on") or name == "style"]
    assert hostile.count("{{7*7}}") > 10
    assert HOSTILE[0] not in hostile


def test_nothing_ends_the_data(hostile):
    text = re.search(r'id="data">(.*?)</script>', hostile, re.DOTALL)[1]
    assert not set("<>&'\u2028\u2029") & set(text)
    data = data_of(hostile)
    assert data["features"][3]["name"] == HOSTILE[0]
    assert set(data["rows"]["target"]) == set(HOSTILE[:2])


def test_policy_allows_its_own_script_and_style_only(hostile):
    page = Elements(hostile)
    policy = page.found[[tag for tag, _ in page.found].index("meta") + 1][1]
    assert policy["http-equiv"] == "Content-Security-Policy"
    rules = dict(rule.split(" ", 1) for rule in policy["content"].split("; "))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert rules["img-src"] == "data:"
    for rule, place in (("style-src", 0), ("script-src", 2)):
        text = page.inner[place][2].encode()
        digest = base64.b64encode(hashlib.sha256(text).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"
    assert "unsafe" not in policy["content"]


def test_nothing_is_loaded(hostile):
    for _, attributes in Elements(hostile).found:
        for name in ("src", "href", "action", "data", "srcset", "poster"):
            assert attributes.get(name, "data:").startswith("data:")
    style, _, script = (text for *_, text in Elements(hostile).inner)
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|import\(|innerHTML", style + script)


def test_facts(found):
    page = report_page(found, title="A & B")
    for _, fact in found._facts[:-1]:
        assert f"<dd>{fact}</dd>" in page
    assert "<title>A &amp; B</title>" in page
    assert "<li>the method does not know its error: compare_methods measures it</li>" in page
    assert "Positive: the row helps" in page


def test_of_another_measurement():
    """A row whose removal raises the margin is not called helpful."""
    found = found_of(*table(), method=GradDot(measurement="margin"))
    page = report_page(found)
    assert "the row helps" not in page
    assert data_of(page)["kinds"] == ["holds it down", "holds it up"]


def test_errors_are_told():
    method = FurtherTraining(n_epochs=1, n_seeds=3, lr=0.1, random_state=0)
    found = found_of(*table(), method=method)
    page = report_page(found)
    expected = 100 * (np.abs(found.scores) > 2 * found.errors).mean()
    assert f"{expected:.0f} % of the scores are more than two standard errors" in page
    test = data_of(page)["tests"][2]
    position = data_of(page)["rows"]["position"][test["rows"][0]]
    np.testing.assert_allclose(test["errors"][0], found.errors[2, position], rtol=1e-5)


def test_summary_of_the_scores(found):
    page = report_page(found)
    assert f"<dd>{100 * (found.scores > 0).mean():.0f} %</dd>" in page
    assert f"<dd>{np.median(found.scores):+.3g}</dd>" in page


def test_agreement(found):
    values = np.linspace(0, 1, 12).reshape(2, 2, 3)
    curve = AgreementCurve(
        ["a", "b"],
        np.array([1, 10]),
        dict.fromkeys(("cosine", "cosine_centred", "spearman"), values),
    )
    page = report_page(found, agreement=curve)
    cells = re.findall(r'<td class="number">(.*?)</td>', page)
    assert cells == [f"{mean:.2f}" for mean in values.mean(-1).ravel()]
    assert "10 epochs" in page
    assert page.count("data:image/svg+xml;base64,") == 2 * 3


@pytest.mark.parametrize(
    "groups",
    [
        {"old": -0.5, "new": [0.1, 0.3]},
        SimpleNamespace(names=["old", "new"], effects=[-0.5, 0.2]),
        SimpleNamespace(names=["old", "new"], effects=[[-0.4, 0.1], [-0.6, 0.3]]),
    ],
)
def test_groups(found, groups):
    page = report_page(found, groups=groups)
    assert data_of(page)["groups"] == {"name": ["old", "new"], "effect": [-0.5, 0.2]}


def test_self_influence_is_given_or_left_out(found):
    own = np.arange(60) / 10.0
    data = data_of(report_page(found, self_influence=own, contamination=0.05))
    assert [data["rows"]["position"][place] for place in data["suspects"]] == [59, 58, 57]
    page = report_page(found, self_influence=False)
    assert data_of(page)["rows"]["own"] is None
    assert "Not known. It was not asked for." in page


def test_a_method_without_self_influence_says_so(found):
    class Silent(GradDot):
        def self_influence(self):
            raise TypeError("there is none of <this>")

    other = found_of(*table(), method=Silent())
    assert "Silent does not give it: TypeError: there is none of &lt;this&gt;" in report_page(other)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"k": 0}, ValueError, r"'k' parameter of report_page must be an int in .* Got 0"),
        ({"title": 3}, ValueError, r"'title' parameter .* must be an instance of 'str'. Got 3"),
        ({"contamination": 0.6}, ValueError, r"'contamination' parameter .* Got 0.6"),
        (
            {"self_influence": [1.0]},
            ValueError,
            r"self_influence must have one number .* \(60,\), got",
        ),
        ({"self_influence": "yes"}, ValueError, r"'self_influence' parameter .* Got 'yes'"),
        ({"agreement": 0.9}, ValueError, r"'agreement' parameter .* Got 0.9"),
        ({"groups": 3}, TypeError, r"groups must be what group_influence returns.*, got int"),
        (
            {"groups": SimpleNamespace(names=["a"], effects=[1, 2])},
            ValueError,
            r"groups must have as many names as effects, got 1 and 2",
        ),
        (
            {"image_shape": (2, 2)},
            ValueError,
            r"image_shape must be left out for .* of type object",
        ),
        ({"max_test_rows": 0}, ValueError, r"'max_test_rows' parameter .* Got 0"),
        ({"max_train_rows": 1.5}, ValueError, r"'max_train_rows' parameter .* Got 1.5"),
        ({"max_features": True}, ValueError, r"'max_features' parameter .* Got True"),
    ],
)
def test_errors(found, options, error, message):
    with pytest.raises(error, match=message):
        report_page(found, **options)


# ---- on disk, and in a notebook -------------------------------------------------------------


def test_written(found, tmp_path):
    out = found.report(tmp_path / "report.html", title="Ünïcode", k=2)
    assert out == tmp_path / "report.html"
    page = out.read_text("utf-8")
    assert "<h1>Ünïcode</h1>" in page
    assert len(data_of(page)["tests"][0]["rows"]) == 4
    assert found.report(str(out), k=1) == out  # an older one is replaced
    assert len(data_of(out.read_text("utf-8"))["tests"][0]["rows"]) == 2


def test_no_folder(found, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"path must be in a folder that exists, .*nowhere"):
        found.report(tmp_path / "nowhere" / "report.html")
    with pytest.raises(IsADirectoryError, match=r"path must be a file, .* is a folder"):
        found.report(tmp_path)
    with pytest.raises(TypeError):
        found.report(3)


def test_in_a_notebook(found):
    tag, attributes = Elements(found._repr_html_()).found[0]
    assert tag == "iframe"
    assert attributes["sandbox"].split() == ["allow-scripts", "allow-downloads"]
    page = attributes["srcdoc"]
    assert found.reason in page
    assert len(data_of(page)["tests"]) == 6
    assert data_of(page)["rows"]["own"] is None  # nothing is computed to show a result


def test_in_a_notebook_hostile_data_stay_inside():
    elements = Elements(hostile_found()._repr_html_())
    assert [tag for tag, _ in elements.found] == ["iframe"]
    assert len(Elements(elements.found[0][1]["srcdoc"]).inner) == 3


def test_in_a_notebook_without_the_libraries(found, monkeypatch):
    monkeypatch.setattr("fimoda.report.page.find_spec", lambda name: None)
    assert found._repr_html_().startswith("<table>")
    with pytest.raises(
        ImportError, match=r"a report needs jinja2, matplotlib, pandas: install the extra"
    ):
        found.report("report.html")


def test_exact_scores_are_shown():
    found = found_of(*table(), method=ExactInfluence())
    data = data_of(report_page(found, k=3))
    rows = data["rows"]
    order = np.argsort(rows["position"])
    np.testing.assert_allclose(
        np.array(rows["mean"])[order], found.scores.mean(0), rtol=1e-5, atol=1e-12
    )
    for z, test in enumerate(data["tests"]):
        expected = np.argsort(-found.scores[z])
        positions = [rows["position"][place] for place in test["rows"]]
        assert positions == [*expected[:3], *expected[::-1][:3]]
        np.testing.assert_allclose(test["scores"], found.scores[z, positions], rtol=1e-5)
