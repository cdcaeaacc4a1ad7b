"""What a training starts from: the training steps of a family, and a model with first weights."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from slidelens.engine.bags import without_weights
from slidelens.engine.learnt import LEARNT_FROM
from slidelens.engine.package import check_packable, family_of, load_model
from slidelens.errors import ModelError
from slidelens.families import FAMILIES
from slidelens.families.base import Model

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import torch

    from slidelens.engine.training.plan import TrainPlan
    from slidelens.families.training import TrainTask

__all__ = ["initial_model", "starting_point", "task_of"]


def task_of(family: str) -> type[TrainTask[Any]]:
    """Return the class with a family's training steps.

    Raises
    ------
    ModelError
        The family cannot be trained, or its training steps cannot be loaded.
    """
    target = family_of(family).trainer
    if target is None:
        raise ModelError(f"family {family!r} cannot be trained here; its models come ready made.")
    module, _, name = target.partition(":")
    try:
        task: type[TrainTask[Any]] = getattr(import_module(module), name)
    except Exception as error:  # reason: a plugin may raise anything
        if family not in FAMILIES.plugins():
            raise
        raise ModelError(
            f"the training steps of plugin {family!r} ({target}) do not load: "
            f"{type(error).__name__}: {error}. Update or uninstall the package that brings it."
        ) from error
    return task


def starting_point(
    model: str | Path | None,
    family: str,
    classes: Sequence[str] | None,
    weights: str | Path | None,
) -> tuple[Model[Any] | None, tuple[str, ...] | None]:
    """Return the model to start from, if any, and the classes to learn, if they are known.

    Parameters
    ----------
    model, family
        Package to fine-tune, if any, and the family that is trained.
    classes
        The given names, if any; otherwise those of the package.
    weights
        The given weights; a package brings its own.

    Raises
    ------
    ModelError
        Classes that are fewer than two or not distinct; weights beside a package; a package of
        another family.
    """
    known = None if classes is None else tuple(classes)
    if known is not None and len(set(known)) < max(len(known), 2):
        raise ModelError(f"classes {', '.join(known)}: expected two names or more, each once.")
    if model is None:
        return None, known
    if weights is not None:
        raise ModelError("--from brings its own weights: leave --weights out.")
    base = load_model(model, "cpu")
    if base.family != family:
        raise ModelError(f"{model} is a {base.family} model: train {base.family} to fine-tune it.")
    return base, known or base.classes


def initial_model(plan: TrainPlan, device: torch.device) -> tuple[Model[Any], Mapping[str, Any]]:
    """Build the model with its initial weights; return where they come from.

    Parameters
    ----------
    plan, device
        The training, and where it computes.

    Raises
    ------
    ModelError
        Weights that do not exist or do not fit.
    """
    import torch

    from slidelens.engine.contract import build_network, given
    from slidelens.nn.encoders import described

    classes = plan.labels.classes
    base = None if plan.from_model is None else load_model(plan.from_model, "cpu")
    with described(_encoder_of(base, plan)):
        module = build_network(family_of(plan.family), plan.config, len(classes))
    model: Model[Any] = Model(
        name=_name_of(plan.out),
        family=plan.family,
        config=plan.config,
        classes=classes,
        module=module,
        device=device,
    )
    check_packable(model)
    if base is not None:
        origin = _inherited(model, plan, base)
    else:
        try:
            first = task_of(plan.family).initialize(model, plan.weights)
        except ModelError as error:
            if plan.weights != "imagenet" or not plan.given_bags:
                raise
            bag = next(iter(plan.files.values()))
            raise without_weights(bag, model.config.backbone, error) from error
        origin = given("initialize", first, Mapping)
    model.module.to(memory_format=torch.channels_last)
    return model, origin


def _encoder_of(base: Model[Any] | None, plan: TrainPlan) -> dict[str, Any] | None:
    """Return what the package to start from keeps of its encoder, if this training has the same."""
    from slidelens.nn.encoders import description_of

    configs = () if base is None else (base.config, plan.config)
    same = len({getattr(config, "backbone", None) for config in configs}) == 1
    return description_of(base.module) if base is not None and same else None


def _inherited(model: Model[Any], plan: TrainPlan, base: Model[Any]) -> Mapping[str, Any]:
    package = plan.from_model
    try:
        task_of(plan.family).inherit(model, base)
    except RuntimeError as error:
        asked, had = (dict(config) for config in (plan.config, base.config))
        changed = [f"{k} {had.get(k)!r} to {v!r}" for k, v in asked.items() if had.get(k) != v]
        if not changed:
            reason = str(error).partition("\n")[0]
            raise ModelError(f"the weights of {package} cannot be loaded: {reason}") from error
        raise ModelError(
            f"the weights of {package} do not fit the changed configuration "
            f"({', '.join(changed)}): leave out what shapes the network, or --from."
        ) from error
    model.mean, model.std = base.mean, base.std
    model.card[LEARNT_FROM] = base.card.get(LEARNT_FROM)
    origin = {"from": base.name, "from_sha256": base.card.get("weights_sha256")}
    return origin if model.classes == base.classes else origin | {"from_classes": base.classes}


def _name_of(out: Path) -> str:
    """Return a model's name: its folder's, for a fold preceded by the cross-validation's."""
    place = out.resolve()
    fold = re.fullmatch(r"fold-\d+", place.name)
    name = f"{place.parent.name}-{place.name}" if fold else place.name
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip("-._") or "model"
