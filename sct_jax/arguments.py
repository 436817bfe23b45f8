"""What the command line takes: the options of each verb, checked and typed. What the verbs do is in cli.py."""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from sct_jax.errors import UserError
from sct_jax.schema import BOUNDARIES
from sct_jax.version import __version__

Verb = Callable[[argparse.Namespace], None]


class Parser(argparse.ArgumentParser):
    """One line and exit status 2, without the usage text above it."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def parse(arguments: Sequence[str], verbs: Sequence[Verb]) -> argparse.Namespace:
    """The options of the verb that ``arguments`` begin with.

    Args:
      verbs: functions named after the verbs, whose docstrings are their help. Each takes what is returned.

    Returns:
      With ``run``, the function of the verb, and ``overrides``, the (key, value) of each ``--config.KEY=VALUE``.

    Raises:
      UserError: for arguments that no verb takes.
    """
    plain, overrides = _split_overrides(arguments)
    parser = _parser(verbs)
    args = parser.parse_args(_join_negative_values(_join_verb(plain)))
    if args.verb is None:
        parser.print_help()
        sys.exit(0)
    if overrides and args.verb not in TAKE_OVERRIDES:
        raise UserError(f"--config.{overrides[0][0]} belongs to train and plan, not to {args.verb}")
    args.overrides = overrides
    return args


def _parser(verbs: Sequence[Verb]) -> Parser:
    parser = Parser(prog="sct-jax", description="Stable Consistency Tuning in JAX.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=__version__)
    subs = parser.add_subparsers(dest="verb", metavar="VERB", parser_class=Parser)
    for run in verbs:
        text = (run.__doc__ or "").strip()
        name = run.__name__.rstrip("_").replace("_", " ")
        sub = subs.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(run=run)
        sub.add_argument(
            "--debug",
            action="store_true",
            help="show the traceback of a mistake; train: a small batch, stop where a NaN is made",
        )
        ARGUMENTS[name](sub)
    return parser


def _integers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _noise(text: str) -> str:
    if text.partition(":")[0] not in ("fresh", "none", "adjusted"):
        raise argparse.ArgumentTypeError(f"{text!r} is none of fresh, none, adjusted and adjusted:SHARE")
    return text


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
CPU_DEVICES: dict[str, Any] = {
    "type": int,
    "metavar": "N",
    "help": "compute on the CPU as N devices, such as one a core, each with a part of the batch",
}
ETA: dict[str, Any] = {"type": float, "help": "phased models step past edge s to eta s (default: the config's)"}


def _train(sub: Parser) -> None:
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
    sub.add_argument("--cpu-devices", **CPU_DEVICES)
    found = "(default: found in the environment)"
    sub.add_argument("--coordinator", default="", help=f"of several processes: HOST:PORT of process 0, or auto {found}")
    sub.add_argument("--num-processes", type=int, default=0, help=f"how many there are {found}")
    sub.add_argument("--process-id", type=int, default=-1, help=f"which of them this is, from 0 {found}")


def _sample(sub: Parser) -> None:
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


def _evaluate(sub: Parser) -> None:
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
        "fd_efficientnet, ...; "
        "class_agreement, fd_pca, fd_classifier (default: all offline ones, and fid where --reference is given)",
    )
    _measuring_arguments(sub)


def _evaluate_reference(sub: Parser) -> None:
    sub.add_argument("--data-path", default="", help="the images, as for prepare, or a prepared data set; digits")
    sub.add_argument("--source", default="", help="folder, zip, cifar10, idx, tfds, digits (default: found out)")
    sub.add_argument("--split", default="train", help="(default: %(default)s)")
    sub.add_argument("--image-size", type=int, default=0, help="crop and resize, or pad, to this (default: as stored)")
    sub.add_argument("--crop", default="centre", help="of a folder or zip: centre or adm, see prepare")
    sub.add_argument("--features", default="inception", help="inception, dinov2 or efficientnet (default: %(default)s)")
    sub.add_argument("--weights", default="", help="folder of their weights (default: where import puts them)")
    sub.add_argument("--keep-features", action="store_true", help="of each image too: for kid, precision, density ...")
    sub.add_argument("--num", type=int, help="so many images, drawn at random (default: all)")
    sub.add_argument("--batch-size", type=int, default=256, help="images at a time (default %(default)s)")
    sub.add_argument("--cpu-devices", **CPU_DEVICES)
    sub.add_argument("--out", required=True, help="reference.npz")


def _evaluate_times(sub: Parser) -> None:
    _checkpoint_arguments(sub)
    sub.add_argument("--steps", type=int, default=2, help="of sampling (default %(default)s)")
    sub.add_argument("--metric", default="fid", help="to be minimised, or maximised (default %(default)s)")
    sub.add_argument("--seed", type=int, default=0, help="of the samples, the same for every candidate")
    sub.add_argument("--low", type=float, default=0.02, help="least noise level to try (default %(default)s)")
    sub.add_argument("--high", type=float, default=20.0, help="greatest noise level to try (default %(default)s)")
    sub.add_argument("--tolerance", type=float, default=0.02, help="in ln t (default %(default)s)")
    sub.add_argument("--tries", type=int, default=40, help="candidates at most (default %(default)s)")
    _measuring_arguments(sub)


def _import(sub: Parser) -> None:
    sub.add_argument("--source", required=True, help="a .pkl, .pt, .pth or .safetensors")
    sub.add_argument(
        "--out",
        default="",
        help="a new workdir, for sample, evaluate and --config.init.checkpoint (default: none; of feature networks: "
        "where evaluate looks for them)",
    )
    sub.add_argument("--heads", default="", help="LPIPS's linear heads, where --source is its backbone")
    sub.add_argument("--method", default="", help="what trained it: edm, ect, ... (default: what the file says)")
    sub.add_argument("--image-size", type=int, default=0, help="of its images, where the weights do not tell")


def _prepare(sub: Parser) -> None:
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


def _ema(sub: Parser) -> None:
    sub.add_argument("--checkpoint", required=True, help="a run's workdir with several checkpoints")
    sub.add_argument("--std", type=_floats, required=True, help="widths as shares of the training, such as 0.05,0.10")
    sub.add_argument("--step", type=int, help="where the averages end: a kept step (default: the last)")
    sub.add_argument("--out", required=True, help="a new workdir, with the EMA profile power:STD for each width")


def _export(sub: Parser) -> None:
    sub.add_argument("--checkpoint", required=True, help="a run's workdir, or one of its checkpoints/STEP")
    sub.add_argument("--ema", default="", help="EMA profile (default: the first of the run; raw: raw weights)")
    sub.add_argument("--format", required=True, help="safetensors: the weights; stablehlo: the sampler (jax.export)")
    sub.add_argument("--steps", type=int, help="of the sampler (default: as sample)")
    _boundary_arguments(sub)
    sub.add_argument("--out", required=True, help="model.safetensors, or sampler.stablehlo")


def _plan(sub: Parser) -> None:
    sub.add_argument("--config", required=True, help="as for train; --config.KEY=VALUE overrides a field")
    sub.add_argument("--topology", default="local", help="such as v5e:4x4; local: this machine's devices (default)")
    sub.add_argument("--price-per-chip-hour", type=float, help="to say what the whole run costs")
    sub.add_argument("--efficiency", type=float, default=0.4, help="share of the floor's speed to expect (0.4)")
    sub.add_argument("--data-spec", default="", help="of data that is not here: 64x64x3,CLASSES,IMAGES")
    sub.add_argument(
        "--full-search", action="store_true", help="a TPU's fastest kernels, as in a run: hours, not minutes"
    )
    sub.add_argument("--out", help="plan.json")


def _report(sub: Parser) -> None:
    sub.add_argument("workdirs", nargs="+", help="workdirs of runs")
    sub.add_argument("--out", required=True, help="report.html")


def _checkpoint_arguments(sub: Parser) -> None:
    sub.add_argument("--checkpoint", required=True, help="a workdir, one of its checkpoints/STEP, or a .pkl or .pt")
    sub.add_argument("--ema", default="", help="EMA profile (default: the first of the run; raw: raw weights)")
    sub.add_argument("--batch-size", type=int, default=256, help="images at a time (default %(default)s)")
    sub.add_argument("--cpu-devices", **CPU_DEVICES)
    sub.add_argument(
        "--noise",
        type=_noise,
        help="of the steps after the first: fresh, none, adjusted or adjusted:SHARE (default: the config's)",
    )
    sub.add_argument("--guide", metavar="GUIDE", help="guide away from: unconditional, or a checkpoint as above")
    sub.add_argument("--omega", type=float, help="how far: D + omega (D - D_guide) (default 1)")
    _boundary_arguments(sub)


def _boundary_arguments(sub: Parser) -> None:
    sub.add_argument(
        "--boundary", choices=BOUNDARIES, help="where the denoiser is the identity (default: the config's sampling)"
    )
    sub.add_argument("--sigma-min", type=float, help="the shift of --boundary sigma_min (default: the config's)")


def _measuring_arguments(sub: Parser) -> None:
    sub.add_argument(
        "--num", type=int, help="samples (default: 50,000; of offline metrics the training images', at most 10,000)"
    )
    sub.add_argument("--reference", nargs="+", default=[], metavar="FILE", help="statistics of real images: evaluate "
                     "reference's, EDM's, ADM's, pytorch-fid's or clean-fid's .npz, EDM2's .pkl")  # fmt: skip
    sub.add_argument("--features", default="", help="folder of the feature networks' weights (default: import's)")
    sub.add_argument("--data-path", default="", help="where the data lies now, if not where the config says")
    sub.add_argument("--out", help="metrics.json")


ARGUMENTS: dict[str, Callable[[Parser], None]] = {
    "train": _train,
    "sample": _sample,
    "evaluate": _evaluate,
    "evaluate reference": _evaluate_reference,
    "evaluate times": _evaluate_times,
    "import": _import,
    "prepare": _prepare,
    "ema": _ema,
    "export": _export,
    "plan": _plan,
    "report": _report,
}
TAKE_OVERRIDES = ("train", "plan")


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
