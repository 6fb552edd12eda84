"""What answers about pairs imply, what is asked next, and the file of both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ssl_suite.data.relations import SimilarityGraph, ask, from_labels, propose


def test_answers_hold_for_all_that_they_imply() -> None:
    rng = np.random.default_rng(0)
    y, graph = rng.integers(0, 4, 30), SimilarityGraph(30)
    told = []
    for _ in range(120):
        i, j = rng.choice(30, 2, replace=False)
        if (known := graph.same(i, j)) is None:
            told.append((i, j))
            graph.tell(int(i), int(j), bool(y[i] == y[j]))
        else:
            assert known == (y[i] == y[j])
        assert graph.same(i, j) == (y[i] == y[j])
    component = graph.components()
    linked = component[:, None] == component
    assert not linked[y[:, None] != y].any()
    for a in range(30):
        for b in range(30):
            assert (graph.same(a, b) is True) == linked[a, b]


def test_a_contradiction_is_named() -> None:
    graph = SimilarityGraph(4)
    graph.tell(0, 1, True)
    graph.tell(1, 2, False)
    with pytest.raises(ValueError, match="samples 0 and 2 cannot be the same"):
        graph.tell(0, 2, True)
    with pytest.raises(ValueError, match="not among the 4"):
        graph.tell(0, 4, True)


def test_labels_say_everything_with_few_answers() -> None:
    y = np.array([2, 0, 1, 0, 2, 2])
    graph = from_labels(8, np.arange(1, 7), y)
    assert len(graph.answers) == 3 + 3
    assert all(graph.same(i + 1, j + 1) == (y[i] == y[j]) for i in range(6) for j in range(6))
    assert graph.same(0, 1) is None


@pytest.mark.parametrize("strategy", ["active", "passive"])
def test_nothing_is_asked_twice_and_questions_end(strategy: str) -> None:
    rng = np.random.default_rng(0)
    y = np.arange(24) % 3
    z, graph, seen = np.eye(3)[y] + 0.1 * rng.normal(size=(24, 3)), SimilarityGraph(24), set()

    def oracle(i: int, j: int) -> bool:
        assert graph.same(i, j) is None
        assert frozenset((i, j)) not in seen
        seen.add(frozenset((i, j)))
        return bool(y[i] == y[j])

    answers = ask(graph, np.arange(24), z, oracle, 300, strategy, rng)  # type: ignore[arg-type]
    assert len(answers) == len(graph.answers) == len(seen) < 276
    if strategy == "active":
        assert len(np.unique(graph.components())) == 3
        assert np.mean(answers) > 0.8


def test_the_most_similar_pairs_come_first_and_no_component_twice() -> None:
    z = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 2.0], [0.0, 1.9], [-1.0, 0.0]])
    assert propose(SimilarityGraph(9), np.array([3, 4, 5, 6, 8]), z, 2, "active", np.random.default_rng(0)) in (
        [(5, 6), (3, 4)], [(6, 5), (3, 4)], [(5, 6), (4, 3)], [(6, 5), (4, 3)])
    with pytest.raises(ValueError, match="'greedy'"):
        propose(SimilarityGraph(5), np.arange(5), z, 2, "greedy", np.random.default_rng(0))  # type: ignore[arg-type]


def test_a_file_keeps_answers_and_open_questions(tmp_path: Path) -> None:
    path, graph = tmp_path / "pairs.csv", SimilarityGraph(6)
    graph.tell(0, 3, True)
    graph.tell(3, 4, False)
    graph.save(path, [(1, 2)])
    back = SimilarityGraph.load(path, 6)
    assert back.answers == graph.answers
    assert back.same(1, 2) is None
    path.write_text(path.read_text().replace("1,2,", "0,4,1"))
    with pytest.raises(ValueError, match="line 4: samples 0 and 4"):
        SimilarityGraph.load(path, 6)
    path.write_text("first,second\n0,1\n")
    with pytest.raises(ValueError, match="lacks the columns same"):
        SimilarityGraph.load(path, 6)
    path.write_text("first,second,same\n0,1,yes\n")
    with pytest.raises(ValueError, match="same=yes"):
        SimilarityGraph.load(path, 6)
