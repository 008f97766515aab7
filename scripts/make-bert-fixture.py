#!/usr/bin/env python3
"""Writes tests/fixtures/transformers/bert-tiny: a small BertModel with random weights, what transformers computes with it,
and what its tokenizers make of some texts.

Needs torch 2.9.0, transformers 4.57.6 and safetensors. Usage: scripts/make-bert-fixture.py
"""
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertModel, BertTokenizer, BertTokenizerFast

OUT = Path(__file__).resolve().parent.parent / "tests/fixtures/transformers/bert-tiny"
ACTIVATIONS = ["gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu", "tanh"]
WORDS = """[PAD] [UNK] [CLS] [SEP] [MASK] the The cat Cat caf ##e ##é café cafe red apple un ##believ ##able naive naïve
! ' , - 2 3 一 只 猫 一只猫 a b c ##s ##t ##y ##d zurich zürich Zürich""".split()
TEXTS = [
    "The cat",
    "A café in Zürich, unbelievable!",
    "naïve cats - 23 red apples",
    "一只猫",
    "",
    "the [MASK] cat [PAD] a",
    "cat cat cat cat cat cat cat cat cat cat cat cat cat cat",
]
LENGTH = 12


def model(config):
    """Weights whose effects are large: the default initialisation would leave residuals nearly alone."""
    generator = torch.Generator().manual_seed(7)
    model = BertModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("LayerNorm.weight"):
                parameter.copy_(1 + 0.2 * noise)
            elif parameter.dim() == 1:
                parameter.copy_(0.2 * noise)
            else:
                parameter.copy_(noise * (1.0 if "embeddings" in name else parameter.shape[1] ** -0.5 * 1.5))
    return model


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    arguments = dict(
        vocab_size=len(WORDS), hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40,
        max_position_embeddings=LENGTH + 4, type_vocab_size=2,
    )
    bert = model(BertConfig(**arguments))
    bert.save_pretrained(OUT)

    tokenizers = {
        "uncased": dict(do_lower_case=True),
        "cased": dict(do_lower_case=False),
        "uncased_accents": dict(do_lower_case=True, strip_accents=False),
        "cased_no_chinese": dict(do_lower_case=False, tokenize_chinese_chars=False),
    }
    cases = {}
    for name, options in tokenizers.items():
        rows = []
        for text in TEXTS:
            both = []
            for kind in (BertTokenizer, BertTokenizerFast):
                tokenizer = kind(str(OUT / "vocab.txt"), model_max_length=LENGTH, **options)
                both.append(tokenizer(text, padding="max_length", truncation=True, max_length=LENGTH))
            assert both[0]["input_ids"] == both[1]["input_ids"], (name, text, both)
            rows.append({"text": text, "ids": both[0]["input_ids"], "mask": both[0]["attention_mask"]})
        cases[name] = {"config": options | {"model_max_length": LENGTH}, "texts": rows}
    tokenizer = BertTokenizerFast(str(OUT / "vocab.txt"), model_max_length=LENGTH, do_lower_case=False)
    tokenizer.backend_tokenizer.save(str(OUT / "tokenizer.json"), pretty=False)
    (OUT / "expected.json").write_text(json.dumps(cases, ensure_ascii=False, indent=1) + "\n")

    texts = cases["uncased"]["texts"]
    ids = torch.tensor([row["ids"] for row in texts])
    mask = torch.tensor([row["mask"] for row in texts])
    # Nobody may look anywhere in the last row, and a hole in the one before.
    mask[-1] = 0
    mask[-2, 1] = 0
    tensors = {"ids": ids, "mask": mask}
    with torch.no_grad():
        tensors["out"] = bert(ids).last_hidden_state
        tensors["out.masked"] = bert(ids, attention_mask=mask).last_hidden_state
        tensors["out.short"] = bert(ids[:, :5]).last_hidden_state
        for activation in ACTIVATIONS:
            other = BertModel(BertConfig(**arguments, hidden_act=activation)).eval()
            other.load_state_dict(bert.state_dict())
            tensors[f"out.{activation}"] = other(ids[1:2]).last_hidden_state
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, OUT / "expected.safetensors")


if __name__ == "__main__":
    main()
