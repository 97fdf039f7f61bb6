"""Run all benchmarks, print their tables, and store them under results/ with machine, versions and commit."""

from __future__ import annotations

import sys

from benchmarks import arithmetic, model, number, tensor
from benchmarks.timing import machine, store
from qlab.show.table import Table

SUITES = {
    "number": number.run, "roundings": number.roundings, "arithmetic": arithmetic.run, "tensor": tensor.run,
    "model": model.run, "convolutions": model.convolutions, "training": model.training,
    "methods": model.methods,
}  # fmt: skip


def main(names: list[str]) -> None:
    """Run the named suites, all unless named."""
    machine_is = ", ".join(f"{key} {value}" for key, value in machine().items())
    print(f"medians, in nanoseconds an element; of models in microseconds a call; {machine_is}")
    for name in names or SUITES:
        rows = SUITES[name]()
        print(f"\n{name}\n{Table(tuple(rows[0]), [tuple(row.values()) for row in rows])}")
        print(f"stored in {store(name, rows)}")


if __name__ == "__main__":
    main(sys.argv[1:])
