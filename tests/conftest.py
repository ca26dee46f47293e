"""For all tests, the notebooks' kernels included: nothing stays on the machine of whoever tests, no note of what was
solved in their home and no file in the folder for temporary ones (pytest keeps the folders of tests that failed)."""

import atexit
import os
import shutil
import tempfile

os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
SCRATCH, OURS = tempfile.mkdtemp(prefix="minit2v-tests-"), os.getpid()
os.environ["TMPDIR"] = tempfile.tempdir = SCRATCH
os.environ["MINIT2V_HOME"] = os.path.join(SCRATCH, "home")


@atexit.register                                         # first registered, last run: others clear up in it before
def clear():
    if os.getpid() == OURS:
        shutil.rmtree(SCRATCH, ignore_errors=True)
