"""Every notebook runs from top to bottom, on tiny models; a figure of the README comes from one of them or a study."""

import os
import re
from pathlib import Path

import pytest

import slms
from slms.models.base import BaseConfig, load_base

nbclient = pytest.importorskip("nbclient", reason="nbclient, of the extra `test`, runs the notebooks")
nbformat = pytest.importorskip("nbformat", reason="nbformat comes with nbclient")

ROOT = Path(__file__).resolve().parents[1]
SCREENSHOTS = {"features.png"}  # of the page that `eval.py features` writes, in a browser: no figure of ours
NOTEBOOKS = sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Tiny models of three widths and a routed one, and the settings that point the notebooks at them."""
    place = tmp_path_factory.mktemp("notebooks")
    for width in (8, 12, 16):
        net, tokenizer = load_base(BaseConfig(name="stories-1m", init="random", d_model=width, n_layers=1, n_heads=2))
        slms.save_model(net, tokenizer, str(place / f"w{width}"))
    ids = tokenizer("Once upon a time there was a dog. " * 10, return_tensors="pt").input_ids
    slms.save_model(slms.route(net, slms.RoutingConfig(n_pathways=4, k=2), ids), tokenizer, str(place / "routed"))
    return place


@pytest.fixture(scope="module")
def kernel(place):
    """One kernel for all notebooks: importing torch in each would take longer than running them."""
    from jupyter_client.manager import KernelManager

    manager = KernelManager(kernel_name="python3")
    models = " ".join(str(place / f"w{width}") for width in (8, 12, 16))
    settings = {
        "SLMS_MODEL": str(place / "w8"),
        "SLMS_MODELS": models,
        "SLMS_RUN": str(place / "routed"),
        "SLMS_DENSE": str(place / "w16"),
        "SLMS_OUT": str(place / "out"),
        "SLMS_FIGURES": str(place / "figures"),
        "SLMS_TOKENS": "2048",
        "SLMS_STEPS": "2",
        "SLMS_TASKS": "agreement",
        "SLMS_DOCUMENTS": "2",
        "PYTHONPATH": str(ROOT),
    }
    manager.start_kernel(env={**os.environ, **settings}, cwd=str(ROOT / "notebooks"))
    yield manager
    manager.shutdown_kernel(now=True)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_runs_from_top_to_bottom(name, kernel, place):
    notebook = nbformat.read(ROOT / "notebooks" / name, as_version=4)
    nbclient.NotebookClient(notebook, km=kernel, timeout=300).execute()
    shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    images = [output for output in shown if "image/png" in output.get("data", {})]
    assert images and not [output for output in shown if output.output_type == "error"]


def test_the_first_cell_of_the_quickstart_installs_what_is_missing(tmp_path, monkeypatch):
    """In Colab slms is missing at first: the cell installs SLMS_SOURCE, or says what to set."""
    first = next(c for c in nbformat.read(ROOT / "notebooks" / "quickstart.ipynb", 4).cells if c.cell_type == "code")
    ran = []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("subprocess.run", lambda command, check: ran.append(command[1:]))
    monkeypatch.delenv("SLMS_SOURCE", raising=False)
    with pytest.raises(SystemExit, match="slms is not installed"):
        exec(first.source, {})
    monkeypatch.setenv("SLMS_SOURCE", "git+https://example.org/slms")
    exec(first.source, {})
    assert ran == [["-m", "pip", "install", "-q", "git+https://example.org/slms"]]


def test_notebooks_are_kept_without_outputs():
    for name in NOTEBOOKS:
        cells = nbformat.read(ROOT / "notebooks" / name, as_version=4).cells
        assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells), name


def test_every_figure_of_the_readme_comes_from_a_notebook_or_a_study():
    figures = re.findall(r"!\[[^]]*\]\(docs/([^)]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    notebooks = "".join((ROOT / "notebooks" / name).read_text(encoding="utf-8") for name in NOTEBOOKS)
    results = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    studies = set(re.findall(r"\]\((study_[^)]+\.png)\) is the `study\.png` that the command above wrote", results))
    unknown = [name for name in figures if name not in notebooks and name not in studies | SCREENSHOTS]
    assert figures and studies and not unknown
