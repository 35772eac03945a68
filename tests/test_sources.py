"""Every layout of an image set gives the same store; odd images give right pixels or a reason."""

import io
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from image_sets import (
    CLASSES,
    LAYOUTS,
    UNREADABLE,
    WORDS,
    list_images,
    make_class_tar,
    make_odd_images,
    make_parquet_table,
    make_tar,
    write_class_folders,
    write_devkit,
    write_flat_val,
    write_ilsvrc_tars,
    write_parquet,
    write_parquet_file,
)
from numpy.typing import NDArray
from omegaconf import OmegaConf
from PIL import Image
from torchvision import datasets

from alexnet.data.decode import UnreadableImageError, decode
from alexnet.data.prepare import prepare, prepare_store
from alexnet.data.sources import open_source
from alexnet.data.sources.class_names import find_class_names
from alexnet.data.store import Store, open_store
from alexnet.errors import UserError

ODD_IMAGES = make_odd_images()
CIFAR_BATCHES = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("set") / "folders"
    write_class_folders(root)
    return root


@pytest.fixture(scope="module")
def folder_store(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return prepare_store(folders, tmp_path_factory.mktemp("stores") / "store", 48)


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    """The six batches of CIFAR-10, with four images each of two classes."""
    rng = np.random.default_rng(0)
    root = tmp_path / "cifar" / "cifar-10-batches-py"
    root.mkdir(parents=True)
    (root / "batches.meta").write_bytes(pickle.dumps({"label_names": ["x", "y"]}))
    for name in CIFAR_BATCHES:
        batch = {"data": rng.integers(0, 256, (4, 3072), np.uint8), "labels": [0, 1, 1, 0]}
        (root / name).write_bytes(pickle.dumps(batch, protocol=2))
    return root


@pytest.mark.parametrize(
    "write_layout", LAYOUTS, ids=lambda layout: layout.__name__.removeprefix("write_")
)
def test_every_layout_gives_the_same_store(
    write_layout: Callable[[Path, Path], None],
    folders: Path,
    folder_store: Store,
    tmp_path: Path,
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    write_layout(folders, source)
    actual = prepare_store(source, tmp_path / "store", 48)
    assert actual.classes == CLASSES
    assert folder_store.classes == CLASSES
    # The manifest says what a store was made of, and the contact sheet has the devkit's names.
    different = {"manifest.json", "contact-sheet.jpg"}
    for file in sorted(folder_store.folder.iterdir()):
        if file.name not in different:
            assert (actual.folder / file.name).read_bytes() == file.read_bytes(), file.name
    assert actual.manifest["splits"] == folder_store.manifest["splits"]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("LOC_synset_mapping.txt", "{} {}, and more"),
        ("words.txt", "{}\t{}, and more"),
        ("classes.tsv", "7\t{}\t{}"),
    ],
)
def test_classes_are_named_by_a_list(name: str, line: str, tmp_path: Path) -> None:
    lines = [line.format(*row) + "\n" for row in WORDS.items()]
    (tmp_path / name).write_text("".join(lines))
    assert find_class_names(CLASSES, tmp_path) == list(WORDS.values())


def test_classes_are_named_by_the_devkit(folders: Path, tmp_path: Path) -> None:
    write_devkit(folders, tmp_path)
    assert find_class_names(CLASSES, tmp_path) == list(WORDS.values())


def test_classes_without_a_list_keep_their_names(tmp_path: Path) -> None:
    assert find_class_names(CLASSES, tmp_path) == CLASSES


