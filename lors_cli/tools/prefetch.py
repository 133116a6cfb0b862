"""``lors eval --prefetch``: fetch everything that a config needs from the hub, for a machine without a network."""

import logging

from lors_cli.config.fields import named_datasets
from lors_cli.config.schema import Config
from lors_cli.errors import Problem, RequestError
from lors_cli.models import source
from lors_cli.run import layout, manifest
from lors_cli.run.graph import Graph
from lors_cli.run.layout import EVALUATED, STAGES
from lors_cli.stages import evaluate

log = logging.getLogger(__name__)


def prefetch(config: Config) -> list[str]:
    """Fetch the models, the data sets and the tasks' data of all sections into the hub's caches.

    Returns:
        what there is now, a line for each; and what the stages of the config will make.

    Raises:
        RequestError: something could not be had; all of it is named, and the rest was fetched.

    """
    section = config.eval
    lines: list[str] = []
    problems: list[Problem] = []
    graph = Graph(config, ["eval"])
    for name in dict.fromkeys(["dense", *(section.models if section else [])]):
        maker = STAGES.get(EVALUATED.get(name, ""))
        if maker and not (maker.output(config.output_dir) / manifest.NAME).is_file():
            lines.append(f"{name}: made by the config's own stages")
            continue
        try:
            path = graph.input("eval", name).path if section else source.resolve(config.model)
            lines.append(f"{name}: {source.complete(path)}")
        except RequestError as error:
            problems += error.problems
    stages = [stage for stage in STAGES if stage != "eval" and getattr(config, stage) is not None]
    named = dict(one for stage in stages for one in layout.named(config, stages, stage))
    for key, given in named.items():
        if given != config.model and not key.endswith(layout.ADAPTERS):  # adapters are never of a hub
            try:
                lines.append(f"{key}: {source.complete(source.resolve(given, key))}")
            except RequestError as error:
                problems += error.problems
    for key, dataset in named_datasets(config):
        try:
            next(dataset.model_copy(update={"limit": None}).source(key).rows())  # all: a limited one is only streamed
            lines.append(f"{key}: {dataset.path}")
        except RequestError as error:
            problems += error.problems
    try:
        if section and (benchmarks := evaluate.benchmarks(section)):
            lines += [f"task {asked.name}: {len(asked.objects)} with data" for asked in benchmarks.asked]
    except RequestError as error:
        problems += error.problems
    if problems:
        for line in lines:
            log.info("%s", line)
        raise RequestError(*problems)
    return lines
