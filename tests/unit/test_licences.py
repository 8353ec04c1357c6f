"""Whoever installs the package gets nothing under a licence that asks more than a notice."""

import re
from collections.abc import Iterator
from importlib import metadata

import pytest
from packaging.requirements import Requirement


PACKAGE = "ofa-hf"
PERMISSIVE = re.compile(
    r"apache|\bmit\b|bsd|\bisc\b|\bpsf|python software foundation|mpl-2|mozilla public license 2|zlib|unlicense|\bcc0|"
    r"hpnd|historical permission|boost|\b0bsd",
    re.IGNORECASE,
)
COPYLEFT = re.compile(r"\b[al]?gpl|gnu |affero|sspl|commons clause|non-?commercial|proprietary", re.IGNORECASE)
# Looked at by hand: why each is no obstacle.
ACCEPTED = {
    "nvidia": "CUDA's libraries, which torch's Linux wheels ask for; NVIDIA's own licence, used and never passed on",
    "cuda": "NVIDIA's Python bindings of the same",
}


def closure(package: str) -> set[str]:
    """Names of all installed packages that one needs without its extras."""
    found, waiting = set(), [package]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += needs(name)
    return found - {package}


def needs(name: str) -> Iterator[str]:
    for line in metadata.requires(name) or []:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield re.sub(r"[-_.]+", "-", requirement.name).lower()


def licence(name: str) -> str:
    """What a package says of its licence: the expression, else classifiers, else the first line of the old field."""
    about = metadata.metadata(name)
    classifiers = [
        value.rpartition("::")[2] for value in about.get_all("Classifier", []) if value.startswith("License")
    ]
    said = about.get("License-Expression") or "; ".join(classifiers)
    return (said if said.strip(" ;") else (about.get("License") or "nothing").strip().splitlines()[0]).strip()


def is_accepted(name: str, said: str) -> bool:
    if name.partition("-")[0] in ACCEPTED:
        return True
    choices = [re.sub(r"\(|\)", "", choice) for choice in re.split(r"\bOR\b", said)]  # one of several is enough
    return any(PERMISSIVE.search(choice) and not COPYLEFT.search(choice) for choice in choices)


def test_every_dependency_of_the_core_is_under_a_permissive_licence():
    packages = closure(PACKAGE)
    assert {"torch", "transformers", "pillow", "datasets"} <= packages
    refused = {name: said for name in sorted(packages) if not is_accepted(name, said := licence(name))}
    assert not refused, f"look at these licences and add them to ACCEPTED, or do without the package: {refused}"


@pytest.mark.parametrize(
    ("said", "accepted"),
    [
        ("Apache-2.0", True),
        ("MIT License", True),
        ("BSD-3-Clause AND PSF-2.0", True),
        ("GPL-3.0-only OR MIT", True),
        ("GPL-3.0-only", False),
        ("BSD-3-Clause AND LGPL-2.1-or-later", False),
        ("GNU Affero General Public License v3", False),
        ("nothing", False),
    ],
)
def test_the_list_tells_licences_apart(said, accepted):
    assert is_accepted("package", said) == accepted
