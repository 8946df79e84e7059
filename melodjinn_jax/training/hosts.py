"""The processes of one run, one for each host: how they find each other, and how they act as one."""

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from melodjinn_jax.errors import UserError

Result = TypeVar("Result")

_MESSAGE_BYTES = 4096
_NAMED = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def join_hosts() -> None:
    """Find the other processes of the run, if it has any; before any device is touched.

    Found without a flag: by `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`, which a launcher sets
    for a plain list of hosts; by the variables of a SLURM step of several tasks; and on TPU machines, of GKE or not, by
    what JAX asks of them. Anywhere else the process is alone.

    Raises:
        UserError: some of the three variables are set and some are not, or one is no number.
    """
    if any(name in os.environ for name in _NAMED):
        _join_named()
    elif int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        _use_cpu_network()
        jax.distributed.initialize(cluster_detection_method="slurm")
    elif _has_tpu():
        try:
            jax.distributed.initialize()
        except ValueError:  # JAX knows no cluster that this machine could belong to
            return


def _join_named() -> None:
    missing = [name for name in _NAMED if not os.environ.get(name)]
    if missing:
        raise UserError(f"{missing[0]} is not set: a run on several hosts needs all of {', '.join(_NAMED)}")
    address, *numbers = (os.environ[name] for name in _NAMED)
    for name, number in zip(_NAMED[1:], numbers, strict=True):
        if not number.isdecimal():
            raise UserError(f"{name} is {number}: it must be a number")
    count, index = map(int, numbers)
    if index >= count:
        raise UserError(f"JAX_PROCESS_ID is {index}: it must be below JAX_NUM_PROCESSES, {count}")
    if ":" not in address:
        raise UserError(f"JAX_COORDINATOR_ADDRESS is {address}: it must be HOST:PORT")
    if count > 1:
        _use_cpu_network()
        jax.distributed.initialize(address, count, index)


def _use_cpu_network() -> None:
    """Let CPU devices talk to those of other processes, which they do not by themselves; others do not care."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")


def _has_tpu() -> bool:
    devices = [*Path("/dev").glob("accel*"), *Path("/dev/vfio").glob("[0-9]*")]
    return bool(devices) and importlib.util.find_spec("libtpu") is not None


def is_primary() -> bool:
    """Whether this is the process that writes the files of the run."""
    return jax.process_index() == 0


def primary_first(act: Callable[[], Result]) -> Result:
    """`act()` in the first process, and when it is done, in all others; all processes call this alike.

    Raises:
        UserError: the first process's `act` did; it is raised in all processes, of which none is left waiting.
    """
    if jax.process_count() == 1:
        return act()
    if not is_primary():
        _raise_told(_tell(""))
        return act()
    try:
        result = act()
    except UserError as error:
        _tell(str(error))
        raise
    _tell("")
    return result


def _tell(message: str) -> str:
    """What the first process says, in all processes."""
    buffer = np.zeros(_MESSAGE_BYTES, np.uint8)
    content = message.encode()[:_MESSAGE_BYTES]
    buffer[: len(content)] = np.frombuffer(content, np.uint8)
    heard = np.asarray(multihost_utils.broadcast_one_to_all(buffer))
    return heard.tobytes().rstrip(b"\0").decode(errors="ignore")


def _raise_told(message: str) -> None:
    if message:
        raise UserError(message)


def leave_together() -> None:
    """Wait for all processes of the run, and go on alone."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("leave")
        jax.distributed.shutdown()
