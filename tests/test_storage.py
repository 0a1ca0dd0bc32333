"""Storage, page cache and streams: against queueing theory, a simpy twin, and figures counted by hand."""

from __future__ import annotations

import heapq
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simpy

from faultreplay.faulttrace.errors import UsageError
from faultreplay.replay.engine.engine import Result, simulate
from faultreplay.replay.engine.streams import Knowledge
from faultreplay.replay.language.costs import load_costs
from faultreplay.replay.language.mechanism import Mechanism, list_mechanisms, load_mechanism
from faultreplay.replay.workload.workload import Workload, make_workload

COSTS = load_costs()
HEAD = 'title = "t"\nstands_for = "s"\nsource = ["x"]\nlimits = ["y"]\ngranule = "4K"\n'
WAKE = '[[paths.missing]]\nwake = "0ns"\n'


def made(tmp_path: Path, body: str) -> Mechanism:
    path = tmp_path / "m.toml"
    path.write_text(HEAD + body)
    return load_mechanism(str(path))


def disk(latency: str = "100us", **keys: Any) -> str:
    lines = [f"{key} = {value!r}".replace("'", '"') for key, value in keys.items()]
    return "\n".join(["[resources.disk]", 'kind = "storage"', f'latency = "{latency}"', *lines]) + "\n"


def reading(tmp_path: Path, latency: str = "100us", **keys: Any) -> Mechanism:
    return made(tmp_path, disk(latency, **keys) + '[[paths.missing]]\nread = "disk"\n' + WAKE)


def touches(*pages: int, think_ns: int = 0, access: str = "r") -> Workload:
    return make_workload([{"think_ns": [think_ns] * len(pages), "page": list(pages), "access": access}])


def single_touches(arrivals_ns: np.ndarray[Any, Any]) -> Workload:
    """A fault on a page of its own at each of these times, whoever waits: far apart, so that none is another's."""
    return make_workload([{"think_ns": [int(t)], "page": [n * 4096], "access": "r"} for n, t in enumerate(arrivals_ns)])


def run(workload: Workload, mechanism: Mechanism, **options: Any) -> Result:
    return simulate(workload, mechanism, COSTS, **options)


def test_one_place_is_an_m_d_1_queue(tmp_path: Path) -> None:
    load, latency, count = 0.7, 100_000, 40_000
    rng = np.random.default_rng(3)
    arrivals = np.cumsum(rng.exponential(latency / load, count)).astype(np.int64)
    result = run(single_touches(arrivals), reading(tmp_path, depth=1))
    waited = result.stall_ns.mean() - latency
    assert waited == pytest.approx(load * latency / (2 * (1 - load)), rel=0.05)


@pytest.mark.parametrize("places", [2, 8])
def test_places_are_first_come_first_served(tmp_path: Path, places: int) -> None:
    """To the ns what a heap of free times gives: M/D/c."""
    latency, count = 100_000, 4_000
    arrivals = np.cumsum(np.random.default_rng(5).exponential(latency / (0.9 * places), count)).astype(np.int64)
    free = [0] * places
    ends = []
    for arrival in arrivals.tolist():
        end = max(arrival, heapq.heappop(free)) + latency
        heapq.heappush(free, end)
        ends.append(end)
    result = run(single_touches(arrivals), reading(tmp_path, depth=places))
    assert result.end_ns.tolist() == ends
    use = result.resources["disk"]
    assert (use.acquired, use.servers, use.busy_ns) == (count, places, count * latency)


def test_bandwidth_is_shared_by_all_who_read(tmp_path: Path) -> None:
    streams = [{"think_ns": [0] * 500, "page": np.arange(500) + 10_000 * n, "access": "r"} for n in range(8)]
    result = run(make_workload(streams), reading(tmp_path, "10us", bandwidth=409_600_000))  # 10 us a page
    assert result.bytes_moved == 8 * 500 * 4096
    assert result.run_time_ns == 8 * 500 * 10_000 + 10_000  # the wire is never idle, and the last latency
    assert result.resources["disk"].busy_share(result.run_time_ns) == pytest.approx(1, rel=0.001)


