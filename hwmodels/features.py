"""What a cost model knows about a kernel: one row of numbers per kernel, for many at once.

Every feature is documented in `FEATURES`, with its unit. Sizes enter as binary logarithms,
because costs are products of them; what alignment to the hardware's steps wastes enters as the
ratio of rounded-up to real size, because that is the factor it costs. Sizes saturate (`_LIMITS`):
beyond them cost is proportional to the baseline, so larger kernels look alike and predictions
extrapolate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from onnxnas.hwmodels.baseline import TERMS
from onnxnas.hwmodels.kernel_table import KernelTable

_STEPS = (4, 8, 16, 32)
_SIZES = (
    "in_channels", "in_height", "in_width", "out_channels", "out_height", "out_width", "macs",
    "in_bytes", "operand_bytes", "out_bytes", "weights", "live_bytes", "live_blocks", "groups",
    "shared_bytes", "rows_in", "rows_out", "far_in", "far_out", "far_rows",
)  # fmt: skip
_PLAIN = (
    "window_height", "window_width", "stride_height", "stride_width", "dilation_height",
    "entropy_bits", "rice_bits", "reads_input", "writes_output", "readers", "operands",
    "offset_step", "steps", "cascade",
)  # fmt: skip
_LIMITS: Mapping[str, float] = {
    **dict.fromkeys(("in_height", "in_width", "out_height", "out_width"), 6.0),
    **dict.fromkeys(("in_channels", "out_channels", "groups"), 10.0),
    **dict.fromkeys(("in_bytes", "operand_bytes", "out_bytes", "live_bytes", "live_blocks"), 22.0),
    **dict.fromkeys(("shared_bytes", "weights", "weight_bytes"), 20.0),
    **dict.fromkeys(("rows_in", "rows_out", "far_in", "far_out", "far_rows"), 20.0),
    "macs": 22.0,
    "baseline": 16.0,
}
"""Largest logarithm that is told apart."""
_RATIO_LIMIT = 8.0
"""Of logarithms of ratios between bounds and between neighbours."""
_NEIGHBOUR_SIZES = ("out_channels", "out_bytes", "in_bytes", "macs", "weights")

GROUPS: Mapping[str, tuple[str, ...]] = {
    "conv": ("Conv", "GroupedConv", "ConvTranspose", "Gemm", "MatMul"),
    "depthwise": ("DepthwiseConv",),
    "pool": ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean"),
    "reduction": ("ArgMax", "Softmax", "LogSoftmax"),
    "resize": tuple(
        f"Resize{m}{c}" for m in ("Nearest", "Linear", "Cubic") for c in ("", "Corners")
    ),
    "slope": ("PRelu",),
    "layout": ("Concat", "Split", "Slice", "Pad", "Reshape", "Flatten", "Transpose", "Cast"),
    "other": (),
}
"""Operators whose costs follow the same rules; ``other`` takes the rest. Each group has trees of
its own (`grouped_trees`)."""

FEATURES: Mapping[str, str] = {
    **{f"group_{g}": f"1 for kernels of the group {g!r}, else 0" for g in GROUPS},
    "op": "code of the operator, its place in the model's vocabulary; -1 unknown",
    "activation": "code of the fused activation",
    "log_baseline": "log2 of the baseline, cycles",
    **{f"slack_{t}": f"log2 of the bound by '{t}' over the baseline" for t in TERMS},
    **{f"log_{n}": f"log2(1 + {n}); bytes are those of int8" for n in _SIZES},
    **{n: f"{n}, as in Kernel" for n in _PLAIN},
    "macs_per_byte": "log2 of multiply-accumulates per byte read or written, weights included",
    "log_weight_bytes": "log2(1 + estimated bytes of encoded weights)",
    **{f"in_waste_{s}": f"input channels per group, rounded up to {s}, over real" for s in _STEPS},
    **{f"out_waste_{s}": f"output channels, rounded up to {s}, over real" for s in _STEPS},
    **{
        f"group_waste_{s}": f"output channels per group, rounded up to {s}, over real" for s in (8,)
    },
    **{f"width_waste_{s}": f"output width, rounded up to {s}, over real" for s in (2, 4, 8)},
    **{f"height_waste_{s}": f"output height, rounded up to {s}, over real" for s in (2, 4, 8)},
    "window_waste_4": "window elements, rounded up to 4, over real",
    "scale_height": "log2 of output height over input height",
    "scale_width": "log2 of output width over input width",
    "extra_padding": "begin padding differs from half of all padding: 1, else 0",
    "weights_near_share": "bytes of SRAM for weights over their stored bytes, at most 2",
    "rolling_in_rows": "log2 of 1 + input rows that a rolling buffer before it holds",
    "rolling_out_rows": "log2 of 1 + output rows that a rolling buffer after it holds",
    "far_in_share": "bytes read from DRAM over all bytes read",
    "far_out_share": "bytes written to DRAM over all bytes written",
    "rows_in_share": "bytes read that lie row by row over all bytes read",
    "padding": "rows and columns of padding, top + left + bottom + right",
    "channel_ratio": "log2 of output over input channels",
    "age": "kernels since the oldest input was computed",
    "gap": "kernels since the latest input was computed; 1 in a chain",
    "last_use": "kernels until the output is first read; 1 in a chain",
    "live_share": "own input and output bytes over all live bytes",
    "shared_share": "input bytes that others read too, over all input bytes",
    "producer_offset_step": "offset_step of the producer, 0 for none",
    "consumer_offset_step": "offset_step of the consumer, 0 for none",
    "consumer_channels_waste": "output channels of the consumer, rounded up to 16, over real",
    "producer_shared": "number of kernels that read the output of the producer",
    "live_before": "log2(1 + live bytes) of the kernel before in execution order",
    "live_after": "log2(1 + live bytes) of the kernel after in execution order",
    "kept": "kernels until the output is last read; 1 in a chain",
    "output_contention": "log2(1 + most live_blocks while the output exists)",
    "input_contention": "log2(1 + most live_blocks while the producer's output exists)",
    "live_peak": "log2(1 + most live bytes) in the network",
    "before_op": "operator code of the kernel before in execution order, -1 for none",
    "before_baseline": "log2 of the baseline of that kernel over its own",
    "before_slack_weights": "log2 of that kernel's bound by weights over its baseline",
    "after_op": "operator code of the kernel after in execution order, -1 for none",
    "after_baseline": "log2 of the baseline of that kernel over its own",
    "after_slack_weights": "log2 of that kernel's bound by weights over its baseline",
    "producer_op": "operator code of the latest kernel it reads from, -1 for none",
    "producer_window": "window height of that kernel",
    "producer_stride": "stride of that kernel",
    "consumer_op": "operator code of the first kernel that reads it, -1 for none",
    "consumer_window": "window height of that kernel",
    "consumer_stride": "stride of that kernel",
    **{f"producer_{n}": f"log2(1 + {n}) of the producer, 0 for none" for n in _NEIGHBOUR_SIZES},
    **{f"consumer_{n}": f"log2(1 + {n}) of the consumer, 0 for none" for n in _NEIGHBOUR_SIZES},
}
"""Name -> meaning and unit, in column order."""


def feature_matrix(
    table: KernelTable,
    bounds: NDArray[np.float64],
    base: NDArray[np.float64],
    ops: Sequence[str],
    activations: Sequence[str],
) -> NDArray[np.float32]:
    """Features of all kernels, [rows, len(FEATURES)].

    Args:
        table: the kernels.
        bounds: of the baseline, cycles per row and term.
        base: the baseline's guess, cycles per row.
        ops: vocabulary of operators.
        activations: vocabulary of activations.
    """
    f: dict[str, NDArray[np.float64]] = {}
    groups_of = group_names(table.ops)
    for group in GROUPS:
        f[f"group_{group}"] = (groups_of == group) * 1.0
    codes = _codes(table.ops, ops)
    f["op"], f["activation"] = codes, _codes(table.activations, activations)
    f["log_baseline"] = _log(base, "baseline")
    slack = np.clip(np.log2(bounds / base[:, None]), -_RATIO_LIMIT, _RATIO_LIMIT)
    for i, term in enumerate(TERMS):
        f[f"slack_{term}"] = slack[:, i]
    for name in _SIZES:
        f[f"log_{name}"] = _log(table[name], name)
    for name in _PLAIN:
        f[name] = table[name]
    weight_bytes = table["stored_weights"]
    moved = table["in_bytes"] + table["operand_bytes"] + table["out_bytes"] + weight_bytes
    f["macs_per_byte"] = np.log2((1 + table["macs"]) / (1 + moved))
    f["log_weight_bytes"] = _log(weight_bytes, "weight_bytes")
    groups, cout = table["groups"], table["out_channels"]
    for step in _STEPS:
        f[f"in_waste_{step}"] = _waste(table["in_channels"] / groups, step)
        f[f"out_waste_{step}"] = _waste(cout, step)
    f["group_waste_8"] = _waste(cout / groups, 8)
    for step in (2, 4, 8):
        f[f"width_waste_{step}"] = _waste(table["out_width"], step)
        f[f"height_waste_{step}"] = _waste(table["out_height"], step)
    f["window_waste_4"] = _waste(table["window_height"] * table["window_width"], 4)
    f["scale_height"] = np.log2(table["out_height"] / table["in_height"])
    f["scale_width"] = np.log2(table["out_width"] / table["in_width"])
    top, bottom = table["pad_top"], table["pad_bottom"]
    left, right = table["pad_left"], table["pad_right"]
    f["extra_padding"] = ((top != (top + bottom) // 2) | (left != (left + right) // 2)) * 1.0
    f["padding"] = top + bottom + left + right
    read = np.maximum(table["in_bytes"] + table["operand_bytes"], 1)
    f["weights_near_share"] = np.minimum(table["weights_near"] / np.maximum(weight_bytes, 1), 2)
    for side in ("in", "out"):
        row = table[f"{side}_width"] * np.ceil(table[f"{side}_channels"] / 16) * 16
        f[f"rolling_{side}_rows"] = np.log2(1 + table[f"rolling_{side}"] / row)
    f["far_in_share"] = np.minimum(table["far_in"] / read, 4)
    f["far_out_share"] = np.minimum(table["far_out"] / np.maximum(table["out_bytes"], 1), 4)
    f["rows_in_share"] = np.minimum(table["rows_in"] / read, 4)
    f["channel_ratio"] = np.log2(cout / table["in_channels"])
    f.update(_schedule(table, codes, base, slack))
    f.update(_data_neighbours(table, codes))
    return np.stack([f[name] for name in FEATURES], axis=1).astype(np.float32)


def group_names(ops: NDArray[np.str_]) -> NDArray[np.str_]:
    """The group of each operator."""
    home = {op: group for group, members in GROUPS.items() for op in members}
    distinct, inverse = np.unique(ops, return_inverse=True)
    names = np.array([home.get(str(op), "other") for op in distinct], np.str_)
    return names[inverse] if len(ops) else np.zeros(0, np.str_)


def _schedule(
    table: KernelTable,
    codes: NDArray[np.float64],
    base: NDArray[np.float64],
    slack: NDArray[np.float64],
) -> dict[str, NDArray[np.float64]]:
    """Features of the kernels before and after in execution order, and of lifetimes."""
    rows = np.arange(len(table))
    network = table.network
    live = table["live_bytes"]
    f: dict[str, NDArray[np.float64]] = {}
    own = table["in_bytes"] + table["operand_bytes"] + table["out_bytes"]
    f["live_share"] = own / np.maximum(live, 1)
    inputs = table["in_bytes"] + table["operand_bytes"]
    f["shared_share"] = table["shared_bytes"] / np.maximum(inputs, 1)
    peak = np.maximum.reduceat(live, table.starts) if len(table) else live
    f["live_peak"] = _log(peak[network], "live_bytes")
    weights = TERMS.index("weights")
    for name, column in (("before", "previous"), ("after", "following")):
        known = table[column] >= 0
        other = np.maximum(table[column], 0).astype(np.int64)
        f[f"live_{name}"] = np.where(known, _log(live[other], "live_bytes"), 0.0)
        f[f"{name}_op"] = np.where(known, codes[other], -1)
        ratio = np.clip(np.log2(base[other] / base), -_RATIO_LIMIT, _RATIO_LIMIT)
        f[f"{name}_baseline"] = np.where(known, ratio, -2 * _RATIO_LIMIT)
        f[f"{name}_slack_weights"] = np.where(known, slack[other, weights], -2 * _RATIO_LIMIT)
    producer, oldest, consumer = table["producer"], table["oldest_producer"], table["consumer"]
    f["age"] = np.where(oldest >= 0, rows - oldest, 0)
    f["gap"] = np.where(producer >= 0, rows - producer, 0)
    last = table["last_consumer"]
    f["kept"] = np.where(last >= 0, last - rows, 0)
    contention = _log(_most(table["live_blocks"], rows, np.maximum(last, rows)), "live_blocks")
    f["output_contention"] = contention
    latest = producer.astype(np.int64)
    f["input_contention"] = np.where(latest >= 0, contention[np.maximum(latest, 0)], 0)
    f["last_use"] = np.where(consumer >= 0, consumer - rows, 0)
    return f


def _data_neighbours(
    table: KernelTable, codes: NDArray[np.float64]
) -> dict[str, NDArray[np.float64]]:
    """Features of the kernels a kernel reads from and is read by."""
    f: dict[str, NDArray[np.float64]] = {}
    for name in ("producer", "consumer"):
        index = table[name].astype(np.int64)
        known = index >= 0
        index = np.maximum(index, 0)
        f[f"{name}_op"] = np.where(known, codes[index], -1)
        f[f"{name}_window"] = np.where(known, table["window_height"][index], 0)
        f[f"{name}_offset_step"] = np.where(known, table["offset_step"][index], 0)
        f[f"{name}_stride"] = np.where(known, table["stride_height"][index], 0)
        if name == "producer":
            f["producer_shared"] = np.where(known, table["readers"][index], 0)
        else:
            waste = _waste(table["out_channels"], 16)
            f["consumer_channels_waste"] = np.where(known, waste[index], 0)
        for size in _NEIGHBOUR_SIZES:
            f[f"{name}_{size}"] = np.where(known, _log(table[size][index], size), 0)
    return f


def _log(values: NDArray[np.float64], name: str) -> NDArray[np.float64]:
    result: NDArray[np.float64] = np.minimum(np.log2(1 + values), _LIMITS[name])
    return result


def _codes(names: NDArray[np.str_], vocabulary: Sequence[str]) -> NDArray[np.float64]:
    distinct, inverse = np.unique(names, return_inverse=True)
    places = {name: i for i, name in enumerate(vocabulary)}
    codes = np.array([places.get(str(n), -1) for n in distinct], np.float64)
    return codes[inverse] if len(names) else np.zeros(0)


def _most(
    values: NDArray[np.float64], first: NDArray[np.int64], last: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Largest value of each range, both ends included."""
    ends = np.stack([first, last.astype(np.int64) + 1], axis=1).ravel()
    result: NDArray[np.float64] = np.maximum.reduceat(np.append(values, 0.0), ends)[::2]
    return result


def _waste(values: NDArray[np.float64], step: int) -> NDArray[np.float64]:
    return np.ceil(values / step) * step / np.maximum(values, 1e-9)
