"""A small convolutional network that reads handwritten digits: the app that `make demo` trains, deploys and loads.

python -m examples.digits          # trains it if need be, and asks the deployed one about ten images
hasfaas invoke examples/digits.py::Digits @image.npy
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from hasfaas import Batch, ClassFunction, function

WEIGHTS = Path(__file__).resolve().parent.parent / "out" / "digits.pt"
SIDE = 16
BATCH = 8


class Block(nn.Module):
    """Two convolutions around a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.second(torch.relu(self.first(x)))
        return torch.relu(x + self.norm(inner))


class Network(nn.Module):
    """Images (b, 1, 16, 16) to logits (b, 10). About 75 MFLOP an image."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(4)))
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks(torch.relu(self.stem(x)))
        logits: torch.Tensor = self.head(x.mean(dim=(2, 3)))
        return logits


def images_and_labels() -> tuple[np.ndarray, np.ndarray]:
    """The 1,797 real digits that scikit-learn ships, 8 x 8 pixels doubled to 16 x 16, values in [0, 1]."""
    data = load_digits()
    images = np.kron(data.images, np.ones((2, 2))).astype(np.float32) / 16.0
    return images, data.target


@function(slo_ms=150, batch=Batch(max_size=BATCH), idempotent=True, memory="1GiB")
class Digits:
    """Reads one image (16, 16) of float32 in [0, 1]; answers its ten probabilities. Calls share batches of up to 8."""

    def __init__(self) -> None:
        self.network = Network()
        self.network.load_state_dict(torch.load(WEIGHTS, weights_only=True))
        self.network.eval()

    def __call__(self, images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            logits = self.network(torch.from_numpy(images)[:, None])
            probabilities: np.ndarray = logits.softmax(dim=1).numpy()
            return probabilities


# mypy does not apply class decorators (python/mypy#3135), so this says what `Digits` is; pyright knows by itself.
digits = cast("ClassFunction[Network, [np.ndarray], np.ndarray]", Digits)


def main() -> None:
    """Asks the deployed function about ten images."""
    if not WEIGHTS.exists():
        raise SystemExit("the network is not trained yet: `make demo` trains it")
    images, labels = images_and_labels()
    answers = [int(probabilities.argmax()) for probabilities in digits.map(images[:10])]
    print("read", answers, "true", labels[:10].tolist(), "version", digits.version)


if __name__ == "__main__":
    main()
