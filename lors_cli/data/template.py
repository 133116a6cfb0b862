"""A conversation in a tokenizer's chat template, and where its answers begin and end in the text."""

import copy
import inspect
import json
from functools import cached_property
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from lors_cli.data.fields import Place
from lors_cli.data.turns import GIVEN, Conversation
from lors_cli.errors import RequestError

Turns = list[dict[str, Any]]
# What a template raises where it does not accept its input.
SYSTEM = "put the text of the system turn before that of the user's turn that follows"  # for templates without one
FAILURES = (TemplateError, ValueError, IndexError, KeyError, TypeError, AttributeError)


class Template:
    """One conversation in a tokenizer's template.

    Raises:
        RequestError: the template does not accept the conversation.

    """

    def __init__(self, conversation: Conversation, place: Place, tokenizer: PreTrainedTokenizerBase) -> None:
        self.given, self.place, self._tokenizer, self._system = (
            conversation.given,
            place,
            tokenizer,
            conversation.system,
        )
        self.turns = conversation.turns
        for name in inspect.signature(tokenizer.apply_chat_template).parameters.keys() - set(GIVEN):
            if name in self.given:  # a row is data: it does not choose the template, or what becomes of its text
                raise place.at("chat_template_kwargs").unused(
                    {name: self.given[name]}, "variables of the chat template"
                )
        self._untils: dict[int, str] = {}
        try:
            self.whole = self.render(self.turns)
            if any(str(arguments) in self.whole for arguments in _arguments(self.turns)):
                raise TypeError("the arguments of a call as Python writes them")
        except FAILURES as error:
            self.turns = _with_json_arguments(self.turns)  # which some templates put into the text as they are
            if self.turns == conversation.turns:
                raise self._refused(error) from None
            try:
                self.whole = self.render(self.turns)
            except FAILURES:
                raise self._refused(error) from None

    def render(self, turns: Turns, *, prompt: bool = False, **given: Any) -> str:
        """The text of `turns`; with `prompt` that in which the next answer is generated.

        Raises:
            one of FAILURES: the template does not accept them.

        """
        given = {**self.given, **given}
        return str(self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt, **given))

    @cached_property
    def source(self) -> str:
        """The template itself."""
        return str(self._tokenizer.get_chat_template(tools=self.given.get("tools")))

    def prompt(self, index: int) -> str:
        """The text in which the answer `index` is generated.

        Raises:
            one of FAILURES: the template does not accept what is before it.

        """
        return self.render(self.turns[:index], prompt=True)

    def until(self, index: int) -> str:
        """The conversation up to the turn `index`.

        Raises:
            RequestError: the template does not accept it.

        """
        if index not in self._untils:
            try:
                self._untils[index] = self.render(self.turns[: index + 1])
            except FAILURES as error:
                raise self._refused(error) from None
        return self._untils[index]

    def start(self, index: int) -> int:
        """Where the answer `index` begins in `until(index)`: after the template's prompt for it.

        Raises:
            RequestError: the rendered answer does not follow a prompt.

        """
        before, until = self.turns[:index], self.until(index)
        spoken = any(turn["role"] == "user" for turn in before)
        try:
            prompt = self.prompt(index) if before else None
        except FAILURES as error:  # some render nothing before the user has spoken
            if spoken:
                raise self._refused(error) from None
            prompt = None
        if prompt is not None and until.startswith(prompt):
            return len(prompt)
        # the turns before may be rendered otherwise, so that the prompt is not there word for word
        header = self._header
        prompts = 1 if prompt is None else prompt.count(header) if prompt.endswith(header) else 0
        if header.strip() and until.count(header) == prompts > 0:
            return until.rindex(header) + len(header)
        if prompt is not None:
            raise self._other_prompt(before, prompt, until)
        expected = "a conversation in which the user speaks first: the template does not show where an answer begins"
        raise self.place.error("", expected, f"role {self.turns[0]['role']} first")

    @cached_property
    def _header(self) -> str:
        """What the template puts before an answer."""
        turns = [{"role": "user", "content": "Hello."}]
        try:
            without, prompt = self.render(turns), self.render(turns, prompt=True)
        except FAILURES:
            return ""
        if not prompt.startswith(without):  # some put the end token at the end of the whole text
            without = without.removesuffix(self._tokenizer.eos_token or "")
        return prompt[len(without) :] if prompt.startswith(without) else ""

    def _other_prompt(self, before: Turns, prompt: str, until: str) -> RequestError:
        """The error of an answer that is rendered as it would never be generated."""
        remedy = (
            "let add_generation_prompt in the chat template render no more than what the template puts before an"
            " answer (no opened reasoning), or use a tokenizer whose template does so"
        )
        if before[-1]["role"] == "assistant":
            remedy = "make one turn of the assistant's turns that follow each other"
        same = next((place for place, (a, b) in enumerate(zip(prompt, until, strict=False)) if a != b), len(until))
        return self.place.error(
            "",
            f"a chat template that renders an answer after its own prompt for one, which ends in {prompt[-40:]!r}",
            f"an answer that is rendered as {until[same:]!r:.60} after {prompt[:same][-20:]!r}",
            remedy,
        )

    @property
    def without_system(self) -> str:
        """What to do about a system turn that the template does not take."""
        ignoring = self.place.ignoring(self._system) if self._system else ""
        return f"{SYSTEM}, or {ignoring}" if ignoring else SYSTEM

    def _refused(self, error: Exception) -> RequestError:
        reason = str(error) or type(error).__name__
        remedy = "repair the row, or use a tokenizer whose chat template accepts it"
        if self.turns[0]["role"] == "system":
            remedy = f"{self.without_system}, {remedy}"
        return self.place.error("", "messages that the chat template accepts", reason, remedy)


def _arguments(turns: Turns) -> list[dict[str, Any]]:
    """The arguments of all calls that have some."""
    calls = [call["function"] for turn in turns for call in turn.get("tool_calls", [])]
    return [call["arguments"] for call in calls if call["arguments"]]


def _with_json_arguments(turns: Turns) -> Turns:
    """The same turns; the arguments of calls are JSON text."""
    changed = copy.deepcopy(turns)
    for turn in changed:
        for call in turn.get("tool_calls", []):
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
    return changed
