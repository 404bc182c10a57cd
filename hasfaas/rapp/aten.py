"""What one ATen operator costs: family, work, traffic and dimensions, from the shapes of its arguments and results.

Pure: a tensor is anything with `shape`, `dtype.itemsize` and `stride()`. A view costs nothing. Products are counted by
the convention of torch.utils.flop_counter (a multiply-add is two, a causal mask saves nothing); vector operators by
NeuSight's (MIT): 6 per element of a norm, 5 of a softmax, else 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs

from hasfaas.rapp.operator import Operator

Rule = Callable[["Call"], Sequence[Operator]]

NORM_FLOPS = 6
SOFTMAX_FLOPS = 5


@attrs.frozen
class Call:
    """One operator as it was called: arguments by the names of its schema, and the tensors that it returned.

    `pointwise` and `reduction` are torch's own tags. `flops` is torch's own count where it has one; it is used for an
    operator that this file does not know.
    """

    name: str
    arguments: Mapping[str, Any]
    outputs: tuple[Any, ...]
    pointwise: bool = False
    reduction: bool = False
    flops: float | None = None

    @property
    def tensors(self) -> list[Any]:
        """The tensors among the arguments, each once."""
        found = {id(tensor): tensor for tensor in tensors_in(self.arguments)}
        return list(found.values())


def tensors_in(value: Any) -> Iterator[Any]:
    """The tensors in nested tuples, lists and dicts."""
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)
    elif hasattr(value, "shape") and hasattr(value, "stride") and hasattr(value, "dtype"):
        yield value


def operators(call: Call) -> tuple[Operator, ...]:
    """What a call costs; nothing for views, checks and empty results. Raises nothing: the unknown counts as a copy."""
    name = call.name.removesuffix("_") if not call.name.startswith("_") else call.name
    if name in _FREE or name.startswith(("_assert", "sym_")):
        return ()
    rule = _RULES.get(name)
    if rule is None or (rule is _reduction and call.pointwise):  # max has a form of either kind
        rule = _elementwise if call.pointwise else _unknown_rule(call)
    return tuple(operator for operator in rule(call) if operator.count and (operator.rows and operator.columns))


def known(name: str) -> bool:
    """Whether there is a rule for an operator of this name, so that it need not be taken apart."""
    return name in _RULES or name.removesuffix("_") in _RULES


def _unknown_rule(call: Call) -> Rule:
    if call.flops:
        return _counted_by_torch
    if call.name.startswith("_foreach_"):
        return _elementwise
    return _reduction if call.reduction else _copy


# ---- sizes


def _numel(tensor: Any) -> int:
    return math.prod(int(size) for size in tensor.shape)


def _bytes(tensor: Any) -> float:
    """In memory: an axis that was expanded (stride 0) lies there once."""
    try:
        strides = tensor.stride()
    except (RuntimeError, NotImplementedError):  # sparse: no strides
        strides = (1,) * len(tensor.shape)
    lying = (int(size) for size, stride in zip(tensor.shape, strides, strict=True) if size == 0 or stride != 0)
    return float(math.prod(lying) * tensor.dtype.itemsize)


def _all_bytes(tensors: Sequence[Any]) -> float:
    return sum(_bytes(tensor) for tensor in tensors if tensor is not None)


def _rows_columns(tensor: Any) -> tuple[int, int]:
    """All axes but the last, and the last."""
    columns = int(tensor.shape[-1]) if tensor.shape else 1
    return _numel(tensor) // max(columns, 1), columns


def _main(call: Call) -> Any:
    """The tensor that an operator works on: by usual name, else the first one."""
    for name in ("self", "input", "query"):
        if hasattr(call.arguments.get(name), "shape"):
            return call.arguments[name]
    return (call.tensors or list(call.outputs))[0]


# ---- products


def _product(
    call: Call, family: str, dimensions: tuple[int, int, int, int], read: Sequence[Any], flops: float | None = None
) -> Operator:
    """A product of (batch, rows, reduction, columns), which reads the tensors `read`."""
    batch, rows, reduction, columns = dimensions
    return Operator(
        family=family,
        name=call.name,
        flops=2.0 * batch * rows * reduction * columns if flops is None else flops,
        bytes_read=_all_bytes(read),
        bytes_written=_all_bytes(call.outputs[:1]),
        rows=rows,
        columns=columns,
        reduction=reduction,
        batch=batch,
        element_bytes=read[0].dtype.itemsize,
    )


def _linear(call: Call) -> Sequence[Operator]:
    """linear(input (..., in), weight (out, in))."""
    x, weight = call.arguments["input"], call.arguments["weight"]
    columns, reduction = (1, int(weight.shape[0])) if len(weight.shape) == 1 else map(int, weight.shape)
    rows = _numel(x) // max(reduction, 1)
    return [_product(call, "linear", (1, rows, reduction, columns), call.tensors)]


def _matrices(left: str, right: str) -> Rule:
    """A product of two arguments: matrices (also with a vector) are of family linear, stacks of them bmm."""

    def rule(call: Call) -> Sequence[Operator]:
        a, b = call.arguments[left], call.arguments[right]
        if len(a.shape) == 3:
            batch, rows, reduction = map(int, a.shape)
            return [_product(call, "bmm", (batch, rows, reduction, int(b.shape[-1])), call.tensors)]
        rows, reduction = (1, int(a.shape[0])) if len(a.shape) == 1 else map(int, a.shape)
        columns = int(b.shape[1]) if len(b.shape) == 2 else 1
        return [_product(call, "linear", (1, rows, reduction, columns), call.tensors)]

    return rule


def _convolution(call: Call) -> Sequence[Operator]:
    """As the implicit product: of images x places and weights; a transposed one starts from the input's places."""
    x, weight, out = call.arguments["input"], call.arguments["weight"], call.outputs[0]
    groups = int(call.arguments.get("groups") or 1)
    first, second, *kernel = map(int, weight.shape)
    images = int(x.shape[0]) if len(x.shape) == len(weight.shape) else 1
    window = math.prod(kernel)
    if call.arguments.get("transposed"):
        places = math.prod(map(int, x.shape[-len(kernel) :]))
        dimensions = (groups, images * places, first // groups, second * window)
    else:
        places = math.prod(map(int, out.shape[-len(kernel) :]))
        dimensions = (groups, images * places, second * window, first // groups)
    return [_product(call, "conv", dimensions, [x, weight, call.arguments.get("bias")])]


def _attention(call: Call) -> Sequence[Operator]:
    """Two products with a softmax between them, the scores written and read; a fused kernel moves less than that."""
    query, key, value = (call.arguments[name] for name in ("query", "key", "value"))
    *outer, rows, width = map(int, query.shape)
    batch, keys, value_width, size = math.prod(outer), int(key.shape[-2]), int(value.shape[-1]), query.dtype.itemsize
    scores = float(batch * rows * keys * size)
    mask = _all_bytes([call.arguments.get("attn_mask"), call.arguments.get("attn_bias")])
    common = {"name": call.name, "element_bytes": size}
    return [
        Operator(
            family="bmm",
            flops=2.0 * batch * rows * width * keys,
            bytes_read=_all_bytes([query, key]),
            bytes_written=scores,
            rows=rows,
            columns=keys,
            reduction=width,
            batch=batch,
            **common,
        ),
        Operator(
            family="softmax",
            flops=float(SOFTMAX_FLOPS * batch * rows * keys),
            bytes_read=scores + mask,
            bytes_written=scores,
            rows=batch * rows,
            columns=keys,
            **common,
        ),
        Operator(
            family="bmm",
            flops=2.0 * batch * rows * keys * value_width,
            bytes_read=scores + _bytes(value),
            bytes_written=_bytes(call.outputs[0]),
            rows=rows,
            columns=value_width,
            reduction=keys,
            batch=batch,
            **common,
        ),
    ]


def _counted_by_torch(call: Call) -> Sequence[Operator]:
    """An operator that torch counts and this file does not know: a product of that many FLOPs."""
    rows, columns = _rows_columns(call.outputs[0])
    flops = float(call.flops or 0)
    reduction = max(1, round(flops / max(2 * rows * columns, 1)))
    return [_product(call, "bmm", (1, rows, reduction, columns), call.tensors, flops)]


# ---- recurrent layers


def _recurrent(gates: int) -> Rule:
    """All layers of an LSTM (4 gates), GRU (3) or RNN (1)."""

    def rule(call: Call) -> Sequence[Operator]:
        arguments = call.arguments
        hidden = arguments["hx"][0] if isinstance(arguments["hx"], (tuple, list)) else arguments["hx"]
        directions = 2 if arguments["bidirectional"] else 1
        if "data" in arguments:  # packed: rows of all steps, and how many rows each step has
            places, steps = int(arguments["data"].shape[0]), int(arguments["batch_sizes"].shape[0])
            width = int(arguments["data"].shape[1])
        else:
            x = arguments["input"]
            width = int(x.shape[-1])
            time = -2 if len(x.shape) == 2 or arguments["batch_first"] else 0
            places, steps = _numel(x) // max(width, 1), int(x.shape[time])
        weights = [weight for weight in arguments["params"] if len(weight.shape) == 2]
        projection = len(weights) // (int(arguments["num_layers"]) * directions) - 2
        cells = int(weights[0].shape[0]) // gates
        out = int(hidden.shape[-1])
        found: list[Operator] = []
        for layer in range(int(arguments["num_layers"])):
            inputs = width if layer == 0 else out * directions
            one = _layer(call.name, (places, steps), (inputs, cells, out if projection else 0), gates, _size(hidden))
            found.extend(one * directions)
        return found

    return rule


def _mkldnn_layer(call: Call) -> Sequence[Operator]:
    """One layer in one direction, as torch runs it on a CPU."""
    x, weight = call.arguments["input"], call.arguments["weight0"]
    cells = int(call.arguments["hidden_size"])
    width = int(x.shape[-1])
    extent = (_numel(x) // max(width, 1), int(x.shape[0]))
    return _layer(call.name, extent, (width, cells, 0), int(weight.shape[0]) // max(cells, 1), _size(x))


def _size(tensor: Any) -> int:
    return int(tensor.dtype.itemsize)


def _layer(name: str, extent: tuple[int, int], widths: tuple[int, int, int], gates: int, size: int) -> list[Operator]:
    """One product of all inputs at once, then for each step a product of the state and the gates, element by element."""
    (places, steps), (inputs, cells, projection) = extent, widths
    rows = max(1, places // max(steps, 1))
    state = projection or cells

    def product(rows: int, reduction: int, columns: int, count: int) -> Operator:
        read = (rows * reduction + reduction * columns) * size
        written = float(rows * columns * size)
        flops = 2.0 * rows * reduction * columns
        return Operator("linear", name, flops, float(read), written, rows, columns, reduction, 1, size, count)

    # Packed rows are not the same in each step: the mean keeps the sum of the work.
    elements = rows * gates * cells
    gate = Operator(
        family="elementwise",
        name=name,
        flops=float(elements),
        bytes_read=float(2 * elements * size),
        bytes_written=float(2 * rows * cells * size),
        rows=rows,
        columns=gates * cells,
        element_bytes=size,
        count=steps,
    )
    recurrent = product(rows, state, gates * cells, steps)
    recurrent = attrs.evolve(recurrent, flops=2.0 * (places / max(steps, 1)) * state * gates * cells)
    found = [product(places, inputs, gates * cells, 1), recurrent, gate]
    return [*found, product(rows, cells, projection, steps)] if projection else found


# ---- vectors


def _vector(
    call: Call, family: str, extent: tuple[int, int], per_element: float = 1.0, read: float | None = None
) -> Operator:
    """An operator on rows x columns, which reads all its arguments unless `read` says how many bytes."""
    rows, columns = extent
    # Of a norm the first result alone: the others are statistics for a backward pass.
    written = _all_bytes(call.outputs[:1] if "norm" in call.name else call.outputs)
    return Operator(
        family=family,
        name=call.name,
        flops=per_element * rows * columns,
        bytes_read=_all_bytes(call.tensors) if read is None else read,
        bytes_written=written,
        rows=rows,
        columns=columns,
        element_bytes=_size(call.outputs[0]) if call.outputs else _size(_main(call)),
    )


def _elementwise(call: Call) -> Sequence[Operator]:
    outputs = call.outputs or tuple(call.tensors[:1])
    rows, columns = _rows_columns(outputs[0])
    if len(outputs) > 1:  # one kernel over several tensors
        rows, columns = sum(_numel(tensor) for tensor in outputs), 1
    return [_vector(call, "elementwise", (rows, columns))]


def _softmax(call: Call) -> Sequence[Operator]:
    x = _main(call)
    columns = int(x.shape[int(call.arguments["dim"])]) if x.shape else 1
    return [_vector(call, "softmax", (_numel(x) // max(columns, 1), columns), SOFTMAX_FLOPS)]


def _layer_norm(call: Call) -> Sequence[Operator]:
    columns = math.prod(map(int, call.arguments["normalized_shape"]))
    return [_norm(call, _numel(_main(call)) // max(columns, 1))]


def _group_norm(call: Call) -> Sequence[Operator]:
    x = _main(call)
    groups = int(call.arguments.get("num_groups") or call.arguments.get("group") or 1)
    return [_norm(call, int(x.shape[0]) * groups)]


def _batch_norm(call: Call) -> Sequence[Operator]:
    """With running statistics it is one multiply-add an element; only in training is it a norm."""
    x = _main(call)
    training = call.arguments.get("training", call.arguments.get("use_input_stats", False))
    if training or call.name == "_batch_norm_with_update":
        return [_norm(call, int(x.shape[1]))]
    return [_vector(call, "elementwise", _rows_columns(x), 2.0)]


def _norm(call: Call, rows: int) -> Operator:
    columns = _numel(_main(call)) // max(rows, 1)
    return _vector(call, "norm", (rows, columns), NORM_FLOPS)


def _reduction(call: Call) -> Sequence[Operator]:
    total, rows = _numel(_main(call)), max(1, sum(_numel(tensor) for tensor in call.outputs[:1]))
    return [_vector(call, "reduction", (rows, max(1, total // rows)))]


def _pool(call: Call) -> Sequence[Operator]:
    rows = _numel(call.outputs[0])
    kernel = [int(size) for size in call.arguments["kernel_size"]]
    axes = len(_main(call).shape) - 2 if len(kernel) == 1 else len(kernel)
    window = math.prod(kernel) if len(kernel) > 1 else kernel[0] ** max(1, axes)
    return [_vector(call, "reduction", (rows, window))]


def _copy(call: Call) -> Sequence[Operator]:
    """Moves what it reads."""
    if not call.outputs:
        return []
    extent = _rows_columns(call.outputs[0])
    return [_vector(call, "memory", extent, 0.0)]


def _overwrite(call: Call) -> Sequence[Operator]:
    """Writes its first argument without reading it."""
    others = [tensor for tensor in call.tensors if tensor is not call.arguments.get("self")]
    return [_vector(call, "memory", _rows_columns(call.outputs[0]), 0.0, _all_bytes(others))]


def _gather(call: Call) -> Sequence[Operator]:
    """Reads the entries that it returns, and the indices; not the whole table."""
    out = call.outputs[0]
    read = _all_bytes(call.outputs[:1]) + _all_bytes(_indices(call))
    return [_vector(call, "memory", _rows_columns(out), 0.0, read)]


def _embedding_bag(call: Call) -> Sequence[Operator]:
    """Reads one entry for each index and adds them up."""
    weight, indices = call.arguments["weight"], call.arguments["indices"]
    entries, columns = _numel(indices), int(weight.shape[1])
    rows = int(call.outputs[0].shape[0])
    read = float(entries * columns * _size(weight)) + _bytes(indices)
    return [attrs.evolve(_vector(call, "reduction", (rows, columns), 0.0, read), flops=float(entries * columns))]


def _scatter(call: Call) -> Sequence[Operator]:
    """Writes as much as the source holds; the copy of the rest, where there is one, is counted as well."""
    given = (call.arguments.get(key) for key in ("src", "source", "values"))
    source = next((value for value in given if hasattr(value, "shape")), None)
    moved = _bytes(source) if source is not None else _all_bytes(_indices(call))
    in_place = call.name.endswith("_")
    whole = 0.0 if in_place else _all_bytes(call.outputs[:1])
    extent = _rows_columns(source if source is not None else call.outputs[0])
    operator = _vector(call, "memory", extent, 0.0, moved + whole + _all_bytes(_indices(call)))
    return [attrs.evolve(operator, bytes_written=moved + whole)]


def _indices(call: Call) -> list[Any]:
    return list(tensors_in([call.arguments.get(key) for key in ("index", "indices", "mask")]))


def _words(text: str) -> list[str]:
    return text.split()


def _names(rule: Rule, names: str) -> dict[str, Rule]:
    return dict.fromkeys(_words(names), rule)


# Not views by their schema, and still no kernel: allocation, metadata, constants, host checks.
_FREE = frozenset(
    _words(
        "empty empty_like empty_strided new_empty new_empty_strided empty_permuted detach alias lift lift_fresh"
        " lift_fresh_copy resize set _unsafe_view unsafe_split unsafe_split_with_sizes unsafe_chunk"
        " _local_scalar_dense item is_same_size device layout scalar_tensor _functional_sym_constrain_range"
        " sym_constrain_range size stride sym_constrain_range_for_size _reshape_alias view_as requires_grad"
        " retain_grad _nested_tensor_size"
    )
)

_RULES: dict[str, Rule] = {
    "linear": _linear,
    **_names(_matrices("self", "mat2"), "mm bmm"),
    **_names(_matrices("mat1", "mat2"), "addmm"),
    **_names(_matrices("batch1", "batch2"), "baddbmm addbmm"),
    **_names(_matrices("mat", "vec"), "addmv"),
    **_names(_matrices("self", "vec"), "mv"),
    **_names(_matrices("self", "tensor"), "dot vdot"),
    **_names(_convolution, "convolution _convolution convolution_overrideable"),
    **_names(
        _attention,
        "scaled_dot_product_attention _scaled_dot_product_attention_math _scaled_dot_product_flash_attention"
        " _scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_efficient_attention"
        " _scaled_dot_product_cudnn_attention _scaled_dot_product_fused_attention_overrideable",
    ),
    "lstm": _recurrent(4),
    "gru": _recurrent(3),
    **_names(_recurrent(1), "rnn_tanh rnn_relu"),
    "mkldnn_rnn_layer": _mkldnn_layer,
    **_names(_softmax, "softmax log_softmax _softmax _log_softmax _safe_softmax"),
    **_names(_layer_norm, "layer_norm native_layer_norm rms_norm _fused_rms_norm"),
    **_names(_group_norm, "group_norm native_group_norm"),
    **_names(
        _batch_norm,
        "batch_norm native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training cudnn_batch_norm"
        " _batch_norm_with_update _batch_norm_no_update",
    ),
    **_names(
        _reduction,
        "sum mean var std var_mean std_mean amax amin argmax argmin max min prod norm linalg_vector_norm any all cumsum"
        " cumprod logsumexp topk sort count_nonzero median kthvalue aminmax _adaptive_avg_pool1d _adaptive_avg_pool2d"
        " _adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d",
    ),
    **_names(
        _pool,
        "avg_pool1d avg_pool2d avg_pool3d max_pool2d_with_indices max_pool3d_with_indices",
    ),
    **_names(_gather, "embedding index index_select gather take masked_select"),
    "_embedding_bag": _embedding_bag,
    "_embedding_bag_forward_only": _embedding_bag,
    **_names(_scatter, "scatter scatter_add index_put index_add index_copy index_fill masked_scatter scatter_reduce"),
    **_names(_copy, "clone _to_copy"),
    **_names(_overwrite, "copy fill zero normal uniform bernoulli random exponential"),
    **_names(
        _elementwise,
        "upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_bilinear2d upsample_bicubic2d"
        " upsample_trilinear3d upsample_linear1d native_dropout glu hardswish hardtanh gelu",
    ),
}
