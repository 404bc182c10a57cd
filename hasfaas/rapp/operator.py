"""One operator of a model's graph, as the roofline sees it: work, traffic, and how much of it can run side by side."""

from __future__ import annotations

import attrs

# A product of matrices (also a convolution, as the product that it amounts to) has dimensions; the rest has rows.
PRODUCTS = ("bmm", "linear", "conv")
VECTORS = ("elementwise", "softmax", "norm", "reduction", "memory")
FAMILIES = (*PRODUCTS, *VECTORS)


@attrs.frozen
class Operator:
    """One operator at one batch size.

    `flops` counts a multiply-add as two; `bytes_read` and `bytes_written` are those of its arguments and of its result
    (the activation). A product is `batch` x (`rows` x `reduction`)(`reduction` x `columns`); any other operator works
    on `rows` rows of `columns` elements, with `reduction` 1. `count` is how often it occurs.
    """

    family: str
    name: str
    flops: float
    bytes_read: float
    bytes_written: float
    rows: int
    columns: int
    reduction: int = 1
    batch: int = 1
    element_bytes: int = 4
    count: int = 1


@attrs.frozen
class OperatorGraph:
    """The operators of one function at one batch size, in the order in which they run.

    `source` says how they were found: "export" by torch.export, "traced" in one real run, whose path through the code
    is then the only one known; `note` says why. `parameters` counts the weights, of `parameter_bytes` in all.
    """

    batch: int
    operators: tuple[Operator, ...]
    source: str = "export"
    note: str = ""
    parameters: int = 0
    parameter_bytes: float = 0.0

    @property
    def flops(self) -> float:
        """Of one execution, by all operators."""
        return sum(operator.flops * operator.count for operator in self.operators)

    @property
    def product_flops(self) -> float:
        """Of the products alone: what torch.utils.flop_counter counts."""
        return sum(operator.flops * operator.count for operator in self.operators if operator.family in PRODUCTS)

    @property
    def activation_bytes(self) -> float:
        """Of all results together, as they are written."""
        return sum(operator.bytes_written * operator.count for operator in self.operators)

    @property
    def bytes_moved(self) -> float:
        """Read and written by one execution, if nothing stayed in a cache."""
        return sum((operator.bytes_read + operator.bytes_written) * operator.count for operator in self.operators)

    @property
    def kernels(self) -> int:
        """How many operators one execution launches."""
        return sum(operator.count for operator in self.operators)
