"""Classifiers that were trained elsewhere: built by name or by class, filled from a file of weights, checked."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
import timm
import torch
import torchvision
from torch import nn

from ssl_suite.batch import Spec
from ssl_suite.config import ConfigError
from ssl_suite.io.weights import Mapping, load_backbone
from ssl_suite.run import building, filled


def timm_network(name: str, *, spec: Spec, **arguments: Any) -> nn.Module:
    """A network of timm with the channels and classes of the data, untrained.

    Args:
        name: timm's name.
        spec: the data.
        arguments: further ones of ``timm.create_model``.

    Raises:
        ValueError: timm knows no such network.
    """
    if not timm.is_model(name):
        raise ValueError(f"network.name={name} is none of timm's{suggestions(name, timm.list_models())}")
    return timm.create_model(name, num_classes=spec.num_classes, in_chans=spec.shape[0], **arguments)


def torchvision_network(name: str, *, spec: Spec, **arguments: Any) -> nn.Module:
    """A classifier of torchvision with the classes of the data, untrained.

    Args:
        name: torchvision's name.
        spec: the data; colour pictures.
        arguments: further ones of the network.

    Raises:
        ValueError: torchvision knows no such classifier, or the pictures have no three channels.
    """
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise ValueError(f"network.name={name} is none of torchvision's{suggestions(name, known)}")
    if spec.shape[0] != 3:
        raise ValueError(f"network.name={name} takes colour pictures, and these data have shape {spec.shape}; take network=timm")
    return torchvision.models.get_model(name, weights=None, num_classes=spec.num_classes, **arguments)


def suggestions(name: str, known: Sequence[str]) -> str:
    """The nearest names, for a message."""
    close = difflib.get_close_matches(name, known, n=3)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def load_network(config: dict[str, Any], weights: str | None, spec: Spec,
                 packages: Sequence[str] = ()) -> tuple[nn.Module, Mapping]:
    """A trained classifier in evaluation mode, and what went where.

    Args:
        config: ``_target_`` and arguments; ``spec`` and ``num_classes`` are given to what asks for them.
        weights: a ``.safetensors`` file or one that torch saved, of tensors by name, all of which must be there.
        spec: the data.
        packages: packages that the target may come from besides the suite's own.

    Raises:
        ConfigError: there are no weights, they do not fit, or the network does not classify these data.
    """
    if not weights:
        raise ConfigError("weights is missing: the network would be untrained; give the file of its weights: weights=FILE")
    with building("network"):
        make = hydra.utils.instantiate(filled(config, {"num_classes": spec.num_classes}, packages), _partial_=True, _convert_="all")
        model = make(**({"spec": spec} if "spec" in inspect.signature(make.func).parameters else {}))
    if not isinstance(model, nn.Module):
        raise ConfigError(f"network: {config['_target_']} gives a {type(model).__name__}, and a torch module is needed")
    with building("weights"):
        mapping = load_backbone(model, Path(weights))
    try:
        with torch.no_grad():
            logits = model.eval()(torch.zeros(2, *spec.shape))
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        raise ConfigError(f"network: {type(model).__name__} does not take samples of shape {spec.shape} "
                          f"({str(error).splitlines()[0]}); give it the data it was trained for") from error
    if getattr(logits, "shape", None) != (2, spec.num_classes):
        given = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ConfigError(f"network: {type(model).__name__} maps two samples to {given}, and logits (2, {spec.num_classes}) are "
                          "needed")
    return model, mapping
