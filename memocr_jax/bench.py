"""The benchmarks moved out of the product: `python -m benchmarks.NAME`, from the root of the repository."""

import sys

if __name__ == "__main__":
    name = sys.argv[1] if len(sys.argv) > 1 else "NAME"
    sys.exit(f"error: the benchmarks moved; from the root of the repository: python -m benchmarks.{name}")
