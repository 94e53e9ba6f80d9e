"""`python -m tuna_jax COMMAND` is `tuna-jax COMMAND`."""

import sys

from tuna_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
