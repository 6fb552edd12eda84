"""Every config composes and validates; every model trains two steps; every misspelling is refused with the right hint."""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from ssl_suite.config import ConfigError, locate, validate
from ssl_suite.deploy import GROUPS as ADAPT_GROUPS
from ssl_suite.deploy import deploy
from ssl_suite.methods.self_training.policies.adaptive import UNSEEN
from ssl_suite.run import GROUPS, build_method, fit, load_run
from ssl_suite.summary import check_summary
from ssl_suite.testing import tiny_backbone, tiny_spec, tiny_views
from tests.configs import CONFIGS, SCRIPTED, cases, composed, in_turn, model_config, names, raw, trained
from tests.runs import few_labels, images, run, tiny_data

PATHLESS = ("digits", "point_reach", "series", "spoken", "spoken_text")
NEED_BATCH_NORM = ("bn_adapt",)
FREE = ("callbacks", "logger", "data.views", "data.test_where")
"""Mappings whose names the user chooses."""


def adapters() -> list[str]:
    return [name for name in names("model") if raw("model", name).get("adapter")]


def header_command(path: Path, program: str) -> list[str]:
    """Overrides of the command that a config opens with."""
    for line in path.read_text().splitlines():
        if line.startswith(f"# python {program}.py "):
            return [o for o in line.split("#")[1].split()[2:] if not o.endswith("=RUN")]
    raise AssertionError(f"{path} states no command of {program}.py")


@pytest.mark.parametrize("name", names("model"))
def test_model_validates(name: str) -> None:
    validate(model_config(name), GROUPS)


@pytest.mark.parametrize("group", ["backbone", "optimizer", "schedule", "trainer"])
def test_group_validates(group: str) -> None:
    for name in names(group):
        validate(composed("model=simclr", f"{group}={name}"), GROUPS)


@pytest.mark.parametrize("name", names("policy"))
def test_one_override_exchanges_the_policy(name: str) -> None:
    cfg = composed("model=fixmatch", f"policy={name}")
    validate(cfg, GROUPS)
    others = {key: value for key, value in composed("model=fixmatch")["model"].items() if key != "policy"}
    assert {key: value for key, value in cfg["model"].items() if key != "policy"} == others
    if name != "fixmatch":
        assert cfg["model"] == composed(f"model={name}")["model"]
    method = build_method(cfg, tiny_backbone("features", tiny_spec("images")), tiny_views(tiny_spec("images")), tiny_spec("images"))
    assert type(method.policy).__name__ == cfg["model"]["policy"]["_target_"].rsplit(".", 1)[-1]
    with pytest.raises(ConfigError, match=r"model\.policy: SimCLR takes no 'policy'"):
        validate(composed("model=simclr", f"policy={name}"), GROUPS)


@pytest.mark.parametrize("name", names("data"))
def test_data_validates(name: str) -> None:
    validate(composed(f"data={name}", *([] if name in PATHLESS else ["data.path=somewhere"])), GROUPS)


@pytest.mark.parametrize("name", names("experiment"))
def test_experiment_validates_by_its_own_command(name: str) -> None:
    cfg = composed(*header_command(CONFIGS / "experiment" / f"{name}.yaml", "train"))
    assert f"experiment={name}" in (CONFIGS / "experiment" / f"{name}.yaml").read_text()
    validate(cfg, GROUPS)


@pytest.mark.parametrize("name", adapters())
def test_adaptation_validates(name: str) -> None:
    cfg = composed(f"model={name}", "checkpoint=somewhere", "seed=0", program="adapt")
    validate({k: v for k, v in cfg.items() if k not in ("model", "trainer", "callbacks", "logger")}, ADAPT_GROUPS)


@pytest.mark.parametrize("name", names("model"))
def test_every_model_composes_for_adaptation(name: str) -> None:
    """So that adapt.py can say which models do not adapt."""
    assert composed(f"model={name}", "checkpoint=somewhere", "seed=0", program="adapt")["checkpoint"] == "somewhere"