def test_classes_that_are_not_all_wordnet_ids_keep_their_names(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("n01440764\ttench\n")
    assert find_class_names(["cat", "n01440764"], tmp_path) == ["cat", "n01440764"]


def test_all_classes_of_ilsvrc_have_names(tmp_path: Path) -> None:
    """In the order of the sorted ids: n01440764, n02123045 and n15075141 are these three."""
    ids = ["n01440764", *(f"n02{i:06d}" for i in range(998)), "n15075141"]
    names = find_class_names(ids, tmp_path)
    assert (names[0], names[281], names[-1]) == ("tench", "tabby", "toilet tissue")


def test_cifar_batches_give_their_pixels(cifar: Path, tmp_path: Path) -> None:
    store = prepare_store(cifar.parent, tmp_path / "store", 32)
    batch = pickle.loads((cifar / "test_batch").read_bytes())
    expected = batch["data"].reshape(4, 3, 32, 32).transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(store.splits["val"].images(np.arange(4)), expected)
    assert store.splits["val"].labels.tolist() == [0, 1, 1, 0]
    assert len(store.splits["train"]) == 20


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"cos\nsystem\n(S'true'\ntR.", "is corrupt or not a CIFAR-10 batch: it names os.system"),
        (b"\x80\x02}q\x00(X", "is corrupt or not a CIFAR-10 batch"),
        (pickle.dumps([1, 2]), "it is not a mapping"),
        (pickle.dumps({"labels": [0]}), "it lacks data or labels"),
        (
            pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0]}, protocol=2),
            r"its data have shape \(2, 3072\), but it has 1 labels",
        ),
    ],
    ids=["code", "truncated", "list", "no data", "shape"],
)
def test_a_wrong_cifar_batch_is_named(content: bytes, message: str, cifar: Path) -> None:
    (cifar / "test_batch").write_bytes(content)
    with pytest.raises(UserError, match=f"test_batch .*{message}"):
        open_source(cifar.parent)


def test_a_missing_cifar_batch_is_named(cifar: Path) -> None:
    (cifar / "data_batch_3").unlink()
    with pytest.raises(UserError, match="lacks data_batch_3: unpack the archive again"):
        open_source(cifar.parent)


def test_a_source_is_a_directory_with_both_splits(folders: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="source=nowhere is not a directory"):
        open_source("nowhere")
    shutil.copytree(folders / "val", tmp_path / "val")
    with pytest.raises(UserError, match="has nothing for train: it needs train-"):
        open_source(tmp_path)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("ILSVRC2012_val_00000013.JPEG n01440764\n", "has no line"),
        ("n01440764\n", "has 1 lines for 6 images"),
        ("", "has 0 lines for 6 images"),
        ("n0\n" * 6, "class n0 is not in the training set"),
    ],
    ids=["one line", "one class", "empty", "unknown class"],
)
def test_a_wrong_list_is_named(lines: str, message: str, folders: Path, tmp_path: Path) -> None:
    write_flat_val(folders, tmp_path)
    (tmp_path / "val_labels.txt").write_text(lines)
    with pytest.raises(UserError, match=f"val_labels.txt.* {message}"):
        open_source(tmp_path)


def test_a_list_that_is_not_text_is_named(folders: Path, tmp_path: Path) -> None:
    write_flat_val(folders, tmp_path)
    (tmp_path / "val.txt").write_bytes(b"\xff\xfe\x00 \xff\n" * 6)
    with pytest.raises(UserError, match=r"val.txt: ILSVRC2012_val_\d+.JPEG has no line"):
        open_source(tmp_path)


def test_a_flat_set_needs_a_list(folders: Path, tmp_path: Path) -> None:
    write_flat_val(folders, tmp_path)
    with pytest.raises(UserError, match="holds images without classes: give labels=<file>"):
        open_source(tmp_path)
    with pytest.raises(UserError, match="labels=nowhere is not a file"):
        open_source(tmp_path, "nowhere")


