"""Model, data, training and test, after the task.py of Flower's quickstart-pytorch."""

import numpy as np
import torch
from torch.utils.data import DataLoader

from tutorial.networks import Examples, build

workload = None  # Cache the data, as the tutorial caches its FederatedDataset


def open_workload(path):
    """Read the data once a process."""
    global workload
    if workload is None:
        workload = {key: value for key, value in np.load(path).items()}  # noqa: C416 -- reads
    return workload


def load_data(path, partition_id, batch_size):
    """Return a silo's DataLoader; tensors in memory; the tutorial decodes images."""
    data = open_workload(path)
    examples = Examples(data, data["images"][partition_id], data["labels"][partition_id])
    return DataLoader(examples, batch_size=batch_size, shuffle=True)


def load_centralized_dataset(path):
    """Return the DataLoader of the test set."""
    data = open_workload(path)
    examples = Examples({"augment": False}, data["test_images"], data["test_labels"])
    return DataLoader(examples, batch_size=128)


def make_net(path):
    """Return the workload's network."""
    return build(open_workload(path))


def train(net, trainloader, epochs, lr, device):
    """Train the model on the training set."""
    net.to(device)
    criterion = torch.nn.CrossEntropyLoss().to(device)
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=lr, momentum=0.9)
    net.train()
    running_loss = 0.0
    for _ in range(epochs):
        for batch in trainloader:
            images = batch[0].to(device)
            labels = batch[1].to(device)
            optimizer.zero_grad()
            loss = criterion(net(images), labels)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
    return running_loss / (epochs * len(trainloader))


def test(net, testloader, device):
    """Return loss and accuracy on the test set."""
    net.to(device)
    criterion = torch.nn.CrossEntropyLoss()
    correct, loss = 0, 0.0
    with torch.no_grad():
        for batch in testloader:
            images = batch[0].to(device)
            labels = batch[1].to(device)
            outputs = net(images)
            loss += criterion(outputs, labels).item()
            correct += (torch.max(outputs.data, 1)[1] == labels).sum().item()
    return loss / len(testloader), correct / len(testloader.dataset)
