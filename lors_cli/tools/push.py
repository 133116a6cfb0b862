"""``lors push``: a directory that lors published -> a repository of the Hugging Face hub.

The directory stays as it is. What goes up is its files that are a model's, an adapter's or lors's own, with two
changes in a copy: absolute paths are reduced to their last parts and secrets removed, and the card gains the results of
the run's evaluation of just this model.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from lors_cli import console
from lors_cli.artifacts import adapter_file, companions, digest, model_files, temporary
from lors_cli.artifacts.files import CARD, read_object
from lors_cli.artifacts.public import without_places
from lors_cli.errors import LorsError, first_line, request_error
from lors_cli.models import source
from lors_cli.run import manifest, places, seal
from lors_cli.run.manifest import Manifest
from lors_cli.tools import push_card

log = logging.getLogger(__name__)

KEY = "DIRECTORY"
# What lors writes into a directory besides the model or the adapter.
WRITTEN = (manifest.NAME, CARD, "training_log.jsonl", model_files.INDEX, adapter_file.CONFIG, adapter_file.WEIGHTS)
REFUSALS = {
    401: "the hub does not know the token: log in again with `hf auth login`",
    403: "the token may not do that: it needs the right to write to the repository (hf.co/settings/tokens)",
    404: "there is no such repository or branch, or the token may not see it",
}


@dataclass(frozen=True)
class Target:
    """Where to push, and how; the fields are the options of the command."""

    repo_id: str
    private: bool = False
    revision: str | None = None
    message: str | None = None
    create_pr: bool = False


def push(directory: Path, target: Target, *, dry_run: bool = False) -> None:
    """Upload a published model or adapter, or say what would be uploaded.

    Raises:
        RequestError: the directory is not as lors published it, the target is not a repository or holds other weights,
            there is no token, or the network is switched off; nothing was sent.
        LorsError: the hub refused or could not be reached.

    """
    made = _published(directory)
    try:
        validate_repo_id(target.repo_id)
    except HFValidationError as error:
        raise request_error("REPO_ID", "owner/name", f"{target.repo_id!r}: {error}", "correct it") from None
    if not dry_run:
        _check_access()
    with temporary.directory("push") as copies:
        files = _files(directory, made, target.repo_id, copies)
        if dry_run:
            console.result(_listing(directory, files))
        else:
            _send(files, made, target)


def _published(directory: Path) -> Manifest:
    """The manifest of a directory that is as lors published it."""
    places.exists("DIRECTORY", directory)
    made = manifest.read(directory)
    if made is None:
        got = (
            f"{directory}, which has no {manifest.NAME}"
            if directory.is_dir()
            else f"{directory}, which is not a directory"
        )
        raise request_error(KEY, "a directory that lors published", got, "name one such as runs/x/merged")
    if (directory / adapter_file.CONFIG).is_file():
        adapter_file.read_config(directory, KEY)
    else:
        source.require_model(directory, KEY)
    if damage := seal.damage(directory, made):
        got = f"{directory}, in which a file was damaged or edited since: {damage}"
        raise request_error(KEY, "the files as lors published them", got, "make it again with --force")
    return made


def _check_access() -> None:
    if constants.HF_HUB_OFFLINE:
        raise request_error("HF_HUB_OFFLINE", "a network to push over", "offline mode", "unset it, or use --dry-run")
    if get_token() is None:
        remedy = "log in with `hf auth login`, or set HF_TOKEN; --dry-run does not need a token"
        raise request_error("HF_TOKEN", "a token that may write to the hub", "none", remedy)


def _files(directory: Path, made: Manifest, repo_id: str, copies: Path) -> dict[str, Path]:
    """What goes up, by its name there: the files of the directory that lors wrote, or changed copies of them."""
    code = bool(made.config.get("trust_remote_code"))
    is_adapter = (directory / adapter_file.CONFIG).is_file()
    weights = [] if is_adapter else model_files.weight_files(directory)
    files = {
        name: path
        for name, path in model_files.files(directory).items()
        if name in WRITTEN or path in weights or companions.belongs(name, trust_remote_code=code)
    }

    def change(name: str, text: str) -> None:
        files[name] = copies / name
        files[name].write_text(text, encoding="utf-8")

    for name in {*companions.CONFIGS, adapter_file.CONFIG} & files.keys():
        notes = read_object(files[name])
        if (public := companions.cleaned(notes, trust_remote_code=code)) != notes:
            change(name, json.dumps(public, indent=2) + "\n")
    change(CARD, push_card.card(directory, made, repo_id))
    shown = manifest.parse(without_places(made.content) | {"digest": digest.of_files(files)})
    if made.seal:
        shown = seal.sealed(shown, {name: path for name, path in files.items() if name != manifest.NAME})
    change(manifest.NAME, json.dumps(shown.content, indent=2) + "\n")
    return dict(sorted(files.items()))


def _listing(directory: Path, files: dict[str, Path]) -> str:
    rows = [
        [name, f"{path.stat().st_size:,}", "" if path.is_relative_to(directory) else "changed copy"]
        for name, path in files.items()
    ]
    inside = [path.name for path in directory.iterdir() if path.is_file() or path.name not in model_files.FOLDERS]
    left = sorted({*inside, *model_files.files(directory)} - files.keys())
    total = sum(path.stat().st_size for path in files.values())
    return "\n".join(
        [
            console.markdown_table(["file", "bytes", ""], rows),
            f"\n{len(files)} files, {total:,} bytes, would be sent"
            + (f"; not sent: {', '.join(left)}" if left else ""),
            f"\n{CARD}:\n\n{files[CARD].read_text()}",
        ]
    )


def _send(files: dict[str, Path], made: Manifest, target: Target) -> None:
    api = HfApi()
    size = sum(path.stat().st_size for path in files.values())
    try:
        repo_id = api.create_repo(target.repo_id, private=target.private or None, exist_ok=True).repo_id
        if target.revision and not target.create_pr:
            api.create_branch(repo_id, branch=target.revision, exist_ok=True)
        _check_repository(api.repo_info(repo_id, revision=target.revision), files, target)
        log.info("push: %d files, %.3f GB, to %s/%s", len(files), size / 1e9, api.endpoint, repo_id)
        done = api.create_commit(
            repo_id,
            [CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in files.items()],
            commit_message=target.message or f"Upload what lors {made.stage} made",
            revision=target.revision,
            create_pr=target.create_pr,
        )
    except LorsError:
        raise
    except Exception as error:  # the hub client raises many types, its transport's among them
        raise _explained(error, target, api.endpoint) from error
    console.result(done.pr_url or done.commit_url)


def _check_repository(info: Any, files: dict[str, Path], target: Target) -> None:
    """Refuse to make public what should be private, and to mix weights.

    Raises:
        RequestError: either; nothing was sent.

    """
    if target.private and info.private is False:
        got = f"{target.repo_id}, which is public"
        raise request_error("--private", "a private repository", got, "make it private there, or name another")
    others = [file.rfilename for file in info.siblings or [] if ".safetensors" in file.rfilename]
    if others := sorted(set(others) - files.keys()):
        got = f"{target.repo_id} with {others[0]}" + (f" and {len(others) - 1} more" if others[1:] else "")
        remedy = "name another repository, or delete those files there: transformers might load them instead"
        raise request_error("REPO_ID", "a repository without other weights", got, remedy)


def _explained(error: Exception, target: Target, endpoint: str) -> LorsError:
    """The hub's error in a message that says what to do."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    reason = first_line(error)
    if status is None:
        remedy = f"check the network and {endpoint}; the same command goes on and skips what is there already"
    else:
        remedy = REFUSALS.get(status, "try again later")
    return LorsError(f"{target.repo_id} was not pushed: {reason}\n  {remedy}")
