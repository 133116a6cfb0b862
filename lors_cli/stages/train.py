"""``lors train``: pruned model -> <output_dir>/adapter."""

from collections.abc import Generator
from pathlib import Path

from transformers import PreTrainedModel

from lors_cli.adapters.int4_linear import MOST_BITS
from lors_cli.artifacts import adapter_file
from lors_cli.config.schema import Config
from lors_cli.config.train import Train
from lors_cli.errors import request_error
from lors_cli.models import codes, effort, linears, load
from lors_cli.models.codes import Coded
from lors_cli.models.effort import Effort
from lors_cli.models.weights import open_weights
from lors_cli.run import request
from lors_cli.run.facts import Trained
from lors_cli.run.graph import Graph, Input
from lors_cli.run.job import Job, Trains
from lors_cli.stages import common, starting
from lors_cli.training import reading
from lors_cli.training.prepare import Training, check
from lors_cli.training.prepare import prepare as prepare_training
from lors_cli.training.train import train


def prepare(config: Config, graph: Graph) -> Generator[None, None, Job]:
    """Check the request against the model's shapes and the data; read no weights.

    Raises:
        RequestError: it cannot be carried out.

    """
    section = common.section(config, "train", config.train)
    return (yield from job(config, section, graph))


def job(config: Config, section: Train, graph: Graph) -> Generator[None, None, Job]:
    """The training of `section`, train or align; errors as in `prepare`."""
    common.check_row(f"{section.key}.method", section.method, section.computed.mistake())
    check(config, section)
    yield
    model = graph.input(section.key, "pruned")
    skeleton = model.skeleton(config, quantized=True)
    teacher = graph.input(section.key, "teacher") if section.distill else None
    coded = _coded(config, section, model, skeleton)
    learnt_from = _teacher(config, section, skeleton, teacher)
    settings = {**request.settings(config, section), "data": reading.identities(section)}
    for key in ("adapter", "resume_from"):  # they are inputs, which count by their content
        settings.pop(key)
    begins = starting.beginning(config, section, graph, skeleton, settings)
    training = prepare_training(
        config, section, skeleton, model.like, teacher=learnt_from, coded=coded, beginning=begins
    )

    def work(partial: Path) -> Trained:
        if begins and model.maker:  # which has made it by now
            content = adapter_file.load(begins.path, begins.key)
            starting.check_model(begins.key, begins.path, content, model, skeleton)
        return Trained(**train(training, model.path, teacher.path if teacher else None, partial))

    return Job(
        stage=section.key,
        inputs={
            "pruned": model.path,
            **({"teacher": teacher.path} if teacher else {}),
            **({begins.key.rpartition(".")[2]: begins.path} if begins else {}),
        },
        settings=settings,
        config=config,
        work=work,
        plan=training.plan(),
        effort=_effort(training, skeleton),
        resumable=True,
        trains=Trains(
            numbers=training.needs.trained,
            weight_bytes=load.weight_bytes(skeleton, training.dtype),
            steps=training.batching.steps,
            shape=skeleton.config,
        ),
    )


def _effort(training: Training, skeleton: PreTrainedModel) -> Effort:
    section, steps = training.section, training.batching.steps
    samples = steps * section.samples_per_step
    held = len(training.data.held_out) * section.sequence_length * max(steps // (section.eval_steps or steps), 1)
    return effort.trained(
        skeleton,
        training.dtype,
        samples * section.sequence_length,
        samples // section.samples_per_forward,
        training.needs.trained,
        recompute=section.gradient_checkpointing,
        whole=section.method == "full",
        held=held,
    )


def _coded(config: Config, section: Train, model: Input, skeleton: PreTrainedModel) -> Coded | None:
    """The codes of the model that is trained, if training keeps them.

    Raises:
        RequestError: it has none, or of too many bits.

    """
    if section.base != "int4":
        return None
    key, grid = f"{section.key}.base", model.grid
    if grid is None:
        remedy = f"quantise it first (`lors quantize`) and set {section.key}.input to that, or write base: dense"
        got = f"int4 for {model.path}, whose weights are floats"
        raise request_error(key, "int4 for a quantised model", got, remedy)
    if grid.bits > MOST_BITS:
        got = f"int4 for {model.path} with {grid.bits} bits"
        raise request_error(key, f"int4 for a model with codes of at most {MOST_BITS} bits", got, "write base: dense")
    if model.maker is None:
        return Coded(grid, codes.coded(open_weights(model.path, skeleton, f"{section.key}.input")))
    patterns = config.quantize.targets if model.maker == "quantize" and config.quantize else None
    return Coded(grid, linears.select(list(linears.shapes(skeleton)), patterns, "quantize.targets"))


def _teacher(config: Config, section: Train, student: PreTrainedModel, teacher: Input | None) -> PreTrainedModel | None:
    """The skeleton of the model to learn from, checked to have the vocabulary of the (skeleton) student."""
    if teacher is None:
        return None
    skeleton = teacher.skeleton(config)
    sizes = [model.config.get_text_config().vocab_size for model in (student, skeleton)]
    if sizes[0] != sizes[1]:
        expected, got = f"a model with the student's vocabulary of {sizes[0]} tokens", f"{teacher.path} with {sizes[1]}"
        remedy = "distil from a model of the same family"
        raise request_error(f"{section.key}.distill.teacher", expected, got, remedy)
    return skeleton
