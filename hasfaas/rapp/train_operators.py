"""Learns the operator laws from public measurements: NeuSight (MIT) in fp32, AIConfigurator (Apache-2.0) in bf16.

A law is a robust linear fit (statsmodels, Huber weights) of log(latency / analytic), and boosted trees on its residual.
Each GPU counts the same number of rows, drawn with a fixed seed, so the same data give the same coefficients.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from hasfaas.rapp.description import DeviceDescription, describe
from hasfaas.rapp.operator_law import KINDS, LAWS, WITH_OFFSETS, FamilyLaw, Trees, prepare
from hasfaas.rapp.roofline import Shapes

Array = np.ndarray[Any, Any]

NEUSIGHT = {name: name for name in ("P4", "P100", "T4", "L4", "A100-40", "A100-80")} | {
    "V100": "V100-PCIE-32GB",
    "H100": "H100-SXM",
}
TENSOR = ("a100_sxm", "h100_sxm", "h200_sxm", "l40s", "b200_sxm", "rtx_pro_6000_server")

ROWS_PER_GPU = 10_000
TREES = {"gemm": 400}  # else 200
RATE, DEPTH, BINS = 0.12, 6, 64
HUBER, ROUNDS, TURNS = 1.345, 4, 4
CLIP = 0.15  # log error from which on a row pulls no harder
SHRINK = 20.0  # rows that a leaf has to outweigh to be believed in the choice of a question
COLUMNS = 0.5  # share of the inputs that each tree may ask about
SMALL_S = 2e-4  # below, event timings of NeuSight are launch overhead: no part of its linear fits


@attrs.frozen(eq=False)
class Rows:
    """Measured operators of one law: shapes, kinds (vectors), GPU names of the source, seconds, training split."""

    law: str
    shapes: Shapes
    kinds: Array
    gpu: Array
    seconds: Array
    train: Array

    def take(self, which: Array) -> Rows:
        """Those rows, by mask or index."""
        return Rows(
            self.law,
            self.shapes.take(which),
            self.kinds[which],
            self.gpu[which],
            self.seconds[which],
            self.train[which],
        )


def fit(data: Path, report: Callable[[str], None] = lambda _: None) -> dict[str, Array]:
    """All laws from all GPUs in the folder of shared data: arrays `law/array`, for `OperatorLaw.from_arrays`."""
    out: dict[str, Array] = {}
    for law in LAWS:
        report(law)
        rows = read(data, law)
        sigma = unseen_sigma(rows)
        arrays = fit_law(rows, seed=0) | {"sigma": np.array(sigma)}
        out |= {f"{law}/{key}": value for key, value in arrays.items()}
    return out


def unseen_sigma(rows: Rows, trees: int = 60) -> float:
    """The log deviation on GPUs left out in turn: half of the distance from the 5th to the 95th percentile, / 1.645."""
    found = []
    for gpu in np.unique(rows.gpu):
        law = law_from(fit_law(rows.take(rows.gpu != gpu), seed=0, trees=trees, rows_per_gpu=3000), rows.law)
        test = rows.take(balanced(np.where(rows.gpu == gpu, rows.gpu, ""), 1500, seed=1, names=[str(gpu)]))
        found.append(np.log(test.seconds) - predict_log(law, test))
    return float(np.diff(np.percentile(np.concatenate(found), [5, 95]))[0] / 2 / 1.645)


def law_from(arrays: Mapping[str, Array], name: str) -> FamilyLaw:
    """The law of fitted arrays; `sigma` is 0 where it was not measured."""
    return FamilyLaw.from_arrays(name, {"sigma": np.array(0.0), **arrays})


def predict_log(law: FamilyLaw, rows: Rows) -> Array:
    """log of the predicted seconds of rows of several GPUs."""
    out = np.zeros(len(rows.seconds))
    for gpu in np.unique(rows.gpu):
        chosen = np.flatnonzero(rows.gpu == gpu)
        out[chosen] = law.log_s(rows.shapes.take(chosen), rows.kinds[chosen], card(str(gpu)), 1.0)[0]
    return out


def card(gpu: str) -> DeviceDescription:
    """The description of a GPU as the sources name it."""
    return describe(NEUSIGHT.get(gpu, gpu))


def balanced(gpu: Array, rows_per_gpu: int, seed: int, names: Sequence[str] | None = None) -> Array:
    """Indices of at most so many rows of each GPU, drawn at random."""
    rng = np.random.default_rng(seed)
    drawn = []
    for name in np.unique(gpu) if names is None else names:
        found = np.flatnonzero(gpu == name)
        drawn.append(np.sort(rng.permutation(found)[:rows_per_gpu]))
    return np.concatenate(drawn)


def fit_law(rows: Rows, seed: int = 0, trees: int | None = None, rows_per_gpu: int = ROWS_PER_GPU) -> dict[str, Array]:
    """Coefficients of one law from all `rows`, without `sigma`."""
    rows = rows.take(balanced(rows.gpu, rows_per_gpu, seed))
    parts = []
    order = []
    for gpu in np.unique(rows.gpu):
        chosen = np.flatnonzero(rows.gpu == gpu)
        parts.append(prepare(rows.law, rows.shapes.take(chosen), rows.kinds[chosen], card(str(gpu)), 1.0))
        order.append(chosen)
    base, fixed, inputs = (np.concatenate(part) for part in zip(*parts, strict=True))
    seconds = rows.seconds[np.concatenate(order)]
    target = np.log(seconds) - base
    large = seconds > SMALL_S if rows.law in ("bmm", "linear", "conv") else np.ones(len(seconds), bool)
    devices, code = np.unique(rows.gpu[np.concatenate(order)], return_inverse=True)
    if rows.law in WITH_OFFSETS:
        linear, own = _common_and_own(fixed, target, code)
        structured = fixed @ linear + own[code]
    else:
        linear, own, devices = _robust(fixed[large], target[large]), np.zeros(0), devices[:0]
        structured = fixed @ linear
    boosted = boost(inputs, target - structured, seed, trees or TREES.get(rows.law, 200))
    spread = inputs.std(axis=0)
    return {
        "linear": linear,
        "devices": np.array([card(str(name)).name for name in devices], dtype=np.str_),
        "own": own,
        "column": boosted.column.astype(np.int16),
        "threshold": boosted.threshold,
        "value": boosted.value.astype(np.float32),
        "start": np.array(boosted.start),
        "low": inputs.min(axis=0),
        "high": inputs.max(axis=0),
        "spread": np.where(spread > 1e-9, spread, 1.0),
    }


def _common_and_own(fixed: Array, target: Array, code: Array) -> tuple[Array, Array]:
    """Coefficients [k] common to all GPUs and own offsets [gpus], fitted in turn; `code` [n] is the GPU of each row.

    Without the offsets a card that is slower throughout would bend the common coefficients.
    """
    own = np.zeros(code.max() + 1)
    for _ in range(TURNS):
        linear = _robust(fixed, target - own[code])
        rest = target - fixed @ linear
        own = np.array([np.median(rest[code == device]) for device in range(len(own))])
    return linear, own


def _robust(columns: Array, target: Array) -> Array:
    """Least squares with Huber weights, four rounds; columns that depend on others share their coefficient."""
    import statsmodels.api as sm

    norm = sm.robust.norms.HuberT(HUBER)
    weights = np.ones(len(target))
    for _ in range(ROUNDS):
        fitted = sm.WLS(target, columns, weights=weights).fit(method="pinv")
        rest = target - columns @ fitted.params
        scale = np.median(np.abs(rest)) / 0.6745
        weights = norm.weights(rest / max(scale, 1e-9))
    return np.asarray(fitted.params, float)


def boost(inputs: Array, target: Array, seed: int, trees: int) -> Trees:
    """Gradient boosting of oblivious trees on the Huber loss: at each level the one question that serves all leaves."""
    rng = np.random.default_rng(seed)
    edges = [np.unique(np.quantile(column, np.linspace(0, 1, BINS + 1)[1:-1])) for column in inputs.T]
    binned = [np.searchsorted(edge, column, side="left") for edge, column in zip(edges, inputs.T, strict=True)]
    usable = [index for index, bins in enumerate(binned) if bins.max() > 0]
    start = float(np.median(target))
    fitted = np.full(len(target), start)
    column = np.zeros((trees, DEPTH), np.int64)
    threshold = np.zeros((trees, DEPTH))
    value = np.zeros((trees, 1 << DEPTH))
    for tree in range(trees):
        pull = np.clip(target - fitted, -CLIP, CLIP)
        asked = rng.choice(usable, max(1, round(len(usable) * COLUMNS)), replace=False)
        leaf = np.zeros(len(target), np.int64)
        for level in range(DEPTH):
            index, cut = _question(pull, leaf, 1 << level, binned, edges, asked)
            column[tree, level], threshold[tree, level] = index, edges[index][cut]
            leaf = 2 * leaf + (binned[index] > cut)
        count = np.bincount(leaf, minlength=1 << DEPTH)
        value[tree] = RATE * np.bincount(leaf, pull, 1 << DEPTH) / (count + SHRINK / 5)
        fitted += value[tree][leaf]
    return Trees(column, threshold, value, start)


def _question(
    pull: Array, leaf: Array, leaves: int, binned: list[Array], edges: list[Array], asked: Array
) -> tuple[int, int]:
    """The input and the edge that explain the pulls best when every leaf is split there."""
    best = (-1.0, int(asked[0]), 0)
    for index in asked:
        key = leaf * BINS + binned[index]
        sums = np.bincount(key, pull, leaves * BINS).reshape(leaves, BINS).cumsum(axis=1)
        counts = np.bincount(key, minlength=leaves * BINS).reshape(leaves, BINS).cumsum(axis=1)
        gain = sums**2 / (counts + SHRINK) + (sums[:, -1:] - sums) ** 2 / (counts[:, -1:] - counts + SHRINK)
        gains = gain.sum(axis=0)[: len(edges[index])]
        cut = int(np.argmax(gains))
        if gains[cut] > best[0]:
            best = (float(gains[cut]), int(index), cut)
    return best[1], best[2]


def read(data: Path, law: str) -> Rows:
    """The measured rows of one law, in the folder of shared data."""
    if law == "gemm":
        return _read_gemm(data / "gpu" / "aiconfigurator" / "gemm_bf16_vllm.csv.gz")
    folder = data / "gpu" / "neusight"
    if law == "vector":
        return _read_vectors(folder / "vec.csv.gz")
    return _read_conv(folder / "conv.csv.gz") if law == "conv" else _read_product(folder / f"{law}.csv.gz", law)


def _table(path: Path) -> dict[str, Array]:
    """The columns of a compressed table by name: numbers where all entries are, else text. Raises OSError."""
    with gzip.open(path, "rt", newline="") as lines:
        names, *rows = csv.reader(lines)
    return {name: _column(values) for name, values in zip(names, zip(*rows, strict=True), strict=True)}


def _column(values: Sequence[str]) -> Array:
    text = np.array(values)
    try:
        return text.astype(float)
    except ValueError:
        return text


def _rows(law: str, shapes: Shapes, table: Mapping[str, Array], kinds: Array | None = None) -> Rows:
    count = len(table["gpu"])
    train = table["split"] == "train" if "split" in table else np.ones(count, bool)
    kinds = np.zeros(count, int) if kinds is None else kinds
    return Rows(law, shapes, kinds, table["gpu"], table["latency_ms"] * 1e-3, train)


def _read_product(path: Path, law: str) -> Rows:
    """NeuSight names the reduction N and the output's width K."""
    table = _table(path)
    return _rows(law, Shapes.products(table["B"], table["M"], table["N"], table["K"], 4), table)


