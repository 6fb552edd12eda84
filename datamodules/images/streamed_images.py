"""Pictures in a streamed set, on a disk or in the cloud."""

from __future__ import annotations

from typing import Any

from datamodules.images.image_folder import ImageFolderDataModule
from ssl_suite.data.files import Columns, Encoded
from ssl_suite.data.sources import Source
from ssl_suite.data.streamed import Streamed


class StreamedImagesDataModule(ImageFolderDataModule):
    """What `ImageFolderDataModule` is for a folder, for a set that ``scripts/prepare_arrays.py streamed`` made of one.

    ``path`` may be an address in the cloud; see `ssl_suite.data.streamed.Streamed`. An epoch goes through the chunks of the set in
    random order, a few at a time, and through their pictures in random order; a resumed run goes on at the same picture.
    """

    def pictures(self) -> tuple[Encoded, Columns]:
        streamed = Streamed(self.path)
        return streamed, streamed.columns

    def sources(self) -> dict[str, Source]:
        sources: dict[str, Any] = super().sources()
        for source in sources.values():
            source.blocks = source.pictures.blocks[source.pictures.rows]
        return sources
