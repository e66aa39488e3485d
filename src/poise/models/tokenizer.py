"""The bundled model's tokenizer: byte-level BPE of a few hundred entries, single digits, and the tags it thinks in.

The tags `<think>`, `</think>`, `<answer>` and `</answer>` are added tokens but not special ones, as in Qwen3: decoding
with skip_special_tokens, which trainers do before they verify, must leave them in the text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

PAD, END = "<|pad|>", "<|im_end|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
TAGS = ("<think>", "</think>", "<answer>", "</answer>")

# Roles delimit turns; only the assistant's end with <|im_end|>, which is what stops generation. Nothing opens <think>.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] not in ['system', 'user', 'assistant'] -%}
{{- raise_exception('no token for the role ' + message['role'] + '; use system, user or assistant') -}}
{%- endif -%}
{{- '<|' + message['role'] + '|>' + message['content'] -}}
{%- if message['role'] == 'assistant' -%}{{- '<|im_end|>' -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""


def build_tokenizer(texts: Iterable[str], entries: int) -> PreTrainedTokenizerFast:
    """A tokenizer of `entries` entries with merges learnt from `texts`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(text, special=True, normalized=False) for text in (PAD, END, *ROLES)]
    tags = [AddedToken(text, special=False, normalized=False) for text in TAGS]
    trainer = trainers.BpeTrainer(
        vocab_size=entries,
        special_tokens=[*special, *tags],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer = _with_plain_tags(tokenizer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        padding_side="left",
        model_max_length=512,
        chat_template=CHAT_TEMPLATE,
    )


def _with_plain_tags(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokenizer with its tags no longer special, which the trainer makes of every token it is given."""
    state = json.loads(tokenizer.to_str())
    for token in state["added_tokens"]:
        token["special"] = token["content"] not in TAGS
    return Tokenizer.from_str(json.dumps(state))
