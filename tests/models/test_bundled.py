"""The bundled model as users get it: it loads by itself, says well-formed things, and starts where it should."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from poise.eval import evaluate
from poise.models import bundled
from poise.models.card import measure
from poise.rewards.procedural import extract_answer, verify
from poise.tasks.procedural import load_procedural


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(bundled())


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(bundled()).eval()


class TestFiles:
    def test_a_few_megabytes_of_plain_files(self):
        files = sorted(path.name for path in bundled().iterdir())
        assert files == [
            "README.md",
            "chat_template.jinja",
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "pretrain.json",
            "tokenizer.json",
            "tokenizer_config.json",
        ]
        assert sum(path.stat().st_size for path in bundled().iterdir()) < 4e6

    def test_stock_qwen3_below_a_million_parameters(self, model):
        config = AutoConfig.from_pretrained(bundled())
        assert config.architectures == ["Qwen3ForCausalLM"]
        assert "auto_map" not in json.loads((bundled() / "config.json").read_text())
        assert (config.head_dim, config.tie_word_embeddings, config.num_hidden_layers) == (32, True, 4)
        assert model.num_parameters() < 1_000_000
        assert {weight.dtype for weight in model.parameters()} == {torch.float32}
        assert f"{model.num_parameters():,} parameters" in (bundled() / "README.md").read_text()

    def test_generation_ends_and_pads_with_tokens_of_its_own(self, model, tokenizer):
        generation = model.generation_config
        assert generation.eos_token_id == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
        assert generation.pad_token_id == tokenizer.pad_token_id == tokenizer.convert_tokens_to_ids("<|pad|>")
        assert len(tokenizer) == model.config.vocab_size


class TestTokenizer:
    @pytest.mark.parametrize(
        "text",
        [
            "State the final answer to the following arithmetic problem: 12 - 7 =",
            "<think>12-7=5</think><answer>5</answer>",
            "naïve café, 中文 and 🙂\n\ttabs  and spaces ",
        ],
    )
    def test_round_trip(self, tokenizer, text):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        # Trainers decode without special tokens before they verify: the tags must be there still.
        assert tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True) == text

    @pytest.mark.parametrize(
        "tag", ["<think>", "</think>", "<answer>", "</answer>", "<|user|>", "<|assistant|>", "<|im_end|>"]
    )
    def test_one_token_each(self, tokenizer, tag):
        assert len(tokenizer.encode(tag)) == 1

    def test_digits_stand_alone(self, tokenizer):
        assert [tokenizer.decode([token]) for token in tokenizer.encode("1234")] == ["1", "2", "3", "4"]

    def test_nothing_is_added_to_a_text(self, tokenizer):
        assert tokenizer.encode("5") == tokenizer.encode("5", add_special_tokens=False)


class TestChatTemplate:
    def test_literal_conversation(self, tokenizer):
        said = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "1 + 1 ="},
            {"role": "assistant", "content": "<think>1+1=2</think><answer>2</answer>"},
            {"role": "user", "content": "2 + 2 ="},
        ]
        asked = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
        assert asked == (
            "<|system|>Be brief.<|user|>1 + 1 =<|assistant|><think>1+1=2</think><answer>2</answer><|im_end|>"
            "<|user|>2 + 2 =<|assistant|>"
        )
        told = tokenizer.apply_chat_template(said, tokenize=False)
        assert asked == told + "<|assistant|>"

    def test_an_unknown_role_is_refused(self, tokenizer):
        with pytest.raises(Exception, match="no token for the role tool"):
            tokenizer.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


class TestBehaviour:
    @pytest.mark.parametrize("name", ["chain_sum", "spell_backward"])
    def test_it_starts_in_the_middle_with_prompts_far_apart(self, name):
        found = measure(bundled(), load_procedural(name, "test", size=96).to_list(), rollouts=8, seed=1)
        # 768 rollouts on 96 prompts: three standard errors are about .11 around .455 (sums) and .463 (spelling).
        assert 0.34 <= found.mean <= 0.58
        assert found.spread > 0.06
        assert min(found.histogram) >= 3
        assert min(found.histogram[0], found.histogram[4]) >= 10
        assert float(found.ended_PG.mean()) > 0.99
        assert float(found.lengths_PG.mean()) < 40

    @pytest.mark.parametrize("name", ["chain_sum", "spell_backward"])
    def test_what_it_samples_wrong_it_mostly_knows(self, model, tokenizer, name):
        """The likeliest token is the right one at nearly every step: room that sharpening alone can fill."""
        rows = load_procedural(name, "test", size=96)
        found = evaluate(
            model, tokenizer, rows, "procedural", k=1, temperature=0.0, top_p=1.0, max_new_tokens=64, batch_size=96
        )
        assert found.average.mean > 0.8

    def test_same_seed_same_samples(self):
        rows = load_procedural("tiny", "test", size=8).to_list()
        one, same, other = (measure(bundled(), rows, rollouts=4, seed=seed) for seed in (1, 1, 2))
        assert torch.equal(one.rewards_PG, same.rewards_PG)
        assert torch.equal(one.lengths_PG, same.lengths_PG)
        assert not torch.equal(one.lengths_PG, other.lengths_PG)

    def test_it_thinks_and_then_answers(self, model, tokenizer):
        (row,) = load_procedural("chain_sum", "test", size=1, max_terms=2, max_digits=1, min_terms=2).to_list()
        inputs = tokenizer.apply_chat_template(
            row["prompt"], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=64)[0, inputs["input_ids"].shape[1] :]
        text = tokenizer.decode(ids, skip_special_tokens=True)
        assert ids[-1] == tokenizer.eos_token_id
        assert text.startswith("<think>")
        assert extract_answer(text) == row["answer"]
        assert verify(text, row).score == 1.0
