"""Many streams: apart from each other, few in memory, stored and taken up; files that nobody should trust."""

from __future__ import annotations

import logging
import pickle
import threading
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from ssl_suite.nn.snapshot import fingerprint
from ssl_suite.serving.deployment import Deployment
from tests.unit.serving.nets import TENT, Door, Held, net, samples


def deployment(**given: Any) -> Deployment:
    return Deployment(net(), TENT, **{"guard": None, **given})


def test_interleaved_streams_are_each_as_alone():
    alone = {}
    for name, first in (("a", 0), ("b", 100)):
        stream = deployment().stream(name)
        alone[name] = [stream.predict_and_adapt(samples(first + i))[0] for i in range(6)]
    both = deployment()
    for i in range(6):
        assert torch.equal(both.stream("a").predict_and_adapt(samples(i))[0], alone["a"][i])
        assert torch.equal(both.stream("b").predict_and_adapt(samples(100 + i))[0], alone["b"][i])
    assert not torch.equal(both.stream("a").predict(samples(9)), both.stream("b").predict(samples(9)))


def test_streams_in_threads_are_each_as_alone():
    names = [f"s{i}" for i in range(4)]
    alone = {n: deployment().stream(n) for n in names}
    both = deployment()

    def work(name: str) -> None:
        for seed in range(8):
            both.stream(name).adapt(samples(seed + 10 * int(name[1])))

    threads = [threading.Thread(target=work, args=(n,)) for n in names]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for name in names:
        for seed in range(8):
            alone[name].adapt(samples(seed + 10 * int(name[1])))
        assert torch.equal(both.stream(name).predict(samples(99)), alone[name].predict(samples(99)))


def test_source_model_and_callers_model_never_change():
    model = net()
    made = Deployment(model, TENT, guard=None)
    before = fingerprint(model.state_dict())
    for name in ("a", "b"):
        for seed in range(4):
            made.stream(name).adapt(samples(seed))
    assert fingerprint(model.state_dict()) == fingerprint(made.source.state_dict()) == made.origin.fingerprint == before
    frozen = [{p.data_ptr() for p in made.stream(n).adapter.parameters() if not p.requires_grad} for n in ("a", "b")]
    assert frozen[0] == frozen[1], "weights that never change are shared"


def test_the_stream_unused_for_longest_leaves_and_comes_back_from_the_folder(tmp_path):
    made = deployment(max_streams=2, folder=tmp_path)
    made.stream("a").adapt(samples(1))
    left = made.stream("a").predict(samples(9))
    made.stream("b")
    made.stream("a")
    made.stream("c")
    assert list(made.streams) == ["a", "c"], "b was used longest ago"
    assert (tmp_path / "b.pt").is_file()
    made.stream("d")
    made.stream("e")
    assert list(made.streams) == ["d", "e"]
    assert torch.equal(made.stream("a").predict(samples(9)), left)


def test_without_a_folder_a_stream_that_left_starts_anew():
    made = deployment(max_streams=1)
    fresh = made.stream("a").predict(samples(9))
    made.stream("a").adapt(samples(1))
    made.stream("b")
    assert torch.equal(made.stream("a").predict(samples(9)), fresh)


def test_saved_streams_are_taken_up_by_another_deployment_and_dropped_ones_are_not(tmp_path):
    one = deployment(folder=tmp_path)
    fresh = one.stream("a").predict(samples(9))
    for name in ("a", "b", "c"):
        one.stream(name).adapt(samples(1))
    one.save("c")
    assert [p.name for p in tmp_path.glob("*.pt")] == ["c.pt"]
    one.save()
    one.drop("b")
    two = deployment(folder=tmp_path)
    assert torch.equal(two.stream("a").predict(samples(9)), one.stream("a").predict(samples(9)))
    assert torch.equal(two.stream("b").predict(samples(9)), fresh)


@pytest.mark.parametrize("name", ["", "../a", "a/b", ".a", "a" * 65, "a\n", "ä"])
def test_names_that_are_no_file_names(name, tmp_path):
    with pytest.raises(ValueError, match="stream name"):
        deployment(folder=tmp_path).stream(name)


def test_no_room():
    with pytest.raises(ValueError, match="max_streams=0"):
        deployment(max_streams=0)


class Payload:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def hostile_archive(path: Path, mark: Path) -> None:
    torch.save({"adapter": Payload(mark), "guard": {}}, path)


def hostile_pickle(path: Path, mark: Path) -> None:
    path.write_bytes(pickle.dumps(Payload(mark)))


