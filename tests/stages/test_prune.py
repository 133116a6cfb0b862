"""``lors prune`` against an independent run of the published algorithms, on the same tokens."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from typer.testing import Result

from lors_cli import pruning
from lors_cli.data import builtin
from lors_cli.models import memory

Lors = Callable[..., Result]
WriteConfig = Callable[..., Path]

CALIBRATED = [name for name, row in pruning.METHODS.items() if not row.reads_mask]
PATTERNS = [0.5, 0.75, "2:4", "4:8", "1:4", "3:4"]


def weights(directory: Path) -> dict[str, Tensor]:
    """The block linears' weights, read without the project."""
    by_name = {}
    for file in directory.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            names = tensors.keys()
            by_name.update({k: tensors.get_tensor(k) for k in names if ".layers." in k and "norm" not in k})
    return by_name


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("method", CALIBRATED)
def test_zeros_are_counted_from_the_files(
    lors: Lors, write_config: WriteConfig, tmp_path: Path, method: str, pattern: Any
) -> None:
    lors("prune", write_config(prune__method=method, prune__sparsity=pattern))
    by_name = weights(tmp_path / "run/pruned")
    assert len(by_name) == 14
    for name, weight in by_name.items():
        assert not torch.signbit(weight[weight == 0]).any()
        if isinstance(pattern, str):
            n, m = map(int, pattern.split(":"))
            assert ((weight != 0).view(len(weight), -1, m).sum(-1) == n).all(), name
        else:
            assert abs(float((weight == 0).float().mean()) - pattern) < 1 / weight.shape[1]


def reference(model: nn.Module, ids: Tensor, method: str) -> None:
    """Wanda and SparseGPT as published, on a whole model with hooks: 2:4, each block after the ones before it."""
    for layer in model.model.layers:  # type: ignore[union-attr]
        linears = {name: m for name, m in layer.named_modules() if isinstance(m, nn.Linear)}
        seen: dict[str, list[Tensor]] = {name: [] for name in linears}
        hooks = [
            linear.register_forward_pre_hook(lambda _m, x, kept=seen[name]: kept.append(x[0].flatten(0, -2).double()))
            for name, linear in linears.items()
        ]
        for window in ids:
            model(window[None])
        for hook in hooks:
            hook.remove()
        for name, linear in linears.items():
            x, w = torch.cat(seen[name]), linear.weight.data.double()
            if method == "wanda":
                score = (w.abs() * x.square().sum(0).sqrt()).view(len(w), -1, 4)
                drop = score.argsort(dim=-1)[..., :2]
                w = w.view_as(score).scatter(-1, drop, 0).view_as(w)
            else:
                h = 2 * x.T @ x / len(x)
                dead = h.diagonal() == 0
                h[dead, dead] = 1
                w[:, dead] = 0
                h += 0.01 * h.diagonal().mean() * torch.eye(len(h))
                u = torch.linalg.cholesky(torch.linalg.inv(h), upper=True)
                for j in range(w.shape[1]):
                    if j % 4 == 0:
                        drop = (w[:, j : j + 4] / u.diagonal()[j : j + 4]).square().argsort(dim=1)[:, :2] + j
                    gone = (drop == j).any(dim=1)
                    error = w[:, j].masked_fill(~gone, 0) / u[j, j]
                    w[:, j:] -= error[:, None] * u[j, j:]
                    w[gone, j] = 0
            linear.weight.data = w.float()


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
@torch.no_grad()
def test_agrees_with_an_independent_implementation(
    lors: Lors, write_config: WriteConfig, dense: Path, tmp_path: Path, method: str
) -> None:
    lors("prune", write_config(prune__method=method))
    ours = weights(tmp_path / "run/pruned")
    tokenizer = AutoTokenizer.from_pretrained(dense)
    ids = tokenizer("\n\n".join(builtin.texts("train")), add_special_tokens=False)["input_ids"][: 8 * 32]
    model = AutoModelForCausalLM.from_pretrained(dense)
    reference(model, torch.tensor(ids).view(8, 32), method)
    theirs = {name: w for name, w in model.state_dict().items() if name in ours}
    assert theirs.keys() == ours.keys()
    agreed = sum(int(((ours[k] == 0) == (theirs[k] == 0)).sum()) for k in ours)
    assert agreed >= 0.999 * sum(w.numel() for w in ours.values())
    if agreed == sum(w.numel() for w in ours.values()):
        for name in ours:
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-5)


