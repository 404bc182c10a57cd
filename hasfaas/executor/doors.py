"""A door stands in front of one torch module, as the instance's own `forward`, and lets each call through.

Hooks would not do: torch's fused transformer path leaves the hooks of submodules out silently, or is turned
off by them. A door costs nothing when it is closed: the attribute is gone. A compiler does not see it, and a
copied or pickled module has none.
"""

from __future__ import annotations

import copy
import functools
import operator
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


class Door:
    """Before one module: closed (not there), open and timed, or open and gated.

    `timed(door, args, kwargs)` makes a timed call through `forward`; `gate` is called before a gated one. A
    call from a thread that did not open the door is neither.
    """

    def __init__(
        self,
        path: str,
        module: nn.Module,
        timed: Callable[[Door, Any, Any], Any],
        gate: Callable[[], None],
    ) -> None:
        import torch

        self.path = path
        self.module = module
        self.active = False
        self.gated = False
        self.forward: Callable[..., Any] = module.forward
        self._timed = timed
        self._gate = gate
        self._slot = "forward"
        self._had = self._open = self._installed = False
        self._thread = 0
        self._is_compiling = torch.compiler.is_compiling

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # The compiler is asked first: while it traces, this is a constant, and it does not see what follows.
        if self._is_compiling() or not self._open or threading.get_ident() != self._thread:
            return self.forward(*args, **kwargs)
        if not self.gated:
            return self._timed(self, args, kwargs)
        self._gate()
        return self.forward(*args, **kwargs)

    def open(self, *, gated: bool) -> None:
        """Stands in front of the module from now on, for calls from this thread."""
        self.gated = gated
        self._thread = threading.get_ident()
        self._open = True
        if not self._installed:
            # After `module.compile()` torch calls this attribute and traces the `forward` below it.
            self._slot = "_compiled_call_impl" if is_compiled(self.module) else "forward"
            self.forward = getattr(self.module, self._slot)
            functools.update_wrapper(self, self.forward, updated=())  # libraries look at its signature
            attributes = vars(self.module)
            self._had = self._slot in attributes
            attributes[self._slot] = self
            self._installed = True

    def close(self) -> None:
        """Puts back what was there. If somebody has wrapped or replaced us, we only let calls through."""
        self._open = self.gated = False
        attributes = vars(self.module)
        if attributes.get(self._slot) is self:
            self._installed = False
            if self._had:
                attributes[self._slot] = self.forward
            else:
                del attributes[self._slot]

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy of the module calls itself, not the original, and has no gates."""
        twin = memo.get(id(self.module))
        if self._had or twin is None:
            return copy.deepcopy(self.forward, memo)
        return type(self.module).forward.__get__(twin)

    def __reduce__(self) -> tuple[Any, ...]:
        """A pickled module has no gates, and needs nothing of ours to be loaded."""
        if self._had:
            return operator.itemgetter(0), ((self.forward,),)
        return getattr, (self.module, "forward")  # it is still bare when this runs: its class's own


def is_compiled(module: nn.Module) -> bool:
    """Whether `module.compile()` was called on it."""
    return getattr(module, "_compiled_call_impl", None) is not None


def is_opaque(module: nn.Module) -> bool:
    """Compiled and scripted modules: what they call inside is not ours to stand in front of."""
    import torch

    scripted = isinstance(module, torch.jit.ScriptModule)
    return scripted or is_compiled(module) or "_orig_mod" in module._modules  # what torch.compile returns


def members(path: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The module and all below it, once each, by path; nothing below an opaque one."""
    seen = {id(module)}
    waiting = deque([(path, module)])
    while waiting:
        path, module = waiting.popleft()
        yield path, module
        for name, child in () if is_opaque(module) else module.named_children():
            if id(child) not in seen:
                seen.add(id(child))
                waiting.append((f"{path}.{name}", child))
