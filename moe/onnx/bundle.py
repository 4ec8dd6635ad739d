"""The folder that `scripts/export.py` writes, read with numpy, tokenizers and onnxruntime alone.

Dimensions: B windows, L tokens, D encoder width, E experts, C classes.
"""

from __future__ import annotations

import math
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from moe.calibration import Calibration
from moe.data.windows import PaddedWindows, TextTokenizer
from moe.decode import Floats
from moe.onnx.scan import check_graph
from moe.types import InputError, TaskSpec
from moe.untrusted import check_archive, check_inside, read_json, read_text

FORMAT, FORMAT_VERSION = "onnx", 1
CONFIG, TOKENIZER, REFERENCE = "config.json", "tokenizer.json", "reference.npz"
Precision = Literal["fp32", "int8"]
# The runtime's one operator for a sum and its layer norm takes five times as long as the two
# (onnxruntime 1.31, `docs/performance.md`).
SLOW_FUSIONS = ["SkipLayerNormFusion"]
FILES: dict[str, str] = {"fp32": "model.onnx", "int8": "model_int8.onnx"}


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Windows after the encoder.

    Attributes:
        feeds: What the graph was given, and the token states, for `run_experts`.
        gate_logits_BE: Of each window alone.
        pooled_BD: What the gate read: twice D wide if that is two means.
        logits: Of the experts that ran with the encoder: see `run_experts`.
    """

    feeds: dict[str, NDArray[Any]]
    gate_logits_BE: NDArray[np.float32]
    pooled_BD: NDArray[np.float32]
    logits: dict[int, NDArray[np.float32]]


class OnnxGraph:
    """An exported graph on the CPU.

    Args:
        file: The `.onnx` file.
        threads: Threads that one request may use; None takes one per core.
    """

    def __init__(self, file: str | Path, threads: int | None = None) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise InputError(
                "backend 'onnx' needs onnxruntime, which is not installed: pip install -e '.[onnx]'"
            ) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = 3  # it warns of optional inputs, which are wanted
        try:
            self.session = onnxruntime.InferenceSession(
                str(file),
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=SLOW_FUSIONS,
            )
        except Exception as error:  # the runtime's own have no common ancestor
            raise InputError(
                f"{file}: cannot be read as a graph ({str(error)[:120]}): export again"
            ) from error
        # gate_logits, pooled, hidden, and then the experts in the gate's order
        self.expert_names = tuple(value.name for value in self.session.get_outputs()[3:])

    def encode(self, windows: PaddedWindows, chosen_BE: NDArray[np.bool_] | None = None) -> Encoded:
        """Encoder and gate, and experts that are wanted whatever the gate says.

        Args:
            windows: B windows.
            chosen_BE: Which experts on which windows; None is none. It saves them a run of their
                own.
        """
        feeds = {
            "input_ids": windows.input_ids,
            "attention_mask": windows.attention_mask.astype(np.int64),
            "context_mask": windows.context_mask.astype(np.int64),
        }
        if chosen_BE is None:
            chosen_BE = np.zeros((len(windows.input_ids), len(self.expert_names)), dtype=bool)
        (gate, pooled, hidden), logits = self._run(
            ["gate_logits", "pooled", "hidden"], feeds, chosen_BE
        )
        return Encoded(
            feeds={**feeds, "known_hidden": hidden},
            gate_logits_BE=gate,
            pooled_BD=pooled,
            logits=logits,
        )

    def run_experts(
        self, encoded: Encoded, chosen_BE: NDArray[np.bool_]
    ) -> dict[int, NDArray[np.float32]]:
        """Logits by expert of those that some window chose, (B, C), (B, L, 2) or (B, L, C).

        0 in the windows that did not choose the expert.
        """
        return self._run([], encoded.feeds, chosen_BE)[1]

    def _run(
        self, names: list[str], feeds: dict[str, NDArray[Any]], chosen_BE: NDArray[np.bool_]
    ) -> tuple[list[NDArray[np.float32]], dict[int, NDArray[np.float32]]]:
        """The outputs of these names, and the logits of the chosen experts by column."""
        columns: list[int] = np.flatnonzero(chosen_BE.any(0)).tolist()
        # Not `run_with_ort_values`: of a short request its wrapper takes a tenth.
        outputs = self.session.run(
            [*names, *(self.expert_names[column] for column in columns)],
            {**feeds, "chosen": chosen_BE},
        )
        return outputs[: len(names)], dict(zip(columns, outputs[len(names) :], strict=True))


@dataclass(frozen=True, kw_only=True)
class OnnxBundle:
    """A graph with everything that it needs to answer.

    Attributes:
        graph: Encoder, gate and experts.
        tokenizer: The encoder's.
        tasks: What the experts answer.
        calibration: Fitted temperatures and thresholds.
        precision: `fp32` or `int8`.
        selection_bias_E: Added to the gate's logits to choose inside a task.
        top_k: Experts per chosen task.
        multi_task_threshold: A task above this mass is chosen too; None chooses one task.
        max_length: Longest window in tokens, special tokens included.
        stride: Context tokens that neighbouring windows share.
        max_tokens: Most tokens of a micro-batch, padding included.
        max_padding: Most padding of a micro-batch, as a share of its tokens.
        metrics: Validation of the checkpoint, in the shape of `eval.py --json`.
    """

    graph: OnnxGraph
    tokenizer: TextTokenizer
    tasks: tuple[TaskSpec, ...]
    calibration: Calibration
    precision: str
    selection_bias_E: Floats
    top_k: int
    multi_task_threshold: float | None
    max_length: int
    stride: int
    max_tokens: int
    max_padding: float
    metrics: dict[str, Any]


def load_onnx(
    folder: str | Path, precision: Precision | None = None, threads: int | None = None
) -> OnnxBundle:
    """Reads what `scripts/export.py` wrote.

    Args:
        folder: Its `--out`.
        precision: Which graph; None takes int8 if it was exported and `multiplies_bytes`.
        threads: Threads that one request may use; None takes one per core.

    Raises:
        InputError: It is missing, damaged, of another format version, or without that precision.
    """
    folder = Path(folder)
    saved = _read_config(folder)
    try:
        exported = saved["precisions"]
        precision = precision or ("int8" if "int8" in exported and multiplies_bytes() else "fp32")
        if precision not in exported:
            raise InputError(
                f"{folder}: no precision {precision!r}, it has {sorted(exported)}: export again "
                "with --int8"
            )
        arrays = _read_arrays(folder / REFERENCE)
        graph, tokenizer = folder / FILES[precision], folder / TOKENIZER
        for file in (graph, tokenizer):
            check_inside(file, folder)
        check_graph(graph)
        gate = {**saved["gate"]}
        return OnnxBundle(
            graph=OnnxGraph(graph, threads),
            tokenizer=_tokenizer(tokenizer),
            tasks=tuple(TaskSpec.from_dict(task) for task in saved["tasks"]),
            calibration=Calibration.from_saved(
                saved["calibration"], {k: v.astype(np.float32) for k, v in arrays.items()}
            ),
            precision=precision,
            selection_bias_E=np.array(gate.pop("selection_bias"), dtype=np.float64),
            metrics=saved["metrics"],
            **gate,
            **saved["windows"],
        )
    except InputError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{folder}: not a complete export ({reason}): export again") from error


def multiplies_bytes(cpu_info: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this processor adds products of 8-bit integers in 32 bits.

    x86 without VNNI adds two of them in 16 bits, which overflows: answers of an int8 graph may be
    wrong there.
    """
    try:
        flags = cpu_info.read_text(encoding="utf-8")
    except OSError:  # not Linux
        return True
    return "sse2" not in flags or "vnni" in flags  # ARM has such instructions


