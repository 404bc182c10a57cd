"""The learned operator laws: what they fit, how they extrapolate, and that training repeats itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest

from hasfaas.core.errors import InvalidRequestError
from hasfaas.rapp import coefficients, train_operators
from hasfaas.rapp.description import describe
from hasfaas.rapp.operator import Operator
from hasfaas.rapp.operator_law import KINDS, LAWS, Calibration, FamilyLaw, OperatorLaw, Trees, kind_of, law_of
from hasfaas.rapp.roofline import Shapes, ceilings
from hasfaas.rapp.train_operators import Rows, boost, fit_law, law_from, predict_log

Array = np.ndarray[Any, Any]
GPUS = ("P100", "V100", "T4")


def invented(law: str, count: int = 400, efficiency: float = 0.6, largest: float = 7.0) -> Rows:
    """Operators on three GPUs that reach `efficiency` of the ceilings."""
    rng = np.random.default_rng(3)
    gpu = np.repeat(GPUS, count)
    rows, reduction, columns = np.exp(rng.uniform(3, largest, (3, len(gpu)))).round()
    kinds = rng.integers(0, len(KINDS), len(gpu))
    if law == "vector":
        shapes = train_operators.vector_shapes(rows, columns, kinds)
    else:
        shapes = Shapes.products(np.ones(len(gpu)), rows, reduction, columns, 2 if law == "gemm" else 4)
    seconds = np.zeros(len(gpu))
    for name in GPUS:
        bound = ceilings(shapes.take(gpu == name), describe(train_operators.NEUSIGHT[name]))
        seconds[gpu == name] = np.maximum(bound.wave, bound.memory) / efficiency + 1e-5
    return Rows(law, shapes, kinds, gpu, seconds, np.ones(len(gpu), bool))


@pytest.fixture(scope="module")
def law() -> OperatorLaw:
    return OperatorLaw.from_arrays(invented_arrays())


def invented_arrays() -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    for name in LAWS:
        fitted = fit_law(invented(name), trees=8, rows_per_gpu=300) | {"sigma": np.array(0.2)}
        arrays |= {f"{name}/{key}": value for key, value in fitted.items()}
    return arrays


OPERATORS = (
    Operator("linear", "linear", 2e9, 8e6, 4e6, rows=1000, columns=1000, reduction=1000),
    Operator("linear", "linear", 2e9, 4e6, 2e6, rows=1000, columns=1000, reduction=1000, element_bytes=2),
    Operator("bmm", "bmm", 2e7, 8e4, 4e4, rows=100, columns=100, reduction=100, batch=10),
    Operator("conv", "convolution", 2e9, 8e6, 4e6, rows=1000, columns=1000, reduction=1000),
    Operator("elementwise", "gelu", 1e6, 4e6, 4e6, rows=1000, columns=1000),
    Operator("softmax", "_softmax", 5e6, 4e6, 4e6, rows=1000, columns=1000),
    Operator("norm", "native_layer_norm", 6e6, 4e6, 4e6, rows=1000, columns=1000),
    Operator("memory", "copy", 0.0, 4e6, 4e6, rows=1000, columns=1000),
    Operator("memory", "nothing", 0.0, 0.0, 0.0, rows=1, columns=1),
)


@pytest.mark.parametrize("name", LAWS)
def test_a_constant_efficiency_is_learned(name: str) -> None:
    rows = invented(name)
    fitted = law_from(fit_law(rows, trees=25, rows_per_gpu=400), name)
    assert np.median(np.abs(predict_log(fitted, rows) - np.log(rows.seconds))) < 0.05


def test_products_extrapolate_tenfold() -> None:
    fitted = law_from(fit_law(invented("linear"), trees=25, rows_per_gpu=400), "linear")
    large = invented("linear", largest=9.5)
    beyond = large.take(large.shapes.flops > 20 * invented("linear").shapes.flops.max())
    assert len(beyond.seconds) > 50
    assert np.median(np.abs(predict_log(fitted, beyond) - np.log(beyond.seconds))) < 0.15


def test_training_repeats_itself() -> None:
    first, second = (fit_law(invented("gemm", 100), trees=5) for _ in range(2))
    assert first.keys() == second.keys()
    for key in first:
        assert first[key].tobytes() == second[key].tobytes(), key


def test_every_family_has_a_law(law: OperatorLaw) -> None:
    assert [law_of(operator) for operator in OPERATORS[:5]] == ["linear", "gemm", "bmm", "conv", "vector"]
    assert [KINDS[kind_of(operator)] for operator in OPERATORS[4:7]] == ["gelu", "softmax", "ln"]
    latency, sigma = law.latency_ms(OPERATORS, describe("A100-80"), 1.0)
    assert latency.shape == sigma.shape == (len(OPERATORS),)
    assert np.isfinite(latency).all()
    assert np.all(latency > 0.0)
    assert np.all(sigma >= 0.2)


def test_no_prediction_is_below_the_ceilings(law: OperatorLaw) -> None:
    card = describe("H100-SXM")
    for share in (0.05, 0.4, 1.0):
        bound = ceilings(Shapes.of(OPERATORS), card, share).roofline
        assert np.all(law.latency_ms(OPERATORS, card, share)[0] >= 1e3 * bound)


def test_far_from_the_data_the_sigma_grows_and_the_trees_count_less() -> None:
    trees = Trees(np.zeros((1, 1), int), np.zeros((1, 1)), np.array([[0.0, 1.0]]), 0.0)
    fitted = law_from(fit_law(invented("linear"), trees=5, rows_per_gpu=300), "linear")
    family: FamilyLaw = attrs.evolve(fitted, log_sigma=0.2, trees=trees, linear=np.zeros_like(fitted.linear))
    near, far = (Shapes.products([64], [size], [64], [64], 4) for size in (256, 10**9))
    kinds = np.zeros(1, int)
    assert family.log_s(near, kinds, describe("T4"), 1.0)[1][0] < family.log_s(far, kinds, describe("T4"), 1.0)[1][0]


def test_the_law_of_a_device(law: OperatorLaw) -> None:
    bound = law.on(describe("L4"), host_launch_ms=0.02)
    assert bound.trained
    assert bound.host_launch_ms == 0.02
    np.testing.assert_array_equal(bound.latency_ms(OPERATORS, 50.0), law.latency_ms(OPERATORS, describe("L4"), 0.5)[0])
    assert bound.log_sigma("softmax") == bound.log_sigma("bmm") == 0.2


def test_coefficients_survive_the_file(law: OperatorLaw, tmp_path: Path) -> None:
    path = tmp_path / "coefficients.npz"
    coefficients.write(path, {f"operators/{key}": value for key, value in invented_arrays().items()}, {})
    read = OperatorLaw.from_arrays(coefficients.part(coefficients.read(path)[0], "operators"))
    card = describe("V100-PCIE-32GB")
    np.testing.assert_array_equal(read.latency_ms(OPERATORS, card)[0], law.latency_ms(OPERATORS, card)[0])
    assert read.laws["gemm"].devices == ("P100", "T4", "V100-PCIE-32GB")


def test_an_unmeasured_device_has_the_median_offset(law: OperatorLaw) -> None:
    gemm = attrs.evolve(law.laws["gemm"], own=np.array([-1.0, 0.1, 0.2]))
    assert gemm.offset("T4") == 0.1
    assert gemm.offset("V100-PCIE-32GB") == 0.2
    assert gemm.offset("H100-SXM") == 0.1
    assert law.laws["bmm"].offset("T4") == 0.0


def test_no_operators(law: OperatorLaw) -> None:
    assert law.latency_ms((), describe("L4"))[0].shape == (0,)


def test_missing_coefficients_are_named() -> None:
    with pytest.raises(InvalidRequestError, match="hasfaas rapp train"):
        OperatorLaw.from_arrays({})


def test_a_bad_share_is_refused(law: OperatorLaw) -> None:
    with pytest.raises(InvalidRequestError, match="sm_share="):
        law.latency_ms(OPERATORS, describe("L4"), 0.0)


def test_trees_answer_as_they_were_boosted() -> None:
    rng = np.random.default_rng(1)
    inputs = rng.uniform(-1, 1, (3000, 3))
    target = np.where(inputs[:, 0] > 0.2, 0.5, -0.3) + 0.2 * np.sign(inputs[:, 2])
    found = boost(inputs, target, seed=0, trees=120)
    assert np.abs(found.predict(inputs) - target).mean() < 0.05


def test_calibration_takes_up_an_offset_and_leaves_the_unmeasured_alone() -> None:
    rows, card = invented("gemm").shapes, describe("H100-SXM")
    residual = np.full(len(rows), 0.3)
    points = np.arange(0, len(rows), 60)
    shift = Calibration.fit(rows.take(points), card, residual[points]).shift(rows, card)
    assert np.abs(shift - 0.3).max() < 0.1
    assert np.abs(shift[points] - 0.3).mean() < 0.03
    assert np.all(Calibration.fit(rows.take(points[:0]), card, residual[:0]).shift(rows, card) == 0.0)


def test_measured_operators_are_fitted(data: Path) -> None:
    rows = train_operators.read(data, "gemm")
    assert set(np.unique(rows.gpu)) == set(train_operators.TENSOR)
    fitted = law_from(fit_law(rows, trees=40, rows_per_gpu=2000), "gemm")
    some = rows.take(train_operators.balanced(rows.gpu, 300, seed=5))
    assert np.median(np.abs(predict_log(fitted, some) - np.log(some.seconds))) < 0.12
