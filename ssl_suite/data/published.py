"""Shifted test sets as their authors publish them: CIFAR-10-C, CIFAR-100-C, CIFAR-10.1, ImageNet-C, ImageNet-R and -A.

Nothing is downloaded; the folder is recognised by its files. Arrays stay on disk and are memory-mapped, pictures are
decoded when they are fetched, the shorter side brought to the size that the network knows and the middle kept (papers
on ImageNet-R and -A resize to 256 pixels and cut 224).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from ssl_suite.batch import Spec
from ssl_suite.data.arrays import as_pictures
from ssl_suite.data.files import PICTURES, EncodedSource, PictureFiles
from ssl_suite.data.sources import ArraySource, Source

Shifted = dict[tuple[str, int | None], Callable[[], Source]]
"""(shift, severity) to what opens it; severity is None where the set knows none."""

SEVERITIES = (1, 2, 3, 4, 5)
LAYOUTS = ("CORRUPTION.npy with labels.npy (CIFAR-10-C, CIFAR-100-C), cifar10.1_v6_data.npy with cifar10.1_v6_labels.npy "
           "(CIFAR-10.1), CORRUPTION/SEVERITY/CLASS/*.JPEG (ImageNet-C), or CLASS/*.jpg (ImageNet-R, ImageNet-A)")


def open_folder(folder: str | Path, spec: Spec, class_list: str | Path | None = None) -> Shifted:
    """The shifts that a folder holds.

    Args:
        folder: one of the layouts above.
        spec: what the network takes and predicts.
        class_list: file with the network's classes, one name a line in the order of its outputs; None takes the
            classes of ``spec``. Folders of pictures are told apart by these names (in ImageNet: WordNet ids).

    Raises:
        FileNotFoundError: the folder or the class list does not exist.
        ValueError: the layout is none of those above, or does not fit the network.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"stream.folder={folder} does not exist")
    if spec.modality != "images":
        raise ValueError(f"stream.folder={folder}: published folders hold images, and the network takes {spec.modality}")
    found = cifar_c(folder, spec) or cifar_10_1(folder, spec)
    if found:
        return found
    classes = read_classes(class_list, spec)
    found = imagenet_c(folder, spec, classes) or class_folders(folder, spec, classes)
    if not found:
        there = ", ".join(sorted(p.name for p in folder.iterdir())[:6]) or "nothing"
        raise ValueError(f"stream.folder={folder} has none of the layouts {LAYOUTS}; it holds {there}")
    return found


def cifar_c(folder: Path, spec: Spec) -> Shifted:
    """CIFAR-10-C and CIFAR-100-C (Hendrycks and Dietterich, ICLR 2019): five severities end to end in each array."""
    if not (folder / "labels.npy").is_file():
        return {}
    names = sorted(p.stem for p in folder.glob("*.npy") if p.stem != "labels")
    return {(name, s): partial(read_arrays, folder / f"{name}.npy", folder / "labels.npy", spec, (s - 1, len(SEVERITIES)))
            for name in names for s in SEVERITIES}


def cifar_10_1(folder: Path, spec: Spec) -> Shifted:
    """CIFAR-10.1 (Recht et al., 2018): a new test set in one or two versions."""
    names = [f"cifar10.1_{v}" for v in ("v4", "v6") if (folder / f"cifar10.1_{v}_data.npy").is_file()]
    return {(name, None): partial(read_arrays, folder / f"{name}_data.npy", folder / f"{name}_labels.npy", spec) for name in names}


def imagenet_c(folder: Path, spec: Spec, classes: Sequence[str]) -> Shifted:
    """ImageNet-C (Hendrycks and Dietterich, ICLR 2019): a folder for each corruption, severity and class."""
    return {(place.parent.name, int(place.name)): partial(read_pictures, place, spec, classes)
            for place in sorted(folder.glob("*/[1-5]")) if place.is_dir()}


def class_folders(folder: Path, spec: Spec, classes: Sequence[str]) -> Shifted:
    """ImageNet-R and ImageNet-A (Hendrycks et al., ICCV and CVPR 2021), or any folder of one folder per class."""
    holds = any(f.suffix.lower() in PICTURES for f in folder.glob("*/*"))
    return {(folder.resolve().name, None): partial(read_pictures, folder, spec, classes)} if holds else {}


def read_arrays(file: Path, label_file: Path, spec: Spec, part: tuple[int, int] = (0, 1)) -> Source:
    """Pictures and labels of one slice of arrays on disk, given by its number and the number of slices.

    The labels may be those of one slice (all are then alike) or of all.

    Raises:
        FileNotFoundError: the labels are missing.
        ValueError: sizes, shapes or classes do not fit.
    """
    if not label_file.is_file():
        raise FileNotFoundError(f"{label_file} is missing; it belongs beside {file.name}")
    x, y = np.load(file, mmap_mode="r"), np.load(label_file).astype(np.int64)
    number, of = part
    n = len(x) // of
    if x.ndim != 4 or len(x) % of or len(y) not in (n, len(x)):
        raise ValueError(f"{file} has shape {x.shape} and {label_file.name} {y.shape}; pictures (N, H, W, 3), of {of} severities "
                         "end to end, and as many labels are needed")
    rows = slice(number * n, (number + 1) * n)
    pictures, labels = as_pictures(x[rows], str(file)), y[rows] if len(y) == len(x) else y
    if pictures.shape[1:] != spec.shape:
        raise ValueError(f"{file} holds pictures of shape {pictures.shape[1:]}, and the network takes {spec.shape}")
    if labels.max() >= spec.num_classes:
        raise ValueError(f"{label_file} names class {labels.max()}, and the network has {spec.num_classes} classes")
    return ArraySource(pictures, labels)


def read_pictures(folder: Path, spec: Spec, classes: Sequence[str]) -> Source:
    """Pictures below one folder per class, labelled by the place of the folder's name among the classes.

    Raises:
        ValueError: a folder names none of the classes, or the network takes no colour pictures.
    """
    if spec.shape[0] != 3:
        raise ValueError(f"stream.folder={folder} holds colour pictures, and the network takes {spec.shape[0]} channel(s)")
    files = sorted(f for f in folder.glob("*/*") if f.suffix.lower() in PICTURES)
    numbers = {name: i for i, name in enumerate(classes)}
    strange = sorted({f.parent.name for f in files} - numbers.keys())
    if strange:
        raise ValueError(f"{folder} holds {len(strange)} classes that are none of the network's ({', '.join(strange[:3])} beside "
                         f"{', '.join(classes[:3])} ...); give the network's classes, one folder name a line in the order of its "
                         "outputs: stream.class_list=FILE")
    targets = np.array([numbers[f.parent.name] for f in files])
    return EncodedSource(PictureFiles(files), spec.shape[-1], targets, max_bad=10)


def read_classes(class_list: str | Path | None, spec: Spec) -> Sequence[str]:
    """Names of the network's classes in the order of its outputs; see `open_folder`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it does not list as many names as the network has classes.
    """
    if class_list is None:
        return spec.classes
    path = Path(class_list).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"stream.class_list={path} does not exist")
    names = [line.split()[0] for line in path.read_text().splitlines() if line.strip()]
    if len(names) != spec.num_classes:
        raise ValueError(f"stream.class_list={path} lists {len(names)} classes, and the network has {spec.num_classes}")
    return names