def test_what_a_policy_remembers_is_saved_with_the_size_of_the_data(tmp_path: Path) -> None:
    folder = run(tmp_path / "run", "model=fixmatch", "policy=flexmatch", "data=digits", "data.labels_per_class=2")
    loaded = load_run(folder)
    learnt = loaded.method.policy.learnt[:-1]
    assert len(learnt) == loaded.spec.num_samples > 1000
    assert 16 < (learnt > UNSEEN).sum() <= 32  # two batches of 16; a few samples may come twice


def test_a_policy_smaller_than_the_data_is_refused_before_training(tmp_path: Path) -> None:
    few = ("model=fixmatch", "policy=flexmatch", "data=digits", "data.labels_per_class=2", "+model.policy.num_samples=1257")
    with pytest.raises(ConfigError, match=r"num_samples=1257 of FlexMatch is less than the 1258 of these data; leave it out"):
        run(tmp_path / "run", *few)


def two_steps(name: str, modality: str, folder: Path, *overrides: str) -> None:
    """A run of two batches ends with a sound summary and one checkpoint."""
    tags = locate(raw("model", name)["model"]["_target_"], name).tags
    data = tiny_data(modality, folder, tags.target)
    extra = ["callbacks.pictures=null"] if modality != "images" else []
    done = run(folder / "run", f"model={name}", *data, *few_labels(tags), *extra, *overrides)
    summary = json.loads((done / "summary.json").read_text())
    check_summary(summary)
    assert summary["modality"] == modality
    assert all(math.isfinite(value) for value in summary["scores"].values()), summary["scores"]
    assert [p.name for p in (done / "checkpoints").glob("*.ckpt")] == ["step=0000002.ckpt"]


@pytest.mark.parametrize(("name", "modality"), in_turn(cases()))
def test_two_steps(name: str, modality: str, tmp_path: Path) -> None:
    two_steps(name, modality, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "modality"), cases())
def test_two_steps_in_bfloat16(name: str, modality: str, tmp_path: Path) -> None:
    two_steps(name, modality, tmp_path, "trainer.precision=bf16-mixed")


def test_two_steps_on_arrays_of_pictures(tmp_path: Path) -> None:
    folder = run(tmp_path / "run", "model=supervised", "data=image_arrays", f"data.path={images(tmp_path)}",
                 "backbone=convnet_tiny", "evaluation.probes=true")
    summary = json.loads((folder / "summary.json").read_text())
    probes = {"knn", "probe_1shot", "probe_3shot", "probe_full", "rankme", "alpha_req"}
    assert summary["scores"].keys() == probes | {"accuracy"}
    assert summary["references"]["raw"].keys() == summary["references"]["untrained"].keys() == probes


@pytest.mark.parametrize("name", SCRIPTED)
def test_what_only_a_script_runs_is_refused_with_its_name(name: str, tmp_path: Path) -> None:
    for program, task in (("adapt", deploy), ("train", fit)):
        cfg = composed(f"model={name}", *(["seed=0"] if program == "adapt" else ["data=digits"]), program=program)
        with pytest.raises(ConfigError, match=f"run: python {SCRIPTED[name]}"):
            task(OmegaConf.create(cfg), tmp_path)


