"""From a torch module, or any Python callable that runs torch, to its operator graph.

A module is exported by torch.export: its operators with the shapes that they would have, and nothing runs. Where export
fails (data-dependent control flow, code that it does not understand), and for a plain callable, one real run on the
example is watched; the graph says so. Either way what was passed in is left as it was found.

An edge: it imports torch, inside functions, and may run the user's code.
"""

from __future__ import annotations

import contextlib
import io
import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from hasfaas.core.errors import InvalidRequestError
from hasfaas.executor.modules import find_modules
from hasfaas.rapp import aten
from hasfaas.rapp.operator import Operator, OperatorGraph

if TYPE_CHECKING:
    import torch
    from torch._ops import OpOverload

# What is one kernel on a GPU and many operators on a CPU is recorded as the caller wrote it.
_WHOLE = frozenset(("lstm", "gru", "rnn_tanh", "rnn_relu", "scaled_dot_product_attention", "linear", "rms_norm"))
# Operators of these namespaces answer questions on the host.
_HOST = ("prim", "profiler")
_CAUSE_CHARACTERS = 200


def export_graph(
    module: torch.nn.Module, arguments: tuple[Any, ...], keywords: Mapping[str, Any] | None = None, *, batch: int
) -> OperatorGraph:
    """The operators of `module(*arguments, **keywords)`, whose arrays hold `batch` items along axis 0.

    The module keeps its mode (training or not), device, buffers, gradients and the state of the random generators.
    Raises InvalidRequestError (GRAPH_FAILED) if it can neither be exported nor run on the arguments.
    """
    torch = _torch()
    name, keywords = type(module).__name__, dict(keywords or {})
    note = ""
    try:
        with _as_found([module]), torch.no_grad():
            operators, source = tuple(_exported(module, arguments, keywords)), "export"
    except Exception as exc:
        note = f"torch.export failed, so one run was traced: {_cause(exc)}"
    if note:  # from the start again: what the export had done is undone
        with _as_found([module]), torch.no_grad():
            operators, source = _traced(module, arguments, keywords, name=name, note=note), "traced"
    return _graph(operators, source, note, batch, [module])


def graph_of_callable(fn: Any, arguments: tuple[Any, ...], batch: int) -> OperatorGraph:
    """The operators of `fn(*arguments)`, for a function, an object with `__call__`, a class (made first) or a module.

    Anything but a module is run once, and what torch does meanwhile in this thread is recorded, so work by other
    libraries is not seen. Generators are run to their end, coroutines too. Raises InvalidRequestError: NOT_TORCH if no
    torch operator ran, GRAPH_FAILED if the run raised.
    """
    torch = _torch()
    name = getattr(fn, "__qualname__", type(fn).__qualname__)
    fn = _instance(fn)
    if isinstance(fn, torch.nn.Module):
        return export_graph(fn, arguments, batch=batch)
    modules = list(find_modules(fn, fn).values())
    with _as_found(modules), torch.no_grad():
        operators = _traced(fn, arguments, {}, name=name, note="")
    if not operators:
        raise InvalidRequestError(
            f"function={name!r} runs no torch operator, so its latency cannot be predicted from its code: measure it, "
            "hasfaas profile --points 16",
            reason="NOT_TORCH",
        )
    return _graph(operators, "traced", "a callable: one run was traced", batch, modules)


def graphs(
    module: Any, example: Callable[[int], Any] | tuple[Any, ...], batches: Iterable[int]
) -> dict[int, OperatorGraph]:
    """The graph at each batch size, of a module or a callable.

    `example` gives the arguments for a batch size (one, or a tuple), or is the arguments at some batch size: then the
    first array says which, and each array of that length is repeated or cut along axis 0. Raises InvalidRequestError
    (BAD_BATCHES) if a batch size is no positive whole number, (BAD_EXAMPLE) if the arguments hold no array to scale.
    """
    sizes = list(dict.fromkeys(batches))
    if not sizes or any(
        isinstance(size, bool) or not isinstance(size, (int, np.integer)) or size < 1 for size in sizes
    ):
        raise InvalidRequestError(f"batches={sizes!r}: give whole numbers from 1, such as [1, 4]", reason="BAD_BATCHES")
    found = {}
    module = _instance(module)  # once: it may load weights
    for size in map(int, sizes):
        arguments = example(size) if callable(example) else scaled(example, size)
        arguments = arguments if isinstance(arguments, tuple) else (arguments,)
        found[size] = graph_of_callable(module, arguments, size)
    return found


