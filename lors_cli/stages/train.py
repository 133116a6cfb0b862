"""``lors train``: pruned model -> <output_dir>/adapter."""

from pathlib import Path
from typing import Any

from lors_cli.config.schema import Config, Train
from lors_cli.errors import request_error
from lors_cli.models import load, source
from lors_cli.run import request
from lors_cli.run.graph import Graph, Input
from lors_cli.run.job import Job
from lors_cli.stages import common
from lors_cli.training import reading
from lors_cli.training.prepare import prepare as prepare_training
from lors_cli.training.train import train


def prepare(config: Config, graph: Graph) -> Job:
    """Check the request against the model's shapes and the data; read no weights.

    Raises:
        RequestError: it cannot be carried out.

    """
    section = common.section(config, "train", config.train)
    return job(config, section, graph.input("train", "pruned"))


def job(config: Config, section: Train, model: Input) -> Job:
    """The training of `section`, train or align, on `model`; errors as in `prepare`."""
    skeleton = model.skeleton(config)
    teacher, teacher_skeleton = _teacher(config, section, skeleton)
    training = prepare_training(config, section, skeleton, model.like, teacher_skeleton)
    return Job(
        stage=section.key,
        inputs={"pruned": model.path, **({"teacher": teacher} if teacher else {})},
        settings={**request.settings(config, section), "data": reading.identities(section)},
        config=config,
        work=lambda partial: train(training, model.path, teacher, partial),
        plan=training.plan(),
        resumable=True,
    )


def _teacher(config: Config, section: Train, skeleton: Any) -> tuple[Path | None, Any]:
    """The directory and the skeleton of the model to learn from, checked to have the student's vocabulary."""
    if section.distill is None:
        return None, None
    name, key = section.distill.teacher, f"{section.key}.distill.teacher"
    directory = source.resolve(config.model if name == "dense" else name, key)
    teacher = load.skeleton(directory, trust_remote_code=config.trust_remote_code)
    sizes = [model.config.get_text_config().vocab_size for model in (skeleton, teacher)]
    if sizes[0] != sizes[1]:
        expected = f"a model with the student's vocabulary of {sizes[0]} tokens"
        raise request_error(key, expected, f"{name} with {sizes[1]}", "distil from a model of the same family")
    return directory, teacher
