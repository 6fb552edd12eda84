"""Labels of any kind become class numbers, and those that mean no class are told."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from ssl_suite.data.arrays import class_numbers


def test_names_words_and_numbers_with_gaps() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        numbers, names = class_numbers({"train": np.array([9, 2, 2, 5]), "test": np.array([5.0])})
        assert class_numbers({"all": np.array([1, 0])}, np.array(["cat", "dog"]))[1] == ("cat", "dog")
        assert class_numbers({"all": np.array([-1, 1])})[1] == ("-1", "1")
        assert class_numbers({"train": np.array(["b", "a"]), "test": None})[1] == ("a", "b")
    assert numbers["train"] is not None
    assert numbers["test"] is not None
    assert numbers["train"].tolist() == [2, 0, 0, 1]
    assert numbers["test"].tolist() == [1]
    assert names == ("2.0", "5.0", "9.0")


@pytest.mark.parametrize("bad", [0.5, np.nan, np.inf])
def test_a_label_that_is_no_whole_number_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match=f"train labels hold {bad}, which is no class"):
        class_numbers({"train": np.array([0.0, 1.0, bad]), "test": np.array([0, 1])})


def test_a_minus_one_that_may_mean_no_label_is_told() -> None:
    with pytest.warns(UserWarning, match=r"-1 is a class like the others.*split_file"):
        class_numbers({"train": np.array([-1, 0, 1, 2])})


def test_a_class_of_the_test_part_alone_is_told() -> None:
    with pytest.warns(UserWarning, match=r"no training sample has label 7"):
        class_numbers({"train": np.array([0, 1]), "test": np.array([1, 7])})
