"""Two small torch models of the kinds that are served: convolutions with shortcuts, and an encoder."""

from __future__ import annotations

import torch
from torch import nn


class Block(nn.Module):
    """A residual block; from a narrower one, with a strided shortcut."""

    def __init__(self, narrow: int, wide: int) -> None:
        super().__init__()
        stride = 1 if narrow == wide else 2
        self.body = nn.Sequential(
            nn.Conv2d(narrow, wide, 3, stride, 1, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU(),
            nn.Conv2d(wide, wide, 3, 1, 1, bias=False),
            nn.BatchNorm2d(wide),
        )
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(narrow, wide, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def resnet_like() -> tuple[nn.Module, torch.Tensor]:
    """ResNet-18's shape at 112 x 112, and one image."""
    widths = (64, 64, 128, 128, 256, 256, 512, 512)
    blocks = [Block(narrow, wide) for narrow, wide in zip((64, *widths), widths, strict=False)]
    stem = nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 100))
    return nn.Sequential(stem, *blocks, head).eval(), torch.randn(1, 3, 112, 112)


def encoder() -> tuple[nn.Module, torch.Tensor]:
    """Four layers of width 256 on 128 tokens; torch's fused path in inference mode."""
    layer = nn.TransformerEncoderLayer(256, 4, 1024, batch_first=True, dropout=0.0)
    return nn.TransformerEncoder(layer, 4).eval(), torch.randn(1, 128, 256)
