"""The measuring of ``lors eval``: one model after another, each number kept as soon as it is there."""

import gc
import json
import logging
from pathlib import Path
from typing import Any

import torch

from lors_cli import console, processes
from lors_cli.api import load_adapter
from lors_cli.artifacts import digest, files
from lors_cli.artifacts.publish import scratch
from lors_cli.config.evaluation import Eval
from lors_cli.config.schema import Config
from lors_cli.data import windows
from lors_cli.errors import request_error
from lors_cli.evaluation import items, table
from lors_cli.evaluation.perplexity import of_losses, window_losses
from lors_cli.models import load, measure
from lors_cli.run import environment, manifest
from lors_cli.run.job import verified_digest

log = logging.getLogger(__name__)

PROGRESS = "progress.json"  # what an interrupted evaluation has measured so far


def token_windows(config: Config, section: Eval, path: Path) -> torch.Tensor | None:
    """The windows that perplexity is measured on, in the tokens of the model in `path`; None if it is not asked for.

    Raises:
        RequestError: the text is missing or too short.

    """
    if section.perplexity is None:
        return None
    tokenizer = load.load_tokenizer(path, trust_remote_code=config.trust_remote_code)
    text = section.perplexity.dataset.source("eval.perplexity.dataset")
    length, most = section.perplexity.sequence_length, section.perplexity.samples
    return windows.concatenated(text, tokenizer, length, most, at_most=True)


