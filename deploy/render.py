"""Renders the chart into plain manifests: for each file of presets/, a folder of manifests/ that Kustomize can take.

python3 dev.py manifests
"""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import binaries

HERE: Final = Path(__file__).resolve().parent
CHART: Final = HERE / "chart"
MANIFESTS: Final = HERE / "manifests"

_KUSTOMIZATION: Final = """\
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources:
  - roost.yaml
"""


class RenderError(Exception):
    """helm is missing, or does not like the values; the text says which."""


def presets() -> list[str]:
    return sorted(path.stem for path in (HERE / "presets").glob("*.yaml"))


def preset_file(preset: str) -> Path:
    return HERE / "presets" / f"{preset}.yaml"


def template(arguments: Sequence[str], release: str = "roost") -> str:
    """What `helm template` makes of the chart.

    Raises:
      RenderError: there is no helm, or it fails.
    """
    helm = binaries.find("helm")
    if helm is None:
        raise RenderError("there is no helm here: run `python3 dev.py manifests`, which brings one, or install it")
    command = [helm, "template", release, str(CHART), *arguments]
    answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode != 0:
        raise RenderError(answer.stderr.strip())
    return answer.stdout


def render(preset: str) -> dict[str, str]:
    """The files of a preset's folder.

    Raises:
      RenderError: as above.
    """
    header = f"# Made from deploy/chart with deploy/presets/{preset}.yaml by `python3 dev.py manifests`.\n"
    objects = template(["--values", str(preset_file(preset))]).replace("\n\n---", "\n---")
    return {"roost.yaml": header + objects, "kustomization.yaml": _KUSTOMIZATION}


def main() -> int:
    shutil.rmtree(MANIFESTS, ignore_errors=True)
    for preset in presets():
        (MANIFESTS / preset).mkdir(parents=True)
        for name, text in render(preset).items():
            (MANIFESTS / preset / name).write_text(text)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RenderError as error:
        sys.exit(str(error))
