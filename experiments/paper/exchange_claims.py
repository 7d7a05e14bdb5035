"""The claim on one exchange against training on all data in one place."""

# ruff: noqa: E501 -- the page is prose

from __future__ import annotations

from collections.abc import Sequence

from experiments.paper.figures import Records, mean
from experiments.paper.findings import Finding
from experiments.paper.plan import PARTITIONS

STUDENT = "fedkd-both-blends"
"""The arm that the claim is judged on."""
CONTROL = "control-densities-blends"
"""The same without any model."""
ARMS = ("fedkd-equal", "fedkd-familiarity", "fedkd-familiarity-knn-mixup", STUDENT, CONTROL)


def one_exchange(records: Records) -> Finding:
    """One exchange against central training, whose rate may fall as the student's does."""
    variants = records.variants("central")
    falling = [variant for variant in variants if variant[-1] == "cosine"]
    central = _best(records, variants)
    constant = _best(records, [variant for variant in variants if variant not in falling])

    def start(name: str, arm: str) -> float:
        return mean(records.starts("one-exchange", (name,), arm))

    def gaps(variant: tuple[str, ...]) -> list[float]:
        top = _accuracy(records, variant)
        # To the image: two points of 10,000 are exact.
        return [round(top - start(name, STUDENT), 6) for name in PARTITIONS]

    near, nearer = (sum(gap <= 0.02 for gap in gaps(each)) for each in (central, constant))
    added = [100 * (start(name, STUDENT) - start(name, CONTROL)) for name in PARTITIONS]
    rows = [(arm, *(f"{100 * start(name, arm):.1f}" for name in PARTITIONS)) for arm in ARMS]
    for title, variant in (("central", central), ("central, constant rate", constant)):
        below = (f"{100 * gap:.2f}" for gap in gaps(variant))
        rows.append((f"{STUDENT}: points below {title}", *below))
    return Finding(
        "One exchange against central training",
        "Fashion-MNIST, ten silos of 5,000 images, 3,000 unlabelled transfer images, one seed: before "
        "any round the student is within two points of the same model trained on all images in "
        "one place, its learning rate, epochs and schedule tuned on validation data. Holds if so on four of the five "
        "partitions. The claim is judged on both-blends: densities pooled from moments in patches weigh the models "
        "and teach beside them, on twenty blends an image; its student and blends were chosen on training images that no "
        "silo and no transfer set has, its epochs set higher than any tried there. While densities and blends were developed, "
        "figures on these test images were seen beside those on validation data: they are not untouched. Its control has no models. Central training sees no blends.",
        ("arm", *PARTITIONS),
        rows,
        f"{'Holds' if near >= 4 else 'Does not hold'}: {near} of {len(PARTITIONS)} partitions are within two "
        f"points of central training, {_describe(records, central)}; {nearer} are of {_describe(records, constant)}, the "
        "best whose rate stays constant, which is no fair rival of a student whose rate falls. To what the densities "
        f"teach alone the models add {min(added):.2f} to {max(added):.2f} points.",
    )


def _best(records: Records, variants: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Return the variant of central training that is best on validation data."""
    return max(variants, key=lambda v: records.record("central", v)["federations"][0]["best"])


def _accuracy(records: Records, variant: tuple[str, ...]) -> float:
    return mean(records.starts("central", variant, "central"))


def _describe(records: Records, variant: tuple[str, ...]) -> str:
    _, rate, _, epochs, *schedule = variant
    return f"{100 * _accuracy(records, variant):.1f} (lr {', '.join([rate, *schedule])}, {epochs} epochs)"
