"""Imported before all else: no garbage is collected until every module is imported, which takes a quarter less.

`conftest` turns the collection on again once all tests are known, `processes` in each process that it starts.
"""

import gc

gc.disable()
