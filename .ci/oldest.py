"""Prints a constraint for each dependency that holds it to the oldest release that pyproject.toml allows.

`oldest.py run` prints those of the package and its tests, `oldest.py build` those of the build.
"""

import re
import sys
import tomllib
from pathlib import Path

with open(Path(__file__).parent.parent / "pyproject.toml", "rb") as file:
    settings = tomllib.load(file)
project = settings["project"]
requirements = {
    "build": settings["build-system"]["requires"],
    "run": project["dependencies"] + project["optional-dependencies"]["test"],
}
for requirement in requirements[sys.argv[1]]:
    bound = re.fullmatch(r"([\w.-]+)>=([\d.]+)", requirement)
    if not bound:
        sys.exit(f"pyproject.toml: {requirement} is not of the form name>=version, so its oldest release is unknown")
    print("==".join(bound.groups()))
