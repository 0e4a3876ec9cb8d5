"""Several processes or threads that train one network: who they are, and what they tell each other.

A rank is one of them. MPI starts them and moves the host's data, NCCL moves a GPU's; there is no
transport of our own for gradients. `join` returns the communicator that the way of starting gives:

    mpirun, srun      `gpubackprop.distributed.mpi`, with mpi4py
    torchrun          `gpubackprop.distributed.sockets` for records, NCCL for a GPU's arrays
    threads           `gpubackprop.distributed.threads`
    none of these     `Alone`

>>> join(None).size
1
"""

from gpubackprop.distributed.contract import Alone, Communicator
from gpubackprop.distributed.launch import join
from gpubackprop.distributed.nccl import on_device
from gpubackprop.distributed.threads import in_threads

__all__ = ["Alone", "Communicator", "in_threads", "join", "on_device"]
