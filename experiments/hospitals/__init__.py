"""Four hospitals with colour pictures and ResNets of their own, made by plain PyTorch."""
