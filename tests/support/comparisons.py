"""Variants, rates and records of comparisons, made by hand."""

import dataclasses

import support.recipes  # noqa: F401  # makes recipes/ importable, or skips this file

from comparison import single_run, sweep, variants

SGD = variants.Variant("sgd", "global, l2", {"optimizer": "sgd"}, (1.0, 1e35))
PAIR = (dataclasses.replace(variants.ADAM, factors=(0.1, 1.0)), SGD)


def rates(*losses):
    """Make runs at the rates 1, 2, ... that ended with these training losses."""
    return [
        sweep.Rate(
            rate, (single_run.Outcome(rate, loss, None if loss is None else loss + 0.5, 0.25),)
        )
        for rate, loss in enumerate(losses, start=1)
    ]


THERE = {"coordinate": 1.0, "row": 2.0, "head": 2.5, "tensor": 3.0, "global": 10.0}  # H(Phi) / d


def record_of(*entries, ends=()):
    """Make a record of (variant, rate, losses by seed, H(Phi) by seed, losses when shaken).

    The best rates of ``ends`` are an end of those tried.
    """
    return {
        "options": {"seeds": 2, "jobs": 1},
        "variants": [
            {
                "optimizer": v.optimizer, "geometry": v.geometry, "partition": v.partition,
                "rotation": v.rotation and "{} {:g}".format(*v.rotation), "lr": lr,
                "is_end": v in ends, "shaken": [{"train_loss": loss} for loss in shaken],
                "seeds": [
                    {
                        "train_loss": loss, "val_loss": loss, "clipped_share": 0.25,
                        "geometry": [] if loss is None else [{
                            "one_one_norm_per_param": h, "lambda_max": 2 * h,
                            "smoothness": {**THERE, v.partition: h},
                            "rotated": {"global 1": 9.0, "tensor 1": 8.0, "global 0.5": 7.0,
                                        "global 0.25": 6.0},
                        }],
                    }
                    for loss, h in zip(losses, smoothness, strict=True)
                ],
            }
            for v, lr, losses, smoothness, shaken in entries
        ],
    }  # fmt: skip
