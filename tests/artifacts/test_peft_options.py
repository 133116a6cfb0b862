"""Adapters of many kinds as PEFT itself makes and saves them: merged with PEFT's own result, or refused by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import Result

from lors_cli.api import load_adapter
from lors_cli.artifacts import adapter_file

Lors = Callable[..., Result]
WriteConfig = Callable[..., Path]
Save = Callable[..., Path]
IDS = torch.arange(1, 40)[None]
ATTENTION = ["q_proj", "v_proj"]


@pytest.fixture
def save(pruned: Path, tmp_path: Path) -> Save:
    """Make an adapter with numbers in all of its tensors, and let PEFT save it."""

    def made(config: Any, *, dtype: torch.dtype = torch.float32, **options: Any) -> Path:
        torch.manual_seed(1)
        adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(pruned), config)
        with torch.no_grad():
            for name, tensor in adapted.named_parameters():
                if "lora_" in name or "modules_to_save" in name or (tensor.requires_grad and "bias" in name):
                    tensor.copy_((tensor + 0.05 * torch.randn_like(tensor)).to(dtype))
        adapted.to(dtype).save_pretrained(tmp_path / "adapter", **options)
        return tmp_path / "adapter"

    return made


@pytest.fixture
def merge(lors: Lors, write_config: WriteConfig, pruned: Path, tmp_path: Path) -> Callable[..., Result]:
    def run(adapter: Path, *options: str, status: int = 0) -> Result:
        section = {"input": str(pruned), "adapter": str(adapter)}
        options = options or ("merge.dense=true",)
        return lors("merge", write_config(merge=section), *options, status=status)

    return run


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model.eval()(IDS).logits
    return result


GOOD: dict[str, dict[str, Any]] = {
    "default": {},
    "all_linear": {"target_modules": "all-linear"},
    "regex": {"target_modules": r".*layers\.1\.(self_attn\.[qk]_proj|mlp\.up_proj)"},
    "excluded": {"target_modules": ["q_proj", "up_proj"], "exclude_modules": ["model.layers.0.self_attn.q_proj"]},
    "some_layers": {"layers_to_transform": [1], "layers_pattern": "layers"},
    "gaussian": {"init_lora_weights": "gaussian"},
    "no_init": {"init_lora_weights": False},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "rslora": {"use_rslora": True, "r": 6},
    "dropout": {"lora_dropout": 0.3},
    "alpha_zero": {"lora_alpha": 0},
    "no_task": {"task_type": None},
    "ranks": {"rank_pattern": {"v_proj": 2, r"layers\.0\.self_attn\.q_proj": 6}},
    "alphas": {"alpha_pattern": {"^model.layers.0.self_attn.q_proj": 3, "proj": 7, "layers.1.self_attn.v_proj": 2}},
    "ranks_and_alphas": {"rank_pattern": {".*1.*": 2}, "alpha_pattern": {"q_proj": 3.5}, "use_rslora": True},
    "norms": {"modules_to_save": ["post_attention_layernorm", "model.norm"]},
    "all_norms": {"modules_to_save": ["norm"]},
    "ranks_of_no_linear": {"rank_pattern": {"roj": 2, "layers.1": 3}, "alpha_pattern": {"q": 1}},
}
for _name in ("eva", "mica"):  # of PEFT since 0.14 and 0.20
    if _name in str(LoraConfig.__dataclass_fields__["init_lora_weights"].type):
        GOOD[_name] = {"init_lora_weights": _name}


@pytest.mark.parametrize("name", GOOD)
def test_what_is_understood_is_merged_as_peft_does(
    save: Save, merge: Callable[..., Result], pruned: Path, tmp_path: Path, name: str
) -> None:
    options = {"r": 4, "lora_alpha": 10, "target_modules": ATTENTION, "task_type": "CAUSAL_LM", **GOOD[name]}
    adapter = save(LoraConfig(**options))
    merge(adapter)
    wanted: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(pruned), str(adapter))
    adapted, merged = logits(wanted), AutoModelForCausalLM.from_pretrained(tmp_path / "run/merged")
    wanted = wanted.merge_and_unload()
    torch.testing.assert_close(logits(merged), adapted, rtol=1e-4, atol=1e-5)
    for key, weight in wanted.state_dict().items():
        torch.testing.assert_close(merged.state_dict()[key], weight, rtol=1e-6, atol=1e-7)


def test_biases_of_adapted_linears_are_merged_as_peft_does(
    make_model: Callable[..., Path], lors: Lors, write_config: WriteConfig, tmp_path: Path
) -> None:
    """PEFT calls them "lora_only"."""
    base = make_model(tmp_path / "biased", attention_bias=True)
    options = {"bias": "lora_only", "modules_to_save": ["norm"]}
    config = LoraConfig(r=4, target_modules=ATTENTION, task_type="CAUSAL_LM", **options)  # type: ignore[arg-type]
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    with torch.no_grad():
        for tensor in adapted.parameters():
            if tensor.requires_grad:
                tensor += 0.05 * torch.randn_like(tensor)
    wanted = logits(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    section = {"input": str(base), "adapter": str(tmp_path / "adapter")}
    lors("merge", write_config(merge=section), "merge.dense=true")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "run/merged")
    torch.testing.assert_close(logits(merged), wanted, rtol=1e-4, atol=1e-5)
    for key, tensor in adapted.merge_and_unload().state_dict().items():
        torch.testing.assert_close(merged.state_dict()[key], tensor, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_an_adapter_in_16_bits_does_not_round_the_model(
    save: Save, merge: Callable[..., Result], pruned: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    adapter = save(LoraConfig(r=4, target_modules=ATTENTION, task_type="CAUSAL_LM"), dtype=dtype)
    assert load_file(adapter / adapter_file.WEIGHTS).popitem()[1].dtype == dtype
    merge(adapter)
    wanted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(pruned), str(adapter)).merge_and_unload()
    merged = load_file(tmp_path / "run/merged/model.safetensors")
    for key, weight in merged.items():
        torch.testing.assert_close(weight, wanted.state_dict()[key], rtol=1e-6, atol=1e-7)


def test_several_ranks_are_for_the_merge_alone(
    save: Save, lors: Lors, write_config: WriteConfig, merge: Callable[..., Result], pruned: Path
) -> None:
    adapter = save(LoraConfig(r=4, target_modules=ATTENTION, rank_pattern={"v_proj": 2}, task_type="CAUSAL_LM"))
    with pytest.raises(ValueError, match="merge it and name the merged model"):
        load_adapter(AutoModelForCausalLM.from_pretrained(pruned), adapter)
    section = {"input": str(pruned), "adapter": str(adapter)}
    assert "rank 2" in lors("recover", write_config(recover=section), status=2).stderr
    modules = json.loads(lors("inspect", adapter, "--json").stdout)["modules"]
    assert modules["model.layers.0.self_attn.v_proj"]["lora_A"]["shape"] == [2, 32]
    wide = save(LoraConfig(r=17, target_modules=ATTENTION, task_type="CAUSAL_LM"))  # v_proj has 16 rows
    assert "merge it with PEFT" in merge(wide, status=2).stderr


def test_the_head_of_a_tied_model_is_merged_and_the_embeddings_stay(
    save: Save, merge: Callable[..., Result], pruned: Path, tmp_path: Path
) -> None:
    """PEFT's own merge would change the embeddings too; what was trained is the adapted model."""
    config = LoraConfig(r=4, target_modules=["lm_head", "q_proj"], task_type="CAUSAL_LM")
    adapter = save(config)
    said = merge(adapter, status=2).stderr
    assert "save_embedding_layers=False" in said
    for path in adapter.iterdir():
        path.unlink()
    merge(save(config, save_embedding_layers=False))
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(pruned), str(adapter))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "run/merged")
    torch.testing.assert_close(logits(merged), logits(adapted), rtol=1e-4, atol=1e-5)


