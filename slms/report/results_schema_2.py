"""Reads results files of schema 2, whose rows had random weights as their control; schema 3 has them in `controls`."""

from typing import Any

MEANING = "the same model with random weights and routers, with its own loads"


def from_schema_2(data: dict[str, Any]) -> dict[str, Any]:
    """Convert the plain content of a schema 2 file to schema 3; load-matched random routers were not measured then.

    Raises:
        ValueError: the content does not have the form of schema 2.
    """
    try:
        rows = [{name: value for name, value in row.items() if name != "control"} for row in data.get("rows", [])]
        random = [
            {name: row[name] for name in ("place", "metric")}
            | {"family": row.get("family", ""), "value": row["control"], "difference": _minus(row)}
            for row in data.get("rows", [])
            if row.get("control") is not None
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it has not the form of schema 2 ({type(error).__name__}: {error})") from None
    tokens = max((row.get("n") or 0 for row in rows), default=0)
    controls = {"random_weights": {"meaning": MEANING, "seeds": 1, "tokens": tokens, "rows": random}} if random else {}
    return {key: value for key, value in data.items() if key != "schema"} | {"rows": rows, "controls": controls}


def _minus(row: dict[str, Any]) -> float | None:
    return None if row.get("value") is None else row["value"] - row["control"]
