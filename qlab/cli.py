"""The `qlab` command: explain a number, list the formats."""

from __future__ import annotations

import argparse
import sys

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Examples
    --------
    >>> from qlab.cli import main
    >>> main(["explain", "6.75", "fp16"])  # doctest: +ELLIPSIS
    6.75 in float16
      bits      0 10001 1011000000
    ...
    0
    """
    from qlab import __version__
    from qlab.number.rounding import ROUNDINGS
    from qlab.show.language import LANGUAGES

    parser = argparse.ArgumentParser(prog="qlab", description="Number formats, exactly.")
    parser.add_argument("--version", action="version", version=f"qlab {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    explain = commands.add_parser("explain", help="show step by step what a format makes of a number")
    explain.add_argument("x", help="a number such as 6.75, 0.1, 1/3, -inf, nan (taken exactly)")
    explain.add_argument("format", help="a format such as float16, bf16, fp8_e4m3, int4")
    explain.add_argument("--rounding", default="nearest_even", choices=[r for r in ROUNDINGS if r != "stochastic"])
    explain.add_argument("--language", choices=list(LANGUAGES), help="language of the steps")
    commands.add_parser("formats", help="list the named formats")

    negative = [
        f" {a}" if a[:1] == "-" and a[1:2] in "0123456789.in" and len(a) > 1 else a for a in arguments or sys.argv[1:]
    ]
    options = parser.parse_args(negative)
    try:
        if options.command == "formats":
            from qlab.number.formats import FORMATS

            print(FORMATS)
        else:
            from qlab.number.explain import explain as explain_number

            print(explain_number(options.x, options.format, rounding=options.rounding, language=options.language).text())
    except (ValueError, TypeError) as error:
        print(f"qlab: {error}", file=sys.stderr)
        return 2
    return 0
