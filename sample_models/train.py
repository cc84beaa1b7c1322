"""Train a sample model: `python sample_models/train.py camera_classifier`.

Renders the data, trains the network and, as a control, the same network at half of every width,
then writes NAME.onnx and its card NAME.json beside this file. Needs `pip install onnxnas[train]`;
uses a GPU if there is one.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from datasets import render
from networks import NETWORKS, PresenceDetector
from scenes import DETECTED, OBJECTS, REGIONS, SPLITS
from torch import Tensor, nn
from torch.nn import functional as F

from onnxnas.evaluate import evaluate

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Task:
    """How one model is trained and judged."""

    classes: tuple[str, ...]
    metric: str  # of onnxnas evaluate
    loss: Callable[[Any, Tensor, dict[str, Tensor]], Tensor]
    train_rows: int
    test_rows: int
    epochs: int
    rate: float
    dynamic_batch: bool = False
    keep_batchnorm: bool = False  # else the exporter folds it into the convolutions


# --- losses ---------------------------------------------------------------------------------


def classifier_loss(net: Any, x: Tensor, truth: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(net(x), truth["labels"].long(), label_smoothing=0.03)


def segmenter_loss(net: Any, x: Tensor, truth: dict[str, Tensor]) -> Tensor:
    """Cross-entropy; small regions count more than their few pixels."""
    labels = truth["labels"].long()
    share = torch.bincount(labels.flatten(), minlength=len(REGIONS)) / labels.numel()
    return F.cross_entropy(net(x), labels, weight=(share + 0.01).rsqrt())


def detector_loss(net: PresenceDetector, x: Tensor, truth: dict[str, Tensor]) -> Tensor:
    """Focal loss on classes (Lin et al. 2017) and generalised IoU on boxes (Rezatofighi 2019).

    An anchor is positive where it overlaps a box by half, or is among the box's best four.
    """
    offsets, logits = net.raw(x)
    boxes, labels = truth["boxes"], truth["labels"]
    overlap = _overlap(net.corners[None, :, None], boxes[:, None])[0]  # (N, anchors, most)
    overlap = overlap.masked_fill(labels[:, None] < 0, -1.0)
    fourth = overlap.topk(4, dim=1).values[:, 3:].clamp(min=0.15)
    best, which = (overlap + (overlap >= fourth)).max(2)
    positive, unclear = best >= 0.5, (best >= 0.4) & (best < 0.5)

    wanted = torch.zeros_like(logits)
    of_anchor = labels.gather(1, which)
    wanted[positive] = F.one_hot(of_anchor[positive], logits.shape[2]).to(wanted.dtype)
    raw = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    miss = (wanted - logits.sigmoid()).abs()
    focal = (0.25 + 0.5 * wanted) * miss.square() * raw * ~unclear[..., None]

    predicted = (net.corners + offsets * net.reach)[positive]
    target = boxes.gather(1, which[..., None].expand(-1, -1, 4))[positive]
    inside, union, hull = _overlap(predicted, target)
    giou = inside - (hull - union) / hull
    count = positive.sum().clamp(min=1)
    return (focal.sum() * 2 + (1 - giou).sum() * 1.5) / count


def _overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """IoU, union and hull of boxes (..., 4)."""

    def area(low: Tensor, high: Tensor) -> Tensor:
        return (high - low).clamp(min=0).prod(-1)

    both = area(torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:]))
    union = area(a[..., :2], a[..., 2:]) + area(b[..., :2], b[..., 2:]) - both
    hull = area(torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:]))
    return both / union.clamp(min=1e-9), union, hull.clamp(min=1e-9)


TASKS = {
    "camera_classifier": Task(
        OBJECTS, "top1", classifier_loss, 8000, 2000, 12, 2e-3, dynamic_batch=True
    ),
    "presence_detector": Task(
        DETECTED, "map", detector_loss, 6000, 1000, 10, 2e-3, keep_batchnorm=True
    ),
    "room_segmenter": Task(REGIONS, "miou", segmenter_loss, 2400, 400, 10, 3e-3),
}

# --- training -------------------------------------------------------------------------------


def fit(name: str, width: float, seed: int, data: dict[str, Tensor]) -> nn.Module:
    """Train one network on rendered rows: AdamW, one cycle, mirrored and colour-swapped images."""
    task, batch = TASKS[name], 16
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(seed)
    net = NETWORKS[name](len(task.classes), width).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), task.rate, weight_decay=0.02)
    rows = len(data["labels"])
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, task.rate, total_steps=task.epochs * (rows // batch), pct_start=0.25
    )
    started = time.monotonic()
    for epoch in range(task.epochs):
        total = 0.0
        for picked in torch.randperm(rows)[: rows // batch * batch].view(-1, batch):
            x, truth = _augmented({key: value[picked] for key, value in data.items()})
            loss = task.loss(
                net,
                x.to(device, memory_format=torch.channels_last),
                {key: value.to(device) for key, value in truth.items()},
            )
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        minutes = (time.monotonic() - started) / 60
        done = f"{name} x{width} epoch {epoch + 1}/{task.epochs}"
        print(f"{done} loss {total / (rows // batch):.3f} {minutes:.1f} min", file=sys.stderr)
    return net.cpu().eval()


def _augmented(rows: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """A batch as floats, half of the time mirrored, its colour channels in any order."""
    truth = {key: value for key, value in rows.items() if key != "image"}
    x = rows["image"].float()[:, torch.randperm(3)] / 255
    if torch.rand(()) < 0.5:
        x = x.flip(3)
        if "boxes" in truth:
            x0, y0, x1, y1 = truth["boxes"].unbind(2)
            truth["boxes"] = torch.stack([1 - x1, y0, 1 - x0, y1], 2)
        elif truth["labels"].ndim == 3:
            truth["labels"] = truth["labels"].flip(2)
    return x, truth


def export(name: str, net: nn.Module, path: Path) -> None:
    task, network = TASKS[name], NETWORKS[name]
    names = ["image", *network.outputs]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's advice to use its successor
        torch.onnx.export(
            net, (torch.rand(1, 3, network.size, network.size),), str(path),
            input_names=names[:1], output_names=names[1:], opset_version=14, dynamo=False,
            training=torch.onnx.TrainingMode.PRESERVE if task.keep_batchnorm
            else torch.onnx.TrainingMode.EVAL,
            dynamic_axes={n: {0: "N"} for n in names} if task.dynamic_batch else None,
        )  # fmt: skip


def count_macs(net: nn.Module, size: int) -> int:
    """Multiply-accumulates of the convolutions and linear layers on one image."""
    total = 0

    def add(layer: nn.Module, _: Any, y: Tensor) -> None:
        nonlocal total
        total += y[0].numel() * layer.weight[0].numel() if y.ndim == 4 else layer.weight.numel()

    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(add)
    with torch.no_grad():
        net(torch.rand(1, 3, size, size))
    return total


def judge(name: str, path: Path, test: dict[str, Any]) -> dict[str, Any]:
    """The exported file's metrics on the test split, by name."""
    measured = evaluate(onnx.load(path), TASKS[name].metric, test)
    return {
        m.name: {
            "value": round(m.value, 4),
            "interval": [round(end, 4) for end in m.interval or ()],
            "rows": m.rows,
        }
        for m in measured
    }


