"""Tiny models of transformers with weights that a wrong order of rows, heads or tensors would show in."""

import dataclasses

import torch

from topklm.model import ModelConfig, RopeScaling

BASE = ModelConfig(
    dim=24, n_layers=2, n_heads=4, ffn_dim=40, vocab_size=31, max_seqlen=64, norm_eps=1e-6, rope_theta=5000.0
)
LLAMA3 = RopeScaling(type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_seqlen=16)
VARIANTS = {
    "mha": BASE,
    "gqa": dataclasses.replace(BASE, n_kv_heads=2),
    "tied": dataclasses.replace(BASE, n_kv_heads=1, weight_tying=True),
    "own head_dim": dataclasses.replace(BASE, head_dim=10, n_kv_heads=2),
    "linear": dataclasses.replace(BASE, rope_scaling=RopeScaling(type="linear", factor=3.0)),
    "llama3": dataclasses.replace(BASE, head_dim=16, rope_scaling=LLAMA3),
}


def random_llama(hf_config, seed=0, **settings):
    """`LlamaForCausalLM` of a config.json's dictionary; norms that are not 1 and logits that are not all small."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**hf_config, **settings)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(std=0.2)
    return model
