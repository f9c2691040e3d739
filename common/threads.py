"""Have OpenMP's threads wait without spinning, unless OMP_WAIT_POLICY says otherwise.

Spinning threads hold the cores that the others need as soon as anything else runs on the machine.
Scripts import this before torch, which reads the variable as it is loaded; processes that they
start inherit it.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
