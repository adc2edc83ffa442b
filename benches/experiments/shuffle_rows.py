"""Shuffles the rows of a table in place, its header apart, the same way every time.

usage: shuffle_rows.py TABLE.csv.gz
"""
import gzip
import random
import sys


def main(path):
    with gzip.open(path, "rt") as f:
        header, *rows = f.read().splitlines()
    random.Random(1).shuffle(rows)
    with open(path, "wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", mtime=0) as f:
        f.write("\n".join([header, *rows, ""]).encode())


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
