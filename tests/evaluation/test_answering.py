"""A model that answers is watched: what is not finite stops the evaluation, and what was cut is counted."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from typer.testing import Result

from lors_cli.errors import UnmeasurableError
from lors_cli.evaluation import items
from lors_cli.evaluation.answering import SharedModel
from tests.evaluation.tasks import results

Lors = Callable[..., Result]
WriteConfig = Callable[..., Path]
LONG = "one two three four five six seven eight nine ten eleven twelve " * 3
ROLLING = {
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "items.jsonl"}},
    "test_split": "test",
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{question}} and much more of it",
    "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
}


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [
        Instance(kind, doc={}, arguments=args, idx=0, metadata=("quiz", number, 1))  # type: ignore[arg-type]
        for number, args in enumerate(arguments)
    ]


SCORED = [
    ("", "No context"),
    ("A question that ends with a space ", "answer"),
    ("A question", " an answer of several tokens"),
    ("A question", "s"),  # one word with the end of the context
    ("A question", " an"),
    (LONG, " end"),
    (LONG, LONG[:80]),
    ("short", f" {LONG[:60]}"),
]
WRITTEN: list[tuple[str, dict[str, Any]]] = [
    ("Say", {"until": []}),
    ("Say something", {"until": ["\n", "e"]}),
    (LONG, {"until": [""], "max_gen_toks": 8}),
]


@pytest.fixture
def model(make_model: Callable[..., Path], tmp_path: Path) -> Path:
    return make_model(tmp_path / "model", max_position_embeddings=64, initializer_range=0.3)


def load(path: Path) -> tuple[Any, PreTrainedTokenizerFast]:
    return AutoModelForCausalLM.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)


@pytest.mark.parametrize("batch", [1, 3])
def test_answers_are_those_of_lm_eval(model: Path, batch: int) -> None:
    own, plain = SharedModel(*load(model), batch), HFLM(*load(model)[:1], tokenizer=load(model)[1], batch_size=batch)
    written = [(text, {"max_gen_toks": 5, **how}) for text, how in WRITTEN]
    for kind, arguments in (
        ("loglikelihood", SCORED),
        ("loglikelihood_rolling", [(LONG,), ("a few words",), ("",)]),
        ("generate_until", written),
    ):
        asked = requests(kind, *arguments)
        assert getattr(own, kind)(asked) == getattr(plain, kind)(asked), kind
    watch = own.watched()
    tokens = own.tokenizer
    too_long = {n for n, pair in enumerate(SCORED) if len(tokens("".join(pair))["input_ids"]) > 65}
    assert too_long == {5, 6}  # the items of the oracle, and the prompt of a generation: 2
    assert watch.truncated == {("quiz", number) for number in (*too_long, 2)}
    assert watch.generating == {"quiz"}
    assert not own.watched().truncated  # they are told once


def test_nothing_to_score_and_what_is_longer_than_the_model_are_refused(model: Path) -> None:
    own = SharedModel(*load(model), 1)
    for pair in [("", ""), ("A question", ""), (" ", "word")]:
        with pytest.raises(UnmeasurableError, match="quiz, item 0: there is no"):
            own.loglikelihood(requests("loglikelihood", pair))
    with pytest.raises(UnmeasurableError, match=r"quiz, item 1: a continuation of \d+ tokens, for a model of 64"):
        own.loglikelihood(requests("loglikelihood", ("A", " b"), ("A", f" {LONG}")))


def change(path: Path, factors: dict[str, float]) -> None:
    tensors = load_file(path / "model.safetensors")
    for name, factor in factors.items():
        tensors[name] *= factor
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


OVERFLOWING = {"model.norm.weight": 3e38, "model.embed_tokens.weight": 1e5}


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("words", "words, item 10: the log-likelihood"),
        ("letters", "letters, item 10: the logits"),
        ("texts", "texts, item 0"),
    ],
)
def test_scores_that_are_not_finite_stop_the_evaluation(
    lors: Lors,
    write_config: WriteConfig,
    make_model: Callable[..., Path],
    task_dir: Path,
    tmp_path: Path,
    task: str,
    expected: str,
) -> None:
    (task_dir / "texts.yaml").write_text(json.dumps({"task": "texts", **ROLLING}))
    model = make_model(tmp_path / "broken")
    change(model, OVERFLOWING)
    options = {"tasks": [task], "task_dir": str(task_dir), "models": ["dense"]}
    said = lors("eval", write_config(model=str(model), eval=options), status=1).stderr
    assert f"dense: {expected}" in said  # lm-eval begins with the longest
    assert "the model's activations overflow" in said
    assert not (tmp_path / "run/eval").exists()


@pytest.mark.parametrize("name", ["model.layers.1.mlp.down_proj.weight", "model.norm.weight"])
@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_tensor_that_is_not_finite_is_named(
    lors: Lors, write_config: WriteConfig, make_model: Callable[..., Path], tmp_path: Path, name: str, factor: float
) -> None:
    model = make_model(tmp_path / "broken")
    change(model, {name: factor})
    config = write_config(model=str(model), eval__models=["dense"])
    assert f"hold NaN or infinity, among them {name}" in lors("eval", config, status=1).stderr
    assert name in lors("prune", config, "prune.method=magnitude", status=1).stderr
    assert f"NaN or infinity in {name}" in lors("inspect", model).stdout
    assert json.loads(lors("inspect", model, "--json").stdout)["not_finite"] == [name]


def test_cut_prompts_and_answers_are_counted_and_shown(
    lors: Lors, write_config: WriteConfig, make_model: Callable[..., Path], task_dir: Path, tmp_path: Path
) -> None:
    model = make_model(tmp_path / "model", max_position_embeddings=64)
    texts = [LONG, "short", LONG, "brief"]
    rows = [{"question": text, "choices": [" red", " blue"], "answer": 0} for text in texts]
    (task_dir / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, content in {
        "group": {"group": "both", "task": ["words"], "aggregate_metric_list": [{"metric": "acc"}]}
    }.items():
        (task_dir / f"{name}.yaml").write_text(json.dumps(content))
    options = {"tasks": ["both", "letters"], "task_dir": str(task_dir), "models": ["dense"]}
    config = write_config(model=str(model), eval=options)
    shown = lors("eval", config).stdout
    measured = results(tmp_path)["models"]["dense"]
    tasks = measured["tasks"]
    assert [tasks[name]["truncated"] for name in ("both", "words", "letters")] == [2, 2, 2]
    assert tasks["letters"]["unfinished"] == 4  # a random model does not stop within four tokens
    assert "unfinished" not in tasks["words"]
    lost = "of 4 prompts were longer than the model's positions and lost their beginning"
    assert f"† dense: both 2 {lost}." in shown
    assert f"† dense: letters 2 {lost}, 4 of 4 answers were cut at the longest length." in shown
    prompts = [row["prompt"] for row in items.read(tmp_path / "run/eval" / measured["items"] / "words.jsonl.gz")]
    assert [prompt.endswith(" cut for 64 positions") for prompt in prompts] == [True, False, True, False]


def test_finished_answers_are_not_counted_as_cut(model: Path) -> None:
    own = SharedModel(*load(model), 2)
    texts = own.generate_until(requests("generate_until", ("Say", {"until": [], "max_gen_toks": 6})))
    first = own.tok_decode(own.tok_encode(texts[0])[:1])
    assert first
    own.watched()
    asked = requests("generate_until", *((text, {"until": [first], "max_gen_toks": 6}) for text in ("Say", "Tell")))
    own.generate_until(asked)
    assert ("quiz", 0) not in own.watched().unfinished


def test_a_single_item_has_no_standard_error(
    lors: Lors, write_config: WriteConfig, task_dir: Path, tmp_path: Path
) -> None:
    options = {"tasks": ["words"], "task_dir": str(task_dir), "models": ["dense"], "limit": 1}
    assert " ± —" in lors("eval", write_config(eval=options)).stdout
    text = (tmp_path / "run/eval/results.json").read_text()
    assert json.loads(text)["models"]["dense"]["tasks"]["words"]["acc_stderr"] is None
    json.loads(text, parse_constant=pytest.fail)  # no NaN
