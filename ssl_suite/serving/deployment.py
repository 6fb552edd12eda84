"""Many streams on one model: each adapts by itself, all share the weights that never change."""

from __future__ import annotations

import copy
import logging
import pickle
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import nn

from ssl_suite.adapter import Adapter
from ssl_suite.io.checkpoints import intact
from ssl_suite.serving.budget import Budget
from ssl_suite.serving.guard import CollapseGuard
from ssl_suite.serving.stream import Stream

logger = logging.getLogger(__name__)

REFUSED = (ValueError, KeyError, IndexError, TypeError, AttributeError, RuntimeError, OSError, EOFError, pickle.UnpicklingError)
"""What reading a state raises that is damaged, hostile, or of another model."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class Deployment:
    """A trained model that adapts to every stream it serves, and to none at another's expense.

        deployment = Deployment(model, Tent)                        # any module: standardised samples to logits
        camera = deployment.stream("camera-1")
        logits, report = camera.predict_and_adapt(x)

    Args:
        model: any network; copied.
        adapter: makes an adapter of it: a class of `ssl_suite.methods.adaptation`, or a ``partial`` of one.
        guard: makes the guard of a stream; None leaves them unguarded.
        budget: makes the budget of a stream.
        shape: shape of one sample, None where a size may vary; samples of another are refused where given.
        max_streams: streams held in memory. The one that was used longest ago leaves first.
        folder: where the states of streams that leave are kept, to be taken up when they come back; without it they start
            from the source model then. A state that is damaged or of another model is renamed and named in the log.

    Raises:
        ValueError: no room for a stream, or a model in which the adapter finds nothing to adapt.
    """

    def __init__(self, model: nn.Module, adapter: Callable[[nn.Module], Adapter], *,
                 guard: Callable[[], CollapseGuard] | None = CollapseGuard, budget: Callable[[], Budget] = Budget,
                 shape: Sequence[int | None] | None = None, max_streams: int = 64, folder: str | Path | None = None) -> None:
        if max_streams < 1:
            raise ValueError(f"max_streams={max_streams} must be at least 1")
        self.source = copy.deepcopy(model).eval().requires_grad_(False)
        self.origin = adapter(self.source)
        self.guard, self.budget, self.shape, self.max_streams = guard, budget, shape, max_streams
        self.folder = None if folder is None else Path(folder)
        self.streams: OrderedDict[str, Stream] = OrderedDict()
        self.lock, self.files = threading.Lock(), threading.Lock()  # the second, held for longer, is taken first

    def stream(self, name: str = "default") -> Stream:
        """The stream of this name, new ones at the source model or, with a folder, where they left off.

        Waits where a stream is opened or stored, and never for one that is held already.

        Raises:
            ValueError: a name that is no file name.
        """
        if not NAME.fullmatch(name):
            raise ValueError(f"stream name {name!r}: give 1 to 64 letters, digits, '_', '-' or '.', a letter or digit first")
        if held := self._held(name):
            return held
        with self.files:
            if held := self._held(name):
                return held
            stream, leaving = self._open(name), []
            with self.lock:
                self.streams[name] = stream
                while len(self.streams) > self.max_streams:
                    leaving.append(self.streams.popitem(last=False))
            for left in leaving:
                self._leave(*left)
            return stream

    def drop(self, name: str) -> None:
        """Forget a stream, its stored state included."""
        with self.files:
            with self.lock:
                self.streams.pop(name, None)
            if self.folder is not None and NAME.fullmatch(name):
                self._path(name).unlink(missing_ok=True)

    def save(self, *names: str) -> None:
        """Write the states of the streams named, or of all, to the folder, where there is one.

        Raises:
            OSError: a state could not be written; its older file stays.
        """
        with self.files:
            with self.lock:
                held = [(name, stream) for name, stream in self.streams.items() if not names or name in names]
            for name, stream in held:
                self._write(name, stream)

    def _held(self, name: str) -> Stream | None:
        with self.lock:
            if name in self.streams:
                self.streams.move_to_end(name)
            return self.streams.get(name)

    def _path(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{name}.pt"

    def _open(self, name: str) -> Stream:
        if self.folder is None or not (path := self._path(name)).is_file():
            return self._new()
        try:
            if not intact(path):
                raise ValueError("the file is damaged")
            stream = self._new()
            stream.load(path)
            return stream
        except REFUSED as error:
            aside = path.replace(path.with_suffix(".refused"))
            why = " ".join(str(error).split())[:200] or type(error).__name__
            logger.warning("stream %s starts from the source model, its state was refused and is now %s: %s", name, aside, why)
            return self._new()

    def _new(self) -> Stream:
        guard = None if self.guard is None else self.guard()
        return Stream(self.origin.clone(), self.source, guard=guard, budget=self.budget(), shape=self.shape)

    def _leave(self, name: str, stream: Stream) -> None:
        try:
            self._write(name, stream)
        except (OSError, RuntimeError) as error:  # torch tells a full disk by the latter
            logger.error("stream %s left and its state could not be stored: %s", name, error)

    def _write(self, name: str, stream: Stream) -> None:
        if self.folder is not None:
            stream.save(self._path(name))
