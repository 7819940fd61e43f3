"""What attributions are compared with, and how the comparison is made."""
