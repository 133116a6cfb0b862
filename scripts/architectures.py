"""Try every causal language model of transformers in tiny form, and write docs/architectures.md.

    python scripts/architectures.py [NAME ...]          try these (all without a name); go on where it stopped
    python scripts/architectures.py --write             write the page from what was found

Of each a random model with small sizes is put on disk, and the commands are run on it:

* pruning nothing leaves the logits as they are, to the bit;
* the masks of Wanda are those of the few lines here, written from its paper: |W| times the norm of each input, ranked
  within a row, on the plain transformers model whose earlier blocks are pruned already;
* prune, two training steps (`--methods` names the adapters), merge and eval work, and no zero is lost;
* the documents of a packed example do not see each other, or are refused.

The findings are kept in `--results`, a JSON file.
"""

import argparse
import json
import logging
import re
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from typer.testing import CliRunner

from lors_cli.cli import app
from lors_cli.models import linears, load, tiny
from lors_cli.training import documents

PAGE = Path(__file__).parents[1] / "docs" / "architectures.md"
WINDOWS, LENGTH = 4, 24
TEXT = "the quick brown fox jumps over the lazy dog, and then it sleeps. " * 12
# What a default config lacks, or what makes all kinds of its layers appear.
EXTRAS: dict[str, dict[str, Any]] = {
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "dots1": {"moe_intermediate_size": 64, "n_routed_experts": 4, "first_k_dense_replace": 1},
    "gemma3": {"vision_config": {"num_hidden_layers": 2, "image_size": 28, "patch_size": 14}, "mm_tokens_per_image": 4},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128, "num_experts": 4},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 16},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 16},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 8},
    "reformer": {"is_decoder": True},
    "xmod": {"default_language": "en_XX", "is_decoder": True},
}
# Encoders, whose class for causal models attends forwards only if the config says that it is a decoder.
ENCODERS = (
    *("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert"),
    *("rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl"),
)


def names() -> list[str]:
    """All architectures of the registry."""
    return list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def build(name: str, path: Path) -> Any:
    """Write a random tiny model and a tokenizer of characters to `path`; returns the model."""
    extras = {**({"is_decoder": True} if name in ENCODERS else {}), **EXTRAS.get(name, {})}
    config = tiny.shrunk(CONFIG_MAPPING[name](**extras))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
    for parameter in model.parameters():
        if parameter.dim() and not parameter.any():  # such as gates, which no trained model leaves closed
            nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(path)
    characters = ["<unk>", "<end>", *map(chr, range(32, 127))]
    unknown, end = characters[:2]
    core = Tokenizer(models.WordLevel({text: index for index, text in enumerate(characters)}, unk_token=unknown))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token=end, pad_token=end).save_pretrained(path)
    return model


