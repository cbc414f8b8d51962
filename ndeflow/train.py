"""python -m ndeflow.train recipe=NAME [option=value ...]: one command, one trained model."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ndeflow.resources import ConfigError, listing
from ndeflow.runs import MISUSED, keep_compiled, say

USAGE = """python -m ndeflow.train recipe=NAME [option=value ...]
python -m ndeflow.train resume=RUN_DIR [option=value ...]
python -m ndeflow.train -m recipe=A,B seed=1,2,3       a sweep, each job a process of its own

recipe=NAME        a recipe of the list below, of ./recipes, or path/to/file.yaml
data=files         your own file instead: data=files data.path=my.csv task=forecasting model=ode_forecaster
option=value       any option of the recipe: solver=tsit5 optimizer.lr=0.01 trainer.max_epochs=20 seed=3
check=true         one batch forward and backward: shapes, parameters, cost and expected minutes
resume=RUN_DIR     go on with a run where it stopped, exactly
init_from=RUN_DIR  start from the best weights of another run
logger=wandb       Weights & Biases; logger=tensorboard; metrics.csv is always written
trainer=gpu|ddp    other hardware

exit status: 0 done, 1 failed, 2 command not understood, 3 data absent, 130 or 143 interrupted
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status: 0, 1 failed, 2 wrong command line, 3 data absent, 130 or 143 interrupted."""
    from ndeflow.training.signals import Interrupted, raise_on_signals

    raise_on_signals()
    try:
        return command(list(sys.argv[1:] if arguments is None else arguments))
    except Interrupted as stop:
        return say("interrupted", stop.exit_status)
    except ConfigError as error:
        return say(error, MISUSED)


def command(words: list[str]) -> int:
    """Carry out a command line."""
    if {"-h", "--help"} & set(words):
        print(f"{USAGE}\n{listing()}")
        return 0
    sweep = bool({"-m", "--multirun"} & set(words))
    words = [word for word in words if word not in ("-m", "--multirun")]
    named = {word.lstrip("+").partition("=")[0].partition(".")[0] for word in words}
    if all("=" in word for word in words) and not named & {"recipe", "data", "resume"}:
        print(f"expected recipe=NAME, got none\n\n{listing()}\n\npython -m ndeflow.train --help tells more")
        return MISUSED
    keep_compiled()  # before Lightning is imported, which settles on a temporary folder
    if sweep:
        from ndeflow.sweep import run_all

        return run_all(words)
    from ndeflow import request

    asked = request.read(words)
    from ndeflow.running import run  # torch and all that takes seconds: only for a command that is understood

    return run(asked)


if __name__ == "__main__":
    sys.exit(main())
