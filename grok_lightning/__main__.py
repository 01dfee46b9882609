"""``python -m grok_lightning``."""

from grok_lightning.cli import main

if __name__ == "__main__":
    main()