@pytest.mark.parametrize("name", [name for name in adapters() if name not in SCRIPTED])
def test_adapts_two_batches(name: str, tmp_path: Path) -> None:
    own = name in trained()
    tags = locate(raw("model", name)["model" if own else "adapter"]["_target_"], name).tags
    text = tags.target == "text"
    source = name if own else "ctc" if text else "supervised"
    backbone = ["backbone=vit_digits"] if "mae" in name else ["backbone=cifar_resnet_tiny"]
    backbone += ["backbone.norm=batch"] if name in NEED_BATCH_NORM else []
    data, stream = ["data=digits", *backbone], ["stream=digits", "stream.shifts=[gaussian_noise,clean]"]
    if "images" not in tags.modalities:
        data = tiny_data(tags.modalities[0], tmp_path, tags.target)
        stream = [f"stream.shifts=[{'noise' if text else 'gaussian_noise'},clean]"]
    trained_run = run(tmp_path / "run", f"model={source}", *data)
    cfg = composed(f"model={name}", f"checkpoint={trained_run}", "seed=0", *stream, "stream.limit=32", "stream.batch_size=16",
                   program="adapt")
    if "steps" in cfg["adapter"]:
        cfg["adapter"] |= {"steps": 1}
    folder = tmp_path / "adapted"
    folder.mkdir()
    deploy(OmegaConf.create(cfg), folder)
    summary = json.loads((folder / "summary.json").read_text())
    check_summary(summary)
    assert {"error_source", "error_adapted", "gain"} <= summary["scores"].keys()


# One-letter mistakes ------------------------------------------------------------------------------------------------


