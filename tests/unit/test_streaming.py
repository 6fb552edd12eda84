"""Running a stream: every sample predicted once, resets where they are due, figures by shift."""

from __future__ import annotations

import mmap
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ssl_suite.adapter import AdaptReport
from ssl_suite.data.sources import ArraySource
from ssl_suite.data.streams import CLEAN, Segment, ShiftStreams
from ssl_suite.deploy_report import by_shift, draw_stream, scores
from ssl_suite.scoring import mistakes
from ssl_suite.streaming import Outcome, clean_error, memory, run_streams
from ssl_suite.testing import tiny_spec

SPEC = tiny_spec("images")
CPU = torch.device("cpu")
N = 40


@pytest.fixture(scope="module")
def data() -> Any:
    source = ArraySource(np.random.default_rng(0).integers(0, 256, (N, 1, 8, 8)).astype(np.uint8), np.arange(N) % 3)
    return SimpleNamespace(parts={"test": (source, np.arange(N))})


class Constant(nn.Module):
    """Always sure of one class."""

    def __init__(self, answer: int) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor, length: Tensor | None = None) -> Tensor:
        return nn.functional.one_hot(torch.full((len(x),), self.answer), 3).float()


class Script:
    """Answers the calls of an adapter; its answer moves to the next class at every update, and back on a reset."""

    def __init__(self, verdicts: tuple[str, ...] = ("ok",)) -> None:
        self.verdicts, self.calls, self.answer = verdicts, [], 0

    def predict(self, x: Tensor, length: Tensor | None = None) -> Tensor:
        self.calls.append(("predict", len(x)))
        return Constant(self.answer)(x)

    def predict_and_adapt(self, x: Tensor, length: Tensor | None = None, index: Tensor | None = None) -> tuple[Tensor, Any]:
        verdict = self.verdicts[sum(call == "adapt" for call, _ in self.calls) % len(self.verdicts)]
        self.calls.append(("adapt", len(x)))
        logits = Constant(self.answer)(x)
        self.answer = (self.answer + (verdict == "ok")) % 3
        return logits, AdaptReport(0.0, len(x) if verdict == "ok" else 0, verdict)  # type: ignore[arg-type]

    def reset(self) -> None:
        self.calls.append(("reset", 0))
        self.answer = 0


def went(data: Any, adapter: Script, **given: Any) -> list[Outcome]:
    stream = ShiftStreams(**{"shifts": ["fog", CLEAN], "family": "digits", "batch_size": 10, **given})
    return run_streams(adapter, Constant(0), data, SPEC, stream, CPU)


def only(adapter: Script, kind: str) -> int:
    return sum(call == kind for call, _ in adapter.calls)


