"""Makes four hospitals as they are before any federation: pictures, and a trained ResNet each.

Nothing of fedkd is used: this is what hospitals bring. All fine-tune one public network, as they
would ImageNet's, on pictures normalised with ImageNet's mean and standard deviation, and save it in
four ways. Nothing is downloaded, unless ``--weights`` names weights of torchvision::

    python -m experiments.hospitals.make_checkpoints data/hospitals
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import resnet18

from experiments.hospitals.pictures import (
    CLASSES,
    GENERIC,
    HOSPITALS,
    draw_public,
    of_all,
    of_hospital,
    write,
)

MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
BATCH = 32


def read(folder: Path) -> tuple[Tensor, Tensor]:
    """Return a folder's pictures, normalised floats ``[N, 3, H, W]``, and their labels."""
    images, labels = [], []
    for label, name in enumerate(CLASSES):
        for path in sorted((folder / name).glob("*.png")):
            images.append(np.asarray(Image.open(path)))
            labels.append(label)
    return normalize(np.stack(images)), torch.tensor(labels)


def normalize(pictures: NDArray[np.uint8]) -> Tensor:
    """Return pictures, uint8 ``[N, H, W, 3]``, as ImageNet's networks take them."""
    floats = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    return (floats - MEAN) / STD


def fit(network: nn.Module, images: Tensor, labels: Tensor, *, epochs: int, lr: float) -> None:
    """Train a network by AdamW with one cycle of the learning rate; mirror images at random."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr)
    steps = epochs * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    network.train()
    for _ in range(epochs):
        order = torch.randperm(len(images))[: len(images) // BATCH * BATCH]
        for rows in torch.split(order, BATCH):
            batch = images[rows].flip(3) if torch.rand(()) < 0.5 else images[rows]
            loss = nn.functional.cross_entropy(network(batch), labels[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # PyTorch's is untyped
            optimizer.step()
            schedule.step()


@torch.no_grad()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of images that a network classifies rightly."""
    network.eval()
    predicted = torch.cat([network(batch).argmax(1) for batch in torch.split(images, BATCH)])
    return int((predicted == labels).sum()) / len(labels)


def make_public(weights: str | None, count: int, pixels: int, *, epochs: int) -> nn.Module:
    """Return the network that all hospitals begin from.

    Args:
        weights: of torchvision's resnet18; None to train it on generic pictures.
        count: number of these.
        pixels: their height and width.
        epochs: of their training.
    """
    if weights is not None:
        network: nn.Module = resnet18(weights=weights)
        return network
    torch.manual_seed(0)
    network = resnet18(num_classes=len(GENERIC))
    pictures, labels = draw_public(count, pixels, np.random.default_rng(0))
    fit(network, normalize(pictures), torch.from_numpy(labels), epochs=epochs, lr=2e-3)
    return network


def fine_tune(public: nn.Module, images: Tensor, labels: Tensor, *, epochs: int) -> nn.Module:
    """Return a hospital's network: the public one with a new head, trained on its pictures."""
    torch.manual_seed(0)
    network: nn.Module = resnet18(num_classes=len(CLASSES))
    body = {key: value for key, value in public.state_dict().items() if "fc." not in key}
    network.load_state_dict(body, strict=False)
    fit(network, images, labels, epochs=epochs, lr=5e-4)
    return network


def save(network: nn.Module, name: str, folder: Path) -> Path:
    """Save a network as its hospital does."""
    state = network.state_dict()
    if name == "north":
        path = folder / "north.pt"
        torch.save(state, path)
    elif name == "east":  # trained by DataParallel
        path = folder / "east.pth"
        wrapped = nn.DataParallel(network).state_dict()
        torch.save({"epoch": 5, "state_dict": wrapped, "best": 0.9}, path)
    elif name == "south":  # as Lightning writes it
        path = folder / "south.ckpt"
        content = {
            "epoch": 5,
            "global_step": 90,
            "pytorch-lightning_version": "2.4.0",
            "state_dict": {f"model.{key}": value for key, value in state.items()},
            "loops": {"fit_loop": {"state_dict": {}}},
            "callbacks": {},
            "optimizer_states": [{"state": {0: {"exp_avg": state["conv1.weight"]}}}],
            "lr_schedulers": [],
            "hyper_parameters": {"lr": 5e-4},
        }
        torch.save(content, path)
    else:
        path = folder / "west.safetensors"
        save_file(state, path)
    return path


def main() -> None:
    """Write the pictures, train and save, and print each network's accuracy."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, help="a folder that is not there yet")
    parser.add_argument("--pixels", type=int, default=32, help="height and width of the pictures")
    parser.add_argument("--pictures", type=int, default=200, help="of the largest hospital")
    parser.add_argument("--epochs", type=int, default=6, help="of fine-tuning")
    parser.add_argument("--public", type=int, default=1280, help="generic pictures")
    parser.add_argument("--public-epochs", type=int, default=6)
    parser.add_argument("--weights", help="of torchvision's resnet18, such as IMAGENET1K_V1")
    given = parser.parse_args()
    random = np.random.default_rng(1)
    given.out.mkdir(parents=True)
    for part, times in {"server/test": 3, "server/train": 1, "unlabelled": 2}.items():
        pictures = of_all(times * given.pictures)
        labelled = part != "unlabelled"
        write(given.out / part, pictures, given.pixels, random, labelled=labelled)
    test = read(given.out / "server" / "test")
    public = make_public(given.weights, given.public, given.pixels, epochs=given.public_epochs)
    torch.save(public.state_dict(), given.out / "public.pt")
    for name, look in HOSPITALS.items():
        pictures = of_hospital(look, given.pictures)
        write(given.out / name, pictures, given.pixels, random)
        network = fine_tune(public, *read(given.out / name), epochs=given.epochs)
        path = save(network, name, given.out)
        measured = accuracy(network, *test)
        print(f"{path}: accuracy {measured:.4f}", flush=True)  # noqa: T201 -- a script


if __name__ == "__main__":
    main()
