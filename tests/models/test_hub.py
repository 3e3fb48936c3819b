"""The hub's client against a small server that speaks the hub's protocol, and against silence."""

import base64
import http.server
import json
import threading
import time

import huggingface_hub
import pytest
import torch
import transformers as hf

import slms
from slms.models.convert import route
from slms.models.hub import cached_snapshot, download
from slms.models.io import read_tokenizer
from slms.models.source import EMBEDDED, BaseConfig, resolve
from slms.network import hub_trouble
from slms.routing import RoutingConfig

SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of hub files."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_XET_CACHE", str(tmp_path / "xet"))
    return tmp_path / "cache"


@pytest.fixture
def hub(cache, monkeypatch):
    """Serve {repo: {file: bytes}} as a hub does; yields that dict, and `asked`, the paths requested."""
    repos, asked = {}, []

    class Handler(http.server.BaseHTTPRequestHandler):
        def _answer(self, body: bool) -> None:
            asked.append(self.path)
            path = self.path.partition("?")[0].strip("/")
            status, content, headers = 404, b"{}", {"X-Error-Code": "RepoNotFound"}
            for repo, files in repos.items():
                if path.startswith(f"api/models/{repo}/tree/"):
                    entries = [{"type": "file", "path": n, "size": len(b), "oid": "0"} for n, b in files.items()]
                    status, content, headers = 200, json.dumps(entries).encode(), {}
                elif path.startswith(f"api/models/{repo}"):
                    info = {"id": repo, "sha": SHA, "siblings": [{"rfilename": n} for n in files]}
                    status, content, headers = 200, json.dumps(info).encode(), {}
                elif path.startswith(f"{repo}/resolve/"):
                    content = files[path.split("/", 4)[4]]
                    status, headers = 200, {"X-Repo-Commit": SHA, "ETag": f'"{hash(content)}"'}
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def do_POST(self) -> None:
            """Uploads: the card's metadata, how files go up, and the commit with their content."""
            body = self.rfile.read(int(self.headers["Content-Length"]))
            asked.append(self.path)
            path = self.path.partition("?")[0].strip("/")
            answer = {"errors": [], "warnings": []}
            if "/preupload/" in path:
                names = [file["path"] for file in json.loads(body)["files"]]
                answer = {"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]}
            elif "/commit/" in path:
                repo = path.removeprefix("api/models/").partition("/commit/")[0]
                entries = [json.loads(line) for line in body.splitlines()]
                repos[repo] = {
                    e["value"]["path"]: base64.b64decode(e["value"]["content"]) for e in entries if e["key"] == "file"
                }
                answer = {"commitOid": SHA, "commitUrl": f"{address}/{repo}/commit/{SHA}"}
            content = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self) -> None:
            self._answer(True)

        def do_HEAD(self) -> None:
            self._answer(False)

        def log_message(self, *_) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    for place in (huggingface_hub.constants, huggingface_hub.hf_api.constants):
        monkeypatch.setattr(place, "ENDPOINT", address)
    monkeypatch.setattr(
        huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", address)
    yield repos, asked
    server.shutdown()
    server.server_close()


@pytest.fixture
def published(tiny, tmp_path, shared_data):
    """Files of a tiny GPT-Neo published as TinyStories-1M is: pickled weights, and another repository's tokenizer."""
    model = tiny("gpt_neo")
    model.save_pretrained(tmp_path / "published")
    files = {"config.json": (tmp_path / "published" / "config.json").read_bytes()}
    torch.save(model.state_dict(), tmp_path / "published" / "pytorch_model.bin")
    files["pytorch_model.bin"] = (tmp_path / "published" / "pytorch_model.bin").read_bytes()
    files["flax_model.msgpack"] = b"never asked for"
    place = shared_data / "gptneo_char_anton3090"
    tokenizer = {name: (place / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json")}
    return model, files, tokenizer


def test_a_base_with_pickled_weights_and_another_tokenizer_loads_from_the_hub(hub, published, tokens):
    model, files, tokenizer = published
    repos, asked = hub
    repos |= {"someone/tiny": files, "other/tokenizer": tokenizer}
    base = BaseConfig(hub="someone/tiny", embedded="stories-1m", tokenizer="other/tokenizer")
    resolved = resolve(base)
    assert (resolved.kind, resolved.stand_in, resolved.note) == ("hub", False, "base someone/tiny (hub)")
    loaded, loaded_tokenizer = slms.load_base(base)
    assert torch.allclose(loaded(tokens(1, 9)).logits, model(tokens(1, 9)).logits, atol=1e-5)
    assert len(loaded_tokenizer) == 169
    assert not any("msgpack" in path for path in asked if "resolve" in path)


def test_once_cached_the_hub_is_not_asked_again(hub, published, monkeypatch):
    _, files, tokenizer = published
    repos, asked = hub
    repos["someone/tiny"] = {**files, **tokenizer}
    assert cached_snapshot("someone/tiny") is None
    slms.load_base("someone/tiny")
    asked.clear()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    resolved = resolve("someone/tiny")
    assert resolved.cached and resolved.note == "base someone/tiny (hub, from the local cache)"
    slms.load_base("someone/tiny")
    assert asked == []


def test_safetensors_are_preferred_and_pickled_weights_then_not_downloaded(hub, published, tmp_path):
    _, files, _ = published
    repos, asked = hub
    safe = (tmp_path / "published" / "model.safetensors").read_bytes()
    repos["someone/both"] = {**files, "model.safetensors": safe}
    path = download("someone/both", None, ["config.json"], weights=True)
    assert sorted(p.name for p in path.iterdir()) == ["config.json", "model.safetensors"]
    assert not any("pytorch_model" in path for path in asked if "resolve" in path)


def test_a_saved_model_goes_up_and_comes_down_by_plain_huggingface_hub(hub, tiny, tokens, tmp_path):
    repos, asked = hub
    repos["me/routed"] = {}
    routed = route(tiny("gpt2"), RoutingConfig(n_pathways=5, k=2), tokens(4, 16))
    tokenizer = read_tokenizer(EMBEDDED["stories-1m"])
    slms.save_model(routed, tokenizer, tmp_path / "model")
    huggingface_hub.HfApi(token="t").upload_folder(folder_path=tmp_path / "model", repo_id="me/routed")
    assert any("validate-yaml" in path for path in asked)
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= set(repos["me/routed"])
    assert not any(str(tmp_path).encode() in content for content in repos["me/routed"].values())
    pulled, again = slms.load_base("me/routed")
    assert type(pulled) is type(routed) and torch.equal(pulled(tokens(1, 9)).logits, routed(tokens(1, 9)).logits)
    assert again("a b").input_ids == tokenizer("a b").input_ids


def test_a_half_cached_model_is_not_cached(hub, published):
    _, files, _ = published
    hub[0]["someone/tiny"] = files
    download("someone/tiny", None, ["config.json"], weights=False)
    assert cached_snapshot("someone/tiny") is None
    assert cached_snapshot("someone/tiny", weights=False) is not None


def test_an_unknown_repository_is_an_error_and_never_replaced_by_the_stand_in(hub):
    with pytest.raises(ValueError, match="base `someone/absent` is not on the hub, or not open to you"):
        resolve(BaseConfig(hub="someone/absent", embedded="stories-1m"))


def test_a_hub_that_does_not_answer_is_given_up_within_the_time(cache, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: time.sleep(30))
    start = time.monotonic()
    assert hub_trouble("someone/tiny", timeout_s=0.3) == "the hub does not answer within 0.3 s"
    assert time.monotonic() - start < 3


def test_a_refused_connection_is_an_unreachable_hub(hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert hub_trouble("someone/tiny") == "the hub cannot be reached"
    with pytest.raises(OSError, match="base someone/tiny is not in the local cache and the hub cannot be reached"):
        slms.load_base("someone/tiny")


def test_offline_is_said_at_once(cache):
    assert hub_trouble("someone/tiny") == "HF_HUB_OFFLINE forbids asking the hub"


def test_a_pickle_that_would_run_code_is_refused(tmp_path, tiny, shared_data):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "proof"), "w"))

    tiny("gpt_neo").config.save_pretrained(tmp_path / "evil")
    torch.save({"transformer.wte.weight": Evil()}, tmp_path / "evil" / "pytorch_model.bin")
    with pytest.raises(ValueError, match="its pickled weights hold more than tensors") as caught:
        slms.load_model(tmp_path / "evil")
    assert "\n" not in str(caught.value) and not (tmp_path / "proof").exists()
    assert hf.utils.logging.is_progress_bar_enabled()
