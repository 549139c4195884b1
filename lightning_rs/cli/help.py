"""Short help: what people need first, with examples; ``--help all`` prints every option of Lightning's parser."""

from __future__ import annotations

import re
from collections.abc import Sequence

_WHAT = {
    "fit": "train a classifier under noise, then certify test images with it",
    "validate": "accuracy on validation images, clean and under noise",
    "test": "accuracy on test images, clean and under noise",
    "predict": "classes by vote under noise, abstaining where it is not significant, as CSV",
    "certify": "a certified radius for each image, as a record file",
    "attack": "attack certified images, and test what their certificates assert",
    "transfer": "carry records to another classifier or runtime, by paired samples",
    "report": "compare record files: tables, bounds and figures",
    "merge": "merge the record files of shards or processes",
    "import": "turn a table of radii into a record file",
    "export": "turn a record file into a table",
    "study": "experiments on laws and bounds",
    "levels": "train at several noise levels, and certify each at its own or at several",
    "reproduce": "figures and tables of five papers, step by step",
    "configs": "list the configurations that come with the package, or copy them",
    "combine": "combine record files of several classifiers",
}

_DATA = """\
  --data CLASS                what to read: Digits, MNIST, CIFAR10, ImageFolder, ... (--data.help CLASS)
  --data.root FOLDER          where it lies
"""
_CHECKPOINT = """\
  --ckpt_path FILE            the trained classifier; it says which model and data it belongs to
"""
_CERTIFIER = """\
  --certifier.n N             samples an image (1000, 1e5, 100_000)
  --certifier.alpha A         failure probability an image
  --certifier.certificates C  by name, one or a list: GaussianL2, [GaussianL2,GaussianLinf]
"""
_RUN = """\
  -c, --config FILE           a configuration; several are read in turn
  --trainer.accelerator NAME  cpu, gpu, auto
  --trainer.devices N         number of processes or devices
  --trainer.default_root_dir FOLDER
                              where runs are kept
  --print_config              print the configuration and do nothing
"""
_OPTIONS = {
    "fit": _DATA
    + """\
  --model.network NAME        base network: digits_cnn, mlp, lenet, cifar_resnet20, ...
  --model.noise CLASS         GaussianNoise, UniformNoise, LaplaceNoise, ...
  --model.noise.sigma S       its scale, in input units
  --trainer.max_epochs N      length of the training
  --certifier null            no certification at the end
"""
    + """\
  --ckpt_path FILE            go on from a checkpoint, weights, optimizer and all
""",
    "validate": _CHECKPOINT + _DATA,
    "test": _CHECKPOINT + _DATA,
    "predict": _CHECKPOINT + _DATA + "  --data.max N                at most so many images\n" + _CERTIFIER,
    "certify": _CHECKPOINT
    + _DATA
    + """\
  --data.max N                at most so many images; --data.skip K: every K-th
  --records FILE              the record file; running the same again does what is missing
  --shard I/M                 the I-th of M independent jobs
  --untrained true            certify random weights, where no checkpoint is given
"""
    + _CERTIFIER
    + """\
  --check SHARE               then test what the certificates of a share of the images assert
""",
    "attack": _CHECKPOINT
    + _DATA
    + """\
  RECORDS                     the record file whose images are attacked
  --attacker CLASS            lightning_rs.attacks.Attacker, or your own
  --attacker.n N              votes of each confirmation
  --attacker.attacks LIST     classes: PGD, DDN, VoteSearch, SplittingMoves, PatchSearch, PixelSearch, External
  --out FILE                  the file of attack records; running the same again does what is missing
  --shard I/M                 the I-th of M independent jobs
""",
    "transfer": """\
  RECORDS                     the record file of the first classifier (no two-class, gradient or exact one)
  --ckpt_path FILE            the new classifier
  --source FILE               the first one; left out: the same network, in the runtime of the records
  --pairs N                   paired samples an image
  --alpha A                   failure probability of the paired bound, added to that of the records
  --out FILE                  the new record file
"""
    + _DATA,
}
_EXAMPLES = {
    "fit": (
        "fit",
        "fit --data MNIST --data.root data --model.network lenet --model.noise.sigma 0.5",
        "fit -c runs/fit.yaml --ckpt_path runs/checkpoints/last.ckpt --trainer.max_epochs 120",
    ),
    "validate": ("validate --ckpt_path runs/checkpoints/last.ckpt",),
    "test": ("test --ckpt_path runs/checkpoints/last.ckpt",),
    "predict": ("predict --ckpt_path runs/checkpoints/last.ckpt --data.max 100 --certifier.n 1000",),
    "certify": (
        "certify --ckpt_path runs/checkpoints/last.ckpt",
        "certify --ckpt_path runs/checkpoints/last.ckpt --certifier.n 1e4 --data.max 500 --records r.jsonl",
    ),
    "attack": ("attack r.jsonl --ckpt_path runs/checkpoints/last.ckpt",),
    "transfer": (
        "transfer int8.jsonl --ckpt_path runs/checkpoints/last.ckpt",
        "transfer r.jsonl --source old.ckpt --ckpt_path tuned.ckpt --pairs 2000",
    ),
    "report": ("report runs/certify", "report a.jsonl b.jsonl --out comparison --paired"),
}


def overview(commands: Sequence[str]) -> str:
    """Return the help of the program: its commands, a line each, and examples."""
    listed = "".join(f"  {name:<10}{_WHAT[name]}\n" for name in commands)
    lines = [example for name in ("fit", "certify", "report") for example in _EXAMPLES[name][:1]]
    return (
        "usage: lightning_rs COMMAND [options]\n\n"
        "Train image classifiers under noise and certify them by randomized smoothing.\n\n"
        f"commands:\n{listed}\nexamples:\n{_examples(lines)}\n"
        "  lightning_rs COMMAND --help, or --help all: every option (of fit, validate, test, predict and certify)\n"
        "  lightning_rs --version, or --completion: a script that completes commands and options in bash and zsh"
    )


def command_help(command: str) -> str:
    """Return the short help of a command with a model."""
    return (
        f"usage: lightning_rs {command} [options]\n\n{_WHAT[command].capitalize()}.\n\n"
        f"options:\n{_OPTIONS[command]}{_RUN}\nexamples:\n{_examples(_EXAMPLES[command])}\n"
        f"Every option: lightning_rs {command} --help all; those of a class: --certifier.help, --data.help MNIST"
    )


def completion_script(commands: Sequence[str]) -> str:
    """Return a script for bash and zsh that completes commands, the options of the short help, and files."""
    cases = "".join(
        f"    {name}) words='{' '.join(re.findall(r'--[a-z_.]+', _OPTIONS[name] + _RUN))} --help' ;;\n"
        for name in commands
        if name in _OPTIONS
    )
    return (
        '# bash: eval "$(lightning_rs --completion)"\n'
        '# zsh:  autoload -U bashcompinit && bashcompinit && eval "$(lightning_rs --completion)"\n'
        "_lightning_rs() {\n"
        "  local word=\"${COMP_WORDS[COMP_CWORD]}\" words=''\n"
        '  case "${COMP_WORDS[1]}" in\n'
        f"{cases}  esac\n"
        f"  [ \"$COMP_CWORD\" = 1 ] && words='{' '.join(commands)} --help --version'\n"
        '  COMPREPLY=($(compgen -W "$words" -- "$word"))\n'
        "}\n"
        "complete -o default -F _lightning_rs lightning_rs"
    )


def _examples(lines: Sequence[str]) -> str:
    return "".join(f"  lightning_rs {line}\n" for line in lines)
