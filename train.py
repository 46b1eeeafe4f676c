"""Train FastInst on your own images.

    python train.py --data DATA --weights fastinst-d3-r50-640
    python train.py --data DATA --model fastinst-d1-r18-192 --sanity
    torchrun --nproc-per-node 4 train.py --data DATA --weights fastinst-d3-r50-640
    python train.py --resume runs/fastinst-d3-r50-640

DATA is a folder or a file with COCO JSON in any layout, YOLO segmentation labels, or Cityscapes.
Everything goes to one folder: last.pt and previous.pt to resume from, best.pt by mask AP, PQ
or mIoU, log.csv, curves.png, and samples.jpg, which shows what the model is given to learn.

Leaves with exit code 0 when the training is done, 130 when it was stopped and can be resumed, 1
when --sanity fails, 2 on an error.
"""

import argparse
import math
import shlex
import sys
import time
from collections.abc import Callable

import torch
from tqdm import tqdm

from fastinst.config import parse_overrides
from fastinst.curves import draw_curves
from fastinst.data.dataset import Dataset
from fastinst.data.formats import load_splits
from fastinst.data.loader import EpochSampler, TrainingImages
from fastinst.data.workers import read_batches
from fastinst.device import choose_device
from fastinst.errors import InputError, run
from fastinst.examination.contact_sheet import contact_sheet
from fastinst.examination.report import MOST_IMAGES, examine
from fastinst.files import make_output_folder
from fastinst.metrics.measures import MEASURES
from fastinst.model import FastInst
from fastinst.records import peak_memory
from fastinst.training.arguments import (
    Resumed,
    autocast_dtype,
    parse_arguments,
    saved_arguments,
    training_views,
)
from fastinst.training.ema import ExponentialMovingAverage
from fastinst.training.fingerprint import fingerprint
from fastinst.training.gradients import BatchGradients
from fastinst.training.initial_model import initial_model
from fastinst.training.interrupts import Interrupts
from fastinst.training.log import Log, loss_columns
from fastinst.training.optimizer import parameter_groups, scale_learning_rates
from fastinst.training.outcome import describe_outcome
from fastinst.training.processes import Processes
from fastinst.training.progress_bar import progress_bar, show_step
from fastinst.training.run_folder import RunFolder, resolve_resume
from fastinst.training.sanity import sanity_check
from fastinst.training.schedule import Schedule
from fastinst.training.state import Progress, TrainingState
from fastinst.training.sync_batch_norm import synchronise_batch_norms
from fastinst.training.validation import Validation
from fastinst.visualize import save_jpeg
from fastinst.weights import load_model

STARTED = time.monotonic()
SECONDS_BETWEEN_SAVES = 15 * 60
MOST_SKIPPED = 50  # steps in a row


def main() -> int:
    processes = Processes.find()
    with processes.telling_one_error():
        args, resumed = parse_arguments(__doc__)
        device = choose_device(args.device)
        processes = processes.connect(device)
        try:
            return fit(args, resumed, device, processes)
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"{str(error).partition('. ')[0]}: a larger --accumulate, or a smaller --size, "
                f"takes less; nothing was saved since the last checkpoint"
            ) from error
    return 2  # another process has told why


