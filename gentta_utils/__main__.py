"""python -m gentta_utils doctor | data | run | sweep | publish | train | variations | measure | recheck | report"""

import argparse
import sys
from pathlib import Path

from .common.paths import DATA, ROOT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gentta_utils", description="A course on generative test-time adaptation."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    commands.add_parser("doctor", help="check the environment, one OK or FAIL per line")

    data = commands.add_parser("data", help="download a data set of the imagenet profile, or print how to get it")
    data.add_argument("names", nargs="+", metavar="NAME", help="e.g. imagenet-a, imagenet-r, imagenet-c, imagenet-v2")
    data.add_argument("--root", type=Path, default=DATA, metavar="DIR", help="the folder that holds the data sets")

    run = commands.add_parser("run", help="execute notebooks headless, write executed copies and a summary")
    run.add_argument("notebooks", nargs="*", help="paths or beginnings of names; all when none is given")
    _add_run_options(run, "runs/course")

    sweep = commands.add_parser(
        "sweep", help="execute one notebook over a grid of parameters; goes on where it stopped"
    )
    sweep.add_argument("notebook", help="path or beginning of the name")
    sweep.add_argument("--grid", nargs="+", action="extend", required=True, metavar="NAME=A,B,C")
    _add_run_options(sweep, "runs/NOTEBOOK")

    publish = commands.add_parser("publish", help="execute notebooks and commit-clean them in place")
    publish.add_argument("notebooks", nargs="*")

    train = commands.add_parser("train", help="train a model of the scenes profile into data/models/candidates")
    train.add_argument("name", help="e.g. denoiser/dit, classifier/resnet, classifier/vit")
    train.add_argument("--device", default="cpu")
    train.add_argument("--minutes", type=float, help="a shorter or longer schedule than the recipe's")
    train.add_argument("--scratch", action="store_true", help="forget the checkpoint and start from the beginning")
    train.add_argument("--promote", action="store_true", help="ship the finished candidate (trains first if need be)")

    variations = commands.add_parser("variations", help="make generated views of images; goes on where it stopped")
    _add_variations_options(variations)

    measure = commands.add_parser("measure", help="make tables of the course; resumes where it stopped")
    measure.add_argument("names", nargs="+", help="e.g. select, reading, test; an unknown name lists all")

    recheck = commands.add_parser("recheck", help="make records again; exit status 1 if one comes out different")
    recheck.add_argument("names", nargs="*", help="all tables when none is given")
    recheck.add_argument("--n", type=int, default=16, metavar="N", help="records of each table; 16 if not given")
    recheck.add_argument("--seed", type=int, default=0, help="of the draw of the records")

    report = commands.add_parser("report", help="print tables of the course from their records")
    report.add_argument("names", nargs="*", help="all when none is given")

    commands.add_parser("claims", help="write docs/claims.md: what the papers claim, and what the records say of it")
    return parser


def _add_run_options(parser: argparse.ArgumentParser, folder: str) -> None:
    parser.add_argument("-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    parser.add_argument("-f", "--file", type=Path, metavar="YAML", help="parameters from a file; -p and --grid win")
    parser.add_argument("--fast", action="store_true", help="smallest sizes: does every cell run?")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help=f"for results; {folder} if not given")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="runs at a time on this machine")
    parser.add_argument("--scheduler", metavar="ADDRESS", help="dask scheduler, or its file.json: run on its workers")
    parser.add_argument("--cell-timeout", type=int, default=900, metavar="SECONDS", help="a cell; 900 if not given")
    parser.add_argument("--run-timeout", type=int, default=14400, metavar="SECONDS", help="a run; 14400 if not given")
    parser.add_argument("--force", action="store_true", help="repeat finished runs")
    parser.add_argument("--dry-run", action="store_true", help="list the runs and what they will cost, start nothing")


def _add_variations_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("n", type=int, help="variations of each image, e.g. 16")
    parser.add_argument("--generator", action="append", metavar="NAME", help="one or more; all if not given")
    parser.add_argument("--images", type=int, default=200, metavar="N", help="scenes or photographs; 200 if not given")
    parser.add_argument("--shift", default="clean", help="e.g. v2, a, r, sketch, gaussian_noise")
    parser.add_argument("--severity", type=int, default=0, help="1 to 5 for a corruption")
    parser.add_argument("--split", default="test", help="of the scenes: test or select")
    parser.add_argument("--start", type=int, default=0, metavar="NUMBER", help="the first scene")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="take all images of this folder instead")
    parser.add_argument("--caption", metavar="CLIP", help='"prompted" is told what this CLIP reads, e.g. clip/small')
    parser.add_argument("--profile", default="scenes", help="scenes or imagenet")
    parser.add_argument("--data-root", default=str(DATA), metavar="DIR", help="the folder that holds the data sets")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--share", default="1/1", metavar="K/OF", help="one of several processes: 1/4 to 4/4")
    parser.add_argument("--out", type=Path, metavar="FILE.npz", help="also write one file, of one generator")