def test_what_is_not_pruned_is_untouched(lors: Lors, write_config: WriteConfig, dense: Path, tmp_path: Path) -> None:
    lors("prune", write_config())
    run = tmp_path / "run/pruned"
    before = AutoModelForCausalLM.from_pretrained(dense).state_dict()
    after = AutoModelForCausalLM.from_pretrained(run).state_dict()
    for name, old in before.items():
        if "proj" in name:
            kept = after[name] != 0
            assert torch.equal(after[name][kept], old[kept])
        else:
            assert torch.equal(after[name], old)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (run / name).read_bytes() == (dense / name).read_bytes()


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": False},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32, "pad_token_id": 0},
    "mistral": {"sliding_window": 16},
    "qwen2": {},
    "qwen3": {},
    "phi3": {"pad_token_id": 0},
    "gemma2": {"sliding_window": 16, "query_pre_attn_scalar": 8},
}


@pytest.mark.parametrize("kind", list(ARCHITECTURES))
def test_other_architectures_go_the_whole_way(
    lors: Lors, write_config: WriteConfig, dense: Path, tmp_path: Path, kind: str
) -> None:
    settings = {
        "vocab_size": 384,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
        **ARCHITECTURES[kind],
    }
    torch.manual_seed(0)
    model = tmp_path / kind
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings)).save_pretrained(model)
    AutoTokenizer.from_pretrained(dense).save_pretrained(model)
    lors("run", write_config(model=str(model)))
    assert "2:4" in lors("inspect", tmp_path / "run/merged").stdout
    for weight in weights(tmp_path / "run/merged").values():
        assert weight.dim() != 2 or ((weight != 0).view(len(weight), -1, 4).sum(-1) <= 2).all()


