"""``python -m estimate`` is ``coar``."""

from coarlib.commands.__main__ import main

if __name__ == "__main__":
    main()