def scaled(arguments: Any, batch: int) -> Any:
    """The same arguments with `batch` items along axis 0 of each array that is as long as the first one."""
    arrays = [array for array in _seen(arguments) if len(array.shape) > 0 and array.shape[0] > 0]
    if not arrays:
        raise InvalidRequestError(
            "example holds no array or tensor with an axis 0 to scale: give example as a function of the batch size",
            reason="BAD_EXAMPLE",
        )
    length = int(arrays[0].shape[0])

    def scale(value: Any) -> Any:
        if not getattr(value, "shape", ()) or value.shape[0] != length:
            return value
        index = np.arange(batch) % length
        return value[index] if isinstance(value, np.ndarray) else value[_torch().from_numpy(index).to(value.device)]

    return _mapped(scale, arguments)


def _torch() -> Any:
    try:
        import torch
    except ImportError as exc:
        raise InvalidRequestError(
            "a graph needs torch, which is not installed here: pip install 'hasfaas[torch]'", reason="NO_TORCH"
        ) from exc
    return torch


def _instance(fn: Any) -> Any:
    """A class is made, anything else is what it is."""
    if not isinstance(fn, type):
        return fn
    try:
        return fn()
    except Exception as exc:
        raise InvalidRequestError(
            f"class={fn.__qualname__!r} cannot be made on this machine: {_cause(exc)}. Its __init__ must run here (on a CPU)",
            reason="GRAPH_FAILED",
        ) from exc


def _graph(
    operators: tuple[Operator, ...], source: str, note: str, batch: int, modules: Iterable[torch.nn.Module]
) -> OperatorGraph:
    foreign = sorted({operator.name for operator in operators if "::" in operator.name})
    if foreign:
        note = "; ".join(
            filter(None, (note, f"counted as copies, since their work is not known: {', '.join(foreign)}"))
        )
    parameters = {id(parameter): parameter for module in modules for parameter in module.parameters()}.values()
    return OperatorGraph(
        batch=batch,
        operators=operators,
        source=source,
        note=note,
        parameters=sum(parameter.numel() for parameter in parameters),
        parameter_bytes=float(sum(parameter.numel() * parameter.element_size() for parameter in parameters)),
    )


def _cause(exc: BaseException) -> str:
    lines = str(exc).strip().splitlines()
    first = next((line.strip() for line in lines if line.strip()), "")
    return f"{type(exc).__name__}: {first[:_CAUSE_CHARACTERS]}" if first else type(exc).__name__


# ---- export


def _exported(module: torch.nn.Module, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> list[Operator]:
    import torch

    # Torch prints the graph of a failure and warns of what we put back: our caller is told the cause alone.
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.export.export(module, arguments, dict(keywords), strict=False)
    return _operators_of(program.graph_module)


def _operators_of(graph_module: Any) -> list[Operator]:
    """Of one exported graph, from the shapes that export left at its nodes."""
    import torch

    found: list[Operator] = []
    for node in graph_module.graph.nodes:
        if node.op != "call_function":
            continue
        arguments, keywords = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: _value(n, graph_module))
        if isinstance(node.target, torch._ops.OpOverload):
            found.extend(_operators_at(node.target, arguments, keywords, node.meta.get("val")))
        elif isinstance(node.target, torch._ops.HigherOrderOperator):
            found.extend(_nested(node.target, arguments))
    return found


def _value(node: Any, graph_module: Any) -> Any:
    """The fake tensor (or number) of a node; of an attribute that is a graph, the graph."""
    if node.op == "get_attr" and "val" not in node.meta:
        value = graph_module
        for part in node.target.split("."):
            value = getattr(value, part)
        return value
    return node.meta.get("val")