@pytest.mark.parametrize("content", [b"", b"rubbish", bytes(2000)], ids=["empty", "text", "zeros"])
def test_a_corrupt_devkit_is_named(content: bytes, folders: Path, tmp_path: Path) -> None:
    write_flat_val(folders, tmp_path)
    (tmp_path / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(content)
    with pytest.raises(UserError, match=r"t12\.tar\.gz is (corrupt or )?not ILSVRC's devkit"):
        open_source(tmp_path)


def test_images_outside_of_class_folders_are_reported(folders: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(folders, source)
    image = list_images(folders, "val")[0]
    shutil.copy(image, source / "val")
    with pytest.raises(UserError, match="val has images outside of its class folders"):
        open_source(source)
    shutil.copy(image, source / "train")
    with pytest.raises(UserError, match="train must hold the images of each class in a folder"):
        open_source(source)


def test_a_truncated_tar_is_named(folders: Path, tmp_path: Path) -> None:
    write_ilsvrc_tars(folders, tmp_path)
    train = tmp_path / "ILSVRC2012_img_train.tar"
    train.write_bytes(train.read_bytes()[:-40_000])
    with pytest.raises(UserError, match=r"_train\.tar is corrupt or not an uncompressed tar"):
        open_source(tmp_path)


def test_a_corrupt_tar_within_a_tar_is_named(folders: Path, tmp_path: Path) -> None:
    write_ilsvrc_tars(folders, tmp_path)
    good = make_class_tar(folders, CLASSES[0])
    bad = b"\xff" * 512 + good[512:]
    content = make_tar([(f"{CLASSES[0]}.tar", good), (f"{CLASSES[1]}.tar", bad)])
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(content)
    with pytest.raises(UserError, match=rf"train.tar \({CLASSES[1]}/\) is corrupt"):
        open_source(tmp_path)


def test_a_file_that_is_gone_is_named(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders, tmp_path / "source")
    source = open_source(tmp_path / "source")
    image = list_images(tmp_path / "source", "train")[0]
    image.unlink()
    with pytest.raises(UserError, match=f"{image.name} can't be read: No such file"):
        list(source.read("train", range(1)))


def test_a_dangling_link_is_named(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders, tmp_path / "source")
    link = tmp_path / "source" / "train" / CLASSES[0] / "link.JPEG"
    link.symlink_to("nowhere")
    with pytest.raises(UserError, match=r"link\.JPEG can't be read: No such file"):
        open_source(tmp_path / "source")


def test_any_rows_of_parquet_files_can_be_read(folders: Path, tmp_path: Path) -> None:
    """Row groups of two in files of 7 and 5 rows."""
    write_parquet(folders, tmp_path)
    source = open_source(tmp_path)
    images = list(source.read("train", range(12)))
    assert source.counts == {"train": 12, "val": 6}
    assert [image.data for image in images] == [
        file.read_bytes() for file in list_images(folders, "train")
    ]
    for start in range(12):
        for stop in range(start, 13):
            assert list(source.read("train", range(start, stop))) == images[start:stop]


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("label", [0.5, 1.0], "column label has type double and not whole numbers"),
        ("label", [0, 3], r"row 1: label 3 lies outside 0\.\.2"),
        ("label", [None, 0], r"row 0: label -1 lies outside 0\.\.2"),
        ("image", ["a.JPEG", "b.JPEG"], "column image has type string and not struct<bytes>"),
        ("image", [{"path": "a.JPEG"}, None], "column image has type struct<path: string> and"),
    ],
    ids=["fractions", "unknown label", "no label", "text", "no bytes"],
)
def test_a_wrong_parquet_column_is_named(
    column: str, values: list[object], message: str, folders: Path, tmp_path: Path
) -> None:
    table = make_parquet_table(list_images(folders, "train")[:2])
    write_parquet_file(table, tmp_path / "train-0.parquet")
    place = table.column_names.index(column)
    table = table.set_column(place, column, pa.array(values))
    write_parquet_file(table, tmp_path / "validation-0.parquet")
    with pytest.raises(UserError, match=f"validation-0.parquet:? {message}"):
        open_source(tmp_path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({b"huggingface": b"{"}, "is corrupt: its huggingface metadata are not JSON"),
        ({b"huggingface": b'{"info": null}'}, "has other class names than train-0.parquet"),
        ({}, "has other class names than train-0.parquet"),
    ],
    ids=["corrupt", "null", "none"],
)
def test_parquet_files_have_the_same_classes(
    metadata: dict[bytes, bytes], message: str, folders: Path, tmp_path: Path
) -> None:
    table = make_parquet_table(list_images(folders, "train")[:2])
    write_parquet_file(table, tmp_path / "train-0.parquet")
    other = table.replace_schema_metadata(metadata)
    write_parquet_file(other, tmp_path / "validation-0.parquet")
    with pytest.raises(UserError, match=f"validation-0.parquet {message}"):
        open_source(tmp_path)