def test_masked_at_the_merge_no_zero_comes_back(
    save: Save, merge: Callable[..., Result], pruned: Path, tmp_path: Path
) -> None:
    adapter = save(LoraConfig(r=4, target_modules="all-linear", use_rslora=True))
    merge(adapter, "merge.apply_mask=true")
    dense = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(pruned), str(adapter)).merge_and_unload()
    before, after = load_file(pruned / "model.safetensors"), load_file(tmp_path / "run/merged/model.safetensors")
    for key, weight in before.items():
        wanted = dense.state_dict()[key] * (weight != 0) if "proj" in key else weight
        torch.testing.assert_close(after[key], wanted, rtol=1e-6, atol=1e-7)


BAD: dict[str, Any] = {
    "pissa": lambda: LoraConfig(init_lora_weights="pissa"),
    "pissa_niter_2": lambda: LoraConfig(init_lora_weights="pissa_niter_2"),
    "olora": lambda: LoraConfig(init_lora_weights="olora"),
    "use_dora": lambda: LoraConfig(use_dora=True),
    "lora_bias": lambda: LoraConfig(lora_bias=True, target_modules=["q_proj"]),
    "bias": lambda: LoraConfig(bias="all"),
    "modules_to_save": lambda: LoraConfig(modules_to_save=["lm_head"]),
    "modules_to_save of blocks": lambda: LoraConfig(modules_to_save=["norm", "mlp"]),
    "trainable_token_indices": lambda: LoraConfig(trainable_token_indices=[1, 2]),
    "layer_replication": lambda: LoraConfig(layer_replication=[(0, 2), (1, 2)]),
    "alora_invocation_tokens": lambda: LoraConfig(alora_invocation_tokens=[5, 6]),
    "target_parameters": lambda: LoraConfig(target_modules=["q_proj"], target_parameters=["mlp.up_proj.weight"]),
    "use_qalora": lambda: LoraConfig(use_qalora=True),
    "embed_tokens": lambda: LoraConfig(target_modules=["embed_tokens"]),
    "LOHA": lambda: peft.LoHaConfig(),
    "LOKR": lambda: peft.LoKrConfig(),
    "IA3": lambda: peft.IA3Config(feedforward_modules=[]),
    "VERA": lambda: peft.VeraConfig(),
    "OFT": lambda: peft.OFTConfig(r=0, oft_block_size=4),
    "ADALORA": lambda: peft.AdaLoraConfig(total_step=10),
    "PREFIX_TUNING": lambda: peft.PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
    "LN_TUNING": lambda: peft.LNTuningConfig(target_modules=["input_layernorm"]),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_understood_is_refused_by_name(
    save: Save, merge: Callable[..., Result], tmp_path: Path, name: str
) -> None:
    try:
        config = BAD[name]()
    except (TypeError, ValueError) as error:
        pytest.skip(f"this PEFT does not have it: {error}")
    if not getattr(config, "target_modules", True):
        config.target_modules = set(ATTENTION)
    said = merge(save(config), status=2).stderr
    assert name.removesuffix("_niter_2").removesuffix(" of blocks") in said
    assert not (tmp_path / "run").exists()


def test_an_adapter_that_changed_the_model_is_merged_after_pefts_conversion(
    merge: Callable[..., Result], pruned: Path, tmp_path: Path
) -> None:
    """The remedy that the refusal of init_lora_weights names."""
    config = LoraConfig(r=4, target_modules=ATTENTION, init_lora_weights="pissa", task_type="CAUSAL_LM")
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(pruned), config)
    adapted.peft_config["default"].init_lora_weights = True  # as PEFT's documentation has it
    adapted.save_pretrained(tmp_path / "start")
    adapted.peft_config["default"].init_lora_weights = "pissa"
    with torch.no_grad():
        for name, tensor in adapted.named_parameters():
            if "lora_" in name:
                tensor += 0.05 * torch.randn_like(tensor)
    wanted = logits(adapted)
    adapted.save_pretrained(tmp_path / "plain")
    assert "path_initial_model_for_weight_conversion" in merge(tmp_path / "plain", status=2).stderr
    converted = tmp_path / "converted"
    adapted.save_pretrained(converted, path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    merge(converted)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "run/merged")
    torch.testing.assert_close(logits(merged), wanted, rtol=1e-3, atol=1e-4)


