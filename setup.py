"""Put configs/, launch/ and slurm/ into a wheel, from where ``distvae init`` writes them."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithFiles(build_py):
    def run(self):
        super().run()
        if not self.editable_mode:
            packed = Path(self.build_lib, "distvae", "files")
            shutil.rmtree(packed, ignore_errors=True)  # of an earlier build
            for folder in ("configs", "launch", "slurm"):
                shutil.copytree(folder, packed / folder, ignore=shutil.ignore_patterns("__pycache__"))


setup(cmdclass={"build_py": BuildWithFiles})
