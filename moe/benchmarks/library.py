"""The other side of `memory` and `startup`: Hugging Face's models alone, and nothing of ours.

Run as a program, so that neither this package nor Lightning is imported beside them:
`python moe/benchmarks/library.py memory|startup FOLDER THREADS`. FOLDER holds a tokenizer, the
models `sentiment`, `intent` and `qa`, and `texts.json`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def memory(folder: Path, threads: int) -> float:
    """PSS in MB of this process with three models that have each answered every text."""
    import torch
    from transformers import (
        AutoModelForQuestionAnswering,
        AutoModelForSequenceClassification,
        AutoTokenizer,
    )

    torch.set_num_threads(threads)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    models: list[Any] = [
        AutoModelForSequenceClassification.from_pretrained(folder / "sentiment").eval(),
        AutoModelForSequenceClassification.from_pretrained(folder / "intent").eval(),
        AutoModelForQuestionAnswering.from_pretrained(folder / "qa").eval(),
    ]
    for text in json.loads((folder / "texts.json").read_text(encoding="utf-8")):
        inputs = tokenizer(text, truncation=True, return_tensors="pt")
        for model in models:
            with torch.no_grad():
                model(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask)
    (entry,) = [
        row
        for row in Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
        if row.startswith("Pss:")
    ]
    return float(entry.split()[1]) * 1024 / 1e6


def startup(folder: Path, threads: int) -> float:
    """The number of the label of the first text, from one model."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.set_num_threads(threads)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder / "intent").eval()
    text = json.loads((folder / "texts.json").read_text(encoding="utf-8"))[0]
    inputs = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        logits = model(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask).logits
    return float(logits.argmax())


if __name__ == "__main__":
    print({"memory": memory, "startup": startup}[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3])))
