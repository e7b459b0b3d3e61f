"""llama.cpp on this machine, outside of images: for `finetune run --local` and the trainer's tests.

    python -m localcluster.llamacpp        prints the folder, for LLAMA_CPP_DIR

As root it is taken out of the image that the cluster's trainer is built from; otherwise it is compiled, which needs g++.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from localcluster import builder, images, settings
from localcluster.errors import BuildFailed, LocalclusterError

IMAGE = images.IMAGES["llamacpp-build"]
IN_IMAGE = "/opt/llama.cpp"
COMPILE = Path(__file__).with_name("llamacpp.sh")


def ensure(chosen: settings.Settings) -> Path:
    """The folder that holds llama.cpp, made where it is missing or of other sources. Raises BuildFailed."""
    folder = chosen.cache / "llama.cpp"
    stamp = folder / ".key"
    key = images.key(IMAGE)
    if stamp.exists() and stamp.read_text() == key:
        return folder
    making = chosen.cache / f"llama.cpp-{os.getpid()}"
    shutil.rmtree(making, ignore_errors=True)
    if os.geteuid() == 0:
        (reference,) = images.ensure(chosen, [IMAGE.name]).values()
        storage = builder.Storage(chosen.cache / "buildah")
        if not builder.exists(storage, reference):
            builder.pull(storage, reference)
        builder.copy_out(storage, reference, IN_IMAGE, making)
    else:
        print("compiling llama.cpp (kept; about ten minutes on two cores)", file=sys.stderr, flush=True)
        if subprocess.run(["sh", str(COMPILE), str(making)], check=False).returncode:
            raise BuildFailed(f"llama.cpp could not be compiled: see above, and {COMPILE}")
    (making / ".key").write_text(key)
    shutil.rmtree(folder, ignore_errors=True)
    making.rename(folder)  # last: what was cut off leaves nothing that looks whole
    return folder


def main() -> int:
    """Print the folder; 0 when it is there."""
    try:
        print(ensure(settings.read()))
    except LocalclusterError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
