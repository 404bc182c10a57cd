"""CUDA graphs of torch, gated: a replay launches at once what no gate can part, so a capture is cut where gates are.

Each gate that is reached while a graph is captured ends one segment and begins the next, in the same memory pool; a replay
plays the segments in order with a gate before each. So what lies between two gates is as long in a replay as without graphs.
A graph that meets no gate is one unit, whose overrun is repaid.

Torch's class is changed in place, since torch itself makes graphs of it too; `uninstall` puts back what was there.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import attrs

_CUT = (
    "hasfaas ends and begins a graph capture anew at each gate, so that a replay can yield; here the capture could not end: "
    "join side streams before the next module or hasfaas.gate()"
)


@attrs.define(eq=False)
class _Capture:
    """A capture that is under way: the user's graph, the segment that is being captured, and how they began."""

    graph: Any
    segment: Any
    stream: int
    mode: dict[str, Any]


class GraphGates:
    """Gates before the replays of torch's graphs, and cuts in their captures."""

    def __init__(self, torch: Any, gate: Callable[[], None]) -> None:
        self._torch = torch
        self._gate = gate
        self._class = torch.cuda.CUDAGraph
        self._plain: dict[str, Any] = {}
        self._capture: _Capture | None = None
        # The segments after the first, which is the user's own graph.
        self._segments: WeakKeyDictionary[Any, list[Any]] = WeakKeyDictionary()
        # Graphs that the user wants to see whole (keep_graph=True) are not cut.
        self._kept: WeakSet[Any] = WeakSet()

    def install(self) -> None:
        """From now on."""
        gates = self

        def init(graph: Any, *args: Any, **kwargs: Any) -> None:
            gates._original("__init__")(graph, *args, **kwargs)
            if any(args[:1]) or kwargs.get("keep_graph"):
                gates._kept.add(graph)

        def capture_begin(graph: Any, *args: Any, **kwargs: Any) -> None:
            gates._original("capture_begin")(graph, *args, **kwargs)
            gates._begun(graph, args, kwargs)

        def capture_end(graph: Any) -> None:
            gates._ended(graph)

        def replay(graph: Any) -> None:
            gates._replay(graph)

        def reset(graph: Any) -> None:
            for segment in gates._segments.pop(graph, []):
                gates._original("reset")(segment)
            gates._original("reset")(graph)

        for name, new in (
            ("__init__", init),
            ("capture_begin", capture_begin),
            ("capture_end", capture_end),
            ("replay", replay),
            ("reset", reset),
        ):
            self._plain[name] = vars(self._class).get(name)
            setattr(self._class, name, new)

    def uninstall(self) -> None:
        """Torch's class as it was."""
        for name, plain in self._plain.items():
            if plain is None:
                delattr(self._class, name)
            else:
                setattr(self._class, name, plain)
        self._plain.clear()

    def cut(self) -> None:
        """Ends the segment that is being captured on this thread's stream, and begins the next. Nothing, where none is."""
        capture = self._capture
        if capture is None or capture.graph in self._kept:
            return
        if self._torch.cuda.current_stream().cuda_stream != capture.stream:
            return  # a side stream of the capture: it cannot end here
        try:
            self._end(capture.segment)
        except RuntimeError as exc:
            self._capture = None
            exc.add_note(_CUT)
            raise
        fresh = self._class()
        self._original("capture_begin")(fresh, pool=capture.segment.pool(), **capture.mode)
        self._segments.setdefault(capture.graph, []).append(fresh)
        capture.segment = fresh

    def _begun(self, graph: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        mode = args[1] if len(args) > 1 else kwargs.get("capture_error_mode", "global")
        stream = self._torch.cuda.current_stream().cuda_stream
        self._capture = _Capture(graph, graph, stream, {"capture_error_mode": mode})

    def _ended(self, graph: Any) -> None:
        capture, self._capture = self._capture, None
        if capture is not None and capture.graph is graph and capture.segment is not graph:
            self._end(capture.segment)
        else:
            self._original("capture_end")(graph)

    def _end(self, segment: Any) -> None:
        with warnings.catch_warnings():
            # A segment between two gates that nothing was launched in is empty, and rightly so.
            warnings.filterwarnings("ignore", message="The CUDA Graph is empty")
            self._original("capture_end")(segment)

    def _replay(self, graph: Any) -> None:
        self._gate()
        self._original("replay")(graph)
        for segment in self._segments.get(graph, ()):
            self._gate()
            self._original("replay")(segment)

    def _original(self, name: str) -> Any:
        plain = self._plain[name]
        return plain if plain is not None else getattr(super(self._class, self._class), name)