def fingerprint(test: dict[str, Any]) -> dict[str, Any]:
    """What tells data rendered elsewhere from ours, rounding of single pixels aside."""
    first = [row.astype(np.float64) / 255 for row in test["image"][:4]]
    return {
        "mean_pixels": [round(row.mean(), 5) for row in first],
        "label_sums": [int(np.maximum(row + 1, 0).sum()) for row in test["labels"][:4]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a sample model.")
    parser.add_argument("name", choices=sorted(TASKS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--width", type=float, default=1.0, help="scales every channel count")
    parser.add_argument("--no-control", action="store_true", help="skip the half-width network")
    parser.add_argument("--output", type=Path, default=HERE, help="folder of the files")
    options = parser.parse_args()
    name, task = options.name, TASKS[options.name]
    options.output.mkdir(parents=True, exist_ok=True)

    started = time.monotonic()
    data = {k: torch.from_numpy(v) for k, v in render(name, "train", task.train_rows).items()}
    test = render(name, "test", task.test_rows)
    printed = fingerprint(test)
    test["image"] = test["image"].astype(np.float32) / np.float32(255)
    path = options.output / f"{name}.onnx"
    net = fit(name, options.width, options.seed, data)
    export(name, net, path)
    card: dict[str, Any] = {
        "name": name,
        "command": f"python sample_models/train.py {name} --seed {options.seed}",
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "input": "image (N, 3, height, width), RGB, pixels / 255",
        "classes": task.classes,
        "data": f"rendered by scenes.py; rows 0.. of each split, seeds {SPLITS}",
        "first_test_rows": printed,
        "train_rows": task.train_rows,
        "epochs": task.epochs,
        "seed": options.seed,
        "width": options.width,
        "parameters": sum(p.numel() for p in net.parameters()),
        "macs": count_macs(net, NETWORKS[name].size),
        "test": judge(name, path, test),
    }
    print(json.dumps(card["test"]), file=sys.stderr)
    if not options.no_control:
        control = options.output / f"{name}.half.onnx"
        export(name, fit(name, options.width / 2, options.seed, data), control)
        card["test_at_half_width"] = judge(name, control, test)
        control.unlink()
        print(json.dumps(card["test_at_half_width"]), file=sys.stderr)
    card["minutes"] = round((time.monotonic() - started) / 60, 1)
    card["torch"] = torch.__version__
    path.with_suffix(".json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
