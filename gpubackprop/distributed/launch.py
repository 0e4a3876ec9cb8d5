"""The communicator that the way of starting gives: mpirun, srun, torchrun, or one process alone."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from types import TracebackType

from gpubackprop.distributed import watch
from gpubackprop.distributed.contract import JOINED, Alone, Communicator, is_agreed
from gpubackprop.errors import DistributedError, OptionError

# Variables in which launchers say how many processes they have started: MPICH and Intel MPI, Open
# MPI, MVAPICH, PMIx under Slurm.
MPI_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def join(distributed: str | Communicator | None = "auto") -> Communicator:
    """Return the communicator of this process.

    Parameters
    ----------
    distributed : {"auto", "mpi", "torchrun"}, Communicator or None
        "auto" asks the variables that launchers set: those of torchrun, then those of MPI; without
        any it is a process alone, and so is None. A communicator is returned as it is.

    Returns
    -------
    Communicator
        The same object at each call.

    Raises
    ------
    OptionError
        There is no such name.
    DistributedError
        The launcher has started several processes that cannot reach each other.
    MissingDependencyError
        mpi4py is missing.

    Examples
    --------
    >>> join(None)
    Alone(rank 0 of 1)
    """
    if isinstance(distributed, Communicator):
        return distributed
    if distributed is None:
        return Alone()
    if distributed not in ("auto", "mpi", "torchrun"):
        raise OptionError(
            f"distributed is {distributed!r} but must be None, 'auto', 'mpi', 'torchrun' or a "
            f"communicator of gpubackprop.distributed"
        )
    if not JOINED:
        kind = launcher(os.environ) if distributed == "auto" else distributed
        if kind == "none":
            return Alone()
        JOINED.append(_connected(kind))
    return JOINED[0]


def launcher(environment: Mapping[str, str]) -> str:
    """Return who has started several processes with these variables.

    Parameters
    ----------
    environment : mapping
        Variables and their values.

    Returns
    -------
    str
        "torchrun", "mpi" or "none".

    Examples
    --------
    >>> launcher({"PMI_SIZE": "4"}), launcher({"PMI_SIZE": "1"}), launcher({})
    ('mpi', 'none', 'none')
    """
    if all(name in environment for name in TORCHRUN):
        return "torchrun" if _number(environment, "WORLD_SIZE") > 1 else "none"
    return "mpi" if _mpi_size(environment) > 1 else "none"


def _mpi_size(environment: Mapping[str, str]) -> int:
    size = max(_number(environment, name) for name in MPI_SIZES)
    pmi = "PMIX_RANK" in environment or "PMI_RANK" in environment or "PMI_FD" in environment
    return max(size, _number(environment, "SLURM_NTASKS") if pmi else 1)


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    return int(text) if text.isdigit() else 1


def _connected(kind: str) -> Communicator:
    if kind == "torchrun":
        from gpubackprop.distributed.sockets import Sockets

        ranks: Communicator = Sockets.of_torchrun(os.environ)
    else:
        from gpubackprop.distributed.mpi import Mpi

        ranks = Mpi()
        started = _mpi_size(os.environ)
        if ranks.size == 1 and started > 1:
            raise DistributedError(
                f"{started} processes were started, but mpi4py has found only this one: it was "
                f"built for another MPI than this mpirun; use the mpirun of mpi4py's MPI (pip "
                f'install "gpubackprop[mpi]" brings both), or install mpi4py for this one'
            )
    if ranks.size > 1:
        watch.start(ranks)
        _end_all_after_an_error(ranks)
    return ranks


def _end_all_after_an_error(ranks: Communicator) -> None:
    """Let an exception that ends this process end the others, which would wait for ever.

    An error that all ranks share is rank 0's to show, and they all end by themselves.
    """
    before = sys.excepthook

    def hook(
        kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        shared = is_agreed(error)
        if ranks.rank == 0 or not shared:
            before(kind, error, traceback)
        if not shared:
            ranks.abort(kind.__name__)

    sys.excepthook = hook
