"""Sampling: left padding changes nothing, seeds repeat, the caller's random state is untouched, limits are honoured."""

import copy

import pytest
import torch

from poise.errors import ConfigError
from poise.eval.sampling import HFSampler, Sampling, batches, encode

PROMPTS = ["1+1=", "12+345=", "9=", "1+2+3+4=", "5=", "77-7="]


def sample(model, tokenizer, sampling, prompts=PROMPTS, done=frozenset()):
    return dict(HFSampler(model, tokenizer)(prompts, sampling, done))


def test_batches_hold_whole_prompts_longest_first():
    assert batches([3, 9, 5, 5, 1], Sampling(k=2, batch_size=4)) == [[1, 2], [3, 0], [4]]
    assert batches([3, 9], Sampling(k=8, batch_size=4)) == [[1], [0]]


def test_greedy_completions_do_not_depend_on_padding_or_batches(model, tokenizer):
    greedy = {"k": 1, "temperature": 0.0, "max_new_tokens": 12}
    alone = sample(model, tokenizer, Sampling(**greedy, batch_size=1))
    together = sample(model, tokenizer, Sampling(**greedy, batch_size=6))
    assert {i: c[0].text for i, c in alone.items()} == {i: c[0].text for i, c in together.items()}
    reference = model.generate(
        torch.tensor([tokenizer(PROMPTS[1])["input_ids"]]), do_sample=False, max_new_tokens=12, pad_token_id=0
    )[0, len(PROMPTS[1]) :]
    assert alone[1][0].text == tokenizer.decode(reference, skip_special_tokens=True)


def test_samples_repeat_with_the_seed_and_differ_without(model, tokenizer):
    first = sample(model, tokenizer, Sampling(k=3, max_new_tokens=10, batch_size=6, temperature=1.0))
    again = sample(model, tokenizer, Sampling(k=3, max_new_tokens=10, batch_size=6, temperature=1.0))
    other = sample(model, tokenizer, Sampling(k=3, max_new_tokens=10, batch_size=6, temperature=1.0, seed=1))
    assert first == again != other
    assert len({completion.text for completion in first[0]}) > 1


def test_skipping_finished_batches_leaves_the_others_as_they_were(model, tokenizer):
    sampling = Sampling(k=2, max_new_tokens=8, batch_size=4, temperature=1.0)
    whole = sample(model, tokenizer, sampling)
    rest = sample(model, tokenizer, sampling, done=frozenset([1, 3, 0]))
    assert set(rest) == {2, 4, 5}
    assert all(rest[index] == whole[index] for index in rest)


def test_more_samples_than_a_batch_holds(model, tokenizer):
    found = sample(model, tokenizer, Sampling(k=7, max_new_tokens=5, batch_size=3, temperature=1.0))
    assert all(len(completions) == 7 for completions in found.values())


def test_random_state_and_mode_are_as_before(model, tokenizer):
    model.train()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    sample(model, tokenizer, Sampling(k=2, max_new_tokens=4, temperature=1.0))
    assert torch.equal(before, torch.get_rng_state())
    assert model.training
    model.eval()


def test_truncation_is_the_absence_of_an_end(model, tokenizer):
    found = sample(model, tokenizer, Sampling(k=16, max_new_tokens=30, temperature=1.5, top_p=1.0))
    completions = [completion for each in found.values() for completion in each]
    assert {completion.truncated for completion in completions} == {True, False}
    assert all((completion.tokens == 30) >= completion.truncated for completion in completions)
    assert all(completion.tokens >= 1 for completion in completions)


def test_a_stop_text_is_cut_off_and_is_no_truncation(model, tokenizer):
    found = sample(model, tokenizer, Sampling(k=16, max_new_tokens=30, temperature=1.5, top_p=1.0, stop=("3",)))
    completions = [completion for each in found.values() for completion in each]
    assert not any("3" in completion.text for completion in completions)
    assert any(not completion.truncated and completion.tokens < 30 for completion in completions)


def test_padding_after_a_stop_text_is_not_counted_where_it_looks_like_an_end(model, tokenizer):
    sampling = Sampling(k=16, max_new_tokens=30, temperature=1.5, top_p=1.0, stop=("3",))
    found, alike = HFSampler(model, tokenizer), HFSampler(model, tokenizer)
    alike.pad_id = alike.end_ids[0]
    tokens = [[c.tokens for _, each in sampler(PROMPTS[:1], sampling) for c in each] for sampler in (found, alike)]
    assert tokens[0] == tokens[1]


def test_completions_stop_where_the_context_ends(model, tokenizer):
    found = sample(model, tokenizer, Sampling(k=1, temperature=0.0, max_new_tokens=1000), prompts=["1" * 60])
    assert found[0][0].tokens <= 4
    with pytest.raises(ConfigError, match="prompt of 64 tokens fills the model's context of 64"):
        sample(model, tokenizer, Sampling(k=1, temperature=0.0, max_new_tokens=10), prompts=["1" * 64])


@pytest.mark.parametrize(
    "own",
    [
        {"top_k": 1, "repetition_penalty": 3.0},
        {"min_p": 0.999},
        {"typical_p": 0.01},
        {"min_new_tokens": 10},
        {"suppress_tokens": list(range(4, 20))},
        {"num_return_sequences": 2},
        {"num_beams": 2},
        {"stop_strings": ["1"]},
    ],
    ids=lambda own: next(iter(own)),
)
def test_a_checkpoints_own_generation_settings_do_not_leak_in(model, tokenizer, own):
    sampling = Sampling(k=2, max_new_tokens=10, temperature=1.0, top_p=1.0)
    plain, kept = sample(model, tokenizer, sampling), model.generation_config
    model.generation_config = copy.deepcopy(kept)
    try:
        for name, value in own.items():
            setattr(model.generation_config, name, value)
        changed = model.generation_config
        assert sample(model, tokenizer, sampling) == plain
        assert model.generation_config is changed
    finally:
        model.generation_config = kept


def test_messages_go_through_the_chat_template(tokenizer):
    said = [{"role": "user", "content": "1+1"}]
    assert tokenizer.decode(encode(tokenizer, said)) == "<user>1+1="
    assert encode(tokenizer, "1+1=") == encode(tokenizer, said)[1:]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"top_p": 0.0}, "top_p in"),
        ({"temperature": 0.0, "k": 4}, "the same completion 4 times"),
    ],
)
def test_impossible_settings(settings, said):
    with pytest.raises(ConfigError, match=said):
        Sampling(**settings)