class Evaluation:
    """The work of one evaluation, which goes on where an earlier one stopped."""

    def __init__(
        self,
        config: Config,
        section: Eval,
        models: dict[str, Path],
        weights: dict[str, Path],
        benchmarks: Any,
        device: torch.device,
        partial: Path,
    ) -> None:
        self.config, self.section, self.benchmarks = config, section, benchmarks
        self.models, self.weights = models, weights
        self.device, self.partial, self.progress = device, partial, scratch(partial) / PROGRESS
        found = json.loads(self.progress.read_text()) if self.progress.is_file() else {}
        self.done: dict[str, Any] = processes.agree(found)

    def run(self, digests: dict[str, str]) -> dict[str, Any]:
        """Measure what is missing and write the results; facts for the manifest."""
        for position, (name, path) in enumerate(self.weights.items()):
            found = self.done.setdefault(name, {"items": items.folder(name, position), "asked_tasks": {}})
            if found.get("complete"):
                log.info("eval: %s was measured before the interruption", name)
                continue
            trust = self.config.trust_remote_code
            found["sparsity"] = measure.model(path, trust_remote_code=trust)["sparsity"]
            model = None
            if self._left(found, "transformers"):
                model = load.load_model(path, self.config.dtype, self.device, trust_remote_code=trust)
                if self.models[name] != path:
                    _attach(model, path, self.models[name])
            self._perplexity(name, model, path, found)
            if self.section.backend == "vllm":
                del model
                gc.collect()
                torch.cuda.empty_cache()
                model = None
            self._tasks(name, model, path, found)
            found["complete"] = True
            self._keep()
            del model
            gc.collect()
        results = {
            "models": {name: self._tidy(name, digests.get(name)) for name in self.models},
            "settings": self._settings(),
            "versions": environment.versions(),
        }
        if processes.rank() == 0:
            files.write_json(self.partial / "results.json", results)
            (self.partial / "results.md").write_text(table.render(results))
        return {"models": results["models"]}

    def _left(self, found: dict[str, Any], backend: str) -> bool:
        """Whether `backend` still has something to measure."""
        perplexity = self.section.perplexity is not None and "perplexity" not in found
        tasks = self.benchmarks and any(asked.name not in found["asked_tasks"] for asked in self.benchmarks.asked)
        return bool((perplexity and backend == "transformers") or (tasks and self.section.backend == backend))

    def _keep(self) -> None:
        if processes.rank() == 0:
            files.write_json(self.progress, self.done)

    def _keep_items(self, found: dict[str, Any], name: str, values: list[dict[str, Any]]) -> None:
        if processes.rank() == 0:
            items.write(self.partial / found["items"] / f"{name}.jsonl.gz", values)

    def _perplexity(self, name: str, model: Any, path: Path, found: dict[str, Any]) -> None:
        if "perplexity" in found:
            return
        tokens = token_windows(self.config, self.section, path)
        if tokens is None:
            return
        losses, length = window_losses(model, tokens), tokens.shape[1]
        found["perplexity"] = {**of_losses(losses, length), "token_digest": digest.of_value(tokens.tolist())}
        log.info("eval: %s perplexity %.4f", name, found["perplexity"]["value"])
        rows = [{"window": number, "loss": loss, "tokens": length - 1} for number, loss in enumerate(losses)]
        self._keep_items(found, items.PERPLEXITY, rows)
        self._keep()

    def _tasks(self, name: str, model: Any, path: Path, found: dict[str, Any]) -> None:
        if not self._left(found, self.section.backend) or not self.benchmarks:
            return
        from lors_cli.evaluation import harness

        section, trust = self.section, self.config.trust_remote_code
        with console.third_party_output():
            if model is None:
                answering = harness.by_vllm(
                    path, self.config.dtype, self.config.seed, section.batch_size, trust_remote_code=trust
                )
            else:
                tokenizer = load.load_tokenizer(path, trust_remote_code=trust)
                answering = harness.in_memory(model, tokenizer, section.batch_size)
        asking = harness.Harness(
            self.benchmarks.manager, answering, section.limit, run_code=section.allow_code_execution
        )
        for asked in self.benchmarks.asked:
            if asked.name in found["asked_tasks"]:
                continue
            with console.third_party_output():
                metrics, samples = asking.run(asked)
            for task, values in samples.items():
                self._keep_items(found, task, values)
            found["asked_tasks"][asked.name] = metrics
            shown = [f"{task} {table.cell(entry)}" for task, entry in metrics.items() if "group" not in entry]
            log.info("eval: %s %s", name, "; ".join(shown))
            self._keep()

    def _tidy(self, name: str, found_digest: str | None) -> dict[str, Any]:
        """The results of a model, as they are published."""
        found = self.done[name]
        measured = {key: found[key] for key in ("sparsity", "perplexity", "items") if key in found}
        tasks = {task: entry for asked in found["asked_tasks"].values() for task, entry in asked.items()}
        average = table.average(tasks)
        return {
            "path": str(self.models[name]),
            **({"digest": found_digest} if found_digest else {}),
            **measured,
            "tasks": tasks,
            **({"average": average} if average is not None else {}),
        }

    def _settings(self) -> dict[str, Any]:
        """What must be equal for two numbers to be comparable."""
        config, section = self.config, self.section
        recorded: dict[str, Any] = {"dtype": config.dtype, "seed": config.seed, "limit": section.limit}
        if config.dtype == "auto":
            kinds = {
                name: load.skeleton(path, trust_remote_code=config.trust_remote_code).config.dtype
                for name, path in self.weights.items()
            }
            recorded["dtype"] = {name: str(kind).removeprefix("torch.") for name, kind in kinds.items()}
        if section.perplexity:
            recorded["perplexity"] = {
                **section.perplexity.model_dump(mode="json"),
                "windows": "consecutive, of the rows joined by a blank line",
                "bos": False,
            }
        asked = section.model_dump(include={"preset", "tasks", "shots", "task_dir", "backend"})
        return {**recorded, **asked}


def _attach(model: Any, path: Path, adapter: Path) -> None:
    """Give the model in `path` its adapter, as it was in training.

    Raises:
        RequestError: the adapter was trained for another model.

    """
    trained = manifest.read(adapter)
    if trained and trained.model_digest and trained.model_digest != verified_digest(path):
        got = f"{adapter}, trained for another model than {path}"
        raise request_error("eval.models", "an adapter and its model", got, "set train.input to its model")
    load_adapter(model, adapter).eval()