@torch.no_grad()
def wanda(model: Any, windows: torch.Tensor, sparsity: float) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Prune `model` in place, block after block; the score of each weight and which are kept, by name."""
    prefix, blocks = linears.find_blocks(model)
    result = {}
    for index, block in enumerate(blocks):
        squares: dict[str, Any] = {}
        hooks = []
        own = {name: module for name, module in block.named_modules() if isinstance(module, nn.Linear)}
        for name, linear in own.items():

            def add(_: Any, inputs: Any, name: str = name, squares: dict[str, Any] = squares) -> None:
                x = inputs[0].reshape(-1, inputs[0].shape[-1]).double()
                squares[name] = squares.get(name, 0) + x.square().sum(0)

            hooks.append(linear.register_forward_pre_hook(add))
        for window in windows:
            model(input_ids=window[None], use_cache=False)
        for hook in hooks:
            hook.remove()
        for name in squares:  # of the others calibration knows nothing
            linear = own[name]
            score = linear.weight.double().abs() * squares[name].sqrt()
            gone = score.argsort(dim=1)[:, : int(score.shape[1] * sparsity)]
            kept = torch.ones_like(score, dtype=torch.bool).scatter_(1, gone, False)
            linear.weight.mul_(kept)
            result[f"{prefix}.{index}.{name}"] = score, kept
    return result


def same_masks(made: Any, expected: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> str | None:
    """Where the masks of the model `made` differ from the expected ones, apart from scores that are all but equal."""
    for name, (score, kept) in expected.items():
        weight = made.get_submodule(name).weight
        differ = (weight != 0) != kept
        rows = differ.any(1)
        if not rows.any():
            continue
        threshold = torch.where(kept, torch.inf, score).nan_to_num(posinf=-1).max(1).values
        near = (score - threshold[:, None]).abs() <= 1e-5 * threshold[:, None]
        if (differ & ~near).any():
            return f"{name}: {int(differ.sum())} of {kept.numel()} differ"
    return None


def lors(*args: object) -> str | None:
    """Run a command in this process; None if it ends with status 0, otherwise its status and what it says."""
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    if result.exit_code == 0:
        return None
    if result.exception and not isinstance(result.exception, SystemExit):
        return f"exit {result.exit_code}: {type(result.exception).__name__}: {result.exception}"
    return f"exit {result.exit_code}: {result.output}"


def logits(path: Path, ids: torch.Tensor) -> torch.Tensor:
    """Those of the saved model, as plain transformers loads it."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    with torch.no_grad():
        made: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return made


def attempt(name: str, folder: Path, methods: list[str]) -> dict[str, str]:
    """Try one architecture; `works` is "yes", or why not: "refused: ..." before work, or "fails: ..."."""
    source = folder / "source"
    try:
        model = build(name, source)
        with torch.no_grad():
            model(input_ids=tiny.tokens(model, 1), use_cache=False)
    except Exception as error:  # transformers' own code
        text = (str(error).strip() or "no message").splitlines()[0][:160]
        return {"works": f"not tried: a tiny model cannot be made or run ({type(error).__name__}: {text})"}
    data = folder / "text.jsonl"
    data.write_text(json.dumps({"text": TEXT}) + "\n" + json.dumps({"text": TEXT[::-1]}) + "\n")
    config = {
        "model": str(source),
        "output_dir": str(folder / "run"),
        "dtype": "float32",
        "device": "cpu",
        "prune": {
            "method": "wanda",
            "sparsity": 0.5,
            "calibration": {"dataset": str(data), "samples": WINDOWS, "sequence_length": LENGTH},
        },
        "train": {
            "method": methods[0],
            "rank": 4,
            "dataset": str(data),
            "sequence_length": LENGTH,
            "batch_size": 2,
            "max_steps": 2,
            "learning_rate": 1e-2,
        },
        "merge": {},
        "eval": {"perplexity": {"dataset": str(data), "sequence_length": LENGTH, "samples": 2}},
    }
    path = folder / "config.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML
    works, problem = "yes", lors("prune", path)
    if problem and (remedy := re.search(r"prune\.overrides: (\[.*\])", " ".join(problem.split()))):
        path.write_text(json.dumps(config | {"prune": config["prune"] | {"overrides": yaml.safe_load(remedy[1])}}))
        works, problem = f"yes, with `prune.overrides: {remedy[1]}`", lors("prune", path)
    if problem:
        told = _told(problem)
        return {"works": told if told.startswith("refused") else f"fails: prune: {told}"}
    ids = load.load_tokenizer(source)(TEXT + "\n\n" + TEXT[::-1])["input_ids"][: WINDOWS * LENGTH]
    windows = torch.tensor(ids).view(WINDOWS, LENGTH)
    loaded = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    expected = wanda(loaded, windows, 0.5)
    pruned = AutoModelForCausalLM.from_pretrained(folder / "run" / "pruned", dtype=torch.float32)
    if difference := same_masks(pruned, expected):
        return {"works": f"fails: masks are not Wanda's: {difference}"}
    nothing = f"output_dir={folder / 'nothing'}"
    if problem := lors("prune", path, nothing, "prune.sparsity=1e-6"):
        return {"works": f"fails: pruning nothing: {_told(problem)}"}
    if not torch.equal(logits(source, windows), logits(folder / "nothing" / "pruned", windows)):
        return {"works": "fails: pruning nothing changes the logits"}
    modules: list[str] = []
    for method in methods:
        for command in ("train", "merge", "eval"):
            extra = ["--force"] if method != methods[0] else []
            extra += ["merge.apply_mask=true"] if method == "lora" else []
            problem = lors(command, path, f"train.method={method}", *extra, *modules)
            if problem and (remedy := re.search(r"train\.target_modules: (\[.*\])", " ".join(problem.split()))):
                modules = [f"train.target_modules={remedy[1]}"]
                works = f"{works}, with `train.target_modules: {remedy[1]}`"
                problem = lors(command, path, f"train.method={method}", *extra, *modules)
            if problem:
                return {"works": f"fails: {command} with {method}: {_told(problem)}"}
        merged = AutoModelForCausalLM.from_pretrained(folder / "run" / "merged", dtype=torch.float32)
        for linear in expected:
            zeros, was = merged.get_submodule(linear).weight == 0, pruned.get_submodule(linear).weight == 0
            if bool((was & ~zeros).any()):
                return {"works": f"fails: {method} lost zeros of {linear}"}
    return {"works": works, "packing": documents.leak(pruned) or "exact"}


