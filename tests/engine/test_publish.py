"""Packages for others: packed, verified, fetched from a server on this machine."""

from __future__ import annotations

import json
import threading
from functools import partial
from hashlib import sha256
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from slidelens.engine.package import load_model, locate_model, save_model
from slidelens.engine.packages.card import model_card
from slidelens.engine.packages.fetch import fetch_model, fetching, read_reference
from slidelens.engine.packages.manifest import read_manifest
from slidelens.engine.packages.sums import write_sums
from slidelens.engine.publish import check_package, pack
from slidelens.errors import ModelError, ResultError
from slidelens.settings import get_settings


@pytest.fixture
def package(tiny, tmp_path):
    tiny.card = {
        "training": {"seed": 0, "bags": "/home/somebody/bags", "bag_cache": "/home/somebody/c"},
        "training_data": {"labels": "somebody.csv", "slides": {"train": {"normal": 1}}},
    }
    folder = save_model(tiny, tmp_path / "own" / tiny.name)
    (folder / "training").mkdir()
    (folder / "training" / "config.yaml").write_text("slides: /home/somebody/patients\n")
    return folder


@pytest.fixture
def packed(package, tmp_path):
    return pack(package, tmp_path / "up", licence="Apache-2.0", intended_use="Tests.")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SLIDELENS_CACHE", str(tmp_path / "cache"))
    get_settings.cache_clear()
    yield tmp_path / "cache"
    get_settings.cache_clear()


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        self.server.asked.append(self.path)
        if self.server.sends_on:
            self.send_response(302)
            self.send_header("Location", self.server.sends_on + self.path)
            self.end_headers()
            return
        there = Path(self.translate_path(self.path))
        if self.server.length:
            self.send_response(200)
            self.send_header("Content-Length", self.server.length)
            self.end_headers()
            self.wfile.write(there.read_bytes())
        elif self.server.absent and not there.is_file():
            page = b"<html>No such file</html>"
            self.send_response(200 if self.server.absent == "html" else self.server.absent)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)
        else:
            super().do_GET()


