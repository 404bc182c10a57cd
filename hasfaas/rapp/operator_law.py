"""What a device takes for an operator: the analytic time times a learned efficiency, and how sure that is.

    log t = log(max(t_wave, t_memory) + T0) + a . structured(shape) + c(device) + w(d) trees(shape)

The structured part is linear in few ratios (waves, tile fill, memory against compute) and bounded in most, so it holds
outside of what was measured. The trees know more, see their inputs clipped to the training range, and count less the
further (d, in standard deviations) an operator lies outside it. c is the device's own offset (power limit, clocks), of
tensor-core products alone; a device that was not measured has the median of the others.

fp32 and tensor-core products are two machines with a law each. Vector operators have one law, learned in fp32, for both
precisions: they are bound by bytes. numpy alone.

Trained on NeuSight (MIT) and AIConfigurator (Apache-2.0), see train_operators.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import attrs
import numpy as np

from hasfaas.core.errors import InvalidRequestError
from hasfaas.rapp import coefficients
from hasfaas.rapp.description import DeviceDescription
from hasfaas.rapp.operator import Operator
from hasfaas.rapp.roofline import (
    PRODUCT_FEATURES,
    Shapes,
    ceilings,
    effective_sms,
    features,
)

Array = np.ndarray[Any, Any]

# The laws, each with the floor T0 in s that stands in its logs (rapp.md 6.1, 6.3).
LAUNCH_S = {"bmm": 8e-6, "linear": 8e-6, "conv": 8e-6, "vector": 8e-6, "gemm": 3e-6}
LAWS = tuple(LAUNCH_S)
# Vector operators as NeuSight names them; the suffix u: one tensor and a scalar.
KINDS = ("add", "mul", "pow", "div", "addu", "mulu", "powu", "divu", "relu", "gelu", "tanh", "ln", "softmax")
_SIMILAR = {"sub": "add", "rsub": "add", "silu": "gelu", "sigmoid": "tanh", "exp": "tanh", "hardtanh": "relu"}
_FALLBACK = {"softmax": "softmax", "norm": "ln", "reduction": "softmax", "elementwise": "addu", "memory": "addu"}
TENSOR_TILES = ((256, 128), (128, 256), (128, 64), (64, 128), (64, 64))
# Laws in which each GPU has its own offset: left-out GPUs were predicted better with it here, and worse in fp32.
WITH_OFFSETS = ("gemm",)
FAR = 3.0  # standard deviations outside the training range at which the trees count half
_COLUMN = {name: index for index, name in enumerate(PRODUCT_FEATURES)}


@attrs.frozen(eq=False)
class Trees:
    """Boosted oblivious trees: each asks `depth` questions, the same on every path.

    `column` and `threshold` [trees, depth], `value` [trees, 2^depth], `start` the value before any tree.
    """

    column: Array
    threshold: Array
    value: Array
    start: float

    def predict(self, inputs: Array) -> Array:
        """The sum of the trees for each row of `inputs` [n, columns]."""
        out = np.full(len(inputs), self.start)
        bits = 1 << np.arange(self.column.shape[1])[::-1]
        for column, threshold, value in zip(self.column, self.threshold, self.value, strict=True):
            out += value[(inputs[:, column] > threshold) @ bits]
        return out


@attrs.frozen(eq=False)
class FamilyLaw:
    """One law: linear coefficients [k], trees, the training range of the inputs, and its residuals on unseen GPUs.

    `own` [devices] is the offset of each measured device, by its name in `devices`; empty for a law without any.
    """

    name: str
    linear: Array
    devices: tuple[str, ...]
    own: Array
    trees: Trees
    low: Array
    high: Array
    spread: Array
    log_sigma: float

    @classmethod
    def from_arrays(cls, name: str, arrays: Mapping[str, Array]) -> Self:
        """From the trained arrays of the same names; `column`, `threshold`, `value`, `start` are those of the trees."""
        trees = Trees(
            np.asarray(arrays["column"], np.int64),
            np.asarray(arrays["threshold"], float),
            np.asarray(arrays["value"], float),
            np.asarray(arrays["start"], float).item(),
        )
        low, high, spread = (np.asarray(arrays[key], float) for key in ("low", "high", "spread"))
        return cls(
            name=name,
            linear=np.asarray(arrays["linear"], float),
            devices=tuple(str(device) for device in arrays["devices"]),
            own=np.asarray(arrays["own"], float),
            trees=trees,
            low=low,
            high=high,
            spread=spread,
            log_sigma=np.asarray(arrays["sigma"], float).item(),
        )

    def log_s(
        self, shapes: Shapes, kinds: Array, description: DeviceDescription, sm_share: float
    ) -> tuple[Array, Array]:
        """log of the time in s, and the standard deviation of its error, for operators of this law."""
        base, fixed, inputs = prepare(self.name, shapes, kinds, description, sm_share)
        clipped = np.clip(inputs, self.low, self.high)
        distance = np.sqrt((((inputs - clipped) / self.spread) ** 2).sum(axis=1))
        weight = 1.0 / (1.0 + distance / FAR)
        sigma = self.log_sigma * np.sqrt(1.0 + (distance / FAR) ** 2)
        log_s = base + fixed @ self.linear + self.offset(description.name)
        return log_s + weight * self.trees.predict(clipped), np.minimum(sigma, 2.0)

    def offset(self, device: str) -> float:
        """The device's own offset; of one not measured, the median over those that were."""
        if device in self.devices:
            return float(self.own[self.devices.index(device)])
        return float(np.median(self.own)) if len(self.own) else 0.0


