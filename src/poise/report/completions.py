"""The completions that a page shows: which, how much of each, and how sure the policy was of every token.

Whatever is left out is said to be left out; the page stays small however long the completions are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup, escape

from poise.report.data import RunData

_STEPS, _PROMPTS_PER_STEP, _SIBLINGS = 6, 4, 8
# Characters of completions on a page, shared out over its completions; none gets more than the second number.
_ALL_CHARACTERS, _MOST_CHARACTERS, _FEWEST_CHARACTERS = 600_000, 4_000, 200
_PROMPT_CHARACTERS = 2_000
# Shades of a token's background; entropies from the top of the scale on share the darkest.
_SHADES = 9
_LOWEST_TOP = 0.5  # nats; a policy surer than that everywhere is shown as sure


def shown_completions(runs: Sequence[RunData]) -> tuple[list[list[dict[str, Any]]], float]:
    """Groups of completions to show for each run, and the top of the entropy scale in nats."""
    found = [_groups(run) for run in runs]
    rollouts = [rollout for groups in found for group in groups for rollout in group["rollouts"]]
    nats = sorted(value for rollout in rollouts for _, value in rollout["tokens"] or [])
    top = max(_LOWEST_TOP, nats[math.ceil(0.98 * len(nats)) - 1]) if nats else _LOWEST_TOP
    room = min(_MOST_CHARACTERS, max(_FEWEST_CHARACTERS, _ALL_CHARACTERS // max(1, len(rollouts))))
    for rollout in rollouts:
        tokens = rollout.pop("tokens")
        rollout["html"] = heat(tokens, top, room) if tokens else escape(shorten(rollout["text"], room))
        rollout["mean_nats"] = sum(value for _, value in tokens) / len(tokens) if tokens else None
    return found, top


def _groups(run: RunData) -> list[dict[str, Any]]:
    """The first prompts, with their rollouts, of a few steps from the first to the last: shown as they come."""
    steps = list(run.rollout_files)
    count = min(_STEPS, len(steps))
    chosen = sorted({steps[round(index * (len(steps) - 1) / max(1, count - 1))] for index in range(count)})
    size = run.settings.optimisation.rollouts_per_prompt
    groups: list[dict[str, Any]] = []
    for step in chosen:
        rollouts, tokens = run.rollouts(step, size * _PROMPTS_PER_STEP), run.tokens(step)
        for start in range(0, len(rollouts), size):
            members = range(start, min(start + size, len(rollouts)))
            shown = [_shown(run, rollouts[row], tokens.get(row)) for row in members[:_SIBLINGS]]
            prompt = shorten(text_of(rollouts[start]["prompt"]), _PROMPT_CHARACTERS)
            hidden = max(0, len(members) - _SIBLINGS)
            groups.append({"step": step, "prompt": prompt, "rollouts": shown, "hidden": hidden, "open": False})
    # One group stands open: the first that the probe had a say in.
    predicted = [group for group in groups if all(r["prediction"] is not None for r in group["rollouts"])]
    for group in (predicted or groups)[:1]:
        group["open"] = True
    return groups


def _shown(run: RunData, rollout: dict[str, Any], tokens: list[tuple[str, float]] | None) -> dict[str, Any]:
    values = {name: _finite(rollout.get(name)) for name in ("prediction", "baseline", "advantage")}
    return {**values, "reward": run.reward_of(rollout), "text": text_of(rollout["completion"]), "tokens": tokens}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def heat(tokens: Sequence[tuple[str, float]], top: float, room: int) -> Markup:
    """Tokens on backgrounds that darken with their entropy; the middle is left out where there are too many.

    Args:
        tokens: text and entropy (nats) of each.
        top: entropy of the darkest shade.
        room: characters to show at most.
    """
    # A shaded token costs about 40 characters of HTML for its four of text.
    most = max(40, room // 10)
    head, tail = (tokens, []) if len(tokens) <= most else (tokens[: most * 3 // 4], tokens[-(most // 4) :])
    pieces = [_shaded(text, nats, top) for text, nats in head]
    if tail:
        pieces.append(Markup("\n<b>… {:,} tokens left out …</b>\n").format(len(tokens) - len(head) - len(tail)))
    return Markup("").join([*pieces, *(_shaded(text, nats, top) for text, nats in tail)])


def _shaded(text: str, nats: float, top: float) -> Markup:
    level = min(_SHADES, math.floor(nats / top * _SHADES)) if math.isfinite(nats) else 0
    if level <= 0:
        return escape(text)
    return Markup('<i class="e{}" title="{:.2f}">{}</i>').format(level, nats, text)


def shorten(text: str, room: int) -> str:
    """The text, or its beginning and end with a note of what lies between."""
    if len(text) <= room:
        return text
    head, tail = text[: room * 3 // 4], text[-(room // 4) :]
    return f"{head}\n… {len(text) - len(head) - len(tail):,} characters left out …\n{tail}"


def text_of(said: Any) -> str:
    """Text of a prompt or completion; messages are set one below the other, with their roles if there are several."""
    if isinstance(said, str):
        return said
    messages = [(message.get("role", ""), str(message.get("content") or "")) for message in said]
    if len(messages) == 1:
        return messages[0][1]
    return "\n\n".join(f"{role}: {content}" for role, content in messages)