def _told(problem: str) -> str:
    """What a command said, in one line."""
    lines = [line.strip() for line in problem.splitlines()]
    got = next((line.removeprefix("got:").strip() for line in lines if line.startswith("got:")), None)
    if problem.startswith("exit 2") and got:
        return f"refused: {got}"
    return " ".join(" ".join(lines).split())[-300:]  # the error comes last


def page(results: dict[str, dict[str, str]]) -> str:
    """docs/architectures.md."""
    works = [name for name in results if results[name]["works"].startswith("yes")]
    lines = [
        "# Architectures",
        "",
        f"Every causal language model of transformers {transformers.__version__}, tried in tiny form by"
        " `scripts/architectures.py`, which also wrote this page.",
        "",
        "*Works*: pruning nothing leaves the logits as they are to the bit, Wanda's masks are those of an",
        "independent one, and prune, train, merge and eval run and lose no zero. *Packing* (`train.packing: true`):",
        "whether the documents of a packed example see each other; where they do, or a model is refused, the command",
        "says so before it starts. A model whose code is not in transformers (`trust_remote_code`) is tried alike,",
        "on the spot.",
        "",
        f"{len(works)} of {len(results)} work.",
        "",
        "| architecture | works | packing |",
        "|---|---|---|",
    ]
    for name in names():
        found = results[name]
        packing = found.get("packing", "")
        packing = f"refused: {packing}" if packing and packing != "exact" else packing
        cells = [f"`{name}`", found["works"], packing]
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Try what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="architectures, as model_type calls them; all if left out")
    parser.add_argument("--results", type=Path, default=Path("architectures.json"))
    parser.add_argument("--methods", nargs="+", default=["lors"])
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    results = json.loads(args.results.read_text()) if args.results.is_file() else {}
    if args.write:
        if untried := [name for name in names() if name not in results]:
            parser.error(f"not tried yet: {', '.join(untried)}")
        PAGE.write_text(page(results))
        return
    todo = args.names or [name for name in names() if name not in results]
    for number, name in enumerate(todo, 1):
        with tempfile.TemporaryDirectory() as folder:
            try:
                results[name] = attempt(name, Path(folder), args.methods)
            except Exception as error:
                results[name] = {"works": f"fails: {type(error).__name__}: {error}"}
        args.results.write_text(json.dumps(results, indent=1))
        print(f"{number}/{len(todo)} {name}: {results[name]}", flush=True)
        logging.disable(logging.NOTSET)


if __name__ == "__main__":
    sys.exit(main())
