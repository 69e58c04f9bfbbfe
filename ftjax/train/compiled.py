"""A jitted function that counts: one executable a batch shape, with compile time and memory."""

import time
from collections.abc import Callable
from typing import Any

import jax


class Compiled:
    """Calls `f(state, frozen, batch, key)`, compiling once for each set of batch shapes."""

    def __init__(self, f: Callable[..., Any], **jit_options: Any):
        self._jit = jax.jit(f, **jit_options)
        self._executables: dict[tuple, Any] = {}
        self.seconds = 0.0
        self.memory_bytes = 0

    @property
    def count(self) -> int:
        """Compiles so far."""
        return len(self._executables)

    def __call__(self, state: Any, frozen: Any, batch: Any, key: jax.Array) -> Any:
        shapes = tuple((name, x.shape) for name, x in sorted(batch.items()))
        if shapes not in self._executables:
            started = time.perf_counter()
            executable = self._jit.lower(state, frozen, batch, key).compile()
            self.seconds += time.perf_counter() - started
            self._executables[shapes] = executable
            memory = executable.memory_analysis()
            if memory is not None:
                size = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
                self.memory_bytes = max(self.memory_bytes, size - memory.alias_size_in_bytes)
        return self._executables[shapes](state, frozen, batch, key)
