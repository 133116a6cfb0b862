"""``lors push`` against a local server that stands for the hub."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, constants
from typer.testing import Result

from lors_cli.artifacts import digest
from tests.tools.hub import REPO, Hub

Lors = Callable[..., Result]
WriteConfig = Callable[..., Path]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that the client is logged in to."""
    stand_in = Hub()

    class Handler(BaseHTTPRequestHandler):
        def respond(self) -> None:
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            else:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, value = stand_in.answer(self.command, self.path, body)
            text = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = respond

        def log_message(self, *args: Any) -> None:
            """Nothing on the screen."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    stand_in.url = f"http://127.0.0.1:{server.server_port}"
    online(monkeypatch, stand_in.url)
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
    yield stand_in
    server.shutdown()
    server.server_close()
    thread.join()


def online(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)


@pytest.fixture
def pruned(lors: Lors, write_config: WriteConfig, tmp_path: Path) -> Path:
    lors("prune", write_config(prune={"method": "magnitude", "sparsity": "2:4"}))
    return tmp_path / "run/pruned"


def test_the_files_and_the_card_are_sent(lors: Lors, hub: Hub, pruned: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in pruned.iterdir()}
    shown = lors("push", pruned, REPO, "--message", "the first")
    assert shown.stdout.strip() == f"{hub.url}/{REPO}/commit/abc"
    assert hub.created == {"name": "sparse", "organization": "someone"}  # public, as the hub has it by default
    assert hub.commits[0][0]["value"]["summary"] == "the first"
    files = hub.files()
    assert files.keys() == {path.name for path in before}
    for path, content in before.items():
        assert path.read_bytes() == content  # the directory is as it was
        if path.name not in ("README.md", "lors.json"):
            assert files[path.name] == content
    sent = json.loads(files["lors.json"])
    assert sent["input_paths"] == {"model": "model"}
    assert sent["config"]["output_dir"] == "run"
    assert sent["digest"] == digest.of_directory(pruned)
    assert str(tmp_path).encode() not in b"".join(files.values())
    assert f'from_pretrained("{REPO}")' in files["README.md"].decode()
    assert "## Results" not in files["README.md"].decode()


def test_results_are_of_just_this_model(lors: Lors, hub: Hub, write_config: WriteConfig, tmp_path: Path) -> None:
    config, pruned = write_config(eval__models=["dense", "pruned"]), tmp_path / "run/pruned"
    lors("prune", config)
    lors("eval", config)
    value = json.loads((tmp_path / "run/eval/results.json").read_text())["models"]["pruned"]["perplexity"]["value"]
    lors("push", pruned, REPO)
    card = ModelCard(hub.files()["README.md"].decode())
    data: Any = card.data
    (result,) = data.eval_results
    assert (data.model_name, result.metric_type, result.metric_value) == ("sparse", "perplexity", value)
    assert "This model is `pruned`." in card.text
    assert f"{value:.2f}" in card.text
    assert card.text.index("## Results") < card.text.index("## How it was made")
    assert "## Results" not in (pruned / "README.md").read_text()

    for change in ("prune.sparsity=1:4", "prune.sparsity=2:4"):
        lors("prune", config, change, "--force")
        shown = lors("push", pruned, REPO, "--dry-run")
        assert ("## Results" in shown.stdout) == (change == "prune.sparsity=2:4")
    results = tmp_path / "run/eval/results.json"
    results.write_text(results.read_text().replace(str(value), "1.0"))
    shown = lors("push", pruned, REPO, "--dry-run")
    assert "## Results" not in shown.stdout
    assert "damaged or edited" in shown.stderr


def test_a_model_that_was_evaluated_under_its_path_gives_no_path_away(
    lors: Lors, hub: Hub, write_config: WriteConfig, pruned: Path, tmp_path: Path
) -> None:
    lors("eval", write_config(eval__models=[str(pruned)], prune=...))
    lors("push", pruned, REPO)
    assert str(tmp_path).encode() not in b"".join(hub.files().values())
    assert "This model is `pruned`." in hub.files()["README.md"].decode()


def test_an_adapter_goes_up_without_the_place_of_its_model(
    lors: Lors, hub: Hub, write_config: WriteConfig, tmp_path: Path
) -> None:
    config, adapter = write_config(train__report_to=["tensorboard"]), tmp_path / "run/adapter"
    lors("prune", config)
    lors("train", config)
    lors("push", adapter, REPO)
    files = hub.files()
    assert files.keys() == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "lors.json",
        "training_log.jsonl",
    }
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "pruned"
    there = tmp_path / "downloaded"
    there.mkdir()
    for name, content in files.items():
        (there / name).write_bytes(content)
    assert json.loads(files["lors.json"])["digest"] == digest.of_directory(there) != digest.of_directory(adapter)
    lors("merge", config, f"merge.adapter={there}")  # it is accepted as what it is
    shown = lors("push", adapter, REPO, "--dry-run").stdout
    assert "not sent: tensorboard" in shown


def test_a_dry_run_needs_neither_a_token_nor_a_network(lors: Lors, hub: Hub, pruned: Path, monkeypatch: Any) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    shown = lors("push", pruned, REPO, "--dry-run").stdout
    size = (pruned / "model.safetensors").stat().st_size
    assert f"{size:,}" in shown
    assert "changed copy" in shown
    assert "library_name: transformers" in shown
    assert hub.requests == []


def test_branches_pull_requests_and_private_repositories(lors: Lors, hub: Hub, pruned: Path) -> None:
    lors("push", pruned, REPO, "--revision", "v2")
    assert f"POST /api/models/{REPO}/branch/v2" in hub.requests
    assert any(request.startswith(f"POST /api/models/{REPO}/commit/v2") for request in hub.requests)
    assert lors("push", pruned, REPO, "--create-pr").stdout.strip() == f"{hub.url}/{REPO}/discussions/1"
    assert len(hub.commits) == 2
    refused = lors("push", pruned, REPO, "--private", status=2)
    assert "which is public" in refused.stderr
    assert hub.created["visibility"] == "private"
    assert len(hub.commits) == 2
    hub.info["private"] = True
    lors("push", pruned, REPO, "--private")
    assert len(hub.commits) == 3


def test_weights_are_not_mixed_with_others(lors: Lors, hub: Hub, pruned: Path) -> None:
    hub.info["siblings"] = [{"rfilename": "README.md"}, {"rfilename": "model-00001-of-00002.safetensors"}]
    refused = lors("push", pruned, REPO, status=2)
    assert "with model-00001-of-00002.safetensors" in refused.stderr
    assert hub.commits == []
    hub.info["siblings"] = [{"rfilename": "README.md"}, {"rfilename": "model.safetensors"}]
    lors("push", pruned, REPO)


@pytest.mark.parametrize(
    ("status", "remedy"),
    [(401, "hf auth login"), (403, "right to write"), (404, "no such repository"), (500, "try again later")],
)
def test_the_hubs_refusals_are_told(lors: Lors, hub: Hub, pruned: Path, status: int, remedy: str) -> None:
    hub.refusal = status
    refused = lors("push", pruned, REPO, status=1)
    assert f"{REPO} was not pushed" in refused.stderr
    assert remedy in refused.stderr
    assert "Traceback" not in refused.stderr


def test_no_connection_is_told(lors: Lors, pruned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    online(monkeypatch, "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
    refused = lors("push", pruned, REPO, status=1)
    assert "check the network and http://127.0.0.1:9" in refused.stderr


def test_what_is_wrong_is_said_before_anything_is_sent(
    lors: Lors, hub: Hub, pruned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "owner/name" in lors("push", pruned, "not a/repo/id", status=2).stderr
    assert "has no lors.json" in lors("push", tmp_path, REPO, status=2).stderr
    assert "which is not a directory" in lors("push", tmp_path / "nowhere", REPO, status=2).stderr
    lors("pack", pruned, tmp_path / "packed")
    assert "unpack it first" in lors("push", tmp_path / "packed", REPO, status=2).stderr
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "offline mode" in lors("push", pruned, REPO, status=2).stderr
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    assert "hf auth login" in lors("push", pruned, REPO, status=2).stderr
    (pruned / "README.md").write_text("---\n[broken: {\n---\n")
    assert "correct its first lines" in lors("push", pruned, REPO, "--dry-run", status=2).stderr
    config = json.loads((pruned / "config.json").read_text())
    (pruned / "config.json").write_text(json.dumps(config))
    assert "damaged or edited since" in lors("push", pruned, REPO, "--dry-run", status=2).stderr
    assert hub.requests == []


def test_a_directory_from_before_there_were_cards_gets_one(lors: Lors, hub: Hub, pruned: Path) -> None:
    (pruned / "README.md").unlink()
    lors("push", pruned, REPO)
    assert "# model, 50% sparse (2:4)" in hub.files()["README.md"].decode()
    assert not (pruned / "README.md").exists()


def test_only_what_lors_wrote_goes_up(lors: Lors, hub: Hub, pruned: Path, tmp_path: Path) -> None:
    before = {path.name for path in pruned.iterdir()}
    for name in ("vocab_notes.txt", ".env", ".lock", "lors.log", "model.safetensors.partial", "x.npy", "evil.pkl"):
        (pruned / name).write_text("hf_canary")
    (pruned / "work").mkdir()
    (pruned / "work/state").write_text("hf_canary")
    lors("push", pruned, REPO)
    assert hub.files().keys() == before
    assert "not sent: " in (shown := lors("push", pruned, REPO, "--dry-run").stdout)
    assert "vocab_notes.txt" in shown.partition("not sent: ")[2]
    (pruned / "LICENSE").symlink_to(tmp_path / "config.yaml")
    assert "leads out of" in lors("push", pruned, REPO, status=2).stderr


def test_what_belongs_to_the_model_goes_up_and_nothing_else(
    lors: Lors, hub: Hub, make_model: Callable[..., Path], write_config: WriteConfig, tmp_path: Path
) -> None:
    model = make_model(tmp_path / "model")
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates/tool.jinja").write_text("{{ messages }}")
    for name in ("LICENSE", "NOTICE.txt", "USE_POLICY.md"):
        (model / name).write_text("its terms")
    for name in ("notes.md", "token", "optimizer.pt", "own.py", "x.npy", "logo.png"):
        (model / name).write_text("not of the model")
    lors("prune", write_config(model=str(model), prune={"method": "magnitude", "sparsity": "2:4"}))
    lors("push", tmp_path / "run/pruned", REPO)
    assert set(hub.files()) == {
        *("LICENSE", "NOTICE.txt", "USE_POLICY.md", "additional_chat_templates/tool.jinja", "chat_template.jinja"),
        *("README.md", "config.json", "generation_config.json", "lors.json", "model.safetensors"),
        *("tokenizer.json", "tokenizer_config.json"),
    }
