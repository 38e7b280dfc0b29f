"""What carry_context promises and costs, beside what people use in its place.

Run it with:  .venv/bin/pip install -q ".[compare]" && .venv/bin/python examples/compare
It writes both tables of README.md in this folder again, and says so.
"""

import argparse
import logging
import warnings
from pathlib import Path

from costs import measure
from page import fill_in
from promises import PROMISES, is_kept
from ways import WAYS

PAGE = Path(__file__).with_name("README.md")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=60, help="of measuring costs")
    parser.add_argument("--page", type=Path, default=PAGE, help="to write")
    options = parser.parse_args()
    kept = {
        text: {way.name: is_kept(promise, way) for way in WAYS}
        for text, promise in PROMISES.items()
    }
    values = measure(options.rounds)
    page = fill_in(PAGE.read_text("utf-8"), kept, values, options.rounds)
    options.page.write_text(page, encoding="utf-8")
    print(f"Wrote {options.page}")


if __name__ == "__main__":
    logging.disable()  # Tasks that fail are part of the comparison.
    warnings.simplefilter("ignore")  # So is a coroutine that is never awaited.
    main()
