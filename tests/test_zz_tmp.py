import json, re, shutil, warnings
import numpy as np
from judged import judged
from road import run
def test_x(judged): pass