@pytest.fixture
def server(tmp_path):
    root = tmp_path / "www"
    root.mkdir()
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(root)))
    httpd.asked, httpd.sends_on, httpd.absent, httpd.length = [], "", None, ""
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    httpd.root, httpd.url = root, f"http://127.0.0.1:{httpd.server_address[1]}"
    yield httpd
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def test_a_packed_package_is_complete_and_tells_nothing_of_this_machine(package, packed):
    assert {path.name for path in packed.iterdir()} == {
        "README.md",
        "SHA256SUMS",
        "golden.safetensors",
        "model.json",
        "weights.safetensors",
    }
    assert (packed / "weights.safetensors").read_bytes() == (
        package / "weights.safetensors"
    ).read_bytes()
    text = "".join(path.read_text(errors="replace") for path in packed.iterdir())
    assert "somebody" not in text
    stated = json.loads((packed / "model.json").read_text())
    assert stated["training"] == {"seed": 0}
    assert stated["training_data"] == {"slides": {"train": {"normal": 1}}}
    assert str(package) not in text
    card = (packed / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert "Tests." in card
    assert "None" not in card
    held = check_package(packed)
    assert any("replayed" in line for line in held)
    assert any("every file" in line for line in held)


@pytest.mark.parametrize("missing", ["licence", "intended_use"])
def test_without_licence_or_use_nothing_is_packed(package, tmp_path, missing):
    given = {"licence": "MIT", "intended_use": "Tests."}
    del given[missing]
    with pytest.raises(ModelError, match=f"give --{missing.replace('_', '-')}"):
        pack(package, tmp_path / "up", **given)
    with pytest.raises(
        ModelError, match=r"no licence and no intended use.*--licence and --intended"
    ):
        pack(package, tmp_path / "up")
    assert not (tmp_path / "up").exists()


def test_other_files_are_not_replaced(package, tmp_path):
    (tmp_path / "up").mkdir()
    (tmp_path / "up" / "thesis.txt").write_text("years")
    with pytest.raises(ResultError, match="holds other files"):
        pack(package, tmp_path / "up", licence="MIT", intended_use="Tests.")
    assert (tmp_path / "up" / "thesis.txt").read_text() == "years"
    with pytest.raises(ResultError, match=r"holds other files \(training\)"):
        pack(package, package, licence="MIT", intended_use="Tests.")
    assert (package / "training").exists()


def test_figures_of_an_evaluation_are_in_the_card(package, tmp_path):
    folder = tmp_path / "evaluation"
    folder.mkdir()
    figures = {"n": 20, "auc": 0.931, "auc_ci": [0.84, 0.99], "roc": [[0, 1]], "kappa": None}
    (folder / "metrics.json").write_text(json.dumps({"models": {package.name: figures}}))
    given = {"licence": "MIT", "intended_use": "Tests."}
    out = pack(package, tmp_path / "up", evaluation=folder, **given)
    card = (out / "README.md").read_text()
    assert "| AUC | 0.931 |" in card
    assert "| AUC, 95 % interval | 0.840, 0.990 |" in card
    (folder / "metrics.json").write_text(json.dumps({"models": {"other": figures}}))
    with pytest.raises(ModelError, match="has no model"):
        pack(package, tmp_path / "up2", evaluation=folder, **given)


@pytest.mark.parametrize("name", ["README.md", "weights.safetensors", "model.json"])
def test_a_file_that_was_changed_is_named(packed, name):
    (packed / name).write_bytes((packed / name).read_bytes() + b" ")
    with pytest.raises(ModelError, match=name):
        check_package(packed)


def test_a_model_is_fetched_once_and_runs(server, packed, cache):
    packed.rename(server.root / "model")
    reference = f"{server.url}/model"
    steps = list(fetching(reference))
    assert steps[-1][0] == steps[-1][1] > 0
    first = len(server.asked)
    model = load_model(reference, "cpu")
    assert len(server.asked) == first
    assert model.classes == load_model(server.root / "model", "cpu").classes
    assert fetch_model(reference).parent == cache / "models"
    fetch_model(reference, refresh=True)
    assert len(server.asked) == 2 * first


def test_of_two_that_fetch_a_model_at_once_one_waits_for_the_other(server, packed, cache):
    """A folder that a second one replaced while the first read it was not there for a moment."""
    packed.rename(server.root / "model")
    reference = f"{server.url}/model"
    one, other = fetching(reference), fetching(reference)
    next(one)
    asked = len(server.asked)
    assert next(other) == (0, 0)
    assert len(server.asked) == asked
    for _ in one:
        pass
    fetched = len(server.asked)
    assert list(other) == []
    assert len(server.asked) == fetched

    one = fetching(reference, refresh=True)
    next(one)
    one.close()  # who gives up makes way
    assert fetch_model(reference, refresh=True).parent == cache / "models"


def test_a_hub_reference_names_repository_and_revision(server, packed, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    place = server.root / "lab" / "model" / "resolve" / "v1"
    place.parent.mkdir(parents=True)
    packed.rename(place)
    load_model("hf://lab/model@v1", "cpu")
    with pytest.raises(ModelError, match="answered 404"):
        load_model("hf://lab/model", "cpu")


def test_a_card_tells_how_the_operating_point_was_chosen(package):
    manifest = read_manifest(package)
    chosen = {"threshold": 0.25, "threshold_rule": "maximum balanced accuracy on the tuning split"}
    told = "Operating point: 0.25 (maximum balanced accuracy on the tuning split)."
    assert told in model_card(manifest.model_copy(update=chosen))
    assert "Operating point" not in model_card(manifest)


def test_pinned_weights_must_be_those(server, packed):
    packed.rename(server.root / "model")
    digest = json.loads((server.root / "model" / "model.json").read_text())["weights_sha256"]
    fetch_model(f"{server.url}/model#sha256={digest}")
    with pytest.raises(ModelError, match="has changed since it was pinned"):
        fetch_model(f"{server.url}/model#sha256={'0' * 64}")


def test_a_package_that_was_replaced_on_its_server_is_fetched_again_where_it_is_pinned(
    server, packed
):
    place = packed.rename(server.root / "model")
    manifest = json.loads((place / "model.json").read_text())
    old = manifest["weights_sha256"]
    address = f"{server.url}/model#sha256="
    fetch_model(address + old)
    tensors = load_file(place / "weights.safetensors")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, place / "weights.safetensors")
    new = sha256((place / "weights.safetensors").read_bytes()).hexdigest()
    (place / "model.json").write_text(json.dumps({**manifest, "weights_sha256": new}))
    folder = fetch_model(address + old)  # as long as the old one is there and is asked for
    assert fetch_model(address + new) == folder
    assert json.loads((folder / "model.json").read_text())["weights_sha256"] == new
    with pytest.raises(ModelError, match="has changed since it was pinned"):
        fetch_model(address + old)
    asked = len(server.asked)
    assert fetch_model(address + new) == folder  # it was not lost over what is not there
    assert len(server.asked) == asked


def test_altered_or_cut_weights_leave_nothing_in_the_cache(server, packed, cache):
    place = packed.rename(server.root / "model")
    weights = place / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"oops")
    with pytest.raises(ModelError, match="altered or cut short"):
        fetch_model(f"{server.url}/model")
    assert list((cache / "models").iterdir()) == []


