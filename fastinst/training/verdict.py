"""What the sanity check has seen, and what follows from it."""

import math
from dataclasses import dataclass, field

import numpy as np

from fastinst.examination.alignment import ABOVE_CHANCE
from fastinst.metrics.label_agreement import LabelAgreement

# AP50 on images that were trained on. Masks of other images can get there too, for a model learns
# whatever it is shown; alignment finds those.
ENOUGH = 50.0
FALL = 0.7  # the part of the loss that may be left
FEWEST_STEPS = 150  # before which small objects may have no AP yet, with nothing being wrong
# Objects found in unseen images that it takes to judge their classes, and how far they must be
# from guessing, in standard deviations: what is guessed gets there about once in a hundred times.
FEWEST_OBJECTS, SIGMAS = 20, 2.5
SMALL = 24  # pixels: masks have one logit for 8 x 8


@dataclass(kw_only=True)
class Evidence:
    """What there is to judge by; it grows while the check runs.

    learned: number of images that the model was trained on
    object_edge: usual length of their objects in pixels, at the size that the model sees
    alignment: of `fastinst.examination.alignment`; None if there are too few images
    losses: the total loss of each step
    not_finite: what of the last step was no finite number, and on which images; "" if all was
    curve: (step, AP50 on the learned images) whenever it was measured
    ap, ap50: on the learned images at last, percent
    unseen_ap50: on images that were not trained on, nan if there are none
    classes: of the objects found in those
    """

    learned: int
    object_edge: float
    alignment: float | None
    losses: list[float] = field(default_factory=list)
    not_finite: str = ""
    curve: list[tuple[int, float]] = field(default_factory=list)
    ap: float = math.nan
    ap50: float = math.nan
    unseen_ap50: float = math.nan
    classes: LabelAgreement = LabelAgreement(0, 0.0, 0.0)

    @property
    def misaligned(self) -> bool:
        return self.alignment is not None and self.alignment < ABOVE_CHANCE

    @property
    def loss_before_and_after(self) -> tuple[float, float]:
        """The means over the first and the last tenth of the steps."""
        tenth = -(-len(self.losses) // 10)
        return float(np.mean(self.losses[:tenth])), float(np.mean(self.losses[-tenth:]))


@dataclass(frozen=True)
class Verdict:
    """reason: in plain words; of a failure what is wrong and what to look at"""

    passed: bool
    reason: str
    evidence: Evidence

    def __str__(self) -> str:
        return f"{'PASS' if self.passed else 'FAIL'}: {self.reason}"


def judge(evidence: Evidence) -> Verdict:
    """The first thing that is wrong, from causes to effects; or that nothing is."""
    fault = _fault(evidence)
    return Verdict(not fault, fault or _praise(evidence), evidence)


def _fault(seen: Evidence) -> str:
    if seen.misaligned:
        return (
            f"the masks do not fit their images: alignment {seen.alignment:.2f}, where chance has "
            f"0.5 and correct annotations at least {ABOVE_CHANCE}; nothing was trained. Do the "
            f"annotations belong to files of these names, and to images of this size and rotation?"
        )
    if seen.not_finite:
        return f"{seen.not_finite}; look at these images and their annotations"
    steps = len(seen.losses)
    if seen.ap50 < ENOUGH:
        if steps < FEWEST_STEPS:
            return (
                f"the time was over at step {steps}, and a failure takes {FEWEST_STEPS} to tell; "
                f"try a smaller --size, or leave out --weights, for then a small model is tried"
            )
        before, after = seen.loss_before_and_after
        fall = f"{before:.1f} -> {after:.1f} in {steps} steps"
        if after > FALL * before:
            return f"the loss did not fall: {fall}. Look at the images and their masks"
        small = f"; their objects are about {seen.object_edge:.0f} pixels long at this size, so "
        return (
            f"AP50 {seen.ap50:.1f} on the {seen.learned} images that it was trained on, where "
            f"{ENOUGH:.0f} is expected (loss {fall})"
            + (small + "try a larger --size" if seen.object_edge < SMALL else "")
        )
    objects, right, guessed = seen.classes
    if objects >= FEWEST_OBJECTS and seen.classes.sigmas < SIGMAS:
        return (
            f"the classes do not follow from what is to be seen: of {objects} objects found in "
            f"images that it was not trained on, {right:.0%} were taken for what their label says, "
            f"and guessing has {guessed:.0%}. Are the category ids those of the class list? Are "
            f"the classes told apart by their looks?"
        )
    return ""


def _praise(seen: Evidence) -> str:
    before, after = seen.loss_before_and_after
    parts = [
        f"learnt {seen.learned} images by heart in {len(seen.losses)} steps: AP50 {seen.ap50:.1f}, "
        f"AP {seen.ap:.1f}, loss {before:.1f} -> {after:.1f}",
        "too few images to say whether the masks are on the right ones"
        if seen.alignment is None
        else f"the masks fit their images (alignment {seen.alignment:.2f})",
    ]
    if not math.isnan(seen.unseen_ap50):
        parts.append(f"AP50 {seen.unseen_ap50:.1f} on images that it was not trained on")
    if seen.classes.objects >= FEWEST_OBJECTS and seen.classes.guessed < 1:
        parts.append(f"{seen.classes.right:.0%} of the objects found there have the right class")
    return "; ".join(parts)
