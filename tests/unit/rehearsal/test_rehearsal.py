"""A rehearsal stops where a step does not do what it should."""

from __future__ import annotations

import http.server
import threading
from pathlib import Path

import pytest

from moe.ports import free_port
from moe.rehearsal import loop
from moe.rehearsal.phrases import changed, flipped, new_phrasing, suite_rows, usual
from moe.rehearsal.shell import Server, StepFailed, run, serving, wait_for
from moe.release.scores import Gold
from moe.types import InputError

ROWS = [Gold(text="wake me", label="alarm"), Gold(text="play", label="music"),
        Gold(text="moon", inside=False)]


def script(folder: Path, text: str) -> Path:
    (folder / "program.py").write_text(text)
    return folder / "program.py"


def test_a_command_is_shown_with_its_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = script(tmp_path, "import sys; print('said', sys.argv[1:]); sys.exit(1)")
    assert run(program, "a b", 3, code=1) == "said ['a b', '3']\n"
    assert capsys.readouterr().out == f"\n$ python {program} 'a b' 3\nsaid ['a b', '3']\n"


def test_another_exit_code_stops_it(tmp_path: Path) -> None:
    program = script(tmp_path, "import sys; sys.exit(int(sys.argv[1]))")
    with pytest.raises(StepFailed, match=r"program\.py 2: exit code 2, expected 0"):
        run(program, 2)
    with pytest.raises(StepFailed, match=r"program\.py 0: exit code 0, expected 1"):
        run(program, 0, code=1)


def test_waiting_ends() -> None:
    answers = iter([False, True])
    assert wait_for("it", lambda: next(answers), 5) < 5
    with pytest.raises(StepFailed, match="the swap: not within 0 s"):
        wait_for("the swap", lambda: False, 0.01)


def test_a_server_that_does_not_start_stops_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parents[3])
    with (
        pytest.raises(StepFailed, match="the server ended with exit code 2"),
        serving(tmp_path / "log", "--registry", tmp_path / "none"),
    ):
        pytest.fail("it is not ready")
    assert "no version is current" in (tmp_path / "log").read_text()


class Refuses(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.send_response(429)
        self.send_header("x-model-hash", self.headers["Authorization"])
        self.end_headers()
        self.wfile.write(b'{"error": "busy"}')

    def log_message(self, *_: object) -> None: ...


def test_an_answer_that_is_refused_stops_it() -> None:
    port = free_port()
    with http.server.HTTPServer(("127.0.0.1", port), Refuses) as busy:
        threading.Thread(target=busy.serve_forever, daemon=True).start()
        server = Server(None, port)  # type: ignore[arg-type]
        assert server.post("/feedback", {}, "key") == (429, {"error": "busy"}, "Bearer key")
        with pytest.raises(StepFailed, match="/predict: status 429"):
            server.predict([{"text": "a"}], "key")
        busy.shutdown()


def test_what_is_asked() -> None:
    texts = new_phrasing()
    assert len(texts) == len(set(texts)) == 6 * 16 * 6
    assert usual(ROWS, 200) == usual(ROWS, 200)
    assert {r["text"] for r in usual(ROWS, 200)} == {"wake me", "play", "moon"}
    mixed = [request["text"] for request in changed(ROWS, texts, 100)]
    assert sum(text in texts for text in mixed) == 30 and len(mixed) == 100
    assert flipped(ROWS, ["alarm", "music"], 3) == [
        ("wake me 0", "music"), ("play 1", "alarm"), ("wake me 2", "music")]


def test_the_new_phrasing_is_in_no_row_of_the_sample() -> None:
    known = {row.text.casefold() for row in suite_rows("configs/suites/sample.yaml")["intent"]}
    assert len(known) > 100 and not known & set(new_phrasing())


def test_an_answer_right_or_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    routing = [{"task": "intent", "experts": [{"name": "intent-1"}]}]
    right = {"answers": {"intent": {"label": "set_alarm"}}, "routing": routing}
    wrong = {"answers": {"intent": {"label": None}}, "routing": routing}
    monkeypatch.setattr(Server, "predict", lambda self, asked, key: [right, wrong][: len(asked)])
    server = Server(None, 0)  # type: ignore[arg-type]
    assert loop._share_right(server, ["a", "b"]) == 0.5
    assert loop._most_common_expert([("a", wrong)]) == "intent-1"
    with pytest.raises(StepFailed, match="only 1 texts are answered wrongly"):
        loop._wrongly_answered(server, ["a", "b"])


def test_where_it_may_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="is there already; name a new folder"):
        loop.rehearse(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"no train\.py here; run this in the"):
        loop.rehearse(tmp_path / "new")
    monkeypatch.chdir(Path(__file__).parents[3])
    with pytest.raises(InputError, match=r"--suite none\.yaml: no such file"):
        loop.rehearse(tmp_path / "new", suite="none.yaml")
    assert not (tmp_path / "new").exists()
