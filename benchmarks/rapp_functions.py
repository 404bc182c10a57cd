"""Six functions of different kinds, to be profiled in real replicas: what they cost differs in how it grows with the batch.

Each takes one item a call, is batched by hasfaas, and brings an example. `slowed` is the one of the planted slowdown: its
argument `scale` says how much of its work it does.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import hasfaas
from hasfaas import function

BATCH = hasfaas.Batch(max_size=16)
MEMORY = "1GiB"
Array = np.ndarray[Any, Any]
CLASSES = 10


def _images(batch: int) -> Array:
    return np.random.default_rng(0).standard_normal((batch, 3, 32, 32), dtype=np.float32)


def _vectors(batch: int) -> Array:
    return np.random.default_rng(0).standard_normal((batch, 512), dtype=np.float32)


def _sequences(batch: int) -> Array:
    return np.random.default_rng(0).standard_normal((batch, 32, 128), dtype=np.float32)


def _signals(batch: int) -> Array:
    return np.random.default_rng(0).standard_normal((batch, 8192))


class _Torch:
    """A torch module behind arrays. `example` of each function is a batch of what `forward` takes."""

    def __init__(self) -> None:
        import torch

        torch.manual_seed(0)
        self.module = self.build().eval()

    def build(self) -> Any:
        raise NotImplementedError

    def __call__(self, x: Array) -> Array:
        import torch

        with torch.inference_mode():
            made: Array = self.module(torch.from_numpy(np.ascontiguousarray(x))).numpy()
        return made


@function(slo_ms=500, batch=BATCH, memory=MEMORY, example=_images)
class Convnet(_Torch):
    """Plain convolutions on small images."""

    def build(self) -> Any:
        from torch import nn

        layers: list[nn.Module] = []
        for into, out, stride in ((3, 32, 1), (32, 64, 2), (64, 128, 2), (128, 128, 1)):
            layers += [nn.Conv2d(into, out, 3, stride, 1), nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, CLASSES))


@function(slo_ms=500, batch=BATCH, memory=MEMORY, example=_vectors)
class Mlp(_Torch):
    """Wide linear layers, bound by their weights at small batches."""

    def build(self) -> Any:
        from torch import nn

        layers: list[nn.Module] = [nn.Linear(512, 2048), nn.ReLU()]
        for _ in range(3):
            layers += [nn.Linear(2048, 2048), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(2048, CLASSES))


@function(slo_ms=500, batch=BATCH, memory=MEMORY, example=_sequences)
class Encoder(_Torch):
    """A small transformer encoder."""

    def build(self) -> Any:
        from torch import nn

        layer = nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0, batch_first=True)
        return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


@function(slo_ms=500, batch=BATCH, memory=MEMORY, example=_sequences)
class Recurrent(_Torch):
    """A GRU: many small steps, one after the other."""

    def build(self) -> Any:
        from torch import nn

        class Last(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.gru = nn.GRU(128, 256, batch_first=True)

            def forward(self, x: Any) -> Any:
                return self.gru(x)[0][:, -1]

        return Last()


@function(slo_ms=500, batch=BATCH, memory=MEMORY, example=_images)
class Resnet(_Torch):
    """Residual blocks with batch norms."""

    def build(self) -> Any:
        from torch import nn

        class Block(nn.Module):
            def __init__(self, width: int) -> None:
                super().__init__()
                self.body = nn.Sequential(
                    nn.Conv2d(width, width, 3, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(),
                    nn.Conv2d(width, width, 3, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                )

            def forward(self, x: Any) -> Any:
                return nn.functional.relu(x + self.body(x))

        return nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1),
            Block(32),
            Block(32),
            nn.Conv2d(32, 64, 3, 2, 1),
            Block(64),
            Block(64),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(64, CLASSES),
        )


@function(slo_ms=500, batch=BATCH, memory=MEMORY, example=_signals)
def spectrum(x: Array) -> Array:
    """No torch: windowed spectra of signals, their logarithms, and a sort."""
    power = np.abs(np.fft.rfft(x * np.hanning(x.shape[-1]))) ** 2
    return np.sort(np.log1p(power), axis=-1)[:, -CLASSES:]


@function(slo_ms=500, batch=BATCH, memory=MEMORY, example=_signals)
def slowed(x: Array, scale: float = 1.0) -> Array:
    """Products of a matrix, `scale` times as many: the knob of the planted slowdown."""
    matrix = np.ones((512, 512), np.float32)
    made = x[:, :512].astype(np.float32)
    for _ in range(round(400 * scale)):
        made = np.tanh(made @ matrix * np.float32(1e-3))
    return made[:, :CLASSES]


SIX: tuple[Any, ...] = (Convnet, Mlp, Encoder, Recurrent, Resnet, spectrum)
