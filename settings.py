"""What a run is: each setting with its default, range and help, and the hash that names the run.

The flags of train.py are the fields of `Config`, in the same order. sweep.py and plan.py take them
too. A setting goes through three steps:

    parse         the command line -> Config; what nobody gave is None or "auto"
    check_config  refuse what cannot be meant
    settled       put a value in the place of each None and "auto", which depend on the machine, on
                  the method or on the number of samples

Only a settled config has a name, `config.run`.
"""
import dataclasses
import hashlib
import itertools
import json
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from plumbing.cli import flag, parse_flags
from plumbing.errors import UserError
from plumbing.fields import check, check_ranges, shape_of_flag
from plumbing.files import read_json
from plumbing.records import RUN

# A file of methods/ is a method. qlora is lora on a base in four bits.
FOLDER = Path(__file__).parent / "methods"
RELATIVES = tuple(sorted(path.stem for path in FOLDER.glob("[a-z]*.py")))
METHODS = ("full", "qlora", *RELATIVES)
OPTIMIZER_NAMES = ("adamw", "adamw8bit", "paged_adamw", "paged_adamw8bit")
DTYPE_NAMES = ("float32", "bfloat16", "float16")
SUPERVISE = ("last", "all")
SCHEDULES = ("constant", "cosine", "linear")
FULL_LR = 2e-5      # of full fine-tuning, if --lr is not given; the others' are in their files
LESS_MEMORY = ("lower --micro_bs (and raise --grad_accum as much), or --max_length, or add "
               "--gradient_checkpointing")


