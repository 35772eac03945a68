"""Trains a network: `python train.py model=alexnet trainer.devices=2`.

`python train.py --help` lists all options.
"""

from omegaconf import DictConfig

from alexnet.cli import command


@command("train")
def main(config: DictConfig) -> float:
    from alexnet.training.validate import check_config, resolve_config

    config = resolve_config(config)
    check_config(config)  # before Lightning is imported, which takes seconds
    from alexnet.training.train import train

    return train(config)


if __name__ == "__main__":
    main()
