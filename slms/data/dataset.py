"""Reads datasets in the hub's form row by row, from a directory, the local caches of a hub dataset, or the hub.

The library `datasets` reads them all; a dataset's card or the names of its files define its splits. Only what is read
of a hub dataset is downloaded, and nothing if its files are in the local cache.
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from slms.data.files import Document, document_of
from slms.network import hub_trouble

ROWS = {".parquet", ".arrow", ".jsonl", ".json", ".csv"}
"""Endings of files that hold rows with named fields."""


def dataset_files(directory: Path) -> list[Path]:
    """List the files of rows in a directory and below it, sorted."""
    return sorted(path for path in directory.rglob("*") if path.suffix in ROWS and path.name != "dataset_info.json")


def dataset_documents(name: str, split: str, text_field: str, config: str | None = None) -> Iterator[Document]:
    """Yield the documents of one split of a dataset, in order; raise like `open_dataset`."""
    try:
        for row in open_dataset(name, split, config):
            yield document_of(row, text_field, name)
    except OSError as error:  # the connection was lost while reading
        raise ValueError(f"corpus {name!r}: {_first_line(error)}") from None


def open_dataset(name: str, split: str, config: str | None = None):
    """Open one split of a dataset as a stream of rows.

    name: a directory, else a hub id.
    config: the configuration of a dataset that has several.

    Raises:
        ValueError: neither the local cache nor the hub has the dataset, or it has no such split or configuration.
    """
    if Path(name).is_dir():
        return _stream(_checked(Path(name)), split, config, name)
    found = _snapshot(name)
    if found is not None and _complete(dataset_files(found)):
        return _stream(found, split, config, name)
    arrow = _arrow(name, config)
    if arrow is not None:
        return _stream(arrow, split, None, name)
    trouble = hub_trouble(name, kind="dataset")
    if trouble is not None:
        part = f"; {found} holds a part of it: name one of its files" if found else ""
        raise ValueError(f"corpus {name!r} is no file here and {trouble}{part}")
    return _stream(name, split, config, name)


def is_cached(name: str) -> bool:
    """Return whether a local cache holds all files of a hub dataset, as downloaded or as Arrow."""
    found = _snapshot(name)
    return (found is not None and _complete(dataset_files(found))) or _arrow(name, None) is not None


def _stream(place: Path | str, split: str, config: str | None, name: str):
    import datasets

    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(str(place), config, split=split, streaming=True)
    except ValueError as error:
        hint = "; or name data.corpus.validation (--validation)" if split != "train" else ""
        raise ValueError(f"corpus {name!r}, split {split!r}: {_first_line(error)}{hint}") from None
    except OSError as error:
        raise ValueError(f"corpus {name!r}: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _checked(directory: Path) -> Path:
    """Return a directory that holds rows; refuse text files, which are read as documents only one by one."""
    if dataset_files(directory):
        return directory
    texts = ", ".join(path.name for path in sorted(directory.glob("*.txt"))[:5])
    raise ValueError(
        f"corpus {directory}: a directory without {', '.join(sorted(ROWS))} files; "
        + (f"name one of its files: {texts}" if texts else "name a file, or a directory that holds such files")
    )


def _snapshot(name: str) -> Path | None:
    """Return the directory with the data files of a dataset that the hub's cache holds, complete or not."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        path = Path(snapshot_download(name, repo_type="dataset", local_files_only=True, allow_patterns=[]))
    except LocalEntryNotFoundError:
        return None
    except HFValidationError:
        raise ValueError(f"corpus {name}: no such file or directory, and no id of a dataset on the hub") from None
    return path if dataset_files(path) or any(path.rglob("*.txt")) else None


def _complete(files: list[Path]) -> bool:
    """Return whether every file such as `…-00000-of-00004…` has its three others beside it."""
    parts = [re.search(r"^(.*)-\d{5}-of-(\d{5})", str(path)) for path in files]
    counts = Counter((part[1], int(part[2])) for part in parts if part)
    return bool(files) and all(count == total for (_, total), count in counts.items())


def _arrow(name: str, config: str | None) -> Path | None:
    """Return the newest directory in which `datasets` keeps a hub dataset."""
    import datasets.config
    from datasets.naming import camelcase_to_snakecase

    *namespace, last = name.split("/")
    root = Path(datasets.config.HF_DATASETS_CACHE) / "___".join([*namespace, camelcase_to_snakecase(last)])
    found = [path.parent for path in root.glob(f"{config or '*'}/*/*/dataset_info.json")]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)
