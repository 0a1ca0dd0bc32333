"""Ask for memory before it is needed: each accessor reads its faults in order, too many streams for the processor."""

from __future__ import annotations

from typing import Any, Final

import numba
from llvmlite import ir  # type: ignore[import-untyped]
from numba.extending import intrinsic

PREFETCH_ROWS: Final = 16
"""How many rows ahead: two cache lines of times."""


@intrinsic  # type: ignore[untyped-decorator]
def prefetch(_typing: Any, array: Any, index: Any) -> Any:
    """Fetch the cache line of ``array[index]``, one-dimensional; an index outside does nothing."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        byte = ir.IntType(8).as_pointer()
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        function = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        address = builder.bitcast(builder.gep(data, [arguments[1]]), byte)
        builder.call(function, [address, number(0), number(3), number(1)])  # for reading, to all caches, data
        return context.get_dummy_value()

    return numba.types.void(array, index), lower


def _nothing(array: Any, index: Any) -> None:
    """Uncompiled."""


if numba.config.DISABLE_JIT:
    prefetch = _nothing
