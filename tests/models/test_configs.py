"""What a config says of the form of the weights: nothing that changes numbers, or it is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lors_cli.errors import RequestError
from lors_cli.models import configs, load

NO_NAMES: list[Any] = ["LlamaForCausalLM", [1], {}, 5]
DENSE = {"format": "dense", "sparsity_structure": "2:4", "global_sparsity": 0.5, "targets": ["Linear"], "ignore": []}
PLAIN: list[dict[str, Any]] = [
    {"sparsity_config": DENSE},
    {"quant_method": "compressed-tensors", "sparsity_config": DENSE},
    {
        "quant_method": "compressed-tensors",
        "format": "dense",
        "config_groups": {},
        "kv_cache_scheme": None,
        "quantization_status": "frozen",
        "global_compression_ratio": 1.2,
        "ignore": [],
        "version": "0.9",
        "sparsity_config": {**DENSE, "format": "sparse-24-bitmask"},
    },
]
CODES: list[dict[str, Any]] = [
    {"quant_method": "gptq", "bits": 4},
    {"quant_method": "compressed-tensors", "format": "dense"},
    {"quant_method": "compressed-tensors", "config_groups": {"group_0": {}}, "sparsity_config": DENSE},
    {"quant_method": "compressed-tensors", "format": "float-quantized", "sparsity_config": DENSE},
    {"quant_method": "compressed-tensors", "kv_cache_scheme": {"num_bits": 8}, "sparsity_config": DENSE},
    {"quant_method": "compressed-tensors", "transform_config": {"r1": {}}, "sparsity_config": DENSE},
    {"quant_method": "bitsandbytes", "load_in_4bit": True, "sparsity_config": DENSE},
]


def with_section(path: Path, key: str, section: dict[str, Any]) -> Path:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, key: section}))
    return path


@pytest.mark.parametrize("key", ["compression_config", "quantization_config"])
def test_zeros_stored_plainly_are_plain(make_model: Callable[..., Path], tmp_path: Path, key: str) -> None:
    plain = load.load_model(make_model(tmp_path / "plain"), "auto", torch.device("cpu"))
    for number, section in enumerate(PLAIN):
        path = with_section(make_model(tmp_path / str(number)), key, section)
        model = load.load_model(path, "auto", torch.device("cpu"))
        assert torch.equal(model(torch.arange(9)[None]).logits, plain(torch.arange(9)[None]).logits)
        assert not hasattr(load.skeleton(path).config, key)


@pytest.mark.parametrize("key", ["compression_config", "quantization_config"])
@pytest.mark.parametrize("section", CODES)
def test_codes_are_refused(make_model: Callable[..., Path], tmp_path: Path, key: str, section: dict[str, Any]) -> None:
    path = with_section(make_model(tmp_path / "model"), key, section)
    for read in (lambda: load.skeleton(path), lambda: load.load_model(path, "auto", torch.device("cpu"))):
        with pytest.raises(RequestError, match=f"{key} in"):
            read()


def test_zeros_stored_as_a_bitmask_are_refused_for_what_they_are(
    make_model: Callable[..., Path], tmp_path: Path
) -> None:
    path = with_section(make_model(tmp_path / "model"), "compression_config", PLAIN[0])
    content = load_file(path / "model.safetensors")
    name = "model.layers.0.mlp.up_proj"
    weight = content.pop(f"{name}.weight")
    packed = {
        "compressed": weight[weight > 0],
        "bitmask": torch.zeros(64, 4, dtype=torch.uint8),
        "shape": torch.ones(2),
    }
    content |= {f"{name}.{part}": tensor for part, tensor in packed.items()}
    save_file(content, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RequestError, match="save_compressed=False"):
        load.load_model(path, "auto", torch.device("cpu"))


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "int8"])
def test_a_dtype_that_is_not_plain(make_model: Callable[..., Path], tmp_path: Path, dtype: str) -> None:
    path = make_model(tmp_path / "model")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "dtype": dtype}))
    with pytest.raises(RequestError, match=dtype):
        load.skeleton(path)


def test_sparsity_only() -> None:
    assert not configs.is_sparsity_only(None)
    assert not configs.is_sparsity_only({"sparsity_config": {}})


@pytest.mark.parametrize(
    ("file", "content", "key"),
    [
        ("config.json", {"return_dict": False}, "return_dict"),
        ("config.json", {"is_encoder_decoder": True}, "is_encoder_decoder"),
        ("config.json", {"add_cross_attention": True}, "add_cross_attention"),
        *(("config.json", {"architectures": value}, "architectures") for value in NO_NAMES),
        ("generation_config.json", {"watermarking_config": {"other": 1}}, "generation"),
        ("generation_config.json", {"cache_implementation": "other"}, "generation"),
        ("generation_config.json", {"pad_token_id": "x"}, "generation"),
    ],
)
def test_what_makes_another_kind_of_model(
    make_model: Callable[..., Path], tmp_path: Path, file: str, content: dict[str, Any], key: str
) -> None:
    path = make_model(tmp_path / "model") / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **content}))
    with pytest.raises(RequestError, match=key) as caught:
        load.skeleton(path.parent)
    assert caught.value.problems[0].file == str(path)
