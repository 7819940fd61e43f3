"""Reader and writer of FFCV's ``.beton`` files, without ffcv.

``write`` makes a file of arrays, ``open`` reads one; the fields are ``NDArray``, ``Int`` and
``Float``; ``ffcv_loader`` builds the real ffcv's Loader. ``fields`` and ``layout`` say what lies
where, ``validate`` what is refused.
"""

from coarlib.beton.fields import Field, Float, Int, NDArray
from coarlib.beton.loader import ffcv_loader
from coarlib.beton.reader import Beton, open
from coarlib.beton.writer import write

__all__ = ["Beton", "Field", "Float", "Int", "NDArray", "ffcv_loader", "open", "write"]
