"""What the callback writes, read back from the event file. Nothing is trained."""

from __future__ import annotations

from html import unescape
from types import SimpleNamespace

import numpy as np
import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugin_util import markdown_to_safe_html

from moe import pictures, plots
from moe.calibration import Calibration
from moe.collect import Answers
from moe.config import ExperimentConfig, TaskConfig
from moe.decode import WindowSaid
from moe.evaluation import evaluate
from moe.forms.span import SpanSaid
from moe.pictures import Pictures, escape, routing_shares, sample_table
from moe.types import TaskSpec

SPECS = (
    TaskSpec(name="qa", type="span", num_experts=1),
    TaskSpec(name="intent", type="classifier", num_experts=2, labels=("pay", "book"),
             out_of_scope="oos"),
)
EXPERTS = ("qa-0", "intent-0", "intent-1")
EVIL = "<script>alert(1)</script>|x **bold** [a](http://b) `c`\n\n# head"


class Table:
    """The part of a TaskTable that validation reads."""

    def __init__(self, task, rows):
        self.spec, self.task, self.records = SPECS[task], task, rows
        self.rows = {"answers": [row["answers"] for row in rows]}

    def labels(self):
        return np.array([row["label"] for row in self.records])

    def read(self, rows):
        return [self.records[row] for row in rows]


def row(text, label=-1, answers=()):
    return {"text": text, "label": label, "answers": list(answers)}


QA = Table(0, [row("Who?", answers=["an abbot", "abbot"]), row(EVIL, answers=["x"])])
INTENT = Table(1, [row("pay it", 0), row("book it", 1), row("sing", 2), row("pay me", 0)])


def qa_answers():
    return Answers(
        row_N=np.array([0, 1]),
        pooled_ND=np.zeros((2, 3), dtype=np.float32),
        allowed_NT=np.ones((2, 2), dtype=bool),
        mass_NT=np.array([[0.9, 0.1], [1.0 + 1e-7, 0.0]]),
        probabilities_NE=np.array([[0.9, 0.1, 0.0], [1.0, 0.0, 0.0]]),
        routed_N=np.array([True, True]),
        chosen_NE=np.array([[True, False, False], [True, False, False]]),
        said=(SpanSaid(text="the abbot", start=0, end=9, score=0.7, null=0.1),
              SpanSaid(text="y|z", start=0, end=3, score=0.4, null=0.2)),
    )


def intent_answers():
    # Rows: right; right but sent to qa; out of scope and rejected; wrong. The out-of-scope
    # score z_oos / 2 - logsumexp(z) is -4.5 - log(e^2 + 1) = -6.6, but 1.5 - log 2 = 0.8 > -1
    # for the third.
    logits = np.array([[2.0, 0, -9], [0, 2.0, -9], [0, 0, 3.0], [0, 2.0, -9]])
    return Answers(
        row_N=np.arange(4),
        pooled_ND=np.zeros((4, 3), dtype=np.float32),
        allowed_NT=np.ones((4, 2), dtype=bool),
        mass_NT=np.array([[0.2, 0.8], [0.6, 0.4], [0.5, 0.5], [0.1, 0.9]]),
        probabilities_NE=np.array(
            [[0.2, 0.8, 0.0], [0.6, 0.2, 0.2], [0.5, 0.0, 0.5], [0.1, 0.0, 0.9]]
        ),
        routed_N=np.array([True, False, False, True]),
        chosen_NE=np.array([[0, 1, 0], [1, 0, 0], [1, 0, 0], [0, 0, 1]], dtype=bool),
        said=tuple(
            WindowSaid(experts=[1], weights=[1.0], logits=[row], offset=0) for row in logits
        ),
    )


CALIBRATION = Calibration(out_of_scope={"intent": -1.0})


def module():
    tables, answers = (QA, INTENT), [qa_answers(), intent_answers()]
    tasks = {
        "qa": TaskConfig(type="span", train="q"),
        "intent": TaskConfig(type="classifier", train="i", experts=2),
    }
    return SimpleNamespace(
        model=SimpleNamespace(tasks=SPECS, expert_names=EXPERTS),
        validation=tables,
        answers=answers,
        calibration=CALIBRATION,
        evaluation=evaluate(tables, answers, CALIBRATION, SPECS),
        config=ExperimentConfig(tasks=tasks, seed_everything=7),
    )


