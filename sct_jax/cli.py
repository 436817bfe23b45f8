"""The command line ``sct-jax VERB``: each verb is a few lines that call one room.

Exit status: 0 on success; 2 with one clear line on a user's mistake; 130 or 143 after Ctrl-C or SIGTERM (state saved);
75 when a restart may help.
"""

import argparse
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from sct_jax import files
from sct_jax.arguments import parse
from sct_jax.errors import SamplingWarning, UserError


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
    model = model_lib.load(args.checkpoint, args.ema, boundary=args.boundary, sigma_min=args.sigma_min)
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
        print(files.write_json(args.out, result))


def evaluate_reference(args: argparse.Namespace) -> None:
    """Makes the statistics of real images that evaluate --reference compares samples with."""
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
        print(files.write_json(args.out, result))


def import_(args: argparse.Namespace) -> None:
    """Turns another project's checkpoint into a workdir, or a feature network's weights into a feature space.

    Checkpoints are those of EDM, EDM2, ECT, STF, TCM, CM. Nothing in a file is run.
    """
    from sct_jax import cards
    from sct_jax.interop import feature_files, import_to

    features = feature_files.read(args.source, args.heads)
    if features is not None:
        print(feature_files.write(features, args.out))
        return
    if args.heads:
        raise UserError(f"{args.source} is no backbone of LPIPS: leave --heads out")
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

    names = ("boundary", "sigma_min")
    options = {name: getattr(args, name) for name in names}
    for path in export_checkpoint(args.checkpoint, args.format, args.out, args.ema, args.steps, **options):
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
        config,
        args.topology,
        price=args.price_per_chip_hour,
        efficiency=args.efficiency,
        data=args.data_spec,
        full_search=args.full_search,
    )
    print(describe(result))
    if args.out:
        result = {"config": args.config, "overrides": dict(args.overrides)} | result
        print(files.write_json(args.out, result))


def report(args: argparse.Namespace) -> None:
    """Writes one self-contained HTML report of one or several runs."""
    from sct_jax.report.html import write_report

    print(write_report(args.workdirs, args.out))


VERBS = (train, sample, evaluate, evaluate_reference, evaluate_times, import_, prepare, ema, export, plan, report)


def _measuring_options(args: argparse.Namespace) -> dict[str, Any]:
    names = ("num", "features", "data_path", "batch_size", "noise", "guide", "omega", "boundary", "sigma_min")
    options = {name: getattr(args, name) for name in names}
    return options | {"profile": args.ema, "references": args.reference}


def _sampling_options(args: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(args, name) for name in ("noise", "eta", "guide", "omega")}


def _note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _show_warning(message: Warning | str, category: type[Warning], *place: Any) -> None:
    """Ours in one line, others as Python shows them."""
    if issubclass(category, SamplingWarning):
        _note(f"warning: {message}")
    else:
        _note(warnings.formatwarning(message, category, *place[:2]).rstrip())


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
    args, interrupt = None, _Interrupt()
    try:
        args = parse(arguments, VERBS)
        _start_jax()
        if getattr(args, "cpu_devices", None) is not None:
            from sct_jax.training import mesh

            mesh.split_cpu(args.cpu_devices)
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            args.run(args)
    except BrokenPipeError:
        sys.exit(141)
    except KeyboardInterrupt:
        sys.exit(_leave(args))
    except Exception as error:
        if interrupt.arrived and not hasattr(error, "interrupted_exit_code"):  # it broke an import, say
            sys.exit(_leave(args))
        if isinstance(error, UserError) and "--debug" in arguments:
            traceback.print_exception(error)
        code = _complain(error)
        if code is None:
            raise
        sys.exit(code)
    finally:
        interrupt.forget()
    sys.exit(0)


class _Interrupt:
    """Remembers that Ctrl-C came: a library may turn its exception into one of its own."""

    def __init__(self) -> None:
        self.arrived = False
        self._before: Any = None
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._note)

    def _note(self, *_: Any) -> NoReturn:
        self.arrived = True
        raise KeyboardInterrupt

    def forget(self) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)


def _leave(args: argparse.Namespace | None) -> int:
    """Says after Ctrl-C what is left of the work; while training the loop does, which saves first."""
    said = "nothing was written"
    if args is not None and args.run is prepare:
        said = "the same command goes on where this one was"
    elif getattr(args, "workdir", None):
        from sct_jax.training.checkpoint import FOLDER, steps_in

        steps = steps_in(Path(args.workdir) / FOLDER)
        said = f"the newest checkpoint in {args.workdir} is step {steps[-1]}" if steps else "nothing was saved yet"
    print(f"sct-jax: interrupted: {said}", file=sys.stderr)
    return 130


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