def prepare(
    law: str, shapes: Shapes, kinds: Array, description: DeviceDescription, sm_share: float
) -> tuple[Array, Array, Array]:
    """Log of the analytic base [n], structured columns [n, k], and inputs of the trees [n, m] for one law.

    `kinds` holds the index in KINDS of vector operators; it is not read for products.
    """
    floor = LAUNCH_S[law]
    bound = ceilings(shapes, description, sm_share)
    found = features(shapes, description, sm_share, floor)
    if law == "vector":
        base = np.log(bound.roofline + floor)
        kind = kinds[:, None] == np.arange(len(KINDS))
        return base, np.ones((len(shapes), 1)), np.column_stack([found, kind]).astype(float)
    column = {name: found[:, index] for name, index in _COLUMN.items()}
    if law == "gemm":
        base = np.log(bound.roofline + floor)
        return base, _tensor_columns(bound, column, base, floor), _tensor_inputs(shapes, found, description, sm_share)
    wave = np.maximum(bound.wave, bound.memory)
    base = np.log(wave + floor)
    inputs = np.column_stack([column[name] for name in FP32_INPUTS])
    return base, _fp32_columns(bound, column, base, floor), inputs


# No size of a working set against L2: with five GPUs to learn from it tells which GPU it is (rapp.md 9.3, 9.6).
FP32_INPUTS = tuple(
    name
    for name in PRODUCT_FEATURES
    if name not in ("q256x128", "q128x64", "log_rows", "log_columns", "log_ws", "log_tl2_tc")
)


def _fp32_columns(bound: Any, column: Mapping[str, Array], base: Array, floor: float) -> Array:
    """Few and mostly bounded: ratios of ceilings, wave and tile fill, the short reduction, alignment."""
    return np.column_stack(
        [
            np.ones(len(base)),
            column["log_tr"] - base,
            np.logaddexp(0.0, np.log(bound.memory + floor) - base),
            1.0 / (1.0 + np.exp(base) / 3e-5),
            np.log(column["q128"]),
            np.log(column["e128"]),
            np.log(column["e64"]),
            np.log(column["q64"]),
            np.minimum(column["log_w64"], 0.0),
            np.minimum(column["log_reduction"], 6.0),
            column["misaligned"],
        ]
    )


def _tensor_columns(bound: Any, column: Mapping[str, Array], base: Array, floor: float) -> Array:
    """The log-WLS columns of rapp.md 6.3, relative to the base."""
    wave, memory, compute = (np.log(time + floor) - base for time in (bound.wave, bound.memory, bound.compute))
    both = np.log(bound.wave + bound.memory + floor) - base
    intensity = -column["log_tm_tc"]
    return np.column_stack(
        [
            np.ones(len(base)),
            wave,
            memory,
            compute,
            both,
            base,
            column["q128"],
            column["q256x128"],
            np.minimum(column["log_w64"], 0.0),
            column["log_ws"],
            intensity,
            intensity**2,
        ]
    )


def _tensor_inputs(shapes: Shapes, found: Array, description: DeviceDescription, sm_share: float) -> Array:
    sms = effective_sms(description, sm_share)
    waves = [np.ceil(shapes.rows / a) * np.ceil(shapes.columns / c) * shapes.batch / sms for a, c in TENSOR_TILES]
    return np.column_stack(
        [
            found,
            *(wave / np.ceil(wave) for wave in waves),
            np.log(waves[0]),
            np.log(waves[3]),
            shapes.rows % 128 > 0,
        ]
    )


def law_of(operator: Operator) -> str:
    """Which law prices it: `gemm` for products of at most 2 bytes an element, else by family."""
    if operator.family in ("bmm", "linear", "conv"):
        return "gemm" if operator.element_bytes <= 2 else operator.family
    return "vector"


