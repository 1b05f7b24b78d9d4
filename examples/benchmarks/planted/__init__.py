"""The faults of `faults.py`, by kind."""

import atexit
import os
import shutil
import tempfile

from curate.cli.process import silence_libraries

_cache = tempfile.mkdtemp(prefix="curate-faults-")
_owner = os.getpid()


@atexit.register
def _clear() -> None:
    if os.getpid() == _owner:
        shutil.rmtree(_cache, ignore_errors=True)


os.environ |= {
    "HF_HOME": _cache,
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
}
silence_libraries()  # before anything loads `datasets`
