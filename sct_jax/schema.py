"""Every field of a config: its default, what it means and what is allowed. This table is the reference for users.

A config file sets some of these fields; the others keep the default given here. ``sct-jax train --help-config``
prints the table.
"""

from typing import Any, NamedTuple


class Field(NamedTuple):
    """One config field. The type is the default's: int, float, bool, str, or a tuple of one of them."""

    default: Any
    help: str
    choices: tuple[Any, ...] = ()
    low: float | None = None  # inclusive
    high: float | None = None  # inclusive
    above: float | None = None  # exclusive
    may_be_empty: bool = False  # of a tuple
    item: Any = None  # an example of a tuple's items, where the default is empty


# The methods that train a diffusion model; all others make a consistency model.
DENOISING = ("edm", "stf")
# The methods that train a network's further inputs: the time that it jumps to, the weight of guidance. None so far.
INPUT_METHODS: dict[str, tuple[str, ...]] = {"target_time": (), "guidance_input": ()}
# Where a denoiser is the identity: at t = 0, or at sigma_min.
BOUNDARIES = ("zero", "sigma_min")
# What data.augment tells the network about an image: model.augment_dim.
AUGMENT_LABELS = 9

SCHEMA: dict[str, Field] = {
    "seed": Field(0, "every random number of the run follows from it", low=0),
    "total_steps": Field(10_000, "training steps (optimizer updates)", low=1),
    "batch_size": Field(128, "images a step over all devices", low=1),
    # Where the weights come from.
    "init.checkpoint": Field("", "run or checkpoint whose weights to start from; empty: from scratch"),
    "init.ema": Field("", "its EMA profile to take ('raw': the raw weights; empty: its first profile)"),
    # Data.
    "data.source": Field(
        "digits",
        "kind of data set (none: of an imported model)",
        choices=("digits", "idx", "cifar10", "folder", "zip", "tfds", "gmm", "none"),
    ),
    "data.path": Field("", "where it lies (idx: default Debian's Fashion-MNIST); gmm: which mixture, 2d or 64d"),
    "data.split": Field("train", "split to train on (digits: all, train, test)"),
    "data.held_out_split": Field("", "split for held-out metrics; empty: none"),
    "data.image_size": Field(0, "pad (or, for folders and zips, crop and resize) to this; 0: as stored", low=0),
    "data.flip": Field(False, "flip each image left-right with probability 1/2"),
    "data.augment": Field(
        0.0,
        "edm, stf: probability of each transform of EDM's augmentation (published: 0.12), which flips too; 0: off",
        low=0,
        high=1,
    ),
    "data.pipeline": Field(
        "auto",
        "resident: on the device; streamed: read ahead; auto: resident when it fits",
        choices=("auto", "resident", "streamed"),
    ),
    "data.resident_max_mib": Field(2048, "largest data set kept on the device by auto, MiB", low=0),
    "data.workers": Field(0, "reader processes of the streamed pipeline; 0: threads", low=0),
    "data.prefetch": Field(4, "batches the streamed pipeline reads ahead", low=1),
    "data.patience": Field(60.0, "seconds without streamed data after which, and again, that is said", above=0),
    "data.timeout": Field(1800.0, "seconds without streamed data after which to stop (exit 75); 0: never", low=0),
    # Network.
    "model.name": Field(
        "ddpmpp",
        "ddpmpp: U-Net (NCSN++ with its options below); adm: ADM's; edm2: EDM2's; film_mlp: for tiny images",
        choices=("ddpmpp", "film_mlp", "adm", "edm2"),
    ),
    "model.conditional": Field(False, "condition on the class label"),
    "model.label_dropout": Field(0.0, "probability of training without the label (for guidance)", low=0, high=1),
    "model.channels": Field(128, "U-Nets: channels at the first level; film_mlp: hidden width", low=4),
    "model.channel_mult": Field((2, 2, 2), "U-Nets: multiplier of channels at each resolution level", low=1),
    "model.channel_mult_embedding": Field(4, "U-Nets: width of the time embedding / channels", low=1),
    "model.channel_mult_noise": Field(1, "ddpmpp, edm2: width of the noise features / channels (NCSN++: 2)", low=1),
    "model.num_blocks": Field(4, "residual blocks (U-Nets: at each level)", low=1),
    "model.attention_resolutions": Field((16,), "U-Nets: resolutions with self-attention", low=1, may_be_empty=True),
    "model.embedding": Field("positional", "noise features (NCSN++: fourier)", choices=("positional", "fourier")),
    "model.encoder": Field("standard", "ddpmpp encoder (NCSN++: residual)", choices=("standard", "residual")),
    "model.resample_filter": Field((1, 1), "ddpmpp, edm2: resampling filter (NCSN++: 1,3,3,1)", low=0),
    "model.augment_dim": Field(0, "width of the augmentation labels (data.augment has 9); 0: none", low=0),
    "model.target_time": Field(
        False, "an input for the time to jump to, for methods of two times (none in this version yet)"
    ),
    "model.guidance_input": Field(
        False, "an input for the weight of guidance, for guided distillation (not in this version yet)"
    ),
    "model.dropout": Field(0.0, "dropout inside residual blocks", low=0, high=0.99),
    "model.dropout_max_resolution": Field(0, "edm2: dropout at resolutions up to this only; 0: at all", low=0),
    "model.attention_head_channels": Field(64, "adm, edm2: channels of an attention head", low=1),
    "model.adaptive_scale": Field(
        True, "adm: scale and shift features by the embedding; False: add it (OpenAI's LSUN)"
    ),
    "model.time_scale": Field(1.0, "adm: factor on ln(t)/4 before its embedding (OpenAI: 1000)", above=0),
    "model.label_balance": Field(0.5, "edm2: share of the label in the embedding", low=0, high=1),
    "model.concat_balance": Field(0.5, "edm2: share of the skip in the decoder's input", low=0, high=1),
    "model.residual_balance": Field(0.3, "edm2: share of a block's residual branch", low=0, high=1),
    "model.attention_balance": Field(0.3, "edm2: share of a block's attention", low=0, high=1),
    "model.uncertainty_channels": Field(128, "edm2: width of objective.uncertainty's head; 0: none", low=0),
    "model.remat": Field(False, "U-Nets: compute blocks again in the backward pass: less memory, a third more work"),
    "model.sigma_data": Field(0.5, "standard deviation of the data in [-1, 1]", above=0),
    "model.boundary": Field(
        "zero", "where the denoiser is the identity in training: at t = 0, or at sigma_min", choices=BOUNDARIES
    ),
    "model.sigma_min": Field(0.002, "shift of boundary='sigma_min'", low=0),
    "model.compute_dtype": Field(
        "float32",
        "of activations; parameters, norms' statistics, softmax stay float32. tf32: float32 rounded in products; "
        "float16 (GPUs): the loss is scaled, see optimizer.loss_scale",
        choices=("float32", "tf32", "bfloat16", "float16"),
    ),
    "model.gradient_dtype": Field(
        "float32",
        "of weight gradients, made and summed over devices (of convolutions on GPUs: compute_dtype in any case). "
        "compute: compute_dtype, half the bytes",
        choices=("float32", "compute"),
    ),
    # Objective. The rows of sct_jax/objectives/table.py set these together.
    "objective.method": Field(
        "sct",
        "edm, stf: denoising; ct, cd, ict, ect, sct, tcm1, tcm (stage 2), gc: consistency",
        choices=(*DENOISING, "ct", "cd", "ict", "ect", "sct", "tcm1", "tcm", "gc"),
    ),
    "objective.pair": Field(
        "mapping", "t and r: r mapped from t, or neighbours of a grid", choices=("mapping", "grid")
    ),
    "objective.times": Field(
        "lognormal",
        "distribution of t (uniform: over the grid; truncated to [t_min, t_max])",
        choices=("lognormal", "truncated_lognormal", "truncated_student", "uniform"),
    ),
    "objective.time_mean": Field(-1.1, "mean of ln t"),
    "objective.time_std": Field(2.0, "standard deviation of ln t (truncated_student: its scale)", above=0),
    "objective.time_freedom": Field(0.01, "truncated_student: degrees of freedom", above=0),
    "objective.t_min": Field(0.002, "smallest t of grids and truncated times, of phases too", above=0),
    "objective.t_max": Field(80.0, "largest t of grids and truncated times; the last edge of phases", above=0),
    "objective.rho": Field(7.0, "curvature of the grid and of the phases' edges", above=0),
    "objective.growth": Field(
        "progressive",
        "how the grid grows from s_0 to s_1 intervals (CM, iCT); fixed: s_0 points",
        choices=("fixed", "progressive", "doubling"),
    ),
    "objective.s_0": Field(10, "intervals of the grid at first (growth fixed: its points)", low=2),
    "objective.s_1": Field(1280, "intervals of the grid at last", low=2),
    "objective.transition": Field(
        "posterior_mean",
        "clean image in the Euler step: the sample, its posterior mean, a teacher's prediction (euler, heun), or "
        "generated, the sample or an image of the model itself (GC)",
        choices=("sample", "posterior_mean", "teacher_euler", "teacher_heun", "generated"),
    ),
    "objective.teacher": Field("", "run or checkpoint of the diffusion model that the teacher transitions use"),
    "objective.generated": Field(0.5, "transition='generated': share of images that the model makes", low=0, high=1),
    "objective.generator_decay": Field(
        0.9999, "transition='generated': decay of the EMA that makes them", low=0, high=0.999999
    ),
    "objective.generator_every": Field(5, "transition='generated': steps between two updates of that EMA", low=1),
    "objective.bootstrap": Field(
        "online",
        "network of the target: the trained one, its EMA, or divided: below dividing_time stage 1's (TCM, stage 2)",
        choices=("online", "ema", "divided"),
    ),
    "objective.stage1": Field("", "run or checkpoint of the consistency model that bootstrap='divided' uses"),
    "objective.dividing_time": Field(
        1.0, "bootstrap='divided': noise level t' from which the trained network answers, and trains", above=0
    ),
    "objective.boundary_share": Field(0.25, "bootstrap='divided': share of a batch moved to t'", low=0, high=0.99),
    "objective.boundary_weight": Field(0.1, "bootstrap='divided': weight of their mean loss", low=0),
    "objective.target_decay": Field(0.9, "decay of bootstrap='ema' (0: none)", low=0, high=0.999999),
    "objective.target_decay_adaptive": Field(False, "raise it as the grid grows: exp(s_0 ln(decay) / intervals)"),
    "objective.difference": Field(
        "auto",
        "the TD difference D(x_t) - D(x_r): evaluated, both sides; tangent, as a derivative, which bfloat16 does not "
        "drown when t - r is small; auto: in low precision the sounder of the two at each octave of t (td_signal)",
        choices=("auto", "evaluated", "tangent"),
    ),
    "objective.schedule": Field(
        "smooth",
        "how t - r shrinks: in stages (ECT), smoothly (SCT), or smoothly with the mean of the stages",
        choices=("staged", "smooth", "smooth_matched"),
    ),
    "objective.stage_steps": Field(25_000, "steps in which t - r shrinks by q; 0: never", low=0),
    "objective.first_stage": Field(0, "stage at step 0 (a run that goes on from another's)", low=0, high=60),
    "objective.q": Field(2.0, "base of the schedule: t - r is t n(t) / q^(stage + 1)", above=1),
    "objective.k": Field(8.0, "n(t) = 1 + k sigmoid(-b t)", low=0),
    "objective.b": Field(1.0, "n(t) = 1 + k sigmoid(-b t)", low=0),
    "objective.ratio_limit": Field(0.999, "largest r / t, or what ratio_limit_of says; 1: none (ECT)", above=0, high=1),
    "objective.ratio_limit_of": Field(
        "pair",
        "what ratio_limit bounds: r / t; or schedule: 1 - 1 / q^(stage + 1), which n(t) then widens (TCM)",
        choices=("pair", "schedule"),
    ),
    "objective.phases": Field(
        1, "segments of the ODE path, each mapped to its start; 1: the plain model", low=1, high=8
    ),
    "objective.distance": Field(
        "pseudo_huber", "between the two sides", choices=("squared_l2", "l1", "pseudo_huber", "lpips")
    ),
    "objective.lpips": Field("", "folder of LPIPS's imported weights; empty: where sct-jax import puts them"),
    "objective.huber_c": Field(1e-8, "pseudo-Huber's c; tiny: the plain norm, guarded at 0", above=0),
    "objective.weight": Field(
        "inverse_gap",
        "of the loss: 1/(t-r), 1, 1/t^2 + 1/sigma_data^2, 1/sqrt(t-r), 1/c_out^2",
        choices=("inverse_gap", "uniform", "snr", "inverse_sqrt_gap", "inverse_output_scale"),
    ),
    "objective.uncertainty": Field(False, "edm, stf: weight by the loss that model edm2 learns to expect at each t"),
    "objective.normalize_stage": Field(False, "divide the weight by q^stage, so that the loss keeps one scale"),
    # The rows of the posterior mean.
    "reference.source": Field(
        "batch",
        "batch: the global batch; bank: size rows drawn for each query; dataset: all rows; auto: dataset where it fits "
        "on the devices, else a bank of a size that send_max_mib allows, decided where a run begins",
        choices=("batch", "bank", "dataset", "auto"),
    ),
    "reference.same_class": Field(True, "when conditional, a query sees the rows of its class only"),
    "reference.size": Field(256, "bank: rows for each query, beside its own sample", low=1),
    "reference.bank_block": Field(
        16, "bank, and dataset where rows are gathered by class: rows for each query worked on at a time", low=1
    ),
    "reference.warped_rows": Field(
        0,
        "stf with data.augment: images of the batch that a warped one sees, warped as it is; each costs another "
        "augmentation of the batch. 0: a warped image keeps its own sample as the target",
        low=0,
    ),
    "reference.block": Field(1024, "dataset: rows worked on at a time", low=1),
    "reference.resident_max_mib": Field(
        2048,
        "bank: largest store kept on the device, MiB; a larger one stays in the host's memory. auto: largest part of "
        "all rows on each device",
        low=0,
    ),
    "reference.send_max_mib": Field(
        128, "auto: MiB of rows that a process may send a step; the size of its bank follows", low=0
    ),
    # Optimizer.
    "optimizer.name": Field("radam", "update rule (lion: published with b2 = 0.99)", choices=("adam", "radam", "lion")),
    "optimizer.lr": Field(1e-4, "learning rate", above=0),
    "optimizer.b1": Field(0.9, "decay of the first moment", low=0, high=0.99999),
    "optimizer.b2": Field(0.999, "decay of the second moment", low=0, high=0.9999999),
    "optimizer.eps": Field(1e-8, "guard of the division (lion has none)", above=0),
    "optimizer.clip_norm": Field(0.0, "clip the gradient's global norm; 0: do not", low=0),
    "optimizer.ramp_steps": Field(0, "linear warm-up of the learning rate", low=0),
    "optimizer.decay": Field(
        "constant",
        "after the warm-up: constant, lr/sqrt(max(k/ref, 1)), or cosine to 0",
        choices=("constant", "inverse_sqrt", "cosine"),
    ),
    "optimizer.decay_reference_steps": Field(2000, "ref of inverse_sqrt", low=1),
    "optimizer.loss_scale": Field(
        32768.0,
        "float16: factor on the loss, at first: halved (and the step left out) when gradients overflow, doubled after "
        "2,000 steps that do not",
        low=1,
        high=2.0**24,
    ),
    "optimizer.accumulate": Field(1, "micro-batches a step (gradients are averaged)", low=1),
    "ema.profiles": Field(
        ("constant:0.9999",),
        "averages kept, the first is used for sampling: constant:DECAY, "
        "half_life:IMAGES[:RAMP] (EDM: half_life:500000:0.05) or power:STD (EDM2: power:0.05)",
    ),
    # Running.
    "checkpoint.every_steps": Field(5000, "save this often (and at the end)", low=1),
    "checkpoint.keep": Field(2, "newest checkpoints to keep", low=1),
    "checkpoint.keep_every_steps": Field(0, "keep those of every so many steps for good; 0: none", low=0),
    "checkpoint.keep_fractions": Field(
        (),
        "save and keep for good at these fractions of the run, such as 0.25,0.5,0.75 (for guidance)",
        above=0,
        high=1,
        may_be_empty=True,
        item=0.5,
    ),
    "log.every_steps": Field(100, "write metrics this often", low=1),
    "log.tensorboard": Field(True, "write TensorBoard events"),
    "log.wandb_project": Field("", "also log to this Weights & Biases project (pip install wandb)"),
    "log.steps_per_dispatch": Field(0, "steps in one call of the device; 0: chosen by network and device", low=0),
    "sampling.steps": Field((1, 2), "numbers of network evaluations (EDM: of Heun steps) to sample with", low=1),
    "sampling.num_images": Field(64, "images in a grid while training", low=1),
    "sampling.every_steps": Field(0, "draw a grid this often; 0: at the end only", low=0),
    "sampling.t_max": Field(80.0, "noise level where sampling starts", above=0),
    "sampling.t_min": Field(0.002, "last noise level of Heun's grid", above=0),
    "sampling.rho": Field(7.0, "curvature of Heun's grid", above=0),
    "sampling.mid_times": Field((0.821,), "noise levels of the steps after the first", above=0, may_be_empty=True),
    "sampling.boundary": Field(
        "",
        "boundary of samples and measurements (ECT on CIFAR-10: sigma_min, trained with zero); empty: model.boundary",
        choices=("", *BOUNDARIES),
    ),
    "sampling.sigma_min": Field(
        0.0, "shift of boundary='sigma_min' when sampling (ECT on CIFAR-10: 0.003); 0: model.sigma_min", low=0
    ),
    "sampling.noise": Field(
        "fresh",
        "of the steps after the first: fresh, or the one that the step before implies, as it is (none) or scaled up "
        "for the variance that is lost (adjusted: aDDIM)",
        choices=("fresh", "none", "adjusted"),
    ),
    "sampling.adjusted_share": Field(
        0.1, "adjusted: share of a Gaussian's posterior variance that is put back", low=0, high=1
    ),
    "sampling.eta": Field(
        1.0, "phased models: step past each edge s to eta s (edge skipping); 1: to the edge", above=0, high=1
    ),
    "evaluation.every_steps": Field(0, "measure samples this often while training; 0: never", low=0),
    "evaluation.num_images": Field(1797, "samples to measure", low=2),
    "evaluation.target_queries": Field(32, "noisy images to measure the variance of the target with; 0: off", low=0),
    # Scale: how the run lies on its devices (see also optimizer.accumulate, model.remat).
    "mesh.data": Field(-1, "devices the batch is split over, each with a copy of the state; -1: all", low=-1),
    "mesh.fsdp": Field(
        1, "times so many, over which parameters, optimizer state, EMA and context are split too; 1: not", low=1
    ),
    "mesh.fsdp_min_size": Field(65_536, "arrays of fewer numbers stay whole on every device", low=1),
}
