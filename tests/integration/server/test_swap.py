"""Another version becomes current while clients ask: nothing is lost, nothing bad is served."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moe.checkpoint import Bundle, save_bundle
from moe.release.hashing import model_hash
from moe.release.registry import Registry
from moe.server.settings import Settings

ASKED = {"text": "very good film", "tasks": ["sentiment"]}


class Releases:
    """Promotes models that differ in their label names, so that an answer tells its model.

    Attributes:
        labels: By hash of every model that may be served: the end of its labels.
    """

    def __init__(self, folder: Path, bundle: Callable[..., Bundle]) -> None:
        self.folder = folder
        self.bundle = bundle
        self.registry = Registry(folder / "models" / "tiny")
        self.labels: dict[str, str] = {}
        self.number = 0

    def promote(self, kind: str) -> str | None:
        """Promotes a `good`, `corrupt` or `failing` model; returns the hash of a good one."""
        self.number += 1
        model = self._model()
        digest = model_hash(model)
        label = "other" if kind == "failing" else f"good{self.number}"
        expect = {"task": "sentiment"} if kind != "failing" else {"label": label}
        report = model.with_suffix(".json")
        report.write_text(json.dumps({
            "passed": True,
            "candidate": {"hash": digest, "backend": "torch", "precision": None},
            "baseline": {"hash": self._current_hash()},
            "canaries": [{"request": ASKED, "expect": expect}],
        }))
        registry = Corrupting(self.registry.folder) if kind == "corrupt" else self.registry
        if kind == "good":
            self.labels[digest] = str(self.number)
        registry.promote(model, report)
        return digest if kind == "good" else None

    def _current_hash(self) -> str | None:
        current = self.registry.current()
        if current is None:
            return None
        found: str = json.loads((current / "manifest.json").read_text())["hash"]
        return found

    def _model(self) -> Path:
        bundle = self.bundle()
        bundle.model.tasks = tuple(
            replace(t, labels=tuple(f"{name}{self.number}" for name in t.labels))
            for t in bundle.model.tasks
        )
        folder = self.folder / f"candidate{self.number}"
        save_bundle(bundle, folder)
        return folder


class Corrupting(Registry):
    """Damages a version before it becomes current."""

    def _point(self, version: str) -> None:
        weights = self.folder / version / "model" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"x")
        super()._point(version)


@pytest.fixture
def releases(word_bundle: Callable[..., Bundle], tmp_path: Path) -> Releases:
    found = Releases(tmp_path, word_bundle)
    found.promote("good")
    return found


def settings(releases: Releases) -> Settings:
    folder = str(releases.registry.folder)
    return Settings(registry=folder, device="cpu", threads=1, registry_seconds=0.05)


def keep_asking(client: Any, stop: threading.Event, releases: Releases) -> list[str]:
    """Asks until it is told to stop; returns the hashes of the answers, each checked."""
    seen = []
    while not stop.is_set():
        reply = client.predict(ASKED)
        assert reply.status == 200, reply.body
        digest = reply.headers["x-model-hash"]
        label = reply.json["answers"]["sentiment"]["label"]
        assert label.lstrip("badgo") == releases.labels[digest], "another model answered"
        seen.append(digest)
    return seen


def swap_under_load(
    releases: Releases, running: Any, until: Any, kinds: list[str], clients: int
) -> set[str]:
    """Promotes models of these kinds while clients ask; returns the hashes that answered."""
    stop = threading.Event()
    with (
        running(settings=settings(releases), loaded=True) as server,
        ThreadPoolExecutor(clients) as pool,
    ):
        client = server.client
        asking = [pool.submit(keep_asking, client, stop, releases) for _ in range(clients)]
        try:
            refused = 0
            for kind in kinds:
                good = releases.promote(kind)
                if good is None:
                    refused += 1
                    metric = 'moe_model_swaps_total{result="refused"}'
                    until(lambda: client.metric(metric) == refused)  # noqa: B023
                    releases.registry.rollback()
                else:
                    until(lambda: client.predict(ASKED).headers["x-model-hash"] == good)  # noqa: B023
        finally:
            stop.set()
        return {digest for seen in asking for digest in seen.result()}


def test_good_versions_are_swapped_in_and_others_never_answer(
    releases: Releases, running: Any, until: Any
) -> None:
    kinds = ["good", "corrupt", "failing", "good"]
    seen = swap_under_load(releases, running, until, kinds, clients=3)
    assert seen <= set(releases.labels) and len(seen) > 1


@pytest.mark.slow
def test_twenty_swaps_under_load(releases: Releases, running: Any, until: Any) -> None:
    kinds = ["good", "corrupt", "good", "failing"] * 5
    seen = swap_under_load(releases, running, until, kinds, clients=8)
    assert seen <= set(releases.labels) and len(seen) > 5


def test_a_rollback_is_served_too(releases: Releases, running: Any, until: Any) -> None:
    first = next(iter(releases.labels))
    second = releases.promote("good")
    with running(settings=settings(releases), loaded=True) as server:
        client = server.client
        assert client.predict(ASKED).headers["x-model-hash"] == second
        assert client.get("/info").json["model"] == "tiny/v2"
        releases.registry.rollback()
        until(lambda: client.predict(ASKED).headers["x-model-hash"] == first)
        assert f'hash="{first}",name="tiny/v1"' in client.get("/metrics").body.decode()
