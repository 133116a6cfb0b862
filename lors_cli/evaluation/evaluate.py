"""The measuring of ``lors eval``: one model after another, each number kept as soon as it is there."""

import gc
import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lors_cli import console, processes
from lors_cli.api import place_adapter
from lors_cli.artifacts import files, inputs, sealed
from lors_cli.artifacts.packed_model import is_packed
from lors_cli.artifacts.publish import scratch
from lors_cli.errors import LorsError, UnmeasurableError
from lors_cli.evaluation import items, metrics, table
from lors_cli.evaluation.judged import Rows, Text
from lors_cli.evaluation.perplexity import of_losses, sample_losses
from lors_cli.evaluation.samples import Samples
from lors_cli.models import load, measure
from lors_cli.models.packed import load_packed

log = logging.getLogger(__name__)

PROGRESS = "progress.json"  # what an interrupted evaluation has measured so far


@dataclass(frozen=True)
class Request:
    """What to measure, and how.

    `models` are directories of models or adapters by the names that the results give them. `weights` are the same
    models, but for an adapter the model that it was trained for. `benchmarks` is what
    `lors_cli.evaluation.benchmarks.load` gives, None where they are not asked for. `texts` are what perplexity is
    measured on by the names of the perplexities; the only one has none. `samples` are prompts to answer. The other
    values are those of the config.
    """

    models: dict[str, Path]
    weights: dict[str, Path]
    texts: dict[str, Text | Rows]
    benchmarks: Any
    dtype: str
    device: torch.device
    seed: int
    trust_remote_code: bool
    backend: str
    batch_size: int | str
    limit: int | None
    allow_code_execution: bool | str
    samples: Samples | None = None
    chat_template: bool = False
    system: str | None = None