def _run(args) -> int:
    from .runner import notebook

    paths = [notebook.find(name) for name in args.notebooks] or notebook.notebooks()
    return _run_all(
        [(path, _preset(args) | _parameters(args)) for path in paths], args.out or ROOT / "runs" / "course", args
    )


def _sweep(args) -> int:
    from .runner import notebook, sweep

    path = notebook.find(args.notebook)
    settings = sweep.grid(path, args.grid, _parameters(args), _preset(args))
    return _run_all(settings, args.out or ROOT / "runs" / path.stem, args)


def _preset(args) -> dict:
    from .runner import notebook

    return notebook.read_preset(args.file) if args.file else {}


def _parameters(args) -> dict:
    return dict(args.parameter) | ({"fast": True} if args.fast else {})


def _run_all(settings: list, folder: Path, args) -> int:
    from .runner import sweep

    limits = {"cell_timeout": args.cell_timeout, "run_timeout": args.run_timeout}
    records = sweep.run(settings, folder, args.workers, args.scheduler, args.force, **limits, dry=args.dry_run)
    if args.dry_run:
        return 0
    text, written = sweep.page(records, folder), folder / "summary.md"
    print(text)
    for record in records:
        if record["status"] != "ok":
            print(f"{Path(record['output']).stem} failed: {record['error']}", file=sys.stderr)
    whole = written.is_file() and written.read_text(encoding="utf-8") == text  # else the disk is full
    return int(not whole or any(r["status"] != "ok" for r in records))


def _publish(args) -> int:
    from .runner import notebook
    from .runner.publish import publish

    for path in [notebook.find(name) for name in args.notebooks] or notebook.notebooks():
        record = publish(path)
        print(f"{path.name}: {record['seconds']} s, {record['peak_memory_mb']} MB, {path.stat().st_size // 1000} kB")
    return 0


def _data(args) -> int:
    from .streams.downloads import data

    for name in args.names:
        data(name, args.root)
    return 0


def _train(args) -> int:
    from . import recipes

    finished = (recipes.CANDIDATES_FOLDER / args.name / "card.json").is_file()
    if args.scratch or not (args.promote and finished):
        print(f"candidate: {recipes.train(args.name, args.device, args.minutes, args.scratch)}")
    if args.promote:
        stale = recipes.promote(args.name)
        print(f"{args.name} is shipped now." + (f" Make these tables again: {', '.join(stale)}" if stale else ""))
    return 0


def _variations(args) -> int:
    from .course.generate import generate

    generate(args)
    return 0


def _measure(args) -> int:
    from .course.tables import check_table, measure

    names = [check_table(name) for name in args.names]  # all of them, before the first one takes its hours
    for name in names:
        print(f"\n{name}\n{measure(name)}")
    return 0


def _recheck(args) -> int:
    from .course.recheck import recheck_tables
    from .course.tables import TABLES, check_table

    return int(not recheck_tables(list(map(check_table, args.names)) or TABLES, args.n, args.seed))


def _report(args) -> int:
    from .course.tables import TABLES, report

    for name in args.names or TABLES:
        print(f"\n{name}\n{report(name)}")
    return 0


def _claims(args) -> int:
    from .course.claimed import PAGE, write

    print(write())
    print(f"written: {PAGE}")
    return 0


def _doctor(args) -> int:
    from .course.doctor import doctor

    return int(not doctor())


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status. What the user can fix is one sentence on stderr, not a traceback."""
    for out in (sys.stdout, sys.stderr):  # an old locale has no arrows: they are spelled out
        if hasattr(out, "reconfigure"):
            out.reconfigure(errors="backslashreplace")
    args = _parser().parse_args(argv)
    commands = {
        "doctor": _doctor, "data": _data, "run": _run, "sweep": _sweep, "publish": _publish,
        "train": _train, "variations": _variations, "measure": _measure, "recheck": _recheck,
        "report": _report, "claims": _claims,
    }  # fmt: skip
    try:
        return commands[args.command](args)
    except (ValueError, OSError, FloatingPointError, NotImplementedError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
