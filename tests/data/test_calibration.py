import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from lors_cli.config.prune import CalibrationDataset
from lors_cli.data import calibration, formats
from lors_cli.data.sources import Source
from lors_cli.errors import RequestError

Rows = list[dict[str, Any]]
Make = Callable[..., Source]

TEXT: Rows = [{"text": f"Row {i} says: {'word ' * (i % 7)}{i * 37}."} for i in range(60)]
CHAT: Rows = [
    {
        "messages": [
            {"role": "user", "content": f"What is {i} times {i + 1}?"},
            {"role": "assistant", "content": f"That is {i * (i + 1)}, {'quite ' * (i % 5)}sure."},
        ]
    }
    for i in range(40)
]
TOKENS: Rows = [{"input_ids": [(7 * i + 3 * j) % 384 for j in range(10 + i)]} for i in range(40)]
KINDS: dict[str, Rows] = {"text": TEXT, "chat": CHAT, "tokens": TOKENS}
LENGTH = 16


@pytest.fixture
def make(jsonl: Callable[..., Path]) -> Make:
    def write(rows: Rows, **options: Any) -> Source:
        return Source(path=str(jsonl(rows)), key="prune.calibration.dataset", **options)

    return write


@pytest.fixture(autouse=True)
def _heard(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("lors_cli"), "propagate", True)
    caplog.set_level(logging.WARNING)


def documents(kind: str, rows: Rows, tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    """The tokens of each row, from the definition."""
    if kind == "tokens":
        return [row["input_ids"] for row in rows]
    if kind == "chat":
        rendered = [
            "".join(f"<|{m['role']}|>{m['content']}<|end|>" for m in row["messages"]) for row in rows
        ]  # the template of conftest.py
        return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in rendered]
    return [tokenizer(row["text"])["input_ids"] for row in rows]


def windows(
    source: Source,
    tokenizer: PreTrainedTokenizerFast,
    count: int,
    kind: str | None = None,
    *,
    length: int = LENGTH,
    sampling: str = "concat",
    seed: int = 0,
) -> Tensor:
    return calibration.calibration_windows(source, kind, tokenizer, length, count, sampling=sampling, seed=seed)


