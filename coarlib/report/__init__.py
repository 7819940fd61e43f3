"""Pictures of attributions (matplotlib; the ``report`` extra)."""
