"""What pyproject.toml cannot say: a wheel carries the commit that it was built from."""

import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

sys.path.insert(0, str(Path(__file__).parent))

from pillsnap.core.code_version import BUILT_FROM, to_build_in


class BuildWithCommit(build_py):
    """`build_py`, and one small file more. An editable installation runs in its checkout, and needs none."""

    def run(self) -> None:
        """Build."""
        super().run()
        if not self.editable_mode:
            Path(self.build_lib, "pillsnap", BUILT_FROM).write_text(to_build_in(), encoding="utf-8")


setup(cmdclass={"build_py": BuildWithCommit})
