"""The analytic time of operators on a share of a device's SMs, and the device-free ratios that the regression uses.

    S_eff = floor(s S), at least 1;  t = t_launch + max(t_wave, t_memory, flops / peak)           (rapp.md 3.6, 6.1)

t_wave is that of the best tile: waves of blocks over S_eff SMs, each block doing a whole tile. t_memory is bytes over the
bandwidth that S_eff SMs can draw, which is all of it before all SMs work. No time is below flops / peak or bytes /
bandwidth of the share.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import attrs
import numpy as np

from hasfaas.core.errors import InvalidRequestError
from hasfaas.rapp.description import DeviceDescription
from hasfaas.rapp.operator import PRODUCTS, Operator

Array = np.ndarray[Any, Any]

# Tiles of cuBLAS kernels (rapp.md 6.1, 6.3), and the sum a c / (a + c) from which on a tile feeds the units fully.
FP32_TILES = ((128, 128), (128, 64), (64, 128), (64, 64), (128, 32), (32, 128), (256, 64), (256, 128), (64, 32))
FP32_FULL = 42.0
TENSOR_TILES = ((256, 128), (128, 256), (128, 128), (128, 64), (64, 128), (64, 64))
TENSOR_FULL = 64.0
VECTOR_BLOCK = 512  # elements of a block of a vector kernel
_TINY = 1e-30

PRODUCT_FEATURES = (
    "log_tw_tr",
    "log_tm_tc",
    "log_tl2_tc",
    "log_w64",
    "log_w128",
    "log_ws",
    "log_reduction",
    "log_aspect",
    "log_narrow",
    "log_batch",
    "q64",
    "q128",
    "q256x128",
    "q128x64",
    "e64",
    "e128",
    "misaligned",
    "log_tr",
    "log_k_sqrt_mn",
    "log_rows",
    "log_columns",
)
VECTOR_FEATURES = (
    "log_tm_tc",
    "log_w512",
    "log_rows_sm",
    "log_ws",
    "log_columns",
    "log_tr",
    "log_bw_sm",
    "q_row",
    "misaligned",
)


@attrs.frozen(eq=False)
class Shapes:
    """Operators as arrays of one length: see `Operator` for what each holds. `product` says which are products."""

    flops: Array
    moved: Array
    rows: Array
    columns: Array
    reduction: Array
    batch: Array
    element_bytes: Array
    product: Array

    @classmethod
    def of(cls, operators: Sequence[Operator]) -> Self:
        """From operators, one entry each; `count` is left to the caller."""
        table = np.array(
            [
                (
                    operator.flops,
                    operator.bytes_read + operator.bytes_written,
                    operator.rows,
                    operator.columns,
                    operator.reduction,
                    operator.batch,
                    operator.element_bytes,
                    operator.family in PRODUCTS,
                )
                for operator in operators
            ],
            float,
        ).reshape(-1, 8)
        flops, moved, rows, columns, reduction, batch, size, product = table.T
        return cls(flops, moved, rows, columns, reduction, batch, size, product > 0)

    @classmethod
    def products(cls, batch: Any, rows: Any, reduction: Any, columns: Any, element_bytes: int) -> Self:
        """Products (batch x rows x reduction)(batch x reduction x columns), each operand moved once."""
        batch, rows, reduction, columns = (np.asarray(value, float) for value in (batch, rows, reduction, columns))
        moved = element_bytes * batch * (rows * reduction + reduction * columns + rows * columns)
        size = np.full(rows.shape, float(element_bytes))
        flops = 2.0 * batch * rows * reduction * columns
        return cls(flops, moved, rows, columns, reduction, batch, size, np.ones(rows.shape, bool))

    @classmethod
    def vectors(cls, rows: Any, columns: Any, moved: Any, flops: Any, element_bytes: int) -> Self:
        """Vector operators on rows x columns elements."""
        rows, columns, moved, flops = (np.asarray(value, float) for value in (rows, columns, moved, flops))
        one = np.ones(rows.shape)
        return cls(flops, moved, rows, columns, one, one, element_bytes * one, np.zeros(rows.shape, bool))

    def take(self, which: Array) -> Self:
        """Those entries alone, by mask or index."""
        return type(self)(*(getattr(self, field.name)[which] for field in attrs.fields(type(self))))

    def __len__(self) -> int:
        return len(self.flops)


@attrs.frozen(eq=False)
class Ceilings:
    """The times in s by which each operator is bounded: by compute, memory, both, waves of the best tile, L2 traffic."""

    compute: Array
    memory: Array
    roofline: Array
    wave: Array
    l2: Array
    peak_per_sm: Array


def time_s(shapes: Shapes, description: DeviceDescription, sm_share: float = 1.0) -> Array:
    """The analytic time of each operator in s at an SM share in (0, 1].

    It falls, or stays, as the share, a peak or the bandwidth rises. Raises InvalidRequestError (BAD_SM).
    """
    bound = ceilings(shapes, description, sm_share)
    return np.asarray(description.launch_s + np.maximum(bound.roofline, bound.wave))


def effective_sms(description: DeviceDescription, sm_share: float) -> int:
    """floor(s S), at least 1. Raises InvalidRequestError (BAD_SM) for a share outside (0, 1]."""
    if not 0.0 < sm_share <= 1.0:
        raise InvalidRequestError(f"sm_share={sm_share}: give a share above 0 and up to 1", reason="BAD_SM")
    return max(1, int(np.floor(sm_share * description.sms + 1e-9)))


def ceilings(shapes: Shapes, description: DeviceDescription, sm_share: float = 1.0) -> Ceilings:
    """The bounds of each operator on floor(s S) SMs. Raises InvalidRequestError (BAD_SM)."""
    sms = effective_sms(description, sm_share)
    tensor = shapes.product & (shapes.element_bytes <= 2)
    peak_per_sm = np.where(tensor, description.tensor_flops_per_s, description.fp32_flops_per_s) / description.sms
    bandwidth = description.bandwidth_bytes_per_s * min(1.0, sms / description.sms / description.saturation)
    compute, memory = shapes.flops / (peak_per_sm * sms), shapes.moved / bandwidth
    roofline = np.maximum(compute, memory)
    wave = np.maximum(_wave_s(shapes, peak_per_sm, sms), compute)
    through_l2 = (
        shapes.element_bytes
        * shapes.batch
        * (
            shapes.rows * shapes.reduction * np.ceil(shapes.columns / 128)
            + shapes.reduction * shapes.columns * np.ceil(shapes.rows / 128)
            + shapes.rows * shapes.columns
        )
    )
    l2 = np.where(shapes.product, through_l2, shapes.moved) / bandwidth
    return Ceilings(compute, memory, roofline, wave, l2, peak_per_sm)


def _wave_s(shapes: Shapes, peak_per_sm: Array, sms: int) -> Array:
    """Waves of whole tiles, of the tile that is fastest; of vector operators, waves of blocks of 512 elements."""
    best = np.full(len(shapes), np.inf)
    for tiles, full, chosen in (
        (FP32_TILES, FP32_FULL, shapes.product & (shapes.element_bytes > 2)),
        (TENSOR_TILES, TENSOR_FULL, shapes.product & (shapes.element_bytes <= 2)),
    ):
        if not chosen.any():
            continue
        some, peak = shapes.take(chosen), peak_per_sm[chosen]
        fastest = np.full(len(some), np.inf)
        for a, c in tiles:
            waves = np.ceil(_blocks(some, a, c) / sms)
            fastest = np.minimum(
                fastest, waves * (2.0 * a * c * some.reduction) / peak / min(1.0, a * c / (a + c) / full)
            )
        best[chosen] = fastest
    vector = ~shapes.product
    if vector.any():
        some = shapes.take(vector)
        elements = some.rows * some.columns
        blocks = np.ceil(elements / VECTOR_BLOCK)
        per_block = some.flops / np.maximum(elements, 1.0) * VECTOR_BLOCK
        best[vector] = np.ceil(blocks / sms) * per_block / peak_per_sm[vector]
    return best


def _blocks(shapes: Shapes, a: int, c: int) -> Array:
    return np.asarray(shapes.batch * np.ceil(shapes.rows / a) * np.ceil(shapes.columns / c))


def features(shapes: Shapes, description: DeviceDescription, sm_share: float = 1.0, launch_s: float = 8e-6) -> Array:
    """The ratios [n, PRODUCT_FEATURES or VECTOR_FEATURES]: of one kind, products or not. No size of a device as such.

    `launch_s` is the floor T0 that stands in the logs. Raises InvalidRequestError (BAD_SM).
    """
    bound = ceilings(shapes, description, sm_share)
    sms = effective_sms(description, sm_share)
    if len(shapes) and not shapes.product.all():
        return _vector_features(shapes, description, bound, sms, launch_s)
    rows, columns, reduction = shapes.rows, shapes.columns, shapes.reduction
    waves = {tile: _blocks(shapes, *tile) / sms for tile in ((64, 64), (128, 128), (256, 128), (128, 64))}
    area = rows * columns
    share = {t: area / (np.ceil(rows / t) * np.ceil(columns / t) * t * t) for t in (64, 128)}
    aligned = 16.0 / shapes.element_bytes  # elements in 16 bytes, the widest load
    misaligned = (rows % aligned > 0) | (columns % aligned > 0) | (reduction % aligned > 0)
    return np.column_stack(
        [
            np.log(np.maximum(bound.wave, bound.memory) / bound.roofline),
            np.log(bound.memory / bound.compute),
            np.log(bound.l2 / bound.compute),
            np.log(waves[64, 64]),
            np.log(waves[128, 128]),
            np.log(shapes.moved / description.l2_bytes),
            np.log(reduction),
            np.log(rows / columns),
            np.log(np.minimum(rows, columns)),
            np.log(shapes.batch),
            *(w / np.ceil(w) for w in waves.values()),
            share[64],
            share[128],
            misaligned,
            np.log(bound.roofline + launch_s),
            np.log(reduction / np.sqrt(area)),
            np.log(rows),
            np.log(columns),
        ]
    )


def _vector_features(
    shapes: Shapes, description: DeviceDescription, bound: Ceilings, sms: int, launch_s: float
) -> Array:
    per_sm = shapes.rows / sms
    return np.column_stack(
        [
            np.log(np.maximum(bound.memory, _TINY) / np.maximum(bound.compute, _TINY)),
            np.log(np.ceil(shapes.rows * shapes.columns / VECTOR_BLOCK) / sms),
            np.log(per_sm),
            np.log(np.maximum(shapes.moved, 1.0) / description.l2_bytes),
            np.log(shapes.columns),
            np.log(bound.roofline + launch_s),
            np.full(len(shapes), np.log(description.bandwidth_bytes_per_s / description.sms)),
            per_sm / np.ceil(per_sm),
            shapes.columns % 4 > 0,
        ]
    )
