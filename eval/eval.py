"""What ``import eval`` finds in a tool that was started by its path: this stands for the package itself.

Python puts the folder of a script first on its path: of ``python eval/retrieval.py`` that is eval/. Here it
becomes the project's root, as it is for ``python -m eval.retrieval``, where nothing of this is needed.
"""

import sys
from pathlib import Path

__path__ = [str(Path(__file__).resolve().parent)]
sys.path[0] = str(Path(__file__).resolve().parent.parent)