def test_each_sample_is_predicted_once_and_before_it_is_learned(data: Any) -> None:
    outcomes = went(data, Script())
    for outcome in outcomes:
        y = data.parts["test"][0].targets[outcome.segment.rows]
        assert outcome.source == [float(c != 0) for c in y]
        assert outcome.adapted == [float(c != i // 10 % 3) for i, c in enumerate(y)]
        row = outcome.row()
        assert (row["n"], row["n_used"], row["updates"], row["skipped"]) == (N, N, 4, 0)
        assert row["error_source"] == pytest.approx(np.mean(y != 0))
        assert row["gain"] == pytest.approx(row["error_source"] - row["error_adapted"])
        assert len(outcome.source_ms) == len(outcome.adapted_ms) == 4
        assert 0 < row["ms_median"] <= row["ms_p95"]


def test_resets_and_clean_errors_of_a_benchmark(data: Any) -> None:
    adapter = Script()
    first, last = went(data, adapter)
    assert [first.resets, last.resets] == [[N], []], "the last state is kept, and saved"
    y = data.parts["test"][0].targets
    for outcome in (first, last):
        assert outcome.clean_after == pytest.approx(np.mean(y != 1)), "after four updates the answer is class 1"
    assert [call for call, _ in adapter.calls] == (["adapt"] * 4 + ["predict"] * 4 + ["reset"] + ["adapt"] * 4 + ["predict"] * 4)


def test_never_measures_once_unless_forgetting_is_asked_for(data: Any) -> None:
    adapter = Script()
    first, last = went(data, adapter, reset="never")
    assert np.isnan(first.clean_after)
    assert not np.isnan(last.clean_after)
    assert only(adapter, "reset") == 0
    first, last = went(data, adapter, reset="never", forgetting=True)
    assert not np.isnan(first.clean_after)


def test_reset_after_so_many_updates_counts_over_segments_and_not_what_was_skipped(data: Any) -> None:
    first, last = went(data, Script(), reset=3)
    assert [first.resets, last.resets] == [[30], [20]]
    first, last = went(data, Script(("ok", "skip")), reset=3)
    assert [first.resets, last.resets] == [[], [10]]
    assert first.row()["skipped"] == 2


def test_verdicts_of_a_guard_are_counted(data: Any) -> None:
    first, last = went(data, Script(("ok", "rollback", "reset", "disable")), reset="never")
    row = first.row()
    assert (row["updates"], row["skipped"], row["resets"]) == (1, 1, 1)
    assert first.resets == [30]
    first, last = went(data, Script(("ok", "ok", "reset")), reset=3)
    assert [first.resets, last.resets] == [[30], [20]], "a guard's own reset starts the count anew"


def test_mixed_shifts_are_told_apart(data: Any) -> None:
    (outcome,) = went(data, Script(), order="mixed")
    inner = outcome.inner_rows()
    assert [row["shift"] for row in inner] == ["mixed:fog", "mixed:clean"]
    assert [row["n"] for row in inner] == [N, N]
    wrong = np.array(outcome.adapted)
    assert [row["error_adapted"] for row in inner] == [wrong[outcome.segment.which == i].mean() for i in (0, 1)]
    found, _ = scores([outcome], 0.0)
    assert found["error_adapted_fog"] == found["error_adapted"] == inner[0]["error_adapted"]
    assert found["error_adapted_clean"] == inner[1]["error_adapted"]


def test_figures_by_shift_join_rounds_and_severities(data: Any) -> None:
    outcomes = went(data, Script(("ok", "skip")), repeats=2, reset="never")
    table = by_shift(outcomes)
    assert list(table) == ["fog", CLEAN]
    assert table["fog"]["n"] == 2 * N
    assert table["fog"]["skipped"] == 4
    assert table["fog"]["error_adapted"] == pytest.approx(np.mean([np.mean(outcomes[i].adapted) for i in (0, 2)]))
    found, source = scores(outcomes, 0.25)
    assert found["error_adapted"] == table["fog"]["error_adapted"], "clean data are no shift"
    rounds = [np.mean(outcomes[i].adapted + outcomes[i + 1].adapted) for i in (0, 2)]
    assert [found["error_adapted_round_1"], found["error_adapted_round_2"]] == pytest.approx(rounds)
    assert found["share_used"] == 0.5
    assert found["error_clean_before"] == 0.25
    assert source["error_fog"] == pytest.approx(table["fog"]["error_source"])
    gradual = went(data, Script(), order="gradual", shifts=["fog"], reset="never")
    assert [o.row()["shift"] for o in gradual][:2] == ["fog:1", "fog:2"]
    assert by_shift(gradual)["fog"]["n"] == 9 * N


def test_mistakes_are_confined_to_the_classes_that_occur() -> None:
    logits, y = torch.tensor([[3.0, 1.0, 2.0], [0.0, 2.0, 1.0]]), torch.tensor([2, 1])
    assert mistakes(logits, {"y": y}) == [1.0, 0.0]
    assert mistakes(logits, {"y": y}, np.array([1, 2])) == [0.0, 0.0]


def test_clean_error_does_not_learn(data: Any) -> None:
    adapter = Script()
    stream = ShiftStreams(shifts=[CLEAN], batch_size=16, limit=20)
    y = data.parts["test"][0].targets[np.random.default_rng(0).permutation(N)[:20]]
    assert clean_error(adapter.predict, data, SPEC, stream, CPU) == pytest.approx(np.mean(y != 0))
    assert only(adapter, "adapt") == 0


def test_memory_sees_what_is_allocated() -> None:
    seen = []
    for _ in range(5):  # the system may take pages back meanwhile
        before = memory(CPU)
        with mmap.mmap(-1, 64 * 2**20) as held:  # fresh pages: an array may be given ones that a freed array has left
            held.write(b"1" * len(held))
            seen.append(memory(CPU) - before)
    assert any(40 < more < 200 for more in seen), seen


@pytest.mark.parametrize("kind", ["mixed", "long", "gradual"])
def test_pictures_of_unusual_streams(kind: str, tmp_path: Any) -> None:
    rng = np.random.default_rng(0)
    names = {"mixed": ["mixed"], "long": [f"shift{i % 15}" for i in range(90)],
             "gradual": [f"fog:{s}" for s in (1, 2, 3, 2, 1)]}[kind]
    outcomes = [Outcome(Segment(name, ((name, 5),), np.zeros(60, int), np.arange(60)), rng.integers(0, 2, 60).tolist(),
                        rng.integers(0, 2, 60).tolist(), [1] * 60, resets=[30], clean_after=0.1) for name in names]
    draw_stream(tmp_path / "stream.png", outcomes)
    assert (tmp_path / "stream.png").stat().st_size > 5000