class Evaluation:
    """The work of one evaluation in the directory `partial`, which goes on where an earlier one stopped."""

    def __init__(self, request: Request, partial: Path) -> None:
        work = scratch(partial)
        self.request, self.partial, self.progress = request, partial, work / PROGRESS
        self._owner = sealed.owner(work)
        self.measured: dict[str, Any] = processes.agree(self._kept() if processes.rank() == 0 else None)

    def _kept(self) -> dict[str, Any]:
        """What an interrupted run has measured, without what is damaged."""
        if not self.progress.exists():
            if (self.partial / items.FOLDER).exists():
                log.warning("eval: %s is not there; all models are measured again", self.progress)
            return {}
        again = "all models are measured again"
        kept: dict[str, Any] = sealed.read_or_warn(self.progress, again, self._owner) or {}
        for name, measured in kept.items():
            for path, reason in self._damaged(measured).items():
                lost = [part for part, written in measured["written"].items() if path.name in written]
                said = "eval: %s %s; %s of %s is measured again"
                log.warning(said, path, reason, ", ".join(lost), name)
                measured["complete"] = False
                for part in lost:
                    del measured["written"][part]
                    named = {items.of_perplexity(name): name for name in measured.get("perplexities", {})}
                    measured.get("perplexities", {}).pop(named.get(part), None)
                    (measured if part == items.PERPLEXITY else measured["asked_tasks"]).pop(part, None)
        return kept

    def _damaged(self, measured: dict[str, Any]) -> dict[Path, str]:
        """Which files of items of a model are not as they were written, and why."""
        folder = self.partial / measured["items"]
        written = {file: one for part in measured["written"].values() for file, one in part.items()}
        return {folder / file: reason for file, one in written.items() if (reason := items.damage(folder / file, one))}

    def run(self, digests: dict[str, str], facts: dict[str, Any]) -> dict[str, Any]:
        """Measure what is missing and write ``results.json`` and ``results.md``.

        Args:
            digests: of the models that have one, by their names.
            facts: what the results say besides: "settings" and "versions".

        Returns:
            the results of the models, for the manifest.

        Raises:
            UnmeasurableError: a number is not finite; the model, the task and the item are named.

        """
        for position, (name, path) in enumerate(self.request.weights.items()):
            new: dict[str, Any] = {"items": items.folder(name, position), "asked_tasks": {}, "written": {}}
            measured = self.measured.setdefault(name, new)
            if measured.get("complete"):
                log.info("eval: %s was measured before the interruption", name)
                continue
            try:
                self._measure(name, path, measured)
            except UnmeasurableError as error:
                raise UnmeasurableError(f"{name}: {error}") from error
            measured["complete"] = True
            self._keep()
            gc.collect()
        models = {name: self._published(name, digests.get(name)) for name in self.request.models}
        if processes.rank() == 0:
            for measured in self.measured.values():
                for path, reason in self._damaged(measured).items():
                    raise LorsError(f"{path} {reason}: it was damaged since; the same command measures it again")
            results = {"models": models, **facts}
            files.write_json(self.partial / "results.json", results)
            (self.partial / "results.md").write_text(table.render(results))
        return {"models": models}

    def _measure(self, name: str, path: Path, measured: dict[str, Any]) -> None:
        weights = measure.model(path, trust_remote_code=self.request.trust_remote_code)
        if broken := weights["not_finite"]:
            raise UnmeasurableError(f"{len(broken)} tensors in {path} hold NaN or infinity, among them {broken[0]}")
        measured["sparsity"] = weights["sparsity"]
        model = self._load(name, path) if self._is_needed(measured) else None
        self._perplexity(name, model, measured)
        if self.request.samples and self._samples_left(measured):
            tokenizer = load.load_tokenizer(path, trust_remote_code=self.request.trust_remote_code)
            measured["samples"] = self.request.samples.answers(name, model, tokenizer)
            self._keep()
        if self.request.backend == "vllm":
            model = None
            gc.collect()
            torch.cuda.empty_cache()
        self._tasks(name, model, measured)

    def _left(self, measured: dict[str, Any]) -> list[Any]:
        """The benchmarks that are still to be asked."""
        asked = self.request.benchmarks.asked if self.request.benchmarks else []
        return [one for one in asked if one.name not in measured["asked_tasks"]]

    def _texts_left(self, measured: dict[str, Any]) -> dict[str, Text | Rows]:
        """What perplexity is still to be measured on."""
        known = metrics.perplexities(measured)
        return {name: text for name, text in self.request.texts.items() if name not in known}

    def _is_needed(self, measured: dict[str, Any]) -> bool:
        """Whether something is still to be measured with the model in memory."""
        tasks = self.request.backend == "transformers" and bool(self._left(measured))
        return tasks or bool(self._texts_left(measured)) or self._samples_left(measured)

    def _samples_left(self, measured: dict[str, Any]) -> bool:
        """Whether the model is still to be asked for samples."""
        return self.request.samples is not None and "samples" not in measured

    def _load(self, name: str, path: Path) -> Any:
        request = self.request
        make = load_packed if is_packed(path) else load.load_model
        model = make(path, request.dtype, request.device, trust_remote_code=request.trust_remote_code)
        return model if request.models[name] == path else place_adapter(model, request.models[name]).eval()

    def _keep(self) -> None:
        inputs.check()  # a number of another model is not to be gone on from
        if processes.rank() == 0:
            sealed.write_json(self.progress, self.measured, self._owner)

    def _keep_items(self, measured: dict[str, Any], part: str, values: dict[str, list[dict[str, Any]]]) -> None:
        """Write the items of a `part` of the evaluation, by task. A task may belong to several: the last one counts."""
        if processes.rank() == 0:
            for name, rows in values.items():
                path = self.partial / measured["items"] / f"{name}.jsonl.gz"
                digest_of_file = items.write(path, rows)
                for written in measured["written"].values():
                    written.update({path.name: digest_of_file} if path.name in written else {})
                measured["written"].setdefault(part, {})[path.name] = digest_of_file

    def _perplexity(self, name: str, model: Any, measured: dict[str, Any]) -> None:
        path, trust = self.request.weights[name], self.request.trust_remote_code
        for part, text in self._texts_left(measured).items():
            samples, facts = text.samples(load.load_tokenizer(path, trust_remote_code=trust), path)
            with console.progress(f"eval: {name}", len(samples[:: processes.count()])) as advance:
                losses = sample_losses(model, samples, partial(advance, metrics.called(part)))
            counts = [sample.counted for sample in samples]
            found = {**of_losses(losses, counts), **facts}
            longest = max(len(sample.ids) for sample in samples)
            if (positions := load.positions(model)) and longest > positions:
                found["positions"] = positions
            if part:
                measured.setdefault("perplexities", {})[part] = found
            else:
                measured["perplexity"] = found
            log.info("eval: %s %s %.4f", name, metrics.called(part), found["value"])
            rows = [
                {text.item: sample.number, "loss": loss, "tokens": count}
                for sample, loss, count in zip(samples, losses, counts, strict=True)
            ]
            file = items.of_perplexity(part)
            self._keep_items(measured, file, {file: rows})
            self._keep()

    def _tasks(self, name: str, model: Any, measured: dict[str, Any]) -> None:
        left = self._left(measured)
        if not left:
            return
        from lors_cli.evaluation import answering, harness  # lm-eval takes seconds to import

        request, path = self.request, self.request.weights[name]
        trust = request.trust_remote_code
        with console.third_party_output():
            if model is None:
                size = request.batch_size
                language_model = answering.by_vllm(path, request.dtype, request.seed, size, trust_remote_code=trust)
            else:
                tokenizer = load.load_tokenizer(path, trust_remote_code=trust)
                language_model = answering.in_memory(model, tokenizer, request.batch_size, f"eval: {name}")
        manager, run_code = request.benchmarks.manager, bool(request.allow_code_execution)
        chat = {"apply_chat_template": request.chat_template, "system_instruction": request.system}
        asking = harness.Harness(
            manager, language_model, request.limit, run_code=run_code, chat=chat if request.chat_template else {}
        )
        for asked in left:
            with console.third_party_output(), request.benchmarks.rendering():
                metrics, samples = asking.run(asked)
            self._keep_items(measured, asked.name, samples)
            measured["asked_tasks"][asked.name] = metrics
            shown = [f"{task} {table.cell(entry)}" for task, entry in metrics.items() if "group" not in entry]
            log.info("eval: %s %s", name, "; ".join(shown))
            self._keep()

    def _published(self, name: str, model_digest: str | None) -> dict[str, Any]:
        """The results of a model, as they are published."""
        measured = self.measured[name]
        asked = self.request.benchmarks.asked if self.request.benchmarks else []
        answered = [measured["asked_tasks"].get(one.name, {}) for one in asked]  # in the order of the request
        tasks = {task: entry for entries in answered for task, entry in entries.items()}
        average = table.average(tasks)
        return {
            "path": str(self.request.models[name].absolute()),
            **({"digest": model_digest} if model_digest else {}),
            **{key: measured[key] for key in ("sparsity", "perplexity", "perplexities", "items") if key in measured},
            **({"samples": measured["samples"]} if "samples" in measured else {}),
            "tasks": tasks,
            **({"average": average} if average is not None else {}),
        }