def kind_of(operator: Operator) -> int:
    """The index in KINDS of the measured vector operator that it is most like."""
    name = operator.name.strip("_").removesuffix("_backward")
    name = _SIMILAR.get(name, name)
    if operator.family == "elementwise" and name in KINDS:
        return KINDS.index(name)
    return KINDS.index(_FALLBACK.get(operator.family, "addu"))


# A Gaussian process on the residual of a new device: its own offset, a smooth part over four coordinates, and noise.
# The deviations were chosen among five sets on A100, L40S, B200 and RTX PRO 6000, each left out in turn.
OFFSET, SMOOTH, NOISE = 0.15, 0.15, 0.1
COORDINATES, LENGTH = ("log_tm_tc", "log_w128", "log_reduction", "log_tr"), 2.0


@attrs.frozen(eq=False)
class Calibration:
    """What a few measured products of a device tell about its others: `points` [k, 4] and `weights` [k]."""

    points: Array
    weights: Array

    @classmethod
    def fit(cls, shapes: Shapes, description: DeviceDescription, residual: Array) -> Self:
        """From measured products and their log(latency / prediction)."""
        points = _coordinates(shapes, description)
        noisy = _kernel(points, points) + NOISE**2 * np.eye(len(points))
        return cls(points, np.linalg.solve(noisy, residual))

    def shift(self, shapes: Shapes, description: DeviceDescription) -> Array:
        """What to add to the log of the predictions of these products."""
        return np.asarray(_kernel(_coordinates(shapes, description), self.points) @ self.weights)


def _coordinates(shapes: Shapes, description: DeviceDescription) -> Array:
    found = features(shapes, description, 1.0, LAUNCH_S["gemm"])
    return found[:, [_COLUMN[name] for name in COORDINATES]] / LENGTH


def _kernel(left: Array, right: Array) -> Array:
    squared = ((left[:, None] - right[None]) ** 2).sum(axis=-1)
    return np.asarray(OFFSET**2 + SMOOTH**2 * np.exp(-squared / 2))


@attrs.frozen(eq=False)
class OperatorLaw:
    """All laws together."""

    laws: Mapping[str, FamilyLaw]

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> Self:
        """From trained arrays with keys `law/array`, as train_operators.fit gives them.

        Raises InvalidRequestError (BAD_COEFFICIENTS) if a law or one of its arrays is missing.
        """
        try:
            return cls({name: FamilyLaw.from_arrays(name, coefficients.part(arrays, name)) for name in LAWS})
        except KeyError as exc:
            raise InvalidRequestError(
                f"operator coefficients lack {exc}: run hasfaas rapp train", reason="BAD_COEFFICIENTS"
            ) from exc

    def latency_ms(
        self, operators: Sequence[Operator], description: DeviceDescription, sm_share: float = 1.0
    ) -> tuple[Array, Array]:
        """The median of the latency in ms of one occurrence of each operator, and the log standard deviation.

        No median is below the plain ceilings. Raises InvalidRequestError (BAD_SM) for a share outside (0, 1].
        """
        effective_sms(description, sm_share)
        log_s, sigma = np.zeros(len(operators)), np.zeros(len(operators))
        names = np.array([law_of(operator) for operator in operators])
        shapes = Shapes.of(operators)
        kinds = np.array([kind_of(operator) for operator in operators], int)
        for name in LAWS:
            chosen = np.flatnonzero(names == name)
            if len(chosen):
                log_s[chosen], sigma[chosen] = self.laws[name].log_s(
                    shapes.take(chosen), kinds[chosen], description, sm_share
                )
        bound = ceilings(shapes, description, sm_share)
        return 1e3 * np.maximum(np.exp(log_s), bound.roofline), sigma

    def on(self, description: DeviceDescription, host_launch_ms: float = 0.0) -> DeviceLaw:
        """The law of one device, as zero_shot.forecast takes it."""
        return DeviceLaw(self, description, host_launch_ms)


@attrs.frozen(eq=False)
class DeviceLaw:
    """An operator law bound to a device. `host_launch_ms` is what the host needs to launch one kernel."""

    law: OperatorLaw
    description: DeviceDescription
    host_launch_ms: float = 0.0
    trained: bool = attrs.field(default=True, init=False)

    def latency_ms(self, operators: Sequence[Operator], sm_percent: float) -> Array:
        """Of one occurrence of each operator on `sm_percent` of the SMs, in ms."""
        return self.law.latency_ms(operators, self.description, sm_percent / 100.0)[0]

    def log_sigma(self, family: str) -> float:
        """The standard deviation of log(latency / prediction) on GPUs that the law had not seen."""
        return self.law.laws[family if family in LAWS else "vector"].log_sigma
