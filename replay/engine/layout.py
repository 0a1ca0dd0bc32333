"""The arrays of the compiled loop: every column, status code and special slot, once for the engine and the kernel.

All of them are int64, times in ns from the beginning of the run. What the columns of a program are: `opcodes`.
"""

from __future__ import annotations

from typing import Final

INF: Final = 1 << 62
"""No event; a time that is not known yet."""

NEVER: Final = -1
"""Of a granule: nobody has asked for it."""

REWRITE: Final = 1 << 32
"""In A_REFAULTS one write to a page that was read counts so much, beside faults on emptied stage 2 that count 1."""

# ---- a slot: one fault under way, or what goes on of it after its wake
PC: Final = 0  # the operation it goes on with
CLOCK: Final = 1  # how far it is, ns; may be ahead of the event
ROW: Final = 2  # row of the fault; -1: a refault, or the end of the recording
DRAW: Final = 3  # what its random costs are drawn from: the row, and the attempt << 40
SINCE: Final = 4  # when the fault began
NEXT: Final = 5  # the slot behind it in a queue, or that joined the same granule; -1: none
WHO: Final = 6  # accessor
TRY: Final = 7  # attempts that were in vain
SLOT_COLUMNS: Final = 8

# ---- special slots, before the accessors'
SLOT_WINDOW: Final = 0
SLOT_SOURCE: Final = 1  # the open-loop source
SLOT_PUSH: Final = 2  # the background stream
SPECIAL_SLOTS: Final = 4

# ---- a resource instance: eight of state, of which the engine sets R_SERVERS, then what is reported
R_FREE: Final = 0  # servers
R_FREE_AT: Final = 1  # when the last one was or will be given back; of a link: when all that was asked for is through
R_HEAD: Final = 2  # first slot that waits, -1: none
R_TAIL: Final = 3  # last one
R_QUEUED: Final = 4  # how many wait
R_BEGIN: Final = 5  # when the last hold that had to be waited for began or will begin
R_SLEEPERS: Final = 6  # of a wait queue
R_SERVERS: Final = 7
R_BUSY: Final = 8  # ns
R_ACQUIRED: Final = 9
R_WAIT: Final = 10  # ns
R_MAX_QUEUE: Final = 11
R_BYTES: Final = 12
R_SLOTS: Final = 13  # of a storage: ns that its places were taken, added up
R_COLUMNS: Final = 16

# ---- an accessor: eight of state, of which the engine sets the first five, then what is reported
A_KIND: Final = 0  # index in `schema.ACCESSORS`
A_FIRST: Final = 1  # its rows: from here
A_NEXT: Final = 2  # the next one
A_STOP: Final = 3  # to here
A_LEFT: Final = 4  # think time left when a window interrupted it, ns; -1: all of it
A_RESUME: Final = 5  # when it last went on, or will
A_TOUCHED: Final = 6  # granules it touched
A_REFAULTS: Final = 7  # faults on these that it still has to take again; see REWRITE
S_STALL: Final = 8  # ns, of recorded faults
S_STOPPED: Final = 9  # ns, by windows
S_REFAULT_NS: Final = 10
S_REFAULTED: Final = 11
S_FAULTS: Final = 12
S_END: Final = 13  # when it was through
A_TAIL: Final = 14  # from its last resume to the end of the recording, ns
A_HOME: Final = 15  # the CPU it is pinned to, modulo their number, where they are pinned
A_VM: Final = 16  # of several
A_COLUMNS: Final = 17

# ---- a window
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

# ---- the window that is open, or was the last; all -1 before
NOW_BEGIN: Final = 0
NOW_END: Final = 1
NOW_STOPS: Final = 2  # as W_STOPS and the two behind it
NOW_BLOCKS_ALL: Final = 3
NOW_BLOCKS_WRITES: Final = 4
NOW_COLUMNS: Final = 5

# ---- the background stream: one row
P_LINK: Final = 0  # link instance
P_ON_LINK: Final = 1  # ns of one granule on it
P_PLACED: Final = 2  # ns from the end of its transfer until it is there
P_BACKLOG: Final = 3  # no more of the link is taken ahead than this, ns
P_BYTES: Final = 4
P_COLUMNS: Final = 5

# ---- flags of a fault
TRACKED: Final = 1  # the granule is touched more than once (or may be pushed): look it up
FIRST_TOUCH: Final = 2  # the accessor's first fault on this granule

# ---- with host CPUs: a slot
T_LEFT: Final = 0  # work still to do, ns
T_STATE: Final = 1  # AWAY, ON or WAITS
T_BEGAN: Final = 2  # since when this stretch counts
T_NEXT: Final = 3  # the next in the run queue
T_QUEUE: Final = 4  # run queue
T_WHO: Final = 5  # thread
T_NAPPED: Final = 6  # the row whose sleep in think time is over, + 1
T_SLOWER: Final = 7  # what its wake is slower by, counted when the walk began, ns
T_FIRM: Final = 8  # whether this work is done without being preempted
T_COLUMNS: Final = 9
AWAY: Final = 0
ON: Final = 1  # on a CPU
WAITS: Final = 2  # for one
# a thread
V_RUNTIME: Final = 0  # virtual runtime
V_LAG: Final = 1  # when it last slept
V_DEADLINE: Final = 2
V_SLEPT: Final = 3  # when it last slept
V_HOME: Final = 4  # run queue it wakes in
V_COLUMNS: Final = 5
# a run queue
Q_FREE: Final = 0  # CPUs
Q_HEAD: Final = 1  # first of those who wait
Q_WORK: Final = 2  # done, ns
Q_TIME: Final = 3  # V when somebody was last picked
Q_PICKED: Final = 4  # when that was
Q_RESCHED: Final = 5  # whether to pick anew
Q_COLUMNS: Final = 6

# ---- how a run ended
STATUS_OK: Final = 0
STATUS_MORE_SLOTS: Final = 1  # run again with more
STATUS_TIME: Final = 2  # past what event times can count
STATUS_STUCK: Final = 3  # events, but no fault ends
STATUS_STOPPED: Final = 4  # at `until`, with something left to do
STATUS_SLICES: Final = 5  # CPUs work for far longer than faults take

SPENT_COLUMNS: Final = 4
"""Of what the kernel counts for each operation: see `compiler.Share`."""

HISTOGRAM_BINS: Final = 64 * 32