def test_files_that_are_not_whole_are_refused(
    save: Save, merge: Callable[..., Result], pruned: Path, tmp_path: Path
) -> None:
    adapter = save(LoraConfig(r=4, target_modules=ATTENTION, task_type="CAUSAL_LM"))
    path, config = adapter / adapter_file.WEIGHTS, json.loads((adapter / adapter_file.CONFIG).read_text())
    tensors = load_file(path)
    first = min(tensors)

    def refused(said: str, change: Any = None, **options: Any) -> None:
        content = {name: tensor.clone() for name, tensor in tensors.items()}
        if change:
            change(content)
        save_file({name: tensor.clone() for name, tensor in content.items()}, path, metadata={"format": "pt"})
        (adapter / adapter_file.CONFIG).write_text(json.dumps({**config, **options}))
        assert said in merge(adapter, status=2).stderr

    refused("NaN or infinity", lambda t: t[first].view(-1)[3].fill_(float("nan")))
    refused("no lora_A", lambda t: t.pop(first))
    refused("none", lambda t: t.clear())
    refused("self_attn.v_proj", lambda t: [t.pop(name) for name in list(t) if "layers.1.self_attn.v_proj" in name])
    refused("needs", lambda t: t.update({first: t[first][:2]}))
    refused("int8", lambda t: t.update({first: t[first].to(torch.int8)}))
    refused(
        "lora_magnitude_vector", lambda t: t.update({first.replace("lora_A.weight", "lora_magnitude_vector"): t[first]})
    )
    refused("no linear", lambda t: t.update({k.replace("layers.0", "layers.7"): t[k] for k in list(t)}))
    refused("a tensor model", lambda t: t.update({first.removeprefix(adapter_file.PREFIX): t[first]}))
    refused("needs", r=8)
    refused("lora_alpha", lora_alpha=None)
    refused("r ", r="4")
    refused("option_of_2027", option_of_2027={"on": True})
    refused("SEQ_CLS", task_type="SEQ_CLS")


def test_pickled_and_nested_adapters_lead_to_what_can_be_read(
    save: Save, merge: Callable[..., Result], pruned: Path, tmp_path: Path
) -> None:
    adapter = save(LoraConfig(r=4, target_modules=ATTENTION, task_type="CAUSAL_LM"), safe_serialization=False)
    assert "PeftModel.from_pretrained" in merge(adapter, status=2).stderr
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(pruned), str(adapter))
    again.add_adapter("second", LoraConfig(r=4, target_modules=ATTENTION))
    again.save_pretrained(tmp_path / "new")
    (tmp_path / "outer").mkdir()
    (tmp_path / "new/second").rename(tmp_path / "outer/second")
    assert str(tmp_path / "outer/second") in merge(tmp_path / "outer", status=2).stderr
    merge(tmp_path / "outer/second")
    merge(tmp_path / "new", "merge.dense=true", "--force")
