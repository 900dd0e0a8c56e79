"""Short for `raptr --run_mode=prepare`, with the same flags."""

from raptr_jax.main import prepare_main

if __name__ == "__main__":
  prepare_main()
