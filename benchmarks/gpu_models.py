"""Models with random weights in the shapes of ResNet-50 and BERT-base, in plain torch; and a small perceptron."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

NAMES = ("resnet50", "bert_base", "perceptron")


class Bottleneck(nn.Module):
    """Three convolutions with a shortcut around them; the middle one strides, as in torchvision's ResNet v1.5."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.body = nn.Sequential(
            *_convolved(inputs, width, 1, 1),
            nn.ReLU(),
            *_convolved(width, width, 3, stride),
            nn.ReLU(),
            *_convolved(width, outputs, 1, 1),
        )
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Sequential(*_convolved(inputs, outputs, 1, stride))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.body(x) + self.shortcut(x))


def _convolved(inputs: int, outputs: int, size: int, stride: int) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False), nn.BatchNorm2d(outputs)


def resnet50() -> nn.Module:
    """25.6 million parameters, 4.1 billion multiply-adds an image of 224 x 224."""
    blocks: list[nn.Module] = []
    inputs = 64
    for stage, (width, count) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        for index in range(count):
            blocks.append(Bottleneck(inputs, width, 2 if stage and not index else 1))
            inputs = 4 * width
    stem = nn.Sequential(*_convolved(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 1000))
    return nn.Sequential(stem, *blocks, head).eval()


class EncoderLayer(nn.Module):
    """Attention and a perceptron, each added to its input and normalised after."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.mixed, self.projected = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.after_attention, self.after_perceptron = nn.LayerNorm(width), nn.LayerNorm(width)
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        mixed = self.mixed(x).view(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(mixed[0], mixed[1], mixed[2])
        x = self.after_attention(x + self.projected(attended.transpose(1, 2).reshape(batch, tokens, width)))
        normalised: torch.Tensor = self.after_perceptron(x + self.perceptron(x))
        return normalised


class Encoder(nn.Module):
    """Embeddings of words and places, and layers above them."""

    def __init__(self, layers: int, width: int, heads: int, words: int, places: int) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(places, width)
        self.normalised = nn.LayerNorm(width)
        self.layers = nn.Sequential(*(EncoderLayer(width, heads) for _ in range(layers)))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        encoded: torch.Tensor = self.layers(self.normalised(self.words(tokens) + self.places(places)))
        return encoded


def bert_base() -> nn.Module:
    """12 layers of width 768 with 12 heads: 109 million parameters."""
    return Encoder(12, 768, 12, words=30522, places=512).eval()


def perceptron() -> nn.Module:
    """Four layers of width 2048."""
    layers = [layer for _ in range(4) for layer in (nn.Linear(2048, 2048), nn.ReLU())]
    return nn.Sequential(*layers).eval()


def model(name: str) -> nn.Module:
    """One of NAMES, on the CPU."""
    makers = {"resnet50": resnet50, "bert_base": bert_base, "perceptron": perceptron}
    return makers[name]()


def example(name: str, batch: int) -> torch.Tensor:
    """An input of `batch` items: images of 224 x 224, 128 tokens, or rows."""
    if name == "resnet50":
        return torch.randn(batch, 3, 224, 224)
    if name == "bert_base":
        return torch.randint(0, 30522, (batch, 128))
    return torch.randn(batch, 2048)