def fit(
    args: argparse.Namespace, resumed: Resumed | None, device: torch.device, processes: Processes
) -> int:
    say = print if processes.leads else lambda *_: None
    if args.batch_size // processes.world < args.accumulate:
        raise InputError(
            f"--batch-size {args.batch_size} is too small for {processes.world} processes that "
            f"compute it in {args.accumulate} parts"
        )
    if not resumed and resolve_resume("auto", args.output):
        raise InputError(
            f"{args.output} holds a run: continue it with --resume {shlex.quote(args.output)}, or "
            f"choose another --output"
        )

    # Data and model; what is wrong with them is said before the first step
    train, val, without_val = load_splits(args.data, args.val, args.images, args.task)
    measure = MEASURES[args.task]
    model = load_model(resumed.path)[0] if resumed else new_model(args, train, say)
    model.to(device, memory_format=torch.channels_last).train()
    amp = autocast_dtype(args.amp, device)
    augmentation = training_views(args.augmentation, model.config)
    if processes.leads and not resumed:
        report = examine(
            *(train, val, model.config, args.batch_size),
            parts=processes.world * args.accumulate,
            settings=augmentation,
            device=device,
            amp=amp is not None,
            most_images=None if args.check_all_images else MOST_IMAGES,
        )
        report.show(say)
        if report.fatal:
            raise InputError(f"{train.source} cannot be trained on; what is fatal stands above")
    processes.meet()
    if args.sanity:
        processes.leave()  # one is enough
        return try_sanity(args, model, train, device) if processes.leads else 0
    if val is not None and all(a.iscrowd for image in val.images for a in image.annotations):
        val, without_val = None, f"{val.source} has no objects"
    if val is None:
        idle = " and ".join(f"--{name}" for name in ("ema", "patience") if getattr(args, name))
        more = f" and {idle} will change nothing" if idle else ""
        say(f"no validation set, so no {measure.chief}{more}; pass --val. Why: {without_val}")

    # The plan
    images = TrainingImages(train, augmentation, args.seed)
    schedule = Schedule.plan(
        *(len(images), args.batch_size),
        epochs=args.epochs,
        steps=args.steps,
        lr=args.lr,
        warmup=args.warmup,
        drops_at=args.drops,
        pause_every=args.eval_every,
    )
    usual = 0.1 if args.weights else 1.0
    backbone_lr = usual if args.backbone_lr is None else args.backbone_lr
    precision = str(amp or torch.float32).removeprefix("torch.")
    say(
        f"plan: {args.model} on {device}, {precision}, "
        f"shorter edge {model.config.train_short_edge}\n"
        f"  {len(images)} images with objects, {args.augmentation} augmentation; "
        f"{args.batch_size} a step: processes {processes.world}, parts {args.accumulate}\n"
        f"  {schedule}; backbone x{backbone_lr:g}"
    )

    # The optimizer, and what a resumed run takes up
    synchronise_batch_norms(model)
    ema = ExponentialMovingAverage(model, args.ema) if args.ema else None
    groups = parameter_groups(model, schedule.lr, schedule.lr * backbone_lr, args.weight_decay)
    optimizer = torch.optim.AdamW(groups, fused=True)
    gradients = BatchGradients(model, processes, args.accumulate, amp)
    state = TrainingState(Progress(measure.chief), optimizer, gradients.scaler, ema)
    identity = fingerprint(train) if processes.leads else None
    if resumed:
        for line in state.resume(resumed, train.source, identity, schedule.steps):
            say(line)
    progress = state.progress
    processes.check_same_step(progress.step, args.output)
    folder = RunFolder(make_output_folder(args.output))

    # The stream of batches, which a resumed run takes up where it stopped
    share = (processes.rank, processes.world, progress.step)
    sampler = EpochSampler(len(images), args.batch_size, args.seed, *share)
    batches = read_batches(images, sampler, args.workers, pin_memory=device.type == "cuda")
    if processes.leads and not resumed:
        save_jpeg(folder.path / "samples.jpg", contact_sheet(images, train.class_names))
        say(f"  what the model is given to learn: {folder.path / 'samples.jpg'}")

    def save() -> None:
        if processes.leads:
            training = state.state_dict() | {"arguments": saved_arguments(args), "data": identity}
            folder.save(model, train.class_names, train.category_ids, training, train.is_thing)

    # Step by step
    row = progress.unjudged
    log = Log(folder.path, progress.step - bool(row), say, measure) if processes.leads else None
    interrupts = Interrupts(args.time_limit, STARTED, quiet=not processes.leads)
    validation = Validation(ema.model if ema else model, measure, train, val, folder, args.workers)

    if row:
        validation.judge(progress, row, log, processes)
    length = (schedule.steps, args.patience)
    skipped_in_a_row, stopping = 0, False
    saved = lap = time.monotonic()
    with progress_bar(schedule.steps, progress.step, shown=processes.leads) as bar:
        while not (stopping or progress.is_over(*length)):
            try:
                samples = next(batches)
            except InputError as error:
                save()
                again = f"Continue with --resume {shlex.quote(args.output)}"
                raise InputError(f"{str(error).strip()}. {again}") from error
            replaced = [sample["replaced"] for sample in samples if sample["replaced"]]
            for reason in replaced:
                tqdm.write(f"warning: another image stands in: {reason}", file=sys.stderr)
            factor = schedule.lr_factor(progress.step)
            scale_learning_rates(optimizer, factor)
            optimizer.zero_grad()
            losses = gradients.compute(samples)
            norm = gradients.clip(optimizer, args.clip)

            # The one copy from the device; it also tells what the other processes know.
            told = [norm.new_full((), float(n)) for n in (interrupts.received, len(replaced))]
            means = processes.mean(torch.stack([*losses.values(), norm, *told])).tolist()
            *values, norm, stop, replaced = means
            values = dict(zip(losses, values, strict=True))
            judged = values | {"gradient norm": norm}
            bad = [name for name, value in judged.items() if not math.isfinite(value)]
            skipped_in_a_row = skipped_in_a_row + 1 if bad else 0
            if bad and (amp is None or skipped_in_a_row > MOST_SKIPPED):
                ids = processes.joined([sample["image_id"] for sample in samples])
                raise InputError(
                    f"step {progress.step + 1}: {', '.join(bad)} not finite on images "
                    f"{', '.join(map(str, ids))}; nothing was saved since the last checkpoint. "
                    f"Try a lower --lr, --clip 1 or --amp off"
                )
            if bad:
                progress.skipped_steps += 1
            else:
                gradients.scaler.step(optimizer)
                if ema:
                    ema.update(model)
            gradients.scaler.update()
            progress.step += 1
            progress.replaced_images += round(replaced * processes.world)

            now = time.monotonic()
            progress.seconds += now - lap
            row = {
                "step": progress.step,
                "epoch": progress.step / schedule.steps_per_epoch,
                "seconds": progress.seconds,
                "lr": schedule.lr * factor,
                "gradient_norm": norm,
                **loss_columns(values),
                "images_per_second": args.batch_size / (now - lap),
                "memory_mib": peak_memory(device) / 2**20,
            }
            show_step(bar, row)

            # Saved before it is evaluated, so that nothing is lost if that is cut short.
            stopping = stop > 0
            pause = progress.step == schedule.steps or progress.step % schedule.pause_every == 0
            if pause or stopping or now - saved > SECONDS_BETWEEN_SAVES:
                progress.unjudged = row if pause and val is not None else None
                save()
                saved = now
            if progress.unjudged and not stopping:
                validation.judge(progress, row, log, processes)
            elif log:
                log.write(row)
            interrupts.reserve_s = max(interrupts.reserve_s, 1.2 * (time.monotonic() - lap))
            lap = time.monotonic()

    # The end
    ended = progress.is_over(*length) and not progress.unjudged
    if ended:
        save()  # with what the last evaluation has found
    if processes.leads:
        log.close()
        draw_curves(log.path, folder.path / "curves.png")
    processes.leave()
    stopped_by = None if ended else interrupts.reason or "another process"
    for line in describe_outcome(args, progress, schedule.steps, validation, processes, stopped_by):
        say(line)
    return 0 if ended else 130


def new_model(args: argparse.Namespace, train: Dataset, say: Callable[[str], object]) -> FastInst:
    torch.manual_seed(args.seed)
    return initial_model(
        *(args.model, len(train.class_names), parse_overrides(args.set)),
        size=args.size,
        weights=args.weights,
        batch_norm=args.batch_norm,
        images_per_norm=args.batch_size // args.accumulate,
        say=say,
    )


def try_sanity(
    args: argparse.Namespace, model: FastInst, train: Dataset, device: torch.device
) -> int:
    picture = make_output_folder(args.output) / "sanity.jpg"
    start = model if args.weights else None
    verdict = sanity_check(train, device, model=start, size=args.size, picture=picture, say=print)
    print(verdict)
    return 0 if verdict.passed else 1


if __name__ == "__main__":
    run(main)
