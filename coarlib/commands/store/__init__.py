"""Commands that make, fill, inspect and join stores."""