@pytest.mark.parametrize("said", [False, True])
@pytest.mark.parametrize("kind", list(KINDS))
def test_concat_cuts_the_rows_one_after_another(
    make: Make, tokenizer: PreTrainedTokenizerFast, kind: str, said: bool
) -> None:
    rows = KINDS[kind]
    joined = [token for ids in documents(kind, rows, tokenizer) for token in ids]
    if kind == "text":
        joined = tokenizer("\n\n".join(row["text"] for row in rows), add_special_tokens=False)["input_ids"]
    for count in (1, 7, len(joined) // LENGTH):
        tokens = windows(make(rows), tokenizer, count, kind if said else None)
        assert tokens.dtype == torch.long
        assert tokens.tolist() == [joined[LENGTH * i : LENGTH * (i + 1)] for i in range(count)]
    with pytest.raises(RequestError, match=rf"text for {count + 1} windows of 16 tokens"):
        windows(make(rows), tokenizer, count + 1)


@pytest.mark.parametrize("kind", list(KINDS))
def test_random_windows_lie_within_one_row(make: Make, tokenizer: PreTrainedTokenizerFast, kind: str) -> None:
    rows = KINDS[kind]
    known = documents(kind, rows, tokenizer)
    length = sorted(map(len, known))[len(known) // 2]  # half of the rows are too short
    places = {
        tuple(ids[start : start + length]): (row, start)
        for row, ids in enumerate(known)
        for start in range(len(ids) - length)
    }
    tokens = windows(make(rows), tokenizer, 60, sampling="random", length=length, seed=5)
    assert tokens.shape == (60, length)
    drawn = {places[tuple(window)] for window in tokens.tolist()}
    assert len({row for row, _ in drawn}) > 5
    assert len({start for _, start in drawn}) > 2
    assert torch.equal(tokens, windows(make(rows), tokenizer, 60, sampling="random", length=length, seed=5))
    assert not torch.equal(tokens, windows(make(rows), tokenizer, 60, sampling="random", length=length, seed=6))


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_search_for_long_rows_ends(make: Make, tokenizer: PreTrainedTokenizerFast, kind: str) -> None:
    with pytest.raises(RequestError, match=rf"{len(KINDS[kind])} documents are all shorter"):
        windows(make(KINDS[kind]), tokenizer, 2, sampling="random", length=5000)


def test_only_the_start_of_long_rows_of_tokens_is_read(make: Make, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [*TOKENS[:5], {"input_ids": "not read"}]
    read = sum(len(row["input_ids"]) for row in TOKENS[:5])
    assert windows(make(rows), tokenizer, read // LENGTH).shape == (read // LENGTH, LENGTH)


@pytest.mark.parametrize(
    ("wrong", "shown"),
    [
        ([5, 384], "384"),
        ([5, -1], "-1"),
        ([5, 1.0], "1.0"),
        ([5, True], "True"),
        ([5, None], "None"),
        (["5"], "'5'"),
        ("5 6", "'5 6'"),
        (None, "None"),
        ([[5, 6]], "[[5, 6]]"),
    ],
)
def test_wrong_ids_name_the_row(make: Make, tokenizer: PreTrainedTokenizerFast, wrong: object, shown: str) -> None:
    for sampling in ("concat", "random"):
        with pytest.raises(RequestError) as caught:
            windows(make([*TOKENS[:2], {"input_ids": wrong}, *TOKENS]), tokenizer, 40, sampling=sampling)
        (problem,) = caught.value.problems
        assert problem.expected == f"a list of token ids from 0 to {len(tokenizer) - 1} in every row"
        assert "row 3: " in problem.got
        assert shown in problem.got


def test_the_largest_id_and_no_tokens_at_all_are_fine(make: Make, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [{"input_ids": []}, {"input_ids": [383, 0] * 8}, {"input_ids": []}, {"input_ids": [1] * 16}]
    assert windows(make(rows), tokenizer, 2).tolist() == [[383, 0] * 8, [1] * 16]


@pytest.mark.parametrize(
    ("row", "options", "expected"),
    [
        ({"text": "a"}, {}, "text"),
        ({"body": "a"}, {"field": "body"}, "text"),
        ({"messages": []}, {}, "chat"),
        ({"conversations": [], "text": "rendered"}, {}, "chat"),
        ({"input_ids": [1]}, {}, "tokens"),
        ({"tokens": [1], "text": "what they say"}, {}, "tokens"),
        ({"trace": [1, 2], "text": "what they say"}, {"field": "trace"}, "tokens"),
    ],
)
def test_formats_are_told_by_the_fields(
    make: Make, row: dict[str, Any], options: dict[str, Any], expected: str
) -> None:
    source = make([row], **options)
    assert formats.of_calibration(row, source, None) == expected
    assert formats.of_calibration(row, source, expected) == expected
    calibration.check(source, None)
    for other in set(formats.CALIBRATION) - {expected}:
        if other == "text" and isinstance(row.get("text"), str) and not options:
            assert formats.of_calibration(row, source, "text") == "text"  # as asked, though it has other fields too
            continue
        with pytest.raises(RequestError, match=f"rows of {other}") as caught:
            formats.of_calibration(row, source, other)
        assert caught.value.problems[0].key == "prune.calibration.dataset.format"


@pytest.mark.parametrize("row", [{"txt": "a"}, {"text": 5}, {"text": ["a"]}, {"message": []}])
def test_rows_of_no_format_are_an_error(make: Make, tokenizer: PreTrainedTokenizerFast, row: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=r"messages \(chat\) or input_ids \(tokens\)") as caught:
        windows(make([row]), tokenizer, 1)
    assert caught.value.problems[0].key == "prune.calibration.dataset.field"
    assert str(sorted(row)) in caught.value.problems[0].got
    with pytest.raises(RequestError):
        calibration.check(make([row]), None)


def test_an_unknown_format_names_the_known() -> None:
    assert CalibrationDataset.model_validate({"path": "a.jsonl", "format": "chat"}).format == "chat"
    assert CalibrationDataset.model_validate("a.jsonl").format is None
    with pytest.raises(ValueError, match="'text', 'chat' or 'tokens'"):
        CalibrationDataset.model_validate({"path": "a.jsonl", "format": "token"})


def test_a_field_of_another_name(make: Make, tokenizer: PreTrainedTokenizerFast) -> None:
    renamed = [{"trace": row["input_ids"], "text": "unused"} for row in TOKENS]
    expected = windows(make(TOKENS), tokenizer, 5)
    assert torch.equal(windows(make(renamed, field="trace"), tokenizer, 5), expected)
    assert torch.equal(windows(make([{"tokens": row["input_ids"]} for row in TOKENS]), tokenizer, 5), expected)


def test_a_tokenizer_without_a_template_cannot_read_chat(make: Make, tokenizer: PreTrainedTokenizerFast) -> None:
    plain = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(RequestError, match="a tokenizer with a chat template"):
        windows(make(CHAT), plain, 1)


def test_few_distinct_tokens_warn(
    make: Make, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    """Fewer than a hundredth of the vocabulary of 384, that is up to three; and one token in few."""
    for distinct, count, warned in ((1, 40, True), (3, 40, True), (4, 40, False), (30, 40, False), (1, 4, True)):
        caplog.clear()
        rows = [{"input_ids": [place % distinct for place in range(16 * count)]}]
        windows(make(rows), tokenizer, count)
        said = [record.getMessage() for record in caplog.records]
        assert len(said) == warned
        if warned:
            assert said[0].endswith(f"the {count} windows have only {distinct} different tokens, which tells little")


@pytest.mark.parametrize("kind", list(KINDS))
def test_ordinary_rows_do_not_warn(
    make: Make, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    windows(make(KINDS[kind]), tokenizer, 20)
    windows(make(KINDS[kind]), tokenizer, 20, sampling="random")
    assert not caplog.records


def test_a_script_that_the_tokenizer_does_not_know_warns(
    make: Make, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    windows(make([{"text": "".join(chr(0x4E00 + i) for i in range(200))}]), tokenizer, 4)
    assert "does not know this script" in caplog.text
