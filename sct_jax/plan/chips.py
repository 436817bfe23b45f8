"""What one chip can do at most, as its maker publishes it.

TPUs: the tables "System architecture" of https://cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e} (bfloat16 peak, HBM and
its bandwidth; v5e and v6e have a 2-D torus of 400 and 800 GB/s a chip in both directions together, so 50 and 100 GB/s
one way on each of 4 links; v5p a 3-D torus of 1200 GB/s, 100 GB/s on each of 6) and, for the links of v4, Jouppi et
al., TPU v4 (arXiv 2304.01433, table 4: 6 links of 50 GB/s). GPUs: NVIDIA's data sheets, dense rates without sparsity
(A100, H100, H200, L4, L40S) and the Ada white paper (RTX 4090, float32 accumulation); NVLink one way, or PCIe 4.0 x16.

TPUs multiply in bfloat16 only: XLA makes a float32 product at precision ``highest`` of 6 such passes and at ``high``
(our tf32) of 3, and rounds once at ``default``. Google publishes no float32 peak; we take the bfloat16 one divided by
the passes. On GPUs float32 at ``highest`` runs outside the tensor cores, at their float32 peak.
"""

import dataclasses

# How a matrix product or convolution is asked for: its operands' type and, for float32, JAX's precision.
PRECISIONS = ("bfloat16", "float32 default", "float32 high", "float32 highest")
TPU_PASSES = {"bfloat16": 1, "float32 default": 1, "float32 high": 3, "float32 highest": 6}


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peaks of one chip.

    Attributes:
      name: such as ``v5e``.
      operations: multiply-adds count as two; operations/s for each of ``PRECISIONS``.
      memory: bytes of HBM.
      memory_bandwidth: bytes/s.
      link_bandwidth: bytes/s one way of one link to other chips; 0: not known.
      axes: axes of the torus that the links make, two links each; 0: one link to a switch that all chips share.
    """

    name: str
    operations: dict[str, float]
    memory: float
    memory_bandwidth: float
    link_bandwidth: float
    axes: int = 0


def _tpu(name: str, tera: float, memory_gib: float, bandwidth: float, link: float, axes: int) -> Chip:
    operations = {precision: tera * 1e12 / TPU_PASSES[precision] for precision in PRECISIONS}
    return Chip(name, operations, memory_gib * 2**30, bandwidth * 1e9, link * 1e9, axes)


def _gpu(name: str, tera: tuple[float, float, float], memory_gb: float, bandwidth: float, link: float) -> Chip:
    bfloat16, tf32, float32 = (1e12 * rate for rate in tera)
    rates = (bfloat16, tf32, tf32, float32)
    return Chip(name, dict(zip(PRECISIONS, rates, strict=True)), memory_gb * 1e9, bandwidth * 1e9, link * 1e9)


TPUS = {
    "v4": _tpu("v4", 275, 32, 1200, 50, axes=3),
    "v5e": _tpu("v5e", 197, 16, 819, 50, axes=2),
    "v5p": _tpu("v5p", 459, 95, 2765, 100, axes=3),
    "v6e": _tpu("v6e", 918, 32, 1638, 100, axes=2),
}

# How JAX names the chips that are here; the first whose words are all in the name is taken.
_DEVICE_KINDS = {
    ("TPU v4",): TPUS["v4"],
    ("TPU v5 lite",): TPUS["v5e"],
    ("TPU v5e",): TPUS["v5e"],
    ("TPU v5",): TPUS["v5p"],
    ("TPU v6",): TPUS["v6e"],
    ("A100", "40GB"): _gpu("A100 40 GB", (312, 156, 19.5), 40, 1555, 300),
    ("A100",): _gpu("A100 80 GB", (312, 156, 19.5), 80, 2039, 300),
    ("H100", "PCIe"): _gpu("H100 PCIe", (756, 378, 51), 80, 2000, 31.5),
    ("H100",): _gpu("H100 SXM", (989, 494, 67), 80, 3350, 450),
    ("H200",): _gpu("H200", (989, 494, 67), 141, 4800, 450),
    ("L40S",): _gpu("L40S", (362, 183, 91.6), 48, 864, 31.5),
    ("L4",): _gpu("L4", (121, 60, 30.3), 24, 300, 31.5),
    ("RTX 4090",): _gpu("RTX 4090", (165.2, 82.6, 82.6), 24, 1008, 31.5),
}


def find(device_kind: str) -> Chip | None:
    """The chip that JAX calls ``device_kind``; None where no peaks are known, as of a CPU."""
    for words, chip in _DEVICE_KINDS.items():
        if all(word in device_kind for word in words):
            return chip
    return None
