from __future__ import annotations

from dataclasses import replace

import pytest

from engine.errors import UsageError
from trainer.augment import AUGMENTATIONS
from trainer.presets import PRESETS, share_of_negatives, with_fractions, with_settings

BEST = PRESETS[("best", "segmenter")]
ARTICLE = PRESETS[("article", "segmenter")]


def test_the_articles_recipe_is_the_articles() -> None:
    assert (ARTICLE.split, ARTICLE.fractions, ARTICLE.slices) == ("slice", (0.85, 0.075, 0.075), "tumour")
    assert (ARTICLE.learning_rate, ARTICLE.epsilon, ARTICLE.schedule) == (0.05, 0.1, "plateau")
    assert (ARTICLE.batch_size, ARTICLE.patience, ARTICLE.monitor) == (16, 20, "val_loss")
    assert (ARTICLE.loss, ARTICLE.alpha, ARTICLE.augmentation) == ("focal-tversky", 0.7, None)
    assert not any((ARTICLE.ema, ARTICLE.weight_decay, ARTICLE.clip_norm, ARTICLE.bn_batches, ARTICLE.warmup))


def test_one_setting_changes_one_value() -> None:
    assert with_settings(BEST, {}) == BEST
    assert with_settings(BEST, {"ema": "0"}) == replace(BEST, ema=0.0)
    assert with_settings(BEST, {"warmup": "20"}) == replace(BEST, warmup=20)
    assert with_settings(BEST, {"loss": "tversky+bce"}) == replace(BEST, loss="tversky+bce")
    assert with_settings(BEST, {"freeze": "conv1, conv2"}) == replace(BEST, freeze=("conv1", "conv2"))
    assert with_settings(BEST, {"monitor": "val_dice"}).highest_is_best


def test_an_augmentation_is_named_and_one_of_its_strengths_changed() -> None:
    assert with_settings(BEST, {"augmentation": "none"}) == replace(BEST, augmentation=None)
    changed = with_settings(BEST, {"augmentation": "full", "augmentation.elastic": "0"}).augmentation
    full = AUGMENTATIONS["full"]
    assert full is not None
    assert changed == replace(full, elastic=0.0)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("emma", "0", "no such field; there are split, slices, "),
        ("name", "mine", "no such field"),
        ("ema", "much", "--set ema=much: give a number"),
        ("epochs", "1.5", "--set epochs=1.5: give a number"),
        ("loss", "dice", "give one of focal-tversky, tversky"),
        ("augmentation", "heavy", "give one of none, light, full"),
        ("augmentation.twist", "1", "no such field; there are flip, "),
        ("slices", "most", "--slices most: give tumour, all, or a share"),
        ("slices", "1.5", "--slices 1.5"),
        ("slices", "nan", "--slices nan"),
    ],
)
def test_a_setting_that_is_none_is_refused(name: str, text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        with_settings(BEST, {name: text})


def test_a_strength_without_augmentation_is_refused() -> None:
    with pytest.raises(UsageError, match="the recipe has no augmentation"):
        with_settings(ARTICLE, {"augmentation.elastic": "3"})


@pytest.mark.parametrize(("slices", "share"), [("tumour", 0.0), ("all", 1.0), ("0.25", 0.25), ("0", 0.0)])
def test_slices_say_how_many_of_the_tumour_free_are_seen(slices: str, share: float) -> None:
    assert share_of_negatives(slices) == share


def test_fractions_leave_the_rest_to_training() -> None:
    assert with_fractions(BEST, None, None) == BEST
    assert with_fractions(BEST, 0.1, 0.0).fractions == (0.9, 0.1, 0.0)
    with pytest.raises(UsageError, match="leave none to train on"):
        with_fractions(BEST, 0.5, 0.5)
