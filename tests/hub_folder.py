"""Whether `hf upload OWNER/NAME FOLDER` would publish a folder whose card the hub takes."""

import re
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData, metadata_load

LARGEST = 50 * 10**9  # bytes of one file that the hub takes
ENDINGS = {"", ".json", ".jinja", ".md", ".safetensors", ".txt"}  # no pickle, no code


def card_of(folder: Path) -> dict[str, Any]:
    """The metadata of a folder's card, after all that the hub's own client can check without a network."""
    card = ModelCard.load(folder / "README.md")
    data = card.data.to_dict()
    assert data == metadata_load(folder / "README.md") and ModelCardData(**data).to_dict() == data
    assert data["library_name"] and "slms" in data["tags"]
    assert "license" not in data  # that of the base and of the text is not known
    assert str(folder) not in card.content and "/home" not in card.content
    links = re.findall(r"\]\(([^)#\s]+)\)", card.text)
    assert all((folder / link).is_file() for link in links if "://" not in link), links
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert all(0 < path.stat().st_size < LARGEST and not path.is_symlink() for path in files)
    assert {path.suffix for path in files} <= {
        "",
        ".json",
        ".jinja",
        ".md",
        ".safetensors",
        ".txt",
    }
    assert not [path for path in files if path.name.startswith(".")]
    return data
