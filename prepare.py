"""Makes a store of your images: `python prepare.py source=<folder> folder=outputs/data/<name>`."""

from omegaconf import DictConfig

from alexnet.cli import command


@command("prepare")
def main(config: DictConfig) -> None:
    from alexnet.data.prepare import prepare

    prepare(config)


if __name__ == "__main__":
    main()
