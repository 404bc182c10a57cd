"""Small networks of many kinds, as users write them: the graphs of tests are taken from these."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import torch
from torch import nn
from torch.nn import functional


class Residual(nn.Module):
    """Two 3x3 convolutions and a shortcut, with a 1x1 convolution where the size changes."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.body(x) + self.shortcut(x))


class Separable(nn.Module):
    """An inverted residual of MobileNet v2: expand, one filter for each channel, project."""

    def __init__(self, channels: int, expansion: int = 4) -> None:
        super().__init__()
        wide = channels * expansion
        self.body = nn.Sequential(
            nn.Conv2d(channels, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
            nn.Hardswish(),
            nn.Conv2d(wide, wide, 3, padding="same", groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU6(inplace=True),
            nn.Conv2d(wide, channels, 1, groups=2, bias=False),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x += self.body(x)
        return x


class Attention(nn.Module):
    """Self-attention, either fused (scaled_dot_product_attention) or written out."""

    def __init__(self, width: int, heads: int, *, fused: bool, causal: bool) -> None:
        super().__init__()
        self.heads, self.fused, self.causal = heads, fused, causal
        self.project_in, self.project_out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        split = self.project_in(x).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = split[0], split[1], split[2]
        if self.fused:
            mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        else:
            scores = query @ key.transpose(-1, -2) / (width // self.heads) ** 0.5
            if self.causal:
                hidden = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
                scores = scores.masked_fill(hidden, float("-inf"))
            mixed = scores.softmax(-1) @ value
        out: torch.Tensor = self.project_out(mixed.transpose(1, 2).reshape(batch, length, width))
        return out


class Block(nn.Module):
    """One layer of a transformer, layer norm first."""

    def __init__(self, width: int, heads: int, *, fused: bool, causal: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, fused=fused, causal=causal)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(0.1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        out: torch.Tensor = x + self.feed(self.norm2(x))
        return out


class Decoder(nn.Module):
    """A small language model over tokens, with tied weights."""

    def __init__(self, words: int = 100, width: int = 32, length: int = 64) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, 4, fused=False, causal=True) for _ in range(2))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.words(tokens) + self.places(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        out: torch.Tensor = functional.linear(self.norm(x), self.words.weight)
        return out


class Recurrent(nn.Module):
    """An LSTM in both directions, a GRU on top."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(12, 16, num_layers=2, bidirectional=True, batch_first=True)
        self.gru = nn.GRU(32, 24, batch_first=True)
        self.head = nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, _ = self.lstm(x)
        x, _ = self.gru(x)
        out: torch.Tensor = self.head(x[:, -1])
        return out


class UNet(nn.Module):
    """Down by pooling, up by a transposed convolution, with a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.bottom = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.SiLU())
        self.up = nn.ConvTranspose2d(16, 8, 4, stride=2, padding=1)
        self.last = nn.Conv2d(16, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skip = self.down(x)
        x = self.up(self.bottom(functional.max_pool2d(skip, 2)))
        out: torch.Tensor = self.last(torch.cat([skip, x], 1))
        return out


class ConvNeXt(nn.Module):
    """One block: a 7x7 filter for each channel, layer norm on channels last, two linear layers."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 4, 4)
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.ones(width) * 1e-6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale * self.narrow(functional.gelu(self.wide(y)))
        out: torch.Tensor = x + y.permute(0, 3, 1, 2)
        return out


class Conditional(nn.Module):
    """A mixture of two experts that looks at its data to choose, which no export can follow."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.gate = nn.Linear(width, 2)
        self.experts = nn.ModuleList(
            [nn.Linear(width, width), nn.Sequential(nn.Linear(width, 96), nn.Linear(96, width))]
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        chosen = int(self.gate(x).mean(0).argmax().item())
        x = self.experts[chosen](x)
        return x / x.norm() if float(x.sum()) != 0.0 else x


def convnet() -> nn.Module:
    """Convolutions, pooling, a head."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1, dilation=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )


def encoder(*, fused: bool) -> nn.Module:
    """Two transformer layers without a mask."""
    return nn.Sequential(*(Block(32, 4, fused=fused, causal=False) for _ in range(2)))


def _normal(*shape: int) -> Callable[[int], tuple[Any, ...]]:
    return lambda batch: (torch.randn(batch, *shape),)


@attrs.frozen
class Architecture:
    """How to make a network, and its arguments at a batch size."""

    make: Callable[[], nn.Module]
    arguments: Callable[[int], tuple[Any, ...]]


ARCHITECTURES = {
    "convnet": Architecture(convnet, _normal(3, 32, 32)),
    "mlp": Architecture(lambda: nn.Sequential(nn.Linear(40, 80), nn.Tanh(), nn.Linear(80, 7)), _normal(40)),
    "resnet": Architecture(
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), Residual(8, 8), Residual(8, 16, 2), nn.AdaptiveAvgPool2d(1)),
        _normal(3, 20, 20),
    ),
    "mobilenet": Architecture(
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), Separable(8), Separable(8)), _normal(3, 18, 18)
    ),
    "encoder fused": Architecture(lambda: encoder(fused=True), _normal(20, 32)),
    "encoder written out": Architecture(lambda: encoder(fused=False), _normal(20, 32)),
    "torch encoder layer": Architecture(
        lambda: nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=True), _normal(20, 32)
    ),
    "decoder": Architecture(Decoder, lambda batch: (torch.randint(0, 100, (batch, 24)),)),
    "recurrent": Architecture(Recurrent, _normal(9, 12)),
    "unet": Architecture(UNet, _normal(3, 16, 16)),
    "convnext": Architecture(ConvNeXt, _normal(3, 32, 32)),
    "conditional": Architecture(Conditional, _normal(24)),
}
