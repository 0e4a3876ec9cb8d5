"""cuBLASLt, bound by ctypes: the twelve functions of which a matrix product is made.

Numbers, types and sizes are those of cublasLt.h and cublas_api.h of CUDA 12 and 13;
tests/test_cublaslt.py holds them to the library itself where it is installed. Matrices are column
by column here; `gpubackprop.backends.cupy.products` passes those of NumPy's order transposed.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from dataclasses import astuple, dataclass
from functools import cache
from typing import Any

from gpubackprop.backends import devices
from gpubackprop.errors import GpubackpropError

# cublasStatus_t, cudaDataType_t, cublasComputeType_t, cublasOperation_t
SUCCESS = 0
REAL_32F, REAL_64F = 0, 1
COMPUTE_32F, COMPUTE_64F, COMPUTE_32F_FAST_TF32 = 68, 70, 77
OP_N, OP_T = 0, 1

# Attributes, with the C type that the library wants for each.
TRANSPOSE_A, TRANSPOSE_B = (3, ctypes.c_int32), (4, ctypes.c_int32)
MAX_WORKSPACE, REDUCTION_SCHEMES = (1, ctypes.c_uint64), (3, ctypes.c_uint32)
ALIGNMENT_A, ALIGNMENT_B = (5, ctypes.c_uint32), (6, ctypes.c_uint32)
ALIGNMENT_C, ALIGNMENT_D = (7, ctypes.c_uint32), (8, ctypes.c_uint32)
# cublasLtReductionScheme_t: how the parts of a product that is split along K are added up.
REDUCE_IN_COMPUTE_TYPE = 2  # in the compute type and a fixed order, when all are there
REDUCE_IN_PLACE = 1  # in D and its type, one after another as blocks come: the order may vary
EPILOGUE, BIAS_ADDRESS = (7, ctypes.c_uint32), (8, ctypes.c_void_p)
MASK_ADDRESS, MASK_STRIDE = (11, ctypes.c_void_p), (12, ctypes.c_int64)

# cublasLtEpilogue_t: what is done with the product before it is stored. D is column by column.
DEFAULT = 1
BIAS = 4  # a number is added to each row of D
RELU_MASK_BIAS = 134  # that, then ReLU, whose sign goes to the mask (RELU_AUX_BIAS)
DRELU, DRELU_BIAS_GRADIENT = 136, 152  # 0 where the mask says so; and the sum of each row of D
BIAS_GRADIENT_B = 512  # the sum of each column of op(B) beside the product (BGRADB)
MASKED = (RELU_MASK_BIAS, DRELU, DRELU_BIAS_GRADIENT)
MASK_BITS = 128  # of which a column of a mask has a multiple (cublasLt.h, EPILOGUE_AUX_LD)

MOST_ALIGNED = 256  # bytes; the library does not ask for more
Attribute = tuple[int, Any]


class Algorithm(ctypes.Structure):
    """cublasLtMatmulAlgo_t: bytes that may be kept, for the same version and card."""

    _fields_ = (("data", ctypes.c_uint64 * 8),)


class HeuristicResult(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = (
        ("algorithm", Algorithm),
        ("workspace", ctypes.c_size_t),
        ("state", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    )


class CublasLtError(GpubackpropError, RuntimeError):
    """A function of cuBLASLt has failed."""


U64 = ctypes.c_uint64
_VOID, _INT = ctypes.c_void_p, ctypes.c_int
_SIZE, _U64, _I64 = ctypes.c_size_t, U64, ctypes.c_int64
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "Create": (_VOID,),
    "MatmulDescCreate": (_VOID, _INT, _INT),
    "MatmulDescSetAttribute": (_VOID, _INT, _VOID, _SIZE),
    "MatmulDescDestroy": (_VOID,),
    "MatrixLayoutCreate": (_VOID, _INT, _U64, _U64, _I64),
    "MatrixLayoutDestroy": (_VOID,),
    "MatmulPreferenceCreate": (_VOID,),
    "MatmulPreferenceSetAttribute": (_VOID, _INT, _VOID, _SIZE),
    "MatmulPreferenceDestroy": (_VOID,),
    "MatmulAlgoGetHeuristic": (
        _VOID, _VOID, _VOID, _VOID, _VOID, _VOID, _VOID, _INT, _VOID, _VOID,
    ),
    "MatmulAlgoCheck": (_VOID, _VOID, _VOID, _VOID, _VOID, _VOID, _VOID, _VOID),
    "Matmul": (
        _VOID, _VOID, _VOID, _VOID, _VOID, _VOID, _VOID, _VOID, _VOID, _VOID, _VOID, _VOID, _VOID,
        _VOID, _SIZE, _VOID,
    ),
}  # fmt: skip


class Library:
    """A loaded cuBLASLt; ``library.Matmul(...)`` is cublasLtMatmul, which raises if it fails.

    Parameters
    ----------
    handle : CDLL
        The shared library.
    path : str
        Where it was found, for messages.

    Attributes
    ----------
    version : int
        As cublasLtGetVersion returns it, e.g. 130002.
    """

    def __init__(self, handle: Any, path: str) -> None:
        self.path = path
        for name, arguments in _SIGNATURES.items():
            function = getattr(handle, f"cublasLt{name}")
            function.argtypes, function.restype = arguments, _INT
            setattr(self, name, self._checked(name, function))
        handle.cublasLtGetVersion.restype = _SIZE
        self.version = int(handle.cublasLtGetVersion())

    def __getattr__(self, name: str) -> Callable[..., None]:  # for the type checker
        raise AttributeError(name)

    def _checked(self, name: str, function: Any) -> Callable[..., None]:
        def call(*args: Any) -> None:
            status = function(*args)
            if status != SUCCESS:
                raise CublasLtError(f"cublasLt{name} returned status {status} ({self.path})")

        return call

    def made(self, name: str, *args: Any) -> Descriptor:
        """Return a new descriptor: cublasLt<name>Create(&descriptor, ...)."""
        return Descriptor(self, name, *args)

    def context(self) -> int:
        """Return a new cublasLtHandle_t of the current device; it lasts as long as the process."""
        handle = ctypes.c_void_p()
        self.Create(ctypes.byref(handle))
        assert handle.value is not None
        return handle.value


class Descriptor:
    """A descriptor of cuBLASLt, which is destroyed with this object.

    Parameters
    ----------
    library : Library
        The library that makes it.
    kind : {"MatmulDesc", "MatrixLayout", "MatmulPreference"}
        What it describes.
    *args : int
        Arguments of its creation.
    """

    def __init__(self, library: Library, kind: str, *args: int) -> None:
        self._library, self._kind, place = library, kind, ctypes.c_void_p()
        getattr(library, f"{kind}Create")(ctypes.byref(place), *args)
        self.address = place.value
        destroy = getattr(library, f"{kind}Destroy")
        weakref.finalize(self, destroy, self.address).atexit = False

    def set(self, attribute: Attribute, value: int) -> None:
        number, kind = attribute
        held = kind(value)
        set_attribute = getattr(self._library, f"{self._kind}SetAttribute")
        set_attribute(self.address, number, ctypes.byref(held), ctypes.sizeof(held))


@dataclass(frozen=True)
class Operand:
    """How a matrix lies in memory, column by column.

    Attributes
    ----------
    type : int
        cudaDataType_t.
    rows : int
        Rows as they are stored.
    columns : int
        Columns as they are stored.
    stride : int
        Elements from one column to the next.
    transpose : int
        OP_T if the product takes its transpose, else OP_N.
    aligned : int
        Bytes to which its address is aligned, at most MOST_ALIGNED.
    """

    type: int
    rows: int
    columns: int
    stride: int
    transpose: int
    aligned: int


@dataclass(frozen=True)
class Problem:
    """The product D = op(A) op(B): all that the choice of an algorithm depends on."""

    a: Operand
    b: Operand
    d: Operand
    compute: int
    workspace: int  # the most bytes of working memory
    epilogue: int = DEFAULT
    bias_aligned: int = 0  # bytes to which the address of bias or bias gradient is aligned
    schemes: int = REDUCE_IN_COMPUTE_TYPE  # the reduction schemes that an algorithm may have

    @property
    def scale_type(self) -> int:
        return REAL_64F if self.compute == COMPUTE_64F else REAL_32F

    @property
    def mask_stride(self) -> int:
        """Bits from one column of the mask to the next."""
        return -(-self.d.rows // MASK_BITS) * MASK_BITS

    @property
    def key(self) -> str:
        """What the algorithm is kept under."""
        parts = *astuple(self.a), *astuple(self.b), *astuple(self.d), self.compute
        more = () if self.epilogue == DEFAULT else (self.epilogue, self.bias_aligned)
        usual = self.schemes == REDUCE_IN_COMPUTE_TYPE
        schemes = () if usual else ("schemes", self.schemes)
        return " ".join(map(str, (*parts, *more, *schemes)))


class Product:
    """One product, described once and issued many times.

    Parameters
    ----------
    library : Library
        The library.
    context : int
        The handle of the device.
    problem : Problem
        Sizes and types.

    Attributes
    ----------
    algorithm : Algorithm
        What `issue` takes. `candidates` gives those that the library proposes.
    workspace : int
        Bytes of working memory that it wants.
    """

    def __init__(self, library: Library, context: int, problem: Problem) -> None:
        self.library, self.problem = library, problem
        self._descriptor = library.made("MatmulDesc", problem.compute, problem.scale_type)
        self._descriptor.set(TRANSPOSE_A, problem.a.transpose)
        self._descriptor.set(TRANSPOSE_B, problem.b.transpose)
        if problem.epilogue != DEFAULT:
            self._descriptor.set(EPILOGUE, problem.epilogue)
        if problem.epilogue in MASKED:
            self._descriptor.set(MASK_STRIDE, problem.mask_stride)
        self._layouts = [
            library.made("MatrixLayout", part.type, part.rows, part.columns, part.stride)
            for part in (problem.a, problem.b, problem.d)
        ]
        self._described = (
            context, self._descriptor.address, *(part.address for part in self._layouts),
            self._layouts[-1].address,
        )  # fmt: skip
        number = ctypes.c_double if problem.compute == COMPUTE_64F else ctypes.c_float
        self._one, self._zero = number(1), number(0)  # the library reads them when it is called
        self.algorithm, self.workspace = Algorithm(), 0

    def point_to(self, bias: int, mask: int = 0) -> None:
        """Set the addresses of bias, or its gradient, and mask for the calls that follow.

        The library reads their alignment when it is asked for algorithms, and the addresses when
        `issue` is called.
        """
        self._descriptor.set(BIAS_ADDRESS, bias)
        if self.problem.epilogue in MASKED:
            self._descriptor.set(MASK_ADDRESS, mask)

    def candidates(self, most: int) -> list[HeuristicResult]:
        """Return the algorithms of the problem's schemes that the library proposes, the best first.

        A capture must not be under way.
        """
        problem, preference = self.problem, self.library.made("MatmulPreference")
        preference.set(MAX_WORKSPACE, problem.workspace)
        preference.set(REDUCTION_SCHEMES, problem.schemes)
        preference.set(ALIGNMENT_A, problem.a.aligned)
        preference.set(ALIGNMENT_B, problem.b.aligned)
        preference.set(ALIGNMENT_C, problem.d.aligned)
        preference.set(ALIGNMENT_D, problem.d.aligned)
        results, count = (HeuristicResult * most)(), ctypes.c_int()
        self.library.MatmulAlgoGetHeuristic(
            *self._described, preference.address, most, results, ctypes.byref(count)
        )
        return [result for result in results[: count.value] if result.state == SUCCESS]

    def take(self, result: HeuristicResult) -> None:
        """Let `issue` use this algorithm."""
        self.algorithm, self.workspace = result.algorithm, int(result.workspace)

    def takes(self, algorithm: Algorithm) -> bool:
        """Take an algorithm that was kept, if the library says that it still fits."""
        result = HeuristicResult()
        try:
            self.library.MatmulAlgoCheck(
                *self._described, ctypes.byref(algorithm), ctypes.byref(result)
            )
        except CublasLtError:
            return False
        if result.state != SUCCESS or result.workspace > self.problem.workspace:
            return False
        self.algorithm, self.workspace = algorithm, int(result.workspace)
        return True

    def issue(
        self, a: int, b: int, d: int, workspace: int, stream: int, accumulate: bool = False
    ) -> None:
        """Queue the product of the matrices at these addresses on a stream.

        Parameters
        ----------
        a : int
            Address of A.
        b : int
            Address of B.
        d : int
            Address of D, which shares no memory with A and B.
        workspace : int
            Address of the working memory; 0 if none is wanted.
        stream : int
            The stream's address. A graph may be captured from it.
        accumulate : bool
            Whether to add the product to D.
        """
        context, described, of_a, of_b, of_c, of_d = self._described
        old = self._one if accumulate else self._zero
        self.library.Matmul(
            context, described, ctypes.byref(self._one), a, of_a, b, of_b,
            ctypes.byref(old), d, of_c, d, of_d, ctypes.byref(self.algorithm),
            workspace, self.workspace, stream,
        )  # fmt: skip


def load(major: int | None = None) -> Library | None:
    """Return the library that CuPy's own installation brings, or None if it does not load."""
    loaded = devices.load_cuda_library("cublasLt", major)
    return None if loaded is None else _bound(loaded[0], loaded[1])


@cache
def _bound(handle: Any, path: str) -> Library | None:
    try:
        return Library(handle, path)
    except AttributeError:  # a library without one of the functions
        return None


def alignment(address: int) -> int:
    """Return the power of two, at most MOST_ALIGNED, to which an address is aligned."""
    return min(MOST_ALIGNED, address & -address) if address else MOST_ALIGNED
