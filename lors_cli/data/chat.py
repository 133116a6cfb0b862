"""Conversations, rendered by the tokenizer's own template, with the ranges of characters that are learnt.

What is learnt of an answer is what the model would have to generate: everything after the template's prompt for that
answer. Where a template renders an earlier answer otherwise once turns follow, as those do that leave old reasoning
out, that answer is learnt in an example of its own, which ends with it.
"""

from transformers import PreTrainedTokenizerBase

from lors_cli.data import rendered
from lors_cli.data.example import Ends, Span, Text
from lors_cli.data.fields import Place
from lors_cli.data.template import Template
from lors_cli.data.turns import Conversation
from lors_cli.errors import request_error


def texts(conversation: Conversation, place: Place, tokenizer: PreTrainedTokenizerBase, ends: Ends) -> list[Text]:
    """The texts of a conversation, each with the ranges that are learnt; together they learn each answer once.

    Args:
        conversation: the turns.
        place: of the row, for messages.
        tokenizer: with a template.
        ends: which tokens end an answer.

    Raises:
        RequestError: the template does not accept the row, leaves a part out, or does not say where answers begin.

    """
    template = opened(conversation, place, tokenizer)
    made: list[Text] = []
    marks = tuple(filter(None, map(tokenizer.decode, ends.all(tokenizer))))
    text, spans = template.whole, list[Span]()
    for index in reversed([index for index, learnt in enumerate(conversation.learnt) if learnt]):
        until = template.until(index)
        turn = until.removesuffix(tokenizer.eos_token or "")
        if turn.rstrip().endswith(marks) and text.startswith(turn):
            until = turn  # some put one more token at the end of the whole text, where the turn has ended already
        if not text.startswith(until):
            if spans:
                made.append(Text(text, spans[::-1]))
            text, spans = until, []
        spans.append((template.start(index), len(until)))
    return [*made, Text(text, spans[::-1])][::-1]


def opened(conversation: Conversation, place: Place, tokenizer: PreTrainedTokenizerBase) -> Template:
    """The conversation in the tokenizer's template, which has rendered all of it.

    Raises:
        RequestError: there is no template, or it does not accept the row or leaves a part of it out.

    """
    if not tokenizer.chat_template:
        remedy = "use the chat model's tokenizer"
        if place.can_ignore:  # of training and perplexity, which know Alpaca's prompts
            remedy += f", or set {place.source.key}.format: alpaca, which writes turns as Alpaca's prompts"
        raise request_error(
            place.source.key,
            "a tokenizer with a chat template for chat rows",
            "a tokenizer without one",
            remedy,
        )
    template = Template(conversation, place, tokenizer)
    rendered.check(template)
    return template