def test_another_golden_output_is_noticed_when_a_model_arrives(server, packed, cache):
    """Of a family whose code differs from its maker's: the files are right, the output is not."""
    place = packed.rename(server.root / "model")
    golden = place / "golden.safetensors"
    tensors = load_file(golden)
    tensors["probabilities"] += torch.tensor([2e-4, -2e-4])
    save_file(tensors, golden)
    write_sums(place)
    with pytest.raises(ModelError, match=r"does not give its golden output: it differs by 0\.0002"):
        load_model(f"{server.url}/model", "cpu")
    assert list((cache / "models").iterdir()) == []


def test_what_cannot_run_here_is_kept_and_says_so(server, packed, caplog):
    place = packed.rename(server.root / "model")
    manifest = json.loads((place / "model.json").read_text())
    (place / "model.json").write_text(json.dumps({**manifest, "family": "of-a-plugin"}))
    write_sums(place)
    folder = locate_model(f"{server.url}/model")
    said = f"its golden output was not replayed: model {manifest['name']!r}: unknown model family"
    assert said in caplog.text
    assert (folder / "weights.safetensors").is_file()


def test_a_card_that_was_altered_on_its_way_is_noticed(server, packed, cache):
    place = packed.rename(server.root / "model")
    (place / "README.md").write_text("Cures everything.")
    with pytest.raises(ModelError, match=r"README.md is not the file that was packed"):
        load_model(f"{server.url}/model", "cpu")
    assert list((cache / "models").iterdir()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hf://lab", "expected hf://owner/repository"),
        ("https://host/model#md5=1", "sha256="),
        ("http://example.org/model", "https:// only"),
        ("demo-mil", r"demo-mil: expected hf://owner/repository or https://host/folder"),
        ("file:///etc", "expected hf://owner/repository or https://host/folder"),
        ("file://localhost/etc", "expected hf://owner/repository or https://host/folder"),
        ("https:///model", "names no host"),
        ("https://[::1/model", "is not an address"),
        ("https://host:port/model", "is not an address"),
        ("https://host/my model", "has a space"),
        ("https://host/modèle", "a letter that addresses cannot have"),
    ],
)
def test_references_of_another_form_are_refused(text, message):
    with pytest.raises(ModelError, match=message):
        read_reference(text)


def test_a_hub_is_reached_by_https_too(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "file:///srv/hub")
    with pytest.raises(ModelError, match="HF_ENDPOINT file:///srv/hub: expected https://host"):
        read_reference("hf://lab/model")
    monkeypatch.setenv("HF_ENDPOINT", "")  # as if it were not set
    assert read_reference("hf://lab/model").base.startswith("https://huggingface.co/lab/")


