"""Recordings in a streamed set, on a disk or in the cloud."""

from __future__ import annotations

from typing import Any

import numpy as np

from datamodules.speech.speech_folder import SpeechFolderDataModule
from ssl_suite.data.audio import EncodedAudio, Read
from ssl_suite.data.files import Columns
from ssl_suite.data.sources import Source
from ssl_suite.data.streamed import Streamed


class StreamedSpeechDataModule(SpeechFolderDataModule):
    """What `SpeechFolderDataModule` is for a folder or a list, for a set that ``scripts/prepare_arrays.py streamed`` made of it.

    ``path`` may be an address in the cloud; see `ssl_suite.data.streamed.Streamed`. An epoch goes through the chunks of the set in
    random order, a few at a time, and through their recordings in random order; a resumed run goes on at the same recording.
    """

    blocks: np.ndarray

    def recordings(self) -> tuple[Read, np.ndarray, np.ndarray, Columns]:
        streamed = Streamed(self.path)
        if "lengths" not in streamed.columns:
            raise ValueError(f"data.path={self.path} holds no recordings; pictures are read with data=streamed_images")
        self.blocks = streamed.blocks
        return EncodedAudio(streamed.content), streamed.columns["lengths"], streamed.columns["rates"], streamed.columns

    def sources(self) -> dict[str, Source]:
        sources: dict[str, Any] = super().sources()
        for source in sources.values():
            source.blocks = self.blocks[source.read.rows]
        return sources
