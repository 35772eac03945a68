"""Measures speed, side by side in one run: `python benchmark.py what=loader`."""

from omegaconf import DictConfig

from alexnet.cli import command


@command("benchmark")
def main(config: DictConfig) -> None:
    from alexnet.benchmarks.run import run

    run(config)


if __name__ == "__main__":
    main()
