"""A replay in which content comes from files, or streams bring it: what is done before the guest runs, then that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from faultreplay.replay.engine import layout as at
from faultreplay.replay.engine import opcodes as o
from faultreplay.replay.engine.cast import Cast
from faultreplay.replay.engine.restored import restored
from faultreplay.replay.engine.result import ResourceUse, Result
from faultreplay.replay.engine.run import Run, Setting
from faultreplay.replay.engine.storage import settle
from faultreplay.replay.engine.streams import Scene
from faultreplay.replay.language.mechanism import Mechanism
from faultreplay.replay.language.program import Program
from faultreplay.replay.workload.workload import Ints

_NO_WINDOWS = np.zeros((0, at.W_COLUMNS), np.int64)


def needs_scene(mechanism: Mechanism, program: Program) -> bool:
    """Whether a replay has to know files, or streams: all others run without."""
    return bool(mechanism.streams or program.storages or (program.ops[:, 0] == o.AROUND).any())


@dataclass(frozen=True)
class _Before:
    """What was done before the guest ran."""

    run: Run | None
    startup_ns: int
    resources: Mapping[str, ResourceUse]


class SceneRun(Run):
    """The guest with the streams beside it, when those before it are done. Rows are always kept.

    Streams work in a closed loop, also beside a guest whose faults begin when they were recorded.
    """

    def __init__(self, scene: Scene, mechanism: Mechanism, program: Program, windows: Ints, setting: Setting) -> None:
        setting = replace(setting, keep_rows=True)
        self.scene = scene
        self.before = _before(scene, mechanism, program, setting)
        self.staged = scene.stage(scene.beside)
        files, present = self.staged.files, None
        if self.before.run is not None:
            done = self.before.run.files
            files = files._replace(
                cached_at=done.cached_at, marked=done.marked, placed=done.placed, devices=done.devices
            )
            present = self.before.run.present_at
        cast = Cast(self.staged.accessors, self.staged.faults, files, scene.workload, present)
        super().__init__(self.staged.workload, mechanism, program, self.staged.pages, windows, setting, cast)

    def result(self, rules: list[Mechanism], warnings: tuple[str, ...]) -> Result:
        """As of any run, with the figures of a restore."""
        result = super().result(rules, warnings)
        resources = _with_bytes(result.resources, self.before.resources)
        staged = replace(self.staged, files=self.files)
        told = restored(staged, self.scene.pieces, self.before.startup_ns, self.out.start, self.out.stall)
        return replace(
            result,
            resources=resources,
            bytes_moved=sum(use.bytes_moved for use in resources.values()),
            restored=told,
        )


def _before(scene: Scene, mechanism: Mechanism, program: Program, setting: Setting) -> _Before:
    if not scene.before:
        return _Before(None, 0, {})
    staged = scene.stage(scene.before, guest=False)
    alone = replace(setting, is_open=False, until_ns=None, write_again=False)
    run = Run(
        staged.workload,
        replace(mechanism, push=None),
        program,
        staged.pages,
        _NO_WINDOWS,
        alone,
        Cast(0, 0, staged.files),
    )
    run.execute()
    startup_ns = int((run.out.start + run.out.stall).max(initial=0))
    resources = run.resources()
    settle(run.files, run.present_at)
    return _Before(run, startup_ns, resources)


def _with_bytes(uses: Mapping[str, ResourceUse], before: Mapping[str, ResourceUse]) -> dict[str, ResourceUse]:
    """`uses` with what was moved before the guest ran; how busy they were is while it did."""
    return {
        name: replace(
            use,
            bytes_moved=use.bytes_moved + before[name].bytes_moved,
            acquired=use.acquired + before[name].acquired,
        )
        if name in before
        else use
        for name, use in uses.items()
    }
