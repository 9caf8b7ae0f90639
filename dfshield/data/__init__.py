"""Real data sets: the only code of the program that opens them.

Importing this package and opening a set fail inside a data-free stage, so that none can read real images by accident.
"""

from dfshield.core.datafree import check_real_data_allowed

check_real_data_allowed()