def _nested(target: Any, arguments: tuple[Any, ...]) -> list[Operator]:
    """Graphs inside the graph: a block under another mode is one, of two branches the costlier is taken."""
    import torch

    inner = [_operators_of(value) for value in arguments if isinstance(value, torch.fx.GraphModule)]
    name = target.name()
    if name == "cond":
        return max(inner, key=lambda operators: sum(operator.flops for operator in operators))
    if name.startswith("wrap") and len(inner) == 1:
        return inner[0]
    raise NotImplementedError(f"operator {name!r} in the exported graph")


def _operators_at(op: OpOverload, arguments: Any, keywords: Any, output: Any) -> list[Operator]:
    """Of one node. What is composed of other operators is run on its fake tensors, and those are taken."""
    if aten.known(_name(op)) or not _is_composite(op):
        return list(_operators_of_call(op, arguments, keywords, output))
    fake = next(
        (tensor.fake_mode for tensor in aten.tensors_in((arguments, keywords)) if hasattr(tensor, "fake_mode")), None
    )
    recorder = _recorder()
    with fake or contextlib.nullcontext(), recorder:
        op(*arguments, **keywords)
    return list(recorder.operators)


# ---- one real run


def _traced(
    fn: Callable[..., Any], arguments: tuple[Any, ...], keywords: Mapping[str, Any], *, name: str, note: str
) -> tuple[Operator, ...]:
    import torch

    recorder = _recorder()
    arguments, keywords = _mapped(_copied, arguments), _mapped(_copied, dict(keywords))
    # The fused encoder layer is one operator here and many kernels with dimensions elsewhere.
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with recorder, _whole_calls(recorder):
            _finished(fn(*arguments, **keywords))
    except Exception as exc:
        before = f"{note}; then " if note else ""
        raise InvalidRequestError(
            f"function={name!r}: {before}running it on the example failed: {_cause(exc)}. Give an example that it accepts",
            reason="GRAPH_FAILED",
        ) from exc
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return tuple(recorder.operators)


def _finished(result: Any) -> None:
    """Runs a generator or a coroutine to its end; anything else is finished."""
    import asyncio
    import inspect

    if inspect.isgenerator(result):
        for _ in result:
            pass
    elif inspect.iscoroutine(result):
        asyncio.run(result)
    elif inspect.isasyncgen(result):
        asyncio.run(_drained(result))


async def _drained(results: Any) -> None:
    async for _ in results:
        pass


def _recorder() -> Any:
    """A mode that notes the operators of all that torch runs below it."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
        supports_higher_order_operators = True

        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.operators: list[Operator] = []
            self.paused = False

        def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if self.paused:
                return op(*args, **kwargs)
            if isinstance(op, torch._ops.HigherOrderOperator):
                return _branch(op, args, self)
            if _is_composite(op) and not aten.known(_name(op)):  # inference mode sends it here whole
                with self:
                    result = op.decompose(*args, **kwargs)
                if result is not NotImplemented:
                    return result
            output = op(*args, **kwargs)
            self.operators.extend(_operators_of_call(op, args, kwargs, output))
            return output

    return Recorder()


def _branch(op: Any, arguments: Any, recorder: Any) -> Any:
    """Runs the branch of torch.cond that its predicate chooses; no other operator on functions is known."""
    if op.name() != "cond":
        raise NotImplementedError(f"operator {op.name()!r} of functions cannot be recorded")
    predicate, if_true, if_false, operands = arguments
    with recorder:
        return (if_true if predicate else if_false)(*operands)


def _whole_calls(recorder: Any) -> Any:
    """A mode that records some calls as the user wrote them, and hides from the recorder what they consist of."""
    import torch
    from torch.overrides import TorchFunctionMode

    class WholeCalls(TorchFunctionMode):
        def __torch_function__(self, fn: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            name = getattr(fn, "__name__", "")
            if name not in _WHOLE or recorder.paused:
                return fn(*args, **kwargs)
            recorder.paused = True
            try:
                output = fn(*args, **kwargs)
            finally:
                recorder.paused = False
            packet = getattr(torch.ops.aten, name)
            recorder.operators.extend(_operators_of_call(_overload(packet, args), args, kwargs, output))
            return output

    return WholeCalls()


def _overload(packet: Any, arguments: tuple[Any, ...]) -> Any:
    """Recurrent layers have two: of padded and of packed sequences (then the fourth argument is the weights)."""
    if "default" in packet.overloads():
        return packet.default
    return packet.input if isinstance(arguments[3], bool) else packet.data


# ---- one call


def _operators_of_call(op: OpOverload, arguments: Any, keywords: Any, output: Any) -> tuple[Operator, ...]:
    """Nothing for a view, else what aten.py says of the call."""
    import torch

    if op.is_view or op.namespace in _HOST:
        return ()
    names = [argument.name for argument in op._schema.arguments]
    defaults = {
        argument.name: argument.default_value for argument in op._schema.arguments if argument.has_default_value()
    }
    call = aten.Call(
        name=_name(op),
        arguments={**defaults, **dict(zip(names, arguments, strict=False)), **keywords},
        outputs=tuple(aten.tensors_in(output)),
        pointwise=torch.Tag.pointwise in op.tags,
        reduction=torch.Tag.reduction in op.tags,
        flops=None if aten.known(_name(op)) else _flops_by_torch(op, arguments, keywords, output),
    )
    return aten.operators(call)


def _flops_by_torch(op: OpOverload, arguments: Any, keywords: Any, output: Any) -> float | None:
    """Torch's own count, for the few operators that it knows and users may add to."""
    from torch.utils.flop_counter import flop_registry

    count = flop_registry.get(op.overloadpacket)
    return None if count is None else float(count(*arguments, **keywords, out_val=output))


