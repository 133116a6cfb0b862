"""Training examples: token ids, and labels that leave out what the model is not to learn (-100).

alpaca    {instruction, input?, output}      the answer is learnt, with the end token; the prompt is not
chat      {messages: [{role, content}]}      the assistant's turns are learnt, by the tokenizer's own template
text      {text}                             every token; rows joined and cut into windows
"""

import logging
from dataclasses import replace
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from lors_cli.data.sources import Row, Source
from lors_cli.data.windows import concatenated
from lors_cli.errors import request_error

log = logging.getLogger(__name__)

FORMATS = ("alpaca", "chat", "text")
IGNORED = -100

# The prompts of Stanford Alpaca (Taori et al. 2023), which the papers train with.
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
ALPACA_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
# ShareGPT names of the roles
ROLES = {"human": "user", "gpt": "assistant"}

Example = dict[str, list[int]]


def recognise(row: Row, source: Source) -> str:
    """The format of a data set, told by the fields of its first row.

    Raises:
        RequestError: they fit no format.

    """
    if "instruction" in row and "output" in row:
        return "alpaca"
    if "messages" in row or "conversations" in row:
        return "chat"
    if (source.field or "text") in row:
        return "text"
    raise request_error(
        f"{source.key}.format",
        "rows with instruction and output (alpaca), messages (chat), or text (text)",
        f"{source.path} with the fields {sorted(row)}",
        f"rename the fields, or set {source.key}: {{path: ..., format: text, field: NAME}}",
    )


def examples(
    source: Source, tokenizer: PreTrainedTokenizerBase, length: int, kind: str | None
) -> tuple[list[Example], dict[str, Any]]:
    """All training examples of at most `length` tokens, and what was found and dropped.

    Rows whose learnt part lies wholly beyond `length` are dropped: their loss would be a division by zero.

    Raises:
        RequestError: a row lacks a field, or no example is left.

    """
    kind = kind or recognise(next(source.rows()), source)
    if kind == "text":
        windows = concatenated(source, tokenizer, length, None).tolist()
        found = [{"input_ids": ids, "labels": ids} for ids in windows]
        return found, {"format": kind, "examples": len(found), "tokens": len(found) * length}
    encode = {"alpaca": _alpaca, "chat": conversation}[kind]
    every = [encode(row, number, source, tokenizer) for number, row in enumerate(source.rows(), 1)]
    cut = [{key: ids[:length] for key, ids in example.items()} for example in every]
    kept = [example for example in cut if any(label != IGNORED for label in example["labels"][1:])]
    if not kept:
        raise request_error(
            source.key,
            f"at least one row whose answer begins within {length} tokens",
            f"{source.path}: none of {len(every)} rows",
            "raise train.sequence_length",
        )
    return kept, {
        "format": kind,
        "examples": len(kept),
        "dropped": len(every) - len(kept),
        "truncated": sum(len(example["input_ids"]) > length for example in every),
        "tokens": sum(len(example["input_ids"]) for example in kept),
    }


def check(source: Source, kind: str | None) -> None:
    """Read the first row and check its fields: what can be said without a tokenizer.

    Raises:
        RequestError: the source cannot be read, is empty, or lacks a field.

    """
    row = next(source.rows())
    kind = kind or recognise(row, source)
    if kind == "text":
        next(replace(source, limit=1).texts())
    elif kind == "alpaca":
        _fields(row, 1, source)
    else:
        _messages(row, 1, source)


def _alpaca(row: Row, number: int, source: Source, tokenizer: PreTrainedTokenizerBase) -> Example:
    fields = _fields(row, number, source)
    prompt = (ALPACA_WITH_INPUT if fields["input"] else ALPACA_WITHOUT_INPUT).format(**fields)
    text = prompt + fields["output"]
    example = _encode(text, [(len(prompt), len(text))], tokenizer, special=True)
    if tokenizer.eos_token_id is not None and example["input_ids"][-1:] != [tokenizer.eos_token_id]:
        for ids in example.values():
            ids.append(tokenizer.eos_token_id)
    return example


def _encode(text: str, learnt: list[tuple[int, int]], tokenizer: PreTrainedTokenizerBase, *, special: bool) -> Example:
    """Tokenise `text` in one piece, as the model will see it, and learn the tokens within the ranges of characters."""
    encoded = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True, verbose=False)
    labels = [
        token if any(start <= begin < end <= stop for start, stop in learnt) else IGNORED
        for token, (begin, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    ]
    return {"input_ids": list(encoded["input_ids"]), "labels": labels}


def _fields(row: Row, number: int, source: Source) -> dict[str, str]:
    fields = {name: row.get(name) for name in ("instruction", "input", "output")}
    fields["input"] = fields["input"] or ""
    for name, value in fields.items():
        if not isinstance(value, str):
            raise _row_error(source, number, f"the field {name!r} with text", f"fields {sorted(row)}")
    return {name: str(value) for name, value in fields.items()}


def _messages(row: Row, number: int, source: Source) -> list[dict[str, str]]:
    turns = row.get("messages", row.get("conversations"))
    wanted = "messages, a list of {role, content} with at least one of role assistant"
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise _row_error(source, number, wanted, f"fields {sorted(row)}")
    messages = []
    for turn in turns:
        role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        if not isinstance(role, str) or not isinstance(content, str):
            raise _row_error(source, number, wanted, f"{turn!r:.80}")
        messages.append({"role": ROLES.get(role, role), "content": content})
    if not any(message["role"] == "assistant" for message in messages):
        raise _row_error(source, number, wanted, f"roles {[message['role'] for message in messages]}")
    return messages


def _row_error(source: Source, number: int, expected: str, got: str) -> Exception:
    return request_error(
        source.key, expected, f"{source.path}, row {number}: {got}", "repair the row, or correct the format"
    )


def conversation(row: Row, number: int, source: Source, tokenizer: PreTrainedTokenizerBase) -> Example:
    """A row of messages by the tokenizer's template, with labels on the assistant's turns; `number` names the row.

    Raises:
        RequestError: the row or the template does not fit.

    """
    messages = _messages(row, number, source)
    if not tokenizer.chat_template:
        raise request_error(
            source.key,
            "a tokenizer with a chat template for chat rows",
            "a tokenizer without one",
            "use the chat model's tokenizer, or rows of another format",
        )
    try:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False))
        spans = [
            _span(messages, index, text, tokenizer)
            for index, message in enumerate(messages)
            if message["role"] == "assistant"
        ]
    except (TemplateError, ValueError, IndexError) as error:
        raise _row_error(source, number, "messages that the chat template accepts", str(error)) from None
    found = [span for span in spans if span]
    if not found:
        raise _row_error(source, number, "a chat template that renders turns one after another", "one that does not")
    example = _encode(text, found, tokenizer, special=False)
    if len(found) < len(spans):
        log.warning(
            "%s, row %d: the chat template shortens earlier turns; %d of %d answers are not learnt",
            source.path,
            number,
            len(spans) - len(found),
            len(spans),
        )
    return example


def _span(
    messages: list[dict[str, str]], index: int, text: str, tokenizer: PreTrainedTokenizerBase
) -> tuple[int, int] | None:
    """The range of characters of the assistant's turn `index` in `text`, with its end mark; None if it is not found."""
    before = ""
    if index:
        before = str(tokenizer.apply_chat_template(messages[:index], tokenize=False, add_generation_prompt=True))
    after = str(tokenizer.apply_chat_template(messages[: index + 1], tokenize=False))
    return (len(before), len(after)) if text.startswith(before) and text.startswith(after) else None
