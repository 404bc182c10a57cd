"""Zero-shot: the hold of a function on a device from its graph alone, before it ever ran there.

    G(b, s) = max(sum of the operators at SM share s, kernels x host launch time)        (rapp.md 3.6)

Uncertainty. Errors of operators do not average out: a law that is wrong for one product is wrong for the next one. So
within a family they count as one error, with the standard deviation of its held-out residuals; errors of two families
correlate by ACROSS_FAMILIES; and an error of the whole graph (kernels that fuse, clocks, another library version) is
added that no operator law sees. The variance of log G is

    sigma_graph^2 + sum over families f, g of r_fg (w_f sigma_f) (w_g sigma_g),    w = shares of the time, r_ff = 1

and where the launches bind, sigma_graph^2 + SIGMA_HOST^2. Operators are priced as if nothing ran beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import attrs
import numpy as np

from hasfaas.core.errors import InvalidRequestError
from hasfaas.rapp import coefficients, export, operator_law, roofline
from hasfaas.rapp.description import DeviceDescription, describe
from hasfaas.rapp.operator import FAMILIES, Operator, OperatorGraph
from hasfaas.rapp.surface import Surface, monotone

Array = np.ndarray[Any, Any]

TRAINED = "zero-shot"
ROOFLINE_ONLY = "roofline only"

# An assumption: no public data holds the same graphs on one GPU both by operator and as a whole in eager torch.
ACROSS_FAMILIES = 0.5
# A whole graph with a trained law: the MAPE of 9.2 % of NeuSight's 42 held-out-GPU cells (rapp.md 6.2) as a standard
# deviation, x sqrt(pi / 2), is 0.12; doubled, since those graphs are transformers run as the law was trained.
SIGMA_GRAPH = 0.24
# A plain roofline with waves: on 21 vision models of the V100 table (graphs built by hand, cells above twice the launch
# floor) the error of log G has a root mean square of 0.25 (0.28 without waves), seen before this was chosen. Widened:
# NeuSight's published roofline is 31 % off end to end, up to 75 % on single operators.
SIGMA_ROOFLINE = 0.45
# Between the 0.03 ms of NeuSight's event timings (rapp.md 9.7) and the 0.117 ms in the median of the same 21 models, whose
# launch floor by kernel has a log deviation of 0.32 on one host. The deviation covers both hosts.
HOST_LAUNCH_MS = 0.06
SIGMA_HOST = 0.7


class OperatorLaw(Protocol):
    """What a device takes for each operator."""

    @property
    def trained(self) -> bool:
        """Whether coefficients stand behind it, or the plain roofline."""

    @property
    def host_launch_ms(self) -> float:
        """What the host needs to launch one kernel."""

    def latency_ms(self, operators: Sequence[Operator], sm_percent: float) -> Array:
        """Of one occurrence of each operator, alone on `sm_percent` of the SMs; in ms."""

    def log_sigma(self, family: str) -> float:
        """The standard deviation of log(latency / prediction) on held-out operators of this family."""


@attrs.frozen
class Roofline:
    """The plain roofline of a described device as an operator law: nothing trained."""

    description: DeviceDescription
    host_launch_ms: float = HOST_LAUNCH_MS
    trained: bool = attrs.field(default=False, init=False)

    def latency_ms(self, operators: Sequence[Operator], sm_percent: float) -> Array:
        """Of one occurrence of each, in ms."""
        return roofline.time_s(roofline.Shapes.of(operators), self.description, sm_percent / 100.0) * 1e3

    def log_sigma(self, family: str) -> float:
        """The same for all: nothing is known."""
        return SIGMA_ROOFLINE


@attrs.frozen
class Forecast:
    """A surface that was never measured. `state` says what stands behind it, `sources` how the graphs were found."""

    surface: Surface
    state: str
    sources: tuple[str, ...]
    notes: tuple[str, ...] = ()


def forecast(graphs: Mapping[int, OperatorGraph], law: OperatorLaw, sm_percents: Sequence[float]) -> Forecast:
    """The hold of the graphs (by batch size) at each SM share, in percent, with its uncertainty.

    Raises InvalidRequestError (EMPTY_GRAPH) if a graph launches nothing, (BAD_SM) for a share outside (0, 100].
    """
    shares = tuple(sorted({float(share) for share in sm_percents}))
    if not shares or not all(0.0 < share <= 100.0 for share in shares):
        raise InvalidRequestError(f"sm_percents={list(sm_percents)}: give shares from above 0 to 100", reason="BAD_SM")
    batches = tuple(sorted(graphs))
    for batch in batches:
        if not graphs[batch].operators:
            raise InvalidRequestError(
                f"graph of batch {batch} launches no operator: measure the function, hasfaas profile",
                reason="EMPTY_GRAPH",
            )
    if not batches:
        raise InvalidRequestError("graphs is empty: give at least one batch size", reason="EMPTY_GRAPH")
    cells = [[_hold(graphs[batch], law, share) for share in shares] for batch in batches]
    hold_ms, log_sigma = np.moveaxis(np.array(cells), -1, 0)
    notes = dict.fromkeys(graphs[batch].note for batch in batches if graphs[batch].note)
    return Forecast(
        surface=Surface(batches, shares, monotone(hold_ms), log_sigma),
        state=TRAINED if law.trained else ROOFLINE_ONLY,
        sources=tuple(dict.fromkeys(graphs[batch].source for batch in batches)),
        notes=tuple(notes),
    )


def zero_shot_surface(
    module: Any,
    example: Callable[[int], Any] | tuple[Any, ...],
    device: str | DeviceDescription,
    batches: Iterable[int],
    sm_percents: Sequence[float],
    law: OperatorLaw | None = None,
) -> Forecast:
    """The forecast for a torch module, or a callable that runs torch, on a device by name: the graph is taken here.

    Without a `law` it is the trained one of the package (`law_of`). `example` as for `export.graphs`. Raises
    InvalidRequestError: NOT_TORCH for a function that runs no torch, which has to be measured (few-shot),
    UNKNOWN_DEVICE, and what `export.graphs` and `forecast` raise.
    """
    if law is None:
        law = law_of(describe(device) if isinstance(device, str) else device)
    return forecast(export.graphs(module, example, batches), law, sm_percents)


def law_of(description: DeviceDescription) -> OperatorLaw:
    """The trained law on a described GPU; on a CPU, or without trained coefficients, the plain roofline.

    Raises InvalidRequestError (BAD_COEFFICIENTS) if the package's coefficients are there and cannot be read.
    """
    if description.name == "cpu":
        return Roofline(description, 0.0)  # it runs what it launches
    arrays = coefficients.part(coefficients.shipped()[0], "operators") if coefficients.SHIPPED.exists() else {}
    if not arrays:
        return Roofline(description)
    return operator_law.OperatorLaw.from_arrays(arrays).on(description, HOST_LAUNCH_MS)


def _hold(graph: OperatorGraph, law: OperatorLaw, sm_percent: float) -> tuple[float, float]:
    """The hold in ms of one cell, and its standard deviation in log."""
    counts = np.array([operator.count for operator in graph.operators], float)
    times = law.latency_ms(graph.operators, sm_percent) * counts
    if not np.all(np.isfinite(times) & (times >= 0.0)) or not times.any():
        raise InvalidRequestError(f"the operator law gave no finite times at SM {sm_percent} %", reason="BAD_LAW")
    busy_ms, host_ms = float(times.sum()), graph.kernels * law.host_launch_ms
    graph_variance = SIGMA_GRAPH**2
    if host_ms > busy_ms:
        return host_ms, float(np.sqrt(graph_variance + SIGMA_HOST**2))
    families = np.array([operator.family for operator in graph.operators])
    present = [family for family in FAMILIES if family in families]
    parts = np.array([times[families == family].sum() / busy_ms * law.log_sigma(family) for family in present])
    variance = ACROSS_FAMILIES * parts.sum() ** 2 + (1.0 - ACROSS_FAMILIES) * (parts**2).sum()
    return busy_ms, float(np.sqrt(graph_variance + variance))
