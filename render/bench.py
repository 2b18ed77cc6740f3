"""This benchmark moved out of the product: `python -m benchmarks.render`, from the root of the repository."""

import sys

if __name__ == "__main__":
    sys.exit("error: this benchmark moved; from the root of the repository: python -m benchmarks.render")