@dataclass
class Config:
    model: str = flag(
        "nano", "folder, hub repository (owner/name, owner/name@revision), or the embedded nano",
        group="what")
    data: str = flag("nano", "name under data/, or a folder with train.jsonl and test.jsonl")
    supervise: str = flag(
        "last", "the answers that are learned: the last of a conversation, or all of the "
        "assistant's", choices=SUPERVISE)
    method: str = flag(
        "lora", "what is trained: full, every weight; lora, adapters on a frozen base; qlora, "
        "adapters on a base in four bits; the others are LoRA's relatives and rivals, and each is "
        "explained in its file methods/<name>.py", choices=METHODS)
    nf4: bool = flag(False, "the frozen base in four bits, for any method but full")
    options: str = flag(
        "", "of the method alone, as NAME=VALUE,NAME=VALUE: its file has their names and defaults")
    rank: int = flag(64, "rank r of the adapters", group="LoRA", at_least=1, at_most=2 ** 20)
    alpha: float = flag(
        None, "the adapters are scaled by alpha / r; default: alpha = r, as in the tutorial, so "
        "that the factor is 1 at every rank. Then the best learning rate falls as r grows; with "
        "alpha fixed (32, say) it rises a little", above=0)
    targets: str = flag(
        "all-linear", "all-linear, attention, mlp, or layer names: q_proj,v_proj")
    dropout: float = flag(
        0.0, "share of LoRA's input that is set to zero in training, drawn again for each step: a "
        "remedy for over-fitting; of lora and qlora alone", at_least=0, at_most=0.9)
    lr: float = flag(
        None, "learning rate; default: 2e-4 for lora and qlora (a start for r near 64 with "
        "alpha = r; lower ranks want more), 2e-5 for full. The others want other rates, some of "
        "them 10 times LoRA's: leave --lr out at first, and their own is taken and printed",
        above=0, group="optimization")
    schedule: str = flag("constant", "of the learning rate, after warm-up", choices=SCHEDULES)
    warmup_ratio: float = flag(
        0.0, "share of the steps in which the learning rate rises from 0: AdamW's first steps rest "
        "on few gradients", at_least=0, at_most=1)
    optimizer: str = flag(
        "adamw", "AdamW with its two moments in float32 or in 8 bits; paged: the moments stay in "
        "the host's memory, and a bucket at a time visits the GPU", choices=OPTIMIZER_NAMES)
    weight_decay: float = flag(0.0, "AdamW's, decoupled", at_least=0)
    grad_clip: float = flag(1.0, "largest norm of the gradient; 0: no clipping", at_least=0)
    micro_bs: int = flag(4, "samples per forward pass; this decides memory", at_least=1,
                         at_most=2 ** 20)
    grad_accum: int = flag(
        4, "forward passes per optimizer step; micro_bs x grad_accum samples are a batch",
        at_least=1, at_most=2 ** 20)
    max_steps: int = flag(None, "optimizer steps; default: 200, or what --epochs says", above=0)
    epochs: float = flag(
        None, "passes over the training data, instead of --max_steps; steps are rounded up, and "
        "the last batch of an epoch may be smaller", above=0)
    eval_steps: int = flag(
        None, "steps between two evaluations; step 0 and the last step are always evaluated; "
        "default: 10, or a fifth of the steps if there are more than 100", above=0)
    eval_samples: int = flag(0, "evaluate on the first N test samples; 0: on all", at_least=0)
    max_length: int = flag(
        256, "tokens; longer samples are cut at their right end. Must not exceed the model's "
        "context, which is not checked", at_least=1)
    seed: int = flag(
        42, "of the order of the data and of A. Epoch e is in the order of seed + e, so seed 42's "
        "second epoch has the order of seed 43's first", at_least=0)
    dtype: str = flag(
        "auto", "of the computation; auto: bfloat16 on a GPU that has it, float16 on one that has "
        "not, float32 on a CPU. Adapters, the optimizer's arithmetic and, in full fine-tuning, the "
        "weights are float32 throughout", choices=("auto", *DTYPE_NAMES), group="machine")
    device: str = flag("auto", "one device: cpu, cuda, cuda:1, mps ...; auto: cuda, else cpu")
    compile: bool = flag(
        False, "torch.compile the layers: slower to start, faster per step; needs a C++ compiler")
    gradient_checkpointing: bool = flag(
        False, "keep only the layers' inputs and compute the rest again: much less memory, for up "
        "to a third more computation, with LoRA up to a half")
    fsdp: bool = flag(
        False, "each of torchrun's N processes keeps 1 / N of every weight instead of all of it: "
        "for models that do not fit on one GPU; much more is sent in each step")
    keep: str = flag(
        "last", "which weights are saved: of the last step, or of the lowest test NLL",
        choices=("last", "best"), group="files")
    out: str = flag(None, "folder of the run; default: out/<run>")
    resume: bool = flag(False, "go on where the run in --out stopped; begin if there is none")
    overwrite: bool = flag(False, "delete the run that is in --out, and start over")

    @property
    def batch_eff(self) -> int:
        """Samples per optimizer step."""
        return self.micro_bs * self.grad_accum

    def evaluated_steps(self) -> Iterator[int]:
        """The steps after which a settled run is evaluated, and gets a row: 0, 10, 20 ..."""
        return itertools.chain(range(0, self.max_steps, self.eval_steps), [self.max_steps])

    def evaluates(self, step: int) -> bool:
        """Whether `step` is one of them."""
        return step % self.eval_steps == 0 or step == self.max_steps

    @property
    def adapter_method(self) -> str:
        """The file of methods/ that the run's method is."""
        return "lora" if self.method == "qlora" else self.method

    @property
    def four_bits(self) -> bool:
        """Whether the base is quantized."""
        return self.nf4 or self.method == "qlora"

    @property
    def decides(self) -> dict:
        """The settings that decide the result of a settled run: what its name is a hash of.

        Left out is what should not change a result beyond rounding: how a batch is cut into
        micro-batches, the device, compilation, checkpointing, where weights and the optimizer's
        moments are kept. How often and on how much is evaluated is in it, because that decides the
        rows of log.csv. A setting that is not in it has its default, or the method does not have
        it.
        """
        named = {name: getattr(self, name) for name in HASHED} | {"batch_eff": self.batch_eff}
        named["optimizer"] = self.optimizer.removeprefix("paged_")
        if self.method == "full":
            named |= dict.fromkeys(ADAPTER_SETTINGS)
        for field in dataclasses.fields(self):
            known = field.name in HASHED or field.name in NOT_HASHED
            if not known and getattr(self, field.name) != field.default:
                named[field.name] = getattr(self, field.name)
        if self.dropout:        # it is drawn in the order of the passes, differently on each device
            kind = self.device.partition(":")[0]
            named |= {"micro_bs": self.micro_bs, "device": kind, "compile": self.compile}
        return named

    @classmethod
    def of_settings(cls, content: dict, source) -> "Config":
        """From a run's .json. null is the default; names of later editions are left out.

        Raises UserError for what no setting can be.
        """
        settings = check(content, {"settings": dict}, source)["settings"]
        shapes = {field.name: shape_of_flag(field) for field in dataclasses.fields(cls)
                  if settings.get(field.name) is not None}
        check(settings, shapes, source, "settings")
        return cls(**{name: settings[name] for name in shapes})

    @classmethod
    def of_run(cls, out: Path) -> tuple["Config", dict]:
        """The settings of the run in the folder `out`, and all that its run.json says."""
        content = read_json(out / "run.json", RUN)
        return cls.of_settings(content, out / "run.json"), content

    @property
    def run(self) -> str:
        """The name of a settled run: a short hash of the settings that decide its result.

        It promises that two runs with one name were asked for the same result. It does not see what
        the settings do not say: the content behind a model's or data set's name, the version of
        torch or of this project, the processor.
        """
        unsettled = [name for name in ("alpha", "lr", "max_steps", "eval_steps")
                     if getattr(self, name) is None]
        assert not unsettled and self.dtype != "auto", f"not settled yet: {unsettled or 'dtype'}"
        return hashlib.sha256(json.dumps(self.decides, sort_keys=True).encode()).hexdigest()[:10]


