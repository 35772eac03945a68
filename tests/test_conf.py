"""Every file of conf/ composes, and what it names can be built."""

import pytest
import torch
from conftest import ROOT
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from alexnet.cli import register_resolvers
from alexnet.options import find_problems
from alexnet.training.optim import SGD

CONF = ROOT / "conf"
GROUPS = (
    "augment",
    "callbacks",
    "data",
    "logger",
    "model",
    "optimizer",
    "parallel",
    "schedule",
    "trainer",
)


def list_choices(group: str) -> list[str]:
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


def list_all_choices() -> list[tuple[str, str]]:
    pairs = []
    for group in GROUPS:
        pairs += [(group, choice) for choice in list_choices(group)]
    return pairs


@pytest.fixture
def compose_training(tmp_path):
    """Composes train.py's options, with `hydra` set as in a run."""
    register_resolvers()

    def compose_options(*options: str) -> DictConfig:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            runtime = [f"hydra.runtime.output_dir={tmp_path}", "model.num_classes=5"]
            config = compose("train", [*runtime, *options], return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        with open_dict(config):
            del config["hydra"]
        return config

    return compose_options


def test_every_group_is_known():
    folders = {folder.name for folder in CONF.iterdir() if folder.is_dir()}
    assert folders == {*GROUPS, "experiment", "hydra", "sweep"}


@pytest.mark.parametrize(("group", "choice"), list_all_choices())
def test_every_choice_builds(group, choice, compose_training, small_store, tmp_path):
    options = [f"{group}={choice}"]
    if choice == "shapes":
        options += ["data.make.train=2", "data.make.val=1", f"data.folder={tmp_path / 'shapes'}"]
    elif group == "data":
        options += [f"data.folder={small_store.folder}"]
    if group == "data":
        options += ["augment.crop=32"]
    node = compose_training(*options).get(group) or {}
    parts = [node] if "_target_" in node else list(node.values())
    for part in parts:
        more = {"max_epochs": 1} if group == "trainer" else {}
        assert instantiate(part, **more) is not None


@pytest.mark.parametrize("choice", list_choices("model"))
def test_every_model_has_a_recipe(choice, compose_training):
    epochs = compose_training(f"model={choice}").epochs
    assert min(epochs.shapes, epochs.other) >= 1


@pytest.mark.parametrize("choice", list_choices("experiment"))
def test_every_experiment_passes_the_checks(choice, compose_training):
    config = compose_training(f"experiment={choice}")
    assert find_problems(config, "train", lightning=False) == []


@pytest.mark.parametrize("choice", list_choices("schedule"))
def test_every_schedule_fits_an_optimizer(choice, compose_training):
    schedule = compose_training(f"schedule={choice}").schedule
    names = {"weights", "biases", *schedule.get("learning_rates", {})}
    groups = [{"name": name, "params": [torch.zeros(1)]} for name in sorted(names)]
    optimizer = SGD(groups, 0.1, 0.9, 0.0)
    assert instantiate(schedule)(optimizer, 100, 10)["scheduler"].optimizer is optimizer


def test_the_small_network_has_a_schedule_of_its_own(compose_training):
    assert compose_training().schedule.epochs == [6]


def test_a_typed_schedule_replaces_the_recipes(compose_training):
    assert "warmup" in compose_training("schedule=linear").schedule
    assert "patience" in compose_training("schedule=plateau").schedule


def test_an_experiment_overrides_the_recipe_of_its_model(compose_training):
    config = compose_training("experiment=caffe")
    assert config.schedule.epochs == [20, 40, 60, 80]
    assert config.data.batch_size == 256


@pytest.mark.parametrize("name", ["benchmark", "evaluate", "prepare", "report"])
def test_other_commands_compose_and_pass_the_checks(name):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(name)
    missing = {"run", "source", "folder"} & OmegaConf.missing_keys(config)
    problems = find_problems(config, name, lightning=False)
    assert len(problems) == len(missing)
