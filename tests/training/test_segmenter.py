"""The pairs that a segmenter is trained on."""

from collections import Counter

import numpy as np
import pytest
import torch

from oasisgen.config.segmenter import SegmenterConfig
from oasisgen.data.feed import Feed, Stored
from oasisgen.errors import UserError
from oasisgen.models import segmenter
from oasisgen.models.segmenter import Segmenter
from oasisgen.training.segmenter import draw_pairs, pair_batch, stored_together


@pytest.mark.parametrize("pairs", [3, 10, 80])
def test_every_pair_is_drawn_equally_often_whatever_their_number(pairs: int) -> None:
    drawn = Counter(draw_pairs([pairs], 60, seed=0).tolist())
    assert set(drawn) <= set(range(pairs))
    assert len(drawn) == min(pairs, 60)
    assert max(drawn.values()) - min(drawn.values()) <= 1
    assert not np.array_equal(draw_pairs([pairs], 60, seed=0), draw_pairs([pairs], 60, seed=1))


def test_parts_are_learned_one_after_the_other_for_equal_shares() -> None:
    drawn = draw_pairs([20, 3], 31, seed=0)
    first, last = drawn[:16], drawn[16:]
    assert len(set(first.tolist())) == 16
    assert set(first.tolist()) <= set(range(20))
    assert Counter(last.tolist()) == {20: 5, 21: 5, 22: 5}


def test_pairs_are_read_together_from_several_feeds() -> None:
    blocks = [
        {name: np.full((2, 1, 1), value + add) for name, add in (("image", 0), ("labels", 10))} for value in (1, 2)
    ]
    together = stored_together([Stored((blocks[0],)), Stored((blocks[1],))])
    images, labels = pair_batch(Feed(list(together.blocks)), np.array([3, 0]))
    assert images.ravel().tolist() == [2, 1]
    assert labels.ravel().tolist() == [12, 11]


def test_a_segmenter_gives_each_pixel_a_class() -> None:
    torch.manual_seed(0)
    untrained = Segmenter(SegmenterConfig(channels=2), classes=3).eval()
    labels = untrained.label_map(torch.randint(0, 256, (2, 32, 64), dtype=torch.uint8))
    assert (labels.shape, labels.dtype) == ((2, 32, 64), torch.uint8)
    assert labels.max() < 3


def test_without_monai_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segmenter, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="the extra `probe`, on every node"):
        Segmenter(SegmenterConfig(), classes=3)