ADAPTER_SETTINGS = ("rank", "alpha", "targets")     # full fine-tuning has none of them


# The settings that the first edition hashed, whatever their value. A field that is added to Config
# later goes into neither tuple: it is hashed only where it differs from its default, so that the
# runs that do not use it keep their names.
HASHED = ("model", "data", "method", "rank", "alpha", "targets", "lr", "schedule", "warmup_ratio",
          "optimizer", "weight_decay", "grad_clip", "max_steps", "eval_steps", "eval_samples",
          "max_length", "seed", "dtype")
NOT_HASHED = ("micro_bs", "grad_accum", "device", "compile", "gradient_checkpointing", "fsdp",
              "out", "resume", "overwrite", "epochs")


# The flags that sweep.py and bench.py have, too: they keep no weights, and count steps.
SHARED_FLAGS = tuple(field.name for field in dataclasses.fields(Config) if field.name not in (
    "epochs", "fsdp", "keep", "out", "resume", "overwrite"))


def parse(argv=None, doc: str = "") -> Config:
    return parse_flags(Config, "train.py", doc, argv)


def check_config(config: Config):
    """Raise UserError for a setting that cannot be meant."""
    check_ranges(config)
    if config.max_steps and config.epochs:
        raise UserError("--max_steps and --epochs both say how long to train; give one of them")
    compilers = (os.environ.get("CXX", ""), "g++", "clang++", "cl")
    if config.compile and not any(map(shutil.which, compilers)):
        raise UserError("--compile needs a C++ compiler, and there is none on the PATH; install "
                        "one, or leave the flag out")
    if config.nf4 and config.method == "full":
        raise UserError("--nf4 and --method full contradict each other: weights in four bits are "
                        "frozen, because a step would be rounded away")
    if config.options and config.method == "full":
        raise UserError("--options are of a method in methods/, and full fine-tuning has none")
    if config.dropout and config.adapter_method != "lora":
        raise UserError(f"--dropout is of LoRA's input, and --method {config.method} does not have "
                        "it; leave it out, or take --method lora")
    if config.fsdp and config.method == "full" and config.optimizer != "adamw":
        raise UserError(f"--optimizer {config.optimizer} does not go with --fsdp --method full, "
                        "because it keeps blocks of moments that shards would cut; take adamw")
    if config.resume and config.overwrite:
        raise UserError("--resume and --overwrite contradict each other; give one of them")


def missing_settings(config: Config) -> tuple:
    """Of rank, alpha and targets, those that the run's method has not."""
    if config.method == "full":
        return ADAPTER_SETTINGS
    from methods import find_method                 # here, because it loads torch
    return find_method(config.adapter_method).ignores


def settled(config: Config, n_train: int) -> Config:
    """`config` with a value in the place of every None and "auto".

    n_train: the number of training samples, from which --epochs follow. Two ways to say one thing
    become one: lora with --nf4 is qlora, options at their defaults are left out, and a setting that
    the method does not have (its `ignores`) is the default. Raises UserError for options, alpha or
    targets that the method does not have.
    """
    from plumbing.device import choose_device       # here, because they load torch
    if config.method == "full":
        lr, options = FULL_LR, {}
    else:
        from methods import find_method, parse_options
        method = find_method(config.adapter_method)
        lr, options = method.lr, parse_options(method, config.options)
        if config.fsdp and method.reads_base:
            raise UserError(f"--fsdp does not go with --method {config.method}, which begins from "
                            "whole weights of the base, and no process has them")
        options = {name: value for name, value in options.items() if value != method.options[name]}
        for name in method.ignores:
            default = getattr(Config, name)
            if name != "rank" and getattr(config, name) not in (default, float(config.rank)):
                raise UserError(f"--{name} does not go with --method {config.method}, which has no "
                                f"{name}")
            config = dataclasses.replace(config, **{name: default})
    if config.method == "lora" and config.nf4:
        config = dataclasses.replace(config, method="qlora")
    if config.method == "qlora":
        config = dataclasses.replace(config, nf4=False)
    device, dtype = choose_device(config.device, config.dtype)
    if config.compile and device.startswith("cuda") and find_spec("triton") is None:
        raise UserError("--compile on a GPU needs Triton, which is not installed (on Windows: pip "
                        "install triton-windows); install it, or leave the flag out")
    steps = config.max_steps or 200
    if config.epochs:
        steps = math.ceil(config.epochs * math.ceil(n_train / config.batch_eff))
    config = dataclasses.replace(
        config, device=device, dtype=dtype, max_steps=steps,
        eval_steps=config.eval_steps or (10 if steps <= 100 else steps // 5),
        alpha=config.alpha or float(config.rank),
        options=",".join(f"{name}={value}" for name, value in sorted(options.items())),
        lr=config.lr or lr)
    return dataclasses.replace(config, out=config.out or f"out/{config.run}")
