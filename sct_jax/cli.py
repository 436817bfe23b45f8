"""The command line ``sct-jax VERB``: each verb is a few lines that call one room.

Exit status: 0 on success; 2 with one clear line on a user's mistake; 130 or 143 after Ctrl-C or SIGTERM (state saved);
75 when a restart may help.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from sct_jax import files
from sct_jax.errors import UserError
from sct_jax.version import __version__


class Parser(argparse.ArgumentParser):
    """One line and exit status 2, without the usage text above it."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def train(args: argparse.Namespace) -> None:
    """Trains a config into a workdir; resumes by itself when the workdir holds a checkpoint."""
    from sct_jax import config as config_lib

    if args.help_config:
        print(config_lib.describe_schema())
        return
    if not args.config or not (args.workdir or args.dry_run):
        raise UserError("train needs --config FILE and --workdir FOLDER (see sct-jax train --help)")
    config = config_lib.load_config(args.config, dict(args.overrides))
    if args.deterministic:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true".strip()
    from sct_jax.training import distributed

    with distributed.joined(args.coordinator, args.num_processes, args.process_id, complain=_complain):
        import jax

        from sct_jax.training import debug, loop

        if args.disable_jit and (args.dry_run or config.mesh.fsdp > 1 or jax.process_count() > 1):
            raise UserError("--disable-jit is for one process, without --dry-run and config.mesh.fsdp: leave one out")
        if args.debug or args.disable_jit:
            _watch_closely(args.disable_jit)
        if args.debug and "batch_size" not in dict(args.overrides):
            for line in debug.shrink_batch(config, args.workdir or ""):
                print(line, file=sys.stderr)
        if args.dry_run:
            with debug.memory_explained():
                for line in debug.dry_run(config):
                    print(line, flush=True)
            return
        loop.train(config, args.workdir, debug.Options(args.profile, args.debug))


def _watch_closely(eager: bool) -> None:
    """Whole tracebacks; operations one by one."""
    import jax

    jax.config.update("jax_traceback_filtering", "off")
    jax.config.update("jax_disable_jit", eager)


def sample(args: argparse.Namespace) -> None:
    """Draws images and writes an .npz, a .png grid, or a folder of PNGs, by the ending of --out."""
    from sct_jax import model as model_lib
    from sct_jax.sampling import generate, output

    output.check_target(args.out)
    model = model_lib.load(args.checkpoint, args.ema)
    labels = model.check_labels(args.labels)
    options = {"times": args.times, "batch_size": args.batch_size} | _sampling_options(args)
    images = model.sample(args.num, args.steps, args.seed, labels, **options)
    print(output.write_images(args.out, images if model.spec.dtype == "float32" else generate.to_uint8(images), labels))


def evaluate(args: argparse.Namespace) -> None:
    """Measures samples: FID and its relatives, and offline metrics; writes JSON with full provenance."""
    if args.out:
        files.check_writable(args.out)
    from sct_jax.evaluation.run import evaluate_checkpoint
    from sct_jax.evaluation.table import format_table

    result = evaluate_checkpoint(
        args.checkpoint,
        steps=args.steps,
        times=args.times,
        seeds=args.seeds,
        repeats=args.repeats,
        metrics=args.metrics,
        eta=args.eta,
        say=_note,
        **_measuring_options(args),
    )
    print(format_table(result))
    if args.out:
        print(files.write_text(args.out, json.dumps(result, indent=2) + "\n"))


def evaluate_reference(args: argparse.Namespace) -> None:
    """Makes the statistics of real images that evaluate --reference compares samples with."""
    files.check_writable(args.out)
    from sct_jax.evaluation.make_reference import make_reference

    names = ("source", "split", "image_size", "crop", "features", "weights", "keep_features", "num", "batch_size")
    print(make_reference(args.data_path, args.out, **{name: getattr(args, name) for name in names}))


def evaluate_times(args: argparse.Namespace) -> None:
    """Searches the intermediate times of sampling in 2 or more steps that a metric likes best."""
    if args.out:
        files.check_writable(args.out)
    from sct_jax.evaluation.time_search import format_search, search_times

    names = ("steps", "metric", "seed", "low", "high", "tolerance", "tries")
    chosen = {name: getattr(args, name) for name in names}
    result = search_times(args.checkpoint, say=_note, **chosen, **_measuring_options(args))
    print(format_search(result))
    if args.out:
        print(files.write_text(args.out, json.dumps(result, indent=2) + "\n"))