def hostile_inside(path: Path, mark: Path) -> None:
    """A real state whose pickle was exchanged."""
    deployment(folder=path.parent).stream(path.stem)
    made = deployment(folder=path.parent)
    made.stream(path.stem)
    made.save()
    with zipfile.ZipFile(path) as archive:
        content = {i.filename: archive.read(i) for i in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, pickle.dumps(Payload(mark), protocol=2) if name.endswith("data.pkl") else data)


@pytest.mark.parametrize("write", [hostile_archive, hostile_pickle, hostile_inside])
def test_a_state_with_code_in_it_is_never_run(write, tmp_path, caplog):
    mark, path = tmp_path / "mark", tmp_path / "states" / "a.pt"
    path.parent.mkdir()
    write(path, mark)
    with caplog.at_level(logging.WARNING):
        stream = deployment(folder=path.parent).stream("a")
    assert not mark.exists(), "the code in the file was run"
    assert torch.equal(stream.predict(samples()), deployment().stream().predict(samples()))
    assert str(path.with_suffix(".refused")) in caplog.text
    assert path.with_suffix(".refused").is_file()
    assert not path.exists()
    with zipfile.ZipFile(tmp_path / "control.zip", "w") as archive:  # the payload does what it should
        archive.writestr("x", pickle.dumps(Payload(mark)))
        pickle.loads(archive.read("x"))
    assert mark.exists()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    """One bit of a tensor; torch.load alone would take it."""
    with zipfile.ZipFile(path) as archive:
        at = archive.read(next(n for n in archive.namelist() if n.endswith("data/0")))
    content = bytearray(path.read_bytes())
    content[content.index(at)] ^= 1
    path.write_bytes(content)


def other_kind(path: Path) -> None:
    torch.save([1, 2, 3], path)


def other_model(path: Path) -> None:
    model = net()
    with torch.no_grad():
        model[4].bias[0] += 1.0
    made = Deployment(model, TENT, guard=None, folder=path.parent)
    path.unlink()
    made.stream(path.stem)
    made.save()


def half(path: Path) -> None:
    """The adapter's part is good, the guard's is not there."""
    state = torch.load(path, weights_only=True)
    torch.save({"adapter": state["adapter"]}, path)


@pytest.mark.parametrize("damage", [truncate, empty, flip, other_kind, other_model, half])
def test_a_damaged_or_foreign_state_is_put_aside(damage, tmp_path, caplog):
    one = Deployment(net(), TENT, folder=tmp_path)
    one.stream("a").adapt(samples(1))
    one.save()
    damage(tmp_path / "a.pt")
    stream = Deployment(net(), TENT, folder=tmp_path).stream("a")
    assert torch.equal(stream.predict(samples(9)), Deployment(net(), TENT).stream().predict(samples(9)))
    assert "refused" in caplog.text
    assert (tmp_path / "a.refused").is_file()


def test_a_full_disk_does_not_stop_the_service(tmp_path, caplog, monkeypatch):
    made = deployment(max_streams=1, folder=tmp_path)
    made.stream("a").adapt(samples(1))
    made.save()

    def full(*given: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", full)
    made.stream("a").adapt(samples(2))
    made.stream("b").adapt(samples(3))
    assert "no space left" in caplog.text
    with pytest.raises(OSError, match="no space"):
        made.save()
    monkeypatch.undo()
    assert made.stream("a").predict(samples()).isfinite().all(), "the older state is still there"


def test_a_stream_that_is_stored_does_not_hold_up_the_others(tmp_path):
    """One stream is in the middle of an update and is to be stored: others are found and predict meanwhile."""
    door = Door()
    made = Deployment(net(), partial(Held, door=door), guard=None, folder=tmp_path)
    made.stream("a")
    made.stream("b")
    writer = threading.Thread(target=made.stream("a").adapt, args=(samples(),))
    saver = threading.Thread(target=made.save)
    writer.start()
    assert door.reached.wait(60)
    saver.start()
    try:
        found = made.stream("b").predict(samples())
        assert found.isfinite().all()
        assert made.stream("a").predict(samples()).isfinite().all()
        assert writer.is_alive()
        assert saver.is_alive()
    finally:
        door.open.set()
        writer.join()
        saver.join()
    assert (tmp_path / "a.pt").is_file()
    assert int(torch.load(tmp_path / "a.pt", weights_only=True)["adapter"]["tensors"]["seen"]) == 32, "stored after the update"
