"""One picture of the whole demo data set: every drug in the studio and in the hand, with its K-CODE.

Legend: H, W height and width in pixels; C channels (RGB).
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from pillsnap.synthetic.conditions import BACKGROUNDS, RealCondition, StudioCondition
from pillsnap.synthetic.drugs import PillDesign
from pillsnap.synthetic.render import PillModel, build_model, render_real, render_studio
from pillsnap.synthetic.strokes import draw_text

U8 = NDArray[np.uint8]

_COLUMNS = 10
_THUMB_PX = 74
_GAP_PX = 4
_PAD_PX = 6
_LABEL_PX = 16
_PAPER = (247, 246, 243)
_CARD = (255, 255, 255)


def _thumb(image_HWC_u8: U8) -> U8:
    """The centre square, made small."""
    height, width = image_HWC_u8.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image_HWC_u8[top : top + side, left : left + side]
    return np.asarray(cv2.resize(square, (_THUMB_PX, _THUMB_PX), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _card(model: PillModel, seed: int) -> U8:
    """Studio front, real photo of the back, and the K-CODE below."""
    index = model.design.index
    studio = render_studio(model, StudioCondition(0, 0, 0, 75, (index * 40) % 360), seed)
    background = index % len(BACKGROUNDS)
    real, _ = render_real(model, RealCondition(background, 1 + index % 2, 1, (index * 45) % 360), seed)
    height, width = _THUMB_PX + _LABEL_PX + _PAD_PX, 2 * _THUMB_PX + _GAP_PX
    card = np.full((height, width, 3), _CARD, dtype=np.uint8)
    card[:_THUMB_PX, :_THUMB_PX] = _thumb(studio)
    card[:_THUMB_PX, _THUMB_PX + _GAP_PX :] = _thumb(real)
    ink = np.zeros((height, width), dtype=np.uint8)
    draw_text(ink, model.design.kcode, (width / 2, _THUMB_PX + (_LABEL_PX + _PAD_PX) / 2, width, 12), weight=0.13)
    return card - (card * (ink[..., None] / 255) * 0.78).astype(np.uint8)


def draw_contact_sheet(designs: Sequence[PillDesign], seed: int) -> U8:
    """All drugs in a grid; RGB, about 1,600 pixels wide for ten drugs and more."""
    cards = [_card(build_model(design), seed) for design in designs]
    card_height, card_width = cards[0].shape[:2]
    columns = min(_COLUMNS, len(cards))
    rows = -(-len(cards) // columns)
    step_x, step_y = card_width + 2 * _PAD_PX, card_height + 2 * _PAD_PX
    sheet = np.full((rows * step_y + 2 * _PAD_PX, columns * step_x + 2 * _PAD_PX, 3), _PAPER, dtype=np.uint8)
    for position, card in enumerate(cards):
        top = 2 * _PAD_PX + (position // columns) * step_y
        left = 2 * _PAD_PX + (position % columns) * step_x
        sheet[top : top + card_height, left : left + card_width] = card
    return sheet
