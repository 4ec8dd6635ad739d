"""What the monitor found: lines for a terminal, JSON, and one HTML file with its pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

from moe.monitor.drift import DriftConfig, Window
from moe.monitor.pictures import evidence, signal_values, task_shares, time_text
from moe.monitor.reading import Traffic
from moe.types import InputError


def alert_lines(windows: Sequence[Window]) -> list[str]:
    """Every alert in words, in the order of time."""
    return [
        f"requests {window.first} to {window.first + window.rows - 1}, since "
        f"{time_text(window.start)}: {signal.reason} ({signal.name}, p {signal.p:.1e}, "
        f"limit {signal.level:.1e})"
        for window in windows
        for signal in window.alerts
    ]


def summary(windows: Sequence[Window], traffic: Traffic) -> str:
    """The alerts and a last line with the count."""
    lines = alert_lines(windows)
    alerting = sum(bool(window.alerts) for window in windows)
    left = len(traffic.profile) - sum(window.rows for window in windows)
    lines.append(
        f"{alerting} of {len(windows)} windows alert; {len(traffic.profile)} requests of the model "
        f"{traffic.model[:12] or 'without a hash'}, {left} wait for a full window, "
        f"{traffic.others} are of other models, {traffic.named} named their tasks"
    )
    return "\n".join(lines)


def to_json(windows: Sequence[Window], traffic: Traffic, config: DriftConfig) -> dict[str, Any]:
    """Plain values."""
    return {
        "model": traffic.model,
        "requests": len(traffic.profile),
        "config": asdict(config),
        "alerts": alert_lines(windows),
        "windows": [asdict(window) for window in windows],
    }


def write_html(
    windows: Sequence[Window],
    traffic: Traffic,
    config: DriftConfig,
    expected: dict[str, float],
    path: Path,
) -> None:
    """One file without links to others."""
    alerts = alert_lines(windows)
    figures = [task_shares(windows, expected), evidence(windows)]
    alerting = dict.fromkeys(signal.name for window in windows for signal in window.alerts)
    figures += [signal_values(windows, name) for name in alerting if name != "task share"]
    pictures = "\n".join(f'<img alt="" src="data:image/png;base64,{_png(f)}">' for f in figures)
    rows = "\n".join(_table_row(window) for window in windows)
    found = "".join(f"<li>{escape(line)}</li>" for line in alerts) or "<li>none</li>"
    text = f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Drift report</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; max-width: 60rem;
  margin: 2rem auto; padding: 0 1rem }}
img {{ max-width: 100%; display: block; margin: 1rem 0 }}
table {{ border-collapse: collapse }} td, th {{ padding: .2rem .7rem; text-align: left }}
tr.alert td {{ background: #fbe3d6 }}
</style>
<h1>{len(alerts)} alerts in {len(windows)} windows</h1>
<p>{escape(summary(windows, traffic).splitlines()[-1])}. Windows of {config.window} requests; chance
of any alert over {config.horizon} windows of unchanged traffic: at most {config.alpha:g}.</p>
<h2>Alerts</h2><ul>{found}</ul>
<h2>Pictures</h2>
{pictures}
<h2>Windows</h2>
<table><tr><th>requests</th><th>from</th><th>to</th><th>alerts</th></tr>
{rows}
</table></html>
"""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"--html {path}: cannot be written ({error.strerror})") from error


def _table_row(window: Window) -> str:
    names = ", ".join(signal.name for signal in window.alerts)
    cells = (
        f"{window.first} to {window.first + window.rows - 1}",
        time_text(window.start),
        time_text(window.end),
        names or "none",
    )
    kind = ' class="alert"' if names else ""
    return f"<tr{kind}>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"


def _png(figure: Any) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return base64.b64encode(buffer.getvalue()).decode()
