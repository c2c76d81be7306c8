"""Sandboxes that live, from the configuration and the parts they stand on."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import structlog

from stockade.backends.sandboxing import Sandboxing
from stockade.config_sandboxes import BuildsConfig, LiveConfig
from stockade.engine.backend_policy import BackendPolicy
from stockade.engine.builds import BuildOptions, Builds
from stockade.engine.creations import Creations
from stockade.engine.images import Images
from stockade.engine.limits import LimitPolicy
from stockade.engine.lives import Lives
from stockade.engine.ports import Ports
from stockade.engine.reconcile import Reconciler
from stockade.engine.sandbox_needs import Barred, OnEnded, SandboxOptions
from stockade.engine.sandboxes import Sandboxes
from stockade.errors import StockadeError
from stockade.model import Limits, NetworkMode
from stockade.store.builds import BuildTable
from stockade.store.sandboxes import SandboxTable

__all__ = ["build_limits", "live_limits", "running_sandboxes"]

log = structlog.get_logger()

BARRED_S = 2.0
"""Between two looks for accounts that have been locked or removed, in whichever process."""


def live_limits(limits: LimitPolicy, live: LiveConfig) -> LimitPolicy:
    """The server's limits for sandboxes that stay: as for runs, but for time."""
    most_s = live.most_lifetime_s
    return LimitPolicy(
        defaults=replace(limits.defaults, wall_s=min(300.0, most_s), cpu_s=min(300.0, most_s)),
        maximum=replace(limits.maximum, wall_s=most_s, cpu_s=most_s * max(1.0, limits.maximum.cpus)),
    )


@contextlib.asynccontextmanager
async def running_sandboxes(
    *,
    backend: Sandboxing,
    table: SandboxTable,
    build_table: BuildTable,
    ports: Ports,
    on_ended: OnEnded,
    limits: LimitPolicy,
    live: LiveConfig,
    images: Images,
    builds: BuildsConfig,
    directory: Path,
    barred: Barred | None = None,
    backends: BackendPolicy = BackendPolicy(),
    is_ours: Callable[[str], bool] = lambda _: False,
) -> AsyncIterator[Sandboxes]:
    """Sandboxes of all actors during the block, those of the server before included.

    Args:
        ports: running already; they must outlast the block.
        on_ended: told of each sandbox that has ended.
        limits: those of runs; `live_limits` makes of them what counts here.
        directory: where built layers lie; this server may write there, and no other uses it.
        images: what they can be made from.
        backends: those that sandboxes may come from.
        barred: says for which accounts nobody may act any more: their sandboxes are killed.
        is_ours: whether somebody else of this server looks after the sandbox of a name.

    Raises:
        Unavailable: the database or the backend does not answer, or *directory* cannot be written to.
    """
    lives = Lives(
        table=table,
        backend=backend,
        ports=ports,
        on_ended=on_ended,
        options=SandboxOptions(
            retention_s=live.retention_s,
            most_kept=live.most_kept,
            log_bytes=live.log_bytes,
            kept_bytes=live.kept_bytes,
            grace_s=live.grace_s,
            sweep_s=live.clean_up_s,
            lost_after_s=live.lost_after_s,
        ),
    )
    ports.bound = lives.bound_port
    layers = Builds(
        backend=backend,
        images=images,
        table=build_table,
        directory=directory,
        options=_build_options(builds, limits.maximum),
        tasks=lives.tasks,
    )
    policy = live_limits(limits, live)
    creations = Creations(lives=lives, images=images, builds=layers, limits=policy, backends=backends)
    sandboxes = Sandboxes(
        lives=lives,
        creations=creations,
        images=images,
        builds=layers,
        limits=policy,
        reconciler=Reconciler(lives=lives, creations=creations, builds=layers, is_ours=is_ours),
    )
    async with sandboxes.running():
        if barred is not None:
            lives.tasks.background(_kill_barred(sandboxes, barred), name="look for barred accounts")
        yield sandboxes


async def _kill_barred(sandboxes: Sandboxes, barred: Barred) -> None:
    while True:
        try:
            await sandboxes.kill_barred(barred)
        except (StockadeError, TimeoutError) as error:
            log.warning("sandbox.barred_not_killed", reason=str(error) or repr(error))
        await asyncio.sleep(BARRED_S)


def build_limits(builds: BuildsConfig, maximum: Limits) -> Limits:
    """The limits of a sandbox in which something is built."""
    return replace(
        maximum,
        wall_s=builds.time_s,
        cpu_s=builds.time_s * max(1.0, maximum.cpus),
        memory_bytes=min(builds.memory_bytes, maximum.memory_bytes),
        disk_bytes=builds.disk_bytes,
        processes=builds.processes,
    )


def _build_options(builds: BuildsConfig, maximum: Limits) -> BuildOptions:
    return BuildOptions(
        limits=build_limits(builds, maximum),
        network=NetworkMode(builds.network),
        most_at_once=builds.at_once,
        layer_bytes=builds.layer_bytes,
        most_bytes=builds.most_bytes,
        unused_s=builds.unused_s,
        is_shared=builds.shared,
    )
