"""Every form of a image set gives the same store; odd images give right pixels or a reason."""

import io
import json
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from alexnet.data.decode import decode
from alexnet.data.prepare import prepare_store
from alexnet.data.sources import open_source
from alexnet.data.sources.class_names import readable_names

WORDS = {"n01440764": "tench", "n01443537": "goldfish", "n01484850": "great white shark"}
CLASSES = list(WORDS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """ILSVRC's file names: three classes, four images each to train on and two to validate with."""
    root, rng, number = tmp_path_factory.mktemp("set") / "folders", np.random.default_rng(0), 0
    for split, count in (("train", 4), ("val", 2)):
        for wordnet in CLASSES:
            (root / split / wordnet).mkdir(parents=True)
            for i in range(count):
                number += 1
                name = (
                    f"{wordnet}_{i}.JPEG"
                    if split == "train"
                    else f"ILSVRC2012_val_{number:08d}.JPEG"
                )
                pixels = rng.integers(0, 256, (6, 8, 3), np.uint8)
                Image.fromarray(pixels).resize((64, 48)).save(root / split / wordnet / name)
    return root


def of(root: Path, split: str) -> list[Path]:
    return sorted((root / split).glob("*/*"), key=lambda file: (file.parent.name, file.name))


def tar_of(files: dict[str, Path | bytes], target: Path | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, file in files.items():
            data = file if isinstance(file, bytes) else file.read_bytes()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    if target:
        target.write_bytes(buffer.getvalue())
    return buffer.getvalue()


def ilsvrc_tars(root: Path, made: Path) -> None:
    """The train tar of class tars, and the flat val tar with a list."""
    classes = {
        f"{c}.tar": tar_of({f.name: f for f in of(root, "train") if f.parent.name == c})
        for c in CLASSES
    }
    tar_of(classes, made / "ILSVRC2012_img_train.tar")
    tar_of({f.name: f for f in reversed(of(root, "val"))}, made / "ILSVRC2012_img_val.tar")
    (made / "val_labels.txt").write_text(
        "".join(f"{f.name} {f.parent.name}\n" for f in of(root, "val"))
    )


def extracted_tars(root: Path, made: Path) -> None:
    """The train tar unpacked once, a folder of class tars; val as a tar of class folders."""
    (made / "train").mkdir()
    for c in CLASSES:
        tar_of(
            {f"./{f.name}": f for f in of(root, "train") if f.parent.name == c},
            made / "train" / f"{c}.tar",
        )
    tar_of({f"val/{f.parent.name}/{f.name}": f for f in of(root, "val")}, made / "val.tar")


def flat_val(root: Path, made: Path, lines: str) -> None:
    shutil.copytree(root / "train", made / "train")
    (made / "val").mkdir()
    for file in of(root, "val"):
        shutil.copy(file, made / "val")
    (made / lines.split(":")[0]).write_text(lines.split(":", 1)[1])


def numbers(root: Path, made: Path) -> None:
    """Caffe's val.txt."""
    flat_val(
        root,
        made,
        "val.txt:" + "".join(f"{f.name} {CLASSES.index(f.parent.name)}\n" for f in of(root, "val")),
    )


def kaggle(root: Path, made: Path) -> None:
    rows = "".join(
        f"{f.stem},{f.parent.name} 1 2 3 4 {f.parent.name} 5 6 7 8\n" for f in of(root, "val")
    )
    flat_val(root, made, "LOC_val_solution.csv:ImageId,PredictionString\n" + rows)


def in_order(root: Path, made: Path) -> None:
    ordered = sorted(of(root, "val"), key=lambda f: f.name)
    flat_val(root, made, "val_labels.txt:" + "".join(f"{f.parent.name}\n" for f in ordered))


def tiny_imagenet(root: Path, made: Path) -> None:
    """Tiny ImageNet's own layout."""
    for c in CLASSES:
        shutil.copytree(root / "train" / c, made / "train" / c / "images")
    (made / "val" / "images").mkdir(parents=True)
    for file in of(root, "val"):
        shutil.copy(file, made / "val" / "images")
    rows = "".join(f"{f.name}\t{f.parent.name}\t0\t32\t44\t62\n" for f in of(root, "val"))
    (made / "val" / "val_annotations.txt").write_text(rows)


def devkit(root: Path, made: Path) -> None:
    """The devkit's ground truth, with its own numbers of the classes."""
    from scipy.io import savemat

    flat_val(root, made, "readme.txt:")
    own = {c: 3 - i for i, c in enumerate(CLASSES)}
    rows = [(own[c], c, f"{WORDS[c]}, {c}") for c in reversed(CLASSES)]
    synsets = np.array(rows, [("ILSVRC2012_ID", "i4"), ("WNID", "U9"), ("words", "O")])
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets})
    truth = "".join(
        f"{own[f.parent.name]}\n" for f in sorted(of(root, "val"), key=lambda f: f.name)
    )
    prefix = "ILSVRC2012_devkit_t12/data/"
    data = tar_of(
        {
            prefix + "meta.mat": meta.getvalue(),
            prefix + "ILSVRC2012_validation_ground_truth.txt": truth.encode(),
        }
    )
    with (
        tarfile.open(fileobj=io.BytesIO(data)) as plain,
        tarfile.open(made / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as packed,
    ):
        for member in plain:
            packed.addfile(member, plain.extractfile(member))


def parquet(root: Path, made: Path) -> None:
    features = {"label": {"names": CLASSES, "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    for split, name in (("train", "train"), ("val", "validation")):
        files = of(root, split)
        table = pa.table(
            {
                "image": [{"bytes": f.read_bytes(), "path": f.name} for f in files],
                "label": [CLASSES.index(f.parent.name) for f in files],
            }
        ).replace_schema_metadata(metadata)
        half = len(files) // 2 + 1  # two files, row groups of two
        for i, part in enumerate((table[:half], table[half:])):
            pq.write_table(part, made / f"{name}-0000{i}-of-00002.parquet", row_group_size=2)


FORMS = [ilsvrc_tars, extracted_tars, numbers, kaggle, in_order, tiny_imagenet, devkit, parquet]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_every_form_gives_the_same_store(form, folders, tmp_path):
    expected = prepare_store(str(folders), str(tmp_path / "expected"), 48)
    made = tmp_path / form.__name__
    made.mkdir()
    form(folders, made)
    actual = prepare_store(str(made), str(tmp_path / "actual"), 48)
    assert actual.classes == expected.classes == CLASSES
    for file in sorted(expected.folder.iterdir()):
        if file.name not in ("manifest.json", "contact-sheet.jpg"):  # the devkit names the classes
            assert (actual.folder / file.name).read_bytes() == file.read_bytes(), file.name
    assert actual.manifest["splits"] == expected.manifest["splits"]


@pytest.mark.parametrize(
    "name, line",
    [
        ("LOC_synset_mapping.txt", "{} {}, and more"),
        ("words.txt", "{}\t{}, and more"),
        ("classes.tsv", "7\t{}\t{}"),
        ("ILSVRC2012_devkit_t12.tar.gz", ""),
        ("none", ""),
    ],
)
def test_readable_names(name, line, folders, tmp_path):
    if name.endswith("gz"):
        devkit(folders, tmp_path)
    elif line:
        (tmp_path / name).write_text("".join(line.format(*row) + "\n" for row in WORDS.items()))
    expected = CLASSES if name == "none" else list(WORDS.values())
    assert readable_names(CLASSES, tmp_path) == expected
    assert readable_names(["cat", "n01440764"], tmp_path) == ["cat", "n01440764"]


def test_names_of_all_of_ilsvrc(tmp_path):
    """In the order of the sorted ids: tench, tabby and toilet tissue are n01440764, n02123045 and n15075141."""
    ids = ["n01440764", *(f"n02{i:06d}" for i in range(998)), "n15075141"]
    names = readable_names(ids, tmp_path)
    assert (names[0], names[281], names[-1]) == ("tench", "tabby", "toilet tissue")


def test_cifar_batches(tmp_path):
    rng = np.random.default_rng(0)
    root = tmp_path / "cifar" / "cifar-10-batches-py"
    root.mkdir(parents=True)
    (root / "batches.meta").write_bytes(pickle.dumps({"label_names": ["x", "y"]}))
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    rows = {name: rng.integers(0, 256, (4, 3072), np.uint8) for name in names}
    for name in names:
        (root / name).write_bytes(
            pickle.dumps({"data": rows[name], "labels": [0, 1, 1, 0]}, protocol=2)
        )
    store = prepare_store(str(tmp_path / "cifar"), str(tmp_path / "store"), 32)
    out = np.empty((4, 32, 32, 3), np.uint8)
    store.splits["val"].read(np.arange(4), out)
    np.testing.assert_array_equal(
        out, rows["test_batch"].reshape(4, 3, 32, 32).transpose(0, 2, 3, 1)
    )
    (root / "test_batch").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(
        ValueError, match="test_batch is torn or no CIFAR-10 batch: it names os.system"
    ):
        open_source(tmp_path / "cifar")


@pytest.mark.parametrize(
    "lines, said",
    [
        ("ILSVRC2012_val_00000013.JPEG n01440764\n", "has no line"),
        ("n01440764\n", "has 1 lines for 6 images"),
        (
            "".join(f"ILSVRC2012_val_{i:08d}.JPEG n0\n" for i in range(13, 19)),
            "class n0 is not in the training set",
        ),
    ],
)
def test_a_wrong_list_is_named(lines, said, folders, tmp_path):
    flat_val(folders, tmp_path, "val_labels.txt:" + lines)
    with pytest.raises(ValueError, match=f"val_labels.txt.* {said}"):
        open_source(tmp_path)


def test_a_flat_set_without_a_list(folders, tmp_path):
    flat_val(folders, tmp_path, "other.txt:")
    with pytest.raises(ValueError, match="holds images without classes: give labels=<file>"):
        open_source(tmp_path)
    with pytest.raises(FileNotFoundError, match="labels=nowhere is no file"):
        open_source(tmp_path, "nowhere")


def test_a_torn_tar_is_named(folders, tmp_path):
    ilsvrc_tars(folders, tmp_path)
    train = tmp_path / "ILSVRC2012_img_train.tar"
    train.write_bytes(train.read_bytes()[:-40_000])
    with pytest.raises(ValueError, match="ILSVRC2012_img_train.tar.* is torn or no plain tar"):
        open_source(tmp_path)


def test_a_jpeg_store(folders, tmp_path):
    raw = prepare_store(str(folders), str(tmp_path / "raw"), 48)
    jpeg = prepare_store(str(folders), str(tmp_path / "jpeg"), 48, encoding="jpeg", quality=95)
    assert (
        sum((jpeg.folder / f"{s}-00000.bin").stat().st_size for s in ("train", "val"))
        < 18 * 48 * 48 * 3 / 2
    )
    order = np.random.default_rng(0).permutation(12)
    pixels = np.empty((2, 12, 48, 48, 3), np.uint8)
    for out, store in zip(pixels, (raw, jpeg), strict=True):
        store.splits["train"].read(order, out)
    assert np.abs(pixels[0].astype(int) - pixels[1]).mean() < 4
    np.testing.assert_array_equal(raw.mean, jpeg.mean)


def saved(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def zoo() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize(
        (64, 64), Image.Resampling.BICUBIC
    )
    rotated = Image.Exif()
    rotated[0x0112] = 6
    clear = smooth.copy()
    clear.putalpha(128)
    deep = Image.fromarray(np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16))
    jpeg = saved(smooth, "JPEG", quality=95)
    return {
        "baseline": jpeg,
        "progressive": saved(smooth, "JPEG", progressive=True),
        "4:4:4": saved(smooth, "JPEG", subsampling=0),
        "4:2:2": saved(smooth, "JPEG", subsampling=1),
        "gray": saved(smooth.convert("L"), "JPEG"),
        "CMYK": saved(smooth.convert("CMYK"), "JPEG"),
        "EXIF rotation": saved(smooth, "JPEG", exif=rotated),
        "comment": saved(smooth, "JPEG", comment=b"x" * 1000),
        "ICC profile": saved(smooth, "JPEG", icc_profile=b"x" * 500),
        "quality 5": saved(smooth, "JPEG", quality=5),
        "trailing rubbish": jpeg + b"rubbish" * 100,
        "PNG": saved(smooth, "PNG"),
        "PNG palette": saved(smooth.convert("P"), "PNG"),
        "PNG gray": saved(smooth.convert("L"), "PNG"),
        "PNG bilevel": saved(smooth.convert("1"), "PNG"),
        "PNG gray and alpha": saved(clear.convert("LA"), "PNG"),
        "PNG alpha": saved(clear, "PNG"),
        "PNG 16 bits": saved(deep, "PNG"),
        "GIF": saved(smooth, "GIF"),
        "WebP": saved(smooth, "WEBP", lossless=True),
        "WebP alpha": saved(clear, "WEBP", lossless=True),
        "one pixel": saved(smooth.resize((1, 1)), "PNG"),
        "a line": saved(smooth.resize((300, 1)), "PNG"),
        "BMP": saved(smooth, "BMP"),
        "TIFF": saved(smooth, "TIFF"),
        "empty": b"",
        "HTML": b"<html>not found</html>",
        "zeros": bytes(1000),
        "head of a JPEG": jpeg[:100],
        "half of a JPEG": jpeg[: len(jpeg) // 2],
        "half of a PNG": saved(smooth, "PNG")[:2000],
    }


ZOO = zoo()


@pytest.mark.parametrize("kind", ZOO)
def test_odd_images_are_right_or_refused(kind):
    """Against Pillow's own decoder, alpha left out as ImageNet's readers do."""
    actual = decode(ZOO[kind], 64, "bicubic", exif=False)
    refused = {"empty", "HTML", "zeros", "head of a JPEG", "half of a JPEG", "half of a PNG"}
    if kind in refused:
        assert isinstance(actual, str) and actual, kind
        return
    assert isinstance(actual, np.ndarray) and actual.shape == (64, 64, 3), actual
    image = Image.open(io.BytesIO(ZOO[kind]))
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    expected = image.convert("RGB")
    if kind in ("one pixel", "a line"):
        assert np.abs(actual.astype(int) - np.asarray(expected)[0, expected.width // 2]).max() < 64
    else:
        assert np.abs(actual.astype(int) - np.asarray(expected)).max() <= 2
