"""Reader and writer of FFCV's ``.beton`` files, without ffcv."""
