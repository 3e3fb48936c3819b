"""On the page and in its JSON, hostile tokens stay text, nothing is fetched, style and script match their hashes."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from slms.json_values import from_json_values
from slms.measure.rows import Row
from slms.report.feature_page import feature_json, page, write_features
from slms.report.feature_schema import Feature, FeatureFamily, FeatureResults, Preference, UseContext

HOSTILE = [
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "<!--",
    "\u2028",
    "ж&amp;",
    "${x}",
    "a b",
]


def results(n=3, **changes):
    """n features, the first strongest at every hostile token, the last never used."""
    features = [
        Feature(
            i,
            10 - i,
            0.1,
            0.5,
            1.0,
            None,
            -4,
            [1, 2],
            {"pos": Preference(0.1, 5.0, "<b>", 0.5, 2.0)},
            strongest=[UseContext([t, 6], [1.0, 0.0], 0) for t in range(6)],
        )
        for i in range(n - 1)
    ]
    features.append(Feature(n - 1, 0, 0.0, None, None, None, 0, []))
    si = Row("residual.0", "si", "pos", 0.1, 0.05, 0.15, null_mean=0.01, null_sd=0.001, ceiling=1.0, n=100)
    family = FeatureFamily(1.0, {"<b>": 0.5, "c": 0.5}, si, 2)
    made = {
        "directory": "d",
        "model": "m<i>",
        "kind": "topk",
        "site": "residual.0",
        "target": "residual.0",
        "d_sae": n,
        "corpus": "c",
        "split": "validation",
        "tokens": 100,
        "documents": 3,
        "l0": 2.0,
        "dead": 1,
        "logits": "none",
        "z_bound": 2.0,
        "families": {"pos": family},
        "vocabulary": HOSTILE,
        "features": features,
    }
    return FeatureResults(**(made | changes))


class Elements(HTMLParser):
    """Every tag with its attributes, and the text of each script and style."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.content = [], {}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        tag, attributes = self.tags[-1] if self.tags else ("", {})
        if tag in ("script", "style", "title"):
            self.content.setdefault((tag, attributes.get("id")), data)


@pytest.fixture(scope="module")
def made():
    return Elements(page(results()))


def test_json_is_the_content_and_reads_back():
    text = feature_json(results())
    assert text.isascii() and sum(line.startswith('{"index"') for line in text.splitlines()) == 3
    assert from_json_values(FeatureResults, json.loads(text)) == results()


def test_hostile_tokens_are_data_only(made):
    assert [tag for tag, _ in made.tags].count("script") == 2 and "img" not in [tag for tag, _ in made.tags]
    assert json.loads(made.content["script", "data"])["vocabulary"] == HOSTILE
    assert made.content["title", None] == "Features of residual.0 in m<i>"


def test_style_and_script_are_pinned_and_nothing_else_may_load(made):
    (policy,) = [a["content"] for _, a in made.tags if a.get("http-equiv") == "Content-Security-Policy"]
    for tag in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256(made.content[tag, None].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    sources = [value for _, a in made.tags for key, value in a.items() if key in ("src", "href")]
    assert set(sources) == {"#overview", "data:,"}


def test_script_sets_no_markup():
    script = Elements(page(results())).content["script", None]
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script)


def test_written_whole_or_not_at_all(tmp_path):
    write_features(tmp_path, results())
    with pytest.raises(ValueError, match="Out of range float values"):
        write_features(tmp_path, results(l0=float("nan")))
    assert json.loads((tmp_path / "features.json").read_text())["l0"] == 2.0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["features.html", "features.json"]


def test_a_browser_shows_hostile_tokens_as_text(tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium to open the page with")
    (tmp_path / "features.html").write_text(page(results()), encoding="utf-8")
    shown = subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--virtual-time-budget=2000",
            "--dump-dom",
            f"file://{tmp_path}/features.html#f=0",
        ],
        capture_output=True,
        text=True,
        timeout=600,
    ).stdout
    assert "data-ready=" in shown, "the script did not run to its end"
    assert "Feature 0" in shown and "&lt;img src=x onerror=alert(1)&gt;" in shown
    tags = [tag for tag, _ in Elements(shown).tags]
    assert tags.count("script") == 2 and "img" not in tags