def trainer(logger, sanity_checking=False):
    return SimpleNamespace(
        logger=logger, sanity_checking=sanity_checking, is_global_zero=True, global_step=30
    )


@pytest.fixture
def logger(tmp_path):
    logger = TensorBoardLogger(tmp_path, "run", "version_0", default_hp_metric=False)
    yield logger
    logger.experiment.close()


def written(logger):
    logger.experiment.flush()
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    return events


def test_validation_writes_every_documented_tag_at_the_global_step(logger):
    Pictures().on_validation_end(trainer(logger), module())
    events = written(logger)
    tags = events.Tags()
    assert set(tags["images"]) == {
        "pictures_gate/routing_matrix", "pictures_intent/confusion", "pictures_intent/reliability",
        "pictures_intent/out_of_scope",
    }
    assert set(tags["histograms"]) == {"gate_mass/qa", "gate_mass/intent"}
    assert set(tags["tensors"]) == {
        "samples/qa/text_summary", "samples/intent/text_summary", "intent_out_of_scope/pr_curve"
    }
    steps = [e.step for kind in (events.Images, events.Histograms, events.Tensors)
             for tag in tags[kind.__name__.lower()] for e in kind(tag)]
    assert steps == [30] * 9


def test_gate_mass_is_of_the_own_task_and_counts_every_row(logger):
    Pictures().on_validation_end(trainer(logger), module())
    histogram = written(logger).Histograms("gate_mass/qa")[0].histogram_value
    assert histogram.num == 2 and sum(histogram.bucket) == 2  # also the one a hair above 1
    assert histogram.min == 0.9 and histogram.max == 1.0


def test_precision_recall_curve_ranks_the_out_of_scope_row_first(logger):
    Pictures().on_validation_end(trainer(logger), module())
    proto = written(logger).Tensors("intent_out_of_scope/pr_curve")[0].tensor_proto
    values = np.array(proto.float_val or np.frombuffer(proto.tensor_content, np.float32))
    true_positives = values.reshape(6, -1)[0]
    # The one out-of-scope row has the larger of two distinct scores: rank 1 of 4 rows, 0.25.
    thresholds = np.linspace(0, 1, len(true_positives))
    np.testing.assert_array_equal(true_positives, (thresholds <= 0.25).astype(float))


def test_routing_matrix_is_made_from_the_answers(logger, monkeypatch):
    shares, names = routing_shares((QA, INTENT), [qa_answers(), intent_answers()])
    assert names == ["qa", "intent", "intent\noos"]
    third = 1 / 3  # in scope: rows 0, 1 and 3 chose intent-0, qa-0 and intent-1
    np.testing.assert_allclose(shares, [[1, 0, 0], [third, third, third], [1, 0, 0]])
    drawn = []
    real = plots.routing_matrix
    monkeypatch.setattr(plots, "routing_matrix", lambda *a: drawn.append(a) or real(*a))
    Pictures().on_validation_end(trainer(logger), module())
    np.testing.assert_allclose(drawn[0][0], shares)
    assert drawn[0][2] == EXPERTS


def test_confusion_shows_rejected_rows_as_out_of_scope(logger, monkeypatch):
    drawn = []
    real = plots.confusion_matrix
    monkeypatch.setattr(plots, "confusion_matrix", lambda *a: drawn.append(a) or real(*a))
    Pictures().on_validation_end(trainer(logger), module())
    label_N, answered_N, names = drawn[0]
    assert label_N.tolist() == [0, 1, 2, 0] and answered_N.tolist() == [0, 1, 2, 1]
    assert names == ["pay", "book", "oos"]


def test_samples_show_answer_score_gate_and_whether_it_was_right():
    lines = sample_table(INTENT, intent_answers(), CALIBRATION, SPECS, EXPERTS).splitlines()
    # softmax(2, 0)[0] = 0.88; the second row is right but would have gone to qa.
    assert lines[2] == "| ✓ | pay it | pay | pay (0.88) | intent 0.80, qa 0.20 |"
    assert lines[3] == "| ✗ | book it | book | book (0.88) | qa 0.60, intent 0.40 |"
    assert lines[4].startswith("| ✗ | sing | oos | oos (0.50) |")
    assert lines[5].startswith("| ✗ | pay me | pay | book (")
    qa = sample_table(QA, qa_answers(), CALIBRATION, SPECS, EXPERTS).splitlines()
    assert qa[2].startswith("| ✓ | Who&#63; | an abbot &#47; abbot | the abbot (0.70) | qa 0.90,")