def places(node: Any, where: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Path of every key of nested mappings whose names are not the user's own."""
    if isinstance(node, dict):
        for key, value in node.items():
            if ".".join(map(str, where)) not in FREE:
                yield (*where, key)
            yield from places(value, (*where, key))
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from places(value, (*where, i))


def misspelt(word: str, rng: random.Random) -> str:
    """One edit away: a letter dropped, doubled, replaced, or two swapped."""
    i = rng.randrange(len(word))
    letter = rng.choice("abcdefghijklmnopqrstuvwxyz")
    kinds = [word[:i] + word[i + 1:], word[:i] + word[i] + word[i:], word[:i] + letter + word[i + 1:],
             word[:i] + word[i + 1:i + 2] + word[i] + word[i + 2:]]
    return rng.choice([k for k in kinds if k and k != word] or [word + letter])


def mutated(cfg: dict[str, Any], place: tuple[Any, ...], new: str) -> dict[str, Any]:
    """A copy with one key renamed, its place in the order kept."""
    out = copy.deepcopy(cfg)
    node: Any = out
    for step in place[:-1]:
        node = node[step]
    items = [(new if key == place[-1] else key, value) for key, value in node.items()]
    node.clear()
    node.update(items)
    return out


@pytest.mark.parametrize("name", names("model"))
def test_every_misspelt_key_is_refused(name: str) -> None:
    cfg, rng = model_config(name), random.Random(name)
    hinted = total = 0
    for place in places(cfg):
        siblings = cfg
        for step in place[:-1]:
            siblings = siblings[step]
        new = misspelt(place[-1], rng)
        if new in siblings:
            continue
        total += 1
        with pytest.raises(ConfigError) as error:
            validate(mutated(cfg, place, new), GROUPS)
        hinted += f"{place[-1]}'?" in str(error.value)
    assert total > 60
    assert hinted >= 0.9 * total, f"only {hinted} of {total} messages name the right key"


@pytest.mark.parametrize(("group", "name", "hint"), [
    ("callbacks", "knm", "knn"), ("callbacks", "checkpiont", "checkpoint"), ("logger", "cvs", "csv"),
    ("backbones", "feature", "features")])
def test_misspelt_entry_of_a_group(group: str, name: str, hint: str) -> None:
    cfg = copy.deepcopy(model_config("simclr"))
    cfg[group][name] = {"every": 3}
    with pytest.raises(ConfigError, match=f"did you mean '{hint}'"):
        validate(cfg, GROUPS)


def test_own_callbacks_and_own_kinds_of_view_are_allowed() -> None:
    cfg = copy.deepcopy(model_config("simclr"))
    cfg["callbacks"]["mine"] = {"_target_": "lightning.pytorch.callbacks.Timer"}
    cfg["data"]["views"]["multi_crop"] = cfg["data"]["views"]["crop"]
    cfg["callbacks"]["knn"] = None
    validate(cfg, GROUPS)


@pytest.mark.parametrize("kind", ["weka", "weakk", "stong", "cropp", "clan"])
def test_misspelt_kind_of_view(kind: str) -> None:
    cfg = copy.deepcopy(model_config("simclr"))
    cfg["data"]["views"][kind] = []
    with pytest.raises(ConfigError, match=r"did you mean '(weak|strong|crop|clean)'"):
        validate(cfg, GROUPS)


@pytest.mark.parametrize(("place", "value"), [
    ("trainer.max_epochs", "three"), ("trainer.max_epochs", 2.5), ("trainer.accelerator", None), ("seed", "one"), ("seed", True),
    ("optimizer.lr", "fast"), ("model.temperature", "hot"), ("data.batch_size", "many"), ("data.views", "weak"),
    ("evaluation.probes", "sure"), ("evaluation.max_samples", "all"), ("schedule.warmup", [0.1]), ("trusted_packages", "mine"),
    ("init_from", 3), ("model._target_", "ssl_suite.methods.pretraining.simclr.SimCRL"), ("data.labels_per_class", "few"),
    ("model._target_", "ssl_suite.methods.pretraining.simclrr.SimCLR"), ("name", None)])
def test_wrong_types(place: str, value: Any) -> None:
    cfg = OmegaConf.create(copy.deepcopy(model_config("simclr")))
    OmegaConf.update(cfg, place, value, merge=False)
    with pytest.raises(ConfigError) as error:
        validate(OmegaConf.to_container(cfg), GROUPS)  # type: ignore[arg-type]
    assert place in str(error.value)


def test_missing_argument_is_named() -> None:
    cfg = copy.deepcopy(model_config("simclr"))
    cfg["data"] = {"_target_": "datamodules.images.image_arrays.ImageArraysDataModule"}
    with pytest.raises(ConfigError, match=r"data\.path is missing"):
        validate(cfg, GROUPS)


@pytest.mark.parametrize("target", [
    "os.system", "subprocess.run", "builtins.eval", "builtins.exec", "shutil.rmtree", "importlib.import_module",
    "torch.load", "torch.serialization.load", "torch.jit.load", "torch.hub.load", "torch.hub.load_state_dict_from_url",
    "torch.package.PackageImporter", "torch.utils.cpp_extension.load", "torch.ops.load_library", "torch.os.system",
    "timm.create_model", "ssl_suite.cli.os.system", "ssl_suite.summary.subprocess.run", "ssl_suite.config.importlib.import_module",
    "torchvision.torch.load", "lightning.Trainer.__init__", "torch.version.__version__", "hydra.utils.call", "functools.reduce"])
def test_hostile_targets_are_refused(target: str) -> None:
    for place in ("model", "optimizer", "trainer", "callbacks.mine", "model.temperature", "data.views.weak"):
        cfg = OmegaConf.create(copy.deepcopy(model_config("simclr")))
        OmegaConf.update(cfg, place, {"_target_": target}, merge=False, force_add=True)
        with pytest.raises(ConfigError, match=r"may not be called|outside the packages|has no|no module"):
            validate(OmegaConf.to_container(cfg), GROUPS)  # type: ignore[arg-type]


def test_trusted_packages_open_a_package() -> None:
    cfg = copy.deepcopy(model_config("simclr"))
    cfg["callbacks"]["mine"] = {"_target_": "tests.runs.run"}
    with pytest.raises(ConfigError, match=r"trusted_packages=\[tests\]"):
        validate(cfg, GROUPS)
    cfg["callbacks"]["mine"] = {"_target_": "tests.configs.names", "group": "model"}
    validate(cfg, GROUPS, ["tests"])


def test_configs_cannot_read_the_environment() -> None:
    with pytest.raises(Exception, match=r"oc\.env"):
        composed("model=simclr", "root=${oc.env:HOME}")
