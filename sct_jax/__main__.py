"""``python -m sct_jax`` is ``sct-jax``."""

from sct_jax.cli import main

if __name__ == "__main__":
    main()