def _read_gemm(path: Path) -> Rows:
    table = _table(path)
    return _rows("gemm", Shapes.products(np.ones_like(table["m"]), table["m"], table["k"], table["n"], 2), table)


def _read_conv(path: Path) -> Rows:
    """As the implicit product: of images x places and weights; the input moves once, not once per weight."""
    table = _table(path)
    side = (table["size"] + 2 * table["pad"] - table["ksize"]) // table["stride"] + 1
    table, side = {name: values[side > 0] for name, values in table.items()}, side[side > 0]
    rows, reduction = table["B"] * side**2, table["cin"] * table["ksize"] ** 2
    shapes = Shapes.products(np.ones_like(rows), rows, reduction, table["cout"], 4)
    moved = 4.0 * (table["B"] * table["cin"] * table["size"] ** 2 + reduction * table["cout"] + rows * table["cout"])
    return _rows("conv", attrs.evolve(shapes, moved=moved), table)


def _read_vectors(path: Path) -> Rows:
    table = _table(path)
    kinds = np.array([KINDS.index(name) for name in table["op"]])
    return _rows("vector", vector_shapes(table["B"], table["H"], kinds), table, kinds)


def vector_shapes(rows: Array, columns: Array, kinds: Array, bytes_per_element: Array | None = None) -> Shapes:
    """Vector operators as NeuSight counts them: 12 bytes an element with two tensors, else 8; see KINDS."""
    elements = rows * columns
    size = np.where(kinds < 4, 12.0, 8.0) if bytes_per_element is None else bytes_per_element
    flops = np.where(kinds == KINDS.index("ln"), 6.0, np.where(kinds == KINDS.index("softmax"), 5.0, 1.0))
    return Shapes.vectors(rows, columns, size * elements, flops * elements, 4)
