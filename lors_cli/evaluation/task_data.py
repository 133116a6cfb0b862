"""The local data of lm-eval's tasks, read anew where its content is new.

The library datasets keeps what it has read of local files by their paths and the times at which they were changed, and
what it has unpacked of them by their paths alone. Here it keeps both by the digests of the files.
"""

import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets

from lors_cli.artifacts import digest, inputs
from lors_cli.evaluation.task_rules import BUILDERS

# The options that say how to load a data set and not what it is.
READ, BUILT = (inspect.signature(way).parameters for way in (datasets.load_dataset, datasets.load_dataset_builder))
OF_LOADING = READ.keys() - BUILT.keys()


@contextmanager
def by_content() -> Iterator[list[Path]]:
    """Within it, data sets of local files are what these hold; the files are added to the list that it gives.

    Raises:
        InputChangedError: a file goes on changing while it is read.

    """
    original, read = datasets.load_dataset, list[Path]()

    def load_dataset(path: str, *args: Any, **options: Any) -> Any:
        files = _local_files(path, *args, **options)
        read.extend(files)
        if not files:
            return original(path, *args, **options)

        def load() -> Any:
            content = digest.of_value({str(file): inputs.of_file(file) for file in files})
            place = os.path.join(datasets.config.HF_DATASETS_CACHE, "by_content", content)
            return original(path, *args, **{**options, "cache_dir": place})

        return inputs.steadily(files, load)

    datasets.load_dataset = load_dataset
    try:
        yield read
    finally:
        datasets.load_dataset = original


def _local_files(path: str, *args: Any, **options: Any) -> list[Path]:
    """The files of this machine that a data set is made of, as the library finds them; none of one of the hub."""
    if path not in BUILDERS and not os.path.exists(path):
        return []
    known = {name: value for name, value in options.items() if name not in OF_LOADING}
    found = datasets.load_dataset_builder(path, *args, **known).config.data_files or {}
    named = [Path(file) for files in found.values() for file in map(str, files) if "://" not in file]
    beside = sorted(file for file in Path(path).absolute().rglob("*") if file.is_file())  # they say how to read it
    return list(dict.fromkeys([*named, *(beside if path not in BUILDERS else [])]))
