"""`transformers.pipeline("mixture-of-experts", model=FOLDER)`: answers in that library's forms.

Importing this module registers the pipeline. A folder is one that `save_pretrained` wrote; a
`.ckpt` is given as a loaded predictor, since transformers would read it as a JSON config:
`pipeline("mixture-of-experts", model=MixtureOfExperts.from_pretrained("best.ckpt"))`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import AutoConfig, Pipeline, PreTrainedConfig
from transformers.pipelines import PIPELINE_REGISTRY

from moe.checkpoint import MODEL_TYPE
from moe.forms import FORMS
from moe.predict import MixtureOfExperts
from moe.types import InputError, TaskSpec


class MixtureConfig(PreTrainedConfig):  # type: ignore[misc]
    """The `config.json` of a folder, as far as `transformers.pipeline` wants one."""

    model_type = MODEL_TYPE


class PipelineModel:
    """What `transformers.Pipeline` asks of a model, around a predictor.

    Args:
        predictor: What answers.
    """

    dtype = torch.float32
    input_modalities = "text"
    hf_device_map = None

    def __init__(self, predictor: MixtureOfExperts) -> None:
        self.predictor = predictor

    @classmethod
    def from_pretrained(
        cls,
        source: str,
        *,
        dtype: Any = "auto",
        revision: str | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        **_: Any,
    ) -> PipelineModel:
        """Called by `transformers.pipeline` with a folder or a hub id.

        Raises:
            InputError: Another number format was asked for, or the model cannot be loaded.
        """
        if dtype not in ("auto", None, torch.float32):
            raise InputError(f"pipeline: dtype {dtype} is not offered, only torch.float32")
        if not Path(source).exists():
            source = snapshot_download(
                source, revision=revision, token=token, local_files_only=local_files_only
            )
        return cls(MixtureOfExperts.from_pretrained(source))

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.predictor.device

    def to(self, device: torch.device) -> PipelineModel:
        """Moves the model."""
        self.predictor = MixtureOfExperts(self.predictor.bundle, str(device))
        return self

    def can_generate(self) -> bool:
        """Whether it writes text."""
        return False


class MixtureOfExpertsPipeline(Pipeline):  # type: ignore[misc]
    """A gate and its experts behind the interface of `transformers`.

    A text is answered as by `text-classification`: a list of entries with `label` and `score`. The
    gate decides which task answers, so a text with a context may get a span. An input with
    `question` and `context` is answered as by the `question-answering` pipeline that transformers
    5.3 removed, a dictionary with `answer`, `score`, `start` and `end`: it names the model's span
    tasks, unless `tasks` says otherwise. Each entry has `task`, `expert` (the one with the largest
    weight) and `abstained`. Where several tasks answer there is a list of entries. Lists,
    generators and data sets are batched and streamed by `MixtureOfExperts.predict`.

    Args:
        model: A predictor, or what `transformers.pipeline` made of its `model`.
        tasks: Tasks to answer, without asking the gate.
        kwargs: Of `transformers.Pipeline`, such as `device`.
    """

    _load_tokenizer = False  # type: ignore[assignment]

    def __init__(self, model: Any, **kwargs: Any) -> None:
        if isinstance(model, str | Path):
            model = MixtureOfExperts.from_pretrained(model)
        if not isinstance(model, PipelineModel):
            model = PipelineModel(model)
        if kwargs.get("device") is None:
            kwargs["device"] = model.device
        super().__init__(model=model, **kwargs)

    def __call__(self, inputs: Any = None, **kwargs: Any) -> Any:  # type: ignore[override]
        """Answers a text, a dictionary, or many of these; see the class.

        Args:
            inputs: A text; a dictionary with `text` or `question`, and perhaps `context` and
                `tasks`; an iterable of these; or a `datasets.Dataset`.
            kwargs: `question` and `context` instead of inputs; `tasks` for this call.

        Raises:
            InputError: A request is malformed.
        """
        if inputs is None:
            inputs = {k: kwargs.pop(k) for k in ("question", "context") if k in kwargs}
        # Sizes of batches are a matter of the token budget.
        kwargs = {k: v for k, v in kwargs.items() if k not in ("batch_size", "num_workers")}
        _, options, _ = self._sanitize_parameters(**kwargs)
        tasks = {**self._forward_params, **options}.get("tasks")
        predict = self._predictor.predict
        prepare = partial(self.preprocess, tasks=tasks)
        if isinstance(inputs, str | dict):
            entries = self.postprocess(predict(prepare(inputs), tasks=tasks))
            return [entries] if isinstance(inputs, str) and isinstance(entries, dict) else entries
        requests = inputs
        if not hasattr(inputs, "with_format"):  # `predict` reads data sets itself
            requests = map(prepare, inputs)
            requests = list(requests) if isinstance(inputs, Sized) else requests
        answers = map(self.postprocess, predict(requests, tasks=tasks))
        return list(answers) if isinstance(inputs, Sized) else answers

    @property
    def _predictor(self) -> MixtureOfExperts:
        model: Any = self.model
        predictor: MixtureOfExperts = model.predictor
        return predictor

    def _sanitize_parameters(
        self, tasks: Sequence[str] | None = None, **unknown: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if unknown:
            raise InputError(f"pipeline: no option {min(unknown)!r}, known: tasks")
        return {}, {} if tasks is None else {"tasks": tasks}, {}

    def preprocess(self, inputs: Any, tasks: Any = None) -> Any:  # type: ignore[override]
        """The request of one input: `question` is another name of `text`, and asks for a span.

        Args:
            inputs: A text or a dictionary.
            tasks: Those of the call, which come before the span tasks.
        """
        if not isinstance(inputs, Mapping) or "question" not in inputs:
            return inputs
        if "text" in inputs:
            raise InputError("pipeline: give either question or text, not both")
        request = {("text" if k == "question" else k): v for k, v in inputs.items()}
        spans = [task.name for task in self._predictor.tasks if task.needs_context]
        if tasks is None and request.get("tasks") is None and spans:
            request["tasks"] = spans
        return request

    def _forward(self, request: Any, tasks: Any = None) -> Any:  # type: ignore[override]
        return self._predictor.predict(request, tasks=tasks)

    def postprocess(self, said: dict[str, Any], **_: Any) -> Any:  # type: ignore[override]
        """One entry, or a list of them where several tasks answered."""
        entries = pipeline_entries(said, self._predictor.tasks)
        return entries[0] if len(entries) == 1 else entries

    def save_pretrained(self, save_directory: Any, **_: Any) -> None:
        """Writes the folder that `model=` reads."""
        self._predictor.save_pretrained(save_directory)


def pipeline_entries(said: Mapping[str, Any], tasks: Sequence[TaskSpec]) -> list[dict[str, Any]]:
    """An answer of `predict` as entries of a pipeline, the most probable task first.

    Out of scope has the label that the training data has for it. An abstained request has the
    keys of labels and of spans of a context: label None, an empty answer, score 0. A tagger gives
    an entry per span, perhaps none.

    Args:
        said: What `predict` returned for one request.
        tasks: All tasks of the model.
    """
    if said["abstained"]:
        nothing = {"label": None, "score": 0.0, "answer": "", "start": 0, "end": 0}
        return [{**nothing, "task": None, "expert": None, "abstained": True}]
    specs = {task.name: task for task in tasks}
    entries = []
    for chosen in said["routing"]:
        answer = said["answers"][chosen["task"]]
        best = max(chosen["experts"], key=lambda expert: float(expert["weight"]))
        entry = {"task": chosen["task"], "expert": best["name"], "abstained": False}
        spec = specs[chosen["task"]]
        entries += [{**said_of, **entry} for said_of in FORMS[spec.type].entries(spec, answer)]
    return entries


AutoConfig.register(MODEL_TYPE, MixtureConfig)
PIPELINE_REGISTRY.register_pipeline(
    MODEL_TYPE, pipeline_class=MixtureOfExpertsPipeline, pt_model=PipelineModel
)
