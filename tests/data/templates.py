"""Short chat templates in the manner of known families, and a tokenizer for each."""

import copy

from transformers import PreTrainedTokenizerFast

PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
# with the default system prompt, without tools
CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
) + PROMPT
# tools, calls, reasoning that is left out once the user speaks again
QWEN3 = (
    (
        "{%- if tools %}<|im_start|>system\n"
        "{%- if messages[0].role == 'system' %}{{ messages[0].content + '\n\n' }}{% endif %}# Tools\n"
        "{%- for tool in tools %}{{ '\n' + tool | tojson }}{% endfor %}<|im_end|>\n"
        "{%- elif messages[0].role == 'system' %}<|im_start|>system\n{{ messages[0].content }}<|im_end|>\n{% endif %}"
        "{%- set ns = namespace(last=-1) %}"
        "{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
        "{%- for m in messages %}"
        "{%- if m.role == 'user' or (m.role == 'system' and not loop.first) %}"
        "<|im_start|>{{ m.role + '\n' + m.content }}<|im_end|>\n"
        "{%- elif m.role == 'assistant' %}"
        "{%- set thought = m.reasoning_content or '' %}{% set said = m.content %}"
        "{%- if '</think>' in said %}"
        "{%- set thought = said.split('</think>')[0].split('<think>')[-1].strip() %}"
        "{%- set said = said.split('</think>')[-1].lstrip('\n') %}{% endif %}"
        "<|im_start|>assistant\n"
        "{%- if loop.index0 > ns.last and (loop.last or thought) %}<think>\n{{ thought }}\n</think>\n\n{% endif %}"
        "{{- said }}"
        "{%- for call in m.tool_calls or [] %}{% set f = call.function %}"
        '<tool_call>\n{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}}\n</tool_call>{% endfor %}'
        "<|im_end|>\n"
        "{%- elif m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ m.content }}\n</tool_response><|im_end|>\n"
        "{%- endif %}{% endfor %}"
        "{%- if add_generation_prompt %}<|im_start|>assistant\n"
        "{%- if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
    )
    .replace("\n{%-", "\n{{ '' }}{%-")
    .replace("\n{{-", "\n{{ '' }}{{-")
)
# a beginning of the text, headers, content that is trimmed, a token that ends turns and not texts
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
# no system turns, strictly alternating, the assistant is called model
GEMMA = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# no prompt for an answer; tools stand before the last turn of the user; ids of calls are rendered
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'user' %}"
    "{% if tools and m == (messages | selectattr('role', 'equalto', 'user') | list)[-1] %}"
    "[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}"
    "[INST]{{ m.content }}[/INST]"
    "{% elif m.role == 'assistant' and m.tool_calls %}[TOOL_CALLS]["
    "{% for c in m.tool_calls %}{{ c.function | tojson }}{{ '' if loop.last else ',' }}{% endfor %}]{{ eos_token }}"
    "{% elif m.role == 'assistant' %}{{ m.content }}{{ eos_token }}"
    "{% elif m.role == 'tool' %}[TOOL_RESULTS]{{ m.content }}[/TOOL_RESULTS]"
    "{% else %}{{ raise_exception('Only user, assistant and tool roles are supported') }}{% endif %}{% endfor %}"
)
# other roles are left out without a word
ZEPHYR = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<|user|>\n{{ m['content'] + eos_token }}\n"
    "{% elif m['role'] == 'system' %}<|system|>\n{{ m['content'] + eos_token }}\n"
    "{% elif m['role'] == 'assistant' %}<|assistant|>\n{{ m['content'] + eos_token }}\n{% endif %}"
    "{% if loop.last and add_generation_prompt %}<|assistant|>\n{% endif %}{% endfor %}"
)
# nothing ends an answer
PLAIN = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
# opens the reasoning in the prompt for an answer, and leaves it out of answers
R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}<|User|>{{ m['content'] }}"
    "{% else %}<|Assistant|>{{ m['content'].split('</think>')[-1] }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}"
)

TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n%s<|im_end|>\n{% endfor %}" + PROMPT
# only the names of calls; only the first call, without what is said beside it; only the beginning of a turn
NAMES = TURNS.replace("%s", "{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name }}{% endfor %}")
# the values of a call without their names; what tools are for, and not what they take
VALUES = NAMES.replace(
    "{{ c.function.name }}", "{{ c.function.name }}({{ c.function.arguments.values() | join(', ') }})"
)
DESCRIPTIONS = (
    "{% for t in tools or [] %}{{ t.function.name }}: {{ t.function.description }}"
    "{% for p in t.function.parameters.properties.values() %}{{ t.function.parameters.type }} {{ p.type }}{% endfor %}"
    "{% endfor %}"
) + TURNS.replace("%s", "{{ m.content }}")
FIRST = TURNS.replace("%s", "{{ m.tool_calls[0].function | tojson if m.tool_calls else m.content }}")
SHORT = TURNS.replace("%s", "{{ m.content[:60] }}")
WINDOW = TURNS.replace("%s", "{{ m.content }}").replace("in messages", "in messages[-2:]")

# the template, its end token, and other tokens that it uses
FAMILIES = {
    "chatml": (CHATML, "<|im_end|>", ["<|im_start|>"]),
    "qwen3": (QWEN3, "<|im_end|>", ["<|im_start|>"]),
    "llama3": (LLAMA3, "<|end_of_text|>", ["<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]),
    "gemma": (GEMMA, "<eos>", ["<start_of_turn>", "<end_of_turn>"]),
    "mistral": (MISTRAL, "</s>", ["[INST]", "[/INST]", "[TOOL_CALLS]"]),
    "zephyr": (ZEPHYR, "</s>", []),
    "plain": (PLAIN, "</s>", []),
    "r1": (R1, "</s>", ["<|User|>", "<|Assistant|>"]),
    "names": (NAMES, "<|im_end|>", ["<|im_start|>"]),
    "values": (VALUES, "<|im_end|>", ["<|im_start|>"]),
    "descriptions": (DESCRIPTIONS, "<|im_end|>", ["<|im_start|>"]),
    "first": (FIRST, "<|im_end|>", ["<|im_start|>"]),
    "short": (SHORT, "<|im_end|>", ["<|im_start|>"]),
    "window": (WINDOW, "<|im_end|>", ["<|im_start|>"]),
    "none": (None, "</s>", []),
}


def make(tokenizer: PreTrainedTokenizerFast, family: str) -> PreTrainedTokenizerFast:
    """A copy of `tokenizer` with the template and the special tokens of a family."""
    template, end, others = FAMILIES[family]
    made: PreTrainedTokenizerFast = copy.deepcopy(tokenizer)
    made.add_special_tokens({"bos_token": "<s>", "eos_token": end, "additional_special_tokens": others})
    made.chat_template = template
    return made