def test_markup_in_texts_is_shown_and_does_nothing():
    table = sample_table(QA, qa_answers(), CALIBRATION, SPECS, EXPERTS)
    html = markdown_to_safe_html(table)  # as TensorBoard renders it
    rows = html.split("<tbody>")[1].split("<tr>")[1:]
    assert all(part.count("<td>") == 5 for part in rows)
    for tag in ("<script", "<strong", "<a ", "<code", "<h1"):
        assert tag not in html
    shown = unescape(html)
    assert "<script>alert(1)</script>|x **bold** [a](http://b) `c` # head" in shown
    assert "y|z" in shown


def test_escape_cuts_before_it_escapes():
    assert escape("|" * 121) == "&#124;" * 119 + "…"
    assert escape("|" * 120) == "&#124;" * 120


def test_samples_are_spread_over_the_table_and_stay_the_same():
    rows = Table(0, [row(f"q{i}", answers=["a"]) for i in range(71)])
    one = qa_answers()
    said = Answers(
        row_N=np.arange(71), pooled_ND=np.tile(one.pooled_ND[:1], (71, 1)),
        allowed_NT=np.tile(one.allowed_NT[:1], (71, 1)),
        mass_NT=np.tile(one.mass_NT[:1], (71, 1)),
        probabilities_NE=np.tile(one.probabilities_NE[:1], (71, 1)),
        routed_N=np.ones(71, dtype=bool), chosen_NE=np.tile(one.chosen_NE[:1], (71, 1)),
        said=one.said[:1] * 71,
    )
    lines = sample_table(rows, said, CALIBRATION, SPECS, EXPERTS).splitlines()[2:]
    assert [line.split("|")[2].strip() for line in lines] == [f"q{i}" for i in range(0, 71, 10)]


@pytest.mark.parametrize("change", [{"sanity_checking": True}, {"is_global_zero": False},
                                    {"logger": None}, {"logger": object()}])
def test_writes_nothing_where_it_must_not(logger, change, capsys):
    engine = SimpleNamespace(**{**vars(trainer(logger)), **change})
    Pictures().on_validation_end(engine, module())
    assert not any(v for v in written(logger).Tags().values())
    assert capsys.readouterr().out == ""


def test_without_matplotlib_one_line_and_no_images(logger, monkeypatch, capsys):
    monkeypatch.setattr(pictures, "find_spec", lambda name: None)
    callback = Pictures()
    for _ in range(2):
        callback.on_validation_end(trainer(logger), module())
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "pip install matplotlib" in out and "[plots]" in out
    tags = written(logger).Tags()
    assert not tags["images"] and "samples/qa/text_summary" in tags["tensors"]


def test_settings_and_results_reach_the_hparams_page(logger):
    lit = module()
    Pictures().on_train_end(trainer(logger), lit)
    events = written(logger)
    values = {t: [(e.step, e.value) for e in events.Scalars(t)] for t in events.Tags()["scalars"]}
    # qa: f1 of "the abbot" 100, of "y|z" against "x" 0. intent: rows 0, 1, 3 are in scope, row 1
    # is routed elsewhere, row 3 wrong: 1/3.
    assert values["hp/qa"] == [(30, 0.5)]
    assert values["hp/intent"] == [(30, pytest.approx(1 / 3))]
    assert values["hp/joint_score"] == [(30, pytest.approx((0.5 + 1 / 3) / 2))]
    assert {"_hparams_/experiment", "_hparams_/session_start_info"} <= set(
        events.summary_metadata
    )
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    for key in (b"optimizer.gate_lr", b"model.loss.switch", b"tasks.intent.experts",
                b"seed_everything"):
        assert key in content


def test_no_hparams_without_an_evaluation(logger):
    lit = module()
    lit.evaluation = None
    Pictures().on_train_end(trainer(logger), lit)
    assert not written(logger).Tags()["scalars"]