def _tokenizer(path: Path) -> TextTokenizer:
    text = read_text(path)
    try:
        return TextTokenizer.from_json(text)
    except Exception as error:  # tokenizers raises nothing more specific
        raise InputError(f"{path}: cannot be read as a tokenizer ({str(error)[:120]})") from error


def _read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an `.npz`, empty without the file; none is larger than its bytes in there."""
    if not os.path.lexists(path):
        return {}
    check_inside(path, path.parent)
    entries = check_archive(path)
    with zipfile.ZipFile(path) as archive:
        for entry in entries:
            with archive.open(entry) as file:
                version = np.lib.format.read_magic(file)
                if version != (1, 0):
                    raise ValueError(f"{path.name}: array format {version}, expected (1, 0)")
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            if math.prod(shape) * dtype.itemsize > entry.file_size or dtype.kind != "f":
                raise ValueError(f"{path.name}: {entry.filename} claims {shape} of {dtype}")
    arrays = dict(np.load(path, allow_pickle=False))
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{path.name}: {name} holds a NaN or an infinity")
    return arrays


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        check_inside(folder / CONFIG, folder)
        saved = read_json(folder / CONFIG)
    except InputError as error:
        raise InputError(
            f"{folder}: no export for backend 'onnx' ({error}): write one with "
            "python scripts/export.py --ckpt PATH --out DIR"
        ) from error
    if saved.get("format") != FORMAT:
        raise InputError(
            f"{folder}: a folder for backend 'torch', expected one that "
            "python scripts/export.py --ckpt PATH --out DIR wrote"
        )
    if saved.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{folder}: export format version {saved.get('format_version')!r}, this program reads "
            f"{FORMAT_VERSION}: export again"
        )
    return saved
