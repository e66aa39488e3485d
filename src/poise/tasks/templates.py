"""The published prompt templates, and a user's own: from a bare problem to what the policy reads.

Wording of the named templates is data: a model's published accuracy holds for exactly this text.
"""

from __future__ import annotations

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
