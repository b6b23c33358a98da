"""Tables and pictures of any tree of results.

    python report.py OUT [OUT ...] [--seeds 1 2 3] [--output-dir DIR]

Reads the `results.json` of this code base and the `log.txt` of CoOp, CoCoOp, MaPLe, PromptSRC and their like on the
original Dassl. What a model was trained and evaluated on is read from what the runs wrote. Directory names count only
where a log names a model that is not there, and only if they are those of CoOp's scripts. A run of which it cannot be
told is named and left out. Validation results never enter.

Mean ± population standard deviation over the seeds, as CoOp's parse_test_res.py; accuracies in percent. H is the
harmonic mean of base and new accuracy, seed by seed; in the average over data sets it is that of the averages, as in
papers.
"""

import argparse
import sys

from dassl.command import command
from dassl.streams import open_streams
from reports.report import write_report


def main(argv: list[str] | None = None) -> int:
    open_streams()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", metavar="OUT", help="directories with results, at any depth")
    parser.add_argument("--seeds", type=int, nargs="+", help="only these, and each is expected; default: those found")
    parser.add_argument("--output-dir", metavar="DIR", help="for report.md, report.csv and a picture of each table")
    args = parser.parse_intermixed_args(argv)

    def work() -> None:
        write_report(args.paths, args.seeds, args.output_dir)

    return command(work)


if __name__ == "__main__":
    sys.exit(main())
