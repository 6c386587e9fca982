"""A small GPT in plain PyTorch: pre-norm blocks, no biases in its linear layers, head tied to the embedding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from demo.data import VOCABULARY
from demo.settings import Settings

PROJECTIONS = ("query", "key", "value")
"""The order in which attention registers its three projections. The forward pass does not depend on it."""


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, settings: Settings, projections: Sequence[str]) -> None:
        super().__init__()
        self.heads = settings.heads
        self.dropout = settings.dropout
        for name in projections:
            self.add_module(name, nn.Linear(settings.width, settings.width, bias=False))
        self.out = nn.Linear(settings.width, settings.width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, time, width] to the same."""
        query, key, value = (self._split(self.get_submodule(name)(x)) for name in PROJECTIONS)
        dropout = self.dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        y: torch.Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return y

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)  # [batch, heads, time, width / heads]


class Block(nn.Module):
    """Attention and a two-layer perceptron, each on top of what comes in."""

    def __init__(self, settings: Settings, projections: Sequence[str]) -> None:
        super().__init__()
        width = settings.width
        self.norm_1 = nn.LayerNorm(width)
        self.attention = Attention(settings, projections)
        self.norm_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width, bias=False), nn.GELU(), nn.Linear(4 * width, width, bias=False)
        )
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, time, width] to the same."""
        x = x + self.dropout(self.attention(self.norm_1(x)))
        y: torch.Tensor = x + self.dropout(self.mlp(self.norm_2(x)))
        return y


class GPT(nn.Module):
    """Predicts the next byte."""

    def __init__(self, settings: Settings, projections: Sequence[str] = PROJECTIONS) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, settings.width)
        self.places = nn.Embedding(settings.context, settings.width)
        self.dropout = nn.Dropout(settings.dropout)
        self.blocks = nn.ModuleList(Block(settings, projections) for _ in range(settings.layers))
        self.norm = nn.LayerNorm(settings.width)
        self.head = nn.Linear(settings.width, VOCABULARY, bias=False)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)
        self.head.weight = self.tokens.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """int64 [batch, time] to logits [batch, time, 256]."""
        x = self.dropout(self.tokens(tokens) + self.places.weight)
        for block in self.blocks:
            x = block(x)
        logits: torch.Tensor = self.head(self.norm(x))
        return logits
