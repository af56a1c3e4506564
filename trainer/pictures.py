"""Pictures: the article's (MRI, true mask, predicted mask, MRI with each), and curves of measurements."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd

from engine.errors import UsageError
from trainer.calibration import Reliability
from trainer.dataset import read_mask

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROWS = 6
TITLES = ("MRI", "true mask", "predicted mask", "MRI with true mask", "MRI with predicted mask")
TRUE_COLOUR = (40, 200, 70)
PREDICTED_COLOUR = (235, 60, 60)
TINT = 0.45  # share of the colour where a mask lies on the MRI


def choose_rows(slices: pd.DataFrame, count: int = ROWS) -> pd.DataFrame:
    """The slices to show out of `Evaluation.slices`: at most `count`, from the best Dice to the worst.

    The largest tumour that was missed and the largest mask where there is no tumour are among them, where
    there are such and `count` is above 2; the others have tumour and mask, evenly spread over the quantiles
    of Dice.
    """
    sick, marked = slices["mask"] == 1, slices["tp"] + slices["fp"] > 0
    chosen = []
    if count > 2:
        chosen += [slices[sick & ~marked].nlargest(1, "fn"), slices[~sick & marked].nlargest(1, "fp")]
    hits = slices[sick & marked].sort_values("dice", ascending=False, kind="stable")
    wanted = min(count - sum(len(rows) for rows in chosen), len(hits))
    places = np.linspace(0, len(hits) - 1, wanted).round().astype(np.int64)
    return pd.concat([hits.iloc[places], *chosen])


def comparison_picture(rows: pd.DataFrame, out_png: str | os.PathLike[str]) -> None:
    """Draws one line of five pictures for every row and writes a PNG.

    `rows` has the columns image_path, mask_path, predicted_path ("" for an empty prediction), dice and
    tumor_probability, as `Evaluation.slices` has. Raises UsageError for no rows, for unreadable files and for
    masks of another size.
    """
    if rows.empty:
        raise UsageError("no slice with a tumour or a mask to draw: the results and the data have none")
    figure = _figure(width=3.0 * len(TITLES), height=3.2 * len(rows))
    grid = figure.subplots(len(rows), len(TITLES), squeeze=False)
    for line, (_, row) in zip(grid, rows.iterrows(), strict=True):
        image = read_image(str(row["image_path"]))
        true = read_mask(str(row["mask_path"]))
        predicted = read_mask(str(row["predicted_path"])) if row["predicted_path"] else np.zeros_like(true)
        if not image.shape[:2] == true.shape == predicted.shape:
            raise UsageError(
                f"{row['image_path']} and its masks are of different sizes: they cannot be drawn"
            )
        panels = (
            image,
            _tinted(np.zeros_like(image), true, (255, 255, 255), 1.0),
            _tinted(np.zeros_like(image), predicted, (255, 255, 255), 1.0),
            _tinted(image, true, TRUE_COLOUR, TINT),
            _tinted(image, predicted, PREDICTED_COLOUR, TINT),
        )
        for axes, panel in zip(line, panels, strict=True):
            axes.imshow(panel, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
        score = f"Dice {row['dice']:.2f}, tumour probability {row['tumor_probability']:.2f}"
        line[0].set_ylabel(_plain(Path(str(row["image_path"])).stem), fontsize=8)
        line[-1].set_xlabel(score, fontsize=9)
    for axes, title in zip(grid[0], TITLES, strict=True):
        axes.set_title(title)
    figure.savefig(os.fspath(out_png), format="png", dpi=100)


def curves(history_csv: str | os.PathLike[str], out_png: str | os.PathLike[str]) -> None:
    """Draws a training's history.csv: a panel for each quantity, its training and validation curves in it.

    A column `val_x` shares the panel of `x`; the loss comes first, the learning rate last and on a log scale.
    Raises UsageError for a history that is missing or has no epoch.
    """
    try:
        history = pd.read_csv(history_csv)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read the history {os.fspath(history_csv)}: {error}") from error
    if history.empty or "epoch" not in history:
        raise UsageError(f"{os.fspath(history_csv)} has no epoch to draw: train for one first")
    names = [str(name) for name in history.select_dtypes("number") if name != "epoch"]
    quantities = sorted({name.removeprefix("val_"): None for name in names}, key=_panel_order)
    figure = _figure(width=4.2 * len(quantities), height=3.6)
    for axes, quantity in zip(figure.subplots(1, len(quantities), squeeze=False)[0], quantities, strict=True):
        for name, label in ((quantity, "training"), (f"val_{quantity}", "validation")):
            if name in names:
                axes.plot(
                    history["epoch"] + 1, history[name], label=label, marker="." if len(history) < 30 else ""
                )
        _finish_panel(axes, quantity, history)
    figure.savefig(os.fspath(out_png), format="png", dpi=100)


def reliability_picture(found: Reliability, out_png: str | os.PathLike[str]) -> None:
    """Draws the share of tumour slices over their mean probability, with intervals, and the slices a bin."""
    figure = _figure(width=5.0, height=6.0)
    curve, counts = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    bins = [each for each in found.bins if each.probability is not None]
    curve.plot((0, 1), (0, 1), color="grey", linestyle=":", label="as it says")
    means, shares = [each.probability for each in bins], [each.tumours for each in bins]
    curve.plot(means, shares, marker="o", label="measured")
    for each in bins:
        if each.interval is not None:
            curve.vlines(each.probability, *each.interval, alpha=0.5)
    curve.set_ylabel("share with tumour")
    curve.set_title(f"expected calibration error {found.error.value or 0:.3f}")
    curve.legend()
    for each in found.bins:
        counts.bar((each.low + each.high) / 2, each.slices, width=0.9 * (each.high - each.low), color="grey")
    counts.set_yscale("symlog")
    counts.set_xlabel("tumor_probability")
    counts.set_ylabel("slices")
    figure.savefig(os.fspath(out_png), format="png", dpi=100)


def operating_picture(trade_off: pd.DataFrame, gate: float | None, out_png: str | os.PathLike[str]) -> None:
    """Draws sensitivity and share of slices passed over the gate, and Dice lost below.

    `trade_off` is of `trainer.gates.trade_off`; `gate` is the run's, marked.
    """
    figure = _figure(width=6.0, height=6.0)
    rates, lost = figure.subplots(2, 1, sharex=True)
    gates = trade_off["gate"]
    for name, label in (("sensitivity", "tumour slices passed"), ("passed", "all slices passed")):
        rates.plot(gates, trade_off[name], label=label)
    lost.plot(gates, trade_off["dice_lost"], label="mean")
    for axes, name in ((rates, "sensitivity"), (lost, "dice_lost")):
        low, high = (trade_off[f"{name}_{end}"].astype(np.float64) for end in ("low", "high"))
        axes.fill_between(gates, low, high, alpha=0.2)
        axes.grid(alpha=0.3)
        if gate is not None:
            axes.axvline(gate, color="grey", linestyle=":", label=f"gate {gate:g}")
        axes.legend()
    rates.set_ylabel("share")
    lost.set_ylabel("Dice per volume lost")
    lost.set_xlabel("gate threshold")
    figure.savefig(os.fspath(out_png), format="png", dpi=100)


def _finish_panel(axes: Axes, quantity: str, history: pd.DataFrame) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(quantity.replace("_", " "))
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    if quantity == "learning_rate" and (history[quantity] > 0).all():
        axes.set_yscale("log")
    if f"val_{quantity}" in history:
        axes.legend()


def _panel_order(quantity: str) -> tuple[int, str]:
    return {"loss": 0, "learning_rate": 2}.get(quantity, 1), quantity


def _figure(width: float, height: float) -> Figure:
    """A figure, in inches, that no window and no global state knows: it goes when its last reference goes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def read_image(path: str) -> npt.NDArray[np.uint8]:
    """RGB uint8 [height, width, 3]; deeper images are scaled to 8 bits. Raises UsageError for no image."""
    try:
        data = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise UsageError(f"cannot read the image {path}: {error.strerror or error}") from error
    image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB) if data.size else None
    if image is None:
        raise UsageError(f"the image {path} cannot be decoded: replace it or remove its slice")
    return image.astype(np.uint8)


def _tinted(
    image: npt.NDArray[np.uint8], mask: npt.NDArray[np.bool_], colour: tuple[int, int, int], share: float
) -> npt.NDArray[np.uint8]:
    tinted = image.copy()
    tinted[mask] = ((1 - share) * image[mask] + share * np.array(colour)).round().astype(np.uint8)
    return tinted


def _plain(text: str) -> str:
    """Without what matplotlib reads as mathematics, and what no font can draw."""
    return text.replace("$", r"\$").encode("ascii", "replace").decode("ascii")
