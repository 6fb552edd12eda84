"""Raw samples off the wire: bytes or lists in, standardised tensors out, and everything else refused in words."""

from __future__ import annotations

import io
import json
import math
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from ssl_suite.batch import Spec
from ssl_suite.views import Views

RAW = {"images": np.uint8, "speech": np.int16, "series": np.float32}
"""What integers become."""
TAKES = {"images": "pictures as uint8, or as floats in [0, 1]", "speech": "waveforms as int16, or as floats in [-1, 1]",
         "series": "series as numbers"}
JSON_BYTES = 2**20
"""Lists take tens of times their text in memory; larger bodies are to come as .npy."""


class RequestError(Exception):
    """A request that is not served.

    Args:
        status: HTTP status.
        reason: what was expected, and what came.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Samples:
    """Reads the samples of a request and standardises them as those the model was trained on.

    Args:
        spec: the data the model was trained on.
        max_batch: samples in one request.

    Attributes:
        shape: shape of one sample; None where a size may vary.
    """

    def __init__(self, spec: Spec, max_batch: int = 256) -> None:
        self.spec, self.max_batch = spec, max_batch
        self.views = Views().standardise(spec)
        self.shape = spec.shape if spec.modality == "images" else (*spec.shape[:-1], None)

    def from_npy(self, body: bytes, length: str | None = None) -> tuple[Tensor, Tensor | None]:
        """Samples (B, ...) from the content of a ``.npy`` file, and their lengths from numbers with commas between.

        Raises:
            RequestError: something else; pickled objects are never opened, and no more memory is taken than the body's size.
        """
        try:
            file = io.BytesIO(body)
            major = np.lib.format.read_magic(file)[0]
            read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}[major]
            shape, _, dtype = read(file)
            if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(body) - file.tell():
                raise ValueError(f"a header of {dtype} {shape} over {len(body) - file.tell()} bytes")
            array = np.load(io.BytesIO(body), allow_pickle=False)
            lengths = None if length is None else [int(n) for n in length.split(",")]
        except (ValueError, KeyError, OverflowError, EOFError) as error:
            raise RequestError(422, f"the body is no .npy file of numbers, or length no list of them: {error}") from error
        return self.standard(array, lengths)

    def from_json(self, body: bytes) -> tuple[Tensor, Tensor | None]:
        """Samples from ``{"x": lists}``, with ``"length": [numbers]`` where rows are padded.

        Raises:
            RequestError: something else.
        """
        if len(body) > JSON_BYTES:
            raise RequestError(413, f"{len(body)} bytes of JSON, over {JSON_BYTES}; send larger batches as .npy")
        try:
            content = json.loads(body)
            if not isinstance(content, dict) or "x" not in content or content.keys() - {"x", "length"}:
                raise ValueError('there must be "x", there may be "length", and nothing else')
            array = np.asarray(content["x"])
        except (ValueError, OverflowError, RecursionError) as error:
            raise RequestError(422, f"the body is no JSON of samples: {error}") from error
        return self.standard(array, content.get("length"))

    def standard(self, array: np.ndarray, length: Any = None) -> tuple[Tensor, Tensor | None]:
        """Raw samples and their lengths, checked, as the model takes them.

        Raises:
            RequestError: they are too many, or of another shape or type, or out of range.
        """
        if array.ndim != len(self.shape) + 1 or any(a != b and (b is not None or not a) for a, b in zip(
                array.shape[1:], self.shape, strict=True)):
            self.refuse(f"{array.dtype} of shape {array.shape}")
        if not len(array):
            self.refuse("no samples")
        if len(array) > self.max_batch:
            raise RequestError(413, f"{len(array)} samples in one request, over {self.max_batch}")
        x = torch.from_numpy(self.native(array))
        lengths = None if length is None else self.lengths(length, x)
        batch = {"x": x, "index": torch.zeros(len(x), dtype=torch.int64)}
        return self.views(batch if lengths is None else {**batch, "length": lengths}, "clean")[0], lengths

    def native(self, array: np.ndarray) -> np.ndarray:
        """The array in the type of raw samples or as float32, in one piece, finite and in range."""
        raw: Any = RAW[self.spec.modality]
        if array.dtype.kind == "f":
            with np.errstate(over="ignore"):
                out = np.ascontiguousarray(array, np.float32)
            if not np.isfinite(out).all():
                self.refuse("numbers that are not finite")
            if self.spec.modality == "images" and (out.min() < 0.0 or out.max() > 1.0):
                self.refuse(f"floats from {out.min():g} to {out.max():g}")
            return out
        if array.dtype.kind not in "iu":
            self.refuse(f"{array.dtype}")
        if raw is not np.float32 and (array.min() < np.iinfo(raw).min or array.max() > np.iinfo(raw).max):
            self.refuse(f"integers from {array.min()} to {array.max()}")
        return np.ascontiguousarray(array, raw)

    def lengths(self, length: Any, x: Tensor) -> Tensor:
        """Valid time steps of each row, (B,)."""
        if self.spec.modality == "images":
            raise RequestError(422, "pictures have no length")
        steps = x.shape[-1]
        if not isinstance(length, list) or len(length) != len(x) or not all(type(n) is int and 1 <= n <= steps for n in length):
            raise RequestError(422, f"length must be {len(x)} whole numbers from 1 to {steps}, one for each sample")
        return torch.tensor(length)

    def refuse(self, came: str) -> NoReturn:
        """Say what is expected."""
        shape = ", ".join("any" if size is None else str(size) for size in self.shape)
        raise RequestError(422, f"expected {TAKES[self.spec.modality]}, of shape (B, {shape}); got {came}")
