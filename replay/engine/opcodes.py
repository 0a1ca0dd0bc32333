"""The numbers that compiler and kernel share. A program is an int64 matrix, one row an operation, `WIDTH` columns."""

from __future__ import annotations

from typing import Final

WIDTH: Final = 16

# column 0; the others are named beside each operation. `per` picks the instance: see PER_*.
END: Final = 0
DELAY: Final = 1  # const_ns, number of draws up to 3, then table and draw of each
WAKE: Final = 2
# const_ns, table, draw, wait queue instance or -1, per, walk const_ns, walk table, walk draw, tail (TAIL_*), walked
# before, section + 1 or 0, ns for each other thread in it, ns once if there is any
RECORDED: Final = 3  # from how many ns on it was asleep, where CPUs are counted
RETRY: Final = 4  # threshold of 65536, target pc, most times, draw
UNLESS: Final = 5  # condition mask, target pc when it does not hold
COMPLETE: Final = 6  # the content is there for the task: end of the fault's latency
START: Final = 7  # the accessor runs: think, then the next fault
RELEASE_ONE: Final = 8  # instance, per: of a single server, whose next holder may be told ahead of time
COALESCE: Final = 9  # pc of the path's wake, 1: the accessor sleeps on that wake's queue
# from here on what is shared is touched: only at the event's own time
SHARED: Final = 10
ACQUIRE: Final = 10  # instance, per, idle const_ns, idle table, idle draw, single server
RELEASE: Final = 11  # instance, per
TRANSFER: Final = 12  # link instance, per, ns, bytes
SLEEP: Final = 13  # wait queue instance, per
WAKE_QUEUE: Final = 14  # as WAKE, from a wait queue
DELAY_TIMES: Final = 15  # const_ns, table, draw, what (TIMES_*), instance, per, most
CPU_DELAY: Final = 17  # as DELAY, on a host CPU that must be had first; column 9: asleep from so many ns on (0: never)
ARRIVE: Final = 16  # the fault is taken: page tables and windows are looked at
RESUME: Final = 18  # where CPUs are counted: the accessor was woken and runs when it has one

LEAVE: Final = -1  # section: its own end is known, so that it needs no event
HOLD: Final = 19
# lock, per, cost alone (const_ns, table, draw), cost contended (the same), what is counted (TIMES_* or 0), its
# instance, per, most, ns of each
ENTER: Final = 20  # section, ns for each other thread inside, ns once if there is any
WALK: Final = 21
# wait queue, per, lock or -1, per, ns alone, ns contended, walk (const_ns, table, draw), ns more for a cold
# entry, readers
LEAVE_NOW: Final = 22  # as LEAVE, where CPUs are counted and the end is not known ahead

PC_ARRIVE: Final = 0
PC_START: Final = 1
PC_NOTHING: Final = 2  # a path that costs nothing: wake at once
PC_END: Final = 3
PC_RESUME: Final = 4  # behind the wake and the end of that path

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

# UNLESS: access bits 1 r, 2 w, 4 x; accessor bits 8 vcpu, 16 vmm, 32 kernel

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

# columns of a resource instance: eight of state, of which the engine sets the last, then what is reported
R_FREE: Final = 0  # servers
R_FREE_AT: Final = 1  # when the last one was or will be given back; of a link: when all that was asked for is through
R_QUEUED: Final = 4  # who waits
R_BEGIN: Final = 5  # when the last hold that had to be waited for began or will begin
R_SLEEPERS: Final = 6  # of a wait queue
R_SERVERS: Final = 7
R_BUSY: Final = 8
R_ACQUIRED: Final = 9
R_WAIT: Final = 10
R_MAX_QUEUE: Final = 11
R_BYTES: Final = 12
R_COLUMNS: Final = 16

# columns of an accessor: eight of state, of which the engine sets these, then what is reported
A_KIND: Final = 0
A_FIRST: Final = 1
A_NEXT: Final = 2
A_STOP: Final = 3
A_LEFT: Final = 4  # think time left when a window interrupted it; -1: all of it
S_STALL: Final = 8
S_STOPPED: Final = 9
S_REFAULT_NS: Final = 10
S_REFAULTED: Final = 11
S_FAULTS: Final = 12
S_END: Final = 13
A_TAIL: Final = 14  # from its last resume to the end of the recording
A_COLUMNS: Final = 16

# special slots before the accessors'
SLOT_WINDOW: Final = 0
SLOT_SOURCE: Final = 1
SLOT_PUSH: Final = 2
SPECIAL_SLOTS: Final = 4

STATUS_OK: Final = 0
STATUS_MORE_SLOTS: Final = 1
STATUS_TIME: Final = 2
STATUS_STUCK: Final = 3
STATUS_STOPPED: Final = 4  # at `until`, with something left to do

SPENT_COLUMNS: Final = 4
"""Of what the kernel counts for each operation: see `compiler.Share`."""

HISTOGRAM_BINS: Final = 64 * 32

SLEEPS_FROM_NS: Final = 5_000
"""Nobody sleeps through less: it is over before the CPU has been given away (`asleep = true`, recorded stalls)."""