def test_readahead_reads_around_and_neighbours_hit(tmp_path: Path) -> None:
    sequential = run(touches(*range(1000)), reading(tmp_path, readahead="128K"))
    found = sequential.restored
    assert found is not None
    # the first request brings 16 pages from the first one on, each later one 32 around, of which 16 are there already
    assert (found.cache_reads, found.cache_hits) == (63, 937)
    assert sequential.total_stall_ns == 63 * 100_000
    far = run(touches(*range(0, 64_000, 64)), reading(tmp_path, readahead="128K")).restored
    assert far is not None
    assert (far.cache_reads, far.cache_hits) == (1000, 0)


def test_a_page_that_is_being_read_is_waited_for_once(tmp_path: Path) -> None:
    two = make_workload(
        [{"think_ns": [0], "page": [7], "access": "r"}, {"think_ns": [30_000], "page": [8], "access": "r"}]
    )
    result = run(two, reading(tmp_path, readahead="16K"))
    assert result.stall_ns.tolist() == [100_000, 70_000]
    assert result.resources["disk"].acquired == 1


@pytest.mark.parametrize("share", [0.0, 0.25, 0.8, 1.0])
def test_the_page_cache_holds_the_share_that_it_is_said_to(tmp_path: Path, share: float) -> None:
    pages = (np.arange(8000) * 64).tolist()
    found = run(touches(*pages), reading(tmp_path, cached=share)).restored
    assert found is not None
    assert found.cache_hits / 8000 == pytest.approx(share, abs=0.02)


def test_what_earlier_runs_left_is_their_pages_with_their_readahead(tmp_path: Path) -> None:
    mechanism = reading(tmp_path, readahead="16K", left=1)
    known = Knowledge(working_set=np.array([100]))
    found = run(touches(97, 98, 99, 100, 101, 102, 300), mechanism, known=known).restored
    assert found is not None
    assert found.cache_hits == 4  # 98 to 101
    assert run(touches(98, 99), mechanism).restored.cache_hits == 1  # type: ignore[union-attr]


def test_miss_is_paid_by_who_waits_alone(tmp_path: Path) -> None:
    body = disk(readahead="16K") + '[[paths.missing]]\nread = "disk"\nmiss = "7us"\n[[paths.missing]]\ndelay = "1us"\n'
    result = run(touches(8, 9), made(tmp_path, body + WAKE))
    assert result.stall_ns.tolist() == [108_000, 1_000]
    assert run(touches(8, 9), made(tmp_path, body + WAKE), cpus=1).stall_ns.tolist() == [108_000, 1_000]


