"""Check the installation: ``python tools/check_install.py [--mmcv] [--mmdet] [--mmseg]``."""

import argparse
import importlib
import io
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout

ALWAYS = {
    "torch": "pip install -r requirements/runtime.txt",
    "torchvision": "install the one that belongs to this torch (requirements/constraints.txt)",
    "timm": "pip install -r requirements/runtime.txt",
    "cv2": "pip install --force-reinstall --no-deps opencv-python-headless; "
    "opencv-python also needs libGL (Debian and Ubuntu: apt-get install libgl1)",
    "mmengine": "pip install -r requirements/engine.txt",
    "tokensparse": "pip install --no-build-isolation --no-deps --editable .",
}
MMCV = (
    "mmcv is missing, has no compiled ops, or has ops of another torch. Build it anew:\n"
    "    pip install -r requirements/build.txt\n"
    "    pip install --no-build-isolation --no-cache-dir --no-deps --force-reinstall "
    "-c requirements/constraints.txt onedl-mmcv\n"
    "  It needs a C++ compiler, and nvcc of the CUDA version of torch where a GPU is visible "
    "(CUDA_VISIBLE_DEVICES= hides it)."
)
DENSE = "pip install --no-build-isolation -c requirements/constraints.txt -r requirements/mm.txt"


def problem(module: str, remedy: str) -> str | None:
    """Why ``module`` cannot be imported and what to do about it, or None where it can."""
    heard = io.StringIO()
    try:
        with warnings.catch_warnings(), redirect_stdout(heard), redirect_stderr(heard):
            warnings.simplefilter("ignore")
            importlib.import_module(module)
    except Exception as error:
        return f"{module} cannot be imported ({type(error).__name__}: {error})\n  Remedy: {remedy}"
    return None


def main() -> None:
    """Import what was asked for; leave with status 1 and the remedies where something fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mmcv", action="store_true", help="mmcv and its compiled ops")
    parser.add_argument("--mmdet", action="store_true", help="detection")
    parser.add_argument("--mmseg", action="store_true", help="segmentation")
    args = parser.parse_args()
    wanted = dict(ALWAYS)
    if args.mmcv:
        wanted["mmcv.ops.nms"] = MMCV
    if args.mmdet:
        wanted["mmdet.apis"] = DENSE
    if args.mmseg:
        wanted["mmseg.apis"] = DENSE
    problems = [p for p in (problem(*item) for item in wanted.items()) if p]
    if problems:
        sys.exit("\n".join(["The installation is not complete.", *problems]))
    versions = [
        f"{name} {getattr(sys.modules[name], '__version__', '?')}"
        for name in ("torch", "timm", "mmengine", "mmcv", "mmdet", "mmseg", "tokensparse")
        if name in sys.modules
    ]
    print("Installed and importable:", ", ".join(versions))


if __name__ == "__main__":
    main()
