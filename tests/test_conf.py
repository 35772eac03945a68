"""Every file of conf/ composes, and what it names can be built."""

import pytest
import torch
from conftest import ROOT
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import OmegaConf

from alexnet.training.optim import SGD

CONF = ROOT / "conf"
CHOICES = [
    (file.parent.name, file.stem)
    for file in sorted(CONF.glob("*/*.yaml"))
    if file.parent.name not in ("recipe", "experiment")
]


@pytest.mark.parametrize("group, choice", CHOICES)
def test_choices_build(group, choice, small_store, tmp_path):
    chosen = [
        f"{group}={choice}",
        "hydra.runtime.output_dir=" + str(tmp_path),
        "model.num_classes=5",
    ]
    if group == "data":
        chosen.append(
            f"data.folder={tmp_path / 'shapes' if choice == 'shapes' else small_store.folder}"
        )
        chosen.append("augment.crop=32")
        chosen += ["data.make.train=2", "data.make.val=1"] if choice == "shapes" else []
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", chosen, return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    OmegaConf.set_readonly(cfg.hydra, False)
    node = cfg[group]
    for part in [node] if "_target_" in node else node.values():
        instantiate(part)


@pytest.mark.parametrize("choice", [choice for group, choice in CHOICES if group == "schedule"])
def test_every_schedule_fits_the_default_network(choice):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [f"schedule={choice}"]).schedule
    names = {"weights", "biases", *cfg.get("rates", {})}
    optimizer = SGD([{"name": name, "params": [torch.zeros(1)]} for name in names], 0.1, 0.9, 0.0)
    assert instantiate(cfg)(optimizer, 100, 10)["scheduler"].optimizer is optimizer
    assert (cfg.get("epochs") == [6]) == (
        choice == "default"
    )  # the recipe's drop, in place of no other


@pytest.mark.parametrize(
    "file", sorted((CONF / "recipe").glob("*.yaml")), ids=lambda file: file.stem
)
def test_recipes_reach_the_network_of_their_name(file):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        plain, cooked = (
            compose("train", [f"model={file.stem}", *without]) for without in (["~recipe"], [])
        )
    recipe = OmegaConf.load(file)
    for group in recipe:
        for key, value in recipe[group].items():
            assert OmegaConf.select(cooked, f"{group}.{key}") == value
    assert plain != cooked


@pytest.mark.parametrize("name", ["benchmark", "evaluate", "prepare"])
def test_other_doors_compose(name):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        assert compose(name)
