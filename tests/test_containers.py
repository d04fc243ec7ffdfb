"""The two recipes of a container install the same from the same files; test_wheel.py builds a wheel from them."""

from __future__ import annotations

import re

from tests.conftest import ROOT

DOCKER, APPTAINER = ((ROOT / name).read_text(encoding="utf-8") for name in ("Dockerfile", "slurm/apptainer.def"))


def test_both_start_from_the_same_image():
    (docker,) = re.findall(r"^ARG PYTHON=(.*)$", DOCKER, re.MULTILINE)
    assert f"From: python:{docker}-slim\n" in APPTAINER


def test_both_install_the_same_packages():
    docker, apptainer = (re.findall(r"install .*\\\n.*distvae\[.*\]", recipe) for recipe in (DOCKER, APPTAINER))
    assert len(docker) == 1
    assert [line.split() for line in docker] == [line.split() for line in apptainer]


def test_both_see_the_same_files():
    docker = re.findall(r"^!(.*)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), re.MULTILINE)
    apptainer = re.findall(r"^    (\S+) /opt/distvae/$", APPTAINER, re.MULTILINE)
    assert sorted(docker) == sorted(apptainer)
    assert all((ROOT / name).exists() for name in docker)
