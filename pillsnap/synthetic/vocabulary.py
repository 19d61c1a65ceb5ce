"""The words and looks that invented drugs are put together from: shapes, colours, inks, sizes, names.

Colours are RGB, 0..255. The Korean words are those of the public drug lists; names and makers are made up.
"""

from __future__ import annotations

from enum import StrEnum


class Shape(StrEnum):
    """The outline of a pill; the bevelled one is round with a flat face and a wide slanted rim."""

    ROUND = "round"
    BEVELLED = "bevelled"
    OVAL = "oval"
    OBLONG = "oblong"
    CAPSULE = "capsule"
    SQUARE = "square"
    RHOMBUS = "rhombus"
    TRIANGLE = "triangle"
    PENTAGON = "pentagon"
    HEXAGON = "hexagon"
    OCTAGON = "octagon"


PALETTE_RGB: dict[str, tuple[int, int, int]] = {
    "white": (243, 243, 240),
    "cream": (240, 224, 186),
    "yellow": (245, 212, 72),
    "orange": (240, 148, 58),
    "pink": (242, 170, 182),
    "red": (190, 52, 52),
    "green": (88, 158, 92),
    "mint": (172, 218, 178),
    "blue": (82, 132, 205),
    "sky": (164, 205, 232),
    "purple": (150, 104, 174),
    "brown": (146, 92, 58),
    "gray": (158, 160, 162),
}
INK_RGB: dict[str, tuple[int, int, int]] = {
    "dark": (34, 34, 46),
    "blue": (24, 44, 120),
    "red": (150, 22, 30),
    "light": (250, 250, 248),
}
COLOR_KO = {
    "white": "하양",
    "cream": "연노랑",
    "yellow": "노랑",
    "orange": "주황",
    "pink": "분홍",
    "red": "빨강",
    "green": "초록",
    "mint": "연두",
    "blue": "파랑",
    "sky": "하늘",
    "purple": "보라",
    "brown": "갈색",
    "gray": "회색",
}
SHAPE_KO = {
    Shape.ROUND: "원형",
    Shape.BEVELLED: "원형",
    Shape.OVAL: "타원형",
    Shape.OBLONG: "장방형",
    Shape.CAPSULE: "장방형",
    Shape.SQUARE: "사각형",
    Shape.RHOMBUS: "마름모형",
    Shape.TRIANGLE: "삼각형",
    Shape.PENTAGON: "오각형",
    Shape.HEXAGON: "육각형",
    Shape.OCTAGON: "팔각형",
}
# long side from-to in mm, short : long, thick : short
SIZES: dict[Shape, tuple[float, float, float, float]] = {
    Shape.ROUND: (7.0, 11.0, 1.0, 0.42),
    Shape.BEVELLED: (8.0, 12.0, 1.0, 0.36),
    Shape.OVAL: (10.0, 15.0, 0.62, 0.6),
    Shape.OBLONG: (13.0, 18.5, 0.45, 0.7),
    Shape.CAPSULE: (14.0, 18.5, 0.37, 1.0),
    Shape.SQUARE: (7.5, 10.5, 1.0, 0.42),
    Shape.RHOMBUS: (10.0, 13.0, 0.74, 0.45),
    Shape.TRIANGLE: (8.5, 11.0, 0.92, 0.42),
    Shape.PENTAGON: (8.5, 11.0, 0.96, 0.42),
    Shape.HEXAGON: (8.5, 11.5, 0.88, 0.42),
    Shape.OCTAGON: (8.0, 11.0, 1.0, 0.42),
}
SHAPE_WEIGHTS = {
    Shape.ROUND: 2.6,
    Shape.BEVELLED: 1.0,
    Shape.OVAL: 2.2,
    Shape.OBLONG: 2.6,
    Shape.CAPSULE: 2.6,
    Shape.SQUARE: 1.0,
    Shape.RHOMBUS: 0.7,
    Shape.TRIANGLE: 0.6,
    Shape.PENTAGON: 0.5,
    Shape.HEXAGON: 0.8,
    Shape.OCTAGON: 0.5,
}
CAPSULE_PAIRS = (
    ("white", "blue"),
    ("yellow", "green"),
    ("red", "yellow"),
    ("pink", "white"),
    ("orange", "cream"),
    ("brown", "cream"),
    ("purple", "white"),
    ("green", "white"),
    ("gray", "orange"),
    ("blue", "yellow"),
    ("red", "gray"),
    ("sky", "blue"),
    ("mint", "green"),
    ("purple", "pink"),
    ("red", "white"),
)
LOOK_ALIKES: tuple[tuple[Shape, tuple[str, ...]], ...] = (
    (Shape.ROUND, ("white",)),
    (Shape.OBLONG, ("white",)),
    (Shape.ROUND, ("yellow",)),
    (Shape.OVAL, ("pink",)),
    (Shape.CAPSULE, ("red", "white")),
    (Shape.BEVELLED, ("white",)),
    (Shape.OBLONG, ("orange",)),
    (Shape.ROUND, ("pink",)),
    (Shape.OVAL, ("white",)),
    (Shape.ROUND, ("sky",)),
    (Shape.OBLONG, ("yellow",)),
    (Shape.CAPSULE, ("yellow", "green")),
    (Shape.HEXAGON, ("white",)),
    (Shape.OVAL, ("mint",)),
    (Shape.SQUARE, ("white",)),
    (Shape.ROUND, ("orange",)),
)
DOSES = ("5", "10", "15", "20", "25", "30", "35", "40", "50", "60", "70", "75", "80", "100", "120", "125", "150")
STEM_HEADS = (
    "가온",
    "나래",
    "다솜",
    "라온",
    "마루",
    "바론",
    "사라",
    "아리",
    "자운",
    "차로",
    "카덴",
    "타미",
    "파렌",
    "하랑",
    "미르",
    "소담",
    "보늬",
    "두온",
    "누비",
    "새론",
)
STEM_TAILS = ("", "핀", "덴", "빅", "솔", "젠", "탄", "린", "메드", "로사")
MAKERS = (
    "가람솔제약",
    "누리샘약품",
    "다온결제약",
    "미르새바이오",
    "보듬손제약",
    "새벽별약품",
    "온새미약품",
    "푸른내제약",
    "해오름결약품",
    "달보드레제약",
)
