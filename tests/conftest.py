"""For all tests, the notebooks' kernels included: what was solved here is not noted in the home of whoever tests."""

import os
import tempfile

os.environ["MINIT2V_HOME"] = tempfile.mkdtemp(prefix="minit2v-home-")
