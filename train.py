"""Trains a network: `python train.py model=alexnet trainer.devices=2`. All options: `python train.py --help`."""

import hydra
from omegaconf import DictConfig

from alexnet.entry import check_options, clear_errors


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float:
    check_options(cfg)
    with clear_errors():
        from alexnet.training.checks import checked

        cfg = checked(cfg)
    from alexnet.training.train import train

    return train(cfg)


if __name__ == "__main__":
    main()
