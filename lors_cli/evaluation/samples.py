"""What models say: the same prompts, each answered greedily, beside the numbers."""

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lors_cli import console
from lors_cli.errors import Problem, UnmeasurableError
from lors_cli.evaluation import generating
from lors_cli.evaluation.generating import PromptError
from lors_cli.evaluation.perplexity import NOT_FINITE
from lors_cli.models import load

KEY = "eval.samples"


def without_template(key: str, name: str) -> Problem:
    """What is wrong with asking a model without a chat template for one."""
    wanted = "models whose tokenizers have a chat template"
    remedy = f"leave {key} out, or the model; or put chat_template.jinja into its directory"
    return Problem(key, wanted, f"{name}, which has none", remedy)


def without_system(system: str | None, name: str, tokenizer: PreTrainedTokenizerBase) -> list[Problem]:
    """What is wrong with asking a model for a system's turn, without which lm-eval and templates would go on."""
    if not system:
        return []
    if tokenizer.chat_template is None:
        return [without_template("eval.system", name)]
    wanted = "models whose chat templates have a system's turn"
    remedy = "leave eval.system out, or the model; or put chat_template.jinja with such a turn into its directory"
    try:
        takes, got = generating.takes_system(tokenizer, system), "whose template refuses it or leaves it out"
    except PromptError as error:
        takes, got = False, str(error)
    return [] if takes else [Problem("eval.system", wanted, f"{name}, {got}", remedy)]


@dataclass(frozen=True)
class Samples:
    """Prompts, and how they are put.

    Attributes:
        prompts: texts.
        max_new_tokens: of each answer, at most.
        system: what a system's turn before each prompt says, where the tokenizer has a chat template.

    """

    prompts: tuple[str, ...]
    max_new_tokens: int
    system: str | None = None

    def problems(self, name: str, skeleton: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[Problem]:
        """What keeps the model `name`, which takes the system's turn if there is one, from answering."""
        positions, problems = load.positions(skeleton), []
        for number, prompt in enumerate(self.prompts):
            key, shown = f"{KEY}.prompts", f"prompt {number + 1}"
            try:
                length = len(self._tokens(tokenizer, prompt))
            except PromptError as error:
                wanted = "prompts that every model takes"
                problems.append(Problem(key, wanted, f"{shown}, for {name}: {error}", "correct or leave it out"))
                continue
            if positions and length + self.max_new_tokens > positions:
                wanted = f"at most {positions} tokens, the positions of {name}, for a prompt and its answer"
                got = f"{length} in {shown} and max_new_tokens: {self.max_new_tokens}"
                problems.append(Problem(key, wanted, got, "shorten the prompt, or lower max_new_tokens"))
        return problems

    def answers(self, name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
        """For each prompt the "prompt", the "text" of the answer, its "tokens", and whether the model "ended" it.

        Raises:
            UnmeasurableError: logits are not finite.

        """
        answers = []
        chosen = generating.settings(model, self.max_new_tokens)
        ends = chosen.eos_token_id
        ends = {*ends} if isinstance(ends, list) else {ends}
        with console.progress(f"eval: {name}", len(self.prompts)) as advance:
            advance("samples", steps=0)
            for number, prompt in enumerate(self.prompts):

                def fail(*_: int, number: int = number) -> None:
                    raise UnmeasurableError(f"samples, prompt {number + 1}: the logits are not finite; {NOT_FINITE}")

                made = generating.answer(model, self._tokens(tokenizer, prompt), chosen, fail).tolist()
                text = tokenizer.decode(made, skip_special_tokens=True)
                answers.append(
                    {"prompt": prompt, "text": text, "tokens": len(made), "ended": bool(ends & {*made[-1:]})}
                )
                advance()
        return answers

    def _tokens(self, tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
        templated = tokenizer.chat_template is not None
        return generating.prompt_tokens(tokenizer, prompt, templated=templated, system=self.system)
