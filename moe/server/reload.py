"""Swaps the model when another version of a registry becomes current, while requests come in.

The new model is loaded beside the old one, in a thread: for that time both are in memory. Its files
are compared with the manifest and its canaries are asked; then new requests get it, and those that
were accepted before are still answered by the old one. What fails is never served.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from moe.release.registry import Registry
from moe.server.engine import Engine
from moe.server.model import load_version
from moe.types import InputError

log = logging.getLogger("moe.server")


async def watch(engine: Engine, folder: str) -> None:
    """Looks for another current version, for ever.

    Args:
        engine: What answers.
        folder: `models/NAME`.
    """
    registry, seen = Registry(folder), engine.served.name
    while True:
        await asyncio.sleep(engine.settings.registry_seconds)
        try:
            current = registry.current()
        except InputError as error:
            log.error("registry", extra={"fields": {"error": str(error)}})
            continue
        if current is None or _name(current) == seen:
            continue
        seen = _name(current)  # also if it fails: it is tried again when it is current anew
        if seen != engine.served.name:
            await swap(engine, current)


def _name(version: Path) -> str:
    return f"{version.parent.name}/{version.name}"


async def swap(engine: Engine, version: Path) -> bool:
    """Loads and checks a version, and serves it if all is well; returns whether it does."""
    try:
        served = await asyncio.to_thread(load_version, version, engine.settings)
    except Exception as error:  # the old model goes on, whatever is wrong with the new one
        engine.metrics.swaps.labels("refused").inc()
        fields = {"version": _name(version), "error": f"{type(error).__name__}: {error}"[:500]}
        log.error("swap refused", extra={"fields": fields})
        return False
    engine.replace(served)
    engine.metrics.swaps.labels("served").inc()
    return True
