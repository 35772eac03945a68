"""What WordNet ids mean, for figures and predictions."""

import re
from collections.abc import Sequence
from pathlib import Path

from alexnet.data.sources.labels import DEVKIT, read_devkit_synsets

LISTS = ("LOC_synset_mapping.txt", "synset_words.txt", "words.txt", "classes.tsv")
WORDNET_ID = re.compile(r"n\d{8}")


def find_class_names(classes: Sequence[str], root: Path) -> list[str]:
    """A readable name for each class that is a WordNet id; if not all are, the classes themselves.

    The names come from one of `LISTS` in the source's folder `root`, or from the devkit there, or,
    for the 1,000 classes of ILSVRC, from torchvision.
    """
    if not all(map(WORDNET_ID.fullmatch, classes)):
        return list(classes)
    words = _find_words(classes, root)
    return [words.get(name, name).split(",")[0] for name in classes]


def _find_words(classes: Sequence[str], root: Path) -> dict[str, str]:
    """The words of each WordNet id, from the first place that has any."""
    for name in LISTS:
        if (root / name).is_file():
            words = _read_words(root / name)
            if words:
                return words
    if (root / DEVKIT).is_file():
        synsets = read_devkit_synsets(root / DEVKIT)
        return {str(row["WNID"]): str(row["words"]) for row in synsets}
    if len(classes) == 1000:
        from torchvision.models import AlexNet_Weights  # imports torch, which takes seconds

        # Its categories are in the order of the sorted ids.
        categories = AlexNet_Weights.IMAGENET1K_V1.meta["categories"]
        return dict(zip(classes, categories, strict=True))
    return {}


def _read_words(file: Path) -> dict[str, str]:
    """Of lines with an id and, after it, its words."""
    words = {}
    for line in file.read_text(errors="replace").splitlines():
        match = re.search(r"(n\d{8})\s+(.+)", line)
        if match:
            words[match[1]] = match[2].strip()
    return words
