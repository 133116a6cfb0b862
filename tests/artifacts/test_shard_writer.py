"""What the writer leaves on the disk is what transformers' ``save_pretrained`` leaves, byte by byte."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from lors_cli.artifacts import model_files, tensors
from lors_cli.artifacts.shard_writer import ShardWriter
from lors_cli.errors import LorsError
from lors_cli.models import load, weights

ONE = 5 * 10**9
SEVERAL = 12_000


def model(*, tied: bool = True, dtype: torch.dtype = torch.float32, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config).to(dtype)


def saved(given: PreTrainedModel, directory: Path, shard: int) -> dict[str, bytes]:
    given.save_pretrained(directory, max_shard_size=shard)
    return files(directory)


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if "safetensors" in path.name}


def content(given: PreTrainedModel) -> dict[str, Tensor]:
    return {name: given.state_dict()[name] for name in load.layout(given)}


def written(given: PreTrainedModel, directory: Path, shard: int, *, backwards: bool = False) -> dict[str, bytes]:
    directory.mkdir(exist_ok=True)
    writer = ShardWriter(directory, load.layout(given), shard)
    items = list(content(given).items())
    for name, tensor in reversed(items) if backwards else items:
        writer.write(name, tensor)
    return files(directory)


@pytest.mark.parametrize("shard", [ONE, SEVERAL, 6000, 1])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backwards", [False, True])
def test_the_files_are_those_of_a_whole_save(
    tmp_path: Path, shard: int, tied: bool, dtype: torch.dtype, backwards: bool
) -> None:
    given = model(tied=tied, dtype=dtype)
    expected = saved(given, tmp_path / "whole", shard)
    assert (len(expected) > 2) == (shard < ONE)
    assert written(given, tmp_path / "parts", shard, backwards=backwards) == expected


def test_from_the_skeleton_of_a_directory(tmp_path: Path) -> None:
    expected = saved(model(tied=True, dtype=torch.bfloat16), tmp_path / "whole", SEVERAL)
    skeleton = load.skeleton(tmp_path / "whole")
    source = weights.open_weights(tmp_path / "whole", skeleton, "model")
    (tmp_path / "parts").mkdir()
    writer = ShardWriter(tmp_path / "parts", load.layout(skeleton), SEVERAL)
    for name in load.layout(skeleton):
        writer.write(name, source.tensor(name))
    assert files(tmp_path / "parts") == expected


def test_mixed_dtypes_are_laid_out_as_the_library_does(tmp_path: Path) -> None:
    mixed = {
        "c.half": torch.randn(3, 5).half(),
        "b.double": torch.randn(7).double(),
        "a.bytes": torch.arange(5, dtype=torch.uint8),
        "z.float": torch.randn(2, 2),
        "ä.float": torch.randn(3),
        "B.float": torch.randn(1, 1, 1),
        "number": torch.tensor(3.5),
    }
    (tmp_path / "parts").mkdir()
    writer = ShardWriter(tmp_path / "parts", {name: tensor.to("meta") for name, tensor in mixed.items()})
    for name, tensor in mixed.items():
        writer.write(name, tensor)
    save_file(mixed, tmp_path / "whole.safetensors", metadata={"format": "pt"})
    assert (tmp_path / "parts" / "model.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


@pytest.mark.parametrize("shard", [ONE, SEVERAL])
def test_an_interrupted_run_goes_on(tmp_path: Path, shard: int) -> None:
    given = model()
    expected = saved(given, tmp_path / "whole", shard)
    items = list(content(given).items())
    (tmp_path / "parts").mkdir()
    first = ShardWriter(tmp_path / "parts", load.layout(given), shard)
    for name, tensor in items[:7]:
        first.write(name, tensor)
    first.write(items[7][0], torch.full_like(items[7][1], 9.0))  # half-done: other values
    again = ShardWriter(tmp_path / "parts", load.layout(given), shard, going_on=True)
    assert {name: len(text) for name, text in files(tmp_path / "parts").items()} == {
        name: len(text) for name, text in expected.items()
    }
    stored = tensors.TensorFiles(tmp_path / "parts")
    assert all(torch.equal(stored.tensor(name), tensor) for name, tensor in items[:7])
    for name, tensor in items[7:]:
        again.write(name, tensor)
    assert files(tmp_path / "parts") == expected
    for name, tensor in items:
        again.write(name, tensor)
    assert files(tmp_path / "parts") == expected


@pytest.mark.parametrize(
    ("damage", "said"),
    [("gone", "is missing"), ("cut", "has 50 bytes"), ("long", "bytes instead of"), ("header", "the header of")],
)
def test_files_that_are_lost_are_told_and_made_again(tmp_path: Path, damage: str, said: str) -> None:
    given = model()
    expected = written(given, tmp_path / "parts", SEVERAL)
    damaged = min((tmp_path / "parts").glob("*.safetensors"))
    content = damaged.read_bytes()
    spoilt = {"cut": content[:50], "long": content + b"more", "header": content.replace(b"F32", b"I32", 1)}
    damaged.unlink()
    if damage in spoilt:
        damaged.write_bytes(spoilt[damage])
    writer = ShardWriter(tmp_path / "parts", load.layout(given), SEVERAL, going_on=True)
    assert said in str(writer.lost)
    assert written(given, tmp_path / "parts", SEVERAL) == expected


@pytest.mark.parametrize("shard", [ONE, SEVERAL])
def test_a_flipped_bit_is_found_by_the_digests_of_what_was_written(tmp_path: Path, shard: int) -> None:
    given = model()
    first = ShardWriter(tmp_path, load.layout(given), shard)
    for name, tensor in content(given).items():
        first.write(name, tensor)
    layer = first.flush("model.layers.1.")
    assert layer.keys() == {name for name in content(given) if name.startswith("model.layers.1.")}
    again = ShardWriter(tmp_path, load.layout(given), shard, going_on=True)
    assert again.lost is None
    assert again.damage(first.digests) is None
    assert again.damage(dict.fromkeys(first.digests, "0")) is not None
    with tensors.open_shard(tmp_path / "model.safetensors" if shard == ONE else again._file[min(layer)].path) as file:
        assert min(layer) in file.keys()  # noqa: SIM118
    path, start = again._file[min(layer)].path, again._file[min(layer)]._start[min(layer)]
    text = bytearray(path.read_bytes())
    text[start] ^= 1
    path.write_bytes(text)
    assert f"does not have the bytes that were written for {min(layer)}" in str(again.damage(layer))


def test_a_tensor_that_is_a_view_is_written_as_it_looks(tmp_path: Path) -> None:
    whole = torch.randn(6, 8)
    shown = {"t": whole.T, "part": whole[1:5:2, ::3], "grown": whole[:1].expand(4, 8)}
    writer = ShardWriter(tmp_path, {name: torch.empty(t.shape, device="meta") for name, t in shown.items()})
    for name, tensor in shown.items():
        writer.write(name, torch.nn.Parameter(tensor))
    stored = tensors.TensorFiles(tmp_path)
    assert all(torch.equal(stored.tensor(name), tensor) for name, tensor in shown.items())


@pytest.mark.parametrize("wrong", [torch.zeros(3, 4), torch.zeros(12), torch.zeros(4, 3).bfloat16(), torch.tensor(0.0)])
def test_another_shape_or_dtype_is_an_error(tmp_path: Path, wrong: Tensor) -> None:
    writer = ShardWriter(tmp_path, {"w": torch.empty(4, 3, device="meta")})
    writer.write("w", torch.ones(4, 3))
    with pytest.raises(ValueError, match=r"^w: "):
        writer.write("w", wrong)
    with pytest.raises(KeyError):
        writer.write("v", torch.ones(4, 3))
    assert torch.equal(tensors.TensorFiles(tmp_path).tensor("w"), torch.ones(4, 3))


def test_a_write_that_fails_says_where_and_how_much_is_free(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, {"w": torch.empty(4, 3, device="meta")})
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(LorsError, match=r"cannot write .*model\.safetensors.* GB free there"):
        writer.write("w", torch.ones(4, 3))
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(LorsError, match=r"cannot write .*model\.safetensors"):
        ShardWriter(tmp_path, {"w": torch.empty(4, 3, device="meta")})


def test_flush_finds_the_files_of_a_prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = model()
    directory = tmp_path / "parts"
    written(given, directory, SEVERAL)
    weight_map: dict[str, str] = json.loads((directory / model_files.INDEX).read_text())["weight_map"]
    places = {name: (directory / file).stat().st_ino for name, file in weight_map.items()}
    flushed: list[int] = []
    monkeypatch.setattr("os.fsync", lambda descriptor: flushed.append(os.fstat(descriptor).st_ino))
    writer = ShardWriter(directory, load.layout(given), SEVERAL)
    for prefix in ("model.layers.1.", "model.layers.2.mlp.", "model.embed_tokens.", "none"):
        flushed.clear()
        writer.flush(prefix)
        assert sorted(flushed) == sorted({place for name, place in places.items() if name.startswith(prefix)})