def import_(args: argparse.Namespace) -> None:
    """Turns another project's checkpoint into a workdir, or Inception's or DINOv2's weights into a feature space.

    Checkpoints are those of EDM, EDM2, ECT, STF, TCM, CM. Nothing in a file is run.
    """
    from sct_jax import cards
    from sct_jax.interop import feature_files, import_to

    features = feature_files.read(args.source)
    if features is not None:
        print(feature_files.write(features, args.out))
        return
    if not args.out:
        raise UserError("import needs --out FOLDER for a new workdir (see sct-jax import --help)")
    out = import_to(args.source, args.out, method=args.method, image_size=args.image_size)
    for note in ((cards.read(out) or {}).get("source") or {}).get("notes", ()):
        print(f"note: {note}", file=sys.stderr)
    print(out)


def prepare(args: argparse.Namespace) -> None:
    """Turns a folder, an EDM-style zip, a CIFAR-10 archive, IDX files or 'digits' into a data set on disk."""
    from sct_jax.data import prepare as run
    from sct_jax.data import verify

    if args.verify:
        print(verify(args.out))
        return
    if not args.source:
        raise UserError("prepare needs --source, or --verify to check what was prepared (see sct-jax prepare --help)")
    names = ("kind", "image_size", "crop", "workers", "compress", "skip_damaged")
    print(run(args.source, args.out, **{name: getattr(args, name) for name in names}))


def ema(args: argparse.Namespace) -> None:
    """Makes EMA profiles of any width from the power profiles in a run's kept checkpoints, after training."""
    from sct_jax.training.posthoc_ema import describe, write_averages

    fits = write_averages(args.checkpoint, args.std, args.out, args.step)
    print("\n".join(describe(profile, plan) for profile, plan in fits.items()))
    print(args.out)


def export(args: argparse.Namespace) -> None:
    """Writes weights with the names of the original's PyTorch class, or the sampler as a program, for others."""
    from sct_jax.interop.export import export_checkpoint

    for path in export_checkpoint(args.checkpoint, args.format, args.out, args.ema, args.steps):
        print(path)


def plan(args: argparse.Namespace) -> None:
    """Compiles a config's train step for a TPU slice that is not there, or for this machine; what fits, how fast."""
    from sct_jax import config as config_lib
    from sct_jax.plan import topology

    if args.out:
        files.check_writable(args.out)
    if args.topology != topology.LOCAL:
        topology.parse(args.topology)
        topology.prepare_environment()
    config = config_lib.load_config(args.config, dict(args.overrides))
    from sct_jax.plan.run import make_plan
    from sct_jax.plan.text import describe

    result = make_plan(
        config, args.topology, price=args.price_per_chip_hour, efficiency=args.efficiency, data=args.data_spec
    )
    print(describe(result))
    if args.out:
        result = {"config": args.config, "overrides": dict(args.overrides)} | result
        print(files.write_text(args.out, json.dumps(result, indent=2) + "\n"))


def report(args: argparse.Namespace) -> None:
    """Writes one self-contained HTML report of one or several runs."""
    from sct_jax.report.html import write_report

    print(write_report(args.workdirs, args.out))