def twin(workload: Workload, places: int, latency: int, page_ns: int, readahead: int) -> list[int]:
    """The ends of all faults by simpy: a page cache, places of a device, then its wire."""
    env = simpy.Environment()
    device, wire = simpy.Resource(env, places), simpy.Resource(env, 1)
    cache: dict[int, Any] = {}
    ends = [0] * workload.faults

    def request(pages: list[int], done: Any) -> Any:
        with device.request() as place:
            yield place
            with wire.request() as turn:
                yield turn
                yield env.timeout(page_ns * len(pages))
            yield env.timeout(latency)
        done.succeed()

    def accessor(a: int) -> Any:
        for row in range(workload.accessor_start[a], workload.accessor_start[a + 1]):
            yield env.timeout(int(workload.think_ns[row]))
            page = int(workload.page[row])
            if page not in cache:
                window = (
                    range(max(page - readahead // 2, 0), page + readahead - readahead // 2) if readahead else [page]
                )
                brings = [one for one in window if one not in cache]
                done = env.event()
                cache.update(dict.fromkeys(brings, done))
                env.process(request(brings, done))
            if not cache[page].processed:
                yield cache[page]
            ends[row] = int(env.now)

    for a in range(workload.accessors):
        env.process(accessor(a))
    env.run()
    return ends


@pytest.mark.parametrize("seed", range(6))
def test_simpy_says_the_same_to_the_ns(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    places, readahead, page_ns = int(rng.integers(1, 5)), int(rng.choice([0, 4, 16])), int(rng.choice([700, 9_001]))
    streams = [
        {"think_ns": rng.integers(1, 300_000, 60), "page": rng.permutation(400)[:60] + 4096, "access": "r"}
        for _ in range(4)
    ]
    workload = make_workload(streams)
    bandwidth = 4096 * 10**9 // page_ns
    exact = -(-4096 * 10**12 // bandwidth)
    keys = {"depth": places, "readahead": readahead * 4096, "bandwidth": bandwidth}
    result = run(workload, reading(tmp_path, "97us", **keys))
    expected = twin(workload, places, 97_000, exact / 1000, readahead)  # type: ignore[arg-type]
    assert np.abs(result.end_ns - np.array(expected)).max() <= 60  # parts of a ns, a request


STREAM = '[[streams]]\npath = "bring"\nset = "{}"\norder = "recorded"\n'
PREFETCH = """
[[paths.bring]]
read = "disk"
ahead = "64K"
[[paths.bring]]
coalesce = "skip"
[[paths.bring]]
delay = "2us"
[[paths.bring]]
wake = "0ns"
[[paths.missing]]
delay = "1us"
[[paths.missing]]
coalesce = "join"
[[paths.missing]]
read = "disk"
[[paths.missing]]
delay = "5us"
[[paths.missing]]
wake = "3us"
"""


def streaming(tmp_path: Path, *, disk_keys: str = "", **keys: Any) -> Mechanism:
    lines = "\n".join(
        f"{key} = {str(value).lower() if isinstance(value, bool) else repr(value)}" for key, value in keys.items()
    )
    text = disk() + disk_keys + PREFETCH + f'[[streams]]\npath = "bring"\n{lines}\n'
    return made(tmp_path, text.replace("'", '"'))


def test_what_is_brought_before_is_start_up_and_no_stall(tmp_path: Path) -> None:
    mechanism = streaming(tmp_path, set="touched", order="recorded", before=True)
    result = run(touches(*range(64, 128), think_ns=1000), mechanism)
    found = result.restored
    assert found is not None
    assert found.startup_ns == 4 * 100_000 + 64 * 2_000  # four reads of 16 pages, each page placed
    assert (result.stall_ns == round(COSTS["stage2_fault"].distribution.mean)).all()
    assert (found.coverage, found.waste, found.late_pages) == (1.0, 0.0, 0)
    assert found.all_there_ns == found.startup_ns
    assert result.run_time_ns == 64 * (1000 + result.stall_ns[0])
    assert result.bytes_moved == 64 * 4096


@pytest.mark.parametrize("pages", [5, 16, 21])
def test_a_range_that_the_file_ends_within_is_read_to_its_end(tmp_path: Path, pages: int) -> None:
    """In the loop uncompiled: it checks bounds."""
    body = disk() + '[[paths.missing]]\nread = "disk"\n' + WAKE
    body += '[[paths.bring]]\nread = "disk"\nover = "64K"\n[[paths.bring]]\nwake = "0ns"\n'
    made(tmp_path, body + '[[streams]]\npath = "bring"\nset = "touched"\npacked = true\nbefore = true\n')
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_storage as t\n"
        f"print(t.run(t.touches(*range({pages})), t.load_mechanism({str(tmp_path / 'm.toml')!r})).bytes_moved)"
    )
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=False)
    assert int(done.stdout) >= pages * 4096, done.stderr


def test_two_threads_before_halve_the_start_up(tmp_path: Path) -> None:
    one, two = (
        run(touches(*range(128)), streaming(tmp_path, set="touched", before=True, servers=n)).restored for n in (1, 2)
    )
    assert one is not None
    assert two is not None
    assert two.startup_ns * 2 == one.startup_ns


def test_coverage_waste_and_late_pages_are_counted(tmp_path: Path) -> None:
    mechanism = streaming(tmp_path, set="working-set", order="recorded")
    known = Knowledge(working_set=np.array([500, 10, 11, 12, 900]))
    # page 10 is touched at once, before anything could come; 11 and 12 when all is there; 40 is in no set
    workload = make_workload([{"think_ns": [0, 1_000_000, 1_000_000, 0], "page": [10, 11, 12, 40], "access": "r"}])
    result = run(workload, mechanism, known=known)
    found = result.restored
    assert found is not None
    assert (found.needed_pages, found.set_pages, found.covered_pages, found.late_pages) == (4, 5, 3, 1)
    assert (found.coverage, found.waste) == (0.75, pytest.approx(0.4))
    stage2 = round(COSTS["stage2_fault"].distribution.mean)
    assert result.stall_ns[1:3].tolist() == [stage2, stage2]
    # 0 before: the prefetch of page 500 made the device read; this one asks for page 10 itself
    assert result.stall_ns[0] == 1_000 + 100_000 + 5_000 + 3_000


def test_a_fault_on_a_page_that_is_just_placed_waits_for_it(tmp_path: Path) -> None:
    mechanism = streaming(tmp_path, set="touched", order="recorded")
    result = run(touches(3, think_ns=100_500), mechanism)
    # read until 100 us, placed until 102 us; the fault is taken until 101.5 us, and woken when it is there
    assert result.stall_ns.tolist() == [102_000 - 100_500 + 3_000]
    assert result.restored.late_pages == 1  # type: ignore[union-attr]


def test_streams_take_host_cpus_from_the_guest(tmp_path: Path) -> None:
    mechanism = streaming(tmp_path, set="touched", order="recorded")
    workload = touches(*range(64, 192), think_ns=50_000)
    alone, shared = run(workload, mechanism, cpus=2), run(workload, mechanism, cpus=1)
    assert alone.restored is not None
    assert run(workload, mechanism).total_stall_ns == alone.total_stall_ns
    assert shared.run_time_ns > alone.run_time_ns
    assert shared.resources["cpus"].busy_ns >= 128 * 50_000 + 100 * 2_000


def test_several_streams_and_the_guest_share_one_device(tmp_path: Path) -> None:
    text = disk(depth=1) + PREFETCH
    for word in ("touched", "working-set"):
        text += STREAM.format(word)
    known = Knowledge(working_set=np.arange(4096, 4096 + 160))
    result = run(touches(*range(160)), made(tmp_path, text), known=known)
    assert result.resources["disk"].acquired >= 20
    assert result.resources["disk"].wait_ns > 0
    assert result.restored.set_pages == 320  # type: ignore[union-attr]


def test_a_stream_does_not_change_the_luck_of_the_guest(tmp_path: Path) -> None:
    """Random costs of the guest's faults are drawn by row: streams have rows of their own."""
    bring, faults = PREFETCH.replace('"5us"', '"fault_entry"').split("[[paths.missing]]", 1)
    base = made(tmp_path, disk() + "[[paths.missing]]" + faults)
    more = made(tmp_path, disk() + bring + "[[paths.missing]]" + faults + STREAM.format("working-set"))
    known = Knowledge(working_set=np.array([99_999]))
    workload = touches(*range(0, 6400, 64), think_ns=50)
    np.testing.assert_array_equal(run(workload, base).stall_ns, run(workload, more, known=known).stall_ns)


AROUND = """
[[paths.missing]]
delay = "1us"
[[paths.missing]]
coalesce = "join"
[[paths.missing]]
around = "16K"
each = "2us"
[[paths.missing]]
wake = "3us"
"""


def test_neighbours_come_with_a_fault_and_cost_stage_2_later(tmp_path: Path) -> None:
    result = run(touches(5, 4, 6, 7, 8, think_ns=10_000), made(tmp_path, AROUND))
    stage2 = round(COSTS["stage2_fault"].distribution.mean)
    assert result.stall_ns.tolist() == [10_000, stage2, stage2, stage2, 10_000]
    half_there = run(touches(5, 9, 10, 8, think_ns=10_000), made(tmp_path, AROUND))
    assert half_there.stall_ns.tolist()[:2] == [10_000, 10_000]
    assert run(touches(5, 4, 8, think_ns=10_000), made(tmp_path, AROUND), cpus=1).stall_ns.tolist() == [
        10_000,
        stage2,
        10_000,
    ]


def test_only_what_the_page_cache_has_where_it_says_so(tmp_path: Path) -> None:
    body = disk() + AROUND.replace('each = "2us"', 'each = "2us"\ncached = true')
    cold = run(touches(5, 4, think_ns=10_000), made(tmp_path, body))
    assert cold.stall_ns.tolist() == [4_000, 4_000]
    hot = run(touches(5, 4, think_ns=10_000), made(tmp_path, body.replace('"100us"', '"100us"\ncached = 1')))
    assert hot.stall_ns.tolist() == [10_000, round(COSTS["stage2_fault"].distribution.mean)]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('[resources.disk]\nkind = "storage"\n' + WAKE, "missing 'latency'"),
        (disk(cached=2) + WAKE, "cached"),
        (disk(depth=-1) + WAKE, "depth"),
        ('[[paths.missing]]\nread = "disk"\n' + WAKE, "no resource of kind storage"),
        (WAKE + '[[streams]]\npath = "x"\nset = "touched"\n', r"there is no \[\[paths.x\]\]"),
        (WAKE + '[[streams]]\npath = "missing"\nset = "touched"\n', "is a path of faults"),
        (WAKE + '[[streams]]\npath = "x"\n', "missing 'set'"),
        (WAKE + '[[streams]]\npath = "x"\nset = "some"\n', "set is one of working-set, touched, all"),
        (WAKE + '[[streams]]\npath = "x"\nset = "all"\norder = "recorded"\n', "no order was recorded"),
        (WAKE + '[[paths.x]]\nwake = "0ns"\n', "and no stream's path"),
        ('[[paths.missing]]\ncoalesce = "skip"\n' + WAKE, "only a stream skips"),
        (
            WAKE + '[[paths.x]]\ncoalesce = "join"\n[[paths.x]]\nwake = "0ns"\n[[streams]]\npath = "x"\nset = "all"\n',
            "say skip",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_line(tmp_path: Path, body: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as refused:
        made(tmp_path, body)
    assert "m.toml:" in str(refused.value)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (disk() + '[[paths.missing]]\nread = "disk"\nover = "12K"\n' + WAKE, "power of two"),
        (disk() + '[[paths.missing]]\nread = "disk"\nahead = "4M"\n' + WAKE, "2,097,152 at most"),
        (disk(readahead="128M") + '[[paths.missing]]\nread = "disk"\n' + WAKE, "readahead of more than"),
        ('[[paths.missing]]\naround = "16K"\ncached = true\n' + WAKE, "no page cache"),
    ],
)
def test_what_only_numbers_show_is_refused_before_the_run(tmp_path: Path, body: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run(touches(1), made(tmp_path, body))


def test_streams_work_on_beside_an_open_loop(tmp_path: Path) -> None:
    mechanism = streaming(tmp_path, set="touched", order="recorded")
    workload = touches(*range(64, 128), think_ns=20_000)
    closed, opened = (run(workload, mechanism, loop=loop) for loop in ("closed", "open"))
    assert closed.restored is not None
    assert opened.restored is not None
    # at most each page placed and each read waited for; a page that the guest has asked for is left to it
    for result in (closed, opened):
        assert result.restored is not None
        assert 4 * 100_000 + 50 * 2_000 <= result.restored.beside_ns <= 4 * 100_000 + 64 * 2_000
    assert opened.start_ns.tolist() == [20_000 * n for n in range(1, 65)]
    assert opened.run_time_ns == int(opened.end_ns.max())


RESTORES = [name for name in list_mechanisms() if load_mechanism(name).streams or "read" in {
    stage.verb for path in load_mechanism(name).paths.values() for stage in path
}]  # fmt: skip


@pytest.mark.parametrize("name", RESTORES)
@pytest.mark.parametrize("cpus", [None, 1, 3])
@pytest.mark.parametrize("loop", ["closed", "open"])
def test_every_restore_runs_and_its_books_add_up(name: str, cpus: int | None, loop: str) -> None:
    rng = np.random.default_rng(8)
    streams = [
        {"think_ns": rng.integers(0, 40_000, 80), "page": rng.permutation(600)[:80], "access": rng.integers(0, 2, 80)}
        for _ in range(3)
    ]
    known = Knowledge(working_set=rng.permutation(600)[:300].astype(np.int64), memory=((0, 1024),))
    first, again = (
        run(make_workload(streams), load_mechanism(name), cpus=cpus, known=known, loop=loop) for _ in range(2)
    )
    assert (first.stall_ns >= 0).all()
    assert sum(first.stage_ns.values()) == first.accessor_stall_ns.sum()
    assert first.restored is not None
    assert first.restored.all_there_ns >= first.restored.startup_ns
    np.testing.assert_array_equal(first.stall_ns, again.stall_ns)
    if name == "restore-copy":
        assert first.restored.set_pages == 1024
        assert first.bytes_moved == 1024 * 4096


def kernel_readahead(pages: list[int], window: int) -> tuple[list[list[int]], list[int]]:
    """What mm/filemap.c reads for these faults one after the other: (each request, which faults had to wait for one).

    do_sync_mmap_readahead() and page_cache_async_ra(), with their own bookkeeping (start, size, async_size of the open
    file), line by line; requests are over before the next fault.
    """
    cache: set[int] = set()
    marks: set[int] = set()
    start = size = async_size = 0
    requests, waited = [], []

    def read(first: int, count: int, mark_before_end: int) -> None:
        bring = [page for page in range(first, first + count) if page not in cache]
        if first + count - mark_before_end in bring:
            marks.add(first + count - mark_before_end)
        cache.update(bring)
        if bring:
            requests.append(bring)

    for number, page in enumerate(pages):
        if page in cache:
            if page in marks:
                marks.discard(page)
                if page == start + size - async_size:
                    start += size
                else:
                    start = next(one for one in range(page + 1, page + window + 2) if one not in cache)
                size = async_size = window
                read(start, size, async_size)
        else:
            waited.append(number)
            start, size, async_size = page - window // 2, window, window // 4
            read(start, size, async_size)
    return requests, waited


@pytest.mark.parametrize("window", [4, 32])
@pytest.mark.parametrize("step", [1, 3])
def test_a_sequential_reader_is_read_ahead_of_as_the_kernel_does(tmp_path: Path, window: int, step: int) -> None:
    pages = [10_000 + n for n in range(0, 600, step)]
    requests, waited = kernel_readahead(pages, window)
    mechanism = made(
        tmp_path, disk(readahead=f"{window * 4}K").replace("latency", "onward = true\nlatency")
        + '[[paths.missing]]\nread = "disk"\n' + WAKE,
    )  # fmt: skip
    result = run(touches(*pages, think_ns=1_000_000), mechanism)
    assert result.resources["disk"].acquired == len(requests)
    assert result.bytes_moved == 4096 * sum(map(len, requests))
    assert np.flatnonzero(result.stall_ns).tolist() == waited
    if step == 1:  # else a marked page may be stepped over
        assert waited == [0]


def test_a_reader_that_is_faster_than_the_device_waits_for_what_is_on_its_way(tmp_path: Path) -> None:
    """128 KiB take 320 us, 32 pages of work 32 us: from the second window on the reader goes as the device gives."""
    body = disk("1us", readahead="128K", bandwidth=409_600_000).replace("latency", "onward = true\nlatency")
    mechanism = made(tmp_path, body + '[[paths.missing]]\nread = "disk"\n' + WAKE)
    result = run(touches(*range(10_000, 13_200), think_ns=1_000), mechanism)
    assert result.run_time_ns == pytest.approx(3_200 * 10_000, rel=0.05)
    assert result.resources["disk"].busy_share(result.run_time_ns) > 0.95


def test_a_marked_page_is_not_mapped_with_a_neighbours_fault() -> None:
    """Else nobody would take the fault that reads on (next_uptodate_folio())."""
    mechanism = load_mechanism("file-private")
    costs = COSTS.with_constants(storage_read=10_000)
    result = simulate(touches(*range(10_000, 11_024), think_ns=1_000_000), mechanism, costs)
    assert (result.stall_ns > 9_000).sum() == 1
    assert result.resources["disk"].acquired == 34  # around the first page, then each window before it is asked for


@pytest.mark.parametrize("handlers", [1, 2])
def test_threads_of_streams_are_pinned_behind_the_handlers(handlers: int) -> None:
    """As the lab pins its prefetch threads: vCPUs, handlers, then they, modulo the CPUs."""
    mechanism = load_mechanism("prefetch-beside").with_params({"handlers": handlers, "remote": 1})
    costs = COSTS.with_constants(fetch=0, resolve_per_page=50_000, stage2_fault=0)
    work = touches(*range(100), think_ns=1_000_000)
    far = Knowledge(working_set=np.arange(5_000, 7_000))
    alone = simulate(work, mechanism, costs, known=far, cpus=2, pinned=True)
    free = simulate(work, mechanism, costs, known=far, cpus=3, pinned=True)
    # with one handler the prefetcher has CPU 0, as the vCPU; with two it has CPU 1
    assert (alone.run_time_ns > 1.2 * free.run_time_ns) == (handlers == 1)
