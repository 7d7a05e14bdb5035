"""The ServerApp, after that of Flower's quickstart-pytorch."""

import json
from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from tutorial.networks import start
from tutorial.task import load_centralized_dataset, make_net, open_workload, test

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run FedAvg with an evaluation on the test set after every round."""
    workload = open_workload(context.run_config["workload"])
    strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0)
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(start(workload)),
        train_config=ConfigRecord({"lr": context.run_config["learning-rate"]}),
        num_rounds=context.run_config["num-server-rounds"],
        evaluate_fn=lambda number, arrays: global_evaluate(context, number, arrays),
    )


def global_evaluate(context: Context, server_round: int, arrays: ArrayRecord) -> MetricRecord:
    """Evaluate the model on the test set, and note the round for the bench."""
    model = make_net(context.run_config["workload"])
    model.load_state_dict(arrays.to_torch_state_dict())
    loader = load_centralized_dataset(context.run_config["workload"])
    loss, accuracy = test(model, loader, torch.device("cpu"))
    with Path(context.run_config["rounds-file"]).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"round": server_round, "accuracy": accuracy}) + "\n")
    return MetricRecord({"accuracy": accuracy, "loss": loss})
