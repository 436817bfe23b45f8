"""``sct-jax plan``: the real train step, compiled for a slice that is not there: what fits, what moves, how fast.

Read ``run.py`` first. ``topology.py`` finds the chips and ``chips.py`` their published peaks; ``program.py`` compiles;
``operations.py`` counts what the step asks for and ``hlo.py``, ``traffic.py``, ``collectives.py`` what the compiled
program does; ``floor.py`` makes seconds of both and ``scaling.py`` continues them to more chips.
"""