def _name(op: OpOverload) -> str:
    """Of torch's own operators the bare name."""
    return op._schema.name.removeprefix("aten::")


def _is_composite(op: OpOverload) -> bool:
    import torch

    if not isinstance(op, torch._ops.OpOverload) or op.namespace in _HOST:
        return False
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    return torch._C._dispatch_has_kernel_for_dispatch_key(op._name, key)


# ---- leaving things as they were


@contextlib.contextmanager
def _as_found(modules: Iterable[torch.nn.Module]) -> Iterator[None]:
    """Puts back the random generators and, of each module below `modules`, attributes and buffers."""
    import torch

    parts = list({id(part): part for module in modules for part in module.modules()}.values())
    attributes = [(part, _kept(vars(part))) for part in parts]
    buffers = [(buffer, buffer.detach().clone()) for part in parts for buffer in part.buffers(recurse=False)]
    generators = (torch.get_rng_state(), random.getstate(), np.random.get_state())
    try:
        yield
    finally:
        for part, kept in attributes:
            _put_back(vars(part), kept)
        with torch.no_grad():
            for buffer, before in buffers:
                if not buffer.is_meta and not torch.equal(buffer, before):
                    buffer.copy_(before)
        torch.set_rng_state(generators[0])
        random.setstate(generators[1])
        np.random.set_state(generators[2])


def _kept(attributes: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Each attribute with a shallow copy, if it is a container."""
    return {
        name: (value, value.copy() if isinstance(value, (list, dict, set)) else None)
        for name, value in attributes.items()
    }


def _put_back(attributes: dict[str, Any], kept: dict[str, tuple[Any, Any]]) -> None:
    for name in [name for name in attributes if name not in kept]:
        del attributes[name]
    for name, (value, copy) in kept.items():
        attributes[name] = value
        if isinstance(value, list):
            value[:] = copy
        elif copy is not None:
            value.clear()
            value.update(copy)


def _copied(value: Any) -> Any:
    return value.copy() if isinstance(value, np.ndarray) else value.detach().clone()


def _is_array(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return True
    return isinstance(value, _torch().Tensor)


def _mapped(fn: Callable[[Any], Any], value: Any) -> Any:
    """`value` with `fn` applied to each array or tensor in nested tuples, lists and dicts."""
    if _is_array(value):
        return fn(value)
    if isinstance(value, Mapping):
        return {key: _mapped(fn, item) for key, item in value.items()}
    if isinstance(value, tuple):
        items = [_mapped(fn, item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return [_mapped(fn, item) for item in value] if isinstance(value, list) else value


def _seen(value: Any) -> list[Any]:
    """The arrays and tensors in nested tuples, lists and dicts, in order."""
    found: list[Any] = []
    _mapped(lambda array: found.append(array), value)
    return found
