"""Writes `features.json` and the page to browse it, one HTML file that loads no network, fonts or scripts."""

import base64
import hashlib
import html
import json
from pathlib import Path
from string import Template

from slms.files import write_atomic
from slms.report.feature_schema import FeatureResults

PAGE = Path(__file__).parent / "page"


def feature_json(results: FeatureResults) -> str:
    """The results as ASCII JSON with one feature per line; it parses as `json.dumps` of the whole does."""
    content = vars(results) | {"features": []}
    head = json.dumps(content, default=vars, allow_nan=False, indent=1)
    lines = [json.dumps(f, default=vars, allow_nan=False, separators=(",", ":")) for f in results.features]
    before, after = head.rsplit('"features": []', 1)
    return f'{before}"features": [\n{("," + chr(10)).join(lines)}\n ]{after}\n'


def page(results: FeatureResults) -> str:
    """The page as HTML. Its script and style are pinned by hash, so the text of a token can never become either."""
    style = (PAGE / "features.css").read_text(encoding="utf-8")
    script = "".join((PAGE / name).read_text(encoding="utf-8") for name in ("features.js", "features_view.js"))
    return Template((PAGE / "features.html").read_text(encoding="utf-8")).substitute(
        title=html.escape(f"Features of {results.site} in {results.model}"),
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        data=feature_json(results).replace("<", "\\u003c"),
    )


def write_features(directory: Path, results: FeatureResults) -> None:
    """Write `features.json` and `features.html`."""
    write_atomic(directory / "features.json", feature_json(results))
    write_atomic(directory / "features.html", page(results))


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
