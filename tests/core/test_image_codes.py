import re
from pathlib import Path

import pillsnap.core
from pillsnap.core.image_codes import Refusal, Remark


def test_codes_are_strings_with_a_meaning():
    codes = [*Refusal, *Remark]
    assert len({str(code) for code in codes}) == len(codes)
    for code in codes:
        assert code == str(code) == code.value
        assert re.fullmatch(r"[a-z0-9_]+", code)
        assert len(code.meaning) > 10
    assert Refusal("truncated") is Refusal.TRUNCATED


def test_every_code_is_given_somewhere_and_no_other_is():
    sources = "".join(path.read_text(encoding="utf-8") for path in Path(pillsnap.core.__file__).parent.glob("*.py"))
    for code in [*Refusal, *Remark]:
        named = f"{type(code).__name__}.{code.name}"
        assert named in sources or f'"{code}")' in sources, f"{named} is never given"
    literal = re.findall(r'ImageError\([^)]*?"([a-z_]+)"\)', sources)
    assert set(literal) <= {str(code) for code in Refusal}
