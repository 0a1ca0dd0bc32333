"""The operations that compiler and kernel share. A program is an int64 matrix, one row an operation, `WIDTH` columns.

Column 0 is the operation; the names of the others stand below it. A *cost* takes three: constant ns, table or -1, draw.
*Of* takes two: the first instance of a resource and PER_*, which picks one. Ints are ns unless said.
"""

from __future__ import annotations

from typing import Final

WIDTH: Final = 16

# ---- what is not shared: at the slot's own clock
END: Final = 0
DELAY: Final = 1
DELAY_NS: Final = 1
DELAY_DRAWS: Final = 2  # up to 3
DELAY_FIRST: Final = 3  # table and draw of each
DELAY_ASLEEP: Final = 9  # of CPU_DELAY: asleep from so many ns on; 0: never
WAKE: Final = 2
WAKE_COST: Final = 1
WAKE_FROM: Final = 4  # of; -1: no wait queue
WAKE_WALK: Final = 6  # cost of each other sleeper
WAKE_TAIL: Final = 9  # TAIL_*
WAKE_WALKED: Final = 10  # 1: a WALK stands before
WAKE_SECTION: Final = 11  # section + 1, or 0
WAKE_EACH: Final = 12  # for each other thread in it
WAKE_ONCE: Final = 13  # if there is any
RECORDED: Final = 3
RECORDED_ASLEEP: Final = 1  # where CPUs are counted it was asleep from so many ns on
RETRY: Final = 4
RETRY_BELOW: Final = 1  # of 65536
RETRY_TARGET: Final = 2  # pc
RETRY_MOST: Final = 3  # times
RETRY_DRAW: Final = 4
UNLESS: Final = 5
UNLESS_MASK: Final = 1  # access bits 1 r, 2 w, 4 x; accessor bits 8 vcpu, 16 vmm, 32 kernel
UNLESS_TARGET: Final = 2  # pc when it does not hold
COMPLETE: Final = 6  # the content is there for the task: end of the fault's latency
START: Final = 7  # the accessor runs: think, then the next fault
RELEASE_ONE: Final = 8  # of a single server, whose next holder may be told ahead of time
COALESCE: Final = 9
COALESCE_WAKE: Final = 1  # pc of the path's wake
COALESCE_SLEEPS: Final = 2  # 1: the accessor sleeps on that wake's queue
LEAVE: Final = -1  # section: its own end is known, so that it needs no event
ENDED: Final = -2  # a fault ends: the one place where it is booked

# ---- what is shared: only at the event's own time
SHARED: Final = 10
OF: Final = 1
OF_PER: Final = 2
ACQUIRE: Final = 10  # of
ACQUIRE_IDLE: Final = 3  # cost of a server that nobody had
ACQUIRE_SINGLE: Final = 6  # 1: there is one server, and when its work ends is known
RELEASE: Final = 11  # of
TRANSFER: Final = 12  # of
TRANSFER_NS: Final = 3
TRANSFER_BYTES: Final = 4
SLEEP: Final = 13  # of
WAKE_QUEUE: Final = 14  # as WAKE, from a wait queue
DELAY_TIMES: Final = 15
TIMES_COST: Final = 1
TIMES_WHAT: Final = 4  # TIMES_*
TIMES_OF: Final = 5  # of
TIMES_MOST: Final = 7
ARRIVE: Final = 16  # the fault is taken: page tables and windows are looked at
CPU_DELAY: Final = 17  # as DELAY, on a host CPU that must be had first
RESUME: Final = 18  # where CPUs are counted: the accessor was woken and runs when it has one
HOLD: Final = 19  # of
HOLD_ALONE: Final = 3  # cost
HOLD_CONTENDED: Final = 6  # cost when somebody has it
HOLD_WHAT: Final = 9  # TIMES_* of what is counted, or 0
HOLD_OF: Final = 10  # of
HOLD_MOST: Final = 12
HOLD_EACH: Final = 13
ENTER: Final = 20
SECTION: Final = 1  # also of LEAVE and LEAVE_NOW
ENTER_EACH: Final = 2  # for each other thread inside
ENTER_ONCE: Final = 3  # if there is any
WALK: Final = 21  # of
WALK_LOCK: Final = 3  # of; -1: none
WALK_ALONE: Final = 5
WALK_CONTENDED: Final = 6
WALK_COST: Final = 7  # cost of each other sleeper
WALK_COLD: Final = 10  # more for one whose entry is cold
WALK_READERS: Final = 11
LEAVE_NOW: Final = 22  # as LEAVE, where CPUs are counted and the end is not known ahead

# ---- where every program begins
PC_ARRIVE: Final = 0
PC_START: Final = 1
PC_NOTHING: Final = 2  # a path that costs nothing: wake at once
PC_END: Final = 3
PC_RESUME: Final = 4  # behind the wake and the end of that path
PC_ENDED: Final = 5

TAIL_NONE: Final = 0
TAIL_SIMPLE: Final = 1  # delays and releases of single servers
TAIL_ANY: Final = 2
TAIL_AWAKE: Final = 3  # nothing, and the accessor had not slept: the way back to the guest is its own work

PER_VM: Final = 0
PER_ACCESSOR: Final = 1
PER_SHARD: Final = 2

TIMES_WAITERS: Final = 1
TIMES_IDLE: Final = 2
TIMES_SPARE: Final = 3  # idle servers but the one that takes this fault

SLEEPS_FROM_NS: Final = 5_000
"""Nobody sleeps through less: it is over before the CPU has been given away (`asleep = true`, recorded stalls)."""
