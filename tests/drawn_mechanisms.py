"""Mechanism files drawn by hypothesis: every kind of stage, resource and table, together, in any order that is allowed.

What the language refuses is not drawn: a wake for each path, what is acquired is released in the same conditions, pools
are taken in one order (two paths that take them in two would wait for each other, which is another test's).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from hypothesis import strategies as st
from made_mechanisms import HEAD

Draw = Callable[[Any], Any]

COSTS: Final = (
    "fault_entry",
    "reader_wakeup",
    "resolve",
    "fetch",
    "wake",
    "lock",
    "preempt",
    "0ns",
    "700ns",
    "$spin",
    "3 * $spin",
)
POOLS: Final = ("pool", "task")
LOCKS: Final = ("spin", "own")
PATHS: Final = ("missing", "minor", "stage2", "exit", "write-protect", "major-host", "refault", "rewrite")
_PER: Final = ("vm", "accessor", "shard")
_WHEN: Final = ('when = "write"', 'when = ["read", "vmm"]', 'when = "vcpu"')


@st.composite
def mechanisms(draw: Draw) -> str:
    """The text of a mechanism file."""
    per = {name: draw(st.sampled_from(_PER)) for name in (*POOLS, *LOCKS, "wire", "queue")}
    joins = draw(st.booleans())
    if joins and per["queue"] == "accessor":
        per["queue"] = "vm"  # else who joins sleeps where the owner's wake does not look
    push = draw(st.integers(0, 5)) == 0
    if push:
        per["wire"] = "vm"
    granule = draw(st.sampled_from(("4K", "4K", "64K", "2M")))
    text = HEAD.replace('granule = "4K"', f'granule = "{granule}"')
    files = draw(st.booleans())
    brings = _Brings(files, files and granule == "4K")
    text += f"shards = {draw(st.integers(1, 4))}\n"
    served = draw(st.sampled_from((("vcpu", "vmm", "kernel"), ("vcpu",), ("vcpu", "kernel"))))
    text += f"serves = {list(served)}\n".replace("'", '"')
    text += _resources(draw, per, push) + (_storage(draw) if files else "")
    if "vmm" not in served and draw(st.booleans()):
        text += f'[fallback]\nvmm = "{draw(st.sampled_from(("uffd-missing", "host-lazy", "kvm-exit")))}"\n'
    names = ["missing", *draw(st.lists(st.sampled_from(PATHS[1:]), max_size=3, unique=True))]
    for name in names:
        text += "".join(f"[[paths.{name}]]\n{stage}\n" for stage in draw(_paths(joins and name == "missing", brings)))
    if "minor" not in names:
        text += '[classes]\nminor = "missing"\n'
    for number in range(draw(st.integers(0, 2)) if files else 0):
        text += _stream(draw, f"bring{number}", granule)
    if draw(st.booleans()):
        text += _window(draw)
    if push:
        order, backlog = draw(st.sampled_from(("address", "recorded"))), draw(st.sampled_from((0, 65536)))
        text += f'[push]\nlink = "wire"\norder = "{order}"\nbacklog = {backlog}\nlatency = "resolve"\n'
    return text + _params(text)


def _params(text: str) -> str:
    """Those that are used."""
    spin = '[params.spin]\ndefault = "2us"\nmin = 0\nmax = "1ms"\nunit = "ns"\nhelp = "h"\n'
    servers = '[params.servers]\ndefault = 2\nmin = 0\nmax = 8\nunit = "threads"\nhelp = "0: no limit"\n'
    return servers + (spin if "$spin" in text else "")


def _resources(draw: Draw, per: dict[str, str], push: bool) -> str:
    text = f'[resources.pool]\nkind = "servers"\nservers = "$servers"\nper = "{per["pool"]}"\n'
    text += f'[resources.task]\nkind = "servers"\nservers = {draw(st.integers(1, 3))}\nper = "{per["task"]}"\n'
    text += f'[resources.queue]\nkind = "waitqueue"\nper = "{per["queue"]}"\n'
    for name in LOCKS:
        text += f'[resources.{name}]\nkind = "lock"\nper = "{per[name]}"\n'
    bandwidth = draw(st.sampled_from((0, 10**6, 10**9)[int(push) :]))  # a stream needs a limit
    text += f'[resources.wire]\nkind = "link"\nbandwidth = {bandwidth}\nper = "{per["wire"]}"\n'
    return text + '[resources.mm]\nkind = "section"\n'


class _Brings(NamedTuple):
    """What paths may have that comes from files."""

    reads: bool
    around: bool
    """neighbours are single pages: only where a granule is one"""


def _storage(draw: Draw) -> str:
    text = f'[resources.disk]\nkind = "storage"\nlatency = "{draw(st.sampled_from(("storage_read", "0ns", "7us")))}"\n'
    text += f"bandwidth = {draw(st.sampled_from((0, 10**7, 10**9)))}\ndepth = {draw(st.sampled_from((0, 1, 3)))}\n"
    text += f'readahead = "{draw(st.sampled_from(("0", "4K", "64K", "8M")))}"\n'
    text += f"onward = {draw(st.sampled_from(('true', 'false')))}\nleft = {draw(st.integers(0, 1))}\n"
    return text + f"cached = {draw(st.sampled_from((0, 0.3, 1)))}\n"


def _read(draw: Draw) -> str:
    over = draw(st.sampled_from(("", "", '\nover = "64K"', '\nahead = "128K"')))
    miss = draw(st.sampled_from(("", '\nmiss = "major_fault"', '\nmiss = "7us"')))
    return f'read = "disk"{over}{miss}'


def _around(draw: Draw) -> str:
    size = draw(st.sampled_from(("8K", "64K", "2M")))
    each = draw(st.sampled_from(("map_around", "0ns", "resolve_per_page")))
    return f'around = "{size}"\neach = "{each}"' + draw(st.sampled_from(("", "\ncached = true"))) + _when(draw)


def _stream(draw: Draw, name: str, granule: str) -> str:
    """A stream and its path: it reads, it may place what it read, it wakes nobody."""
    stages = [_read(draw)] if draw(st.booleans()) else []
    packed = False
    if draw(st.booleans()):
        stages.append('coalesce = "skip"')
        packed = draw(st.booleans())
    elif granule == "4K" and draw(st.booleans()):
        stages.append(_around(draw))
    stages += [f'delay = "{draw(st.sampled_from(COSTS[:7]))}"{_asleep(draw)}', 'wake = "0ns"']
    text = "".join(f"[[paths.{name}]]\n{stage}\n" for stage in stages)
    which, order = draw(st.sampled_from((("working-set", "recorded"), ("working-set", "address"), ("all", "address"))))
    text += f'[[streams]]\npath = "{name}"\nset = "{which}"\norder = "{order}"\nservers = {draw(st.integers(1, 3))}\n'
    if packed:
        text += "packed = true\n"
    elif draw(st.booleans()):
        text += 'chunk = "2M"\n'
    return text + f"before = {draw(st.sampled_from(('true', 'false')))}\n"


@st.composite
def _paths(draw: Draw, joins: bool, brings: _Brings) -> list[str]:  # noqa: PLR0912 - one branch a verb
    """One path. `joins`: later faults on a granule join the first."""
    stages = [f'delay = "{draw(st.sampled_from(COSTS))}"{_when(draw)}']
    sleeps = draw(st.booleans())
    if sleeps:
        stages.append('sleep = "queue"')
    if joins:
        stages.append('coalesce = "join"')
    held: dict[str, str] = {}
    inside, label = "", 0
    for _ in range(draw(st.integers(0, 8))):
        verbs = ("delay", "hold", "acquire", "release", "section", "wire", "retry", "recorded", "read", "around")
        match draw(st.sampled_from(verbs)):
            case "delay":
                stages.append(_delay(draw))
            case "hold":
                stages.append(_hold(draw))
            case "acquire":
                free = [pool for pool in POOLS if pool not in held]
                if free and list(held) == list(POOLS[: len(held)]):
                    held[free[0]] = "" if sleeps else _when(draw)
                    idle = '\nidle = "reader_wakeup"' if draw(st.booleans()) else ""
                    stages.append(f'acquire = "{free[0]}"{idle}{held[free[0]]}')
            case "release" if held:
                name = list(held)[-1]
                stages.append(f'release = "{name}"{held.pop(name)}')
            case "section":
                slowed = draw(st.sampled_from(("", '\neach = "mm_share"', '\neach = "mm_share"\nonce = "mm_once"')))
                stages.append('leave = "mm"' if inside else f'enter = "mm"{slowed}')
                inside = "" if inside else "mm"
            case "wire":
                latency = draw(st.sampled_from(("", '\nlatency = "reader_wakeup"', "\nbytes = 777")))
                stages.append(f'transfer = "wire"{latency}{_when(draw)}')
            case "retry" if label < 3:
                label += 1
                chance, most = draw(st.sampled_from((0.0, 0.3, 1.0))), draw(st.integers(1, 3))
                stages += [f'delay = "resolve"\nlabel = "l{label}"', _delay(draw)]
                stages.append(f'retry = "l{label}"\nchance = {chance}\nmost = {most}')
            case "recorded":
                stages.append("recorded = true")
            case "read" if brings.reads:
                stages.append(_read(draw) + _when(draw))
            case "around" if brings.around:
                stages.append(_around(draw))
    if inside:
        stages.append('leave = "mm"')
    tail = not sleeps and draw(st.booleans())
    stages.append(_wake(draw, sleeps, last=not tail and not held))
    if tail:
        stages += [f'delay = "fetch"{_asleep(draw)}', "complete = true"]
    if held and draw(st.booleans()):
        stages.append('delay = "handler_loop"')
    return stages + [f'release = "{name}"{held[name]}' for name in reversed(held)]


def _when(draw: Draw) -> str:
    return f"\n{draw(st.sampled_from(_WHEN))}" if draw(st.integers(0, 4)) == 0 else ""


def _asleep(draw: Draw) -> str:
    return str(draw(st.sampled_from(("", "\nasleep = true", '\nasleep = "$spin"', '\nasleep = "5us"'))))


def _delay(draw: Draw) -> str:
    times = draw(
        st.sampled_from(("", "", "waiters:queue", "idle:pool", "spare:pool", "granule_pages", "further_pages"))
    )
    counted = f'\ntimes = "{times}"' + ("\nmost = 2" if draw(st.booleans()) else "") if times else ""
    return f'delay = "{draw(st.sampled_from(COSTS))}"{counted}{_asleep(draw)}{_when(draw)}'


def _hold(draw: Draw) -> str:
    stage = f'hold = "{draw(st.sampled_from(LOCKS))}"\ntakes = "lock"{_when(draw)}'
    if draw(st.booleans()):
        stage += '\ncontended = "lock_contended"'
    if draw(st.booleans()):
        counted = draw(st.sampled_from(("spare:pool", "idle:task", "waiters:queue")))
        stage += f'\nalso = "herd_per_reader"\ntimes = "{counted}"\nmost = {draw(st.integers(0, 3))}'
    return stage


def _wake(draw: Draw, sleeps: bool, *, last: bool) -> str:
    stage = f'wake = "{draw(st.sampled_from(("wake", "0ns", "reenter")))}"'
    if sleeps:
        stage += '\nfrom = "queue"'
        if draw(st.booleans()):
            stage += '\nwalk = "wake_per_waiter"'
            stage += '\ncold = "wake_cold"\nreaders = "pool"' if draw(st.booleans()) else ""
        if draw(st.booleans()):
            stage += '\nunder = "own"\ntakes = "lock"\ncontended = "lock_contended"'
    elif last and draw(st.booleans()):
        stage += "\nawake = true"
    if draw(st.booleans()):
        stage += '\nwithin = "mm"\neach = "mm_share"\nonce = "mm_once"'
    return stage


def _window(draw: Draw) -> str:
    stops = draw(st.sampled_from(("[]", '["vcpu"]', '["vcpu", "vmm"]')))
    blocks = draw(st.sampled_from(("{}", '{ vcpu = "write" }', '{ kernel = "all", vmm = "write" }')))
    text = f'[window]\nstops = {stops}\nblocks = {blocks}\nempties = "{draw(st.sampled_from(("none", "stage2")))}"\n'
    text += 'enter = ["2us", "100ns * touched_pages"]\nleave = "1us"\n'
    return text + ('resume = "wake"\n' if "vcpu" in stops else "")
