"""Checkpoints of the Hugging Face Trainer, made by the real library from models of a few hundred elements."""

from __future__ import annotations

import logging
import os
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TRANSFORMERS_NO_ADVISORY_WARNINGS="1")

from optstate.formats.checkpoint import Checkpoint
from tests.truth import same_bits

SIZES = {"vocab_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
LLAMA = {**SIZES, "hidden_size": 8, "intermediate_size": 16, "num_key_value_heads": 2}
BERT = {**SIZES, "hidden_size": 8, "intermediate_size": 16, "max_position_embeddings": 16}
BART = {
    "vocab_size": 32, "d_model": 8, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16,
}  # fmt: skip

# Model class → what makes one of its configurations small.
MODELS: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {**LLAMA, "num_key_value_heads": 1},
    "MistralForCausalLM": LLAMA,
    "Qwen2ForCausalLM": LLAMA,
    "Qwen3ForCausalLM": {**LLAMA, "head_dim": 4},
    "GemmaForCausalLM": {**LLAMA, "head_dim": 4},
    "Gemma2ForCausalLM": {**LLAMA, "head_dim": 4},
    "PhiForCausalLM": {**LLAMA, "partial_rotary_factor": 1.0},
    "Phi3ForCausalLM": {**LLAMA, "pad_token_id": 0},
    "MixtralForCausalLM": {**LLAMA, "num_local_experts": 2},
    "Qwen2MoeForCausalLM": {**LLAMA, "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 12},
    "Qwen3MoeForCausalLM": {**LLAMA, "head_dim": 4, "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8},
    "GPT2LMHeadModel": {"vocab_size": 32, "n_positions": 16, "n_embd": 8, "n_layer": 2, "n_head": 2},
    "GPT2ForSequenceClassification": {
        "vocab_size": 32, "n_positions": 16, "n_embd": 8, "n_layer": 2, "n_head": 2, "pad_token_id": 0,
    },
    "GPTNeoXForCausalLM": {**BERT, "max_position_embeddings": 16},
    "OPTForCausalLM": {
        **SIZES, "hidden_size": 8, "ffn_dim": 16, "word_embed_proj_dim": 8, "max_position_embeddings": 16, "pad_token_id": 0,
    },
    "BloomForCausalLM": {"vocab_size": 32, "hidden_size": 8, "n_layer": 2, "n_head": 2},
    "FalconForCausalLM": {**SIZES, "hidden_size": 8},
    "BertForMaskedLM": BERT,
    "BertForSequenceClassification": BERT,
    "RobertaForSequenceClassification": BERT,
    "ElectraForSequenceClassification": {**BERT, "embedding_size": 8},
    "DebertaV2ForSequenceClassification": BERT,
    "AlbertForMaskedLM": {**BERT, "embedding_size": 4},
    "DistilBertForSequenceClassification": {"vocab_size": 32, "dim": 8, "n_layers": 2, "n_heads": 2, "hidden_dim": 16},
    "T5ForConditionalGeneration": {
        "vocab_size": 32, "d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 2,
        "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "decoder_start_token_id": 0,
    },
    "BartForConditionalGeneration": BART,
    "WhisperForConditionalGeneration": {
        **BART, "num_mel_bins": 4, "max_source_positions": 4, "max_target_positions": 16, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
    },
    "ViTForImageClassification": {
        "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 8,
        "patch_size": 4,
    },
}  # fmt: skip


@contextmanager
def quietly():
    """The libraries' own warnings and messages are none of ours."""
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def library(name: str) -> Any:
    """A library, imported without what it says about others."""
    with quietly():
        return pytest.importorskip(name, reason=f"{name} is not installed")


def model_of(name: str, **options: Any) -> Any:
    """A small model of a class of transformers, always the same."""
    transformers = library("transformers")
    kind = getattr(transformers, name)
    torch.manual_seed(0)
    with quietly():
        return kind(kind.config_class(**{**MODELS[name], **options}))


def examples(model: Any) -> list[dict[str, Any]]:
    """What a model can be trained on."""
    name = type(model).__name__ if not hasattr(model, "get_base_model") else type(model.get_base_model()).__name__
    tokens = torch.arange(3, 9)
    if name.startswith("ViT"):
        return [{"pixel_values": torch.rand(3, 8, 8), "labels": 1}] * 8
    if name.startswith("Whisper"):
        return [{"input_features": torch.rand(4, 8), "labels": tokens}] * 8
    return [{"input_ids": tokens, "labels": 1 if "Classification" in name else tokens}] * 8


@dataclass(frozen=True)
class Run:
    """A checkpoint, and the program that wrote it as it was then."""

    folder: Path
    model: Any
    optimizer: Any


def trained(
    folder: Path, model: Any, *, steps: int = 3, resume: Any = None, optimizers: Any = (None, None), **arguments: Any
) -> Run:
    """Train for a few steps; the Trainer saves after the last one."""
    transformers = library("transformers")
    with quietly():
        options = transformers.TrainingArguments(
            str(folder), max_steps=steps, save_steps=steps, report_to=[], use_cpu=True, disable_tqdm=True,
            logging_strategy="no", dataloader_pin_memory=False, learning_rate=1e-2, **arguments,
        )  # fmt: skip
        trainer = transformers.Trainer(model, options, train_dataset=examples(model), optimizers=optimizers)
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train(resume_from_checkpoint=resume)
    inner = trainer.optimizer
    return Run(folder / f"checkpoint-{steps}", model, getattr(inner, "optimizer", inner))


def assert_slots_of(run: Run, opened: Checkpoint, names: list[str], certainty: str) -> None:
    """Every slot of the run's optimizer under the name that its parameter has in the file, bit by bit, and its group.

    `names` are those of the parameters that were trained, in the model's order.
    """
    trained = [parameter for parameter in run.model.parameters() if parameter.requires_grad]
    places = {id(each): index for index, group in enumerate(run.optimizer.param_groups) for each in group["params"]}
    assert sorted(opened.state) == sorted(names)
    for name, parameter in zip(names, trained, strict=True):
        found = opened.state[name]
        assert (name, found.facts.certainty, found.facts.group) == (name, certainty, places[id(parameter)])
        true = run.optimizer.state[parameter]
        assert sorted(found.slots) == sorted(true)
        for key, value in true.items():
            assert same_bits(found.slots[key].value, Live(value)), f"{name}/{key}"


class Live:
    """A tensor of torch as a reference."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor
        self.dtype = str(tensor.dtype).removeprefix("torch.")
        self.shape = tuple(tensor.shape)

    def array(self) -> Any:
        return self._tensor.detach().numpy()

    def blocks(self) -> Any:
        yield self.array().reshape(-1)