def test_a_mixture_of_experts_is_refused(lors: Lors, write_config: WriteConfig, dense: Path, tmp_path: Path) -> None:
    settings = {"vocab_size": 384, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = AutoConfig.for_model("mixtral", **settings, num_attention_heads=4, num_key_value_heads=2)
    model = tmp_path / "mixtral"
    AutoModelForCausalLM.from_config(config).save_pretrained(model)
    AutoTokenizer.from_pretrained(dense).save_pretrained(model)
    assert "a mixture of 8 experts" in lors("prune", write_config(model=str(model)), status=2).stderr


def test_random_sampling_and_a_seed(lors: Lors, write_config: WriteConfig, tmp_path: Path) -> None:
    masks = []
    for seed in (0, 0, 1):
        config = write_config(seed=seed, prune__calibration__sampling="random")
        lors("prune", config, "--force")
        masks.append({name: weight != 0 for name, weight in weights(tmp_path / "run/pruned").items()})
    assert all(torch.equal(masks[0][name], masks[1][name]) for name in masks[0])
    assert not all(torch.equal(masks[0][name], masks[2][name]) for name in masks[0])


BAD: list[tuple[dict[str, Any], list[str]]] = [
    ({"prune__overrides": [{"match": "*.gate_prj", "skip": True}]}, ["prune.overrides[0].match", "gate_proj"]),
    ({"prune__overrides": [{"match": "*"}]}, ["prune.overrides", "either sparsity or skip"]),
    ({"prune__overrides": [{"match": "*", "skip": True}]}, ["prune.overrides", "all linears are skipped"]),
    ({"prune__overrides": [{"match": "*.o_proj", "sparsity": "3:7"}]}, ["M dividing", "o_proj"]),
    ({"prune__sparsity": ...}, ["sparsity: a fraction"]),
    ({"prune__method": "from_mask"}, ["mask: PATH"]),
    ({"prune__method": "from_mask", "prune__mask": "/nowhere"}, ["prune.mask", "does not exist"]),
    ({"prune__mask": "/nowhere"}, ["because wanda makes its own"]),
    ({"prune__profile": "owl"}, ["fraction as sparsity"]),
    ({"prune__profile": "owl", "prune__sparsity": 0.95}, ["profile_range", "cannot have a mean"]),
    ({"prune__variant": True}, ["variant: false"]),
    ({"prune__permute": True}, ["no permute", "wanda"]),
    ({"prune__method": "ria", "prune__sparsity": 0.5, "prune__permute": True}, ["permute: false"]),
    ({"prune__method": "magnitude", "prune__repair": "dsnot", "prune__calibration": ...}, ["because dsnot looks"]),
    ({"prune__exponent": 0.7}, ["no exponent"]),
    (
        {"prune__method": "from_mask", "prune__mask": "x", "prune__profile": "owl", "prune__sparsity": 0.5},
        ["no profile, because the mask says"],
    ),
    ({"prune__tune_blocks": {"batch_size": 9}}, ["prune.tune_blocks.batch_size", "at most 8 windows"]),
    ({"prune__tune_blocks": {"steps": 0}}, ["prune.tune_blocks.steps"]),
    ({"prune__tune_blocks": {"learning_rate": 0}}, ["prune.tune_blocks.learning_rate"]),
    ({"prune__tune_blocks": {"epochs": 1}}, ["prune.tune_blocks.epochs"]),
    (
        {"prune__tune_blocks": {}, "prune__method": "magnitude", "prune__calibration": ...},
        ["prune.calibration", "because tune_blocks looks at activations"],
    ),
    (
        {"prune__tune_blocks": {}, "prune__method": "structured_random", "prune__sparsity": ..., "prune__ratio": 0.5},
        ["no tune_blocks: structured_random"],
    ),
    ({"prune__tune_blocks": {"target": "linear"}}, ["prune.tune_blocks.target", "dense"]),
]


@pytest.mark.parametrize(("changes", "parts"), BAD, ids=str)
def test_wrong_requests(
    lors: Lors, write_config: WriteConfig, tmp_path: Path, changes: dict[str, Any], parts: list[str]
) -> None:
    refused = lors("prune", write_config(**changes), status=2)
    for part in ("expected: ", "got: ", "remedy: ", *parts):
        assert part in refused.stderr, refused.stderr
    assert not (tmp_path / "run").exists()


def test_masks_of_the_wrong_shape(lors: Lors, write_config: WriteConfig, dense: Path, tmp_path: Path) -> None:
    wrong = {name: tensor[:1] for name, tensor in load_file(dense / "model.safetensors").items() if "proj" in name}
    save_file(wrong, tmp_path / "masks.safetensors")
    config = write_config(prune__method="from_mask", prune__mask=str(tmp_path / "masks.safetensors"))
    refused = lors("prune", config, status=2).stderr
    assert "prune.mask" in refused
    assert "shape (1, 32)" in refused


def test_too_little_disk_or_memory_is_said_before_the_work(
    lors: Lors, write_config: WriteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_host", lambda: 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    refused = lors("prune", write_config(), status=2).stderr
    for part in ("output_dir", "free disk space", "free host memory", "prune.states: disk"):
        assert part in refused
    assert not (tmp_path / "run").exists()


def test_the_owl_profile_has_the_asked_mean(lors: Lors, write_config: WriteConfig, tmp_path: Path) -> None:
    lors("prune", write_config(prune__sparsity=0.5, prune__profile="owl", prune__method="magnitude"))
    manifest = json.loads((tmp_path / "run/pruned/lors.json").read_text())
    levels = {name.split(".")[2]: float(facts["asked"]) for name, facts in manifest["modules"].items()}
    assert levels["0"] != levels["1"]
    assert abs(levels["0"] - levels["1"]) == pytest.approx(0.16, abs=1e-4)
    assert sum(levels.values()) / 2 == pytest.approx(0.5, abs=1e-4)
    assert manifest["sparsity"] == pytest.approx(0.5, abs=1e-3)


def test_an_update_says_what_it_came_to(
    lors: Callable[..., Result], write_config: Callable[..., Path], tmp_path: Path
) -> None:
    config = write_config(prune__update="least_squares")
    assert "update least_squares" in lors("prune", config, "--dry-run").stdout
    done = lors("prune", config)
    assert "prune: update: mean error of 14 linears" in done.stderr
    assert "limit the rank" not in done.stderr
    manifest = json.loads((tmp_path / "run/pruned/lors.json").read_text())
    for name, facts in manifest["modules"].items():
        update = facts["update"]
        assert 0 < update["error_after"] < update["error_before"], name
        assert update["damping"] == 0.1
    few = lors("prune", config, "prune.calibration.samples=1", f"output_dir={tmp_path}/few")
    assert "32 calibration tokens limit the rank of Hessians; " in few.stderr
