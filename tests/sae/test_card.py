"""An exported coder is a folder that the hub takes as it is."""

import pytest

from slms.sae.coders import build_coder
from slms.sae.config import CoderConfig
from slms.sae.export import Provenance, fold_scale, save
from tests.hub_folder import card_of


def test_what_saelens_cannot_open_is_not_called_its_own(tmp_path):
    coder = build_coder(CoderConfig(kind="topk", d_sae=12, k=4), 4, 4)
    where = Provenance("stories-1m", "blocks.0.hook_mlp_in", hook_name_out="blocks.0.hook_mlp_out")
    save(fold_scale(coder, 2.0), tmp_path / "c", where)
    assert card_of(tmp_path / "c")["library_name"] == "slms"
    assert "sae_lens" not in (tmp_path / "c" / "README.md").read_text()


@pytest.mark.parametrize(
    ("model", "corpus", "base", "datasets"),
    [("me/model", "me/text", "me/model", ["me/text"]), ("/home/me/mine", "stories", None, None)],
)
@pytest.mark.parametrize("transcoder", [False, True])
def test_a_coder_is_ready_for_upload(model, corpus, base, datasets, transcoder, tmp_path):
    coder = build_coder(CoderConfig(kind="relu", d_sae=12, k=4, skip=transcoder), 4, 4 if transcoder else None)
    out = "blocks.0.hook_mlp_out" if transcoder else None
    where = Provenance(model, "blocks.0.hook_resid_post", hook_name_out=out, context_size=8, dataset_path=corpus)
    save(fold_scale(coder, 2.0), tmp_path / "c", where)
    data = card_of(tmp_path / "c")
    assert (data.get("base_model"), data.get("datasets")) == (base, datasets)
    assert data["library_name"] == "saelens" and ("transcoder" in data["tags"]) == transcoder
    text = (tmp_path / "c" / "README.md").read_text()
    assert "4 inputs, 12 latents" in text and f"`{model.removeprefix('/home/me/')}`" in text
