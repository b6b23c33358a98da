"""Tables and pictures of any tree of results.

    python report.py OUT [OUT ...] [--seeds 1 2 3] [--output-dir DIR]
    python report.py --diff RUN RUN          the settings in which two runs differ, and their results

It reads the `results.json` of this code base, and the `log.txt` of CoOp, CoCoOp, MaPLe, PromptSRC and other code on the
original Dassl. The files of a run say on which data the model was trained and evaluated. Directory names count in one
case alone: a log names a model that is not there, and the names are those of CoOp's scripts. A run without this
information is named and left out. Validation results never enter.

Accuracies are in percent, mean ± population standard deviation over the seeds, as in CoOp's parse_test_res.py. H is the
harmonic mean of base and new accuracy of each seed. In the average over data sets, H is the harmonic mean of the
averages, as in papers.
"""

import argparse
import sys

from dassl.infrastructure.command import command
from dassl.infrastructure.streams import open_streams
from orthcr.reports.difference import difference
from orthcr.reports.report import write_report


def main(argv: list[str] | None = None) -> int:
    open_streams()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", metavar="OUT", help="directories with results, at any depth")
    parser.add_argument("--diff", nargs=2, metavar="RUN", help="compare the settings of two runs instead")
    parser.add_argument("--seeds", type=int, nargs="+", help="only these, and each is expected; default: all")
    parser.add_argument(
        "--output-dir", metavar="DIR", help="for report.md, report.csv, runs.csv and a picture of each table"
    )
    args = parser.parse_intermixed_args(argv)
    if args.diff and (args.paths or args.seeds or args.output_dir):
        parser.error("--diff takes two runs and nothing else: leave out the other arguments")
    if not args.diff and not args.paths:
        parser.error("give directories with results, or --diff RUN RUN")

    def work() -> None:
        if args.diff:
            return print(difference(*args.diff))
        write_report(args.paths, args.seeds, args.output_dir)

    return command(work)


if __name__ == "__main__":
    sys.exit(main())
