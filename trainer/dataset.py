"""The LGG frame, one row a slice, and the split file that says what is trained on."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd

from engine.errors import UsageError

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".tif", ".tiff", ".png")
MASK_ENDING = "_mask"
COLUMNS = ("image_path", "mask_path", "mask", "patient_id")
SPLIT_FORMAT = 1

Part = Literal["train", "validation", "test"]
Kind = Literal["patient", "slice"]
PARTS = ("train", "validation", "test")


def load_frame(root: str | os.PathLike[str]) -> pd.DataFrame:
    """The frame of a kaggle_3m tree, or of any tree of patient folders with `X.tif` beside `X_mask.tif`.

    `root` may be the folder above kaggle_3m (Kaggle's archive holds the set twice, and only this one is then
    read), kaggle_3m itself, or any folder of patient folders; files may be .tif, .tiff or .png. Columns:
    image_path and mask_path (root as typed joined with the path below it), mask (1 where any mask pixel is
    set, else 0) and patient_id (the folder's name); rows stand in natural order of patient and slice number.

    Raises UsageError for a missing root, a tree without pairs, images without their masks, masks that cannot
    be read, and slices that are there twice.
    """
    typed = os.fspath(root)
    if not Path(typed).is_dir():
        raise UsageError(f"{typed} is not a folder: give the kaggle_3m folder or the one above it")
    top = typed.rstrip("/")
    if Path(f"{top}/kaggle_3m").is_dir():
        top = f"{top}/kaggle_3m"

    pairs: list[tuple[str, str, str]] = []
    maskless: list[str] = []
    for folder, names in _folders(top or "/"):
        patient = Path(folder).name or Path(folder).absolute().name
        images, masks = _images_and_masks(names)
        for name in images:
            image = f"{folder}/{name}"
            mask = masks.get(Path(name).stem)
            if mask is None:
                maskless.append(image)
            else:
                pairs.append((patient, image, f"{folder}/{mask}"))
    if maskless:
        raise UsageError(
            f"{len(maskless)} of {len(maskless) + len(pairs)} images under {typed} have no *{MASK_ENDING} "
            f"file beside them, the first is {min(maskless, key=natural_key)}: "
            "add the masks or move the images away"
        )
    if not pairs:
        raise UsageError(
            f"{typed} holds no pairs of X.tif and X{MASK_ENDING}.tif: "
            "give the kaggle_3m folder or the one above it"
        )

    pairs.sort(key=lambda pair: (natural_key(pair[0]), natural_key(Path(pair[1]).name), pair[1]))
    frame = pd.DataFrame(
        {
            "image_path": [image for _, image, _ in pairs],
            "mask_path": [mask for _, _, mask in pairs],
            "mask": np.array([read_mask(mask).any() for _, _, mask in pairs], dtype=np.int64),
            "patient_id": [patient for patient, _, _ in pairs],
        }
    )
    _refuse_twins(frame)
    return frame


def read_mask(path: str) -> npt.NDArray[np.bool_]:
    """The mask in a file as bool [height, width], true where any channel is not zero.

    Raises UsageError for a file that is missing or cannot be decoded.
    """
    try:
        data = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise UsageError(f"cannot read the mask {path}: {error.strerror or error}") from error
    mask = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    if mask is None:
        raise UsageError(f"the mask {path} is not a readable image: replace it or remove its slice")
    return cast("npt.NDArray[np.bool_]", mask != 0 if mask.ndim == 2 else (mask[..., :3] != 0).any(axis=-1))


def slice_keys(frame: pd.DataFrame) -> list[str]:
    """What names a slice wherever its tree lies: "patient/filename", one for each row."""
    return [
        f"{patient}/{Path(path).name}"
        for patient, path in zip(frame["patient_id"], frame["image_path"], strict=True)
    ]


def institution_of(patient_id: str) -> str:
    """The second part of a TCGA patient id ("CS" of TCGA_CS_4941_19960909), "" where there is none."""
    parts = patient_id.split("_")
    return parts[1] if len(parts) > 2 else ""


def natural_key(text: str) -> tuple[tuple[int | str, ...], str]:
    """Sorts a_2 before a_10; the text itself decides between a_2 and a_02."""
    pieces = re.split(r"(\d+)", text)
    return tuple(int(piece) if i % 2 else piece for i, piece in enumerate(pieces)), text


@dataclass(frozen=True, slots=True)
class Split:
    """Which patients, or slices ("patient/filename"), belong to train, validation and test."""

    kind: Kind
    seed: int
    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Split:
        """Reads what `save` wrote. Raises UsageError for a file that is missing or is no split."""
        try:
            content: Any = json.loads(Path(path).read_bytes())
        except OSError as error:
            raise UsageError(f"cannot read the split {path}: {error.strerror or error}") from error
        except ValueError as error:
            raise UsageError(f"{path} is not a split: it is not JSON ({error})") from error
        if not isinstance(content, dict) or content.get("format") != SPLIT_FORMAT:
            raise UsageError(
                f"{path} is not a split of format {SPLIT_FORMAT}: make it again with `tumorscan train`"
            )
        lists = [content.get(part) for part in PARTS]
        names_only = all(isinstance(x, list) and all(isinstance(name, str) for name in x) for x in lists)
        if (
            not names_only
            or content.get("kind") not in ("patient", "slice")
            or type(content.get("seed")) is not int
        ):
            raise UsageError(f"{path} is not a split: it needs kind, seed, train, validation and test")
        train, validation, test = (tuple(cast("list[str]", names)) for names in lists)
        twice = len(train) + len(validation) + len(test) - len({*train, *validation, *test})
        if twice:
            raise UsageError(
                f"{path} is not a split: {twice} of its {content['kind']} names stand in it twice"
            )
        return cls(content["kind"], content["seed"], train, validation, test)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the split as JSON, whole or not at all; equal splits give equal bytes."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        partial.write_bytes(self._as_json())
        partial.replace(target)

    @property
    def sha256(self) -> str:
        """The hash of the file that `save` writes."""
        return hashlib.sha256(self._as_json()).hexdigest()

    def names(self, part: Part) -> tuple[str, ...]:
        """The patients or slice keys of a part."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[part]

    def select(self, frame: pd.DataFrame, part: Part, *, allow_unknown: bool = False) -> pd.DataFrame:
        """The rows of `frame` that belong to `part`, in the frame's order, numbered from 0.

        Raises UsageError when the frame has patients (or slices) that stand in no part, unless
        `allow_unknown` leaves these out, and when nothing of the part is in the frame.
        """
        keys = list(frame["patient_id"]) if self.kind == "patient" else slice_keys(frame)
        present = set(keys)
        unknown = present - {*self.train, *self.validation, *self.test}
        if unknown and not allow_unknown:
            raise UsageError(
                f"{len(unknown)} of {len(present)} {self.kind} names are in no part of the split, "
                f"the first is {min(unknown, key=natural_key)}: "
                "use the data that the split was made of, or another split"
            )
        wanted = set(self.names(part))
        if not wanted & present:
            raise UsageError(f"none of the {len(wanted)} {self.kind} names of part {part} is in the data")
        if wanted - present:
            log.warning("%d of %d %s names of part %s are not in the data",
                        len(wanted - present), len(wanted), self.kind, part)  # fmt: skip
        return frame[[key in wanted for key in keys]].reset_index(drop=True)

    def _as_json(self) -> bytes:
        content = {"format": SPLIT_FORMAT, "kind": self.kind, "seed": self.seed}
        lists = {part: list(self.names(cast("Part", part))) for part in PARTS}
        return (json.dumps(content | lists, indent=1) + "\n").encode("ascii")


def _folders(top: str) -> Iterator[tuple[str, list[str]]]:
    seen: set[tuple[int, int]] = set()
    for folder, subfolders, names in os.walk(top, onerror=_refuse_unlisted, followlinks=True):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:  # a link loop
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        yield folder, names


def _refuse_unlisted(error: OSError) -> None:
    raise UsageError(f"cannot list the folder {error.filename}: {error.strerror}") from error


def _images_and_masks(names: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The images of a folder, and its masks by the stem of the image they belong to."""
    images: list[str] = []
    masks: dict[str, str] = {}
    for name in sorted(names):
        path = Path(name)
        if path.suffix.lower() not in IMAGE_SUFFIXES or name.startswith("."):
            continue
        if path.stem.endswith(MASK_ENDING):
            masks[path.stem.removesuffix(MASK_ENDING)] = name
        else:
            images.append(name)
    return images, masks


def _refuse_twins(frame: pd.DataFrame) -> None:
    first: dict[str, str] = {}
    for key, path in zip(slice_keys(frame), frame["image_path"], strict=True):
        if key in first:
            raise UsageError(
                f"{first[key]} and {path} are the same slice of the same patient: give one of the trees"
            )
        first[key] = path
