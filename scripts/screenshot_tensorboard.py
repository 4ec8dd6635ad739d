"""Takes the pictures of `docs/tensorboard.md`: TensorBoard's pages of a run, in a headless browser.

    python scripts/screenshot_tensorboard.py runs/default docs/images

Needs Chromium with its driver (Debian: chromium, chromium-driver) and `pip install selenium`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import which
from typing import Any
from urllib.parse import quote

from moe.ports import free_port

SIZE = (1500, 1100)  # pixels
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
    "--disable-sync",
)
# What TensorBoard keeps in the browser: room for the charts instead of its settings.
SETTINGS = {
    "timeSeriesSettingsPaneOpened": False,
    "stepSelectorEnabled": False,
    "ignoreOutliers": False,
    "scalarSmoothing": 0,
    "sideBarWidthInPercent": 14,
}
MAIN_SCALARS = (
    "train_loss/(total|routing)|val/|val_gate/(balance|routing_accuracy)"
    "|val_.*/(in_scope_accuracy|accuracy|f1)$|optimizer/gradient_norm"
)
# File name: (page, filter of the time series).
PAGES = {
    "tensorboard-scalars.png": ("timeseries", MAIN_SCALARS),
    "tensorboard-images.png": ("images&tagFilter=pictures", ""),
    "tensorboard-samples.png": ("text", ""),
}


@contextmanager
def tensorboard(logdir: Path, seconds: float = 120.0) -> Iterator[str]:
    """Runs TensorBoard on a free local port and gives its address once it answers."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [
        sys.executable,
        "-m",
        "tensorboard.main",
        "--logdir",
        str(logdir),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--load_fast",
        "false",
        "--samples_per_plugin",
        "images=100,text=100",
    ]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait(address, server, seconds)
        yield address
    finally:
        server.terminate()
        server.wait()


def _wait(address: str, server: subprocess.Popen[bytes], seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/data/runs", timeout=5) as answer:
                if answer.read().strip() not in (b"", b"[]"):
                    return
        except OSError:
            pass
        time.sleep(1.0)
    sys.exit(f"TensorBoard found no run within {seconds:.0f} s (exit code {server.poll()})")


@contextmanager
def browser() -> Iterator[Any]:
    """A headless Chromium of the size of the pictures."""
    from selenium import webdriver

    driver, chromium = which("chromedriver"), which("chromium") or which("google-chrome")
    if driver is None or chromium is None:
        sys.exit("needs Chromium and its driver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--window-size={SIZE[0]},{SIZE[1]}"):
        options.add_argument(flag)
    service = webdriver.ChromeService(executable_path=driver, env={**os.environ, "NO_PROXY": "*"})
    chrome = webdriver.Chrome(options=options, service=service)
    # The window's own frame would take a part of its height.
    view = {"width": SIZE[0], "height": SIZE[1], "deviceScaleFactor": 1, "mobile": False}
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", view)
    try:
        yield chrome
    finally:
        chrome.quit()


def shoot(chrome: Any, address: str, page: str, tags: str, path: Path, seconds: float) -> None:
    """Opens one page, waits until it is drawn, and saves what is seen."""
    query = f"?tagFilter={quote(tags)}" if tags else ""
    chrome.get("about:blank")  # else a new fragment loads no new page
    chrome.get(f"{address}/{query}#{page}")
    time.sleep(seconds)
    chrome.save_screenshot(str(path))
    print(path, flush=True)


def main() -> None:
    """Parses the command line and takes every picture."""
    parser = argparse.ArgumentParser(description="Screenshots of TensorBoard for the docs.")
    parser.add_argument("logdir", type=Path, help="folder of one or several runs")
    parser.add_argument("out", type=Path, help="folder of the PNG files")
    parser.add_argument("--seconds", type=float, default=15.0, help="for each page to be drawn")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tensorboard(arguments.logdir) as address, browser() as chrome:
        chrome.get(address)
        keep = "localStorage.setItem('_tb_global_settings', arguments[0])"
        chrome.execute_script(keep, json.dumps(SETTINGS))
        for name, (page, tags) in PAGES.items():
            path = arguments.out / name
            shoot(chrome, address, page, tags, path, arguments.seconds)


if __name__ == "__main__":
    main()
