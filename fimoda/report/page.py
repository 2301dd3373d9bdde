"""A report as one page of HTML, which loads nothing and runs no script but its own."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Mapping
from datetime import date
from importlib.util import find_spec
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._validation import POSITIVE_INTEGER, Interval, checks_arguments
from ..evaluation.agreement import AgreementCurve
from ..evaluation.failures import FAILURES, told
from .cells import Cells
from .charts import Chart, agreement_chart, effects_chart, histogram
from .contents import contents, group_effects

_TEMPLATES = Path(__file__).with_name("templates")


@checks_arguments(
    k=[POSITIVE_INTEGER],
    title=[str],
    self_influence=["boolean", "array-like"],
    contamination=[Interval(Real, 0, 0.5, closed="right")],
    agreement=[AgreementCurve, None],
    image_shape=["array-like", None],
    max_test_rows=[POSITIVE_INTEGER],
    max_train_rows=[POSITIVE_INTEGER],
    max_features=[POSITIVE_INTEGER],
)
def report_page(
    found: Any,
    *,
    title: str = "What the training rows did",
    k: int = 5,
    self_influence: Any = True,
    contamination: float = 0.05,
    agreement: AgreementCurve | None = None,
    groups: Mapping[Any, Any] | Any | None = None,
    image_shape: Any = None,
    max_test_rows: int = 50,
    max_train_rows: int = 20_000,
    max_features: int = 50,
) -> str:
    """Return the page of an `Attribution`; the parameters are those of `Attribution.report`."""
    require_libraries()
    cells = Cells(found.data["X_train"], found.data["X_test"], image_shape, max_features)
    effects = None if groups is None else group_effects(groups)
    own, unknown = _self_influence(found, self_influence)  # last, since it may train
    data = contents(
        found,
        k=k,
        own=own,
        cells=cells,
        contamination=contamination,
        max_test_rows=max_test_rows,
        max_train_rows=max_train_rows,
    )
    is_loss = found.attributor.measurement == "loss" and not found.behaviour.startswith(
        "prediction"
    )
    data["kinds"] = ["helpful", "harmful"] if is_loss else ["holds it down", "holds it up"]
    data["classes"] = bool(found.attributor.model_.loss.is_classifier)
    data["groups"] = effects
    if agreement is not None:
        data["agreement"] = list(zip(agreement.methods, agreement.mean().tolist(), strict=True))
    charts: dict[str, Chart | None] = {
        "scores": histogram(found.scores, "score", "scores", "Distribution of all scores."),
        "own": own if own is None else histogram(own, "self-influence", "training rows", _OWN),
        "agreement": None if agreement is None else agreement_chart(agreement),
        "groups": None if effects is None else effects_chart(effects),
    }
    return _rendered(
        title=title,
        facts=dict(found._facts),
        trust=found.trust.split("; "),
        is_loss=is_loss,
        today=date.today().strftime("%d %B %Y").lstrip("0"),
        summary=_summary(found.scores, found.errors),
        unknown=unknown,
        agreement=agreement,
        charts=charts,
        data=data,
    )


def require_libraries() -> None:
    """Raise ImportError, with what to install, where a report's libraries are missing."""
    missing = [name for name in ("jinja2", "matplotlib", "pandas") if find_spec(name) is None]
    if missing:
        raise ImportError(
            f'a report needs {", ".join(missing)}: install the extra "report" (in the checkout of fimoda: '
            'pip install ".[report]").'
        )


_OWN = "Distribution of self-influence over training rows."


def _self_influence(found: Any, asked: Any) -> tuple[NDArray[np.float64] | None, str]:
    """Return the self-influence of the columns, or None and why it is not known."""
    n_columns = found.scores.shape[1]
    if isinstance(asked, bool | np.bool_):
        if not asked:
            return None, "It was not asked for."
        try:
            return np.asarray(found.attributor.self_influence(), dtype=np.float64), ""
        except FAILURES as error:
            return None, f"{type(found.attributor).__name__} does not give it: {told(error)}"
    given = np.asarray(asked, dtype=np.float64)
    if given.shape != (n_columns,):
        raise ValueError(
            f"self_influence must have one number for each scored training row, ({n_columns},), got "
            f"shape {given.shape}."
        )
    return given, ""


def _summary(
    scores: NDArray[np.float64], errors: NDArray[np.float64] | None
) -> dict[str, float | None]:
    """Return what is to be said of all scores: shares in percent, and quantiles."""
    known = scores[np.isfinite(scores)]
    if not known.size:
        return {}
    low, middle, high = np.quantile(known, [0.05, 0.5, 0.95])
    beyond = None
    if errors is not None:
        there = np.isfinite(errors) & np.isfinite(scores)
        beyond = (
            100 * float((np.abs(scores[there]) > 2 * errors[there]).mean()) if there.any() else None
        )
    positive = 100 * float((known > 0).mean())
    return {"positive": positive, "low": low, "median": middle, "high": high, "beyond": beyond}


def _rendered(**context: Any) -> str:
    """Fill in the template; what comes from users is escaped, in HTML and in JSON."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # tojson escapes <, >, & and ', and everything that is no ASCII
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    style, script = ((_TEMPLATES / name).read_text("utf-8") for name in ("report.css", "report.js"))
    return environment.get_template("report.html").render(
        style=Markup(style),
        script=Markup(script),
        policy="; ".join(
            (
                "default-src 'none'",
                f"script-src {_digest(script)}",
                f"style-src {_digest(style)}",
                "img-src data:",
                "base-uri 'none'",
                "form-action 'none'",
            )
        ),
        **context,
    )


def _digest(text: str) -> str:
    """Return the only text that a browser is to take for a script or a style."""
    return f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
