"""Train FastInst on a data set in COCO format.

    python train.py --data DATA --model fastinst-d3-r50-640 --weights resnet50.pth
    python train.py --data DATA --model fastinst-d1-r18-192 --epochs 60 --lr 5e-4
    torchrun --nproc-per-node 4 train.py --data DATA --weights fastinst-d3-r50-640
    python train.py --resume runs/fastinst-d3-r50-640

DATA is a folder in any common COCO layout, or a JSON file. Everything goes to one folder:
last.pt, best.pt (by mask AP) and log.csv.
"""

import argparse
import math
import os
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm

import fastinst
from fastinst.config import parse_overrides
from fastinst.data.augment import Augmentation
from fastinst.data.coco import check_images, load_coco
from fastinst.data.dataset import Dataset
from fastinst.data.layouts import find_coco
from fastinst.data.loader import EpochSampler, TrainingImages, collate
from fastinst.device import choose_device
from fastinst.errors import InputError, run
from fastinst.files import make_output_folder
from fastinst.interrupts import Interrupts, ignore_interrupts
from fastinst.log import LOSS_KINDS, open_log
from fastinst.metrics.coco import evaluate, format_table
from fastinst.optimizer import DROPS, lr_factor, parameter_groups
from fastinst.weights import (
    load_model,
    load_weights,
    read_checkpoint,
    save_checkpoint,
)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", help="folder or COCO JSON to train on")
    add("--val", help="folder or COCO JSON to evaluate on [found in --data]")
    add("--model", default="fastinst-d3-r50-640", help=", ".join(fastinst.list_models()))
    add("--set", nargs="*", default=[], metavar="KEY=VALUE", help="fields of ModelConfig")
    add("--size", type=int, help="shorter image edge, for training and testing [the model's]")
    add(
        "--weights",
        help="start from a checkpoint, a release .pth, a model name or an ImageNet backbone",
    )
    add("--resume", help="continue a run: its folder or its last.pt; other options override")
    add("--output", help="folder of the run [runs/MODEL]")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=float, help="[50]")
    length.add_argument("--steps", type=int, help="instead of --epochs")
    add("--batch-size", type=int, default=16, help="over all processes")
    add("--lr", type=float, default=1e-4)
    add("--backbone-lr", type=float, help="factor of --lr [0.1; from scratch 1]")
    add("--weight-decay", type=float, default=0.05)
    add("--warmup", type=int, default=10, help="steps")
    add("--clip", type=float, default=0.0, help="largest gradient norm, 0 for none")
    add("--flip-only", action="store_true", help="no random crop and no random size")
    add("--amp", choices=("auto", "off", "float16", "bfloat16"), default="auto")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    add("--workers", type=int, default=min(4, os.cpu_count() or 1))
    add("--eval-every", type=int, help="steps between evaluations and saves [an epoch]")
    add("--seed", type=int, default=0)
    add("--skip-image-check", action="store_true", help="do not decode every image first")
    args = parser.parse_args()
    if args.resume:
        path = Path(args.resume)
        path = path / "last.pt" if path.is_dir() else path
        training = read_checkpoint(path).get("training")
        if not training:
            raise InputError(f"{path} holds no training state to resume; pass it as --weights")
        saved = training["arguments"] | {"output": str(path.parent)}
        if args.epochs or args.steps:
            saved |= {"epochs": None, "steps": None}
        parser.set_defaults(**saved)
        args = parser.parse_args()
        args.resume = str(path)
        for fixed in ("model", "set", "size", "batch_size", "seed"):
            if getattr(args, fixed) != saved[fixed]:
                raise InputError(f"--{fixed.replace('_', '-')} cannot change when resuming {path}")
    if not args.data:
        parser.error("--data is needed")
    for name in ("batch_size", "lr", "epochs", "steps", "size", "eval_every"):
        if getattr(args, name) is not None and not getattr(args, name) > 0:
            parser.error(f"--{name.replace('_', '-')} must be positive")
    for name in ("backbone_lr", "weight_decay", "warmup", "clip", "workers"):
        if getattr(args, name) is not None and not getattr(args, name) >= 0:
            parser.error(f"--{name.replace('_', '-')} must not be negative")
    args.output = args.output or f"runs/{args.model}"
    return args


