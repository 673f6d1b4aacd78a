"""Photographs in their official layouts, on tiny trees of the same form."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from omenn.data import folders, imagenet
from omenn.data.folders import Box
from omenn.data.imagenet import ImageNet, imagenet_synsets
from omenn.data.imagenet_s import ImageNetS
from omenn.data.voc import CLASSES, VOC
from omenn.errors import InputError, MissingExtra, TargetError
from refusals import refused

TENCH, GOLDFISH, SHARK = "n01440764", "n01443537", "n01484850"
SIZE = (12, 8)


def picture(path: Path, size: tuple[int, int] = SIZE, colour: int = 90) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = "PNG" if path.suffix == ".png" else "JPEG"
    Image.new("RGB", size, (colour, colour, colour)).save(path, kind)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def annotation(*objects: str, size: tuple[int, int] = SIZE) -> str:
    width, height = size
    shape = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation><folder>val</folder>{shape}{''.join(objects)}</annotation>"


def thing(name: str, *corners: float, extra: str = "", difficult: int = 0) -> str:
    names = ("xmin", "ymin", "xmax", "ymax")
    box = "".join(f"<{n}>{v}</{n}>" for n, v in zip(names, corners, strict=True))
    tail = f"<difficult>{difficult}</difficult><bndbox>{box}</bndbox>{extra}"
    return f"<object><name>{name}</name><pose>Unspecified</pose>{tail}</object>"


# --- ImageNet --------------------------------------------------------------------------------


@pytest.fixture
def net(tmp_path: Path) -> Path:
    root = tmp_path / "imagenet"
    for number, synset in enumerate((GOLDFISH, TENCH, GOLDFISH), 1):
        name = f"ILSVRC2012_val_0000000{number}"
        picture(root / f"val/{synset}/{name}.JPEG", colour=number)
        text = annotation(thing(synset, 2, 1, 6, 5))
        write(root / f"Annotations/CLS-LOC/val/{name}.xml", text)
    write(root / "val/.DS_Store", "")
    write(root / f"val/{TENCH}/readme.txt", "")
    return root


def test_imagenet_is_read_by_class_and_name(net: Path) -> None:
    data = ImageNet(net)
    assert data.synsets == (TENCH, GOLDFISH)
    assert [data.label(k) for k in range(len(data))] == [0, 1, 1]
    names = [data.path(k).stem[-1] for k in range(3)]
    assert names == ["2", "1", "3"]
    assert [data.image(k).getpixel((0, 0))[0] for k in range(3)] == [2, 1, 3]
    assert repr(data) == f"ImageNet({str(net)!r}, split='val', pictures=3)"


@pytest.mark.parametrize("place", ["ILSVRC/Data/CLS-LOC/val", "Data/CLS-LOC/val", ""])
def test_other_places_of_the_class_folders(tmp_path: Path, place: str) -> None:
    for synset in (TENCH, GOLDFISH):  # the last one is ImageFolder's: <synset>/ directly
        picture(tmp_path / place / synset / f"{synset}_goldfish.JPEG")
    data = ImageNet(tmp_path)
    assert [data.label(k) for k in range(len(data))] == [0, 1]
    assert data.image(1).size == SIZE


def test_numbers_of_classes_come_from_a_mapping(net: Path) -> None:
    write(
        net / "LOC_synset_mapping.txt", f"{SHARK} great white shark\n{GOLDFISH} goldfish, C. a.\n"
    )
    with pytest.raises(
        InputError, match=rf"{TENCH} is a folder of a class that is not among the 2"
    ):
        ImageNet(net)
    mapping = net / "LOC_synset_mapping.txt"
    mapping.write_text(f"{SHARK} great white shark\n{GOLDFISH} goldfish, C. a.\n{TENCH} tench\n")
    data = ImageNet(net)
    assert [data.label(k) for k in range(3)] == [2, 1, 1]
    assert data.names == ("great white shark", "goldfish, C. a.", "tench")
    listed = ImageNet(net, classes=[GOLDFISH, TENCH])
    assert [listed.label(k) for k in range(3)] == [1, 0, 0]
    keras = net / "index.json"
    keras.write_text(json.dumps({"1": [TENCH, "tench"], "0": [GOLDFISH, "goldfish"]}))
    assert ImageNet(net, classes=keras).names == ("goldfish", "tench")


def test_all_thousand_classes(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synsets = imagenet_synsets()
    assert len(set(synsets)) == 1000
    assert synsets == tuple(sorted(synsets))
    data = ImageNet(net, classes=synsets)
    assert [data.label(k) for k in range(3)] == [0, 1, 1]
    monkeypatch.setattr(imagenet, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"ImageNet's classes needs the package 'timm'.*models"):
        imagenet_synsets()


def test_lists_of_classes_that_are_none(net: Path) -> None:
    path = net / "list.txt"
    for text, message in (
        ("", r"list\.txt holds no class"),
        ("tench\n", r"holds 'tench', which is no synset"),
        (f"{TENCH}\n{TENCH}\n", rf"holds {TENCH} twice. Give each class once"),
        (f"{TENCH} 449 tench\n", r"numbers the classes as the development kit does \('n01440764 4"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            ImageNet(net, classes=path)
    with refused("path", "nowhere"):
        ImageNet(net, classes=net / "nowhere")
    for text in ("{", '{"1": ["n01440764", "tench"]}', "3"):
        write(net / "list.json", text)
        with pytest.raises(InputError, match=r"list\.json cannot be read as a list of classes"):
            ImageNet(net, classes=net / "list.json")


def test_boxes_of_imagenet_count_from_0(net: Path) -> None:
    data = ImageNet(net)
    assert data.boxes(0) == (Box(TENCH, 2, 1, 6, 5),)
    assert data.annotated(0)
    expected = np.zeros((8, 12), dtype=bool)
    expected[1:5, 2:6] = True
    assert (data.mask(0) == expected).all()


def test_annotations_elsewhere(net: Path, tmp_path: Path) -> None:
    text = annotation(thing(TENCH, 0, 0, 12, 8))
    other = tmp_path / "bbox"
    write(other / f"{TENCH}/ILSVRC2012_val_00000002.xml", text)
    data = ImageNet(net, annotations=other)
    assert data.boxes(0) == (Box(TENCH, 0, 0, 12, 8),)
    assert not data.annotated(1)
    with pytest.raises(
        InputError,
        match=r"00000001\.xml' cannot be read: it does not exist\. The picture has no annot",
    ):
        data.boxes(1)
    with pytest.raises(
        InputError, match=r"nowhere does not hold ImageNet's boxes. Expected: <name>"
    ):
        ImageNet(net, annotations=tmp_path / "nowhere").boxes(0)


def test_boxes_follow_a_copy_of_another_size(net: Path) -> None:
    picture(net / f"val/{TENCH}/ILSVRC2012_val_00000002.JPEG", (24, 8))
    assert ImageNet(net).boxes(0) == (Box(TENCH, 4, 1, 12, 5),)
    text = annotation(thing(TENCH, 2, 1, 6, 50), size=(0, 0))  # no size: taken as it is, cut off
    write(net / "Annotations/CLS-LOC/val/ILSVRC2012_val_00000002.xml", text)
    assert ImageNet(net).boxes(0) == (Box(TENCH, 2, 1, 6, 8),)


def test_broken_annotations(net: Path) -> None:
    path = net / "Annotations/CLS-LOC/val/ILSVRC2012_val_00000002.xml"
    for text, message in (
        ("<annotation>", r"00000002\.xml cannot be read as XML: no element found"),
        (annotation("<object><pose>Left</pose></object>"), "an <object> has no <name>"),
        (annotation(f"<object><name>{TENCH}</name></object>"), f"object '{TENCH}' has no <xmin>"),
        (annotation(thing(TENCH, 2, 1, 2, 5)), r"box \[2.0, 1.0, 2.0, 5.0\] of .* has no pixel"),
        (annotation(thing(TENCH, 2, 9, 6, 99)), "has no pixel of the picture in it"),
        (annotation(thing(TENCH, "a", 1, 6, 5)), r"is not an annotation: could not convert"),
        (annotation(thing(TENCH, "nan", 1, 6, 5)), "has no pixel of the picture in it"),
        (
            annotation(thing(SHARK, 2, 1, 6, 5)),
            rf"names {SHARK}, but the picture lies in .*{TENCH}",
        ),
        (annotation(), r"names no object, but the picture lies in"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            ImageNet(net).boxes(0)


def test_unreadable_pictures(net: Path) -> None:
    data = ImageNet(net)
    path = data.path(0)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"00000002\.JPEG cannot be read: "):
        data.image(0)
    path.write_text("no picture")
    with pytest.raises(InputError, match=r"00000002\.JPEG is not a picture that can be read"):
        data.image(0)
    path.unlink()
    with pytest.raises(
        InputError, match=r"00000002\.JPEG' cannot be read: it does not exist\. The set is not"
    ):
        data.image(0)
    for index in (-1, 3):
        with pytest.raises(InputError, match=rf"no picture {index} in ImageNet"):
            data.label(index)


def test_a_note_of_orientation_is_not_followed(tmp_path: Path) -> None:
    path = tmp_path / f"{TENCH}/a.JPEG"
    path.parent.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", SIZE).save(path, "JPEG", exif=exif)
    assert ImageNet(tmp_path).image(0).size == SIZE


def test_folders_that_are_not_imagenet(tmp_path: Path) -> None:
    expected = r"does not hold ImageNet's layout. Expected: val/<synset>/<name>.JPEG, .*"
    with pytest.raises(InputError, match=expected + r"Found: no such folder\.$"):
        ImageNet(tmp_path / "nowhere")
    with pytest.raises(InputError, match=expected + r"Found: an empty folder\.$"):
        ImageNet(tmp_path)
    for name in ("a.txt", "b/", "c/", "d/", "e/", "f/"):
        (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).touch()
    with pytest.raises(InputError, match=expected + r"Found: a.txt, b/, c/, d/, e/, … \(6 entr"):
        ImageNet(tmp_path)
    with pytest.raises(InputError, match=expected + r"Found: a file\.$"):
        ImageNet(tmp_path / "a.txt")
    picture(tmp_path / "val/ILSVRC2012_val_00000001.JPEG")
    with pytest.raises(InputError, match=r"val holds 1 pictures and no class folders, so their"):
        ImageNet(tmp_path)
    (tmp_path / f"other/{TENCH}").mkdir(parents=True)
    with pytest.raises(InputError, match="holds 1 class folders and no picture in them"):
        ImageNet(tmp_path / "other")


# --- ImageNet-S ------------------------------------------------------------------------------


def ids_picture(path: Path, ids: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = np.stack([ids % 256, ids // 256, 0 * ids], -1).astype(np.uint8)
    Image.fromarray(channels).save(path)


@pytest.fixture
def segmented(tmp_path: Path) -> Path:
    root = tmp_path / "ImageNetS3"
    for number, synset in enumerate((TENCH, GOLDFISH, SHARK), 1):
        name = f"ILSVRC2012_val_0000000{number}"
        picture(root / f"validation/{synset}/{name}.JPEG")
        ids = np.zeros((8, 12), dtype=int)
        ids[2:6, 3:9], ids[2] = number, 1000
        ids_picture(root / f"validation-segmentation/{synset}/{name}.png", ids)
    return root


def test_imagenet_s(segmented: Path) -> None:
    data = ImageNetS(segmented)
    assert repr(data) == f"ImageNetS({str(segmented)!r}, split='validation', pictures=3)"
    assert data.categories == data.synsets == (TENCH, GOLDFISH, SHARK)
    for index in range(3):
        assert data.label(index) == index
        assert data.image(index).size == SIZE
        mask, ignored = data.mask(index), data.ignored(index)
        assert mask[3:6, 3:9].all()
        assert mask.sum() == 18
        assert ignored[2].all()
        assert ignored.sum() == 12
        assert set(np.unique(data.segmentation(index))) == {0, index + 1, 1000}


def test_labels_of_imagenet_s_in_the_order_of_a_model(segmented: Path) -> None:
    data = ImageNetS(segmented, classes=[SHARK, GOLDFISH, TENCH])
    assert [data.label(k) for k in range(3)] == [2, 1, 0]
    assert data.mask(0).sum() == 18  # the numbers of the masks are those of the set


def test_numbers_above_255_take_two_channels(tmp_path: Path) -> None:
    categories = [f"n{k:08d}" for k in range(300)]
    synset = categories[258]
    picture(tmp_path / f"validation/{synset}/a.JPEG")
    ids_picture(tmp_path / f"validation-segmentation/{synset}/a.png", np.full((8, 12), 259))
    data = ImageNetS(tmp_path, categories=categories[::-1])
    assert data.segmentation(0).min() == 259
    assert data.mask(0).all()
    assert data.label(0) == 258


def test_a_part_of_imagenet_s_needs_the_list(segmented: Path) -> None:
    for part in ("validation", "validation-segmentation"):
        for path in (segmented / part / TENCH).iterdir():
            path.unlink()
        (segmented / part / TENCH).rmdir()
    with pytest.raises(InputError, match=r"holds the numbers 2, but its class is 1 of 2. Folders"):
        ImageNetS(segmented).mask(0)
    whole = ImageNetS(segmented, categories=[TENCH, GOLDFISH, SHARK])
    assert whole.mask(0).sum() == 18
    assert whole.label(0) == 1


def test_copies_of_imagenet_s_in_another_size(segmented: Path) -> None:
    path = segmented / f"validation/{TENCH}/ILSVRC2012_val_00000001.JPEG"
    picture(path, (6, 4))
    mask = ImageNetS(segmented).mask(0)
    assert mask.shape == (4, 6)
    assert mask[1:3, 2:4].all()
    picture(path, (8, 12))
    with pytest.raises(InputError, match=r"00000001\.png has 12 x 8 pixels, its picture 8 x 12"):
        ImageNetS(segmented).mask(0)


def test_folders_that_are_not_imagenet_s(segmented: Path) -> None:
    with pytest.raises(InputError, match=r"not hold ImageNet-S. Expected: .*Found: ImageNetS3/\.$"):
        ImageNetS(segmented.parent)
    with pytest.raises(InputError, match=r"Expected: train-semi/<synset>.*Found: validation/, val"):
        ImageNetS(segmented, "train-semi")
    with pytest.raises(InputError, match="is a folder of a class that is not among the 1 given"):
        ImageNetS(segmented, categories=[TENCH])
    where = segmented / f"validation-segmentation/{TENCH}/ILSVRC2012_val_00000001.png"
    Image.fromarray(np.zeros((8, 12), dtype=np.uint8)).save(where)
    with pytest.raises(InputError, match=r"has the form \(8, 12\) of uint8, ImageNet-S's are RGB"):
        ImageNetS(segmented).mask(0)
    where.unlink()
    with refused("path", "00000001.png"):
        ImageNetS(segmented).mask(0)


# --- Pascal VOC ------------------------------------------------------------------------------


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    root = tmp_path / "VOCdevkit/VOC2012"
    head = "<part><name>head</name><bndbox><xmin>4</xmin><ymin>3</ymin><xmax>5</xmax>"
    head += "<ymax>4</ymax></bndbox></part>"
    cat = thing("cat", 2, 1, 3.5, 2, difficult=1)
    for name in ("2007_000032", "2008_000001"):
        picture(root / f"JPEGImages/{name}.jpg")
        text = annotation(cat, thing("person", 3, 2, 9, 7, extra=head), cat)
        write(root / f"Annotations/{name}.xml", text)
    ids = np.zeros((8, 12), dtype=np.uint8)
    ids[1:7, 2:9], ids[3:5, 4:6], ids[0] = 15, 8, 255
    image = Image.fromarray(ids)
    image.putpalette([k for colour in range(256) for k in (colour, 0, 255 - colour)])
    (root / "SegmentationClass").mkdir()
    image.save(root / "SegmentationClass/2007_000032.png")
    write(root / "ImageSets/Segmentation/val.txt", "2007_000032\n")
    write(root / "ImageSets/Main/val.txt", "2007_000032\n2008_000001\n\n")
    write(root / "ImageSets/Main/cat_val.txt", "2008_000001 -1\n")
    return root


def test_voc(voc: Path) -> None:
    data = VOC(voc)
    assert len(data) == 1
    assert data.root == VOC(voc.parent).root == VOC(voc.parents[1]).root == voc
    assert repr(data) == f"VOC({str(voc)!r}, split='val', pictures=1)"
    assert data.image(0).size == SIZE
    assert [CLASSES[k] for k in data.labels(0)] == ["person", "cat"]
    assert CLASSES[data.label(0)] == "person"
    assert list(CLASSES) == sorted(CLASSES)
    assert len(CLASSES) == 20


def test_boxes_of_voc_count_from_1_and_leave_out_parts(voc: Path) -> None:
    data = VOC(voc)
    cat = Box("cat", 1, 0, 3.5, 2, difficult=True)
    assert data.boxes(0) == (cat, Box("person", 2, 1, 9, 7), cat)
    assert data.boxes(0, CLASSES.index("cat")) == (cat, cat)
    assert data.boxes(0, CLASSES.index("dog")) == ()


def test_masks_of_voc(voc: Path) -> None:
    data = VOC(voc)
    expected = np.zeros((8, 12), dtype=bool)
    expected[1:7, 2:9], expected[3:5, 4:6] = True, False
    assert (data.mask(0) == expected).all()
    assert data.mask(0, CLASSES.index("cat")).sum() == 4
    assert data.ignored(0)[0].all()
    assert data.ignored(0).sum() == 12
    with pytest.raises(TargetError, match=r"class 20 is none of Pascal VOC's. Choose from 0 to 19"):
        data.mask(0, 20)


def test_detection_has_more_pictures_without_masks(voc: Path) -> None:
    data = VOC(voc, task="detection")
    assert len(data) == 2
    assert len(data.boxes(1)) == 3
    cats = VOC(voc, "cat_val", task="detection")
    assert [path.stem for path in cats.files] == ["2008_000001"]
    with pytest.raises(
        InputError, match=r"2008_000001\.png does not exist: only the pictures of t"
    ):
        data.mask(1)


def test_voc_files_that_are_not_as_they_should_be(voc: Path) -> None:
    data, xml = VOC(voc), voc / "Annotations/2007_000032.xml"
    xml.write_text(annotation(thing("persom", 1, 1, 2, 2)))
    with pytest.raises(InputError, match=r"'persom', which is no class .*did you mean 'person'\?"):
        data.boxes(0)
    xml.write_text(annotation())
    assert data.labels(0) == ()
    with pytest.raises(InputError, match=r"names no object, so the picture has no class"):
        data.label(0)
    png = voc / "SegmentationClass/2007_000032.png"
    Image.fromarray(np.full((8, 12), 33, dtype=np.uint8)).save(png)
    with pytest.raises(InputError, match=r"has numbers up to 33; a segmentation of Pascal VOC has"):
        data.segmentation(0)
    picture(png)
    with pytest.raises(
        InputError, match=r"has the form \(8, 12, 3\); a segmentation of Pascal VOC"
    ):
        data.segmentation(0)
    (voc / "JPEGImages/2007_000032.jpg").unlink()
    with pytest.raises(
        InputError, match=r"2007_000032\.jpg' cannot be read: it does not exist\. The set"
    ):
        data.image(0)


def test_folders_that_are_not_voc(voc: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"not hold Pascal VOC. Expected: JPEG.*Found: no such fol"
    ):
        VOC(tmp_path / "nowhere")
    with pytest.raises(
        InputError, match=r"Expected: JPEGImages/, .*Found: Main/, Segmentation/\.$"
    ):
        VOC(voc / "ImageSets")
    with pytest.raises(
        InputError, match=r"test\.txt' cannot be read: it does not exist\. Found: val\.txt\.$"
    ):
        VOC(voc, "test")
    with refused("task", "boxes"):
        VOC(voc, task="boxes")  # pyright: ignore[reportArgumentType]
    (voc / "ImageSets/Segmentation/val.txt").write_text("\n")
    with pytest.raises(InputError, match=r"val\.txt names no picture"):
        VOC(voc)


# --- what they share -------------------------------------------------------------------------


def test_pixels_are_in_a_box_by_their_middle() -> None:
    boxes = [Box("a", 0.4, 0, 1.6, 1), Box("a", 2.51, 1, 4, 2)]
    assert folders.within(boxes, (4, 2)).astype(int).tolist() == [[1, 1, 0, 0], [0, 0, 0, 1]]
    assert not folders.within([], (4, 2)).any()
    assert Box("a", 1, 2, 4, 4).area == 6


def test_pictures_without_labels(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/1.JPG", "a.jpeg", "a.txt", ".hidden/3.png", "c/.4.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = folders.pictures_among([tmp_path / "b" / "2.png", tmp_path])
    assert [str(path.relative_to(tmp_path)) for path in found] == [
        "b/2.png", "a.jpeg", "b/1.JPG", "b/2.png",
    ]  # fmt: skip
    with pytest.raises(InputError, match=r"holds no picture.* Found: .4.png") as error:
        folders.pictures_among([tmp_path / "c"])
    assert (error.value.argument, error.value.got) == ("images", str(tmp_path / "c"))
    with pytest.raises(InputError, match="no picture was named"):
        folders.pictures_among([])