def _integers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _floats(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def _names(text: str) -> list[str]:
    return text.split(",")


def _window(text: str) -> tuple[int, int]:
    first, count = (int(part) for part in text.split(":"))
    if first < 0 or count < 1:
        raise ValueError
    return first, count


# What argparse calls them.
_integers.__name__, _floats.__name__ = "list of whole numbers", "list of numbers"
_window.__name__ = "window FIRST:STEPS"
ETA: dict[str, Any] = {"type": float, "help": "phased models step past edge s to eta s (default: the config's)"}


def _parser() -> Parser:
    parser = Parser(prog="sct-jax", description="Stable Consistency Tuning in JAX.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", parser_class=Parser)

    def verb(run: Callable[[argparse.Namespace], None]) -> Parser:
        text = (run.__doc__ or "").strip()
        name = run.__name__.rstrip("_").replace("_", " ")
        sub = verbs.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(run=run)
        sub.add_argument(
            "--debug",
            action="store_true",
            help="show the traceback of a mistake; train: a small batch, stop where a NaN is made",
        )
        return sub

    sub = verb(train)
    sub.add_argument("--config", help="a Python file with get_config(); --config.KEY=VALUE overrides a field")
    sub.add_argument("--workdir", help="where config, metrics, samples and checkpoints go")
    sub.add_argument("--help-config", action="store_true", help="list every config field with its default and meaning")
    sub.add_argument("--dry-run", action="store_true", help="build, compile, one step; show shapes and memory")
    sub.add_argument(
        "--profile",
        type=_window,
        nargs="?",
        const=(10, 5),
        metavar="FIRST:STEPS",
        help="skip FIRST steps after this start, trace the next into WORKDIR/profile (10:5)",
    )
    sub.add_argument("--disable-jit", action="store_true", help="operations one by one, for a debugger; very slow")
    sub.add_argument("--deterministic", action="store_true", help="the same bits on a GPU each time; slower")
    found = "(default: found in the environment)"
    sub.add_argument("--coordinator", default="", help=f"of several processes: HOST:PORT of process 0, or auto {found}")
    sub.add_argument("--num-processes", type=int, default=0, help=f"how many there are {found}")
    sub.add_argument("--process-id", type=int, default=-1, help=f"which of them this is, from 0 {found}")

    sub = verb(sample)
    _checkpoint_arguments(sub)
    sub.add_argument("--eta", **ETA)
    sub.add_argument("--num", type=int, default=64, help="images (default %(default)s)")
    sub.add_argument(
        "--steps",
        type=int,
        help="network evaluations (default: 1, or the phases); of a diffusion model: Heun steps (the config's)",
    )
    sub.add_argument("--times", type=_floats, help="noise levels in place of --steps, descending, such as 80,0.8")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--labels", type=_integers, help="classes, used in turn, such as 0,1,2 (default: all in turn)")
    sub.add_argument("--out", required=True, help="samples.npz, grid.png, or a folder for PNGs")

    sub = verb(evaluate)
    _checkpoint_arguments(sub)
    sub.add_argument("--eta", **ETA)
    sub.add_argument("--steps", type=_integers, help="numbers of steps, such as 1,2 (default: the config's)")
    sub.add_argument("--times", type=_floats, help="noise levels in place of --steps, descending, such as 80,0.8")
    sub.add_argument("--seeds", type=_integers, default=[0], help="sampling seeds, such as 0,1,2")
    sub.add_argument("--repeats", type=int, default=1, help="sets of samples of each seed; their minimum is shown too")
    sub.add_argument(
        "--metrics",
        type=_names,
        help="fid, sfid, kid, inception_score, precision, recall, density, coverage; fd_dinov2, kid_dinov2, ...; "
        "class_agreement, fd_pca, fd_classifier (default: all offline ones, and fid where --reference is given)",
    )
    _measuring_arguments(sub)

    sub = verb(evaluate_reference)
    sub.add_argument("--data-path", default="", help="the images, as for prepare, or a prepared data set; digits")
    sub.add_argument("--source", default="", help="folder, zip, cifar10, idx, tfds, digits (default: found out)")
    sub.add_argument("--split", default="train", help="(default: %(default)s)")
    sub.add_argument("--image-size", type=int, default=0, help="crop and resize, or pad, to this (default: as stored)")
    sub.add_argument("--crop", default="centre", help="of a folder or zip: centre or adm, see prepare")
    sub.add_argument("--features", default="inception", help="inception or dinov2 (default: %(default)s)")
    sub.add_argument("--weights", default="", help="folder of their weights (default: where import puts them)")
    sub.add_argument("--keep-features", action="store_true", help="of each image too: for kid, precision, density ...")
    sub.add_argument("--num", type=int, help="so many images, drawn at random (default: all)")
    sub.add_argument("--batch-size", type=int, default=256, help="images at a time (default %(default)s)")
    sub.add_argument("--out", required=True, help="reference.npz")

    sub = verb(evaluate_times)
    _checkpoint_arguments(sub)
    sub.add_argument("--steps", type=int, default=2, help="of sampling (default %(default)s)")
    sub.add_argument("--metric", default="fid", help="to be minimised, or maximised (default %(default)s)")
    sub.add_argument("--seed", type=int, default=0, help="of the samples, the same for every candidate")
    sub.add_argument("--low", type=float, default=0.02, help="least noise level to try (default %(default)s)")
    sub.add_argument("--high", type=float, default=20.0, help="greatest noise level to try (default %(default)s)")
    sub.add_argument("--tolerance", type=float, default=0.02, help="in ln t (default %(default)s)")
    sub.add_argument("--tries", type=int, default=40, help="candidates at most (default %(default)s)")
    _measuring_arguments(sub)

    sub = verb(import_)
    sub.add_argument("--source", required=True, help="a .pkl, .pt, .pth or .safetensors")
    sub.add_argument(
        "--out",
        default="",
        help="a new workdir, for sample, evaluate and --config.init.checkpoint (default: none; of feature networks: "
        "where evaluate looks for them)",
    )
    sub.add_argument("--method", default="", help="what trained it: edm, ect, ... (default: what the file says)")
    sub.add_argument("--image-size", type=int, default=0, help="of its images, where the weights do not tell")

    sub = verb(prepare)
    sub.add_argument("--source", help="what to read; digits for the embedded digits")
    sub.add_argument("--out", required=True, help="a new folder for the data set; killed, the same command goes on")
    sub.add_argument("--kind", default="auto", help="folder, zip, cifar10, idx or digits (default: found out)")
    sub.add_argument("--image-size", type=int, default=0, help="crop and resize, or pad, to this (default: as stored)")
    sub.add_argument(
        "--crop",
        default="centre",
        help="of a folder or zip: centre (central square, Lanczos; the default) or adm (ADM's; EDM2's ImageNet-64)",
    )
    sub.add_argument("--workers", type=int, default=0, help="processes (default: one a core)")
    sub.add_argument("--compress", action="store_true", help="smaller files, four times slower to read")
    sub.add_argument("--skip-damaged", action="store_true", help="leave out images that cannot be read, and count them")
    sub.add_argument("--verify", action="store_true", help="compare the data set in --out with its manifest's hashes")

    sub = verb(ema)
    sub.add_argument("--checkpoint", required=True, help="a run's workdir with several checkpoints")
    sub.add_argument("--std", type=_floats, required=True, help="widths as shares of the training, such as 0.05,0.10")
    sub.add_argument("--step", type=int, help="where the averages end: a kept step (default: the last)")
    sub.add_argument("--out", required=True, help="a new workdir, with the EMA profile power:STD for each width")

    sub = verb(export)
    sub.add_argument("--checkpoint", required=True, help="a run's workdir, or one of its checkpoints/STEP")
    sub.add_argument("--ema", default="", help="EMA profile (default: the first of the run; raw: raw weights)")
    sub.add_argument("--format", required=True, help="safetensors: the weights; stablehlo: the sampler (jax.export)")
    sub.add_argument("--steps", type=int, help="of the sampler (default: as sample)")
    sub.add_argument("--out", required=True, help="model.safetensors, or sampler.stablehlo")

    sub = verb(plan)
    sub.add_argument("--config", required=True, help="as for train; --config.KEY=VALUE overrides a field")
    sub.add_argument("--topology", default="local", help="such as v5e:4x4; local: this machine's devices (default)")
    sub.add_argument("--price-per-chip-hour", type=float, help="to say what the whole run costs")
    sub.add_argument("--efficiency", type=float, default=0.4, help="share of the floor's speed to expect (0.4)")
    sub.add_argument("--data-spec", default="", help="of data that is not here: 64x64x3,CLASSES,IMAGES")
    sub.add_argument("--out", help="plan.json")

    sub = verb(report)
    sub.add_argument("workdirs", nargs="+", help="workdirs of runs")
    sub.add_argument("--out", required=True, help="report.html")
    return parser


def _checkpoint_arguments(sub: Parser) -> None:
    sub.add_argument("--checkpoint", required=True, help="a workdir, one of its checkpoints/STEP, or a .pkl or .pt")
    sub.add_argument("--ema", default="", help="EMA profile (default: the first of the run; raw: raw weights)")
    sub.add_argument("--batch-size", type=int, default=256, help="images at a time (default %(default)s)")
    sub.add_argument("--noise", choices=("fresh", "none"), help="of the steps after the first (default: the config's)")
    sub.add_argument("--guide", metavar="GUIDE", help="guide away from: unconditional, or a checkpoint as above")
    sub.add_argument("--omega", type=float, help="how far: D + omega (D - D_guide) (default 1)")


def _measuring_arguments(sub: Parser) -> None:
    sub.add_argument(
        "--num", type=int, help="samples (default: 50,000; of offline metrics the training images', at most 10,000)"
    )
    sub.add_argument("--reference", nargs="+", default=[], metavar="FILE", help="statistics of real images: evaluate "
                     "reference's, EDM's, pytorch-fid's or clean-fid's .npz, EDM2's .pkl")  # fmt: skip
    sub.add_argument("--features", default="", help="folder of Inception's or DINOv2's weights (default: import's)")
    sub.add_argument("--data-path", default="", help="where the data lies now, if not where the config says")
    sub.add_argument("--out", help="metrics.json")


def _measuring_options(args: argparse.Namespace) -> dict[str, Any]:
    names = ("num", "features", "data_path", "batch_size", "noise", "guide", "omega")
    options = {name: getattr(args, name) for name in names}
    return options | {"profile": args.ema, "references": args.reference}


def _sampling_options(args: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(args, name) for name in ("noise", "eta", "guide", "omega")}


def _note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _split_overrides(arguments: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Takes ``--config.KEY=VALUE`` and ``--config.KEY VALUE`` out of the arguments."""
    plain, overrides, queue = [], [], list(arguments)
    while queue:
        argument = queue.pop(0)
        if not argument.startswith("--config."):
            plain.append(argument)
            continue
        key, equals, value = argument.removeprefix("--config.").partition("=")
        if not equals:
            if not queue or queue[0].startswith("--"):
                raise UserError(f"{argument} needs a value: write {argument}=VALUE")
            value = queue.pop(0)
        overrides.append((key, value))
    return plain, overrides


def _join_negative_values(arguments: Sequence[str]) -> list[str]:
    """``--labels -1,0`` as ``--labels=-1,0``: argparse takes a value that begins with a minus sign for an option."""
    joined: list[str] = []
    for argument in arguments:
        negative = argument[:1] == "-" and argument[1:].lstrip(".")[:1].isdigit()
        if negative and joined and joined[-1][:2] == "--" != joined[-1] and "=" not in joined[-1]:
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _join_verb(arguments: Sequence[str]) -> list[str]:
    """``evaluate times`` as one verb: argparse knows verbs of one word."""
    joined = " ".join(arguments[:2])
    return [joined, *arguments[2:]] if joined in ("evaluate reference", "evaluate times") else list(arguments)


def _start_jax() -> None:
    """Settings that must precede the import of JAX: where compiled programs are kept, and to log little."""
    cache = files.cache_folder()
    if cache is not None:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache / "compiled"))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    from absl import logging

    logging.set_verbosity(logging.ERROR)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs one verb and exits."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        plain, overrides = _split_overrides(arguments)
        parser = _parser()
        args = parser.parse_args(_join_negative_values(_join_verb(plain)))
        if args.verb is None:
            parser.print_help()
            sys.exit(0)
        if overrides and args.verb not in ("train", "plan"):
            raise UserError(f"--config.{overrides[0][0]} belongs to train and plan, not to {args.verb}")
        args.overrides = overrides
        _start_jax()
        args.run(args)
    except UserError as error:
        if "--debug" in arguments:
            raise
        sys.exit(_complain(error))
    except BrokenPipeError:
        sys.exit(141)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        code = _complain(error)
        if code is None:
            raise
        sys.exit(code)
    sys.exit(0)


def _complain(error: BaseException) -> int | None:
    """Prints the line of an exception that is meant to be read, and gives its exit status; None: it is a bug."""
    code = 2 if isinstance(error, UserError) else 130 if isinstance(error, KeyboardInterrupt) else None
    for name in ("exit_code", "interrupted_exit_code"):
        code = getattr(error, name, code)
    if code is not None and not isinstance(error, KeyboardInterrupt):
        print(f"sct-jax: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