class TrainingStep(nn.Module):
    """The losses as a forward pass, which is what DistributedDataParallel wraps."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, batch, targets):
        return self.model.loss(batch, targets)


def find_data(args: argparse.Namespace, say: Callable) -> tuple[Dataset, Dataset | None]:
    """The training set, and the validation set or None, with the reason said."""
    train = load_coco(*find_coco(args.data, "train"))
    if args.val:
        return train, load_coco(*find_coco(args.val, "val"))
    try:
        json_path, image_folder = find_coco(args.data, "val")
    except InputError as error:
        say(f"no validation set, so there will be no AP; pass --val. The reason: {error}")
        return train, None
    if json_path == train.source:
        say("no validation set beside the training set, so there will be no AP; pass --val")
        return train, None
    return train, load_coco(json_path, image_folder)


def build_model(args: argparse.Namespace, num_classes: int, say: Callable) -> nn.Module:
    """A model with the weights that the arguments ask for."""
    if args.resume:
        return load_model(args.resume)[0]
    options = parse_overrides(args.set)
    if args.size:
        longest = round(args.size * 4 / 3)
        options |= {"test_short_edge": args.size, "test_max_edge": longest}
        options |= {"train_short_edge": args.size, "train_max_edge": longest}
    if not args.weights:
        if options.setdefault("frozen_batch_norm", False):
            raise InputError(
                "frozen batch norms are meaningless without pretrained weights: pass --weights, or "
                "leave frozen_batch_norm out"
            )
        say("no pretrained weights: training from scratch, with batch norms that train too")
    model = fastinst.create_model(args.model, num_classes, **options)
    if args.weights:
        fresh = load_weights(model, args.weights)
        more = f" and {len(fresh) - 12} more" if len(fresh) > 12 else ""
        told = f"; starting anew: {', '.join(fresh[:12])}{more}" if fresh else ""
        say(f"weights: {args.weights}{told}")
    return model


def fingerprint(dataset: Dataset) -> int:
    """Differs if the classes, the images or their numbers of annotations do."""
    counts = [(record.id, len(record.annotations)) for record in dataset.images]
    return zlib.crc32(repr((dataset.class_names, counts)).encode())


def main() -> int:
    args = parse_arguments()

    # Processes: one without torchrun, else as many as it started.
    world = int(os.environ.get("WORLD_SIZE", 1))
    rank = int(os.environ.get("RANK", 0))
    device = choose_device(args.device)
    if world > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    say = print if rank == 0 else lambda *_: None

    # Data: everything that is wrong with it is said here, before the first step.
    train, val = find_data(args, say)
    for name, dataset in (("train", train), ("val", val)):
        if dataset is None:
            continue
        counts = f"{len(dataset)} images, {len(dataset.class_names)} classes"
        say(f"{name}: {counts}, {dataset.source}")
        for line in dataset.skipped[:5]:
            say(f"  skipped: {line}")
        if len(dataset.skipped) > 5:
            say(f"  ... {len(dataset.skipped)} annotations skipped in all")
        if not args.skip_image_check and rank == 0:
            check_images(dataset)
    if val is not None and val.class_names != train.class_names:
        raise InputError(
            f"{val.source} and {train.source} have different classes: "
            f"{val.class_names} and {train.class_names}"
        )

    # Model and optimizer
    torch.manual_seed(args.seed)
    model = build_model(args, len(train.class_names), say).to(device)
    model.to(memory_format=torch.channels_last).train()
    config = model.config
    if args.backbone_lr is None:
        args.backbone_lr = 0.1 if args.weights else 1.0
    groups = parameter_groups(model, args.lr, args.lr * args.backbone_lr, args.weight_decay)
    optimizer = torch.optim.AdamW(groups, fused=device.type == "cuda")
    base_lrs = [group["lr"] for group in groups]
    amp = args.amp if args.amp != "auto" else ("float16" if device.type == "cuda" else "off")
    amp_dtype = getattr(torch, amp, torch.float32)
    scaler = torch.amp.GradScaler(device.type, enabled=amp == "float16")
    classes = (train.class_names, train.category_ids)
    step, best = 0, -math.inf
    if args.resume:
        training = read_checkpoint(args.resume)["training"]
        if training["data"] != fingerprint(train):
            raise InputError(f"{train.source} is not what {args.resume} was trained on")
        options = [{k: group[k] for k in ("weight_decay", "fused")} for group in groups]
        optimizer.load_state_dict(training["optimizer"])
        for group, own in zip(optimizer.param_groups, options, strict=True):
            group |= own  # those of the command line and of this device
        scaler.load_state_dict(training["scaler"])
        step, best = training["step"], training["best"]
    output = make_output_folder(args.output)
    if (output / "last.pt").exists() and not args.resume:
        raise InputError(f"{output} holds a run: --resume {output}, or choose another --output")
    compute_losses = TrainingStep(model)
    if world > 1:
        ids = [device.index] if device.type == "cuda" else None
        compute_losses = DistributedDataParallel(compute_losses, device_ids=ids)

    # The stream of batches, which a resumed run takes up where it stopped.
    short, longest = config.train_short_edge, config.train_max_edge
    augmentation = (
        Augmentation(short_edges=(short,), max_edge=longest, crop_probability=0.0)
        if args.flip_only
        else Augmentation.for_size(short, longest)
    )
    images = TrainingImages(train, augmentation, args.seed)
    if len(images) < len(train):
        say(f"{len(train) - len(images)} training images without objects are left out")
    sampler = EpochSampler(len(images), args.batch_size, args.seed, rank, world, step)
    per_epoch = len(images) / args.batch_size  # steps
    total = args.steps or math.ceil((args.epochs or 50) * per_epoch)
    eval_every = args.eval_every or math.ceil(per_epoch)
    if step >= total:
        raise InputError(f"{args.resume} is at step {step} of {total}: nothing is left to do")
    loader = DataLoader(
        images,
        batch_sampler=sampler,
        num_workers=args.workers,
        collate_fn=collate,
        worker_init_fn=ignore_interrupts,
        generator=torch.Generator(),
    )
    drops = ", ".join(str(math.ceil(drop * total)) for drop in DROPS)
    say(
        f"{args.model} on {device}: {total} steps of {args.batch_size} images "
        f"({total / per_epoch:.1f} epochs of {len(images)}), lr {args.lr:g} "
        f"(backbone x{args.backbone_lr:g}), x0.1 at steps {drops}, amp {amp}, "
        f"shorter edge up to {config.train_short_edge}, output {output}"
    )

    def save_last() -> None:
        training = {
            "step": step,
            "best": best,
            "optimizer": optimizer.state_dict(),
            "scaler": scaler.state_dict(),
            "arguments": {k: v for k, v in vars(args).items() if k not in ("resume", "device")},
            "data": fingerprint(train),
        }
        if rank == 0:
            save_checkpoint(output / "last.pt", model, *classes, training)

    # Step by step.
    interrupts = Interrupts()
    file, log = open_log(output / "log.csv", step) if rank == 0 else (None, None)
    bar = tqdm(total=total, initial=step, disable=rank > 0, unit="step", dynamic_ncols=True)
    started, summary = time.perf_counter(), None
    for samples in loader:
        # Random points depend on the step alone, so that a resumed run draws the same.
        torch.manual_seed((args.seed * world + rank) * 1_000_003 + step)
        factor = lr_factor(step, total, args.warmup)
        for group, base_lr in zip(optimizer.param_groups, base_lrs, strict=True):
            group["lr"] = base_lr * factor
        batch, _ = model.preprocess([sample["image"] for sample in samples])
        batch = batch.to(memory_format=torch.channels_last)
        with torch.autocast(device.type, amp_dtype, enabled=amp != "off"):
            losses = compute_losses(batch, [sample["target"] for sample in samples])
        optimizer.zero_grad()
        scaler.scale(sum(losses.values())).backward()
        scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(model.parameters(), args.clip or math.inf)

        # One copy from the device. Float16 gradients may overflow: the scaler skips that step.
        norm = norm.nan_to_num() if scaler.is_enabled() else norm
        values = torch.stack([*losses.values(), norm]).detach()
        if world > 1:
            dist.all_reduce(values)
            values /= world
        values = dict(zip([*losses, "gradient_norm"], values.tolist(), strict=True))
        bad = ", ".join(name for name, value in values.items() if not math.isfinite(value))
        if bad:
            bar.close()
            ids = ", ".join(str(sample["image_id"]) for sample in samples)
            raise InputError(
                f"step {step + 1}: {bad} not finite on images {ids}; nothing was saved since "
                f"the last checkpoint. Try a lower --lr, --clip 1 or --amp off"
            )
        scaler.step(optimizer)
        scaler.update()
        step += 1

        numbers = {"lr": args.lr * factor, "gradient_norm": values.pop("gradient_norm")}
        numbers["loss"] = sum(values.values())
        for kind in LOSS_KINDS:
            numbers[kind] = sum(v for name, v in values.items() if name.startswith(kind))
        row = {name: f"{value:.8g}" for name, value in numbers.items()}
        row |= {"step": step, "epoch": f"{step / per_epoch:.3f}"}
        row["seconds"] = f"{time.perf_counter() - started:.2f}"
        bar.set_postfix(loss=f"{numbers['loss']:.2f}", lr=f"{numbers['lr']:.1e}", refresh=False)
        bar.update()
        stopping = interrupts.requested(device)
        pause = step % eval_every == 0 or step == total
        if pause or stopping:
            save_last()
        if val is not None and pause and not stopping:
            evaluator = evaluate(model, val, device, workers=args.workers)
            if rank == 0:
                summary = evaluator.summarize()
                row |= {name: f"{summary[name]:.4f}" for name in ("AP", "AP50")}
                bar.write(f"step {step}: mask AP {summary['AP']:.2f}, AP50 {summary['AP50']:.2f}")
                if summary["AP"] > best:
                    best = summary["AP"]
                    save_checkpoint(output / "best.pt", model, *classes)
                    save_last()
        if log is not None:
            log.writerow(row)
            file.flush()
        if stopping or step == total:
            break
    bar.close()
    if dist.is_initialized():
        dist.destroy_process_group()
    if step < total:
        say(f"stopped after step {step}; continue with: python train.py --resume {output}")
        return 130
    if summary:
        say(format_table(summary))
        which = "best.pt" if (output / "best.pt").exists() else "last.pt"
        say(f"next: python evaluate.py {output / which} --data {args.val or args.data}")
    return 0


if __name__ == "__main__":
    run(main)
