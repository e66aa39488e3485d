"""The published prompt templates, and a user's own: from a bare problem to what the policy reads.

Wording of the named templates is data: a model's published accuracy holds for exactly this text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from poise.errors import ConfigError
from poise.rewards.imports import nearest
from poise.tasks.rows import Prompt

TEMPLATES: dict[str, str] = {
    "plain": "{question}",
    # DAPO's template (arXiv 2503.14476), which the POISE paper uses for all its math runs.
    "dapo": (
        "Solve the following math problem step by step. The last line of your response should be of the form "
        "Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n{question}\n\n"
        'Remember to put your answer on its own line after "Answer:".'
    ),
    # Qwen2.5-Math's and DeepSeek-R1's.
    "boxed": "{question}\nPlease reason step by step, and put your final answer within \\boxed{{}}.",
    "answer": "{question}\nGive only the answer, in the form: Answer: <number>",
    "code": (
        "{question}\n\nWrite a complete Python program. It reads from standard input and writes to standard output. "
        "Put it in one ```python block."
    ),
    "function": "{question}\n\nPut the complete Python code in one ```python block.",
}


def filled_chat(tokenizer: Any, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any] | None = None) -> str:
    """Messages in a tokenizer's chat template, up to where the policy's answer begins.

    Args:
        options: further arguments of the template, such as enable_thinking.

    Raises:
        ConfigError: there is no chat template, or it does not take these messages.
    """
    if getattr(tokenizer, "chat_template", "") is None:
        raise ConfigError(
            "the prompts are messages, and the tokenizer has no chat template; use a chat model, prompts that are "
            "text, or, of a named task, the option chat=false"
        )
    try:
        return tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, **(options or {}))
    except Exception as error:  # a template may raise whatever its author wrote
        raise ConfigError(f"the model's chat template refuses the prompt {messages!r:.80}: {error}") from error


def fill(template: str, question: str) -> str:
    """A problem in a named template, or in a text of the user's own that has `{question}` where the problem goes.

    Raises:
        ConfigError: the template is neither known nor holds `{question}` (and no other placeholder).
    """
    if template in TEMPLATES:
        return TEMPLATES[template].format(question=question)
    if "{question}" not in template:
        raise ConfigError(
            f"no template is called {template!r}{nearest(template, TEMPLATES)}; a template of your own holds "
            "{question} where the problem goes"
        )
    return template.replace("{question}", question)


def prompt_of(question: str, template: str, chat: bool, system: str | None = None) -> Prompt:
    """The prompt of a problem: one text, or messages for a chat template.

    Raises:
        ConfigError: no template has that name, `chat` is neither true nor false, or a system message needs it.
    """
    if not isinstance(chat, bool):
        raise ConfigError(f"the option chat is true or false, got {chat!r}")
    text = fill(template, question)
    if not chat:
        if system:
            raise ConfigError("a system message needs chat prompts; set chat = true, or leave system out")
        return text
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    return [*messages, {"role": "user", "content": text}]
