"""Makes a store of your pictures: `python prepare.py source=<folder> folder=outputs/data/<name>`."""

from omegaconf import DictConfig

from alexnet.entry import door


@door("prepare")
def main(cfg: DictConfig) -> None:
    from alexnet.data.prepare import prepare

    prepare(cfg)


if __name__ == "__main__":
    main()