def test_classes_of_parquet_files_without_names_are_numbers(folders: Path, tmp_path: Path) -> None:
    table = make_parquet_table(list_images(folders, "train")).replace_schema_metadata(None)
    write_parquet_file(table, tmp_path / "train-0.parquet")
    write_parquet_file(table, tmp_path / "test-0.parquet")
    assert open_source(tmp_path).classes == ["0", "1", "2"]


def test_a_corrupt_parquet_file_is_named(folders: Path, tmp_path: Path) -> None:
    write_parquet(folders, tmp_path)
    file = tmp_path / "train-00001-of-00002.parquet"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=f"{file.name} is corrupt or not a parquet file"):
        open_source(tmp_path)


def test_a_jpeg_store_has_nearly_the_same_pixels(
    folders: Path, folder_store: Store, tmp_path: Path
) -> None:
    jpeg = prepare_store(folders, tmp_path / "jpeg", 48, encoding="jpeg", quality=95)
    sizes = [(jpeg.folder / f"{split}-00000.bin").stat().st_size for split in ("train", "val")]
    assert sum(sizes) < 18 * 48 * 48 * 3 / 2
    order = np.random.default_rng(0).permutation(12)
    expected = folder_store.splits["train"].images(order)
    actual = jpeg.splits["train"].images(order)
    assert np.abs(actual.astype(int) - expected).mean() < 4
    np.testing.assert_array_equal(jpeg.mean, folder_store.mean)


def decode_with_pillow(data: bytes) -> NDArray[np.uint8]:
    """Alpha left out, as ImageNet's readers do."""
    image = Image.open(io.BytesIO(data))
    if image.mode.startswith("I"):  # 16 bits
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("kind", sorted(ODD_IMAGES.keys() - UNREADABLE))
def test_odd_images_have_the_pixels_of_pillow(kind: str) -> None:
    actual = decode(ODD_IMAGES[kind], 64, "bicubic", exif=False)
    expected = decode_with_pillow(ODD_IMAGES[kind])
    assert actual.shape == (64, 64, 3)
    if expected.shape == actual.shape:
        assert np.abs(actual.astype(int) - expected).max() <= 2
    else:  # one pixel or a line of them, enlarged
        middle = expected[0, expected.shape[1] // 2]
        assert np.abs(actual.astype(int) - middle).max() < 64


@pytest.mark.parametrize("kind", sorted(UNREADABLE))
def test_unreadable_images_are_refused_with_a_reason(kind: str) -> None:
    with pytest.raises(UnreadableImageError) as caught:
        decode(ODD_IMAGES[kind], 64, "bicubic", exif=False)
    assert len(str(caught.value)) > 5


def test_exif_turns_an_image_if_it_is_asked_to() -> None:
    data = ODD_IMAGES["EXIF rotation"]
    expected = np.rot90(decode_with_pillow(data), -1)
    actual = decode(data, 64, "bicubic", exif=True)
    assert np.abs(actual.astype(int) - expected).max() <= 2


def test_a_failed_download_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(root: Path, download: bool) -> None:
        raise OSError("no connection")

    monkeypatch.setattr(datasets, "CIFAR10", fail)
    config = OmegaConf.create({"download": "cifar10", "source": str(tmp_path / "source")})
    with pytest.raises(UserError, match=r"download=cifar10 .* failed: no connection"):
        prepare(config)


class FakeImagenette:
    """torchvision's data set, which unpacks a folder `imagenette2`."""

    def __init__(self, root: Path, download: bool) -> None:
        assert download
        write_class_folders(root / "imagenette2")
        self.wnids = CLASSES
        self.classes = [(name, "more") for name in WORDS.values()]


def test_imagenette_is_downloaded_into_class_folders(
    folder_store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(datasets, "Imagenette", FakeImagenette)
    options = {
        "download": "imagenette",
        "source": str(tmp_path / "source"),
        "folder": str(tmp_path / "store"),
        "labels": None,
        "size": 48,
        "resize": "bicubic",
        "exif": False,
        "encoding": "raw",
        "quality": 90,
        "max_bad": 0,
        "verify": True,
    }
    prepare(OmegaConf.create(options))
    store = open_store(tmp_path / "store")
    assert store.manifest["splits"] == folder_store.manifest["splits"]
    assert store.names == list(WORDS.values())
