"""Reads results files of schema 1, which had an object for each layer where schema 2 has rows."""

from typing import Any

ESTIMATES = ("purity", "entropy", "purity_legacy", "utilization")
NUMBERS = ("chosen_per_token", "density", "effective_pathways")


def from_schema_1(data: dict[str, Any]) -> dict[str, Any]:
    """Convert the plain content of a schema 1 file to schema 2; its routed modules were MLPs, and z is dropped.

    Raises:
        ValueError: the content does not have the form of schema 1.
    """
    kept = {key: value for key, value in data.items() if key not in ("layers", "schema_version")}
    try:
        layers, seed = data["layers"], data["run"]["seed"]
        rows = [row | {"seed": seed} for layer in layers for row in _rows(layer)]
        return kept | {"rows": rows, "pathways": {_place(layer): layer["pathways"] for layer in layers}}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it has not the form of schema 1 ({type(error).__name__}: {error})") from None


def _place(layer: dict[str, Any]) -> str:
    return f"L{layer['layer']}.mlp"


def _rows(layer: dict[str, Any]) -> list[dict[str, Any]]:
    place, n = _place(layer), layer["utilization"]["n"]
    rows = [{"place": place, "metric": name, "value": layer[name], "n": n} for name in NUMBERS]
    if layer["max_violation"] is not None:
        rows.append({"place": place, "metric": "max_load", "value": layer["max_violation"] + 1, "n": n})
    rows += [_row(place, name, "", layer[name]) for name in ESTIMATES]
    for metric in ("si", "si_given_token"):
        rows += [_row(place, metric, family, estimate) for family, estimate in layer[metric].items()]
    return rows


def _row(place: str, metric: str, family: str, estimate: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in estimate.items() if key not in ("z", "random_model")}
    return kept | {"place": place, "metric": metric, "family": family, "control": estimate["random_model"]}
