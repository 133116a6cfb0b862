"""Rows of messages, rendered by the tokenizer's own template."""

import logging

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from lors_cli.data.example import Example, encode, row_error
from lors_cli.data.readers import Row
from lors_cli.data.sources import Source
from lors_cli.errors import request_error

log = logging.getLogger(__name__)

# ShareGPT names of the roles
ROLES = {"human": "user", "gpt": "assistant"}


def read_messages(row: Row, number: int, source: Source) -> list[dict[str, str]]:
    """The turns of a row, each with a role and a content.

    Raises:
        RequestError: there are none, or none of the assistant.

    """
    turns = row.get("messages", row.get("conversations"))
    wanted = "messages, a list of {role, content} with at least one of role assistant"
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise row_error(source, number, wanted, f"fields {sorted(row)}")
    messages = []
    for turn in turns:
        role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        if not isinstance(role, str) or not isinstance(content, str):
            raise row_error(source, number, wanted, f"{turn!r:.80}")
        messages.append({"role": ROLES.get(role, role), "content": content})
    if not any(message["role"] == "assistant" for message in messages):
        raise row_error(source, number, wanted, f"roles {[message['role'] for message in messages]}")
    return messages


def conversation(row: Row, number: int, source: Source, tokenizer: PreTrainedTokenizerBase) -> Example:
    """A row of messages by the tokenizer's template, with labels on the assistant's turns; `number` names the row.

    Raises:
        RequestError: the row or the template does not fit.

    """
    turns = read_messages(row, number, source)
    if not tokenizer.chat_template:
        raise request_error(
            source.key,
            "a tokenizer with a chat template for chat rows",
            "a tokenizer without one",
            "use the chat model's tokenizer, or rows of another format",
        )
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
        spans = [
            _span(turns, index, text, tokenizer)
            for index, message in enumerate(turns)
            if message["role"] == "assistant"
        ]
    except (TemplateError, ValueError, IndexError) as error:
        raise row_error(source, number, "messages that the chat template accepts", str(error)) from None
    learnt = [span for span in spans if span]
    if not learnt:
        raise row_error(source, number, "a chat template that renders turns one after another", "one that does not")
    example = encode(text, learnt, tokenizer, special=False)
    if len(learnt) < len(spans):
        log.warning(
            "%s, row %d: the chat template shortens earlier turns; %d of %d answers are not learnt",
            source.path,
            number,
            len(spans) - len(learnt),
            len(spans),
        )
    return example


def _span(
    turns: list[dict[str, str]], index: int, text: str, tokenizer: PreTrainedTokenizerBase
) -> tuple[int, int] | None:
    """The range of characters of the assistant's turn `index` in `text`, with its end mark, or None."""
    before = ""
    if index:
        before = str(tokenizer.apply_chat_template(turns[:index], tokenize=False, add_generation_prompt=True))
    after = str(tokenizer.apply_chat_template(turns[: index + 1], tokenize=False))
    return (len(before), len(after)) if text.startswith(before) and text.startswith(after) else None
