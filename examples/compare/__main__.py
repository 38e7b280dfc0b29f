"""What carry_context promises and costs, beside what people use in its place.

Run it with:  .venv/bin/pip install -q ".[compare]" && .venv/bin/python examples/compare
It writes README.md and two pictures into this folder, and says so (--json prints data).
"""

import argparse
import importlib.metadata
import json
import logging
import sys
import warnings
from pathlib import Path

import costs
import page
import promises
import tqdm
from ways import WAYS

import ctxcarry

HERE = Path(__file__).parent


def find(rounds: int) -> page.Found:
    """Ask and measure all ways for which what they need is installed."""
    needed = [way.needs for way in WAYS]
    for promise in promises.PROMISES.values():
        needed += promise.needs
    versions = {"ctxcarry": ctxcarry.__version__}
    missing: list[str] = []
    for package in dict.fromkeys(needed):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            missing.append(package)
    ways = [way for way in WAYS if way.needs in versions]
    # First: what the promises leave behind, context variables say, costs time.
    found_costs = costs.measure([*ways, costs.FreshCopy, costs.Bare], rounds)
    kept = {
        text: {way.name: promises.holds(promise.check, way) for way in ways}
        for text, promise in tqdm.tqdm(promises.PROMISES.items(), "promises")
        if versions.keys() >= {*promise.needs}
    }
    return {
        "promises": kept,
        "costs": found_costs,
        "versions": versions,
        "missing": missing,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print data, write nothing")
    parser.add_argument("--rounds", type=int, default=60, help="of measuring costs")
    parser.add_argument("--folder", type=Path, default=HERE, help="to write into")
    options = parser.parse_args()
    found = find(options.rounds)
    if options.json:
        json.dump(found, sys.stdout)
    else:
        for path in page.write(found, options.folder):
            print(f"Wrote {path}")


if __name__ == "__main__":
    logging.disable()  # Of the tasks that break, by design.
    warnings.simplefilter("ignore")  # For the same reason.
    main()
