"""Models as others store them: pruning nothing leaves what they compute, and what does not fit is named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file, save_model
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from lors_cli.api import load_adapter
from lors_cli.artifacts.model_files import INDEX, SINGLE
from lors_cli.errors import RequestError
from lors_cli.models import load
from lors_cli.models.weights import open_weights

Edit = Callable[[dict[str, Tensor]], object]
SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
HEAD, EMBEDDINGS = "lm_head.weight", "model.embed_tokens.weight"
NORM = "model.layers.1.input_layernorm.weight"
UP = "model.layers.0.mlp.up_proj.weight"


def llama(path: Path, *, tied: bool = True, **changes: Any) -> LlamaForCausalLM:
    model = LlamaForCausalLM(LlamaConfig(**{**SIZES, "num_key_value_heads": 2, **changes}, tie_word_embeddings=tied))
    model.save_pretrained(path)
    return model


def change(path: Path, edit: Edit) -> None:
    content = load_file(path / SINGLE)
    edit(content)
    save_file(content, path / SINGLE, metadata={"format": "pt"})


def set_config(path: Path, **changes: Any) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **changes}))


def with_config(path: Path, **changes: Any) -> None:
    llama(path)
    set_config(path, **changes)


def names(path: Path) -> set[str]:
    return {name for file in path.glob("*.safetensors") for name in safe_open(file, "pt").keys()}  # noqa: SIM118


def with_vision(path: Path, depth: int = 2) -> None:
    text = {**SIZES, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 16}
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    tokens = {"image_token_index": 60, "boi_token_index": 61, "eoi_token_index": 62, "mm_tokens_per_image": 4}
    config = Gemma3Config(text_config=text, vision_config={**vision, "num_hidden_layers": depth}, **tokens)
    Gemma3ForConditionalGeneration(config).save_pretrained(path)


def only_head(path: Path) -> None:
    save_model(llama(path), str(path / SINGLE), metadata={"format": "pt"})
    assert EMBEDDINGS not in names(path)


def differing(path: Path) -> None:
    llama(path)
    change(path, lambda content: content.update({HEAD: torch.randn(64, 32)}))


def equal(path: Path) -> None:
    llama(path)
    change(path, lambda content: content.update({HEAD: content[EMBEDDINGS].clone()}))


def without_prefix(path: Path) -> None:
    llama(path).model.save_pretrained(path)
    assert "layers.0.mlp.up_proj.weight" in names(path)


def leftover(path: Path) -> None:
    llama(path)
    change(path, lambda content: content.update({"model.layers.1.self_attn.rotary_emb.inv_freq": torch.randn(4)}))


def neox(path: Path, **changes: Any) -> None:
    GPTNeoXForCausalLM(GPTNeoXConfig(**{**SIZES, **changes})).save_pretrained(path)


def sharded(path: Path) -> None:
    LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(path, max_shard_size="20KB")
    assert (path / INDEX).is_file()


def norms_in_float32(path: Path) -> None:
    llama(path).to(torch.bfloat16).save_pretrained(path)
    change(path, lambda content: content.update({n: t.float() for n, t in content.items() if "norm" in n}))


def two_forms(path: Path) -> None:
    llama(path)
    save_file({"x": torch.zeros(1)}, path / "model.fp16.safetensors")
    (path / "pytorch_model.bin").write_bytes(b"pickle")
    (path / INDEX).write_text(json.dumps({"weight_map": {"x": "model-00001-of-00002.safetensors"}}))


FORMS: dict[str, tuple[Callable[[Path], object], set[str]]] = {  # and the names that the output has otherwise
    "tied": (llama, set()),
    "untied": (lambda path: llama(path, tied=False), set()),
    "only the head of a tied model": (only_head, {HEAD, EMBEDDINGS}),
    "a head that differs though config.json ties it": (differing, set()),
    "an equal head in a tied model": (equal, {HEAD}),
    "frequencies of old checkpoints": (leftover, {"model.layers.1.self_attn.rotary_emb.inv_freq"}),
    "GPT-NeoX": (neox, set()),
    "GPT-NeoX, tied": (lambda path: neox(path, tie_word_embeddings=True), set()),
    "Gemma 3 with vision": (with_vision, set()),
    "sharded": (sharded, set()),
    "norms in float32": (norms_in_float32, set()),
    "another dtype in config.json": (lambda path: with_config(path, dtype="float16"), set()),
    "its older name": (lambda path: with_config(path, torch_dtype="bfloat16", dtype=None), set()),
    "other files beside": (two_forms, set()),
}


@torch.no_grad()
def logits(model: Any) -> Tensor:
    result: Tensor = model.eval()(torch.arange(20)[None]).logits
    return result


def prune_nothing(lors: Callable[..., Any], path: Path, run: Path, *, status: int = 0) -> Any:
    config = run.with_suffix(".yaml")
    prune = {"method": "magnitude", "sparsity": 1e-9}
    config.write_text(json.dumps({"model": str(path), "output_dir": str(run), "device": "cpu", "prune": prune}))
    return lors("prune", config, status=status)


@pytest.mark.parametrize("form", FORMS)
def test_pruning_nothing_changes_nothing(form: str, tmp_path: Path, lors: Callable[..., Any]) -> None:
    make, renamed = FORMS[form]
    make(tmp_path / "model")
    prune_nothing(lors, tmp_path / "model", tmp_path / "run")
    before = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "run/pruned")
    assert torch.equal(logits(before), logits(after))
    assert torch.equal(logits(before), logits(load.load_model(tmp_path / "model", "auto", torch.device("cpu"))))
    if form != "other files beside":
        assert names(tmp_path / "model") ^ names(tmp_path / "run/pruned") == renamed
    ties = [
        after.config.tie_word_embeddings,
        after.get_output_embeddings().weight is after.get_input_embeddings().weight,
    ]
    assert ties[0] == ties[1]  # so that a reader that believes the config has the same model


def test_a_base_model_without_its_prefix_gets_it(tmp_path: Path, lors: Callable[..., Any]) -> None:
    without_prefix(tmp_path / "model")
    prune_nothing(lors, tmp_path / "model", tmp_path / "run")
    before, after = (AutoModelForCausalLM.from_pretrained(tmp_path / d) for d in ("model", "run/pruned"))
    assert torch.equal(logits(before), logits(after))
    assert {f"model.{name}" for name in names(tmp_path / "model")} == names(tmp_path / "run/pruned")


def refusal(path: Path, key: str = "prune.input") -> Any:
    with pytest.raises(RequestError) as caught:
        open_weights(path, load.skeleton(path), key)
    (problem,) = caught.value.problems
    assert (problem.key, problem.file) == (key, str(path))
    with pytest.raises(RequestError):  # eval, train and the API read by another way
        load.load_model(path, "auto", torch.device("cpu"))
    return problem


@pytest.mark.parametrize(
    ("edit", "got", "remedy"),
    [
        (lambda content: content.pop(NORM), f"no tensor {NORM} among 19", "config.json and the weight files"),
        (lambda content: content.update({NORM: torch.ones(31)}), f"{NORM} of shape (31,)", "from one source"),
        (lambda content: content.update({NORM: torch.ones(1, 32)}), f"{NORM} of shape (1, 32)", "from one source"),
        (lambda content: content.update({NORM: torch.ones(32).to(torch.int8)}), f"{NORM} in dtype int8", "before"),
        (lambda content: content.update({UP: content[UP].long()}), f"{UP} in dtype int64", "before quantisation"),
        (lambda content: content.update({UP: content[UP].to(torch.float8_e4m3fn)}), f"{UP} in dtype float8", "before"),
        (
            lambda content: content.update({"score.weight": torch.ones(2, 32)}),
            "score.weight, to which nothing",
            "from_",
        ),
        (lambda content: content.update({"empty": torch.ones(0, 32)}), "empty, to which nothing", "save_pretrained"),
        (
            lambda content: content.update({NORM.replace("1", "2"): torch.ones(32)}),
            "layers.2.",
            "num_hidden_layers (2)",
        ),
        (
            lambda content: content.update({"layers.1.mlp.up_proj.weight": torch.ones(64, 32)}),
            "both meant for",
            "one save",
        ),
    ],
)
def test_what_is_not_the_models_is_named(tmp_path: Path, edit: Edit, got: str, remedy: str) -> None:
    llama(tmp_path)
    change(tmp_path, edit)
    problem = refusal(tmp_path)
    assert got in problem.got
    assert remedy in problem.remedy


def test_scales_beside_codes_are_named(tmp_path: Path) -> None:
    llama(tmp_path)
    scale = UP.replace("weight", "weight_scale")
    change(tmp_path, lambda content: content.update({UP: content[UP].to(torch.float8_e4m3fn), scale: torch.ones(1)}))
    assert scale in refusal(tmp_path).got


@pytest.mark.parametrize("changes", [{"num_hidden_layers": 3}, {"hidden_size": 64}, {"num_key_value_heads": 4}])
def test_a_config_of_another_model(tmp_path: Path, changes: dict[str, int]) -> None:
    llama(tmp_path)
    set_config(tmp_path, **changes)
    assert "from one source" in refusal(tmp_path).remedy


def sparse(path: Path, tokenizer: Any) -> Path:
    """Zeros in every other row of the weights in the blocks."""
    tokenizer.save_pretrained(path)
    change(path, lambda content: [t[::2].zero_() for n, t in content.items() if ".layers." in n and t.dim() == 2])
    return path


@pytest.mark.parametrize(
    ("make", "targets"),
    [
        (lambda path: neox(path, vocab_size=384), ["*"]),
        (lambda path: neox(path, vocab_size=384), ["lm_head", "*dense"]),
        (lambda path: save_model(llama(path, vocab_size=384), str(path / SINGLE), {"format": "pt"}), ["lm_head"]),
        (lambda path: llama(path, vocab_size=384), ["lm_head", "*q_proj"]),
    ],
    ids=["GPT-NeoX", "its head", "only the head of a tied model", "a tied head"],
)
def test_what_is_merged_is_what_was_trained(
    make: Callable[[Path], object],
    targets: list[str],
    tmp_path: Path,
    tokenizer: Any,
    lors: Callable[..., Any],
    write_config: Callable[..., Path],
) -> None:
    make(tmp_path / "model")
    path = str(sparse(tmp_path / "model", tokenizer))
    config = write_config(train__input=path, train__target_modules=targets, merge__input=path)
    lors("train", config)
    lors("merge", config)
    model = load.load_model(Path(path), "auto", torch.device("cpu"))
    dense = logits(model)
    trained = logits(load_adapter(model, tmp_path / "run/adapter"))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "run/merged")
    torch.testing.assert_close(logits(merged), trained, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(dense, trained, rtol=1e-2, atol=1e-2)
