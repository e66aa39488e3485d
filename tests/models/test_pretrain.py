"""Pretraining: the optimizer follows its equation, the loss counts what it should, and a seed fixes the weights."""

import json
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, Qwen3ForCausalLM

from poise.models import bundled
from poise.models.muon import Muon, orthogonal
from poise.models.pretrain import Pretrain, _batches, _rate, _texts, config, next_token_loss, save, train
from poise.models.tokenizer import build_tokenizer
from poise.rewards.procedural import extract_answer


class TestMuon:
    @pytest.mark.parametrize("shape", [(3, 8, 20), (2, 20, 8), (1, 6, 6)])
    def test_singular_values_go_to_one_and_directions_stay(self, shape):
        torch.manual_seed(0)
        given = torch.randn(shape)
        result = orthogonal(given)
        assert result.shape == shape
        values = torch.linalg.svdvals(result)
        assert 0.6 < values.min() <= values.max() < 1.3
        # U and V of the two agree: U^T result V is diagonal and positive.
        left, _, right = torch.linalg.svd(given, full_matrices=False)
        inner = left.mT @ result @ right.mT
        assert torch.diagonal(inner, dim1=1, dim2=2).min() > 0.6
        assert (inner - torch.diag_embed(torch.diagonal(inner, dim1=1, dim2=2))).abs().max() < 1e-3

    def test_two_steps_against_the_equation(self):
        torch.manual_seed(1)
        start, first, second = torch.randn(3, 8, 4)
        weight = torch.nn.Parameter(start.clone())
        optimizer = Muon([weight], lr=0.1, momentum=0.5)
        for gradient in (first, second):
            weight.grad = gradient.clone()
            optimizer.step()
        by_hand = start - 0.1 * 2**0.5 * orthogonal((first + 0.5 * first)[None])[0]
        by_hand = by_hand - 0.1 * 2**0.5 * orthogonal((second + 0.5 * (0.5 * first + second))[None])[0]
        torch.testing.assert_close(weight.data, by_hand)

    def test_weights_of_one_shape_do_not_mix(self):
        torch.manual_seed(2)
        gradients = torch.randn(2, 5, 7)
        together = [torch.nn.Parameter(torch.zeros(5, 7)) for _ in range(2)]
        alone = [torch.nn.Parameter(torch.zeros(5, 7)) for _ in range(2)]
        for weight, other, gradient in zip(together, alone, gradients, strict=True):
            weight.grad, other.grad = gradient.clone(), gradient.clone()
            Muon([other], lr=0.1).step()
        Muon(together, lr=0.1).step()
        for weight, other in zip(together, alone, strict=True):
            torch.testing.assert_close(weight.data, other.data)


class TestLoss:
    def test_only_completion_tokens_count(self):
        torch.manual_seed(0)
        tokenizer = AutoTokenizer.from_pretrained(bundled())
        model = Qwen3ForCausalLM(config(Pretrain(out=Path("unused"), layers=1), tokenizer)).eval()
        # Two rows of prompt 3 and lengths 6 and 5; the last token of the second row is padding.
        ids_BT = torch.tensor([[3, 40, 4, 50, 51, 1], [3, 41, 4, 52, 1, 0]])
        logits = model(ids_BT).logits.log_softmax(-1)
        by_hand = [-logits[0, t, ids_BT[0, t + 1]] for t in (2, 3, 4)] + [
            -logits[1, t, ids_BT[1, t + 1]] for t in (2, 3)
        ]
        loss = next_token_loss(model, ids_BT, torch.tensor([3, 3]), torch.tensor([6, 5]))
        torch.testing.assert_close(loss, torch.stack(by_hand).mean())

    def test_warm_up_and_decay(self):
        assert [_rate(step, 200) for step in (0, 24, 49)] == pytest.approx([0.02, 0.5, 1.0])
        assert _rate(200, 200) == pytest.approx(0.02)
        assert all(_rate(step, 200) >= _rate(step + 1, 200) for step in range(50, 199))


class TestTexts:
    def test_flawless_first_and_then_slips(self):
        settings = Pretrain(out=Path("unused"), steps=10, batch=60, flawless=0.5)
        pairs = list(islice(_texts(settings), 600))
        right = [_sum_is_right(*pair) for pair in pairs if pair[0].startswith("State")]
        assert all(right[: len(right) // 2])
        assert 0.3 < sum(right[len(right) // 2 :]) / (len(right) / 2) < 0.8
        assert len(right) == 400

    def test_batches_are_whole_texts_padded_on_the_right(self):
        tokenizer = AutoTokenizer.from_pretrained(bundled())
        settings = Pretrain(out=Path("unused"), batch=8)
        ids_BT, prompts_B, lengths_B = next(_batches(_texts(settings), tokenizer, settings))
        for row, prompt, length in zip(ids_BT, prompts_B, lengths_B, strict=True):
            assert tokenizer.decode(row[:prompt]).startswith("<|user|>")
            assert tokenizer.decode(row[:prompt]).endswith("<|assistant|>")
            assert tokenizer.decode(row[prompt:length]).startswith("<think>")
            assert row[length - 1] == tokenizer.eos_token_id
            assert (row[length:] == tokenizer.pad_token_id).all()


class TestRun:
    def test_a_seed_fixes_the_weights_and_the_folder_loads(self, tmp_path):
        weights = [_trained(tmp_path / name, seed) for name, seed in (("one", 0), ("same", 0), ("other", 1))]
        assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
        assert any(not torch.equal(weights[0][key], weights[2][key]) for key in weights[0])
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "one")
        assert (
            tokenizer.decode(tokenizer.encode("<think>1</think><|im_end|>"), skip_special_tokens=True)
            == "<think>1</think>"
        )

    def test_the_bundled_model_s_settings_are_the_defaults(self):
        kept = json.loads((bundled() / "pretrain.json").read_text())
        defaults = vars(Pretrain(out=Path("unused")))
        assert kept == {key: list(value) if isinstance(value, tuple) else value for key, value in defaults.items()
                        if key != "out"}  # fmt: skip


def _sum_is_right(question, completion):
    expression = question.split(":")[1].replace("=", "")
    return int(extract_answer(completion)) == eval(expression)


def _trained(out, seed):
    settings = Pretrain(out=out, steps=3, batch=4, hidden=32, layers=1, entries=320, seed=seed)
    torch.manual_seed(seed)
    examples = _texts(settings)
    tokenizer = build_tokenizer((text for pair in islice(examples, 200) for text in pair), settings.entries)
    model = Qwen3ForCausalLM(config(settings, tokenizer))
    train(model, tokenizer, examples, settings)
    save(model, tokenizer, out)
    return load_file(out / "model.safetensors")
