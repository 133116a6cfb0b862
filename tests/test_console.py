"""What a terminal of 80 columns shows: the bar in its frames, and messages above it."""

import io
import logging
import os
import pty
import re
import sys
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stderr, suppress
from pathlib import Path

import pytest
from rich.console import Console

from lors_cli import console
from lors_cli.cli import app
from lors_cli.progress_bar import REFRESHES, ProgressBar, wrapped

LONG = ("block 27 of 32", "pruning gate_proj, up_proj", "12,345 tokens/s", "peak 12.34 GB")
LOSSES = ("loss 2.3456", "eval_loss 2.1234", "12345 tokens/s", "peak 12.34 GB")


def frame(bar: ProgressBar, width: int = 80) -> str:
    shown = io.StringIO()
    Console(file=shown, width=width, force_terminal=True, color_system=None).print(bar)
    text = shown.getvalue()
    assert text.count("\n") == 1, "one line, whatever the width"
    assert len(text.rstrip()) <= width
    return text.rstrip()


@pytest.mark.parametrize("label", ["prune", "quantize", "align: step", "train: initialising, pass"])
@pytest.mark.parametrize("parts", [LONG, LOSSES, ("x" * 30, *LOSSES), ()])
@pytest.mark.parametrize("counted", [True, False])
def test_a_frame_has_the_share_the_time_left_and_where_it_is(
    label: str, parts: tuple[str, ...], counted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("lors_cli.progress_bar.time.monotonic", lambda: now)
    bar = ProgressBar(label, 12800, 800, counted=counted)
    bar.advance(parts, 0)
    assert "6% -:--:-- left" in frame(bar), "nothing is known of the speed yet"
    now = 100.0
    bar.advance((), 2400)
    now = 160.0
    shown = frame(bar)
    assert re.search(r" 25% 0:05:40 left( |$)", shown), "400 s after the last step, 60 s ago"
    assert ("3200/12800" in shown) == counted
    assert shown.startswith(label)
    said = shown.partition(" left ")[2]
    assert set(said.split(", ")) <= {*", ".join(parts).split(", "), ""}, "no word is cut"
    if len(parts) and len(parts[0]) < 30:
        assert parts[0] in shown
    assert " 25% 0:05:40 left" in frame(bar, 60)


def test_the_words_that_fit_are_shown_in_their_order() -> None:
    bar = ProgressBar("prune", 100, 0, counted=False)
    bar.advance(LONG, 1)
    assert frame(bar, 200).endswith(", ".join(LONG))
    assert frame(bar).endswith("left block 27 of 32, pruning gate_proj, up_proj")
    assert frame(bar, 72).endswith("left block 27 of 32, 12,345 tokens/s")


def test_lines_are_broken_between_words_and_commands_stay_whole() -> None:
    text = f"warning: {'word ' * 20}then `lors merge runs/x/config.yaml --force` and /a/{'b' * 90}\n| a |{' ' * 90}|"
    lines = wrapped(text, 40).splitlines()
    assert " ".join(lines[:-1]).split() == text.splitlines()[0].split()
    assert any("`lors merge runs/x/config.yaml --force`" in line for line in lines)
    assert [line for line in lines if len(line) > 40] == [f"/a/{'b' * 90}", text.splitlines()[1]]


def seen_on_terminal(work: Callable[[], None]) -> str:
    """What `work` writes on stderr, a terminal of 80 columns."""
    ours, theirs = pty.openpty()
    seen = []

    def read() -> None:  # meanwhile: a terminal that nobody reads is full after a few lines, and work waits for it
        with os.fdopen(ours, "rb", buffering=0) as terminal, suppress(OSError):  # Linux's end of a terminal
            while part := terminal.read(4096):
                seen.append(part)

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(theirs, "w") as stream, redirect_stderr(stream):
        console.setup(0)
        work()
    logging.getLogger("lors_cli").handlers.clear()
    reader.join()
    return b"".join(seen).decode()


def test_messages_come_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm-256color")
    seen = seen_on_terminal(_work)
    plain = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line).strip("\r ") for line in seen.split("\n")]
    shown = [line.rpartition("\r")[2] for line in plain]
    assert not [line for line in shown if "message" in line and "train" in line], "none on the bar"
    message = next(number for number, line in enumerate(shown) if line.startswith("warning: a message"))
    assert re.match("(of )?words", shown[message + 1])
    assert all(len(line) <= 80 for line in shown)
    assert "a library's own line" in shown
    assert re.search("train: step 1/10 .* loss 2.5, peak 1.00 GB", seen)
    assert "inner" not in seen, "one bar is enough"
    assert shown[-2] == "after it"


def test_a_training_says_where_it_is_in_every_frame(
    write_config: Callable[..., Path], pruned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a real one, at 80 columns: the share, the time left, the step, and after the first step its loss."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(console, "REFRESHES", 100)  # its steps take milliseconds
    config = write_config(prune=..., train__input=str(pruned), train__max_steps=12)
    seen = seen_on_terminal(lambda: app(["train", str(config)], standalone_mode=False))
    drawn = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", part).strip() for part in re.split(r"[\r\n]", seen)]
    frames = [line for line in drawn if re.match(r"train: step \d+/12 ", line)]
    steps = [int(frame.split()[2].partition("/")[0]) for frame in frames]
    assert len(set(steps)) > 2, "several frames are seen"
    assert steps == sorted(steps)
    for frame, step in zip(frames, steps, strict=True):
        assert len(frame) <= 80
        assert re.search(rf" {100 * step // 12}% (\d+:\d\d:\d\d|-:--:--) left", frame), frame
        assert step < 2 or re.search(r" left loss \d+\.\d+", frame), frame


def _work() -> None:
    with console.progress("train: step", 10) as advance, console.progress("inner", 10) as inner:
        advance("loss 2.5", "peak 1.00 GB")
        inner("not drawn over the other")
        console.log.warning("a message %s", "of words " * 12)
        sys.stderr.write("a library's own line\n")
        time.sleep(1.5 / REFRESHES)
        advance("loss 2.25")
    console.log.info("after it")
