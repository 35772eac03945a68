"""Makes a store of your pictures: `python prepare.py source=<folder> folder=outputs/data/<name>`."""

import hydra
from omegaconf import DictConfig

from alexnet.entry import check_options


@hydra.main(version_base="1.3", config_path="conf", config_name="prepare")
def main(cfg: DictConfig) -> None:
    check_options(cfg)
    from alexnet.data.prepare import prepare

    prepare(cfg)


if __name__ == "__main__":
    main()
