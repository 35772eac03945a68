"""What WordNet ids mean, for figures."""

import re
from pathlib import Path

from alexnet.data.sources.labels import DEVKIT, devkit_synsets

LISTS = ("LOC_synset_mapping.txt", "synset_words.txt", "words.txt", "classes.tsv")
WORDNET = re.compile(r"n\d{8}")


def readable_names(classes: list[str], root: Path) -> list[str]:
    """A name for each class that is a WordNet id, the others as they are.

    From one of `LISTS` in the source's folder or its devkit; for all 1,000 of ILSVRC from torchvision, whose categories
    stand in the ids' order.
    """
    if not all(WORDNET.fullmatch(name) for name in classes):
        return classes
    found = next((root / name for name in LISTS if (root / name).is_file()), None)
    words = _words(found.read_text(errors="replace")) if found else {}
    if not found and (root / DEVKIT).is_file():
        words = {row["WNID"]: row["words"] for row in devkit_synsets(root / DEVKIT)}
    if not words and len(classes) == 1000:
        from torchvision.models import AlexNet_Weights

        words = dict(zip(classes, AlexNet_Weights.IMAGENET1K_V1.meta["categories"], strict=True))
    return [str(words.get(name, name)).split(",")[0] for name in classes]


def _words(text: str) -> dict[str, str]:
    """Lines with an id and, after it, its words."""
    found = (re.search(r"(n\d{8})\s+(.+)", line) for line in text.splitlines())
    return {match[1]: match[2].strip() for match in found if match}
