"""Trains a network: `python train.py model=alexnet trainer.devices=2`. All options: `python train.py --help`."""

import hydra
from omegaconf import DictConfig

import alexnet.entry  # noqa: F401  (registers the resolvers of conf/)


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float:
    from alexnet.training.train import train

    return train(cfg)


if __name__ == "__main__":
    main()
