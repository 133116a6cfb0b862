"""The part of the build that pyproject.toml cannot say: the configs of the repository go into the package."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """Copies ``configs/`` to ``lors_cli/configs/`` of what is built, for `lors init`."""

    def run(self) -> None:
        """Build."""
        super().run()
        if not self.editable_mode:  # there the repository's own folder is used
            target = Path(self.build_lib) / "lors_cli/configs"
            shutil.copytree(Path(__file__).parent / "configs", target, dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithConfigs})
