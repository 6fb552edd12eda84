"""Series sets that come with aeon: no download."""

from __future__ import annotations

from typing import Any

from datamodules.base import SourceDataModule
from ssl_suite.config import require
from ssl_suite.data.arrays import class_numbers
from ssl_suite.data.series import series_source
from ssl_suite.data.sources import Source
from ssl_suite.data.ucr import equal_length

BUNDLED = ("ItalyPowerDemand", "BasicMotions", "GunPoint", "JapaneseVowels", "ArrowHead", "OSULeaf", "ACSF1",
           "PickupGestureWiimoteZ", "UnitTest")


class BundledSeriesDataModule(SourceDataModule):
    """A classification set of the UCR and UEA archives with its official split.

    Args:
        name: one of the sets that aeon brings along: ItalyPowerDemand (67 + 1029 series of 24 hours, winter or summer),
            BasicMotions (40 + 40, 6 channels), GunPoint, JapaneseVowels (unequal lengths), ArrowHead, OSULeaf, ACSF1,
            PickupGestureWiimoteZ, UnitTest.
        common: see `SourceDataModule`.

    Raises:
        ImportError: aeon is missing.
        ValueError: aeon does not bring the set; other files are read by `UCRDataModule`.
    """

    modality = "series"

    def __init__(self, name: str = "ItalyPowerDemand", **common: Any) -> None:
        super().__init__(**common)
        self.name = name
        self.names: tuple[str, ...] = ()

    def class_names(self) -> tuple[str, ...]:
        return self.names

    def sources(self) -> dict[str, Source]:
        if self.name not in BUNDLED:
            raise ValueError(f"data.name={self.name} does not come with aeon ({', '.join(BUNDLED)} do); "
                             "read files of your own with data=ucr_files data.path=FOLDER")
        load = require("aeon.datasets", extra="series").load_classification
        parts = {part: load(self.name, split=part, load_equal_length=False) for part in ("train", "test")}
        targets, self.names = class_numbers({part: y for part, (_, y) in parts.items()})
        return {
            part: series_source(equal_length(x), targets[part], None, f"{self.name} ({part})")
            for part, (x, _) in parts.items()
        }
