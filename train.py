"""Trains a network: `python train.py model=alexnet trainer.devices=2`. All options: `python train.py --help`."""

from omegaconf import DictConfig

from alexnet.entry import clear_errors, door


@door("train")
def main(cfg: DictConfig) -> float:
    with clear_errors():
        from alexnet.training.checks import checked

        cfg = checked(cfg)
    from alexnet.training.train import train

    return train(cfg)


if __name__ == "__main__":
    main()
