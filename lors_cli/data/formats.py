"""The formats of rows, and how the fields of a first row tell them.

alpaca    {instruction, input?, output}      training
chat      {messages: [{role, content}]}      training and calibration
text      {text}                             training and calibration
tokens    {input_ids: [...]}                 calibration

Configs are checked against these names, so this file imports no tokenizer.
"""

from lors_cli.data.readers import Row
from lors_cli.data.sources import Source
from lors_cli.errors import request_error

TRAINING = ("alpaca", "chat", "text")
CALIBRATION = ("text", "chat", "tokens")
TOKEN_FIELDS = ("input_ids", "tokens")


def of_training(row: Row, source: Source) -> str:
    """The format of a data set to train on.

    Raises:
        RequestError: the fields of `row`, the first one, fit no format.

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


def of_calibration(row: Row, source: Source, asked: str | None) -> str:
    """The format of a data set to calibrate with: the one that is `asked` for, else the first that fits.

    Raises:
        RequestError: the fields of `row`, the first one, do not fit.

    """
    fits = {
        "chat": "messages" in row or "conversations" in row,
        "tokens": any(isinstance(row.get(field), list) for field in (source.field or "", *TOKEN_FIELDS)),
        "text": isinstance(row.get(source.field or "text"), str),
    }
    for name in [asked] if asked else fits:
        if fits[name]:
            return name
    raise request_error(
        f"{source.key}.format" if asked else f"{source.key}.field",
        f"rows of {asked}" if asked else "rows with text (text), messages (chat) or input_ids (tokens)",
        f"{source.path} with the fields {sorted(row)}",
        f"set {source.key}: {{path: ..., field: NAME}} to the field with the text",
    )
