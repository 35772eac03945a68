"""Measures speed, side by side in one run: `python benchmark.py what=loader`."""

from omegaconf import DictConfig

from alexnet.entry import clear_errors, door


@door("benchmark")
def main(cfg: DictConfig) -> None:
    from alexnet.benchmarks import run

    with clear_errors():
        run(cfg)


if __name__ == "__main__":
    main()