def test_no_server_is_said_in_one_sentence(server):
    server.shutdown()
    server.server_close()
    with pytest.raises(ModelError, match=r"cannot be fetched .*check the address and the network"):
        fetch_model(f"{server.url}/model")


def test_a_server_that_sends_on_to_an_address_without_encryption_is_not_followed(server):
    server.sends_on = "http://models.example"
    with pytest.raises(ModelError, match=r"sends on to http://models.example.*https:// only"):
        fetch_model(f"{server.url}/tiny")
    server.sends_on = "file:///etc"
    with pytest.raises(ModelError, match="not allowed"):
        fetch_model(f"{server.url}/tiny")
    assert server.asked == ["/tiny/model.json"] * 2


def test_figures_of_other_weights_of_the_same_name_are_refused(package, tmp_path):
    evaluation = tmp_path / "evaluation"
    evaluation.mkdir()
    name = read_manifest(package).name
    (evaluation / "metrics.json").write_text(json.dumps({"models": {name: {"auc": 0.9}}}))
    record = {"slides": [], "weights": {name: {"sha256": "0" * 64}}}
    (evaluation / "evaluation.json").write_text(json.dumps(record))
    given = {"licence": "MIT", "intended_use": "Tests.", "evaluation": evaluation}
    with pytest.raises(ModelError, match=r"another model .* sha256 0{12}…"):
        pack(package, tmp_path / "up", **given)
    record["weights"][name]["sha256"] = read_manifest(package).weights_sha256
    (evaluation / "evaluation.json").write_text(json.dumps(record))
    packed = pack(package, tmp_path / "up", **given)
    assert read_manifest(packed).metrics["evaluation"] == {"auc": 0.9}


def test_names_of_weight_files_stay_behind(tiny, tmp_path):
    several = {"resnet18": "Meier.pth", "resnet34": "imagenet"}
    for source, expected in (
        ("Meier, J.safetensors", "a file"),
        ("torchvision IMAGENET1K_V1", "torchvision IMAGENET1K_V1"),
        (several, {"resnet18": "a file", "resnet34": "imagenet"}),
    ):
        tiny.card = {"training_data": {"backbone_weights": source}}
        folder = save_model(tiny, tmp_path / "own" / tiny.name)
        packed = pack(folder, tmp_path / "up", licence="MIT", intended_use="Tests.")
        assert read_manifest(packed).training_data == {"backbone_weights": expected}
        assert not [path for path in packed.iterdir() if b"Meier" in path.read_bytes()]


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\n"])
def test_a_list_that_was_cut_or_is_no_text_proves_nothing(packed, content):
    (packed / "SHA256SUMS").write_bytes(content)
    with pytest.raises(ModelError, match=r"SHA256SUMS.* (does not list|not a line)"):
        check_package(packed)


@pytest.mark.parametrize("answer", [403, 410, "html"])
def test_servers_say_in_several_ways_that_an_optional_file_is_absent(server, packed, answer):
    for name in ("README.md", "SHA256SUMS", "golden.safetensors"):
        (packed / name).unlink()
    packed.rename(server.root / "model")
    server.absent = answer
    folder = fetch_model(f"{server.url}/model")
    assert {path.name for path in folder.iterdir()} == {"model.json", "weights.safetensors"}


def test_a_length_that_is_no_number_is_not_believed(server, packed):
    packed.rename(server.root / "model")
    server.length = "abc"
    assert (fetch_model(f"{server.url}/model") / "model.json").is_file()


@pytest.mark.parametrize(
    "picture",
    [
        torch.zeros(9, dtype=torch.uint8),
        torch.zeros(8, 8, 4, dtype=torch.uint8),
        torch.ones(8, 8, 3),
    ],
)
def test_a_golden_input_that_is_no_picture_is_refused(packed, picture):
    kept = load_file(packed / "golden.safetensors")
    save_file({**kept, "input": picture}, packed / "golden.safetensors")
    write_sums(packed)
    with pytest.raises(ModelError, match="expected a picture"):
        check_package(packed)
