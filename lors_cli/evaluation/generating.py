"""How a model continues a prompt: what `lors generate` and the samples of `lors eval` share."""

import copy
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from lors_cli import interrupts
from lors_cli.data.template import FAILURES


class PromptError(ValueError):
    """A prompt of which a model gets nothing."""


class Finite(LogitsProcessor):  # type: ignore[misc]
    """Not a processor: a look at the logits of each token that is generated.

    Args:
        fail: called with a row of the batch whose logits are not finite, and the number of rows; it raises.

    """

    def __init__(self, fail: Callable[[int, int], Any]) -> None:
        self._fail = fail

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        interrupts.check()
        # -inf is what masks a token; where all are masked nothing is left to choose
        bad = scores.isnan().any(1) | scores.isposinf().any(1) | scores.isneginf().all(1)
        if bool(bad.any()):
            self._fail(int(bad.nonzero()[0]), len(scores))
        return scores


def prompt_tokens(tokenizer: Tokenizer, prompt: str, *, templated: bool, system: str | None = None) -> list[int]:
    """The tokens of a prompt, as it is or as a user's turn in the tokenizer's chat template.

    Raises:
        PromptError: the template does not take it, or there is no token.

    """
    text = prompt
    if templated:
        turns = [{"role": "system", "content": system}] if system else []
        turns.append({"role": "user", "content": prompt})
        try:
            text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except FAILURES as error:
            raise PromptError(f"its chat template does not take the turns: {error}") from None
    tokens: list[int] = tokenizer(text, add_special_tokens=not templated).input_ids  # a template has its own
    if not tokens:
        raise PromptError(f"{prompt!r} has no token")
    return tokens


def takes_system(tokenizer: Tokenizer, system: str) -> bool:
    """Whether the tokenizer's chat template puts a system's turn into its text; some refuse one, some leave it out.

    Raises:
        PromptError: the template does not take a user's turn alone either.

    """
    without = prompt_tokens(tokenizer, "Hello.", templated=True)
    with suppress(PromptError):
        return prompt_tokens(tokenizer, "Hello.", templated=True, system=system) != without
    return False


def settings(
    model: PreTrainedModel, max_new_tokens: int, *, temperature: float = 0.0, top_p: float = 1.0
) -> GenerationConfig:
    """The model's own settings, such as the tokens that end an answer, with what was asked for."""
    chosen = copy.deepcopy(model.generation_config)
    drawn = temperature > 0
    chosen.update(
        max_new_tokens=max_new_tokens,
        max_length=None,
        do_sample=drawn,
        temperature=temperature if drawn else None,
        top_p=top_p if drawn else None,
        top_k=0 if drawn else None,
        num_beams=1,
    )
    if chosen.pad_token_id is None:
        ends = chosen.eos_token_id
        chosen.pad_token_id = ends[0] if isinstance(ends, list) else ends
    return chosen


@torch.inference_mode()
def answer(
    model: PreTrainedModel, prompt: list[int], chosen: GenerationConfig, fail: Callable[[int, int], Any], **given: Any
) -> Tensor:
    """The tokens (new,) that `model` writes after those of `prompt`; `fail` is called where logits are not finite."""
    ids = torch.tensor([prompt], device=model.device)
    made: Tensor = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        generation_config=chosen,
        logits_processor=LogitsProcessorList([Finite(fail)]),
        **given,
    )
    return made[0, len(prompt) :]
