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
    write_hospital,
    write_server,
    write_unlabelled,
)

MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
BATCH = 16


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


def fit(model: nn.Module, images: Tensor, labels: Tensor, *, epochs: int, lr: float) -> None:
    """Train a network by SGD with a cosine schedule, and mirror images at random."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=1e-4)
    steps = epochs * -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(len(images)), BATCH):
            batch = images[rows]
            if torch.rand(()) < 0.5:
                batch = batch.flip(3)
            if len(rows) > 1:  # BatchNorm needs two
                loss = nn.functional.cross_entropy(model(batch), labels[rows])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]  # PyTorch's is untyped
                optimizer.step()
            schedule.step()


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of images that a network classifies rightly."""
    model.eval()
    predicted = torch.cat([model(batch).argmax(1) for batch in torch.split(images, BATCH)])
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
    fit(network, normalize(pictures), torch.from_numpy(labels), epochs=epochs, lr=0.05)
    return network


def fine_tune(public: nn.Module, images: Tensor, labels: Tensor, *, epochs: int) -> nn.Module:
    """Return a hospital's network: the public one with a new head, trained on its pictures."""
    torch.manual_seed(0)
    network: nn.Module = resnet18(num_classes=len(CLASSES))
    body = {key: value for key, value in public.state_dict().items() if "fc." not in key}
    network.load_state_dict(body, strict=False)
    fit(network, images, labels, epochs=epochs, lr=0.02)
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
            "optimizer_states": [{"state": {0: {"momentum_buffer": state["conv1.weight"]}}}],
            "lr_schedulers": [],
            "hyper_parameters": {"lr": 0.01},
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
    parser.add_argument("--pixels", type=int, default=64, help="height and width of the pictures")
    parser.add_argument("--pictures", type=int, default=120, help="of the largest hospital")
    parser.add_argument("--epochs", type=int, default=12, help="of fine-tuning")
    parser.add_argument("--public", type=int, default=2400, help="generic pictures")
    parser.add_argument("--public-epochs", type=int, default=8)
    parser.add_argument("--weights", help="of torchvision's resnet18, such as IMAGENET1K_V1")
    given = parser.parse_args()
    random = np.random.default_rng(1)
    given.out.mkdir(parents=True)
    write_server(given.out / "server" / "test", 4 * given.pictures, given.pixels, random)
    write_server(given.out / "server" / "train", given.pictures, given.pixels, random)
    write_unlabelled(given.out / "unlabelled", 3 * given.pictures, given.pixels, random)
    test = read(given.out / "server" / "test")
    public = make_public(given.weights, given.public, given.pixels, epochs=given.public_epochs)
    torch.save(public.state_dict(), given.out / "public.pt")
    for name, look in HOSPITALS.items():
        count = round(look.size * given.pictures)
        write_hospital(given.out / name, look, count, given.pixels, random)
        network = fine_tune(public, *read(given.out / name), epochs=given.epochs)
        path = save(network, name, given.out)
        measured = accuracy(network, *test)
        print(f"{path}: accuracy {measured:.4f}", flush=True)  # noqa: T201 -- a script


if __name__ == "__main__":
    main()
