"""Datasets without a network: directories, and what the local caches hold of a hub dataset."""

import datasets.config
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from slms.data import dataset
from slms.data.dataset import dataset_documents, is_cached

SHA = "0123456789abcdef0123456789abcdef01234567"
TEXTS = {"train": ["a", "b", "c"], "validation": ["d"]}


@pytest.fixture
def caches(tmp_path, monkeypatch):
    """Empty caches, and a hub that does not answer."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setattr(dataset, "hub_trouble", lambda name, kind: "the hub cannot be reached")
    return tmp_path


def write(directory, parts=1):
    """The dataset as parquet files, those of training in so many parts."""
    directory.mkdir(parents=True)
    for split, texts in TEXTS.items():
        n = parts if split == "train" else 1
        for i in range(n):
            pq.write_table(pa.table({"text": texts[i::n]}), directory / f"{split}-{i:05d}-of-{n:05d}-ab12.parquet")


@pytest.fixture
def snapshot(caches):
    """me/tales in the hub's cache, as `hf download` leaves it."""
    root = caches / "hub" / "datasets--me--tales"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(SHA)
    (root / "snapshots" / SHA).mkdir(parents=True)
    return root / "snapshots" / SHA


def test_files_in_the_hub_s_cache_are_read(snapshot):
    assert not is_cached("me/tales")
    write(snapshot / "data")
    assert is_cached("me/tales")
    for split, texts in TEXTS.items():
        assert [document.text for document in dataset_documents("me/tales", split, "text")] == texts


def test_a_part_of_the_files_is_no_dataset(snapshot):
    write(snapshot / "data", parts=2)
    next((snapshot / "data").glob("train-00001*")).unlink()
    assert not is_cached("me/tales")
    with pytest.raises(ValueError, match=rf"'me/tales' is no file here and the hub .* reached; .*{SHA} holds a part"):
        list(dataset_documents("me/tales", "train", "text"))


def test_arrow_in_the_cache_of_datasets_is_read(caches):
    assert not is_cached("me/MyTales")
    place = caches / "datasets" / "me___my_tales" / "default" / "0.0.0" / SHA
    place.mkdir(parents=True)
    (place / "dataset_info.json").write_text("{}")
    for split, texts in TEXTS.items():
        Dataset.from_dict({"text": texts}).save_to_disk(caches / split)
        next((caches / split).glob("data-*.arrow")).rename(place / f"my_tales-{split}.arrow")
    assert is_cached("me/MyTales")
    for split, texts in TEXTS.items():
        assert [document.text for document in dataset_documents("me/MyTales", split, "text")] == texts


def test_a_directory_is_a_dataset(tmp_path):
    write(tmp_path / "rows")
    assert [document.text for document in dataset_documents(str(tmp_path / "rows"), "validation", "text")] == ["d"]
    with pytest.raises(ValueError, match=r"split 'test': .*train.*validation.*or name data\.corpus\.validation"):
        list(dataset_documents(str(tmp_path / "rows"), "test", "text"))


def test_a_directory_of_text_files_names_them(tmp_path):
    with pytest.raises(ValueError, match=r"a directory without \.arrow, .* files; name a file, or a directory that"):
        list(dataset_documents(str(tmp_path), "train", "text"))
    (tmp_path / "a.txt").write_text("a line\n")
    with pytest.raises(ValueError, match=r"name one of its files: a\.txt"):
        list(dataset_documents(str(tmp_path), "train", "text"))


def test_what_is_neither_a_file_nor_cached_nor_to_be_had_is_one_line(caches):
    for name, message in (("me/tales", "is no file here and the hub cannot be reached"), ("./x/y", "no such file or")):
        with pytest.raises(ValueError, match=message) as caught:
            list(dataset_documents(name, "train", "text"))
        assert "\n" not in str(caught.value)
