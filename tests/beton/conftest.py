"""Files and sources of every schema."""

import pytest
from beton_schemas import ROWS, SCHEMAS, random_values

from coarlib import beton


@pytest.fixture(params=list(SCHEMAS))
def schema(request):
    """(name, fields, source) of one schema."""
    fields = SCHEMAS[request.param]
    return request.param, fields, random_values(fields, ROWS.get(request.param, 700))


@pytest.fixture
def coar_file(tmp_path):
    """A small file with COAR's schema: (path, source)."""
    fields = SCHEMAS["coar"]
    source = random_values(fields, 300)
    beton.write(tmp_path / "coar.beton", fields, source, quiet=True)
    return tmp_path / "coar.beton", source
