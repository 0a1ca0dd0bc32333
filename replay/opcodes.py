"""The numbers that compiler and kernel share. A program is an int64 matrix, one row an operation, `WIDTH` columns."""

from __future__ import annotations

from typing import Final

WIDTH: Final = 10

# column 0; the others are named beside each operation. `per` picks the instance: see PER_*.
END: Final = 0
DELAY: Final = 1  # const_ns, table, draw
DELAY_TIMES: Final = 2  # const_ns, table, draw, what (TIMES_*), instance, per
ACQUIRE: Final = 3  # instance, per, idle const_ns, idle table, idle draw, single server
RELEASE: Final = 4  # instance, per, single server
TRANSFER: Final = 5  # link instance, per, ns
SLEEP: Final = 6  # wait queue instance, per
COALESCE: Final = 7  # pc of the path's wake
WAKE: Final = (
    8  # const_ns, table, draw, wait queue instance or -1, per, walk const_ns, walk table, walk draw, has a tail
)
RECORDED: Final = 9
RETRY: Final = 10  # threshold of 65536, target pc, most times, draw
UNLESS: Final = 11  # condition mask, target pc when it does not hold
COMPLETE: Final = 12  # the content is there for the task: end of the fault's latency
ARRIVE: Final = 13  # the fault is taken: page tables and windows are looked at
START: Final = 14  # the accessor runs: think, then the next fault

PC_ARRIVE: Final = 0
PC_START: Final = 1
PC_NOTHING: Final = 2  # a path that costs nothing: wake at once
FIRST_FREE_PC: Final = 4

PER_VM: Final = 0
PER_ACCESSOR: Final = 1
PER_SHARD: Final = 2

TIMES_WAITERS: Final = 1
TIMES_IDLE: Final = 2

# UNLESS: access bits 1 r, 2 w, 4 x; accessor bits 8 vcpu, 16 vmm, 32 kernel
ACCESS_BIT: Final = {"r": 1, "w": 2, "x": 4}
ACCESSOR_BIT: Final = {"vcpu": 8, "vmm": 16, "kernel": 32}

# row flags
TRACKED: Final = 1  # the granule is touched more than once (or may be pushed): look it up
FIRST_TOUCH: Final = 2  # the accessor's first fault on this granule

# columns of the window matrix
W_START: Final = 0
W_LENGTH: Final = 1
W_ENTER: Final = 2
W_ENTER_PER_PAGE_PS: Final = 3  # picoseconds: a page costs less than a ns on some hosts
W_LEAVE: Final = 4
W_LEAVE_PER_PAGE_PS: Final = 5
W_RESUME: Final = 6
W_STOPS: Final = 7  # bit per accessor kind: cannot run
W_BLOCKS_ALL: Final = 8  # bit per accessor kind: its accesses wait
W_BLOCKS_WRITES: Final = 9
W_EMPTIES: Final = 10  # 1: stage 2 is empty afterwards
W_RETOUCH: Final = 11  # 1: what was touched is touched again at once
W_COLUMNS: Final = 12

# columns of the statistics of a resource instance
R_BUSY_NS: Final = 0
R_ACQUIRED: Final = 1
R_WAIT_NS: Final = 2
R_MAX_QUEUE: Final = 3
R_BYTES: Final = 4
R_COLUMNS: Final = 5

# special slots before the accessors'
SLOT_WINDOW: Final = 0
SLOT_SOURCE: Final = 1
SLOT_PUSH: Final = 2
FIRST_SLOT: Final = 4

STATUS_OK: Final = 0
STATUS_MORE_SLOTS: Final = 1
STATUS_TIME: Final = 2

HISTOGRAM_BINS: Final = 64 * 32
