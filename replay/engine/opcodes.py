"""The operations that compiler and kernel share. A program is an int64 matrix, one row an operation, `WIDTH` columns.

Column 0 is the operation; the names of the others stand below it. A *cost* takes three: constant ns, table or -1, draw.
*Of* takes two: the first instance of a resource and PER_*, which picks one (`machine.instance`). Ints are ns.
"""

from __future__ import annotations

from typing import Final

from faultreplay.faulttrace.fault_columns import CAUSES

WIDTH: Final = 16

OF: Final = 1  # of: the resource that it uses, if it does
COST: Final = 3  # cost, of every operation that has one; the loop draws it before it looks at what the operation is
COST_TABLE: Final = 4  # -1: not drawn
COST_DRAW: Final = 5
ASLEEP: Final = 15  # with CPUs its own time is slept through from so many ns on; 0: never

# ---- what is not shared: at the slot's own clock
END: Final = 0
DELAY: Final = 1  # cost, and
DELAY_MORE: Final = 6  # up to two other draws
DELAY_DRAWN: Final = 7  # table and draw of each
WAKE: Final = 2  # cost
WAKE_FROM: Final = 1  # of; -1: no wait queue
WAKE_TAIL: Final = 6  # TAIL_*
WAKE_WALKED: Final = 7  # 1: a WALK stands before
WAKE_SECTION: Final = 8  # section + 1, or 0
WAKE_EACH: Final = 9  # for each other thread in it
WAKE_ONCE: Final = 10  # if there is any
RECORDED: Final = 3
RETRY: Final = 4
RETRY_BELOW: Final = 6  # of 65536
RETRY_TARGET: Final = 7  # pc
RETRY_MOST: Final = 8  # times
RETRY_DRAW: Final = 9
UNLESS: Final = 5
UNLESS_MASK: Final = 6  # access bits 1 r, 2 w, 4 x; accessor bits 8 vcpu, 16 vmm, 32 kernel
UNLESS_TARGET: Final = 7  # pc when it does not hold
COMPLETE: Final = 6  # the content is there for the task: end of the fault's latency
START: Final = 7  # the accessor runs: think, then the next fault
RELEASE_ONE: Final = 8  # of a single server, whose next holder may get it ahead of time
COALESCE: Final = 9
COALESCE_WAKE: Final = 6  # pc of the path's wake
COALESCE_SLEEPS: Final = 7  # 1: the accessor sleeps on that wake's queue
COALESCE_SKIPS: Final = 8  # 1: a stream, which leaves what is there or on its way
LEAVE: Final = -1  # section: its own end is known, so that it needs no event
ENDED: Final = -2  # a fault ends: the one place where it is booked

# ---- what is shared: only at the event's own time
SHARED: Final = 10
ACQUIRE: Final = 10  # of; cost of a server that nobody had
ACQUIRE_SINGLE: Final = 6  # 1: there is one server, and when its work ends is known
RELEASE: Final = 11  # of
TRANSFER: Final = 12  # as HOLD, and
TRANSFER_BYTES: Final = 9
SLEEP: Final = 13  # of
WAKE_QUEUE: Final = 14  # as WAKE, of what is shared
DELAY_TIMES: Final = 15  # of what is counted; cost of each
TIMES_WHAT: Final = 6  # TIMES_*
TIMES_MOST: Final = 7
TIMES_HELD: Final = 8  # 1: the hold that comes next is so much longer
ARRIVE: Final = 16  # the fault is taken: page tables and windows are looked at
CPU_DELAY: Final = 17  # as DELAY, on a host CPU that must be had first
RESUME: Final = 18  # where CPUs are counted: the accessor was woken and runs when it has one
HOLD: Final = 19  # of; cost
HOLD_CONTENDED: Final = 6  # cost when somebody has it
ENTER: Final = 20  # section; cost of a delay that follows at once
SECTION: Final = 6  # also of LEAVE and LEAVE_NOW
ENTER_EACH: Final = 7  # for each other thread inside
ENTER_ONCE: Final = 8  # if there is any
ENTER_WAKES: Final = 9  # 1: it is its wake that is slower, after a walk
ENTER_LEAVES: Final = 10  # 1: and is left after the delay
WALK: Final = 21  # of the lock, -1: none; cost of each other sleeper; HOLD_CONTENDED
WALK_ALONE: Final = 9  # ns for which the lock is held besides
WALK_QUEUE: Final = 10  # of
WALK_COLD: Final = 12  # ns more for one whose entry is cold
WALK_READERS: Final = 13
LEAVE_NOW: Final = 22  # as LEAVE, where CPUs are counted and the end is not known ahead
CPU_RECORDED: Final = 23  # as RECORDED, on a host CPU
READ: Final = 24  # of; cost of a request: from storage, through the page cache; always ASLEEP
READ_HIT: Final = 6  # pc where the page cache had it all; else the cost of having waited stands before it
READ_BEFORE: Final = 7  # native pages that a request brings before the first one
READ_AFTER: Final = 8  # and from it on
READ_OVER: Final = 9  # native pages of the aligned range that must be there; 0: the granule
READ_DEVICE: Final = 10
READ_PAGE_PS: Final = 11  # ps of one native page; 0: no limit
READ_PAGE_BYTES: Final = 12
READ_ONWARD: Final = 13  # native pages that are read on where a mark is found; 0: no marks
AROUND: Final = 25  # cost of each neighbour
AROUND_PAGES: Final = 6  # native pages of the aligned range
AROUND_CACHED: Final = 7  # 1: only what the page cache has
AROUND_DEVICE: Final = 8
AROUND_MARKS: Final = 9  # 1: they are there afterwards; 0: only the work is done

# ---- where every program begins
PC_ARRIVE: Final = 0
PC_START: Final = 1
PC_NOTHING: Final = 2  # a path that costs nothing: wake at once
PC_END: Final = 3
PC_RESUME: Final = 4  # behind the wake and the end of that path
PC_ENDED: Final = 5

# rows of path_pc behind one for each cause
PATH_WINDOW: Final = len(CAUSES) - 1  # a cause, the last one
PATH_REWRITE: Final = len(CAUSES)
PATH_PRESENT: Final = len(CAUSES) + 1
PATH_REFAULT: Final = len(CAUSES) + 2
PATH_STREAMS: Final = len(CAUSES) + 3  # and one for each stream

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
