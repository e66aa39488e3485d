"""Where each rollout's tokens lie in a batch: prompt, reasoning, answer; and the entropy of each part.

Padded and packed batches become the same thing here: positions on one flattened token axis, with masks.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from poise.errors import CaptureError

# A chat template that answers without thinking closes the reasoning in the prompt itself, followed at most by a line
# break or two (Qwen3: `<think>`, newlines, `</think>`, newlines).
_TOKENS_AFTER_CLOSED_REASONING = 3


@dataclass(frozen=True)
class Window:
    """Up to N flattened token positions per rollout; `valid_BN` says which of them exist."""

    index_BN: Int[Tensor, "B N"]
    valid_BN: Bool[Tensor, "B N"]

    def rows(self, first: int, stop: int) -> Window:
        return Window(self.index_BN[first:stop], self.valid_BN[first:stop])


@dataclass(frozen=True)
class TokenLayout:
    """A batch of B rollouts on a flattened token axis.

    Args:
        prompt_ids_BP, response_ids_BC: token ids, padded on whichever side.
        prompt_mask_BP, response_mask_BC: which of them are real.
        prompt_start_B, response_start_B: flattened position of column 0 of each row.
        width: tokens per row of a padded batch; 0 for a packed one.
        length: tokens of a packed batch, all processes together; 0 for a padded one.
    """

    prompt_ids_BP: Int[Tensor, "B P"]
    prompt_mask_BP: Bool[Tensor, "B P"]
    response_ids_BC: Int[Tensor, "B C"]
    response_mask_BC: Bool[Tensor, "B C"]
    prompt_start_B: Int[Tensor, " B"]
    response_start_B: Int[Tensor, " B"]
    width: int
    length: int = 0
    _parts: dict[tuple[int, ...], tuple[Tensor, Tensor]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @staticmethod
    def padded(
        prompt_ids_BP: Int[Tensor, "B P"],
        prompt_mask_BP: Tensor,
        response_ids_BC: Int[Tensor, "B C"],
        response_mask_BC: Tensor,
    ) -> TokenLayout:
        """A padded batch: each row is its prompt columns followed by its response columns, either side padded."""
        (rows, prompt_width), width = prompt_ids_BP.shape, prompt_ids_BP.shape[1] + response_ids_BC.shape[1]
        row_B = torch.arange(rows, device=prompt_ids_BP.device) * width
        return TokenLayout(
            prompt_ids_BP,
            prompt_mask_BP.bool(),
            response_ids_BC,
            response_mask_BC.bool(),
            row_B,
            row_B + prompt_width,
            width,
        )

    @staticmethod
    def packed(
        ids_N: Int[Tensor, " N"], offsets: Int[Tensor, " edges"], prompt_lengths_B: Int[Tensor, " B"]
    ) -> TokenLayout:
        """A packed batch: rollouts laid end to end on one axis, rollout b on offsets[b] .. offsets[b+1].

        Args:
            ids_N: token ids of all rollouts.
            offsets: B + 1 positions, the first 0.
            prompt_lengths_B: how many of each rollout's tokens are its prompt.
        """
        start_B, length_B = offsets[:-1], offsets.diff()

        def columns(first_B: Tensor, count_B: Tensor) -> tuple[Tensor, Tensor]:
            column_1C = torch.arange(int(count_B.max()), device=ids_N.device)[None]
            mask_BC = column_1C < count_B[:, None]
            index_BC = torch.where(mask_BC, first_B[:, None] + column_1C, 0)
            return ids_N[index_BC], mask_BC

        response_B = start_B + prompt_lengths_B
        prompt = columns(start_B, prompt_lengths_B)
        response = columns(response_B, length_B - prompt_lengths_B)
        return TokenLayout(*prompt, *response, start_B, response_B, 0, int(offsets[-1]))

    def rows_of(self, shape: torch.Size, cursor: int) -> int:
        """How many rollouts a hooked output of `shape` holds, `cursor` of them having been seen.

        Raises:
            CaptureError: the shape does not fit the layout.
        """
        total = len(self.prompt_start_B)
        if self.width == 0:
            if cursor:
                raise CaptureError("the hooked block ran a second time; a packed batch must come in one forward call")
            return total
        if len(shape) != 3 or shape[1] != self.width or cursor + shape[0] > total:
            raise CaptureError(
                f"expected hidden states of shape (at most {total - cursor} rows, {self.width} tokens, H), got "
                f"{tuple(shape)}; the forward pass must see the batch that the capture was armed with"
            )
        return shape[0]

    def prompt_window(self, n: int) -> Window:
        """The last n prompt tokens."""
        return _last(self.prompt_mask_BP, self.prompt_start_B, n)

    def reasoning_window(self, n: int, end_of_reasoning: tuple[int, ...]) -> Window:
        """The last n response tokens up to and including the end of reasoning, or of the response if there is none."""
        reasoning_BC, _ = self.parts(end_of_reasoning)
        mask_BC = torch.where(reasoning_BC.any(1, keepdim=True), reasoning_BC, self.response_mask_BC)
        return _last(mask_BC, self.response_start_B, n)

    def parts(self, end_of_reasoning: tuple[int, ...]) -> tuple[Bool[Tensor, "B C"], Bool[Tensor, "B C"]]:
        """Masks of the reasoning and the answer part of each response.

        The reasoning reaches up to and including the first end-of-reasoning sequence. Whether the model or the chat
        template opened it makes no difference. Without an end it is the whole response: the model does not mark its
        reasoning, or was cut in the middle of it; then there is no answer part. If the prompt itself ends with a
        closed reasoning (a template that turns thinking off), the whole response is the answer.

        They are found once and kept: the window of states and the entropies ask for the same ones.
        """
        if end_of_reasoning not in self._parts:
            self._parts[end_of_reasoning] = self._found_parts(end_of_reasoning)
        return self._parts[end_of_reasoning]

    def _found_parts(self, end_of_reasoning: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        column_1C = torch.arange(self.response_ids_BC.shape[1], device=self.response_ids_BC.device)[None]
        end_B = first_end(self.response_ids_BC, self.response_mask_BC, end_of_reasoning)
        closed_B = _closed_in_prompt(self.prompt_ids_BP, self.prompt_mask_BP, end_of_reasoning)
        limit_B = torch.where(end_B >= 0, end_B, torch.where(closed_B, -1, column_1C.shape[1]))
        upto_BC = column_1C <= limit_B[:, None]
        return self.response_mask_BC & upto_BC, self.response_mask_BC & ~upto_BC

    def entropy_features(
        self, entropy_BC: Float[Tensor, "B C"], end_of_reasoning: tuple[int, ...]
    ) -> Float[Tensor, "B 3"]:
        """Mean token entropy (nats) of the whole output, its reasoning and its answer.

        Args:
            entropy_BC: entropy of the distribution that each response token was drawn from.
            end_of_reasoning: token ids that close the reasoning.

        Returns:
            One row per rollout, NaN where a part has no token: absent is not the same as zero.
        """
        mask_B3C = torch.stack([self.response_mask_BC, *self.parts(end_of_reasoning)], dim=1)
        return torch.where(mask_B3C, entropy_BC.float()[:, None], 0.0).sum(2) / mask_B3C.sum(2)


def first_end(ids_BC: Int[Tensor, "B C"], mask_BC: Bool[Tensor, "B C"], sequence: tuple[int, ...]) -> Int[Tensor, " B"]:
    """Column of the last token of the first occurrence of `sequence` among the real tokens; -1 if there is none."""
    hit_BC = _occurrences(ids_BC, mask_BC, sequence)
    return torch.where(hit_BC.any(1), hit_BC.int().argmax(1), -1)


def token_entropy(
    logits: Float[Tensor, "*batch V"], temperature: float = 1.0, chunk: int = 256
) -> Float[Tensor, "*batch"]:
    """Entropy in nats of softmax(logits / temperature) over the full vocabulary, H = log Σ eˣ − Σ p·x.

    Works through `chunk` tokens at a time, so that no second tensor of the logits' size exists; bf16 logits are
    reduced in fp32.
    """
    flat = logits.detach().reshape(-1, logits.shape[-1])
    entropies: list[Tensor] = []
    for part in flat.split(chunk):
        scaled = part.float() / temperature
        # A token that cannot be drawn (logit -inf) adds 0 · log 0 = 0, not NaN.
        log_p = scaled.log_softmax(-1).clamp_min_(torch.finfo(scaled.dtype).min)
        entropies.append(-log_p.exp().mul_(log_p).sum(-1))
    return torch.cat(entropies).reshape(logits.shape[:-1]) if entropies else logits.new_zeros(logits.shape[:-1])


def _occurrences(ids_BC: Tensor, mask_BC: Tensor, sequence: tuple[int, ...]) -> Tensor:
    """Mask of the columns at which an occurrence of `sequence` among real tokens ends."""
    hit_BC = torch.zeros_like(mask_BC)
    span = ids_BC.shape[1] - len(sequence) + 1
    if not sequence or span < 1:
        return hit_BC
    match = torch.ones_like(mask_BC[:, :span])
    for offset, token in enumerate(sequence):
        match &= (ids_BC[:, offset : offset + span] == token) & mask_BC[:, offset : offset + span]
    hit_BC[:, len(sequence) - 1 :] = match
    return hit_BC


def _closed_in_prompt(ids_BP: Tensor, mask_BP: Tensor, sequence: tuple[int, ...]) -> Tensor:
    remaining_BP = mask_BP.sum(1, keepdim=True) - mask_BP.cumsum(1)
    return (_occurrences(ids_BP, mask_BP, sequence) & (remaining_BP <= _TOKENS_AFTER_CLOSED_REASONING)).any(1)


def _last(mask_BC: Tensor, start_B: Tensor, n: int) -> Window:
    column_1C = torch.arange(mask_BC.shape[1], device=mask_BC.device)[None]
    last_BN = torch.where(mask_BC, column_1C, -1).topk(min(n, mask_BC.shape[1]), dim=1).values
    return Window(start_B[:, None] + last_BN.clamp_min(0), last_BN >= 0)
