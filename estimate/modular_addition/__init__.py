"""(a + b) mod p by a one-layer transformer trained with AdamW until it generalises (grokking)."""
