"""The formats of rows, and how the fields of a first row tell them.

alpaca        {instruction, input?, output}      training
chat          {messages: [{role, content}]}      training and calibration
completion    {prompt, completion}               training
text          {text}                             training and calibration
tokens        {input_ids: [...]}                 calibration
openhermes    {conversations: [{from, value}]}   training: chat, where no row may lack the field
openorca      {system_prompt, question, response}   the same

Configs are checked against these names, so this file imports no tokenizer.
"""

from lors_cli.data import readers, turns
from lors_cli.data.fields import Place, is_harmless, is_metadata
from lors_cli.data.readers import Row
from lors_cli.data.sources import Source
from lors_cli.errors import request_error

# Chats by the names of data sets: the fields that every row has to have, be they empty. The first ones tell them.
LAYOUTS = {"openhermes": ("conversations",), "openorca": ("system_prompt", "question", "response")}
TRAINING = ("alpaca", "chat", "completion", "text", *LAYOUTS)
CALIBRATION = ("text", "chat", "tokens")
TOKEN_FIELDS = ("input_ids", "tokens")


def of_training(row: Row, source: Source) -> str:
    """The format of a data set to train on.

    Raises:
        RequestError: the fields of `row`, the first one, fit no format.

    """
    there = {name for name, value in row.items() if value is not None}
    if source.field:
        return "chat" if isinstance(row.get(source.field), list) else "text"
    if "instruction" in there and there & {"output", "response"}:
        return "alpaca"
    if there & set(turns.LISTS):
        return "chat"
    if "text" in there:
        return "text"
    sides = [row.get(name) for name in ("prompt", "completion", "chosen") if name in there]
    if "prompt" in there and len(sides) > 1 and all(isinstance(side, str) for side in sides):
        return "completion"
    if (there & set(turns.QUESTIONS) and there & {"chosen", *turns.ANSWERS}) or isinstance(row.get("chosen"), list):
        return "chat"
    texts = [name for name, value in row.items() if isinstance(value, str) and not is_metadata(name)]
    names = texts if len(texts) == 1 else ["NAME"]
    rest = [name for name in row if name not in texts and not is_harmless(name, row[name], only_text=True)]
    others = "" if names == texts and not rest else f", and {source.section}.ignore_fields to the others"
    remedy = f"rename the fields, or set {source.key}: {{path: ..., format: text, field: {names[0]}}}{others}"
    raise request_error(
        f"{source.key}.format",
        "rows with instruction and output (alpaca), messages, or a question and an answer (chat), prompt and completion"
        " (completion), or text (text)",
        f"{source.path} with the fields {sorted(row)}",
        _of_list(row, source) or remedy,
    )


def check_layout(row: Row, place: Place, kind: str) -> None:
    """Refuse a row that lacks a field of its layout, which may be empty.

    Raises:
        RequestError: naming the field.

    """
    for name in LAYOUTS[kind]:
        if name not in row:
            remedy = "add it to the row, empty if there is nothing to say, or set format: chat, which can do without it"
            raise place.error(
                name, f"the field {name!r}, which each row of {kind} has", f"fields {sorted(row)}", remedy
            )


def _of_list(row: Row, source: Source) -> str:
    """What to do about a row that says all that it says in one list: of rows, or of turns."""
    saying = [name for name, value in row.items() if not is_harmless(name, value)]
    if len(saying) != 1 or not isinstance(row[saying[0]], list):
        return ""
    inside = "" if source.is_hub else readers.from_inside({saying[0]: row[saying[0]]})
    return inside or f"set {source.key}: {{path: ..., format: chat, field: {saying[0]}}} if it holds turns"


def of_calibration(row: Row, source: Source, asked: str | None) -> str:
    """The format of a data set to calibrate with: the one that is `asked` for, else the first that fits.

    Raises:
        RequestError: the fields of `row`, the first one, do not fit.

    """
    fits = {
        "chat": any(row.get(name) is not None for name in turns.LISTS),
        "tokens": any(isinstance(row.get(field), list) for field in (source.field or "", *TOKEN_FIELDS)),
        "text": isinstance(row.get(source.field or "text"), str),
    }
    for name in [asked] if asked else fits:
        if fits[name]:
            return name
    field = source.field or "text"
    held = f", in its first row {field}: {row[field]!r:.60}" if field in row else ""
    raise request_error(
        f"{source.key}.format" if asked else f"{source.key}.field",
        f"rows of {asked}" if asked else "rows with text (text), messages (chat) or input_ids (tokens)",
        f"{source.path} with the fields {sorted(row)}{held}",
        _of_list(row, source) or f"set {source.key}: {{path: ..., field: NAME}} to the field with the text",
    )
